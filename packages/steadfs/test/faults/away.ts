/**
 * The database or the store of a mount with load is away for a long time, with an upgrade after a third of it and a kill -9 of the service after two thirds: nothing fails,
 * nothing that was acknowledged is lost, `status` and the log say what is wrong and since when, memory keeps its ceiling.
 *
 *   node away.ts [--meta redis|postgres|mariadb] [--what store|database] [--how refused|silent] [--seconds 600] [--seed N] [--programs A,B]
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { roles, stormOnVolume } from '../continuity/storm.ts';
import { type MetaKind, startNetwork } from '../servers/network.ts';
import type { Missing } from '../servers/process.ts';
import type { Volume } from '../support/volume.ts';
import {
  describeFaults,
  type FaultReport,
  MOUNT_FLAGS,
  REFUSED,
  run,
  statusOf,
  watchMemory,
  withMemory,
} from './faults.ts';

export interface AwayOptions {
  meta: MetaKind;
  what: 'store' | 'database';
  /** Connections are refused, or nothing is answered. */
  how: 'refused' | 'silent';
  seconds: number;
  seed: number;
  programs?: readonly string[];
  log?: (line: string) => void;
}

/** Programs without a limit of time of their own: SQLite gives up a lock that another process of its kind holds for a minute. */
const PATIENT = ['mutations', 'names', 'buffered', 'appends', 'held', 'flock', 'posix', 'ofd', 'statProber'];

const sleep = (ms: number): Promise<void> => new Promise(wake => setTimeout(wake, ms));

export async function awayRun(options: AwayOptions): Promise<FaultReport | Missing> {
  const { what, how, seconds, seed } = options;
  const log = options.log ?? (() => {});
  const network = await startNetwork(options.meta, 's3');
  if ('missing' in network) return network;
  let volume: Volume | undefined;
  const memory = watchMemory(() => volume?.dir);
  const wrong: string[] = [];
  const troubles = () => statusOf(volume!.dir).mount.troubles ?? [];
  const logged = (): string => readFileSync(join(volume!.base, 'log'), 'utf8');
  /** Looks again and again, not longer than two minutes; what it says last when it does not become true. */
  const until = async (what: string, check: () => boolean): Promise<void> => {
    for (const end = Date.now() + 120_000; !check(); await sleep(200))
      if (Date.now() > end) {
        wrong.push(`${what}: not within 120 s: ${JSON.stringify(statusOf(volume!.dir).mount)}`);
        log(wrong.at(-1)!);
        return;
      }
    log(what);
  };
  const ours = what === 'store' ? /^(writes|reads)$/ : /^database$/;
  /** The oldest of these troubles, ms since 1970. */
  const since = (): number =>
    Math.min(
      ...troubles()
        .filter(t => ours.test(t.what))
        .map(t => Date.parse(t.since)),
    );
  const begin = async (): Promise<void> => {
    if (what === 'store')
      await network.storeProxy!.rule({
        chance: 100,
        faults: [how === 'refused' ? { reset: true } : { silent: true }],
        seed,
      });
    else if (how === 'refused') await network.metaProxy!.refuse();
    else await network.metaProxy!.freeze();
  };
  const end = async (): Promise<void> => {
    await network.storeProxy!.rule(undefined);
    // Connections that were silent for so long are not there any more.
    if (how === 'silent') await network.metaProxy!.cut();
    await network.metaProxy!.flow();
  };
  const away = async (): Promise<string | undefined> => {
    const from = Date.now();
    await begin();
    await until('status shows the trouble', () => since() < Number.POSITIVE_INFINITY);
    const first = since();
    if (first < from - 1000 || first > Date.now()) wrong.push(`since ${new Date(first).toISOString()}`);
    await until('the log tells of it', () => / wait: /.test(logged()));
    await sleep(Math.max(0, from + (seconds * 1000) / 3 - Date.now()));
    const { status, text } = await run(volume!.remountCommand);
    log(`upgrade: exit ${status}: ${text.trim()}`);
    if (status !== 0 && !REFUSED.test(text)) wrong.push(`upgrade: exit ${status}: ${text}`);
    await until('status shows the trouble after the upgrade', () => since() === first);
    await sleep(Math.max(0, from + (seconds * 2000) / 3 - Date.now()));
    const before = roles(volume!.dir).service;
    process.kill(before!, 'SIGKILL');
    log('kill -9');
    const killed = Date.now();
    if (what === 'store') await until('status shows the trouble after kill -9', () => since() === first);
    else {
      await until('status says why nobody serves, and since when', () => {
        const { state, message, since: waiting } = statusOf(volume!.dir).mount;
        const recent = Date.parse(waiting ?? '') >= killed - 1000;
        return state === 'waiting' && recent && REFUSED.test(message ?? '');
      });
    }
    await sleep(Math.max(0, from + seconds * 1000 - Date.now()));
    await end();
    const back = Date.now();
    await until('nothing is wrong any more', () => {
      const { state, troubles: left = [] } = statusOf(volume!.dir).mount;
      return state === 'serving' && left.length === 0;
    });
    log(`${Math.round((Date.now() - back) / 1000)} s after the end of it`);
    return wrong.length > 0 ? wrong.join('; ') : undefined;
  };
  try {
    const report = await stormOnVolume({
      seed,
      events: ['action'],
      count: 1,
      seconds: 0,
      rest: [3000, 4000],
      programs: options.programs ?? PATIENT,
      log,
      mount: MOUNT_FLAGS,
      network,
      mounted: v => {
        volume = v;
      },
      action: away,
    });
    return withMemory(report, memory.peak(), { [`${what} ${how} for ${seconds} s`]: 1 });
  } finally {
    memory.stop();
    await network.close();
  }
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      meta: { type: 'string', default: 'redis' },
      what: { type: 'string', default: 'store' },
      how: { type: 'string', default: 'refused' },
      seconds: { type: 'string', default: '600' },
      seed: { type: 'string' },
      programs: { type: 'string' },
    },
  });
  const started = Date.now();
  const report = await awayRun({
    meta: values.meta as MetaKind,
    what: values.what as AwayOptions['what'],
    how: values.how as AwayOptions['how'],
    seconds: Number(values.seconds),
    seed: Number(values.seed ?? Math.floor(Math.random() * 1e6)),
    ...(values.programs ? { programs: values.programs.split(',') } : {}),
    log: line => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s: ${line}`),
  });
  if ('missing' in report) {
    console.log(`skipped: ${report.missing}`);
    return 0;
  }
  console.log(describeFaults(report));
  return report.failed + report.wrong + report.faults.length > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main();
