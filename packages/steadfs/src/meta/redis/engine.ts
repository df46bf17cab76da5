/**
 * The metadata engine on Redis (spec/meta-redis.md): each mutation is one script with all its checks and the op record, each read one command or one
 * read-only script; attributes and names that the server tracks for us (CLIENT TRACKING, default mode) cost no round trip.
 *
 * Keys of ours begin with `{P}STEADFS`: `STEADFS.s{sid}` (hash: head = incarnation 16 bytes and epoch u32; `{kind}.{slot}` = seq u64 and result),
 * `STEADFS.acl` (rule → id), `STEADFS.chunks` (inode → highest chunk index before it was cut).
 *
 * Tracking forgets a key when we ourselves write it, NOLOOP or not, and inside a script Redis before 7.2 remembers the declared keys only. So
 * scripts declare the keys whose values are cached, and read them once more at their end.
 */
import { randomBytes } from 'node:crypto';
import {
  EACCES,
  EAGAIN,
  EFBIG,
  EINVAL,
  EIO,
  ENAMETOOLONG,
  ENODATA,
  ENOENT,
  ENOTDIR,
  ERANGE,
  EROFS,
  type Errno,
  ESTALE,
  errnoOf,
} from '@steadfs/fuse/errno';
import { type AclRule, aclMode, decodeAcl, encodeAcl, isMinimalAcl } from '../../format/acl.ts';
import { type Attr, decodeAttr, emptyDirectory, encodeAttr, FileType } from '../../format/attr.ts';
import { type Ino, inoFromBigint, inoToString, isTrash, ROOT } from '../../format/ino.ts';
import { decodeLocks, encodeLocks, findConflict, LockType } from '../../format/locks.ts';
import { CHUNK_SIZE, decodeSlices, encodeSlices, type Slice } from '../../format/slice.ts';
import { trashFolderName } from '../../format/trash.ts';
import {
  changedImmutable,
  decryptSecrets,
  encryptSecrets,
  type Format,
  MAX_META_VERSION,
  parseFormat,
  serialiseFormat,
} from '../../format/volume.ts';
import { now, unixNow } from '../clock.ts';
import type {
  AttrSet,
  CreateResult,
  Cred,
  DeadSlice,
  Dentry,
  EngineDriver,
  EngineOptions,
  Entry,
  MakeNode,
  MaybePromise,
  MetaEngine,
  Name,
  Op,
  PosixLock,
  Quota,
  Removed,
  RenameResult,
  SessionDetail,
  SessionIdentity,
  StatfsResult,
  TimeSet,
  WriteResult,
} from '../engine.ts';
import { SESSION_LOST } from '../engine.ts';
import { allows, checkNewName, NAME_MAX, X } from '../ops/access.ts';
import { atimeDue, checkFallocate, checkOpen, MAX_LENGTH, XATTR_VALUE_MAX } from '../ops/attrs.ts';
import { spaceOf } from '../ops/quota.ts';
import { decodeDead } from '../ops/record.ts';
import { type Body, runAsync, type Step, type Tx, wait } from '../ops/tx.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import { Cache } from './cache.ts';
import { dirStream, type Listing } from './dir-stream.ts';
import {
  asBuffer,
  asList,
  asNumber,
  errnoFor,
  ino8,
  latin,
  readEntry,
  readIno,
  readRemoved,
  shown,
  u32,
  u64,
} from './forms.ts';
import { Link, type Lost } from './link.ts';
import { type Arg, type Reply, ReplyError } from './resp.ts';
import { packContext, packTime, type Script, type Scripts, scripts } from './script.ts';
import { checkServer } from './server-check.ts';
import { parseRedisUrl, type RedisUrl } from './url.ts';

const O_TRUNC = 0o1000;
const EMPTY = new Uint8Array(0);
const NO_HEAD = Buffer.alloc(20);
const INODE_BATCH = 1024;
const SLICE_BATCH = 4096;
/** Inodes left when the next batch is fetched. */
const INODES_LOW = 102;
/** Session expiry is written this far ahead, seconds (a restart of the service must fit in). */
const SESSION_TTL = 600;
/** Cached answers are given while the server was heard from within this time; a silent connection may have lost pushes. */
const FRESH_MS = 3000;
const PING_MS = 1000;
/** Whole chunks that one script covers with holes, or looks for. */
const CHUNKS_PER_STEP = 1000;
const LOOKS_PER_SCRIPT = 5000;
/** Entries of the delayed list, each of up to 1000 slices, that one call takes. */
const DELAYED_PER_CALL = 50;
/** Beyond this range existing chunks are found by a scan of the key space. */
const SCAN_FROM = 200_000;

/** A script wants to know something before it goes on. */
class Question {
  readonly kind: string;
  readonly value: Buffer;
  constructor(kind: string, value: Buffer) {
    this.kind = kind;
    this.value = value;
  }
}

/** Result of a script, in the order of the stream. fresh: carried out now, not answered from the record. */
type Take<T> = (main: Buffer, fresh: boolean, extra: Buffer) => T;

interface LockWait {
  changed: boolean;
  wake: Set<() => void>;
}

export async function openRedis(url: RedisUrl, options: EngineOptions): Promise<MetaEngine> {
  const cache = new Cache(url.cacheSize);
  const lockWaits = new Map<Ino, LockWait>();
  /** Unused inode and slice numbers: next, end. */
  const inodes = { next: 0, end: 0, more: undefined as Promise<void> | undefined };
  const sliceIds = { next: 0, end: 0, more: undefined as Promise<void> | undefined };
  /** A batch that came before the one in use was used up. */
  const spare = new Map<typeof inodes, [number, number]>();
  let prefix = '';
  let lost: string | undefined;

  const link = new Link(url, options.retries, {
    up() {},
    down() {
      cache.clear();
      // Behind a fail-over the counters may be older than what was fetched.
      for (const pool of [inodes, sliceIds]) pool.next = pool.end;
      spare.clear();
      for (const w of lockWaits.values()) wakeAll(w);
    },
    push(items) {
      if (String(items[0]) !== 'invalidate') return;
      const keys = items[1];
      if (!Array.isArray(keys)) cache.clear();
      else for (const k of keys) if (Buffer.isBuffer(k)) invalidate(k.toString('latin1'));
    },
    trouble: m => options.events.trouble(m === undefined ? undefined : `${url.display}: ${m}`),
  });
  try {
    await link.open();
  } catch (e) {
    link.close();
    throw errnoFor(e, url.display);
  }
  if (link.cluster) prefix = `{${url.db}}`;
  const S: Scripts = scripts(prefix);
  await checkServer(link, url, m => options.events.warning?.(m));

  let format: Format | undefined;
  let settingText = '';
  let session: { identity: SessionIdentity; info: Buffer; head: Buffer } | undefined;
  let txn = 0;
  const rules = new Map<number, AclRule>();
  /** Where deletion of a file's chunks goes on. */
  const deleting = new Map<string, number>();

  function wakeAll(w: LockWait): void {
    w.changed = true;
    for (const f of w.wake) f();
    w.wake.clear();
  }

  function lockChanged(ino: Ino): void {
    const w = lockWaits.get(ino);
    if (w !== undefined) wakeAll(w);
  }

  /** A key that we read was changed elsewhere (or the server forgot that we read it). */
  function invalidate(whole: string): void {
    if (!whole.startsWith(prefix)) return;
    const key = whole.slice(prefix.length);
    const m = /^(i|d|c|lockf|lockp)(\d+)(?:_\d+)?$/.exec(key);
    if (m === null) return;
    let ino: Ino;
    try {
      ino = inoFromBigint(BigInt(m[2]!));
    } catch {
      return;
    }
    switch (m[1]) {
      case 'i':
        cache.dropAttr(ino);
        options.events.changed(ino, 'attr');
        break;
      case 'd':
        cache.changed(ino);
        options.events.changed(ino, 'entries');
        break;
      case 'c':
        options.events.changed(ino, 'data');
        break;
      default:
        lockChanged(ino);
    }
  }

  /** Cached answers are as good as the server's. */
  function fresh(): boolean {
    if (!link.tracking || !link.drain() || !link.tracking) return false;
    const age = performance.now() - link.lastReply;
    if (age < PING_MS) return true;
    link.call(['PING'], true, () => {});
    return age < FRESH_MS;
  }

  const iKey = (ino: Ino): string => `${prefix}i${inoToString(ino)}`;
  const dKey = (ino: Ino): string => `${prefix}d${inoToString(ino)}`;
  const key = (name: string): string => prefix + name;

  function need(): Format {
    if (format === undefined) throw EIO.because('the volume has not been loaded');
    return format;
  }

  function ask(...args: Arg[]): Promise<Reply> {
    return link.ask(args).catch((e: unknown) => {
      throw errnoFor(e, String(args[0]));
    });
  }

  /** EVALSHA, and EVAL when the server does not know the script. */
  function evaluate(
    s: Script,
    keys: readonly Arg[],
    args: readonly Arg[],
    again: boolean,
    done: (r: Reply | Lost) => void,
    op?: Op,
  ): void {
    const known = (r: Reply | Lost): void => {
      if (r instanceof ReplyError && r.kind === 'NOSCRIPT')
        link.call(['EVAL', s.source, keys.length, ...keys, ...args], again, done, op);
      else done(r);
    };
    link.call(['EVALSHA', s.sha, keys.length, ...keys, ...args], again, known, op);
  }

  function run(s: Script, keys: readonly Arg[], args: readonly Arg[], again = true): Promise<Reply> {
    return new Promise((resolve, reject) => {
      evaluate(s, keys, args, again, r => (r instanceof Error ? reject(errnoFor(r, 'script')) : resolve(r)));
    });
  }

  /** The same, with `take` called in the order of the stream. */
  function runTake<T>(s: Script, keys: readonly Arg[], args: readonly Arg[], take: (r: Reply) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      evaluate(s, keys, args, true, r => {
        if (r instanceof Error) return reject(errnoFor(r, 'script'));
        try {
          resolve(take(r));
        } catch (e) {
          reject(e);
        }
      });
    });
  }

  function readTake<T>(args: readonly Arg[], take: (r: Reply) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      link.call(args, true, r => {
        if (r instanceof Error) return reject(errnoFor(r, String(args[0])));
        try {
          resolve(take(r));
        } catch (e) {
          reject(e);
        }
      });
    });
  }

  function sessionLost(reason: string): Errno {
    if (lost === undefined) {
      lost = reason;
      cache.clear();
      options.events.sessionLost(reason);
    }
    return EIO.because(`session lost: ${reason}`, SESSION_LOST);
  }

  interface Call {
    keys: readonly Arg[];
    args: readonly Arg[];
    cred?: Cred;
    /** The script asks for the caller's groups in any case. */
    groups?: boolean;
    /** No op record: repeatable. */
    unrecorded?: boolean;
  }

  /** Carries a mutation out. Rejects with a Question when the script asks one. */
  function mutate<T>(s: Script, op: Op | undefined, call: Call, take: Take<T>): Promise<T> {
    if (options.readOnly) return Promise.reject(EROFS);
    if (lost !== undefined) return Promise.reject(EIO.because(`session lost: ${lost}`, SESSION_LOST));
    const f = need();
    const record = op !== undefined && session !== undefined && call.unrecorded !== true;
    const context = packContext(
      {
        head: session?.head ?? NO_HEAD,
        session: session !== undefined,
        record,
        tracking: link.tracking,
        skipDirMtime: options.skipDirMtime,
        format: f,
      },
      op,
      now(),
      call.cred,
      call.groups === true,
    );
    const sid = session?.identity.sid ?? 0;
    const field = record ? `${op.kind}.${op.slot}` : '';
    // A cluster wants to know where to send it.
    const keys = link.cluster && call.keys.length === 0 ? [key('setting')] : call.keys;
    // A script without record that was lost may have been carried out: repeating it is only right where that does no harm.
    const again = record || call.unrecorded === true;
    return new Promise((resolve, reject) => {
      evaluate(
        s,
        keys,
        [context, field, sid, f.ChangeLog ? ++txn : 0, ...call.args],
        again,
        r => {
          if (r instanceof Error) return reject(errnoFor(r, 'mutation'));
          try {
            const b = asBuffer(r);
            switch (b[0]) {
              case 0x4b: {
                // K
                const end = 5 + b.readUInt32BE(1);
                resolve(take(b.subarray(5, end), true, b.subarray(end)));
                return;
              }
              case 0x52: // R
                resolve(take(b.subarray(1), false, b.subarray(b.length)));
                return;
              case 0x45: // E
                reject(b.length > 2 ? errnoOf(b[1]!).because(b.toString('utf8', 2)) : errnoOf(b[1]!));
                return;
              case 0x4c: // L
                reject(sessionLost(b.toString('utf8', 1)));
                return;
              default:
                reject(new Question(String.fromCharCode(b[0]!), b.subarray(1)));
            }
          } catch (e) {
            reject(e);
          }
        },
        op,
      );
    });
  }

  // ── what results mean for the cache ──────────────────────────────────────────────────────────────────────────────
  /** Directories that the script wrote, after their declared keys were read again. */
  function keepExtra(extra: Buffer): void {
    if (!link.tracking) return;
    for (let at = 0; at < extra.length; ) {
      const { entry, next } = readEntry(extra, at);
      cache.setAttr(entry.ino, entry.attr);
      at = next;
    }
  }

  /** `declared`: the inode's key was among KEYS. */
  function keepAttr(e: Entry, isFresh: boolean, declared: boolean): void {
    if (isFresh && declared && link.tracking) cache.setAttr(e.ino, { ...e.attr });
    else cache.dropAttr(e.ino);
  }

  function keepName(parent: Ino, name: string, d: Dentry | null, isFresh: boolean): void {
    if (isFresh && link.tracking) cache.setName(parent, name, d);
    else cache.dropDir(parent);
  }

  const takeEntry =
    (declared: boolean): Take<Entry> =>
    (main, isFresh, extra) => {
      const { entry } = readEntry(main, 0);
      keepAttr(entry, isFresh, declared);
      keepExtra(extra);
      return entry;
    };

  const takeAttr: Take<Attr> = (main, isFresh) => {
    const { entry } = readEntry(main, 0);
    keepAttr(entry, isFresh, true);
    return entry.attr;
  };

  function takeRemoved(
    main: Buffer,
    at: number,
    hint: Ino | undefined,
    isFresh: boolean,
  ): { removed: Removed; next: number } {
    const r = readRemoved(main, at);
    const { ino, attr, state } = r.removed;
    if (state === 'gone' || state === 'deleted') cache.dropAttr(ino);
    else keepAttr({ ino, attr }, isFresh, ino === hint);
    if (attr.type === FileType.directory) cache.dropDir(ino);
    return r;
  }

  // ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────
  function logStamp(): string {
    if (!format?.ChangeLog) return '';
    const t = now();
    return `${t.sec}.${String(t.nsec).padStart(9, '0')}`;
  }

  function fetchNumbers(pool: typeof inodes, counter: string, logName: string, batch: number): Promise<void> {
    pool.more ??= run(S.addCounter, [key(counter)], [counter, batch, logName, logStamp(), session?.identity.sid ?? 0])
      .then(v => {
        const top = asNumber(v);
        const first = Math.max(top - batch + 1, counter === 'nextinode' ? 2 : 1);
        if (pool.next >= pool.end) {
          pool.next = first;
          pool.end = top + 1;
        } else spare.set(pool, [first, top + 1]);
      })
      .finally(() => {
        pool.more = undefined;
      });
    return pool.more;
  }

  function refill(pool: typeof inodes): void {
    const s = spare.get(pool);
    if (pool.next < pool.end || s === undefined) return;
    [pool.next, pool.end] = s;
    spare.delete(pool);
  }

  async function newInode(): Promise<Ino> {
    for (;;) {
      refill(inodes);
      if (inodes.next < inodes.end) break;
      await fetchNumbers(inodes, 'nextinode', 'nextInode', INODE_BATCH);
    }
    const ino = inodes.next++;
    if (inodes.end - inodes.next < INODES_LOW && !spare.has(inodes)) {
      // The one who runs dry reports the error.
      fetchNumbers(inodes, 'nextinode', 'nextInode', INODE_BATCH).catch(() => {});
    }
    return ino;
  }

  // ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
  function fetchAttr(ino: Ino): Promise<Attr> {
    return readTake(['GET', iKey(ino)], r => {
      if (r === null) {
        cache.dropAttr(ino);
        throw ENOENT;
      }
      const attr = decodeAttr(asBuffer(r));
      if (attr.parent === 0 && attr.type !== FileType.directory) return undefined;
      shown(attr, 0);
      if (link.tracking) cache.setAttr(ino, { ...attr });
      return attr;
    }).then(attr => attr ?? fetchLinked(ino));
  }

  /** With the parents map, for files that have or had several links. */
  function fetchLinked(ino: Ino): Promise<Attr> {
    return runTake(S.getattr, [iKey(ino)], [ino8(ino)], r => {
      const b = asBuffer(r);
      if (b.length === 0) throw ENOENT;
      const { entry } = readEntry(b, 0);
      if (link.tracking) cache.setAttr(ino, { ...entry.attr });
      return entry.attr;
    });
  }

  function getattr(ino: Ino): MaybePromise<Attr> {
    // What has been pushed counts before the look.
    const hit = fresh() ? cache.attr(ino) : undefined;
    return hit === undefined ? fetchAttr(ino) : { ...hit };
  }

  async function rule(id: number): Promise<AclRule | undefined> {
    const known = rules.get(id);
    if (known !== undefined) return known;
    const r = await ask('HGET', key('acl'), String(id));
    if (r === null) return undefined;
    const decoded = decodeAcl(asBuffer(r));
    rules.set(id, decoded);
    return decoded;
  }

  /** Checks of ops/ that need no more of a transaction than ACL rules. */
  const ruleSource = { acl: (id: number): Step<AclRule | undefined> => wait(rule(id)) } as unknown as Tx;
  const checked = <T>(body: (tx: Tx) => Body<T>): Promise<T> => runAsync(body(ruleSource));

  function lookupFound(parent: Ino, name: Name, text: string): MaybePromise<Entry> {
    const known = fresh() ? cache.name(parent, text) : undefined;
    if (known !== undefined) {
      if (known === null) throw ENOENT;
      const hit = cache.attr(known.ino);
      if (hit !== undefined) return { ino: known.ino, attr: { ...hit } };
      const { ino } = known;
      return fetchAttr(ino).then(attr => ({ ino, attr }));
    }
    return runTake(S.lookup, [dKey(parent), iKey(parent)], [inoToString(parent), name], r => {
      const b = asBuffer(r);
      if (b.length === 0) {
        if (link.tracking) {
          cache.setName(parent, text, null);
          if (cache.wanted(parent)) void loadDir(parent);
        }
        throw ENOENT;
      }
      if (b[0] === 0x45) throw errnoOf(b[1]!);
      if (b.length < 12) throw ENOENT;
      const { entry } = readEntry(b, 1);
      if (link.tracking) cache.setName(parent, text, { ino: entry.ino, type: b[0] as FileType });
      if (tracksComputed()) cache.setAttr(entry.ino, { ...entry.attr });
      return entry;
    });
  }

  /** From 7.2 on the server remembers what a script reads, whatever it declares. */
  function tracksComputed(): boolean {
    if (!link.tracking) return false;
    const [major = 0, minor = 0] = link.serverVersion.split('.').map(Number);
    return major > 7 || (major === 7 && minor >= 2);
  }

  /** Reads a directory completely if it is small, so that absent names are known. */
  async function loadDir(ino: Ino): Promise<void> {
    try {
      await readTake(['HSCAN', dKey(ino), '0', 'COUNT', '4096'], r => {
        const [cursor, flat] = asList(r);
        if (String(cursor) !== '0' || !link.tracking) return;
        cache.setList(ino, dentries(asList(flat)));
      });
    } catch {
      // Only a cache: the next lookup meets the same error.
    }
  }

  function dentries(flat: Reply[]): Map<string, Dentry | null> {
    const names = new Map<string, Dentry | null>();
    for (let i = 0; i < flat.length; i += 2) {
      const v = asBuffer(flat[i + 1]);
      names.set(asBuffer(flat[i]).toString('latin1'), { type: v[0] as FileType, ino: readIno(v, 1) });
    }
    return names;
  }

  async function lookup(cred: Cred, parent: Ino, name: Name): Promise<Entry> {
    const p = await getattr(parent);
    if (p.type !== FileType.directory) throw ENOTDIR;
    await checked(function* (tx) {
      if (!(yield* allows(tx, cred, p, X))) throw EACCES;
    });
    return await lookupFound(parent, name, latin(name));
  }

  // ── chunks ───────────────────────────────────────────────────────────────────────────────────────────────────────
  /** Indexes of existing chunks, ascending. */
  async function existing(ino: Ino, from: number, to: number, limit: number): Promise<number[]> {
    const out: number[] = [];
    if (to - from >= SCAN_FROM) {
      const head = `${prefix}c${inoToString(ino)}_`;
      for (let cursor = '0'; ; ) {
        const [next, keys] = asList(
          await ask('SCAN', cursor, 'MATCH', `${head.replaceAll(/[[\]*?\\]/g, '\\$&')}*`, 'COUNT', '10000'),
        );
        for (const k of asList(keys)) {
          const index = Number(asBuffer(k).toString('latin1', head.length));
          if (index >= from && index <= to) out.push(index);
        }
        cursor = String(next);
        if (cursor === '0') break;
      }
      return [...new Set(out)].sort((a, b) => a - b).slice(0, limit);
    }
    for (let at = from; at <= to && out.length < limit; at += LOOKS_PER_SCRIPT) {
      const r = asBuffer(
        await run(S.existingChunks, [iKey(ino)], [inoToString(ino), u32(at, Math.min(to, at + LOOKS_PER_SCRIPT - 1))]),
      );
      for (let i = 0; i < r.length; i += 4) out.push(r.readUInt32BE(i));
    }
    return out.slice(0, limit);
  }

  /** The highest chunk index that a file of this length can have, cut ends included. */
  async function lastChunk(ino: Ino, length: number): Promise<number> {
    const high = await ask('HGET', key('STEADFS.chunks'), inoToString(ino));
    return Math.max(0, Math.ceil(length / CHUNK_SIZE) - 1, high === null ? 0 : asNumber(high));
  }

  /** Whole-chunk holes between two offsets, in repeatable steps; the chunks at the ends are the last script's. */
  async function coverSteps(op: Op | undefined, ino: Ino, from: number, to: number): Promise<void> {
    const first = Math.floor(from / CHUNK_SIZE) + 1;
    const last = Math.floor((to - 1) / CHUNK_SIZE) - 1;
    const indexes = await existing(ino, first, last, Number.MAX_SAFE_INTEGER);
    for (let i = 0; i < indexes.length; i += CHUNKS_PER_STEP) {
      const part = indexes.slice(i, i + CHUNKS_PER_STEP);
      await mutate(
        S.coverStep,
        op,
        { keys: [iKey(ino)], args: [ino8(ino), u32(...part)], unrecorded: true },
        () => undefined,
      );
    }
  }

  /** Runs a script that may first want chunks to be covered down to `size` (a truncation). `done` is handed to it then. */
  async function covering<T>(
    op: Op,
    ino: Ino | undefined,
    size: number,
    go: (done: Uint8Array) => Promise<T>,
  ): Promise<T> {
    let done: Uint8Array = EMPTY;
    for (;;) {
      try {
        return await go(done);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'S' || ino === undefined) throw e;
        const old = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
        await coverSteps(op, ino, size, old);
        done = e.value;
      }
    }
  }

  // ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────
  interface MakeCall {
    kind: 0 | 1 | 2;
    type: FileType;
    mode: number;
    umask: number;
    rdev: number;
    flags: number;
    target?: Uint8Array | undefined;
  }

  async function make(op: Op, cred: Cred, parent: Ino, name: Name, m: MakeCall): Promise<CreateResult> {
    for (;;) {
      try {
        return await makeAs(await newInode(), op, cred, parent, name, m);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'I') throw e;
      }
    }
  }

  async function makeAs(ino: Ino, op: Op, cred: Cred, parent: Ino, name: Name, m: MakeCall): Promise<CreateResult> {
    const text = latin(name);
    const b = Buffer.allocUnsafe(14);
    b.writeUInt8(m.type, 0);
    b.writeUInt16BE(m.mode & 0o7777, 1);
    b.writeUInt16BE(m.umask & 0o7777, 3);
    b.writeUInt32BE(m.rdev >>> 0, 5);
    b.writeUInt32BE(m.flags >>> 0, 9);
    b.writeUInt8(m.kind, 13);
    const dir = m.type === FileType.directory;
    const keys = [dKey(parent), iKey(parent), iKey(ino), ...(dir ? [dKey(ino)] : [])];
    const known = m.kind === 1 ? (cache.name(parent, text)?.ino ?? undefined) : undefined;
    if (known !== undefined) keys.push(iKey(known));
    const attempt = (done: Uint8Array): Promise<CreateResult> =>
      mutate(
        S.make,
        op,
        {
          keys,
          args: [ino8(parent), name, b, ino8(ino), m.target ?? EMPTY, done],
          cred,
          groups: (m.flags & O_TRUNC) !== 0,
        },
        (main, isFresh, extra) => {
          const created = main[0] === 1;
          const { entry } = readEntry(main, 1);
          keepAttr(entry, isFresh, entry.ino === ino || entry.ino === known);
          if (m.kind !== 2) keepName(parent, text, { ino: entry.ino, type: entry.attr.type }, isFresh);
          if (created && dir && isFresh && link.tracking && entry.ino === ino) cache.setList(ino, new Map());
          keepExtra(extra);
          return { ...entry, created };
        },
      );
    if ((m.flags & O_TRUNC) === 0) return await attempt(EMPTY);
    return await covering(op, await existingIno(parent, name, text), 0, attempt);
  }

  /** For truncations of huge files by create(2) only. */
  async function existingIno(parent: Ino, name: Name, text: string): Promise<Ino | undefined> {
    const known = fresh() ? cache.name(parent, text) : undefined;
    if (known !== undefined) return known?.ino;
    const v = await ask('HGET', dKey(parent), name);
    return v === null ? undefined : readIno(asBuffer(v), 1);
  }

  /** Runs a removal that may ask whether the inode is open. */
  async function removing<T>(
    hint: Ino | undefined,
    isOpen: (ino: Ino) => boolean,
    go: (expected: Uint8Array, open: string, hint: Ino | undefined) => Promise<T>,
  ): Promise<T> {
    for (;;) {
      try {
        return await go(hint === undefined ? EMPTY : ino8(hint), hint !== undefined && isOpen(hint) ? '1' : '0', hint);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'O') throw e;
        hint = readIno(e.value, 0);
      }
    }
  }

  function hintOf(parent: Ino, name: string): Ino | undefined {
    return cache.name(parent, name)?.ino;
  }

  async function rename(
    op: Op,
    cred: Cred,
    parent: Ino,
    name: Name,
    newParent: Ino,
    newName: Name,
    flags: number,
    isOpen: (ino: Ino) => boolean,
  ): Promise<RenameResult> {
    const exchange = (flags & 2) !== 0;
    if ((flags & ~35) !== 0 || (exchange && flags !== 2) || ((flags & 32) !== 0 && (flags & 1) === 0)) throw EINVAL;
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
    checkNewName(newName);
    const from = latin(name);
    const to = latin(newName);
    const moving = hintOf(parent, from);
    let usage: Uint8Array = EMPTY;
    for (;;) {
      try {
        return await removing(hintOf(newParent, to), isOpen, (expected, open, hint) => {
          const keys = [dKey(parent), iKey(parent), dKey(newParent), iKey(newParent)];
          for (const h of [moving, hint]) if (h !== undefined) keys.push(iKey(h));
          const args = [
            ino8(parent),
            name,
            ino8(newParent),
            newName,
            u32(flags),
            expected,
            open,
            trashFolderName(unixNow()),
            usage,
          ];
          return mutate(S.rename, op, { keys, args, cred }, (main, isFresh, extra) => {
            const result: RenameResult = {};
            const bits = main[0]!;
            let at = 1;
            const part = (bit: number): number | undefined => {
              if ((bits & bit) === 0) return undefined;
              const start = at + 2;
              at = start + main.readUInt16BE(at);
              return start;
            };
            const moved = part(1);
            const replaced = part(2);
            const exchanged = part(4);
            if (moved !== undefined) {
              result.moved = readEntry(main, moved).entry;
              keepAttr(result.moved, isFresh, result.moved.ino === moving || result.moved.ino === hint);
              keepName(parent, from, null, isFresh);
              keepName(newParent, to, { ino: result.moved.ino, type: result.moved.attr.type }, isFresh);
            }
            if (replaced !== undefined) result.replaced = takeRemoved(main, replaced, hint, isFresh).removed;
            if (exchanged !== undefined) {
              result.exchanged = readEntry(main, exchanged).entry;
              keepAttr(result.exchanged, isFresh, result.exchanged.ino === hint);
              keepName(parent, from, { ino: result.exchanged.ino, type: result.exchanged.attr.type }, isFresh);
            }
            keepExtra(extra);
            return result;
          });
        });
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'U') throw e;
        usage = await bothUsages(e.value);
      }
    }
  }

  /** Usage below the trees that a rename moves between quotas: inode 8, space f64, inodes f64, twice. */
  async function bothUsages(inos: Buffer): Promise<Buffer> {
    const b = Buffer.alloc(48);
    for (let i = 0; i < 2; i++) {
      inos.copy(b, i * 24, i * 8, i * 8 + 8);
      const ino = readIno(inos, i * 8);
      if (ino === 0) continue;
      const u = await treeUsage(ino);
      b.writeDoubleBE(u.space, i * 24 + 8);
      b.writeDoubleBE(u.inodes, i * 24 + 16);
    }
    return b;
  }

  async function treeUsage(root: Ino): Promise<{ space: number; inodes: number }> {
    const q = await getQuota('dir', root);
    if (q !== undefined) return { space: q.usedSpace, inodes: q.usedInodes };
    const sum = { space: 0, inodes: 0 };
    const todo = [root];
    for (let dir = todo.pop(); dir !== undefined; dir = todo.pop()) {
      const children = await childAttrs(dir);
      for (const c of children) {
        sum.space += spaceOf(c.attr);
        sum.inodes++;
        if (c.attr.type === FileType.directory) todo.push(c.ino);
      }
    }
    return sum;
  }

  async function childAttrs(dir: Ino): Promise<Entry[]> {
    const names = await scanDir(dir);
    const inos = [...names.values()].map(d => d!.ino);
    return (await attrsOf(inos)).flatMap((attr, i) => (attr === undefined ? [] : [{ ino: inos[i]!, attr }]));
  }

  /** The whole directory; one atomic view when it is small. */
  async function scanDir(dir: Ino): Promise<Map<string, Dentry | null>> {
    const list = fresh() ? cache.list(dir) : undefined;
    if (list !== undefined) return new Map(list);
    const names = new Map<string, Dentry | null>();
    for (let cursor = '0'; ; ) {
      const done = await readTake(['HSCAN', dKey(dir), cursor, 'COUNT', '10000'], r => {
        const [next, flat] = asList(r);
        const part = dentries(asList(flat));
        const first = cursor === '0';
        cursor = String(next);
        if (first && cursor === '0' && link.tracking && part.size <= url.cacheSize / 4)
          cache.setList(dir, new Map(part));
        for (const [n, d] of part) names.set(n, d);
        return cursor === '0';
      });
      if (done) return names;
    }
  }

  /** Attributes now, in the order asked for. */
  async function attrsOf(inos: readonly Ino[]): Promise<(Attr | undefined)[]> {
    const out: (Attr | undefined)[] = new Array(inos.length);
    const missing: number[] = [];
    const trust = fresh();
    inos.forEach((ino, i) => {
      const hit = trust ? cache.attr(ino) : undefined;
      if (hit !== undefined) out[i] = { ...hit };
      else missing.push(i);
    });
    const linked: number[] = [];
    const pages: Promise<void>[] = [];
    for (let p = 0; p < missing.length; p += 1000) {
      const part = missing.slice(p, p + 1000);
      pages.push(
        readTake(['MGET', ...part.map(i => iKey(inos[i]!))], r => {
          asList(r).forEach((v, k) => {
            const i = part[k]!;
            if (v === null) return;
            const attr = decodeAttr(asBuffer(v));
            if (attr.parent === 0 && attr.type !== FileType.directory) {
              linked.push(i);
              return;
            }
            out[i] = shown(attr, 0);
            if (link.tracking) cache.setAttr(inos[i]!, { ...attr });
          });
        }),
      );
    }
    await Promise.all(pages);
    await Promise.all(
      linked.map(async i => {
        out[i] = await fetchLinked(inos[i]!).catch(e => {
          if (e === ENOENT) return undefined;
          throw e;
        });
      }),
    );
    return out;
  }

  const listing: Listing = { scan: scanDir, attrs: attrsOf };

  // ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────
  const ttl = (): number => Math.max(SESSION_TTL, options.heartbeat * 5);

  function setSession(identity: SessionIdentity, info: Buffer): void {
    const head = Buffer.concat([Buffer.from(identity.incarnation, 'hex'), u32(identity.epoch)]);
    session = { identity, info, head };
    link.patient = true;
    lost = undefined;
  }

  async function cleanSession(sid: number): Promise<void> {
    for (const k of asList(await ask('SMEMBERS', key(`locked${sid}`))))
      await run(S.dropLocks, [asBuffer(k)], [sid, asBuffer(k)]);
    for (;;) {
      const inos = asList(await ask('SRANDMEMBER', key(`session${sid}`), '1000'));
      if (inos.length === 0) break;
      for (const i of inos) await releaseOf(undefined, inoFromBigint(BigInt(asBuffer(i).toString())), sid);
    }
    await run(S.dropSession, [key('allSessions')], [sid, logStamp(), prefix === '' ? '1' : '']);
  }

  function releaseOf(op: Op | undefined, ino: Ino, sid: number): Promise<number | undefined> {
    return mutate(S.release, op, { keys: [iKey(ino)], args: [ino8(ino), sid], unrecorded: op === undefined }, main => {
      cache.dropAttr(ino);
      return main.length === 0 ? undefined : main.readDoubleBE(0);
    });
  }

  async function listSessions(detail: boolean): Promise<SessionDetail[]> {
    const scores = asList(await ask('ZRANGE', key('allSessions'), '0', '-1', 'WITHSCORES')).flat();
    const out: SessionDetail[] = [];
    for (let i = 0; i < scores.length; i += 2) {
      const sid = asNumber(scores[i] as Reply);
      const info = await ask('HGET', key('sessionInfos'), String(sid));
      const s: SessionDetail = {
        ...parseSessionInfo(info === null ? null : asBuffer(info)),
        sid,
        expire: asNumber(scores[i + 1] as Reply),
      };
      if (detail) {
        s.sustained = asList(await ask('SMEMBERS', key(`session${sid}`))).map(v =>
          inoFromBigint(BigInt(asBuffer(v).toString())),
        );
        s.flocks = [];
        s.plocks = [];
        for (const k of asList(await ask('SMEMBERS', key(`locked${sid}`)))) {
          const name = asBuffer(k).toString().slice(prefix.length);
          const m = /^lock([fp])(\d+)$/.exec(name);
          if (m === null) continue;
          const ino = inoFromBigint(BigInt(m[2]!));
          for (const { sid: holder, owner, value } of await lockRows(m[1] as 'f' | 'p', ino)) {
            if (holder !== sid) continue;
            if (m[1] === 'f') s.flocks.push({ ino, owner, type: value.toString() === 'W' ? 'W' : 'R' });
            else s.plocks.push({ ino, owner, records: decodeLocks(value) });
          }
        }
      }
      out.push(s);
    }
    return out;
  }

  // ── locks ────────────────────────────────────────────────────────────────────────────────────────────────────────
  const ownerHex = (owner: bigint): string => BigInt.asUintN(64, owner).toString(16).toUpperCase().padStart(16, '0');

  async function lockRows(kind: 'f' | 'p', ino: Ino): Promise<{ sid: number; owner: bigint; value: Buffer }[]> {
    const flat = asList(await ask('HGETALL', key(`lock${kind}${inoToString(ino)}`)));
    const out: { sid: number; owner: bigint; value: Buffer }[] = [];
    for (let i = 0; i < flat.length; i += 2) {
      const m = /^(\d+)_([0-9A-Fa-f]{1,16})$/.exec(asBuffer(flat[i]).toString());
      if (m !== null) out.push({ sid: Number(m[1]), owner: BigInt(`0x${m[2]}`), value: asBuffer(flat[i + 1]) });
    }
    return out;
  }

  async function conflicts(
    ino: Ino,
    owner: bigint,
    lock: PosixLock,
  ): Promise<{ sid: number; owner: bigint; record: PosixLock }[]> {
    const sid = session?.identity.sid ?? 0;
    const out: { sid: number; owner: bigint; record: PosixLock }[] = [];
    for (const row of await lockRows('p', ino)) {
      if (row.sid === sid && row.owner === BigInt.asUintN(64, owner)) continue;
      const record = findConflict(decodeLocks(row.value), lock);
      if (record !== undefined) out.push({ sid: row.sid, owner: row.owner, record });
    }
    return out;
  }

  /** A refused lock is remembered, so that a change between the refusal and the wait is not missed. */
  async function lockCall(ino: Ino, go: () => Promise<void>, releases: boolean): Promise<void> {
    try {
      await go();
      if (releases) lockChanged(ino);
    } catch (e) {
      if (e === EAGAIN && !lockWaits.has(ino)) lockWaits.set(ino, { changed: false, wake: new Set() });
      throw e;
    }
  }

  // ── quotas ───────────────────────────────────────────────────────────────────────────────────────────────────────
  type QuotaKind = 'dir' | 'user' | 'group';
  const quotaField = (kind: QuotaKind, k: number): string => (kind === 'dir' ? inoToString(k) : String(k));

  function decodeQuota(limits: Buffer, space: Reply | undefined, inos: Reply | undefined): Quota {
    return {
      maxSpace: Number(limits.readBigInt64BE(0)),
      maxInodes: Number(limits.readBigInt64BE(8)),
      usedSpace: asNumber(space),
      usedInodes: asNumber(inos),
    };
  }

  async function getQuota(kind: QuotaKind, k: number): Promise<Quota | undefined> {
    const field = quotaField(kind, k);
    const q = key(`${kind}Quota`);
    const [limits, space, inos] = await Promise.all([
      ask('HGET', q, field),
      ask('HGET', `${q}UsedSpace`, field),
      ask('HGET', `${q}UsedInodes`, field),
    ]);
    return limits === null ? undefined : decodeQuota(asBuffer(limits), space, inos);
  }

  /** All fields of a hash. */
  async function* hashFields(name: string): AsyncGenerator<[Buffer, Buffer]> {
    for (let cursor = '0'; ; ) {
      const [next, flat] = asList(await ask('HSCAN', key(name), cursor, 'COUNT', '1000'));
      const list = asList(flat);
      for (let i = 0; i < list.length; i += 2) yield [asBuffer(list[i]), asBuffer(list[i + 1])];
      cursor = String(next);
      if (cursor === '0') return;
    }
  }

  /** The directory and its ancestors with a quota, the innermost first. */
  async function quotasAbove(dir: Ino): Promise<Quota[]> {
    const out: Quota[] = [];
    if (!need().DirStats || (await ask('EXISTS', key('dirQuota'))) === 0) return out;
    for (let at = dir, depth = 0; depth < 100_000; depth++) {
      const q = await getQuota('dir', at);
      if (q !== undefined) out.push(q);
      if (at === ROOT || at === 0 || isTrash(at)) break;
      at = (await getattr(at)).parent;
    }
    return out;
  }

  async function load(): Promise<Format | undefined> {
    const r = await ask('GET', key('setting'));
    if (r === null) return undefined;
    const text = asBuffer(r).toString();
    let stored: Format;
    try {
      stored = parseFormat(text);
    } catch (e) {
      throw EINVAL.because(`${url.display} holds something else than a volume`, e);
    }
    if ((stored.MetaVersion ?? 0) > MAX_META_VERSION)
      throw EINVAL.because(
        `the volume has metadata version ${stored.MetaVersion}, this client knows up to ${MAX_META_VERSION}`,
      );
    settingText = text;
    format = decryptSecrets(stored);
    return format;
  }

  async function init(wanted: Format, force: boolean): Promise<void> {
    const old = await load();
    const next = { ...wanted };
    const drop: string[] = [];
    if (old !== undefined) {
      const field = changedImmutable(old, wanted);
      if (field !== undefined && !force) throw EINVAL.because(`${field} of a volume cannot be changed`);
      next.UUID = old.UUID;
      if (!old.DirStats && next.DirStats) drop.push('dirUsedInodes', 'dirUsedSpace', 'dirDataLength');
      if (!old.UserGroupQuota && next.UserGroupQuota)
        for (const k of ['userQuota', 'groupQuota']) drop.push(k, `${k}UsedSpace`, `${k}UsedInodes`);
    }
    const t = unixNow();
    const dir = (mode: number): Buffer => encodeAttr(emptyDirectory(mode, ROOT, t, 0));
    const text = serialiseFormat(encryptSecrets(next));
    await run(
      S.init,
      [key('setting')],
      [text, old === undefined ? dir(0o777) : EMPTY, next.TrashDays > 0 ? dir(0o555) : EMPTY, ...drop],
    );
    cache.clear();
    await load();
  }

  async function reset(): Promise<void> {
    cache.clear();
    if (prefix === '') {
      await ask('FLUSHDB');
    } else {
      for (let cursor = '0'; ; ) {
        const [next, keys] = asList(await ask('SCAN', cursor, 'MATCH', `${prefix}*`, 'COUNT', '1000'));
        const list = asList(keys).map(asBuffer);
        if (list.length > 0) await ask('UNLINK', ...list);
        cursor = String(next);
        if (cursor === '0') break;
      }
    }
    format = undefined;
    session = undefined;
  }

  const engine: MetaEngine = {
    name: url.display,
    load,
    init,
    reset,
    async close() {
      link.close();
    },

    async newSession(info) {
      need();
      const incarnation = randomBytes(16);
      const text = serialiseSessionInfo(info);
      const sid = asNumber(await run(S.newSession, [key('allSessions')], [text, incarnation, ttl(), logStamp()]));
      const identity = { sid, incarnation: incarnation.toString('hex'), epoch: 1 };
      setSession(identity, text);
      return identity;
    },
    async adoptSession(identity, info) {
      need();
      const text = serialiseSessionInfo(info);
      const r = await run(
        S.adoptSession,
        [key('allSessions')],
        [identity.sid, Buffer.from(identity.incarnation, 'hex'), identity.epoch, text, ttl()],
      );
      if (typeof r !== 'number') throw ESTALE.because(`session ${identity.sid}: ${asBuffer(r).toString()}`);
      const adopted = { ...identity, epoch: r };
      setSession(adopted, text);
      return adopted;
    },
    async heartbeat() {
      if (session !== undefined) {
        const why = asBuffer(
          await run(S.heartbeat, [key('allSessions')], [session.identity.sid, session.head, ttl(), session.info]),
        );
        if (why.length > 0) throw sessionLost(why.toString());
      }
      const r = await ask('GET', key('setting'));
      if (r === null) {
        options.events.volumeLost('the volume is not there any more');
        return;
      }
      const text = asBuffer(r).toString();
      if (text === settingText) return;
      const before = need();
      let changed: Format;
      try {
        changed = decryptSecrets(parseFormat(text));
      } catch (e) {
        options.events.volumeLost(e instanceof Error ? e.message : String(e));
        return;
      }
      if (changed.UUID !== before.UUID) options.events.volumeLost('another volume is in its place');
      else if ((changed.MetaVersion ?? 0) > MAX_META_VERSION)
        options.events.volumeLost('the volume has a newer layout');
      else {
        settingText = text;
        format = changed;
        options.events.formatChanged(changed);
      }
    },
    async closeSession() {
      if (session === undefined) return;
      const { sid } = session.identity;
      session = undefined;
      if (lost === undefined) await cleanSession(sid);
    },
    listSessions,
    async staleSessions(limit) {
      const t = String(unixNow());
      const out = asList(await ask('ZRANGEBYSCORE', key('allSessions'), '-inf', t, 'LIMIT', '0', String(limit))).map(
        asNumber,
      );
      if (prefix === '' && out.length < limit) {
        const legacy = await ask(
          'ZRANGEBYSCORE',
          'sessions',
          '-inf',
          String(unixNow() - 300),
          'LIMIT',
          '0',
          String(limit),
        );
        out.push(...asList(legacy).map(asNumber));
      }
      return out.filter(sid => sid !== session?.identity.sid);
    },
    cleanSession,
    async flush() {},
    async sync() {},
    async durable() {},

    lookup(cred, parent, name) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      if (cred.checkPermission) return lookup(cred, parent, name);
      return lookupFound(parent, name, latin(name));
    },
    getattr,
    async access(cred, ino, mask) {
      const attr = await getattr(ino);
      if (!(await checked(tx => allows(tx, cred, attr, mask & 7)))) throw EACCES;
    },
    async readlink(ino) {
      const r = await ask('GET', key(`s${inoToString(ino)}`));
      if (r !== null && asBuffer(r).length > 0) return asBuffer(r);
      await fetchAttr(ino);
      throw EINVAL;
    },
    dirStream: ino => dirStream(listing, ino),
    readChunk(ino, index) {
      return readTake(['LRANGE', key(`c${inoToString(ino)}_${index}`), '0', '-1'], r => {
        const list = asList(r);
        const records: Slice[] = [];
        for (const item of list) {
          const b = asBuffer(item);
          if (b.length !== 24) throw EIO.because(`chunk ${index} of inode ${ino}: a record of ${b.length} bytes`);
          records.push(decodeSlices(b)[0]!);
        }
        return records;
      }).then(async records => {
        if (records.length === 0) await getattr(ino);
        return records;
      });
    },
    async listChunks(ino, from, to, limit) {
      const attr = await getattr(ino);
      const last = Math.min(to, await lastChunk(ino, attr.length));
      return last < from ? [] : await existing(ino, from, last, limit);
    },
    async getxattr(ino, name) {
      const r = await ask('HGET', key(`x${inoToString(ino)}`), name);
      if (r !== null) return asBuffer(r);
      await getattr(ino);
      throw ENODATA;
    },
    async listxattr(ino) {
      const [names, attr] = await Promise.all([ask('HKEYS', key(`x${inoToString(ino)}`)), getattr(ino)]);
      const out = asList(names).map(asBuffer);
      if (attr.accessAcl !== 0) out.push(Buffer.from('system.posix_acl_access'));
      if (attr.defaultAcl !== 0) out.push(Buffer.from('system.posix_acl_default'));
      return out;
    },
    async getAcl(ino, kind) {
      const attr = await getattr(ino);
      const id = kind === 'access' ? attr.accessAcl : attr.defaultAcl;
      return id === 0 ? undefined : await rule(id);
    },
    async parents(ino) {
      const attr = await getattr(ino);
      if (attr.parent !== 0) return new Map([[attr.parent, 1]]);
      const flat = asList(await ask('HGETALL', key(`p${inoToString(ino)}`)));
      const out = new Map<Ino, number>();
      for (let i = 0; i < flat.length; i += 2) {
        const n = asNumber(flat[i + 1]);
        if (n > 0) out.set(inoFromBigint(BigInt(asBuffer(flat[i]).toString())), n);
      }
      return out;
    },
    async statfs(root): Promise<StatfsResult> {
      const f = need();
      const [values, quotas] = await Promise.all([
        ask('MGET', key('usedSpace'), key('totalInodes')),
        quotasAbove(root),
      ]);
      let usedSpace = Math.max(0, asNumber(asList(values)[0]));
      let usedInodes = Math.max(0, asNumber(asList(values)[1]));
      let total = f.Capacity ?? 0;
      if (total === 0) for (total = 2 ** 50; total * 8 < usedSpace * 10; ) total *= 2;
      let availSpace = Math.max(0, total - usedSpace);
      let availInodes = f.Inodes ? Math.max(0, f.Inodes - usedInodes) : 10 << 20;
      if (!f.Inodes) while (usedInodes > availInodes * 4) availInodes *= 2;
      for (const q of quotas) {
        if (q.maxSpace > 0) availSpace = Math.min(availSpace, Math.max(0, q.maxSpace - q.usedSpace));
        if (q.maxInodes > 0) availInodes = Math.min(availInodes, Math.max(0, q.maxInodes - q.usedInodes));
      }
      const inner = quotas[0];
      if (inner !== undefined) {
        usedSpace = inner.usedSpace;
        usedInodes = inner.usedInodes;
        total = usedSpace + availSpace;
      }
      return { totalSpace: total, availSpace, usedInodes, availInodes };
    },
    async dirStat(ino) {
      const field = inoToString(ino);
      const [length, space, count] = await Promise.all(
        ['dirDataLength', 'dirUsedSpace', 'dirUsedInodes'].map(h => ask('HGET', key(h), field)),
      );
      if (length !== null && space !== null && count !== null) {
        const stat = { length: asNumber(length), space: asNumber(space), inodes: asNumber(count) };
        if (stat.length >= 0 && stat.space >= 0 && stat.inodes >= 0) return stat;
      }
      const [raw, size] = await Promise.all([ask('GET', iKey(ino)), ask('HLEN', dKey(ino))]);
      if (raw === null) throw ENOENT;
      const stat = { length: 0, space: 0, inodes: 0 };
      for (const { attr } of await childAttrs(ino)) {
        if (attr.type === FileType.file) stat.length += attr.length;
        stat.space += spaceOf(attr);
        stat.inodes++;
      }
      if (need().DirStats && !options.readOnly && count === null)
        await run(
          S.setDirStat,
          [iKey(ino), dKey(ino)],
          [field, stat.length, stat.space, stat.inodes, asBuffer(raw), asNumber(size)],
        );
      return stat;
    },

    async mknod(op, cred, parent, name, node: MakeNode) {
      if (node.type < 1 || node.type > 7) throw EINVAL;
      checkNewName(name);
      const { target } = node;
      if (node.type === FileType.symlink && (target === undefined || target.length === 0 || target.length > 4096))
        throw EINVAL;
      const { type, mode, umask, rdev } = node;
      const { ino, attr } = await make(op, cred, parent, name, { kind: 0, type, mode, umask, rdev, flags: 0, target });
      return { ino, attr };
    },
    async create(op, cred, parent, name, mode, umask, flags) {
      checkNewName(name);
      return await make(op, cred, parent, name, { kind: 1, type: FileType.file, mode, umask, rdev: 0, flags });
    },
    async tmpfile(op, cred, parent, mode, umask) {
      if (session === undefined) throw errnoOf(95);
      const { ino, attr } = await make(op, cred, parent, EMPTY, {
        kind: 2,
        type: FileType.file,
        mode,
        umask,
        rdev: 0,
        flags: 0,
      });
      return { ino, attr };
    },
    async open(op, cred, ino, flags) {
      if ((flags & O_TRUNC) === 0) {
        const attr = await fetchAttr(ino);
        await checked(tx => checkOpen(tx, cred, attr, flags));
        return attr;
      }
      return await covering(op, ino, 0, done =>
        mutate(
          S.open,
          op,
          { keys: [iKey(ino)], args: [ino8(ino), u32(flags >>> 0), done], cred, groups: true },
          takeAttr,
        ),
      );
    },
    release: (op, ino) => releaseOf(op, ino, session?.identity.sid ?? 0),
    async setattr(op, cred, ino, set: AttrSet) {
      if (set.size !== undefined && set.size > MAX_LENGTH) throw EFBIG;
      const b = Buffer.alloc(48);
      let mask = 0;
      if (set.mode !== undefined) mask |= 1;
      if (set.uid !== undefined) mask |= 2;
      if (set.gid !== undefined) mask |= 4;
      if (set.size !== undefined) mask |= 8;
      if (set.atime !== undefined) mask |= set.atime === 'now' ? 128 : 16;
      if (set.mtime !== undefined) mask |= set.mtime === 'now' ? 256 : 32;
      if (set.tier !== undefined) mask |= 1024;
      if (set.flags !== undefined) mask |= 32768;
      if (set.killSuidgid) mask |= 65536;
      if (set.byHandle) mask |= 131072;
      if (set.inUse) mask |= 262144;
      b.writeUInt32BE(mask, 0);
      b.writeUInt16BE((set.mode ?? 0) & 0o7777, 4);
      b.writeUInt32BE(set.uid ?? 0, 6);
      b.writeUInt32BE(set.gid ?? 0, 10);
      u64(set.size ?? 0).copy(b, 14);
      if (typeof set.atime === 'object') packTime(set.atime, b, 22);
      if (typeof set.mtime === 'object') packTime(set.mtime, b, 34);
      b.writeUInt8(set.flags ?? 0, 46);
      b.writeUInt8(set.tier ?? 0, 47);
      const groups = set.uid !== undefined || set.gid !== undefined || set.killSuidgid === true;
      return await covering(op, ino, set.size ?? 0, done =>
        mutate(S.setattr, op, { keys: [iKey(ino)], args: [ino8(ino), b, done], cred, groups }, takeAttr),
      );
    },
    async link(op, cred, ino, parent, name) {
      checkNewName(name);
      const text = latin(name);
      return await mutate(
        S.link,
        op,
        { keys: [dKey(parent), iKey(parent), iKey(ino)], args: [ino8(ino), ino8(parent), name], cred },
        (main, isFresh, extra) => {
          const entry = takeEntry(true)(main, isFresh, extra);
          keepName(parent, text, { ino: entry.ino, type: entry.attr.type }, isFresh);
          return entry;
        },
      );
    },
    async unlink(op, cred, parent, name, isOpen, skipTrash = false) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      const text = latin(name);
      const hour = trashFolderName(unixNow());
      return await removing(hintOf(parent, text), isOpen, (expected, open, hint) => {
        const keys = [dKey(parent), iKey(parent), ...(hint === undefined ? [] : [iKey(hint)])];
        const args = [ino8(parent), name, expected, open, skipTrash ? '1' : '', hour];
        return mutate(S.unlink, op, { keys, args, cred }, (main, isFresh, extra) => {
          const { removed } = takeRemoved(main, 0, hint, isFresh);
          keepName(parent, text, null, isFresh);
          keepExtra(extra);
          return removed;
        });
      });
    },
    async rmdir(op, cred, parent, name, skipTrash = false) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      const text = latin(name);
      if (text === '.') throw EINVAL;
      if (text === '..') throw errnoOf(39);
      const args = [ino8(parent), name, skipTrash ? '1' : '', trashFolderName(unixNow())];
      return await mutate(S.rmdir, op, { keys: [dKey(parent), iKey(parent)], args, cred }, (main, isFresh, extra) => {
        const { removed } = takeRemoved(main, 0, undefined, isFresh);
        keepName(parent, text, null, isFresh);
        keepExtra(extra);
        return removed;
      });
    },
    rename,
    async setxattr(op, cred, ino, name, value, mode) {
      if (name.length === 0) throw EINVAL;
      if (name.length > NAME_MAX || value.length > XATTR_VALUE_MAX) throw ERANGE;
      if (mode !== 0 && mode !== 1 && mode !== 2) throw EINVAL;
      const keys = [iKey(ino), key(`x${inoToString(ino)}`)];
      return await mutate(S.setxattr, op, { keys, args: [ino8(ino), name, value, mode], cred }, takeAttr);
    },
    removexattr(op, cred, ino, name) {
      const keys = [iKey(ino), key(`x${inoToString(ino)}`)];
      return mutate(S.removexattr, op, { keys, args: [ino8(ino), name], cred }, takeAttr);
    },
    setAcl(op, cred, ino, kind, r) {
      const args = [
        ino8(ino),
        kind === 'access' ? 'a' : 'd',
        r === undefined ? EMPTY : encodeAcl(r),
        r !== undefined && isMinimalAcl(r) ? 'm' : '',
        r === undefined ? 0 : aclMode(r),
      ];
      return mutate(S.setAcl, op, { keys: [iKey(ino)], args, cred, groups: true }, takeAttr);
    },
    async write(op, ino, index, records, end, mtime: TimeSet, ctime: TimeSet, killSuidgid): Promise<WriteResult> {
      if (end > MAX_LENGTH) throw EFBIG;
      if (records.length === 0 || records.some(r => r.pos + r.len > CHUNK_SIZE || r.len <= 0)) throw EINVAL;
      const keys = [iKey(ino), key(`c${inoToString(ino)}_${index}`)];
      const times = [packTime(mtime), killSuidgid ? '1' : '', packTime(ctime)];
      const args = [ino8(ino), index, encodeSlices(records), u64(end), ...times];
      return await mutate(S.write, op, { keys, args }, (main, isFresh) => {
        const { entry } = readEntry(main, 8);
        keepAttr(entry, isFresh, true);
        return { attr: entry.attr, records: main.readDoubleBE(0) };
      });
    },
    async fallocate(op, cred, ino, offset, length, mode) {
      checkFallocate(offset, length, mode);
      let done = '';
      for (;;) {
        try {
          const args = [ino8(ino), Buffer.concat([u64(offset), u64(offset + length), u32(mode)]), done];
          return await mutate(S.fallocate, op, { keys: [iKey(ino)], args, cred }, takeAttr);
        } catch (e) {
          if (!(e instanceof Question) || e.kind !== 'S') throw e;
          const size = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
          await coverSteps(op, ino, offset, Math.min(size, offset + length));
          done = 'done';
        }
      }
    },
    copyFileRange(op, cred, ino, offset, out, outOffset, length) {
      const want = Buffer.alloc(8);
      want.writeDoubleBE(Math.min(length, Number.MAX_SAFE_INTEGER));
      const args = [ino8(ino), u64(offset), ino8(out), u64(outOffset), want];
      return mutate(S.copyRange, op, { keys: [iKey(ino), iKey(out)], args, cred }, (main, isFresh) => {
        const { entry } = readEntry(main, 8);
        keepAttr(entry, isFresh, true);
        return { copied: main.readDoubleBE(0), attr: entry.attr };
      });
    },
    async touchAtime(ino) {
      if (options.atimeMode === 'noatime' || options.readOnly) return;
      const attr = await getattr(ino);
      if (!atimeDue(attr, now(), options.atimeMode)) return;
      const mode = options.atimeMode === 'strictatime' ? 's' : 'r';
      await mutate(
        S.touchAtime,
        undefined,
        { keys: [iKey(ino)], args: [ino8(ino), mode], unrecorded: true },
        (main, isFresh) => {
          if (main.length > 0) keepAttr(readEntry(main, 0).entry, isFresh, true);
        },
      );
    },
    async newSliceIds(count) {
      if (count > SLICE_BATCH) throw EINVAL;
      for (;;) {
        refill(sliceIds);
        if (sliceIds.end - sliceIds.next >= count) break;
        sliceIds.next = sliceIds.end;
        if (!spare.has(sliceIds)) await fetchNumbers(sliceIds, 'nextchunk', 'nextChunk', SLICE_BATCH);
      }
      const first = sliceIds.next;
      sliceIds.next += count;
      return first;
    },

    flock(op, ino, owner, type) {
      const d = inoToString(ino);
      const args = [d, ownerHex(owner), type, BigInt.asUintN(64, owner).toString()];
      return lockCall(
        ino,
        () => mutate(S.flock, op, { keys: [key(`lockf${d}`)], args }, () => undefined),
        type !== 'W',
      );
    },
    async getlk(ino, owner, lock) {
      const [first] = await conflicts(ino, owner, lock);
      if (first === undefined) return { ...lock, type: LockType.unlock, pid: 0 };
      return { ...first.record, pid: first.sid === (session?.identity.sid ?? 0) ? first.record.pid : 0 };
    },
    async setlk(op, ino, owner, lock) {
      if (lock.end < lock.start || lock.type < 0 || lock.type > 2) throw EINVAL;
      const d = inoToString(ino);
      const args = [d, ownerHex(owner), encodeLocks([lock]), BigInt.asUintN(64, owner).toString()];
      await lockCall(
        ino,
        () => mutate(S.setlk, op, { keys: [key(`lockp${d}`)], args }, () => undefined),
        lock.type !== LockType.write,
      );
    },
    async lockHolders(ino, owner, lock) {
      return (await conflicts(ino, owner, lock)).map(({ sid, owner: o }) => ({ sid, owner: o }));
    },
    async waitForUnlock(ino, timeoutMs) {
      const w = lockWaits.get(ino);
      if (w === undefined) return;
      if (!w.changed) {
        // Without pushes this is a poll.
        const ms = link.tracking ? timeoutMs : Math.min(timeoutMs, 10);
        await new Promise<void>(resolve => {
          const wake = (): void => {
            clearTimeout(timer);
            resolve();
          };
          const timer = setTimeout(() => {
            w.wake.delete(wake);
            resolve();
          }, ms);
          w.wake.add(wake);
        });
      }
      if (w.wake.size === 0 && lockWaits.get(ino) === w) lockWaits.delete(ino);
    },

    compact(op, ino, index, original, skipped, replacement) {
      const keys = [iKey(ino), key(`c${inoToString(ino)}_${index}`)];
      const args = [ino8(ino), index, encodeSlices(original), skipped, encodeSlices([replacement])];
      return mutate(S.compact, op, { keys, args }, main => main[0] === 0x31);
    },
    async deletedFiles(before, limit) {
      const r = asList(await ask('ZRANGEBYSCORE', key('delfiles'), '-inf', `(${before}`, 'LIMIT', '0', String(limit)));
      return r.flatMap(item => {
        const [ino, length] = asBuffer(item).toString().split(':');
        if (ino === undefined || !/^\d+$/.test(ino)) return [];
        return [{ ino: inoFromBigint(BigInt(ino)), length: length === undefined ? 2 ** 30 : Number(length) }];
      });
    },
    async deleteFileData(op, ino, length) {
      const d = inoToString(ino);
      const id = `${d}:${length}`;
      const last = await lastChunk(ino, length);
      const dead: DeadSlice[] = [];
      let indexes: number[] | undefined;
      if (last >= SCAN_FROM) indexes = await existing(ino, 0, last, Number.MAX_SAFE_INTEGER);
      let at = deleting.get(id) ?? 0;
      // Chunks are deleted in steps of their own: a step that is repeated finds less. The record comes with the last one.
      for (let steps = 0; steps < 20; steps++) {
        if (indexes !== undefined) {
          const next = indexes.find(i => i >= at);
          if (next === undefined) at = last;
          else at = next;
        }
        const to = indexes === undefined ? Math.min(last, at + CHUNKS_PER_STEP - 1) : at;
        const final = to >= last;
        const r = await mutate(
          S.deleteChunks,
          op,
          { keys: [], args: [d, u32(at, to), final ? '1' : '', length], unrecorded: true },
          main => ({ next: main.readUInt32BE(0), dead: decodeDead(main.subarray(4)) }),
        );
        dead.push(...r.dead);
        at = r.next;
        if (final && at > to) {
          deleting.delete(id);
          return { dead, done: true };
        }
        if (dead.length > 2000) break;
      }
      deleting.set(id, at);
      return { dead, done: false };
    },
    async deadSlices(limit) {
      const out: DeadSlice[] = [];
      for await (const [field, value] of hashFields('sliceRef')) {
        if (value[0] !== 0x2d) continue;
        const m = /^k(\d+)_(\d+)$/.exec(field.toString());
        if (m !== null) out.push({ id: Number(m[1]), size: Number(m[2]) });
        if (out.length >= limit) break;
      }
      return out;
    },
    async delayedSlices() {
      const out: DeadSlice[] = [];
      for await (const [, value] of hashFields('delSlices')) out.push(...decodeDead(value));
      return out;
    },
    async expireDelayedSlices(op, before, most) {
      const limit = Math.min(most, DELAYED_PER_CALL);
      const fields: Buffer[] = [];
      let more = false;
      for await (const [field] of hashFields('delSlices')) {
        const m = /^\d+_(\d+)$/.exec(field.toString());
        if (m === null || Number(m[1]) >= before) continue;
        if (fields.length === limit) {
          more = true;
          break;
        }
        fields.push(field);
      }
      const dead: DeadSlice[] = [];
      for (let i = 0; i < fields.length; i += 5) {
        const part = fields.slice(i, i + 5);
        dead.push(
          ...(await mutate(S.expireDelayed, op, { keys: [], args: [before, ...part], unrecorded: true }, main =>
            decodeDead(Buffer.from(main)),
          )),
        );
      }
      return { dead, more };
    },
    async slicesDeleted(slices) {
      for (let i = 0; i < slices.length; i += 500) {
        const fields = slices.slice(i, i + 500).map(s => `k${s.id}_${s.size}`);
        await mutate(S.forgetSlices, undefined, { keys: [], args: fields, unrecorded: true }, () => undefined);
      }
    },
    async claimDuty(name, period) {
      return (
        asNumber(await run(S.claimDuty, [key(name)], [name, period, logStamp(), session?.identity.sid ?? 0])) === 1
      );
    },

    async cloneNode(op, cred, source, parent, name, { preserve, umask }) {
      if (name !== undefined) checkNewName(name);
      let ino = await newInode();
      let chunks: Uint8Array = EMPTY;
      for (;;) {
        try {
          const keys = [iKey(source), iKey(ino), ...(name === undefined ? [] : [dKey(parent), iKey(parent)])];
          const args = [ino8(source), ino8(ino), ino8(parent), name ?? EMPTY, preserve ? 'p' : '', umask, chunks];
          return await mutate(S.clone, op, { keys, args, cred }, (main, isFresh, extra) => {
            const entry = takeEntry(true)(main, isFresh, extra);
            if (name !== undefined) keepName(parent, latin(name), { ino: entry.ino, type: entry.attr.type }, isFresh);
            return entry;
          });
        } catch (e) {
          if (!(e instanceof Question)) throw e;
          if (e.kind === 'I') {
            ino = await newInode();
            continue;
          }
          const length = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
          const indexes = await existing(source, 0, Math.ceil(length / CHUNK_SIZE) - 1, Number.MAX_SAFE_INTEGER);
          chunks = Buffer.concat([Uint8Array.of(1), ...indexes.map(i => u32(i))]);
        }
      }
    },
    async attachClone(op, cred, detached, parent, name) {
      checkNewName(name);
      const keys = [dKey(parent), iKey(parent), iKey(detached)];
      return await mutate(
        S.attach,
        op,
        { keys, args: [ino8(detached), ino8(parent), name], cred },
        (main, isFresh, extra) => {
          const entry = takeEntry(true)(main, isFresh, extra);
          keepName(parent, latin(name), { ino: entry.ino, type: entry.attr.type }, isFresh);
          return entry;
        },
      );
    },

    getQuota,
    async setQuota(kind, k, q) {
      const first =
        kind === 'dir' &&
        (q.usedSpace === undefined || q.usedInodes === undefined) &&
        (await getQuota(kind, k)) === undefined;
      const used = first ? await treeUsage(k) : undefined;
      const n = (v: number | undefined): string => (v === undefined ? '' : String(v));
      await run(
        S.setQuota,
        [key(`${kind}Quota`)],
        [
          kind,
          quotaField(kind, k),
          n(q.maxSpace),
          n(q.maxInodes),
          n(q.usedSpace ?? used?.space),
          n(q.usedInodes ?? used?.inodes),
        ],
      );
    },
    async deleteQuota(kind, k) {
      const field = quotaField(kind, k);
      const q = key(`${kind}Quota`);
      if (kind === 'dir') await Promise.all([q, `${q}UsedSpace`, `${q}UsedInodes`].map(h => ask('HDEL', h, field)));
      else await ask('HSET', q, field, Buffer.alloc(16, 0xff));
    },
    async listQuotas() {
      const out: { kind: QuotaKind; key: number; quota: Quota }[] = [];
      for (const kind of ['dir', 'user', 'group'] as const) {
        for await (const [field, limits] of hashFields(`${kind}Quota`)) {
          const k = inoFromBigint(BigInt(field.toString()));
          const used = await Promise.all(
            ['UsedSpace', 'UsedInodes'].map(s => ask('HGET', key(`${kind}Quota${s}`), field)),
          );
          out.push({ kind, key: k, quota: decodeQuota(limits, used[0], used[1]) });
        }
      }
      return out;
    },
  };
  return engine;
}

export const redisDriver: EngineDriver = {
  schemes: ['redis', 'rediss', 'unix'],
  async open(text, options) {
    let url: RedisUrl;
    try {
      url = parseRedisUrl(text, process.env);
    } catch (e) {
      throw EINVAL.because(e instanceof Error ? e.message : String(e));
    }
    return await openRedis(url, options);
  },
};
