import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { blockKey, sliceKeys } from '../../src/data/blocks.ts';
import { planCompaction } from '../../src/data/compactor.ts';
import { advance, createSessions } from '../../src/data/readahead.ts';
import { hole, type Slice } from '../../src/format/slice.ts';

const MIB = 1024 * 1024;
const slice = (id: number, pos: number, len: number): Slice => ({ pos, id, size: len, off: 0, len });

describe('object names', () => {
  it('as spec/volume.md §5', () => {
    const plain = { prefix: 'vol/', blockSize: 4 * MIB, hashPrefix: false };
    assert.equal(blockKey(plain, 1234567, 5 * MIB, 1), 'vol/chunks/1/1234/1234567_1_1048576');
    assert.equal(blockKey({ ...plain, hashPrefix: true }, 1234567, 5 * MIB, 0), 'vol/chunks/87/1/1234567_0_4194304');
    assert.deepEqual(sliceKeys(plain, 5, 1), ['vol/chunks/0/0/5_0_1']);
    assert.deepEqual(sliceKeys(plain, 5, 0), []);
  });
});

describe('what a compaction merges', () => {
  it('leaves large leading slices alone, strips holes at both ends', () => {
    assert.equal(planCompaction([]), undefined);
    assert.equal(planCompaction([slice(1, 0, 100)]), undefined);
    const small = planCompaction([slice(1, 0, 100), slice(2, 100, 100)])!;
    assert.deepEqual([small.skipped, small.pos, small.size], [0, 0, 200]);
    const log = planCompaction([slice(1, 0, 8 * MIB), slice(2, 8 * MIB, 100), slice(3, 8 * MIB + 100, 50)])!;
    assert.deepEqual([log.skipped, log.pos, log.size], [1, 8 * MIB, 150]);
    const holes = planCompaction([
      slice(1, 5000, 100),
      hole(0, 10_000),
      slice(2, 6000, 10),
      slice(3, 6010, 10),
      hole(6020, 500),
    ])!;
    assert.deepEqual([holes.skipped, holes.pos, holes.size], [0, 6000, 20]);
    assert.equal(planCompaction([slice(1, 0, 100), hole(0, 100)]), undefined);
  });

  it('merges an overwritten leading slice', () => {
    const plan = planCompaction([slice(1, 0, 8 * MIB), slice(2, MIB, 100), slice(3, 2 * MIB, 100)])!;
    assert.deepEqual([plan.skipped, plan.pos, plan.size], [0, 0, 8 * MIB]);
  });
});

describe('read-ahead', () => {
  const bs = 4 * MIB;
  it('begins with the first read of a file, grows while reads go on, up to the limit', () => {
    const sessions = createSessions();
    let ahead = 0;
    for (let at = 0; at < 256 * MIB; at += 128 * 1024) ahead = advance(sessions, at, 128 * 1024, bs, 32 * MIB).ahead;
    assert.equal(ahead, 32 * MIB);
  });
  it('follows two streams, and nothing that jumps about', () => {
    const sessions = createSessions();
    let a = 0;
    let b = 0;
    for (let at = 0; at < 32 * MIB; at += 128 * 1024) {
      a = advance(sessions, at, 128 * 1024, bs, 32 * MIB).ahead;
      b = advance(sessions, 1000 * MIB + at, 128 * 1024, bs, 32 * MIB).ahead;
    }
    assert.ok(a >= 8 * MIB && b >= 8 * MIB, `${a} ${b}`);
    const random = createSessions();
    for (let i = 1; i < 1000; i++)
      assert.equal(advance(random, ((i * 7919) % 1000) * 10 * MIB + MIB, 4096, bs, 32 * MIB).ahead, 0);
  });
  it('is off when memory is short', () => {
    assert.equal(advance(createSessions(), 0, 4096, bs, MIB).ahead, 0);
  });
});
