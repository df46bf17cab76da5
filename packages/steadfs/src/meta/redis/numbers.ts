/** Unused inode and slice numbers, fetched in batches. */
import { EINVAL } from '@steadfs/fuse/errno';
import type { Ino } from '../../format/ino.ts';
import type { MetaEngine } from '../engine.ts';
import type { Core } from './core.ts';
import { asNumber } from './forms.ts';

const INODE_BATCH = 1024;
const SLICE_BATCH = 4096;
/** Inodes left when the next batch is fetched. */
const INODES_LOW = 102;

export type Numbers = ReturnType<typeof numbers>;

export function numbers(core: Core) {
  const { S, key, logStamp, run, state } = core;

  /** Unused inode and slice numbers: next, end. */
  const inodes = { next: 0, end: 0, more: undefined as Promise<void> | undefined };
  const sliceIds = { next: 0, end: 0, more: undefined as Promise<void> | undefined };
  /** A batch that came before the one in use was used up. */
  const spare = new Map<typeof inodes, [number, number]>();

  // Behind a fail-over the counters may be older than what was fetched.
  core.downs.push(() => {
    for (const pool of [inodes, sliceIds]) pool.next = pool.end;
    spare.clear();
  });

  function fetchNumbers(pool: typeof inodes, counter: string, logName: string, batch: number): Promise<void> {
    pool.more ??= run(
      S.addCounter,
      [key(counter)],
      [counter, batch, logName, logStamp(), state.session?.identity.sid ?? 0],
    )
      .then(v => {
        const top = asNumber(v);
        const first = Math.max(top - batch + 1, counter === 'nextinode' ? 2 : 1);
        if (pool.next >= pool.end) {
          pool.next = first;
          pool.end = top + 1;
        } else spare.set(pool, [first, top + 1]);
      })
      .finally(() => {
        pool.more = undefined;
      });
    return pool.more;
  }

  function refill(pool: typeof inodes): void {
    const s = spare.get(pool);
    if (pool.next < pool.end || s === undefined) return;
    [pool.next, pool.end] = s;
    spare.delete(pool);
  }

  async function newInode(): Promise<Ino> {
    for (;;) {
      refill(inodes);
      if (inodes.next < inodes.end) break;
      await fetchNumbers(inodes, 'nextinode', 'nextInode', INODE_BATCH);
    }
    const ino = inodes.next++;
    if (inodes.end - inodes.next < INODES_LOW && !spare.has(inodes)) {
      // The one who runs dry reports the error.
      fetchNumbers(inodes, 'nextinode', 'nextInode', INODE_BATCH).catch(() => {});
    }
    return ino;
  }

  const methods: Pick<MetaEngine, 'newSliceIds'> = {
    async newSliceIds(count) {
      if (count > SLICE_BATCH) throw EINVAL;
      for (;;) {
        refill(sliceIds);
        if (sliceIds.end - sliceIds.next >= count) break;
        sliceIds.next = sliceIds.end;
        if (!spare.has(sliceIds)) await fetchNumbers(sliceIds, 'nextchunk', 'nextChunk', SLICE_BATCH);
      }
      const first = sliceIds.next;
      sliceIds.next += count;
      return first;
    },
  };
  return { methods, newInode };
}
