// timeout: 180
// alone
/** A volume from format to umount by the command line: background and foreground, live options, refusals, dead mounts. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { abortMount, missing, mountOf } from '../support/volume.ts';
import { steadfs } from './cli-process.ts';

const folder = mkdtempSync(join(tmpdir(), 'steadfs-mount-'));
const mp = join(folder, 'mp');
const log = join(folder, 'log');
const url = `sqlite3://${folder}/v.db`;
const root = process.getuid!() === 0;
const lack =
  missing('steadfs') ?? (root || existsSync('/usr/bin/fusermount3') ? undefined : 'neither root nor fusermount3');

/** A program that touches the mount: never this process itself. */
function sh(script: string): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync('sh', ['-c', script], {
    encoding: 'utf8',
    timeout: 20_000,
    killSignal: 'SIGKILL',
    cwd: folder,
  });
  return { status, output: stdout + stderr };
}

async function ok(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await steadfs(args);
  assert.equal(status, 0, `steadfs ${args.join(' ')}\n${stderr}${existsSync(log) ? readFileSync(log, 'utf8') : ''}`);
  return stdout;
}

const mount = (...flags: string[]) => ok('mount', '-d', '--log', log, '--metrics', '', url, mp, ...flags);

interface State {
  state: string;
  service?: { pid: number; version: string };
  keeper?: { pid: number };
  takeovers: { why: string; pause: number }[];
}

async function state(): Promise<State> {
  return (JSON.parse(await ok('status', mp)) as { mount: State }).mount;
}

/** Given a moment to end. A zombie (nobody waits for orphans in some containers) has ended. */
async function lives(pid: number): Promise<boolean> {
  for (let i = 0; i < 100; i++) {
    if (!existsSync(`/proc/${pid}/stat`) || readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ')) return false;
    await sleep(20);
  }
  return true;
}

before(async () => {
  if (lack) return;
  mkdirSync(mp);
  await ok('format', url, 'myvol', '--bucket', join(folder, 'objects'), '--trash-days', '0');
});

after(() => {
  abortMount(mp);
  rmSync(folder, { recursive: true, force: true });
});

test('a mount in the background, used, and ended', { skip: lack ?? false }, async () => {
  assert.equal(await mount(), `OK, myvol is ready at ${mp}\n`);
  assert.equal(mountOf(mp)?.type, 'fuse.steadfs');
  assert.match(readFileSync('/proc/self/mountinfo', 'utf8'), new RegExp(`${mp} .* - fuse.steadfs Steadfs:myvol rw,`));
  assert.deepEqual(sh('cd mp && mkdir d && echo hello > d/f && cat d/f && mv d/f d/g && ls d && stat -c %i .'), {
    status: 0,
    output: 'hello\ng\n1\n',
  });
  const now = await state();
  assert.equal(now.state, 'serving');
  assert.equal(now.takeovers.length, 1);
  for (const pid of [now.service!.pid, now.keeper!.pid]) {
    assert.ok(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(mp));
    assert.doesNotMatch(
      readFileSync(`/proc/${pid}/environ`, 'utf8') + readFileSync(`/proc/${pid}/cmdline`, 'utf8'),
      /v\.db/,
    );
  }
  assert.match(await ok('info', `${mp}/d/g`), /length: 6 Bytes/);
  const sessions = (JSON.parse(await ok('status', url)) as { Sessions: Record<string, unknown>[] }).Sessions;
  assert.equal(sessions.length, 1);
  assert.equal(sessions[0]!.MountPoint, mp);
  assert.match(String(sessions[0]!.Version), /^1\.4\.1\+steadfs\.\d+\.\d+\.\d+$/);
  await ok('umount', mp, '--flush');
  assert.equal(mountOf(mp), undefined);
  assert.deepEqual((JSON.parse(await ok('status', url)) as { Sessions: unknown[] }).Sessions, []);
  for (const pid of [now.service!.pid, now.keeper!.pid])
    assert.ok(!(await lives(pid)), `process ${pid} is still there`);
});

test('what was written is there after the next mount', { skip: lack ?? false }, async () => {
  await mount();
  assert.equal(sh('cat mp/d/g').output, 'hello\n');
  await ok('umount', mp);
});

test('mount on a live mount is an upgrade; what cannot change is refused', { skip: lack ?? false }, async () => {
  await mount();
  const holder = spawn('sh', ['-c', 'exec 3< mp/d/g; sleep 1; cd mp; cat <&3; sleep 300'], {
    cwd: folder,
    stdio: 'ignore',
    detached: true,
  });
  try {
    await sleep(300);
    const old = await state();
    const line = await mount('--attr-cache', '5s');
    assert.match(
      line,
      /^OK, myvol at .* was upgraded from \d+\.\d+\.\d+ to \d+\.\d+\.\d+; pause [\d.]+ ms; carried over: .*1 handles/,
    );
    const now = await state();
    assert.notEqual(now.service!.pid, old.service!.pid);
    assert.deepEqual(
      now.takeovers.map(t => t.why),
      ['mount', 'upgrade'],
    );
    assert.equal(sh('cat mp/d/g').output, 'hello\n');

    for (const flags of [['--max-fuse-io', '1M'], ['--prefix-internal'], ['--subdir', 'd'], ['-o', 'async_dio']]) {
      const refused = await steadfs(['mount', '-d', '--log', log, url, mp, ...flags]);
      assert.equal(refused.status, 1, refused.stdout);
      assert.match(refused.stderr, /cannot change on a live mount/);
    }
    assert.equal((await state()).service!.pid, now.service!.pid);

    await sleep(1000);
    const busy = await steadfs(['umount', mp]);
    assert.equal(busy.status, 1);
    assert.match(busy.stderr, new RegExp(`ERROR: ${mp} is busy: used by .*(sh|sleep) \\(\\d+\\)`));
    assert.equal(mountOf(mp)?.type, 'fuse.steadfs');
  } finally {
    process.kill(-holder.pid!, 'SIGKILL');
  }
  await sleep(200);
  await ok('umount', mp, '--force');
  assert.equal(mountOf(mp), undefined);
});

test('a live mount becomes read-only and writable again', {
  skip: lack ?? (root ? false : 'it needs root'),
}, async () => {
  const flags = (): string =>
    / - fuse\.steadfs \S+ (r[ow])/.exec(readFileSync('/proc/self/mountinfo', 'utf8').split(` ${mp} `)[1]!)![1]!;
  const remount = (...words: string[]) => steadfs(['mount', '-d', '--log', log, '--metrics', '', url, mp, ...words]);
  const none = await remount('-o', 'remount,ro');
  assert.match(none.stderr, /-o remount: no volume is mounted/);
  assert.equal(mountOf(mp), undefined);

  await mount();
  assert.equal(sh('echo one > mp/file').output, '');
  const writer = spawn('sh', ['-c', 'exec 3>> mp/file; echo open; read wait; echo two >&3'], { cwd: folder });
  await once(writer.stdout, 'data');
  const busy = await remount('-o', 'remount,ro');
  assert.match(busy.stderr, /cannot be remounted read-only: files are open for writing/);
  assert.equal(flags(), 'rw');
  writer.stdin.end('\n');
  await once(writer, 'exit');

  // Behind our back, and with us.
  assert.equal(sh('mount -i -o remount,ro mp').output, '');
  assert.equal(flags(), 'ro');
  await mount();
  assert.equal(flags(), 'rw');
  assert.equal((await remount('-o', 'remount,ro')).stderr, '');
  assert.equal(flags(), 'ro');
  process.kill((await state()).service!.pid, 'SIGKILL');
  assert.deepEqual(sh('cat mp/file; echo three 2>&1 > mp/file').output.split('\n').slice(0, 2), ['one', 'two']);
  assert.match(sh('echo three > mp/new').output, /Read-only file system/);
  await mount();
  assert.equal(flags(), 'rw');
  assert.equal(sh('echo three >> mp/file && cat mp/file').output, 'one\ntwo\nthree\n');
  await ok('umount', mp);

  // Without a session until it may write.
  await mount('--read-only');
  const sessions = async () => (JSON.parse(await ok('status', url)) as { Sessions: unknown[] }).Sessions.length;
  assert.equal(await sessions(), 0);
  assert.match(sh('rm mp/file').output, /Read-only file system/);
  assert.equal((await remount('-o', 'remount,rw')).stderr, '');
  assert.equal(await sessions(), 1);
  assert.equal(sh('cat mp/file && rm mp/file').output, 'one\ntwo\nthree\n');
  await ok('umount', mp);
});

test('the service is started again after kill -9, another volume is refused, and so is a second one', {
  skip: lack ?? false,
}, async () => {
  await mount();
  const old = await state();
  process.kill(old.service!.pid, 'SIGKILL');
  assert.equal(sh('cat mp/d/g').output, 'hello\n');
  const now = await state();
  assert.deepEqual(
    now.takeovers.map(t => t.why),
    ['mount', 'crash'],
  );
  const other = `sqlite3://${folder}/other.db`;
  await ok('format', other, 'other', '--bucket', join(folder, 'objects'));
  const refused = await steadfs(['mount', '-d', '--log', log, other, mp]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /is busy: Steadfs:myvol is mounted there/);
  await ok('umount', mp);
});

test('a dead mount is replaced with a warning', { skip: lack ?? (root ? false : 'needs root') }, async () => {
  await mount();
  const { service, keeper } = await state();
  process.kill(keeper!.pid, 'SIGKILL');
  process.kill(service!.pid, 'SIGKILL');
  for (let i = 0; i < 50 && (existsSync(`/proc/${service!.pid}`) || existsSync(`/proc/${keeper!.pid}`)); i++)
    await sleep(20);
  assert.equal((await state()).state, 'dead');
  const again = await steadfs(['mount', '-d', '--log', log, '--metrics', '', url, mp]);
  assert.equal(again.status, 0, again.stderr);
  assert.match(again.stderr, /WARNING: removed a dead mount of Steadfs:myvol/);
  assert.equal(sh('cat mp/d/g').output, 'hello\n');
  await ok('umount', mp);
});

test('in the foreground the command serves, and SIGTERM unmounts', { skip: lack ?? false }, async () => {
  const launcher = join(import.meta.dirname, '../../bin/steadfs');
  const child: ChildProcess = spawn(launcher, ['mount', '--metrics', '', url, mp, '--read-only'], {
    env: { ...process.env, STEADFS_NODE: process.execPath },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr!.on('data', data => {
    stderr += data;
  });
  const ended = new Promise<number | null>(done => child.on('exit', done));
  for (let i = 0; i < 100 && !mountOf(mp); i++) await sleep(100);
  assert.equal(sh('cat mp/d/g').output, 'hello\n', stderr);
  assert.match(sh('touch mp/x').output, /Read-only file system/);
  child.kill('SIGTERM');
  const code = await Promise.race([ended, sleep(10_000, 'too late', { ref: false })]);
  assert.equal(code, 0, stderr);
  assert.equal(mountOf(mp), undefined);
});

test('a log or a store that cannot be written is said at once', {
  skip: lack ?? (root ? false : 'needs root'),
}, async () => {
  const refused = await steadfs(['mount', '-d', '--log', '/proc/none/log', url, mp]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /cannot write the log \/proc\/none\/log/);
  const probe = await steadfs(['mount', '-d', '--log', log, '--check-storage', '--bucket', '/proc/none/', url, mp]);
  assert.equal(probe.status, 1);
  assert.match(probe.stderr, /ERROR: storage file:\/\/\/proc\/none\/ cannot be used/);
  assert.equal(mountOf(mp), undefined);
});

test('a full disk under the database or the store is said, and loses nothing', {
  skip: lack ?? (root ? false : 'needs root'),
}, async () => {
  const small = join(folder, 'small');
  mkdirSync(small);
  assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'small', small]).status, 0);
  try {
    assert.equal(sh('cat /dev/zero > small/fill 2>/dev/null; true').status, 0);
    for (const args of [
      ['format', `sqlite3://${small}/full.db`, 'myvol', '--bucket', join(folder, 'o1')],
      ['format', `sqlite3://${folder}/f.db`, 'myvol', '--bucket', join(small, 'o2')],
    ]) {
      const { status, stderr } = await steadfs(args);
      assert.equal(status, 1, stderr);
      assert.match(stderr, /ERROR: .*(no space|disk is full|disk I\/O error)/i, stderr);
    }
    // With room again the same commands work.
    assert.equal(sh('rm small/fill').status, 0);
    await ok('format', `sqlite3://${folder}/f.db`, 'myvol', '--bucket', join(small, 'o2'), '--trash-days', '0');
    const point = join(folder, 'mp2');
    mkdirSync(point);
    await ok('mount', '-d', '--log', log, '--metrics', '', `sqlite3://${folder}/f.db`, point);
    try {
      assert.equal(sh('echo kept > mp2/kept && sync mp2/kept').status, 0);
      const { status, output } = sh('head -c 3000000 /dev/urandom > mp2/large && sync mp2/large');
      assert.notEqual(status, 0);
      assert.match(output, /No space left on device/);
      assert.equal(sh('rm mp2/large; cat mp2/kept').output, 'kept\n');
    } finally {
      await steadfs(['umount', point, '--force']);
      abortMount(point);
    }
  } finally {
    spawnSync('umount', ['-l', small]);
  }
});
