/** The examples that README points to, on real mounts; memory.ts and notes.ts have tests of their own (restart, service). */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { findMount, unmount } from '../src/mount.ts';
import * as sys from '../src/sys.ts';

const run = promisify(execFile);
const skip = existsSync('/dev/fuse') && sys.geteuid() === 0 ? false : 'needs root and /dev/fuse';
const examples = join(import.meta.dirname, '../examples');

/** Runs an example on a fresh mount point, given by a relative path; the mount never hangs its caller. */
async function mounted(
  name: string,
  args: string[],
  work: (point: string, server: ChildProcess) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'fuse-example-'));
  const point = join(folder, 'mnt');
  mkdirSync(point);
  const server = spawn(process.execPath, [join(examples, name), ...args, './mnt'], { cwd: folder, stdio: 'inherit' });
  try {
    while (!findMount(point) && server.exitCode === null) await sleep(10);
    await work(point, server);
  } finally {
    if (findMount(point)) await unmount(point, { force: true });
    server.kill('SIGKILL');
    rmdirSync(point);
    rmdirSync(folder);
  }
}

const sh = async (script: string, dir: string): Promise<string> =>
  (await run('sh', ['-ec', script, dir], { timeout: 30_000, killSignal: 'SIGKILL' })).stdout;

test('hello: reads, lists, unmounts at Ctrl-C', { skip }, () =>
  mounted('hello.ts', [], async (point, server) => {
    assert.equal(
      await sh('cd "$0"; ls; cat hello; tail -c 5 hello; cat none 2>&1 | grep -c "No such"', point),
      'hello\nHello from Node\nNode\n1\n',
    );
    server.kill('SIGINT');
    await once(server, 'exit');
    assert.equal(server.exitCode, 0);
    assert.equal(findMount(point), undefined);
  }),
);

test('passthrough: what is done on the mount is done in the directory', { skip }, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'fuse-below-'));
  try {
    await mounted('passthrough.ts', [directory], async point => {
      const script = `cd "$0"; umask 027; mkdir -p d/e; echo one > d/f; ln d/f d/g; ln -s f d/l; readlink d/l; mv d/g d/e/h; stat -c '%a %h %s' d/e/h d
        echo two >> d/f; cat d/e/h; echo new > d/f; cat d/f; truncate -s 10 d/f; touch -d '2001-02-03 04:05:06.123456789Z' d/f; TZ=UTC stat -c %y d/f
        rm d/e/h; rmdir d/e; ls -a d; seq 200000 > big; cp big copy; cmp big copy; exec 3< big; rm big; cksum <&3 | cut -d' ' -f1; cksum copy | cut -d' ' -f1
        rmdir d 2>&1 | grep -c 'not empty'; i=0; while [ $i -lt 300 ]; do : > many$i; i=$((i+1)); done; ls | wc -l`;
      const said = (await sh(script, point)).split('\n');
      const sum = said.splice(-5, 2);
      assert.equal(sum[0], sum[1]);
      assert.deepEqual(said, [
        'f',
        '640 2 4',
        '750 3 4096',
        'one',
        'two',
        'new',
        '2001-02-03 04:05:06.123456789 +0000',
        '.',
        '..',
        'f',
        'l',
        '1',
        '302',
        '',
      ]);
      assert.equal(readdirSync(directory).length, 302);
    });
  } finally {
    rmSync(directory, { recursive: true });
  }
});
