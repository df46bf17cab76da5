/**
 * The data path without FUSE: SQLite and a directory, one caller. `node bench/data-path.ts [raw seq small append files rewrite]`.
 * `raw` is what the disk does at the same moment with plain calls of the same sizes: judge the others by it.
 */
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { MIB, makeVolume, patient, writeData } from '../packages/steadfs/test/data/harness.ts';

const v = await makeVolume({ arena: 400 * MIB });
const { data, capsule } = v.start({ warn: m => console.log('warning:', m) });
await data.recover();

const tick = (): Promise<void> => new Promise(go => setImmediate(go));
const clock = (): number => performance.now();
const rate = (n: number, ms: number): string => (n / (ms / 1000)).toFixed(0);

function cpu(): () => string {
  const begin = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(begin);
    return `cpu ${Math.round((user + system) / 1000)} ms (${Math.round(system / 1000)} in the kernel)`;
  };
}

async function write(ino: number, offset: number, bytes: ReturnType<typeof writeData>, attr: Attr): Promise<void> {
  const waits = data.write(ino, offset, bytes, attr, false, patient);
  if (waits) await waits;
}
type Attr = Awaited<ReturnType<typeof v.attr>>;

async function read(ino: number, fh: number, offset: number, size: number, length: number): Promise<boolean> {
  const out = data.read(ino, fh, offset, size, length, patient);
  data.releaseRead(out instanceof Promise ? await out : out);
  return out instanceof Promise;
}

async function newFile(name: string): Promise<[number, Attr]> {
  const ino = await v.newFile(name);
  return [ino, await v.attr(ino)];
}

const suites: Record<string, () => Promise<void>> = {
  async raw() {
    const block = randomBytes(4 * MIB);
    let begin = clock();
    await Promise.all(Array.from({ length: 64 }, (_, i) => fs.promises.writeFile(`${v.dir}/raw${i}`, block)));
    console.log(`raw: 4 MiB files, in the pool: ${rate(256, clock() - begin)} MiB/s`);
    for (let i = 0; i < 64; i++) fs.unlinkSync(`${v.dir}/raw${i}`);
    const small = randomBytes(4096);
    begin = clock();
    for (let i = 0; i < 100; i++) {
      const fd = fs.openSync(`${v.dir}/raw`, 'w');
      fs.writeSync(fd, small);
      fs.fsyncSync(fd);
      fs.closeSync(fd);
    }
    console.log(`raw: 4 KiB file + fsync: ${rate(100, clock() - begin)} /s`);
  },

  async seq() {
    const mib = 512;
    const piece = randomBytes(128 * 1024);
    const count = (mib * MIB) / piece.length;
    const [ino, attr] = await newFile('seq');
    let used = cpu();
    let begin = clock();
    for (let i = 0; i < count; i++) {
      await write(ino, i * piece.length, writeData(capsule, piece), attr);
      if (i % 64 === 0) await tick();
    }
    await data.flush(ino);
    console.log(`sequential write: ${rate(mib, clock() - begin)} MiB/s, ${used()}`);
    used = cpu();
    begin = clock();
    let waits = 0;
    for (let i = 0; i < count; i++) if (await read(ino, 1, i * piece.length, piece.length, mib * MIB)) waits++;
    console.log(`sequential read: ${rate(mib, clock() - begin)} MiB/s, ${waits} of ${count} waited, ${used()}`);
    for (const [n, size] of [
      [3000, 4096],
      [1000, 131072],
    ] as const) {
      begin = clock();
      for (let i = 0; i < n; i++)
        await read(ino, 2, Math.floor((Math.random() * mib * MIB) / size) * size, size, mib * MIB);
      console.log(`random reads of ${size}: ${rate(n, clock() - begin)} /s`);
    }
  },

  async small() {
    const n = 20_000;
    const [ino, attr] = await newFile('small');
    const piece = writeData(capsule, randomBytes(4096));
    let begin = clock();
    for (let i = 0; i < n; i++) {
      await write(ino, i * 4096, piece, attr);
      if (i % 200 === 0) await tick();
    }
    console.log(`4 KiB appends: ${(((clock() - begin) * 1000) / n).toFixed(1)} µs each`);
    begin = clock();
    for (let i = 0; i < n; i++) {
      await write(ino, ((i * 7919) % 1000) * 4096, piece, attr);
      if (i % 200 === 0) await tick();
    }
    console.log(`4 KiB overwrites of dirty data: ${(((clock() - begin) * 1000) / n).toFixed(1)} µs each`);
    await data.flush(ino);
  },

  async append() {
    const n = 500;
    const piece = writeData(capsule, randomBytes(4096));
    for (const durable of [true, false]) {
      const [ino, attr] = await newFile(`append${durable}`);
      const begin = clock();
      for (let i = 0; i < n; i++) {
        await write(ino, i * 4096, piece, attr);
        if (durable) {
          await data.sync(ino);
          await v.engine.sync();
        } else await data.flush(ino);
      }
      console.log(`append 4 KiB + ${durable ? 'fsync' : 'flush'}: ${rate(n, clock() - begin)} /s`);
    }
  },

  async files() {
    for (const size of [4096, 100 * 1024]) {
      const n = 1000;
      const bytes = randomBytes(size);
      let total = 0;
      for (let i = 0; i < n; i++) {
        const [ino, attr] = await newFile(`f${size}_${i}`);
        const begin = clock();
        await write(ino, 0, writeData(capsule, bytes), attr);
        await data.flush(ino);
        total += clock() - begin;
      }
      console.log(`files of ${size}: write + flush ${((total * 1000) / n).toFixed(0)} µs`);
    }
  },

  async rewrite() {
    const mib = 1200;
    const n = 20_000;
    const [ino, attr] = await newFile('rewrite');
    const big = randomBytes(MIB);
    for (let i = 0; i < mib; i++) {
      await write(ino, i * MIB, writeData(capsule, big), attr);
      if (i % 8 === 0) await tick();
    }
    await data.flush(ino);
    const piece = writeData(capsule, randomBytes(8192));
    const now = await v.attr(ino);
    const begin = clock();
    let worst = 0;
    for (let i = 0; i < n; i++) {
      const at = Math.floor(Math.random() * mib * 128) * 8192;
      const start = clock();
      await read(ino, 3, at, 8192, now.length);
      await write(ino, at, piece, now);
      worst = Math.max(worst, clock() - start);
      if (i % 100 === 0) await tick();
    }
    await data.sync(ino);
    await v.engine.sync();
    console.log(
      `rewrite 8 KiB in ${mib} MiB, fsync included: ${rate(n, clock() - begin)} /s, slowest ${worst.toFixed(0)} ms`,
    );
    console.log(
      `memory: ${Math.round(process.memoryUsage().rss / MIB)} MiB resident, ceiling ${data.stats().ceiling / MIB}`,
    );
  },
};

const wanted = process.argv.slice(2);
try {
  for (const [name, run] of Object.entries(suites)) if (wanted.length === 0 || wanted.includes(name)) await run();
} finally {
  await data.shutdown();
  await v.dispose();
}
