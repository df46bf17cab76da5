/**
 * Reading: pending data first, then committed slices through the block cache. What is in memory is answered at once, without a promise and without a copy;
 * the pieces are held until the reply was written.
 */
import type { ReadOut } from '@steadfs/fuse';
import { EIO, ENXIO } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { CHUNK_SIZE, type Piece } from '../format/slice.ts';
import type { MetaEngine } from '../meta/engine.ts';
import { StoreError } from '../object/store.ts';
import { type BlockLayout, blockKey, blockLength } from './blocks.ts';
import type { BlockCache, CachedBlock } from './cache.ts';
import { type ChunkList, type ChunkLists, piecesOf } from './chunk-lists.ts';
import type { Waiting } from './file-data.ts';
import type { Memory, Run } from './memory.ts';
import { advance, createSessions, type Sessions } from './readahead.ts';
import { sleep, type Transfer } from './transfer.ts';
import { patiently } from './waiting.ts';
import type { Writer } from './writer.ts';

/** Blocks up to this size are always read whole. */
const SMALL_BLOCK = 128 * 1024;
const PAGE = 4096;
/** Reads of parts of one block after which the whole block is worth its memory. */
const WARM = 3;
const WARM_TRACKED = 1024;
/** Parts up to this size are taken at once where they are at hand. */
const AT_HAND = 256 * 1024;
/** Neighbouring parts are read one by one only up to this many pieces at a time (spec/algorithms.md §4.5). */
const ZEROS = 128 * 1024;

/** One piece of an answer: bytes in memory, or a part of a block that has to be read. */
type Item = { bytes: Uint8Array; run: Run | undefined } | Part;

interface Part {
  bytes: undefined;
  id: number;
  size: number;
  indx: number;
  /** In the block. */
  off: number;
  len: number;
}

const RUNS = Symbol('runs');
type Held = Uint8Array[] & { [RUNS]?: Run[] };

export interface ReaderOptions {
  meta: MetaEngine;
  memory: Memory;
  transfer: Transfer;
  cache: BlockCache;
  lists: ChunkLists;
  layout: BlockLayout;
  writer: Writer;
  ioRetries: number;
  /** Bytes that one handle reads ahead at most. */
  maxReadahead: number;
  /** Whole blocks read at a time because parts of them were wanted. */
  prefetch: number;
  warn(message: string): void;
  /** A read waits for the store. */
  storeAway(message: string): void;
  /** One was answered by it. */
  storeBack(): void;
  /** A chunk was read whose list has this many records. */
  sawRecords(ino: Ino, index: number, records: number): void;
}

export interface Reader {
  read(
    ino: Ino,
    fh: number,
    offset: number,
    size: number,
    length: number,
    waiting: Waiting,
  ): ReadOut | Promise<ReadOut>;
  release(out: ReadOut): void;
  seek(ino: Ino, offset: number, whence: number, length: number): Promise<number>;
  close(fh: number): void;
  /** Bytes [from, to) of a slice's block into `target`, for compaction. */
  copyBlock(id: number, size: number, indx: number, from: number, to: number, target: Uint8Array): Promise<void>;
}

export const SEEK_DATA = 3;

const EMPTY = new Uint8Array(0);

export function createReader(options: ReaderOptions): Reader {
  const { meta, memory, transfer, cache, lists, layout, writer } = options;
  const bs = layout.blockSize;
  const arenaBytes = memory.arena.bytes;
  // Touched once: a reply must not fault on it.
  const zeros = new Uint8Array(ZEROS).fill(0);
  const handles = new Map<number, Sessions>();
  const warm = new Map<number, number>();

  // ── what lies where ─────────────────────────────────────────────────────────────────────────────────────────────

  /** Adds what [from, to) of a chunk consists of. */
  function gather(ino: Ino, index: number, from: number, to: number, list: ChunkList | undefined, items: Item[]): void {
    writer.overlay(
      ino,
      index,
      from,
      to,
      (at, len, run) => items.push({ bytes: arenaBytes.subarray(at, at + len), run }),
      (a, b) => gatherCommitted(list!, a, b, items),
    );
  }

  function gatherCommitted(list: ChunkList, from: number, to: number, items: Item[]): void {
    const pieces = piecesOf(list);
    let low = 0;
    let high = pieces.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const p = pieces[middle]!;
      if (p.pos + p.len <= from) low = middle + 1;
      else high = middle;
    }
    let at = from;
    for (let i = low; i < pieces.length && at < to; i++) {
      const p = pieces[i]!;
      const stop = Math.min(to, p.pos + p.len);
      if (p.id === 0) addZeros(items, stop - at);
      else gatherSlice(p, p.off + at - p.pos, stop - at, items);
      at = stop;
    }
    if (at < to) addZeros(items, to - at);
  }

  function addZeros(items: Item[], len: number): void {
    for (; len > 0; len -= ZEROS) items.push({ bytes: len >= ZEROS ? zeros : zeros.subarray(0, len), run: undefined });
  }

  function gatherSlice(p: Piece, off: number, len: number, items: Item[]): void {
    while (len > 0) {
      const indx = Math.floor(off / bs);
      const inBlock = off - indx * bs;
      const k = Math.min(len, bs - inBlock);
      const block = cache.get(p.id, indx);
      if (block !== undefined) gatherBlock(block, inBlock, k, items);
      else items.push({ bytes: undefined, id: p.id, size: p.size, indx, off: inBlock, len: k });
      off += k;
      len -= k;
    }
  }

  function gatherBlock(block: CachedBlock, off: number, len: number, items: Item[]): void {
    const { segments } = block;
    let low = 0;
    let high = segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (segments[middle]!.off <= off) low = middle;
      else high = middle - 1;
    }
    for (let i = low; len > 0; i++) {
      const s = segments[i];
      if (s === undefined) throw EIO.because(`a cached block ends ${len} bytes early`);
      const skip = off - s.off;
      const k = Math.min(len, s.len - skip);
      items.push({ bytes: arenaBytes.subarray(s.at + skip, s.at + skip + k), run: s.run });
      off += k;
      len -= k;
    }
  }

  // ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function read(
    ino: Ino,
    fh: number,
    offset: number,
    size: number,
    length: number,
    waiting: Waiting,
  ): ReadOut | Promise<ReadOut> {
    const end = Math.min(offset + size, length);
    if (end <= offset) return EMPTY;
    // First, as it may make cached blocks give way.
    const sequential = lookAhead(ino, fh, offset, end, length);
    const items = gatherNow(ino, offset, end);
    if (items !== undefined) {
      if (items.every(i => i.bytes !== undefined)) return answer(items);
      const now = readNow(items, sequential);
      if (now !== undefined) return now;
    }
    return readLater(ino, offset, end, items, sequential, waiting);
  }

  function hold(item: { run: Run | undefined }, held: Run[]): void {
    if (item.run === undefined) return;
    memory.hold(item.run);
    held.push(item.run);
  }

  const isGone = (block: CachedBlock): boolean => block.segments.some(s => s.run.holders === 0);

  /** The answer when the parts that are missing are at hand in the store (the page cache of a local one): they are read at once and not cached again. */
  function readNow(items: readonly Item[], sequential: boolean): ReadOut | undefined {
    if (transfer.getNow === undefined) return undefined;
    const runs: Run[] = [];
    const all: Item[] = [];
    try {
      // The memory for the missing parts must not come from the blocks that have the others.
      for (const item of items) if (item.bytes !== undefined) hold(item, runs);
      for (const item of items) {
        if (item.bytes !== undefined) {
          all.push(item);
          continue;
        }
        const { id, size, indx, off, len } = item;
        if (len > AT_HAND || cache.loading(id, indx) !== undefined) return undefined;
        if (sequential && blockLength(layout, size, indx) > AT_HAND) return undefined;
        const run = memory.alloc(len);
        if (run === undefined) return undefined;
        runs.push(run);
        const bytes = arenaBytes.subarray(run.at, run.at + len);
        if (!transfer.getNow(blockKey(layout, id, size, indx), off, bytes)) return undefined;
        all.push({ bytes, run });
      }
      return answer(all);
    } finally {
      for (const run of runs) memory.drop(run);
    }
  }

  /** undefined: a chunk list has to be fetched first. */
  function gatherNow(ino: Ino, offset: number, end: number): Item[] | undefined {
    const items: Item[] = [];
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / CHUNK_SIZE);
      const from = at - index * CHUNK_SIZE;
      const to = Math.min(CHUNK_SIZE, from + end - at);
      let list = lists.peek(ino, index);
      if (list === undefined) {
        const got = lists.get(ino, index);
        if (got instanceof Promise) {
          // Whoever reads asks again and is told.
          got.catch(() => {});
          return undefined;
        }
        list = got;
        options.sawRecords(ino, index, list.records.length);
      }
      gather(ino, index, from, to, list, items);
      at += to - from;
    }
    return items;
  }

  /** The pieces, neighbours joined, their runs held. */
  function answer(items: readonly Item[]): ReadOut {
    const out: Held = [];
    const runs: Run[] = [];
    let last: Uint8Array | undefined;
    for (const item of items) {
      const bytes = item.bytes!;
      const { run } = item as { run: Run | undefined };
      if (run !== undefined && runs.at(-1) !== run) {
        memory.hold(run);
        runs.push(run);
      }
      if (
        last !== undefined &&
        run !== undefined &&
        last.buffer === bytes.buffer &&
        last.byteOffset + last.length === bytes.byteOffset
      ) {
        last = new Uint8Array(last.buffer, last.byteOffset, last.length + bytes.length);
        out[out.length - 1] = last;
      } else {
        out.push(bytes);
        last = bytes;
      }
    }
    out[RUNS] = runs;
    return out;
  }

  async function readLater(
    ino: Ino,
    offset: number,
    end: number,
    first: Item[] | undefined,
    sequential: boolean,
    waiting: Waiting,
  ): Promise<ReadOut> {
    let items = first;
    for (let failures = 0; ; ) {
      const held: Run[] = [];
      try {
        if (items === undefined) {
          for (let index = Math.floor(offset / CHUNK_SIZE); index * CHUNK_SIZE < end; index++)
            await patiently(Promise.resolve(lists.get(ino, index)), waiting);
          items = gatherNow(ino, offset, end);
          if (items === undefined) continue;
        }
        // What is in memory now must be there when the rest has come.
        for (const i of items) if (i.bytes !== undefined) hold(i, held);
        const wanted = items;
        // All of them are waited for: what came after a failure would keep its memory.
        const work = Promise.allSettled(
          wanted.map(async i => (i.bytes !== undefined ? [i] : await fetchAgain(i, sequential, held))),
        ).then(parts => {
          const failed = parts.find(p => p.status === 'rejected');
          if (failed !== undefined) throw failed.reason;
          return answer(parts.flatMap(p => (p.status === 'fulfilled' ? p.value : [])));
        });
        let abandoned = false;
        const settled = work.finally(() => {
          for (const run of held) memory.drop(run);
        });
        settled.then(
          out => {
            if (abandoned) release(out);
          },
          () => {},
        );
        try {
          const out = await patiently(settled, waiting);
          if (failures > 0) options.storeBack();
          return out;
        } catch (error) {
          abandoned = true;
          throw error;
        }
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        failures = await readFailed(ino, offset, end, error, failures, waiting);
        items = undefined;
      }
    }
  }

  /**
   * After a failed block: the list may be old (another client compacted the chunk and the object is gone), so it is read again. Throws EIO when that cannot
   * help. Answers the count of failures.
   */
  async function readFailed(
    ino: Ino,
    offset: number,
    end: number,
    error: StoreError,
    failures: number,
    waiting: Waiting,
  ): Promise<number> {
    failures++;
    const first = Math.floor(offset / CHUNK_SIZE);
    const last = Math.floor((end - 1) / CHUNK_SIZE);
    const before = [];
    for (let index = first; index <= last; index++) before.push(JSON.stringify(lists.peek(ino, index)?.records));
    lists.invalidate(ino, first, last);
    let changed = false;
    for (let index = first; index <= last; index++) {
      const list = await patiently(Promise.resolve(lists.get(ino, index)), waiting);
      if (JSON.stringify(list.records) !== before[index - first]) changed = true;
    }
    if (changed) return failures;
    if (error.away) {
      // The store will be back: the reader waits as writers do.
      options.storeAway(error.message);
      waiting.park();
      await patiently(sleep(Math.min(5000, 50 * 2 ** Math.min(failures, 10)) * (0.75 + Math.random() / 2)), waiting);
      return failures;
    }
    // The same list: an object that is missing or too short stays so; two more looks, for stores that are behind.
    const hopeless = error.kind === 'not-found' || error.kind === 'io' ? 3 : 0;
    if (
      failures > options.ioRetries ||
      (error.kind === 'not-found' && failures >= hopeless) ||
      (!error.retry && error.kind !== 'not-found')
    ) {
      options.warn(`read of inode ${ino} at ${offset} failed: ${error.message}`);
      throw EIO.because(`inode ${ino} at ${offset}: ${error.message}`, error);
    }
    waiting.park();
    await patiently(sleep(Math.min(10_000, (failures - 1) * 300 + 1)), waiting);
    return failures;
  }

  /** A transient failure of one part is tried again at once and after a moment, before the whole read is. */
  async function fetchAgain(part: Part, sequential: boolean, held: Run[]): Promise<Item[]> {
    for (let tries = 1; ; tries++) {
      try {
        return await fetch(part, sequential, held);
      } catch (error) {
        if (tries === 3 || !(error instanceof StoreError) || !error.retry || error.kind === 'timeout') throw error;
        await sleep(tries === 1 ? 5 : 100);
      }
    }
  }

  /** The bytes of a part of a block; runs that must stay until the answer is made are added to `held`. */
  async function fetch(part: Part, sequential: boolean, held: Run[]): Promise<Item[]> {
    const { id, size, indx, off, len } = part;
    const blockSize = blockLength(layout, size, indx);
    const under = cache.loading(id, indx);
    const whole =
      under ??
      (!transfer.seekable ||
      blockSize <= SMALL_BLOCK ||
      sequential ||
      len * 4 > blockSize ||
      warmed(id, indx, len, blockSize)
        ? cache.load(id, size, indx)
        : undefined);
    const items: Item[] = [];
    if (whole !== undefined) {
      const block = await whole;
      // It gave way to somebody between its arrival and our turn.
      if (isGone(block)) return await fetch(part, sequential, held);
      gatherBlock(block, off, len, items);
    } else {
      const run = memory.alloc(len);
      // No memory at all (everything is dirty or being sent): the reply of one request is outside of the ceiling rather than never.
      const target = run === undefined ? Buffer.allocUnsafeSlow(len) : arenaBytes.subarray(run.at, run.at + len);
      if (!transfer.seekable) {
        const block = Buffer.allocUnsafeSlow(blockSize);
        await transfer.getBlock(blockKey(layout, id, size, indx), block, () => {});
        target.set(block.subarray(off, off + len));
      } else {
        await transfer.getRange(blockKey(layout, id, size, indx), off, target, () => {
          if (run !== undefined) memory.drop(run);
        });
      }
      items.push({ bytes: target, run });
      if (run !== undefined) held.push(run);
      return items;
    }
    for (const i of items) if (i.bytes !== undefined) hold(i, held);
    return items;
  }

  /**
   * Counts reads of parts; true once the whole block should be read. That is a bet on its being kept: where others would have to give way for it, a quarter of it must have
   * been asked for.
   */
  function warmed(id: number, indx: number, len: number, blockSize: number): boolean {
    if (options.prefetch <= 0 || transfer.cachedBelow) return false;
    const key = id * 1024 + indx;
    const count = (warm.get(key) ?? 0) + 1;
    warm.delete(key);
    if (count >= WARM && (memory.used + bs <= memory.ceiling * 0.9 || count * len * 4 >= blockSize)) return true;
    warm.set(key, count);
    if (warm.size > WARM_TRACKED) warm.delete(warm.keys().next().value!);
    return false;
  }

  // ── read-ahead ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** Notes the read in its handle's sessions and starts what will be wanted next. True when the reads are sequential. */
  function lookAhead(ino: Ino, fh: number, offset: number, end: number, length: number): boolean {
    let sessions = handles.get(fh);
    if (sessions === undefined) {
      sessions = createSessions();
      handles.set(fh, sessions);
    }
    const budget = (memory.ceiling - memory.dirty) / 2;
    const session = advance(sessions, offset, end - offset, bs, Math.min(options.maxReadahead, budget / 2));
    if (session.ahead === 0) return false;
    const stop = Math.min(length, session.last + session.ahead);
    let at = Math.max(session.issued, end);
    // A stretch at a time, not for every read.
    if (stop - at < Math.min(bs / 2, length - end) || stop <= at) return true;
    while (at < stop) {
      const index = Math.floor(at / CHUNK_SIZE);
      const from = at - index * CHUNK_SIZE;
      const to = Math.min(CHUNK_SIZE, from + stop - at);
      const list = lists.peek(ino, index);
      if (list === undefined) {
        // Reading ahead fails in silence; the read that comes is told.
        void Promise.resolve(lists.get(ino, index)).catch(() => {});
        if (lists.peek(ino, index) === undefined) break;
        continue;
      }
      const items: Item[] = [];
      gather(ino, index, from, to, list, items);
      for (const i of items) {
        if (i.bytes !== undefined || cache.loading(i.id, i.indx) !== undefined) continue;
        const load = cache.load(i.id, i.size, i.indx);
        if (load === undefined) {
          session.issued = at;
          return true;
        }
        load.catch(() => {});
      }
      at += to - from;
    }
    session.issued = at;
    return true;
  }

  function release(out: ReadOut): void {
    const runs = (out as Held)[RUNS];
    if (runs === undefined) return;
    (out as Held)[RUNS] = [];
    for (const run of runs) memory.drop(run);
  }

  // ── seek ────────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * First position ≥ from in the chunk that is data (or hole), CHUNK_SIZE when there is none. A page with a byte of data is data, as on local file
   * systems: programs take what they find for the size of blocks.
   */
  async function firstOf(ino: Ino, index: number, from: number, data: boolean): Promise<number> {
    const list = await lists.get(ino, index);
    const origin = from - (from % PAGE);
    let at = origin;
    let hole = origin;
    let result = CHUNK_SIZE;
    const seen = (start: number, end: number): void => {
      if (result < CHUNK_SIZE || end <= start) return;
      const first = start - (start % PAGE);
      if (data) result = Math.max(first, from);
      else if (first > hole) result = Math.max(hole, from);
      else hole = Math.ceil(end / PAGE) * PAGE;
    };
    writer.overlay(
      ino,
      index,
      origin,
      CHUNK_SIZE,
      (_at, len) => {
        seen(at, at + len);
        at += len;
      },
      (a, b) => {
        for (const p of piecesOf(list)) if (p.id !== 0) seen(Math.max(p.pos, a), Math.min(p.pos + p.len, b));
        at = b;
      },
    );
    if (!data && result === CHUNK_SIZE) return Math.max(hole, from);
    return result;
  }

  async function seek(ino: Ino, offset: number, whence: number, length: number): Promise<number> {
    if (offset < 0 || offset >= length) throw ENXIO;
    const data = whence === SEEK_DATA;
    const last = Math.floor((length - 1) / CHUNK_SIZE);
    let index = Math.floor(offset / CHUNK_SIZE);
    let from = offset - index * CHUNK_SIZE;
    while (index <= last) {
      const found = await firstOf(ino, index, from, data);
      if (found < CHUNK_SIZE) {
        const at = index * CHUNK_SIZE + found;
        if (at < length) return at;
        break;
      }
      index++;
      from = 0;
      if (!data || index > last) continue;
      // Data: chunks without records are passed over.
      const committed = (await meta.listChunks(ino, index, last, 1))[0];
      const pending = writer.pendingChunks(ino).find(i => i >= index);
      const next = Math.min(committed ?? Number.POSITIVE_INFINITY, pending ?? Number.POSITIVE_INFINITY);
      if (next > last) break;
      index = next;
    }
    if (data) throw ENXIO;
    return length;
  }

  async function copyBlock(
    id: number,
    size: number,
    indx: number,
    from: number,
    to: number,
    target: Uint8Array,
  ): Promise<void> {
    const items: Item[] = [];
    let block = cache.get(id, indx);
    if (block === undefined) {
      const under = cache.loading(id, indx);
      if (under !== undefined) block = await under;
      else if (!transfer.seekable) {
        block = await cache.load(id, size, indx);
        if (block === undefined) throw new StoreError('io', 'no memory for a block');
      }
      if (block !== undefined) {
        if (isGone(block)) {
          await copyBlock(id, size, indx, from, to, target);
          return;
        }
      } else {
        await transfer.getRange(blockKey(layout, id, size, indx), from, target.subarray(0, to - from), () => {});
        return;
      }
    }
    gatherBlock(block, from, to - from, items);
    let at = 0;
    for (const i of items) {
      target.set(i.bytes!, at);
      at += i.bytes!.length;
    }
  }

  return { read, release, seek, copyBlock, close: fh => void handles.delete(fh) };
}
