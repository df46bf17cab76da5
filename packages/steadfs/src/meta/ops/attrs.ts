/** Operations on attributes: setattr with truncation, open, fallocate, xattrs, ACL, atime (spec/volume.md §15, meta-redis.md §4.3-4.5, §4.16). */
import {
  EACCES,
  EEXIST,
  EFBIG,
  EINVAL,
  EISDIR,
  ENODATA,
  ENOENT,
  ENOTSUP,
  EPERM,
  EPIPE,
  ERANGE,
} from '@steadfs/fuse/errno';
import { type AclRule, aclChmod, aclMode, isMinimalAcl } from '../../format/acl.ts';
import { type Attr, FileType, Flag } from '../../format/attr.ts';
import { type Ino, isTrash, TRASH } from '../../format/ino.ts';
import { CHUNK_SIZE, hole, holesOf } from '../../format/slice.ts';
import type { AttrSet, Cred, Name, TimeSet } from '../engine.ts';
import {
  allows,
  checkAccess,
  checkFixed,
  inGroup,
  isOwner,
  modeAfterWrite,
  NAME_MAX,
  present,
  R,
  W,
  withoutSuidgid,
  X,
} from './access.ts';
import { inoArg, logChange } from './changelog.ts';
import { accountLength, accountOwner, checkQuota, linksOf, spaceOf } from './quota.ts';
import type { Body, Tx } from './tx.ts';

const O_ACCMODE = 3;
const O_WRONLY = 1;
const O_TRUNC = 0o1000;
const O_APPEND = 0o2000;
/** FMODE_EXEC, as the kernel hands it on for execve(2). */
const O_EXEC = 0x20;

/** Larger lengths are not safe integers. */
export const MAX_LENGTH = Number.MAX_SAFE_INTEGER;
/** Existing chunks that one transaction of a truncation touches at most; see {@link punchStep}. */
export const CHUNKS_PER_STEP = 1000;
export const XATTR_VALUE_MAX = 65536;

/** The checks of open(2). */
export function* checkOpen(tx: Tx, cred: Cred, attr: Readonly<Attr>, flags: number): Body<void> {
  const writes = (flags & O_ACCMODE) !== 0 || (flags & O_TRUNC) !== 0;
  if (writes && attr.type === FileType.directory) throw EISDIR;
  let mask = (flags & O_ACCMODE) === O_WRONLY ? 0 : R;
  if (writes) mask |= W;
  if ((flags & O_EXEC) !== 0) mask = (mask & ~R) | X;
  yield* checkAccess(tx, cred, attr, mask);
  if (!writes) return;
  if (isTrash(attr.parent) && attr.parent > TRASH) throw EPERM;
  if ((attr.flags & Flag.immutable) !== 0) throw EPERM;
  if ((attr.flags & Flag.append) !== 0 && ((flags & O_APPEND) === 0 || (flags & O_TRUNC) !== 0)) throw EPERM;
}

/** What open(2) does beyond its checks: O_TRUNC empties the file and sets its times, whatever the length was. */
export function* truncateOnOpen(tx: Tx, cred: Cred, ino: Ino, attr: Readonly<Attr>, flags: number): Body<Attr> {
  if ((flags & O_TRUNC) === 0 || attr.type !== FileType.file) return yield* present(tx, ino, attr);
  const next = { ...attr };
  if (attr.length !== 0) yield* changeLength(tx, ino, attr, 0);
  next.length = 0;
  // Root keeps them (CAP_FSETID).
  if (cred.uid !== 0) next.mode = modeAfterWrite(cred, attr.mode, attr.gid);
  setTime(next, 'mtime', tx.now);
  setTime(next, 'ctime', tx.now);
  yield* tx.updateNode(ino, next);
  yield* logChange(tx, 'TRUNCATE', () => [inoArg(ino), attr.length, 0, 0]);
  return yield* present(tx, ino, next);
}

export function* open(tx: Tx, cred: Cred, ino: Ino, flags: number): Body<Attr> {
  const attr = yield* (flags & O_TRUNC) !== 0 ? tx.nodeForUpdate(ino) : tx.node(ino);
  if (attr === undefined) throw ENOENT;
  yield* checkOpen(tx, cred, attr, flags);
  return yield* truncateOnOpen(tx, cred, ino, attr, flags);
}

function setTime(attr: Attr, which: 'atime' | 'mtime' | 'ctime', t: TimeSet): void {
  attr[which] = t.sec;
  attr[`${which}nsec`] = t.nsec;
}

/** Quota, usage and hole records for a new length; the inode itself is the caller's to write. */
function* changeLength(tx: Tx, ino: Ino, attr: Readonly<Attr>, length: number): Body<void> {
  yield* accountLength(tx, ino, attr, length);
  yield* punch(tx, ino, Math.min(attr.length, length), Math.max(attr.length, length), true);
}

/**
 * Hole records over [from, to): in the chunks at both ends always (`ends`) or where the chunk exists, between them only where it
 * exists.
 */
function* punch(tx: Tx, ino: Ino, from: number, to: number, ends: boolean): Body<void> {
  const first = Math.floor(from / CHUNK_SIZE);
  const last = Math.floor((to - 1) / CHUNK_SIZE);
  if (last - first < 2 && ends) {
    for (const [index, record] of holesOf(from, to)) yield* tx.appendChunk(ino, index, [record]);
    return;
  }
  if (ends) {
    const at = from - first * CHUNK_SIZE;
    yield* tx.appendChunk(ino, first, [hole(at, CHUNK_SIZE - at)]);
    yield* tx.appendChunk(ino, last, [hole(0, to - last * CHUNK_SIZE)]);
  }
  for (const index of yield* tx.chunkIndexes(ino, ends ? first + 1 : first, ends ? last - 1 : last, 2 ** 32)) {
    const start = Math.max(from, index * CHUNK_SIZE);
    const end = Math.min(to, (index + 1) * CHUNK_SIZE);
    yield* tx.appendChunk(ino, index, [hole(start - index * CHUNK_SIZE, end - start)]);
  }
}

/**
 * Preparation of a truncation or punch over many chunks: writes whole-chunk holes into the next existing chunks from `index` on, so that no
 * transaction gets long. Answers where to go on; undefined when what is left fits the last transaction. Repeatable (a hole twice is a
 * hole).
 */
export function* punchStep(tx: Tx, ino: Ino, from: number, to: number, index: number): Body<number | undefined> {
  const last = Math.floor((to - 1) / CHUNK_SIZE) - 1;
  const begin = Math.max(index, Math.floor(from / CHUNK_SIZE) + 1);
  if (last - begin < CHUNKS_PER_STEP) return undefined;
  const found = yield* tx.chunkIndexes(ino, begin, last, CHUNKS_PER_STEP + 1);
  if (found.length <= CHUNKS_PER_STEP) return undefined;
  for (const i of found.slice(0, CHUNKS_PER_STEP)) yield* tx.coverChunk(ino, i);
  return found[CHUNKS_PER_STEP]!;
}

/** True when one transaction does it. */
export function* punchIsShort(tx: Tx, ino: Ino, from: number, to: number): Body<boolean> {
  const first = Math.floor(from / CHUNK_SIZE) + 1;
  const last = Math.floor((to - 1) / CHUNK_SIZE) - 1;
  if (last - first < CHUNKS_PER_STEP) return true;
  return (yield* tx.chunkIndexes(ino, first, last, CHUNKS_PER_STEP + 1)).length <= CHUNKS_PER_STEP;
}

/** Whether both lists of times need an owner or only write permission, as Linux's notify_change and setattr_prepare ask. */
function* checkTimes(tx: Tx, cred: Cred, cur: Readonly<Attr>, set: AttrSet): Body<void> {
  if (set.atime === undefined && set.mtime === undefined) return;
  const touch = set.atime === 'now' && set.mtime === 'now';
  if ((cur.flags & Flag.immutable) !== 0 || (!touch && (cur.flags & Flag.append) !== 0)) throw EPERM;
  if (isOwner(cred, cur)) return;
  if (!touch) throw EPERM;
  if (!(yield* allows(tx, cred, cur, W))) throw EACCES;
}

export function* setattr(tx: Tx, cred: Cred, ino: Ino, set: AttrSet): Body<Attr> {
  const cur = yield* tx.nodeForUpdate(ino);
  if (cur === undefined) throw ENOENT;
  if (isTrash(cur.parent) && cur.parent > TRASH && !set.byHandle && !set.inUse) throw EPERM;
  const next = { ...cur };
  let changed = false;

  // Checks.
  if (set.size !== undefined) {
    if (cur.type === FileType.directory) throw EISDIR;
    if (cur.type !== FileType.file) throw EINVAL;
    if (set.size > MAX_LENGTH) throw EFBIG;
    if (!set.byHandle) yield* checkAccess(tx, cred, cur, W);
    checkFixed(cur);
  }
  const changesOwner = set.uid !== undefined || set.gid !== undefined;
  if (changesOwner || set.mode !== undefined) checkFixed(cur);
  if (set.uid !== undefined && cred.checkPermission && cred.uid !== 0 && (cred.uid !== cur.uid || set.uid !== cur.uid))
    throw EPERM;
  if (set.gid !== undefined && cred.checkPermission && cred.uid !== 0) {
    if (cred.uid !== cur.uid || (set.gid !== cur.gid && !inGroup(cred, set.gid))) throw EPERM;
  }
  if (set.mode !== undefined && !isOwner(cred, cur)) throw EPERM;
  if (set.size === undefined || !set.byHandle) {
    if (set.size === undefined || set.atime !== undefined || (set.mtime !== undefined && set.mtime !== 'now'))
      yield* checkTimes(tx, cred, cur, set);
  }
  if (set.flags !== undefined && !isOwner(cred, cur)) throw EPERM;

  // Changes.
  if (set.size !== undefined) {
    if (set.size !== cur.length) yield* changeLength(tx, ino, cur, set.size);
    next.length = set.size;
    // Also when the length was the same (truncate(2)).
    setTime(next, 'mtime', tx.now);
    changed = true;
  }
  if (set.killSuidgid && cur.type !== FileType.directory) {
    next.mode = modeAfterWrite(cred, cur.mode, cur.gid);
    if (next.mode !== cur.mode) changed = true;
    // chown(2) with neither id: the kernel asks nobody, and only the owner may take the bits away.
    const chowned = setsNothing(set) && !set.byHandle;
    if (next.mode !== cur.mode && chowned && cred.uid !== 0 && cred.uid !== cur.uid) throw EPERM;
  }
  let mode = set.mode === undefined ? undefined : set.mode & 0o7777;
  if (changesOwner) {
    if (cur.type !== FileType.directory && (cur.mode & 0o6000) !== 0) {
      // Linux: suid goes; sgid goes when the group may execute, or the caller is neither root nor in the group.
      let kill = withoutSuidgid(cur.mode) ^ cur.mode;
      if (cred.uid !== 0 && !inGroup(cred, cur.gid)) kill |= cur.mode & 0o2000;
      next.mode &= ~kill;
      if (mode !== undefined) mode &= ~kill;
      changed = true;
    }
    if (set.uid !== undefined && set.uid !== cur.uid) next.uid = set.uid;
    if (set.gid !== undefined && set.gid !== cur.gid) next.gid = set.gid;
    if (next.uid !== cur.uid || next.gid !== cur.gid) {
      changed = true;
      if (tx.volume.format.UserGroupQuota && (cur.type === FileType.file || cur.type === FileType.directory)) {
        yield* moveOwner(tx, cur, next);
      }
    }
    // chown(2) changes ctime even when both ids stay.
    changed = true;
  }
  if (mode !== undefined) {
    if (cred.checkPermission && cred.uid !== 0 && (mode & 0o2000) !== 0 && !inGroup(cred, next.gid)) mode &= ~0o2000;
    const rule = cur.accessAcl === 0 ? undefined : yield* tx.acl(cur.accessAcl);
    if (rule !== undefined) {
      const chmodded = aclChmod(rule, mode);
      next.accessAcl = yield* tx.aclId(chmodded);
      mode = (mode & 0o7000) | aclMode(chmodded);
    }
    next.mode = mode;
    changed = true;
  }
  for (const which of ['atime', 'mtime'] as const) {
    const t = set[which];
    if (t === undefined) continue;
    setTime(next, which, t === 'now' ? tx.now : t);
    changed = true;
  }
  if (set.flags !== undefined && set.flags !== cur.flags) {
    next.flags = set.flags;
    changed = true;
  }
  if (set.tier !== undefined && set.tier !== cur.tier) {
    next.tier = set.tier;
    changed = true;
  }
  // chown(2) with neither id changes ctime all the same; the kernel then sends a request that sets nothing.
  if (setsNothing(set)) changed = true;
  if (!changed) return yield* present(tx, ino, cur);
  setTime(next, 'ctime', tx.now);
  yield* tx.updateNode(ino, next);
  if (next.length !== cur.length) yield* logChange(tx, 'TRUNCATE', () => [inoArg(ino), cur.length, next.length, 0]);
  yield* logSetattr(tx, ino, set, cur, next);
  return yield* present(tx, ino, next);
}

function setsNothing(set: AttrSet): boolean {
  return setMask(set) === 0 && set.size === undefined && !set.byHandle;
}

/** SetAttr mask bits of spec/volume.md §2.1. */
function setMask(set: AttrSet): number {
  return (
    (set.mode !== undefined ? 1 : 0) |
    (set.uid !== undefined ? 2 : 0) |
    (set.gid !== undefined ? 4 : 0) |
    (set.atime !== undefined ? 16 : 0) |
    (set.mtime !== undefined ? 32 : 0) |
    (set.tier !== undefined ? 1024 : 0) |
    (set.flags !== undefined ? 32768 : 0)
  );
}

function* logSetattr(tx: Tx, ino: Ino, set: AttrSet, cur: Readonly<Attr>, next: Readonly<Attr>): Body<void> {
  const mask = setMask(set);
  if (mask === 0 && cur.mode === next.mode) return;
  const n = next;
  yield* logChange(tx, 'SETATTR', () => {
    const times = [n.atime, n.mtime, n.atimensec, n.mtimensec, n.ctime, n.ctimensec];
    return [inoArg(ino), mask | (cur.mode === n.mode ? 0 : 1), 0, n.uid, n.gid, n.mode, n.flags, ...times, n.accessAcl];
  });
}

function* moveOwner(tx: Tx, cur: Readonly<Attr>, next: Readonly<Attr>): Body<void> {
  const space = spaceOf(cur);
  if (next.uid !== cur.uid || next.gid !== cur.gid) {
    // Only the owner that changes gains; the check of the one that stays would count the file twice.
    accountOwner(tx, cur.uid, cur.gid, -space, -1);
    try {
      yield* checkQuota(tx, next.uid, next.gid, space, 1, []);
    } catch (e) {
      accountOwner(tx, cur.uid, cur.gid, space, 1);
      throw e;
    }
    accountOwner(tx, next.uid, next.gid, space, 1);
  }
}

export const Falloc = { keepSize: 1, punchHole: 2, collapse: 8, zero: 16, insert: 32 } as const;

/** Throws for the modes that are refused whatever the file is. */
export function checkFallocate(offset: number, length: number, mode: number): void {
  if (length <= 0 || offset < 0) throw EINVAL;
  if ((mode & (Falloc.collapse | Falloc.insert)) !== 0)
    throw mode === Falloc.collapse || mode === Falloc.insert ? ENOTSUP : EINVAL;
  if ((mode & ~(Falloc.keepSize | Falloc.punchHole | Falloc.zero)) !== 0) throw ENOTSUP;
  if ((mode & Falloc.punchHole) !== 0 && (mode & Falloc.keepSize) === 0) throw EINVAL;
  if ((mode & Falloc.punchHole) !== 0 && (mode & Falloc.zero) !== 0) throw EINVAL;
  if (offset + length > MAX_LENGTH) throw EFBIG;
}

export function* fallocate(tx: Tx, cred: Cred, ino: Ino, offset: number, length: number, mode: number): Body<Attr> {
  checkFallocate(offset, length, mode);
  const cur = yield* tx.nodeForUpdate(ino);
  if (cur === undefined) throw ENOENT;
  if (cur.type === FileType.fifo) throw EPIPE;
  if (cur.type !== FileType.file || (cur.flags & Flag.immutable) !== 0) throw EPERM;
  if ((cur.flags & Flag.append) !== 0 && (mode & ~Falloc.keepSize) !== 0) throw EPERM;
  yield* checkAccess(tx, cred, cur, W);
  const next = { ...cur };
  if ((mode & Falloc.keepSize) === 0 && offset + length > cur.length) {
    yield* accountLength(tx, ino, cur, offset + length);
    next.length = offset + length;
  }
  if ((mode & (Falloc.punchHole | Falloc.zero)) !== 0 && offset < cur.length) {
    yield* punch(tx, ino, offset, Math.min(offset + length, cur.length), false);
  }
  if (cred.uid !== 0) next.mode = withoutSuidgid(cur.mode);
  setTime(next, 'mtime', tx.now);
  setTime(next, 'ctime', tx.now);
  yield* tx.updateNode(ino, next);
  yield* logChange(tx, 'FALLOCATE', () => [inoArg(ino), offset, length, mode]);
  return yield* present(tx, ino, next);
}

const ACL_NAMES = { access: 'system.posix_acl_access', default: 'system.posix_acl_default' } as const;

function* checkXattr(tx: Tx, cred: Cred, attr: Readonly<Attr>, name: Name): Body<void> {
  checkFixed(attr);
  if (!cred.checkPermission || cred.uid === 0) return;
  const text = Buffer.from(name.buffer, name.byteOffset, Math.min(name.byteLength, 16)).toString('latin1');
  if (text.startsWith('trusted.')) throw EPERM;
  if (text.startsWith('user.')) {
    if (attr.type !== FileType.file && attr.type !== FileType.directory) throw EPERM;
    // A sticky directory's attributes are its owner's alone.
    if (attr.type === FileType.directory && (attr.mode & 0o1000) !== 0 && !isOwner(cred, attr)) throw EPERM;
    yield* checkAccess(tx, cred, attr, W);
  } else if (!isOwner(cred, attr)) throw EPERM;
}

function* touchCtime(tx: Tx, ino: Ino, attr: Readonly<Attr>): Body<Attr> {
  const next = { ...attr };
  setTime(next, 'ctime', tx.now);
  yield* tx.updateNode(ino, next);
  return yield* present(tx, ino, next);
}

/** mode: XATTR_CREATE 1, XATTR_REPLACE 2. */
export function* setxattr(tx: Tx, cred: Cred, ino: Ino, name: Name, value: Uint8Array, mode: number): Body<Attr> {
  if (name.length === 0) throw EINVAL;
  if (name.length > NAME_MAX || value.length > XATTR_VALUE_MAX) throw ERANGE;
  if (mode !== 0 && mode !== 1 && mode !== 2) throw EINVAL;
  const attr = yield* tx.nodeForUpdate(ino);
  if (attr === undefined) throw ENOENT;
  yield* checkXattr(tx, cred, attr, name);
  const old = yield* tx.xattr(ino, name);
  if (mode === 1 && old !== undefined) throw EEXIST;
  if (mode === 2 && old === undefined) throw ENODATA;
  // As ext4: the same value again changes nothing, not even ctime.
  if (old !== undefined && Buffer.compare(old, value) === 0) return yield* present(tx, ino, attr);
  yield* tx.setXattr(ino, name, value);
  yield* logChange(tx, 'SETXATTR', () => [inoArg(ino), name, value, mode]);
  return yield* touchCtime(tx, ino, attr);
}

export function* removexattr(tx: Tx, cred: Cred, ino: Ino, name: Name): Body<Attr> {
  const attr = yield* tx.nodeForUpdate(ino);
  if (attr === undefined) throw ENOENT;
  yield* checkXattr(tx, cred, attr, name);
  if ((yield* tx.xattr(ino, name)) === undefined) throw ENODATA;
  yield* tx.deleteXattr(ino, name);
  yield* logChange(tx, 'REMOVEXATTR', () => [inoArg(ino), name]);
  return yield* touchCtime(tx, ino, attr);
}

/** Names of the extended attributes, those of the ACL included. */
export function* listxattr(tx: Tx, ino: Ino): Body<Name[]> {
  const attr = yield* tx.node(ino);
  if (attr === undefined) throw ENOENT;
  const names = yield* tx.xattrNames(ino);
  if (attr.accessAcl !== 0) names.push(Buffer.from(ACL_NAMES.access));
  if (attr.defaultAcl !== 0) names.push(Buffer.from(ACL_NAMES.default));
  return names;
}

export function* setAcl(
  tx: Tx,
  cred: Cred,
  ino: Ino,
  kind: 'access' | 'default',
  rule: AclRule | undefined,
): Body<Attr> {
  if (!tx.volume.format.EnableACL) throw ENOTSUP;
  const cur = yield* tx.nodeForUpdate(ino);
  if (cur === undefined) throw ENOENT;
  if (cur.type === FileType.symlink) throw ENOTSUP;
  checkFixed(cur);
  if (!isOwner(cred, cur)) throw EPERM;
  if (kind === 'default' && cur.type !== FileType.directory) {
    if (rule !== undefined) throw EACCES;
    return yield* present(tx, ino, cur);
  }
  const next = { ...cur };
  if (kind === 'default') next.defaultAcl = rule === undefined ? 0 : yield* tx.aclId(rule);
  else {
    next.accessAcl = rule === undefined || isMinimalAcl(rule) ? 0 : yield* tx.aclId(rule);
    if (rule !== undefined) next.mode = (cur.mode & 0o7000) | aclMode(rule);
    if (cred.uid !== 0 && !inGroup(cred, cur.gid)) next.mode &= ~0o2000;
  }
  // To remove what is not there changes nothing.
  const had = kind === 'access' ? cur.accessAcl : cur.defaultAcl;
  if (rule === undefined && had === 0 && next.mode === cur.mode) return yield* present(tx, ino, cur);
  setTime(next, 'ctime', tx.now);
  yield* tx.updateNode(ino, next);
  yield* logChange(tx, 'SETFACL', () => [
    inoArg(ino),
    kind === 'access' ? 1 : 2,
    kind === 'access' ? next.accessAcl : next.defaultAcl,
  ]);
  return yield* present(tx, ino, next);
}

export function* getAcl(tx: Tx, ino: Ino, kind: 'access' | 'default'): Body<AclRule | undefined> {
  const attr = yield* tx.node(ino);
  if (attr === undefined) throw ENOENT;
  const id = kind === 'access' ? attr.accessAcl : attr.defaultAcl;
  return id === 0 ? undefined : yield* tx.acl(id);
}

/** Whether atime is due (spec/algorithms.md §6.5). */
export function atimeDue(attr: Readonly<Attr>, now: TimeSet, mode: Tx['volume']['atimeMode']): boolean {
  if (mode === 'noatime') return false;
  const before = (sec: number, nsec: number) => attr.atime < sec || (attr.atime === sec && attr.atimensec < nsec);
  const age = now.sec - attr.atime;
  return (
    before(attr.mtime, attr.mtimensec) ||
    before(attr.ctime, attr.ctimensec) ||
    age > 86400 ||
    (mode === 'strictatime' && age > 1)
  );
}

export function* touchAtime(tx: Tx, ino: Ino): Body<void> {
  const cur = yield* tx.nodeForUpdate(ino);
  if (cur === undefined || !atimeDue(cur, tx.now, tx.volume.atimeMode)) return;
  const next = { ...cur };
  setTime(next, 'atime', tx.now);
  yield* tx.updateNode(ino, next);
  yield* logChange(tx, 'ACCESS', () => [inoArg(ino)]);
}

/** The directories that have the inode, with the number of its entries in each. */
export function* parents(tx: Tx, ino: Ino): Body<Map<Ino, number>> {
  const attr = yield* tx.node(ino);
  if (attr === undefined) throw ENOENT;
  return yield* linksOf(tx, ino, attr);
}
