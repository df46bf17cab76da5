import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { EAGAIN, EBADF, Errno } from '../src/errno.ts';
import * as sys from '../src/sys.ts';

test('pipe, read and write by address, -errno', () => {
  const [r, w] = sys.pipe(sys.O_NONBLOCK);
  const m = sys.allocate(4096);
  assert.equal(sys.read(r, m.address, 10), -EAGAIN.errno);
  m.bytes.set([1, 2, 3]);
  const io = sys.ioVecs(2);
  io.set(0, m.address, 2);
  io.set(1, m.address + 1, 2);
  assert.equal(sys.writev(w, io.address, 2), 4);
  assert.equal(sys.poll(r, sys.POLLIN, 0), sys.POLLIN);
  assert.equal(sys.read(r, m.address + 100, 10), 4);
  assert.deepEqual([...m.bytes.subarray(100, 104)], [1, 2, 2, 3]);
  sys.close(w);
  assert.equal(sys.read(r, m.address, 10), 0);
  sys.close(r);
  assert.throws(
    () => sys.close(r),
    (e: unknown) => e instanceof Errno && e.errno === EBADF.errno,
  );
  sys.unmap(m);
});

test('asynchronous write reports its errno', async () => {
  const m = sys.allocate(4096);
  assert.equal(await sys.writeAsync(-1, m.address, 1), -EBADF.errno);
});

test('memfd: shared mapping, populate, holes, data ranges', () => {
  const fd = sys.memfdCreate('test');
  const size = 2 ** 36;
  sys.ftruncate(fd, size);
  const a = sys.mapFd(fd, 0, 1 << 20);
  const b = sys.mapFd(fd, 0, 1 << 20, false);
  sys.populate(a.address + 8192, 8192);
  a.bytes[8192] = 7;
  assert.equal(b.bytes[8192], 7);
  assert.deepEqual([...sys.dataRanges(fd, size)], [[8192, 16384]]);
  sys.punchHole(fd, 8192, 4096);
  assert.deepEqual([...sys.dataRanges(fd, size)], [[12288, 16384]]);
  assert.equal(a.bytes[8192], 0);
  sys.unmap(a);
  sys.unmap(b);
  sys.close(fd);
});

test('fds travel over a socket with peer credentials', () => {
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-sys-'));
  try {
    const listener = sys.listenUnix(join(dir, 's'));
    assert.equal(sys.acceptUnix(listener), undefined);
    const client = sys.connectUnix(join(dir, 's'));
    const server = sys.acceptUnix(listener)!;
    assert.deepEqual(sys.peerCredentials(server), { pid: process.pid, uid: sys.geteuid(), gid: sys.getegid() });
    const [r, w] = sys.pipe();
    assert.equal(sys.sendFds(client, Buffer.from('hello'), [r, w]), 5);
    const got = sys.receiveFds(server);
    assert.ok(typeof got !== 'number');
    assert.equal(Buffer.from(got.data).toString(), 'hello');
    assert.equal(got.fds.length, 2);
    const m = sys.allocate(4096);
    assert.equal(sys.write(got.fds[1]!, m.address, 3), 3);
    assert.equal(sys.read(r, m.address, 10), 3);
    assert.equal(sys.receiveFds(server), -EAGAIN.errno);
    sys.close(client);
    const end = sys.receiveFds(server);
    assert.ok(typeof end !== 'number' && end.data.length === 0);
    for (const fd of [listener, server, r, w, ...got.fds]) sys.close(fd);
    sys.unmap(m);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('a pidfd tells the end of a process, and a lock dies with its holder', async () => {
  const fd = sys.memfdCreate('lock', 0);
  const script = `import * as sys from ${JSON.stringify(new URL('../src/sys.ts', import.meta.url).href)};
    console.log(sys.tryLock(3)); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit', fd],
  });
  try {
    const [line] = (await once(child.stdout!, 'data')) as [Buffer];
    assert.equal(line.toString(), 'true\n');
    assert.equal(sys.lockHolder(fd), child.pid);
    assert.equal(sys.tryLock(fd), false);
    const pidfd = sys.pidfdOpen(child.pid!);
    assert.equal(sys.poll(pidfd, sys.POLLIN, 0), 0);
    assert.ok(sys.pidfdSendSignal(pidfd, sys.SIGKILL));
    assert.equal(sys.poll(pidfd, sys.POLLIN, 5000), sys.POLLIN);
    assert.equal(sys.lockHolder(fd), undefined);
    assert.equal(sys.tryLock(fd), true);
    sys.close(pidfd);
  } finally {
    child.kill('SIGKILL');
    sys.close(fd);
  }
});
