/** Waits of a request: it leaves its slot when they are long, and ends when its caller is being killed, or the time for it is up. */
import { EINTR, EIO } from '@steadfs/fuse/errno';
import type { Waiting } from './file-data.ts';

/** A wait that is over within this time (ms) keeps its slot. */
const PARK_AFTER = 20;

/** The promise's outcome; rejects with EINTR when the caller of the request is dying. Without `waiting` it is only the promise. */
export async function patiently<T>(promise: Promise<T>, waiting: Waiting | undefined): Promise<T> {
  if (waiting === undefined) return promise;
  const timer = setTimeout(() => waiting.park(), PARK_AFTER);
  try {
    for (;;) {
      const settled = promise.then(value => ({ value }));
      const outcome = await Promise.race([settled, interrupted(waiting)]);
      if (outcome !== undefined) return outcome.value;
      if (waiting.interrupt.expired) throw EIO.because('the request has waited too long');
      if (waiting.interrupt.callerIsDying()) throw EINTR;
      // A handled signal breaks nothing; the next look is in a while, for the death may follow.
      const again = await Promise.race([settled, new Promise<undefined>(go => setTimeout(go, 100, undefined))]);
      if (again !== undefined) return again.value;
    }
  } finally {
    clearTimeout(timer);
  }
}

function interrupted(waiting: Waiting): Promise<undefined> {
  return waiting.interrupt.promise.then(() => undefined);
}
