/** What the data path does when the store, the quota or the memory says no. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { describe, it } from 'node:test';
import { EDQUOT } from '@steadfs/fuse/errno';
import { Slots } from '@steadfs/fuse/slots';
import type { FileData, Waiting } from '../../src/data/file-data.ts';
import { DATA_SECTIONS } from '../../src/data/journal.ts';
import type { Attr } from '../../src/format/attr.ts';
import { CHUNK_SIZE } from '../../src/format/slice.ts';
import type { MetaEngine } from '../../src/meta/engine.ts';
import { type ObjectStore, StoreError } from '../../src/object/store.ts';
import { withPending } from '../../src/vfs/attrs.ts';
import { fails, root, session } from '../meta/contract.ts';
import { MIB, makeVolume, patient, take, type Volume, type VolumeOptions, writeData } from './harness.ts';

const pause = (ms: number): Promise<void> => new Promise(go => setTimeout(go, ms));

interface Faults {
  put: StoreError | undefined;
  get: StoreError | undefined;
  /** PUTs wait until it is resolved. */
  hold: Promise<void> | undefined;
  puts: number;
  synced: string[];
  /** sync and syncAll wait until it is resolved. */
  holdSync: Promise<void> | undefined;
}

/** Files with pending data or an error to report. */
function writerRecords({ capsule }: ReturnType<Volume['start']>): number {
  return [...capsule.records(DATA_SECTIONS.find(({ name }) => name === 'writers')!).live()].length;
}

function faulty(store: ObjectStore, faults: Faults): ObjectStore {
  return {
    ...store,
    toString: () => store.toString(),
    async put(key, pieces, options) {
      faults.puts++;
      if (faults.hold) await faults.hold;
      if (faults.put) throw faults.put;
      return store.put(key, pieces, options);
    },
    putNow(key, pieces, size) {
      if (faults.hold || faults.put) return false;
      const done = store.putNow?.(key, pieces, size) ?? false;
      if (done) faults.puts++;
      return done;
    },
    async get(key, offset, target) {
      if (faults.get) throw faults.get;
      return store.get(key, offset, target);
    },
    getNow: (key, offset, target) => (faults.get ? undefined : store.getNow?.(key, offset, target)),
    async sync(keys) {
      faults.synced.push(...keys);
      if (faults.holdSync) await faults.holdSync;
      return store.sync(keys);
    },
    async syncAll() {
      if (faults.holdSync) await faults.holdSync;
      return store.syncAll?.();
    },
  };
}

async function withVolume(
  work: (v: Volume, faults: Faults) => Promise<void>,
  options: VolumeOptions = {},
): Promise<void> {
  const faults: Faults = { put: undefined, get: undefined, hold: undefined, puts: 0, synced: [], holdSync: undefined };
  const v = await makeVolume({ ...options, wrap: store => faulty(store, faults) });
  try {
    await work(v, faults);
  } finally {
    await v.dispose();
  }
}

async function put(
  v: Volume,
  s: ReturnType<Volume['start']>,
  ino: number,
  offset: number,
  bytes: Buffer,
  waiting: Waiting = patient,
): Promise<void> {
  await s.data.write(ino, offset, writeData(s.capsule, bytes), await v.attr(ino), false, waiting);
}

const readAll = async (data: FileData, ino: number, length: number): Promise<Buffer> =>
  take(data, await data.read(ino, 1, 0, length, length, patient));

describe('file data under faults', { timeout: 240_000 }, () => {
  it('waits for a store that is away, loses nothing, says so', () =>
    withVolume(async (v, faults) => {
      const troubles: string[] = [];
      const s = v.start({ trouble: (what, message) => troubles.push(`${what}: ${message ?? 'go on'}`) });
      const ino = await v.newFile('a');
      faults.put = new StoreError('io', 'connection refused');
      const bytes = randomBytes(10_000);
      await put(v, s, ino, 0, bytes);
      let done = false;
      const flushed = s.data.flush(ino).then(() => {
        done = true;
      });
      await pause(300);
      assert.equal(done, false);
      assert.match(s.data.stats().trouble?.message ?? '', /connection refused/);
      assert.deepEqual(await readAll(s.data, ino, 10_000), bytes);
      faults.put = undefined;
      await flushed;
      assert.equal(s.data.stats().trouble, undefined);
      assert.equal((await v.attr(ino)).length, 10_000);
      assert.equal(troubles[0], 'writes: connection refused');
      assert.equal(troubles.at(-1), 'writes: go on');
      await s.data.shutdown();
    }));

  it('tells ENOSPC of a full store, keeps the data, and stores it when there is room', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      faults.put = new StoreError('no-space', 'no space left on device');
      const bytes = randomBytes(300_000);
      await put(v, s, ino, 0, bytes);
      await fails(s.data.flush(ino), 'ENOSPC');
      await fails(s.data.sync(ino), 'ENOSPC');
      assert.deepEqual(await readAll(s.data, ino, 300_000), bytes);
      faults.put = undefined;
      await s.data.flush(ino);
      assert.equal((await v.attr(ino)).length, 300_000);
      await s.data.shutdown();
    }));

  it('stores blocks again that waited for their commit for an hour, most of it without a process', t =>
    withVolume(async v => {
      const engine = Object.assign(Object.create(v.engine) as MetaEngine, { write: () => new Promise(() => {}) });
      const s = v.start({ meta: engine });
      const ino = await v.newFile('a');
      const bytes = randomBytes(300_000);
      const { now } = Date;
      const clock = t.mock.method(Date, 'now', () => now() - 3600_000);
      await put(v, s, ino, 0, bytes);
      void s.data.flush(ino);
      const stored = async () => (await v.store.list('vol/chunks/', '', 100)).objects;
      for (let i = 0; i < 200 && (await stored()).length === 0; i++) await pause(10);
      await pause(50);
      await s.data.shutdown();
      // What a collector of unreferenced objects does.
      for (const { key } of await stored()) await v.store.delete(key);
      clock.mock.restore();
      const next = v.start();
      await next.data.recover();
      await next.data.flush(ino);
      assert.equal((await stored()).length, 1);
      assert.deepEqual(await readAll(next.data, ino, 300_000), bytes);
      await next.data.shutdown();
    }));

  it('a refused commit (quota) is reported by write and flush until the handle is closed, over a restart too', () =>
    withVolume(async v => {
      let refuse = true;
      const engine = Object.assign(Object.create(v.engine) as MetaEngine, {
        write: (...args: Parameters<MetaEngine['write']>) =>
          refuse ? Promise.reject(EDQUOT) : v.engine.write(...args),
      });
      const s = v.start({ meta: engine });
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(5 * MIB));
      await fails(s.data.flush(ino), 'EDQUOT');
      assert.equal(s.data.pending(ino), undefined);
      assert.equal(s.data.stats().dirty, 0);
      await fails(put(v, s, ino, 0, Buffer.from('x')), 'EDQUOT');
      await s.data.shutdown();
      const t = v.start({ meta: engine });
      await t.data.recover();
      await fails(t.data.flush(ino), 'EDQUOT');
      t.data.close(ino, 1);
      refuse = false;
      await put(v, t, ino, 0, Buffer.from('hello'));
      await t.data.flush(ino);
      assert.equal(String(await readAll(t.data, ino, 5)), 'hello');
      // Until the objects of the refused slice are deleted.
      while ((await v.store.list('vol/chunks/', '', 100)).objects.length !== 1) await pause(5);
      await t.data.shutdown();
    }));

  it('an error that nobody asks for goes when the kernel forgets the inode, before or after it', () =>
    withVolume(async v => {
      let commit: (go: boolean) => void = () => {};
      const commits = () =>
        new Promise<boolean>(resolve => {
          commit = resolve;
        });
      let gate = commits();
      const engine = Object.assign(Object.create(v.engine) as MetaEngine, {
        write: async (...args: Parameters<MetaEngine['write']>) => {
          if (!(await gate)) throw EDQUOT;
          return v.engine.write(...args);
        },
      });
      const s = v.start({ meta: engine });
      const ino = await v.newFile('a');
      // Known already when it is forgotten: a restart would still tell it.
      await put(v, s, ino, 0, randomBytes(1000));
      const asked = s.data.flush(ino).catch(() => {});
      commit(false);
      await asked;
      assert.equal(writerRecords(s), 1);
      s.data.forgotten(ino);
      assert.equal(writerRecords(s), 0);
      await s.data.flush(ino);
      // Known only afterwards.
      gate = commits();
      await put(v, s, ino, 0, randomBytes(1000));
      const closed = s.data.flush(ino);
      s.data.forgotten(ino);
      commit(false);
      await closed;
      assert.equal(s.data.pending(ino), undefined);
      assert.equal(writerRecords(s), 0);
      // Somebody has it again.
      gate = commits();
      await put(v, s, ino, 0, randomBytes(1000));
      s.data.forgotten(ino);
      const flushed = s.data.flush(ino);
      commit(false);
      await fails(flushed, 'EDQUOT');
      await s.data.shutdown();
    }));

  it('an unlinked inode: its data is dropped, and no error is left', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const { promise: held, resolve: go } = Promise.withResolvers<void>();
      faults.hold = held;
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(9 * MIB));
      const flushed = s.data.flush(ino);
      while (faults.puts === 0) await pause(1);
      s.data.drop(ino);
      assert.equal(s.data.pending(ino), undefined);
      go();
      await flushed;
      while (s.data.stats().dirty > 0 || (await v.store.list('vol/chunks/', '', 10)).objects.length > 0) await pause(5);
      await s.data.shutdown();
    }));

  it('memory is full: writes wait parked, reads and small memory go on, order is kept', () =>
    withVolume(async (v, faults) => {
      const { promise: held, resolve: go } = Promise.withResolvers<void>();
      const s = v.start({ bufferSize: 32 * MIB });
      const other = await v.newFile('other');
      const known = randomBytes(MIB);
      await put(v, s, other, 0, known);
      await s.data.flush(other);
      faults.hold = held;
      const ino = await v.newFile('a');
      let parked = 0;
      const waiting = { ...patient, park: () => parked++ };
      const block = randomBytes(128 * 1024);
      const total = 40 * MIB;
      let acknowledged = 0;
      const writing = (async () => {
        for (let at = 0; at < total; at += block.length) {
          await put(v, s, ino, at, block, waiting);
          acknowledged = at + block.length;
        }
      })();
      await pause(500);
      assert.ok(acknowledged < total && parked > 0, `${acknowledged} bytes, parked ${parked}`);
      const { dirty, cached, ceiling } = s.data.stats();
      assert.ok(dirty + cached <= ceiling, `${dirty} + ${cached} of ${ceiling}`);
      assert.deepEqual(await readAll(s.data, other, MIB), known);
      assert.ok(s.capsule.arena.used <= 32 * MIB);
      faults.hold = undefined;
      go();
      await writing;
      await s.data.flush(ino);
      assert.equal((await v.attr(ino)).length, total);
      for (let at = 0; at < total; at += block.length)
        assert.ok(take(s.data, await s.data.read(ino, 3, at, block.length, total, patient)).equals(block));
      await s.data.shutdown();
    }));

  it('a waiting caller that is being killed gets EINTR', () =>
    withVolume(async (v, faults) => {
      faults.put = new StoreError('io', 'away');
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, Buffer.from('x'));
      const { promise, resolve: interrupt } = Promise.withResolvers<void>();
      let dying = false;
      let parked = 0;
      const waiting: Waiting = {
        interrupt: { fired: false, promise, callerIsDying: () => dying },
        park: () => parked++,
      };
      const flushed = fails(s.data.flush(ino, waiting), 'EINTR');
      interrupt();
      await pause(150);
      dying = true;
      await flushed;
      assert.ok(parked > 0);
      faults.put = undefined;
      await s.data.flush(ino);
      await s.data.shutdown();
    }));

  it('a truncated or missing block is EIO with its name, other bytes stay readable', () =>
    withVolume(async v => {
      const warnings: string[] = [];
      const s = v.start({ cacheIdle: 1, warn: m => warnings.push(m) });
      const ino = await v.newFile('a');
      const bytes = randomBytes(9 * MIB);
      await put(v, s, ino, 0, bytes);
      await s.data.flush(ino);
      await s.data.shutdown();
      const t = v.start({ ioRetries: 2, warn: m => warnings.push(m) });
      await t.data.recover();
      const { objects } = await v.store.list('vol/chunks/', '', 10);
      assert.equal(objects.length, 3);
      fs.truncateSync(`${v.dir}/store/${objects[0]!.key}`, 1000);
      fs.unlinkSync(`${v.dir}/store/${objects[1]!.key}`);
      await fails(async () => await t.data.read(ino, 1, 2000, 4096, bytes.length, patient), 'EIO');
      await fails(async () => await t.data.read(ino, 1, 4 * MIB, 4096, bytes.length, patient), 'EIO');
      assert.match(warnings.join('\n'), /_0_4194304: the object has 1000 bytes where 4194304/);
      assert.match(warnings.join('\n'), /_1_4194304.*no such file/);
      assert.ok(
        take(t.data, await t.data.read(ino, 1, 8 * MIB, 4096, bytes.length, patient)).equals(
          bytes.subarray(8 * MIB, 8 * MIB + 4096),
        ),
      );
      await t.data.shutdown();
    }));

  it('of small blocks that the store has at hand a quarter of the memory is kept', async () => {
    const wrap = (store: ObjectStore): ObjectStore => ({
      ...store,
      // Never too busy, unlike the directory's own.
      putNow(key, pieces) {
        const path = store.toString().slice('file://'.length) + key;
        fs.mkdirSync(path.slice(0, path.lastIndexOf('/')), { recursive: true });
        fs.writeFileSync(path, Buffer.concat(pieces));
        return true;
      },
    });
    const v = await makeVolume({ wrap, arena: 48 * MIB });
    try {
      const s = v.start();
      const files: { ino: number; bytes: Buffer }[] = [];
      for (let i = 0; i < 150; i++) {
        const file = { ino: await v.newFile(`f${i}`), bytes: randomBytes(100 * 1024) };
        await put(v, s, file.ino, 0, file.bytes);
        await s.data.flush(file.ino);
        files.push(file);
        await new Promise(go => setImmediate(go));
      }
      const { cached, ceiling } = s.data.stats();
      assert.ok(cached > ceiling / 8 && cached <= ceiling / 4, `${cached} bytes are cached of ${ceiling}`);
      for (const { ino, bytes } of files)
        assert.ok(take(s.data, await s.data.read(ino, 1, 0, bytes.length, bytes.length, patient)).equals(bytes));
      await s.data.shutdown();
    } finally {
      await v.dispose();
    }
  });

  it('a cache full of small blocks gives way to the next request', () =>
    withVolume(
      async (v, faults) => {
        // Of what the store takes at once only few blocks would be kept.
        faults.hold = Promise.resolve();
        const s = v.start();
        for (let i = 0; i < 400; i++) {
          const ino = await v.newFile(`f${i}`);
          await put(v, s, ino, 0, randomBytes(100 * 1024));
          await s.data.flush(ino);
          // The pages of a request are its own until the loop's next turn.
          await new Promise(go => setImmediate(go));
        }
        assert.ok(s.data.stats().cached > 28 * MIB, `${s.data.stats().cached} bytes are cached`);
        assert.equal(s.capsule.arena.alloc(2 * MIB), undefined);
        const slots = new Slots(s.capsule, MIB);
        assert.equal(slots.prepare(), true);
        await s.data.shutdown();
      },
      { arena: 32 * MIB },
    ));

  it('the memory for one part of a read is not taken from the other part', async () => {
    let pressed = (): void => {};
    const v = await makeVolume({
      wrap: store => ({
        ...store,
        toString: () => store.toString(),
        getNow(key, offset, target) {
          pressed();
          return store.getNow?.(key, offset, target);
        },
      }),
    });
    try {
      const s = v.start();
      const part = 100 * 1024;
      const bytes = randomBytes(2 * part);
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, bytes);
      await s.data.flush(ino);
      s.capsule.arena.makeRoom!(400 * MIB);
      // The first half anew: it is cached, the second one is only in the store.
      randomBytes(part).copy(bytes);
      await put(v, s, ino, 0, bytes.subarray(0, part));
      await s.data.flush(ino);
      await new Promise(go => setImmediate(go));
      assert.equal(s.data.stats().cached, part);
      // Somebody else needs all the memory there is, between the two.
      let taken: number | undefined;
      pressed = () => {
        s.capsule.arena.makeRoom!(400 * MIB);
        taken = s.capsule.arena.alloc(part);
        if (taken !== undefined) s.capsule.arena.bytes.fill(0, taken, taken + part);
      };
      assert.ok((await readAll(s.data, ino, bytes.length)).equals(bytes));
      assert.notEqual(taken, undefined, 'the second half was read at hand');
      await s.data.shutdown();
    } finally {
      await v.dispose();
    }
  });

  it('a read of which one part fails gives the memory of the others back', async () => {
    const v = await makeVolume({
      wrap: store => ({
        ...store,
        getNow: () => undefined,
        async get(key, offset, target) {
          if (key.includes('_0_')) throw new StoreError('not-found', 'gone');
          await pause(30);
          return store.get(key, offset, target);
        },
      }),
    });
    try {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(5 * MIB));
      await s.data.flush(ino);
      const { createCapsule, openCapsule } = await import('@steadfs/fuse/capsule');
      const { createFileData } = await import('../../src/data/create.ts');
      const capsule = openCapsule(createCapsule({ arenaSize: 64 * MIB }));
      const other = createFileData({ meta: v.engine, store: v.store, capsule, format: v.format });
      await fails(() => other.read(ino, 1, 4 * MIB - 65536, 131072, 5 * MIB, patient), 'EIO');
      await other.shutdown();
      for (let i = 0; i < 100 && capsule.arena.used > 0; i++) await pause(20);
      assert.equal(capsule.arena.used, 0);
      await s.data.shutdown();
    } finally {
      await v.dispose();
    }
  });

  it('a stale list: another client compacted the chunk and deleted the objects', () =>
    withVolume(async v => {
      const s = v.start();
      const other = await makeOther(v);
      const ino = await v.newFile('a');
      const bytes = randomBytes(600_000);
      for (let at = 0; at < bytes.length; at += 60_000) {
        await put(v, s, ino, at, bytes.subarray(at, at + 60_000));
        await s.data.flush(ino);
      }
      await s.data.shutdown();
      const t = v.start();
      await t.data.recover();
      assert.deepEqual(await readAll(t.data, ino, 1000), bytes.subarray(0, 1000));
      const before = await v.engine.readChunk(ino, 0);
      assert.equal(before.length, 10);
      assert.equal(await other.compact(ino, 0), true);
      await other.deleteSlices(before.map(({ id, size }) => ({ id, size })));
      assert.deepEqual(await readAll(t.data, ino, bytes.length), bytes);
      await t.data.shutdown();
      await other.shutdown();
    }));

  it('fsync makes every object of the file durable, also those stored before it was called', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(MIB));
      await s.data.flush(ino);
      await put(v, s, ino, MIB, randomBytes(MIB));
      assert.deepEqual(faults.synced, []);
      await s.data.sync(ino);
      const keys = (await v.store.list('vol/chunks/', '', 10)).objects.map(o => o.key);
      assert.deepEqual(faults.synced.toSorted(), keys.toSorted());
      faults.synced.length = 0;
      await s.data.sync(ino);
      assert.deepEqual(faults.synced, []);
      await s.data.shutdown();
    }));

  it('an fsync waits for what another one is making durable', () =>
    withVolume(async (v, faults) => {
      for (const restarted of [false, true]) {
        const s = v.start();
        if (restarted) await s.data.recover();
        const inos = [await v.newFile(`a${restarted}`), await v.newFile(`b${restarted}`)];
        if (!restarted) {
          await put(v, s, inos[0]!, 0, randomBytes(1000));
          await s.data.flush(inos[0]!);
        }
        const { promise: held, resolve: go } = Promise.withResolvers<void>();
        faults.holdSync = held;
        let done = 0;
        // After a restart the first sync is one of the whole store, for all files.
        const both = [inos[0]!, inos[restarted ? 1 : 0]!].map(ino => s.data.sync(ino).then(() => done++));
        await pause(20);
        assert.equal(done, 0);
        go();
        await Promise.all(both);
        await s.data.shutdown();
      }
    }));

  it('the file never grows over data that is not committed', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      faults.put = new StoreError('io', 'away');
      await put(v, s, ino, CHUNK_SIZE - 5000, randomBytes(5000));
      await s.data
        .flush(ino, { ...patient, interrupt: { fired: true, promise: Promise.resolve(), callerIsDying: () => true } })
        .catch(() => {});
      faults.put = undefined;
      const lengths = new Set<number>();
      await put(v, s, ino, CHUNK_SIZE, randomBytes(5000));
      const flushed = s.data.flush(ino);
      for (let done = false; !done; ) {
        lengths.add((await v.attr(ino)).length);
        done = await Promise.race([flushed.then(() => true), pause(1).then(() => false)]);
      }
      for (const length of lengths) assert.ok([0, CHUNK_SIZE, CHUNK_SIZE + 5000].includes(length), `length ${length}`);
      await s.data.shutdown();
    }));

  it('nor after a truncation, whose new length the writes that waited for it do not know', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, CHUNK_SIZE, randomBytes(5000));
      await s.data.flush(ino);
      const frozen = await s.data.freeze(ino, 0, 2 ** 53);
      const low = put(v, s, ino, 0, randomBytes(5000));
      await pause(10);
      await v.engine.setattr(v.client.op(), root, ino, { size: 0, byHandle: true });
      s.data.invalidateRange(ino, 0, 2 ** 53);
      frozen.done();
      await low;
      const { promise: held, resolve: go } = Promise.withResolvers<void>();
      faults.hold = held;
      const first = s.data.flush(ino);
      await pause(1);
      faults.hold = undefined;
      await put(v, s, ino, CHUNK_SIZE, randomBytes(5000));
      const second = s.data.flush(ino);
      await pause(50);
      assert.equal((await v.attr(ino)).length, 0);
      go();
      await Promise.all([first, second]);
      assert.equal((await v.attr(ino)).length, CHUNK_SIZE + 5000);
      await s.data.shutdown();
    }));

  it('data is stored by itself after a second of rest, and nothing runs when nothing is pending', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(5 * MIB));
      for (let i = 0; i < 60 && s.data.pending(ino) !== undefined; i++) await pause(50);
      assert.equal(s.data.pending(ino), undefined);
      assert.equal((await v.attr(ino)).length, 5 * MIB);
      assert.equal(faults.puts, 2);
      assert.deepEqual(await v.engine.readChunk(ino, 0).valueOf(), [
        { pos: 0, id: 1, size: 5 * MIB, off: 0, len: 5 * MIB },
      ]);
      await s.data.shutdown();
    }));

  it('a session that was cleaned up: what was committed is found by its slice, the rest is stored again', () =>
    withVolume(async v => {
      let swallow = true;
      let carryOut = true;
      const engine = Object.assign(Object.create(v.engine) as MetaEngine, {
        async write(...args: Parameters<MetaEngine['write']>) {
          const result = carryOut ? await v.engine.write(...args) : undefined;
          return swallow || result === undefined ? new Promise<never>(() => {}) : result;
        },
      });
      const s = v.start({ meta: engine });
      const inos = [await v.newFile('done'), await v.newFile('not')];
      const bytes = randomBytes(200_000);
      await put(v, s, inos[0]!, 0, bytes);
      void s.data.flush(inos[0]!);
      await pause(50);
      carryOut = false;
      await put(v, s, inos[1]!, 0, bytes);
      void s.data.flush(inos[1]!);
      await pause(50);
      await s.data.shutdown();
      await v.engine.newSession(session);
      swallow = false;
      carryOut = true;
      const t = v.start({ meta: engine, outcomesUnknown: true });
      await t.data.recover();
      await t.data.flushAll();
      for (const ino of inos) {
        assert.equal((await v.engine.readChunk(ino, 0)).length, 1);
        assert.deepEqual(await readAll(t.data, ino, bytes.length), bytes);
      }
      assert.equal(t.data.stats().dirty, 0);
      await t.data.shutdown();
    }));

  it('a repeated WRITE whose pages were taken before the death is not carried out on pages that may be others by now', () =>
    withVolume(async v => {
      const s = v.start();
      const ino = await v.newFile('a');
      const bytes = randomBytes(128 * 1024);
      let at = -1;
      const given = writeData(s.capsule, bytes);
      const take = (): number => {
        at = given.take()!;
        return at;
      };
      const attr = await v.attr(ino);
      await s.data.write(ino, 0, { bytes, take }, attr, false, patient);
      assert.ok(at >= 0);
      await s.data.shutdown();
      const t = v.start();
      await t.data.recover();
      await t.data.flush(ino);
      t.capsule.arena.bytes.fill(7, at, at + bytes.length);
      const spill = t.capsule.arena.bytes.subarray(at, at + bytes.length);
      const never = (): number => assert.fail('taken again');
      await t.data.write(ino, 0, { bytes: spill, take: never }, attr, false, { ...patient, replay: true });
      assert.equal(t.data.pending(ino), undefined);
      await t.data.shutdown();
      const u = v.start();
      assert.deepEqual(await readAll(u.data, ino, bytes.length), bytes);
      await u.data.shutdown();
    }));

  it('random small writes over a large file are packed: few objects, references count records', () =>
    withVolume(async (v, faults) => {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(1000));
      for (let i = 0; i < 500; i++) await put(v, s, ino, ((i * 7919) % 8000) * 8192, randomBytes(8192));
      await s.data.flush(ino);
      assert.ok(faults.puts <= 2, `${faults.puts} objects`);
      const records = await v.engine.readChunk(ino, 0);
      assert.ok(records.length > 400);
      assert.equal(await s.data.compact(ino, 0), true);
      assert.equal((await v.engine.readChunk(ino, 0)).length, 1);
      // The compaction dropped every reference of the packed slice.
      const dead = await v.engine.deadSlices(10);
      assert.deepEqual(
        dead.map(d => d.id),
        [...new Set(records.map(r => r.id))],
      );
      await s.data.deleteSlices(dead);
      assert.deepEqual(await v.engine.deadSlices(10), []);
      await s.data.shutdown();
      const t = v.start();
      assert.ok((await readAll(t.data, ino, 1000)).length === 1000);
      await t.data.shutdown();
    }));

  it('a chunk with thousands of records is compacted before more is appended', () =>
    withVolume(async v => {
      const s = v.start();
      const ino = await v.newFile('a');
      const block = randomBytes(4096);
      const written = new Set<number>();
      let most = 0;
      for (let round = 0; round < 4; round++) {
        for (let i = 0; i < 900; i++) {
          const at = ((i * 17 + round * 5) % 16_000) * 4096;
          await put(v, s, ino, at, block);
          written.add(at);
        }
        await s.data.flush(ino);
        most = Math.max(most, (await v.engine.readChunk(ino, 0)).length);
      }
      assert.ok(most < 3400, `${most} records`);
      const { length } = await v.attr(ino);
      for (const at of written)
        assert.ok(take(s.data, await s.data.read(ino, 1, at, 4096, length, patient)).equals(block), `at ${at}`);
      await s.data.shutdown();
    }));

  it('commits leave mtime and ctime as they were shown since the write, and each stores others than the one before', () =>
    withVolume(async v => {
      const stored: string[] = [];
      const times = (a: Attr) => `${a.mtime}.${a.mtimensec} ${a.ctime}.${a.ctimensec}`;
      const engine = Object.assign(Object.create(v.engine) as MetaEngine, {
        async write(...args: Parameters<MetaEngine['write']>) {
          const result = await v.engine.write(...args);
          // Commits of several chunks are under way at once.
          await pause(5);
          stored.push(`${times(result.attr)} ${result.attr.length}`);
          return result;
        },
      });
      const s = v.start({ meta: engine });
      const ino = await v.newFile('a');
      const shown = async () => {
        const a = withPending(await v.attr(ino), s.data.pending(ino));
        return { times: times(a), ctime: a.ctime * 1e9 + a.ctimensec };
      };
      const fill = async () => {
        // Several slices in one chunk, and several chunks; the last write makes the file no longer.
        await put(v, s, ino, 3 * CHUNK_SIZE, randomBytes(100));
        for (const at of [0, CHUNK_SIZE, 2 * CHUNK_SIZE]) await put(v, s, ino, at, randomBytes(5 * MIB));
        await put(v, s, ino, 0, randomBytes(4 * MIB));
        await put(v, s, ino, CHUNK_SIZE - 50, randomBytes(100));
      };
      await fill();
      await s.data.flush(ino);
      await fill();
      const before = await shown();
      stored.length = 0;
      const flushed = s.data.flush(ino);
      while (s.data.pending(ino) !== undefined) {
        assert.deepEqual(await shown(), before);
        await pause(1);
      }
      await flushed;
      assert.deepEqual(await shown(), before);
      assert.ok(stored.length >= 4, `${stored.length} commits`);
      assert.equal(new Set(stored).size, stored.length);
      // A change of attributes after the write: later, and it stays.
      await fill();
      const written = await shown();
      await v.engine.setattr(v.client.op(), root, ino, { mode: 0o600 });
      const changed = await shown();
      assert.ok(changed.ctime > written.ctime);
      stored.length = 0;
      await s.data.flush(ino);
      assert.deepEqual(await shown(), changed);
      assert.equal(new Set(stored).size, stored.length);
      // A write after a change of attributes: at once.
      await v.engine.setattr(v.client.op(), root, ino, { mode: 0o644 });
      const { ctime } = await shown();
      await put(v, s, ino, 0, randomBytes(100));
      assert.ok((await shown()).ctime > ctime);
      await s.data.flush(ino);
      await s.data.shutdown();
    }));

  it('setattr of mtime holds for what is committed later; a truncation keeps writes out', () =>
    withVolume(async v => {
      const s = v.start();
      const ino = await v.newFile('a');
      await put(v, s, ino, 0, randomBytes(1000));
      s.data.setPendingMtime(ino, { sec: 12345, nsec: 678 });
      assert.deepEqual(s.data.pending(ino)?.mtime, { sec: 12345, nsec: 678 });
      await s.data.flush(ino);
      const attr = await v.attr(ino);
      assert.deepEqual([attr.mtime, attr.mtimensec], [12345, 678]);
      await put(v, s, ino, 500, randomBytes(5000));
      const frozen = await s.data.freeze(ino, 100, 2 ** 53);
      assert.equal(s.data.pending(ino), undefined);
      let written = false;
      const writing = put(v, s, ino, 200, Buffer.from('later')).then(() => {
        written = true;
      });
      await put(v, s, ino, 0, Buffer.from('below'));
      await pause(20);
      assert.equal(written, false);
      await v.engine.setattr(v.client.op(), root, ino, { size: 100, byHandle: true });
      s.data.invalidateRange(ino, 100, 2 ** 53);
      frozen.done();
      await writing;
      await s.data.flush(ino);
      assert.equal((await v.attr(ino)).length, 205);
      const bytes = await readAll(s.data, ino, 205);
      assert.equal(bytes.subarray(0, 5).toString() + bytes.subarray(200).toString(), 'belowlater');
      assert.ok(bytes.subarray(100, 200).every(b => b === 0));
      await s.data.shutdown();
    }));
});

/** A data path of another client: own capsule, same engine and store. */
async function makeOther(v: Volume): Promise<FileData> {
  const { createCapsule, openCapsule } = await import('@steadfs/fuse/capsule');
  const { createFileData } = await import('../../src/data/create.ts');
  const capsule = openCapsule(createCapsule({ arenaSize: 64 * MIB }));
  return createFileData({ meta: v.engine, store: v.store, capsule, format: v.format });
}
