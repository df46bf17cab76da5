/**
 * The programs of the continuity storm: each knows what every one of its calls must answer and says so when it does not. They use raw
 * system calls, so an EINTR that the kernel gave is seen. A program is made of steps; `verify` comes after the last one, when the page
 * cache has been dropped. Mutations beside a model: mutations.ts; programs that are other people's: tools.ts.
 */
import { join } from 'node:path';
import * as c from '../support/libc.ts';
import { seeded } from '../support/random.ts';
import { firstDifference, now, opener, type Program, type Setting, stamp } from './checked.ts';
import { mutations, names } from './mutations.ts';
import { fio, slowReads, sqlite, untar } from './tools.ts';

/** A log that grows by records of random length; what was acknowledged must be there, in order, at each look. */
function appends(setting: Setting): Program {
  const { fault } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const path = join(setting.dir, 'log');
  const fd = must('open log', c.open(path, c.O.CREAT | c.O.RDWR | c.O.APPEND));
  let length = 0;
  const look = (from: number, direct: boolean): void => {
    const reader = must('open log to read', c.open(path, c.O.RDONLY | (direct ? c.O.DIRECT : 0)));
    if (reader < 0) return;
    const s = c.fstat(reader);
    if (typeof s === 'number') fault('failed', `fstat log: ${c.resultName(s)}`);
    else if (s.size !== length) fault('wrong', `the log has ${s.size} bytes in place of ${length}`);
    const buffer = direct ? c.alignedBuffer(1 << 20) : Buffer.alloc(1 << 20);
    for (let at = direct ? from - (from % 4096) : from; at < length; at += buffer.length) {
      const wanted = Math.min(buffer.length, length - at);
      const n = must('read log', c.pread(reader, buffer, buffer.length, at));
      if (n >= 0 && n < wanted) fault('wrong', `read log at ${at}: ${n} in place of ${wanted}`);
      const bad = firstDifference(buffer.subarray(0, n), stamp(Buffer.alloc(Math.min(n, wanted)), 3, at));
      if (n > 0 && bad >= 0) fault('wrong', `log: wrong byte at ${at + bad} of ${length}`);
    }
    c.close(reader);
  };
  let steps = 0;
  return {
    rest: 5,
    step() {
      const record = stamp(Buffer.alloc(random.below(9000) + 1), 3, length);
      expect('append', c.write(fd, record, record.length), record.length);
      length += record.length;
      if (random.chance(5)) expect('fsync log', c.fsync(fd), 0);
      if (++steps % 50 === 0) look(Math.max(0, length - 200_000), false);
      if (steps % 500 === 0 && length < 64 << 20) look(0, true);
      if (length > 96 << 20) {
        expect('ftruncate log', c.ftruncate(fd, 0), 0);
        length = 0;
      }
    },
    verify: () => look(0, false),
  };
}

/** Random reads and writes of one file beside its image in memory; `direct` does it past the page cache. */
function randomIo(setting: Setting, direct: boolean): Program {
  const { fault } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const size = 8 << 20;
  const image = Buffer.alloc(size);
  const fd = must('open', c.open(join(setting.dir, 'random'), c.O.CREAT | c.O.RDWR | (direct ? c.O.DIRECT : 0)));
  must('ftruncate', c.ftruncate(fd, size));
  const buffer = c.alignedBuffer(256 << 10);
  const unit = direct ? 4096 : 1;
  const compare = (at: number, length: number): void => {
    const n = c.pread(fd, buffer, length, at);
    expect(`pread ${length} at ${at}`, n, length);
    const bad = firstDifference(buffer.subarray(0, Math.max(0, n)), image.subarray(at, at + Math.max(0, n)));
    if (bad >= 0) fault('wrong', `${direct ? 'direct' : 'buffered'}: wrong byte at ${at + bad}`);
  };
  let salt = 0;
  return {
    rest: 8,
    step() {
      const length = (random.below(direct ? 32 : 100_000) + 1) * unit;
      const at = Math.floor(random.below(size - length) / unit) * unit;
      if (random.chance(50)) {
        const bytes = stamp(buffer.subarray(0, length), ++salt, at);
        image.set(bytes, at);
        expect(`pwrite ${length} at ${at}`, c.pwrite(fd, bytes, length, at), length);
      } else if (random.chance(4)) {
        expect('punch', c.fallocate(fd, c.FALLOC.PUNCH_HOLE | c.FALLOC.KEEP_SIZE, at, length), 0);
        image.fill(0, at, at + length);
      } else compare(at, length);
      if (random.chance(2)) expect('fsync', c.fsync(fd), 0);
    },
    verify() {
      for (let at = 0; at < size; at += buffer.length) compare(at, buffer.length);
    },
  };
}

/** Stores into a shared mapping, msync, and a read of the same bytes by pread. */
function mapped(setting: Setting): Program {
  const { fault } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const size = 4 << 20;
  const fd = must('open mapped', c.open(join(setting.dir, 'mapped'), c.O.CREAT | c.O.RDWR));
  must('ftruncate', c.ftruncate(fd, size));
  const map = c.mmap(fd, 0, size);
  if (typeof map === 'number') throw new Error(`mmap: ${c.resultName(map)}`);
  const image = Buffer.alloc(size);
  const look = (at: number, length: number): void => {
    const buffer = Buffer.alloc(length);
    expect('pread mapped', c.pread(fd, buffer, length, at), length);
    if (!buffer.equals(image.subarray(at, at + length)))
      fault('wrong', `mapped: pread differs at ${at + firstDifference(buffer, image.subarray(at, at + length))}`);
    if (!map.bytes.subarray(at, at + length).equals(image.subarray(at, at + length)))
      fault('wrong', `mapped: the mapping differs in ${at}+${length}`);
  };
  let salt = 0;
  return {
    rest: 10,
    step() {
      const length = random.below(20_000) + 1;
      const at = random.below(size - length);
      stamp(image.subarray(at, at + length), ++salt, at);
      map.bytes.set(image.subarray(at, at + length), at);
      if (random.chance(20)) expect('msync', map.sync(), 0);
      look(at, length);
      look(random.below(size - 5000), 5000);
    },
    verify() {
      expect('msync', map.sync(), 0);
      look(0, size);
    },
  };
}

/** Slow readers of a large directory while other names in it come and go: every name that stays is seen exactly once. */
function streams(setting: Setting): Program {
  const { dir, fault, count } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const stable = 1500;
  for (let i = 0; i < stable; i++)
    must('create', c.close(must('create', c.open(`${dir}/stays-${i}`, c.O.CREAT | c.O.WRONLY))));
  const coming = new Set<number>();
  let fd = -1;
  let seen = new Map<string, number>();
  let place: { off: bigint; seen: Map<string, number> } | undefined;
  const note = (entries: c.Dirent[]): void => {
    for (const e of entries) seen.set(e.name.toString(), (seen.get(e.name.toString()) ?? 0) + 1);
  };
  return {
    rest: 4,
    step() {
      const i = random.below(40);
      if (coming.delete(i)) expect('unlink', c.unlink(`${dir}/comes-${i}`), 0);
      else {
        coming.add(i);
        const made = must('create', c.open(`${dir}/comes-${i}`, c.O.CREAT | c.O.EXCL | c.O.WRONLY));
        if (made >= 0) expect('close', c.close(made), 0);
      }
      if (fd < 0) {
        fd = must('opendir', c.open(dir, c.O.RDONLY | c.O.DIRECTORY));
        seen = new Map();
        place = undefined;
      }
      const some = c.getdents(fd, 1024 + random.below(3000));
      count();
      if (typeof some === 'number') {
        fault('failed', `readdir: ${c.resultName(some)}`);
        c.close(fd);
        fd = -1;
        return;
      }
      note(some);
      if (some.length > 0 && !place && random.chance(2)) place = { off: some.at(-1)!.off, seen: new Map(seen) };
      else if (place && random.chance(10)) {
        // Back to a place that was told before: what was seen since is forgotten.
        expect('seekdir', c.seekdir(fd, place.off), 0);
        seen = place.seen;
        place = undefined;
      } else if (some.length === 0) {
        c.close(fd);
        fd = -1;
        const missed: number[] = [];
        let doubled = 0;
        for (let n = 0; n < stable; n++) {
          const times = seen.get(`stays-${n}`) ?? 0;
          if (times === 0) missed.push(n);
          if (times > 1) doubled++;
        }
        if (missed.length > 0 || doubled > 0)
          fault(
            'wrong',
            `a directory stream missed ${missed.length} entries (${missed.slice(0, 3)}…) and doubled ${doubled}`,
          );
      }
    },
    verify() {},
  };
}

/** Many descriptors held for the whole run, half of them of unlinked files: contents, attributes and writes stay right. */
function held(setting: Setting): Program {
  const { dir, fault } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const size = 10_000;
  const files = Array.from({ length: 250 }, (_, i) => {
    const path = `${dir}/held-${i}`;
    const fd = must('open', c.open(path, c.O.CREAT | c.O.RDWR));
    expect('pwrite', c.pwrite(fd, stamp(Buffer.alloc(size), i, 0), size, 0), size);
    const unlinked = i % 2 === 0;
    if (unlinked) expect('unlink', c.unlink(path), 0);
    return { fd, salt: i, unlinked, path };
  });
  const look = (file: (typeof files)[number]): void => {
    const buffer = Buffer.alloc(size + 1);
    const n = c.pread(file.fd, buffer, size + 1, 0);
    expect(`pread of a held file${file.unlinked ? ' without a name' : ''}`, n, size);
    if (n > 0 && firstDifference(buffer.subarray(0, n), stamp(Buffer.alloc(n), file.salt, 0)) >= 0)
      fault('wrong', `a held file${file.unlinked ? ' without a name' : ''} has other contents`);
    const s = c.fstat(file.fd, c.AT.STATX_FORCE_SYNC);
    if (typeof s === 'number') fault('failed', `fstat of a held file: ${c.resultName(s)}`);
    else if (s.nlink !== (file.unlinked ? 0 : 1) || s.size !== size)
      fault('wrong', `a held file${file.unlinked ? ' without a name' : ''} has ${s.nlink} links, ${s.size} bytes`);
  };
  return {
    rest: 6,
    step() {
      const file = random.pick(files);
      if (random.chance(30)) {
        file.salt += 1000;
        expect('pwrite of a held file', c.pwrite(file.fd, stamp(Buffer.alloc(size), file.salt, 0), size, 0), size);
      }
      look(file);
    },
    verify: () => files.forEach(look),
  };
}

/**
 * Several instances add one to a shared counter under an exclusive lock that they wait for; some hold it long. The counter tells whether two were in at once, and
 * a waiter must get the lock, never an error.
 */
function locks(setting: Setting, how: 'flock' | 'posix' | 'ofd'): Program {
  const { fault } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const fd = must('open counter', c.open(join(setting.shared, how), c.O.CREAT | c.O.RDWR));
  let added = 0;
  const command = how === 'ofd' ? { get: c.F.OFD_GETLK, wait: c.F.OFD_SETLKW } : { get: c.F.GETLK, wait: c.F.SETLKW };
  const set = (type: number): number =>
    how === 'flock'
      ? c.flock(fd, type === c.F_UNLCK ? c.LOCK.UN : c.LOCK.EX)
      : (c.fcntlLock(fd, command.wait, { type, start: 100, length: 50 }) as number);
  const read = (): number => {
    const b = Buffer.alloc(8);
    const n = must('read counter', c.pread(fd, b, 8, 0));
    return n === 0 ? 0 : Number(b.readBigInt64LE());
  };
  return {
    rest: 10,
    step() {
      expect(`${how} wait`, set(c.F_WRLCK), 0);
      const before = read();
      if (random.chance(how === 'posix' ? 3 : 1)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500);
      const again = read();
      if (again !== before) fault('wrong', `${how}: somebody else was inside the lock`);
      const b = Buffer.alloc(8);
      b.writeBigInt64LE(BigInt(before + 1));
      expect('write counter', c.pwrite(fd, b, 8, 0), 8);
      added++;
      expect(`${how} unlock`, set(c.F_UNLCK), 0);
    },
    verify() {
      // The driver adds up what the instances say.
      process.send?.({ kind: 'counter', how, added, found: read() });
    },
  };
}

/** Reads of a file that is larger than caches of the moment, past the page cache, 1 MiB at a time. */
function bigReads(setting: Setting): Program {
  const { fault } = setting;
  const { must, expect } = opener(setting);
  const size = 48 << 20;
  const path = join(setting.dir, 'big');
  const writer = must('open big', c.open(path, c.O.CREAT | c.O.WRONLY));
  const buffer = c.alignedBuffer(1 << 20);
  const wanted = Buffer.alloc(1 << 20);
  for (let at = 0; at < size; at += buffer.length)
    expect('write big', c.pwrite(writer, stamp(buffer, 9, at), buffer.length, at), buffer.length);
  expect('fsync big', c.fsync(writer), 0);
  c.close(writer);
  const fd = must('open big', c.open(path, c.O.RDONLY | c.O.DIRECT));
  let at = 0;
  const step = (): void => {
    expect(`read big at ${at}`, c.pread(fd, buffer, buffer.length, at), buffer.length);
    if (!buffer.equals(stamp(wanted, 9, at)))
      fault('wrong', `big: wrong byte at ${at + firstDifference(buffer, wanted)}`);
    at = (at + buffer.length) % size;
  };
  return { rest: 50, step, verify: step };
}

/** One cheap call every two milliseconds, timed. */
function prober(setting: Setting, call: (i: number) => number): Program {
  const { slow, count, fault } = setting;
  let i = 0;
  return {
    rest: 2,
    step() {
      const begin = now();
      const result = call(i++);
      const length = now() - begin;
      count();
      if (result < 0) fault('failed', `probe: ${c.resultName(result)}`);
      if (length > 3) slow(begin, length);
    },
    verify() {},
  };
}

export const PROGRAMS: Record<string, { instances: number; make(setting: Setting): Program }> = {
  mutations: { instances: 3, make: mutations },
  names: { instances: 2, make: names },
  sqlite: { instances: 3, make: sqlite },
  untar: { instances: 1, make: untar },
  fio: { instances: 1, make: fio },
  slowReads: { instances: 2, make: slowReads },
  appends: { instances: 1, make: appends },
  buffered: { instances: 1, make: s => randomIo(s, false) },
  direct: { instances: 1, make: s => randomIo(s, true) },
  mapped: { instances: 1, make: mapped },
  streams: { instances: 1, make: streams },
  held: { instances: 1, make: held },
  flock: { instances: 2, make: s => locks(s, 'flock') },
  posix: { instances: 3, make: s => locks(s, 'posix') },
  ofd: { instances: 2, make: s => locks(s, 'ofd') },
  bigReads: { instances: 1, make: bigReads },
  statProber: {
    instances: 1,
    make(setting) {
      const fd = c.open(join(setting.dir, 'probed'), c.O.CREAT | c.O.RDWR);
      return prober(setting, () => {
        const s = c.fstat(fd, c.AT.STATX_FORCE_SYNC);
        return typeof s === 'number' ? s : 0;
      });
    },
  },
  mutationProber: {
    instances: 1,
    make: setting =>
      prober(setting, i => (i % 2 === 0 ? c.mkdir(`${setting.dir}/d`, 0o755) : c.rmdir(`${setting.dir}/d`))),
  },
};
