/**
 * Fresh volumes on a mount of their own, by Steadfs's command line or by the Go client's (`juicefs` on PATH): what the suites, the
 * benchmarks and the tests of a live mount run on. Nothing here touches a mounted path, so a hung mount cannot hang the caller.
 */
import { execFile, type SpawnSyncReturns, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const repository = resolve(import.meta.dirname, '../../../..');

export type Client = 'steadfs' | 'juicefs';

export interface VolumeOptions {
  client?: Client;
  /** Flags of `format`, such as ['--trash-days', '0'], which is the default; 'there': the volume exists, mount it once more. */
  format?: string[] | 'there';
  /** Its name; `judged` otherwise. */
  name?: string;
  /** Flags of `mount`. */
  mount?: string[];
  /** Where database, objects, log and mount point go; a new folder below the system's temporary folder otherwise. */
  base?: string;
  /** Metadata URL; SQLite in the base otherwise. */
  meta?: string;
  /** Flags of `format` that name the store; a directory in the base otherwise. */
  store?: string[];
}

export interface Volume {
  client: Client;
  /** The mount point. */
  dir: string;
  base: string;
  meta: string;
  /** Service and keeper (or the Go client's two): every process with the mount point in its command line. */
  processes(): number[];
  /** `mount` again on the live mount: a smooth upgrade. */
  remount(extra?: string[]): SpawnSyncReturns<string>;
  /** The command line of `remount`, for those who cannot stand still meanwhile. */
  remountCommand: string[];
  /** The same without blocking the caller's loop. */
  remountLater(extra?: string[]): Promise<Ended>;
  /** Unmounts (by force when the command fails), says what went wrong, removes the base. */
  close(options?: { keep?: boolean }): string | undefined;
}

/** Why a client cannot be run here; undefined when it can. */
export function missing(client: Client): string | undefined {
  if (!existsSync('/dev/fuse')) return '/dev/fuse is missing';
  if (client === 'steadfs') return undefined;
  return spawnSync('juicefs', ['version']).error ? 'juicefs is not on PATH' : undefined;
}

/** The command that starts a client: $STEADFS (split at blanks) or the checkout's launcher. */
export function clientCommand(client: Client): string[] {
  if (client === 'juicefs') return ['juicefs'];
  return process.env.STEADFS?.split(' ') ?? [join(repository, 'packages/steadfs/bin/steadfs')];
}

export function runClient(client: Client, args: string[], timeout = 60_000): SpawnSyncReturns<string> {
  const [program, ...first] = clientCommand(client);
  return spawnSync(program!, [...first, ...args], {
    encoding: 'utf8',
    timeout,
    killSignal: 'SIGKILL',
    env: { ...process.env, STEADFS_NODE: process.env.STEADFS_NODE ?? process.execPath },
  });
}

export interface Ended {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export function runClientLater(client: Client, args: string[], timeout = 60_000): Promise<Ended> {
  const [program, ...first] = clientCommand(client);
  return new Promise(resolve => {
    const child = execFile(
      program!,
      [...first, ...args],
      {
        encoding: 'utf8',
        timeout,
        killSignal: 'SIGKILL',
        env: { ...process.env, STEADFS_NODE: process.env.STEADFS_NODE ?? process.execPath },
      },
      (_, stdout, stderr) => resolve({ status: child.exitCode, signal: child.signalCode, stdout, stderr }),
    );
  });
}

/** The row of /proc/self/mountinfo of a mount point: device number and type. The last one counts. */
export function mountOf(dir: string): { minor: string; type: string } | undefined {
  let found: { minor: string; type: string } | undefined;
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [left = '', right = ''] = line.split(' - ');
    const fields = left.split(' ');
    const point = fields[4]?.replace(/\\([0-7]{3})/g, (_, octal: string) =>
      String.fromCharCode(Number.parseInt(octal, 8)),
    );
    if (point === dir) found = { minor: fields[2]!.split(':')[1]!, type: right.split(' ')[0]! };
  }
  return found;
}

/** Aborts the FUSE connection of a mount and unmounts it lazily: whatever hangs on it gets ENOTCONN. */
export function abortMount(dir: string): void {
  for (let i = 0; i < 5; i++) {
    const mount = mountOf(dir);
    if (!mount) return;
    if (mount.type.startsWith('fuse')) {
      const control = `/sys/fs/fuse/connections/${mount.minor}/abort`;
      if (!existsSync('/sys/fs/fuse/connections') || readdirSync('/sys/fs/fuse/connections').length === 0)
        spawnSync('mount', ['-t', 'fusectl', 'fusectl', '/sys/fs/fuse/connections']);
      if (existsSync(control)) writeFileSync(control, '1');
    }
    spawnSync('umount', ['-l', dir], { timeout: 10_000, killSignal: 'SIGKILL' });
  }
}

/** Ids of the processes whose command line contains the word as an argument (or a part of one), zombies and ourselves left out. */
export function processesWith(word: string): number[] {
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter(name => {
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'latin1').includes(word);
      } catch {
        return false; // ended meanwhile
      }
    })
    .map(Number);
}

export function openVolume(options: VolumeOptions = {}): Volume {
  const client = options.client ?? 'steadfs';
  const base = options.base ?? mkdtempSync(join(tmpdir(), `${client}-volume-`));
  chmodSync(base, 0o711); // other users' programs reach the mount point
  const dir = join(base, 'mnt');
  const meta = options.meta ?? `sqlite3://${base}/meta.db`;
  mkdirSync(dir, { recursive: true });
  mkdirSync(join(base, 'objects'), { recursive: true });
  const mountArgs = [
    'mount',
    '-d',
    '--log',
    join(base, 'log'),
    '--no-usage-report',
    ...(options.mount ?? []),
    meta,
    dir,
  ];
  if (client === 'steadfs') mountArgs.splice(mountArgs.indexOf('--no-usage-report'), 1);
  else mountArgs.splice(1, 0, '--backup-meta', '0', '--cache-dir', join(base, 'cache'));
  const check = (r: SpawnSyncReturns<string>, what: string): void => {
    if (r.status === 0) return;
    abortMount(dir);
    throw new Error(`${client} ${what}: ${r.error?.message ?? `exit ${r.status ?? r.signal}`}\n${r.stdout}${r.stderr}`);
  };
  if (options.format !== 'there') {
    const formatArgs = options.format ?? ['--trash-days', '0'];
    const store = options.store ?? ['--storage', 'file', '--bucket', `${base}/objects/`];
    check(runClient(client, ['format', ...formatArgs, ...store, meta, options.name ?? 'judged']), 'format');
  }
  check(runClient(client, mountArgs), 'mount');
  if (!mountOf(dir)) throw new Error(`${client} mount ended with 0, and ${dir} is not mounted`);
  return {
    client,
    dir,
    base,
    meta,
    processes: () => processesWith(dir),
    remountCommand: [...clientCommand(client), ...mountArgs],
    remount: (extra = []) => runClient(client, ['mount', ...extra, ...mountArgs.slice(1)]),
    remountLater: (extra = []) => runClientLater(client, ['mount', ...extra, ...mountArgs.slice(1)]),
    close({ keep = false } = {}) {
      const r = runClient(client, ['umount', dir]);
      let fault: string | undefined;
      if (mountOf(dir)) {
        fault = `umount left the mount: exit ${r.status ?? r.signal}: ${r.stdout}${r.stderr}`.trim();
        abortMount(dir);
      }
      // Another test's mount namespace has a copy of the mount: the service goes on until that one ends.
      const end = Date.now() + 120_000;
      while (!fault && / goes on$/m.test(r.stderr) && processesWith(dir).length > 0)
        if (Date.now() > end) fault = r.stderr.trim();
        else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
      if (!keep && !fault) rmSync(base, { recursive: true, force: true });
      return fault;
    },
  };
}
