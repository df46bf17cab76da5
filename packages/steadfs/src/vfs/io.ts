/** Requests about open files and attributes. */
import type { AttrOut, Context, FileSystem, OpenOut, SetattrIn } from '@steadfs/fuse';
import {
  EACCES,
  EBADF,
  EFBIG,
  EINVAL,
  EISDIR,
  ENOENT,
  ENOSPC,
  ENXIO,
  EOPNOTSUPP,
  EPERM,
  ESTALE,
} from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { patiently } from '../data/waiting.ts';
import { type Attr, FileType, Flag } from '../format/attr.ts';
import { type Ino, TRASH } from '../format/ino.ts';
import { now } from '../meta/clock.ts';
import type { AttrSet, Cred, Op, TimeSet } from '../meta/engine.ts';
import { modeAfterWrite } from '../meta/ops/access.ts';
import {
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  FOPEN_KEEP_CACHE,
  O_TRUNC,
  SEEK_DATA,
  SEEK_HOLE,
} from './abi.ts';
import { storable, versionOf, withPending } from './attrs.ts';
import { type Core, writes } from './core.ts';
import { step } from './counters.ts';
import { credOf } from './cred.ts';
import { type Handle, HandleKind } from './handles.ts';
import { learn, type OpenInode } from './inodes.ts';
import { closeInternal, openInternal, pollInternal, readInternal, writeInternal } from './internal-files.ts';
import type { MaybePromise } from './maybe.ts';

/** Bytes that statfs shows as free in every volume without a limit, however full: 0.2 PiB and more. */
const ALWAYS_FREE = 2 ** 47;
const MAX_LENGTH = Number.MAX_SAFE_INTEGER;
const SUID_SGID = 0o6000;
/** One call copies at most this: 2^32 - 64 MiB, so that the reply fits 32 bits. */
const COPY_MAX = 2 ** 32 - 64 * 1024 * 1024;

/** Numbers of the further mutations of one request (see step()). */
const RELEASE_STEP = 1;

type IoMethods = Pick<
  FileSystem,
  | 'getattr'
  | 'statx'
  | 'setattr'
  | 'access'
  | 'open'
  | 'read'
  | 'readDone'
  | 'write'
  | 'flush'
  | 'release'
  | 'fsync'
  | 'fallocate'
  | 'lseek'
  | 'copyFileRange'
  | 'statfs'
  | 'syncfs'
  | 'poll'
>;

export function ioMethods(core: Core): IoMethods {
  const { engine, data, inodes, handles } = core;

  function handleOf(fh: number): Handle {
    const handle = handles.get(fh);
    if (handle === undefined) throw EBADF;
    return handle;
  }

  function fileOf(fh: number): Handle & { inode: OpenInode } {
    const handle = handles.get(fh);
    if (handle?.inode === undefined) throw EBADF;
    core.checkHandle(fh, handle.inode);
    return handle as Handle & { inode: OpenInode };
  }

  /** The inode's last attributes when it is gone but still held, else what the engine said. */
  function removedAttr(ino: Ino, error: unknown): AttrOut {
    if (error !== ENOENT) throw error;
    const attr = inodes.removed(ino);
    if (attr === undefined) throw error;
    return core.attrOut(ino, attr);
  }

  function getattr(_ctx: Context, nodeid: number): MaybePromise<AttrOut> {
    const ino = core.ino(nodeid);
    const own = core.internals.attr(ino);
    if (own !== undefined) return { ...core.attrOut(ino, own), attrValid: 3600 };
    const inode = inodes.get(ino);
    const before = inode?.changes ?? 0;
    let got: MaybePromise<Attr>;
    try {
      got = engine.getattr(ino);
    } catch (error) {
      return removedAttr(ino, error);
    }
    if (!(got instanceof Promise)) {
      if (inode !== undefined && got.type === FileType.file) core.freshInode(inode, got, before);
      return core.attrOut(ino, got);
    }
    return got.then(
      attr => {
        const out = core.attrOut(ino, attr);
        if (inode === undefined || attr.type !== FileType.file) return out;
        core.freshInode(inode, attr, before);
        if (inode.changes !== before) {
          // Written meanwhile: the engine's answer may be from before. The kernel must not keep it.
          out.attrValid = 0;
          out.attr.size = Math.max(out.attr.size, inode.attr?.length ?? 0);
        }
        return out;
      },
      error => removedAttr(ino, error),
    );
  }

  /**
   * Everything that changes a file's data, length or mtime from outside the writer. Nothing of the range is pending while `work` runs: of the
   * file to be changed nothing at all, as a commit after it would take mtime back or, with that mtime, be hidden from other clients. What is
   * pending is uploaded first, which may take long: the request gives its slot away meanwhile, and has another Op then.
   */
  async function frozen<T>(
    ctx: Context,
    ino: Ino,
    offset: number,
    length: number,
    work: (op: Op) => Promise<T>,
  ): Promise<T> {
    // A repeated request keeps its Op: it may have been carried out with it already.
    if (!ctx.replay && data.pending(ino) !== undefined) ctx.park();
    const freeze = await data.freeze(ino, offset, length);
    try {
      return await work(await ctx.unpark());
    } finally {
      freeze.done();
    }
  }

  /** The kernel's pages and ours are right after a change of the range that went through this mount. */
  function resized(ino: Ino, attr: Attr, offset: number, length: number): void {
    data.invalidateRange(ino, offset, length);
    core.touched();
    const inode = inodes.get(ino);
    const pending = data.pending(ino);
    if (inode === undefined) {
      inodes.forgetSeen(ino);
      return;
    }
    inode.changes++;
    inode.attr = pending === undefined || pending.length <= attr.length ? attr : { ...attr, length: pending.length };
    if (inode.seen !== undefined) inode.seen = versionOf(attr);
  }

  async function setattr(ctx: Context, nodeid: number, set: SetattrIn): Promise<AttrOut> {
    const ino = core.ino(nodeid);
    const own = core.internals.attr(ino);
    if (own !== undefined) {
      // As the Go client: no effect and no error (programs open `.control` with O_TRUNC).
      if (ino === TRASH) throw EPERM;
      return core.attrOut(ino, own);
    }
    core.mayWrite();
    const wanted: AttrSet = {};
    if (set.mode !== undefined) wanted.mode = set.mode & 0o7777;
    if (set.uid !== undefined) wanted.uid = set.uid;
    if (set.gid !== undefined) wanted.gid = set.gid;
    if (set.atime !== undefined) wanted.atime = set.atime === 'now' ? 'now' : storable(set.atime);
    if (set.mtime !== undefined) wanted.mtime = set.mtime === 'now' ? 'now' : storable(set.mtime);
    const cred = core.cred(ctx);
    // Nothing at all comes of chown(-1, -1), and of a write or fallocate that takes the set-id bits away. Both do that, but only the first
    // is for the owner alone; whoever writes has the file open, and it has such bits.
    const nothing = set.size === undefined && Object.keys(wanted).length === 0;
    if (set.killSuidgid || nothing) wanted.killSuidgid = true;
    const open = inodes.get(ino);
    const may = cred.uid === 0 || cred.uid === open?.attr?.uid;
    if (nothing && !may && open !== undefined && open.writers > 0 && ((open.attr?.mode ?? SUID_SGID) & SUID_SGID) !== 0)
      wanted.byHandle = true;
    if (set.fh !== undefined) wanted.byHandle = true;
    if (inodes.isOpen(ino)) wanted.inUse = true;
    if (set.size !== undefined) {
      if (set.size < 0) throw EINVAL;
      if (set.size > MAX_LENGTH) throw EFBIG;
      const size = set.size;
      wanted.size = size;
      const truncated = await frozen(ctx, ino, 0, MAX_LENGTH, op => engine.setattr(op, cred, ino, wanted));
      const attr = await core.current(ctx, ino, truncated);
      resized(ino, attr, size, MAX_LENGTH);
      return core.attrOut(ino, attr);
    }
    let attr: Attr;
    try {
      const work = (op: Op) => engine.setattr(op, cred, ino, wanted);
      // A commit of data that was written before would take the bits away again.
      const setsId = ((set.mode ?? 0) & SUID_SGID) !== 0;
      const held = (set.mtime !== undefined || setsId) && data.pending(ino) !== undefined;
      const changed = held ? await frozen(ctx, ino, 0, MAX_LENGTH, work) : await work(ctx.op);
      attr = await core.current(ctx, ino, changed);
    } catch (error) {
      return changeRemoved(ino, cred, wanted, error);
    }
    core.changed(ino, attr);
    if (set.mtime !== undefined) {
      const inode = inodes.get(ino);
      if (inode !== undefined && inode.ownMtimensec >= 0) ownMtime(inode, { sec: attr.mtime, nsec: attr.mtimensec });
    }
    return core.attrOut(ino, attr);
  }

  /** Attributes of an inode that is gone, but held as a working directory, by O_PATH or as an open FIFO, live in the capsule alone. */
  function changeRemoved(ino: Ino, cred: Cred, set: AttrSet, error: unknown): AttrOut {
    const attr = error === ENOENT ? inodes.removed(ino) : undefined;
    if (attr === undefined) throw error;
    const t = now();
    const time = (wanted: AttrSet['atime'], sec: number, nsec: number) =>
      wanted === undefined ? { sec, nsec } : wanted === 'now' ? t : wanted;
    const atime = time(set.atime, attr.atime, attr.atimensec);
    const mtime = time(set.mtime, attr.mtime, attr.mtimensec);
    // As setattr does it (ops/attrs.ts).
    const chowned = set.uid !== undefined || set.gid !== undefined;
    const after = modeAfterWrite(cred, attr.mode, attr.gid);
    const kill = attr.type !== FileType.directory && (chowned || set.killSuidgid === true) ? attr.mode ^ after : 0;
    const changed: Attr = {
      ...attr,
      mode: set.mode === undefined ? attr.mode & ~kill : set.mode & ~(chowned ? kill : 0),
      uid: set.uid ?? attr.uid,
      gid: set.gid ?? attr.gid,
      atime: atime.sec,
      atimensec: atime.nsec,
      mtime: mtime.sec,
      mtimensec: mtime.nsec,
      ctime: t.sec,
      ctimensec: t.nsec,
    };
    inodes.keepRemoved(ino, changed);
    return core.attrOut(ino, changed);
  }

  // ── open and close ────────────────────────────────────────────────────────────────────────────────────────────────
  function opened(ctx: Context, inode: OpenInode, attr: Attr, flags: number, before: number): MaybePromise<OpenOut> {
    if (attr.type === FileType.directory) throw EISDIR;
    const pending = data.pending(inode.ino);
    const foreign = learn(inode, attr, pending, before) === 'foreign';
    if (foreign) data.invalidate(inode.ino);
    const keep = !foreign && inode.seen !== undefined && inode.dropping === 0;
    // Without KEEP_CACHE the kernel drops its pages now, and what it reads from now on is of this version.
    if (!keep) inode.seen = versionOf(attr);
    const out = { fh: core.openHandle(ctx, inode, flags).fh, flags: keep ? FOPEN_KEEP_CACHE : 0 };
    // Close-to-open: a length that another client has changed since is not what this open reads up to.
    if (!foreign || core.options.attrCache === 0 || core.told.has(inode.ino, attr)) return out;
    return core.invalidateAttr(inode.ino).then(() => out);
  }

  async function truncatingOpen(ctx: Context, inode: OpenInode, flags: number, kill: boolean): Promise<OpenOut> {
    const { ino } = inode;
    const cred = core.cred(ctx);
    const truncated = await frozen(ctx, ino, 0, MAX_LENGTH, async op => {
      const opened = await engine.open(op, cred, ino, flags);
      if (!kill || (opened.mode & SUID_SGID) === 0) return opened;
      return await engine.setattr(step(op, 1), cred, ino, { killSuidgid: true, byHandle: true });
    });
    const attr = await core.current(ctx, ino, truncated);
    resized(ino, attr, 0, MAX_LENGTH);
    inode.attr = attr;
    inode.removed ??= attr.nlink === 0;
    inode.seen = versionOf(attr);
    return { fh: core.openHandle(ctx, inode, flags).fh, flags: 0 };
  }

  function open(ctx: Context, nodeid: number, flags: number, kill: boolean): MaybePromise<OpenOut> {
    const ino = core.ino(nodeid);
    if (core.isInternal(ino)) return openInternal(core, ctx, ino, flags);
    if (writes(flags) || (flags & O_TRUNC) !== 0) core.mayWrite();
    if (ctx.replay) {
      const before = handles.madeBy(ctx.op, ctx.replay);
      if (before !== undefined) return { fh: before.fh, flags: 0 };
    }
    const inode = inodes.hold(ino);
    const fail = (error: unknown): never => {
      core.letGo(inode, ctx.op);
      throw error;
    };
    try {
      if ((flags & O_TRUNC) !== 0) return truncatingOpen(ctx, inode, flags, kill).catch(fail);
      const fresh = core.options.openCache;
      if (
        fresh > 0 &&
        inode.attr !== undefined &&
        inode.seen !== undefined &&
        performance.now() - inode.checked < fresh * 1000
      ) {
        return { fh: core.openHandle(ctx, inode, flags).fh, flags: FOPEN_KEEP_CACHE };
      }
      const before = inode.changes;
      const attr = engine.open(ctx.op, core.cred(ctx), ino, flags);
      if (attr instanceof Promise) return attr.then(a => opened(ctx, inode, a, flags, before)).catch(fail);
      return opened(ctx, inode, attr, flags, before);
    } catch (error) {
      return fail(error);
    }
  }

  /** Everything that was written to the file is in the store and committed, or the reason why it is not. */
  async function flushData(ctx: Context, inode: OpenInode): Promise<void> {
    const { changes } = inode;
    await data.flush(inode.ino, ctx);
    if (inode.changes === changes) inode.dirty = false;
  }

  function flush(ctx: Context, _nodeid: number, fh: number, lockOwner: bigint): MaybePromise<void> {
    const handle = handleOf(fh);
    const { inode } = handle;
    if (inode === undefined) return;
    if (inode.stale) throw ESTALE;
    const nothing = !inode.dirty && data.pending(inode.ino) === undefined;
    if (!writes(handle.flags) || nothing || inode.removed === 'sustained')
      return core.locks.flush(ctx, inode.ino, lockOwner);
    // Locks go whatever becomes of the data, but not before it: who gets the lock next must see it.
    return flushData(ctx, inode).finally(() => core.locks.flush(ctx, inode.ino, lockOwner));
  }

  function closeFile(ctx: Context, handle: Handle, inode: OpenInode): MaybePromise<void> {
    const unlocked = core.locks.release(ctx.op, inode.ino, handle.fh);
    return unlocked === undefined ? closed(ctx, handle, inode) : unlocked.then(() => closed(ctx, handle, inode));
  }

  /** The handle has no locks any more. */
  function closed(ctx: Context, handle: Handle, inode: OpenInode): MaybePromise<void> {
    data.close(inode.ino, handle.fh);
    if (inode.refs === 1) {
      if (inode.removed === 'sustained') {
        if (inode.attr !== undefined) inode.attr = withPending(inode.attr, data.pending(inode.ino));
        data.drop(inode.ino);
      } else if (writes(handle.flags) && data.pending(inode.ino) !== undefined) {
        // Pages of a mapping that came after the last close(2).
        data
          .flush(inode.ino)
          .catch(e => core.log.warn({ err: e as Error }, `data of inode ${inode.ino} is not stored yet`));
      }
      if (inode.removed !== false) return lastClose(ctx, inode).then(() => forgetHandle(handle, inode));
    }
    forgetHandle(handle, inode);
  }

  /** The inode may have no name: the engine is told. */
  async function lastClose(ctx: Context, inode: OpenInode): Promise<void> {
    if (inode.removed === undefined) await knowRemoved(inode);
    if (inode.removed === false) return;
    const length = await engine.release(step(ctx.op, RELEASE_STEP), inode.ino);
    faultPoint('release.engine-told');
    core.touched();
    if (length !== undefined) core.deleted(inode.ino, length);
    if (inode.removed === 'sustained' && inode.attr !== undefined) inodes.keepRemoved(inode.ino, inode.attr);
  }

  function forgetHandle(handle: Handle, inode: OpenInode): void {
    faultPoint('release.before-close');
    if (writes(handle.flags)) inode.writers--;
    handles.close(handle);
    faultPoint('release.closed');
    inodes.drop(inode);
  }

  /** After a restart: whether the engine must be told of the last close. */
  async function knowRemoved(inode: OpenInode): Promise<void> {
    let removed = false;
    try {
      removed = (await engine.getattr(inode.ino)).nlink === 0;
    } catch (error) {
      if (error !== ENOENT) throw error;
    }
    // An unlink that ended meanwhile knows better.
    inode.removed ??= removed;
  }

  function release(ctx: Context, _nodeid: number, fh: number): MaybePromise<void> {
    const handle = handles.get(fh);
    // Repeated after it was done.
    if (handle === undefined) return;
    const { inode } = handle;
    if (inode === undefined) {
      closeInternal(core, handle);
      return;
    }
    return closeFile(ctx, handle, inode);
  }

  // ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────
  function readFile(ctx: Context, handle: Handle, inode: OpenInode, attr: Attr, offset: number, size: number) {
    if (core.options.atimeMode !== 'noatime' && !core.options.readOnly) void engine.touchAtime(inode.ino);
    return data.read(inode.ino, handle.fh, offset, size, attr.length, ctx);
  }

  const methods: Required<Pick<IoMethods, 'read' | 'write'>> & IoMethods = {
    getattr,
    statx: (ctx, nodeid) => getattr(ctx, nodeid),
    setattr,
    open,
    flush,
    release,

    access(ctx, nodeid, mask) {
      const ino = core.ino(nodeid);
      const own = core.internals.attr(ino);
      if (own === undefined) return engine.access(credOf(core.options, ctx.uid, ctx.gid, ctx.pid, true), ino, mask);
      const bits = ctx.uid === own.uid ? own.mode >> 6 : ctx.gid === own.gid ? own.mode >> 3 : own.mode;
      if (ctx.uid !== 0 && (bits & mask & 7) !== (mask & 7)) throw EACCES;
    },

    read(ctx, _nodeid, r) {
      const handle = handles.get(r.fh);
      if (handle === undefined) throw EBADF;
      const { inode } = handle;
      if (inode === undefined) {
        if (handle.kind === HandleKind.directory) throw EISDIR;
        return readInternal(core, ctx, handle, r.offset, r.size);
      }
      core.checkHandle(r.fh, inode);
      if (core.frozen) return core.awake().then(() => methods.read(ctx, _nodeid, r));
      const { attr } = inode;
      if (attr !== undefined) {
        const stale =
          r.offset + r.size > attr.length && performance.now() - inode.checked > core.options.attrCache * 1000;
        if (!stale) return readFile(ctx, handle, inode, attr, r.offset, r.size);
        // At what we take for the end another client may have written.
        const before = inode.changes;
        const got = engine.getattr(inode.ino);
        if (!(got instanceof Promise)) core.freshInode(inode, got, before);
        else {
          return got.then(a => {
            core.freshInode(inode, a, before);
            return readFile(ctx, handle, inode, inode.attr ?? a, r.offset, r.size);
          });
        }
        return readFile(ctx, handle, inode, inode.attr ?? attr, r.offset, r.size);
      }
      const got = core.attrOf(inode);
      if (got instanceof Promise) return got.then(a => readFile(ctx, handle, inode, a, r.offset, r.size));
      return readFile(ctx, handle, inode, got, r.offset, r.size);
    },

    write(ctx, nodeid, w) {
      const handle = handles.get(w.fh);
      if (handle === undefined) throw EBADF;
      const { inode } = handle;
      if (inode === undefined) return writeInternal(core, ctx, handle, w);
      const length = w.data.bytes.length;
      if (w.offset < 0) throw EINVAL;
      if (w.offset + length > MAX_LENGTH) throw EFBIG;
      core.mayWrite();
      if (inode.ino !== core.ino(nodeid)) throw EBADF;
      core.checkHandle(w.fh, inode);
      if (core.frozen) return patiently(core.awake(), ctx).then(() => methods.write(ctx, nodeid, w));

      const put = (attr: Attr): MaybePromise<number> => {
        // The kernel does not know the flag. Pages that were changed through a mapping before it was set are still stored, as on ext4.
        if ((attr.flags & Flag.immutable) !== 0 && !w.fromCache) throw EPERM;
        const wrote = data.write(inode.ino, w.offset, w.data, attr, w.killSuidgid, ctx);
        if (!(wrote instanceof Promise)) return written(inode, attr, w.offset + length, length);
        return wrote.then(() => written(inode, inode.attr ?? attr, w.offset + length, length));
      };
      const kill = async (attr: Attr): Promise<number> => {
        // The bits must be gone for whoever looks next, not only when the data is committed.
        const op = await ctx.unpark();
        const change = engine.setattr(op, core.cred(ctx), inode.ino, { killSuidgid: true, byHandle: true });
        // The slot stays with the Op that is under way.
        const changed = await patiently(change, { interrupt: ctx.interrupt, park() {} });
        core.changed(inode.ino, changed);
        return put(inode.attr ?? attr);
      };
      const go = (attr: Attr) => (w.killSuidgid && (attr.mode & SUID_SGID) !== 0 ? kill(attr) : put(attr));
      const { attr } = inode;
      if (attr !== undefined) return go(attr);
      const got = core.attrOf(inode);
      return got instanceof Promise ? patiently(got, ctx).then(go) : go(got);
    },

    readDone: out => data.releaseRead(out),

    async fsync(ctx, _nodeid, fh) {
      const handle = handleOf(fh);
      if (handle.inode !== undefined) {
        const { inode } = handle;
        core.checkHandle(fh, inode);
        const { changes } = inode;
        await data.sync(inode.ino, ctx);
        if (inode.changes === changes) inode.dirty = false;
      }
      await engine.sync();
    },

    async syncfs() {
      await data.flushAll();
      await engine.sync();
    },

    async fallocate(ctx, _nodeid, fh, offset, length, mode) {
      const { inode } = fileOf(fh);
      const known = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE;
      if (
        (mode & ~known) !== 0 ||
        (mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)) === (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) ||
        ((mode & FALLOC_PUNCH_HOLE) !== 0 && (mode & FALLOC_KEEP_SIZE) === 0)
      )
        throw EOPNOTSUPP;
      if (offset < 0 || length <= 0) throw EINVAL;
      if (offset + length > MAX_LENGTH) throw EFBIG;
      core.mayWrite();
      const { ino } = inode;
      if (length > ALWAYS_FREE && (mode & FALLOC_PUNCH_HOLE) === 0) {
        // Nothing is set aside here, but what statfs says is not there cannot be promised. Smaller requests meet only limits, which the engine checks.
        const growth = offset + length - Math.max(offset, (await core.attrOf(inode)).length);
        if (growth > (await engine.statfs(core.root)).availSpace) throw ENOSPC;
      }
      const attr = await frozen(ctx, ino, 0, MAX_LENGTH, op =>
        engine.fallocate(op, core.cred(ctx), ino, offset, length, mode),
      );
      resized(ino, await core.current(ctx, ino, attr), offset, length);
    },

    async lseek(_ctx, _nodeid, fh, offset, whence) {
      if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw EINVAL;
      const { inode } = fileOf(fh);
      const attr = await core.attrOf(inode);
      if (offset < 0 || offset >= attr.length) throw ENXIO;
      return await data.seek(inode.ino, offset, whence, attr.length);
    },

    async copyFileRange(ctx, _nodeid, fh, offset, _outNodeid, outFh, outOffset, length, flags) {
      if (flags !== 0) throw EINVAL;
      const source = handles.get(fh);
      const target = handles.get(outFh);
      if (source === undefined || target === undefined) throw EBADF;
      if (source.inode === undefined || target.inode === undefined) throw EOPNOTSUPP;
      const [from, to] = [source.inode, target.inode];
      if (offset < 0 || outOffset < 0) throw EINVAL;
      core.mayWrite();
      const attr = await core.attrOf(from);
      const wanted = Math.min(length, COPY_MAX, attr.length - offset);
      if (wanted <= 0) return 0;
      if (outOffset + wanted > MAX_LENGTH) throw EFBIG;
      if (from === to && offset < outOffset + wanted && outOffset < offset + wanted) throw EINVAL;
      const copy = (op: Op) => engine.copyFileRange(op, core.cred(ctx), from.ino, offset, to.ino, outOffset, wanted);
      // To its end: data behind the range says how long the source is. Always the smaller inode first: two copies in opposite directions must
      // not wait for each other.
      const end = MAX_LENGTH - offset;
      const r =
        from === to
          ? await frozen(ctx, to.ino, 0, MAX_LENGTH, copy)
          : from.ino < to.ino
            ? await frozen(ctx, from.ino, offset, end, () => frozen(ctx, to.ino, 0, MAX_LENGTH, copy))
            : await frozen(ctx, to.ino, 0, MAX_LENGTH, () => frozen(ctx, from.ino, offset, end, copy));
      resized(to.ino, await core.current(ctx, to.ino, r.attr), outOffset, r.copied);
      return r.copied;
    },

    async statfs() {
      const s = await engine.statfs(core.root);
      const unit = 4096;
      const total = Math.max(1, Math.floor(s.totalSpace / unit));
      const free = Math.floor(s.availSpace / unit);
      return {
        blocks: total,
        bfree: free,
        bavail: free,
        files: s.usedInodes + s.availInodes,
        ffree: s.availInodes,
        bsize: unit,
        namelen: 255,
        frsize: unit,
      };
    },

    poll(_ctx, _nodeid, fh, events) {
      return pollInternal(core, handleOf(fh), events);
    },
  };
  return methods;

  function ownMtime(inode: OpenInode, { sec, nsec }: TimeSet): void {
    inode.ownMtime = sec;
    inode.ownMtimensec = nsec;
  }

  /** After a write: what we know of the file grows with it. */
  function written(inode: OpenInode, attr: Attr, end: number, length: number): number {
    inode.changes++;
    inode.dirty = true;
    const pending = data.pending(inode.ino);
    if (pending !== undefined) ownMtime(inode, pending.mtime);
    const known = inode.attr ?? attr;
    if (end > known.length) {
      known.length = end;
      inode.attr = known;
    }
    return length;
  }
}
