/**
 * Deaths by enumeration: the service kills itself at each fault point (packages/fuse/src/fault.ts) in turn, on a real mount, while a program (fault-mix.ts) compares the
 * result of every call with what it must be; at the end the database is counted anew.
 *
 *   node faults.ts [--full] [--deaths N] [--seed N] [--only REGEX] [--workers N] [--verbose]
 *
 * --full is about 950 deaths; --workers shares them out to processes that work side by side, each on a volume of its own.
 *
 * Which points there are is found by recording: those of a round of the mix ("work"), those of the start after a death ("start"), those of an upgrade under work
 * ("upgrade": command, old service and new one). Each is hit at the first time, the last, and one between.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { crc32 } from 'node:zlib';
import { makeBundle } from '../../../../scripts/build.ts';
import { seeded } from '../support/random.ts';
import { abortMount, clientCommand, openVolume, runClient, type Volume } from '../support/volume.ts';
import { inspectVolume } from './inspect.ts';

const ROOT = resolve(import.meta.dirname, '../../../..');
const BUNDLE = join(ROOT, 'node_modules/.cache/steadfs-faults');
const ROUND_MS = 240_000;
const MOUNT = ['--enable-xattr'];

/** Points that no run here comes to, and why. */
const ELSEWHERE: Record<string, string> = {
  'end.served': 'the mount has ended',
  'warm-up.before': 'throws whenever faults are to be injected',
};

/** Not in every round: slice numbers are fetched by the hundred. */
const RARE = ['meta.slice-ids'];
/** What a start comes after: a reply that was stored and not sent, a request that was only taken. */
const FIRST_DEATHS = ['kill request.stored:GETATTR 5', 'kill request.before-run:GETATTR 5'];

export interface FaultOptions {
  seed: number;
  /** How many deaths, drawn at random; all without. */
  deaths?: number | undefined;
  only?: RegExp | undefined;
  /** [i, n]: the ith of n parts of the points, for one of n processes that work side by side. */
  share?: readonly [number, number] | undefined;
  log?: ((line: string) => void) | undefined;
}

export interface FaultReport {
  seed: number;
  /** Points that were recorded, and those that a process died at. */
  points: string[];
  hit: string[];
  deaths: number;
  calls: number;
  faults: string[];
  /** Planned deaths that did not come (the work between two rounds differs). */
  missed: string[];
  /** Names in the source that were not recorded. */
  unreached: string[];
}

type Kind = 'work' | 'start' | 'upgrade';
interface Death {
  kind: Kind;
  point: string;
  nth: number;
}

/** Where tests arm faults, and the bundle that has them. Sets this process's environment, which commands inherit. */
export async function faultBundle(
  base: string,
): Promise<{ file: string; arm(...lines: string[]): void; left(): string }> {
  await makeBundle({ faults: true, out: BUNDLE });
  const file = join(base, 'fault');
  process.env.STEADFS_FAULT_FILE = file;
  process.env.STEADFS = `${process.execPath} --disable-warning=ExperimentalWarning ${BUNDLE}/steadfs.mjs`;
  return {
    file,
    arm(...lines) {
      // In one piece: a process may look at any moment.
      writeFileSync(file, lines.map(l => `${l}\n`).join(''), { flag: 'w' });
    },
    left() {
      try {
        return readFileSync(file, 'utf8');
      } catch {
        return '';
      }
    },
  };
}

/** The mix as a child: one round, its calls; rejects with what was wrong, or that it hangs. */
export class Mix {
  readonly #child: ChildProcess;
  readonly #answers: AsyncIterator<string>;
  calls = 0;
  constructor(dir: string) {
    this.#child = spawn(process.execPath, [join(import.meta.dirname, 'fault-mix.ts'), dir], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }
  async ask(word: 'run' | 'end'): Promise<void> {
    this.#child.stdin!.write(`${word}\n`);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no end of a round after ${ROUND_MS} ms`)), ROUND_MS);
    });
    try {
      const { value, done } = await Promise.race([this.#answers.next(), late]);
      if (done) throw new Error('the mix has ended');
      if (!value.startsWith('ok ')) throw new Error(value);
      this.calls += Number(value.slice(3));
    } finally {
      clearTimeout(timer);
    }
  }
  end(): void {
    this.#child.kill('SIGKILL');
  }
}

interface MountStatus {
  mount: { state: string; message?: string; service?: { pid: number; version: string }; keeper?: { pid: number } };
}

export function statusOf(dir: string): MountStatus['mount'] {
  const r = runClient('steadfs', ['status', dir]);
  if (r.status !== 0) throw new Error(`status: ${r.stdout}${r.stderr}`);
  return (JSON.parse(r.stdout) as MountStatus).mount;
}

export async function until<T>(what: string, look: () => T | undefined | false, timeout = 30_000): Promise<T> {
  const end = Date.now() + timeout;
  for (;;) {
    const found = look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${timeout} ms: ${what}`);
    await new Promise(wake => setTimeout(wake, 50));
  }
}

/** `mount` again while something else goes on. */
export function remount(volume: Volume, extra: string[] = []): Promise<{ status: number | string; output: string }> {
  const [program, ...first] = clientCommand('steadfs');
  const args = ['mount', '-d', '--log', join(volume.base, 'log'), ...extra, volume.meta, volume.dir];
  const child = spawn(program!, [...first, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, STEADFS_NODE: process.execPath },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', d => {
      output += d;
    });
  const timer = setTimeout(() => child.kill('SIGKILL'), 120_000);
  return new Promise(done =>
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      setTimeout(() => done({ status: code ?? signal ?? '?', output }), 20);
    }),
  );
}

/** Every name in the sources. */
export function pointsInSource(): string[] {
  const names = new Set<string>();
  for (const path of globSync('packages/*/src/**/*.ts', { cwd: ROOT }))
    for (const [, name] of readFileSync(join(ROOT, path), 'utf8').matchAll(/faultPoint\('([^']+)'/g)) names.add(name!);
  return [...names].sort();
}

export async function enumerate(options: FaultOptions): Promise<FaultReport> {
  const { log = () => {} } = options;
  const random = seeded(options.seed);
  const report: FaultReport = {
    seed: options.seed,
    points: [],
    hit: [],
    deaths: 0,
    calls: 0,
    faults: [],
    missed: [],
    unreached: [],
  };
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-faults-'));
  const faults = await faultBundle(scratch);
  const volume = openVolume({ format: ['--trash-days', '0', '--block-size', '64K'], mount: MOUNT });
  const mix = new Mix(volume.dir);
  let broken = false;
  const attempt = async (what: string, work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      broken = true;
      report.faults.push(`${what}: ${(error as Error).message}`);
      log(`  FAULT ${what}: ${(error as Error).message}`);
    }
  };
  try {
    // ── which points there are
    const recorded = async (work: () => Promise<void>, ...before: string[]): Promise<Map<string, number>> => {
      faults.arm(...before, 'record');
      await work();
      faults.arm();
      const counts = new Map<string, number>();
      for (const point of readFileSync(`${faults.file}.seen`, 'utf8').split('\n'))
        if (point !== '') counts.set(point, (counts.get(point) ?? 0) + 1);
      rmSync(`${faults.file}.seen`);
      return counts;
    };
    for (let i = 0; i < 3; i++) await mix.ask('run');
    const work = await recorded(async () => {
      await mix.ask('run');
      // What goes on behind: usage is flushed each second.
      await new Promise(wake => setTimeout(wake, 1200));
    });
    // With a stored reply and with a request that comes again.
    const start = new Map<string, number>();
    for (const first of FIRST_DEATHS) {
      const counts = await recorded(() => mix.ask('run'), first);
      for (const [point, n] of counts) start.set(point, Math.max(n, start.get(point) ?? 0));
    }
    const upgrade = await recorded(async () => {
      const [r] = await Promise.all([remount(volume, MOUNT), mix.ask('run')]);
      if (r.status !== 0) throw new Error(`upgrade: ${r.output}`);
    });
    for (const point of work.keys()) {
      start.delete(point);
      upgrade.delete(point);
    }
    for (const point of start.keys()) upgrade.delete(point);
    for (const point of RARE) start.set(point, 1);
    const all = new Set([...work.keys(), ...start.keys(), ...upgrade.keys()]);
    report.points = [...all];
    const reached = new Set([...all].map(p => p.split(':')[0]!));
    report.unreached = pointsInSource().filter(name => !reached.has(name) && !(name in ELSEWHERE));
    log(`${work.size} points of work, ${start.size} of a start, ${upgrade.size} of an upgrade`);

    // ── the plan
    const lists = (
      [
        ['work', work],
        ['start', start],
        ['upgrade', upgrade],
      ] as const
    ).flatMap(([kind, counts]) =>
      [...counts].map(([point, count]) =>
        [...new Set([1, count, 1 + random.below(count)])].map((nth): Death => ({ kind, point, nth })),
      ),
    );
    // Each point once before any comes again.
    let plan = [0, 1, 2].flatMap(i => lists.flatMap(list => list[i] ?? []));
    const [share, shares] = options.share ?? [0, 1];
    plan = plan.filter(({ point }) => crc32(Buffer.from(point)) % shares === share);
    if (options.only) plan = plan.filter(d => options.only!.test(`${d.kind} ${d.point}`));
    if (options.deaths !== undefined) {
      // Of each kind something, and no point twice.
      const drawn: Death[] = [];
      const taken = new Set<string>();
      const kinds = (['work', 'work', 'start', 'upgrade'] as const).map(kind => plan.filter(d => d.kind === kind));
      for (let i = 0; drawn.length < options.deaths && kinds.some(l => l.length > 0); i++) {
        const list = kinds[i % kinds.length]!;
        if (list.length === 0) continue;
        const [death] = list.splice(random.below(list.length), 1);
        if (taken.has(death!.point)) continue;
        taken.add(death!.point);
        drawn.push(death!);
      }
      plan = drawn;
    }

    // ── one after the other
    const hit = new Set<string>();
    for (const { kind, point, nth } of plan) {
      if (broken) break;
      const what = `${kind} ${point} ${nth}`;
      const begun = performance.now();
      let fired = false;
      if (kind === 'upgrade') {
        faults.arm(`kill ${point} ${nth}`);
        await attempt(what, async () => {
          const [r] = await Promise.all([remount(volume, MOUNT), mix.ask('run')]);
          fired = faults.left() === '';
          faults.arm();
          if (r.status === 0 && !fired) return;
          // Whatever became of it, the mount is served and can be upgraded.
          await until('the mount is served', () => statusOf(volume.dir).state === 'serving');
          if (r.status !== 0) {
            const again = await remount(volume, MOUNT);
            if (again.status !== 0) throw new Error(`the next upgrade: ${again.status} ${again.output}`);
          }
        });
      } else {
        const before = kind === 'work' ? [] : [FIRST_DEATHS[point === 'adopt.answered-again' ? 0 : random.below(2)]!];
        faults.arm(...before, `kill ${point} ${nth}`);
        for (let tries = 0; tries < (RARE.includes(point) ? 15 : 3) && !fired && !broken; tries++) {
          await attempt(what, () => mix.ask('run'));
          fired = faults.left() === '';
        }
        faults.arm();
      }
      if (fired) {
        report.deaths += kind === 'start' ? 2 : 1;
        hit.add(point);
      } else if (!broken) report.missed.push(what);
      log(`${fired ? 'died' : 'MISSED'} ${what}, ${Math.round(performance.now() - begun)} ms`);
    }
    if (!broken) await attempt('the end', () => mix.ask('end'));
    report.calls = mix.calls;
    for (const point of new Set(plan.map(d => d.point)))
      if (!broken && !hit.has(point)) {
        const fired = await onFreshVolume(point, faults, report);
        if (fired) hit.add(point);
        log(`${fired ? 'died' : 'MISSED'} on a fresh volume ${point}`);
      }
    report.hit = [...hit];
  } finally {
    faults.arm();
    mix.end();
    if (broken) abortMount(volume.dir);
    const fault = volume.close({ keep: true });
    if (fault) report.faults.push(fault);
    delete process.env.STEADFS_FAULT_FILE;
    rmSync(scratch, { recursive: true, force: true });
  }
  if (!broken) report.faults.push(...inspectVolume(volume.base));
  if (report.faults.length === 0) rmSync(volume.base, { recursive: true, force: true });
  else report.faults.push(`kept: ${volume.base}`);
  return report;
}

/** A death that only the first rounds on a volume come to, as where a section of the capsule is used further than ever. Answers whether it came. */
async function onFreshVolume(
  point: string,
  faults: Awaited<ReturnType<typeof faultBundle>>,
  report: FaultReport,
): Promise<boolean> {
  faults.arm(`kill ${point}`);
  const volume = openVolume({ format: ['--trash-days', '0', '--block-size', '64K'], mount: MOUNT });
  const mix = new Mix(volume.dir);
  const before = report.faults.length;
  try {
    for (let i = 0; i < 3; i++) await mix.ask('run');
    await mix.ask('end');
    report.calls += mix.calls;
  } catch (error) {
    report.faults.push(`${point} on a fresh volume: ${(error as Error).message}`);
    abortMount(volume.dir);
  }
  const fired = faults.left() === '';
  if (fired) report.deaths++;
  faults.arm();
  mix.end();
  const fault = volume.close({ keep: true });
  report.faults.push(...(fault ? [fault] : report.faults.length > before ? [] : inspectVolume(volume.base)));
  if (report.faults.length === before) rmSync(volume.base, { recursive: true, force: true });
  return fired;
}

export function describeFaults(r: FaultReport): string {
  const hit = new Set(r.hit);
  const left = r.points.filter(p => !hit.has(p));
  return [
    `seed ${r.seed}: ${r.points.length} points, died at ${hit.size} of them, ${r.deaths} deaths; ${r.calls} calls, ${r.faults.length} faults`,
    ...r.faults.map(f => `  FAULT ${f}`),
    ...(r.missed.length > 0 ? [`  not come to again: ${r.missed.join(', ')}`] : []),
    ...(left.length > 0 && left.length <= 40 ? [`  died nowhere at: ${left.join(', ')}`] : []),
    ...(r.unreached.length > 0 ? [`  in the source, not recorded: ${r.unreached.join(', ')}`] : []),
  ].join('\n');
}

/** The same by several processes side by side, each on a volume of its own. */
async function sideBySide(workers: number, seed: number, args: readonly string[]): Promise<FaultReport> {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-faults-'));
  const reports = await Promise.all(
    Array.from({ length: workers }, async (_, i) => {
      const file = join(scratch, String(i));
      const child = spawn(
        process.execPath,
        [
          ...process.execArgv,
          import.meta.filename,
          ...args,
          '--seed',
          String(seed),
          '--share',
          `${i}/${workers}`,
          '--report',
          file,
        ],
        { stdio: 'inherit' },
      );
      const [code] = await once(child, 'exit');
      try {
        return JSON.parse(readFileSync(file, 'utf8')) as FaultReport;
      } catch {
        const faults = [`process ${i} of ${workers} ended with ${code} and without a report`];
        return { seed, points: [], hit: [], deaths: 0, calls: 0, faults, missed: [], unreached: [] };
      }
    }),
  );
  rmSync(scratch, { recursive: true, force: true });
  const all = <K extends keyof FaultReport>(key: K) => reports.map(r => r[key]);
  const sum = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0);
  return {
    seed,
    points: [...new Set(all('points').flat())],
    hit: all('hit').flat(),
    deaths: sum(all('deaths')),
    calls: sum(all('calls')),
    faults: all('faults').flat(),
    missed: all('missed').flat(),
    unreached: reports[0]!.unreached.filter(name => reports.every(r => r.unreached.includes(name))),
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      full: { type: 'boolean', default: false },
      deaths: { type: 'string', default: '24' },
      seed: { type: 'string' },
      only: { type: 'string' },
      workers: { type: 'string', default: '1' },
      share: { type: 'string' },
      report: { type: 'string' },
      verbose: { type: 'boolean', default: false },
    },
  });
  const seed = Number(values.seed ?? Math.floor(Math.random() * 1e6));
  const workers = Number(values.workers);
  const begun = performance.now();
  let report: FaultReport;
  if (workers > 1) {
    const args = [
      ...(values.full ? ['--full'] : []),
      ...(values.only === undefined ? [] : ['--only', values.only]),
      ...(values.verbose ? ['--verbose'] : []),
      ...['--deaths', String(Math.ceil(Number(values.deaths) / workers))],
    ];
    report = await sideBySide(workers, seed, args);
  } else
    report = await enumerate({
      seed,
      deaths: values.full || values.only ? undefined : Number(values.deaths),
      only: values.only === undefined ? undefined : new RegExp(values.only),
      share: values.share?.split('/').map(Number) as [number, number] | undefined,
      log: values.verbose ? line => console.log(line) : undefined,
    });
  if (values.report) writeFileSync(values.report, JSON.stringify(report));
  else console.log(`${describeFaults(report)}\n${Math.round((performance.now() - begun) / 1000)} s`);
  process.exitCode = report.faults.length > 0 ? 1 : 0;
}

if (import.meta.main) await main();
