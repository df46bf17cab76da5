/** Where the calls of the file store run and how large objects are written, decided from what was measured. */
import fs from 'node:fs';
import { sleeps } from '@steadfs/fuse/sys';

/** A call on the loop that takes longer than this (ms), and slept, sends the following ones to the pool. */
const SLOW = 0.8;
/** How long (ms) the pool is used after a slow call; doubled while slow calls come soon again, halved by every 16 fast ones. */
const PENALTY = 20;
const PENALTY_MAX = 2000;
/** Bytes a second that may be written from the loop where nothing is known of the kernel's dirty pages. */
const LOOP_BYTES_PER_SECOND = 64 * 1024 * 1024;
/** ms for which a look at the kernel's dirty pages stands, and bytes that we may write meanwhile. */
const LOOK = 250;
const LOOK_BYTES = 64 * 1024 * 1024;

const MIB = 1024 * 1024;
/** Direct writing that is slower than this (MiB/s) is compared with the other way. */
const FAST = 400;
/** A rate is taken from at least so many bytes. */
const SAMPLE = 32 * MIB;
/** How long (ms) the slower way is not tried again. */
const SETTLED = 10_000;

/** Decides whether the next small call may run on the loop. */
export interface Pace {
  allowed(bytes: number): boolean;
  /** Runs a call on the loop and learns from it. */
  run<T>(bytes: number, call: () => T): T;
}

/** `writes`: the kernel makes a writer wait inside write(2) once there are many dirty pages, so those are watched. */
export function createPace(writes: boolean): Pace {
  let blockedUntil = 0;
  let penalty = PENALTY;
  let fast = 0;
  let since = 0;
  let bytesSince = 0;
  let room = true;
  return {
    allowed(bytes) {
      const now = performance.now();
      if (now < blockedUntil) return false;
      if (!writes) return true;
      if (now - since > (bytesSince > 0 ? LOOK : 4 * LOOK) || bytesSince + bytes > LOOK_BYTES) {
        const pages = dirtyPages();
        // Writers are held up from between the two thresholds on; one of them is a good way off.
        const known = pages !== undefined;
        if (known) room = pages.dirty < pages.background;
        if (known || now - since > 1000) {
          since = now;
          bytesSince = 0;
        } else room = bytesSince + bytes <= LOOP_BYTES_PER_SECOND;
      }
      return room;
    },
    run(bytes, call) {
      const before = sleeps();
      const begin = performance.now();
      try {
        return call();
      } finally {
        bytesSince += bytes;
        const end = performance.now();
        if (end - begin <= SLOW || sleeps() === before) {
          if (++fast % 16 === 0) penalty = Math.max(PENALTY, penalty / 2);
        } else {
          fast = 0;
          blockedUntil = end + penalty;
          penalty = Math.min(PENALTY_MAX, penalty * 2);
        }
      }
    },
  };
}

let vmstat: number | undefined;
const text = Buffer.alloc(16 * 1024);

/** Dirty pages of the system, those on their way to a disk included, and how many there may be before writing back begins; undefined where /proc does not tell. */
export function dirtyPages(): { dirty: number; background: number } | undefined {
  try {
    vmstat ??= fs.openSync('/proc/vmstat', 'r');
    const all = text.toString('latin1', 0, fs.readSync(vmstat, text, 0, text.length, 0));
    const field = (name: string): number => {
      const at = all.indexOf(`\n${name} `);
      return at < 0 ? Number.NaN : Number.parseInt(all.slice(at + name.length + 2, at + name.length + 22), 10);
    };
    const dirty = field('nr_dirty') + field('nr_writeback');
    const background = field('nr_dirty_background_threshold');
    return Number.isNaN(dirty + background) ? undefined : { dirty, background };
  } catch {
    // No /proc/vmstat here: the caller goes by time alone.
    return undefined;
  }
}

/**
 * Direct or through the page cache: large objects are written directly (no copy, no pages of the page cache, which are dear when they are touched first,
 * nothing left for an fsync) as long as the disk takes them fast. A slow disk is better hidden behind the page cache.
 */
export interface Direct {
  /** How the next large object is written. */
  next(): boolean;
  began(direct: boolean): void;
  ended(direct: boolean, bytes: number): void;
  /** The file system has no direct writing. */
  never(): void;
}

export function createDirect(): Direct {
  const way = () => ({ under: 0, begin: 0, busy: 0, bytes: 0, rate: 0 });
  const ways = [way(), way()] as const;
  let choice = true;
  let settledUntil = 0;
  let possible = true;
  return {
    next() {
      if (possible && !choice && performance.now() > settledUntil) choice = true;
      return possible && choice;
    },
    began(direct) {
      const w = ways[direct ? 0 : 1];
      if (w.under++ === 0) w.begin = performance.now();
    },
    ended(direct, bytes) {
      const now = performance.now();
      const w = ways[direct ? 0 : 1];
      w.busy += now - w.begin;
      w.begin = now;
      w.under--;
      w.bytes += bytes;
      if (w.bytes < SAMPLE) return;
      w.rate = w.bytes / MIB / (w.busy / 1000);
      w.bytes = w.busy = 0;
      const other = ways[direct ? 1 : 0].rate;
      if (direct && w.rate < FAST && w.rate < other * 0.7) {
        choice = false;
        settledUntil = now + SETTLED;
      } else if (direct && w.rate < FAST && other === 0) {
        // Not known yet: a look at the other way, for one sample.
        choice = false;
        settledUntil = now + SETTLED;
      } else if (!direct && w.rate < ways[0].rate * 1.4) choice = true;
    },
    never() {
      possible = false;
    },
  };
}
