import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  CapsuleError,
  type CapsuleFault,
  type CapsuleFds,
  createCapsule,
  incompatible,
  inspectCapsule,
  lockCapsule,
  openCapsule,
  peekBlob,
} from '../src/capsule.ts';
import * as sys from '../src/sys.ts';

function withCapsule(body: (fds: CapsuleFds) => void, arenaSize = 1 << 22): void {
  const fds = createCapsule({ arenaSize });
  try {
    body(fds);
  } finally {
    sys.close(fds.capsule);
    sys.close(fds.arena);
  }
}

function refused(fault: CapsuleFault) {
  return (e: unknown) => e instanceof CapsuleError && e.fault === fault;
}

test('records and blobs are found again by the next process', () =>
  withCapsule(fds => {
    const a = openCapsule(fds);
    assert.equal(a.fresh, true);
    const r = a.records({ name: 'things', version: 1, recordSize: 32, capacity: 1000 });
    const indexes = Array.from({ length: 200 }, () => r.alloc()!);
    assert.deepEqual(
      indexes.toSorted((x, y) => x - y),
      [...Array(200).keys()],
    );
    for (const i of indexes) {
      r.view.setUint32(r.offsetOf(i) + 8, i * 3, true);
      if (i % 2) r.setState(i, 5);
    }
    r.free(7);
    assert.throws(() => r.free(7), RangeError);
    const blob = a.blob('options', 100);
    assert.equal(blob.get(), undefined);
    blob.set(Buffer.from('one'));
    blob.set(Buffer.from('two'));
    assert.throws(() => blob.set(new Uint8Array(101)), RangeError);

    const b = openCapsule(fds);
    assert.equal(b.fresh, false);
    assert.equal(b.id, a.id);
    const s = b.records({ name: 'things', version: 1, recordSize: 32, capacity: 5000 });
    assert.equal(s.capacity, 1000);
    assert.deepEqual(
      [...s.live()],
      indexes.filter(i => i % 2 && i !== 7).sort((x, y) => x - y),
    );
    assert.equal(s.view.getUint32(s.offsetOf(9) + 8, true), 27);
    assert.equal(s.state(9), 5);
    assert.equal(s.alloc(), 0);
    assert.equal(s.alloc(), 2);
    assert.equal(Buffer.from(b.blob('options', 100).get()!).toString(), 'two');
    assert.equal(
      Buffer.from(b.blob('options', 100).get()!).toString(),
      Buffer.from(peekBlob(fds.capsule, 'options')!).toString(),
    );
    const { sections } = inspectCapsule(fds.capsule);
    assert.deepEqual(sections.map(x => x.name).sort(), ['options', 'things']);
  }));

test('a full section says so, and every record can be had', () =>
  withCapsule(fds => {
    const r = openCapsule(fds).records({ name: 'few', version: 1, recordSize: 8, capacity: 100 });
    const got = new Set<number>();
    for (let i = r.alloc(); i !== undefined; i = r.alloc()) got.add(i);
    assert.equal(got.size, 100);
    r.free(42);
    assert.equal(r.alloc(), 42);
    assert.equal(r.alloc(), undefined);
  }));

test('a blob grows with the version that wants more', () =>
  withCapsule(fds => {
    openCapsule(fds).blob('b', 10).set(Buffer.from('0123456789'));
    const big = openCapsule(fds).blob('b', 1000);
    assert.equal(Buffer.from(big.get()!).toString(), '0123456789');
    big.set(new Uint8Array(1000).fill(1));
    assert.equal(openCapsule(fds).blob('b', 1000).get()!.length, 1000);
  }));

test('an older section is migrated, a newer one refused', () =>
  withCapsule(fds => {
    const v1 = openCapsule(fds).records({ name: 's', version: 1, recordSize: 16, capacity: 100 });
    for (let i = 0; i < 90; i++) {
      const k = v1.alloc()!;
      v1.view.setUint32(v1.offsetOf(k) + 4, 1000 + k, true);
      v1.setState(k, 1);
    }
    const spec = { name: 's', version: 2, recordSize: 32, capacity: 200 };
    assert.throws(() => openCapsule(fds).records(spec), refused('foreign'));
    assert.throws(
      () =>
        openCapsule(fds).records(spec, (_from, to) => {
          to.setState(to.alloc()!, 9);
          throw new Error('killed here');
        }),
      /killed here/,
    );
    const v2 = openCapsule(fds).records(spec, (from, to) => {
      for (const i of from.live()) {
        const k = to.alloc()!;
        to.view.setUint32(to.offsetOf(k) + 8, from.view.getUint32(from.offsetOf(i) + 4, true), true);
        to.setState(k, 2);
      }
    });
    assert.equal([...v2.live()].length, 90);
    const again = openCapsule(fds).records(spec);
    assert.deepEqual(
      [...again.live()].map(i => again.view.getUint32(again.offsetOf(i) + 8, true)),
      Array.from({ length: 90 }, (_, i) => 1000 + i),
    );
    assert.throws(
      () => openCapsule(fds).records({ name: 's', version: 1, recordSize: 16, capacity: 100 }),
      refused('newer'),
    );
    const { sections } = inspectCapsule(fds.capsule);
    assert.match(incompatible(sections, [{ name: 's', version: 1 }])!, /version 2/);
    assert.match(incompatible(sections, [])!, /does not know/);
    assert.equal(
      incompatible(sections, [
        { name: 's', version: 2 },
        { name: 'more', version: 1 },
      ]),
      undefined,
    );
  }));

test('a version that does not know a hint adopts the capsule all the same, and what the hint said is forgotten', () =>
  withCapsule(fds => {
    const text = (): string | undefined => {
      const value = peekBlob(fds.capsule, 'hint');
      return value && Buffer.from(value).toString();
    };
    openCapsule(fds).hint('hint', 100).set(Buffer.from('one'));
    assert.equal(text(), 'one');
    assert.equal(incompatible(inspectCapsule(fds.capsule).sections, []), undefined);
    const next = openCapsule(fds);
    assert.equal(text(), undefined, 'not opened yet');
    assert.equal(Buffer.from(next.hint('hint', 100).get()!).toString(), 'one');
    openCapsule(fds, { beforehand: true });
    assert.equal(text(), 'one');
    openCapsule(fds); // does not know it
    assert.equal(text(), undefined);
    const later = openCapsule(fds).hint('hint', 100);
    assert.equal(later.get(), undefined);
    later.set(Buffer.from('two'));
    assert.equal(text(), 'two');
  }));

test('foreign and damaged memory is refused, whatever byte is wrong', () => {
  const foreign = sys.memfdCreate('foreign');
  const arena = sys.memfdCreate('arena');
  assert.throws(() => openCapsule({ capsule: foreign, arena }), refused('foreign'));
  sys.ftruncate(foreign, 1 << 20);
  assert.throws(() => openCapsule({ capsule: foreign, arena }), refused('foreign'));
  sys.close(foreign);
  withCapsule(fds => {
    openCapsule(fds).records({ name: 'things', version: 1, recordSize: 32, capacity: 1000 });
    const m = sys.mapFd(fds.capsule, 0, 8192);
    const damaged: number[] = [];
    for (const at of [...Array(68).keys(), ...Array.from({ length: 116 }, (_, i) => 4096 + 4 + i)]) {
      m.bytes[at]! ^= 0x10;
      assert.throws(() => inspectCapsule(fds.capsule), CapsuleError, `byte ${at}`);
      m.bytes[at]! ^= 0x10;
      damaged.push(at);
    }
    inspectCapsule(fds.capsule);
    m.view.setUint32(8, 2, true);
    assert.throws(() => inspectCapsule(fds.capsule), refused('newer'));
  });
  sys.close(arena);
});

test('the lock is one per process tree: this process takes it twice, another not at all (sys.test.ts)', () =>
  withCapsule(fds => {
    lockCapsule(fds.capsule);
    lockCapsule(fds.capsule);
    assert.equal(sys.lockHolder(fds.capsule), undefined);
  }));

test('arena: random use against a model', async () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e9);
  console.log(`seed ${seed}`);
  let x = seed || 1;
  const random = (n: number) => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return Math.floor((x / 2 ** 32) * n);
  };
  const fds = createCapsule({ arenaSize: 1 << 24 });
  try {
    let arena = openCapsule(fds).arena;
    const pages = arena.size / 4096;
    const owner = new Int32Array(pages);
    const runs = new Map<number, { offset: number; length: number }>();
    let id = 0;
    const count = (n: number) => Math.ceil(n / 4096);
    for (let step = 0; step < 20000; step++) {
      const what = random(100);
      if (what < 50) {
        const length = [1, 4096, 5000, 131072, 1 << 20, 4 << 20][random(6)]! - random(2);
        const near = runs.size && random(2) ? [...runs.values()].at(-1) : undefined;
        const present = random(4) === 0 ? arena.allocPresent(Math.max(1, length)) : undefined;
        const offset = present ?? arena.alloc(Math.max(1, length), near && near.offset + count(near.length) * 4096);
        if (offset === undefined) {
          let longest = 0;
          let n = 0;
          for (const o of owner) {
            n = o ? 0 : n + 1;
            longest = Math.max(longest, n);
          }
          assert.ok(longest < count(Math.max(1, length)), `a run of ${longest} pages was free for ${length} bytes`);
          continue;
        }
        id++;
        for (let p = offset / 4096; p < offset / 4096 + count(Math.max(1, length)); p++) {
          assert.equal(owner[p], 0);
          owner[p] = id;
        }
        arena.bytes[offset] = id & 255;
        runs.set(id, { offset, length: Math.max(1, length) });
      } else if (what < 90 && runs.size) {
        const [key, r] = [...runs][random(runs.size)]!;
        assert.equal(arena.bytes[r.offset], key & 255);
        arena.free(r.offset, r.length);
        owner.fill(0, r.offset / 4096, r.offset / 4096 + count(r.length));
        runs.delete(key);
      } else if (what < 96 && runs.size) {
        const [key, r] = [...runs][random(runs.size)]!;
        const newLength = r.length + random(65536);
        const end = r.offset / 4096 + count(r.length);
        const wantEnd = r.offset / 4096 + count(newLength);
        const can = wantEnd <= pages && owner.subarray(end, wantEnd).every(o => o === 0);
        assert.equal(arena.extend(r.offset, r.length, newLength), can);
        if (can) {
          owner.fill(key, end, wantEnd);
          r.length = newLength;
        }
      } else if (what < 98) arena.trim();
      else if (what === 99 && random(20) === 0) {
        // Another process adopts.
        arena = openCapsule(fds).arena;
        for (const r of runs.values()) arena.claim(r.offset, r.length);
        const any = [...runs.values()][0];
        if (any) assert.throws(() => arena.claim(any.offset, 1));
      }
      let used = 0;
      for (const r of runs.values()) used += count(r.length) * 4096;
      assert.equal(arena.used, used);
    }
    for (const r of runs.values()) arena.free(r.offset, r.length);
    // What was populated ahead is given back when that has ended; arenas of processes before may have been at it too.
    for (const give of [0, 1, 2, 3]) {
      if (give > 0) await sleep(give * 20);
      arena = openCapsule(fds).arena;
      arena.trim();
      arena.trim();
    }
    assert.deepEqual([...sys.dataRanges(fds.arena, arena.size)], []);
    assert.equal(arena.alloc(arena.size), 0);
  } finally {
    sys.close(fds.capsule);
    sys.close(fds.arena);
  }
});

test('arena: what was in use is used again before fresh memory', () =>
  withCapsule(fds => {
    const { arena } = openCapsule(fds);
    const mib = 1 << 20;
    assert.equal(arena.allocPresent(mib), undefined);
    const a = arena.alloc(mib)!;
    const b = arena.alloc(mib)!;
    assert.equal(arena.extend(b, mib, 2 * mib, true), false, 'the pages behind it are fresh');
    arena.free(a, mib);
    assert.equal(arena.allocPresent(mib), a);
    arena.free(a, mib);
    arena.free(b, mib);
    assert.equal(arena.allocPresent(2 * mib + 1), undefined);
    assert.equal(arena.allocPresent(2 * mib), a);
    assert.equal(arena.extend(a, 2 * mib, 3 * mib), true);
    const kept = [...sys.dataRanges(fds.arena, arena.size)].reduce((sum, [start, end]) => sum + end - start, 0);
    assert.equal(kept, 3 * mib);
  }));

test('an arena grows at adoption', () =>
  withCapsule(fds => {
    assert.equal(openCapsule(fds).arena.size, 1 << 22);
    assert.equal(openCapsule(fds, { arenaSize: 5e6 }).arena.size, 20 * 262144);
    assert.equal(openCapsule(fds, { arenaSize: 1 }).arena.size, 20 * 262144);
  }));
