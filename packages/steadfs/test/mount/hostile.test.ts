// timeout: 240
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
  ['handles', 'files opened by handle, as NFS does', '0'],
  ['interrupted', 'signals at every moment', '0', String(full ? 2000 : 50)],
  ['descriptors', 'a descriptor under way in a socket', '0'],
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

/** Runs a shell script with `$0` as its folder; what it says. */
async function script(text: string, dir: string): Promise<string> {
  return start('sh', ['-c', text, dir]).ended;
}

test('128 writers of one file', { skip }, async t => {
  const text = `i=0; while [ $i -lt 128 ]; do (j=0; while [ $j -lt 10 ]; do echo "line $i" >> "$0/file"; j=$((j+1)); done) & i=$((i+1)); done; wait
    sort "$0/file" | uniq -c | awk '$1 != 10 || NF != 3 {wrong++} END {print NR, wrong + 0}'`;
  t.diagnostic(await beside('writers', async dir => assert.equal(await script(text, dir), '0: 128 0\n')));
});

test('an overlay over it, and an overlay in it', { skip }, async t => {
  const text = `set -e; cd "$0"; mkdir lower lower/d up work local merged; echo low > lower/d/f
    mount -t tmpfs none local; mkdir local/up local/work local/d; echo low > local/d/f
    check() { echo more >> d/f; cat d/f; mv d/f d/g; rm -r d; mkdir d; touch d/h; ln d/h i; ls d; }
    mount -t overlay o -o lowerdir=lower,upperdir=local/up,workdir=local/work merged; (cd merged; check); umount merged
    mount -t overlay o -o lowerdir=local/d,upperdir=up,workdir=work merged; (cd merged; mkdir d; mv f d; check; ls); umount merged; umount local; ls up lower`;
  // Its mounts go with the namespace. The f in the upper folder is a whiteout.
  const run = `exec unshare -m sh -c '${text}' "$0"`;
  t.diagnostic(
    await beside('overlay', async dir => {
      const said = await script(run, dir);
      if (/unknown filesystem type|permission denied|not permitted/i.test(said)) return t.skip(said);
      assert.equal(said, '0: low\nmore\nh\nlow\nmore\nh\nd\ni\nlower:\nd\n\nup:\nd\nf\ni\n');
    }),
  );
});

test('programs that are run from the mount, and bound directories, while the service is replaced', {
  skip,
}, async t => {
  const text = `cd "$0"; cp "$(command -v sh)" shell; mkdir in out; echo bound > in/file
    unshare -m sh -c 'mount --bind in out; i=0; while [ $i -lt 150 ]; do ./shell -c "read -r w < out/file; echo \\$w" || echo failed; i=$((i+1)); done' | sort | uniq -c`;
  t.diagnostic(
    await beside('programs', async dir => {
      const said = script(text, dir);
      const { status, stderr } = await volume!.remountLater();
      assert.equal(status, 0, stderr);
      assert.match(await said, /^0: +150 bound\n$/);
    }),
  );
});

test('a mount that a namespace holds, and one that is detached under load', { skip }, async () => {
  const other = openVolume();
  try {
    const held = start('unshare', [
      '-m',
      'sh',
      '-c',
      'cd "$0"; echo held; read go; echo data > late && cat late; ls',
      other.dir,
    ]);
    await once(held.child.stdout!, 'data');
    assert.equal(spawnSync('umount', [other.dir], { timeout: 60_000 }).status, 0);
    assert.equal(mountOf(other.dir), undefined);
    held.child.stdin?.end('\n');
    assert.equal(await held.ended, '0: held\ndata\nlate\n');
    await until('the service ends with the namespace', () => other.processes().length === 0);
    assert.equal(other.remount().status, 0);
    const load = `cd "$0"; echo begun; for j in 1 2 3; do (i=0; while [ $i -lt 100 ]; do echo $i > f$j.$i; mv f$j.$i g$j.$i; i=$((i+1)); done) & done; wait; ls | grep -c '^g'`;
    const working = start('sh', ['-c', load, other.dir]);
    await once(working.child.stdout!, 'data');
    assert.equal(spawnSync('umount', ['-l', other.dir], { timeout: 60_000 }).status, 0);
    assert.equal(await working.ended, '0: begun\n300\n');
    await until('the service ends with its last user', () => other.processes().length === 0);
    assert.equal(other.remount().status, 0);
  } finally {
    assert.equal(other.close(), undefined);
  }
});
