/**
 * Programs at work on a mount while the processes that serve it are killed and upgraded; nothing may fail, nothing may be wrong, and the
 * pauses are measured.
 *
 *   node storm.ts --dir DIR [--seconds N]                                    without events, on any directory
 *   node storm.ts --mount [--client juicefs] [--events service,keeper,inTurn,upgrade] [--count N] [--seed N] [--programs A,B] [--json FILE]
 *                   [--meta sqlite|redis|postgres|mariadb] [--store file|s3]
 */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { META_KINDS, type MetaKind, STORE_KINDS, type StoreKind, startNetwork } from '../servers/network.ts';
import { type Random, seeded } from '../support/random.ts';
import { removeTree } from '../support/remove.ts';
import { abortMount, type Client, missing, openVolume, processesWith, type Volume } from '../support/volume.ts';
import { PROGRAMS } from './programs.ts';

/**
 * `inTurn`: one of the two, and the other as soon as that one is there again. `both`: within a moment, which only a mount under the fd store
 * survives. `action`: StormOptions.action.
 */
export type EventKind = 'service' | 'keeper' | 'inTurn' | 'both' | 'upgrade' | 'action';

export interface StormOptions {
  dir: string;
  seed: number;
  /** Kinds drawn from; none: the programs run undisturbed for `seconds`. */
  events: readonly EventKind[];
  count: number;
  seconds: number;
  programs?: readonly string[];
  /** How a planned upgrade is made; answers what went wrong. */
  upgrade?: () => string | undefined;
  /** Happens in place of an event, and is over when it settles; answers what went wrong. */
  action?: (random: Random, index: number) => Promise<string | undefined>;
  log?: (line: string) => void;
}

export interface Report {
  seed: number;
  events: Record<string, number>;
  calls: number;
  failed: number;
  wrong: number;
  /** The first of them. */
  texts: string[];
  /** What the driver found: no new service, a program that hangs. */
  faults: string[];
  /** ms, by kind of event, and 'none' for the longest probe of each second without events. */
  pauses: Record<string, { p50: number; p99: number; max: number; n: number }>;
  /** Resident MiB and open descriptors of the serving processes: medians of the first and of the last quarter. */
  memory: [number, number];
  descriptors: [number, number];
}

type Message =
  | { kind: 'fault'; what: 'failed' | 'wrong'; text: string }
  | { kind: 'slow'; program: string; begin: number; length: number }
  | { kind: 'counter'; how: string; added: number; found: number }
  | { kind: 'done'; program: string; calls: number }
  | { kind: 'ready' | 'stopped' }
  | { kind: 'beat'; calls: number };

interface Running {
  name: string;
  child: ChildProcess;
  state: 'starting' | 'running' | 'stopped' | 'done' | 'dead';
  heard: number;
}

const sleep = (ms: number): Promise<void> => new Promise(wake => setTimeout(wake, ms));
const now = (): number => Number(process.hrtime.bigint() / 1000n) / 1000;

type Role = 'service' | 'keeper';

/** The processes of a mount by their roles. The one that is a shell, or the parent of the other, is the keeper. */
export function roles(dir: string): Record<Role, number | undefined> {
  const found = processesWith(dir).flatMap(pid => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
      const program = readlinkSync(`/proc/${pid}/exe`).split('/').at(-1)!;
      const args = readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0');
      if (args.includes('storm.ts') || args.some(a => a.endsWith('/program.ts') || a.endsWith('/storm.ts'))) return [];
      if (/\) Z /.test(stat)) return [];
      return [{ pid, parent: Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]), program, args }];
    } catch {
      return []; // ended meanwhile
    }
  });
  const isShell = (p: { program: string }): boolean => /^(da|ba|busybox)?sh$/.test(p.program);
  // A shell whose parent is one of them is a fork of the keeper that has not become the service yet.
  const shell = found.find(p => isShell(p) && !found.some(q => isShell(q) && q.pid === p.parent));
  const node = found.filter(p => !isShell(p) && p.args.includes('service'));
  if (shell || node.length > 0) return { service: node.at(-1)?.pid, keeper: shell?.pid };
  const child = found.find(p => found.some(q => q.pid === p.parent));
  return { service: child?.pid, keeper: child?.parent };
}

function usage(pids: (number | undefined)[]): { memory: number; descriptors: number } {
  let memory = 0;
  let descriptors = 0;
  for (const pid of pids) {
    if (pid === undefined) continue;
    try {
      const resident = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
      memory += Number(resident ?? 0) / 1024;
      descriptors += readdirSync(`/proc/${pid}/fd`).length;
    } catch {
      // killed a moment ago
    }
  }
  return { memory, descriptors };
}

const median = (of: number[]): number => [...of].sort((a, b) => a - b)[Math.floor(of.length / 2)] ?? 0;

function spread(of: number[]): { p50: number; p99: number; max: number; n: number } {
  const sorted = [...of].sort((a, b) => a - b);
  const at = (share: number): number =>
    Math.round((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0) * 10) / 10;
  return { p50: at(0.5), p99: at(0.99), max: at(1), n: sorted.length };
}

export async function storm(options: StormOptions): Promise<Report> {
  const random: Random = seeded(options.seed);
  const log = options.log ?? (() => {});
  const report: Report = {
    seed: options.seed,
    events: {},
    calls: 0,
    failed: 0,
    wrong: 0,
    texts: [],
    faults: [],
    pauses: {},
    memory: [0, 0],
    descriptors: [0, 0],
  };
  const base = mkdtempSync(join(options.dir, 'storm-'));
  const shared = join(base, 'shared');
  mkdirSync(shared);
  const slow: { begin: number; length: number }[] = [];
  const counters = new Map<string, { added: number; found: number }>();
  const running: Running[] = [];
  for (const [kind, { instances }] of Object.entries(PROGRAMS)) {
    if (options.programs && !options.programs.includes(kind)) continue;
    for (let i = 0; i < instances; i++) {
      const child = fork(
        join(import.meta.dirname, 'program.ts'),
        [kind, join(base, `${kind}-${i}`), shared, String(i), String(random.below(1e9))],
        { execArgv: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=2'] },
      );
      const program: Running = { name: `${kind} ${i}`, child, state: 'starting', heard: Date.now() };
      running.push(program);
      child.on('message', (m: Message) => {
        program.heard = Date.now();
        if (m.kind === 'fault') {
          report[m.what]++;
          if (m.text !== '' && report.texts.length < 50) report.texts.push(m.text);
        } else if (m.kind === 'slow') slow.push(m);
        else if (m.kind === 'counter') {
          const sum = counters.get(m.how) ?? { added: 0, found: 0 };
          counters.set(m.how, { added: sum.added + m.added, found: Math.max(sum.found, m.found) });
        } else if (m.kind === 'done') {
          report.calls += m.calls;
          program.state = 'done';
        } else if (m.kind === 'ready') program.state = 'running';
        else if (m.kind === 'stopped') program.state = 'stopped';
      });
      child.on('exit', (code, signal) => {
        if (program.state !== 'done') report.faults.push(`${program.name} ended: ${code ?? signal}`);
        program.state = 'dead';
      });
    }
  }
  const wait = async (what: string, ready: (p: Running) => boolean, ms: number): Promise<boolean> => {
    const end = Date.now() + ms;
    while (Date.now() < end) {
      if (running.every(p => ready(p) || p.state === 'dead' || p.state === 'done')) return true;
      await sleep(20);
    }
    const late = running.filter(p => !ready(p) && p.state !== 'dead' && p.state !== 'done').map(p => p.name);
    report.faults.push(`${what}: no word in ${ms} ms from ${late.join(', ')}`);
    return false;
  };
  /** Waits until there is a new process for each role; says what is missing after 60 s. */
  const renewed = async (victims: Role[], old: Record<Role, number | undefined>): Promise<string> => {
    const deadline = Date.now() + 60_000;
    for (;;) {
      const found = roles(options.dir);
      if (victims.every(v => found[v] !== undefined && found[v] !== old[v])) return '';
      if (Date.now() > deadline)
        return `after 60 s the processes are ${JSON.stringify(found)}, before ${JSON.stringify(old)}`;
      await sleep(10);
    }
  };
  const samples: { memory: number; descriptors: number }[] = [];
  const windows: { kind: string; begin: number; end: number }[] = [];
  let alive = await wait('start', p => p.state === 'running', 180_000);
  const began = now();
  const end = Date.now() + options.seconds * 1000;
  if (alive && options.events.length === 0) while (Date.now() < end) await sleep(100);
  for (let i = 0; alive && options.events.length > 0 && i < options.count; i++) {
    await sleep(150 + random.below(500));
    const kind = random.pick(options.events);
    const before = roles(options.dir);
    const begin = now();
    report.events[kind] = (report.events[kind] ?? 0) + 1;
    if (kind === 'upgrade') {
      const fault = options.upgrade?.();
      if (fault) report.faults.push(`upgrade ${i}: ${fault}`);
    }
    const order: Role[] = random.chance(50) ? ['service', 'keeper'] : ['keeper', 'service'];
    const rounds: Role[][] =
      kind === 'upgrade' || kind === 'action'
        ? []
        : kind === 'both'
          ? [order]
          : kind === 'inTurn'
            ? order.map(r => [r])
            : [[kind]];
    let lost = '';
    for (const victims of rounds) {
      const old = roles(options.dir);
      if (victims.some(v => old[v] === undefined)) lost = `no ${victims} to kill: ${JSON.stringify(old)}`;
      if (lost) break;
      for (const v of victims) process.kill(old[v]!, 'SIGKILL');
      lost = await renewed(victims, old);
    }
    if (kind === 'upgrade') lost = await renewed(['service'], before);
    if (kind === 'action') {
      lost = (await options.action?.(random, i)) ?? '';
      for (const p of running) p.heard = Date.now();
    }
    if (lost) {
      report.faults.push(`event ${i} (${kind}): ${lost}`);
      alive = kind === 'upgrade' || kind === 'action';
    }
    const after = roles(options.dir);
    const back = now();
    await sleep(120);
    windows.push({ kind, begin, end: now() });
    samples.push(usage([after.service, after.keeper]));
    const silent = running.filter(p => p.state === 'running' && Date.now() - p.heard > 60_000).map(p => p.name);
    if (silent.length > 0) {
      report.faults.push(`event ${i} (${kind}): nothing heard for 60 s from ${silent.join(', ')}`);
      alive = false;
    }
    log(
      `event ${i}: ${kind}, renewed after ${Math.round(back - begin)} ms; ${report.failed} failed, ${report.wrong} wrong`,
    );
  }
  for (const p of running) if (p.state === 'running') p.child.send('stop');
  await wait('stop', p => p.state === 'stopped', alive ? 60_000 : 5000);
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '1');
  } catch {
    // only root may
  }
  for (const p of running) if (p.state === 'stopped') p.child.send('verify');
  await wait('verification', p => p.state === 'done', alive ? 120_000 : 5000);
  for (const p of running) if (p.state !== 'dead') p.child.kill('SIGKILL');
  for (const [how, { added, found }] of counters)
    if (added !== found) {
      report.wrong++;
      report.texts.push(`${how}: ${added} increments under the lock, and the counter is ${found}`);
    }
  for (const kind of new Set(windows.map(w => w.kind)))
    report.pauses[kind] = spread(
      windows
        .filter(w => w.kind === kind)
        .map(w => Math.max(0, ...slow.filter(s => s.begin < w.end && s.begin + s.length > w.begin).map(s => s.length))),
    );
  const calm: number[] = [];
  for (let second = began; second < now() - 1000; second += 1000)
    if (!windows.some(w => w.begin < second + 1000 && w.end > second))
      calm.push(Math.max(0, ...slow.filter(s => s.begin >= second && s.begin < second + 1000).map(s => s.length)));
  report.pauses.none = spread(calm);
  const quarter = Math.max(1, Math.floor(samples.length / 4));
  for (const key of ['memory', 'descriptors'] as const)
    report[key] = [
      median(samples.slice(0, quarter).map(s => s[key])),
      median(samples.slice(-quarter).map(s => s[key])),
    ].map(Math.round) as [number, number];
  if (alive) {
    const left = removeTree(base);
    if (left) report.faults.push(left);
  }
  return report;
}

export function describe(report: Report): string {
  const events = Object.entries(report.events).map(([kind, n]) => `${n} ${kind}`);
  const pauses = Object.entries(report.pauses).map(
    ([kind, p]) => `  pause ${kind}: p50 ${p.p50}, p99 ${p.p99}, max ${p.max} ms (${p.n})`,
  );
  return [
    `seed ${report.seed}: ${events.join(', ') || 'no events'}; ${report.calls} calls, ${report.failed} failed, ${report.wrong} wrong, ${report.faults.length} faults`,
    ...pauses,
    `  resident ${report.memory.join(' → ')} MiB, descriptors ${report.descriptors.join(' → ')}`,
    ...[...report.faults, ...report.texts].map(t => `  ${t}`),
  ].join('\n');
}

/** A storm on a fresh volume, which is unmounted (by force if need be) afterwards. */
export async function stormOnVolume(
  options: Omit<StormOptions, 'dir' | 'upgrade'> & {
    client?: Client;
    mount?: string[];
    /** Where the volume is; SQLite and a directory otherwise. */
    network?: { meta?: string; store?: string[] };
    /** Called with the mounted volume before the programs start. */
    mounted?: (volume: Volume) => void;
  },
): Promise<Report> {
  const volume: Volume = openVolume({
    client: options.client ?? 'steadfs',
    mount: options.mount ?? [],
    ...(options.network?.meta ? { meta: options.network.meta } : {}),
    ...(options.network?.store ? { store: options.network.store } : {}),
  });
  options.mounted?.(volume);
  let fault: string | undefined;
  let report: Report | undefined;
  try {
    report = await storm({
      ...options,
      dir: volume.dir,
      upgrade() {
        const r = volume.remount();
        return r.status === 0 ? undefined : `exit ${r.status ?? r.signal}: ${r.stdout}${r.stderr}`.trim();
      },
    });
  } finally {
    if (!report || report.faults.length > 0) abortMount(volume.dir);
    fault = volume.close({ keep: report !== undefined && report.faults.length + report.failed + report.wrong > 0 });
  }
  if (fault) report.faults.push(fault);
  return report;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      dir: { type: 'string' },
      mount: { type: 'boolean' },
      client: { type: 'string', default: 'steadfs' },
      options: { type: 'string', default: '' },
      events: { type: 'string', default: 'service,keeper,inTurn,upgrade' },
      count: { type: 'string' },
      full: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '10' },
      seed: { type: 'string' },
      programs: { type: 'string' },
      meta: { type: 'string', default: 'sqlite' },
      store: { type: 'string', default: 'file' },
      json: { type: 'string' },
      verbose: { type: 'boolean', default: false },
    },
  });
  if (!values.dir === !values.mount) {
    console.error(
      'usage: node storm.ts --dir DIR [--seconds N] | --mount [--client juicefs] [--events A,B] [--count N] [--full] [--seed N] [--programs A,B] [--meta KIND] [--store KIND] [--json FILE]',
    );
    return 2;
  }
  const client = values.client as Client;
  const lack = values.mount ? missing(client) : undefined;
  if (lack) {
    console.log(`skipped: ${lack}`);
    return 0;
  }
  const { meta, store } = values as { meta: MetaKind; store: StoreKind };
  if (!META_KINDS.includes(meta) || !STORE_KINDS.includes(store)) {
    console.error(`--meta is one of ${META_KINDS.join(', ')}; --store one of ${STORE_KINDS.join(', ')}`);
    return 2;
  }
  const network = await startNetwork(meta, store);
  if ('missing' in network) {
    console.log(`skipped: ${network.missing}`);
    return 0;
  }
  const words = (text: string): string[] => text.split(/[ ,]/).filter(w => w !== '');
  const common = {
    seed: Number(values.seed ?? Math.floor(Math.random() * 1e6)),
    count: Number(values.count ?? (values.full ? 1000 : 20)),
    seconds: Number(values.seconds),
    ...(values.programs ? { programs: words(values.programs) } : {}),
    ...(values.verbose ? { log: (line: string) => console.log(line) } : {}),
  };
  let report: Report;
  try {
    report = values.dir
      ? await storm({ ...common, dir: values.dir, events: [] })
      : await stormOnVolume({
          ...common,
          client,
          network,
          mount: words(values.options),
          events: words(values.events) as EventKind[],
        });
  } finally {
    await network.close();
  }
  if (values.json) writeFileSync(values.json, `${JSON.stringify(report, undefined, 2)}\n`);
  console.log(describe(report));
  return report.failed + report.wrong + report.faults.length > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main();
