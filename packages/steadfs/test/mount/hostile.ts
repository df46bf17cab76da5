/** Programs that do what nobody should, each in a process of its own: `node hostile.ts NAME DIR [ARGUMENT…]`. They end with 0 when they were answered as on a local file system. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, writeSync } from 'node:fs';
import { receiveFds, sendFds, socketPair } from '@steadfs/fuse/sys';
import * as c from '../support/libc.ts';
import { F, F_WRLCK, O, resultName } from '../support/libc.ts';

const ok = (r: number, what: string): number => {
  assert.ok(r >= 0, `${what}: ${resultName(r)}`);
  return r;
};
const fails = (r: number | object, names: string, what: string): void =>
  assert.ok(
    names.split(' ').includes(typeof r === 'number' ? (resultName(r) as string) : 'success'),
    `${what}: ${typeof r === 'number' ? resultName(r) : 'success'}`,
  );
/** Arguments beyond 2^53: koffi takes a bigint for an int64_t. */
const wide = (n: bigint): number => n as unknown as number;

const programs: Record<string, (dir: string, ...more: string[]) => void | Promise<void>> = {
  /** The one that must notice nothing: works until its input ends, then says how often and how long at most (ms). */
  async neighbour(dir) {
    let ended = false;
    process.stdin.on('end', () => {
      ended = true;
    });
    process.stdin.resume();
    let rounds = 0;
    let longest = 0;
    const bytes = Buffer.alloc(5000);
    while (!ended) {
      const begin = performance.now();
      const path = `${dir}/mine-${rounds % 7}`;
      bytes.fill(rounds & 255);
      const fd = ok(c.open(path, O.CREAT | O.RDWR | O.TRUNC), 'open');
      assert.equal(c.write(fd, bytes, bytes.length), bytes.length);
      ok(c.close(fd), 'close');
      ok(c.rename(path, `${path}.done`), 'rename');
      assert.ok(readFileSync(`${path}.done`).equals(bytes));
      ok(c.unlink(`${path}.done`), 'unlink');
      longest = Math.max(longest, performance.now() - begin);
      if (rounds++ === 0) writeSync(1, 'begun\n');
      await new Promise(resolve => setImmediate(resolve));
    }
    writeSync(1, `${rounds} rounds, longest ${longest.toFixed(0)} ms\n`);
  },

  /** Ends by SIGKILL with all of them open; several of them may be at work. */
  openFiles(dir, count = '1000') {
    for (let i = 0; i < 100; i++) ok(c.open(`${dir}/f${i}`, O.CREAT | O.RDWR), 'create');
    for (let i = 100; i < Number(count); i++) ok(c.open(`${dir}/f${i % 100}`, O.RDONLY), `open ${i}`);
    process.kill(process.pid, 'SIGKILL');
  },

  /** A large directory by the smallest buffer that the longest name fits in. */
  entries(dir, count = '1000') {
    ok(c.mkdir(`${dir}/many`, 0o755), 'mkdir');
    for (let i = 0; i < Number(count); i++) ok(c.mknod(`${dir}/many/${i}`, 0o100644, 0), 'mknod');
    const fd = ok(c.open(`${dir}/many`, O.RDONLY | O.DIRECTORY), 'opendir');
    const seen = new Set<string>();
    let calls = 0;
    for (; ; calls++) {
      const some = c.getdents(fd, 280);
      assert.ok(typeof some !== 'number', 'getdents');
      if (some.length === 0) break;
      for (const entry of some) {
        const name = entry.name.toString();
        assert.ok(!seen.has(name), `${name} twice`);
        seen.add(name);
      }
    }
    assert.equal(seen.size, Number(count) + 2);
    assert.ok(calls > Number(count) / 20, `${calls} calls`);
  },

  attributes(dir) {
    const path = `${dir}/file`;
    ok(c.open(path, O.CREAT | O.RDWR), 'create');
    const largest = Buffer.alloc(65536, 7);
    ok(c.setxattr(path, 'user.large', largest), '64 KiB');
    assert.ok(Buffer.from(c.getxattr(path, 'user.large') as Uint8Array).equals(largest));
    fails(c.setxattr(path, 'user.large', Buffer.alloc(65537)), 'E2BIG', 'more than 64 KiB');
    ok(c.setxattr(path, `user.${'n'.repeat(250)}`, Buffer.alloc(0)), 'a name of 255 bytes');
    fails(c.setxattr(path, `user.${'n'.repeat(251)}`, Buffer.alloc(0)), 'ERANGE', 'a name of 256 bytes');
    fails(c.setxattr(path, 'user.', Buffer.alloc(1)), 'EINVAL', 'a namespace alone');
    // Their names do not fit in one answer (64 KiB) any more.
    for (let i = 0; i < 700; i++) ok(c.setxattr(path, `user.${String(i).padStart(120, 'x')}`, Buffer.alloc(8)), `${i}`);
    fails(c.listxattr(path) as number, 'E2BIG', 'list');
    for (let i = 0; i < 300; i++) ok(c.removexattr(path, `user.${String(i).padStart(120, 'x')}`), `remove ${i}`);
    const names = c.listxattr(path);
    assert.ok(typeof names !== 'number' && names.length === 402, `${names}`);
  },

  offsets(dir) {
    const fd = ok(c.open(`${dir}/file`, O.CREAT | O.RDWR), 'create');
    const bytes = Buffer.alloc(4096, 1);
    const last = 2n ** 63n - 1n;
    for (const at of [2n ** 53n - 1n, 2n ** 60n, last - 4096n, last]) {
      fails(c.pwrite(fd, bytes, 4096, wide(at)), 'EFBIG EINVAL', `write at ${at}`);
      const r = c.pread(fd, bytes, 4096, wide(at));
      assert.ok(r === 0 || resultName(r) === 'EINVAL', `read at ${at}: ${resultName(r)}`);
      fails(c.ftruncate(fd, wide(at + 1n > last ? last : at + 1n)), 'EFBIG EINVAL', `truncate to ${at}`);
      fails(c.fallocate(fd, 0, wide(at), 4096), 'EFBIG EINVAL ENOSPC', `fallocate at ${at}`);
      fails(c.lseek(fd, wide(at), c.SEEK.DATA), 'ENXIO EINVAL', `SEEK_DATA at ${at}`);
    }
    ok(c.fcntlLock(fd, F.SETLK, { type: F_WRLCK, start: wide(last - 1n), length: 1 }) as number, 'a lock at the end');
    const s = c.fstat(fd);
    assert.ok(typeof s !== 'number' && s.size === 0);
    ok(c.pwrite(fd, bytes, 4096, 2 ** 46), 'far out');
    ok(c.ftruncate(fd, 10), 'back');
  },

  /** As an NFS server: opens files by handles, whatever their names have become. */
  handles(dir) {
    const deep = `${dir}/a/b/c`;
    for (const p of [`${dir}/a`, `${dir}/a/b`, deep]) ok(c.mkdir(p, 0o755), 'mkdir');
    ok(c.close(ok(c.open(`${deep}/f`, O.CREAT | O.RDWR), 'create')), 'close');
    const mount = ok(c.open(dir, O.RDONLY), 'open');
    const handles = ['a', 'a/b', 'a/b/c', 'a/b/c/f'].map(p => {
      const handle = c.nameToHandle(`${dir}/${p}`);
      assert.ok(typeof handle !== 'number', `${p}: ${resultName(handle as number)}`);
      return handle;
    });
    ok(c.rename(`${dir}/a/b`, `${dir}/moved`), 'rename');
    for (const [i, p] of ['a', 'moved', 'moved/c', 'moved/c/f'].entries()) {
      const fd = ok(c.openByHandle(mount, handles[i]!, O.RDONLY), p);
      const [here, there] = [c.fstat(fd), c.stat(`${dir}/${p}`)];
      assert.ok(typeof here !== 'number' && typeof there !== 'number' && here.ino === there.ino, p);
      ok(c.close(fd), 'close');
    }
    ok(c.unlink(`${dir}/moved/c/f`), 'unlink');
    fails(c.openByHandle(mount, handles[3]!, O.RDONLY), 'ESTALE', 'a file that is gone');
    const unknown = handles[3]!.slice();
    unknown.fill(0x7b, 8, 16);
    fails(c.openByHandle(mount, unknown, O.RDONLY), 'ESTALE', 'a handle of nobody');
  },

  /** Signals with a handler arrive all the time, and no call is cut short. Ends itself after `rounds`. */
  interrupted(dir, rounds = '100') {
    process.on('SIGUSR1', () => {});
    const bombs = spawn('sh', ['-c', 'while kill -USR1 "$0" 2>/dev/null; do :; done', String(process.pid)]);
    const bytes = Buffer.alloc(70_000, 7);
    for (let i = 0; i < Number(rounds); i++) {
      const fd = ok(c.open(`${dir}/f${i % 3}`, O.CREAT | O.RDWR | O.TRUNC), 'open');
      assert.equal(c.write(fd, bytes, bytes.length), bytes.length);
      ok(c.fsync(fd), 'fsync');
      assert.equal(c.pread(fd, bytes, bytes.length, 0), bytes.length);
      ok(c.close(fd), 'close');
      ok(c.rename(`${dir}/f${i % 3}`, `${dir}/g`), 'rename');
    }
    bombs.kill('SIGKILL');
  },

  /** A file without a name, whose only descriptor is under way in a socket. */
  descriptors(dir) {
    const bytes = Buffer.alloc(300_000, 3);
    const [to, from] = socketPair(true);
    const fd = ok(c.open(`${dir}/file`, O.CREAT | O.RDWR), 'create');
    assert.equal(c.write(fd, bytes, bytes.length), bytes.length);
    sendFds(to, Buffer.from('x'), [fd]);
    ok(c.close(fd), 'close');
    ok(c.unlink(`${dir}/file`), 'unlink');
    const received = receiveFds(from);
    assert.ok(typeof received !== 'number');
    const read = Buffer.alloc(bytes.length + 1);
    assert.equal(c.pread(received.fds[0]!, read, read.length, 0), bytes.length);
    assert.ok(read.subarray(0, bytes.length).equals(bytes));
  },

  /** Ends by SIGBUS. */
  beyondTheEnd(dir) {
    const fd = ok(c.open(`${dir}/short`, O.CREAT | O.RDWR), 'create');
    ok(c.ftruncate(fd, 3 * 4096), 'length');
    const map = c.mmap(fd, 0, 3 * 4096);
    assert.ok(typeof map !== 'number');
    map.bytes[2 * 4096] = 1;
    ok(c.ftruncate(fd, 10), 'shorter');
    map.bytes[9] = 1;
    map.bytes[2 * 4096] = 1;
  },
};

const [name, dir, ...more] = process.argv.slice(2);
await programs[name!]!(dir!, ...more);
