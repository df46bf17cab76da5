/**
 * From a slice whose blocks are in the store to the record in the metadata, and to free memory. A slice is committed after the slices before it in its chunk and,
 * when it makes the file longer, after what makes it longer in lower chunks; fsync makes its objects durable before that, or beside it.
 */
import { EDQUOT, EFBIG, EINVAL, EIO, ENOENT, ENOSPC, EPERM, EROFS, type Errno } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { Ino } from '../format/ino.ts';
import { CHUNK_SIZE } from '../format/slice.ts';
import { type MetaEngine, OpKind, type TimeSet, type WriteResult } from '../meta/engine.ts';
import { type BlockLayout, blockCount, blockKey } from './blocks.ts';
import type { BlockCache, Segment } from './cache.ts';
import type { ChunkLists } from './chunk-lists.ts';
import { type Chunk, type File, recordsOf, type Slice, wake } from './dirty.ts';
import type { Journal } from './journal.ts';
import type { Memory } from './memory.ts';
import { RETRY_FIRST, RETRY_MAX, type Trouble, text } from './trouble.ts';
import type { Unsynced } from './unsynced.ts';
import type { Uploads } from './uploads.ts';

/** What makes a commit fail for good: the data is given up and the error reported. */
const FINAL = new Set([ENOENT, ENOSPC, EDQUOT, EFBIG, EPERM, EINVAL, EROFS].map(e => e.errno));
/** `juicefs gc` removes unreferenced objects after an hour: blocks that wait for their commit that long are uploaded again. */
const UPLOAD_VALID = 45 * 60_000;
/** Failures of a commit in a row after which a flush is told; the data stays and the tries go on. */
const TELL_AFTER = 10;
/** What was written stays as cached blocks while those take less of the memory than this. */
const KEEP_SHARE = 1 / 8;

export interface CommitsOptions {
  meta: MetaEngine;
  memory: Memory;
  journal: Journal;
  cache: BlockCache;
  lists: ChunkLists;
  layout: BlockLayout;
  trouble: Trouble;
  unsynced: Unsynced;
  uploads(): Uploads;
  /** Objects → durable. */
  syncObjects(keys: readonly string[]): Promise<void>;
  deleteObject(key: string): Promise<void>;
  compactFirst(ino: Ino, index: number): Promise<void> | undefined;
  committed(ino: Ino, index: number, result: WriteResult): void;
  warn(message: string): void;
  /** Sends what is open of the chunk on its way. */
  freeze(chunk: Chunk): void;
  /** The chunk may hold nothing any more. */
  tidy(chunk: Chunk): void;
  /** The file's data was refused for good. */
  refuse(file: File, errno: Errno): void;
  /** Memory and records have come free. */
  released(): void;
}

export interface Commits {
  /** Commits the chunk's first slice when its time has come. */
  tryCommit(chunk: Chunk): void;
  /** All blocks of the slice are in the store. */
  uploaded(slice: Slice): void;
  /** The slice is in the metadata: its bytes become cached blocks with `keep`, its records are free. */
  finish(slice: Slice, keep: boolean): void;
  /** Frees memory and records of a slice that is out of its chunk, once nothing reads them. */
  release(slice: Slice): void;
  /** The data is given up; what was uploaded, or is being uploaded, is deleted. */
  discard(slice: Slice): void;
  /** The objects of everything frozen in the chunk are to be durable. */
  wantDurable(chunk: Chunk): void;
  /** Tries nothing again any more. */
  stop(): void;
}

export function createCommits(options: CommitsOptions): Commits {
  const { meta, memory, journal, cache, lists, layout, trouble, unsynced } = options;
  const { failing, recovered } = trouble;
  const bs = layout.blockSize;
  let stopped = false;

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
      for (let block = 0; block < slice.begun; block++) options.uploads().push(slice, block);
      options.uploads().pump();
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
      if (open || lower.slices.some(s => !s.complete)) options.freeze(lower);
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
        finish(slice, slice.size < bs || cache.bytes < memory.ceiling * KEEP_SHARE);
        options.committed(file.ino, chunk.index, result);
        next(file, chunk);
      },
      (error: unknown) => {
        const errno = (error as Errno).errno;
        if (slice.dropped || FINAL.has(errno)) {
          if (errno !== ENOENT.errno && !slice.dropped) options.refuse(file, error as Errno);
          if (!slice.dropped) options.warn(`slice ${slice.id} of inode ${file.ino} was refused: ${text(error)}`);
          discard(slice);
          next(file, chunk);
          return;
        }
        failing(text(error));
        slice.failures++;
        if (slice.failures >= TELL_AFTER) {
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
    options.tidy(chunk);
  }

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
    options.released();
    for (const key of slice.garbage)
      options.deleteObject(key).catch((e: unknown) => options.warn(`${key} stays in the store: ${text(e)}`));
  }

  function discard(slice: Slice): void {
    slice.garbage = slice.complete
      ? keysOf(slice)
      : Array.from({ length: slice.begun }, (_, i) => blockKey(layout, slice.id, (i + 1) * bs, i));
    slice.dropped = true;
    finish(slice, false);
  }

  function wantDurable(chunk: Chunk): void {
    for (const s of chunk.slices) {
      if (s.durable !== 'no') continue;
      s.durable = 'wanted';
      if (s.complete && !s.committing && s.done.size === blockCount(layout, s.size)) syncSlice(s);
    }
  }

  return {
    tryCommit,
    uploaded,
    finish,
    release,
    discard,
    wantDurable,
    stop() {
      stopped = true;
    },
  };
}
