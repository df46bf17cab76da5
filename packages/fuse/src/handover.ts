/**
 * The control socket of a service, and the commit of a take-over.
 *
 * The socket is `control` in the mount's private directory (mode 0700). SO_PEERCRED is checked as well: the same uid, or root. Messages are lines of JSON:
 *
 *     → {"op":"take"}    ← {"ok":true, version, pid, keeper, launch, …} with five fds (SCM_RIGHTS): fuse, capsule, arena, launch, state
 *     → {"op":"yield"}   ← {"ok":true, keeper} once the service has stopped reading and finished what takes no time; it goes on when the connection ends, or after 1 s
 *     → {"op":"state"}   ← {"ok":true, version, pid, keeper, takeovers, …}
 *
 * Two phases. Prepare: the new service has the fds, has read the capsule's directory, and is warm; nothing has changed for the old one, and any failure up
 * to here leaves it as it is. Commit: the old keeper is killed (it would start a rival), then whoever holds the capsule's lock, each through a pidfd
 * that is seen readable before going on; then the lock is taken. There is no other way to have exactly one reader: an fd cannot be revoked.
 */
import { fstatSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { CapsuleError, lockCapsule } from './capsule.ts';
import { EACCES, EAGAIN, ECONNABORTED, EINTR, Errno, ETIMEDOUT } from './errno.ts';
import { faultPoint } from './fault.ts';
import { FD_ARENA, FD_CAPSULE, FD_FUSE, FD_LAUNCH, FD_STATE, type HeldFds, holdsCapsule } from './launch.ts';
import type { Launch, Takeover } from './service-types.ts';
import * as sys from './sys.ts';

export interface ServiceInfo {
  pid: number;
  version: string;
  /** 0 under systemd. */
  keeper: number;
  launch: Launch;
  takeovers: Takeover[];
}

export interface ControlHandlers {
  info(): ServiceInfo;
  fds: HeldFds;
  /** Stop reading requests, finish what takes no time. */
  yielding(): Promise<void> | void;
  /** The one that asked for it is gone, and we are still here. */
  resume(): void;
  log(level: 'info' | 'warn' | 'error', message: string): void;
}

/** After this long without being killed a process that has yielded goes on, ms. */
const YIELD_LIMIT_MS = 1000;

type Message = Record<string, unknown>;

/** A connection: lines of JSON, fds with the line that they came with. */
interface Connection {
  send(message: Message, fds?: readonly number[]): void;
  /** The next message; rejects at the end of the connection or after `timeout` ms. */
  receive(timeout: number): Promise<{ message: Message; fds: number[] }>;
  close(): void;
}

function connectionOver(fd: number, onEnd?: () => void): Connection {
  let text = '';
  let fds: number[] = [];
  let ended = false;
  let closed = false;
  const ready: { message: Message; fds: number[] }[] = [];
  const waiters: (() => void)[] = [];
  const wake = () => {
    for (const w of waiters.splice(0)) w();
  };
  function end(): void {
    if (ended) return;
    ended = true;
    watch.close();
    wake();
    onEnd?.();
  }
  const watch = sys.watchReadable(fd, () => {
    for (;;) {
      if (ended) return;
      const got = sys.receiveFds(fd, sys.MSG_DONTWAIT);
      if (typeof got === 'number') {
        if (got === -EAGAIN.errno || got === -EINTR.errno) return;
        return end();
      }
      if (got.data.length === 0) return end();
      fds.push(...got.fds);
      text += Buffer.from(got.data).toString();
      for (let newline = text.indexOf('\n'); newline >= 0; newline = text.indexOf('\n')) {
        const line = text.slice(0, newline);
        text = text.slice(newline + 1);
        try {
          ready.push({ message: JSON.parse(line) as Message, fds });
        } catch {
          // Not our protocol: the peer is treated as gone.
          for (const one of fds) sys.close(one);
          return end();
        }
        fds = [];
      }
      if (text.length > 1 << 20) return end();
      wake();
    }
  });
  return {
    send(message, sent = []) {
      // A launch record with large options may take more than one piece; the peer reads at once, so blocking for it is brief.
      let bytes: Uint8Array = Buffer.from(`${JSON.stringify(message)}\n`);
      let with_ = sent;
      while (bytes.length > 0) {
        const n = sys.sendFds(fd, bytes.subarray(0, sys.MAX_MESSAGE), with_);
        if (n === -EAGAIN.errno) sys.poll(fd, sys.POLLOUT, 100);
        else if (n < 0 && n !== -EINTR.errno) throw ECONNABORTED.because(`control connection: errno ${-n}`);
        else if (n > 0) {
          bytes = bytes.subarray(n);
          with_ = [];
        }
      }
    },
    async receive(timeout) {
      const until = performance.now() + timeout;
      for (;;) {
        const next = ready.shift();
        if (next) return next;
        if (ended) throw ECONNABORTED.because('the control connection has ended');
        const left = until - performance.now();
        if (left <= 0) throw ETIMEDOUT.because('no answer on the control connection');
        await new Promise<void>(resolve => {
          const timer = setTimeout(resolve, left);
          waiters.push(() => {
            clearTimeout(timer);
            resolve();
          });
        });
      }
    },
    close() {
      if (closed) return;
      closed = true;
      end();
      sys.close(fd);
      for (const m of ready.splice(0)) for (const one of m.fds) sys.close(one);
    },
  };
}

export interface ControlServer {
  close(): void;
}

/** Listens in the directory; a socket of a service that is gone is replaced. The caller holds the capsule's lock, so nobody else has a right to the place. */
export function serveControl(directory: string, handlers: ControlHandlers): ControlServer {
  const path = join(directory, 'control');
  rmSync(path, { force: true });
  const listener = sys.listenUnix(path);
  const open = new Set<Connection>();
  const watch = sys.watchReadable(listener, () => {
    for (let fd = sys.acceptUnix(listener); fd !== undefined; fd = sys.acceptUnix(listener)) {
      const peer = sys.peerCredentials(fd);
      if (peer.uid !== 0 && peer.uid !== sys.geteuid()) {
        handlers.log('warn', `control connection of user ${peer.uid} (process ${peer.pid}) refused`);
        sys.close(fd);
        continue;
      }
      serveOne(fd).catch((error: unknown) => handlers.log('warn', `control connection: ${(error as Error).message}`));
    }
  });
  watch.unref();

  async function serveOne(fd: number): Promise<void> {
    let yielded = false;
    let limit: NodeJS.Timeout | undefined;
    const resume = (): void => {
      clearTimeout(limit);
      if (yielded) handlers.resume();
      yielded = false;
    };
    const connection = connectionOver(fd, () => {
      open.delete(connection);
      resume();
    });
    open.add(connection);
    try {
      for (;;) {
        const { message, fds } = await connection.receive(24 * 3600e3);
        for (const one of fds) sys.close(one);
        faultPoint('control.asked');
        if (message.op === 'state') connection.send({ ok: true, ...handlers.info() });
        else if (message.op === 'take') {
          const { fuse, capsule, arena, launch, state } = handlers.fds;
          connection.send({ ok: true, ...handlers.info() }, [fuse, capsule, arena, launch, state]);
          faultPoint('control.gave-fds');
        } else if (message.op === 'yield') {
          yielded = true;
          await handlers.yielding();
          faultPoint('control.before-answer');
          connection.send({ ok: true, keeper: handlers.info().keeper });
          faultPoint('control.answered');
          // A successor that hangs must not stop the mount. When it goes on after all, this process is killed in the middle of its work, as it may be at any time.
          limit = setTimeout(resume, YIELD_LIMIT_MS);
        } else connection.send({ ok: false, reason: `unknown request ${String(message.op)}` });
      }
    } catch (error) {
      if (!(error instanceof Errno && error.errno === ECONNABORTED.errno)) throw error;
    } finally {
      connection.close();
    }
  }

  return {
    close() {
      watch.close();
      sys.close(listener);
      for (const c of open) c.close();
    },
  };
}

export interface Control {
  info: ServiceInfo;
  /** take: the fds, ours to close. */
  fds?: HeldFds;
  /** Stops the old service's reading until this connection is closed; false when it does not answer in `timeout` ms (it is about to be killed anyway). */
  yield(timeout: number): Promise<boolean>;
  close(): void;
}

/** Connects to the service in the directory. Throws ECONNREFUSED (111) or ENOENT when none listens, ETIMEDOUT when it is hung, EACCES when it belongs to somebody else. */
export async function connectControl(directory: string, op: 'take' | 'state', timeout = 2000): Promise<Control> {
  const fd = sys.connectUnix(join(directory, 'control'));
  const peer = sys.peerCredentials(fd);
  if (peer.uid !== 0 && peer.uid !== sys.geteuid() && sys.geteuid() !== 0) {
    sys.close(fd);
    throw EACCES.because(`the control socket belongs to user ${peer.uid}`);
  }
  const connection = connectionOver(fd);
  try {
    connection.send({ op });
    const { message, fds } = await connection.receive(timeout);
    const info = message as unknown as ServiceInfo & { ok: boolean };
    const held = fds.length === 5 ? fds : undefined;
    if (op === 'take' && !held) throw ECONNABORTED.because('the service passed no fds');
    return {
      info,
      ...(held && { fds: { fuse: held[0]!, capsule: held[1]!, arena: held[2]!, launch: held[3]!, state: held[4]! } }),
      async yield(wait) {
        try {
          connection.send({ op: 'yield' });
          await connection.receive(wait);
          return true;
        } catch {
          // It has ended, or does not answer in time: the caller ends it.
          return false;
        }
      },
      close: () => connection.close(),
    };
  } catch (error) {
    connection.close();
    throw error;
  }
}

/**
 * The fds of a mount whose service does not answer (dead, stopped, hung), from its keeper by pidfd_getfd(2). Needs the right to ptrace the keeper: root, or the
 * same user where Yama allows it.
 */
export function fdsOfProcess(pid: number): HeldFds {
  const pidfd = sys.pidfdOpen(pid);
  const got: number[] = [];
  try {
    if (!holdsCapsule(pid)) throw EACCES.because(`process ${pid} holds no capsule`);
    for (const fd of [FD_FUSE, FD_CAPSULE, FD_ARENA, FD_LAUNCH, FD_STATE]) got.push(sys.pidfdGetfd(pidfd, fd));
    return { fuse: got[0]!, capsule: got[1]!, arena: got[2]!, launch: got[3]!, state: got[4]! };
  } catch (error) {
    for (const fd of got) sys.close(fd);
    throw error;
  } finally {
    sys.close(pidfd);
  }
}

/**
 * Sends SIGKILL. The function that is answered waits until all threads of the process are gone; false when they are not after `timeout` ms (the process hangs
 * in the kernel; the kill stays pending). It is to be called to the end.
 */
function kill(pid: number, isIt: (pid: number) => boolean): (timeout: number) => boolean {
  let pidfd: number;
  try {
    pidfd = sys.pidfdOpen(pid);
  } catch {
    // ESRCH: gone already.
    return () => true;
  }
  let done = false;
  const close = (): void => {
    if (!done) sys.close(pidfd);
    done = true;
  };
  try {
    // Asked after the pidfd is open, so the answer is about the process that gets the signal.
    if (!isIt(pid) || !sys.pidfdSendSignal(pidfd, sys.SIGKILL)) close();
  } catch (error) {
    close();
    throw error;
  }
  return timeout => {
    try {
      return done || (sys.poll(pidfd, sys.POLLIN, timeout) & sys.POLLIN) !== 0;
    } finally {
      close();
    }
  };
}

/** Kills a process and waits until all its threads are gone. False when it is not gone after `timeout` ms. */
export function killAndWait(pid: number, timeout: number, isIt: (pid: number) => boolean = () => true): boolean {
  return kill(pid, isIt)(timeout);
}

/**
 * The commit: when it comes back, this process alone can read, answer and unmount, and holds the capsule's lock. Answers when the old service died (ms since
 * 1970; undefined when there was none). Throws CapsuleError 'locked' when somebody could not be ended within `timeout` ms.
 *
 * The keeper is killed first and both are waited for together: a process with SIGKILL pending runs nothing of its own any more, so the keeper does not see its
 * service die.
 */
export function takeOver(capsuleFd: number, oldKeeper: number, timeout = 10_000): number | undefined {
  const { ino } = fstatSync(capsuleFd);
  const end = performance.now() + timeout;
  const keeper = oldKeeper > 0 ? kill(oldKeeper, pid => pid !== process.ppid && holdsCapsule(pid, ino)) : () => true;
  faultPoint('upgrade.keeper-killed');
  let died: number | undefined;
  try {
    for (;;) {
      const holder = sys.lockHolder(capsuleFd);
      if (holder === undefined) {
        try {
          keeper(timeout);
          lockCapsule(capsuleFd);
          return died;
        } catch (error) {
          // One that the old keeper had just started was quicker: it is next.
          if (!(error instanceof CapsuleError)) throw error;
        }
      } else if (holder <= 0) throw new CapsuleError('locked', 'the mount is served from another pid namespace');
      else if (performance.now() > end)
        throw new CapsuleError('locked', `process ${holder} cannot be ended (state D?)`);
      else {
        died = performance.timeOrigin + performance.now();
        killAndWait(holder, Math.max(1, end - performance.now()), pid => sys.lockHolder(capsuleFd) === pid);
      }
    }
  } finally {
    keeper(0);
  }
}
