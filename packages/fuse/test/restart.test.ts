/** Real mounts of the example file system, with kill -9. Skipped where /dev/fuse cannot be used. FUSE_TEST_KILLS=N makes the kill tests longer (default 12). */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, mkdtempSync, readFileSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { buildSync } from 'esbuild';
import { type CapsuleFds, createCapsule } from '../src/capsule.ts';
import { mountFuse, unmount } from '../src/mount.ts';
import { close } from '../src/sys.ts';

const run = promisify(execFile);
const here = import.meta.dirname;
const skip = (() => {
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK);
    return process.getuid?.() === 0 ? false : 'not root';
  } catch {
    return 'no /dev/fuse';
  }
})();
const kills = Number(process.env.FUSE_TEST_KILLS ?? 12);

/** Servers are bundles: they start in a fraction of the time, so that a test sees many. */
function bundle(entry: string, main: boolean): string {
  const outfile = join(
    here,
    '../../../node_modules/.cache/steadfs-fuse-test',
    `${process.pid}-${basename(entry, '.ts')}.mjs`,
  );
  buildSync({
    entryPoints: [join(here, entry)],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'esnext',
    external: ['koffi'],
    define: { 'import.meta.main': String(main) },
    logLevel: 'error',
  });
  after(() => rmSync(outfile));
  return outfile;
}
const memory = skip ? '' : bundle('../examples/memory.ts', true);
const faulty = skip ? '' : bundle('faulty.ts', false);

/** A mount whose fds this process holds, and its server, a child. */
class Mount {
  readonly point = mkdtempSync(join(tmpdir(), 'fuse-proto-'));
  fds!: CapsuleFds;
  fuse!: number;
  server!: ChildProcess;
  output = '';
  ended = false;

  async start(): Promise<void> {
    this.fds = createCapsule({ arenaSize: 256 << 20 });
    this.fuse = (await mountFuse(this.point, { source: 'memory', subtype: 'memory', defaultPermissions: true })).fd;
    this.serve();
  }
  /** With `place`, the server kills itself there (faulty.ts). */
  serve(place?: number): void {
    const program = place === undefined ? [memory, '--adopt'] : [faulty, String(place)];
    this.server = spawn(process.execPath, program, {
      stdio: ['ignore', 'pipe', 'pipe', this.fuse, this.fds.capsule, this.fds.arena],
    });
    for (const stream of [this.server.stdout!, this.server.stderr!])
      stream.on('data', data => {
        this.output += data;
      });
  }
  get dead(): boolean {
    return this.server.exitCode !== null || this.server.signalCode !== null;
  }
  async gone(): Promise<void> {
    if (!this.dead) await once(this.server, 'exit');
  }
  /** kill -9 and the next one. */
  async restart(place?: number): Promise<void> {
    this.server.kill('SIGKILL');
    await this.gone();
    this.serve(place);
  }
  shell(script: string, timeout = 60_000): Promise<{ stdout: string; stderr: string }> {
    const env = { ...process.env, M: this.point };
    return run('/bin/sh', ['-ec', script], { cwd: '/', timeout, killSignal: 'SIGKILL', env });
  }
  async stop(): Promise<void> {
    if (this.ended) return;
    this.ended = true;
    try {
      await unmount(this.point);
      await Promise.race([this.gone(), sleep(60_000, undefined, { ref: false })]);
    } finally {
      this.server.kill('SIGKILL');
      await unmount(this.point, { force: true, lazy: true }).catch(() => {});
      for (const fd of [this.fuse, this.fds.capsule, this.fds.arena]) close(fd);
      rmdirSync(this.point);
    }
  }
}

async function mounted(body: (mount: Mount) => Promise<void>): Promise<void> {
  const mount = new Mount();
  await mount.start();
  const said = () => mount.output.replaceAll(/^serving.*\n/gm, '');
  try {
    await body(mount);
    await mount.stop();
    assert.equal(said(), '', 'the server says nothing else');
    assert.equal(mount.server.exitCode, 0);
  } catch (error) {
    await mount.stop().catch(() => {});
    throw said() === '' ? error : new Error(`server: ${said()}`, { cause: error });
  }
}

/** Three programs that compare each result with a model, while `disturb` does its work. */
async function checked(
  mount: Mount,
  time: number,
  disturb: (over: () => boolean) => Promise<void>,
): Promise<{ answered: number; repeated: number }> {
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.log(`# seed ${seed}`);
  await mount.shell('mkdir $M/0 $M/1 $M/2');
  const clients = [0, 1, 2].map(i =>
    run(process.execPath, [join(here, 'mutator.ts'), `${mount.point}/${i}`, String(seed + i), String(time)], {
      timeout: time * 10 + 240_000,
      killSignal: 'SIGKILL',
    }).catch(error => {
      throw new Error(`client ${i}: ${error.stdout}${error.stderr}`);
    }),
  );
  let over = false;
  const all = Promise.all(clients).finally(() => {
    over = true;
  });
  all.catch(() => {});
  await disturb(() => over);
  const counts = (await all).map(({ stdout }) => Number(stdout));
  const carried = [...mount.output.matchAll(/serving (.*)/g)].map(m => JSON.parse(m[1]!));
  const sum = (what: string): number => carried.reduce((n, c) => n + c[what], 0);
  const [answered, repeated] = [sum('answered'), sum('repeated')];
  console.log(
    `# ${counts.reduce((a, b) => a + b)} operations, ${carried.length} servers; answered again ${answered}, repeated ${repeated}`,
  );
  for (const n of counts) assert.ok(n > 0);
  return { answered, repeated };
}

test('shell commands on the example file system', { skip, timeout: 180_000 }, () =>
  mounted(async mount => {
    const { stdout } = await mount.shell(`cd $M
      mkdir a; echo one > a/f; ln a/f g; ln -s a/f s; mv a/f a/h; cat s 2>/dev/null || cat g
      dd if=/dev/urandom of=/tmp/fuse-proto-$$ bs=100k count=33 2>/dev/null
      cp /tmp/fuse-proto-$$ big; cmp big /tmp/fuse-proto-$$; dd if=big of=direct bs=4k iflag=direct oflag=direct 2>/dev/null; cmp big direct
      truncate -s 5 big; truncate -s 9 big; od -An -c big | wc -l; rm /tmp/fuse-proto-$$
      flock g true; touch -d @1234567890.123456789 g; stat -c %.9Y g; chmod 640 g; stat -c '%a %h %s' g
      i=0; while [ $i -lt 300 ]; do : > a/n$i; i=$((i+1)); done; ls a | wc -l; rm -r a; ls; cd /`);
    assert.equal(stdout, 'one\n1\n1234567890.123456789\n640 2 4\n301\nbig\ndirect\ng\ns\n');
  }),
);

test('an unlinked file is there while it is open', { skip, timeout: 180_000 }, () =>
  mounted(async mount => {
    const { stdout } = await mount.shell('cd $M; echo text > f; exec 5< f; rm f; cat <&5; ls -A | wc -l; cd /');
    assert.equal(stdout, 'text\n0\n');
  }),
);

test('kill -9 of the server again and again: every result is right', { skip, timeout: 600_000 }, () =>
  mounted(async mount => {
    await checked(mount, kills * 400, async over => {
      for (let i = 0; i < kills && !over(); i++) {
        await sleep(20 + Math.random() * 300);
        await mount.restart();
      }
    });
  }),
);

test('the server dies at every step of a request: every result is right', { skip, timeout: 600_000 }, () =>
  mounted(async mount => {
    const { answered, repeated } = await checked(mount, kills * 500, async over => {
      while (!over()) {
        await mount.restart(1 + Math.floor(Math.random() * 300));
        const gone = mount.gone();
        while (!over() && !mount.dead) await Promise.race([gone, sleep(50)]);
      }
      await mount.restart();
    });
    assert.ok(answered + repeated > 0);
  }),
);

test('a blocked lock goes on waiting through kill -9, and is interrupted by a signal', { skip, timeout: 180_000 }, () =>
  mounted(async mount => {
    await mount.shell('echo > $M/f');
    const flock = (...command: string[]): Locker => {
      const child = spawn('flock', [`${mount.point}/f`, ...command], { stdio: ['pipe', 'pipe', 'inherit'], cwd: '/' });
      return Object.assign(child, { end: once(child, 'exit') as Locker['end'] });
    };
    const holder = flock('sh', '-c', 'echo held; read _');
    const lockers = [holder];
    try {
      await once(holder.stdout!, 'data');
      const waiter = flock('true');
      const loser = flock('true');
      lockers.push(waiter, loser);
      await blockedInFlock(waiter);
      await blockedInFlock(loser);
      await mount.restart();
      loser.kill('SIGTERM');
      // Its request is answered by the new server, and by then the other's has been taken over too.
      assert.deepEqual(await loser.end, [null, 'SIGTERM']);
      await blockedInFlock(waiter);
      assert.equal(holder.exitCode, null);
      holder.stdin!.end('\n');
      assert.deepEqual(await holder.end, [0, null]);
      assert.deepEqual(await waiter.end, [0, null]);
    } finally {
      for (const child of lockers) child.kill('SIGKILL');
    }
  }),
);

type Locker = ChildProcess & { end: Promise<[number | null, NodeJS.Signals | null]> };

/** Waits until the process waits in flock(2). */
async function blockedInFlock(child: ChildProcess): Promise<void> {
  const number = process.arch === 'arm64' ? '32' : '73';
  const until = performance.now() + 60_000;
  while (readFileSync(`/proc/${child.pid}/syscall`, 'utf8').split(' ')[0] !== number) {
    assert.equal(child.exitCode, null, 'it has ended');
    assert.ok(performance.now() < until, `process ${child.pid} never waits in flock`);
    await sleep(5);
  }
}

test('a lost capsule: RESEND brings reads again, mutations get EIO', { skip, timeout: 180_000 }, async () => {
  const point = mkdtempSync(join(tmpdir(), 'fuse-proto-'));
  const { fd } = await mountFuse(point, { source: 'orphan', subtype: 'orphan' });
  const server = (...args: string[]): ChildProcess & { said: string } => {
    const child = spawn(process.execPath, [join(here, 'orphan.ts'), ...args], {
      stdio: ['ignore', 'pipe', 'inherit', fd],
    });
    const result = Object.assign(child, { said: '' });
    child.stdout!.on('data', data => {
      result.said += data;
    });
    return result;
  };
  const first = server('hang');
  let second: (ChildProcess & { said: string }) | undefined;
  try {
    while (!first.said.includes('\n')) await sleep(5);
    const [connection = ''] = first.said.split('\n');
    if (Number(connection.split(' ')[2]) < 40) return;
    const shell = (script: string) => run('/bin/sh', ['-c', script], { timeout: 60_000, killSignal: 'SIGKILL' });
    const makes = shell(`mkdir ${point}/new 2>&1`).catch(error => error);
    while (!first.said.includes('mkdir')) await sleep(5);
    const looks = shell(`stat -c %a ${point} 2>&1`).catch(error => error);
    while (!first.said.includes('getattr')) await sleep(5);
    first.kill('SIGKILL');
    await once(first, 'exit');
    second = server(...connection.split(' '));
    assert.match((await looks).stdout, /^777$/m);
    assert.match((await makes).stdout, /Input\/output error/);
    assert.match(second.said, /MKDIR.*outcome is unknown/);
  } finally {
    await unmount(point, { force: true, lazy: true }).catch(() => {});
    first.kill('SIGKILL');
    second?.kill('SIGKILL');
    close(fd);
    rmdirSync(point);
  }
});

for (const [what, script] of [
  ['pages that a READ is to fill', 'cat $M/f'],
  ['a name in a directory where a MKDIR is under way', 'stat $M/f; mkdir $M/new'],
] as const)
  test(`kill -9 ends a server that drops ${what}`, { skip, timeout: 180_000 }, async () => {
    const point = mkdtempSync(join(tmpdir(), 'fuse-proto-'));
    const { fd } = await mountFuse(point, { source: 'stuck', subtype: 'stuck' });
    const server = spawn(process.execPath, [join(here, 'stuck.ts')], { stdio: ['ignore', 'pipe', 'inherit', fd] });
    let said = '';
    server.stdout!.on('data', data => {
      said += data;
    });
    try {
      const caller = run('/bin/sh', ['-c', script.replaceAll('$M', point)], { timeout: 120_000 }).catch(error => error);
      while (!said.includes('asked')) await sleep(5);
      // Time for the notification to reach the lock that the caller holds.
      await sleep(500);
      assert.ok(!said.includes('notified'), 'the kernel makes the notification wait');
      server.kill('SIGKILL');
      const ended = await Promise.race([once(server, 'exit'), sleep(60_000, undefined, { ref: false })]);
      assert.ok(ended, 'the server has ended');
      await unmount(point, { force: true, lazy: true });
      await caller;
    } finally {
      await unmount(point, { force: true, lazy: true }).catch(() => {});
      server.kill('SIGKILL');
      close(fd);
      rmdirSync(point);
    }
  });
