// timeout: 400
// alone
/**
 * Upgrades that go wrong, each in its own way and at its own step, on a real mount under work: the mount is served every time, no call of the mix fails, the command says
 * what happened. A few by default; all with STEADFS_FULL=1. STEADFS_ONLY=REGEX chooses.
 */
import assert from 'node:assert/strict';
import { cpSync, globSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { abortMount, missing, openVolume, processesWith, type Volume } from '../support/volume.ts';
import { faultBundle, Mix, remount, statusOf, until } from './faults.ts';
import { inspectVolume } from './inspect.ts';

const full = process.env.STEADFS_FULL === '1';
const only = process.env.STEADFS_ONLY && new RegExp(process.env.STEADFS_ONLY);
const lack = missing('steadfs') ?? (process.getuid?.() === 0 ? undefined : 'needs root');
/** Seconds that a command waits for a new service that hangs; STEADFS_PATIENCE on a very busy machine. */
const PATIENCE = Number(process.env.STEADFS_PATIENCE ?? 8);

interface Row {
  what: string;
  /** Lines for the fault file. */
  arm?: string[];
  /** Does something to the mount before the command, or while it runs. Answers what puts it right again. */
  meanwhile?(): Promise<(() => void) | undefined> | undefined;
  /** What the command says; it ends with a code other than 0 then, and the old service serves. Without: the new one serves, and the code is 0. */
  says?: RegExp;
  /** Bundle of the command and the new service. */
  bundle?: () => string;
  short?: boolean;
}

let volume: Volume;
let faults: Awaited<ReturnType<typeof faultBundle>>;
let scratch: string;
let mix: Mix;

function isStopped(pid: number): boolean {
  try {
    return / T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false; // ended meanwhile
  }
}

const NEW = 'adopt.before-prepare:upgrade';
const rows: Row[] = [];
const add = (row: Row): void => {
  rows.push(row);
};

// ── the new service, before the commit: the old one goes on as if nothing had been
for (const [action, says] of [
  ['kill', /ended before it served \(killed by SIGKILL\)/],
  ['segv', /ended before it served \(killed by SIGSEGV\)/],
  ['abort', /ended before it served \(killed by SIGABRT\)/],
  ['throw', /fault at adopt\.before-prepare/],
  ['reject-later', /ended before it served \(exit code 1\)|fault after/],
  ['exit:0', /ended before it served \(exit code 0\)/],
  ['exit:1', /ended before it served \(exit code 1\)/],
  ['exit:75', /ended before it served \(exit code 75\)/],
  ['exit:78', /ended before it served \(exit code 78\)/],
  ['hang', /not ready after \d+ s/],
  ['stop', /not ready after \d+ s/],
] as const)
  add({ what: `new: ${action} while it gets warm`, arm: [`${action} ${NEW}`], says, short: action === 'segv' });
for (const point of [
  'adopt.begun:upgrade',
  'adopt.before-map:upgrade',
  'adopt.prepared:upgrade',
  'upgrade.before-yield',
])
  for (const [action, says] of [
    ['kill', /killed by SIGKILL/],
    ['hang', /not ready after \d+ s/],
  ] as const)
    add({ what: `new: ${action} at ${point}`, arm: [`${action} ${point}`], says });
for (const point of ['upgrade.yielded', 'upgrade.committed', 'upgrade.before-kill', 'upgrade.keeper-killed'])
  for (const action of ['kill', 'throw', 'hang', 'stop'] as const)
    add({
      what: `new: ${action} at ${point}: the old one goes on after it has yielded`,
      arm: [`${action} ${point}`],
      says: { kill: /ended before it served/, throw: /fault at upgrade/, hang: /not ready/, stop: /not ready/ }[action],
      short: point === 'upgrade.keeper-killed' && action === 'kill',
    });

// ── the new service, behind the commit: its keeper starts another
for (const point of ['upgrade.old-dead', 'adopt.recorded:upgrade', 'adopt.assembled', 'adopt.before-serving:upgrade'])
  for (const action of ['kill', 'throw', 'exit:0', 'exit:75', 'hang'] as const)
    add({
      what: `new: ${action} at ${point}: another one takes its place`,
      arm: [`${action} ${point}`],
      short: point === 'upgrade.old-dead' && action === 'kill',
    });

// ── what it needs is not there
add({
  what: 'new: the database has gone',
  arm: [`stop ${NEW}`],
  says: /cannot open the database|holds no volume|no such file|ENOENT/i,
  short: true,
  async meanwhile() {
    const pid = await until('the new service stops', () => processesWith(volume.dir).find(isStopped));
    const path = `${volume.base}/meta.db`;
    for (const end of ['', '-wal', '-shm']) renameSync(path + end, `${path}.away${end}`);
    process.kill(pid, 'SIGCONT');
    return () => {
      for (const end of ['', '-wal', '-shm']) {
        rmSync(path + end, { force: true });
        renameSync(`${path}.away${end}`, path + end);
      }
    };
  },
});
add({
  what: 'new: it cannot read the capsule',
  says: /cannot adopt the mount: the capsule has a section "vfs\.items" that this version does not know/,
  short: true,
  bundle() {
    // Beside the other one: libraries are found from there.
    const from = join(process.env.STEADFS!.split(' ').at(-1)!, '..');
    const copy = `${from}-older`;
    rmSync(copy, { recursive: true, force: true });
    cpSync(from, copy, { recursive: true });
    let replaced = 0;
    for (const file of globSync('*.mjs', { cwd: copy })) {
      const text = readFileSync(join(copy, file), 'utf8');
      const changed = text.replaceAll('{name:"vfs.items",version:1}', '{name:"vfs.other",version:1}');
      if (changed !== text) replaced++;
      writeFileSync(join(copy, file), changed);
    }
    assert.ok(replaced > 0, 'a bundle that lacks a section');
    return join(copy, 'steadfs.mjs');
  },
});

// ── the old service in the middle of it: the new one takes over all the same
for (const point of ['control.asked', 'control.gave-fds', 'yield.asked', 'yield.done', 'control.before-answer'])
  for (const action of ['kill', 'segv', 'hang', 'stop', 'throw', 'exit:0', 'exit:1', 'exit:75', 'exit:78'] as const)
    add({
      what: `old: ${action} at ${point}`,
      arm: [`${action} ${point}`],
      short: point === 'yield.done' && (action === 'exit:0' || action === 'kill'),
    });
add({
  what: 'old: stopped before',
  async meanwhile() {
    process.kill(statusOf(volume.dir).service!.pid, 'SIGSTOP');
    return undefined;
  },
});
add({
  what: 'old: its control socket is gone',
  async meanwhile() {
    for (const path of globSync('/run/steadfs/*/control')) {
      const device = path.split('/').at(-2)!.replace('-', ':');
      if (
        readFileSync('/proc/self/mountinfo', 'utf8')
          .split('\n')
          .some(l => l.includes(` ${device} `) && l.includes(volume.dir))
      )
        rmSync(path);
    }
    return undefined;
  },
});

before(async () => {
  if (lack) return;
  scratch = mkdtempSync(join(tmpdir(), 'steadfs-rollback-'));
  faults = await faultBundle(scratch);
  volume = openVolume({ format: ['--trash-days', '0', '--block-size', '64K'], mount: ['--enable-xattr'] });
  mix = new Mix(volume.dir);
  await mix.ask('run');
});

let broken = false;
after(async () => {
  if (lack) return;
  const faultsFound: string[] = [];
  try {
    faults.arm();
    if (!broken) await mix.ask('end');
  } finally {
    mix.end();
    if (broken) abortMount(volume.dir);
    const fault = volume.close({ keep: true });
    if (fault) faultsFound.push(fault);
    else if (!broken) faultsFound.push(...inspectVolume(volume.base));
    if (broken || faultsFound.length > 0)
      console.log(readFileSync(join(volume.base, 'log'), 'utf8').split('\n').slice(-60).join('\n'));
    rmSync(scratch, { recursive: true, force: true });
    rmSync(volume.base, { recursive: true, force: true });
  }
  assert.deepEqual(faultsFound, []);
});

for (const row of rows.filter(r => (only ? only.test(r.what) : full || r.short)))
  test(row.what, { skip: lack ?? false, timeout: 120_000 }, async t => {
    if (broken) return t.skip('the mount broke before');
    const old = statusOf(volume.dir);
    const environment = process.env.STEADFS!;
    let right: (() => void) | undefined;
    let served = false;
    try {
      if (row.bundle) process.env.STEADFS = [...environment.split(' ').slice(0, -1), row.bundle()].join(' ');
      // Patience costs time where something hangs, and is needed on a busy machine where nothing does.
      process.env.JFS_MOUNT_TIMEOUT = String(
        row.arm?.some(l => /^(hang|stop) (adopt|upgrade)/.test(l)) ? PATIENCE : 60,
      );
      if (!row.arm) await row.meanwhile?.();
      faults.arm(...(row.arm ?? []));
      const command = remount(volume, ['--enable-xattr']);
      const round = mix.ask('run');
      round.catch(() => {});
      if (row.arm) right = await row.meanwhile?.();
      const result = await command;
      await round;
      const now = await until('the mount is served', () => {
        const s = statusOf(volume.dir);
        return s.state === 'serving' && s.keeper && s;
      });
      served = true;
      assert.equal(faults.left(), '', 'the fault has happened');
      if (row.says) {
        assert.notEqual(result.status, 0, result.output);
        assert.match(result.output, row.says);
        assert.match(result.output, /goes on as it was, the upgrade was given up/);
        assert.equal(now.service!.pid, old.service!.pid, 'the old service goes on');
      } else {
        assert.equal(result.status, 0, result.output);
        assert.notEqual(now.service!.pid, old.service!.pid, 'a new service');
      }
      t.diagnostic(result.output.trim());
    } finally {
      broken = !served;
      process.env.STEADFS = environment;
      faults.arm();
      right?.();
    }
  });
