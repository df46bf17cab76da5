/**
 * Programs that verify (those of the storm) at work on a mount whose database and store are real servers that misbehave: restarts, read-only times,
 * connections cut, half-closed, stalled or frozen, slow answers, a store that answers 500, 503, torn bodies or nothing; also with a kill -9 or an upgrade in
 * the middle. Nothing may fail, nothing may be wrong, memory has its ceiling.
 *
 *   node faults.ts [--meta redis|postgres|mariadb|sqlite] [--store s3|file] [--count N] [--seed N] [--faults A,B] [--programs A,B] [--away SECONDS]
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import mysql from 'mysql2/promise';
import pg from 'pg';
import { describe, type Report, roles, stormOnVolume } from '../continuity/storm.ts';
import { type MetaKind, type Network, type StoreKind, startNetwork } from '../servers/network.ts';
import type { Missing } from '../servers/process.ts';
import type { HttpFault } from '../servers/proxy.ts';
import type { Random } from '../support/random.ts';
import { runClient, type Volume } from '../support/volume.ts';

const BUFFER_MIB = 64;
/** Resident memory of a service over its --buffer-size. */
const CONSTANT_MIB = 200;

const sleep = (ms: number): Promise<void> => new Promise(wake => setTimeout(wake, ms));

type Fault = (network: Network, random: Random, ms: number) => Promise<void>;

/** Seen by clients on a connection, whatever the database is. */
const CONNECTION: Record<string, Fault> = {
  async cut({ metaProxy }, random) {
    for (let i = random.below(5) + 1; i > 0; i--) {
      await metaProxy!.cut();
      await sleep(random.below(100));
    }
  },
  async cutInside({ metaProxy }, random) {
    for (let i = random.below(10) + 5; i > 0; i--) {
      await metaProxy!.cutAfter(random.below(4000) + 1);
      await sleep(random.below(100));
    }
    await metaProxy!.flow();
  },
  async halfClose({ metaProxy }) {
    await metaProxy!.halfClose();
  },
  /** What is asked is done, and nobody hears of it. */
  async unheard({ metaProxy }, random) {
    for (let i = random.below(4) + 1; i > 0; i--) {
      await metaProxy!.stall();
      await sleep(random.below(150) + 5);
      await metaProxy!.cut();
      await metaProxy!.flow();
      await sleep(random.below(100));
    }
  },
  async frozen({ metaProxy }, _random, ms) {
    await metaProxy!.freeze();
    await sleep(ms);
    await metaProxy!.flow();
  },
  async slow({ metaProxy }, random, ms) {
    await metaProxy!.delay(random.below(30) + 5);
    await sleep(ms);
    await metaProxy!.flow();
  },
  async refused({ metaProxy }, _random, ms) {
    await metaProxy!.refuse();
    await sleep(ms);
    await metaProxy!.flow();
  },
};

const onPostgres = async (network: Network, ...sql: string[]): Promise<void> => {
  const client = new pg.Client({ host: '127.0.0.1', port: network.postgres!.port, user: 'postgres' });
  await client.connect();
  try {
    for (const s of sql) await client.query(s);
  } finally {
    await client.end();
  }
};

const onMariadb = async (network: Network, sql: string): Promise<void> => {
  const connection = await mysql.createConnection({ socketPath: `${network.mariadb!.dir}/s.sock`, user: 'root' });
  try {
    await connection.query(sql);
  } finally {
    await connection.end();
  }
};

const SERVER: Record<'redis' | 'postgres' | 'mariadb', Record<string, Fault>> = {
  redis: {
    restart: ({ redis }) => redis!.restart(),
    async readOnly({ redis }, _random, ms) {
      redis!.cli('replicaof', '127.0.0.1', '1');
      await sleep(ms);
      redis!.cli('replicaof', 'no', 'one');
    },
    async fewReplicas({ redis }, _random, ms) {
      redis!.cli('config', 'set', 'min-replicas-to-write', '1');
      await sleep(ms);
      redis!.cli('config', 'set', 'min-replicas-to-write', '0');
    },
    async paused({ redis }, _random, ms) {
      redis!.cli('client', 'pause', String(ms), 'write');
      await sleep(ms);
    },
    async noScripts({ redis }) {
      redis!.cli('script', 'flush');
    },
  },
  postgres: {
    restart: ({ postgres }) => postgres!.restart(true),
    orderlyRestart: ({ postgres }) => postgres!.restart(false),
    async readOnly(network, _random, ms) {
      await onPostgres(network, 'alter system set default_transaction_read_only = on', 'select pg_reload_conf()');
      await sleep(ms);
      await onPostgres(
        network,
        'set default_transaction_read_only = off',
        'alter system reset default_transaction_read_only',
        'select pg_reload_conf()',
      );
    },
    async terminated(network, random) {
      for (let i = random.below(5) + 1; i > 0; i--) {
        await onPostgres(
          network,
          "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'steadfs'",
        );
        await sleep(random.below(100));
      }
    },
  },
  mariadb: {
    restart: ({ mariadb }) => mariadb!.restart(true),
    async readOnly(network, _random, ms) {
      await onMariadb(network, 'set global read_only = 1');
      await sleep(ms);
      await onMariadb(network, 'set global read_only = 0');
    },
  },
};

function storeFault(faults: HttpFault[], chance: number, methods?: string[]): Fault {
  return async ({ storeProxy }, random, ms) => {
    await storeProxy!.rule({ chance, faults, seed: random.below(1e9), ...(methods ? { methods } : {}) });
    await sleep(ms);
    await storeProxy!.rule(undefined);
  };
}

const STORE: Record<string, Fault> = {
  errors: storeFault(
    [
      { status: 500, code: 'InternalError' },
      { status: 503, code: 'SlowDown' },
      { status: 429, code: 'TooManyRequests' },
      { status: 502, code: '' },
    ],
    60,
  ),
  torn: storeFault([{ tear: 0 }, { tear: 1000 }, { tear: 100_000 }, { lose: true }, { reset: true }], 50),
  slowBodies: storeFault([{ slow: 20 }], 50),
  silence: storeFault([{ silent: true }], 40),
  storeAway: storeFault([{ reset: true }], 100),
  storeDown: storeFault([{ status: 503, code: 'ServiceUnavailable' }], 100),
};

/** Names of the faults of a combination. */
function faultsOf(meta: MetaKind, store: StoreKind): Record<string, Fault> {
  return {
    ...(meta === 'sqlite' ? {} : { ...CONNECTION, ...SERVER[meta] }),
    ...(store === 's3' ? STORE : {}),
  };
}

/** What an upgrade may say that is refused because something is away; the mount then goes on as it was. */
export const REFUSED =
  /goes on as it was|cannot be opened|cannot load|cannot be used|not yet accepting|could not|not answer|no connection|ECONN|terminat|read[- ]only|time|lost|closed|READONLY|NOREPLICAS/i;

/** Runs a command without standing still; the exit code is null when it took more than a minute. */
export async function run([program, ...args]: string[]): Promise<{ status: number | null; text: string }> {
  const child = spawn(program!, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, STEADFS_NODE: process.env.STEADFS_NODE ?? process.execPath },
  });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      text += data.toString();
    });
  const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
  const status = await new Promise<number | null>(done => child.on('close', done));
  clearTimeout(timer);
  return { status, text };
}

export interface FaultOptions {
  meta: MetaKind;
  store: StoreKind;
  seed: number;
  /** Faults; each drawn from `only`, or every one in turn. */
  count: number;
  only?: readonly string[];
  /** Drawn by lot from all. */
  random?: boolean;
  programs?: readonly string[];
  /** ms that lasting faults last at most. */
  ms: number;
  mount?: string[];
  log?: (line: string) => void;
}

export const MOUNT_FLAGS = ['--buffer-size', `${BUFFER_MIB}M`, '--put-timeout', '10s', '--get-timeout', '10s'];

/** Watches the resident memory of the services of a mount (once it is there), MiB. */
export function watchMemory(dir: () => string | undefined): { peak(): number; stop(): void } {
  let peak = 0;
  const timer = setInterval(() => {
    const mount = dir();
    const service = mount === undefined ? undefined : roles(mount).service;
    if (service === undefined) return;
    try {
      const kib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${service}/status`, 'latin1'))?.[1] ?? 0);
      peak = Math.max(peak, Math.round(kib / 1024));
    } catch {
      // killed a moment ago
    }
  }, 250);
  return { peak: () => peak, stop: () => clearInterval(timer) };
}

/** A peak over the ceiling is a fault. */
export function withMemory(report: Report, peak: number, happened: Record<string, number>): FaultReport {
  const over = `resident memory reached ${peak} MiB with a buffer of ${BUFFER_MIB}`;
  const faults = peak > BUFFER_MIB + CONSTANT_MIB ? [...report.faults, over] : report.faults;
  return { ...report, faults, peak, happened };
}

export interface FaultReport extends Report {
  /** MiB: the greatest resident memory of a service. */
  peak: number;
  happened: Record<string, number>;
}

export async function faultRun(options: FaultOptions): Promise<FaultReport | Missing> {
  const network = await startNetwork(options.meta, options.store);
  if ('missing' in network) return network;
  const all = faultsOf(options.meta, options.store);
  const names = options.only ?? Object.keys(all);
  const happened: Record<string, number> = {};
  let volume: Volume | undefined;
  const memory = watchMemory(() => volume?.dir);
  try {
    const report = await stormOnVolume({
      seed: options.seed,
      events: ['action'],
      count: options.count,
      seconds: 0,
      ...(options.programs ? { programs: options.programs } : {}),
      ...(options.log ? { log: options.log } : {}),
      mount: [...MOUNT_FLAGS, ...(options.mount ?? [])],
      network,
      mounted: v => {
        volume = v;
      },
      async action(random, index) {
        const name = options.only || options.random ? random.pick(names) : names[index % names.length]!;
        happened[name] = (happened[name] ?? 0) + 1;
        const ms = Math.round(options.ms / 2) + random.below(Math.round(options.ms / 2));
        options.log?.(`fault ${index}: ${name}, ${ms} ms`);
        const during = all[name]!(network, random, ms);
        let wrong: string | undefined;
        // In the middle of it: the service dies, or is replaced.
        const also = random.pick(['', '', 'kill', 'upgrade']);
        if (also !== '') {
          await sleep(random.below(Math.min(ms, 500)));
          happened[also] = (happened[also] ?? 0) + 1;
          options.log?.(`   and ${also}`);
        }
        if (also === 'kill') {
          const { service } = roles(volume!.dir);
          if (service !== undefined) process.kill(service, 'SIGKILL');
        } else if (also === 'upgrade') {
          // It may be refused while the database is away; the mount then goes on as it was.
          const { status, text } = await run(volume!.remountCommand);
          if (status !== 0 && !REFUSED.test(text)) wrong = `upgrade during ${name}: exit ${status}: ${text}`;
        }
        await during;
        return wrong;
      },
    });
    return withMemory(report, memory.peak(), happened);
  } finally {
    memory.stop();
    await network.close();
  }
}

export function describeFaults(report: FaultReport): string {
  const happened = Object.entries(report.happened).map(([name, n]) => `${n} ${name}`);
  return `${happened.join(', ')}; peak ${report.peak} MiB\n${describe(report)}`;
}

/** `steadfs status` of a mount, as an object. */
export function statusOf(dir: string): {
  mount: {
    state: string;
    service?: { pid: number };
    message?: string;
    since?: string;
    waiting?: number;
    troubles?: { what: string; since: string; message: string }[];
  };
} {
  const r = runClient('steadfs', ['status', dir]);
  if (r.status !== 0) throw new Error(`status: ${r.stderr}`);
  return JSON.parse(r.stdout);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      meta: { type: 'string', default: 'redis' },
      store: { type: 'string', default: 's3' },
      count: { type: 'string' },
      seed: { type: 'string' },
      faults: { type: 'string' },
      programs: { type: 'string' },
      away: { type: 'string', default: '2' },
      mount: { type: 'string', default: '' },
      verbose: { type: 'boolean', default: false },
    },
  });
  const { meta, store } = values as { meta: MetaKind; store: StoreKind };
  const names = Object.keys(faultsOf(meta, store));
  const words = (text: string): string[] => text.split(/[ ,]/).filter(w => w !== '');
  const report = await faultRun({
    meta,
    store,
    seed: Number(values.seed ?? Math.floor(Math.random() * 1e6)),
    count: Number(values.count ?? names.length),
    ms: Number(values.away) * 1000,
    mount: words(values.mount),
    ...(values.faults ? { only: words(values.faults) } : {}),
    ...(values.programs ? { programs: words(values.programs) } : {}),
    ...(values.verbose ? { log: (line: string) => console.log(line) } : {}),
  });
  if ('missing' in report) {
    console.log(`skipped: ${report.missing}`);
    return 0;
  }
  console.log(describeFaults(report));
  return report.failed + report.wrong + report.faults.length > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main();
