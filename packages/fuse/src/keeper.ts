/**
 * The keeper: a POSIX shell (dash: 1.7 MB resident, 0.1 MB of its own) that holds every fd of the mount, starts the service and starts it again
 * when it dies. It reads its script from a memfd at fd 0, so its command line shows `NAME-keeper -s -- MOUNTPOINT DEVICE …` and no file can be changed under it.
 *
 * A keeper that has started the service waits for it. One that was started by the service (because the keeper before it died) waits for the end of a
 * pipe whose write end only that service holds (close-on-exec), then starts the next one as its child.
 *
 * What ends what:
 * - the service has ended with the mount (state line `ended`): the keeper exits. Code 0 alone is a crash like others (a loop that ran empty).
 * - killed (code 137) at any time, however often: started again at once.
 * - crashed by itself after it had served: at once; from the fifth crash within a second after starting on after 0.2 s, from the twentieth on after 1 s.
 *   The next service is told pid and code (STEADFS_ENDED): requests that crash it are counted, see session.ts.
 * - did not get as far as serving: after 0, 0.1, 0.2, 0.5, 1, 2, 5, 5, … s (far below the kernel's hung-task limit of 120 s). The state line says `waiting: …`, the mount waits, umount and
 *   `umount -f` work (both are the kernel's). From the third time on it exits when the mount is gone from mountinfo: then nobody can be waiting but users of a lazily
 *   unmounted tree, whom no service can be started for.
 * - the first service of a fresh mount, or of an upgrade before its commit point (state line none of `serving`, `committed`, `waiting`): the keeper exits with it, the starter
 *   cleans up. The old service and its keeper were never touched.
 * - its loop hangs (hang.ts): it ends by SIGVTALRM. As a crash, with a line in the log.
 * - exit 75: another process serves this capsule. Whoever serves has a keeper of its own, so this one exits when it is told so four times in a row.
 *
 * Signals: the keeper ignores HUP (log-out) and is in a session of its own (detached), so terminals do not reach it. TERM and INT go on to the service, which unmounts
 * lazily and ends when the last user is gone. In the foreground a Ctrl-C reaches both; the service takes a signal more than once calmly.
 *
 * Cgroups: keeper and service stay in the cgroup of their starter. A unit with KillMode=control-group kills both at stop and so ends the mount
 * (ENOTCONN): under systemd use the fd store (systemd.ts), or start from a login session with KillUserProcesses=no (the default).
 *
 * Priority: nice -10 (when root), inherited by the service; on a busy machine the pause of a crash is mostly waiting for a processor.
 *
 * Memory: the keeper's oom_score_adj is -1000 (when root), as its death frees nothing; the service's is -900. The kernel drops neither the arena nor the
 * capsule when one of them dies. Core dumps leave out the arena (MADV_DONTDUMP).
 *
 * Helper processes of the keeper (only `sleep`) and of the service are started without these fds: a forgotten copy would keep a dead mount alive.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { realpathSync, writeFileSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';
import { EINVAL, ENOENT } from './errno.ts';
import { EXIT_LOCKED, EXIT_REFUSED, FD_LAUNCH, FD_LIFE, FD_REPORT, FD_STATE, type HeldFds, HUNG } from './launch.ts';
import type { Launch } from './service-types.ts';
import * as sys from './sys.ts';

/** How the keeper begins: with a first service of a fresh mount or an upgrade, by waiting for a service that runs, or (after the service died) with its successor. */
export type KeeperMode = 'mount' | 'upgrade' | 'watch';

/** $1 mount point, $2 device, $3 mode, $4 pid of the running service (watch; else 0), then the service's command. */
export const SCRIPT = `
mount=$1 device=$2 mode=$3 child=$4
shift 4
umask 077
cd /
interrupted=
trap 'interrupted=1; [ "$child" = 0 ] || kill -TERM "$child" 2>/dev/null' TERM INT
trap '' HUP PIPE
mounted() {
  while read -r _ _ d _; do [ "$d" = "$device" ] && return 0; done </proc/self/mountinfo
  return 1
}
seconds() { read -r now _ </proc/uptime; now=\${now%%.*}; }
failures=0 quick=0 locked=0 ended=
while :; do
  if [ "$mode" = watch ]; then
    while :; do
      interrupted=
      read -r _ <&${FD_LIFE}
      [ "$interrupted" ] || break
    done
    exec ${FD_LIFE}<&-
    code=137 first=
  else
    # The reason of the last attempt stays to be read.
    read -r state </proc/self/fd/${FD_STATE}
    case $state in waiting*) ;; *) echo starting >/proc/self/fd/${FD_STATE} ;; esac
    seconds; started=$now
    STEADFS_START=$mode STEADFS_KEEPER=$$ STEADFS_ENDED=$ended "$@" </dev/null &
    child=$!
    exec ${FD_REPORT}>&-
    while :; do
      interrupted=
      wait "$child"; code=$?
      [ "$interrupted" ] || break
    done
    first=$mode
  fi
  [ $code = ${HUNG} ] && echo "$(date '+%Y/%m/%d %T') $0[$$] <ERROR>: the service $child did not turn its event loop any more: ended by its timer" >&2
  ended="$child $code"
  child=0 mode=crash
  read -r state </proc/self/fd/${FD_STATE}
  delay=0
  case $state in
  ended*) exit 0 ;;
  serving*)
    failures=0 locked=0
    seconds
    if [ $code != 137 ] && [ $((now - started)) -le 1 ]; then quick=$((quick + 1)); else quick=0; fi
    [ $quick -ge 5 ] && delay=0.2
    [ $quick -ge 20 ] && delay=1
    ;;
  *)
    case $first in mount|upgrade) case $state in committed*|waiting*) ;; *) exit $code ;; esac ;; esac
    if [ $code = ${EXIT_LOCKED} ]; then
      locked=$((locked + 1))
      [ $locked -ge 4 ] && exit 0
    fi
    failures=$((failures + 1))
    case $failures in 1) ;; 2) delay=0.1 ;; 3) delay=0.2 ;; 4) delay=0.5 ;; 5) delay=1 ;; 6) delay=2 ;; *) delay=5 ;; esac
    [ $code = 137 ] && [ $failures -lt 20 ] && delay=0
    [ $code = ${EXIT_REFUSED} ] && delay=5
    [ $failures -ge 3 ] && ! mounted && exit 1
    case $state in waiting*) ;; *) [ $delay = 0 ] || echo "waiting: no service can be started (exit code $code, attempt $failures); see the log" >/proc/self/fd/${FD_STATE} ;; esac
    ;;
  esac
  # In a subshell: dash carries out redirections of a plain command on its own fds before it forks.
  [ $delay = 0 ] || (exec 3<&- 4<&- 5<&- 6<&- 7<&-; exec sleep $delay)
done
`;

/** What keeper and service get of the environment: nothing secret travels this way. */
const ENVIRONMENT =
  /^(PATH|HOME|USER|LOGNAME|LANG|LC_.*|TZ|TMPDIR|XDG_RUNTIME_DIR|NODE_OPTIONS|NODE_EXTRA_CA_CERTS|NODE_COMPILE_CACHE|SSL_CERT_(FILE|DIR)|UV_THREADPOOL_SIZE|STEADFS_.*|NOTIFY_SOCKET|WATCHDOG_(USEC|PID))$/;

export function passedEnvironment(env: NodeJS.ProcessEnv = process.env): Record<string, string> {
  const result: Record<string, string> = {};
  for (const [name, value] of Object.entries(env))
    if (value !== undefined && ENVIRONMENT.test(name) && !/^STEADFS_(START|KEEPER|ENDED)$/.test(name))
      result[name] = value;
  return result;
}

function scriptFd(): number {
  const fd = sys.memfdCreate('steadfs-keeper', sys.MFD_CLOEXEC | sys.MFD_ALLOW_SEALING);
  const text = Buffer.from(SCRIPT);
  sys.ftruncate(fd, text.length);
  const memory = sys.mapFd(fd, 0, text.length);
  memory.bytes.set(text);
  sys.unmap(memory);
  sys.addSeals(fd, sys.F_SEAL_SEAL | sys.F_SEAL_SHRINK | sys.F_SEAL_GROW | sys.F_SEAL_WRITE);
  return fd;
}

/** argv of the keeper, its name first. */
function keeperArguments(launch: Launch, mode: KeeperMode, service: number): string[] {
  // busybox chooses its applet by the name.
  const name = realpathSync('/bin/sh').includes('busybox') ? 'sh' : `${launch.mount.subtype}-keeper`;
  return [name, '-s', '--', launch.mountPoint, launch.device, mode, String(service), ...launch.command];
}

/** Fd for stdout and stderr, to be closed by the caller. Without its folder the log is /dev/null: a mount needs its keeper more. */
function openLog(path: string | undefined): number {
  try {
    if (path !== undefined) return sys.open(path, 0o2001 | 0o100, 0o640); // O_APPEND | O_WRONLY, O_CREAT
  } catch {
    // The service says so in its own way.
  }
  return sys.open('/dev/null', sys.O_RDWR);
}

export interface KeeperStart {
  launch: Launch;
  fds: HeldFds;
  mode: KeeperMode;
  /** Pid of the running service (watch). */
  service?: number;
  /** Write end of the starter's report pipe (mount, upgrade). */
  report?: number;
  /** Read end of the life pipe (watch). */
  life?: number;
}

/** Starts a keeper in a session of its own. The fds are duplicated for it; the caller keeps its own. */
export function startKeeper({
  launch,
  fds,
  mode,
  service = 0,
  report,
  life,
}: KeeperStart): ChildProcess & { pid: number } {
  const [name, ...args] = keeperArguments(launch, mode, service);
  const script = scriptFd();
  const log = openLog(launch.log);
  const nice = getPriority();
  try {
    // Inherited: set afterwards it could come too late for the service, which the keeper forks at once.
    favour(0, false);
    const child = spawn('/bin/sh', args, {
      argv0: name!,
      cwd: '/',
      detached: true,
      env: passedEnvironment(),
      stdio: [
        script,
        log,
        log,
        fds.fuse,
        fds.capsule,
        fds.arena,
        fds.launch,
        fds.state,
        report ?? 'ignore',
        life ?? 'ignore',
      ],
    });
    if (child.pid === undefined) {
      child.on('error', () => {});
      throw ENOENT.because('/bin/sh cannot be started');
    }
    child.on('error', () => {});
    setOomScore(child.pid, -1000);
    favour(child.pid, true);
    return child as ChildProcess & { pid: number };
  } finally {
    if (getPriority() !== nice) setPriority(nice);
    sys.close(script);
    sys.close(log);
  }
}

/** This process becomes the keeper (foreground mounts). Standard output and error are kept. */
export function becomeKeeper(launch: Launch, fds: HeldFds): never {
  const argv = keeperArguments(launch, 'mount', 0);
  setOomScore(process.pid, -1000);
  favour(process.pid, false);
  becomeProgram('/bin/sh', argv, passedEnvironment(), [
    [scriptFd(), 0],
    ...heldPairs(fds),
    // Nobody listens, and the number must not be one of Node's own in the first service.
    [sys.open('/dev/null', sys.O_RDWR), FD_REPORT],
  ]);
}

/** [fd, number it is to have] */
export function heldPairs(fds: HeldFds): [number, number][] {
  return [
    [fds.fuse, 3],
    [fds.capsule, 4],
    [fds.arena, 5],
    [fds.launch, FD_LAUNCH],
    [fds.state, FD_STATE],
  ];
}

/** execve(2) with these fds at these numbers, all others above 2 closed on exec. */
export function becomeProgram(
  path: string,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  pairs: readonly (readonly [number, number])[],
): never {
  // Out of the way first: a target number may be another pair's source. Node's own fds at these numbers are lost, and so is Node a moment later.
  const moved = pairs.map(([fd, to]) => [sys.dup(fd, FD_LIFE + 1), to] as const);
  for (const [fd, to] of moved) {
    sys.dup2(fd, to);
    if (to > 2) sys.setCloexec(to, false);
  }
  for (const fd of [1, 2])
    try {
      // Node makes its standard streams close-on-exec, and pipes and terminals among them non-blocking, for all who share them.
      sys.setCloexec(fd, false);
      sys.setNonblock(fd, false);
    } catch {
      // Closed: nothing to set.
    }
  sys.execve(path, argv, env);
}

/**
 * Nice -10 for the keeper and so for its services: everybody on the mount waits for a service that starts. Where the kernel groups processes by session
 * (sched_autogroup), nice counts inside a group only, and the group has a nice of its own. Needs root; without it nothing changes.
 */
function favour(pid: number, ownSession: boolean): void {
  try {
    // Never towards less: whoever started us may have chosen more.
    if (getPriority(pid) > -10) setPriority(pid, -10);
    if (ownSession) writeFileSync(`/proc/${pid}/autogroup`, '-10');
  } catch {
    // EACCES, EPERM; ENOENT, EINVAL: no groups here
  }
}

/** Needs root for negative values; without it the score stays. */
export function setOomScore(pid: number, score: number): boolean {
  try {
    writeFileSync(`/proc/${pid}/oom_score_adj`, String(score));
    return true;
  } catch {
    // EACCES; ENOENT: gone.
    return false;
  }
}

/**
 * The service's side: watches the keeper `pid` and has a new one in place as soon as it is gone. The new one waits for this process by a pipe. `onKeeper` is told each new pid.
 */
export interface KeeperWatch {
  /** Pid of the keeper now; 0 for a moment after one has died. */
  readonly pid: number;
  /** A successor is about to kill the keeper: do not replace it until {@link resume}. */
  suspend(): void;
  resume(): void;
  stop(): void;
}

export function watchKeeper(
  keeper: number,
  launch: Launch,
  fds: HeldFds,
  onKeeper: (pid: number, replaced: boolean) => void,
  log: (level: 'info' | 'warn' | 'error', message: string) => void,
): KeeperWatch {
  let pid = keeper;
  let watch: sys.Watch | undefined;
  let pidfd = -1;
  let life = -1;
  let suspended = false;
  let stopped = false;
  let failures = 0;
  let bornAt = 0;
  let timer: NodeJS.Timeout | undefined;

  function unwatch(): void {
    watch?.close();
    watch = undefined;
    if (pidfd >= 0) sys.close(pidfd);
    pidfd = -1;
  }

  function follow(candidate: number): boolean {
    try {
      pidfd = sys.pidfdOpen(candidate);
    } catch {
      return false; // ESRCH: dead already
    }
    watch = sys.watchReadable(pidfd, gone);
    return true;
  }

  function gone(): void {
    unwatch();
    pid = 0;
    if (suspended || stopped) return;
    // One that dies at once again and again (no /bin/sh, no memory) is not started in a tight loop.
    failures = performance.now() - bornAt < 1000 ? failures + 1 : 0;
    if (failures > 3) {
      timer = setTimeout(replace, Math.min(200 * failures, 1000));
      timer.unref();
    } else replace();
  }

  function replace(): void {
    if (suspended || stopped || pid !== 0) return;
    const old = life;
    const [readEnd, writeEnd] = sys.pipe();
    try {
      const child = startKeeper({ launch, fds, mode: 'watch', service: process.pid, life: readEnd });
      child.unref();
      life = writeEnd;
      bornAt = performance.now();
      pid = child.pid;
      if (!follow(pid)) throw EINVAL.because('the new keeper is gone already');
      onKeeper(pid, true);
    } catch (error) {
      log('error', `no new keeper: ${(error as Error).message}`);
      if (life !== writeEnd) sys.close(writeEnd);
      pid = 0;
      failures++;
      timer = setTimeout(replace, 1000);
      timer.unref();
    } finally {
      sys.close(readEnd);
      if (old >= 0 && life !== old) sys.close(old);
    }
  }

  if (follow(pid)) onKeeper(pid, false);
  else {
    pid = 0;
    replace();
  }
  return {
    get pid() {
      return pid;
    },
    suspend() {
      suspended = true;
    },
    resume() {
      suspended = false;
      if (pid === 0) replace();
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
      unwatch();
    },
  };
}
