/** The operations of a MetaEngine over any engine that has transactions (ops/tx.ts). */
import { EACCES, EFBIG, EINVAL, ENAMETOOLONG, ENODATA, ENOENT, ENOTDIR } from '@steadfs/fuse/errno';
import { FileType } from '../format/attr.ts';
import type { Slice } from '../format/slice.ts';
import type { Cred, EngineOptions, MetaEngine } from './engine.ts';
import { allows, checkAccess, NAME_MAX, present, X } from './ops/access.ts';
import * as attrs from './ops/attrs.ts';
import { logChange } from './ops/changelog.ts';
import { attachClone, cloneNode } from './ops/clone.ts';
import * as data from './ops/data.ts';
import * as locks from './ops/locks.ts';
import * as names from './ops/names.ts';
import { noQuotas, quotaDirs } from './ops/quota.ts';
import * as codecs from './ops/record.ts';
import { claimDuty, countChildren } from './ops/sessions.ts';
import type { Body, Tx, TxDriver, Volume } from './ops/tx.ts';

type Generic = Omit<
  MetaEngine,
  | 'name'
  | 'load'
  | 'init'
  | 'reset'
  | 'close'
  | 'newSession'
  | 'adoptSession'
  | 'heartbeat'
  | 'closeSession'
  | 'listSessions'
  | 'staleSessions'
  | 'cleanSession'
  | 'flush'
  | 'sync'
  | 'durable'
  | 'dirStream'
  | 'newSliceIds'
  | 'waitForUnlock'
  | 'getQuota'
  | 'setQuota'
  | 'deleteQuota'
  | 'listQuotas'
>;

const PIB = 2 ** 50;

/** The state of an engine that has read no volume yet. */
export function emptyVolume(options: EngineOptions): Volume {
  return {
    format: {
      Name: '',
      UUID: '',
      Storage: '',
      Tiers: null,
      Bucket: '',
      BlockSize: 4096,
      TrashDays: 0,
      EnableACL: false,
    },
    sid: 0,
    skipDirMtime: options.skipDirMtime,
    atimeMode: options.atimeMode,
    quotas: noQuotas(),
  };
}

/** Everything that is a body of ops/ and nothing else; an engine adds sessions, listings, counters and what it does faster. */
export function txOperations(driver: TxDriver, volume: Volume): Generic {
  return {
    lookup: (cred, parent, name) =>
      driver.read(function* (tx) {
        if (name.length > NAME_MAX) throw ENAMETOOLONG;
        const p = yield* tx.node(parent);
        if (p === undefined) throw ENOENT;
        if (p.type !== FileType.directory) throw ENOTDIR;
        yield* checkAccess(tx, cred, p, X);
        const found = yield* tx.edge(parent, name);
        const attr = found === undefined ? undefined : yield* tx.node(found.ino);
        if (found === undefined || attr === undefined) throw ENOENT;
        return { ino: found.ino, attr: yield* present(tx, found.ino, attr) };
      }),
    getattr: ino =>
      driver.read(function* (tx) {
        const attr = yield* tx.node(ino);
        if (attr === undefined) throw ENOENT;
        return yield* present(tx, ino, attr);
      }),
    access: (cred, ino, mask) =>
      driver.read(function* (tx) {
        const attr = yield* tx.node(ino);
        if (attr === undefined) throw ENOENT;
        if (!(yield* allows(tx, cred, attr, mask & 7))) throw EACCES;
      }),
    readlink: ino =>
      driver.read(function* (tx) {
        const target = yield* tx.symlink(ino);
        if (target !== undefined) return target;
        throw (yield* tx.node(ino)) === undefined ? ENOENT : EINVAL;
      }),
    readChunk: (ino, index) => driver.read(tx => readChunk(tx, ino, index)),
    listChunks: (ino, from, to, limit) => driver.read(tx => listChunks(tx, ino, from, to, limit)),
    getxattr: (ino, name) =>
      driver.read(function* (tx) {
        const value = yield* tx.xattr(ino, name);
        if (value !== undefined) return value;
        throw (yield* tx.node(ino)) === undefined ? ENOENT : ENODATA;
      }),
    listxattr: ino => driver.read(tx => attrs.listxattr(tx, ino)),
    getAcl: (ino, kind) => driver.read(tx => attrs.getAcl(tx, ino, kind)),
    parents: ino => driver.read(tx => attrs.parents(tx, ino)),
    statfs: root => driver.read(tx => statfs(tx, root)),
    dirStat: ino =>
      driver.read(function* (tx) {
        const stat = yield* tx.dirStat(ino);
        if (stat !== undefined && stat.length >= 0 && stat.space >= 0 && stat.inodes >= 0) return stat;
        if ((yield* tx.node(ino)) === undefined) throw ENOENT;
        return yield* countChildren(tx, ino);
      }),

    mknod: (op, cred, parent, name, node) =>
      driver.mutate(op, codecs.entryCodec, tx => names.mknod(tx, cred, parent, name, node)),
    create: (op, cred, parent, name, mode, umask, flags) =>
      driver.mutate(op, codecs.createCodec, tx => names.create(tx, cred, parent, name, mode, umask, flags)),
    tmpfile: (op, cred, parent, mode, umask) =>
      driver.mutate(op, codecs.entryCodec, tx => names.tmpfile(tx, cred, parent, mode, umask)),
    open: (op, cred, ino, flags) =>
      (flags & 0o1000) !== 0
        ? driver.mutate(op, codecs.attrCodec, tx => attrs.open(tx, cred, ino, flags))
        : driver.read(tx => attrs.open(tx, cred, ino, flags)),
    release: (op, ino) => driver.mutate(op, codecs.lengthCodec, tx => data.release(tx, volume.sid, ino)),
    async setattr(op, cred, ino, set) {
      if (set.size !== undefined) await prepareTruncate(driver, cred, ino, set.size, set.byHandle === true);
      return driver.mutate(op, codecs.attrCodec, tx => attrs.setattr(tx, cred, ino, set));
    },
    link: (op, cred, ino, parent, name) =>
      driver.mutate(op, codecs.entryCodec, tx => names.link(tx, cred, ino, parent, name)),
    unlink: (op, cred, parent, name, isOpen, skipTrash = false) =>
      driver.mutate(op, codecs.removedCodec, tx => names.unlink(tx, cred, parent, name, isOpen, skipTrash)),
    rmdir: (op, cred, parent, name, skipTrash = false) =>
      driver.mutate(op, codecs.removedCodec, tx => names.rmdir(tx, cred, parent, name, skipTrash)),
    rename: (op, cred, parent, name, newParent, newName, flags, isOpen) =>
      driver.mutate(op, codecs.renameCodec, tx =>
        names.rename(tx, cred, parent, name, newParent, newName, flags, isOpen),
      ),
    setxattr: (op, cred, ino, name, value, mode) =>
      driver.mutate(op, codecs.attrCodec, tx => attrs.setxattr(tx, cred, ino, name, value, mode)),
    removexattr: (op, cred, ino, name) =>
      driver.mutate(op, codecs.attrCodec, tx => attrs.removexattr(tx, cred, ino, name)),
    setAcl: (op, cred, ino, kind, rule) =>
      driver.mutate(op, codecs.attrCodec, tx => attrs.setAcl(tx, cred, ino, kind, rule)),
    write: (op, ino, index, records, end, mtime, ctime, killSuidgid) =>
      driver.mutate(op, codecs.writeCodec, tx => data.write(tx, ino, index, records, end, mtime, ctime, killSuidgid)),
    async fallocate(op, cred, ino, offset, length, mode) {
      attrs.checkFallocate(offset, length, mode);
      if ((mode & (attrs.Falloc.punchHole | attrs.Falloc.zero)) !== 0)
        await preparePunch(driver, cred, ino, offset, offset + length);
      return driver.mutate(op, codecs.attrCodec, tx => attrs.fallocate(tx, cred, ino, offset, length, mode));
    },
    copyFileRange: (op, cred, ino, offset, out, outOffset, length) =>
      driver.mutate(op, codecs.copyCodec, tx => data.copyFileRange(tx, cred, ino, offset, out, outOffset, length)),
    touchAtime: ino => {
      if (volume.atimeMode === 'noatime') return;
      const due = driver.read(function* (tx): Body<boolean> {
        const attr = yield* tx.node(ino);
        return attr !== undefined && attrs.atimeDue(attr, tx.now, volume.atimeMode);
      });
      const go = (yes: boolean) => (yes ? driver.transact(tx => attrs.touchAtime(tx, ino)) : undefined);
      return due instanceof Promise ? due.then(go) : go(due);
    },

    flock: (op, ino, owner, type) => driver.mutate(op, codecs.voidCodec, tx => locks.flock(tx, ino, owner, type)),
    getlk: (ino, owner, lock) => driver.read(tx => locks.getlk(tx, ino, owner, lock)),
    setlk: (op, ino, owner, lock) => driver.mutate(op, codecs.voidCodec, tx => locks.setlk(tx, ino, owner, lock)),
    lockHolders: (ino, owner, lock) => driver.read(tx => locks.lockHolders(tx, ino, owner, lock)),

    compact: (op, ino, index, original, skipped, replacement) =>
      driver.mutate(op, codecs.booleanCodec, tx => data.compact(tx, ino, index, original, skipped, replacement)),
    deletedFiles: async (before, limit) => driver.read(tx => oneStep(tx.delfiles(before, limit))),
    deleteFileData: (op, ino, length) =>
      driver.mutate(op, codecs.fileDataCodec, tx => data.deleteFileData(tx, ino, length)),
    deadSlices: async limit => driver.read(tx => oneStep(tx.deadSlices(limit))),
    delayedSlices: async () => driver.read(tx => oneStep(tx.delayedSlices())),
    expireDelayedSlices: (op, before, limit) =>
      driver.mutate(op, codecs.delayedCodec, tx => data.expireDelayedSlices(tx, before, limit)),
    slicesDeleted: slices =>
      driver.transact(function* (tx) {
        for (const { id, size } of slices) {
          yield* tx.deleteSlice(id, size);
          yield* logChange(tx, 'DELETESLICE', () => [id, size]);
        }
      }),
    claimDuty: (name, period) => driver.transact(tx => claimDuty(tx, name, period)),

    cloneNode: (op, cred, source, parent, name, options) =>
      driver.mutate(op, codecs.entryCodec, tx => cloneNode(tx, cred, source, parent, name, options)),
    attachClone: (op, cred, detached, parent, name) =>
      driver.mutate(op, codecs.entryCodec, tx => attachClone(tx, cred, detached, parent, name)),
  };
}

function* oneStep<T>(step: Iterable<Promise<unknown>, T, unknown>): Body<T> {
  return yield* step;
}

function* readChunk(tx: Tx, ino: number, index: number): Body<Slice[]> {
  const records = yield* tx.chunk(ino, index);
  if (records.length === 0 && (yield* tx.node(ino)) === undefined) throw ENOENT;
  return records;
}

function* listChunks(tx: Tx, ino: number, from: number, to: number, limit: number): Body<number[]> {
  const indexes = yield* tx.chunkIndexes(ino, from, to, limit);
  if (indexes.length === 0 && (yield* tx.node(ino)) === undefined) throw ENOENT;
  return indexes;
}

/** Steps before a truncation that covers very many existing chunks (attrs.punchStep); the checks are made first, and again in the last step. */
async function prepareTruncate(
  driver: TxDriver,
  cred: Cred,
  ino: number,
  size: number,
  byHandle: boolean,
): Promise<void> {
  if (size > attrs.MAX_LENGTH) throw EFBIG;
  const range = driver.read(function* (tx): Body<[number, number] | undefined> {
    const attr = yield* tx.node(ino);
    if (attr === undefined || attr.type !== FileType.file || size >= attr.length) return undefined;
    if (yield* attrs.punchIsShort(tx, ino, size, attr.length)) return undefined;
    if (attr.flags !== 0) return undefined;
    if (!byHandle) yield* checkAccess(tx, cred, attr, 2);
    return [size, attr.length];
  });
  const found = range instanceof Promise ? await range : range;
  if (found !== undefined) await punchSteps(driver, ino, found[0], found[1]);
}

async function preparePunch(driver: TxDriver, cred: Cred, ino: number, from: number, to: number): Promise<void> {
  const range = driver.read(function* (tx): Body<number | undefined> {
    const attr = yield* tx.node(ino);
    if (attr === undefined || attr.type !== FileType.file || from >= attr.length || attr.flags !== 0) return undefined;
    const end = Math.min(to, attr.length);
    if (yield* attrs.punchIsShort(tx, ino, from, end)) return undefined;
    yield* checkAccess(tx, cred, attr, 2);
    return end;
  });
  const end = range instanceof Promise ? await range : range;
  if (end !== undefined) await punchSteps(driver, ino, from, end);
}

async function punchSteps(driver: TxDriver, ino: number, from: number, to: number): Promise<void> {
  for (let index: number | undefined = 0; index !== undefined; ) {
    const at: number = index;
    index = await driver.transact(tx => attrs.punchStep(tx, ino, from, to, at));
  }
}

/** spec/volume.md §10. */
function* statfs(
  tx: Tx,
  root: number,
): Body<{ totalSpace: number; availSpace: number; usedInodes: number; availInodes: number }> {
  const { quotas, format } = tx.volume;
  let usedSpace = Math.max(0, quotas.usedSpace);
  let usedInodes = Math.max(0, quotas.usedInodes);
  let total = format.Capacity ?? 0;
  if (total === 0) for (total = PIB; total * 8 < usedSpace * 10; ) total *= 2;
  let availSpace = Math.max(0, total - usedSpace);
  let availInodes = format.Inodes ? Math.max(0, format.Inodes - usedInodes) : 10 << 20;
  if (!format.Inodes) while (usedInodes > availInodes * 4) availInodes *= 2;
  let innermost = true;
  for (const dir of yield* quotaDirs(tx, root)) {
    const q = quotas.dirs.get(dir)!;
    if (q.maxSpace > 0) availSpace = Math.min(availSpace, Math.max(0, q.maxSpace - q.usedSpace));
    if (q.maxInodes > 0) availInodes = Math.min(availInodes, Math.max(0, q.maxInodes - q.usedInodes));
    if (innermost) {
      usedSpace = q.usedSpace;
      usedInodes = q.usedInodes;
      innermost = false;
    }
  }
  return { totalSpace: innermost ? total : usedSpace + availSpace, availSpace, usedInodes, availInodes };
}
