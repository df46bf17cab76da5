// timeout: 180
/** What operators do to a host under live mounts: folders that go away, mounts that are moved, bound and covered. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { steadfs } from '../commands/cli-process.ts';
import { abortMount, missing, mountOf, processesWith } from '../support/volume.ts';

const root = process.getuid!() === 0;
const skip = missing('steadfs') ?? (root ? false : 'needs root');
const folder = mkdtempSync(join(tmpdir(), 'steadfs-operator-'));
const url = `sqlite3://${folder}/v.db`;
const points: string[] = [];

interface Mount {
  state: string;
  message?: string;
  service?: { pid: number };
  keeper?: { pid: number };
  takeovers: { why: string }[];
}

/** Touches mounts: never this process itself. */
function sh(script: string): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync('sh', ['-c', script], {
    encoding: 'utf8',
    timeout: 60_000,
    killSignal: 'SIGKILL',
    cwd: folder,
  });
  return { status, output: stdout + stderr };
}

async function ok(args: readonly string[], env: Record<string, string> = {}) {
  const result = await steadfs(args, { env, limit: 120_000 });
  assert.equal(result.status, 0, `steadfs ${args.join(' ')}\n${result.stderr}`);
  return result;
}

function point(name: string): string {
  const path = join(folder, name);
  mkdirSync(path, { recursive: true });
  points.push(path);
  return path;
}

/** Mounts at a new mount point of this name, with a file `f` in it. */
async function mounted(name: string, flags: readonly string[] = [], env: Record<string, string> = {}): Promise<string> {
  const path = point(name);
  await ok(['mount', '-d', '--metrics', '', '--log', join(folder, 'steadfs.log'), url, path, ...flags], env);
  assert.deepEqual(sh(`echo there > '${path}/f'`), { status: 0, output: '' });
  return path;
}

async function stateOf(path: string): Promise<Mount> {
  return (JSON.parse((await ok(['status', path])).stdout) as { mount: Mount }).mount;
}

async function until<T>(what: string, look: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  for (let i = 0; i < 600; i++) {
    const found = await look();
    if (found) return found;
    await sleep(100);
  }
  throw new Error(`not within a minute: ${what}`);
}

/** kill -9 of the service; then the mount has to answer. */
async function killService(path: string): Promise<void> {
  process.kill((await stateOf(path)).service!.pid, 'SIGKILL');
  assert.deepEqual(sh(`cat '${path}/f'`), { status: 0, output: 'there\n' });
}

before(async () => {
  if (!skip) await ok(['format', url, 'vol', '--bucket', join(folder, 'objects'), '--trash-days', '0']);
});

after(() => {
  for (const path of points.reverse()) abortMount(path);
  rmSync(folder, { recursive: true, force: true });
});

test('service and keeper come back when the folder of the log is gone', { skip, timeout: 170_000 }, async () => {
  const logs = join(folder, 'logs');
  const path = await mounted('log', ['--log', join(logs, 'log')]);
  const { service } = await stateOf(path);
  rmSync(logs, { recursive: true });
  sh('touch logs');
  process.kill(service!.pid, 'SIGHUP'); // as logrotate does
  await killService(path);
  const before = (await stateOf(path)).keeper!.pid;
  process.kill(before, 'SIGKILL');
  await until('another keeper', async () => {
    const { keeper } = await stateOf(path);
    return keeper && keeper.pid !== before;
  });
  await ok(['umount', path]);
});

test('Node and its installation go away, and the service is killed', { skip, timeout: 170_000 }, async t => {
  const node = join(folder, 'installed/node');
  mkdirSync(join(folder, 'installed'));
  try {
    linkSync(process.execPath, node);
  } catch {
    return t.skip('the temporary folder is another file system than Node’s');
  }
  const env = { STEADFS_NODE: node, STEADFS_RUNTIME_DIR: join(folder, 'runtime') };
  const path = await mounted('node', [], env);
  rmSync(join(folder, 'installed'), { recursive: true });
  await killService(path);
  await ok(['umount', path]);

  // A crash of the machine may leave empty files behind names.
  const copy = readdirSync(env.STEADFS_RUNTIME_DIR).find(name => !name.startsWith('node-'))!;
  truncateSync(join(env.STEADFS_RUNTIME_DIR, copy, 'steadfs.mjs'));
  await ok(['umount', await mounted('node', [], { STEADFS_RUNTIME_DIR: env.STEADFS_RUNTIME_DIR })]);
});

test('a mount that was moved is the same mount; one that is bound or in a namespace stays', {
  skip,
  timeout: 170_000,
}, async () => {
  // Mounts below shared ones cannot be moved.
  const place = point('private');
  assert.equal(sh(`mount --bind '${place}' '${place}' && mount --make-private '${place}'`).status, 0);
  const from = await mounted('private/from');
  const to = point('private/to');
  assert.deepEqual(sh(`mount --move '${from}' '${to}'`), { status: 0, output: '' });
  await killService(to);
  const { stdout } = await ok(['mount', '-d', '--metrics', '', '--log', join(folder, 'steadfs.log'), url, to]);
  assert.match(stdout, /was upgraded/);
  const { service, keeper } = await stateOf(to);

  const bound = point('private/bound');
  assert.equal(sh(`mount --bind '${to}' '${bound}'`).status, 0);
  assert.equal((await stateOf(bound)).service!.pid, service!.pid);
  assert.match((await ok(['umount', bound])).stderr, /WARNING: .*private\/to as well/);

  const other = spawn('unshare', ['-m', '--propagation', 'private', 'sh', '-c', 'echo; read x'], {
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  try {
    await new Promise(resolve => other.stdout.once('data', resolve));
    assert.match((await ok(['umount', to])).stderr, /WARNING: .*in the mount namespace of sh/);
    assert.ok(existsSync(`/proc/${service!.pid}`));
  } finally {
    other.stdin.end();
  }
  await until('the end of the service and its keeper', () => {
    const left = processesWith(from);
    return !left.includes(service!.pid) && !left.includes(keeper!.pid);
  });
});

test('SIGTERM never takes down the mount that covers ours', { skip, timeout: 170_000 }, async () => {
  const log = join(folder, 'covered.log');
  const path = await mounted('covered', ['--log', log]);
  const lower = await stateOf(path);
  const minor = mountOf(path)!.minor;
  await mounted('covered', ['--over-mount']);
  const upper = await stateOf(path);
  assert.notEqual(upper.service!.pid, lower.service!.pid);
  process.kill(lower.service!.pid, 'SIGTERM');
  await until('the refusal in the log', () =>
    /unmounting failed: .*covered by another/.test(readFileSync(log, 'utf8')),
  );
  assert.notEqual(mountOf(path)!.minor, minor);
  assert.equal((await stateOf(path)).service!.pid, upper.service!.pid);
  await ok(['umount', path]);
  process.kill(lower.service!.pid, 'SIGTERM');
  await until('the end of the lower one', () => mountOf(path) === undefined);
});

test('the control socket is made again when its folder was removed; no signal opens a debugger or ends it', {
  skip,
  timeout: 170_000,
}, async () => {
  const path = await mounted('socket');
  const device = `0-${mountOf(path)!.minor}`;
  const directory = join('/run/steadfs', device);
  assert.deepEqual(readdirSync(directory), ['control'], basename(directory));
  rmSync(directory, { recursive: true });
  const { pid } = (await stateOf(path)).service!;
  for (const signal of ['SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGPWR', 'SIGHUP'] as const) process.kill(pid, signal);
  await until('the socket', () => existsSync(join(directory, 'control')));
  assert.equal((await stateOf(path)).service!.pid, pid);
  await ok(['umount', path]);
  assert.doesNotMatch(readFileSync(join(folder, 'steadfs.log'), 'utf8'), /Debugger/);
});
