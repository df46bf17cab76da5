/** What a new process makes of the records of dirty data that it finds in the capsule (journal.ts). */
import { errnoOf } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { type BlockLayout, blockCount } from './blocks.ts';
import { type Chunk, type Extent, type File, makeSlice, type Slice } from './dirty.ts';
import { type Journal, KILL_SUIDGID, SliceState } from './journal.ts';
import type { Memory, Run } from './memory.ts';

export interface RestoreTo {
  journal: Journal;
  memory: Memory;
  layout: BlockLayout;
  /** The file, made when it is new; the same for a chunk of it. */
  file(ino: Ino): File;
  chunk(ino: Ino, index: number): Chunk;
  /** Arena offset of a run that has dirty data. */
  claimed(at: number): void;
}

/**
 * Files, chunks, slices and extents as the records say, claimed in the arena; records that a death left half made are freed. Chunks have their slices in order of
 * creation and their open extents in order of position, disjoint; what of it is listed elsewhere (bytes that are open, writer records that are missing) is the
 * caller's.
 */
export function restore(to: RestoreTo): void {
  const { journal, memory, layout } = to;
  for (const w of journal.writers()) {
    const file = to.file(w.ino);
    file.rec = w.rec;
    file.mtime = w.mtime;
    // A process of a version before this field did not note it.
    file.ctime = w.ctime.sec !== 0 ? w.ctime : w.mtime;
    file.kill = (w.flags & KILL_SUIDGID) !== 0;
    file.tier = w.tier;
    if (w.errno !== 0) file.error = errnoOf(w.errno);
  }
  const slices = new Map<number, Slice | 'garbage'>();
  const sliceRecords = journal.slices().sort((a, b) => a.seq - b.seq);
  for (const r of sliceRecords) {
    if (r.state === SliceState.committed || (r.state === SliceState.growing && r.begun === 0)) {
      if (r.state === SliceState.committed) slices.set(r.rec, 'garbage');
      continue;
    }
    const chunk = to.chunk(r.ino, r.index);
    const slice = makeSlice(chunk, r.rec, r.seq, r.id, 0);
    slice.complete = r.state === SliceState.complete;
    slice.begun = slice.complete ? blockCount(layout, r.size) : r.begun;
    slice.size = slice.complete ? r.size : r.begun * layout.blockSize;
    slice.uploadedAt = r.uploadedAt || Date.now();
    for (let block = 0; block < Math.min(64, slice.begun); block++)
      if (((block < 32 ? r.doneLow : r.doneHigh) >>> (block & 31)) & 1) slice.done.add(block);
    chunk.slices.push(slice);
    slices.set(r.rec, slice);
  }
  const runs = new Map<number, Run>();
  const opened = new Set<Chunk>();
  for (const r of journal.extents()) {
    const slice = r.slice < 0 ? undefined : slices.get(r.slice);
    if (slice === 'garbage') {
      journal.freeExtent(r.rec);
      continue;
    }
    let run = runs.get(r.runAt);
    if (run === undefined) {
      memory.arena.claim(r.runAt, r.runLength);
      run = memory.adopt(r.runAt, r.runLength);
      runs.set(r.runAt, run);
      to.claimed(r.runAt);
    } else memory.hold(run);
    memory.markDirty(run);
    run.used = Math.max(run.used, r.at + r.len);
    const extent: Extent = { rec: r.rec, pos: r.pos, len: r.len, at: r.at, run, off: r.off };
    if (slice !== undefined && (slice.complete || r.off + r.len <= slice.size)) {
      slice.extents.push(extent);
      continue;
    }
    if (r.slice >= 0) journal.openExtent(r.rec);
    extent.off = 0;
    const chunk = to.chunk(r.ino, r.index);
    chunk.open.push(extent);
    opened.add(chunk);
  }
  for (const r of sliceRecords) {
    const slice = slices.get(r.rec);
    if (slice === undefined || slice === 'garbage') journal.freeSlice(r.rec);
    else {
      slice.extents.sort((a, b) => a.off - b.off);
      slice.from = slice.extents[0]!.pos;
      const last = slice.extents.at(-1)!;
      slice.to = last.pos + last.len;
    }
  }
  for (const chunk of opened) {
    chunk.open.sort((a, b) => a.pos - b.pos || b.len - a.len);
    // A split that was cut short: both halves describe the same bytes of the same pages.
    for (let i = 1; i < chunk.open.length; ) {
      const before = chunk.open[i - 1]!;
      const e = chunk.open[i]!;
      if (e.pos >= before.pos + before.len) {
        i++;
        continue;
      }
      journal.freeExtent(e.rec);
      memory.unmarkDirty(e.run);
      memory.drop(e.run);
      chunk.open.splice(i, 1);
    }
  }
}
