/**
 * The one clock of all times in the volume: what a write shows and what the mutations after it set must be in order.
 */
import type { TimeSet } from './engine.ts';

let offset = 0;
let last = 0;

/** Wall-clock time in microseconds: Date.now() refined by the monotonic clock. Never twice the same, and only back when the wall clock was set back. */
export function now(): TimeSet {
  const ms = Date.now();
  let t = performance.now() + offset;
  if (t < ms || t >= ms + 1) {
    // First call, or the wall clock was set or slewed.
    offset += ms - t;
    t = ms;
  }
  let micros = Math.floor(t * 1000);
  if (micros <= last && last - micros < 1_000_000) micros = last + 1;
  last = micros;
  return { sec: Math.floor(micros / 1e6), nsec: (micros % 1e6) * 1000 };
}

export function unixNow(): number {
  return Math.floor(Date.now() / 1000);
}
