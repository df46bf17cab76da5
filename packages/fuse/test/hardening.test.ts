/** Requests that no kernel sends, and replies that no kernel takes: each is answered or dropped with a word in the log, and the connection goes on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { LEAST_BODY, OP, opcodeName, put64 } from '../src/abi.ts';
import { attributes } from '../src/attributes.ts';
import { createCapsule, openCapsule } from '../src/capsule.ts';
import { EIO, ENOENT, errnoFrom, errnoOf } from '../src/errno.ts';
import { serve } from '../src/session.ts';
import { allocate, unmap, write } from '../src/sys.ts';
import type { DirentSink, EntryOut, FileSystem } from '../src/types.ts';
import { connect, type Kernel, logged, pack } from './kernel.ts';

const attr = attributes({ ino: 2, mode: 0o100644 });
const entry: EntryOut = { nodeid: 2, entryValid: 1, attrValid: 1, attr };

/** Sends bytes that need not be a request. */
function sendRaw(kernel: Kernel, bytes: Uint8Array): void {
  const memory = allocate(Math.max(4096, bytes.length));
  memory.bytes.set(bytes);
  assert.equal(write(kernel.fd, memory.address, bytes.length), bytes.length);
  unmap(memory);
}

function header(length: number, opcode: number, unique: bigint): Uint8Array {
  return pack(length, opcode, unique, 1n, 0, 0, 0, 0);
}

/** mulberry32 */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

/** Answers everything, after it has looked at every byte that it was given. */
const willing = new Proxy({} as FileSystem, {
  get(_, name) {
    if (name === 'init' || name === 'destroy' || name === 'then') return undefined;
    return (...args: unknown[]): unknown => {
      for (const arg of args.slice(1)) {
        if (arg instanceof Uint8Array) assert.ok(arg.every(byte => byte >= 0));
        else if (typeof arg === 'number') assert.ok(Number.isFinite(arg), `${String(name)}: ${arg}`);
      }
      switch (name) {
        case 'getlk':
          return { start: 0n, end: 0n, type: 2, pid: 0 };
        case 'listxattr':
          return [];
        case 'read':
        case 'readlink':
        case 'getxattr':
          return new Uint8Array(0);
        case 'ioctl':
          return { result: 0, output: new Uint8Array(0) };
        case 'statfs':
          return { blocks: 0, bfree: 0, bavail: 0, files: 0, ffree: 0, bsize: 1, namelen: 255, frsize: 1 };
        default:
          return { ...entry, fh: 1, flags: 0 };
      }
    };
  },
});

test('requests cut short, with lengths that lie, names without end', async () => {
  const seed = Number(process.env.FUSE_SEED ?? Math.floor(Math.random() * 2 ** 32));
  const next = random(seed);
  const { kernel, session, end } = await connect(willing);
  const asked: bigint[] = [];
  const skip = new Set<number>([OP.INIT, OP.FORGET, OP.BATCH_FORGET, OP.INTERRUPT, OP.NOTIFY_REPLY]);
  try {
    for (let i = 0; i < 3000; i++) {
      const opcode = next() % 60;
      const length = next() % 3 === 0 ? next() % 1500 : next() % 100;
      const body = new Uint8Array(length);
      const kind = next() % 3;
      for (let b = 0; b < length; b++) body[b] = kind === 0 ? 0xff : kind === 1 ? next() & 255 : 1 + (next() % 4);
      const unique = kernel.next();
      const lies = next() % 10 === 0;
      sendRaw(kernel, Buffer.concat([header(40 + length + (lies ? 1 + (next() % 5000) : 0), opcode, unique), body]));
      if (!lies && !skip.has(opcode)) asked.push(unique);
      if (i % 50 === 49) {
        for (const id of asked.splice(0)) await kernel.answer(id);
        kernel.peek(0n);
      }
    }
    // Shorter than a header; a header that says less than a header; FORGETs that are not there.
    sendRaw(kernel, new Uint8Array(7));
    sendRaw(kernel, header(3, OP.GETATTR, kernel.next()));
    sendRaw(kernel, Buffer.concat([header(56, OP.BATCH_FORGET, kernel.next()), pack(0xffff_ffff, 0, 5n)]));
    const last = await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
    assert.equal(last.error, 0, 'the connection goes on');
    assert.equal(session.stats.slots.used, 0);
    assert.ok(logged.some(line => /FORGETs that are not there/.test(line)));
    assert.ok(logged.some(line => /too short/.test(line)) && logged.some(line => /has no end/.test(line)));
  } catch (error) {
    throw new Error(`FUSE_SEED=${seed}`, { cause: error });
  } finally {
    await end();
  }
});

test('every opcode has a least length, and one byte less is EIO', async () => {
  const { kernel, end } = await connect(willing);
  for (const code of Object.values(OP)) {
    const least = LEAST_BODY[code];
    assert.ok(least !== undefined, `${opcodeName[code]}`);
    if (least === 0 || [OP.INIT, OP.FORGET, OP.BATCH_FORGET, OP.INTERRUPT, OP.NOTIFY_REPLY].some(o => o === code))
      continue;
    const { error } = await kernel.call(code, 1, new Uint8Array(least - 1));
    if (code === OP.SETUPMAPPING || code === OP.REMOVEMAPPING) assert.equal(error, 95);
    else assert.equal(error, EIO.errno, `${opcodeName[code]}`);
  }
  await end();
});

test('wrong replies: EIO, a word in the log, and the next request is served', async () => {
  let reply: unknown;
  const answers = (): never => reply as never;
  // biome-ignore format: a list
  const fs: FileSystem = {
    lookup: answers, getattr: answers, setattr: answers, mkdir: answers, create: answers, open: answers, read: answers, write: answers, readlink: answers, lseek: answers,
    copyFileRange: answers, ioctl: answers, getxattr: answers, statx: answers, link: answers, symlink: answers,
    readdir(_ctx, _nodeid, _fh, _offset, sink) {
      sink.add(reply as never);
    },
  };
  const { kernel, end } = await connect(fs);
  const name = pack('name');
  const read = pack(0n, 0n, 100, 0, 0n, 0, 0);
  const data = pack(0n, 0n, 5, 0, 0n, 0, 0, Buffer.from('12345'));
  const cases: [string, unknown, number, Uint8Array][] = [
    ['attributes without a type', { attr: { ...attr, mode: 0o644 }, attrValid: 1 }, OP.GETATTR, pack(0, 0, 0n)],
    ['attributes with two types', { attr: { ...attr, mode: 0o150644 }, attrValid: 1 }, OP.GETATTR, pack(0, 0, 0n)],
    ['a negative size', { attr: { ...attr, size: -1 }, attrValid: 1 }, OP.GETATTR, pack(0, 0, 0n)],
    ['nothing', undefined, OP.GETATTR, pack(0, 0, 0n)],
    ['no attributes', { attrValid: 1 }, OP.GETATTR, pack(0, 0, 0n)],
    ['statx without a type', { attr: { ...attr, mode: 0 }, attrValid: 1 }, OP.STATX, pack(0, 0, 0n, 0, 0)],
    ['lookup: nothing', undefined, OP.LOOKUP, name],
    ['lookup: no node id', { ...entry, nodeid: undefined }, OP.LOOKUP, name],
    ['lookup: a fraction', { ...entry, nodeid: 2.5 }, OP.LOOKUP, name],
    ['lookup: too large', { ...entry, nodeid: 2 ** 60 }, OP.LOOKUP, name],
    ['mkdir: a negative entry', { ...entry, nodeid: 0 }, OP.MKDIR, pack(0o755, 0, 'name')],
    ['mkdir: the root', { ...entry, nodeid: 1 }, OP.MKDIR, pack(0o755, 0, 'name')],
    ['open: no handle', {}, OP.OPEN, pack(0, 0)],
    ['open: a negative handle', { fh: -1, flags: 0 }, OP.OPEN, pack(0, 0)],
    ['create: no handle', { ...entry, flags: 0 }, OP.CREATE, pack(0, 0o644, 0, 0, 'name')],
    ['read: more than asked for', new Uint8Array(101), OP.READ, read],
    ['read: more, in pieces', [new Uint8Array(60), new Uint8Array(60)], OP.READ, read],
    ['read: much more', new Uint8Array(1 << 20), OP.READ, read],
    ['read: nothing', undefined, OP.READ, read],
    ['write: more than given', 6, OP.WRITE, data],
    ['write: less than nothing', -1, OP.WRITE, data],
    ['write: nothing', undefined, OP.WRITE, data],
    ['lseek: NaN', Number.NaN, OP.LSEEK, pack(0n, 0n, 3, 0)],
    ['copy: more than asked for', 11, OP.COPY_FILE_RANGE, pack(0n, 0n, 1n, 0n, 0n, 10n, 0n)],
    ['copy: more than asked for (64)', 11, OP.COPY_FILE_RANGE_64, pack(0n, 0n, 1n, 0n, 0n, 10n, 0n)],
    [
      'ioctl: more than there is room for',
      { result: 0, output: new Uint8Array(9) },
      OP.IOCTL,
      pack(0n, 0, 1, 0n, 0, 8),
    ],
    [
      'readdir: an empty name',
      { name: new Uint8Array(0), ino: 2, offset: 1, type: 8 },
      OP.READDIR,
      pack(0n, 0n, 4096, 0, 0n, 0, 0),
    ],
    ['readdir: no entry', undefined, OP.READDIR, pack(0n, 0n, 4096, 0, 0n, 0, 0)],
    [
      'readdirplus: an entry without attributes',
      { name: Buffer.from('n'), ino: 2, offset: 1, type: 8, entry: { nodeid: 2 } },
      OP.READDIRPLUS,
      pack(0n, 0n, 4096, 0, 0n, 0, 0),
    ],
  ];
  for (const [what, value, opcode, body] of cases)
    for (const later of [false, true]) {
      const before = logged.length;
      reply = later && opcode !== OP.READDIR && opcode !== OP.READDIRPLUS ? sleep(0, value) : value;
      const { error } = await kernel.call(opcode, 1, body);
      assert.equal(error, EIO.errno, `${what}: ${error}`);
      assert.ok(logged.length > before, `${what} is logged`);
      reply = { attr, attrValid: 1 };
      assert.equal((await kernel.call(OP.GETATTR, 1, 0, 0, 0n)).error, 0);
    }
  // Names of 256 bytes reach the server on newer kernels; a symbolic link's target may be longer.
  for (const [n, error] of [
    [255, 0],
    [256, 36],
    [1024, 36],
  ] as const) {
    reply = entry;
    assert.equal((await kernel.call(OP.LOOKUP, 1, 'n'.repeat(n))).error, error, `a name of ${n} bytes`);
    assert.equal((await kernel.call(OP.SYMLINK, 1, 'l', 'n'.repeat(n))).error, 0, `a target of ${n} bytes`);
  }
  // A negative entry needs no attributes; generation may be left out.
  reply = { nodeid: 0, entryValid: 1, attrValid: 0, attr };
  assert.equal((await kernel.call(OP.LOOKUP, 1, 'name')).error, 0);
  await end();
});

test('entries added after the answer, answers after the end', async () => {
  let kept: DirentSink | undefined;
  let late: (() => void) | undefined;
  const fs: FileSystem = {
    lookup: () => new Promise(resolve => (late = () => resolve(entry))),
    getattr: () => ({ attr, attrValid: 1 }),
    readdir(_ctx, _nodeid, _fh, _offset, sink) {
      kept = sink;
    },
  };
  const { kernel, session, end } = await connect(fs);
  await kernel.call(OP.READDIR, 1, 0n, 0n, 4096, 0, 0n, 0, 0);
  assert.equal(kept!.add({ ino: 2, offset: 1, type: 8, name: Buffer.from('late') }), false);
  kernel.send(OP.LOOKUP, 1, pack('never'));
  while (!late) await sleep(1);
  await end();
  assert.ok(logged.some(line => /has not answered 1 requests: LOOKUP of inode 1/.test(line)));
  late();
  await sleep(5);
  assert.equal(session.stats.inFlight, 0);
});

test('errors of system calls; an arena without room', async () => {
  const system = Object.assign(new Error('x'), { errno: -39, code: 'ENOTEMPTY', syscall: 'rmdir' });
  assert.equal(errnoFrom(system).errno, 39);
  assert.equal(errnoFrom(ENOENT), ENOENT);
  assert.equal(errnoFrom(new TypeError('y')).errno, EIO.errno);
  for (const systemErrors of [false, true]) {
    const fs: FileSystem = {
      lookup() {
        throw system;
      },
      getattr: () => Promise.reject(errnoOf(600)),
    };
    const { kernel, end } = await connect(fs, 45, { systemErrors });
    assert.equal((await kernel.call(OP.LOOKUP, 1, 'name')).error, systemErrors ? 39 : EIO.errno);
    assert.equal((await kernel.call(OP.GETATTR, 1, 0, 0, 0n)).error, EIO.errno, 'no errno of the kernel');
    await end();
  }
  const capsule = openCapsule(createCapsule({ arenaSize: 1 << 20 }));
  assert.throws(() => serve({ fd: -1, capsule, fileSystem: willing }), /arena of 1048576 bytes is too small/);
});

test('notifications of any bytes', async () => {
  const { kernel, session, end } = await connect({ lookup: () => entry, getattr: () => ({ attr, attrValid: 1 }) });
  const names = [
    Uint8Array.from({ length: 255 }, (_, i) => i + 1),
    Buffer.from('%s %n \\ \\0 $(x) `y` \n'),
    new Uint8Array(0),
  ];
  for (const name of names) {
    void session.notify.invalEntry(7, name);
    const { body, view } = await kernel.notification();
    assert.equal(view.getUint32(8, true), name.length);
    assert.deepEqual([...body.subarray(16)], [...name, 0]);
    void session.notify.delete(7, 8, name);
    assert.deepEqual([...(await kernel.notification()).body.subarray(24)], [...name, 0]);
  }
  for (const nodeid of [1, 2 ** 32, 2 ** 53 - 1]) {
    void session.notify.invalInode(nodeid, -1, 0);
    const { body } = await kernel.notification();
    const expected = new DataView(new ArrayBuffer(24));
    put64(expected, 0, nodeid);
    put64(expected, 8, -1n);
    assert.deepEqual([...body], [...new Uint8Array(expected.buffer)]);
  }
  // Longer than the shell's line.
  const data = Uint8Array.from({ length: 100_000 }, (_, i) => i & 255);
  void session.notify.store(7, 4096, data);
  const stored = await kernel.notification();
  assert.deepEqual(Buffer.from(stored.body.subarray(24)).equals(data), true);
  await end();
});
