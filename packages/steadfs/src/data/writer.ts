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
 *
 * The way of the bytes: here (files, memory, when) → placing.ts → freezing.ts → uploads.ts → commits.ts. After a death: recovery.ts.
 */
import type { WriteData } from '@steadfs/fuse';
import { EFBIG, EIO, ENOENT, ENOSPC, type Errno, errnoOf } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { Attr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import { CHUNK_SIZE } from '../format/slice.ts';
import { now } from '../meta/clock.ts';
import type { MetaEngine, TimeSet, WriteResult } from '../meta/engine.ts';
import { type BlockLayout, blockCount } from './blocks.ts';
import type { BlockCache } from './cache.ts';
import type { ChunkLists } from './chunk-lists.ts';
import { createCommits } from './commits.ts';
import { type Chunk, type File, firstAfter, type Slice, wake } from './dirty.ts';
import type { PendingAttr, Waiting } from './file-data.ts';
import { createFreezing } from './freezing.ts';
import { type Journal, KILL_SUIDGID } from './journal.ts';
import { type Memory, type Run, roundToPages } from './memory.ts';
import { createPlacing } from './placing.ts';
import { restore } from './recovery.ts';
import type { Transfer } from './transfer.ts';
import { createTrouble, text } from './trouble.ts';
import { createUnsynced } from './unsynced.ts';
import { createUploads } from './uploads.ts';
import { patiently } from './waiting.ts';

/** ms without a write to the file, and since the chunk's first, after which open data is flushed. */
const IDLE = 1000;
const AGE = 15_000;

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
  const { meta, memory, journal, transfer, layout } = options;
  const { arena } = memory;
  const bs = layout.blockSize;
  const files = new Map<Ino, File>();
  /** Chunks with open data or a growing slice. */
  const openChunks = new Set<Chunk>();
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
  const { failing } = trouble;
  const unsynced = createUnsynced({
    trouble,
    syncObjects: options.syncObjects,
    syncStore: options.syncStore,
  });
  const placing = createPlacing({
    memory,
    journal,
    opened(chunk) {
      openChunks.add(chunk);
      arm(IDLE);
    },
    emptied: closeOpen,
  });
  const commits = createCommits({
    ...options,
    trouble,
    unsynced,
    uploads: () => uploads,
    freeze: chunk => void freezing.freeze(chunk),
    tidy: tidyChunk,
    refuse,
    released() {
      freezing.released();
      wakeWriters();
    },
  });
  const uploads = createUploads({
    memory,
    journal,
    transfer,
    layout,
    trouble,
    uploaded: commits.uploaded,
    idle: commits.release,
    stuck(slice) {
      wake(slice);
      if (slice.stuck === ENOSPC) for (const go of writers.splice(0)) go();
    },
  });
  const freezing = createFreezing({
    meta,
    journal,
    layout,
    trouble,
    placing,
    uploads,
    uploaded: commits.uploaded,
    wantDurable: commits.wantDurable,
    emptied: closeOpen,
    gotIds() {
      if (writers.length > 0) relieve(true);
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
      const { promise: turn, resolve: go } = Promise.withResolvers<void>();
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
      placed = placing.place(chunk, pos, data, at, len);
      if (!placed) tidyChunk(chunk);
      else if (chunk.openBytes >= chunk.scanAt) freezing.carve(chunk);
      at += len;
    }
    if (placing.total > pressure || memory.dirty > dirtyMax * 0.85) relieve(false);
    return placed;
  }

  // ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Nothing is open; while a slice grows the chunk stays listed, for its time to be completed comes too. */
  function closeOpen(chunk: Chunk): void {
    if (chunk.slices.every(s => s.complete)) openChunks.delete(chunk);
    chunk.scanAt = bs;
  }

  function arm(ms: number): void {
    if (timer !== undefined || stopped) return;
    timer = setTimeout(() => {
      timer = undefined;
      const t = performance.now();
      let next = Number.POSITIVE_INFINITY;
      for (const chunk of [...openChunks]) {
        const due = Math.min(chunk.file.last + IDLE, chunk.since + AGE);
        if (due <= t + 5 && freezing.freeze(chunk)) continue;
        next = Math.min(next, Math.max(due - t, 20));
        // It rejects when the mount ends.
        if (due <= t + 5) freezing.fetchIds().catch(() => {});
      }
      if (next !== Number.POSITIVE_INFINITY) arm(next);
    }, ms);
  }

  /** Sends open data on its way, the fullest chunks first, until little is open; with `all` there was no room for a write. */
  function relieve(all: boolean): void {
    if (openChunks.size === 0) return;
    const goal = all ? Math.min(placing.total - bs, pressure / 4) : pressure / 2;
    for (const chunk of [...openChunks].sort((a, b) => b.openBytes - a.openBytes)) {
      if (placing.total <= goal) return;
      freezing.freeze(chunk);
    }
    // What grows is only finished by a flush: without this its uploaded blocks would keep their memory.
    if (memory.dirty - placing.total > pressure) for (const chunk of [...openChunks]) freezing.freeze(chunk);
  }

  // ── data that was refused ───────────────────────────────────────────────────────────────────────────────────────

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
      while (!freezing.freeze(chunk, durable)) await patiently(freezing.resources(), waiting);
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
    placing.grew(chunk, -chunk.openBytes);
    chunk.open.length = 0;
    closeOpen(chunk);
    for (const slice of [...chunk.slices]) {
      if (slice.committing) slice.dropped = true;
      else commits.discard(slice);
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
        for (const e of chunk.open) placing.grew(chunk, e.len);
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
        commits.tryCommit(chunk);
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
          if (records.some(r => r.id === slice.id)) commits.finish(slice, false);
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
      commits.stop();
      freezing.stop();
    },
  };
  return writer;
}
