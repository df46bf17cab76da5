/**
 * Blocks of slices on their way to the store: as many at once as the transfer lets, failed ones again after a rest. A small block that the store takes at once
 * ({@link Transfer.putNow}) is there when `pump` returns: the same steps in the same order (object, note in the journal, commit), so a death between any two of them
 * finds what it finds with a slow one.
 */
import { EIO, ENOSPC } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { StoreError } from '../object/store.ts';
import { type BlockLayout, blockCount, blockKey, blockLength } from './blocks.ts';
import { type File, lastAtOrBefore, type Slice } from './dirty.ts';
import type { Journal } from './journal.ts';
import type { Memory } from './memory.ts';
import type { Transfer } from './transfer.ts';
import { RETRY_FIRST, RETRY_MAX, type Trouble, text } from './trouble.ts';

/** Blocks are put at once for so long (ms) in one turn of the loop. */
const TURN = 1.5;
/** Failures in a row after which a flush is told, by the kind of failure; the data stays and the tries go on. Others are waited for. */
const TELL_AFTER: Partial<Record<string, number>> = {
  'no-space': 3,
  denied: 4,
  invalid: 4,
  'not-found': 4,
  'too-large': 4,
};

export interface UploadsOptions {
  memory: Memory;
  journal: Journal;
  transfer: Transfer;
  layout: BlockLayout;
  trouble: Trouble;
  /** All blocks of a complete slice are in the store. */
  uploaded(slice: Slice): void;
  /** The last PUT of a slice that is to be released has ended. */
  idle(slice: Slice): void;
  /** `slice.stuck` tells now why a flush should not wait on. */
  stuck(slice: Slice): void;
}

export interface Uploads {
  /** Puts a block behind the others; {@link Uploads.pump} starts what may start. */
  push(slice: Slice, block: number): void;
  pump(): void;
  /** Tries now what rests of the file after a failure. */
  kick(file: File): void;
  /** Starts nothing any more. */
  stop(): void;
}

export function createUploads(options: UploadsOptions): Uploads {
  const { journal, transfer, layout, trouble } = options;
  const { arena } = options.memory;
  const bs = layout.blockSize;
  let stopped = false;
  const queue: { slice: Slice; block: number }[] = [];
  /** Failed blocks with the timer of their next try. */
  const resting = new Map<NodeJS.Timeout, { slice: Slice; block: number }>();

  let pumping = false;
  function pump(): void {
    // From what a stored block led to: the loop below finds what it pushed.
    if (pumping) return;
    pumping = true;
    const end = performance.now() + TURN;
    let next = 0;
    while (next < queue.length && transfer.canUpload) {
      const { slice, block } = queue[next++]!;
      if (!slice.dropped && upload(slice, block) && next < queue.length && performance.now() > end) {
        setImmediate(pump);
        break;
      }
    }
    if (next > 0) queue.splice(0, next);
    pumping = false;
  }

  /** True when the block is in the store already. */
  function upload(slice: Slice, block: number): boolean {
    const from = block * bs;
    const length = slice.complete ? blockLength(layout, slice.size, block) : bs;
    const pieces: Uint8Array[] = [];
    let i = lastAtOrBefore(slice.extents, from);
    for (let at = from; at < from + length; i++) {
      const e = slice.extents[i]!;
      const skip = at - e.off;
      const k = Math.min(e.len - skip, from + length - at);
      const start = e.at + skip;
      const before = pieces.at(-1);
      // Pages that lie side by side go out as one piece.
      if (before !== undefined && before.byteOffset + before.length === arena.bytes.byteOffset + start)
        pieces[pieces.length - 1] = arena.bytes.subarray(start - before.length, start + k);
      else pieces.push(arena.bytes.subarray(start, start + k));
      at += k;
    }
    // The name holds the block's length: for a block of a growing slice that is a whole one.
    const key = blockKey(layout, slice.id, slice.complete ? slice.size : from + bs, block);
    faultPoint('upload.before-put');
    if (transfer.putNow?.(key, pieces, length)) {
      slice.atHand = true;
      stored(slice, block);
      return true;
    }
    slice.inFlight++;
    transfer
      .put(key, pieces, length, slice.chunk.file.tier, () => {
        slice.inFlight--;
        if (slice.releasing) options.idle(slice);
      })
      .then(
        () => {
          stored(slice, block);
          pump();
        },
        (error: unknown) => {
          uploadFailed(slice, block, error);
          pump();
        },
      );
    return false;
  }

  function stored(slice: Slice, block: number): void {
    faultPoint('upload.put');
    trouble.recovered();
    slice.failures = 0;
    slice.done.add(block);
    if (slice.done.size === 1) slice.uploadedAt = Date.now();
    if (slice.dropped) return;
    if (slice.done.size === 1) journal.setUploadedAt(slice.rec, slice.uploadedAt);
    faultPoint('upload.time-noted');
    journal.setBlockDone(slice.rec, block);
    faultPoint('upload.noted');
    if (slice.complete && slice.done.size === blockCount(layout, slice.size)) options.uploaded(slice);
  }

  function uploadFailed(slice: Slice, block: number, error: unknown): void {
    const kind = error instanceof StoreError ? error.kind : 'io';
    trouble.failing(text(error));
    if (slice.dropped) return;
    slice.failures++;
    if (slice.failures >= (TELL_AFTER[kind] ?? Number.POSITIVE_INFINITY)) {
      slice.stuck = kind === 'no-space' ? ENOSPC : EIO;
      options.stuck(slice);
    }
    if (stopped) return;
    const pause = Math.min(RETRY_MAX, RETRY_FIRST * 2 ** Math.min(slice.failures, 10)) * (0.75 + Math.random() / 2);
    const again = setTimeout(() => {
      resting.delete(again);
      queue.push({ slice, block });
      pump();
    }, pause);
    resting.set(again, { slice, block });
  }

  function kick(file: File): void {
    for (const [again, job] of resting) {
      if (job.slice.chunk.file !== file) continue;
      clearTimeout(again);
      resting.delete(again);
      queue.push(job);
    }
    pump();
  }

  return {
    push: (slice, block) => void queue.push({ slice, block }),
    pump,
    kick,
    stop() {
      stopped = true;
      for (const again of resting.keys()) clearTimeout(again);
      resting.clear();
      queue.length = 0;
    },
  };
}
