/**
 * Steadfs and the Go client (`juicefs`, when on PATH) side by side, in turn, on fresh volumes; on SQLite with data in a local directory when
 * nothing else is said:
 *
 *   node bench/run.ts [fsmeter] [felt] [idle] [mounts]   [--rounds N] [--scale S] [--write] [--client steadfs] [--options FLAGS]
 *     [--meta sqlite,redis,postgres,mariadb] [--store file,s3] [--processes 1,8] [--mounts 16]
 *
 * fsmeter: rates of system calls with one and with eight processes (compiled from ../shared/tools/fsmeter.c, or from $FSMETER), against the
 * goals; mounts: as many mounts of one volume, each at work in its own directory, rates summed (not on SQLite); felt: workloads as people
 * meet them (workload.ts), --scale 1 for full size; idle: memory and CPU of a mount that nobody uses, CPU per operation. --write puts the tables into RESULTS.md, with date and command.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { abortMount, type Client, missing, openVolume, type Volume } from '../packages/steadfs/test/support/volume.ts';
import { execute, onPath } from '../suites/harness.ts';
import { type Backend, type DatabaseName, type StoreName, startBackend } from './backends.ts';
import { machine, record } from './results.ts';

const ROOT = resolve(import.meta.dirname, '..');

/** Least ratio to the Go client's rate; of readdir also a rate. */
const GOALS_ONE: Record<string, number> = {
  'create/s': 3.4,
  'stat/s': 4,
  'rename/s': 3.4,
  'unlink/s': 3.4,
  'mkdir/s': 3.4,
  'rmdir/s': 3.4,
  'write100K/s': 3,
  'read100K/s': 3,
  'seqwrite_MiB/s': 1.2,
  'seqread_MiB/s': 1.2,
  'rewrite8K/s': 50,
  'append4K_fsync/s': 1,
};
/** On network databases and S3: what is given, of one process and of eight. */
const MUTATIONS = ['create/s', 'rename/s', 'unlink/s', 'mkdir/s'];
function networkGoals(database: DatabaseName, store: StoreName, processes: number): Record<string, number> {
  const goals: Record<string, number> = {};
  const mutations = database === 'redis' ? (processes === 1 ? 3 : 2) : 2;
  for (const name of MUTATIONS) goals[name] = mutations;
  goals['stat/s'] = database === 'redis' ? (processes === 1 ? 3 : 2) : 1.5;
  goals['open/s'] = database === 'redis' && processes > 1 ? 2 : 1.5;
  if (processes > 1) return goals;
  goals['seqwrite_MiB/s'] = 1.2;
  goals['seqread_MiB/s'] = 1.2;
  if (store === 's3') {
    goals['write100K/s'] = 2;
    goals['read100K/s'] = 2;
  }
  return goals;
}
/** Fresh mounts of both clients stand idle for so long before fsmeter: a service of ours warms up meanwhile (commands/warm-up.ts). */
const IDLE_MS = 4000;

const GOALS_EIGHT: Record<string, number> = {
  'create/s': 3,
  'stat/s': 3,
  'chmod/s': 3,
  'rename/s': 3,
  'unlink/s': 3,
  'mkdir/s': 3,
  'rmdir/s': 3,
};
const READDIR_RATE = 300_000;

type Samples = Record<string, Map<string, number[]>>;

const median = (of: readonly number[]): number => {
  const sorted = [...of].sort((a, b) => a - b);
  return sorted.length % 2
    ? sorted[(sorted.length - 1) / 2]!
    : (sorted[sorted.length / 2 - 1]! + sorted[sorted.length / 2]!) / 2;
};
const show = (n: number): string => (Math.abs(n) >= 100 ? Math.round(n).toLocaleString('en') : n.toPrecision(3));

/** Seconds of user and system time, resident and proportional MiB of all processes of a mount together. */
function usage(volume: Volume): { cpu: number; resident: number; proportional: number } {
  const sum = { cpu: 0, resident: 0, proportional: 0 };
  for (const pid of volume.processes()) {
    const read = (file: string): string => readFileSync(`/proc/${pid}/${file}`, 'latin1');
    const stat = read('stat');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    sum.cpu += (Number(fields[11]) + Number(fields[12])) / 100;
    const rollup = read('smaps_rollup');
    sum.resident += Number(/^Rss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0) / 1024;
    sum.proportional += Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0) / 1024;
  }
  return sum;
}

async function compileFsmeter(scratch: string): Promise<string | undefined> {
  const source = process.env.FSMETER ?? join(ROOT, '../shared/tools/fsmeter.c');
  if (!existsSync(source) || !onPath('gcc')) return undefined;
  const program = join(scratch, 'fsmeter');
  const outcome = await execute('gcc', ['-O2', '-o', program, source]);
  if (outcome.code !== 0) throw new Error(outcome.output);
  return program;
}

/** Rows of both clients: medians, ratio (of rates ours/theirs, of times theirs/ours: above 1 is better), goal. */
function table(samples: Samples, goals: Record<string, number>): string[] {
  const names = new Set([...(samples.steadfs?.keys() ?? []), ...(samples.juicefs?.keys() ?? [])]);
  const rows = ['| | Steadfs | Go client | ratio | goal |', '|---|---:|---:|---:|---|'];
  for (const name of names) {
    const ours = samples.steadfs?.get(name);
    const theirs = samples.juicefs?.get(name);
    const a = ours && median(ours);
    const b = theirs && median(theirs);
    const small = /_(s|ms|MiB|us)$/.test(name);
    const ratio = a === undefined || b === undefined ? undefined : small ? b / a : a / b;
    let goal = '';
    if (goals[name] !== undefined)
      goal = `≥ ${goals[name]}${ratio === undefined ? '' : ratio >= goals[name] ? ' ✓' : ' ✗'}`;
    if (name === 'readdir_entries/s' && Object.keys(goals).length > 8)
      goal = `≥ ${READDIR_RATE.toLocaleString('en')}/s${a === undefined ? '' : a >= READDIR_RATE ? ' ✓' : ' ✗'}`;
    if (name === 'resident, idle_MiB') goal = `≥ 1.67${ratio === undefined ? '' : ratio >= 1 / 0.6 ? ' ✓' : ' ✗'}`;
    const unit = small ? ` ${name.slice(name.lastIndexOf('_') + 1)}` : '';
    const label = small ? name.slice(0, name.lastIndexOf('_')) : name;
    const cell = (n: number | undefined): string => (n === undefined ? '–' : `${show(n)}${unit}`);
    rows.push(`| ${label} | ${cell(a)} | ${cell(b)} | ${ratio === undefined ? '–' : ratio.toFixed(2)} | ${goal} |`);
  }
  return rows;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '1' },
      scale: { type: 'string', default: '0.1' },
      client: { type: 'string' },
      options: { type: 'string', default: '' },
      only: { type: 'string' },
      meta: { type: 'string', default: 'sqlite' },
      store: { type: 'string', default: 'file' },
      processes: { type: 'string', default: '1,8' },
      mounts: { type: 'string', default: '16' },
      write: { type: 'boolean', default: false },
    },
  });
  const parts = positionals.length > 0 ? positionals : ['fsmeter', 'felt', 'idle'];
  const clients = (values.client ? [values.client as Client] : (['steadfs', 'juicefs'] as const)).filter(client => {
    const lack = missing(client);
    if (lack) console.log(`skipped: ${client}: ${lack}`);
    return !lack;
  });
  if (clients.length === 0) return 0;
  const scratch = mkdtempSync(join(tmpdir(), 'bench-'));
  const scale = Number(values.scale);
  const rounds = Number(values.rounds);
  const command = `node bench/run.ts ${process.argv.slice(2).join(' ')}`;
  let failed = 0;
  for (const database of values.meta.split(',') as DatabaseName[]) {
    for (const store of values.store.split(',') as StoreName[]) {
      const backend = await startBackend(database, store);
      if ('missing' in backend) {
        console.log(`skipped: ${database} and ${store}: ${backend.missing}`);
        continue;
      }
      try {
        failed += await measureOn(backend, { parts, clients, scratch, scale, rounds, command, values });
      } finally {
        await backend.stop();
      }
    }
  }
  rmSync(scratch, { recursive: true, force: true });
  return failed > 0 ? 1 : 0;
}

interface Run {
  parts: string[];
  clients: Client[];
  scratch: string;
  scale: number;
  rounds: number;
  command: string;
  values: { options: string; only?: string; write: boolean; processes: string; mounts: string };
}

/** Everything asked for, on one database and store; the number of programs that failed. */
async function measureOn(backend: Backend, run: Run): Promise<number> {
  const { parts, clients, scratch, scale, rounds, command, values } = run;
  const { label, database, store } = backend;
  const sqlite = database === 'sqlite';
  let failed = 0;
  const volumes = new Map<Client, Volume>();
  const fresh = async (client: Client): Promise<Volume> => {
    volumes.get(client)?.close();
    const meta = await backend.meta();
    const store = backend.storage();
    const volume = openVolume({
      client,
      ...(meta === undefined ? {} : { meta }),
      ...(store === undefined ? {} : { store }),
      mount: client === 'steadfs' ? values.options.split(' ').filter(w => w !== '') : [],
    });
    volumes.set(client, volume);
    return volume;
  };
  const publish = (heading: string, samples: Samples, goals: Record<string, number>): void => {
    const rows = table(samples, goals);
    console.log(`\n${heading}\n${rows.join('\n')}`);
    if (values.write)
      record(heading, [
        `${new Date().toISOString().slice(0, 10)}, \`${command}\`, median of ${rounds}; ${machine}.`,
        '',
        ...rows,
      ]);
  };
  const add = (samples: Samples, client: Client, figures: Record<string, number>): void => {
    samples[client] ??= new Map();
    for (const [name, value] of Object.entries(figures))
      samples[client].set(name, [...(samples[client].get(name) ?? []), value]);
  };
  /** Runs a program on the client's volume; a program that fails or hangs costs that client this row, and a new volume. */
  const measure = async (
    client: Client,
    program: string,
    args: (dir: string) => string[],
    timeout: number,
  ): Promise<Record<string, number> | undefined> => {
    const volume = volumes.get(client) ?? (await fresh(client));
    const outcome = await execute(program, args(volume.dir), { timeout });
    if (outcome.code === 0) {
      const line = outcome.output
        .trim()
        .split('\n')
        .find(l => l.startsWith('{'));
      if (line) return JSON.parse(line) as Record<string, number>;
    }
    failed++;
    console.log(
      `FAILED ${client}: ${program.split('/').at(-1)} ${args('DIR').slice(0, 3).join(' ')}: ${outcome.timedOut ? 'did not end' : `exit ${outcome.code}`}\n${outcome.output.slice(-600)}`,
    );
    abortMount(volume.dir);
    await fresh(client);
    return undefined;
  };
  try {
    if (parts.includes('idle')) {
      const samples: Samples = {};
      for (let round = 0; round < rounds; round++)
        for (const client of clients) {
          const volume = await fresh(client);
          await new Promise(wake => setTimeout(wake, 10_000));
          const before = usage(volume);
          await new Promise(wake => setTimeout(wake, 20_000));
          const after = usage(volume);
          add(samples, client, {
            'resident, idle_MiB': after.resident,
            'proportional share, idle_MiB': after.proportional,
            'CPU of 1000 s idle_s': (after.cpu - before.cpu) * 50,
          });
          const figures = await measure(
            client,
            process.execPath,
            dir => [join(import.meta.dirname, 'workload.ts'), 'operations', join(dir, 'operations'), scratch],
            120_000,
          );
          const end = usage(volumes.get(client)!);
          if (figures)
            add(samples, client, {
              'CPU per metadata operation_us': ((end.cpu - after.cpu) / figures.operations!) * 1e6,
              'resident after 12,000 operations_MiB': end.resident,
            });
        }
      publish(sqlite ? 'Idle mount, CPU per operation' : `Idle mount, CPU per operation, ${label}`, samples, {});
    }
    if (parts.includes('fsmeter')) {
      const program = await compileFsmeter(scratch);
      if (!program) console.log('skipped: fsmeter: ../shared/tools/fsmeter.c or gcc is missing');
      else
        for (const [processes, files, mib, goals] of [
          [1, 2000, 512, GOALS_ONE],
          [8, 500, 64, GOALS_EIGHT],
        ] as const) {
          if (!values.processes.split(',').includes(String(processes))) continue;
          const samples: Samples = {};
          for (const client of clients) await fresh(client);
          await new Promise(wake => setTimeout(wake, IDLE_MS));
          for (let round = 0; round < rounds; round++)
            for (const client of clients) {
              const size = [
                processes,
                Math.max(100, Math.round(files * Math.min(1, scale * 5))),
                Math.max(16, Math.round(mib * Math.min(1, scale * 5))),
              ];
              const figures = await measure(client, program, dir => [dir, ...size.map(String)], 300_000);
              if (figures) add(samples, client, figures);
            }
          const heading = `fsmeter, ${label}, ${processes === 1 ? 'one process' : `${processes} processes`}`;
          publish(heading, samples, sqlite && store === 'file' ? goals : networkGoals(database, store, processes));
        }
    }
    if (parts.includes('mounts') && !sqlite) {
      const program = await compileFsmeter(scratch);
      if (!program) console.log('skipped: mounts: ../shared/tools/fsmeter.c or gcc is missing');
      else {
        const mounts = Number(values.mounts);
        const samples: Samples = {};
        for (let round = 0; round < rounds; round++)
          for (const client of clients) {
            const first = await fresh(client);
            const others: Volume[] = [];
            try {
              for (let i = 1; i < mounts; i++) others.push(openVolume({ client, meta: first.meta, format: 'there' }));
              const sizes = [1, Math.max(50, Math.round(1000 * scale)), 1].map(String);
              const outcomes = await Promise.all(
                [first, ...others].map(v => execute(program, [v.dir, ...sizes], { timeout: 300_000 })),
              );
              const sum: Record<string, number> = {};
              for (const outcome of outcomes) {
                const line = outcome.output.split('\n').find(l => l.startsWith('{'));
                if (outcome.code !== 0 || line === undefined) {
                  failed++;
                  console.log(
                    `FAILED ${client}: one of ${mounts} mounts: exit ${outcome.code}\n${outcome.output.slice(-300)}`,
                  );
                  continue;
                }
                const figures = JSON.parse(line) as Record<string, number>;
                for (const name of [
                  'create/s',
                  'stat/s',
                  'open/s',
                  'chmod/s',
                  'rename/s',
                  'unlink/s',
                  'mkdir/s',
                  'rmdir/s',
                ])
                  sum[name] = (sum[name] ?? 0) + figures[name]!;
              }
              add(samples, client, sum);
            } finally {
              for (const volume of others) volume.close();
            }
          }
        const goals = Object.fromEntries([...MUTATIONS, 'rmdir/s', 'stat/s'].map(name => [name, 2]));
        publish(`${mounts} mounts, ${label}, each in its own directory`, samples, goals);
      }
    }
    if (parts.includes('felt')) {
      const samples: Samples = {};
      for (const client of clients) await fresh(client);
      for (let round = 0; round < rounds; round++)
        for (const workload of ['untar', 'npm', 'ls', 'checkpoint', 'randomReads', 'besideWriter', 'rewrite']) {
          if (values.only && values.only !== workload) continue;
          for (const client of clients) {
            const folder = join(scratch, `${client}-${round}`);
            mkdirSync(folder, { recursive: true });
            const figures = await measure(
              client,
              process.execPath,
              dir => [
                join(import.meta.dirname, 'workload.ts'),
                workload,
                join(dir, `${workload}-${round}`),
                folder,
                String(scale),
              ],
              900_000,
            );
            if (figures) add(samples, client, figures);
          }
        }
      for (const client of clients)
        add(samples, client, { 'resident afterwards_MiB': usage(volumes.get(client)!).resident });
      publish(sqlite ? `What people feel, scale ${scale}` : `What people feel, ${label}, scale ${scale}`, samples, {});
    }
  } finally {
    for (const volume of volumes.values()) {
      const fault = volume.close();
      if (fault) {
        failed++;
        console.log(`FAILED ${volume.client}: ${fault}`);
      }
    }
  }
  return failed;
}

process.exitCode = await main();
