/** Slice lists of chunks as last read from the metadata. A list stays until somebody says that it may have changed. */
import type { Ino } from '../format/ino.ts';
import { buildSlices, type Piece, type Slice } from '../format/slice.ts';
import type { MaybePromise, MetaEngine } from '../meta/engine.ts';

export interface ChunkList {
  records: Slice[];
  /** Built at the first use after a change. */
  pieces: Piece[] | undefined;
}

export interface ChunkLists {
  /** The list, at once when it is known or the engine is synchronous. */
  get(ino: Ino, index: number): MaybePromise<ChunkList>;
  /** Only when it is known. */
  peek(ino: Ino, index: number): ChunkList | undefined;
  /** Our own commit appended `records`, after which the chunk has `count`. */
  appended(ino: Ino, index: number, records: readonly Slice[], count: number): void;
  invalidate(ino: Ino, from?: number, to?: number): void;
}

/** Records kept at most, in all lists together. */
const MAX_RECORDS = 500_000;

export function createChunkLists(meta: Pick<MetaEngine, 'readChunk'>): ChunkLists {
  const files = new Map<Ino, Map<number, ChunkList>>();
  /** Reads under way, with whether what they bring is stale already. */
  const loading = new Map<Ino, Map<number, { stale: boolean; promise: Promise<ChunkList> }>>();
  let total = 0;

  function store(ino: Ino, index: number, records: Slice[]): ChunkList {
    const list: ChunkList = { records, pieces: undefined };
    let file = files.get(ino);
    if (file === undefined) {
      file = new Map();
      files.set(ino, file);
    }
    const old = file.get(index);
    if (old !== undefined) total -= old.records.length + 1;
    file.set(index, list);
    total += records.length + 1;
    while (total > MAX_RECORDS && files.size > 1) {
      // The file that was added first goes; the one in use is the last.
      const oldest = files.keys().next().value!;
      if (oldest === ino) {
        files.delete(ino);
        files.set(ino, file);
      } else drop(oldest);
    }
    return list;
  }

  function drop(ino: Ino): void {
    const file = files.get(ino);
    if (file === undefined) return;
    for (const list of file.values()) total -= list.records.length + 1;
    files.delete(ino);
  }

  function load(ino: Ino, index: number): MaybePromise<ChunkList> {
    const result = meta.readChunk(ino, index);
    if (!(result instanceof Promise)) return store(ino, index, result);
    let file = loading.get(ino);
    if (file === undefined) {
      file = new Map();
      loading.set(ino, file);
    }
    const entry = { stale: false, promise: undefined as unknown as Promise<ChunkList> };
    const forget = (): void => {
      if (file.get(index) === entry) file.delete(index);
      if (file.size === 0 && loading.get(ino) === file) loading.delete(ino);
    };
    entry.promise = result.then(
      records => {
        forget();
        if (!entry.stale) return store(ino, index, records);
        return lists.get(ino, index);
      },
      (error: unknown) => {
        forget();
        throw error;
      },
    );
    file.set(index, entry);
    return entry.promise;
  }

  const lists: ChunkLists = {
    get(ino, index) {
      const known = files.get(ino)?.get(index);
      if (known !== undefined) return known;
      const under = loading.get(ino)?.get(index);
      if (under !== undefined && !under.stale) return under.promise;
      return load(ino, index);
    },
    peek: (ino, index) => files.get(ino)?.get(index),
    appended(ino, index, records, count) {
      const under = loading.get(ino)?.get(index);
      if (under) under.stale = true;
      const file = files.get(ino);
      const list = file?.get(index);
      if (file === undefined || list === undefined) return;
      if (list.records.length + records.length !== count) {
        total -= list.records.length + 1;
        file.delete(index);
        return;
      }
      list.records.push(...records);
      list.pieces = undefined;
      total += records.length;
    },
    invalidate(ino, from = 0, to = Number.POSITIVE_INFINITY) {
      for (const [index, entry] of loading.get(ino) ?? []) if (index >= from && index <= to) entry.stale = true;
      const file = files.get(ino);
      if (file === undefined) return;
      if (from === 0 && to === Number.POSITIVE_INFINITY) {
        drop(ino);
        return;
      }
      for (const [index, list] of file) {
        if (index < from || index > to) continue;
        total -= list.records.length + 1;
        file.delete(index);
      }
      if (file.size === 0) files.delete(ino);
    },
  };
  return lists;
}

/** Non-overlapping pieces in order of position. */
export function piecesOf(list: ChunkList): Piece[] {
  list.pieces ??= buildSlices(list.records);
  return list.pieces;
}
