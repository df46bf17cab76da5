/** Attributes as the kernel wants them. */
import type { FuseAttr } from '@steadfs/fuse';
import type { PendingAttr } from '../data/file-data.ts';
import { type Attr, FileType, typeMode } from '../format/attr.ts';
import type { TimeSet } from '../meta/engine.ts';

/** st_blksize of every inode (spec/volume.md §3). */
const BLKSIZE = 65536;

/** What getdents' d_type says, by {@link FileType}. */
const DT: readonly number[] = [0, 8, 4, 10, 1, 6, 2, 12];

export function direntType(type: FileType): number {
  return DT[type] ?? 0;
}

/** Seconds that every engine can store: SQL databases have microseconds in 64 bits (spec/meta-sql.md). */
const TIME_MAX = 9_223_372_036_854;

/** A time as close to the wanted one as can be stored, as local file systems do it (utimensat(2) with a time out of range succeeds). */
export function storable(t: TimeSet): TimeSet {
  if (t.sec >= TIME_MAX) return { sec: TIME_MAX, nsec: 0 };
  return t.sec < -TIME_MAX ? { sec: -TIME_MAX, nsec: 0 } : t;
}

/** Negative when a is before b. */
function compareTime(aSec: number, aNsec: number, bSec: number, bNsec: number): number {
  return aSec - bSec || aNsec - bNsec;
}

/**
 * Attributes as they will be when what is acknowledged but not committed yet (`pending`) is: a program must see its own writes, and the commit
 * itself must change nothing that it sees. A change of attributes after the write keeps its ctime.
 */
export function withPending(a: Attr, pending: PendingAttr | undefined): Attr {
  if (pending === undefined || a.type !== FileType.file) return a;
  const { mtime, ctime } = pending;
  const later = compareTime(ctime.sec, ctime.nsec, a.ctime, a.ctimensec) > 0;
  return {
    ...a,
    length: Math.max(a.length, pending.length),
    mtime: mtime.sec,
    mtimensec: mtime.nsec,
    ctime: later ? ctime.sec : a.ctime,
    ctimensec: later ? ctime.nsec : a.ctimensec,
  };
}

/** `shown` is st_ino. */
export function fuseAttr(shown: number | bigint, stored: Attr, pending: PendingAttr | undefined): FuseAttr {
  const a = withPending(stored, pending);
  return {
    ino: shown,
    size: a.length,
    blocks: Math.ceil(a.length / 512),
    atime: a.atime,
    mtime: a.mtime,
    ctime: a.ctime,
    atimensec: a.atimensec,
    mtimensec: a.mtimensec,
    ctimensec: a.ctimensec,
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
