/**
 * Mounting and unmounting FUSE, and what the kernel tells about mounts. Nothing here touches a mount (a stat of a mount that nobody serves never comes
 * back): what must be asked of a mount is asked by a child process that may be left behind.
 *
 * Facts: Linux fs/fuse/inode.c (mount data), Documentation/filesystems/fuse.rst (fusectl), proc_pid_mountinfo(5), libfuse's fusermount3 (`_FUSE_COMMFD`).
 */
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { EACCES, EBUSY, EINVAL, EPERM, Errno, ETIMEDOUT } from './errno.ts';
import type { MountOptions } from './service-types.ts';
import * as sys from './sys.ts';

const FUSECTL = '/sys/fs/fuse/connections';
const S_IFMT = 0o170000;

/** A line of /proc/self/mountinfo. */
export interface MountInfo {
  id: number;
  parent: number;
  /** `major:minor` */
  device: string;
  /** Path inside the file system that is mounted. */
  root: string;
  mountPoint: string;
  /** Per mount: rw, nosuid, … */
  options: string[];
  type: string;
  source: string;
  /** Per file system: user_id=0, allow_other, … */
  superOptions: string[];
}

/** A field read as latin1, one character per byte; `\040` and the like stand for blanks, tabs, newlines and backslashes. */
function field(text: string): string {
  const plain = text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
  return Buffer.from(plain, 'latin1').toString();
}

/** Parses a mountinfo file that was read as latin1; unknown optional fields are skipped. */
export function parseMountInfo(text: string): MountInfo[] {
  const result: MountInfo[] = [];
  for (const line of text.split('\n')) {
    const words = line.split(' ');
    const dash = words.indexOf('-', 6);
    if (dash < 0) continue;
    result.push({
      id: Number(words[0]),
      parent: Number(words[1]),
      device: words[2]!,
      root: field(words[3]!),
      mountPoint: field(words[4]!),
      options: words[5]!.split(','),
      type: field(words[dash + 1]!),
      source: field(words[dash + 2] ?? ''),
      superOptions: (words[dash + 3] ?? '').split(','),
    });
  }
  return result;
}

export function mounts(): MountInfo[] {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'latin1'));
}

/** What is mounted there, the topmost when several are; undefined when it is no mount point. */
export function findMount(mountPoint: string, list: readonly MountInfo[] = mounts()): MountInfo | undefined {
  const there = list.filter(m => m.mountPoint === mountPoint);
  // The list is no stack (a mount may have been moved here): the one that lies under none of the others.
  return there.findLast(m => !there.some(other => other.parent === m.id));
}

export function isFuse(mount: MountInfo): boolean {
  return mount.type === 'fuse' || mount.type === 'fuseblk' || mount.type.startsWith('fuse.');
}

/** Number of the connection in fusectl: the minor of the mount's device. */
function connectionOf(device: string): number {
  return Number(device.slice(device.indexOf(':') + 1));
}

/** Requests of the connection that wait for an answer; undefined when fusectl is not mounted or not ours to read. */
export function waitingRequests(device: string): number | undefined {
  try {
    return Number(readFileSync(`${FUSECTL}/${connectionOf(device)}/waiting`, 'utf8'));
  } catch {
    // ENOENT, EACCES: nothing to tell.
    return undefined;
  }
}

/** Aborts the connection: waiting callers get ECONNABORTED or ENOTCONN. False when fusectl does not let us. */
export function abortConnection(device: string): boolean {
  const file = `${FUSECTL}/${connectionOf(device)}/abort`;
  try {
    writeFileSync(file, '1');
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || sys.geteuid() !== 0) return false;
  }
  try {
    // A container or a minimal system may not have it mounted.
    sys.mount('fusectl', FUSECTL, 'fusectl', 0, '');
    writeFileSync(file, '1');
    return true;
  } catch {
    // The connection is gone, or fusectl cannot be had here.
    return false;
  }
}

/**
 * Whether someone answers for a path: `dead` = ENOTCONN (or ECONNABORTED), `hung` = no answer within `timeout` ms. The stat is done by a child that is left behind when it hangs.
 */
export async function probe(path: string, timeout = 3000): Promise<'alive' | 'dead' | 'hung'> {
  const child = spawn('stat', ['-c', '%i', '--', path], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
    cwd: '/',
  });
  let message = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    message += text;
  });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      child.unref();
      child.stderr.destroy();
      resolve('hung');
    }, timeout);
    child.on('error', error => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', () => {
      clearTimeout(timer);
      resolve(/endpoint is not connected|connection abort/i.test(message) ? 'dead' : 'alive');
    });
  });
}

const FLAGS: Record<string, [set: number, clear: number]> = {
  ro: [sys.MS_RDONLY, 0],
  rw: [0, sys.MS_RDONLY],
  nosuid: [sys.MS_NOSUID, 0],
  suid: [0, sys.MS_NOSUID],
  nodev: [sys.MS_NODEV, 0],
  dev: [0, sys.MS_NODEV],
  noexec: [sys.MS_NOEXEC, 0],
  exec: [0, sys.MS_NOEXEC],
  sync: [sys.MS_SYNCHRONOUS, 0],
  async: [0, sys.MS_SYNCHRONOUS],
  dirsync: [sys.MS_DIRSYNC, 0],
  noatime: [sys.MS_NOATIME, 0],
  atime: [0, sys.MS_NOATIME],
  nodiratime: [sys.MS_NODIRATIME, 0],
  relatime: [sys.MS_RELATIME, 0],
  strictatime: [sys.MS_STRICTATIME, 0],
};

/** MS_* of the options; nosuid and nodev unless they are given back. */
export function mountFlags(options: MountOptions): number {
  let flags = sys.MS_NOSUID | sys.MS_NODEV;
  for (const name of [...(options.flags ?? []), ...(options.readOnly ? ['ro'] : [])]) {
    const flag = FLAGS[name];
    if (!flag) throw EINVAL.because(`unknown mount flag ${name}`);
    flags = (flags | flag[0]) & ~flag[1];
  }
  return flags;
}

/** The data string of mount(2) for the FUSE file system types. */
export function mountData(options: MountOptions, fd: number, rootMode: number, uid: number, gid: number): string {
  const data = [`fd=${fd}`, `rootmode=${(rootMode & S_IFMT).toString(8)}`, `user_id=${uid}`, `group_id=${gid}`];
  if (options.defaultPermissions) data.push('default_permissions');
  if (options.allowOther) data.push('allow_other');
  if (options.maxRead) data.push(`max_read=${options.maxRead}`);
  return data.join(',');
}

/** The -o argument of fusermount3. */
export function fusermountOptions(options: MountOptions): string {
  const quoted = (text: string) => text.replace(/[\\,]/g, '\\$&');
  const list = [`fsname=${quoted(options.source)}`, `subtype=${quoted(options.subtype)}`];
  if (options.defaultPermissions) list.push('default_permissions');
  if (options.allowOther) list.push('allow_other');
  if (options.maxRead) list.push(`max_read=${options.maxRead}`);
  list.push(...(options.flags ?? []));
  if (options.readOnly) list.push('ro');
  return list.join(',');
}

/**
 * Mounts, and answers the fd of the connection (non-blocking, close-on-exec) and the mount's device. By mount(2) when we may, by fusermount3 when not. Until INIT
 * is answered every access to the mount waits. The fd must not be polled by anyone before this has resolved.
 */
export async function mountFuse(path: string, options: MountOptions): Promise<{ fd: number; device: string }> {
  const mountPoint = realpathSync(path);
  const rootMode = statSync(mountPoint).mode;
  let fd: number;
  if (sys.geteuid() === 0) {
    try {
      fd = sys.open('/dev/fuse', sys.O_RDWR | sys.O_NONBLOCK);
    } catch (error) {
      throw EACCES.because('/dev/fuse cannot be used (modprobe fuse; a container needs the device given to it)', error);
    }
    try {
      const data = mountData(options, fd, rootMode, sys.geteuid(), sys.getegid());
      sys.mount(options.source, mountPoint, `fuse.${options.subtype}`, mountFlags(options), data);
    } catch (error) {
      sys.close(fd);
      // In a container that is root without CAP_SYS_ADMIN fusermount3 cannot do it either.
      throw error;
    }
  } else {
    fd = await fusermount(mountPoint, options);
    sys.setNonblock(fd);
  }
  const found = findMount(mountPoint);
  if (!found || !isFuse(found)) {
    sys.close(fd);
    throw EINVAL.because(`${mountPoint} does not show up in /proc/self/mountinfo`);
  }
  return { fd, device: found.device };
}

/**
 * Gives a mount the flags of these options (ro, nosuid, …); the others are fixed. Flags that are not named get their default, as in mount(8)'s remount. Root only.
 * Read-only is what the kernel enforces from here on: it asks nobody. Throws EBUSY when files are open for writing.
 */
export function remountFuse(mountPoint: string, options: MountOptions): void {
  // Data is left out: fuse ignores it in the mount(2) form of a remount (fs/fuse/inode.c, fuse_parse_param).
  sys.mount(options.source, mountPoint, `fuse.${options.subtype}`, sys.MS_REMOUNT | mountFlags(options), '');
}

/** fusermount3 opens and mounts /dev/fuse for us and passes the fd over the socket _FUSE_COMMFD. Never with auto_unmount: it would unmount when we end. */
async function fusermount(mountPoint: string, options: MountOptions): Promise<number> {
  const [ours, theirs] = sys.socketPair();
  try {
    const child = spawn('fusermount3', ['-o', fusermountOptions(options), '--', mountPoint], {
      stdio: ['ignore', 'ignore', 'pipe', theirs],
      env: { ...process.env, _FUSE_COMMFD: '3', LC_ALL: 'C' },
      cwd: '/',
    });
    sys.close(theirs);
    const { code, message } = await finished(child, 'fusermount3');
    if (code !== 0) {
      const denied = /\/dev\/fuse: Permission denied/.test(message);
      const advice = denied ? '; root can allow it: chmod 666 /dev/fuse' : '';
      throw EPERM.because(`${message || `fusermount3 failed with code ${code}`}${advice}`);
    }
    const got = sys.receiveFds(ours, sys.MSG_DONTWAIT);
    if (typeof got === 'number' || got.fds[0] === undefined) throw EPERM.because('fusermount3 passed no fd');
    return got.fds[0];
  } finally {
    sys.close(ours);
  }
}

function finished(child: ReturnType<typeof spawn>, name: string): Promise<{ code: number | null; message: string }> {
  let message = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    message += text;
  });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(ETIMEDOUT.because(`${name} does not end`));
    }, 30_000);
    child.on('error', error => {
      clearTimeout(timer);
      reject(
        EACCES.because(`${name} cannot be run (${error.message}); a user needs it for mounting (Debian package fuse3)`),
      );
    });
    child.on('close', code => {
      clearTimeout(timer);
      resolve({ code, message: message.trim() });
    });
  });
}

/**
 * Unmounts the topmost mount there. Lazy: detached at once, ended with its last user. Force: the connection is aborted first, then detached. Throws EBUSY (files are open),
 * EINVAL (not a mount point), EPERM.
 */
export async function unmount(path: string, how: { lazy?: boolean; force?: boolean } = {}): Promise<void> {
  const list = mounts();
  // As it is written, or by way of symbolic links above it: the mount point itself may hang.
  const absolute = resolve(path);
  const mountPoint = findMount(absolute, list) ? absolute : join(realpathSync(dirname(absolute)), basename(absolute));
  const found = findMount(mountPoint, list);
  if (!found) throw EINVAL.because(`${mountPoint} is not a mount point`);
  if (how.force) abortConnection(found.device);
  const lazy = how.lazy === true || how.force === true;
  if (sys.geteuid() === 0) {
    if (how.force) {
      try {
        await sys.umount2Async(mountPoint, sys.UMOUNT_NOFOLLOW | sys.MNT_FORCE);
        return;
      } catch (error) {
        if (!(error instanceof Errno && error.errno === EBUSY.errno)) throw error;
      }
    }
    await sys.umount2Async(mountPoint, sys.UMOUNT_NOFOLLOW | (lazy ? sys.MNT_DETACH : 0));
    return;
  }
  const child = spawn('fusermount3', ['-u', ...(lazy ? ['-z'] : []), '--', mountPoint], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
    cwd: '/',
  });
  const { code, message } = await finished(child, 'fusermount3');
  if (code !== 0)
    throw (/busy/i.test(message) ? EBUSY : EPERM).because(message || `fusermount3 failed with code ${code}`);
}

/**
 * Unmounts the mount of this device: at its mount point, or where it was moved or bound to. Throws EBUSY when another mount covers it (which is not to be taken down in its
 * place), EINVAL when this mount namespace does not have it any more.
 */
export async function unmountDevice(
  { device, mountPoint }: Pick<MountInfo, 'device' | 'mountPoint'>,
  how: { lazy?: boolean; force?: boolean } = {},
): Promise<void> {
  const list = mounts();
  const own = list.filter(m => m.device === device).map(m => m.mountPoint);
  const top = [mountPoint, ...own].find(path => findMount(path, list)?.device === device);
  if (top !== undefined) return unmount(top, how);
  if (how.force) abortConnection(device);
  if (own.length > 0) throw EBUSY.because(`${own[0]} is covered by another mount, which has to go first`);
  throw EINVAL.because(`${mountPoint} is not a mount point`);
}

/** Whose mount namespace has a mount, and where. */
export interface MountUser {
  pid: number;
  command: string;
  mountPoint: string;
}

/** A process of each mount namespace that has a mount of this device; of our own namespace this process. */
export function mountedElsewhere(device: string): MountUser[] {
  const found: MountUser[] = [];
  const seen = new Set<string>();
  for (const pid of ['self', ...readdirSync('/proc').filter(name => /^\d+$/.test(name))])
    try {
      const namespace = readlinkSync(`/proc/${pid}/ns/mnt`);
      if (seen.has(namespace)) continue;
      seen.add(namespace);
      const mount = parseMountInfo(readFileSync(`/proc/${pid}/mountinfo`, 'latin1')).find(m => m.device === device);
      if (!mount) continue;
      const command = readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
      found.push({ pid: pid === 'self' ? process.pid : Number(pid), command, mountPoint: mount.mountPoint });
    } catch {
      // Gone meanwhile, or another user's.
    }
  return found;
}

/** Removes dead mounts (nobody holds their connection) from a mount point, so that it can be mounted again. Answers how many. */
export async function clearDeadMounts(mountPoint: string): Promise<number> {
  let count = 0;
  for (let top = findMount(mountPoint); top && isFuse(top); top = findMount(mountPoint)) {
    if ((await probe(mountPoint)) !== 'dead') break;
    await unmount(mountPoint, { lazy: true });
    count++;
  }
  return count;
}

/** Processes that have the mount's files open, as cwd, root or executable: [pid, command line], for "who keeps it busy". Reads links only; never opens a file of the mount. */
export async function usersOf(mountPoint: string): Promise<{ pid: number; command: string }[]> {
  const { readdir, readlink } = await import('node:fs/promises');
  const inside = (path: string) => path === mountPoint || path.startsWith(`${mountPoint}/`);
  const link = (path: string) => readlink(path).catch(() => '');
  const found: { pid: number; command: string }[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const names = await readdir(`/proc/${pid}/fd`).catch(() => [] as string[]);
    const links = ['cwd', 'root', 'exe', ...names.map(n => `fd/${n}`)].map(n => link(`/proc/${pid}/${n}`));
    if (!(await Promise.all(links)).some(inside)) continue;
    const comm = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
    found.push({ pid: Number(pid), command: comm.trim() });
  }
  return found;
}
