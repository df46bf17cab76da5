/** What every ObjectStore must do. `make` gives an empty store. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { type ObjectStore, StoreError, type StoreErrorKind } from '../../src/object/store.ts';

interface StoreUnderTest {
  store: ObjectStore;
  /** Removes what the store left. */
  dispose(): Promise<void>;
}

export function storeContract(name: string, make: () => Promise<StoreUnderTest>): void {
  describe(`object store contract: ${name}`, () => {
    let under: StoreUnderTest;
    let store: ObjectStore;
    before(async () => {
      under = await make();
      store = under.store;
      await store.create();
    });
    after(async () => {
      await store.close();
      await under.dispose();
    });

    const kind = (wanted: StoreErrorKind) => (error: unknown) => {
      assert.ok(error instanceof StoreError, `a StoreError, not ${error}`);
      assert.equal(error.kind, wanted, error.message);
      return true;
    };

    it('create is repeatable, and the name holds no secret', async () => {
      await store.create();
      assert.match(store.toString(), /^\w+:\/\//);
    });

    it('gives back what was put, whole and in ranges', async () => {
      for (const size of [0, 1, 100, 4096, 70_000, 300_000, 4 * 1024 * 1024]) {
        const data = randomBytes(size);
        const key = `vol/chunks/0/0/${size}_0_${size}`;
        const cut = Math.floor(size / 3);
        await store.put(key, [data.subarray(0, cut), new Uint8Array(0), data.subarray(cut)]);
        assert.deepEqual(await store.read(key, size), data);
        const whole = Buffer.alloc(size);
        assert.equal(await store.get(key, 0, whole), size);
        assert.deepEqual(whole, data);
        if (size < 100) continue;
        const part = Buffer.alloc(50);
        assert.equal(await store.get(key, 17, part), 50);
        assert.deepEqual(part, data.subarray(17, 67));
        assert.equal(await store.get(key, size - 10, part), 10);
        assert.deepEqual(part.subarray(0, 10), data.subarray(size - 10));
        assert.equal(await store.get(key, size + 5, part), 0);
        const info = await store.head(key);
        assert.equal(info.key, key);
        assert.equal(info.size, size);
        assert.ok(Math.abs(info.mtime - Date.now() / 1000) < 60, `mtime ${info.mtime}`);
        await assert.rejects(store.read(key, size - 1), kind('too-large'));
      }
    });

    it('takes thousands of pieces', async () => {
      const pieces = Array.from({ length: 3000 }, (_, i) => Buffer.from(`${i},`));
      await store.put('vol/pieces', pieces);
      assert.equal((await store.read('vol/pieces', 100_000)).toString(), Buffer.concat(pieces).toString());
    });

    it('an equal put is repeatable', async () => {
      await store.put('vol/same', [Buffer.from('x')]);
      await store.put('vol/same', [Buffer.from('x')]);
      assert.equal((await store.read('vol/same', 10)).toString(), 'x');
    });

    it('says not-found', async () => {
      await assert.rejects(store.get('vol/absent', 0, Buffer.alloc(1)), kind('not-found'));
      await assert.rejects(store.read('vol/absent', 1), kind('not-found'));
      await assert.rejects(store.head('vol/absent'), kind('not-found'));
      await assert.rejects(store.head('vol/chunks'), kind('not-found'));
    });

    it('delete removes, and may be repeated', async () => {
      await store.put('vol/gone', [Buffer.from('x')]);
      await store.delete('vol/gone');
      await store.delete('vol/gone');
      await assert.rejects(store.head('vol/gone'), kind('not-found'));
    });

    it('sync takes objects, also ones that were deleted', async () => {
      await store.put('vol/s/1', [Buffer.from('x')]);
      await store.put('vol/s/t/2', [Buffer.from('x')]);
      await store.sync(['vol/s/1', 'vol/s/t/2', 'vol/s/deleted']);
      await store.sync([]);
    });

    it('lists in byte order, in pages, below a prefix', async () => {
      const names = [
        'a',
        'a-b',
        'a.b',
        'a/b',
        'a/b/c2',
        'a/c',
        'a0',
        'ab',
        'b/x/y/z',
        'b/x-y',
        'é',
        '\u{10000}',
        '\uffee',
        'Z',
        '.x',
      ];
      // 'a' and 'a/b' cannot both be files in a directory: such pairs live in names of their own.
      const keys = names.filter(n => n !== 'a' && n !== 'a/b').map(n => `list/${n}`);
      for (const key of keys) await store.put(key, [Buffer.from(key)]);
      await store.put('lisu', [Buffer.from('')]);
      const sorted = keys
        .map(k => Buffer.from(k))
        .sort(Buffer.compare)
        .map(String);
      for (const limit of [1, 2, 3, 5, 100]) {
        const seen: string[] = [];
        for (let after = '', more = true; more; ) {
          const page = await store.list('list/', after, limit);
          assert.ok(page.objects.length <= limit);
          for (const o of page.objects) {
            seen.push(o.key);
            assert.equal(o.size, Buffer.byteLength(o.key));
          }
          more = page.more;
          after = page.objects.at(-1)?.key ?? after;
        }
        assert.deepEqual(seen, sorted, `pages of ${limit}`);
      }
      const under = async (prefix: string, after = ''): Promise<string[]> =>
        (await store.list(prefix, after, 100)).objects.map(o => o.key);
      assert.deepEqual(
        await under('list/a'),
        sorted.filter(k => k.startsWith('list/a')),
      );
      assert.deepEqual(
        await under('list/a/'),
        sorted.filter(k => k.startsWith('list/a/')),
      );
      assert.deepEqual(
        await under('list/b/x'),
        sorted.filter(k => k.startsWith('list/b/x')),
      );
      assert.deepEqual(await under('list/none'), []);
      assert.deepEqual(await under('none/none/'), []);
      assert.deepEqual(await under('list/', 'list/a/b/c2'), sorted.slice(sorted.indexOf('list/a/b/c2') + 1));
      assert.deepEqual(await under('list/', 'list/a/b/c3'), sorted.slice(sorted.indexOf('list/a/b/c2') + 1));
      assert.deepEqual(await under('list/', 'list/zzzz').then(l => l.every(k => k > 'list/zzzz')), true);
    });

    it('many puts and gets at once', async () => {
      const data = Array.from({ length: 60 }, (_, i) => randomBytes(i * 1000));
      await Promise.all(data.map((d, i) => store.put(`vol/many/${i}`, [d])));
      await Promise.all(
        data.map(async (d, i) => {
          const target = Buffer.alloc(d.length);
          assert.equal(await store.get(`vol/many/${i}`, 0, target), d.length);
          assert.deepEqual(target, d);
        }),
      );
    });
  });
}
