/**
 * Compaction of chunks (spec/volume.md §4.2): many records become one, the new slice's objects are durable before the metadata forgets the old ones. One block of
 * memory per worker. Works after commits that made a list long and after reads of fragmented chunks, one chunk at a time, when the chunk is left alone for a while.
 */
import { ENOENT } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { buildSlices, type Piece, type Slice } from '../format/slice.ts';
import { type MetaEngine, OpKind } from '../meta/engine.ts';
import { type BlockLayout, blockCount, blockKey, blockLength, sliceKeys } from './blocks.ts';
import type { ChunkLists } from './chunk-lists.ts';
import type { Journal } from './journal.ts';
import type { Memory } from './memory.ts';
import type { Reader } from './reader.ts';
import { sleep, type Transfer } from './transfer.ts';

/** Blocks of one chunk made at the same time, as far as memory is plenty. */
const WORKERS = 4;
/** Records taken at most at a time. */
const TAKE = 1000;
/** With this many records the next commit waits for a compaction. */
const FULL = 2500;
/** Quiet time (ms) after the last commit to a chunk before it is compacted, unless it has URGENT records. */
const QUIET = 2000;
const URGENT = 1200;
/** Chunks waiting at most. */
const WAITING_MAX = 10_000;

export interface CompactorOptions {
  meta: MetaEngine;
  memory: Memory;
  journal: Journal;
  transfer: Transfer;
  lists: ChunkLists;
  layout: BlockLayout;
  reader: Reader;
  readOnly: boolean;
  tierOf(ino: Ino): Promise<number>;
  hasPending(ino: Ino, index: number): boolean;
  syncObjects(keys: readonly string[]): Promise<void>;
  deleteObject(key: string): Promise<void>;
  nextId(): Promise<number>;
  warn(message: string): void;
}

export interface Compactor {
  committed(ino: Ino, index: number, records: number): void;
  sawRecords(ino: Ino, index: number, records: number): void;
  /** A promise when the chunk must be compacted before anything is appended. */
  first(ino: Ino, index: number): Promise<void> | undefined;
  compact(ino: Ino, index: number): Promise<boolean>;
  shutdown(): Promise<void>;
}

/**
 * What to merge (spec/volume.md §4.2, 3-4): how many leading records stay, and the rest as pieces without leading and trailing holes. undefined: nothing
 * worth it.
 */
export function planCompaction(
  records: readonly Slice[],
): { skipped: number; pieces: Piece[]; pos: number; size: number } | undefined {
  const trimmed = (list: readonly Slice[]): Piece[] => {
    const pieces = buildSlices(list);
    let from = 0;
    let to = pieces.length;
    while (from < to && pieces[from]!.id === 0) from++;
    while (to > from && pieces[to - 1]!.id === 0) to--;
    return pieces.slice(from, to);
  };
  const sizeOf = (pieces: readonly Piece[]): number =>
    pieces.length === 0 ? 0 : pieces.at(-1)!.pos + pieces.at(-1)!.len - pieces[0]!.pos;
  let skipped = 0;
  let pieces = trimmed(records);
  for (; skipped < records.length; skipped++) {
    const first = records[skipped]!;
    const size = sizeOf(pieces);
    const head = pieces[0];
    if (
      head === undefined ||
      first.len < 1024 * 1024 ||
      first.len * 5 < size ||
      first.id === 0 ||
      head.id !== first.id ||
      head.pos !== first.pos ||
      head.len !== first.len ||
      head.off !== first.off ||
      records
        .slice(skipped + 1)
        .some(r => r.pos === first.pos && r.id === first.id && r.off === first.off && r.len === first.len)
    )
      break;
    pieces = trimmed(records.slice(skipped + 1));
  }
  const left = records.length - skipped;
  if (left < 2) return undefined;
  // Only holes: one hole record of length 1, as the other client does; not worth a rewrite of its own below a handful.
  if (pieces.length === 0) return undefined;
  return { skipped, pieces, pos: pieces[0]!.pos, size: sizeOf(pieces) };
}

/** Slots of Op kind job that belong to compaction begin here (the vfs's plans use smaller ones). */
const FIRST_SLOT = 1 << 20;

export function createCompactor(options: CompactorOptions): Compactor {
  const { meta, memory, journal, transfer, lists, layout, reader } = options;
  /** Slots of ours in use; seq comes from the capsule, so a slot may be used again after a death. */
  const slots = new Set<number>();
  const waiting = new Map<string, { ino: Ino; index: number; due: number; records: number }>();
  const running = new Map<string, Promise<boolean>>();
  /** Chunks with FULL records or more. */
  const full = new Set<string>();
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  let busy = false;

  const nameOf = (ino: Ino, index: number): string => `${ino}/${index}`;

  const failed = (ino: Ino, index: number, error: unknown): void => {
    // The file was removed meanwhile.
    if (error === ENOENT) return;
    options.warn(`compaction of inode ${ino} chunk ${index} failed: ${error instanceof Error ? error.message : error}`);
  };

  function schedule(ino: Ino, index: number, records: number): void {
    if (options.readOnly || stopped) return;
    const name = nameOf(ino, index);
    if (waiting.size >= WAITING_MAX && !waiting.has(name)) return;
    waiting.delete(name);
    waiting.set(name, { ino, index, due: performance.now() + (records >= URGENT ? 0 : QUIET), records });
    arm(records >= URGENT ? 10 : QUIET);
  }

  function arm(ms: number): void {
    if (timer !== undefined || busy || stopped) return;
    timer = setTimeout(() => {
      timer = undefined;
      void work();
    }, ms);
    timer.unref();
  }

  async function work(): Promise<void> {
    busy = true;
    try {
      for (;;) {
        const now = performance.now();
        // Dirty data close to its limit: writers need the store more.
        const next = [...waiting].find(([, w]) => w.due <= now + 20);
        if (next === undefined || stopped) break;
        waiting.delete(next[0]);
        const { ino, index, records } = next[1];
        try {
          const more = await compact(ino, index);
          if (more && records > TAKE) schedule(ino, index, records - TAKE);
        } catch (error) {
          failed(ino, index, error);
        }
      }
    } finally {
      busy = false;
    }
    if (waiting.size > 0) {
      const due = Math.min(...[...waiting.values()].map(w => w.due));
      arm(Math.max(20, due - performance.now()));
    }
  }

  function compact(ino: Ino, index: number): Promise<boolean> {
    const name = nameOf(ino, index);
    const under = running.get(name);
    if (under !== undefined) return under;
    const job = rewrite(ino, index).finally(() => running.delete(name));
    running.set(name, job);
    return job;
  }

  async function rewrite(ino: Ino, index: number): Promise<boolean> {
    const records = (await meta.readChunk(ino, index)).slice(0, TAKE);
    const plan = planCompaction(records);
    if (plan === undefined) return false;
    const { pos, size, pieces, skipped } = plan;
    const id = await options.nextId();
    const tier = await options.tierOf(ino);
    let slot = FIRST_SLOT;
    while (slots.has(slot)) slot++;
    slots.add(slot);
    let stored = false;
    try {
      let next = 0;
      const count = blockCount(layout, size);
      const worker = async (): Promise<void> => {
        while (next < count) await storeBlock(id, size, next++, pos, pieces, tier);
      };
      const workers = Math.min(count, WORKERS, Math.max(1, Math.floor(memory.ceiling / 16 / layout.blockSize)));
      const ends = await Promise.allSettled(Array.from({ length: workers }, worker));
      const failure = ends.find(e => e.status === 'rejected');
      if (failure !== undefined) throw failure.reason;
      stored = true;
      await options.syncObjects(sliceKeys(layout, id, size));
      if (stopped) throw new Error('shutting down');
      const op = { kind: OpKind.job, slot, seq: journal.nextSeq() };
      const replacement: Slice = { pos, id, size, off: 0, len: size };
      const done = await meta.compact(op, ino, index, records, skipped, replacement);
      lists.invalidate(ino, index, index);
      // Not done: the records changed meanwhile; the engine marked the new slice for deletion.
      return done;
    } catch (error) {
      // After the metadata was asked, nobody knows whether it took the slice.
      if (!stored)
        for (const key of sliceKeys(layout, id, size))
          await options.deleteObject(key).catch((e: unknown) => options.warn(`${key} stays in the store: ${e}`));
      throw error;
    } finally {
      slots.delete(slot);
    }
  }

  async function storeBlock(
    id: number,
    size: number,
    block: number,
    base: number,
    pieces: readonly Piece[],
    tier: number,
  ): Promise<void> {
    const length = blockLength(layout, size, block);
    let run = memory.alloc(length);
    while (run === undefined) {
      if (stopped) throw new Error('shutting down');
      await sleep(100);
      run = memory.alloc(length);
    }
    const target = memory.arena.bytes.subarray(run.at, run.at + length);
    // The last to let go of the run: this function, or a PUT that outlives its time limit.
    const held = run;
    let uses = 1;
    const give = (): void => {
      if (--uses === 0) memory.drop(held);
    };
    try {
      const from = base + block * layout.blockSize;
      const to = from + length;
      for (const p of pieces) {
        const start = Math.max(p.pos, from);
        const stop = Math.min(p.pos + p.len, to);
        if (start >= stop) continue;
        if (p.id === 0) {
          target.fill(0, start - from, stop - from);
          continue;
        }
        for (let at = start; at < stop; ) {
          const off = p.off + at - p.pos;
          const source = Math.floor(off / layout.blockSize);
          const inBlock = off - source * layout.blockSize;
          const k = Math.min(stop - at, layout.blockSize - inBlock);
          await reader.copyBlock(p.id, p.size, source, inBlock, inBlock + k, target.subarray(at - from, at - from + k));
          at += k;
        }
      }
      for (let failures = 0; ; ) {
        uses++;
        try {
          await transfer.put(blockKey(layout, id, size, block), [target], length, tier, give);
          return;
        } catch (error) {
          if (++failures > 3 || stopped) throw error;
          await sleep(50 * 4 ** failures);
        }
      }
    } finally {
      give();
    }
  }

  return {
    committed(ino, index, records) {
      if (records >= FULL) full.add(nameOf(ino, index));
      if (records % 100 === 99 || records > 350) schedule(ino, index, records);
    },
    sawRecords(ino, index, records) {
      if (records >= 5 && !options.hasPending(ino, index)) schedule(ino, index, records);
    },
    first(ino, index) {
      const name = nameOf(ino, index);
      if (full.size === 0 || options.readOnly || !full.delete(name)) return undefined;
      return compact(ino, index).then(
        () => {},
        error => failed(ino, index, error),
      );
    },
    compact,
    async shutdown() {
      stopped = true;
      clearTimeout(timer);
      // A job looks at `stopped` between blocks; one that hangs in the store is left.
      if (running.size > 0) await Promise.race([Promise.allSettled(running.values()), sleep(500)]);
    },
  };
}
