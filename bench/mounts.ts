/**
 * What a mount costs and how long a take-over takes: processes, memory, descriptors, starting, many mounts on one host, pauses seen by a program while the service is killed or
 * upgraded, with few and with many known inodes, open files and locks.
 *
 *   node bench/mounts.ts [start] [many] [takeover]   [--count N] [--seconds S] [--events K] [--inodes 0,10000,1000000] [--phases] [--write]
 *
 * start: one mount, nothing on it. many: N mounts (default 100) of volumes of their own, upgraded at the end. takeover: K kills (kill -9 of the service) and K upgrades (default 10) per
 * number of inodes that the kernel knows; unless that is 0, 10,000 of their files are open and locked. --phases prints where the time went.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, fstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import * as libc from '../packages/steadfs/test/support/libc.ts';
import { abortMount, missing, openVolume, runClient } from '../packages/steadfs/test/support/volume.ts';
import { parts, usage } from './processes.ts';
import { machine, record } from './results.ts';

const OPEN = 10_000;
const PER_DIRECTORY = 1000;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string', default: '100' },
    seconds: { type: 'string', default: '30' },
    events: { type: 'string', default: '10' },
    inodes: { type: 'string', default: '0,10000,1000000' },
    phases: { type: 'boolean', default: false },
    write: { type: 'boolean', default: false },
    // The program that runs on the mount under test.
    client: { type: 'string' },
    open: { type: 'string', default: '0' },
  },
});

const sorted = (of: readonly number[]): number[] => [...of].sort((a, b) => a - b);
const quantile = (of: readonly number[], q: number): number =>
  sorted(of)[Math.min(of.length - 1, Math.floor(of.length * q))] ?? Number.NaN;
const show = (n: number): string => (Math.abs(n) >= 100 ? Math.round(n).toLocaleString('en') : n.toPrecision(3));

function publish(heading: string, rows: readonly (readonly [string, string])[], note = ''): void {
  const table = ['| | |', '|---|---:|', ...rows.map(([name, value]) => `| ${name} | ${value} |`)];
  console.log(`\n${heading}\n${table.join('\n')}${note && `\n\n${note}`}`);
  if (!values.write) return;
  const command = `node bench/mounts.ts ${process.argv.slice(2).join(' ')}`;
  record(heading, [
    `${new Date().toISOString().slice(0, 10)}, \`${command}\`; ${machine}, load ${loadavg()[0]!.toFixed(0)}.`,
    '',
    ...table,
    ...(note ? ['', note] : []),
  ]);
}

// --- start ------------------------------------------------------------------------------------------------------------

async function start(): Promise<void> {
  const base = mkdtempSync(join(tmpdir(), 'bench-mounts-'));
  const meta = `sqlite3://${base}/meta.db`;
  const mnt = join(base, 'mnt');
  mkdirSync(mnt);
  const command = (args: string[]): number => {
    const before = performance.now();
    const { status, stderr } = runClient('steadfs', args);
    if (status !== 0) throw new Error(stderr);
    return performance.now() - before;
  };
  const mountArgs = ['mount', '-d', '--log', join(base, 'log'), '--metrics', '', meta, mnt];
  try {
    command(['format', '--storage', 'file', '--bucket', `${base}/objects`, meta, 'bench']);
    command(mountArgs);
    writeFileSync(join(mnt, 'file'), 'x');
    const times: Record<'version' | 'mount' | 'first' | 'umount', number[]> = {
      version: [],
      mount: [],
      first: [],
      umount: [],
    };
    for (let i = 0; i < 5; i++) {
      times.umount.push(command(['umount', mnt]));
      times.version.push(command(['version']));
      const mounted = command(mountArgs);
      times.mount.push(mounted);
      const before = performance.now();
      // Another process: nobody touches a mount that may hang from here.
      if (spawnSync('cat', [join(mnt, 'file')], { timeout: 10_000 }).stdout.toString() !== 'x')
        throw new Error('wrong data');
      times.first.push(mounted + performance.now() - before);
    }
    await sleep(12_000);
    const { keeper, service } = parts(mnt);
    const [k, s] = [usage(keeper), usage(service)];
    const ms = (of: number[]): string =>
      `${show(quantile(of, 0.5))} ms (${show(quantile(of, 0))}-${show(quantile(of, 1))})`;
    publish('One mount', [
      ['keeper: resident, proportional, its own', `${show(k.resident)}, ${show(k.proportional)}, ${show(k.own)} MiB`],
      [
        'service, idle: resident, proportional, its own',
        `${show(s.resident)}, ${show(s.proportional)}, ${show(s.own)} MiB`,
      ],
      ['descriptors: keeper, service', `${k.fds}, ${s.fds}`],
      ['threads: keeper, service', `${k.threads}, ${s.threads}`],
      ['`steadfs version`', ms(times.version)],
      ['`steadfs mount -d` until it returns (usable)', ms(times.mount)],
      ['the same and the first byte read by `cat`', ms(times.first)],
      ['`steadfs umount`', ms(times.umount)],
    ]);
  } finally {
    abortMount(mnt);
    rmSync(base, { recursive: true, force: true });
  }
}

// --- many -------------------------------------------------------------------------------------------------------------

async function many(): Promise<void> {
  const count = Number(values.count);
  const seconds = Number(values.seconds);
  const base = mkdtempSync(join(tmpdir(), 'bench-mounts-'));
  const template = `sqlite3://${base}/template.db`;
  const points = Array.from({ length: count }, (_, i) => join(base, `mnt${i}`));
  try {
    const made = runClient('steadfs', [
      'format',
      '--storage',
      'file',
      '--bucket',
      `${base}/objects`,
      template,
      'bench',
    ]);
    if (made.status !== 0) throw new Error(made.stderr);
    const available = (): number =>
      Number(/^MemAvailable:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) / 1024;
    const memoryBefore = available();
    let began = performance.now();
    /** What the command says. */
    const mount = (mnt: string, i: number): string => {
      const args = ['mount', '-d', '--log', join(base, 'log'), '--metrics', '', `sqlite3://${base}/${i}.db`, mnt];
      const { status, stdout, stderr } = runClient('steadfs', args);
      if (status !== 0) throw new Error(`mount ${i}: ${stderr}`);
      return stdout + stderr;
    };
    points.forEach((mnt, i) => {
      mkdirSync(mnt);
      copyFileSync(join(base, 'template.db'), join(base, `${i}.db`));
      mount(mnt, i);
    });
    const started = performance.now() - began;
    await sleep(15_000);
    const { keeper, service } = parts(`${base}/mnt`);
    const [k, s] = [usage(keeper), usage(service)];
    const taken = memoryBefore - available();
    const idle = performance.now();
    await sleep(seconds * 1000);
    const after = usage([...keeper, ...service]);
    const period = (performance.now() - idle) / 1000;
    began = performance.now();
    const pauses = points.map((mnt, i) => Number(/pause ([\d.]+) ms/.exec(mount(mnt, i))?.[1]));
    const upgraded = performance.now() - began;
    await sleep(15_000);
    const renewed = usage(parts(`${base}/mnt`).service);
    began = performance.now();
    for (const mnt of points) runClient('steadfs', ['umount', mnt]);
    const stopped = performance.now() - began;
    const left = parts(`${base}/mnt`);
    const cpu = (after.cpu - k.cpu - s.cpu) / period / count;
    const memory = (k.proportional + s.proportional) / count;
    publish(
      `${count} mounts on one host`,
      [
        ['processes: keepers, services', `${keeper.length}, ${service.length}`],
        [
          'proportional memory a mount: keeper, service',
          `${show(k.proportional / count)}, ${show(s.proportional / count)} MiB`,
        ],
        ['its own memory a mount: keeper, service', `${show(k.own / count)}, ${show(s.own / count)} MiB`],
        ['memory that the machine has less of, a mount', `${show(taken / count)} MiB`],
        ['CPU of an idle mount', `${show(cpu)} ms a second (${show(cpu / 10)} % of a core)`],
        ['wake-ups of an idle mount', `${show((after.switches - k.switches - s.switches) / period / count)} a second`],
        ['descriptors a mount', show((k.fds + s.fds) / count)],
        ['starting all, one after the other', `${show(started / 1000)} s, ${show(started / count)} ms each`],
        ['upgrading all, one after the other', `${show(upgraded / 1000)} s, ${show(upgraded / count)} ms each`],
        [
          'pause of such an upgrade: median, longest',
          `${show(quantile(pauses, 0.5))}, ${show(Math.max(...pauses))} ms`,
        ],
        ['proportional memory of a service after it', `${show(renewed.proportional / count)} MiB`],
        ['unmounting all, one after the other', `${show(stopped / 1000)} s, ${show(stopped / count)} ms each`],
        ['processes left', String(left.keeper.length + left.service.length)],
      ],
      `A thousand such mounts: ${show((memory * 1000) / 1024)} GiB, ${show((cpu / 10 / 100) * 1000)} cores idle, ${show(((k.fds + s.fds) / count) * 1000)} descriptors.`,
    );
  } finally {
    for (const mnt of points) abortMount(mnt);
    rmSync(base, { recursive: true, force: true });
  }
}

// --- takeover ---------------------------------------------------------------------------------------------------------

/** Puts `count` empty files into the database of a volume that nobody uses, a thousand in a directory. */
function fill(file: string, count: number): void {
  const db = new DatabaseSync(file);
  const directories = Math.ceil(count / PER_DIRECTORY);
  const now = Date.now() * 1000;
  const node =
    'INSERT INTO jfs_node (inode, type, flags, mode, uid, gid, atime, mtime, ctime, nlink, length, rdev, parent, access_acl_id, default_acl_id, tier_id)';
  const times = `${now}, ${now}, ${now}`;
  const numbers = (n: number) => `WITH RECURSIVE k(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM k WHERE i + 1 < ${n})`;
  db.exec(`PRAGMA synchronous = OFF; BEGIN;
    ${node} ${numbers(directories)} SELECT 2 + i, 2, 0, 493, 0, 0, ${times}, 2, 4096, 0, 1, 0, 0, 0 FROM k;
    INSERT INTO jfs_edge (parent, name, inode, type) ${numbers(directories)} SELECT 1, CAST('d' || i AS BLOB), 2 + i, 2 FROM k;
    ${node} ${numbers(count)} SELECT 2 + ${directories} + i, 1, 0, 420, 0, 0, ${times}, 1, 0, 0, 2 + i / ${PER_DIRECTORY}, 0, 0, 0 FROM k;
    INSERT INTO jfs_edge (parent, name, inode, type) ${numbers(count)} SELECT 2 + i / ${PER_DIRECTORY}, CAST('f' || i AS BLOB), 2 + ${directories} + i, 1 FROM k;
    UPDATE jfs_node SET nlink = nlink + ${directories} WHERE inode = 1;
    UPDATE jfs_counter SET value = ${2 + directories + count} WHERE name = 'nextInode';
    UPDATE jfs_counter SET value = ${directories + count} WHERE name = 'totalInodes';
    COMMIT;`);
  db.close();
}

/** Runs on the mount: opens and locks files, then asks for attributes every millisecond and prints the calls that took longer than 3 ms. */
function client(dir: string, open: number): void {
  const lock = { type: libc.F_WRLCK, start: 0, length: 1 };
  for (let i = 0; i < open; i++) {
    const fd = libc.open(join(dir, `d${Math.floor(i / PER_DIRECTORY)}/f${i}`), libc.O.RDWR);
    if (fd < 0) throw new Error(`open of file ${i}: errno ${-fd}`);
    const r = libc.fcntlLock(fd, libc.F.SETLK, lock);
    if (r !== 0) throw new Error(`lock of file ${i}: ${JSON.stringify(r)}`);
  }
  console.log('ready');
  const buffer = Buffer.alloc(1);
  const fd = libc.open(join(dir, 'pulse'), libc.O.RDWR | libc.O.CREAT);
  libc.pwrite(fd, buffer, 1, 0);
  setInterval(() => {
    const before = performance.now();
    fstatSync(fd);
    const took = performance.now() - before;
    if (took > 3) console.log(took.toFixed(2));
  }, 1);
}

function slab(name: string): number {
  try {
    return Number(new RegExp(`^${name}\\s+(\\d+)`, 'm').exec(readFileSync('/proc/slabinfo', 'utf8'))?.[1] ?? 0);
  } catch {
    return 0; // not root
  }
}

async function takeover(): Promise<void> {
  const events = Number(values.events);
  const rows: [string, string][] = [];
  for (const inodes of values.inodes.split(',').map(Number)) {
    const base = mkdtempSync(join(tmpdir(), 'bench-mounts-'));
    const meta = `sqlite3://${base}/meta.db`;
    runClient('steadfs', [
      'format',
      '--trash-days',
      '0',
      '--storage',
      'file',
      '--bucket',
      `${base}/objects/`,
      meta,
      'judged',
    ]);
    if (inodes > 0) fill(join(base, 'meta.db'), inodes);
    const volume = openVolume({ base, meta, mount: ['-v', '--attr-cache', '0', '--metrics', ''] });
    let program: ChildProcess | undefined;
    try {
      const known = slab('fuse_inode');
      if (inodes > 0) spawnSync('find', [volume.dir, '-size', '+1G'], { timeout: 300_000 });
      const open = inodes > 0 ? Math.min(OPEN, inodes) : 0;
      program = spawn(process.execPath, [import.meta.filename, '--client', volume.dir, '--open', String(open)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let ready = false;
      let gaps: number[] = [];
      createInterface({ input: program.stdout! }).on('line', line => {
        if (line === 'ready') ready = true;
        else gaps.push(Number(line));
      });
      while (!ready && program.exitCode === null) await sleep(50);
      const have = slab('fuse_inode') - known;
      await sleep(6000);
      const pauses: Record<'kill' | 'upgrade', number[]> = { kill: [], upgrade: [] };
      for (let i = 0; i < events; i++) {
        gaps = [];
        process.kill(parts(volume.dir).service[0]!, 'SIGKILL');
        await sleep(2500);
        pauses.kill.push(Math.max(0, ...gaps));
        gaps = [];
        const r = volume.remount(['-v']);
        if (r.status !== 0) throw new Error(r.stderr);
        await sleep(500);
        pauses.upgrade.push(Math.max(0, ...gaps));
      }
      const what =
        inodes === 0
          ? 'an idle mount'
          : `${inodes.toLocaleString('en')} inodes${have > 0 ? ` (${have.toLocaleString('en')} in the kernel's cache)` : ''}, ${open.toLocaleString('en')} open files, as many locks`;
      for (const [event, of] of Object.entries(pauses)) {
        const [low, middle, high] = [0, 0.5, 1].map(q => show(quantile(of, q)));
        rows.push([`${event === 'kill' ? 'kill -9' : 'upgrade'}, ${what}`, `${low} / ${middle} / ${high} ms`]);
        console.log(rows.at(-1)!.join(': '));
      }
      if (values.phases) printPhases(readFileSync(join(base, 'log'), 'utf8'));
    } finally {
      // Its ten thousand files keep the mount busy until they are closed.
      if (program?.kill('SIGKILL')) await once(program, 'close');
      volume.close();
      abortMount(volume.dir);
      rmSync(base, { recursive: true, force: true });
    }
  }
  publish(
    'Pause of a program',
    rows,
    `Least, median and longest of ${events}: one call (fstat, attr-cache 0, one every millisecond) that had to wait.`,
  );
}

/** Medians of `phase wall/cpu` in the debug lines of the log. */
function printPhases(log: string): void {
  const found = new Map<string, [number, number][]>();
  let why = '';
  for (const line of log.split('\n')) {
    why = /: (\w+), version .* pause/.exec(line)?.[1] ?? why;
    for (const part of /start, ms: (.*)/.exec(line)?.[1]?.split(', ') ?? []) {
      const [, name, wall, cpu] = /^(.*) ([\d.-]+)\/([\d.-]+)$/.exec(part) ?? [];
      if (name === undefined) continue;
      const key = `${why}: ${name}`;
      found.set(key, [...(found.get(key) ?? []), [Number(wall), Number(cpu)]]);
    }
  }
  for (const [key, times] of found) {
    const [wall, cpu] = [0, 1].map(i =>
      quantile(
        times.map(t => t[i]!),
        0.5,
      ).toFixed(1),
    );
    console.log(`  ${key.padEnd(34)} ${wall} ms, ${cpu} of them on a processor`);
  }
}

if (values.client !== undefined) client(values.client, Number(values.open));
else {
  const lack = missing('steadfs');
  if (lack) console.log(`skipped: ${lack}`);
  else {
    const wanted = positionals.length > 0 ? positionals : ['start', 'many', 'takeover'];
    if (wanted.includes('start')) await start();
    if (wanted.includes('many')) await many();
    if (wanted.includes('takeover')) await takeover();
  }
}
