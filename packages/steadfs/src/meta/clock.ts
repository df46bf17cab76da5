/** Wall-clock time with sub-millisecond digits: Date.now() refined by the monotonic clock, never ahead of the millisecond it belongs to. */
import type { TimeSet } from './engine.ts';

let offset = 0;

export function now(): TimeSet {
  const ms = Date.now();
  let t = performance.now() + offset;
  if (t < ms || t >= ms + 1) {
    // First call, or the wall clock was set or slewed.
    offset += ms - t;
    t = ms;
  }
  const sec = Math.floor(ms / 1000);
  return { sec, nsec: Math.floor((t - sec * 1000) * 1e6) };
}

export function unixNow(): number {
  return Math.floor(Date.now() / 1000);
}
