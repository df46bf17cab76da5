/** A service manager that speaks systemd's protocol: what it keeps of one unit is the fd store, the messages and the main process. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as sys from '../../src/sys.ts';

interface ManagerSettings {
  /** Where the notification socket is made. */
  dir: string;
  /** ExecStart= */
  command: readonly string[];
  env?: Record<string, string>;
  /** Restart=on-failure with RestartSec=0: a main process that ends otherwise than with 0 is started again at once. */
  restart?: boolean;
  /** Path of a file that gets the main process's output; ours otherwise. */
  output?: number;
}

export class Manager {
  readonly store = new Map<string, number>();
  readonly log: Record<string, string>[] = [];
  /** Starts of the main process. */
  starts = 0;
  readonly #socket: number;
  readonly #path: string;
  readonly #settings: ManagerSettings;
  readonly #watch: sys.Watch;
  #child: ChildProcess | undefined;
  #ready = false;
  #ended = false;
  #restarting = false;

  constructor(settings: ManagerSettings) {
    this.#settings = settings;
    this.#path = join(settings.dir, 'notify');
    this.#socket = sys.bindDatagram(this.#path);
    this.#watch = sys.watchReadable(this.#socket, () => this.read());
  }

  /** The main process; undefined when there is none. */
  get pid(): number | undefined {
    return this.#child?.exitCode === null && this.#child.signalCode === null ? this.#child.pid : undefined;
  }

  /** Whether the main process has said READY=1. */
  get ready(): boolean {
    return this.pid !== undefined && this.#ready;
  }

  read(): void {
    for (;;) {
      const got = sys.receiveFds(this.#socket);
      if (typeof got === 'number') return;
      const message = Object.fromEntries(
        Buffer.from(got.data)
          .toString()
          .split('\n')
          .map(line => line.split('=', 2) as [string, string]),
      );
      this.log.push(message);
      if (message.READY === '1') this.#ready = true;
      const name = message.FDNAME!;
      if (message.FDSTORE) {
        assert.equal(got.fds.length, 1);
        if (name === 'steadfs-fuse') assert.equal(message.FDPOLL, '0', 'the connection must not be polled');
        const old = this.store.get(name);
        if (old !== undefined) sys.close(old);
        this.store.set(name, got.fds[0]!);
      } else assert.equal(got.fds.length, 0);
      if (message.FDSTOREREMOVE) {
        const old = this.store.get(name);
        if (old !== undefined) sys.close(old);
        this.store.delete(name);
      }
    }
  }

  start(env: Record<string, string> = {}): ChildProcess {
    // What the one before has said is in the socket, whether or not the loop came by since.
    this.read();
    const fds = [...this.store];
    const [program, ...args] = this.#settings.command;
    const output = this.#settings.output ?? 'inherit';
    this.log.length = 0;
    this.#ready = false;
    this.starts++;
    const child = spawn(program!, args, {
      stdio: ['ignore', output, output, ...fds.map(f => f[1])],
      env: {
        ...process.env,
        ...this.#settings.env,
        NOTIFY_SOCKET: this.#path,
        ...(fds.length && { LISTEN_FDS: String(fds.length), LISTEN_FDNAMES: fds.map(f => f[0]).join(':') }),
        ...env,
      },
    });
    this.#child = child;
    child.on('exit', code => {
      const again = this.#restarting || (this.#settings.restart && code !== 0);
      if (again && !this.#ended && this.#child === child) this.start();
    });
    return child;
  }

  /** `systemctl restart`: SIGTERM, and a new main process once the old one has ended. */
  async restart(timeout?: number): Promise<void> {
    const { starts } = this;
    this.#restarting = true;
    this.#child?.kill('SIGTERM');
    await this.until('the next main process', () => this.starts > starts, timeout);
    this.#restarting = false;
  }

  async until(what: string, seen: () => boolean, timeout = 60_000): Promise<void> {
    const end = performance.now() + timeout;
    for (;;) {
      this.read();
      if (seen()) return;
      assert.ok(performance.now() < end, what);
      await sleep(5);
    }
  }

  untilReady(timeout?: number): Promise<void> {
    return this.until('READY=1', () => this.#ready, timeout);
  }

  end(): void {
    this.#ended = true;
    this.#child?.kill('SIGKILL');
    this.#watch.close();
    for (const fd of this.store.values()) sys.close(fd);
    sys.close(this.#socket);
  }
}
