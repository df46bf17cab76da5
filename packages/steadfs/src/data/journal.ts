/**
 * What the data path keeps in the capsule, so that kill -9 loses no acknowledged write. Four sections of records, little endian:
 *
 *     'writers'  one per inode with pending data or an error to report (64 bytes)
 *        0 u32 state (1)      4 u32 errno not yet reported, 0 = none      8 f64 inode
 *       16 f64 mtime seconds 24 u32 mtime nanoseconds    28 u32 flags: 1 clear suid/sgid    32 u32 tier
 *       36 u32 nanoseconds and   40 f64 seconds of the last write (0: not noted)
 *     'extents'  one per piece of dirty data (64 bytes)
 *        0 u32 state (1)      4 u32 chunk index          8 f64 inode
 *       16 f64 arena offset of the first byte           24 f64 arena offset of its run    32 u32 length of the run
 *       36 u32 position in the chunk   40 u32 length     44 u32 slice record + 1, 0 = open (may still be overwritten)    48 u32 offset in the slice
 *     'slices'   one per slice on its way to the store (64 bytes)
 *        0 u32 state: 1 growing, 2 complete, 3 committed (its extents are garbage)    4 u32 chunk index    8 f64 inode
 *       16 f64 slice id      24 f64 seq: order of creation, and seq of the commit's Op (slot = index of this record)
 *       32 u32 blocks whose upload has begun (growing)  36 u32 size (complete)    40 u32, 44 u32 bits of blocks 0..63 that are in the store
 *       48 f64 when the first of them was (ms since 1970, 0 = not noted)
 *     'numbers'  one record (64 bytes)
 *        0 u32 state (1)      8 f64 last seq used       16 f64 next slice id    24 f64 end of the fetched slice ids
 *
 * Rules: a slice id and seq are taken in 'numbers' before they are stored elsewhere. Bytes are frozen once their extent names a slice that is complete, or growing with
 * a begun block that contains them; the record says so before the PUT. An extent that names a growing slice beyond its begun blocks is an open one (the process died
 * while it was being moved). When an extent is split the record of the new half is stored first; for a moment both describe the same bytes of the same pages.
 */
import type { Capsule, Records, SectionSpec } from '@steadfs/fuse';
import type { Ino } from '../format/ino.ts';
import type { TimeSet } from '../meta/engine.ts';

/** The sections, for checks before a take-over. */
export const DATA_SECTIONS: readonly SectionSpec[] = [
  { name: 'writers', version: 1, recordSize: 64, capacity: 1 << 18 },
  { name: 'extents', version: 1, recordSize: 64, capacity: 1 << 20 },
  { name: 'slices', version: 1, recordSize: 64, capacity: 1 << 16 },
  { name: 'numbers', version: 1, recordSize: 64, capacity: 1 },
];

export const SliceState = { growing: 1, complete: 2, committed: 3 } as const;
const LIVE = 1;
export const KILL_SUIDGID = 1;

export interface WriterRecord {
  rec: number;
  ino: Ino;
  errno: number;
  mtime: TimeSet;
  ctime: TimeSet;
  flags: number;
  tier: number;
}

export interface ExtentRecord {
  rec: number;
  ino: Ino;
  index: number;
  at: number;
  runAt: number;
  runLength: number;
  pos: number;
  len: number;
  /** Record of the slice, or -1. */
  slice: number;
  off: number;
}

export interface SliceRecord {
  rec: number;
  state: number;
  ino: Ino;
  index: number;
  id: number;
  seq: number;
  begun: number;
  size: number;
  doneLow: number;
  doneHigh: number;
  uploadedAt: number;
}

export interface Journal {
  /** All undefined when the section is full. `mtime` is the time of the write. */
  addWriter(ino: Ino, mtime: TimeSet, flags: number, tier: number): number | undefined;
  /** Written again. */
  setWritten(rec: number, time: TimeSet): void;
  setMtime(rec: number, mtime: TimeSet): void;
  setFlags(rec: number, flags: number): void;
  setErrno(rec: number, errno: number): void;
  freeWriter(rec: number): void;

  /** True when the next addExtent will find a record. */
  hasExtent(): boolean;
  addExtent(
    ino: Ino,
    index: number,
    at: number,
    runAt: number,
    runLength: number,
    pos: number,
    len: number,
    slice?: number,
    off?: number,
  ): number | undefined;
  setExtentLength(rec: number, len: number): void;
  assignExtent(rec: number, slice: number, off: number): void;
  openExtent(rec: number): void;
  freeExtent(rec: number): void;

  addSlice(ino: Ino, index: number, id: number, seq: number): number | undefined;
  setBegun(rec: number, blocks: number): void;
  /** Freezes the whole slice. */
  completeSlice(rec: number, size: number): void;
  setBlockDone(rec: number, block: number): void;
  /** Before the first setBlockDone. */
  setUploadedAt(rec: number, ms: number): void;
  clearBlocksDone(rec: number): void;
  commitSlice(rec: number): void;
  freeSlice(rec: number): void;

  nextSeq(): number;
  /** undefined: none left, fetch and giveIds. */
  nextId(): number | undefined;
  readonly idsLeft: number;
  giveIds(first: number, count: number): void;

  writers(): WriterRecord[];
  extents(): ExtentRecord[];
  slices(): SliceRecord[];
}

export function hasExtents(capsule: Capsule): boolean {
  return capsule.records(DATA_SECTIONS[1]!).live()[Symbol.iterator]().next().done !== true;
}

/** Claims the runs of all extents, for who reads requests into the arena and knows no more of the data than that. */
export function claimExtents(capsule: Capsule): void {
  const records = capsule.records(DATA_SECTIONS[1]!);
  const runs = new Map<number, number>();
  for (const rec of records.live()) {
    const o = records.offsetOf(rec);
    runs.set(records.cells.getFloat64(o + 24), records.cells.getUint32(o + 32));
  }
  for (const [at, length] of runs) capsule.arena.claim(at, length);
}

export function openJournal(capsule: Capsule): Journal {
  const [writers, extents, slices, numbers] = DATA_SECTIONS.map(spec => capsule.records(spec)) as [
    Records,
    Records,
    Records,
    Records,
  ];
  const w = writers.cells;
  const x = extents.cells;
  const s = slices.cells;
  const n = numbers.cells;
  if ([...numbers.live()].length === 0) {
    const rec = numbers.alloc();
    if (rec !== 0) throw new Error("the capsule's section 'numbers' has no record 0");
    n.setFloat64(8, 0);
    n.setFloat64(16, 0);
    n.setFloat64(24, 0);
    numbers.setState(0, LIVE);
  }
  let seq = n.getFloat64(8);
  let nextId = n.getFloat64(16);
  let endId = n.getFloat64(24);
  /** A free extent record kept for the next. */
  let spare: number | undefined;

  return {
    addWriter(ino, mtime, flags, tier) {
      const rec = writers.alloc();
      if (rec === undefined) return undefined;
      const o = writers.offsetOf(rec);
      w.setUint32(o + 4, 0);
      w.setFloat64(o + 8, ino);
      w.setFloat64(o + 16, mtime.sec);
      w.setUint32(o + 24, mtime.nsec);
      w.setUint32(o + 28, flags);
      w.setUint32(o + 32, tier);
      w.setUint32(o + 36, mtime.nsec);
      w.setFloat64(o + 40, mtime.sec);
      writers.setState(rec, LIVE);
      return rec;
    },
    setWritten(rec, time) {
      const o = writers.offsetOf(rec);
      w.setFloat64(o + 16, time.sec);
      w.setUint32(o + 24, time.nsec);
      w.setUint32(o + 36, time.nsec);
      w.setFloat64(o + 40, time.sec);
    },
    setMtime(rec, mtime) {
      const o = writers.offsetOf(rec);
      w.setFloat64(o + 16, mtime.sec);
      w.setUint32(o + 24, mtime.nsec);
    },
    setFlags: (rec, flags) => w.setUint32(writers.offsetOf(rec) + 28, flags),
    setErrno: (rec, errno) => w.setUint32(writers.offsetOf(rec) + 4, errno),
    freeWriter: rec => writers.free(rec),

    hasExtent() {
      spare ??= extents.alloc();
      return spare !== undefined;
    },
    addExtent(ino, index, at, runAt, runLength, pos, len, slice = -1, off = 0) {
      const rec = spare ?? extents.alloc();
      spare = undefined;
      if (rec === undefined) return undefined;
      const o = extents.offsetOf(rec);
      x.setUint32(o + 4, index);
      x.setFloat64(o + 8, ino);
      x.setFloat64(o + 16, at);
      x.setFloat64(o + 24, runAt);
      x.setUint32(o + 32, runLength);
      x.setUint32(o + 36, pos);
      x.setUint32(o + 40, len);
      x.setUint32(o + 44, slice + 1);
      x.setUint32(o + 48, off);
      extents.setState(rec, LIVE);
      return rec;
    },
    setExtentLength: (rec, len) => x.setUint32(extents.offsetOf(rec) + 40, len),
    assignExtent(rec, slice, off) {
      const o = extents.offsetOf(rec);
      x.setUint32(o + 48, off);
      x.setUint32(o + 44, slice + 1);
    },
    openExtent: rec => x.setUint32(extents.offsetOf(rec) + 44, 0),
    freeExtent: rec => extents.free(rec),

    addSlice(ino, index, id, sliceSeq) {
      const rec = slices.alloc();
      if (rec === undefined) return undefined;
      const o = slices.offsetOf(rec);
      s.setUint32(o + 4, index);
      s.setFloat64(o + 8, ino);
      s.setFloat64(o + 16, id);
      s.setFloat64(o + 24, sliceSeq);
      for (let at = 32; at < 56; at += 4) s.setUint32(o + at, 0);
      slices.setState(rec, SliceState.growing);
      return rec;
    },
    setBegun: (rec, blocks) => s.setUint32(slices.offsetOf(rec) + 32, blocks),
    completeSlice(rec, size) {
      s.setUint32(slices.offsetOf(rec) + 36, size);
      slices.setState(rec, SliceState.complete);
    },
    setBlockDone(rec, block) {
      if (block >= 64) return;
      const o = slices.offsetOf(rec) + 40 + (block >>> 5) * 4;
      s.setUint32(o, s.getUint32(o) | (1 << (block & 31)));
    },
    setUploadedAt: (rec, ms) => s.setFloat64(slices.offsetOf(rec) + 48, ms),
    clearBlocksDone(rec) {
      const o = slices.offsetOf(rec);
      s.setUint32(o + 40, 0);
      s.setUint32(o + 44, 0);
    },
    commitSlice: rec => slices.setState(rec, SliceState.committed),
    freeSlice: rec => slices.free(rec),

    nextSeq() {
      n.setFloat64(8, ++seq);
      return seq;
    },
    nextId() {
      if (nextId >= endId) return undefined;
      const id = nextId++;
      n.setFloat64(16, nextId);
      return id;
    },
    get idsLeft() {
      return endId - nextId;
    },
    giveIds(first, count) {
      // Emptied first: a kill between the stores wastes ids, and never makes a range of two halves.
      n.setFloat64(24, 0);
      n.setFloat64(16, first);
      n.setFloat64(24, first + count);
      nextId = first;
      endId = first + count;
    },

    writers: () =>
      [...writers.live()].map(rec => {
        const o = writers.offsetOf(rec);
        return {
          rec,
          errno: w.getUint32(o + 4),
          ino: w.getFloat64(o + 8),
          mtime: { sec: w.getFloat64(o + 16), nsec: w.getUint32(o + 24) },
          ctime: { sec: w.getFloat64(o + 40), nsec: w.getUint32(o + 36) },
          flags: w.getUint32(o + 28),
          tier: w.getUint32(o + 32),
        };
      }),
    extents: () =>
      [...extents.live()].map(rec => {
        const o = extents.offsetOf(rec);
        return {
          rec,
          index: x.getUint32(o + 4),
          ino: x.getFloat64(o + 8),
          at: x.getFloat64(o + 16),
          runAt: x.getFloat64(o + 24),
          runLength: x.getUint32(o + 32),
          pos: x.getUint32(o + 36),
          len: x.getUint32(o + 40),
          slice: x.getUint32(o + 44) - 1,
          off: x.getUint32(o + 48),
        };
      }),
    slices: () =>
      [...slices.live()].map(rec => {
        const o = slices.offsetOf(rec);
        return {
          rec,
          state: slices.state(rec),
          index: s.getUint32(o + 4),
          ino: s.getFloat64(o + 8),
          id: s.getFloat64(o + 16),
          seq: s.getFloat64(o + 24),
          begun: s.getUint32(o + 32),
          size: s.getUint32(o + 36),
          doneLow: s.getUint32(o + 40),
          doneHigh: s.getUint32(o + 44),
          uploadedAt: s.getFloat64(o + 48),
        };
      }),
  };
}
