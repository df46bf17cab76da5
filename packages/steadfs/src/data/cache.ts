/**
 * The memory cache of blocks: least recently used ones give way to anything else that needs memory. A block is one run, or the runs in which its data was
 * written. Loads of one block are made once for all who wait.
 */

import { StoreError } from '../object/store.ts';
import { type BlockLayout, blockKey, blockLength } from './blocks.ts';
import type { Memory, Run } from './memory.ts';
import type { Transfer } from './transfer.ts';

/** `len` bytes at arena offset `at`, from `off` on in the block. */
export interface Segment {
  off: number;
  len: number;
  at: number;
  run: Run;
}

export interface CachedBlock {
  /** In order, without gaps. */
  segments: Segment[];
  size: number;
  /** ms of the last use. */
  used: number;
}

export interface BlockCache {
  readonly bytes: number;
  get(id: number, indx: number): CachedBlock | undefined;
  /** Takes over the segments' runs (one hold each). `brief`: the store has it at hand too, so of its kind a quarter of the memory is kept: fresh memory is dear. */
  insert(id: number, indx: number, segments: Segment[], brief?: boolean): void;
  /** A load under way. */
  loading(id: number, indx: number): Promise<CachedBlock> | undefined;
  /** Reads the whole block into the cache; undefined when there is no memory for it. */
  load(id: number, size: number, indx: number): Promise<CachedBlock> | undefined;
  remove(id: number, indx: number): void;
  evict(bytes: number): void;
  /** Frees everything; loads under way keep nothing. */
  close(): void;
}

/** A slice has at most 1,024 blocks of 64 KiB. */
const keyOf = (id: number, indx: number): number => id * 1024 + indx;

export function createBlockCache(memory: Memory, transfer: Transfer, layout: BlockLayout, idleMs: number): BlockCache {
  const blocks = new Map<number, CachedBlock>();
  const loads = new Map<number, Promise<CachedBlock>>();
  /** Sizes of brief blocks, oldest first. */
  const brief = new Map<number, number>();
  let briefBytes = 0;
  let bytes = 0;
  let timer: NodeJS.Timeout | undefined;
  let quietTicks = 0;
  let closed = false;

  function discard(key: number, block: CachedBlock): void {
    blocks.delete(key);
    bytes -= block.size;
    if (brief.delete(key)) briefBytes -= block.size;
    for (const s of block.segments) memory.drop(s.run);
  }

  /** While something is cached: drops what was idle for long, and gives pages back. Ends itself two rounds after the last block. */
  function tick(): void {
    timer = undefined;
    const old = performance.now() - idleMs;
    for (const [key, block] of blocks) {
      if (block.used > old) break;
      discard(key, block);
    }
    memory.arena.trim();
    quietTicks = blocks.size === 0 ? quietTicks + 1 : 0;
    if (quietTicks < 3) arm();
  }
  function arm(): void {
    if (timer !== undefined) return;
    timer = setTimeout(tick, Math.max(1000, idleMs / 2));
    timer.unref();
  }

  const cache: BlockCache = {
    get bytes() {
      return bytes;
    },
    get(id, indx) {
      const key = keyOf(id, indx);
      const block = blocks.get(key);
      if (block === undefined) return undefined;
      const now = performance.now();
      // Moving a block in the map costs more than the look-up: only when it was not moved lately.
      if (now - block.used > 50) {
        blocks.delete(key);
        blocks.set(key, block);
        block.used = now;
      }
      return block;
    },
    insert(id, indx, segments, isBrief = false) {
      const key = keyOf(id, indx);
      const old = blocks.get(key);
      if (old !== undefined) discard(key, old);
      const last = segments.at(-1)!;
      const block = { segments, size: last.off + last.len, used: performance.now() };
      blocks.set(key, block);
      bytes += block.size;
      if (isBrief) {
        brief.set(key, block.size);
        briefBytes += block.size;
        for (const oldest of brief.keys()) {
          if (briefBytes <= memory.ceiling / 4) break;
          discard(oldest, blocks.get(oldest)!);
        }
      }
      quietTicks = 0;
      arm();
    },
    loading: (id, indx) => loads.get(keyOf(id, indx)),
    load(id, size, indx) {
      const key = keyOf(id, indx);
      const under = loads.get(key);
      if (under !== undefined) return under;
      const length = blockLength(layout, size, indx);
      const run = memory.alloc(length);
      if (run === undefined) return undefined;
      const work = transfer
        .getBlock(blockKey(layout, id, size, indx), memory.arena.bytes.subarray(run.at, run.at + length), () =>
          memory.drop(run),
        )
        .then(
          () => {
            loads.delete(key);
            if (closed) {
              memory.drop(run);
              throw new StoreError('io', 'shutting down');
            }
            cache.insert(id, indx, [{ off: 0, len: length, at: run.at, run }]);
            return blocks.get(key)!;
          },
          (error: unknown) => {
            loads.delete(key);
            throw error;
          },
        );
      loads.set(key, work);
      return work;
    },
    remove(id, indx) {
      const key = keyOf(id, indx);
      const block = blocks.get(key);
      if (block !== undefined) discard(key, block);
    },
    evict(wanted) {
      const goal = memory.used - wanted;
      for (const [key, block] of blocks) {
        if (memory.used <= goal) return;
        discard(key, block);
      }
    },
    close() {
      closed = true;
      for (const [key, block] of blocks) discard(key, block);
      clearTimeout(timer);
      timer = undefined;
    },
  };
  memory.evictor = cache.evict;
  return cache;
}
