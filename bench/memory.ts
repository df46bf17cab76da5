/**
 * Memory of a mount under load: the peak of all its processes together, against `--buffer-size`.
 *
 *   node bench/memory.ts [write] [read] [mixed] [small]   [--client steadfs,juicefs] [--sizes 100,300,1024] [--store file,s3] [--compress none]
 *     [--seconds 8] [--write]
 *
 * One mount for each size and store, the loads one after the other, each by four processes: write: streams of 512 MiB files; read: streams and random 128 KiB pieces, past
 * the kernel's page cache, of a set larger than any buffer; mixed: two writers, a reader, small files; small: files of 100 KiB made, read back and removed.
 *
 * What counts is looked at ten times a second: proportional anonymous memory and program pages of every process (smaps_rollup) and whatever their memfds have allocated,
 * once, mapped or not. The page cache that the kernel keeps of the mount's files or of the store's does not count; what is dirty in it neither.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  constants,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { abortMount, type Client, missing, openVolume, type Volume } from '../packages/steadfs/test/support/volume.ts';
import { type StoreName, startBackend } from './backends.ts';
import { machine, record } from './results.ts';

const MIB = 1024 * 1024;
const FILE = 512 * MIB;
/** Files of the set that is read. */
const SET = 3;
const LOADS: Record<string, readonly string[]> = {
  write: ['write', 'write', 'write', 'write'],
  read: ['stream', 'stream', 'random', 'random'],
  mixed: ['write', 'write', 'stream', 'small'],
  small: ['small', 'small', 'small', 'small'],
};

/** One process of a load; `number` keeps its files apart. */
function work(kind: string, dir: string, number: string, seconds: number): void {
  const end = performance.now() + seconds * 1000;
  const buffer = Buffer.alloc(MIB, number);
  const late = (): boolean => performance.now() > end;
  if (kind === 'write') {
    const path = join(dir, `stream${number}`);
    while (!late()) {
      const fd = openSync(path, 'w');
      for (let at = 0; at < FILE && !late(); at += MIB) writeSync(fd, buffer);
      fsyncSync(fd);
      closeSync(fd);
    }
    unlinkSync(path);
  } else if (kind === 'small') {
    for (let i = 0; !late(); i++) {
      const path = join(dir, `small${number}-${i % 500}`);
      const fd = openSync(path, 'w+');
      writeSync(fd, buffer, 0, 100 * 1024);
      closeSync(fd);
      if (i >= 250) {
        const other = openSync(join(dir, `small${number}-${(i - 250) % 500}`), 'r');
        readSync(other, buffer, 0, 100 * 1024, 0);
        closeSync(other);
      }
    }
  } else {
    const piece = kind === 'stream' ? MIB : 128 * 1024;
    for (let file = Number(number); !late(); file++) {
      const fd = openSync(join(dir, `set${file % SET}`), constants.O_RDONLY | constants.O_DIRECT);
      for (let at = 0; at < FILE && !late(); at += piece)
        readSync(fd, buffer, 0, piece, kind === 'stream' ? at : Math.floor((Math.random() * FILE) / piece) * piece);
      closeSync(fd);
    }
  }
}

function fillSet(dir: string): void {
  const buffer = Buffer.alloc(MIB);
  for (let i = 0; i < SET; i++) {
    const fd = openSync(join(dir, `set${i}`), 'w');
    for (let at = 0; at < FILE; at += MIB) writeSync(fd, buffer);
    fsyncSync(fd);
    closeSync(fd);
  }
}

/** MiB of all processes of a mount now: their own memory, and their memfds once each. */
function look(pids: readonly number[]): { own: number; shared: number } {
  let own = 0;
  const memfds = new Map<number, number>();
  for (const pid of pids) {
    try {
      const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1');
      const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(rollup)?.[1] ?? 0);
      own += field('Pss_Anon') + field('Pss_File');
      for (const fd of readdirSync(`/proc/${pid}/fd`)) {
        const path = `/proc/${pid}/fd/${fd}`;
        if (!readlinkSync(path).startsWith('/memfd:')) continue;
        const { ino, blocks } = statSync(path);
        memfds.set(ino, blocks / 2);
      }
    } catch (error) {
      // It, or the descriptor, is gone.
      if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }
  return { own: own / 1024, shared: [...memfds.values()].reduce((a, b) => a + b, 0) / 1024 };
}

const program = (kind: string, dir: string, number: number, seconds: number): ChildProcess =>
  spawn(process.execPath, [import.meta.filename, 'work', kind, dir, String(number), String(seconds)], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
const ended = (child: ChildProcess): Promise<number | null> =>
  new Promise(resolve => {
    if (child.exitCode !== null) resolve(child.exitCode);
    else child.on('exit', resolve);
  });

async function measure(volume: Volume, load: string, seconds: number): Promise<{ own: number; shared: number }> {
  const children = LOADS[load]!.map((kind, i) => program(kind, volume.dir, i, seconds));
  let running = true;
  const all = Promise.all(children.map(ended)).finally(() => {
    running = false;
  });
  const pids = volume.processes().filter(pid => !children.some(child => child.pid === pid));
  let peak = { own: 0, shared: 0 };
  while (running) {
    const now = look(pids);
    if (now.own + now.shared > peak.own + peak.shared) peak = now;
    await sleep(100);
  }
  const codes = await all;
  if (codes.some(code => code !== 0)) throw new Error(`${load}: a program ended with ${codes.join(', ')}`);
  return peak;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      client: { type: 'string', default: 'steadfs' },
      sizes: { type: 'string', default: '100,300,1024' },
      store: { type: 'string', default: 'file,s3' },
      compress: { type: 'string', default: 'none' },
      seconds: { type: 'string', default: '8' },
      write: { type: 'boolean', default: false },
    },
  });
  const loads = positionals.length > 0 ? positionals : Object.keys(LOADS);
  const rows: string[] = [];
  for (const client of values.client.split(',') as Client[])
    for (const store of values.store.split(',') as StoreName[]) {
      const backend = missing(client) ? { missing: missing(client)! } : await startBackend('sqlite', store);
      if ('missing' in backend) {
        console.log(`skipped: ${client} and ${store}: ${backend.missing}`);
        continue;
      }
      try {
        for (const size of values.sizes.split(',').map(Number)) {
          const objects = backend.storage();
          const volume = openVolume({
            client,
            format: ['--trash-days', '0', '--compress', values.compress],
            mount: ['--buffer-size', `${size}M`],
            ...(objects && { store: objects }),
          });
          try {
            const cells: string[] = [];
            const filling = spawn(process.execPath, [import.meta.filename, 'fill', volume.dir], { stdio: 'inherit' });
            if ((await ended(filling)) !== 0) throw new Error('the set cannot be written');
            for (const load of loads) {
              const { own, shared } = await measure(volume, load, Number(values.seconds));
              cells.push(`${(own + shared).toFixed(0)} (${shared.toFixed(0)} + ${own.toFixed(0)})`);
            }
            rows.push(`| ${client}, ${store}, ${size} | ${cells.join(' | ')} |`);
            console.log(rows.at(-1));
          } finally {
            abortMount(volume.dir);
            volume.close();
          }
        }
      } finally {
        await backend.stop();
      }
    }
  const table = [
    `| client, store, --buffer-size | ${loads.join(' | ')} |`,
    `|---|${loads.map(() => '---:|').join('')}`,
    ...rows,
  ];
  console.log(`\n${table.join('\n')}`);
  if (values.write)
    record('Memory under load', [
      `${new Date().toISOString().slice(0, 10)}, \`node bench/memory.ts ${process.argv.slice(2).join(' ')}\`; ${machine}. Peak in MiB (memfds + the processes' own).`,
      '',
      ...table,
    ]);
}

const [what, kindOrDir, dir, number, seconds] = process.argv.slice(2);
if (what === 'work') work(kindOrDir!, dir!, number!, Number(seconds));
else if (what === 'fill') fillSet(kindOrDir!);
else await main();
