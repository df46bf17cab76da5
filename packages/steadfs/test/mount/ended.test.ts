/** A mount that ends while nobody serves it loses nothing that was acknowledged. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { abortMount, missing, openVolume, processesWith, runClient } from '../support/volume.ts';

const SIZE = 1 << 20;

test('unmounted by force while the service is dead: what was written is stored all the same', {
  skip: missing('steadfs') ?? false,
  timeout: 120_000,
}, async () => {
  const volume = openVolume();
  const file = join(volume.dir, 'f');
  // A process of its own writes and keeps the file open; nothing is flushed.
  const program = `const fs = require('node:fs'); const fd = fs.openSync(process.argv[1], 'w');
    fs.writeSync(fd, Buffer.alloc(${SIZE}, 7)); console.log('written'); setTimeout(() => {}, 1e9);`;
  const writer = spawn(process.execPath, ['-e', program, file], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await new Promise(resolve => writer.stdout.once('data', resolve));
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
    const read = spawn(process.execPath, [
      '-e',
      `process.stdout.write(require('node:fs').readFileSync(process.argv[1]))`,
      file,
    ]);
    const parts: Buffer[] = [];
    read.stdout.on('data', (b: Buffer) => parts.push(b));
    await new Promise(resolve => read.on('close', resolve));
    assert.ok(Buffer.concat(parts).equals(Buffer.alloc(SIZE, 7)));
    const sessions = (JSON.parse(runClient('steadfs', ['status', volume.meta]).stdout) as { Sessions: unknown[] })
      .Sessions;
    assert.equal(sessions.length, 1, 'the session of before is closed');
  } finally {
    writer.kill('SIGKILL');
    assert.equal(volume.close(), undefined);
  }
});
