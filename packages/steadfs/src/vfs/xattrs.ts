/** Extended attributes, POSIX ACLs (which are xattrs to the kernel) and inode flags by ioctl. */
import type { FileSystem, Name } from '@steadfs/fuse';
import { E2BIG, EINVAL, ENODATA, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, ERANGE } from '@steadfs/fuse/errno';
import { aclFromXattr, aclToXattr } from '../format/acl.ts';
import { Flag } from '../format/attr.ts';
import { type Ino, isTrash } from '../format/ino.ts';
import {
  FS_APPEND_FL,
  FS_IMMUTABLE_FL,
  FS_IOC_FSGETXATTR,
  FS_IOC_FSSETXATTR,
  FS_IOC_GETFLAGS,
  FS_IOC_SETFLAGS,
  FS_SECRM_FL,
  FS_XFLAG_APPEND,
  FS_XFLAG_IMMUTABLE,
  FSXATTR_BYTES,
} from './abi.ts';
import type { Core } from './core.ts';
import { step } from './counters.ts';
import { type MaybePromise, recover, then } from './maybe.ts';

const NAME_MAX = 255;
const VALUE_MAX = 65_536;
const ACCESS = 'system.posix_acl_access';
const DEFAULT = 'system.posix_acl_default';
const S_ISGID = 0o2000;
const FLAG_IOCTLS = new Set([FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR]);

type XattrMethods = Pick<FileSystem, 'getxattr' | 'setxattr' | 'listxattr' | 'removexattr' | 'ioctl'>;

export function xattrMethods(core: Core): XattrMethods {
  const { engine } = core;

  /** Which ACL a name stands for; undefined for other names. */
  function aclKind(name: string): 'access' | 'default' | undefined {
    return name === ACCESS ? 'access' : name === DEFAULT ? 'default' : undefined;
  }

  function enabled(): boolean {
    return core.options.enableXattr || core.format.EnableACL;
  }

  /** Names of the security namespace that the mount does not offer. */
  function hidden(name: string): boolean {
    if (name === 'security.capability') return !core.options.enableCap;
    if (name === 'security.selinux') return !core.options.enableSelinux;
    return false;
  }

  function text(name: Name): string {
    if (name.length === 0) throw EINVAL;
    if (name.length > NAME_MAX) throw ERANGE;
    return Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');
  }

  async function setAcl(
    ctx: Parameters<NonNullable<FileSystem['setxattr']>>[0],
    ino: Ino,
    kind: 'access' | 'default',
    value: Uint8Array | undefined,
    killSgid: boolean,
  ): Promise<void> {
    let rule: ReturnType<typeof aclFromXattr>;
    try {
      rule = value === undefined ? undefined : aclFromXattr(value);
    } catch (error) {
      throw EINVAL.because('POSIX ACL', error);
    }
    const cred = core.cred(ctx);
    let attr = await engine.setAcl(ctx.op, cred, ino, kind, rule);
    if (killSgid && (attr.mode & S_ISGID) !== 0) {
      attr = await engine.setattr(step(ctx.op, 1), cred, ino, { mode: attr.mode & ~S_ISGID });
    }
    core.changed(ino, attr);
  }

  /** What the engine answers; `none` for a removed inode that is held only here. */
  function held<T>(ino: Ino, ask: () => MaybePromise<T>, none: () => T): MaybePromise<T> {
    return recover(ask, error => {
      if (error !== ENOENT || core.inodes.removed(ino) === undefined) throw error;
      return none();
    });
  }

  const noData = (): never => {
    throw ENODATA;
  };

  return {
    getxattr(_ctx, nodeid, rawName) {
      const name = text(rawName);
      if (!enabled()) throw EOPNOTSUPP;
      const ino = core.ino(nodeid);
      if (core.internals.attr(ino) !== undefined || hidden(name)) throw ENODATA;
      const acl = aclKind(name);
      if (acl !== undefined) {
        if (!core.format.EnableACL) throw EOPNOTSUPP;
        return then(
          held(ino, () => engine.getAcl(ino, acl), noData),
          rule => (rule === undefined ? noData() : aclToXattr(rule)),
        );
      }
      if (name.startsWith('system.')) throw EOPNOTSUPP;
      if (!core.options.enableXattr && !name.startsWith('security.')) throw EOPNOTSUPP;
      return held(ino, () => engine.getxattr(ino, rawName), noData);
    },

    async setxattr(ctx, nodeid, rawName, value, flags, killSgid) {
      const name = text(rawName);
      if (!enabled()) throw EOPNOTSUPP;
      const ino = core.ino(nodeid);
      if (core.internals.attr(ino) !== undefined) throw EPERM;
      if (value.length > VALUE_MAX) throw E2BIG;
      // A namespace alone; the kernel leaves that to the server.
      if (/^(user|trusted|security|system)\.$/.test(name)) throw EINVAL;
      core.mayWrite();
      const acl = aclKind(name);
      if (acl !== undefined) {
        if (!core.format.EnableACL) throw EOPNOTSUPP;
        return await setAcl(ctx, ino, acl, value, killSgid);
      }
      if (name.startsWith('system.') || hidden(name) || !core.options.enableXattr) throw EOPNOTSUPP;
      core.changed(ino, await engine.setxattr(ctx.op, core.cred(ctx), ino, rawName, value, flags));
    },

    async listxattr(ctx, nodeid) {
      if (!enabled()) throw EOPNOTSUPP;
      const ino = core.ino(nodeid);
      // As the Go client answers for its own files and the folders of the trash.
      if (core.internals.attr(ino) !== undefined || isTrash(ino)) throw ENODATA;
      const all = await held<Name[]>(
        ino,
        () => engine.listxattr(ino),
        () => [],
      );
      // Local file systems do not tell of trusted.* to who may not read it.
      const names = ctx.uid === 0 ? all : all.filter(name => !text(name).startsWith('trusted.'));
      if (!core.options.enableXattr) return names.filter(n => aclKind(text(n)) !== undefined);
      return names;
    },

    async removexattr(ctx, nodeid, rawName) {
      const name = text(rawName);
      if (!enabled()) throw EOPNOTSUPP;
      const ino = core.ino(nodeid);
      if (core.internals.attr(ino) !== undefined) throw EPERM;
      core.mayWrite();
      const acl = aclKind(name);
      if (acl !== undefined) {
        if (!core.format.EnableACL) throw EOPNOTSUPP;
        return await setAcl(ctx, ino, acl, undefined, false);
      }
      if (name.startsWith('system.')) throw EOPNOTSUPP;
      if (hidden(name)) throw ENODATA;
      core.changed(ino, await engine.removexattr(ctx.op, core.cred(ctx), ino, rawName));
    },

    async ioctl(ctx, nodeid, i) {
      const cmd = i.cmd >>> 0;
      if (!core.options.enableIoctl || !FLAG_IOCTLS.has(cmd)) throw ENOTTY;
      const ino = core.ino(nodeid);
      if (core.internals.attr(ino) !== undefined) throw ENOTTY;
      const attr = await engine.getattr(ino);
      if (cmd === FS_IOC_GETFLAGS) {
        const output = Buffer.alloc(Math.max(4, Math.min(8, i.outSize)));
        output.writeUInt32LE(shownFlags(attr.flags), 0);
        return { result: 0, output: output.subarray(0, i.outSize) };
      }
      if (cmd === FS_IOC_FSGETXATTR) {
        // The kernel asks for this form, too, before it sets flags in the other one.
        const output = Buffer.alloc(FSXATTR_BYTES);
        output.writeUInt32LE(shownXflags(attr.flags), 0);
        return { result: 0, output: output.subarray(0, i.outSize) };
      }
      core.mayWrite();
      const wanted = wantedFlags(cmd, i.input, attr.flags);
      if (wanted !== attr.flags) {
        const fixed = Flag.immutable | Flag.append;
        if (ctx.uid !== 0 && ((wanted ^ attr.flags) & fixed) !== 0) throw EPERM;
        if (ctx.uid !== 0 && ctx.uid !== attr.uid) throw EPERM;
        core.changed(ino, await engine.setattr(ctx.op, core.cred(ctx), ino, { flags: wanted }));
        // The kernel does not know that an ioctl changes ctime.
        await core.invalidateAttr(ino);
      }
      return { result: 0, output: new Uint8Array(0) };
    },
  };
}

function shownFlags(flags: number): number {
  return (
    ((flags & Flag.immutable) !== 0 ? FS_IMMUTABLE_FL : 0) |
    ((flags & Flag.append) !== 0 ? FS_APPEND_FL : 0) |
    ((flags & Flag.skipTrash) !== 0 ? FS_SECRM_FL : 0)
  );
}

function shownXflags(flags: number): number {
  return (
    ((flags & Flag.immutable) !== 0 ? FS_XFLAG_IMMUTABLE : 0) | ((flags & Flag.append) !== 0 ? FS_XFLAG_APPEND : 0)
  );
}

/** Flags of an inode after the ioctl; bits that are not ours to change stay. Throws EOPNOTSUPP for others than ours. */
function wantedFlags(cmd: number, input: Uint8Array, old: number): number {
  const v = new DataView(input.buffer, input.byteOffset, input.byteLength);
  if (cmd === FS_IOC_SETFLAGS) {
    if (input.length < 4) throw EINVAL;
    const wanted = v.getUint32(0, true);
    if ((wanted & ~(FS_SECRM_FL | FS_IMMUTABLE_FL | FS_APPEND_FL)) !== 0) throw EOPNOTSUPP;
    return (
      (old & ~(Flag.immutable | Flag.append | Flag.skipTrash)) |
      ((wanted & FS_IMMUTABLE_FL) !== 0 ? Flag.immutable : 0) |
      ((wanted & FS_APPEND_FL) !== 0 ? Flag.append : 0) |
      ((wanted & FS_SECRM_FL) !== 0 ? Flag.skipTrash : 0)
    );
  }
  if (input.length < FSXATTR_BYTES) throw EINVAL;
  const wanted = v.getUint32(0, true);
  const rest = [4, 12, 16].some(at => v.getUint32(at, true) !== 0);
  if (rest || (wanted & ~(FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND)) !== 0) throw EOPNOTSUPP;
  return (
    (old & ~(Flag.immutable | Flag.append)) |
    ((wanted & FS_XFLAG_IMMUTABLE) !== 0 ? Flag.immutable : 0) |
    ((wanted & FS_XFLAG_APPEND) !== 0 ? Flag.append : 0)
  );
}
