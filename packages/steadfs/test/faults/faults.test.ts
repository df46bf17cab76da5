// timeout: 400
// alone
/** Databases and stores that misbehave under a mount, briefly; `node faults.ts` has the long versions. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { roles } from '../continuity/storm.ts';
import { META_KINDS, type MetaKind, startNetwork } from '../servers/network.ts';
import { abortMount, missing, mountOf, openVolume, runClientLater } from '../support/volume.ts';
import { describeFaults, faultRun, statusOf } from './faults.ts';

const full = process.env.STEADFS_FULL === '1';
// 885928 is known to exceed the memory allowed on MariaDB: memory of answers is given back late in the first seconds of a service.
const seed = Number(process.env.STEADFS_SEED ?? (full ? Math.floor(Math.random() * 1e6) : 20));
const lack = missing('steadfs');

/** Until `check` is true; what it said last when it does not become so. */
async function until(check: () => boolean | string, what: string, seconds = 60): Promise<void> {
  const end = Date.now() + seconds * 1000;
  for (let last: boolean | string = false; ; ) {
    last = check();
    if (last === true) return;
    if (Date.now() > end) assert.fail(`${what}: ${last}`);
    await new Promise(wake => setTimeout(wake, 100));
  }
}

test('status and log say what is wrong and since when, and a write waits', { skip: lack ?? false }, async t => {
  const network = await startNetwork('redis', 's3');
  if ('missing' in network) return t.skip(network.missing);
  t.after(() => network.close());
  const volume = openVolume({ meta: network.meta!, store: network.store! });
  const troubles = () => statusOf(volume.dir).mount.troubles ?? [];
  try {
    assert.deepEqual(troubles(), []);
    const before = Date.now();
    await network.storeProxy!.rule({ chance: 100, faults: [{ status: 503, code: 'SlowDown' }], seed });
    const writer = spawn('sh', ['-c', `echo hello > ${join(volume.dir, 'f')} && sync ${join(volume.dir, 'f')}`]);
    const ended = new Promise<number | null>(done => writer.on('exit', done));
    await until(
      () => troubles().some(x => x.what === 'writes') || JSON.stringify(troubles()),
      'trouble with the store',
    );
    const [entry] = troubles();
    assert.match(entry!.message, /503 SlowDown/);
    const since = Date.parse(entry!.since);
    assert.ok(since >= before && since <= Date.now(), entry!.since);
    await until(() => /writes wait: .*503 SlowDown/.test(readFileSync(join(volume.base, 'log'), 'utf8')), 'the log');
    assert.equal(writer.exitCode, null);
    await network.storeProxy!.rule(undefined);
    assert.equal(await ended, 0);
    await until(() => troubles().length === 0 || JSON.stringify(troubles()), 'no trouble any more');

    await network.metaProxy!.refuse();
    const maker = spawn('mkdir', [join(volume.dir, 'd')]);
    const made = new Promise<number | null>(done => maker.on('exit', done));
    await until(() => troubles().some(x => x.what === 'database') || JSON.stringify(troubles()), 'trouble with Redis');
    await network.metaProxy!.flow();
    assert.equal(await made, 0);
    await until(() => troubles().length === 0 || JSON.stringify(troubles()), 'no trouble with Redis any more');
    await until(() => /writes go on after \d+ s/.test(readFileSync(join(volume.base, 'log'), 'utf8')), 'the log');
  } finally {
    await network.metaProxy!.flow();
    await network.storeProxy!.rule(undefined);
    const fault = volume.close();
    if (fault) abortMount(volume.dir);
    assert.equal(fault, undefined);
  }
});

/** Runs a command; what `done` says when it has ended. */
function start(command: string): { child: ReturnType<typeof spawn>; ended: Promise<string>; over(): boolean } {
  const child = spawn('sh', ['-c', `exec ${command}`], { stdio: ['ignore', 'ignore', 'pipe'] });
  let text = '';
  child.stderr!.on('data', (data: Buffer) => {
    text += data.toString();
  });
  const ended = new Promise<string>(done => child.on('close', (code, signal) => done(`${signal ?? code} ${text}`)));
  return { child, ended, over: () => child.exitCode !== null || child.signalCode !== null };
}

for (const meta of ['redis', 'postgres'] satisfies MetaKind[])
  test(`${meta}: waiting ends with the program, and with EIO when the time is up`, { skip: lack ?? false }, async t => {
    const network = await startNetwork(meta, 's3');
    if ('missing' in network) return t.skip(network.missing);
    t.after(() => network.close());
    const volume = openVolume({ meta: network.meta!, store: network.store!, mount: ['--attr-cache', '0s'] });
    const at = (name: string): string => join(volume.dir, name);
    try {
      assert.match(
        await start(`sh -c 'mkdir ${at('dir')}; echo old > ${at('file')}; sync ${at('file')}'`).ended,
        /^0 /,
      );
      // One that has a file with new data open: the kernel closes it for the dead.
      const keeper = start(`sh -c 'exec 3>${at('kept')}; echo data >&3; echo > ${at('opened')}; kill -STOP $$'`);
      await until(() => spawnSync('test', ['-e', at('opened')], { timeout: 20_000 }).status === 0, 'a file is open');
      // More than there are slots: what waits for one ends too.
      const commands = [
        `mkdir ${at('made')}`,
        `stat ${at('absent')}`,
        `mv ${at('file')} ${at('moved')}`,
        `touch ${at('new')}`,
        `chmod 600 ${at('file')}`,
        `flock ${at('file')} true`,
        `env UV_THREADPOOL_SIZE=270 ${process.execPath} -e 'for (let i = 0; i < 270; i++) require("fs").stat("${at('absent-')}" + i, () => {})'`,
      ];
      await network.metaProxy!.freeze();
      // Redis answers from its cache until silence makes it doubtful.
      await new Promise(wake => setTimeout(wake, 3500));
      const waiting = commands.map(start);
      await until(
        () => statusOf(volume.dir).mount.waiting! >= 250 || `${statusOf(volume.dir).mount.waiting} wait`,
        'all wait',
      );
      assert.equal(waiting.filter(w => w.over()).length, 0);
      // Ctrl-C, without a handler.
      for (const w of waiting) w.child.kill('SIGINT');
      keeper.child.kill('SIGKILL');
      waiting.push(keeper);
      await until(() => waiting.every(w => w.over()) || `${waiting.filter(w => !w.over()).length} go on`, 'all end');
      for (const [i, w] of waiting.entries()) assert.match(await w.ended, /^SIG(INT|KILL)/, commands[i] ?? '');
      await network.metaProxy!.flow();
      assert.match(await start(`ls -l ${volume.dir}`).ended, /^0 /);

      // The option comes with an upgrade.
      const upgraded = volume.remount(['--wait-timeout', '1s']);
      assert.equal(upgraded.status, 0, upgraded.stderr);
      await network.storeProxy!.rule({ chance: 100, faults: [{ reset: true }], seed });
      assert.match(
        await start(`dd if=/dev/zero of=${at('data')} bs=1k count=1 conv=fsync`).ended,
        /Input\/output error/,
      );
      await network.storeProxy!.rule(undefined);
      await network.metaProxy!.refuse();
      for (const command of [`mkdir ${at('late')}`, `stat ${at('absent')}`])
        assert.match(await start(command).ended, /Input\/output error/);
      await network.metaProxy!.flow();
      await until(() => (statusOf(volume.dir).mount.troubles ?? []).length === 0, 'no trouble');
      // What was acknowledged came through; what was not is there whole or not at all.
      assert.match(await start(`dd if=${at('data')} of=/dev/null bs=1k`).ended, /1\+0 records in/);
      assert.match(await start(`sh -c 'mkdir ${at('late')} || test -d ${at('late')}'`).ended, /^0 /);
    } finally {
      await network.metaProxy!.flow();
      await network.storeProxy!.rule(undefined);
      const fault = volume.close();
      if (fault) abortMount(volume.dir);
      assert.equal(fault, undefined);
    }
  });

/** Opens a file, says so, and writes to it when it is told to. */
const WRITER = `
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print('open', flush=True)
sys.stdin.readline()
try: os.write(file, b'data')
except OSError as e: sys.exit(e.errno)
`;

test('a write that waits for attributes ends with its program, and with EIO when the time is up', {
  skip: lack ?? false,
}, async t => {
  const network = await startNetwork('redis', 'file');
  if ('missing' in network) return t.skip(network.missing);
  t.after(() => network.close());
  const volume = openVolume({ meta: network.meta!, mount: ['--wait-timeout', '5s'] });
  const writers = ['killed', 'late'].map(name =>
    spawn('python3', ['-c', WRITER, join(volume.dir, name)], { stdio: ['pipe', 'pipe', 'inherit'] }),
  );
  try {
    for (const writer of writers) await once(writer.stdout!, 'data');
    // Nothing is known of the files by the service that comes next, and the database does not answer any more.
    const { service } = roles(volume.dir);
    process.kill(service!, 'SIGKILL');
    await until(() => {
      const now = statusOf(volume.dir).mount;
      return now.state === 'serving' && now.service!.pid !== service;
    }, 'another service');
    await network.metaProxy!.freeze();
    const [killed, late] = writers as [(typeof writers)[0], (typeof writers)[0]];
    for (const writer of writers) writer.stdin!.write('\n');
    await until(() => statusOf(volume.dir).mount.waiting! >= 2, 'both wait');
    killed.kill('SIGKILL');
    await until(() => killed.signalCode === 'SIGKILL', 'the end of the one that was killed');
    await until(() => late.exitCode !== null, 'the end of the other one');
    assert.equal(late.exitCode, 5);
  } finally {
    await network.metaProxy!.flow();
    for (const writer of writers) writer.kill('SIGKILL');
    const fault = volume.close();
    if (fault) abortMount(volume.dir);
    assert.equal(fault, undefined);
  }
});

/** Opens a file, writes to it, locks it, says so, and then waits in fsync(2) when it is told to. */
const HOLDER = `
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, b'held')
fcntl.lockf(file, fcntl.LOCK_EX)
print('open', flush=True)
sys.stdin.readline()
os.fsync(file)
`;

for (const [meta, limit] of [
  ['redis', false],
  ['postgres', true],
] as const)
  test(`${meta}: no service can start: waiting ends ${limit ? 'when the time is up' : 'with the program'}`, {
    skip: lack ?? false,
  }, async t => {
    const network = await startNetwork(meta, 'file');
    if ('missing' in network) return t.skip(network.missing);
    t.after(() => network.close());
    const flags = ['--attr-cache', '0s', ...(limit ? ['--wait-timeout', '10s'] : [])];
    const volume = openVolume({ meta: network.meta!, mount: flags });
    const at = (name: string): string => join(volume.dir, name);
    const state = (): string => statusOf(volume.dir).mount.state;
    const holder = spawn('python3', ['-c', HOLDER, at('held')], { stdio: ['pipe', 'pipe', 'ignore'] });
    const held = once(holder, 'close');
    try {
      await once(holder.stdout!, 'data');
      await (limit ? network.metaProxy!.freeze() : network.metaProxy!.refuse());
      holder.stdin!.write('\n');
      const taken = [`mkdir ${at('made')}`, `stat ${at('absent')}`].map(start);
      await until(
        () => statusOf(volume.dir).mount.waiting! >= 3 || `${statusOf(volume.dir).mount.waiting} wait`,
        'all wait',
      );
      process.kill(roles(volume.dir).service!, 'SIGKILL');
      await until(() => state() === 'waiting' || state(), 'nobody serves');
      const programs = [...taken, start(`mkdir ${at('late')}`)];
      if (!limit) {
        for (const program of programs) program.child.kill('SIGKILL');
        holder.kill('SIGKILL');
      }
      await until(
        () => (programs.every(p => p.over()) && (holder.exitCode ?? holder.signalCode) !== null) || 'some go on',
        'all end',
      );
      for (const program of programs) assert.match(await program.ended, limit ? /Input\/output error/ : /^SIGKILL/);
      assert.deepEqual(await held, limit ? [1, null] : [null, 'SIGKILL']);
      assert.equal(state(), 'waiting');
      await network.metaProxy!.flow();
      await until(() => state() === 'serving' || state(), 'a service');
      // The data that was acknowledged, and no lock that nobody has.
      assert.match(await start(`grep -qx held ${at('held')}`).ended, /^0 /);
      const next = spawn('python3', ['-c', HOLDER, at('held')], { stdio: ['pipe', 'pipe', 'inherit'] });
      next.stdin.end('\n');
      assert.deepEqual(await once(next, 'close'), [0, null]);
    } finally {
      await network.metaProxy!.flow();
      holder.kill('SIGKILL');
      const fault = volume.close();
      if (fault) abortMount(volume.dir);
      assert.equal(fault, undefined);
    }
  });

test('a mount that ends while its database is gone: the processes end, the session is left to expire', {
  skip: lack ?? false,
}, async t => {
  const network = await startNetwork('redis', 'file');
  if ('missing' in network) return t.skip(network.missing);
  t.after(() => network.close());
  const volume = openVolume({ meta: network.meta! });
  try {
    assert.match(await start(`sh -c 'echo data >${join(volume.dir, 'f')}'`).ended, /^0 /);
    await network.metaProxy!.refuse();
    // (The command waits for the processes.)
    const { status, stderr } = await runClientLater('steadfs', ['umount', volume.dir]);
    assert.equal(status, 0, stderr);
    await until(() => volume.processes().length === 0, 'no process is left');
    assert.match(readFileSync(join(volume.base, 'log'), 'utf8'), /session \d+ is left to expire/);
  } finally {
    await network.metaProxy!.flow();
    volume.close();
  }
});

test('a mount that ends while its database is gone and its service was killed: what was written is stored at last', {
  skip: lack ?? false,
}, async t => {
  const network = await startNetwork('redis', 'file');
  if ('missing' in network) return t.skip(network.missing);
  t.after(() => network.close());
  const volume = openVolume({ meta: network.meta! });
  const file = join(volume.dir, 'f');
  const writer = spawn('python3', ['-c', HOLDER, file], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = once(writer, 'close');
  try {
    await once(writer.stdout!, 'data');
    await network.metaProxy!.refuse();
    writer.stdin!.write('\n');
    await until(() => statusOf(volume.dir).mount.waiting! > 0, 'the fsync');
    process.kill(roles(volume.dir).service!, 'SIGKILL');
    await until(() => statusOf(volume.dir).mount.state === 'waiting', 'nobody serves');
    writer.kill('SIGKILL');
    await ended;
    const unmounting = runClientLater('steadfs', ['umount', volume.dir]);
    await until(() => mountOf(volume.dir) === undefined, 'it is unmounted');
    // Some attempts fail.
    await new Promise(wake => setTimeout(wake, 3000));
    await network.metaProxy!.flow();
    await unmounting;
    await until(() => volume.processes().length === 0, 'no process is left');
    const again = openVolume({ base: volume.base, meta: network.meta!, format: 'there' });
    assert.match(await start(`grep -qx held ${join(again.dir, 'f')}`).ended, /^0 /);
  } finally {
    await network.metaProxy!.flow();
    writer.kill('SIGKILL');
    volume.close();
  }
});

for (const meta of META_KINDS.filter(k => k !== 'sqlite') satisfies MetaKind[])
  test(`${meta} and S3: nothing fails, nothing is wrong, seed ${seed}`, { skip: lack ?? false }, async t => {
    const report = await faultRun({
      meta,
      store: 's3',
      seed,
      count: full ? 200 : 5,
      ms: full ? 20_000 : 1500,
      ...(full ? {} : { random: true, programs: ['mutations', 'buffered', 'held', 'flock', 'posix'] }),
    });
    if ('missing' in report) return t.skip(report.missing);
    t.diagnostic(describeFaults(report));
    assert.equal(report.failed + report.wrong + report.faults.length, 0, describeFaults(report));
  });
