/** Random writes, reads, truncations and process deaths against a buffer in memory. */
import assert from 'node:assert/strict';
import { randomBytes, randomInt } from 'node:crypto';
import { describe, it } from 'node:test';
import type { Capsule } from '@steadfs/fuse';
import type { FileData } from '../../src/data/file-data.ts';
import type { Ino } from '../../src/format/ino.ts';
import { CHUNK_SIZE } from '../../src/format/slice.ts';
import type { MetaEngine } from '../../src/meta/engine.ts';
import { type ObjectStore, StoreError } from '../../src/object/store.ts';
import { root } from '../meta/contract.ts';
import { type Random, seeded } from '../support/random.ts';
import { MIB, makeVolume, patient, take, type Volume, writeData } from './harness.ts';

const seedOf = (): number => Number(process.env.SEED ?? randomInt(2 ** 31));

/**
 * What stands between a data path and the outside: store and engine answer late, the store fails at random, and after `kill` nothing that was begun is heard of
 * again. Calls that wait at that moment are carried out or not, as those of a killed process are.
 */
class Outside {
  #generation = 0;
  readonly #random: Random;
  readonly #percent: number;
  #delays: boolean;

  constructor(random: Random, percent: number, delays: boolean) {
    this.#random = random;
    this.#percent = percent;
    this.#delays = delays;
  }

  kill(): void {
    this.#generation++;
  }

  async #pass<T>(work: () => T | Promise<T>, percent: number): Promise<T> {
    const mine = this.#generation;
    if (this.#delays && this.#random.chance(30)) await new Promise(go => setTimeout(go, this.#random.below(8)));
    if (mine !== this.#generation && this.#random.chance(50)) return new Promise<never>(() => {});
    if (this.#random.chance(percent)) throw new StoreError('io', 'the store is away');
    const result = await work();
    return mine === this.#generation ? result : new Promise<never>(() => {});
  }

  store(store: ObjectStore): ObjectStore {
    return {
      ...store,
      toString: () => store.toString(),
      put: (key, pieces, options) => {
        // A killed process's PUT that goes on has its bytes in the kernel already.
        const copies = pieces.map(p => Buffer.from(p));
        return this.#pass(() => store.put(key, copies, options), this.#percent);
      },
      putNow: (key, pieces, size) => this.#random.chance(50) && (store.putNow?.(key, pieces, size) ?? false),
      get: (key, offset, target) => this.#pass(() => store.get(key, offset, target), this.#percent),
      getNow: (key, offset, target) => (this.#random.chance(50) ? undefined : store.getNow?.(key, offset, target)),
      delete: key => this.#pass(() => store.delete(key), this.#percent),
      sync: keys => this.#pass(() => store.sync(keys), this.#percent),
    };
  }

  engine(engine: MetaEngine): MetaEngine {
    const late = <A extends unknown[], T>(call: (...args: A) => T | Promise<T>) => {
      return (...args: A): Promise<T> => this.#pass(() => call.apply(engine, args), 0);
    };
    return Object.assign(Object.create(engine) as MetaEngine, {
      write: late(engine.write),
      compact: late(engine.compact),
      readChunk: late(engine.readChunk),
      newSliceIds: late(engine.newSliceIds),
    });
  }
}

interface Model {
  ino: Ino;
  bytes: Buffer;
  length: number;
}

const ZEROS = Buffer.alloc(MIB);
const FILE_MAX = CHUNK_SIZE + 6 * MIB;

class Run {
  readonly volume: Volume;
  readonly random: Random;
  readonly files: Model[] = [];
  data!: FileData;
  capsule!: Capsule;
  fh = 1;
  warnings: string[] = [];
  readonly bufferSize: number;

  readonly outside: Outside;
  asynchronous = false;

  constructor(volume: Volume, outside: Outside, random: Random, bufferSize: number) {
    this.volume = volume;
    this.outside = outside;
    this.random = random;
    this.bufferSize = bufferSize;
  }

  async start(): Promise<void> {
    const { data, capsule } = this.volume.start({
      bufferSize: this.bufferSize,
      meta: this.asynchronous ? this.outside.engine(this.volume.engine) : this.volume.engine,
      warn: m => this.warnings.push(m),
    });
    this.data = data;
    this.capsule = capsule;
    await data.recover();
  }

  async file(): Promise<void> {
    const ino = await this.volume.newFile(`f${this.files.length}`);
    this.files.push({ ino, bytes: Buffer.alloc(FILE_MAX), length: 0 });
  }

  /** Places that make trouble: chunk and block borders, the end, near the last write. */
  offset(f: Model): number {
    const { random } = this;
    switch (random.below(6)) {
      case 0:
        return f.length;
      case 1:
        return Math.max(0, CHUNK_SIZE - random.below(3 * 65536));
      case 2:
        return random.below(Math.max(1, f.length));
      case 3:
        return random.below(24) * 65536;
      case 4:
        return random.below(2 * MIB);
      default:
        return Math.min(FILE_MAX - MIB, random.below(FILE_MAX));
    }
  }

  size(): number {
    const { random } = this;
    return 1 + random.below(random.pick([10, 100, 4096, 20_000, 131_072, 300_000]));
  }

  async write(f: Model, offset: number, size: number): Promise<void> {
    size = Math.min(size, FILE_MAX - offset);
    if (size <= 0) return;
    const bytes = randomBytes(size);
    const attr = await this.volume.attr(f.ino);
    await this.data.write(f.ino, offset, writeData(this.capsule, bytes), attr, false, patient);
    bytes.copy(f.bytes, offset);
    f.length = Math.max(f.length, offset + size);
    const pending = this.data.pending(f.ino)!;
    assert.ok(pending.length <= f.length, 'pending length');
  }

  async read(f: Model, offset: number, size: number): Promise<void> {
    const out = await this.data.read(f.ino, this.fh, offset, size, f.length, patient);
    const got = take(this.data, out);
    const wanted = f.bytes.subarray(offset, Math.max(offset, Math.min(offset + size, f.length)));
    if (!got.equals(wanted)) {
      const i = got.length === wanted.length ? got.findIndex((b, k) => b !== wanted[k]) : -1;
      assert.fail(
        `inode ${f.ino}: ${got.length} of ${wanted.length} bytes at ${offset}, first difference at ${offset + i}`,
      );
    }
  }

  async truncate(f: Model, length: number): Promise<void> {
    const frozen = await this.data.freeze(f.ino, Math.min(length, f.length), 2 ** 53);
    await this.volume.engine.setattr(this.volume.client.op(), root, f.ino, { size: length, byHandle: true });
    this.data.invalidateRange(f.ino, Math.min(length, f.length), 2 ** 53);
    frozen.done();
    if (length < f.length) f.bytes.fill(0, length, f.length);
    f.length = length;
  }

  async step(): Promise<void> {
    const { random, data } = this;
    const f = random.pick(this.files);
    const n = random.below(100);
    if (n < 35) await this.write(f, this.offset(f), this.size());
    else if (n < 42) {
      // A stream.
      let at = this.offset(f);
      for (let i = random.below(40); i > 0; i--) {
        const size = random.pick([131_072, 131_072, 65_536, 10_007]);
        await this.write(f, at, size);
        at += size;
      }
    } else if (n < 46) {
      const base = random.below(2 * MIB);
      for (let i = random.below(100); i > 0; i--) await this.write(f, base + random.below(512) * 8192, 8192);
    } else if (n < 80) await this.read(f, this.offset(f), this.size());
    else if (n < 84) await data.flush(f.ino);
    else if (n < 87) await data.sync(f.ino);
    else if (n < 90) await this.truncate(f, random.chance(50) ? random.below(Math.max(1, f.length)) : this.offset(f));
    else if (n < 92) {
      await data.compact(f.ino, random.below(2)).catch(e => assert.ok(e instanceof StoreError, String(e)));
    } else if (n < 94) data.invalidate(f.ino);
    else if (n < 96) void data.flush(f.ino).catch(() => {});
    else await new Promise(go => setTimeout(go, random.below(20)));
  }

  async check(): Promise<void> {
    for (const f of this.files) {
      for (let at = 0; at < f.length; at += MIB) await this.read(f, at, MIB);
      await this.seekAll(f);
    }
  }

  /** Every byte that SEEK_HOLE calls hole is zero, and data and holes cover the file. */
  async seekAll(f: Model): Promise<void> {
    let at = 0;
    while (at < f.length) {
      const data = await this.data.seek(f.ino, at, 3, f.length).catch((e: { code?: string }) => {
        assert.equal(e.code, 'ENXIO');
        return f.length;
      });
      for (let k = at; k < data; k += MIB) {
        const part = f.bytes.subarray(k, Math.min(data, k + MIB));
        assert.ok(part.equals(ZEROS.subarray(0, part.length)), `a hole with data in ${at}..${data}`);
      }
      if (data >= f.length) break;
      const hole = await this.data.seek(f.ino, data, 4, f.length);
      assert.ok(hole > data);
      at = hole;
    }
  }
}

interface Case {
  failures: number;
  kills: boolean;
  /** The engine answers late. */
  late: boolean;
  blockSize: number;
  buffer: number;
}

async function story(seed: number, steps: number, options: Case): Promise<void> {
  const random = seeded(seed);
  const outside = new Outside(random, options.failures, options.failures > 0 || options.late);
  const volume = await makeVolume({ blockSize: options.blockSize, wrap: store => outside.store(store) });
  const run = new Run(volume, outside, random, options.buffer);
  try {
    run.asynchronous = options.late;
    await run.start();
    for (let i = 0; i < 3; i++) await run.file();
    for (let i = 0; i < steps; i++) {
      await run.step();
      if (options.kills && random.chance(2)) {
        // As kill -9: what the old process began is never heard of again, and the next one finds the capsule as it is.
        outside.kill();
        void run.data.shutdown();
        if (random.chance(50)) await new Promise(go => setTimeout(go, 5));
        await run.start();
      }
    }
    await run.check();
    await run.data.flushAll();
    await run.check();
    // What is stored is right without anything in memory.
    for (const f of run.files) {
      assert.equal(run.data.pending(f.ino), undefined);
      assert.equal((await volume.attr(f.ino)).length, f.length);
    }
    assert.equal(run.data.stats().dirty, 0);
    await run.data.shutdown();
    // Downloads that were under way end.
    for (let i = 0; i < 100 && run.capsule.arena.used > 0; i++) await new Promise(go => setTimeout(go, 20));
    assert.equal(run.capsule.arena.used, 0, 'all memory is given back');
    await run.start();
    await run.check();
  } finally {
    outside.kill();
    await run.data.shutdown();
    await volume.dispose();
  }
}

describe('file data against a model', () => {
  const plain: Case = { failures: 0, kills: false, late: false, blockSize: 4096, buffer: 300 * MIB };
  const cases: (Case & { name: string })[] = [
    { ...plain, name: 'plain' },
    { ...plain, name: 'small blocks, little memory', blockSize: 64, buffer: 32 * MIB },
    { ...plain, name: 'a store that fails', failures: 5, blockSize: 256, buffer: 64 * MIB },
    { ...plain, name: 'deaths', kills: true, blockSize: 1024, buffer: 64 * MIB },
    {
      ...plain,
      name: 'deaths, engine late, store fails',
      failures: 5,
      kills: true,
      late: true,
      blockSize: 64,
      buffer: 32 * MIB,
    },
  ];
  for (const c of cases) {
    const seed = seedOf();
    it(`${c.name} (seed ${seed})`, { timeout: 60_000 }, () => story(seed, Number(process.env.STEPS ?? 120), c));
  }
});
