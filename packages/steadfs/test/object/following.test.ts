/** A store that follows the volume's settings: who serves a call, when the old one is closed, what a denied call does. */
import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { it } from 'node:test';
import type { Format } from '../../src/format/volume.ts';
import { createFileStore } from '../../src/object/file.ts';
import { createFollowingStore } from '../../src/object/following.ts';
import { createMemStore } from '../../src/object/mem.ts';
import { createShardedStore } from '../../src/object/sharded.ts';
import { type ObjectStore, StoreError } from '../../src/object/store.ts';
import { meteredStore } from '../../src/observe/metered-store.ts';
import { Metrics } from '../../src/observe/metrics.ts';

const volume = (key: string): Format =>
  ({
    Name: 'v',
    UUID: 'u',
    Storage: 'mem',
    Bucket: '',
    AccessKey: key,
    BlockSize: 4096,
    TrashDays: 0,
    EnableACL: false,
    Tiers: null,
  }) as Format;

/** Stores over one memory that take the keys in `valid`. */
function service(valid: Set<string>) {
  const memory = createMemStore();
  const closed: string[] = [];
  const log: string[] = [];
  let stored = volume('first');
  let reloads = 0;
  let gate: Promise<void> | undefined;
  const open = async (f: Format): Promise<ObjectStore> => {
    const key = f.AccessKey!;
    if (key === 'unusable') throw new StoreError('invalid', 'no such place');
    const check = async (): Promise<void> => {
      await gate;
      if (!valid.has(key)) throw new StoreError('denied', `${key} may not`);
    };
    return {
      ...memory,
      put: async (k, p, o) => {
        await check();
        await memory.put(k, p, o);
      },
      read: async (k, max) => {
        await check();
        return await memory.read(k, max);
      },
      close: async () => void closed.push(key),
    };
  };
  return {
    closed,
    log,
    valid,
    set stored(f: Format) {
      stored = f;
    },
    get reloads() {
      return reloads;
    },
    hold(promise: Promise<void>) {
      gate = promise;
    },
    make: () =>
      createFollowingStore({
        format: volume('first'),
        open,
        reload: async () => {
          reloads++;
          return stored;
        },
        log: (_, message) => log.push(message),
      }),
  };
}

it('calls under way end with the store they began with, which is closed then', async () => {
  const s = service(new Set(['first', 'second']));
  const store = await s.make();
  let go = (): void => {};
  s.hold(new Promise(resolve => (go = resolve)));
  const slow = store.put('a', [Buffer.from('1')]);
  await store.follow(volume('second'));
  assert.deepEqual(s.closed, []);
  go();
  await slow;
  assert.deepEqual(s.closed, ['first']);
  await store.follow(volume('second'));
  assert.equal((await store.read('a', 10)).toString(), '1');
  await store.close();
  assert.deepEqual(s.closed, ['first', 'second']);
  assert.equal(s.log.length, 1);
});

it('a denied call looks at the settings and is made again, many at once look once', async () => {
  const s = service(new Set(['first']));
  const store = await s.make();
  await store.put('a', [Buffer.from('1')]);
  s.valid.clear();
  s.valid.add('second');
  s.stored = volume('second');
  const all = await Promise.all(Array.from({ length: 10 }, () => store.read('a', 10)));
  assert.ok(all.every(b => b.toString() === '1'));
  assert.equal(s.reloads, 1);
  // Denied with the newest settings: an error, and not a reload for each.
  s.valid.clear();
  for (let i = 0; i < 5; i++) await assert.rejects(store.read('a', 10), { kind: 'denied' });
  assert.ok(s.reloads <= 2, String(s.reloads));
});

it('settings that cannot be used leave the store in its place', async () => {
  const s = service(new Set(['first']));
  const store = await s.make();
  await store.follow(volume('unusable'));
  await store.put('a', [Buffer.from('1')]);
  assert.match(s.log.join(), /cannot be used/);
  assert.deepEqual(s.closed, []);
});

it('what wraps a store passes on all that it can, and nothing that it cannot', async () => {
  const metrics = new Metrics();
  for (const inner of [createFileStore({ root: `${tmpdir()}/` }), createMemStore()]) {
    const following = await createFollowingStore({
      format: volume('first'),
      open: async () => inner,
      reload: async () => undefined,
      log: () => {},
    });
    for (const wrapper of [following, meteredStore(inner, metrics), createShardedStore([inner, inner])]) {
      const { follow, ...rest } = { follow: undefined, ...wrapper };
      assert.deepEqual(Object.keys(rest).sort(), Object.keys(inner).sort());
    }
  }
  const root = createFileStore({ root: `${import.meta.dirname}/` });
  const metered = meteredStore(root, metrics);
  const target = Buffer.alloc(16);
  await metered.get('following.test.ts', 0, target);
  const again = Buffer.alloc(16);
  assert.equal(metered.getNow!('following.test.ts', 0, again), 16);
  assert.deepEqual(again, target);
  assert.equal(metrics.objectBytes.values.get('GET'), 32);
  await root.close();
});
