/**
 * The contract between the vfs and the data path: file contents as slices. One FileData serves a mount; it owns the memory
 * (`--buffer-size`, dirty data and block cache together, in the capsule's arena), the writers, the readers, the uploads and the compaction.
 *
 * Dirty data: `write` answers once the bytes are in the arena and described by a record of the capsule section 'extents': from
 * then on kill -9 does not lose them. A new process calls `recover` before the first request.
 */
import type { Interrupt, ReadOut, WriteData } from '@steadfs/fuse';
import type { Attr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import type { MaybePromise, TimeSet } from '../meta/engine.ts';

/** What is acknowledged but not yet committed for an inode; the vfs lays it over attributes. */
export interface PendingAttr {
  /** Greatest end of pending data; the file is at least this long. */
  length: number;
  mtime: TimeSet;
  /** When it was written; the file's ctime unless that is later. */
  ctime: TimeSet;
}

export interface Waiting {
  interrupt: Interrupt;
  /** The request was taken by a process that died and is handed out again (Context.replay). */
  readonly replay?: boolean;
  /** Called before the call waits for memory or for the store. */
  park(): void;
}

export interface FileData {
  /** Rebuilds pending slices from the capsule and goes on uploading them. */
  recover(giveUp?: ReadonlySet<Ino>): Promise<void>;

  /**
   * Writes at `offset`. `attr` are the file's attributes as last known (length and tier). Settles when the data is in the arena:
   * at once while there is memory, else after some was freed (`waiting.park()` is called first). Throws a pending write error of
   * the inode (EIO, ENOSPC, EDQUOT …).
   */
  write(
    ino: Ino,
    offset: number,
    data: WriteData,
    attr: Attr,
    killSuidgid: boolean,
    waiting: Waiting,
  ): MaybePromise<void>;

  /**
   * Up to `size` bytes at `offset`, committed slices with pending data laid over; never past `length`. The pieces are valid until
   * `releaseRead(pieces)`, which the vfs calls when the reply was written (arena and cache pages are not reused before).
   */
  read(ino: Ino, fh: number, offset: number, size: number, length: number, waiting: Waiting): MaybePromise<ReadOut>;
  releaseRead(out: ReadOut): void;

  pending(ino: Ino): PendingAttr | undefined;
  /** setattr(mtime) also changes what later commits of pending data will store. */
  setPendingMtime(ino: Ino, mtime: TimeSet): void;
  /** What the chunk lists say may have changed: another client wrote (mtime, ctime or length differ), or a push told so. */
  invalidate(ino: Ino): void;
  /** Forget caches of a range after truncate, fallocate or copy (done in the metadata already). */
  invalidateRange(ino: Ino, offset: number, length: number): void;

  /** All pending data of the inode is in the store and committed. Throws the inode's write error, once per handle that asks. */
  flush(ino: Ino, waiting?: Waiting): Promise<void>;
  /** flush, and objects durable in the store (the caller then syncs the metadata). */
  sync(ino: Ino, waiting?: Waiting): Promise<void>;
  /** Before truncate, fallocate, copy_file_range: nothing pending intersects the range afterwards, and no write to it starts until `done()` is called. */
  freeze(ino: Ino, offset: number, length: number): Promise<{ done(): void }>;
  /** Every inode (umount, upgrade is not one of them). */
  flushAll(): Promise<void>;
  /** The inode is gone: pending data is dropped, caches freed. */
  drop(ino: Ino): void;

  /** Next data (whence SEEK_DATA 3) or hole (SEEK_HOLE 4) at or after offset; ENXIO past the end. */
  seek(ino: Ino, offset: number, whence: number, length: number): Promise<number>;
  /** The handle is closed: read-ahead state goes. */
  close(ino: Ino, fh: number): void;
  /** The inode has no handles and the kernel has forgotten it: a write error that nobody asked for goes, and so will one of what is still pending (the log has it). */
  forgotten(ino: Ino): void;

  /** Compacts one chunk as spec/volume.md §4.2; false when there is nothing to do. */
  compact(ino: Ino, index: number): Promise<boolean>;
  /** Deletes the blocks of dead slices (after meta.durable()), then meta.slicesDeleted. Answers how many slices are gone. */
  deleteSlices(slices: readonly { id: number; size: number }[]): Promise<number>;

  stats(): DataStats;
  shutdown(): Promise<void>;
}

export interface DataStats {
  /** Bytes of dirty data, block cache, and the ceiling. */
  dirty: number;
  cached: number;
  ceiling: number;
  uploading: number;
  /** Since when (ms) the store fails, and how. */
  trouble?: { since: number; message: string };
}
