/** Attributes without writing all of their fields down. */
import type { BigIntStats } from 'node:fs';
import type { FuseAttr } from './types.ts';

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;

/** `some`, and for the rest: owned by this process, empty, one link (a directory two), times of 1970, blocks as the size says. */
export function attributes(some: Pick<FuseAttr, 'ino' | 'mode'> & Partial<FuseAttr>): FuseAttr {
  const size = some.size ?? 0;
  return {
    size,
    blocks: Math.ceil(size / 512),
    atime: 0,
    mtime: 0,
    ctime: 0,
    atimensec: 0,
    mtimensec: 0,
    ctimensec: 0,
    nlink: (some.mode & S_IFMT) === S_IFDIR ? 2 : 1,
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    rdev: 0,
    blksize: 4096,
    ...some,
  };
}

const SECOND = 1_000_000_000n;
/** Seconds (rounded down) and nanoseconds. */
function parts(ns: bigint): [number, number] {
  const rest = ((ns % SECOND) + SECOND) % SECOND;
  return [Number((ns - rest) / SECOND), Number(rest)];
}

/** What `fs.stat` with `{ bigint: true }` answers, to the nanosecond. */
export function attributesOf(stats: BigIntStats): FuseAttr {
  const [atime, atimensec] = parts(stats.atimeNs);
  const [mtime, mtimensec] = parts(stats.mtimeNs);
  const [ctime, ctimensec] = parts(stats.ctimeNs);
  const [btime, btimensec] = parts(stats.birthtimeNs);
  return {
    ino: stats.ino,
    size: Number(stats.size),
    blocks: Number(stats.blocks),
    atime,
    mtime,
    ctime,
    atimensec,
    mtimensec,
    ctimensec,
    mode: Number(stats.mode),
    nlink: Number(stats.nlink),
    uid: Number(stats.uid),
    gid: Number(stats.gid),
    rdev: Number(stats.rdev),
    blksize: Number(stats.blksize),
    btime,
    btimensec,
  };
}
