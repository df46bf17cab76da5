/**
 * A mount at work for hours: what its processes and its volume use, minute by minute, and how it grows.
 *
 *   node bench/soak.ts [--minutes M] [--rate CYCLES/S] [--events M] [--write]
 *
 * A cycle makes a file, writes it (1 byte to 256 KiB), reads it back, renames, links, locks and removes files, so that about 2,000 are there at any time; every
 * thousandth writes and reads 64 MiB. --events: one kill -9 of the service and one upgrade in turn every so many minutes (never without it). The growth is the
 * slope of a line through the second half of the samples.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import * as c from '../packages/steadfs/test/support/libc.ts';
import { seeded } from '../packages/steadfs/test/support/random.ts';
import { abortMount, missing, openVolume, runClient } from '../packages/steadfs/test/support/volume.ts';
import { parts, usage } from './processes.ts';
import { machine, record } from './results.ts';

const LIVE = 2000;
const LARGE = 64 << 20;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    minutes: { type: 'string', default: '120' },
    rate: { type: 'string', default: '30' },
    events: { type: 'string' },
    write: { type: 'boolean', default: false },
  },
});

function check(what: string, r: number): number {
  if (r < 0) throw new Error(`${what}: ${c.resultName(r)}`);
  return r;
}

/** The program on the mount; never ends. */
async function work(dir: string, rate: number): Promise<never> {
  const random = seeded(3);
  const block = Buffer.alloc(1 << 20, 'steadfs');
  const back = Buffer.alloc(block.length);
  const path = (i: number): string => `${dir}/d${i % 50}/f${i % LIVE}`;
  for (let i = 0; i < 50; i++) mkdirSync(`${dir}/d${i}`);
  const begin = performance.now();
  for (let i = 0; ; i++) {
    const late = begin + (i * 1000) / rate - performance.now();
    if (late > 0) await sleep(late);
    if (existsSync(path(i))) check('unlink', c.unlink(path(i)));
    const length = random.chance(10) ? random.below(256 << 10) + 1 : random.below(8 << 10) + 1;
    const fd = check('create', c.open(`${path(i)}.new`, c.O.CREAT | c.O.RDWR));
    check('flock', c.flock(fd, c.LOCK.EX));
    check('write', c.pwrite(fd, block, length, 0));
    if (i % 16 === 0) check('fsync', c.fsync(fd));
    if (check('read', c.pread(fd, back, length, 0)) !== length || back.compare(block, 0, length, 0, length) !== 0)
      throw new Error(`cycle ${i}: other bytes than were written`);
    check('close', c.close(fd));
    check('rename', c.rename(`${path(i)}.new`, path(i)));
    check('link', c.link(path(i), `${dir}/link`));
    check('unlink', c.unlink(`${dir}/link`));
    if (i % 100 === 0) readdirSync(`${dir}/d${i % 50}`);
    if (i % 1000 !== 999) continue;
    const large = check('open', c.open(`${dir}/large`, c.O.CREAT | c.O.RDWR | c.O.TRUNC));
    for (let at = 0; at < LARGE; at += block.length) check('write', c.pwrite(large, block, block.length, at));
    check('fsync', c.fsync(large));
    for (let at = 0; at < LARGE; at += block.length) check('read', c.pread(large, back, block.length, at));
    check('close', c.close(large));
  }
}

/** Growth an hour of a line through the second half. */
function growth(samples: readonly number[], minutes: readonly number[]): number {
  const from = samples.length >> 1;
  const y = samples.slice(from);
  const x = minutes.slice(from);
  const mean = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0) / of.length;
  const [mx, my] = [mean(x), mean(y)];
  const spread = x.reduce((sum, v) => sum + (v - mx) ** 2, 0);
  return spread === 0 ? 0 : (60 * x.reduce((sum, v, i) => sum + (v - mx) * (y[i]! - my), 0)) / spread;
}

const COLUMNS = ['memory, MiB', 'keeper, MiB', 'descriptors', 'capsule, MiB', 'database, MiB', 'CPU, %'] as const;

async function soak(): Promise<void> {
  const lack = missing('steadfs');
  if (lack) throw new Error(lack);
  const volume = openVolume();
  const child = spawn(process.execPath, [import.meta.filename, 'work', volume.dir, values.rate], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const rows: number[][] = [];
  const minutes: number[] = [];
  try {
    const begin = performance.now();
    const gone = once(child, 'exit').then(() => true);
    let cpu = 0;
    for (let minute = 1; minute <= Number(values.minutes); minute++) {
      const ended = await Promise.race([gone, sleep(begin + minute * 60_000 - performance.now()).then(() => false)]);
      if (ended) throw new Error('the program on the mount has ended');
      const { keeper, service } = parts(volume.dir);
      const [ours, shell] = [usage(service), usage(keeper)];
      const capsule = service.flatMap(pid =>
        readdirSync(`/proc/${pid}/fd`)
          .map(fd => `/proc/${pid}/fd/${fd}`)
          .filter(fd => existsSync(fd) && /^\/memfd:.*capsule/.test(readlinkSync(fd)))
          .map(fd => (statSync(fd).blocks * 512) / 2 ** 20),
      );
      const database = ['meta.db', 'meta.db-wal'].map(
        name => (statSync(join(volume.base, name), { throwIfNoEntry: false })?.size ?? 0) / 2 ** 20,
      );
      const used = ours.cpu + shell.cpu;
      const row = [
        ours.proportional,
        shell.proportional,
        ours.fds + shell.fds,
        Math.max(0, ...capsule),
        database.reduce((a, b) => a + b),
        Math.max(0, used - cpu) / 600,
      ];
      cpu = used;
      rows.push(row);
      minutes.push(minute);
      console.log(`${minute}\t${row.map(n => n.toFixed(1)).join('\t')}`);
      if (values.events && minute % Number(values.events) === 0) {
        if ((minute / Number(values.events)) % 2 === 1) for (const pid of service) process.kill(pid, 'SIGKILL');
        else {
          const r = runClient('steadfs', ['mount', '-d', volume.meta, volume.dir]);
          if (r.status !== 0) throw new Error(r.stderr);
        }
      }
    }
  } finally {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    const fault = volume.close();
    if (fault) abortMount(volume.dir);
  }
  const column = (i: number): number[] => rows.map(row => row[i]!);
  const lines = [
    `| ${values.minutes} minutes | first | largest | last | growth an hour |`,
    '|---|---:|---:|---:|---:|',
    ...COLUMNS.map((name, i) => {
      const of = column(i);
      return `| ${name} | ${[of[0]!, Math.max(...of), of.at(-1)!, growth(of, minutes)].map(n => n.toFixed(1)).join(' | ')} |`;
    }),
  ];
  console.log(lines.join('\n'));
  if (!values.write) return;
  const command = `node bench/soak.ts ${process.argv.slice(2).join(' ')}`;
  record('A mount at work for hours', [
    `${new Date().toISOString().slice(0, 10)}, \`${command}\`; ${machine}, load ${loadavg()[0]!.toFixed(0)}.`,
    '',
    ...lines,
  ]);
}

if (positionals[0] === 'work') await work(positionals[1]!, Number(positionals[2]));
else await soak();
