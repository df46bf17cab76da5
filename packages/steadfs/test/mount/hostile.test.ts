// timeout: 150
/**
 * Hostile and broken programs harm only themselves: while each is at work a neighbour's calls are answered, and rightly. `STEADFS_FULL=1`: 120,000 open
 * files, 2,000 blocked locks, a directory of 200,000 entries, 1,000 processes.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { abortMount, missing, mountOf, openVolume, type Volume } from '../support/volume.ts';

const lack = missing('steadfs');
const skip = lack ?? (process.getuid?.() === 0 ? false : 'it needs root (limits, waiting requests)');
const full = process.env.STEADFS_FULL === '1';
const PROGRAMS = join(import.meta.dirname, 'hostile.ts');
const LIMIT_MS = full ? 120_000 : 40_000;
let volume: Volume | undefined;

before(() => {
  if (!skip) volume = openVolume({ mount: ['--enable-xattr'] });
});
after(() => {
  const fault = volume?.close();
  assert.equal(fault, undefined);
});

/** A program, its words on stderr, and its end, for which it has a limited time. */
function start(command: string, args: string[]): { child: ChildProcess; ended: Promise<string> } {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
  let text = '';
  child.stderr?.on('data', d => {
    text += d;
  });
  child.stdout?.on('data', d => {
    text += d;
  });
  const timer = setTimeout(() => {
    text += `no end after ${LIMIT_MS} ms`;
    process.kill(-child.pid!, 'SIGKILL');
    abortMount(volume!.dir);
  }, LIMIT_MS);
  const ended = once(child, 'close').then(([code, signal]: unknown[]) => {
    clearTimeout(timer);
    return `${code ?? signal}${text === '' ? '' : `: ${text}`}`;
  });
  return { child, ended };
}

/** Runs `hostile` in a folder of its own beside a neighbour in another. */
async function beside(name: string, hostile: (dir: string) => Promise<void>): Promise<string> {
  const dir = join(volume!.dir, name);
  const home = join(volume!.dir, `${name}-neighbour`);
  assert.equal(spawnSync('mkdir', [dir, home], { timeout: 20_000 }).status, 0);
  const { child, ended } = start(process.execPath, [PROGRAMS, 'neighbour', home]);
  try {
    await Promise.race([once(child.stdout!, 'data'), ended]);
    await hostile(dir);
  } finally {
    child.stdin?.end();
  }
  const said = await ended;
  assert.match(said, /^0: begun\n\d+ rounds/);
  const removed = spawnSync('rm', ['-rf', dir, home], { timeout: 60_000, encoding: 'utf8' });
  assert.equal(removed.status, 0, removed.stderr);
  return said.split('\n')[1]!;
}

const program = (name: string, dir: string, ...more: string[]): Promise<string> =>
  start(process.execPath, [PROGRAMS, name, dir, ...more]).ended;

for (const [name, what, end, ...more] of [
  ['offsets', 'offsets up to 2^63', '0'],
  ['attributes', 'extended attributes at their limits', '0'],
  ['entries', 'a large directory and a tiny buffer', '0', String(full ? 200_000 : 4000)],
  ['beyondTheEnd', 'a mapping beyond the end of its file', 'SIGBUS'],
] as const)
  test(what, { skip }, async t =>
    t.diagnostic(await beside(name, async dir => assert.equal(await program(name, dir, ...more), end))),
  );

test('many open files, their processes killed', { skip }, async t => {
  const count = full ? 120_000 : 15_000;
  const wanted = `ulimit -n ${count + 1000} 2>/dev/null || ulimit -n $(ulimit -H -n)`;
  const most = Number(spawnSync('sh', ['-c', `${wanted}; ulimit -n`], { encoding: 'utf8' }).stdout) - 100;
  const processes = Math.ceil(count / most);
  t.diagnostic(
    await beside('openFiles', async dir => {
      const each = String(Math.ceil(count / processes));
      const args = ['-c', `${wanted}; exec "$0" "$@"`, process.execPath, PROGRAMS, 'openFiles', dir, each];
      const ended = Array.from({ length: processes }, () => start('sh', args).ended);
      assert.deepEqual(new Set(await Promise.all(ended)), new Set(['SIGKILL']));
    }),
  );
});

test('many processes with small requests, killed in the middle', { skip }, async t => {
  const script = `i=0; while [ $i -lt ${full ? 1000 : 200} ]; do
    (while true; do true > "$0/s$i"; [ -s "$0/s$i" ]; true < "$0/s$i"; true < "$0/none"; done 2>/dev/null) & i=$((i+1)); done; echo all; wait`;
  t.diagnostic(
    await beside('requests', async dir => {
      const { child, ended } = start('sh', ['-c', script, dir]);
      await once(child.stdout!, 'data');
      await sleep(2000);
      process.kill(-child.pid!, 'SIGKILL');
      assert.match(await ended, /^SIGKILL/);
    }),
  );
});

/** Requests of the mount that wait for an answer. */
const waiting = (): number =>
  Number(readFileSync(`/sys/fs/fuse/connections/${mountOf(volume!.dir)!.minor}/waiting`, 'utf8'));

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const end = Date.now() + LIMIT_MS; !holds(); await sleep(50)) assert.ok(Date.now() < end, what);
}

test('many blocked locks: killed or granted', {
  skip: skip || (spawnSync('flock', ['-V']).error ? 'flock is missing' : false),
}, async t => {
  const count = full ? 2000 : 300;
  t.diagnostic(
    await beside('locks', async dir => {
      const file = join(dir, 'locked');
      const holder = start('flock', [file, 'sh', '-c', 'echo held; read go']);
      await once(holder.child.stdout!, 'data');
      // Two groups of waiters, one of which is killed.
      const script = `i=0; while [ $i -lt ${count / 2} ]; do flock "$0" true & i=$((i+1)); done; wait`;
      const [killed, granted] = [start('sh', ['-c', script, file]), start('sh', ['-c', script, file])];
      await until('all wait', () => waiting() >= count);
      process.kill(-killed.child.pid!, 'SIGKILL');
      assert.match(await killed.ended, /^SIGKILL/);
      await until('the killed ones are gone', () => waiting() < count / 2 + 20);
      holder.child.stdin?.end('\n');
      assert.equal(await holder.ended, '0: held\n');
      assert.equal(await granted.ended, '0');
    }),
  );
});
