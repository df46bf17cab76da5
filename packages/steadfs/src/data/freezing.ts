/**
 * From open data to slices. Whole blocks move to growing slices at once (`carve`); a flush completes those and packs what is left (`freeze`). See writer.ts for the
 * order that this keeps.
 */
import { faultPoint } from '@steadfs/fuse/fault';
import { CHUNK_SIZE } from '../format/slice.ts';
import type { MetaEngine } from '../meta/engine.ts';
import { type BlockLayout, blockCount } from './blocks.ts';
import { type Chunk, firstAfter, makeSlice, type Slice } from './dirty.ts';
import type { Journal } from './journal.ts';
import type { Placing } from './placing.ts';
import { sleep } from './transfer.ts';
import { RETRY_FIRST, RETRY_MAX, type Trouble, text } from './trouble.ts';
import type { Uploads } from './uploads.ts';

/** Records of one packed slice at most. */
const RECORDS_PER_SLICE = 1000;
/** Slice ids fetched at once, and how few are left when the next are. */
const ID_BATCH = 256;
const ID_LOW = 32;
/** Open bytes, after a search for whole blocks, until the next one is worth it. */
const SCAN_STEP = 1024 * 1024;

export interface FreezingOptions {
  meta: MetaEngine;
  journal: Journal;
  layout: BlockLayout;
  trouble: Trouble;
  placing: Placing;
  uploads: Uploads;
  /** All blocks of a complete slice are in the store. */
  uploaded(slice: Slice): void;
  /** The objects of what is frozen in the chunk are to be durable. */
  wantDurable(chunk: Chunk): void;
  /** Nothing of the chunk is open any more. */
  emptied(chunk: Chunk): void;
  /** Slice ids are there again. */
  gotIds(): void;
}

export interface Freezing {
  /** Moves whole blocks of contiguous open bytes into growing slices and begins their upload. */
  carve(chunk: Chunk): void;
  /** Nothing of the chunk is open afterwards. False: a slice id or a record is missing; wait for {@link Freezing.resources}. */
  freeze(chunk: Chunk, durable?: boolean): boolean;
  /** Rejects only after stop(). */
  fetchIds(): Promise<void>;
  /** Waits for what a freeze lacked. */
  resources(): Promise<void>;
  /** Records have come free. */
  released(): void;
  /** Tries nothing again any more. */
  stop(): void;
}

export function createFreezing(options: FreezingOptions): Freezing {
  const { meta, journal, layout, trouble, placing, uploads } = options;
  const bs = layout.blockSize;
  /** Who waits for a record. */
  const waiting: (() => void)[] = [];
  let stopped = false;

  function carve(chunk: Chunk): void {
    const { open } = chunk;
    for (let i = 0; i < open.length; ) {
      const start = open[i]!.pos;
      let end = start;
      let j = i;
      while (j < open.length && open[j]!.pos === end) end += open[j++]!.len;
      let moved = false;
      for (let at = start; end - at >= bs; at += bs) {
        if (!placing.cut(chunk, at + bs)) break;
        const slice =
          chunk.slices.find(s => !s.complete && s.to === at && mayGrow(chunk, s, at + bs)) ?? newSlice(chunk, at);
        if (slice === undefined) break;
        let count = 0;
        while (open[i + count]!.pos + open[i + count]!.len < at + bs) count++;
        assign(chunk, slice, i, count + 1);
        journal.setBegun(slice.rec, ++slice.begun);
        faultPoint('slice.block-begun');
        uploads.push(slice, slice.begun - 1);
        moved = true;
        if (slice.to === CHUNK_SIZE) complete(slice);
      }
      // What was moved is no longer in the list; what is left of the piece is shorter than a block.
      if (!moved) i = j;
      else while (i < open.length && open[i]!.pos < end) i++;
    }
    chunk.scanAt = Math.max(bs, chunk.openBytes + Math.min(bs, SCAN_STEP));
    if (open.length === 0) options.emptied(chunk);
    else if (chunk.openBytes < bs) chunk.scanAt = bs;
    uploads.pump();
  }

  /** True when no later slice of the chunk overlaps [slice.to, end). */
  function mayGrow(chunk: Chunk, slice: Slice, end: number): boolean {
    for (let k = chunk.slices.length - 1; k >= 0; k--) {
      const s = chunk.slices[k]!;
      if (s === slice) return true;
      if (s.from < end && s.to > slice.to && s.extents.some(e => e.pos < end && e.pos + e.len > slice.to)) return false;
    }
    return true;
  }

  /** undefined: no id or no record at hand. */
  function newSlice(chunk: Chunk, from: number): Slice | undefined {
    const id = journal.nextId();
    // It rejects when the mount ends: nobody needs ids then.
    if (journal.idsLeft < ID_LOW) fetchIds().catch(() => {});
    if (id === undefined) return undefined;
    const seq = journal.nextSeq();
    const rec = journal.addSlice(chunk.file.ino, chunk.index, id, seq);
    if (rec === undefined) return undefined;
    const slice = makeSlice(chunk, rec, seq, id, from);
    chunk.slices.push(slice);
    faultPoint('slice.made');
    return slice;
  }

  /** Moves `count` open extents from index `i` on to the end of the slice. */
  function assign(chunk: Chunk, slice: Slice, i: number, count: number): void {
    const moved = chunk.open.splice(i, count);
    for (const e of moved) {
      e.off = slice.size;
      journal.assignExtent(e.rec, slice.rec, e.off);
      faultPoint('slice.extent-assigned');
      slice.extents.push(e);
      slice.size += e.len;
      slice.to = e.pos + e.len;
      placing.grew(chunk, -e.len);
    }
  }

  function complete(slice: Slice): void {
    slice.complete = true;
    journal.completeSlice(slice.rec, slice.size);
    for (; slice.begun < blockCount(layout, slice.size); slice.begun++) uploads.push(slice, slice.begun);
    if (slice.done.size === blockCount(layout, slice.size)) options.uploaded(slice);
  }

  function freeze(chunk: Chunk, durable = false): boolean {
    for (const slice of chunk.slices) {
      if (slice.complete) continue;
      const i = firstAfter(chunk.open, slice.to);
      let count = 0;
      for (let to = slice.to, e = chunk.open[i]; e !== undefined && e.pos === to; e = chunk.open[i + ++count]) {
        if (!mayGrow(chunk, slice, e.pos + e.len)) break;
        to += e.len;
      }
      if (count > 0) assign(chunk, slice, i, count);
      complete(slice);
    }
    while (chunk.open.length > 0) {
      const slice = newSlice(chunk, chunk.open[0]!.pos);
      if (slice === undefined) {
        if (durable) options.wantDurable(chunk);
        uploads.pump();
        return false;
      }
      let count = 0;
      let records = 0;
      let end = -1;
      for (; count < chunk.open.length; count++) {
        const e = chunk.open[count]!;
        if (e.pos !== end && ++records > RECORDS_PER_SLICE) break;
        end = e.pos + e.len;
      }
      assign(chunk, slice, 0, count);
      complete(slice);
    }
    options.emptied(chunk);
    // Before anything can be committed: the objects reach the disk before, or beside, their commit.
    if (durable) options.wantDurable(chunk);
    uploads.pump();
    return true;
  }

  let fetching: Promise<void> | undefined;
  function fetchIds(): Promise<void> {
    fetching ??= (async () => {
      try {
        for (let pause = RETRY_FIRST; ; pause = Math.min(RETRY_MAX, pause * 2)) {
          try {
            const first = await meta.newSliceIds(ID_BATCH);
            journal.giveIds(first, ID_BATCH);
            options.gotIds();
            return;
          } catch (error) {
            trouble.failing(`slice ids: ${text(error)}`);
            if (stopped) throw error;
            await sleep(pause);
          }
        }
      } finally {
        fetching = undefined;
      }
    })();
    return fetching;
  }

  async function resources(): Promise<void> {
    if (journal.idsLeft === 0) await fetchIds();
    else await new Promise<void>(go => waiting.push(go));
  }

  return {
    carve,
    freeze,
    fetchIds,
    resources,
    released() {
      for (const go of waiting.splice(0)) go();
    },
    stop() {
      stopped = true;
    },
  };
}
