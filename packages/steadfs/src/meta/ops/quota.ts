/** Usage and limits (spec/volume.md §10): checked in the operation, accounted by the engine in batches. */
import { EDQUOT, ENOSPC } from '@steadfs/fuse/errno';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, isTrash, ROOT } from '../../format/ino.ts';
import type { Quota } from '../engine.ts';
import { type Body, type Tx, Usage } from './tx.ts';

/** What is known of limits and usage in this process: as stored at the last load, plus our own changes since. */
export interface Quotas {
  usedSpace: number;
  usedInodes: number;
  dirs: Map<Ino, Quota>;
  users: Map<number, Quota>;
  groups: Map<number, Quota>;
}

export function noQuotas(): Quotas {
  return { usedSpace: 0, usedInodes: 0, dirs: new Map(), users: new Map(), groups: new Map() };
}

/** Bytes that a length is charged as (spec/volume.md §3.1). */
export function align4K(length: number): number {
  return length === 0 ? 4096 : Math.ceil(length / 4096) * 4096;
}

export function spaceOf(attr: Readonly<Attr>): number {
  return attr.type === FileType.file ? align4K(attr.length) : 4096;
}

function exceeds(q: Quota | undefined, space: number, inodes: number): boolean {
  return (
    q !== undefined &&
    ((space > 0 && q.maxSpace > 0 && q.usedSpace + space > q.maxSpace) ||
      (inodes > 0 && q.maxInodes > 0 && q.usedInodes + inodes > q.maxInodes))
  );
}

/** The directory and its ancestors that have a quota. */
export function* quotaDirs(tx: Tx, dir: Ino): Body<Ino[]> {
  const { dirs } = tx.volume.quotas;
  const out: Ino[] = [];
  if (dirs.size === 0) return out;
  for (let at = dir, depth = 0; depth < 100_000; depth++) {
    if (dirs.has(at)) out.push(at);
    if (at === ROOT || at === 0 || isTrash(at)) break;
    const attr: Readonly<Attr> | undefined = yield* tx.node(at);
    if (attr === undefined) break;
    at = attr.parent;
  }
  return out;
}

/** Throws EDQUOT or ENOSPC when the growth does not fit: user, group, volume, then the directories. Only growth is checked. */
export function* checkQuota(
  tx: Tx,
  uid: number,
  gid: number,
  space: number,
  inodes: number,
  dirs: Iterable<Ino>,
): Body<void> {
  if (space <= 0 && inodes <= 0) return;
  const { quotas, format } = tx.volume;
  if (format.UserGroupQuota) {
    if (exceeds(quotas.users.get(uid), space, inodes) || exceeds(quotas.groups.get(gid), space, inodes)) throw EDQUOT;
  }
  if (space > 0 && format.Capacity && quotas.usedSpace + space > format.Capacity) throw ENOSPC;
  if (inodes > 0 && format.Inodes && quotas.usedInodes + inodes > format.Inodes) throw ENOSPC;
  for (const dir of dirs) yield* checkDirQuota(tx, dir, space, inodes);
}

/** Throws EDQUOT when a quota at or above the directory does not allow the growth; those in `except` are not asked. */
export function* checkDirQuota(
  tx: Tx,
  dir: Ino,
  space: number,
  inodes: number,
  except: readonly Ino[] = [],
): Body<void> {
  const { dirs } = tx.volume.quotas;
  if (dirs.size === 0) return;
  for (const d of yield* quotaDirs(tx, dir))
    if (!except.includes(d) && exceeds(dirs.get(d), space, inodes)) throw EDQUOT;
}

/** Usage below a directory, itself not counted; a quota on it answers at once. Linear in the tree otherwise. */
export function* treeUsage(tx: Tx, dir: Ino): Body<{ space: number; inodes: number }> {
  const quota = tx.volume.quotas.dirs.get(dir);
  if (quota !== undefined) return { space: quota.usedSpace, inodes: quota.usedInodes };
  const sum = { space: 0, inodes: 0 };
  const todo = [dir];
  for (let at = todo.pop(); at !== undefined; at = todo.pop()) {
    let after: Uint8Array | undefined;
    for (;;) {
      const page: { name: Uint8Array; ino: Ino; type: FileType }[] = yield* tx.entries(at, after, 1000);
      for (const e of page) {
        const attr: Readonly<Attr> | undefined = yield* tx.node(e.ino);
        if (attr === undefined) continue;
        sum.space += spaceOf(attr);
        sum.inodes++;
        if (e.type === FileType.directory) todo.push(e.ino);
      }
      if (page.length < 1000) break;
      after = page.at(-1)!.name;
    }
  }
  return sum;
}

/** A whole tree comes to or leaves the quotas at and above a directory. */
export function* accountTree(tx: Tx, dir: Ino, space: number, inodes: number): Body<void> {
  for (const d of yield* quotaDirs(tx, dir)) tx.account(Usage.dirQuota, d, 0, space, inodes);
}

/** An inode comes (1) or goes (-1): volume counters, its owner's usage. */
export function accountInode(tx: Tx, attr: Readonly<Attr>, sign: 1 | -1): void {
  accountOwner(tx, attr.uid, attr.gid, sign * spaceOf(attr), sign);
  tx.account(Usage.volume, 0, 0, sign * spaceOf(attr), sign);
}

export function accountOwner(tx: Tx, uid: number, gid: number, space: number, inodes: number): void {
  if (!tx.volume.format.UserGroupQuota) return;
  tx.account(Usage.user, uid, 0, space, inodes);
  tx.account(Usage.group, gid, 0, space, inodes);
}

/** `count` entries of an inode come to (or leave) a directory: its statistics and the quotas above it. */
export function* accountEntry(tx: Tx, dir: Ino, attr: Readonly<Attr>, count: number): Body<void> {
  const length = attr.type === FileType.file ? attr.length : 0;
  yield* accountDir(tx, dir, count * length, count * spaceOf(attr), count);
}

function* accountDir(tx: Tx, dir: Ino, length: number, space: number, inodes: number): Body<void> {
  if (!tx.volume.format.DirStats) return;
  tx.account(Usage.dirStat, dir, length, space, inodes);
  if (tx.volume.quotas.dirs.size === 0) return;
  for (const d of yield* quotaDirs(tx, dir)) tx.account(Usage.dirQuota, d, 0, space, inodes);
}

/** The directories that have entries of the inode, with their number. */
export function* linksOf(tx: Tx, ino: Ino, attr: Readonly<Attr>): Body<Map<Ino, number>> {
  if (attr.nlink === 0) return new Map();
  return attr.parent !== 0 ? new Map([[attr.parent, 1]]) : yield* tx.parentsOf(ino);
}

/** A file's length changes. `check` is false where the growth has been checked. */
export function* accountLength(tx: Tx, ino: Ino, attr: Readonly<Attr>, length: number): Body<void> {
  const space = align4K(length) - align4K(attr.length);
  const bytes = length - attr.length;
  if (bytes === 0) return;
  const links = yield* linksOf(tx, ino, attr);
  if (space > 0) yield* checkQuota(tx, attr.uid, attr.gid, space, 0, links.keys());
  if (space !== 0) {
    tx.account(Usage.volume, 0, 0, space, 0);
    accountOwner(tx, attr.uid, attr.gid, space, 0);
  }
  for (const [dir, count] of links) yield* accountDir(tx, dir, bytes * count, space * count, 0);
}
