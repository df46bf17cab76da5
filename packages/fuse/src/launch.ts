/**
 * What the processes of a mount hand to each other beside the capsule: fds at fixed numbers, the launch record, the state line, the private directory.
 *
 * Fds of the keeper and of a service that it starts. All but 0-2 and 8 are held by both for life, so killing either loses nothing:
 *
 *     0  keeper: its script; service: /dev/null
 *     1, 2  log
 *     3  /dev/fuse, the connection
 *     4  capsule memfd
 *     5  arena memfd
 *     6  launch memfd: sealed JSON of {@link Launch}
 *     7  state memfd: a line for the keeper and `status`
 *     8  report pipe to the starter (first service only): JSON lines of {@link Report}
 *     9  a keeper that a service has started: the read end of the pipe whose write end only that service holds
 *
 * A sealed memfd instead of a part of the capsule because an upgrade that fails must leave what the old service is started again with: each keeper
 * has its own launch record, and the lock on the capsule decides whose counts.
 */
import { fstatSync, lstatSync, mkdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { EACCES, EINVAL } from './errno.ts';
import type { Launch, Takeover } from './service-types.ts';
import * as sys from './sys.ts';

export const FD_FUSE = 3;
export const FD_CAPSULE = 4;
export const FD_ARENA = 5;
export const FD_LAUNCH = 6;
export const FD_STATE = 7;
export const FD_REPORT = 8;
export const FD_LIFE = 9;

/** The five that both processes hold. */
export interface HeldFds {
  fuse: number;
  capsule: number;
  arena: number;
  launch: number;
  state: number;
}

export const HELD: HeldFds = {
  fuse: FD_FUSE,
  capsule: FD_CAPSULE,
  arena: FD_ARENA,
  launch: FD_LAUNCH,
  state: FD_STATE,
};

/** Exit codes of a service, for its keeper. 0: the mount has ended (and the state line says so). Anything else that is not listed: crashed, start another. */
export const EXIT_ENDED = 0;
/** Another process serves this capsule and has its own keeper: go. */
export const EXIT_LOCKED = 75;
/** Cannot serve, and trying again at once is of no use (capsule of a newer version, bad option). */
export const EXIT_REFUSED = 78;

/** How a service has ended: what its keeper tells the next one (STEADFS_ENDED: pid, exit code of the shell). */
export interface Ended {
  pid: number;
  code: number;
}

/** Exit code of a service that hang.ts ended, as a shell sees it: 128 and SIGVTALRM. */
export const HUNG = 128 + sys.SIGVTALRM;

export function readEnded(text: string | undefined): Ended | undefined {
  const [pid, code] = (text ?? '').split(' ').map(Number);
  return pid && code !== undefined ? { pid, code } : undefined;
}

/** SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGVTALRM (hang.ts): nobody sends these from outside. An uncaught exception is told by the capsule (slots.ts), its exit code 1 has other causes as well. */
export function diedOfItself(code: number): boolean {
  return [132, 133, 134, 135, 136, 139, HUNG].includes(code);
}

export type Report =
  | { event: 'started'; service: number }
  | { event: 'committing' }
  | { event: 'serving'; service: number; keeper: number; takeover: Takeover }
  | { event: 'failed'; message: string };

/** True when the connection is gone: unmounted or aborted. Only for fds that were mounted once. */
export function ended(fuse: number): boolean {
  return (sys.poll(fuse, 0, 0) & (sys.POLLERR | sys.POLLHUP)) !== 0;
}

/** A memfd with the record, sealed: what is started with it cannot be changed afterwards. */
export function createLaunch(launch: Launch): number {
  const fd = sys.memfdCreate('steadfs-launch', sys.MFD_CLOEXEC | sys.MFD_ALLOW_SEALING);
  const text = Buffer.from(JSON.stringify(launch));
  sys.ftruncate(fd, text.length);
  const memory = sys.mapFd(fd, 0, text.length);
  memory.bytes.set(text);
  sys.unmap(memory);
  sys.addSeals(fd, sys.F_SEAL_SEAL | sys.F_SEAL_SHRINK | sys.F_SEAL_GROW | sys.F_SEAL_WRITE);
  return fd;
}

export function readLaunch(fd: number): Launch {
  const { size } = fstatSync(fd);
  if (size === 0) throw EINVAL.because('the launch record is empty');
  // mmap of a sealed memfd must be private or read-only shared; reading by path would need /proc, reading by read(2) shares the offset.
  const memory = sys.allocate(size);
  const n = sys.pread(fd, memory.address, size, 0);
  const text = Buffer.from(memory.bytes.subarray(0, Math.max(0, n))).toString();
  sys.unmap(memory);
  const launch = JSON.parse(text) as Launch;
  if (typeof launch.mountPoint !== 'string' || !Array.isArray(launch.command))
    throw EINVAL.because('this is no launch record');
  return launch;
}

/**
 * The state line (a second one has details as JSON: troubles of `serving`, the beginning of `waiting`): `starting`, `committed` (an upgrade has passed its commit point), `serving`, `waiting: why` (no service can be started), `refused: why` (a first service
 * gave up, its starter cleans up), `ended` (with the mount). The keeper
 * writes it too (echo to /proc/self/fd/7), therefore a line of text.
 */
export function createState(): number {
  const fd = sys.memfdCreate('steadfs-state');
  writeState(fd, 'starting');
  return fd;
}

/** `details`: a second line, for readers that know it. */
export function writeState(fd: number, line: string, details = ''): void {
  const memory = sys.allocate(8192);
  const bytes = Buffer.from(`${line.replaceAll('\n', ' ').slice(0, 1000)}\n${details}\n`);
  if (bytes.length > memory.bytes.length) throw new RangeError(`a state of ${bytes.length} bytes`);
  memory.bytes.set(bytes);
  sys.pwrite(fd, memory.address, bytes.length, 0);
  sys.unmap(memory);
}

export function readState(path: string): { line: string; details: string } {
  const [line = '', details = ''] = readFileSync(path, 'utf8').split('\n', 2);
  return { line, details };
}

/** When the attempts began to fail, of which this one is the last: ms since 1970. */
export function waitingSince(): number {
  const { line, details } = readState(`/proc/self/fd/${FD_STATE}`);
  return line.startsWith('waiting') && details.startsWith('{')
    ? (JSON.parse(details) as { since: number }).since
    : Date.now();
}

/** A socket's path has at most this many bytes (unix(7)); ours are DIRECTORY/control. */
const LONGEST_DIRECTORY = 107 - '/control'.length;

/**
 * Where private directories of mounts may be, the best first: /run/steadfs; of users $XDG_RUNTIME_DIR (which `su` passes on to somebody whose it is not), else a temporary
 * folder, else their home (a name below /tmp can be taken by somebody else).
 */
export function runtimeRoots(uid = sys.geteuid(), env: NodeJS.ProcessEnv = process.env): string[] {
  if (uid === 0) return ['/run/steadfs'];
  return [
    ...(env.XDG_RUNTIME_DIR ? [join(env.XDG_RUNTIME_DIR, 'steadfs')] : []),
    join(tmpdir(), `steadfs-${uid}`),
    join('/tmp', `steadfs-${uid}`),
    join(homedir(), '.steadfs/run'),
  ];
}

/** The directory of a mount (by its device), made when it is not there, below the first root that will do. Throws why the last one would not. */
export function runtimeDirectory(device: string, roots: readonly string[] = runtimeRoots()): string {
  let failure: unknown;
  for (const root of roots)
    try {
      return checkedDirectory(join(root, device.replace(':', '-')));
    } catch (error) {
      failure = error;
    }
  throw failure;
}

/** A mount's directory and its root, made (0700) when a cleaner has removed them. Throws EACCES when one could be someone else's, EINVAL when the name is too long for a socket. */
export function checkedDirectory(directory: string): string {
  const root = dirname(directory);
  if (Buffer.byteLength(directory) > LONGEST_DIRECTORY) throw EINVAL.because(`${directory}: too long for a socket`);
  mkdirSync(root, { recursive: true, mode: 0o700 });
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  for (const path of [root, directory]) {
    const stat = lstatSync(path);
    if (!stat.isDirectory() || stat.uid !== sys.geteuid() || (stat.mode & 0o077) !== 0)
      throw EACCES.because(`${path} must be a directory of ours with mode 0700`);
  }
  return directory;
}

/** True when process `pid` holds a capsule memfd at our number (with `inode`: that very one). stat(2) through /proc does not open it. */
export function holdsCapsule(pid: number, inode?: number): boolean {
  const path = `/proc/${pid}/fd/${FD_CAPSULE}`;
  try {
    if (!readlinkSync(path).startsWith('/memfd:steadfs-capsule')) return false;
    return inode === undefined || statSync(path).ino === inode;
  } catch {
    // Gone, or another user's.
    return false;
  }
}
