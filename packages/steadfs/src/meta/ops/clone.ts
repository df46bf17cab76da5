/** Copies of inodes that share their data (spec/volume.md §16). */
import { EEXIST, ENOENT, ENOTDIR, EPERM } from '@steadfs/fuse/errno';
import { type Attr, FileType, Flag } from '../../format/attr.ts';
import { type Ino, isTrash } from '../../format/ino.ts';
import type { Cred, Entry, Name } from '../engine.ts';
import { checkAccess, checkNewName, W, X } from './access.ts';
import { inoArg, logChange } from './changelog.ts';
import { accountEntry, accountInode, checkQuota, spaceOf } from './quota.ts';
import type { Body, Tx } from './tx.ts';

const CHUNKS_PER_PAGE = 1000;

function* target(tx: Tx, cred: Cred, parent: Ino, name: Name): Body<Readonly<Attr>> {
  checkNewName(name);
  const p = yield* tx.node(parent);
  if (p === undefined) throw ENOENT;
  if (p.type !== FileType.directory) throw ENOTDIR;
  if (isTrash(parent) || isTrash(p.parent) || (p.flags & Flag.immutable) !== 0) throw EPERM;
  yield* checkAccess(tx, cred, p, W | X);
  if ((yield* tx.edge(parent, name)) !== undefined) throw EEXIST;
  return p;
}

export function* cloneNode(
  tx: Tx,
  cred: Cred,
  source: Ino,
  parent: Ino,
  name: Name | undefined,
  options: { preserve: boolean; umask: number },
): Body<Entry> {
  const from = yield* tx.nodeForUpdate(source);
  if (from === undefined) throw ENOENT;
  yield* checkAccess(tx, cred, from, from.type === FileType.directory ? 5 : 4);
  if (name !== undefined) yield* target(tx, cred, parent, name);
  const attr: Attr = {
    ...from,
    parent,
    nlink: from.type === FileType.directory ? 2 : 1,
    flags: from.flags & ~(Flag.immutable | Flag.append),
  };
  if (!options.preserve) {
    attr.uid = cred.uid;
    attr.gid = cred.gid;
    attr.mode &= ~options.umask;
    attr.atime = attr.mtime = attr.ctime = tx.now.sec;
    attr.atimensec = attr.mtimensec = attr.ctimensec = tx.now.nsec;
  }
  yield* checkQuota(tx, attr.uid, attr.gid, spaceOf(attr), 1, name === undefined ? [] : [parent]);
  const ino = yield* tx.newInode();
  yield* tx.insertNode(ino, attr);
  yield* tx.copyXattrs(source, ino);
  if (attr.type === FileType.symlink) yield* tx.insertSymlink(ino, (yield* tx.symlink(source)) ?? new Uint8Array(0));
  else if (attr.type === FileType.directory) yield* tx.insertDirStat(ino, 0, 0, 0);
  else if (attr.type === FileType.file) yield* shareChunks(tx, source, ino);
  accountInode(tx, attr, 1);
  if (name === undefined) yield* tx.insertDetached(ino);
  else {
    yield* tx.insertEdge(parent, name, ino, attr.type);
    yield* tx.adjustDir(parent, attr.type === FileType.directory ? 1 : 0, true);
    yield* accountEntry(tx, parent, attr, 1);
  }
  const mode = options.preserve ? 2 : 0;
  yield* logChange(
    tx,
    'CLONE',
    () => [inoArg(source), inoArg(parent), name ?? '', inoArg(ino), mode, options.umask, name === undefined],
    inoArg(ino),
  );
  return { ino, attr };
}

function* shareChunks(tx: Tx, source: Ino, ino: Ino): Body<void> {
  for (let from = 0; ; ) {
    const indexes: number[] = yield* tx.chunkIndexes(source, from, 0xffffffff, CHUNKS_PER_PAGE);
    for (const index of indexes) {
      const records = yield* tx.chunk(source, index);
      if (records.length === 0) continue;
      yield* tx.replaceChunk(ino, index, records);
      for (const r of records) if (r.id !== 0) yield* tx.addRefs(r.id, r.size, 1);
    }
    if (indexes.length < CHUNKS_PER_PAGE) return;
    from = indexes.at(-1)! + 1;
  }
}

export function* attachClone(tx: Tx, cred: Cred, detached: Ino, parent: Ino, name: Name): Body<Entry> {
  const old = yield* tx.nodeForUpdate(detached);
  if (old === undefined) throw ENOENT;
  yield* target(tx, cred, parent, name);
  yield* checkQuota(tx, old.uid, old.gid, 0, 0, [parent]);
  const attr: Attr = { ...old, parent };
  yield* tx.insertEdge(parent, name, detached, old.type);
  yield* tx.updateNode(detached, attr);
  yield* tx.deleteDetached(detached);
  yield* tx.adjustDir(parent, old.type === FileType.directory ? 1 : 0, true);
  yield* accountEntry(tx, parent, attr, 1);
  yield* logChange(tx, 'ATTACH', () => [inoArg(detached), inoArg(parent), name]);
  return { ino: detached, attr };
}
