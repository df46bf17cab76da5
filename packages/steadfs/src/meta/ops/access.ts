/** Permission checks (spec/volume.md §15), and the shown link count. */
import { EACCES, EEXIST, EINVAL, ENAMETOOLONG, EPERM } from '@steadfs/fuse/errno';
import { aclAllows } from '../../format/acl.ts';
import { type Attr, FileType, Flag } from '../../format/attr.ts';
import { type Ino, isTrash } from '../../format/ino.ts';
import type { Cred, Name } from '../engine.ts';
import type { Body, Tx } from './tx.ts';

export const R = 4;
export const W = 2;
export const X = 1;

export const NAME_MAX = 255;
const DOT = 46;

/** Throws EACCES unless all bits of `mask` are granted. Only for callers whose permissions are ours to check. */
export function* checkAccess(tx: Tx, cred: Cred, attr: Readonly<Attr>, mask: number): Body<void> {
  if (!cred.checkPermission) return;
  if (!(yield* allows(tx, cred, attr, mask))) throw EACCES;
}

/** Linux's generic_permission: root may do all but execute a file that nobody may execute. */
export function* allows(tx: Tx, cred: Cred, attr: Readonly<Attr>, mask: number): Body<boolean> {
  if (cred.uid === 0) return (mask & X) === 0 || attr.type === FileType.directory || (attr.mode & 0o111) !== 0;
  if (attr.accessAcl !== 0 && (attr.mode & 0o070) !== 0) {
    const rule = yield* tx.acl(attr.accessAcl);
    if (rule !== undefined) return aclAllows(rule, attr.uid, attr.gid, cred.uid, gidsOf(cred), mask);
  }
  const bits = cred.uid === attr.uid ? attr.mode >> 6 : inGroup(cred, attr.gid) ? attr.mode >> 3 : attr.mode;
  return (bits & mask) === mask;
}

export function inGroup(cred: Cred, gid: number): boolean {
  return cred.gid === gid || cred.groups().includes(gid);
}

function gidsOf(cred: Cred): number[] {
  return [cred.gid, ...cred.groups()];
}

/** May the caller act as the owner (root may)? Always true where the kernel checks. */
export function isOwner(cred: Cred, attr: Readonly<Attr>): boolean {
  return !cred.checkPermission || cred.uid === 0 || cred.uid === attr.uid;
}

/** Throws EPERM when the sticky bit of the directory keeps the caller from removing or moving the entry. */
export function checkSticky(cred: Cred, dir: Readonly<Attr>, attr: Readonly<Attr>): void {
  if ((dir.mode & 0o1000) !== 0 && cred.uid !== 0 && cred.uid !== dir.uid && cred.uid !== attr.uid) throw EPERM;
}

/** Throws EPERM for an immutable or append-only inode. */
export function checkFixed(attr: Readonly<Attr>): void {
  if ((attr.flags & (Flag.immutable | Flag.append)) !== 0) throw EPERM;
}

/** For names that come into being. Throws EEXIST for "." and "..", EINVAL for empty ones and such with "/" or NUL, ENAMETOOLONG. */
export function checkNewName(name: Name): void {
  if (name.length > NAME_MAX) throw ENAMETOOLONG;
  if (name.length === 0 || name.includes(0) || name.includes(47)) throw EINVAL;
  if (name[0] === DOT && (name.length === 1 || (name.length === 2 && name[1] === DOT))) throw EEXIST;
}

/** The mode without suid, and without sgid when the group may execute (what a write or a change of owner does). */
export function withoutSuidgid(mode: number): number {
  return mode & ~(0o4000 | ((mode & 0o010) !== 0 ? 0o2000 : 0));
}

/** The same for a write or truncation by a caller without CAP_FSETID: one who is not in the group takes sgid away in any case (setattr_should_drop_sgid). */
export function modeAfterWrite(cred: Cred, mode: number, gid: number): number {
  const left = withoutSuidgid(mode);
  return (left & 0o2000) !== 0 && cred.uid !== 0 && !inGroup(cred, gid) ? left & ~0o2000 : left;
}

/**
 * Attributes as the vfs shows them, a copy: entries in the trash do not count in nlink. The stored number is the format's.
 */
export function* present(tx: Tx, ino: Ino, attr: Readonly<Attr>): Body<Attr> {
  return shown({ ...attr }, linksAreListed(attr) ? linksInTrash(yield* tx.parentsOf(ino)) : 0);
}

/** Whether its directories are in the parents map, not in the attributes, and matter to the link count. */
export const linksAreListed = (attr: Readonly<Attr>): boolean =>
  attr.parent === 0 && attr.nlink !== 0 && attr.type !== FileType.directory;

export function linksInTrash(links: Iterable<readonly [parent: Ino, count: number]>): number {
  let trashed = 0;
  for (const [parent, count] of links) if (isTrash(parent)) trashed += count;
  return trashed;
}

/** Makes the stored link count the one to be shown, in place: links in the trash do not count. `trashed`: those of an inode whose {@link linksAreListed}. */
export function shown(attr: Attr, trashed: number): Attr {
  if (attr.type === FileType.directory || attr.nlink === 0) return attr;
  if (attr.parent === 0) attr.nlink = Math.max(0, attr.nlink - trashed);
  else if (isTrash(attr.parent)) attr.nlink--;
  return attr;
}
