/** A real systemd as PID 1 of private namespaces, with a mount under its fd store. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import * as sys from '../src/sys.ts';

const SYSTEMD = '/usr/lib/systemd/systemd';
const KILLS = Number(process.env.STEADFS_KILLS ?? 5);
const can =
  existsSync('/dev/fuse') &&
  sys.geteuid() === 0 &&
  existsSync(SYSTEMD) &&
  spawnSync('unshare', ['--version']).status === 0;
const skip = can ? false : 'needs root, /dev/fuse, unshare and systemd';
const notes = new URL('../examples/notes.ts', import.meta.url).pathname;
const load = new URL('./helpers/load.ts', import.meta.url).pathname;
const repository = new URL('../../..', import.meta.url).pathname;
const exec = promisify(execFile);

/** Without a tmpfs of its own it would clean the machine's /tmp; the repository may be below that. */
const SETUP = `
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/m /run/repository
mount --bind ${repository} /run/repository
mount -t tmpfs tmpfs /tmp
mkdir -p ${repository}
mount --bind /run/repository ${repository}
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/steadfs-test.target
cat >/run/systemd/system/notes.service <<UNIT
[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
ExecStart=${process.execPath} ${notes} unit /run/m
FileDescriptorStoreMax=16
Restart=on-failure
RestartSec=0
WatchdogSec=20
StandardOutput=append:/run/notes.log
StandardError=append:/run/notes.log
UNIT
container=unshare exec ${SYSTEMD} --system --unit=steadfs-test.target --log-target=null --show-status=no
`;

test('systemd: kill -9 is a recovery, systemctl restart an upgrade, stop unmounts', {
  skip,
  timeout: 90_000,
}, async t => {
  const outer: ChildProcess = spawn(
    'unshare',
    ['--fork', '--pid', '--mount', '--cgroup', '--mount-proc', '--kill-child', 'sh', '-c', SETUP],
    {
      stdio: 'ignore',
    },
  );
  const user: ChildProcess[] = [];
  let pid = 0;
  try {
    for (let i = 0; i < 200 && !pid; i++) {
      await sleep(20);
      pid = Number(readFileSync(`/proc/${outer.pid}/task/${outer.pid}/children`, 'utf8').trim().split(' ')[0]);
    }
    const inside = ['-t', String(pid), '-m', '-p', '-C', '--'];
    const run = async (...command: string[]) =>
      (await exec('nsenter', [...inside, ...command], { timeout: 20_000 })).stdout.trim();
    let up = false;
    for (let i = 0; i < 100 && !up; i++) {
      await sleep(50);
      up = await run('systemctl', 'is-active', 'steadfs-test.target').then(
        () => true,
        () => false,
      );
    }
    if (!up) return t.skip('systemd does not start in namespaces here');
    await run('systemctl', 'start', 'notes.service');
    await run('sh', '-c', 'echo hello >/run/m/a');
    const child = spawn('nsenter', [...inside, process.execPath, load, '/run/m', 'x'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    user.push(child);
    let out = '';
    child.stdout!.on('data', (b: Buffer) => {
      out += b.toString();
    });
    const show = (name: string) => run('systemctl', 'show', '--value', '-p', name, 'notes.service');
    for (let i = 0; i < KILLS; i++) {
      const main = await show('MainPID');
      await run('systemctl', 'kill', '-s', 'KILL', '--kill-who=main', 'notes.service');
      assert.equal(await run('cat', '/run/m/a'), 'hello');
      const next = await show('MainPID');
      assert.notEqual(next, main);
      assert.equal(await show('NFileDescriptorStore'), '5');
    }
    const main = await show('MainPID');
    await run('systemctl', 'restart', 'notes.service');
    assert.notEqual(await show('MainPID'), main);
    assert.equal(await run('cat', '/run/m/a'), 'hello');
    const closed = new Promise(resolve => child.on('close', resolve));
    child.stdin!.end();
    await closed;
    const result = JSON.parse(out) as { calls: number; slowest: number; failures: string[] };
    console.log(`${KILLS} kills and a restart under systemd: ${result.calls} calls, slowest ${result.slowest} ms`);
    assert.deepEqual(result.failures, []);
    const log = await run('cat', '/run/notes.log');
    assert.match(log, /restart: the mount stays/);
    await run('systemctl', 'stop', 'notes.service');
    assert.equal(await run('grep', '-c', '/run/m', '/proc/mounts').catch(() => '0'), '0');
    assert.equal(await show('NFileDescriptorStore'), '0');
  } catch (error) {
    if (pid)
      console.log(
        spawnSync('nsenter', ['-t', String(pid), '-m', '--', 'tail', '-n', '40', '/run/notes.log'], {
          encoding: 'utf8',
        }).stdout,
      );
    throw error;
  } finally {
    for (const c of user) c.kill('SIGKILL');
    outer.kill('SIGKILL');
  }
});
