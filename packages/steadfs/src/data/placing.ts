/** Open data: written bytes as extents in the arena, disjoint and in order of position, each with its record in the journal. */
import type { WriteData } from '@steadfs/fuse';
import { faultPoint } from '@steadfs/fuse/fault';
import { CHUNK_SIZE } from '../format/slice.ts';
import { type Chunk, type Extent, firstAfter } from './dirty.ts';
import type { Journal } from './journal.ts';
import type { Memory, Run } from './memory.ts';

/** Shorter data is copied behind its predecessor instead of taking the request's pages. */
const TAKE_FROM = 16 * 1024;
/** Runs for small contiguous writes grow up to this. */
const RUN_MAX = 1024 * 1024;

export interface PlacingOptions {
  memory: Memory;
  journal: Journal;
  /** The first bytes of a chunk that had nothing open. */
  opened(chunk: Chunk): void;
  /** They could not be placed after all. */
  emptied(chunk: Chunk): void;
}

export interface Placing {
  /** Bytes that are open, in all chunks. */
  readonly total: number;
  /**
   * Puts `len` bytes of a request from `from` at a position of the chunk, over what is open there. False without memory or a record: some of it may be there, which
   * placing it again repairs.
   */
  place(chunk: Chunk, pos: number, data: WriteData, from: number, len: number): boolean;
  /** Makes `pos` a boundary between open extents. False without a record for the second half. */
  cut(chunk: Chunk, pos: number): boolean;
  /** Bytes became open, or are open no more (negative). */
  grew(chunk: Chunk, bytes: number): void;
}

export function createPlacing(options: PlacingOptions): Placing {
  const { memory, journal } = options;
  const { arena } = memory;
  let total = 0;

  function place(chunk: Chunk, pos: number, data: WriteData, from: number, len: number): boolean {
    const { open } = chunk;
    const end = pos + len;
    const clock = performance.now();
    if (open.length === 0) {
      chunk.since = clock;
      options.opened(chunk);
    }
    chunk.file.last = clock;
    let i = firstAfter(open, pos);
    for (let at = pos; at < end; ) {
      const e = open[i];
      const source = from + at - pos;
      if (e !== undefined && e.pos <= at) {
        const k = Math.min(end, e.pos + e.len) - at;
        arena.bytes.set(data.bytes.subarray(source, source + k), e.at + at - e.pos);
        at += k;
        i++;
        continue;
      }
      const stop = e === undefined ? end : Math.min(end, e.pos);
      const added = fillGap(chunk, i, at, data, source, stop - at);
      if (added < 0) {
        if (open.length === 0) options.emptied(chunk);
        return false;
      }
      i += added;
      at = stop;
    }
    return true;
  }

  /** Puts bytes where nothing is open, before index `i`. Answers how many extents were inserted, -1 without memory. */
  function fillGap(chunk: Chunk, i: number, pos: number, data: WriteData, source: number, len: number): number {
    const { open } = chunk;
    // What is taken cannot be given back: the record comes first.
    if (len === data.bytes.length && len >= TAKE_FROM && memory.room(len) && journal.hasExtent()) {
      const at = data.take();
      if (at !== undefined) {
        faultPoint('write.pages-taken');
        const run = memory.adoptTaken(at, len);
        run.used = at + len;
        return insert(chunk, i, pos, len, at, run) ? 1 : -1;
      }
    }
    const before = open[i - 1];
    const continues = before !== undefined && before.pos + before.len === pos;
    let near: number | undefined;
    let size = len;
    if (continues) {
      const { run } = before;
      if (before.at + before.len === run.used) {
        const k = Math.min(len, run.at + run.length - run.used);
        if (k > 0) {
          arena.bytes.set(data.bytes.subarray(source, source + k), run.used);
          run.used += k;
          before.len += k;
          faultPoint('write.bytes-appended');
          journal.setExtentLength(before.rec, before.len);
          grew(chunk, k);
          if (k === len) return 0;
          pos += k;
          source += k;
          len -= k;
          size = len;
        }
      }
      near = run.at + run.length;
      size = Math.max(len, Math.min(RUN_MAX, run.length * 2, CHUNK_SIZE - pos));
    }
    const run = memory.alloc(size, near) ?? (size > len ? memory.alloc(len) : undefined);
    if (run === undefined) return -1;
    arena.bytes.set(data.bytes.subarray(source, source + len), run.at);
    run.used = run.at + len;
    return insert(chunk, i, pos, len, run.at, run) ? 1 : -1;
  }

  /** The run's one holder becomes the extent. */
  function insert(chunk: Chunk, i: number, pos: number, len: number, at: number, run: Run): boolean {
    const rec = journal.addExtent(chunk.file.ino, chunk.index, at, run.at, run.length, pos, len);
    if (rec === undefined) {
      memory.drop(run);
      return false;
    }
    memory.markDirty(run);
    const extent: Extent = { rec, pos, len, at, run, off: 0 };
    if (i === chunk.open.length) chunk.open.push(extent);
    else chunk.open.splice(i, 0, extent);
    grew(chunk, len);
    return true;
  }

  function grew(chunk: Chunk, bytes: number): void {
    chunk.openBytes += bytes;
    total += bytes;
  }

  function cut(chunk: Chunk, pos: number): boolean {
    const i = firstAfter(chunk.open, pos - 1);
    const e = chunk.open[i]!;
    return e.pos + e.len === pos || split(chunk, i, pos);
  }

  /** Splits open extent `i` at position `pos`. False without a record for the second half. */
  function split(chunk: Chunk, i: number, pos: number): boolean {
    const e = chunk.open[i]!;
    const k = pos - e.pos;
    const rec = journal.addExtent(chunk.file.ino, chunk.index, e.at + k, e.run.at, e.run.length, pos, e.len - k);
    if (rec === undefined) return false;
    faultPoint('extent.before-cut');
    journal.setExtentLength(e.rec, k);
    faultPoint('extent.cut');
    memory.hold(e.run);
    memory.markDirty(e.run);
    chunk.open.splice(i + 1, 0, { rec, pos, len: e.len - k, at: e.at + k, run: e.run, off: 0 });
    e.len = k;
    return true;
  }

  return {
    get total() {
      return total;
    },
    place,
    cut,
    grew,
  };
}
