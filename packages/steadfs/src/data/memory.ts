/**
 * The memory of file contents: runs of arena pages under one ceiling (`--buffer-size`), for dirty data, cached blocks, downloads and compaction alike.
 * A run is held by whoever uses it (an extent, a cached block, a read whose reply is not written yet) and goes back to the arena with its last holder.
 */
import type { Arena } from '@steadfs/fuse';
import { EIO } from '@steadfs/fuse/errno';

export interface Run {
  readonly at: number;
  readonly length: number;
  /** End of the used part (arena offset); an extent that ends there may grow into the rest. */
  used: number;
  holders: number;
  /** Extents of dirty data in it. */
  dirty: number;
}

export interface Memory {
  readonly arena: Arena;
  readonly ceiling: number;
  /** Bytes of all runs. */
  readonly used: number;
  /** Bytes of runs that hold dirty data. */
  readonly dirty: number;
  /** A run of at least `length` bytes with one holder; cached blocks give way. undefined: no room. */
  alloc(length: number, near?: number): Run | undefined;
  /** Pages that already are ours (claimed at recovery), one holder. */
  adopt(at: number, length: number): Run;
  /**
   * Pages that a WRITE request gave, one holder. They are not free before the loop's next turn: until the request is answered its slot names them, and the next process
   * would hand out what lies there again.
   */
  adoptTaken(at: number, length: number): Run;
  /** Makes room for pages about to be adopted; false when that is impossible. */
  room(length: number): boolean;
  hold(run: Run): void;
  drop(run: Run): void;
  markDirty(run: Run): void;
  unmarkDirty(run: Run): void;
  /** Called for room: frees cached blocks of at least that many bytes, as far as there are. */
  evictor: (bytes: number) => void;
  /** Called when a run was freed. */
  freed: () => void;
}

const PAGE = 4096;
export const roundToPages = (length: number): number => Math.max(1, Math.ceil(length / PAGE)) * PAGE;

export function createMemory(arena: Arena, ceiling: number): Memory {
  let used = 0;
  let dirty = 0;
  let young: Run[] = [];
  const grown = (): void => {
    const runs = young;
    young = [];
    for (const run of runs) memory.drop(run);
  };
  const memory: Memory = {
    arena,
    ceiling,
    get used() {
      return used;
    },
    get dirty() {
      return dirty;
    },
    evictor: () => {},
    freed: () => {},
    room(length) {
      const need = roundToPages(length);
      if (used + need > ceiling) memory.evictor(used + need - ceiling);
      return used + need <= ceiling;
    },
    alloc(length, near) {
      if (!memory.room(length)) return undefined;
      const size = roundToPages(length);
      // The arena may be fragmented, or shared with others: cached blocks are given up for a run in growing steps.
      for (let step = size; ; step *= 2) {
        const at = arena.alloc(size, near);
        if (at !== undefined) {
          used += size;
          return { at, length: size, used: at, holders: 1, dirty: 0 };
        }
        const before = used;
        memory.evictor(step);
        if (used === before) return undefined;
      }
    },
    adopt(at, length) {
      const size = roundToPages(length);
      used += size;
      return { at, length: size, used: at, holders: 1, dirty: 0 };
    },
    adoptTaken(at, length) {
      const run = memory.adopt(at, length);
      run.holders++;
      if (young.push(run) === 1) setImmediate(grown);
      return run;
    },
    hold(run) {
      if (run.holders <= 0) throw EIO.because(`memory at ${run.at} is used after it was freed`);
      run.holders++;
    },
    drop(run) {
      if (--run.holders > 0) return;
      if (run.holders < 0) throw EIO.because(`memory at ${run.at} is freed twice`);
      arena.free(run.at, run.length);
      used -= run.length;
      memory.freed();
    },
    markDirty(run) {
      if (run.dirty++ === 0) dirty += run.length;
    },
    unmarkDirty(run) {
      if (--run.dirty === 0) dirty -= run.length;
    },
  };
  arena.makeRoom = bytes => {
    const before = used;
    memory.evictor(bytes);
    return used < before;
  };
  return memory;
}
