/** The fd store: a service manager that speaks the protocol (below), and a real systemd (systemd-real.test.ts). */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { abortConnection, findMount, unmount } from '../src/mount.ts';
import { endMount, mountState } from '../src/service.ts';
import * as sys from '../src/sys.ts';
import { isRestart, notifications, ownUnit, storedMount } from '../src/systemd.ts';
import { Manager } from './helpers/manager.ts';

const skip = existsSync('/dev/fuse') && sys.geteuid() === 0 ? false : 'needs root and /dev/fuse';
const notes = new URL('../examples/notes.ts', import.meta.url).pathname;

test('messages and their fds', () => {
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-notify-'));
  const socket = sys.bindDatagram(join(dir, 's'));
  try {
    assert.equal(notifications({}), undefined);
    const n = notifications({ NOTIFY_SOCKET: join(dir, 's') })!;
    n.ready('up\nand running');
    n.extendTimeout(5);
    n.watchdog();
    const texts = [0, 1, 2].map(() => {
      const got = sys.receiveFds(socket);
      assert.ok(typeof got !== 'number');
      return Buffer.from(got.data).toString();
    });
    assert.deepEqual(texts, [
      `READY=1\nSTATUS=up and running\nMAINPID=${process.pid}`,
      'EXTEND_TIMEOUT_USEC=5000',
      'WATCHDOG=1',
    ]);
    n.close();
    assert.equal(ownUnit('0::/system.slice/steadfs-vol.service\n'), 'steadfs-vol.service');
    assert.equal(ownUnit('0::/user.slice\n'), undefined);
    assert.equal(storedMount(new Map([['other', 3]])), undefined);
    assert.throws(() => storedMount(new Map([['steadfs-fuse', 3]])), /steadfs-capsule/);
  } finally {
    sys.close(socket);
    rmSync(dir, { recursive: true });
  }
});

test('fd store: kill -9 is a recovery, a restart an upgrade, an unmount empties the store', {
  skip,
  timeout: 240_000,
}, async () => {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-store-'));
  const dir = join(scratch, 'm');
  mkdirSync(dir);
  const manager = new Manager({ dir: scratch, command: [process.execPath, notes, 'unit', dir] });
  try {
    manager.start({ STEADFS_NOTES_VERSION: '1.0.0' });
    await manager.untilReady();
    assert.deepEqual(
      [...manager.store.keys()].sort(),
      ['arena', 'capsule', 'fuse', 'launch', 'state'].map(n => `steadfs-${n}`),
    );
    const first = (await mountState(dir))!;
    assert.equal(first.keeper, undefined);
    execFileSync('sh', ['-c', `echo hello >${dir}/a`], { timeout: 60_000 });
    for (let i = 0; i < 4; i++) {
      const { service } = (await mountState(dir))!;
      const reader = sleep(20).then(async () => {
        const cat = spawn('cat', [join(dir, 'a')], { stdio: 'ignore' });
        return (await once(cat, 'close'))[0] as number;
      });
      sys.kill(service!.pid, sys.SIGKILL);
      const child = manager.start({ STEADFS_NOTES_VERSION: `1.0.${i}` });
      await manager.untilReady();
      assert.equal((await mountState(dir))!.service!.pid, child.pid);
      assert.equal(await reader, 0);
    }
    const state = (await mountState(dir))!;
    assert.equal(state.takeovers.at(-1)!.why, 'systemd');
    assert.equal(state.service!.version, '1.0.3');
    // No other starter may replace it.
    assert.throws(
      () => execFileSync(process.execPath, [notes, 'upgrade', dir], { timeout: 60_000, stdio: 'pipe' }),
      (e: Error & { stderr?: Buffer }) => /systemd/.test(String(e.stderr)),
    );
    await endMount(dir);
    await manager.until('the store is empty', () => manager.store.size === 0);
  } finally {
    manager.end();
    const mount = findMount(dir);
    if (mount) {
      abortConnection(mount.device);
      await unmount(dir, { force: true });
    }
    rmSync(scratch, { recursive: true, force: true });
  }
});

test('fd store: a request that crashes the service gets EIO at the third crash', {
  skip,
  timeout: 240_000,
}, async () => {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-store-'));
  const dir = join(scratch, 'm');
  mkdirSync(dir);
  const output = openSync(join(scratch, 'log'), 'a');
  const env = { STEADFS_NOTES_FAULT: 'create-throw' };
  const manager = new Manager({
    dir: scratch,
    command: [process.execPath, notes, 'unit', dir],
    env,
    restart: true,
    output,
  });
  try {
    manager.start();
    await manager.untilReady();
    const touch = spawn('touch', [join(dir, 'poison')], { stdio: ['ignore', 'ignore', 'pipe'] });
    const [code] = (await once(touch, 'close')) as [number];
    assert.equal(code, 1);
    assert.equal(manager.starts, 4);
    assert.match(readFileSync(join(scratch, 'log'), 'utf8'), /CREATE of inode 1 .* 3 times: answered EIO/);
    await manager.untilReady();
    await endMount(dir);
  } finally {
    manager.end();
    closeSync(output);
    const mount = findMount(dir);
    if (mount) {
      abortConnection(mount.device);
      await unmount(dir, { force: true });
    }
    rmSync(scratch, { recursive: true, force: true });
  }
});

test('a stop is told from a restart also when systemd kills the systemctl that asks', async () => {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-systemctl-'));
  const path = process.env.PATH;
  try {
    process.env.PATH = `${scratch}:${path}`;
    const says = (text: string) =>
      writeFileSync(
        join(scratch, 'systemctl'),
        `#!/bin/sh\n[ -e ${scratch}/asked ] || { : >${scratch}/asked; kill $$; sleep 5; }\necho '${text}'\n`,
        { mode: 0o755 },
      );
    for (const [type, restart] of [
      ['stop', false],
      ['restart', true],
    ] as const) {
      rmSync(join(scratch, 'asked'), { force: true });
      says(`7 other.service stop waiting\n20 a.service ${type} running`);
      assert.equal(await isRestart('a.service'), restart);
    }
  } finally {
    process.env.PATH = path;
    rmSync(scratch, { recursive: true, force: true });
  }
});
