/**
 * Dirty data: from WRITE to the committed slice.
 *
 * A file's pending data is kept per chunk of 64 MiB. Newest on top there is the *open* set: extents, disjoint and sorted, that later writes may still overwrite
 * in place. Below it lie the slices in order of creation, whose bytes are frozen. Bytes leave the open set for a slice in two ways:
 * - early: as soon as a whole block of contiguous bytes is there it moves to a *growing* slice and is uploaded at once. A growing slice takes further bytes
 *   only where it ends and only while no later slice of the chunk overlaps them, so that committing in order of creation gives the newest bytes the last word.
 * - at a flush (fsync, close, age, memory): growing slices take what continues them and are complete; what is left is packed into one more slice with a record
 *   for each contiguous piece.
 * A slice is committed when all its blocks are in the store, after the slices before it in its chunk, and, when it makes the file longer, after what makes it
 * longer in lower chunks.
 */
import type { WriteData } from '@steadfs/fuse';
import { EDQUOT, EFBIG, EINVAL, EIO, ENOENT, ENOSPC, EPERM, EROFS, type Errno, errnoOf } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { Attr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import { CHUNK_SIZE } from '../format/slice.ts';
import { now } from '../meta/clock.ts';
import { type MetaEngine, OpKind, type TimeSet, type WriteResult } from '../meta/engine.ts';
import { type BlockLayout, blockCount, blockKey } from './blocks.ts';
import type { BlockCache, Segment } from './cache.ts';
import type { ChunkLists } from './chunk-lists.ts';
import { type Chunk, type Extent, type File, firstAfter, makeSlice, recordsOf, type Slice } from './dirty.ts';
import type { PendingAttr, Waiting } from './file-data.ts';
import { type Journal, KILL_SUIDGID } from './journal.ts';
import { type Memory, type Run, roundToPages } from './memory.ts';
import { restore } from './recovery.ts';
import { sleep, type Transfer } from './transfer.ts';
import { createTrouble, RETRY_FIRST, RETRY_MAX, text } from './trouble.ts';
import { createUnsynced } from './unsynced.ts';
import { createUploads } from './uploads.ts';
import { patiently } from './waiting.ts';

/** Shorter data is copied behind its predecessor instead of taking the request's pages. */
const TAKE_FROM = 16 * 1024;
/** Runs for small contiguous writes grow up to this. */
const RUN_MAX = 1024 * 1024;
/** Records of one packed slice at most. */
const RECORDS_PER_SLICE = 1000;
/** ms without a write to the file, and since the chunk's first, after which open data is flushed. */
const IDLE = 1000;
const AGE = 15_000;
/** `juicefs gc` removes unreferenced objects after an hour: blocks that wait for their commit that long are uploaded again. */
const UPLOAD_VALID = 45 * 60_000;
/** Slice ids fetched at once. */
const ID_BATCH = 256;

export interface WriterOptions {
  meta: MetaEngine;
  memory: Memory;
  journal: Journal;
  transfer: Transfer;
  cache: BlockCache;
  lists: ChunkLists;
  layout: BlockLayout;
  /** Objects → durable. */
  syncObjects(keys: readonly string[]): Promise<void>;
  /** Everything that any process put on this machine → durable; where the store has it. */
  syncStore(): Promise<void>;
  deleteObject(key: string): Promise<void>;
  warn(message: string): void;
  /** What uploads and commits wait for; undefined: nothing any more. */
  trouble(message: string | undefined): void;
  /** After a commit: attributes as stored, and the raw records that the chunk has now. */
  committed(ino: Ino, index: number, result: WriteResult): void;
  /**
   * The session's op records are lost (it was cleaned up while nobody served): a replayed commit cannot be recognised by them, so recovery looks for the slice in the
   * chunk first.
   */
  outcomesUnknown: boolean;
  /** True when the chunk has so many records that the next commit has to wait for a compaction. */
  compactFirst(ino: Ino, index: number): Promise<void> | undefined;
}

export interface Writer {
  /** What is pending of the files in `giveUp` is not stored: their writers get EIO. */
  recover(giveUp?: ReadonlySet<Ino>): Promise<void>;
  write(ino: Ino, offset: number, data: WriteData, attr: Attr, kill: boolean, waiting: Waiting): void | Promise<void>;
  /** Calls `found` for the pending pieces of [from, to) of a chunk in order, and `gap` for what lies between. */
  overlay(
    ino: Ino,
    index: number,
    from: number,
    to: number,
    found: (at: number, len: number, run: Run) => void,
    gap: (from: number, to: number) => void,
  ): void;
  pending(ino: Ino): PendingAttr | undefined;
  pendingChunks(ino: Ino): number[];
  /** Any data of the chunk that is not committed. */
  hasPending(ino: Ino, index: number): boolean;
  setMtime(ino: Ino, mtime: TimeSet): void;
  flush(ino: Ino, waiting: Waiting | undefined, durable: boolean): Promise<void>;
  freeze(ino: Ino, offset: number, length: number): Promise<{ done(): void }>;
  flushAll(): Promise<void>;
  drop(ino: Ino): void;
  closed(ino: Ino): void;
  forgotten(ino: Ino): void;
  readonly trouble: { since: number; message: string } | undefined;
  readonly dirtyMax: number;
  shutdown(): Promise<void>;
}

export function createWriter(options: WriterOptions): Writer {
  const { meta, memory, journal, transfer, cache, lists, layout } = options;
  const { arena } = memory;
  const bs = layout.blockSize;
  const files = new Map<Ino, File>();
  /** Chunks with open data or a growing slice. */
  const openChunks = new Set<Chunk>();
  let openTotal = 0;
  /** Room that reads always have: dirty data never fills all. */
  const dirtyMax = Math.floor(memory.ceiling - Math.min(memory.ceiling / 2, Math.max(memory.ceiling / 8, 4 * bs)));
  const pressure = dirtyMax * 0.6;
  /** Writes that wait for memory, in order. */
  const writers: (() => void)[] = [];
  /** Arena offsets of the runs that recovery claimed. */
  const recoveredRuns = new Set<number>();
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;

  const trouble = createTrouble(options.trouble);
  const { failing, recovered } = trouble;
  const unsynced = createUnsynced({
    trouble,
    syncObjects: options.syncObjects,
    syncStore: options.syncStore,
  });
  const uploads = createUploads({
    memory,
    journal,
    transfer,
    layout,
    trouble,
    uploaded,
    idle: release,
    stuck(slice) {
      wake(slice);
      if (slice.stuck === ENOSPC) for (const go of writers.splice(0)) go();
    },
  });
  memory.freed = wakeWriters;

  // ── files and chunks ────────────────────────────────────────────────────────────────────────────────────────────

  function newFile(ino: Ino): File {
    const file: File = {
      ino,
      rec: -1,
      chunks: new Map(),
      mtime: { sec: 0, nsec: 0 },
      ctime: { sec: 0, nsec: 0 },
      kill: false,
      tier: 0,
      last: 0,
      length: 0,
      error: undefined,
      told: false,
      unwanted: false,
      frozen: [],
      unfreeze: [],
    };
    files.set(ino, file);
    return file;
  }

  function newChunk(file: File, index: number): Chunk {
    const chunk: Chunk = { file, index, open: [], openBytes: 0, scanAt: bs, since: 0, slices: [] };
    file.chunks.set(index, chunk);
    return chunk;
  }

  /** Forgets what holds nothing any more. */
  function tidy(file: File): void {
    if (file.chunks.size > 0 || file.error !== undefined || file.frozen.length > 0) return;
    if (file.rec >= 0) journal.freeWriter(file.rec);
    file.rec = -1;
    if (files.get(file.ino) === file) files.delete(file.ino);
  }

  function tidyChunk(chunk: Chunk): void {
    if (chunk.open.length > 0 || chunk.slices.length > 0) return;
    if (chunk.file.chunks.get(chunk.index) === chunk) chunk.file.chunks.delete(chunk.index);
    tidy(chunk.file);
  }

  // ── write ───────────────────────────────────────────────────────────────────────────────────────────────────────

  function write(
    ino: Ino,
    offset: number,
    data: WriteData,
    attr: Attr,
    kill: boolean,
    waiting: Waiting,
  ): void | Promise<void> {
    const n = data.bytes.length;
    if (n === 0) return;
    if (offset + n > Number.MAX_SAFE_INTEGER) throw EFBIG;
    if (waiting.replay && isRecovered(data.bytes)) return;
    const file = files.get(ino) ?? newFile(ino);
    file.unwanted = false;
    if (file.chunks.size === 0) {
      file.length = attr.length;
      file.tier = attr.tier;
    } else if (attr.length > file.length && file.length > 0) file.length = attr.length;
    if (file.error !== undefined) throw told(file);
    if (writers.length === 0 && !isFrozen(file, offset, n) && tryPlace(file, offset, data, kill)) return;
    return writeLater(ino, offset, data, attr, kill, waiting);
  }

  /** The way of a write that has to wait: for memory in its turn, for a truncation to end. */
  async function writeLater(
    ino: Ino,
    offset: number,
    data: WriteData,
    attr: Attr,
    kill: boolean,
    waiting: Waiting,
  ): Promise<void> {
    waiting.park();
    // What changed the file while we waited for it may have made it shorter than the attributes say; a length that is too small is only careful.
    let length = attr.length;
    for (let first = true; ; first = false) {
      const file = files.get(ino) ?? newFile(ino);
      if (file.chunks.size === 0 && file.length === 0) {
        file.length = length;
        file.tier = attr.tier;
      }
      if (file.error !== undefined) throw told(file);
      if (isFrozen(file, offset, data.bytes.length)) {
        await patiently(new Promise<void>(go => file.unfreeze.push(go)), waiting);
        length = 0;
        continue;
      }
      // Only who waits at the head may go: the first look was made by write().
      if ((!first || writers.length === 0) && tryPlace(file, offset, data, kill)) {
        wakeWriters();
        return;
      }
      const stuck = firstStuck();
      if (stuck !== undefined) throw stuck;
      relieve(true);
      let go!: () => void;
      const turn = new Promise<void>(resolve => {
        go = resolve;
      });
      if (first) writers.push(go);
      else writers.unshift(go);
      // Memory may come free in ways that nobody reports (other users of the arena).
      const again = setTimeout(go, 250);
      try {
        await patiently(turn, waiting);
      } finally {
        clearTimeout(again);
        const i = writers.indexOf(go);
        if (i >= 0) writers.splice(i, 1);
        tidy(file);
      }
    }
  }

  /**
   * True for the data of a repeated request whose pages the process before took: an extent has it whole, recovery found it, and since then the pages may have been
   * committed and used for something else.
   */
  function isRecovered(bytes: Uint8Array): boolean {
    return bytes.buffer === arena.bytes.buffer && recoveredRuns.has(bytes.byteOffset - arena.bytes.byteOffset);
  }

  let waking = false;
  function wakeWriters(): void {
    if (writers.length === 0 || waking) return;
    waking = true;
    queueMicrotask(() => {
      waking = false;
      if (memory.dirty < dirtyMax) writers.shift()?.();
    });
  }

  /** A store that is full and will not take what fills the memory: writers are told instead of waiting for ever. */
  function firstStuck(): Errno | undefined {
    if (trouble.now === undefined) return undefined;
    for (const file of files.values())
      for (const chunk of file.chunks.values()) for (const s of chunk.slices) if (s.stuck === ENOSPC) return ENOSPC;
    return undefined;
  }

  function isFrozen(file: File, offset: number, length: number): boolean {
    return file.frozen.some(f => offset < f.to && offset + length > f.from);
  }

  /** All or nothing may be told: what was placed before memory ran out is placed again by the next try. */
  function tryPlace(file: File, offset: number, data: WriteData, kill: boolean): boolean {
    const n = data.bytes.length;
    if (memory.dirty + roundToPages(n) + 8192 > dirtyMax) {
      relieve(true);
      return false;
    }
    const mtime = now();
    if (file.rec < 0) {
      const rec = journal.addWriter(file.ino, mtime, kill ? KILL_SUIDGID : 0, file.tier);
      if (rec === undefined) return false;
      file.rec = rec;
      file.kill = kill;
    } else {
      journal.setWritten(file.rec, mtime);
      if (kill && !file.kill) {
        file.kill = true;
        journal.setFlags(file.rec, KILL_SUIDGID);
      }
    }
    file.mtime = file.ctime = mtime;
    let placed = true;
    for (let at = 0; at < n && placed; ) {
      const index = Math.floor((offset + at) / CHUNK_SIZE);
      const pos = offset + at - index * CHUNK_SIZE;
      const len = Math.min(n - at, CHUNK_SIZE - pos);
      const chunk = file.chunks.get(index) ?? newChunk(file, index);
      placed = placeInChunk(chunk, pos, data, at, len);
      if (!placed) tidyChunk(chunk);
      at += len;
    }
    if (openTotal > pressure || memory.dirty > dirtyMax * 0.85) relieve(false);
    return placed;
  }

  function placeInChunk(chunk: Chunk, pos: number, data: WriteData, from: number, len: number): boolean {
    const { open } = chunk;
    const end = pos + len;
    const clock = performance.now();
    if (open.length === 0) {
      chunk.since = clock;
      openChunks.add(chunk);
      arm(IDLE);
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
        if (open.length === 0) closeOpen(chunk);
        return false;
      }
      i += added;
      at = stop;
    }
    if (chunk.openBytes >= chunk.scanAt) carve(chunk);
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
    openTotal += bytes;
  }

  // ── from open to frozen ─────────────────────────────────────────────────────────────────────────────────────────

  /** Moves whole blocks of contiguous open bytes into growing slices and begins their upload. */
  function carve(chunk: Chunk): void {
    const { open } = chunk;
    for (let i = 0; i < open.length; ) {
      const start = open[i]!.pos;
      let end = start;
      let j = i;
      while (j < open.length && open[j]!.pos === end) end += open[j++]!.len;
      let moved = false;
      for (let at = start; end - at >= bs; at += bs) {
        if (!cut(chunk, at + bs)) break;
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
    chunk.scanAt = Math.max(bs, chunk.openBytes + Math.min(bs, 1024 * 1024));
    if (open.length === 0) closeOpen(chunk);
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

  /** Makes `pos` a boundary between open extents. False without a record for the second half. */
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

  /** undefined: no id or no record at hand. */
  function newSlice(chunk: Chunk, from: number): Slice | undefined {
    const id = journal.nextId();
    if (journal.idsLeft < 32) void fetchIds();
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
      grew(chunk, -e.len);
    }
  }

  function complete(slice: Slice): void {
    slice.complete = true;
    journal.completeSlice(slice.rec, slice.size);
    for (; slice.begun < blockCount(layout, slice.size); slice.begun++) uploads.push(slice, slice.begun);
    if (slice.done.size === blockCount(layout, slice.size)) uploaded(slice);
  }

  /** Nothing of the chunk is open afterwards. False: a slice id or a record is missing; wait for {@link resources}. */
  function freezeChunk(chunk: Chunk, durable = false): boolean {
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
        if (durable) wantDurable(chunk);
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
    closeOpen(chunk);
    // Before anything can be committed: the objects reach the disk before, or beside, their commit.
    if (durable) wantDurable(chunk);
    uploads.pump();
    return true;
  }

  function wantDurable(chunk: Chunk): void {
    for (const s of chunk.slices) {
      if (s.durable !== 'no') continue;
      s.durable = 'wanted';
      if (s.complete && !s.committing && s.done.size === blockCount(layout, s.size)) syncSlice(s);
    }
  }

  /** Nothing is open; while a slice grows the chunk stays listed, for its time to be completed comes too. */
  function closeOpen(chunk: Chunk): void {
    if (chunk.slices.every(s => s.complete)) openChunks.delete(chunk);
    chunk.scanAt = bs;
  }

  let fetching: Promise<void> | undefined;
  function fetchIds(): Promise<void> {
    fetching ??= (async () => {
      try {
        for (let pause = RETRY_FIRST; ; pause = Math.min(RETRY_MAX, pause * 2)) {
          try {
            const first = await meta.newSliceIds(ID_BATCH);
            journal.giveIds(first, ID_BATCH);
            if (writers.length > 0) relieve(true);
            return;
          } catch (error) {
            failing(`slice ids: ${text(error)}`);
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

  /** Waits for what a freeze lacked. */
  async function resources(): Promise<void> {
    if (journal.idsLeft === 0) await fetchIds();
    else await new Promise<void>(go => recordWaiters.push(go));
  }
  const recordWaiters: (() => void)[] = [];

  // ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function arm(ms: number): void {
    if (timer !== undefined || stopped) return;
    timer = setTimeout(() => {
      timer = undefined;
      const t = performance.now();
      let next = Number.POSITIVE_INFINITY;
      for (const chunk of [...openChunks]) {
        const due = Math.min(chunk.file.last + IDLE, chunk.since + AGE);
        if (due <= t + 5 && freezeChunk(chunk)) continue;
        next = Math.min(next, Math.max(due - t, 20));
        if (due <= t + 5) void fetchIds().catch(() => {});
      }
      if (next !== Number.POSITIVE_INFINITY) arm(next);
    }, ms);
  }

  /** Sends open data on its way, the fullest chunks first, until little is open; with `all` there was no room for a write. */
  function relieve(all: boolean): void {
    if (openChunks.size === 0) return;
    const goal = all ? Math.min(openTotal - bs, pressure / 4) : pressure / 2;
    for (const chunk of [...openChunks].sort((a, b) => b.openBytes - a.openBytes)) {
      if (openTotal <= goal) return;
      freezeChunk(chunk);
    }
    // What grows is only finished by a flush: without this its uploaded blocks would keep their memory.
    if (memory.dirty - openTotal > pressure) for (const chunk of [...openChunks]) freezeChunk(chunk);
  }

  // ── commit ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** All blocks are in the store. */
  function uploaded(slice: Slice): void {
    if (slice.durable === 'wanted') syncSlice(slice);
    tryCommit(slice.chunk);
  }

  /** fsync: the objects reach the disk before, or while growing the file beside, the commit. */
  function syncSlice(slice: Slice): void {
    slice.durable = 'syncing';
    const attempt = (pause: number): void => {
      options.syncObjects(keysOf(slice)).then(
        () => {
          faultPoint('slice.synced');
          slice.durable = 'done';
          if (slice.settled) wake(slice);
          else tryCommit(slice.chunk);
        },
        (error: unknown) => {
          failing(text(error));
          if (!stopped) setTimeout(() => attempt(Math.min(RETRY_MAX, pause * 2)), pause);
        },
      );
    };
    attempt(RETRY_FIRST);
  }

  const keysOf = (slice: Slice): string[] =>
    Array.from({ length: blockCount(layout, slice.size) }, (_, i) => blockKey(layout, slice.id, slice.size, i));

  const endOf = (chunk: Chunk, slice: Slice): number => chunk.index * CHUNK_SIZE + slice.to;

  function tryCommit(chunk: Chunk): void {
    const slice = chunk.slices[0];
    if (slice === undefined || !slice.complete || slice.committing || slice.dropped) return;
    if (slice.done.size < blockCount(layout, slice.size)) return;
    const { file } = chunk;
    const end = endOf(chunk, slice);
    const grows = end > file.length;
    if (slice.durable === 'syncing' && !(grows && slice.extents[0]!.pos + chunk.index * CHUNK_SIZE >= file.length))
      return;
    if (grows && heldByLower(file, chunk.index)) return;
    if (Date.now() - slice.uploadedAt > UPLOAD_VALID) {
      slice.done.clear();
      journal.clearBlocksDone(slice.rec);
      for (let block = 0; block < slice.begun; block++) uploads.push(slice, block);
      uploads.pump();
      return;
    }
    if (heldByOthers(slice, file)) return;
    slice.committing = true;
    const first = options.compactFirst(file.ino, chunk.index);
    if (first === undefined) commit(slice, end, RETRY_FIRST);
    else first.then(() => commit(slice, end, RETRY_FIRST));
  }

  /** A lower chunk that makes the file longer is committed first; it is sent on its way. */
  function heldByLower(file: File, index: number): boolean {
    if (file.chunks.size === 1) return false;
    let held = false;
    for (const lower of [...file.chunks.values()]) {
      if (lower.index >= index) continue;
      const base = lower.index * CHUNK_SIZE;
      const last = lower.open.at(-1);
      const open = last !== undefined && base + last.pos + last.len > file.length;
      if (open || lower.slices.some(s => !s.complete)) freezeChunk(lower);
      if (open || lower.slices.some(s => endOf(lower, s) > file.length)) held = true;
    }
    return held;
  }

  /** The last commit of a file is sent when all others have come back: it alone may store the mtime that programs see (storedMtime). */
  function heldByOthers(slice: Slice, file: File): boolean {
    return isLast(slice, file, true) && !isLast(slice, file, false);
  }

  /** Nothing else of the file is uncommitted; `sent`: or its commit is under way. */
  function isLast(slice: Slice, file: File, sent: boolean): boolean {
    for (const { open, slices } of file.chunks.values()) {
      if (open.length > 0) return false;
      for (const s of slices) if (s !== slice && !s.dropped && !(sent && s.committing)) return false;
    }
    return true;
  }

  /**
   * mtime for a commit. Other clients tell by mtime, ctime and length whether what they have cached is still good, so every commit has to change one
   * of them; but the last one must leave what this mount has shown since the write. So those before it store a time some nanoseconds
   * earlier, each another (the clock counts microseconds), which nobody sees here while data is pending.
   */
  function storedMtime(slice: Slice, file: File): TimeSet {
    if (isLast(slice, file, false)) return file.mtime;
    const nsec = file.mtime.nsec - 1 - (slice.seq % 999);
    return nsec < 0 ? { sec: file.mtime.sec - 1, nsec: nsec + 1e9 } : { sec: file.mtime.sec, nsec };
  }

  function commit(slice: Slice, end: number, pause: number): void {
    const { chunk } = slice;
    const { file } = chunk;
    const records = recordsOf(slice);
    const kill = file.kill;
    const op = { kind: OpKind.slice, slot: slice.rec, seq: slice.seq };
    faultPoint('slice.before-commit');
    meta.write(op, file.ino, chunk.index, records, end, storedMtime(slice, file), file.ctime, kill).then(
      result => {
        faultPoint('slice.committed');
        if (kill && file.kill) {
          file.kill = false;
          if (file.rec >= 0) journal.setFlags(file.rec, 0);
        }
        file.length = Math.max(file.length, result.attr.length);
        lists.appended(file.ino, chunk.index, records, result.records);
        if (slice.durable === 'no' || slice.durable === 'wanted') {
          if (slice.durable === 'wanted') syncSlice(slice);
          else unsynced.remember(file.ino, keysOf(slice));
        }
        recovered();
        // The caller of fsync asks for this next; begun now, it runs beside the sync of the objects. Its own call tells of a failure.
        if (slice.durable === 'syncing') meta.sync().catch(() => {});
        // What was written as a stream is seldom read back from here, and fresh memory is dear: most of it makes room at once.
        finish(slice, slice.size < bs || cache.bytes < memory.ceiling / 8);
        options.committed(file.ino, chunk.index, result);
        next(file, chunk);
      },
      (error: unknown) => {
        const errno = (error as Errno).errno;
        if (slice.dropped || FINAL.has(errno)) {
          if (errno !== ENOENT.errno && !slice.dropped) refuse(file, error as Errno);
          if (!slice.dropped) options.warn(`slice ${slice.id} of inode ${file.ino} was refused: ${text(error)}`);
          discard(slice);
          next(file, chunk);
          return;
        }
        failing(text(error));
        slice.failures++;
        if (slice.failures >= 10) {
          // Also what waits for this commit to be over.
          for (const { slices } of file.chunks.values())
            for (const s of slices) {
              s.stuck = EIO;
              wake(s);
            }
        }
        if (!stopped) setTimeout(() => commit(slice, end, Math.min(RETRY_MAX, pause * 2)), pause);
      },
    );
  }

  function next(file: File, chunk: Chunk): void {
    tryCommit(chunk);
    if (file.chunks.size > 0) for (const other of [...file.chunks.values()]) if (other !== chunk) tryCommit(other);
  }

  /** The slice is committed: its bytes become cached blocks, its records are free. */
  function finish(slice: Slice, keep: boolean): void {
    journal.commitSlice(slice.rec);
    if (keep) {
      const count = blockCount(layout, slice.size);
      let i = 0;
      for (let block = 0; block < count; block++) {
        const from = block * bs;
        const to = Math.min(slice.size, from + bs);
        const segments: Segment[] = [];
        while (i < slice.extents.length && slice.extents[i]!.off + slice.extents[i]!.len <= from) i++;
        for (let k = i; k < slice.extents.length && slice.extents[k]!.off < to; k++) {
          const e = slice.extents[k]!;
          const off = Math.max(e.off, from);
          memory.hold(e.run);
          segments.push({
            off: off - from,
            len: Math.min(e.off + e.len, to) - off,
            at: e.at + off - e.off,
            run: e.run,
          });
        }
        cache.insert(slice.id, block, segments, slice.atHand);
      }
    }
    const { chunk } = slice;
    const i = chunk.slices.indexOf(slice);
    if (i >= 0) chunk.slices.splice(i, 1);
    release(slice);
    slice.settled = true;
    if (slice.durable !== 'syncing') wake(slice);
    tidyChunk(chunk);
  }

  /** Frees memory and records of a slice that is out of its chunk, once nothing reads them. */
  function release(slice: Slice): void {
    slice.releasing = slice.inFlight > 0;
    if (slice.releasing) return;
    for (const e of slice.extents) {
      journal.freeExtent(e.rec);
      memory.unmarkDirty(e.run);
      memory.drop(e.run);
    }
    slice.extents = [];
    faultPoint('slice.before-free');
    journal.freeSlice(slice.rec);
    faultPoint('slice.freed');
    for (const go of recordWaiters.splice(0)) go();
    wakeWriters();
    for (const key of slice.garbage)
      options.deleteObject(key).catch((e: unknown) => options.warn(`${key} stays in the store: ${text(e)}`));
  }

  /** The data is given up; what was uploaded, or is being uploaded, is deleted. */
  function discard(slice: Slice): void {
    slice.garbage = slice.complete
      ? keysOf(slice)
      : Array.from({ length: slice.begun }, (_, i) => blockKey(layout, slice.id, (i + 1) * bs, i));
    slice.dropped = true;
    finish(slice, false);
  }

  function refuse(file: File, errno: Errno): void {
    if (file.unwanted) return;
    file.error = errnoOf(errno.errno);
    file.told = false;
    if (file.rec >= 0) journal.setErrno(file.rec, errno.errno);
  }

  /** The error was told, or nobody will ask. */
  function pardon(file: File): void {
    file.error = undefined;
    if (file.rec >= 0) journal.setErrno(file.rec, 0);
    tidy(file);
  }

  function told(file: File): Errno {
    file.told = true;
    return file.error!;
  }

  function wake(slice: Slice): void {
    for (const go of slice.waiters.splice(0)) go();
  }

  // ── fsync ───────────────────────────────────────────────────────────────────────────────────────────────────────

  async function settleSlice(slice: Slice, waiting: Waiting | undefined): Promise<void> {
    slice.stuck = undefined;
    while (!(slice.settled && slice.durable !== 'syncing')) {
      if (slice.stuck !== undefined) throw slice.stuck;
      await patiently(new Promise<void>(go => slice.waiters.push(go)), waiting);
    }
  }

  /** Everything of these chunks that is pending now is committed. */
  async function settle(
    file: File,
    chunks: readonly Chunk[],
    waiting: Waiting | undefined,
    durable: boolean,
  ): Promise<void> {
    const slices: Slice[] = [];
    for (const chunk of chunks) {
      while (!freezeChunk(chunk, durable)) await patiently(resources(), waiting);
      slices.push(...chunk.slices);
    }
    uploads.kick(file);
    for (const s of slices) await settleSlice(s, waiting);
  }

  function dropChunk(chunk: Chunk): void {
    for (const e of chunk.open) {
      journal.freeExtent(e.rec);
      memory.unmarkDirty(e.run);
      memory.drop(e.run);
    }
    openTotal -= chunk.openBytes;
    chunk.openBytes = 0;
    chunk.open.length = 0;
    closeOpen(chunk);
    for (const slice of [...chunk.slices]) {
      if (slice.committing) slice.dropped = true;
      else discard(slice);
    }
    tidyChunk(chunk);
  }

  // ── recovery ────────────────────────────────────────────────────────────────────────────────────────────────────

  async function recover(giveUp: ReadonlySet<Ino> = new Set()): Promise<void> {
    unsynced.unknown();
    restore({
      journal,
      memory,
      layout,
      file: ino => files.get(ino) ?? newFile(ino),
      chunk(ino, index) {
        const file = files.get(ino) ?? newFile(ino);
        return file.chunks.get(index) ?? newChunk(file, index);
      },
      claimed: at => recoveredRuns.add(at),
    });
    const clock = performance.now();
    for (const file of [...files.values()]) {
      for (const chunk of file.chunks.values()) {
        for (const e of chunk.open) grew(chunk, e.len);
        if (chunk.open.length === 0 && chunk.slices.every(s => s.complete)) continue;
        chunk.since = file.last = clock;
        openChunks.add(chunk);
      }
      if (file.rec < 0 && file.chunks.size > 0) file.rec = journal.addWriter(file.ino, now(), 0, 0) ?? -1;
      tidy(file);
    }
    for (const ino of giveUp) {
      const file = files.get(ino);
      if (file === undefined || file.chunks.size === 0) continue;
      options.warn(`data written to inode ${ino} under locks that are lost is given up`);
      refuse(file, EIO);
      for (const chunk of [...file.chunks.values()]) dropChunk(chunk);
    }
    for (const file of [...files.values()]) {
      if (file.chunks.size === 0) continue;
      try {
        file.length = (await meta.getattr(file.ino)).length;
      } catch (error) {
        // The commit will tell what is wrong; until then lower chunks go first.
        if ((error as Errno).errno !== ENOENT.errno) failing(text(error));
      }
    }
    faultPoint('recover.read');
    if (options.outcomesUnknown) await forgetCommitted();
    for (const file of [...files.values()])
      for (const chunk of [...file.chunks.values()]) {
        for (const slice of chunk.slices)
          for (let block = 0; block < slice.begun; block++) if (!slice.done.has(block)) uploads.push(slice, block);
        tryCommit(chunk);
      }
    if (openChunks.size > 0) arm(IDLE);
    uploads.pump();
    faultPoint('recover.done');
  }

  /**
   * Slices whose commit may have happened: those that the chunk has are done. The others are stored again whole, for another client may have compacted them away and
   * deleted their objects.
   */
  async function forgetCommitted(): Promise<void> {
    for (const file of [...files.values()])
      for (const chunk of [...file.chunks.values()])
        for (const slice of [...chunk.slices]) {
          // Of more than 64 blocks the record does not tell.
          if (!slice.complete || slice.done.size < Math.min(64, blockCount(layout, slice.size))) continue;
          const records = await meta.readChunk(file.ino, chunk.index);
          if (records.some(r => r.id === slice.id)) finish(slice, false);
          else {
            slice.done.clear();
            journal.clearBlocksDone(slice.rec);
          }
        }
  }

  const writer: Writer = {
    recover,
    write,
    dirtyMax,
    get trouble() {
      return trouble.now;
    },

    overlay(ino, index, from, to, found, gap) {
      const chunk = files.get(ino)?.chunks.get(index);
      if (chunk === undefined) {
        gap(from, to);
        return;
      }
      const { slices, open } = chunk;
      const layer = (level: number, a: number, b: number): void => {
        if (level < 0) {
          gap(a, b);
          return;
        }
        const list = level === slices.length ? open : slices[level]!.extents;
        let at = a;
        for (let i = firstAfter(list, a); at < b; i++) {
          const e = list[i];
          const start = e === undefined ? b : Math.min(b, e.pos);
          if (start > at) layer(level - 1, at, start);
          if (e === undefined || e.pos >= b) return;
          at = Math.max(at, start);
          const stop = Math.min(b, e.pos + e.len);
          found(e.at + at - e.pos, stop - at, e.run);
          at = stop;
        }
      };
      layer(slices.length, from, to);
    },

    pending(ino) {
      const file = files.get(ino);
      if (file === undefined || file.chunks.size === 0) return undefined;
      let length = 0;
      for (const chunk of file.chunks.values()) {
        const base = chunk.index * CHUNK_SIZE;
        const last = chunk.open.at(-1);
        if (last !== undefined) length = Math.max(length, base + last.pos + last.len);
        for (const s of chunk.slices) if (!s.dropped) length = Math.max(length, base + s.to);
      }
      return { length, mtime: file.mtime, ctime: file.ctime };
    },
    pendingChunks: ino => [...(files.get(ino)?.chunks.keys() ?? [])].sort((a, b) => a - b),
    hasPending: (ino, index) => files.get(ino)?.chunks.has(index) ?? false,
    setMtime(ino, mtime) {
      const file = files.get(ino);
      if (file === undefined || file.chunks.size === 0) return;
      file.mtime = { sec: mtime.sec, nsec: mtime.nsec };
      if (file.rec >= 0) journal.setMtime(file.rec, file.mtime);
    },

    async flush(ino, waiting, durable) {
      const file = files.get(ino);
      if (file !== undefined) {
        file.unwanted = false;
        if (file.chunks.size > 0) await settle(file, [...file.chunks.values()], waiting, durable);
        if (file.error !== undefined) throw told(file);
      }
      if (durable) await patiently(unsynced.sync(ino), waiting);
    },

    async freeze(ino, offset, length) {
      const file = files.get(ino) ?? newFile(ino);
      const range = { from: offset, to: offset + length };
      file.frozen.push(range);
      const done = (): void => {
        const i = file.frozen.indexOf(range);
        if (i >= 0) file.frozen.splice(i, 1);
        // It may have been cut there.
        file.length = Math.min(file.length, offset);
        for (const go of file.unfreeze.splice(0)) go();
        tidy(file);
      };
      try {
        const first = Math.floor(offset / CHUNK_SIZE);
        const last = Math.floor((offset + length - 1) / CHUNK_SIZE);
        const chunks = [...file.chunks.values()].filter(c => c.index >= first && c.index <= last);
        await settle(file, chunks, undefined, false);
        return { done };
      } catch (error) {
        done();
        throw error;
      }
    },

    async flushAll() {
      let failure: unknown;
      for (const file of [...files.values()]) {
        try {
          await writer.flush(file.ino, undefined, false);
        } catch (error) {
          failure ??= error;
        }
      }
      if (failure !== undefined) throw failure;
    },

    drop(ino) {
      unsynced.forget(ino);
      const file = files.get(ino);
      if (file === undefined) return;
      file.error = undefined;
      for (const chunk of [...file.chunks.values()]) dropChunk(chunk);
      tidy(file);
    },

    closed(ino) {
      const file = files.get(ino);
      if (file?.error !== undefined && file.told) pardon(file);
    },

    forgotten(ino) {
      const file = files.get(ino);
      if (file === undefined) return;
      file.unwanted = true;
      if (file.error !== undefined) pardon(file);
    },

    async shutdown() {
      stopped = true;
      clearTimeout(timer);
      uploads.stop();
      unsynced.stop();
    },
  };
  return writer;
}

/** What makes a commit fail for good: the data is given up and the error reported. */
const FINAL = new Set([ENOENT, ENOSPC, EDQUOT, EFBIG, EPERM, EINVAL, EROFS].map(e => e.errno));
