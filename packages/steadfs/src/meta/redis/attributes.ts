/** Changes of attributes, ACLs and extended attributes; open with its checks. */
import { EFBIG, EINVAL, ERANGE } from '@steadfs/fuse/errno';
import { aclMode, encodeAcl, isMinimalAcl } from '../../format/acl.ts';
import { inoToString } from '../../format/ino.ts';
import { now } from '../clock.ts';
import type { AttrSet, MetaEngine } from '../engine.ts';
import { NAME_MAX } from '../ops/access.ts';
import { atimeDue, checkOpen, MAX_LENGTH, XATTR_VALUE_MAX } from '../ops/attrs.ts';
import { type Core, EMPTY } from './core.ts';
import type { Data } from './data.ts';
import { ino8, readEntry, u32, u64 } from './forms.ts';
import type { Reading } from './reading.ts';
import { packTime } from './script.ts';

const O_TRUNC = 0o1000;

export function attributes(core: Core, reading: Reading, data: Data) {
  const { S, iKey, keepAttr, key, mutate, takeAttr, options } = core;
  const { checked, fetchAttr, getattr } = reading;
  const { covering } = data;

  const methods: Pick<MetaEngine, 'open' | 'setattr' | 'setxattr' | 'removexattr' | 'setAcl' | 'touchAtime'> = {
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
  };
  return { methods };
}
