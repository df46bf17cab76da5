import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createCapsule } from '../src/capsule.ts';
import { Errno } from '../src/errno.ts';
import { connectControl, killAndWait, serveControl } from '../src/handover.ts';
import {
  checkedDirectory,
  createLaunch,
  createState,
  type HeldFds,
  readLaunch,
  runtimeDirectory,
  runtimeRoots,
} from '../src/launch.ts';
import type { Launch } from '../src/service-types.ts';
import * as sys from '../src/sys.ts';

const launch: Launch = {
  mountPoint: '/mnt/x',
  device: '0:99',
  mount: { source: 's', subtype: 't' },
  version: '1',
  command: ['a'],
  // More than one message of a socket.
  options: { secret: 'x'.repeat(200_000) },
  arenaSize: 1 << 20,
  directory: '',
  created: 1,
};

test('control socket: fds, a yield that is given up, one that comes to nothing', { timeout: 20_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-control-'));
  const held: HeldFds = {
    fuse: sys.open('/dev/null', 2),
    ...createCapsule({ arenaSize: 1 }),
    launch: createLaunch(launch),
    state: createState(),
  };
  const events: string[] = [];
  const info = { pid: process.pid, version: '1', keeper: 7, launch, takeovers: [] };
  const server = serveControl(dir, {
    info: () => info,
    fds: held,
    yielding: async () => {
      await sleep(5);
      events.push('yield');
    },
    resume: () => events.push('resume'),
    log: (_level, text) => events.push(text),
  });
  try {
    const control = await connectControl(dir, 'take');
    assert.equal(control.info.keeper, 7);
    assert.deepEqual(control.info.launch, launch);
    for (const [name, fd] of Object.entries(control.fds!)) {
      assert.equal(
        statSync(`/proc/self/fd/${fd}`).ino,
        statSync(`/proc/self/fd/${held[name as keyof HeldFds]}`).ino,
        name,
      );
      sys.close(fd);
    }
    assert.equal(await control.yield(1000), true);
    assert.deepEqual(events, ['yield']);
    control.close();
    for (let i = 0; i < 100 && events.length < 2; i++) await sleep(5);
    assert.deepEqual(events, ['yield', 'resume']);
    const other = await connectControl(dir, 'state');
    assert.equal(other.fds, undefined);
    other.close();
  } finally {
    server.close();
    for (const fd of Object.values(held)) sys.close(fd);
  }
  await assert.rejects(connectControl(dir, 'take'), (e: unknown) => e instanceof Errno && e.errno === 111);
  rmSync(dir, { recursive: true });
});

test('a hung service is noticed', { timeout: 20_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-control-'));
  const listener = sys.listenUnix(join(dir, 'control'));
  await assert.rejects(connectControl(dir, 'take', 100), /no answer/);
  sys.close(listener);
  rmSync(dir, { recursive: true });
});

test('the launch record cannot be changed', () => {
  const fd = createLaunch(launch);
  assert.deepEqual(readLaunch(fd), launch);
  const memory = sys.allocate(4096);
  assert.ok(sys.pwrite(fd, memory.address, 1, 0) < 0);
  assert.throws(() => sys.ftruncate(fd, 0));
  sys.close(fd);
});

test('private directories: only ours, only 0700, the next place where one will not do', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-run-'));
  const [root, second, long] = [join(scratch, 'root'), join(scratch, 'second'), join(scratch, 'long'.repeat(30))];
  const dir = runtimeDirectory('0:5', [root]);
  assert.equal(dir, join(root, '0-5'));
  assert.equal(statSync(dir).mode & 0o777, 0o700);
  chmodSync(root, 0o755);
  assert.throws(() => runtimeDirectory('0:5', [root]), /0700/);
  assert.throws(() => checkedDirectory(dir), /0700/);
  assert.equal(runtimeDirectory('0:5', [root, long, second]), join(second, '0-5'), 'a socket has to fit in as well');
  assert.deepEqual(runtimeRoots(0, { XDG_RUNTIME_DIR: '/run/user/0' }), ['/run/steadfs']);
  assert.equal(runtimeRoots(5, { XDG_RUNTIME_DIR: '/run/user/5' })[0], '/run/user/5/steadfs');
  assert.equal(runtimeRoots(5, {})[0], join(tmpdir(), 'steadfs-5'));
  rmSync(scratch, { recursive: true });
});

test('kill and wait: a stopped process dies, one that is none of ours is left', { timeout: 20_000 }, async () => {
  const child = spawn('sleep', ['30'], { stdio: 'ignore' });
  await sleep(50);
  assert.ok(killAndWait(child.pid!, 100, () => false));
  assert.equal(child.exitCode, null);
  sys.kill(child.pid!, sys.SIGSTOP);
  assert.ok(killAndWait(child.pid!, 5000));
  assert.ok(killAndWait(child.pid!, 5000), 'gone already');
});
