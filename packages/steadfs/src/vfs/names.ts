/** Requests about names: look-up, making, removing, renaming, linking. */
import type { Context, CreateOut, EntryOut, FileSystem, FuseAttr } from '@steadfs/fuse';
import { EEXIST, EINVAL, ENAMETOOLONG, ENOENT, EPERM, EROFS, type Errno } from '@steadfs/fuse/errno';
import { FileType, typeOfMode } from '../format/attr.ts';
import { type Ino, isTrash } from '../format/ino.ts';
import type { Entry, MakeNode, MetaEngine, Name } from '../meta/engine.ts';
import { FOPEN_KEEP_CACHE, O_EXCL, O_TRUNC, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT } from './abi.ts';
import { versionOf } from './attrs.ts';
import type { Core } from './core.ts';
import { step } from './counters.ts';
import { openInternal } from './internal-files.ts';
import type { MaybePromise } from './maybe.ts';
import { accessAsked, opensUnasked } from './opening.ts';

const SYMLINK_MAX = 4095;
const S_IFCHR = 0o020000;
const DOT = 46;
const SUID_SGID = 0o6000;

const NO_ATTR: FuseAttr = {
  ino: 0,
  size: 0,
  blocks: 0,
  atime: 0,
  mtime: 0,
  ctime: 0,
  atimensec: 0,
  mtimensec: 0,
  ctimensec: 0,
  mode: 0,
  nlink: 0,
  uid: 0,
  gid: 0,
  rdev: 0,
  blksize: 0,
};

type NameMethods = Pick<
  FileSystem,
  'lookup' | 'mknod' | 'mkdir' | 'symlink' | 'create' | 'tmpfile' | 'unlink' | 'rmdir' | 'rename' | 'link' | 'readlink'
>;

export function nameMethods(core: Core): NameMethods {
  const { engine, inodes } = core;

  function absent(): EntryOut | Errno {
    if (core.options.negativeEntryCache <= 0) return ENOENT;
    return { nodeid: 0, generation: 0, entryValid: core.options.negativeEntryCache, attrValid: 0, attr: NO_ATTR };
  }

  function missing(error: unknown): EntryOut | Errno {
    if (error !== ENOENT) throw error;
    return absent();
  }

  /** Throws EACCES when the caller is opening what it may not open and the kernel asks nobody but us (opening.ts). */
  async function mayOpen(ctx: Context, found: Entry): Promise<EntryOut> {
    const asked = await accessAsked(ctx.pid);
    if (asked !== 0) await engine.access(core.cred(ctx), found.ino, asked);
    return core.freshEntry(found);
  }

  function looked(ctx: Context, found: Entry | undefined): MaybePromise<EntryOut | Errno> {
    if (found === undefined) return absent();
    if (!core.options.defaultPermissions && opensUnasked(found.attr.type) && core.cred(ctx).uid !== 0)
      return mayOpen(ctx, found);
    return core.freshEntry(found);
  }

  const find: NonNullable<MetaEngine['find']> = engine.find?.bind(engine) ?? engine.lookup.bind(engine);

  /** "." and "..", which only an NFS server asks for. */
  function dots(parent: Ino, name: Name): MaybePromise<EntryOut> | undefined {
    if (name[0] !== DOT || name.length > 2 || (name.length === 2 && name[1] !== DOT)) return undefined;
    const found = async () => {
      const dir = await engine.getattr(parent);
      if (name.length === 1 || parent === core.root) return core.entryOut(parent, dir);
      return core.entryOut(dir.parent, await engine.getattr(dir.parent));
    };
    return found();
  }

  /** Throws what making a name that is ours, too long or on a read-only mount gives. */
  function mayMake(parent: Ino, name: Name): void {
    core.checkName(name);
    if (core.internals.find(parent, name) !== undefined) throw EEXIST;
    core.mayWrite();
  }

  function mayRemove(parent: Ino, name: Name): void {
    core.checkName(name);
    if (core.internals.find(parent, name) !== undefined) throw EPERM;
    core.mayWrite();
  }

  async function make(
    ctx: Parameters<NonNullable<FileSystem['mknod']>>[0],
    parent: Ino,
    name: Name,
    node: MakeNode,
  ): Promise<EntryOut> {
    mayMake(parent, name);
    const e = await engine.mknod(ctx.op, core.cred(ctx), parent, name, node);
    core.touched();
    return core.entryOut(e.ino, e.attr);
  }

  return {
    lookup(ctx, parentNode, name) {
      core.checkName(name);
      const parent = core.ino(parentNode);
      if (name[0] === DOT) {
        const own = core.internals.find(parent, name);
        if (own !== undefined) return core.internalEntry(own);
        const dot = dots(parent, name);
        if (dot !== undefined) return dot;
      }
      let found: MaybePromise<Entry | undefined>;
      try {
        found = find(core.cred(ctx), parent, name);
      } catch (error) {
        return missing(error);
      }
      return found instanceof Promise ? found.then(e => looked(ctx, e), missing) : looked(ctx, found);
    },

    mknod(ctx, parent, name, mode, rdev, umask) {
      const type = typeOfMode(mode);
      if (type === undefined || type === FileType.directory || type === FileType.symlink) throw EINVAL;
      const device = type === FileType.blockdev || type === FileType.chardev;
      return make(ctx, core.ino(parent), name, {
        type,
        mode: mode & 0o7777,
        umask: core.umask(umask),
        rdev: device ? rdev : 0,
      });
    },

    mkdir(ctx, parent, name, mode, umask) {
      return make(ctx, core.ino(parent), name, {
        type: FileType.directory,
        mode: mode & 0o7777,
        umask: core.umask(umask),
        rdev: 0,
      });
    },

    symlink(ctx, parent, name, target) {
      if (target.length > SYMLINK_MAX) throw ENAMETOOLONG;
      return make(ctx, core.ino(parent), name, { type: FileType.symlink, mode: 0o777, umask: 0, rdev: 0, target });
    },

    readlink(_ctx, nodeid) {
      const ino = core.ino(nodeid);
      if (core.options.atimeMode !== 'noatime' && !core.options.readOnly) void engine.touchAtime(ino);
      return engine.readlink(ino);
    },

    async create(ctx, parentNode, name, mode, umask, flags, kill): Promise<CreateOut> {
      core.checkName(name);
      const parent = core.ino(parentNode);
      const own = core.internals.find(parent, name);
      if (own !== undefined) {
        if ((flags & O_EXCL) !== 0) throw EEXIST;
        return { ...core.internalEntry(own), ...(await openInternal(core, ctx, own, flags)) };
      }
      core.mayWrite();
      const cred = core.cred(ctx);
      const r = await engine.create(ctx.op, cred, parent, name, mode & 0o7777, core.umask(umask), flags);
      const inode = inodes.hold(r.ino);
      try {
        core.touched();
        let attr = r.attr;
        let keep = false;
        if (core.handles.madeBy(ctx.op, ctx.replay) !== undefined) {
          // Repeated, and done but for the answer.
          attr = await core.current(ctx, r.ino, attr);
        } else if (r.created) {
          // Nothing was there that could be in a cache.
          inode.seen ??= versionOf(attr);
          inode.attr ??= attr;
          inode.removed ??= false;
          keep = true;
        } else {
          if ((flags & O_TRUNC) !== 0 && (ctx.replay || core.data.pending(r.ino) !== undefined)) {
            // Written before the truncation and not committed yet, or committed after it by the process before: it must not come after it.
            const frozen = await core.data.freeze(r.ino, 0, Number.MAX_SAFE_INTEGER);
            try {
              attr = await engine.setattr(step(ctx.op, 1), cred, r.ino, { size: 0, byHandle: true });
            } finally {
              frozen.done();
            }
          }
          if (kill && (flags & O_TRUNC) !== 0 && (attr.mode & SUID_SGID) !== 0)
            attr = await engine.setattr(step(ctx.op, 2), cred, r.ino, { killSuidgid: true, byHandle: true });
          attr = await core.current(ctx, r.ino, attr);
          inode.changes++;
          inode.seen = versionOf(attr);
          inode.attr = attr;
          core.data.invalidate(r.ino);
        }
        const handle = core.openHandle(ctx, inode, flags);
        return { ...core.entryOut(r.ino, attr), fh: handle.fh, flags: keep ? FOPEN_KEEP_CACHE : 0 };
      } catch (error) {
        core.letGo(inode, ctx.op);
        throw error;
      }
    },

    async tmpfile(ctx, parentNode, mode, umask, flags): Promise<CreateOut> {
      core.mayWrite();
      const parent = core.ino(parentNode);
      if (isTrash(parent)) throw EPERM;
      const e = await engine.tmpfile(ctx.op, core.cred(ctx), parent, mode & 0o7777, core.umask(umask));
      core.touched();
      const inode = inodes.hold(e.ino);
      inode.attr ??= e.attr;
      inode.seen ??= versionOf(e.attr);
      inode.removed = 'sustained';
      try {
        const handle = core.openHandle(ctx, inode, flags);
        return { ...core.entryOut(e.ino, e.attr), fh: handle.fh, flags: FOPEN_KEEP_CACHE };
      } catch (error) {
        core.letGo(inode, ctx.op);
        throw error;
      }
    },

    async unlink(ctx, parentNode, name) {
      const parent = core.ino(parentNode);
      mayRemove(parent, name);
      await core.gone(await engine.unlink(ctx.op, core.cred(ctx), parent, name, inodes.isOpen), ctx.op);
    },

    async rmdir(ctx, parentNode, name) {
      const parent = core.ino(parentNode);
      mayRemove(parent, name);
      await core.gone(await engine.rmdir(ctx.op, core.cred(ctx), parent, name), ctx.op);
    },

    async rename(ctx, parentNode, name, newParentNode, newName, flags) {
      if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)) !== 0) throw EINVAL;
      const whiteout = (flags & RENAME_WHITEOUT) !== 0;
      if ((flags & RENAME_EXCHANGE) !== 0 && flags !== RENAME_EXCHANGE) throw EINVAL;
      const parent = core.ino(parentNode);
      const newParent = core.ino(newParentNode);
      mayRemove(parent, name);
      core.checkName(newName);
      if (core.internals.find(newParent, newName) !== undefined) throw EPERM;
      const cred = core.cred(ctx);
      const r = await engine.rename(
        ctx.op,
        cred,
        parent,
        name,
        newParent,
        newName,
        flags & (RENAME_NOREPLACE | RENAME_EXCHANGE),
        inodes.isOpen,
      );
      core.removals++;
      core.touched();
      if (r.moved !== undefined) core.changed(r.moved.ino, r.moved.attr);
      if (r.exchanged !== undefined) core.changed(r.exchanged.ino, r.exchanged.attr);
      if (r.replaced !== undefined) await core.gone(r.replaced, ctx.op);
      if (whiteout) {
        const node: MakeNode = { type: typeOfMode(S_IFCHR)!, mode: 0, umask: 0, rdev: 0 };
        await engine.mknod(step(ctx.op, 1), cred, parent, name, node);
      }
    },

    async link(ctx, nodeid, newParentNode, newName) {
      const ino = core.ino(nodeid);
      const newParent = core.ino(newParentNode);
      core.checkName(newName);
      if (core.options.readOnly) throw EROFS;
      if (core.isInternal(ino)) throw EPERM;
      if (core.internals.find(newParent, newName) !== undefined) throw EEXIST;
      const e = await engine.link(ctx.op, core.cred(ctx), ino, newParent, newName);
      inodes.revive(ino);
      const attr = await core.current(ctx, e.ino, e.attr);
      core.changed(e.ino, attr);
      return core.entryOut(e.ino, attr);
    },
  };
}
