/** Dirty data in memory: what a file has pending. The states are told in writer.ts. */
import type { Errno } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import type { Slice as SliceRec } from '../format/slice.ts';
import type { TimeSet } from '../meta/engine.ts';
import type { Run } from './memory.ts';

export interface Extent {
  rec: number;
  pos: number;
  len: number;
  /** Arena offset. */
  at: number;
  run: Run;
  /** Offset in the slice. */
  off: number;
}

export interface Slice {
  rec: number;
  seq: number;
  id: number;
  chunk: Chunk;
  /** In order of `off`; a growing slice's are contiguous in the chunk too. */
  extents: Extent[];
  size: number;
  /** First position and end, in the chunk. */
  from: number;
  to: number;
  complete: boolean;
  /** Blocks whose upload has begun, and those that are in the store. */
  begun: number;
  done: Set<number>;
  failures: number;
  uploadedAt: number;
  /** PUTs under way. */
  inFlight: number;
  committing: boolean;
  /** The file is gone, or the commit was refused. */
  dropped: boolean;
  /** To be released when its last PUT has ended. */
  releasing: boolean;
  /** Objects to be deleted then. */
  garbage: string[];
  /** fsync wants the objects on the disk: not yet asked, under way, done. */
  durable: 'no' | 'wanted' | 'syncing' | 'done';
  /** The store has it in memory (putNow). */
  atHand: boolean;
  /** Why a flush is told instead of waiting on. */
  stuck: Errno | undefined;
  waiters: (() => void)[];
  settled: boolean;
}

export interface Chunk {
  file: File;
  index: number;
  open: Extent[];
  openBytes: number;
  /** With this many open bytes the next search for whole blocks is worth it. */
  scanAt: number;
  since: number;
  slices: Slice[];
}

export interface File {
  ino: Ino;
  rec: number;
  chunks: Map<number, Chunk>;
  mtime: TimeSet;
  /** Time of the last write. */
  ctime: TimeSet;
  kill: boolean;
  tier: number;
  /** ms of the last write. */
  last: number;
  /** Committed length as far as known. */
  length: number;
  error: Errno | undefined;
  told: boolean;
  /** Nobody has it open and the kernel has forgotten it: an error would never be asked for. */
  unwanted: boolean;
  frozen: { from: number; to: number }[];
  unfreeze: (() => void)[];
}

export function makeSlice(chunk: Chunk, rec: number, seq: number, id: number, from: number): Slice {
  return {
    rec,
    seq,
    id,
    chunk,
    extents: [],
    size: 0,
    from,
    to: from,
    complete: false,
    begun: 0,
    done: new Set(),
    failures: 0,
    uploadedAt: 0,
    inFlight: 0,
    committing: false,
    dropped: false,
    releasing: false,
    garbage: [],
    durable: 'no',
    atHand: false,
    stuck: undefined,
    waiters: [],
    settled: false,
  };
}

/** Index of the first extent that ends behind `pos`. */
export function firstAfter(list: readonly Extent[], pos: number): number {
  let high = list.length;
  if (high === 0) return 0;
  const last = list[high - 1]!;
  if (last.pos + last.len <= pos) return high;
  let low = 0;
  while (low < high) {
    const middle = (low + high) >> 1;
    const e = list[middle]!;
    if (e.pos + e.len <= pos) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Index of the last extent that begins at or before `off` of its slice. */
export function lastAtOrBefore(list: readonly Extent[], off: number): number {
  let low = 0;
  let high = list.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (list[middle]!.off <= off) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** One record for each contiguous piece. */
export function recordsOf(slice: Slice): SliceRec[] {
  const records: SliceRec[] = [];
  for (const e of slice.extents) {
    const last = records.at(-1);
    if (last !== undefined && last.pos + last.len === e.pos && last.off + last.len === e.off) last.len += e.len;
    else records.push({ pos: e.pos, id: slice.id, size: slice.size, off: e.off, len: e.len });
  }
  return records;
}

/** Goes on with whoever waits for the slice. */
export function wake(slice: Slice): void {
  for (const go of slice.waiters.splice(0)) go();
}
