// timeout: 240
// alone
/**
 * The unit template that is shipped, with the real command, under a real systemd (PID 1 of private namespaces): start, kill -9, a restart with another option, stop. A program
 * goes on writing and comparing all the while.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { missing, runClient } from '../support/volume.ts';

const SYSTEMD = '/usr/lib/systemd/systemd';
const repository = resolve(import.meta.dirname, '../../../..');
const exec = promisify(execFile);
const lack =
  missing('steadfs') ??
  (process.getuid?.() === 0 && existsSync(SYSTEMD) && spawnSync('unshare', ['--version']).status === 0
    ? undefined
    : 'needs root, unshare and systemd');

/** Appends a line, reads the whole back and compares, until its input ends; says how many rounds. */
const WORK = `
import { appendFileSync, readFileSync, renameSync, writeFileSync, unlinkSync } from 'node:fs';
const dir = process.argv[1];
let want = '', rounds = 0, stopped = false;
process.stdin.on('end', () => { stopped = true; }).resume();
while (!stopped) {
  const line = 'round ' + rounds++ + '\\n';
  appendFileSync(dir + '/log', line);
  want += line;
  if (readFileSync(dir + '/log', 'utf8') !== want) throw new Error('what was written is not what is read');
  writeFileSync(dir + '/new', line, { flag: 'wx' });
  renameSync(dir + '/new', dir + '/kept');
  if (readFileSync(dir + '/kept', 'utf8') !== line) throw new Error('the file under its new name');
  unlinkSync(dir + '/kept');
  await new Promise(wake => setTimeout(wake, 5));
}
console.log(rounds);
`;

test('the unit template', { skip: lack ?? false, timeout: 220_000 }, async t => {
  const base = mkdtempSync(join(tmpdir(), 'steadfs-unit-'));
  const volume = join(base, 'volume');
  mkdirSync(join(volume, 'mnt'), { recursive: true });
  mkdirSync(join(base, 'etc'));
  const meta = `sqlite3://${volume}/meta.db`;
  const formatted = runClient('steadfs', [
    'format',
    '--storage',
    'file',
    '--bucket',
    `${volume}/objects/`,
    meta,
    'unit',
  ]);
  assert.equal(formatted.status, 0, formatted.stderr);
  const conf = (options: string) =>
    writeFileSync(
      join(base, 'etc/test.conf'),
      `META_URL=${meta}\nMOUNT_POINT=${volume}/mnt\nOPTIONS=--log ${volume}/log ${options}\n`,
    );
  conf('--enable-xattr');
  const template = readFileSync(join(repository, 'packages/steadfs/systemd/steadfs@.service'), 'utf8');
  assert.match(template, /ExecStart=\/usr\/bin\/env steadfs mount/);
  writeFileSync(join(base, 'steadfs@.service'), template);
  // As it is shipped but for what a bare namespace lacks: the order of boot, and the command on PATH.
  writeFileSync(
    join(base, 'here.conf'),
    `[Unit]\nDefaultDependencies=no\nAfter=\nWants=\n[Service]\nEnvironment=PATH=${repository}/packages/steadfs/bin:${process.env.PATH} STEADFS_NODE=${process.execPath} STEADFS_RUNTIME_DIR=${base}/runtime\n`,
  );
  // Without a tmpfs of its own it would clean the machine's /tmp.
  const setup = `
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system/steadfs@.service.d /run/keep/base /run/keep/repository
mount --bind ${base} /run/keep/base
mount --bind ${repository} /run/keep/repository
mount -t tmpfs tmpfs /tmp
mkdir -p ${base} ${repository}
mount --bind /run/keep/base ${base}
mount --bind /run/keep/repository ${repository}
mkdir -p /etc/steadfs
mount --bind ${base}/etc /etc/steadfs
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
cp ${base}/steadfs@.service /run/systemd/system/
cp ${base}/here.conf /run/systemd/system/steadfs@.service.d/
printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/steadfs-test.target
container=unshare exec ${SYSTEMD} --system --unit=steadfs-test.target --log-target=null --show-status=no
`;
  const made = !existsSync('/etc/steadfs');
  if (made) mkdirSync('/etc/steadfs');
  const outer: ChildProcess = spawn(
    'unshare',
    ['--fork', '--pid', '--mount', '--cgroup', '--mount-proc', '--kill-child', 'sh', '-c', setup],
    { stdio: ['ignore', 'inherit', 'inherit'] },
  );
  let work: ChildProcess | undefined;
  let pid = 0;
  try {
    for (let i = 0; i < 400 && !pid; i++) {
      await sleep(20);
      pid = Number(readFileSync(`/proc/${outer.pid}/task/${outer.pid}/children`, 'utf8').trim().split(' ')[0]);
    }
    const inside = ['-t', String(pid), '-m', '-p', '-C', '--'];
    const run = async (...command: string[]) =>
      (await exec('nsenter', [...inside, ...command], { timeout: 90_000 })).stdout.trim();
    let up = false;
    for (let i = 0; i < 200 && !up; i++) {
      await sleep(50);
      up = await run('systemctl', 'is-active', 'steadfs-test.target').then(
        () => true,
        () => false,
      );
    }
    if (!up) return t.skip('systemd does not start in namespaces here');
    const unit = 'steadfs@test.service';
    const show = (name: string) => run('systemctl', 'show', '--value', '-p', name, unit);
    await run('systemctl', 'start', unit);
    const point = `${volume}/mnt`;
    assert.match(await run('findmnt', '-n', '-o', 'FSTYPE', point), /fuse\.steadfs/);
    assert.equal(await show('NFileDescriptorStore'), '5');
    work = spawn('nsenter', [...inside, process.execPath, '--input-type=module', '-e', WORK, point], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let said = '';
    let faults = '';
    work.stdout!.on('data', d => {
      said += d;
    });
    work.stderr!.on('data', d => {
      faults += d;
    });
    const closed = new Promise<number | null>(done => work!.on('close', done));
    await sleep(300);

    for (let i = 0; i < 3; i++) {
      const main = await show('MainPID');
      await run('systemctl', 'kill', '-s', 'KILL', '--kill-who=main', unit);
      await run('ls', point);
      assert.notEqual(await show('MainPID'), main);
      assert.equal(await show('NFileDescriptorStore'), '5');
    }
    // Other options and a restart: a smooth upgrade.
    conf('--log-level debug --buffer-size 64M');
    const main = await show('MainPID');
    await run('systemctl', 'restart', unit);
    assert.notEqual(await show('MainPID'), main);
    assert.equal(await show('ActiveState'), 'active');
    const status = JSON.parse(
      await run(
        'env',
        `PATH=${repository}/packages/steadfs/bin:${process.env.PATH}`,
        `STEADFS_NODE=${process.execPath}`,
        'steadfs',
        'status',
        point,
      ),
    ) as {
      mount: { state: string; keeper?: object; takeovers: { why: string }[] };
    };
    assert.equal(status.mount.state, 'serving');
    assert.equal(status.mount.keeper, undefined);
    assert.deepEqual(
      status.mount.takeovers.map(k => k.why),
      ['mount', 'systemd', 'systemd', 'systemd', 'systemd'],
    );
    work.stdin!.end();
    assert.equal(await closed, 0, faults);
    assert.ok(Number(said) > 3, said);
    t.diagnostic(`3 kills and a restart with other options: ${said.trim()} rounds of work`);

    await run('systemctl', 'stop', unit);
    assert.equal(await run('findmnt', '-n', point).catch(() => ''), '');
    assert.equal(await show('ActiveState'), 'inactive');
    assert.equal(await show('NFileDescriptorStore'), '0');
    // And again: the data is there.
    await run('systemctl', 'start', unit);
    assert.equal(await run('sh', '-c', `wc -l <${point}/log`), said.trim());
    await run('systemctl', 'stop', unit);
  } catch (error) {
    if (existsSync(`${volume}/log`))
      console.log(readFileSync(`${volume}/log`, 'utf8').split('\n').slice(-40).join('\n'));
    throw error;
  } finally {
    work?.kill('SIGKILL');
    outer.kill('SIGKILL');
    await sleep(200);
    rmSync(base, { recursive: true, force: true, maxRetries: 5 });
    if (made) rmSync('/etc/steadfs', { recursive: true, force: true });
  }
});
