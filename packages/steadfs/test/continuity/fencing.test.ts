// timeout: 180
/**
 * A mount that was away for longer than its session lives: another client cleans the session up, takes the lock, and the removed files that were open are deleted. Whoever
 * held them here is told by errors, nothing written under the old lock reaches the volume, everything else goes on.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { openEngine } from '../../src/meta/registry.ts';
import { defaultOptions, session } from '../meta/contract.ts';
import { F_UNLCK, F_WRLCK, LOCK, O } from '../support/libc.ts';
import { abortMount, missing, openVolume } from '../support/volume.ts';
import { statusOf, until } from './faults.ts';

const root = { uid: 0, gid: 0, pid: 0, groups: () => [0], checkPermission: false };
const lack = missing('steadfs') ?? (process.getuid?.() === 0 ? undefined : 'needs root');

class Descriptors {
  readonly #child: ChildProcess = spawn(process.execPath, [join(import.meta.dirname, 'descriptors.ts')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  readonly #lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  async call(...args: (string | number)[]): Promise<string> {
    this.#child.stdin!.write(`${JSON.stringify(args)}\n`);
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 40_000);
    const { value, done } = await this.#lines.next();
    clearTimeout(timer);
    if (done) throw new Error(`${args.join(' ')}: no answer`);
    return value;
  }
  async is(wanted: string | RegExp, ...args: (string | number)[]): Promise<void> {
    const got = await this.call(...args);
    if (typeof wanted === 'string') assert.equal(got, wanted, args.join(' '));
    else assert.match(got, wanted, args.join(' '));
  }
  end(): void {
    this.#child.kill('SIGKILL');
  }
}

for (const how of ['frozen', 'killed'] as const)
  test(`session cleaned up while the service was ${how}`, { skip: lack ?? false, timeout: 160_000 }, async () => {
    const volume = openVolume({ mount: ['--heartbeat', '2'] });
    const here = new Descriptors();
    const at = (name: string): string => join(volume.dir, name);
    const engine = await openEngine(volume.meta, defaultOptions);
    let stopped = 0;
    try {
      // ── before: locks that are held, one that was given back, a removed file, an ordinary one
      for (const name of ['flock', 'fcntl', 'unlocked', 'removed', 'plain'])
        await here.is('0', 'open', name, at(name), O.RDWR | O.CREAT);
      await here.is('0', 'flock', 'flock', LOCK.EX);
      await here.is('0', 'lock', 'fcntl', F_WRLCK);
      await here.is('0', 'lock', 'unlocked', F_WRLCK);
      await here.is('0', 'lock', 'unlocked', F_UNLCK);
      for (const name of ['flock', 'fcntl', 'unlocked', 'removed', 'plain']) {
        await here.is('6', 'write', name, 'before', 0);
        await here.is('0', 'fsync', name);
      }
      await here.is('0', 'unlink', at('removed'));
      const { service, keeper } = statusOf(volume.dir);
      await here.is('5', 'write', 'plain', 'dirty', 0);
      await here.is('5', 'write', 'flock', 'DIRTY', 0);

      // ── away: the keeper must not start another one either
      stopped = how === 'frozen' ? service!.pid : keeper!.pid;
      process.kill(stopped, 'SIGSTOP');
      if (how === 'killed') process.kill(service!.pid, 'SIGKILL');
      await engine.load();
      await engine.newSession(session);
      const [sid] = (await engine.listSessions(false)).filter(s => s.mountPoint === volume.dir).map(s => s.sid);
      await engine.cleanSession(sid!);
      const ino = (await engine.lookup(root, 1, Buffer.from('flock'))).ino;
      await engine.flock({ kind: 3, slot: 1, seq: 1 }, ino, 77n, 'W');
      // Longer than three heartbeats: the process that wakes up can tell that it stood still.
      await new Promise(wake => setTimeout(wake, 7000));
      process.kill(stopped, 'SIGCONT');
      stopped = 0;

      // ── after
      await here.is('EIO', 'read', 'flock', 6, 0);
      await here.is('EIO', 'write', 'flock', 'after', 0);
      await here.is('EIO', 'read', 'fcntl', 6, 0);
      await here.is('EIO', 'flock', 'flock', LOCK.EX | LOCK.NB);
      await here.is('EIO', 'lock', 'fcntl', F_WRLCK);
      await here.is('ESTALE', 'read', 'removed', 6, 0);
      await here.is('ESTALE', 'write', 'removed', 'after', 0);
      await here.is('before', 'read', 'unlocked', 6, 0);
      await here.is('dirtye', 'read', 'plain', 6, 0);
      await here.is('0', 'fsync', 'plain');
      // Its owner knows now: it may ask for the lock like anybody else.
      await here.is('0', 'flock', 'flock', LOCK.UN);
      await here.is('EAGAIN', 'flock', 'flock', LOCK.EX | LOCK.NB);
      await engine.flock({ kind: 3, slot: 1, seq: 2 }, ino, 77n, 'U');
      await here.is('0', 'flock', 'flock', LOCK.EX | LOCK.NB);
      // Given up; on a busy machine it may have been stored before the mount was stopped.
      await here.is(/^(before|DIRTYe)$/, 'read', 'flock', 6, 0);
      // The write that was acknowledged and not stored is reported once more at the end of the descriptor.
      await here.is(/^(0|EIO)$/, 'close', 'flock');
      await here.is('0', 'lock', 'fcntl', F_UNLCK);
      await here.is('0', 'lock', 'fcntl', F_WRLCK);
      await here.is('5', 'write', 'fcntl', 'again', 0);
      await here.is('0', 'fsync', 'fcntl');
      for (const name of ['fcntl', 'unlocked', 'plain']) await here.is('0', 'close', name);
      await here.is('ESTALE', 'close', 'removed');
      // Lines are written a moment later, and not at all by a process that was killed in between.
      await until('logged', () =>
        /2 lock owners lose their locks/.test(readFileSync(join(volume.base, 'log'), 'utf8')),
      );
      // And in every process that follows.
      process.kill((await until('served', () => statusOf(volume.dir).service)).pid, 'SIGKILL');
      await here.is('0', 'open', 'plain', at('plain'), O.RDONLY);
      await here.is('dirtye', 'read', 'plain', 6, 0);
      await here.is('0', 'close', 'plain');
    } catch (error) {
      console.log(readFileSync(join(volume.base, 'log'), 'utf8').split('\n').slice(-30).join('\n'));
      throw error;
    } finally {
      if (stopped) process.kill(stopped, 'SIGCONT');
      here.end();
      await engine.closeSession();
      await engine.close();
      const fault = volume.close();
      if (fault) abortMount(volume.dir);
    }
  });
