/** Real mounts of examples/notes.ts: kill -9 of everything, upgrades, refused upgrades. STEADFS_KILLS sets how many. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { getPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fdsOfProcess } from '../src/handover.ts';
import { abortConnection, findMount, unmount } from '../src/mount.ts';
import { mountState, startMount } from '../src/service.ts';
import type { MountState, Replaced, Started } from '../src/service-types.ts';
import * as sys from '../src/sys.ts';

const KILLS = Number(process.env.STEADFS_KILLS ?? 8);
const skip = existsSync('/dev/fuse') && sys.geteuid() === 0 ? false : 'needs root and /dev/fuse';
const notes = new URL('../examples/notes.ts', import.meta.url).pathname;
const load = new URL('./helpers/load.ts', import.meta.url).pathname;
const seed = Number(process.env.SEED ?? Date.now() % 1e9);
let x = seed || 1;
function random(n: number): number {
  x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
  return Math.floor((x / 2 ** 32) * n);
}

let scratch: string;
before(() => {
  console.log(`seed ${seed}`);
  scratch = mkdtempSync(join(tmpdir(), 'steadfs-service-'));
});
after(() => rmSync(scratch, { recursive: true, force: true }));

interface Mounted {
  dir: string;
  log: string;
  run(command: string, env?: Record<string, string>): unknown;
  state(): Promise<MountState>;
}

/** Mounts notes, hands it to the body, and unmounts whatever happens. */
async function mounted(name: string, body: (m: Mounted) => Promise<void>, first = 'mount'): Promise<void> {
  const dir = join(scratch, name);
  const log = `${dir}.log`;
  mkdirSync(dir);
  const m: Mounted = {
    dir,
    log,
    run(command, env = {}) {
      const out = execFileSync(process.execPath, [notes, command, dir], {
        env: { ...process.env, STEADFS_NOTES_LOG: log, ...env },
        timeout: 120_000,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      return out.length ? (JSON.parse(out.toString()) as unknown) : undefined;
    },
    async state() {
      const state = await mountState(dir);
      assert.ok(state, 'mounted');
      return state;
    },
  };
  try {
    if (first) m.run(first);
    await body(m);
  } catch (error) {
    if (existsSync(log)) console.log(readFileSync(log, 'utf8').split('\n').slice(-30).join('\n'));
    throw error;
  } finally {
    for (const child of children) child.kill('SIGKILL');
    const mount = findMount(dir);
    if (mount) {
      const state = await mountState(dir);
      abortConnection(mount.device);
      await unmount(dir, { force: true }).catch(() => {});
      for (const pid of [state?.keeper?.pid, state?.service?.pid]) if (pid) sys.kill(pid, sys.SIGKILL);
    }
  }
}

interface Load {
  end(): Promise<{ rounds: number; calls: number; slowest: number; failures: string[] }>;
}

const children = new Set<ChildProcess>();

function startLoad(dir: string, id: string): Load {
  const child = spawn(process.execPath, [load, dir, id], { stdio: ['pipe', 'pipe', 'inherit'], cwd: '/' });
  children.add(child);
  child.on('close', () => children.delete(child));
  let out = '';
  child.stdout.setEncoding('utf8').on('data', (t: string) => {
    out += t;
  });
  const closed = once(child, 'close');
  return {
    async end() {
      child.stdin.end();
      const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
      await closed;
      clearTimeout(timer);
      assert.notEqual(out, '', `load ${id} hangs`);
      return JSON.parse(out) as Awaited<ReturnType<Load['end']>>;
    },
  };
}

async function endLoads(loads: Load[], what: string): Promise<void> {
  const results = await Promise.all(loads.map(l => l.end()));
  const calls = results.reduce((n, r) => n + r.calls, 0);
  console.log(`${what}: ${calls} calls, slowest ${Math.max(...results.map(r => r.slowest))} ms`);
  for (const r of results) {
    assert.deepEqual(r.failures, []);
    assert.ok(r.rounds > 0, 'the load did something');
  }
}

async function until<T>(
  what: string,
  look: () => Promise<T | undefined | false> | T | undefined | false,
  timeout = 60_000,
): Promise<T> {
  const end = performance.now() + timeout;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (performance.now() > end) throw new Error(`not within ${timeout} ms: ${what}`);
    await sleep(5);
  }
}

function alive(pid: number): boolean {
  return existsSync(`/proc/${pid}/fd`) && readdirSync(`/proc/${pid}/fd`).length > 0;
}

function percentiles(values: number[]): string {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (p: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))];
  return `p50 ${at(0.5)}, p99 ${at(0.99)}, max ${sorted.at(-1)} ms`;
}

test('mount, state, unmount: processes end, nothing is left', { skip, timeout: 240_000 }, () =>
  mounted('plain', async m => {
    const state = await m.state();
    assert.equal(state.state, 'serving');
    assert.equal(state.takeovers.length, 1);
    assert.equal(state.takeovers[0]!.why, 'mount');
    assert.ok(state.service && state.keeper);
    const status = readFileSync(`/proc/${state.keeper.pid}/status`, 'utf8');
    // The first service too, which the keeper starts in its first millisecond.
    assert.deepEqual(
      [state.keeper.pid, state.service.pid].map(pid => getPriority(pid) <= -10),
      [true, true],
    );
    assert.ok(Number(/VmRSS:\s+(\d+)/.exec(status)![1]) < 5000, 'the keeper is small');
    const environment = readFileSync(`/proc/${state.service.pid}/environ`, 'utf8');
    assert.ok(!environment.includes('STEADFS_NOTES_SECRET'));
    m.run('umount');
    assert.equal(await mountState(m.dir), undefined);
    await until('keeper and service are gone', () => !alive(state.keeper!.pid) && !alive(state.service!.pid));
    assert.equal(existsSync(state.launch!.directory), false);
  }),
);

test(`kill -9 of the service under load, ${KILLS} times`, { skip, timeout: 120_000 + KILLS * 15_000 }, () =>
  mounted('service', async m => {
    const loads = ['a', 'b', 'c'].map(id => startLoad(m.dir, id));
    await sleep(300);
    const pauses: number[] = [];
    for (let i = 0; i < KILLS; i++) {
      const { service } = await until('a service', async () => {
        const s = await m.state();
        return s.service && s.state === 'serving' && s;
      });
      await sleep(random(120));
      sys.kill(service!.pid, sys.SIGKILL);
      const killed = performance.now();
      await until('the next service', async () => {
        const s = await m.state();
        return s.state === 'serving' && s.service && s.service.pid !== service!.pid && s;
      });
      pauses.push(Math.round(performance.now() - killed));
    }
    await endLoads(loads, 'kill -9 of the service');
    console.log(`from kill to serving: ${percentiles(pauses)} (TypeScript from source; a bundle starts faster)`);
    const left = execFileSync('ls', [m.dir], { timeout: 60_000 }).toString();
    assert.equal(left, '');
  }),
);

test(
  `kill -9 of the service at any instant of its start, ${KILLS} times`,
  { skip, timeout: 120_000 + KILLS * 15_000 },
  () =>
    mounted('early', async m => {
      const loads = ['a', 'b'].map(id => startLoad(m.dir, id));
      await sleep(300);
      for (let i = 0; i < KILLS; i++) {
        const pid = await until('a process', async () => {
          const { keeper } = await m.state();
          const children = readFileSync(`/proc/${keeper!.pid}/task/${keeper!.pid}/children`, 'utf8').trim();
          return children !== '' && Number(children.split(' ')[0]);
        });
        await sleep(random(200));
        sys.kill(pid, sys.SIGKILL);
      }
      await endLoads(loads, 'kill -9 of starting services');
    }),
);

test('kill -9 of the keeper, and of keeper and service in turn', { skip, timeout: 240_000 }, () =>
  mounted('keeper', async m => {
    const loads = ['a', 'b'].map(id => startLoad(m.dir, id));
    const times: number[] = [];
    for (let i = 0; i < KILLS; i++) {
      const s = await until('both', async () => {
        const s = await m.state();
        return s.state === 'serving' && s.keeper && s.service && s;
      });
      sys.kill(s.keeper!.pid, sys.SIGKILL);
      const killed = performance.now();
      const next = await until('a new keeper', async () => {
        const n = await m.state();
        return n.keeper && n.keeper.pid !== s.keeper!.pid && n;
      });
      times.push(Math.round(performance.now() - killed));
      assert.equal(next.service!.pid, s.service!.pid);
      if (i % 2) {
        sys.kill(s.service!.pid, sys.SIGKILL);
        await until('the keeper that the service had started starts a service', async () => {
          const n = await m.state();
          return n.state === 'serving' && n.service && n.service.pid !== s.service!.pid;
        });
      }
    }
    await endLoads(loads, 'kill -9 of the keeper');
    console.log(`until a new keeper is there: ${percentiles(times)}`);
  }),
);

test(`upgrade in place under load, ${KILLS} times`, { skip, timeout: 120_000 + KILLS * 15_000 }, () =>
  mounted('upgrade', async m => {
    const loads = ['a', 'b', 'c'].map(id => startLoad(m.dir, id));
    await sleep(200);
    const pauses: number[] = [];
    for (let i = 0; i < KILLS; i++) {
      const old = await m.state();
      const { takeover, service, keeper } = m.run('upgrade', { STEADFS_NOTES_VERSION: `1.${i}.0` }) as Replaced;
      assert.equal(takeover.to, `1.${i}.0`);
      assert.equal(takeover.why, 'upgrade');
      assert.equal(takeover.from, old.service!.version);
      pauses.push(takeover.pause);
      assert.ok(!alive(old.service!.pid) && !alive(old.keeper!.pid), 'the old ones are gone');
      const now = await m.state();
      assert.equal(now.service!.pid, service);
      assert.equal(now.keeper!.pid, keeper);
      assert.equal(now.service!.version, `1.${i}.0`);
    }
    await endLoads(loads, 'upgrade');
    console.log(`pause of an upgrade: ${percentiles(pauses)}`);
    const fds = readdirSync(`/proc/${(await m.state()).service!.pid}/fd`).length;
    assert.ok(fds < 40, `${fds} fds`);
    // What served last is started again after a crash.
    const { service } = await m.state();
    sys.kill(service!.pid, sys.SIGKILL);
    const next = await until('the next service', async () => {
      const s = await m.state();
      return s.state === 'serving' && s.service?.pid !== service!.pid && s;
    });
    assert.equal(next.takeovers.at(-1)!.why, 'crash');
    assert.equal(next.takeovers.at(-1)!.to, `1.${KILLS - 1}.0`);
  }),
);

const REFUSALS: [string, Record<string, string>, RegExp][] = [
  ['it cannot connect', { STEADFS_NOTES_FAULT: 'prepare' }, /cannot connect/],
  ['it crashes while it gets warm', { STEADFS_NOTES_FAULT: 'crash' }, /ended before it served/],
  ['it hangs', { STEADFS_NOTES_FAULT: 'hang', STEADFS_NOTES_TIMEOUT: '700' }, /not ready/],
  ['it cannot read the capsule', { STEADFS_NOTES_FAULT: 'older' }, /cannot adopt.*journal/],
];
for (const [what, env, reason] of REFUSALS)
  test(`upgrade refused because ${what}: the old service goes on`, { skip, timeout: 240_000 }, () =>
    mounted(`refused-${REFUSALS.findIndex(r => r[0] === what)}`, async m => {
      const loads = [startLoad(m.dir, 'a')];
      const before = await m.state();
      assert.throws(
        () => m.run('upgrade', env),
        (e: Error & { stderr?: Buffer }) => reason.test(String(e.stderr)),
      );
      const now = await m.state();
      assert.equal(now.service!.pid, before.service!.pid);
      assert.equal(now.keeper!.pid, before.keeper!.pid);
      assert.equal(now.state, 'serving');
      await endLoads(loads, 'refused upgrade');
      // And it can still be killed and upgraded.
      sys.kill(now.service!.pid, sys.SIGKILL);
      await until('the next service', async () => (await m.state()).service && (await m.state()).state === 'serving');
      m.run('upgrade', { STEADFS_NOTES_VERSION: '2.0.0' });
    }),
  );

test(
  'the new service dies behind the commit point: its keeper starts another, nothing is lost',
  { skip, timeout: 240_000 },
  () =>
    mounted('behind', async m => {
      const loads = [startLoad(m.dir, 'a')];
      const { takeover } = m.run('upgrade', {
        STEADFS_NOTES_FAULT: 'after-commit',
        STEADFS_NOTES_VERSION: '3.0.0',
      }) as Replaced;
      assert.equal(takeover.why, 'crash');
      assert.equal(takeover.to, '3.0.0');
      await endLoads(loads, 'death behind the commit point');
    }),
);

test('an upgrade of a service that is stopped, and of one that is dead', { skip, timeout: 240_000 }, () =>
  mounted('stopped', async m => {
    const stopped = (await m.state()).service!.pid;
    sys.kill(stopped, sys.SIGSTOP);
    const { takeover } = m.run('upgrade', { STEADFS_NOTES_VERSION: '2.0.0' }) as Replaced;
    assert.equal(takeover.from, '1.0.0');
    assert.ok(!alive(stopped));
    execFileSync('ls', [m.dir], { timeout: 60_000 });
  }),
);

test(
  'a service that cannot be started: the mount waits, state says why, umount works',
  { skip, timeout: 240_000 },
  () =>
    mounted('waits', async m => {
      m.run('upgrade', { STEADFS_NOTES_FAULT: 'restart' });
      const { service, keeper } = await m.state();
      sys.kill(service!.pid, sys.SIGKILL);
      const state = await until('waiting', async () => {
        const s = await m.state();
        return s.state === 'waiting' && s;
      });
      assert.match(state.message!, /exit code 1|will not start/);
      assert.ok(state.launch);
      const waiting = spawn('ls', [m.dir], { stdio: 'ignore' });
      await sleep(200);
      assert.equal(waiting.exitCode, null, 'callers wait');
      // An upgrade to a version that works brings it back.
      m.run('upgrade', { STEADFS_NOTES_VERSION: '4.0.0' });
      await until('the caller gets its answer', () => waiting.exitCode === 0);
      await until('the old keeper is gone', () => !alive(keeper!.pid));
      // And once more, to be unmounted.
      m.run('upgrade', { STEADFS_NOTES_FAULT: 'restart' });
      const last = await m.state();
      sys.kill(last.service!.pid, sys.SIGKILL);
      await until('waiting', async () => (await m.state()).state === 'waiting');
      await unmount(m.dir);
      await until('the keeper ends', () => !alive(last.keeper!.pid));
    }),
);

/** touch(1) in a mount; killed when the test ends. */
function touch(path: string): { child: ChildProcess; ended: Promise<[number | null, string]> } {
  const child = spawn('touch', [path], { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' });
  children.add(child);
  let said = '';
  child.stderr.on('data', text => {
    said += text;
  });
  return { child, ended: once(child, 'close').then(([code]) => [code as number | null, said]) };
}

for (const how of ['throw', 'hang', 'abort'])
  test(
    `a request that crashes the service (${how}) gets EIO at the third crash, all others are answered`,
    {
      skip,
      timeout: 240_000,
    },
    () =>
      mounted(
        `poison-${how}`,
        async m => {
          if (how === 'hang') execFileSync('mkfifo', [`${m.log}.go.fifo`]);
          m.run('mount', { STEADFS_NOTES_FAULT: `create-${how}` });
          const loads = ['a', 'b', 'c'].map(id => startLoad(m.dir, id));
          const [code, said] = await touch(join(m.dir, 'poison')).ended;
          assert.equal(code, 1);
          assert.match(said, /Input\/output error/);
          await endLoads(loads, `a request that crashes the service (${how})`);
          const crashes = (await m.state()).takeovers.filter(t => t.why === 'crash').length;
          console.log(`${crashes} crashes`);
          assert.ok(crashes >= 3 && crashes <= 9, `${crashes} crashes`);
          const blames = readFileSync(m.log, 'utf8')
            .split('\n')
            .filter(line => line.includes('has crashed the service'));
          assert.equal(blames.length, 1);
          assert.match(blames[0]!, /CREATE of inode 1 .*answered EIO.*upgrade/);
          assert.deepEqual(await touch(join(m.dir, 'good')).ended, [0, '']);
        },
        '',
      ),
  );

test('ten kill -9 from outside do not fail a slow request', { skip, timeout: 240_000 }, () =>
  mounted(
    'slow',
    async m => {
      m.run('mount', { STEADFS_NOTES_FAULT: 'create-throw' });
      const slow = touch(join(m.dir, 'slow'));
      let pid = 0;
      for (let i = 0; i <= 10; i++) {
        const next = await until('a service that has the request', async () => {
          const s = await m.state();
          return s.state === 'serving' && s.service && s.service.pid !== pid && s.waiting === 1 && s;
        });
        pid = next.service!.pid;
        if (i > 0) assert.equal(next.takeovers.at(-1)!.carriedOver.repeated, 1);
        assert.equal(slow.child.exitCode, null);
        if (i < 10) sys.kill(pid, sys.SIGKILL);
      }
      writeFileSync(`${m.log}.go`, '');
      assert.deepEqual(await slow.ended, [0, '']);
    },
    '',
  ),
);

test(
  'a request that makes the loop spin: the service ends by its timer, EIO at the third time',
  { skip, timeout: 240_000 },
  () =>
    mounted(
      'spin',
      async m => {
        m.run('mount', { STEADFS_NOTES_FAULT: 'create-spin', STEADFS_NOTES_HANG: '0.5' });
        const { pid } = (await m.state()).service!;
        sys.kill(pid, sys.SIGSTOP);
        await sleep(1500);
        sys.kill(pid, sys.SIGCONT);
        assert.deepEqual(await touch(join(m.dir, 'good')).ended, [0, '']);
        assert.equal((await m.state()).service!.pid, pid, 'a stopped process is not ended');
        const [code, said] = await touch(join(m.dir, 'spin')).ended;
        assert.equal(code, 1);
        assert.match(said, /Input\/output error/);
        assert.match(readFileSync(m.log, 'utf8'), /did not turn its event loop any more/);
        assert.deepEqual(await touch(join(m.dir, 'good')).ended, [0, '']);
      },
      '',
    ),
);

test('two starters: the second one goes', { skip, timeout: 240_000 }, () =>
  mounted('two', async m => {
    const s = await m.state();
    const fds = fdsOfProcess(s.keeper!.pid);
    const [command, ...args] = s.launch!.command;
    const rival = spawn(command!, args, {
      stdio: ['ignore', 'ignore', 'ignore', fds.fuse, fds.capsule, fds.arena, fds.launch, fds.state],
      env: { ...process.env, STEADFS_START: 'crash', STEADFS_KEEPER: String(process.pid) },
    });
    const code = await new Promise(resolve => rival.on('exit', resolve));
    for (const fd of Object.values(fds)) sys.close(fd);
    assert.equal(code, 75);
    assert.equal((await m.state()).service!.pid, s.service!.pid);
  }),
);

test('foreground: the command becomes the keeper; TERM unmounts and ends it', { skip, timeout: 240_000 }, () =>
  mounted(
    'foreground',
    async m => {
      const child: ChildProcess = spawn(process.execPath, [notes, 'foreground', m.dir], {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let text = '';
      child.stderr!.on('data', (b: Buffer) => {
        text += b.toString();
      });
      try {
        const s = await until('serving', async () => {
          const s = await mountState(m.dir);
          return s?.state === 'serving' && s.service && s;
        });
        assert.equal(s.keeper!.pid, child.pid);
        sys.kill(s.service!.pid, sys.SIGKILL);
        await until('the next service', async () => {
          const n = await m.state();
          return n.state === 'serving' && n.service && n.service.pid !== s.service!.pid;
        });
        child.kill('SIGTERM');
        const code = await new Promise(resolve => child.on('exit', resolve));
        assert.equal(code, 0);
        assert.equal(findMount(m.dir), undefined);
        assert.match(text, /unmounted/);
      } finally {
        child.kill('SIGKILL');
      }
    },
    '',
  ),
);

test('a mount that fails before there is a service is taken back', { skip, timeout: 60_000 }, async () => {
  const dir = join(scratch, 'before');
  mkdirSync(dir);
  const settings = {
    mountPoint: dir,
    mount: { source: 'x', subtype: 'notes' },
    version: '1',
    command: [],
    options: {},
  };
  await assert.rejects(startMount({ ...settings, arenaSize: -4096 }));
  assert.equal(findMount(dir), undefined);
});

test('a mount whose service does not start is taken back, with the reason', { skip, timeout: 240_000 }, () =>
  mounted(
    'fails',
    async m => {
      assert.throws(
        () => m.run('mount', { STEADFS_NOTES_FAULT: 'prepare' }),
        (e: Error & { stderr?: Buffer }) => /cannot connect/.test(String(e.stderr)),
      );
      assert.equal(findMount(m.dir), undefined);
      const { service } = m.run('mount') as Started;
      assert.ok(service);
    },
    '',
  ),
);
