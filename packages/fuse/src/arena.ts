/**
 * The arena's page allocator: contiguous runs of 4 KiB pages out of one big mapping, all steps O(1) but the search of a claim.
 *
 * Free runs carry their length at their first and last page (so neighbours join at once) and hang in lists by size: one list per length up to 64 pages, above
 * that four per power of two. All of this is in process memory; after an adoption everything is free until its owner claims it.
 *
 * Memory comes in chunks of 64 pages: a chunk is populated (in this process's page table) before a page of it is given out, because a fault in the middle of
 * a read(2) under SIGKILL would lose the request; {@link Arena.trim} gives chunks that were free since the trim before back to the system.
 * Fresh memory is dear (0.7 ms per MiB, three times that where the host of a virtual machine has to find it): memory that is in use goes before it, and while it is asked
 * for in a stream, a thread of libuv's pool allocates the chunks that come next (not MADV_POPULATE: that holds the lock of the address space, for which V8 would wait).
 */

import type { Arena } from './capsule-types.ts';
import { EINVAL } from './errno.ts';
import { allocateLater, dataRanges, type Memory, populate, punchHole } from './sys.ts';

const PAGE = 4096;
const CHUNK_PAGES = 64;
const CHUNK = PAGE * CHUNK_PAGES;
/** Chunks populated since the last trim that make a stream, and how many are allocated before they are asked for. */
const STREAM = 8;
const AHEAD = 16;
/** Pages of a free run among which present ones are looked for. */
const LOOK = 4096;
const EXACT = 64;
const CLASSES = EXACT + 4 * 24;
const NONE = -1;

/** List of runs of `pages` pages: exact up to 64, then the class whose runs are all at least its lower bound. */
function classOf(pages: number): number {
  if (pages <= EXACT) return pages - 1;
  const exponent = 31 - Math.clz32(pages);
  return Math.min(CLASSES - 1, EXACT + (exponent - 6) * 4 + ((pages >> (exponent - 2)) & 3));
}

/** Per page; made apart because it takes time, see mapCapsule(). */
export interface ArenaTables {
  used: Uint8Array;
  /** At the first and last page of a free run: its length. */
  run: Int32Array;
  next: Int32Array;
  previous: Int32Array;
}

export function arenaTables(length: number): ArenaTables {
  const pages = Math.floor(length / PAGE);
  return {
    used: new Uint8Array(pages),
    run: new Int32Array(pages),
    next: new Int32Array(pages),
    previous: new Int32Array(pages),
  };
}

export function createArena(fd: number, memory: Memory, tables: ArenaTables = arenaTables(memory.length)): Arena {
  const pages = Math.floor(memory.length / PAGE);
  const chunks = Math.ceil(pages / CHUNK_PAGES);
  const { used, run, next, previous } = tables;
  const heads = new Int32Array(CLASSES).fill(NONE);
  /** Per chunk: pages given out; present in our page table; may hold memory in the memfd; trim counter when it became free. */
  const usedOf = new Uint8Array(chunks);
  const present = new Uint8Array(chunks);
  const backed = new Uint8Array(chunks);
  const freeSince = new Uint32Array(chunks);
  let epoch = 1;
  let usedPages = 0;
  /** First page of the free run that the pages freed last became part of; it may have changed since. */
  let recent = 0;
  /** Chunks populated while somebody waited, since the last trim. */
  let demand = 0;
  /** Chunks [start, end) that the pool is allocating. */
  let ahead = { start: 0, end: 0 };

  for (const [start, end] of dataRanges(fd, memory.length))
    backed.fill(1, Math.floor(start / CHUNK), Math.ceil(end / CHUNK));

  function link(page: number, length: number): void {
    run[page] = length;
    run[page + length - 1] = length;
    const k = classOf(length);
    const head = heads[k]!;
    next[page] = head;
    previous[page] = NONE;
    if (head !== NONE) previous[head] = page;
    heads[k] = page;
  }

  function unlink(page: number): void {
    const before = previous[page]!;
    const after = next[page]!;
    if (before !== NONE) next[before] = after;
    else heads[classOf(run[page]!)] = after;
    if (after !== NONE) previous[after] = before;
  }

  link(0, pages);

  /** First page of a free run of at least `count` pages. */
  function find(count: number): number {
    const own = classOf(count);
    // Lists of more than one length: the first few of our own may fit, every one of a greater class does.
    let tries = 8;
    for (let page = heads[own]!; page !== NONE && tries-- > 0; page = next[page]!) if (run[page]! >= count) return page;
    for (let k = own + 1; k < CLASSES; k++) if (heads[k] !== NONE) return heads[k]!;
    for (let page = heads[own]!; page !== NONE; page = next[page]!) if (run[page]! >= count) return page;
    return NONE;
  }

  /** Takes pages [page, page + count) out of the free run that begins at `head`. */
  function take(head: number, page: number, count: number): void {
    const length = run[head]!;
    unlink(head);
    if (page > head) link(head, page - head);
    const rest = head + length - (page + count);
    if (rest > 0) link(page + count, rest);
    used.fill(1, page, page + count);
    usedPages += count;
    for (let i = page; i < page + count; ) {
      const chunk = Math.floor(i / CHUNK_PAGES);
      const end = Math.min(page + count, (chunk + 1) * CHUNK_PAGES);
      usedOf[chunk]! += end - i;
      i = end;
    }
  }

  function makePresent(page: number, count: number): void {
    const last = Math.floor((page + count - 1) / CHUNK_PAGES);
    for (let chunk = Math.floor(page / CHUNK_PAGES); chunk <= last; chunk++) {
      if (present[chunk]) continue;
      let end = chunk + 1;
      while (end <= last && !present[end]) end++;
      const start = chunk * CHUNK;
      populate(memory.address + start, Math.min(end * CHUNK, pages * PAGE) - start);
      present.fill(1, chunk, end);
      backed.fill(1, chunk, end);
      demand += end - chunk;
      chunk = end - 1;
    }
    if (demand >= STREAM) allocateAhead(last + 1);
  }

  function isPresent(page: number, count: number): boolean {
    const last = Math.floor((page + count - 1) / CHUNK_PAGES);
    for (let chunk = Math.floor(page / CHUNK_PAGES); chunk <= last; chunk++) if (!present[chunk]) return false;
    return true;
  }

  function allocateAhead(from: number): void {
    if (ahead.end > 0) return;
    const stop = Math.min(chunks, from + AHEAD);
    let start = from;
    while (start < stop && backed[start]) start++;
    if (start === stop || start > from + AHEAD / 2) return;
    let end = start + 1;
    while (end < stop && !backed[end]) end++;
    ahead = { start, end };
    backed.fill(1, start, end);
    void allocateLater(fd, start * CHUNK, Math.min(end * CHUNK, pages * PAGE) - start * CHUNK).then(done => {
      // A kernel that cannot is not asked again.
      if (!done) demand = Number.NEGATIVE_INFINITY;
      ahead = { start: 0, end: 0 };
    });
  }

  function range(offset: number, length: number): [number, number] {
    const page = offset / PAGE;
    const count = Math.ceil(length / PAGE);
    if (!Number.isInteger(page) || page < 0 || count < 1 || page + count > pages)
      throw EINVAL.because(`arena has no run of ${length} bytes at ${offset}`);
    return [page, count];
  }

  return {
    size: pages * PAGE,
    bytes: memory.bytes,
    address: BigInt(memory.address),
    get used() {
      return usedPages * PAGE;
    },
    alloc(length, near) {
      const count = Math.max(1, Math.ceil(length / PAGE));
      if (near !== undefined) {
        const page = near / PAGE;
        if (
          Number.isInteger(page) &&
          page > 0 &&
          page < pages &&
          !used[page] &&
          used[page - 1] &&
          run[page]! >= count
        ) {
          take(page, page, count);
          makePresent(page, count);
          return near;
        }
      }
      const page = find(count);
      if (page === NONE) return undefined;
      take(page, page, count);
      makePresent(page, count);
      return page * PAGE;
    },
    allocPresent(length) {
      const count = Math.max(1, Math.ceil(length / PAGE));
      if (used[recent] || (recent > 0 && !used[recent - 1])) return undefined;
      const end = Math.min(recent + run[recent]!, recent + LOOK);
      for (let page = recent; page + count <= end; page = (Math.floor(page / CHUNK_PAGES) + 1) * CHUNK_PAGES) {
        if (!isPresent(page, count)) continue;
        take(recent, page, count);
        return page * PAGE;
      }
      return undefined;
    },
    extend(offset, length, newLength, present = false) {
      const [page, count] = range(offset, length);
      const more = Math.ceil(newLength / PAGE) - count;
      if (more <= 0) return true;
      const end = page + count;
      if (end >= pages || used[end] || run[end]! < more) return false;
      if (present && !isPresent(end, more)) return false;
      take(end, end, more);
      makePresent(end, more);
      return true;
    },
    free(offset, length) {
      const [page, count] = range(offset, length);
      for (let i = page; i < page + count; i++)
        if (!used[i]) throw EINVAL.because(`arena page ${i} is freed twice (run of ${length} bytes at ${offset})`);
      used.fill(0, page, page + count);
      usedPages -= count;
      for (let i = page; i < page + count; ) {
        const chunk = Math.floor(i / CHUNK_PAGES);
        const end = Math.min(page + count, (chunk + 1) * CHUNK_PAGES);
        usedOf[chunk]! -= end - i;
        if (usedOf[chunk] === 0) freeSince[chunk] = epoch;
        i = end;
      }
      let start = page;
      let end = page + count;
      if (end < pages && !used[end]) {
        unlink(end);
        end += run[end]!;
      }
      if (start > 0 && !used[start - 1]) {
        start -= run[start - 1]!;
        unlink(start);
      }
      link(start, end - start);
      recent = start;
    },
    claim(offset, length) {
      const [page, count] = range(offset, length);
      for (let i = page; i < page + count; i++)
        if (used[i]) throw EINVAL.because(`arena page ${i} is claimed twice (run of ${length} bytes at ${offset})`);
      const before = used.lastIndexOf(1, page);
      take(before + 1, page, count);
      makePresent(page, count);
    },
    trim() {
      const idle = (chunk: number): boolean =>
        backed[chunk] === 1 &&
        usedOf[chunk] === 0 &&
        freeSince[chunk]! < epoch &&
        !(chunk >= ahead.start && chunk < ahead.end);
      if (demand > 0) demand = 0;
      for (let chunk = 0; chunk < chunks; chunk++) {
        if (!idle(chunk)) continue;
        let end = chunk + 1;
        while (end < chunks && idle(end)) end++;
        punchHole(fd, chunk * CHUNK, (end - chunk) * CHUNK);
        present.fill(0, chunk, end);
        backed.fill(0, chunk, end);
        chunk = end;
      }
      epoch++;
    },
  };
}
