/**
 * Programs at work on a mount while the processes that serve it are killed and upgraded; nothing may fail, nothing may be wrong, and the
 * pauses are measured.
 *
 *   node storm.ts --dir DIR [--seconds N]                                    without events, on any directory
 *   node storm.ts --mount [--client juicefs] [--events service,keeper,inTurn,upgrade] [--count N] [--full] [--minutes N] [--seed N] [--programs A,B] [--json FILE]
 *                   [--meta sqlite|redis|postgres|mariadb] [--store file|s3]
 *   node storm.ts --unit [--events service,both,upgrade] …                  the mount is kept by a service manager's fd store, without a keeper
 *   node storm.ts --once [--count N] [--full]                                mutations alone, and a service that is killed all the time
 *
 * `--full` is 1,000 events. What must hold: no call fails, no answer is wrong, and descriptors and memory of service and keeper stay what they were.
 */
import { type ChildProcess, fork } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { parseArgs } from 'node:util';
import { Manager } from '../../../fuse/test/helpers/manager.ts';
import { META_KINDS, type MetaKind, STORE_KINDS, type StoreKind, startNetwork } from '../servers/network.ts';
import { type Random, seeded } from '../support/random.ts';
import { removeTree } from '../support/remove.ts';
import {
  abortMount,
  type Client,
  clientCommand,
  missing,
  openVolume,
  processesWith,
  runClient,
  type Volume,
} from '../support/volume.ts';
import { PROGRAMS } from './programs.ts';

/**
 * `inTurn`: one of the two, and the other as soon as that one is there again. `both`: the service and, within 10 ms, the process that was started in
 * its place, so that for a moment nobody but the fd store holds the mount; only for a mount under one. `action`: StormOptions.action.
 */
export type EventKind = 'service' | 'keeper' | 'inTurn' | 'both' | 'upgrade' | 'action';

interface StormOptions {
  dir: string;
  seed: number;
  /** Each of these first, and then drawn from them; none: the programs run undisturbed for `seconds`. */
  events: readonly EventKind[];
  count: number;
  /** Length of a storm without events. */
  seconds: number;
  /** No event begins after these, whatever the count. */
  minutes?: number;
  programs?: readonly string[];
  /** Instances of a program, in place of the usual number. */
  instances?: Readonly<Record<string, number>>;
  /** Rest before an event, ms: a random time from the first to the second. */
  rest?: readonly [number, number];
  /** How a planned upgrade is made; answers what went wrong, or the pause in ms that the command tells. */
  upgrade?: () => Promise<string | number | undefined> | string | number | undefined;
  /** The manager that keeps the mount, when one does. */
  manager?: Manager;
  /** Directory of the volume's objects. */
  objects?: string;
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
  /** What the programs did: mutations, transactions, slow reads … */
  deeds: Record<string, number>;
  /** By process: resident MiB (with what it touched of capsule and arena) and open descriptors; `capsule`: MiB of the memfd. Medians of the first and of the last quarter. */
  memory: Partial<Record<Role | 'capsule', [number, number]>>;
  descriptors: Partial<Record<Role, [number, number]>>;
}

type Message =
  | { kind: 'fault'; what: 'failed' | 'wrong'; text: string }
  | { kind: 'slow'; program: string; begin: number; length: number }
  | { kind: 'counter'; how: string; added: number; found: number }
  | { kind: 'done'; program: string; calls: number; deeds: Record<string, number> }
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

interface Usage {
  memory: Partial<Record<Role | 'capsule', number>>;
  descriptors: Partial<Record<Role, number>>;
}

/** Open descriptors without those of objects, of which the file store keeps up to 256 for a moment, and without TCP connections: pools have as many as there is work. */
function descriptorsOf(pid: number): number {
  const tcp = new Set<string>();
  for (const table of ['tcp', 'tcp6'])
    for (const line of readFileSync(`/proc/${pid}/net/${table}`, 'latin1').split('\n'))
      tcp.add(`socket:[${line.trim().split(/\s+/)[9]}]`);
  return readdirSync(`/proc/${pid}/fd`).filter(fd => {
    try {
      const target = readlinkSync(`/proc/${pid}/fd/${fd}`);
      return !target.includes('/chunks/') && !tcp.has(target);
    } catch {
      return false; // closed meanwhile
    }
  }).length;
}

function usage(pids: Record<Role, number | undefined>): Usage {
  const result: Usage = { memory: {}, descriptors: {} };
  for (const role of ['service', 'keeper'] as const) {
    const pid = pids[role];
    if (pid === undefined) continue;
    try {
      const resident = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
      result.descriptors[role] = descriptorsOf(pid);
      result.memory[role] = Number(resident ?? 0) / 1024;
      if (role === 'service') result.memory.capsule = statSync(`/proc/${pid}/fd/4`).blocks / 2048;
    } catch {
      // killed a moment ago
    }
  }
  return result;
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
    deeds: {},
    memory: {},
    descriptors: {},
  };
  const { manager } = options;
  const full = options.count > 100 || options.seconds > 100;
  const [restMin, restMax] = options.rest ?? [50, 350];
  const rolesNow = (): Record<Role, number | undefined> =>
    manager ? { service: manager.ready ? manager.pid : undefined, keeper: undefined } : roles(options.dir);
  const base = mkdtempSync(join(options.dir, 'storm-'));
  const shared = join(base, 'shared');
  mkdirSync(shared);
  const slow: { begin: number; length: number }[] = [];
  const counters = new Map<string, { added: number; found: number }>();
  const running: Running[] = [];
  for (const [kind, { instances }] of Object.entries(PROGRAMS)) {
    if (options.programs && !options.programs.includes(kind)) continue;
    for (let i = 0; i < (options.instances?.[kind] ?? instances); i++) {
      const child = fork(
        join(import.meta.dirname, 'program.ts'),
        [
          kind,
          join(base, `${kind}-${i}`),
          shared,
          String(i),
          String(random.below(1e9)),
          options.objects ?? '',
          full ? 'full' : '',
        ],
        { execArgv: ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=2'] },
      );
      const program: Running = { name: `${kind} ${i}`, child, state: 'starting', heard: Date.now() };
      running.push(program);
      child.on('message', (m: Message) => {
        program.heard = Date.now();
        if (m.kind === 'fault') {
          report[m.what]++;
          if (m.text !== '' && report.texts.length < 20) report.texts.push(m.text);
        } else if (m.kind === 'slow') slow.push(m);
        else if (m.kind === 'counter') {
          const sum = counters.get(m.how) ?? { added: 0, found: 0 };
          counters.set(m.how, { added: sum.added + m.added, found: Math.max(sum.found, m.found) });
        } else if (m.kind === 'done') {
          report.calls += m.calls;
          for (const [what, n] of Object.entries(m.deeds)) report.deeds[what] = (report.deeds[what] ?? 0) + n;
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
      const found = rolesNow();
      if (victims.every(v => found[v] !== undefined && found[v] !== old[v])) return '';
      if (Date.now() > deadline)
        return `after 60 s the processes are ${JSON.stringify(found)}, before ${JSON.stringify(old)}`;
      await sleep(10);
    }
  };
  const samples: Usage[] = [];
  const told: number[] = [];
  const windows: { kind: string; begin: number; end: number }[] = [];
  let alive = await wait('start', p => p.state === 'running', full ? 400_000 : 180_000);
  for (const p of running)
    if (p.state === 'running') {
      p.heard = Date.now();
      p.child.send('go');
    }
  const began = now();
  const end = Date.now() + options.seconds * 1000;
  if (alive && options.events.length === 0) while (Date.now() < end) await sleep(100);
  const last = Date.now() + (options.minutes ?? Number.POSITIVE_INFINITY) * 60_000;
  for (let i = 0; alive && options.events.length > 0 && i < options.count && Date.now() < last; i++) {
    await sleep(restMin + random.below(restMax - restMin));
    // Each kind once before chance decides: short storms have them all.
    const kind = options.events[i] ?? random.pick(options.events);
    const before = rolesNow();
    const begin = now();
    report.events[kind] = (report.events[kind] ?? 0) + 1;
    if (kind === 'upgrade') {
      const answer = await options.upgrade?.();
      if (typeof answer === 'number') told.push(answer);
      else if (answer) report.faults.push(`upgrade ${i}: ${answer}`);
    }
    const order: Role[] = random.chance(50) ? ['service', 'keeper'] : ['keeper', 'service'];
    const rounds: Role[] =
      kind === 'upgrade' || kind === 'action' ? [] : kind === 'inTurn' ? order : kind === 'both' ? ['service'] : [kind];
    let lost = '';
    for (const victim of rounds) {
      const old = rolesNow();
      if (old[victim] === undefined) lost = `no ${victim} to kill: ${JSON.stringify(old)}`;
      if (lost) break;
      const starts = manager?.starts ?? 0;
      process.kill(old[victim]!, 'SIGKILL');
      if (kind === 'both') {
        if (!manager) throw new Error('only a service manager can lose both');
        while (manager.starts === starts) await sleep(0);
        await sleep(random.below(10));
        if (manager.pid) process.kill(manager.pid, 'SIGKILL');
      }
      lost = await renewed([victim], old);
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
    const after = rolesNow();
    const back = now();
    await sleep(120);
    windows.push({ kind, begin, end: now() });
    samples.push(usage(after));
    const silent = running.filter(p => p.state === 'running' && Date.now() - p.heard > 300_000).map(p => p.name);
    if (silent.length > 0) {
      report.faults.push(`event ${i} (${kind}): nothing heard for 300 s from ${silent.join(', ')}`);
      alive = false;
    }
    log(
      `event ${i}: ${kind}, renewed after ${Math.round(back - begin)} ms; ${report.failed} failed, ${report.wrong} wrong`,
    );
  }
  for (const p of running) if (p.state === 'running') p.child.send('stop');
  await wait('stop', p => p.state === 'stopped', alive ? 300_000 : 5000);
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '1');
  } catch {
    // only root may
  }
  for (const p of running) if (p.state === 'stopped') p.child.send('verify');
  await wait('verification', p => p.state === 'done', alive ? 600_000 : 5000);
  for (const p of running) if (p.state !== 'dead') p.child.kill('SIGKILL');
  // Of programs that did not end the share is not known.
  for (const [how, { added, found }] of counters)
    if (alive && added !== found) {
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
  if (told.length > 0) report.pauses['upgrade, as the command says'] = spread(told);
  const quarter = Math.max(1, Math.floor(samples.length / 4));
  const trend = (of: (u: Usage) => number | undefined): [number, number] | undefined => {
    const values = [samples.slice(0, quarter), samples.slice(-quarter)].map(part =>
      median(part.map(of).filter(v => v !== undefined)),
    );
    return values.some(v => v > 0) ? (values.map(v => Math.round(v * 10) / 10) as [number, number]) : undefined;
  };
  for (const what of ['service', 'keeper', 'capsule'] as const) {
    const memory = trend(u => u.memory[what]);
    if (memory) report.memory[what] = memory;
    const descriptors = what === 'capsule' ? undefined : trend(u => u.descriptors[what]);
    if (descriptors && what !== 'capsule') report.descriptors[what] = descriptors;
  }
  if (samples.length >= 100) report.faults.push(...growth(report));
  if (alive) {
    const left = removeTree(base);
    if (left) report.faults.push(left);
  }
  return report;
}

/** What grew from the first to the last quarter of a long storm. */
function growth({ memory, descriptors }: Report): string[] {
  const limits = { service: [1.25, 30], keeper: [1.1, 1], capsule: [1.25, 4] } as const;
  const grown = (Object.keys(limits) as (keyof typeof limits)[]).flatMap(what => {
    const [first, last] = memory[what] ?? [0, 0];
    const [factor, more] = limits[what];
    return last > first * factor + more ? [`memory of ${what} grew from ${first} to ${last} MiB`] : [];
  });
  for (const [role, [first, last]] of Object.entries(descriptors))
    if (last > first + 8) grown.push(`descriptors of ${role} grew from ${first} to ${last}`);
  return grown;
}

export function describe(report: Report): string {
  const events = Object.entries(report.events).map(([kind, n]) => `${n} ${kind}`);
  const pauses = Object.entries(report.pauses).map(
    ([kind, p]) => `  pause ${kind}: p50 ${p.p50}, p99 ${p.p99}, max ${p.max} ms (${p.n})`,
  );
  return [
    `seed ${report.seed}: ${events.join(', ') || 'no events'}; ${report.calls} calls, ${report.failed} failed, ${report.wrong} wrong, ${report.faults.length} faults`,
    ...pauses,
    `  first quarter → last: ${[
      ...Object.entries(report.memory).map(([what, v]) => `${what} ${v.join(' → ')} MiB`),
      ...Object.entries(report.descriptors).map(([what, v]) => `descriptors of ${what} ${v.join(' → ')}`),
    ].join(', ')}`,
    `  done: ${Object.entries(report.deeds)
      .map(([what, n]) => `${what} ${n}`)
      .join(', ')}`,
    ...[...report.faults, ...report.texts].map(t => `  ${t}`),
  ].join('\n');
}

/** Flags of the mounts: attributes for the mutations; a cache small enough that slow objects do not stay in it. */
const MOUNT_FLAGS = ['--enable-xattr', '--buffer-size', '96'];

/** What the counters of a SQLite volume say against its inodes; undefined when they agree. Only after the unmount. */
function accounts(path: string): string | undefined {
  const db = new DatabaseSync(path, { readOnly: true });
  try {
    const counter = (name: string): number =>
      (db.prepare('SELECT value FROM jfs_counter WHERE name = ?').get(name) as { value: number }).value;
    const { inodes, space, left } = db
      .prepare(
        `SELECT count(*) AS inodes, coalesce(sum(CASE WHEN type = 1 THEN (length + 4095) / 4096 * 4096 ELSE 4096 END), 0) AS space,
         (SELECT count(*) FROM jfs_sustained) AS left FROM jfs_node WHERE inode > 1 AND inode < ${2 ** 52}`,
      )
      .get() as { inodes: number; space: number; left: number };
    const found = `${inodes} inodes, ${space} bytes, ${left} sustained`;
    const wanted = `${counter('totalInodes')} inodes, ${counter('usedSpace')} bytes, 0 sustained`;
    return found === wanted ? undefined : `the volume holds ${found}; its counters say ${wanted}`;
  } finally {
    db.close();
  }
}

/** A storm on a fresh volume, which is unmounted (by force if need be) afterwards. */
export async function stormOnVolume(
  options: Omit<StormOptions, 'dir' | 'upgrade' | 'manager'> & {
    client?: Client;
    mount?: string[];
    /** Where the volume is; SQLite and a directory otherwise. */
    network?: { meta?: string; store?: string[] };
    /** Under the fd store of a service manager, without a keeper. */
    unit?: boolean;
    /** Called with the mounted volume before the programs start. */
    mounted?: (volume: Volume) => void;
  },
): Promise<Report> {
  const client = options.client ?? 'steadfs';
  const { network } = options;
  const flags = [...(client === 'steadfs' ? MOUNT_FLAGS : []), ...(options.mount ?? [])];
  const volume: Volume = openVolume({
    client,
    mount: flags,
    ...(network?.meta ? { meta: network.meta } : {}),
    ...(network?.store ? { store: network.store } : {}),
  });
  let manager: Manager | undefined;
  let fault: string | undefined;
  let report: Report | undefined;
  try {
    if (options.unit) manager = await underManager(volume, flags);
    options.mounted?.(volume);
    report = await storm({
      ...options,
      dir: volume.dir,
      ...(network?.store ? {} : { objects: join(volume.base, 'objects') }),
      ...(manager ? { manager } : {}),
      async upgrade() {
        if (manager) {
          await manager.restart(60_000);
          return undefined;
        }
        const r = await volume.remountLater();
        if (r.status !== 0) return `exit ${r.status ?? r.signal}: ${r.stdout}${r.stderr}`.trim();
        return Number(/pause ([\d.]+) ms/.exec(r.stdout)?.[1]);
      },
    });
  } finally {
    if (!report || report.faults.length > 0) abortMount(volume.dir);
    fault = volume.close({ keep: true });
    manager?.end();
  }
  if (fault) report.faults.push(fault);
  if (client === 'steadfs' && !network?.meta && report.faults.length === 0) {
    const wrong = accounts(join(volume.base, 'meta.db'));
    if (wrong) report.faults.push(wrong);
  }
  if (report.faults.length + report.failed + report.wrong === 0) removeTree(volume.base);
  else report.faults.push(`kept: ${volume.base}`);
  return report;
}

/** The volume's mount, made again under the fd store of a manager. */
export async function underManager(volume: Volume, flags: readonly string[], restart = true): Promise<Manager> {
  const r = runClient('steadfs', ['umount', volume.dir]);
  if (r.status !== 0) throw new Error(`umount: ${r.stdout}${r.stderr}`);
  const log = openSync(join(volume.base, 'log'), 'a');
  const manager = new Manager({
    dir: volume.base,
    command: [...clientCommand('steadfs'), 'mount', ...flags, volume.meta, volume.dir],
    env: { STEADFS_NODE: process.execPath },
    restart,
    output: log,
  });
  manager.start();
  await manager.untilReady(60_000);
  return manager;
}

/** Exactly once: what programs get back, and the tree in the end, while the service is killed all the time. */
export const ONCE = {
  events: ['service'],
  programs: ['mutations', 'names', 'statProber'],
  instances: { mutations: 6 },
  rest: [5, 150],
} satisfies Partial<StormOptions>;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      dir: { type: 'string' },
      mount: { type: 'boolean' },
      client: { type: 'string', default: 'steadfs' },
      options: { type: 'string', default: '' },
      unit: { type: 'boolean', default: false },
      once: { type: 'boolean', default: false },
      events: { type: 'string' },
      count: { type: 'string' },
      full: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '10' },
      minutes: { type: 'string' },
      seed: { type: 'string' },
      programs: { type: 'string' },
      meta: { type: 'string', default: 'sqlite' },
      store: { type: 'string', default: 'file' },
      json: { type: 'string' },
      verbose: { type: 'boolean', default: false },
    },
  });
  if ([values.dir, values.mount, values.unit, values.once].filter(v => v).length !== 1) {
    console.error(
      'usage: node storm.ts --dir DIR [--seconds N] | --mount [--client juicefs] | --unit | --once [--events A,B] [--count N] [--full] [--minutes N] [--seed N] [--programs A,B] [--meta KIND] [--store KIND] [--json FILE]',
    );
    return 2;
  }
  const client = values.client as Client;
  const lack = values.dir ? undefined : missing(client);
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
    ...(values.minutes ? { minutes: Number(values.minutes) } : {}),
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
          ...(values.once ? ONCE : {}),
          unit: values.unit,
          events: words(
            values.events ??
              (values.once ? 'service' : values.unit ? 'service,both,upgrade' : 'service,keeper,inTurn,upgrade'),
          ) as EventKind[],
        });
  } finally {
    await network.close();
  }
  if (values.json) writeFileSync(values.json, `${JSON.stringify(report, undefined, 2)}\n`);
  console.log(describe(report));
  return report.failed + report.wrong + report.faults.length > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main();
