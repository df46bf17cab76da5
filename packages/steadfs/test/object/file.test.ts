import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, it } from 'node:test';
import { allocate, unmap } from '@steadfs/fuse/sys';
import type { Format } from '../../src/format/volume.ts';
import { createFileStore } from '../../src/object/file.ts';
import { createMemStore } from '../../src/object/mem.ts';
import { openStore, storeKinds } from '../../src/object/registry.ts';
import { StoreError } from '../../src/object/store.ts';
import { storeContract } from './contract.ts';

const scratch = (): string => fs.mkdtempSync(path.join(os.tmpdir(), 'steadfs-object-'));

for (const onLoop of [true, false]) {
  storeContract(`file${onLoop ? '' : ', all in the pool'}`, async () => {
    const root = scratch();
    return {
      store: createFileStore({ root: `${root}/deep/er`, onLoop }),
      dispose: async () => fs.rmSync(root, { recursive: true }),
    };
  });
}
storeContract('mem', async () => ({ store: createMemStore(), dispose: async () => {} }));

describe('file store', () => {
  it('refuses names outside of its root', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    for (const key of ['../x', 'a/../../x', '/etc/passwd', 'a/..', './x', 'a//b', 'a\0b', '', 'a/']) {
      const invalid = (e: unknown): boolean => e instanceof StoreError && e.kind === 'invalid';
      await assert.rejects(store.put(key, [Buffer.from('x')]), invalid, key);
      await assert.rejects(store.get(key, 0, Buffer.alloc(1)), invalid, key);
      await assert.rejects(store.delete(key), invalid, key);
    }
    fs.rmSync(root, { recursive: true });
  });

  it('names the failure: a root that is gone, one that is no directory, a full disk', async () => {
    const root = scratch();
    const gone = createFileStore({ root: `${root}/gone` });
    await assert.rejects(gone.put('v/x', [Buffer.from('x')]), /directory .*gone\/ of the store is missing/);
    assert.equal(fs.existsSync(`${root}/gone`), false);
    fs.writeFileSync(`${root}/file`, '');
    await assert.rejects(createFileStore({ root: `${root}/file` }).create(), StoreError);
    assert.throws(() => createFileStore({ root: 'relative' }), /no absolute path/);
    // /dev/full answers ENOSPC to every write.
    fs.mkdirSync(`${root}/v`);
    const store = createFileStore({ root });
    const full = fs.openSync('/dev/full', 'w');
    assert.throws(() => fs.writeSync(full, 'x'), /ENOSPC/);
    fs.closeSync(full);
    await store.put('v/x', [Buffer.from('x')]);
    fs.rmSync(root, { recursive: true });
  });

  it('writes large objects from wherever they lie, tells what is at hand, lets go of what is deleted', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.create();
    const memory = allocate(4 << 20);
    const bytes = memory.bytes;
    for (let i = 0; i < bytes.length; i += 997) bytes[i] = i & 255;
    const cases: [string, Uint8Array[]][] = [
      ['v/whole', [bytes]],
      ['v/pages', [bytes.subarray(4096, 1 << 20), bytes.subarray(0, 4096), bytes.subarray(1 << 20)]],
      ['v/tail', [bytes.subarray(0, (2 << 20) + 123)]],
      ['v/crooked', [bytes.subarray(5), Buffer.from('end')]],
    ];
    for (const [key, pieces] of cases) {
      await store.put(key, pieces);
      assert.deepEqual(fs.readFileSync(`${root}/${key}`), Buffer.concat(pieces), key);
      const target = Buffer.alloc(5000);
      const n = store.getNow?.(key, 4000, target);
      // Some file systems cannot tell, and the page cache may have lost it again.
      if (n !== undefined) assert.deepEqual(target.subarray(0, n), Buffer.concat(pieces).subarray(4000, 9000), key);
      assert.equal(store.getNow?.(key, (4 << 20) - 10, target), undefined, 'more than there is');
    }
    await store.sync(cases.map(c => c[0]));
    assert.deepEqual(fs.readdirSync(`${root}/v`).sort(), ['crooked', 'pages', 'tail', 'whole']);
    const target = Buffer.alloc(100);
    assert.equal(store.getNow?.('v/nothing', 0, target), undefined);
    await store.delete('v/whole');
    assert.equal(store.getNow?.('v/whole', 0, target), undefined);
    await assert.rejects(
      store.get('v/whole', 0, target),
      (e: unknown) => e instanceof StoreError && e.kind === 'not-found',
    );
    await store.close();
    unmap(memory);
    fs.rmSync(root, { recursive: true });
  });

  it('takes small objects at once, whole or not at all', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.create();
    const pieces = [randomBytes(5000), randomBytes(95_000)];
    const put = (key: string, of: Uint8Array[]) =>
      store.putNow!(
        key,
        of,
        of.reduce((sum, piece) => sum + piece.length, 0),
      );
    assert.equal(put('v/0/x', pieces), false, 'its directory is missing');
    await store.put('v/0/x', pieces);
    // It may always say no: many dirty pages, a slow disk.
    for (let i = 0; i < 20; i++)
      if (put(`v/0/${i}`, pieces))
        assert.deepEqual(fs.readFileSync(`${root}/v/0/${i}`), Buffer.concat(pieces), `object ${i}`);
      else assert.equal(fs.existsSync(`${root}/v/0/${i}`), false);
    assert.equal(put('v/0/large', [Buffer.alloc(1 << 20)]), false);
    assert.equal(put('v/0/../y', pieces), false);
    assert.equal(fs.readdirSync(`${root}/v/0`).filter(name => name.startsWith('.jfs.')).length, 0);
    assert.equal(createFileStore({ root, onLoop: false }).putNow!('v/0/z', pieces, 100_000), false);
    await store.close();
    fs.rmSync(root, { recursive: true });
  });

  it('has files ready for small objects that follow one another, replaces what is there, keeps none of them', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.put('v/0/first', [Buffer.from('x')]);
    const spares = (): number => {
      let n = 0;
      for (const fd of fs.readdirSync('/proc/self/fd'))
        try {
          if (fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${root}/v/0/#`)) n++;
        } catch {
          // The descriptor of the listing itself.
        }
      return n;
    };
    let seen = 0;
    for (let i = 0; i < 100; i++) {
      // Every name twice; the second has to take the place of the first.
      const content = Buffer.from(`object ${i}`);
      await store.put(`v/0/${i >> 1}`, [content.subarray(0, 3), content.subarray(3)]);
      assert.deepEqual(fs.readFileSync(`${root}/v/0/${i >> 1}`), content);
      await new Promise(setImmediate);
      seen = Math.max(seen, spares());
    }
    // On a busy machine, or where files without a name are unknown, there may be none.
    assert.ok(seen <= 8, `${seen} files`);
    await store.put('v/other/1', [Buffer.from('y')]);
    assert.equal(fs.readFileSync(`${root}/v/other/1`, 'utf8'), 'y');
    await store.close();
    for (let i = 0; spares() > 0 && i < 100; i++) await new Promise(wake => setTimeout(wake, 50));
    assert.equal(spares(), 0);
    assert.equal(fs.readdirSync(`${root}/v/0`).length, 51);
    fs.rmSync(root, { recursive: true });
  });

  it('waits off the loop for an object that somebody holds a lease on', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.put('v/x', [Buffer.from('content')]);
    const holder = fork(path.join(import.meta.dirname, '../continuity/holder.ts'), ['500'], {
      execArgv: ['--disable-warning=ExperimentalWarning'],
    });
    try {
      holder.send({ hold: `${root}/v/x` });
      const [answer] = (await once(holder, 'message')) as [string];
      assert.equal(answer, 'held');
      const target = Buffer.alloc(7);
      assert.equal(store.getNow?.('v/x', 0, target), undefined);
      let ended = false;
      const read = store.get('v/x', 0, target).finally(() => {
        ended = true;
      });
      assert.equal(ended, false);
      await new Promise(setImmediate);
      assert.equal(ended, false, 'the loop went on while the object was held');
      assert.equal(await read, 7);
      assert.equal(target.toString(), 'content');
    } finally {
      holder.disconnect();
      fs.rmSync(root, { recursive: true });
    }
  });

  it('leaves no temporary file, and lists none', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.put('v/1', [Buffer.from('x')]);
    fs.writeFileSync(`${root}/v/.jfs.2.tmp.0a1b2c`, 'half');
    fs.mkdirSync(`${root}/v/dir`);
    await assert.rejects(store.put('v/dir', [Buffer.from('x')]), StoreError);
    await assert.rejects(store.put('v/dir', [Buffer.alloc(1 << 20)]), StoreError);
    assert.deepEqual(
      (await store.list('', '', 10)).objects.map(o => o.key),
      ['v/1'],
    );
    assert.deepEqual(fs.readdirSync(`${root}/v`).sort(), ['.jfs.2.tmp.0a1b2c', '1', 'dir']);
    fs.rmSync(root, { recursive: true });
  });

  it('files have the mode that the umask leaves', async () => {
    const root = scratch();
    const store = createFileStore({ root });
    await store.put('v/w/1', [Buffer.from('x')]);
    await store.put('v/w/2', [Buffer.alloc(1 << 20)]);
    const umask = process.umask();
    for (const n of [1, 2]) assert.equal(fs.statSync(`${root}/v/w/${n}`).mode & 0o777, 0o666 & ~umask);
    assert.equal(fs.statSync(`${root}/v/w`).mode & 0o777, 0o777 & ~umask);
    fs.rmSync(root, { recursive: true });
  });
});

describe('registry of stores', () => {
  const format = (storage: string, more: Partial<Format> = {}): Format =>
    ({ Storage: storage, Bucket: '/tmp/', ...more }) as Format;
  it('opens by name, refuses what there is not', async () => {
    assert.ok(storeKinds().includes('file'));
    assert.equal(String(await openStore(format('File'))), 'file:///tmp/');
    await assert.rejects(openStore(format('ceph')), /no storage of type "ceph"/);
    await assert.rejects(openStore(format('file', { Shards: 4 })), /4 shards needs %d/);
  });
});
