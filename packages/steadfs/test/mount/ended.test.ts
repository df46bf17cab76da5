// timeout: 300
/** A mount that ends while nobody serves it loses nothing that was acknowledged, whoever keeps its descriptors. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Manager } from '../../../fuse/test/helpers/manager.ts';
import { underManager } from '../continuity/storm.ts';
import { abortMount, missing, openVolume, processesWith, runClient, type Volume } from '../support/volume.ts';

const SIZE = 1 << 20;
const options = { skip: missing('steadfs') ?? false, timeout: 280_000 };

/** A process of its own that writes and keeps the file open; nothing is flushed. */
async function startWriter(file: string): Promise<ChildProcess> {
  const program = `const fs = require('node:fs'); const fd = fs.openSync(process.argv[1], 'w');
    fs.writeSync(fd, Buffer.alloc(${SIZE}, 7)); console.log('written'); setTimeout(() => {}, 1e9);`;
  const writer = spawn(process.execPath, ['-e', program, file], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise(resolve => writer.stdout!.once('data', resolve));
  return writer;
}

/** Not the main process, which is to become one. */
function isService(pid: number): boolean {
  try {
    const argv = readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0');
    const parent = /^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
    return argv.includes('service') && parent !== String(process.pid);
  } catch {
    return false; // ended meanwhile
  }
}

function assertStored(volume: Volume): void {
  const read = execFileSync('cat', [join(volume.dir, 'f')], { timeout: 60_000, maxBuffer: 2 * SIZE });
  assert.ok(read.equals(Buffer.alloc(SIZE, 7)));
  const { Sessions } = JSON.parse(runClient('steadfs', ['status', volume.meta]).stdout) as { Sessions: unknown[] };
  assert.equal(Sessions.length, 1, 'the session of before is closed');
}

test('unmounted by force while the service is dead: what was written is stored all the same', options, async () => {
  const volume = openVolume();
  const writer = await startWriter(join(volume.dir, 'f'));
  try {
    const state = JSON.parse(runClient('steadfs', ['status', volume.dir]).stdout) as {
      mount: { service: { pid: number }; keeper: { pid: number } };
    };
    const { service, keeper } = state.mount;
    process.kill(keeper.pid, 'SIGSTOP');
    process.kill(service.pid, 'SIGKILL');
    abortMount(volume.dir);
    process.kill(keeper.pid, 'SIGCONT');
    for (let i = 0; i < 600 && processesWith(volume.dir).some(p => p !== writer.pid); i++) await sleep(100);
    assert.deepEqual(
      processesWith(volume.dir).filter(p => p !== writer.pid),
      [],
      'service and keeper have ended',
    );
    writer.kill('SIGKILL');
    assert.equal(volume.remount().status, 0);
    assertStored(volume);
  } finally {
    writer.kill('SIGKILL');
    assert.equal(volume.close(), undefined);
  }
});

test('the same under the fd store: the next start stores it, and mounts anew', options, async () => {
  const volume = openVolume();
  let manager: Manager | undefined;
  let writer: ChildProcess | undefined;
  try {
    manager = await underManager(volume, [], false);
    writer = await startWriter(join(volume.dir, 'f'));
    process.kill(manager.pid!, 'SIGKILL');
    await manager.until('the service is dead', () => manager!.pid === undefined);
    abortMount(volume.dir);
    // The first one that brings it home is killed: until it has ended, the store has everything.
    manager.start();
    let killed = 0;
    await manager.until(
      'the mount',
      () => {
        const home = manager!.ready || killed > 0 ? [] : processesWith(volume.dir).filter(isService);
        for (const pid of home) {
          process.kill(pid, 'SIGKILL');
          killed++;
        }
        if (manager!.pid === undefined) {
          assert.ok(manager!.store.size >= 3);
          manager!.start();
        }
        return manager!.ready;
      },
      150_000,
    );
    assertStored(volume);
  } finally {
    writer?.kill('SIGKILL');
    assert.equal(volume.close(), undefined);
    manager?.end();
  }
});
