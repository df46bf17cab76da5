import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findCycle } from '../../src/vfs/locks.ts';

const lock = { type: 1, start: 0n, end: 10n, pid: 0 };
const waiter = (owner: bigint, ino: number, flock = false) => ({ ino, owner, lock, flock, pid: Number(owner) });

/** Who holds what: inode → owners. */
async function cycle(
  held: Record<number, bigint[]>,
  waiting: ReturnType<typeof waiter>[],
  start: ReturnType<typeof waiter>,
) {
  const found = await findCycle(start, waiting, w =>
    (held[w.ino] ?? []).filter(o => o !== w.owner).map(owner => ({ owner })),
  );
  return found?.map(m => m.pid);
}

test('two owners that wait for each other are a deadlock', async () => {
  const a = waiter(1n, 20);
  const b = waiter(2n, 10);
  assert.deepEqual(await cycle({ 10: [1n], 20: [2n] }, [b], a), [1, 2]);
  assert.equal(await cycle({ 10: [1n], 20: [2n] }, [], a), undefined);
});

test('a long way round, branches that lead nowhere, and cycles that the caller is no part of', async () => {
  const waiting = [waiter(2n, 30), waiter(3n, 40), waiter(4n, 10), waiter(5n, 60), waiter(6n, 50)];
  const held = { 10: [1n], 20: [5n, 2n], 30: [3n], 40: [4n], 50: [5n], 60: [6n] };
  assert.deepEqual(await cycle(held, waiting, waiter(1n, 20)), [1, 2, 3, 4]);
  // 5 and 6 wait for each other (another mount's fault): the search ends all the same.
  assert.equal(await cycle({ ...held, 20: [5n] }, waiting, waiter(1n, 20)), undefined);
});

test('flock waiters take no part', async () => {
  assert.equal(await cycle({ 10: [1n], 20: [2n] }, [waiter(2n, 10, true)], waiter(1n, 20)), undefined);
});
