/** Attributes as the kernel wants them. */
import type { FuseAttr } from '@steadfs/fuse';
import type { PendingAttr } from '../data/file-data.ts';
import { type Attr, FileType, typeMode } from '../format/attr.ts';
import type { TimeSet } from '../meta/engine.ts';

/** st_blksize of every inode (spec/volume.md §3). */
export const BLKSIZE = 65536;

/** What getdents' d_type says, by {@link FileType}. */
const DT: readonly number[] = [0, 8, 4, 10, 1, 6, 2, 12];

export function direntType(type: FileType): number {
  return DT[type] ?? 0;
}

/** Negative when a is before b. */
export function compareTime(aSec: number, aNsec: number, bSec: number, bNsec: number): number {
  return aSec - bSec || aNsec - bNsec;
}

export function now(): TimeSet {
  const ms = performance.timeOrigin + performance.now();
  const sec = Math.floor(ms / 1000);
  return { sec, nsec: Math.floor((ms - sec * 1000) * 1e6) };
}

/**
 * `shown` is st_ino. Data that is acknowledged but not committed yet (`pending`) makes the file longer, and its mtime counts: a program must
 * see its own writes. ctime follows it, unless mtime was set by hand to a time to come.
 */
export function fuseAttr(shown: number | bigint, a: Attr, pending: PendingAttr | undefined): FuseAttr {
  let size = a.length;
  let { mtime, mtimensec, ctime, ctimensec } = a;
  if (pending !== undefined && a.type === FileType.file) {
    if (pending.length > size) size = pending.length;
    mtime = pending.mtime.sec;
    mtimensec = pending.mtime.nsec;
    if (compareTime(mtime, mtimensec, ctime, ctimensec) > 0) {
      const t = now();
      if (compareTime(mtime, mtimensec, t.sec, t.nsec) <= 0) {
        ctime = mtime;
        ctimensec = mtimensec;
      }
    }
  }
  return {
    ino: shown,
    size,
    blocks: Math.ceil(size / 512),
    atime: a.atime,
    mtime,
    ctime,
    atimensec: a.atimensec,
    mtimensec,
    ctimensec,
    mode: typeMode(a.type) | a.mode,
    nlink: a.nlink,
    uid: a.uid,
    gid: a.gid,
    rdev: a.rdev,
    blksize: BLKSIZE,
  };
}

/** What an inode's content is told apart by: equal versions have equal content. */
export interface Version {
  mtime: number;
  mtimensec: number;
  ctime: number;
  ctimensec: number;
  length: number;
}

export function versionOf(a: Attr): Version {
  return { mtime: a.mtime, mtimensec: a.mtimensec, ctime: a.ctime, ctimensec: a.ctimensec, length: a.length };
}

export function sameVersion(v: Version, a: Attr): boolean {
  return (
    v.mtimensec === a.mtimensec &&
    v.mtime === a.mtime &&
    v.ctimensec === a.ctimensec &&
    v.ctime === a.ctime &&
    v.length === a.length
  );
}
