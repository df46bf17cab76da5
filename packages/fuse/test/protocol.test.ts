import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { FATTR, FOPEN_KEEP_CACHE, INIT, INIT_OUT, OP, opcodeName } from '../src/abi.ts';
import { createCapsule, openCapsule } from '../src/capsule.ts';
import { EAGAIN, EEXIST, EINTR, EIO, ENOENT, ENOSYS, EOPNOTSUPP, ERANGE } from '../src/errno.ts';
import { APPLIED, HANDED, RESERVED, SLOTS, Slots } from '../src/slots.ts';
import { viewOf } from '../src/sys.ts';
import type { Context, EntryOut, FileSystem, FuseAttr, Op } from '../src/types.ts';
import { connect, Kernel, logged, pack, RESEND_BIT, start, u64 } from './kernel.ts';

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const bytes = (s: string): Uint8Array => Buffer.from(s);

const attr: FuseAttr = {
  ino: 0x1122334455,
  size: 0x10_0000_0001,
  blocks: 9,
  atime: -5,
  mtime: 0x1_0000_0002,
  ctime: 3,
  atimensec: 1,
  mtimensec: 2,
  ctimensec: 3,
  mode: 0o100644,
  nlink: 2,
  uid: 10,
  gid: 11,
  rdev: 0x12345,
  blksize: 4096,
  btime: 77,
  btimensec: 78,
};
const entry: EntryOut = { nodeid: 0x1122334455, generation: 3, entryValid: 1.5, attrValid: 2.25, attr };

function checkAttr(view: DataView, at: number): void {
  assert.equal(u64(view, at), attr.ino);
  assert.equal(u64(view, at + 8), attr.size);
  assert.equal(u64(view, at + 16), attr.blocks);
  assert.equal(view.getBigInt64(at + 24, true), -5n);
  assert.equal(u64(view, at + 32), attr.mtime);
  assert.deepEqual(
    [48, 52, 56, 60, 64, 68, 72, 76, 80, 84].map(o => view.getUint32(at + o, true)),
    [1, 2, 3, 0o100644, 2, 10, 11, 0x12345, 4096, 0],
  );
}
function checkEntry(view: DataView): void {
  assert.equal(u64(view, 0), entry.nodeid);
  assert.equal(u64(view, 8), 3);
  assert.deepEqual([u64(view, 16), u64(view, 24)], [1, 2]);
  assert.deepEqual([view.getUint32(32, true), view.getUint32(36, true)], [5e8, 2.5e8]);
  checkAttr(view, 40);
}

/** Records each call as [name, ...arguments without the context]. */
function recorder(later: boolean) {
  const calls: unknown[][] = [];
  const contexts: Context[] = [];
  const says = <T>(name: string, value: T) => {
    return (ctx: Context, ...args: unknown[]): T | Promise<T> => {
      contexts.push(ctx);
      calls.push([name, ...args.map(plain)]);
      return later ? sleep(0).then(() => value) : value;
    };
  };
  const fs = {
    forget: (nodeid: number, n: number) => calls.push(['forget', nodeid, n]),
    lookup: says('lookup', entry),
    getattr: says('getattr', entry),
    setattr: says('setattr', entry),
    readlink: says('readlink', bytes('target')),
    symlink: says('symlink', entry),
    mknod: says('mknod', entry),
    mkdir: says('mkdir', entry),
    unlink: says('unlink', undefined),
    rmdir: says('rmdir', undefined),
    rename: says('rename', undefined),
    link: says('link', entry),
    open: says('open', { fh: 2 ** 40, flags: FOPEN_KEEP_CACHE }),
    create: says('create', { ...entry, fh: 7, flags: 0 }),
    tmpfile: says('tmpfile', { ...entry, fh: 8, flags: 0 }),
    read: says('read', [bytes('some '), bytes('data')]),
    write: says('write', 5),
    flush: says('flush', undefined),
    release: says('release', undefined),
    fsync: says('fsync', undefined),
    opendir: says('opendir', { fh: 9, flags: 0 }),
    readdir(
      ctx: Context,
      nodeid: number,
      fh: number,
      offset: number,
      sink: { plus: boolean; add(e: unknown): boolean },
    ) {
      contexts.push(ctx);
      calls.push(['readdir', nodeid, fh, offset, sink.plus]);
      assert.ok(sink.add({ ino: 1, offset: 1, type: 4, name: bytes('.') }));
      assert.ok(
        sink.add({ ino: 5, offset: 2 ** 40, type: 8, name: bytes('a file'), entry: sink.plus ? entry : undefined }),
      );
      while (sink.add({ ino: 6, offset: 3, type: 8, name: bytes('x') }));
      return later ? sleep(0) : undefined;
    },
    releasedir: says('releasedir', undefined),
    fsyncdir: says('fsyncdir', undefined),
    statfs: says('statfs', { blocks: 1, bfree: 2, bavail: 3, files: 4, ffree: 5, bsize: 6, namelen: 7, frsize: 8 }),
    access: says('access', undefined),
    setxattr: says('setxattr', undefined),
    getxattr: says('getxattr', bytes('value')),
    listxattr: says('listxattr', [bytes('user.a'), bytes('user.bc')]),
    removexattr: says('removexattr', undefined),
    getlk: says('getlk', { start: 1n, end: 2n ** 63n - 1n, type: 1, pid: 12 }),
    setlk: says('setlk', undefined),
    fallocate: says('fallocate', undefined),
    lseek: says('lseek', 2 ** 41),
    copyFileRange: says('copyFileRange', 2 ** 30),
    ioctl: says('ioctl', { result: 3, output: bytes('out') }),
    poll: says('poll', 5),
    statx: says('statx', entry),
    syncfs: says('syncfs', undefined),
  };
  return { fs: fs as unknown as FileSystem, calls, contexts };
}
/** Bytes as text, WriteData by its bytes. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return text(value);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([k, v]) => [k, k === 'data' ? text((v as { bytes: Uint8Array }).bytes) : plain(v)]),
  );
}

for (const minor of [38, 45])
  for (const later of [false, true])
    test(`every opcode of 7.${minor}, ${later ? 'promised' : 'immediate'} answers`, async () => {
      const { fs, calls, contexts } = recorder(later);
      const { kernel, session, end } = await connect(fs, minor);
      const seen = new Set<number>([OP.INIT]);
      const call = async (opcode: number, nodeid: number, ...fields: Parameters<typeof pack>) => {
        seen.add(opcode);
        calls.length = 0;
        const answer = await kernel.call(opcode, nodeid, ...fields);
        return { ...answer, call: calls[0] };
      };
      const ok = (a: { error: number; body: Uint8Array; call: unknown }, length: number, ...expected: unknown[]) => {
        assert.equal(a.error, 0);
        assert.equal(a.body.length, length);
        assert.deepEqual(a.call, expected);
      };
      try {
        assert.equal(session.connection!.minor, minor);
        const big = 2 ** 40 + 1;

        let a = await call(OP.LOOKUP, big, 'näme');
        ok(a, 128, 'lookup', big, 'näme');
        checkEntry(a.view);
        assert.deepEqual(
          [contexts[0]!.uid, contexts[0]!.gid, contexts[0]!.pid, contexts[0]!.opcode],
          [1000, 1001, process.pid, 1],
        );
        a = await call(OP.LOOKUP, 1, 'n'.repeat(255));
        ok(a, 128, 'lookup', 1, 'n'.repeat(255));

        a = await call(OP.GETATTR, 5, 1, 0, 77n);
        ok(a, 104, 'getattr', 5, 77);
        assert.deepEqual([u64(a.view, 0), a.view.getUint32(8, true)], [2, 2.5e8]);
        checkAttr(a.view, 16);
        ok(await call(OP.GETATTR, 5, 0, 0, 77n), 104, 'getattr', 5, undefined);

        const all = FATTR.MODE | FATTR.UID | FATTR.GID | FATTR.SIZE | FATTR.ATIME | FATTR.MTIME | FATTR.FH;
        const times = [-7n, 8n, 9n, 1, 2, 3] as const;
        const rest = [0o755, 0, 21, 22, 0] as const;
        a = await call(
          OP.SETATTR,
          5,
          all | FATTR.MTIME_NOW | FATTR.LOCKOWNER | FATTR.CTIME | FATTR.KILL_SUIDGID,
          0,
          6n,
          4096n,
          2n ** 63n,
          ...times,
          ...rest,
        );
        ok(a, 104, 'setattr', 5, {
          fh: 6,
          size: 4096,
          lockOwner: 2n ** 63n,
          atime: { sec: -7, nsec: 1 },
          mtime: 'now',
          ctime: { sec: 9, nsec: 3 },
          mode: 0o755,
          uid: 21,
          gid: 22,
          killSuidgid: true,
        });
        a = await call(OP.SETATTR, 5, FATTR.UID, 0, 6n, 4096n, 0n, ...times, ...rest);
        ok(a, 104, 'setattr', 5, { uid: 21, killSuidgid: false });
        a = await call(OP.SETATTR, 5, FATTR.SIZE, 0, 6n, 2n ** 62n, 0n, ...times, ...rest);
        assert.deepEqual([a.error, a.call], [27, undefined]);

        a = await call(OP.READLINK, 5);
        ok(a, 6, 'readlink', 5);
        assert.equal(text(a.body), 'target');
        ok(await call(OP.SYMLINK, 1, 'link', 't'.repeat(4000)), 128, 'symlink', 1, 'link', 't'.repeat(4000));
        ok(await call(OP.SYMLINK, 1, 'l', 'short'), 128, 'symlink', 1, 'l', 'short');
        ok(await call(OP.MKNOD, 1, 0o10644, 5, 0o22, 0, 'fifo'), 128, 'mknod', 1, 'fifo', 0o10644, 5, 0o22);
        ok(await call(OP.MKDIR, 1, 0o755, 0o22, 'dir'), 128, 'mkdir', 1, 'dir', 0o755, 0o22);
        ok(await call(OP.UNLINK, 1, 'f'), 0, 'unlink', 1, 'f');
        ok(await call(OP.RMDIR, 1, 'd'), 0, 'rmdir', 1, 'd');
        ok(await call(OP.RENAME, 1, 9n, 'a', 'b'), 0, 'rename', 1, 'a', 9, 'b', 0);
        const long = ['x'.repeat(255), 'y'.repeat(255)] as const;
        ok(await call(OP.RENAME2, 1, 9n, 2, 0, ...long), 0, 'rename', 1, long[0], 9, long[1], 2);
        ok(await call(OP.LINK, 1, 55n, 'hard'), 128, 'link', 55, 1, 'hard');

        a = await call(OP.OPEN, 5, 0o100002, 1);
        ok(a, 16, 'open', 5, 0o100002, true);
        assert.deepEqual([u64(a.view, 0), a.view.getUint32(8, true)], [2 ** 40, FOPEN_KEEP_CACHE]);
        a = await call(OP.CREATE, 1, 0o102, 0o100600, 0o77, 0, 'new');
        ok(a, 144, 'create', 1, 'new', 0o100600, 0o77, 0o102, false);
        checkEntry(a.view);
        assert.equal(u64(a.view, 128), 7);
        a = await call(OP.TMPFILE, 1, 0o102, 0o100600, 0o77, 0, '');
        ok(a, 144, 'tmpfile', 1, 0o100600, 0o77, 0o102);

        a = await call(OP.READ, 5, 6n, 2n ** 41n, 100, 2, 99n, 0o2, 0);
        ok(a, 9, 'read', 5, { fh: 6, offset: 2 ** 41, size: 100, flags: 2, lockOwner: 99n });
        assert.equal(text(a.body), 'some data');
        a = await call(OP.READ, 5, 6n, 2n ** 62n, 100, 0, 99n, 0o2, 0);
        assert.deepEqual([a.error, a.body.length, a.call], [0, 0, undefined]);

        const write = (size: number, flags: number) => [6n, 4096n, size, flags, 99n, 0o2, 0] as const;
        a = await call(OP.WRITE, 5, ...write(5, 2 | 4), bytes('hello'));
        const written = { fh: 6, offset: 4096, flags: 2, fromCache: false, killSuidgid: true, lockOwner: 99n };
        ok(a, 8, 'write', 5, { ...written, data: 'hello' });
        assert.equal(a.view.getUint32(0, true), 5);
        const data = 'd'.repeat(100_001);
        a = await call(OP.WRITE, 5, ...write(data.length, 1), bytes(data));
        ok(a, 8, 'write', 5, { fh: 6, offset: 4096, flags: 2, fromCache: true, killSuidgid: false, data });
        for (const size of [559, 560, 561, 600, 4096]) {
          const some = 'abc'.repeat(2000).slice(0, size);
          a = await call(OP.WRITE, 5, ...write(size, 0), bytes(some));
          ok(a, 8, 'write', 5, { fh: 6, offset: 4096, flags: 2, fromCache: false, killSuidgid: false, data: some });
        }

        a = await call(OP.STATFS, 1);
        ok(a, 80, 'statfs', 1);
        assert.deepEqual(
          [0, 8, 16, 24, 32].map(o => u64(a.view, o)),
          [1, 2, 3, 4, 5],
        );
        assert.deepEqual(
          [40, 44, 48].map(o => a.view.getUint32(o, true)),
          [6, 7, 8],
        );
        ok(await call(OP.RELEASE, 5, 6n, 2, 2, 99n), 0, 'release', 5, 6, 2, 99n, true);
        ok(await call(OP.FLUSH, 5, 6n, 0, 0, 98n), 0, 'flush', 5, 6, 98n);
        ok(await call(OP.FSYNC, 5, 6n, 1, 0), 0, 'fsync', 5, 6, true);
        ok(await call(OP.OPENDIR, 5, 0, 0), 16, 'opendir', 5, 0);
        ok(await call(OP.FSYNCDIR, 5, 6n, 0, 0), 0, 'fsyncdir', 5, 6, false);
        ok(await call(OP.RELEASEDIR, 5, 6n, 0, 0, 0n), 0, 'releasedir', 5, 6);
        ok(await call(OP.SYNCFS, 1, 0n), 0, 'syncfs', 1);
        ok(await call(OP.ACCESS, 5, 4, 0), 0, 'access', 5, 4);

        a = await call(OP.READDIR, 5, 6n, 12n, 4096, 0, 0n, 0, 0);
        assert.deepEqual(a.call, ['readdir', 5, 6, 12, false]);
        assert.equal(a.body.length % 8, 0);
        assert.ok(a.body.length > 4096 - 32 && a.body.length <= 4096);
        assert.equal(text(a.body.slice(32 + 24, 32 + 30)), 'a file');
        assert.deepEqual([u64(a.view, 32), u64(a.view, 40)], [5, 2 ** 40]);
        a = await call(OP.READDIRPLUS, 5, 6n, 12n, 65536, 0, 0n, 0, 0);
        assert.deepEqual(a.call, ['readdir', 5, 6, 12, true]);
        assert.equal(u64(a.view, 0), 0);
        checkEntry(new DataView(a.body.buffer, 160));
        assert.equal(text(a.body.slice(160 + 152, 160 + 158)), 'a file');

        const extended = (session.connection!.flags & INIT.SETXATTR_EXT) !== 0n;
        assert.ok(extended);
        ok(
          await call(OP.SETXATTR, 5, 3, 1, 1, 0, 'user.x', bytes('v\0w')),
          0,
          'setxattr',
          5,
          'user.x',
          'v\0w',
          1,
          true,
        );
        const value = 'v'.repeat(65536);
        a = await call(OP.SETXATTR, 5, value.length, 0, 0, 0, 'user.x', bytes(value));
        ok(a, 0, 'setxattr', 5, 'user.x', value, 0, false);
        a = await call(OP.GETXATTR, 5, 0, 0, 'user.x');
        ok(a, 8, 'getxattr', 5, 'user.x');
        assert.equal(a.view.getUint32(0, true), 5);
        a = await call(OP.GETXATTR, 5, 100, 0, 'user.x');
        assert.equal(text(a.body), 'value');
        assert.equal((await call(OP.GETXATTR, 5, 4, 0, 'user.x')).error, ERANGE.errno);
        a = await call(OP.LISTXATTR, 5, 100, 0);
        ok(a, 15, 'listxattr', 5);
        assert.equal(text(a.body), 'user.a\0user.bc\0');
        ok(await call(OP.REMOVEXATTR, 5, 'user.x'), 0, 'removexattr', 5, 'user.x');

        const lk = [6n, 99n, 1n, 2n ** 63n - 1n, 1, 12, 1, 0] as const;
        const lock = { fh: 6, owner: 99n, start: 1n, end: 2n ** 63n - 1n, type: 1, pid: 12, flock: true };
        a = await call(OP.GETLK, 5, ...lk);
        ok(a, 24, 'getlk', 5, lock);
        assert.deepEqual([u64(a.view, 0), a.view.getUint32(16, true), a.view.getUint32(20, true)], [1, 1, 12]);
        ok(await call(OP.SETLK, 5, ...lk), 0, 'setlk', 5, lock, false);
        ok(await call(OP.SETLKW, 5, ...lk), 0, 'setlk', 5, lock, true);

        ok(await call(OP.FALLOCATE, 5, 6n, 1n, 2n, 3, 0), 0, 'fallocate', 5, 6, 1, 2, 3);
        a = await call(OP.LSEEK, 5, 6n, 1n, 3, 0);
        ok(a, 8, 'lseek', 5, 6, 1, 3);
        assert.equal(u64(a.view, 0), 2 ** 41);
        const copy = [6n, 1n, 8n, 9n, 2n, 2n ** 40n, 0n] as const;
        a = await call(OP.COPY_FILE_RANGE, 5, ...copy);
        ok(a, 8, 'copyFileRange', 5, 6, 1, 8, 9, 2, 0x7ffff000, 0);
        assert.deepEqual([a.view.getUint32(0, true), a.view.getUint32(4, true)], [2 ** 30, 0]);
        if (minor >= 45) {
          a = await call(OP.COPY_FILE_RANGE_64, 5, ...copy);
          ok(a, 8, 'copyFileRange', 5, 6, 1, 8, 9, 2, 2 ** 40, 0);
          assert.equal(u64(a.view, 0), 2 ** 30);
        }
        a = await call(OP.IOCTL, 5, 6n, 0, 0x1234, 55n, 2, 10, bytes('in'));
        ok(a, 19, 'ioctl', 5, { fh: 6, flags: 0, cmd: 0x1234, arg: 55n, input: 'in', outSize: 10 });
        assert.deepEqual([a.view.getInt32(0, true), text(a.body.slice(16))], [3, 'out']);
        a = await call(OP.POLL, 5, 6n, 0n, 0, 0x41);
        ok(a, 8, 'poll', 5, 6, 0x41);
        assert.equal(a.view.getUint32(0, true), 5);
        if (minor >= 39) {
          a = await call(OP.STATX, 5, 1, 0, 6n, 0x2000, 0xfff);
          ok(a, 288, 'statx', 5, 6, 0x2000, 0xfff);
          const s = 32;
          assert.deepEqual([u64(a.view, 0), a.view.getUint32(s, true)], [2, 0xfff]);
          assert.deepEqual([u64(a.view, s + 32), u64(a.view, s + 40), u64(a.view, s + 80)], [attr.ino, attr.size, 77]);
          assert.deepEqual([a.view.getUint32(s + 128, true), a.view.getUint32(s + 132, true)], [0x123, 0x45]);
        }
        assert.equal((await call(OP.BMAP, 5, 0n, 512, 0)).error, 22);
        assert.equal((await call(OP.DESTROY, 0)).error, 0);
        assert.equal((await call(999, 5)).error, EOPNOTSUPP.errno);

        calls.length = 0;
        kernel.send(OP.FORGET, 5, pack(3n));
        const forgets = Array.from({ length: 5000 }, (_, i) => [BigInt(10 + i), BigInt(i + 1)]).flat();
        kernel.send(OP.BATCH_FORGET, 0, pack(5000, 0, ...forgets));
        seen.add(OP.FORGET).add(OP.BATCH_FORGET).add(OP.INTERRUPT).add(OP.NOTIFY_REPLY);
        kernel.send(OP.INTERRUPT, 0, pack(4n));
        kernel.send(OP.NOTIFY_REPLY, 0, new Uint8Array(40));
        await kernel.call(OP.GETATTR, 5, 0, 0, 0n);
        assert.deepEqual(calls[0], ['forget', 5, 3]);
        assert.deepEqual(calls[1], ['forget', 10, 1]);
        assert.deepEqual(calls[5000], ['forget', 5009, 5000]);
        assert.equal(calls.length, 5002);

        const missing = Object.values(OP).filter(code => !seen.has(code));
        const later45: number[] = minor >= 45 ? [] : [OP.STATX, OP.COPY_FILE_RANGE_64];
        assert.deepEqual(
          missing.map(code => opcodeName[code]).sort(),
          [OP.SETUPMAPPING, OP.REMOVEMAPPING, ...later45].map(code => opcodeName[code]).sort(),
        );
        const { inFlight, slots, parked } = session.stats;
        assert.deepEqual([inFlight, slots.used, parked], [0, 0, 0]);
      } finally {
        await end();
      }
    });

test('INIT: only what the kernel offers, nothing that would change the transport', async () => {
  for (const minor of [37, 38, 45, 46]) {
    const kernel = new Kernel();
    const session = start(recorder(false).fs, kernel, createCapsule(), {
      init: { maxWrite: 1 << 20, maxBackground: 40 },
    });
    await session.start();
    const offered = minor >= 45 ? (1n << 43n) - 1n : INIT.ASYNC_READ | INIT.MAX_PAGES | INIT.INIT_EXT;
    const a = await kernel.init(minor, offered);
    assert.equal(a.body.length, INIT_OUT);
    assert.deepEqual([a.view.getUint32(0, true), a.view.getUint32(4, true)], [7, Math.min(45, minor)]);
    const flags = BigInt(a.view.getUint32(12, true)) | (BigInt(a.view.getUint32(32, true)) << 32n);
    assert.equal(flags & ~offered, 0n);
    assert.equal(
      flags & (INIT.OVER_IO_URING | INIT.PASSTHROUGH | INIT.SECURITY_CTX | INIT.WRITEBACK_CACHE | INIT.ASYNC_DIO),
      0n,
    );
    assert.deepEqual([a.view.getUint16(16, true), a.view.getUint16(18, true)], [40, 30]);
    assert.deepEqual([a.view.getUint32(20, true), a.view.getUint16(28, true)], [1 << 20, 256]);
    assert.equal(a.view.getUint32(24, true), 1);
    assert.equal(session.connection!.flags, flags);
    kernel.close();
    await session.done;
  }
  const kernel = new Kernel();
  const session = start({ lookup: () => entry, getattr: () => entry }, kernel, createCapsule());
  await session.start();
  // A newer major: the kernel is told ours, and comes again.
  const higher = await kernel.call(OP.INIT, 0, 8, 0, 0, 0, 0, new Uint8Array(44));
  assert.equal(higher.view.getUint32(0, true), 7);
  await kernel.init(45);
  assert.equal(
    session.connection!.flags & (INIT.POSIX_LOCKS | INIT.FLOCK_LOCKS),
    0n,
    'no setlk: the kernel keeps locks',
  );
  kernel.close();
  await session.done;
});

test('methods that are missing: never ENOSYS', async () => {
  const { kernel, end } = await connect({ lookup: () => entry, getattr: () => entry });
  const expected: [number, number, Parameters<typeof pack>][] = [
    [OP.OPEN, 0, [0, 0]],
    [OP.OPENDIR, 0, [0, 0]],
    [OP.FLUSH, 0, [0n, 0, 0, 0n]],
    [OP.RELEASE, 0, [0n, 0, 0, 0n]],
    [OP.FSYNC, 0, [0n, 0, 0]],
    [OP.FSYNCDIR, 0, [0n, 0, 0]],
    [OP.SYNCFS, 0, [0n]],
    [OP.ACCESS, 0, [0, 0]],
    [OP.STATFS, 0, []],
    [OP.LISTXATTR, 0, [0, 0]],
    [OP.STATX, 0, [0, 0, 0n, 0, 0]],
    [OP.POLL, 0, [0n, 0n, 0, 1]],
    [OP.READLINK, 22, []],
    [OP.SYMLINK, 1, ['a', 'b']],
    [OP.MKNOD, 1, [0, 0, 0, 0, 'a']],
    [OP.RENAME2, 1, [1n, 0, 0, 'a', 'b']],
    [OP.CREATE, 95, [0, 0, 0, 0, 'a']],
    [OP.TMPFILE, 95, [0, 0, 0, 0, '']],
    [OP.GETXATTR, 95, [0, 0, 'a']],
    [OP.SETXATTR, 95, [0, 0, 0, 0, 'a']],
    [OP.SETLK, 95, [0n, 0n, 0n, 0n, 0, 0, 0, 0]],
    [OP.FALLOCATE, 95, [0n, 0n, 1n, 0, 0]],
    [OP.COPY_FILE_RANGE_64, 95, [0n, 0n, 0n, 0n, 0n, 0n, 0n]],
    [OP.IOCTL, 25, [0n, 0, 0, 0n, 0, 0]],
    [OP.READDIR, 20, [0n, 0n, 4096, 0, 0n, 0, 0]],
  ];
  for (const [opcode, error, fields] of expected) {
    assert.equal((await kernel.call(opcode, 1, ...fields)).error, error, opcodeName[opcode]!);
  }
  const data = await kernel.call(OP.LSEEK, 1, 0n, 5n, 3, 0);
  assert.equal(u64(data.view, 0), 5);
  const hole = await kernel.call(OP.LSEEK, 1, 0n, 5n, 4, 0);
  assert.equal(u64(hole.view, 0), attr.size);
  await end();
});

test('errors: what is no Errno is EIO and logged, ENOSYS and stray EINTR are not passed on', async () => {
  let thrown: unknown;
  const fs: FileSystem = {
    lookup() {
      throw thrown;
    },
    getattr: () => Promise.reject(thrown),
    setlk: () => Promise.reject(thrown),
  };
  const { kernel, end } = await connect(fs);
  const both = async () => [
    (await kernel.call(OP.LOOKUP, 1, 'a')).error,
    (await kernel.call(OP.GETATTR, 1, 0, 0, 0n)).error,
  ];
  thrown = ENOENT;
  assert.deepEqual(await both(), [2, 2]);
  thrown = ENOSYS;
  assert.deepEqual(await both(), [95, 95]);
  logged.length = 0;
  thrown = new TypeError('a bug');
  assert.deepEqual(await both(), [5, 5]);
  assert.match(logged[0]!, /LOOKUP.*a bug/);
  thrown = EINTR;
  assert.equal((await kernel.call(OP.SETLKW, 1, 0n, 0n, 0n, 0n, 0, 0, 0, 0)).error, EIO.errno);
  await end();
});

test('INTERRUPT reaches the request, before and after it is parked', async () => {
  const fs: FileSystem = {
    lookup: () => entry,
    getattr: () => entry,
    async setlk(ctx, _ino, lock) {
      if (lock.owner === 2n) ctx.park();
      await ctx.interrupt.promise;
      assert.ok(ctx.interrupt.fired);
      assert.equal(ctx.interrupt.callerIsDying(), false);
      throw EINTR;
    },
  };
  const { kernel, session, end } = await connect(fs);
  for (const owner of [1n, 2n]) {
    const id = kernel.send(OP.SETLKW, 1, pack(0n, owner, 0n, 0n, 1, 0, 0, 0));
    await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
    assert.equal(kernel.peek(id), undefined);
    assert.deepEqual([session.stats.slots.used, session.stats.parked], owner === 1n ? [1, 0] : [0, 1]);
    kernel.send(OP.INTERRUPT, 0, pack(id), id | 1n);
    assert.equal((await kernel.answer(id)).error, EINTR.errno);
    assert.deepEqual([session.stats.slots.used, session.stats.parked], [0, 0]);
  }
  await end();
});

test('more waiting requests than slots: unlocks get through, all others are handed out in the end', async () => {
  const { promise: gate, resolve: release } = Promise.withResolvers<void>();
  let running = 0;
  const ops = new Set<string>();
  const fs: FileSystem = {
    lookup: () => entry,
    getattr: async ctx => {
      running++;
      ops.add(`${ctx.op.slot}.${ctx.op.seq}`);
      await gate;
      // A socket does not hold so many replies.
      kernel.peek(0n);
      return entry;
    },
    setlk: () => undefined,
  };
  const { kernel, session, end } = await connect(fs);
  const ids: bigint[] = [];
  for (let i = 0; i < 400; i++) {
    ids.push(kernel.send(OP.GETATTR, 1, pack(0, 0, 0n)));
    // Nor so many requests.
    while (i - running - session.stats.queued > 50) await sleep(1);
  }
  while (session.stats.queued < 400 - (SLOTS - RESERVED)) await sleep(1);
  assert.equal(running, SLOTS - RESERVED);
  assert.equal(session.stats.queued, 400 - (SLOTS - RESERVED));
  const unlock = [0n, 0n, 0n, 0n, 2, 0, 0, 0] as const;
  assert.equal((await kernel.call(OP.SETLK, 1, ...unlock)).error, 0);
  assert.equal((await kernel.call(OP.RELEASE, 1, 0n, 0, 0, 0n)).error, 0);
  release();
  for (const id of ids) assert.equal((await kernel.answer(id)).error, 0);
  assert.equal(ops.size, 400, 'an op of its own for each');
  assert.deepEqual([session.stats.parked, session.stats.slots.used], [0, 0]);
  await end();
});

test('park gives the slot away, unpark brings a new op', async () => {
  const ops: Op[] = [];
  let go!: () => void;
  const fs: FileSystem = {
    lookup: () => entry,
    getattr: ctx => {
      ops.push(ctx.op);
      return entry;
    },
    async write(ctx, _ino, { data }) {
      ops.push(ctx.op);
      ctx.park();
      ctx.park();
      await new Promise<void>(resolve => {
        go = resolve;
      });
      assert.equal(data.bytes[99_999], 42);
      ops.push(await ctx.unpark());
      assert.equal(ctx.op, ops.at(-1));
      return data.bytes.length;
    },
  };
  const { kernel, session, fds, end } = await connect(fs);
  void fds;
  const id = kernel.send(OP.WRITE, 1, pack(0n, 0n, 100_000, 0, 0n, 0, 0, new Uint8Array(100_000).fill(42)));
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  assert.deepEqual([session.stats.parked, session.stats.slots.used], [1, 0]);
  go();
  const a = await kernel.answer(id);
  assert.equal(a.view.getUint32(0, true), 100_000);
  assert.deepEqual(
    ops.map(op => op.slot),
    [ops[0]!.slot, ops[0]!.slot, ops[0]!.slot],
  );
  assert.deepEqual(
    ops.map(op => op.seq - ops[0]!.seq),
    [0, 1, 2],
  );
  await end();
});

test('WRITE data: pages are taken or given back', async () => {
  const kept: number[] = [];
  let take = false;
  const capsule = openCapsule(createCapsule({ arenaSize: 8 << 20 }));
  const fs: FileSystem = {
    lookup: () => entry,
    getattr: () => entry,
    write(_ctx, _ino, { data }) {
      if (take) {
        const at = data.take();
        if (at !== undefined) {
          assert.equal(at % 4096, 0);
          assert.equal(data.bytes.byteOffset - capsule.arena.bytes.byteOffset, at);
          kept.push(at);
        }
      }
      return data.bytes.length;
    },
  };
  const kernel = new Kernel();
  const session = start(fs, kernel, createCapsule(), { capsule });
  await session.start();
  await kernel.init(45);
  const used = capsule.arena.used;
  const write = (n: number, fill: number) =>
    kernel.call(OP.WRITE, 1, 0n, 0n, n, 0, 0n, 0, 0, new Uint8Array(n).fill(fill));
  for (let i = 0; i < 300; i++) assert.equal((await write(1 + ((i * 7919) % 130_000), i)).error, 0);
  assert.ok(capsule.arena.used <= used + (1 << 20), 'nothing is kept');
  take = true;
  for (const [n, fill] of [
    [100, 1],
    [4096, 2],
    [10_000, 3],
    [131_072, 4],
  ] as const)
    await write(n, fill);
  assert.equal(kept.length, 3, 'short data has no page');
  take = false;
  await write(131_072, 9);
  assert.deepEqual(
    kept.map(at => capsule.arena.bytes[at]),
    [2, 3, 4],
  );
  // The arena fills up: writes wait for room and go on when there is some.
  take = true;
  let full: bigint | undefined;
  for (let i = 0; i < 200 && full === undefined; i++) {
    const id = kernel.send(OP.WRITE, 1, pack(0n, 0n, 131_072, 0, 0n, 0, 0, new Uint8Array(131_072)));
    await kernel.answer(id, 300).catch(() => {
      full = id;
    });
  }
  assert.ok(full !== undefined, 'the arena is full');
  for (const at of kept.slice(3)) capsule.arena.free(at, 131_072);
  assert.equal((await kernel.answer(full)).error, 0);
  kernel.close();
  await session.done;
});

// --- Adoption -------------------------------------------------------------------------------------------------------

test('adoption: pages that the file system took before the death are not given away again', async () => {
  let at: number | undefined;
  const never = new Promise<never>(() => {});
  const { kernel, session, fds } = await connect({
    lookup: () => entry,
    getattr: () => entry,
    write: (_ctx, _ino, { data }) => {
      at = data.take();
      assert.equal(data.take(), undefined, 'nor twice by one process');
      return never;
    },
  });
  const write = kernel.send(OP.WRITE, 1, pack(0n, 0n, 70_000, 0, 0n, 0, 0, new Uint8Array(70_000).fill(5)));
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  session.stopReading();
  assert.ok(at !== undefined);

  const capsule = openCapsule(fds);
  capsule.arena.claim(at, 70_000);
  const used = capsule.arena.used;
  const second: FileSystem = {
    lookup: () => entry,
    getattr: () => entry,
    write: (ctx, _ino, { data }) => {
      assert.ok(ctx.replay);
      assert.equal(data.bytes[69_999], 5);
      assert.equal(data.take(), undefined);
      return data.bytes.length;
    },
  };
  const next = start(second, kernel, fds, { capsule });
  await next.start();
  assert.equal((await kernel.answer(write)).error, 0);
  assert.ok(capsule.arena.used >= used, 'they are not freed either');
  kernel.close();
  await next.done;
});

test('adoption: a parked request whose reply was stored is only answered', async () => {
  const never = new Promise<never>(() => {});
  const { kernel, session, fds } = await connect({
    lookup: () => entry,
    getattr: () => entry,
    write: ctx => {
      ctx.park();
      return never;
    },
    fsync: ctx => {
      ctx.park();
      return never;
    },
  });
  const write = kernel.send(OP.WRITE, 1, pack(0n, 0n, 70_000, 0, 0n, 0, 0, new Uint8Array(70_000)));
  const fsync = kernel.send(OP.FSYNC, 1, pack(0n, 0, 0));
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  session.stopReading();
  // As far as the process came before its death: the replies are stored, not written.
  const slots = new Slots(openCapsule(fds), 1 << 17);
  const view = new DataView(new ArrayBuffer(64));
  view.setUint32(16, 70_000, true);
  for (const p of slots.parked.records.live()) {
    const isWrite = slots.uniqueLo(slots.parked, p) === Number(write);
    slots.appliedParked(p, isWrite ? 0 : EIO.errno, isWrite ? 8 : 0, view);
  }
  const next = start(
    { lookup: () => entry, getattr: () => entry, write: () => assert.fail(), fsync: () => assert.fail() },
    kernel,
    fds,
  );
  await next.start();
  const answer = await kernel.answer(write);
  assert.deepEqual([answer.error, answer.body.length, answer.view.getUint32(0, true)], [0, 8, 70_000]);
  assert.equal((await kernel.answer(fsync)).error, EIO.errno);
  assert.deepEqual(next.stats.adopted, { answered: 2, repeated: 0, parked: 0 });
  assert.equal(next.stats.parked, 0);
  kernel.close();
  await next.done;
});

test('adoption: what was taken is handed out again with the same op, what is parked with a new one', async () => {
  const taken: [number, Op][] = [];
  const never = new Promise<never>(() => {});
  const first: FileSystem = {
    lookup: () => entry,
    getattr: () => entry,
    mkdir: (ctx, _p, name) => {
      taken.push([name.length, ctx.op]);
      return never;
    },
    write: (ctx, _ino, { data }) => {
      taken.push([data.bytes.length, ctx.op]);
      return never;
    },
    setxattr: (ctx, _ino, _name, value) => {
      taken.push([value.length, ctx.op]);
      return never;
    },
    setlk: (ctx): Promise<void> => {
      ctx.park();
      return never;
    },
  };
  const { kernel, session, fds } = await connect(first);
  const mkdir = kernel.send(OP.MKDIR, 1, pack(0o755, 0, 'n'.repeat(200)));
  const write = kernel.send(OP.WRITE, 1, pack(0n, 0n, 70_000, 0, 0n, 0, 0, new Uint8Array(70_000).fill(5)));
  const xattr = kernel.send(OP.SETXATTR, 1, pack(20_000, 0, 0, 0, 'user.a', new Uint8Array(20_000).fill(6)));
  const lock = kernel.send(OP.SETLKW, 1, pack(0n, 1n, 0n, 0n, 1, 0, 0, 0));
  kernel.send(OP.INTERRUPT, 0, pack(lock), lock | 1n);
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  session.stopReading(); // dead: nothing of it is answered any more
  const late = kernel.send(OP.GETATTR, 1, pack(0, 0, 0n));

  const again: [number, Op][] = [];
  const order: string[] = [];
  const second: FileSystem = {
    init: connection => void order.push(`init ${connection.minor}`),
    lookup: () => entry,
    getattr: ctx => {
      assert.equal(ctx.replay, false);
      return entry;
    },
    async mkdir(ctx, _p, name) {
      order.push('mkdir');
      assert.ok(ctx.replay);
      again.push([name.length, ctx.op]);
      await sleep(1);
      throw EEXIST;
    },
    write(ctx, _ino, { data }) {
      assert.ok(ctx.replay);
      assert.ok(data.bytes.every(b => b === 5));
      again.push([data.bytes.length, ctx.op]);
      return data.bytes.length;
    },
    setxattr(ctx, _ino, _name, value) {
      assert.ok(value.every(b => b === 6));
      again.push([value.length, ctx.op]);
    },
    async setlk(ctx) {
      assert.ok(ctx.replay);
      assert.ok(ctx.interrupt.fired, 'the interrupt is carried over');
      throw EINTR;
    },
  };
  const successor = start(second, kernel, fds);
  await successor.start();
  assert.equal((await kernel.answer(mkdir)).error, EEXIST.errno);
  assert.equal((await kernel.answer(write)).view.getUint32(0, true), 70_000);
  assert.equal((await kernel.answer(xattr)).error, 0);
  assert.equal((await kernel.answer(lock)).error, EINTR.errno);
  assert.equal((await kernel.answer(late)).error, 0);
  assert.deepEqual(order, ['init 45', 'mkdir']);
  assert.deepEqual(again, taken);
  assert.deepEqual(successor.stats.adopted, { answered: 0, repeated: 3, parked: 1 });
  assert.equal(successor.connection!.maxWrite, 131_072);
  assert.deepEqual([successor.stats.slots.used, successor.stats.parked], [0, 0]);
  kernel.close();
  await successor.done;
});

test('adoption: a stored reply is only written; landed requests are taken once', async () => {
  const calls: string[] = [];
  const fs: FileSystem = {
    lookup: (ctx, _p, name) => {
      calls.push(`${text(name)} ${ctx.op.slot}.${ctx.op.seq} ${ctx.replay}`);
      return entry;
    },
    getattr: () => entry,
    forget: (ino, n) => void calls.push(`forget ${ino} ${n}`),
  };
  const { kernel, session, fds } = await connect(fs);
  await kernel.call(OP.LOOKUP, 1, 'a');
  session.stopReading();

  // What a process leaves that dies between APPLIED and the write(2), made with its own code.
  const slots = new Slots(openCapsule(fds), 131_072);
  const landing = (opcode: number, unique: bigint, body: Uint8Array): void => {
    slots.prepare();
    const header = pack(40 + body.length, opcode, unique, 1n, 0, 0, 0, 0);
    const whole = new Uint8Array(Buffer.concat([header, body]));
    poke(slots.headerAddress, whole.subarray(0, 80));
    if (whole.length > 80) poke(slots.bodyAddress, whole.subarray(80));
  };
  landing(OP.LOOKUP, 100n, pack('applied'));
  const k = slots.acquire(false);
  slots.take(k);
  const reply = pack(16, -17 >>> 0, 100n);
  slots.slots.bytes.set(reply, slots.replyOffset(k));
  slots.applied(k, 16);
  // Dies after TAKEN, before the landing header is cleared.
  landing(OP.LOOKUP, 102n, pack('twin'));
  const twin = slots.acquire(false);
  slots.take(twin);
  landing(OP.LOOKUP, 102n, pack('twin'));

  const successor = start(fs, kernel, fds);
  calls.length = 0;
  await successor.start();
  assert.equal((await kernel.answer(100n)).error, EEXIST.errno);
  assert.equal((await kernel.answer(102n)).error, 0);
  assert.deepEqual(calls, [`twin ${twin}.${slots.seq(twin)} true`]);
  successor.stopReading();

  // Dies before TAKEN: only landed.
  const dead = new Slots(openCapsule(fds), 131_072);
  dead.prepare();
  poke(dead.headerAddress, pack(40 + 6, OP.LOOKUP, 104n, 1n, 0, 0, 0, 0, 'alone'));
  const third = start(fs, kernel, fds);
  calls.length = 0;
  await third.start();
  assert.equal((await kernel.answer(104n)).error, 0);
  assert.match(calls[0]!, /^alone .* true$/);
  third.stopReading();

  // Dies in the middle of a batch of forgets: those begun are not repeated.
  const forgetting = new Slots(openCapsule(fds), 131_072);
  forgetting.prepare();
  const batch = pack(40 + 8 + 64, OP.BATCH_FORGET, 0n, 0n, 0, 0, 0, 0, 4, 0, 11n, 1n, 12n, 2n, 13n, 3n, 14n, 4n);
  poke(forgetting.headerAddress, batch.subarray(0, 80));
  poke(forgetting.bodyAddress, batch.subarray(80));
  forgetting.progress = 2;
  const fourth = start(fs, kernel, fds);
  calls.length = 0;
  await fourth.start();
  assert.deepEqual(calls, ['forget 13 3', 'forget 14 4']);
  fourth.stopReading();

  // Half copied: the canary of its last page is still there.
  const half = new Slots(openCapsule(fds), 131_072);
  half.prepare();
  poke(half.headerAddress, pack(80 + 10_000, OP.WRITE, 106n, 1n, 0, 0, 0, 0, 0n, 0n, 10_000, 0, 0n, 0, 0));
  poke(half.bodyAddress, new Uint8Array(4096).fill(1));
  const fifth = start(fs, kernel, fds);
  await fifth.start();
  assert.match(logged.at(-1)!, /half copied/);
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  assert.equal(kernel.peek(106n), undefined);
  assert.equal(slots.slots.records.state(k), 0);
  assert.notEqual(slots.slots.records.state(k), APPLIED);
  kernel.close();
  await fifth.done;
});

function poke(address: number, data: Uint8Array): void {
  viewOf(address, data.length).bytes.set(data);
}

test('adoption after crashes: who was there is asked last and alone, at the third crash EIO', async () => {
  const never = new Promise<never>(() => {});
  const crash = { pid: process.pid, code: 139 };
  const { kernel, session, fds } = await connect({ lookup: () => never, getattr: () => never, mkdir: () => never });
  const slow = kernel.send(OP.GETATTR, 1, pack(0, 0, 0n));
  const poison = kernel.send(OP.MKDIR, 1, pack(0o700, 0, 'poison'));
  await until(() => session.stats.inFlight === 2);
  session.stopReading();
  const asked: string[] = [];
  const next = async (before: { pid: number; code: number } | undefined, wanted: number) => {
    asked.length = 0;
    const successor = start(
      {
        lookup: () => entry,
        getattr() {
          asked.push('getattr');
          return entry;
        },
        mkdir() {
          asked.push('mkdir');
          return never;
        },
      },
      kernel,
      fds,
      { before },
    );
    await successor.start();
    await until(() => asked.length >= wanted);
    successor.stopReading();
    return successor;
  };
  await next({ ...crash, pid: 1 }, 2); // the death of another process, one that had no requests
  assert.equal((await kernel.answer(slow)).error, 0);
  const other = kernel.send(OP.GETATTR, 1, pack(0, 0, 0n));
  await next(crash, 1);
  assert.equal(asked[0], 'mkdir', 'nothing new is read beside it');
  for (let i = 0; i < 5; i++) await next({ ...crash, code: 137 }, 1);
  await next(crash, 1);
  logged.length = 0;
  const last = await next(crash, 0);
  last.resumeReading();
  assert.equal((await kernel.answer(poison)).error, EIO.errno);
  assert.equal((await kernel.answer(other)).error, 0);
  assert.equal(logged.length, 1);
  assert.match(logged[0]!, /^error: MKDIR of inode 1 .* crashed the service 3 times: answered EIO/);
  kernel.close();
  await last.done;
});

test('adoption after crashes: two that were there at each are not blamed before the ninth', async () => {
  const never = new Promise<never>(() => {});
  const { kernel, session, fds } = await connect({ lookup: () => never, getattr: () => never });
  const ids = [0, 1].map(() => kernel.send(OP.GETATTR, 1, pack(0, 0, 0n)));
  await until(() => session.stats.inFlight === 2);
  session.stopReading();
  const slots = new Slots(openCapsule(fds), 1 << 17);
  const crash = () => {
    for (const k of slots.slots.records.live()) slots.setFlag(slots.slots, k, HANDED);
    slots.crashing();
  };
  for (let i = 0; i < 7; i++) {
    crash();
    assert.equal(slots.settleHanded(true), 2);
  }
  crash();
  let asked = 0;
  const waiting = () => {
    asked++;
    return never;
  };
  const eighth = start({ lookup: () => entry, getattr: waiting }, kernel, fds);
  await eighth.start();
  await until(() => asked > 0);
  eighth.stopReading();
  crash();
  const ninth = start({ lookup: () => entry, getattr: () => entry }, kernel, fds);
  await ninth.start();
  for (const id of ids) assert.equal((await kernel.answer(id)).error, EIO.errno);
  kernel.close();
  await ninth.done;
});

test('adoption after crashes: one that waits for long is not blamed for its neighbour', async () => {
  const never = new Promise<never>(() => {});
  const { kernel, session, fds } = await connect({ lookup: () => never, getattr: () => never, mkdir: () => never });
  const slow = kernel.send(OP.GETATTR, 1, pack(0, 0, 0n));
  const poison = kernel.send(OP.MKDIR, 1, pack(0o700, 0, 'poison'));
  await until(() => session.stats.inFlight === 2);
  session.stopReading();
  let crashes = 1;
  for (; kernel.peek(poison) === undefined; crashes++) {
    assert.ok(crashes < 9);
    let crashed = false;
    const successor = start(
      {
        lookup: () => never,
        getattr: () => never,
        mkdir() {
          crashed = true;
          return never;
        },
      },
      kernel,
      fds,
      { before: { pid: process.pid, code: 134 } },
    );
    await successor.start();
    await until(() => crashed || kernel.peek(poison) !== undefined);
    successor.stopReading();
  }
  assert.equal(kernel.peek(poison)!.error, EIO.errno);
  assert.equal(kernel.peek(slow), undefined);
  kernel.close();
});

async function until(fact: () => boolean): Promise<void> {
  for (const end = performance.now() + 60_000; !fact(); await sleep(1))
    assert.ok(performance.now() < end, String(fact));
}

test('RESEND: merged with what is under way; an unknown mutation is EIO, reads are carried out', async () => {
  let finish!: (e: EntryOut) => void;
  let calls = 0;
  const fs: FileSystem = {
    lookup: () => {
      calls++;
      return new Promise(resolve => {
        finish = resolve;
      });
    },
    getattr: () => entry,
    mkdir: () => entry,
    setlk: async ctx => {
      ctx.park();
      await ctx.interrupt.promise;
      throw EAGAIN;
    },
  };
  const { kernel, end } = await connect(fs);
  const body = pack('slow');
  const id = kernel.send(OP.LOOKUP, 1, body);
  const lockBody = pack(0n, 1n, 0n, 0n, 1, 0, 0, 0);
  const lock = kernel.send(OP.SETLKW, 1, lockBody);
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  kernel.send(OP.LOOKUP, 1, body, id | RESEND_BIT);
  kernel.send(OP.SETLKW, 1, lockBody, lock | RESEND_BIT);
  kernel.send(OP.INTERRUPT, 0, pack(lock | RESEND_BIT), lock | RESEND_BIT | 1n);
  assert.equal((await kernel.answer(lock | RESEND_BIT)).error, EAGAIN.errno);
  finish(entry);
  assert.equal((await kernel.answer(id | RESEND_BIT)).error, 0);
  assert.equal(calls, 1);
  assert.equal(kernel.peek(id), undefined);
  assert.equal((await kernel.answer(kernel.send(OP.MKDIR, 1, pack(0, 0, 'd'), 1000n | RESEND_BIT))).error, EIO.errno);
  assert.equal((await kernel.answer(kernel.send(OP.GETATTR, 1, pack(0, 0, 0n), 1002n | RESEND_BIT))).error, 0);
  await end();
});

test('the end: destroy runs once, waiting requests are woken', async () => {
  let destroyed = 0;
  let woken = false;
  const fs: FileSystem = {
    lookup: () => entry,
    getattr: () => entry,
    setlk: async ctx => {
      await ctx.interrupt.promise;
      woken = ctx.interrupt.callerIsDying();
      throw EINTR;
    },
    destroy: () => void destroyed++,
  };
  const { kernel, end } = await connect(fs);
  kernel.send(OP.SETLKW, 1, pack(0n, 1n, 0n, 0n, 1, 0, 0, 0));
  await kernel.call(OP.GETATTR, 1, 0, 0, 0n);
  await end();
  assert.deepEqual([destroyed, woken], [1, true]);
});

test('notifications: what the kernel is sent', async () => {
  const { kernel, session, end } = await connect({ lookup: () => entry, getattr: () => entry });
  const { notify } = session;
  const read = async (): Promise<{ code: number; body: Uint8Array; view: DataView }> => {
    const { error, body, view } = await kernel.notification();
    return { code: 0 - error, body, view };
  };
  await notify.invalInode(5, -1, 0);
  let n = await read();
  assert.deepEqual([n.code, u64(n.view, 0), n.view.getBigInt64(8, true)], [2, 5, -1n]);
  await notify.invalEntry(1, bytes('gone'));
  n = await read();
  assert.deepEqual(
    [n.code, n.view.getUint32(8, true), n.view.getUint32(12, true), text(n.body.slice(16))],
    [3, 4, 0, 'gone\0'],
  );
  await notify.expireEntry(1, bytes('old'));
  n = await read();
  assert.deepEqual([n.code, n.view.getUint32(12, true)], [3, 1]);
  await notify.delete(1, 7, bytes('dir'));
  n = await read();
  assert.deepEqual([n.code, u64(n.view, 8), text(n.body.slice(24))], [6, 7, 'dir\0']);
  assert.equal(await notify.incEpoch(), true);
  assert.equal((await read()).code, 8);
  assert.equal(await notify.resend(), true);
  assert.equal((await read()).code, 7);
  await notify.prune([3, 4]);
  n = await read();
  assert.deepEqual([n.code, n.view.getUint32(0, true), u64(n.view, 16), u64(n.view, 24)], [9, 2, 3, 4]);
  await notify.store(5, 4096, new Uint8Array(10_000).fill(1));
  n = await read();
  assert.deepEqual([n.code, u64(n.view, 8), n.view.getUint32(16, true), n.body.length], [4, 4096, 10_000, 10_024]);
  await end();
});
