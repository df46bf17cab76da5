/**
 * systemd as the keeper: sd_notify(3) and the fd store (FDSTORE=1; sd_pid_notify_with_fds(3), systemd.service(5) FileDescriptorStoreMax=).
 *
 * The five fds of a mount are pushed under the names below right after the mount is made, so a service that dies (or is restarted) gets them back in
 * LISTEN_FDS. FDPOLL=0 for the connection: systemd would poll it and drop it from the store at the first error or hang-up event. A unit:
 *
 *     [Unit]
 *     StartLimitIntervalSec=0      (a unit that hits the limit fails, and then its store is emptied: the mount is lost)
 *     [Service]
 *     Type=notify
 *     NotifyAccess=main
 *     ExecStart=/usr/bin/steadfs mount META-URL /mnt/vol
 *     FileDescriptorStoreMax=16
 *     Restart=on-failure
 *     RestartSec=0
 *     TimeoutStartSec=120
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { EINVAL } from './errno.ts';
import type { HeldFds } from './launch.ts';
import * as sys from './sys.ts';

const NAMES: Record<keyof HeldFds, string> = {
  fuse: 'steadfs-fuse',
  capsule: 'steadfs-capsule',
  arena: 'steadfs-arena',
  launch: 'steadfs-launch',
  state: 'steadfs-state',
};

/** Fds that the service manager passed, by name; an empty map when there are none for this process. Names given twice: the last counts, the others are closed. */
export function listenFds(env: NodeJS.ProcessEnv = process.env): Map<string, number> {
  const result = new Map<string, number>();
  if (env.LISTEN_FDS === undefined || (env.LISTEN_PID !== undefined && Number(env.LISTEN_PID) !== process.pid))
    return result;
  const count = Number(env.LISTEN_FDS);
  const names = (env.LISTEN_FDNAMES ?? '').split(':');
  for (let i = 0; i < count; i++) {
    const fd = 3 + i;
    sys.setCloexec(fd);
    const name = names[i] ?? 'unknown';
    const before = result.get(name);
    if (before !== undefined) sys.close(before);
    result.set(name, fd);
  }
  return result;
}

/** What the store must hold for an adoption. The launch record and the state are made anew at every start, and a kill can strike between their removal and their return. */
export type StoredFds = Pick<HeldFds, 'fuse' | 'capsule' | 'arena'> & { launch?: number; state?: number };

/** The fds of a mount among those; undefined when the store has none. Throws EINVAL when it has only some: then nothing can be adopted. */
export function storedMount(fds: ReadonlyMap<string, number>): StoredFds | undefined {
  const needed = (['fuse', 'capsule', 'arena'] as const).map(n => fds.get(NAMES[n]));
  const [fuse, capsule, arena] = needed;
  const launch = fds.get(NAMES.launch);
  const state = fds.get(NAMES.state);
  if (fuse === undefined || capsule === undefined || arena === undefined) {
    if (needed.every(fd => fd === undefined)) return undefined;
    throw EINVAL.because('the fd store has only some of steadfs-fuse, steadfs-capsule, steadfs-arena');
  }
  return { fuse, capsule, arena, ...(launch !== undefined && { launch }), ...(state !== undefined && { state }) };
}

export interface Notifications {
  ready(status: string): void;
  status(text: string): void;
  stopping(): void;
  /** More time for the start or stop that is under way, milliseconds. */
  extendTimeout(ms: number): void;
  /** Puts the fds of the mount into the store; a launch record of before is removed from it first. */
  store(fds: HeldFds): void;
  remove(): void;
  /** Keep-alive; sent by itself at half of WatchdogSec= when the unit has one. */
  watchdog(): void;
  close(): void;
}

/** Undefined when no service manager listens (NOTIFY_SOCKET). */
export function notifications(env: NodeJS.ProcessEnv = process.env): Notifications | undefined {
  const path = env.NOTIFY_SOCKET;
  if (!path) return undefined;
  const socket = sys.connectDatagram(path);
  function send(lines: Record<string, string | number>, fds: readonly number[] = []): void {
    const text = Object.entries(lines)
      .map(([k, v]) => `${k}=${String(v).replaceAll('\n', ' ')}`)
      .join('\n');
    const n = sys.sendFds(socket, Buffer.from(text), fds);
    if (n < 0 && fds.length > 0) throw EINVAL.because(`the service manager takes no fds: errno ${-n}`);
  }
  let timer: NodeJS.Timeout | undefined;
  const watchdogMs = Number(env.WATCHDOG_USEC ?? 0) / 1000;
  const forUs = env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === process.pid;
  if (watchdogMs > 0 && forUs) {
    timer = setInterval(() => send({ WATCHDOG: 1 }), watchdogMs / 2);
    timer.unref();
  }
  return {
    ready: status => send({ READY: 1, STATUS: status, MAINPID: process.pid }),
    status: text => send({ STATUS: text }),
    stopping: () => send({ STOPPING: 1 }),
    extendTimeout: ms => send({ EXTEND_TIMEOUT_USEC: ms * 1000 }),
    store(fds) {
      send({ FDSTOREREMOVE: 1, FDNAME: NAMES.launch });
      send({ FDSTOREREMOVE: 1, FDNAME: NAMES.state });
      // One message per name. What is in the store already (same file) is not added twice.
      for (const name of Object.keys(NAMES) as (keyof HeldFds)[])
        send({ FDSTORE: 1, FDNAME: NAMES[name], ...(name === 'fuse' && { FDPOLL: 0 }) }, [fds[name]]);
    },
    remove() {
      for (const name of Object.values(NAMES)) send({ FDSTOREREMOVE: 1, FDNAME: name });
    },
    watchdog: () => send({ WATCHDOG: 1 }),
    close() {
      clearInterval(timer);
      sys.close(socket);
    },
  };
}

/** Our unit, from the last `….service` of /proc/self/cgroup. */
export function ownUnit(cgroup = readFileSync('/proc/self/cgroup', 'utf8')): string | undefined {
  return cgroup
    .split('\n')
    .flatMap(line => line.split('/'))
    .findLast(part => part.endsWith('.service'));
}

/** systemd's list of jobs; undefined when it cannot be asked. */
function listJobs(): Promise<string | undefined> {
  const list = ['list-jobs', '--plain', '--no-legend', '--full'];
  return new Promise(resolve => {
    execFile('systemctl', list, { timeout: 5_000, cwd: '/' }, (error, stdout) => resolve(error ? undefined : stdout));
  });
}

/**
 * Whether the SIGTERM that we got is half of a restart (then the mount stays: the next service adopts it). systemd sends the same signal for both, only its list
 * of jobs tells. It is asked again for a second: a stop goes through the unit's processes until it finds no new one, so it may kill the systemctl that asks.
 * When it cannot be asked: true, as a dead mount point is the smaller harm.
 */
export async function isRestart(unit = ownUnit()): Promise<boolean> {
  if (!unit) return true;
  for (let attempt = 0; attempt < 20; attempt++) {
    const jobs = await listJobs();
    if (jobs === undefined) {
      await sleep(50);
      continue;
    }
    const job = jobs
      .split('\n')
      .map(line => line.trim().split(/\s+/))
      .find(words => words[1] === unit);
    return job?.[2] !== 'stop';
  }
  return true;
}
