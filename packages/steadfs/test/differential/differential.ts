/**
 * Long random sequences of system calls on two directories at once, every result compared. The second directory is the reference (ext4,
 * or another local file system).
 *
 *   node differential.ts --a DIR --b DIR [--seed N] [--ops N] [--runs N] [--no-shrink] [--ignore WHAT,…] [--print]
 *   node differential.ts --a DIR --b DIR --replay FILE            the steps that --save FILE has kept
 *
 * What may differ and is not compared: sizes of directories, blocks, inode and device numbers, the order of entries, where exactly
 * SEEK_DATA and SEEK_HOLE point (checked against the bytes instead), access times (mounts choose noatime or relatime), the mtime of a FIFO
 * (what is written to it changes it on a local file system, and the kernel asks no FUSE server), the lengths of
 * single copy_file_range answers, the error of opening a device (EACCES on a nodev mount),
 * the process id that GETLK tells where OFD locks are concerned (FUSE
 * servers are not told which ones are), and xattr names outside any namespace (stored as they are: the format itself uses one). --ignore names more: `dir-times` (mounts
 * that renew a directory's times only now and then), `xattr`, `times`, or the name of a call, which then is not made.
 */
import { type ChildProcess, fork, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Random, seeded } from '../support/random.ts';
import { removeTree } from '../support/remove.ts';
import { type Knowledge, nextStep } from './generate.ts';
import { type Observed, type Operation, type Reply, type Request, type Step, touched } from './operations.ts';

interface Options {
  /** Under test. */
  a: string;
  /** Reference. */
  b: string;
  seed: number;
  operations: number;
  ignore?: readonly string[];
  /** ms one call may take. */
  patience?: number;
}

interface Difference {
  step: Step | undefined;
  index: number;
  what: string;
  steps: Step[];
}

export interface Summary {
  operations: number;
  succeeded: number;
  perCall: Map<string, [made: number, succeeded: number]>;
}

class Hang extends Error {}

/** Processes of one side: root (the observer), two users who share a group, another root. Without root: four of the same user. */
const USERS: [number, number, string][] =
  process.getuid?.() === 0
    ? [
        [0, 0, ''],
        [1001, 1001, '2001'],
        [1002, 1001, ''],
        [0, 0, ''],
      ]
    : Array.from({ length: 4 }, () => [process.getuid?.() ?? 0, process.getgid?.() ?? 0, '']);

interface Side {
  name: string;
  base: string;
  actors: ChildProcess[];
}

function openSide(name: string, parent: string): Side {
  const base = mkdtempSync(join(parent, 'differential-'));
  const actors = USERS.map(([uid, gid, groups]) =>
    fork(
      join(import.meta.dirname, 'actor.ts'),
      [base, String(process.getuid?.() === 0 ? uid : 0), String(gid), groups],
      {
        serialization: 'json',
        execArgv: ['--disable-warning=ExperimentalWarning'],
      },
    ),
  );
  return { name, base, actors };
}

function closeSide(side: Side): void {
  for (const actor of side.actors) actor.kill('SIGKILL');
  // What is immutable or append-only cannot be removed.
  spawnSync('chattr', ['-R', '-f', '-i', '-a', side.base], { timeout: 20_000 });
  const fault = removeTree(side.base);
  if (fault) console.error(fault);
}

function ask(actor: ChildProcess, request: Request, patience: number, side: Side): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void): void => {
      clearTimeout(timer);
      actor.off('message', onMessage);
      actor.off('exit', onExit);
      act();
    };
    const onMessage = (reply: unknown): void => settle(() => resolve(reply as Reply));
    const onExit = (code: number | null, signal: string | null): void =>
      settle(() => reject(new Hang(`${side.name}: the process died: ${code ?? signal}`)));
    const timer = setTimeout(
      () => settle(() => reject(new Hang(`${side.name}: no answer in ${patience} ms`))),
      patience,
    );
    actor.on('message', onMessage);
    actor.on('exit', onExit);
    actor.send(request);
  });
}

/** Makes steps (given, or one after the other by `next`) on both sides until they differ. */
async function compare(
  options: Options,
  next: (index: number, known: Knowledge) => Step | undefined,
  made: (step: Step, a: string, b: string) => void = () => {},
): Promise<Difference | undefined> {
  const patience = options.patience ?? 30_000;
  const sides = [openSide('a', options.a), openSide('b', options.b)] as const;
  const ignore = new Set(options.ignore ?? []);
  const steps: Step[] = [];
  const both = (actor: number, request: Request): Promise<[Reply, Reply]> =>
    Promise.all([
      ask(sides[0].actors[actor]!, request, patience, sides[0]),
      ask(sides[1].actors[actor]!, request, patience, sides[1]),
    ]);
  const observe = async (paths: string[]): Promise<[(Observed | string)[], (Observed | string)[]]> => {
    const [a, b] = await both(0, { kind: 'observe', paths });
    return [(a as { observed: Observed[] }).observed, (b as { observed: Observed[] }).observed];
  };
  const known: Knowledge = {
    paths: new Map(['pub', 'own', 'grp', 'shut'].map(path => [path, 0o040000])),
    slots: USERS.map(() => new Set()),
    root: process.getuid?.() === 0,
  };
  let index = 0;
  let flagged = false;
  let step: Step | undefined;
  try {
    await both(0, { kind: 'prepare' });
    for (; ; index++) {
      step = next(index, known);
      if (!step) break;
      if (ignore.has(step.operation.call) || (ignore.has('xattr') && step.operation.call.endsWith('xattr'))) continue;
      steps.push(step);
      const paths = touched(step.operation);
      const before = paths.length > 0 ? await observe(paths) : ([[], []] as [Observed[], Observed[]]);
      const [a, b] = (await both(step.actor, { kind: 'operation', operation: step.operation })) as [
        { result: unknown },
        { result: unknown },
      ];
      const after = paths.length > 0 ? await observe(paths) : ([[], []] as [Observed[], Observed[]]);
      const results = [JSON.stringify(a.result), JSON.stringify(b.result)] as const;
      const what =
        compareResults(step.operation, ...results, before[1], flagged) ??
        compareObserved(
          step.operation,
          paths,
          before,
          after,
          taken(step.operation, results[1]) ? new Set([...ignore, 'times']) : ignore,
        );
      if (what) return { step, index, what, steps };
      for (const [i, path] of paths.entries()) learn(known, path, after[1][i]!);
      learnSlot(known, step, b.result);
      flagged ||= step.operation.call === 'inodeFlags' && (step.operation.set ?? 0) !== 0;
      if (step.operation.call === 'rename' && b.result === 0)
        moved(known, step.operation.path, step.operation.to, (step.operation.flags & 2) !== 0);
      made(step, JSON.stringify(a.result), JSON.stringify(b.result));
    }
    step = undefined;
    const [a, b] = (await both(0, { kind: 'tree' })) as [
      { tree: Record<string, string> },
      { tree: Record<string, string> },
    ];
    const wrong = [...new Set([...Object.keys(a.tree), ...Object.keys(b.tree)])].filter(
      path => a.tree[path] !== b.tree[path],
    );
    if (wrong.length === 0) return undefined;
    const lines = wrong.slice(0, 8).map(path => `  ${path}\n    a: ${a.tree[path]}\n    b: ${b.tree[path]}`);
    return { step, index, what: `final tree, ${wrong.length} paths:\n${lines.join('\n')}`, steps };
  } catch (error) {
    if (!(error instanceof Hang)) throw error;
    return { step, index, what: error.message, steps };
  } finally {
    for (const side of sides) closeSide(side);
  }
}

/** chown of neither id by somebody else, refused there: on FUSE the request is the one that precedes a write, so it takes suid and sgid away. */
const taken = (operation: Operation, b: string): boolean =>
  (operation.call === 'chown' || operation.call === 'fchown') &&
  operation.uid < 0 &&
  operation.gid < 0 &&
  b.includes('EPERM');

/** `flagged`: something may be immutable or append-only. */
function compareResults(
  operation: Operation,
  a: string,
  b: string,
  before: (Observed | string)[],
  flagged: boolean,
): string | undefined {
  if (a === b) return undefined;
  // The kernel knows these flags of its own file systems only: on FUSE it finds another fault first, or nothing to be done.
  const unasked =
    operation.call === 'access' ||
    (operation.call === 'copy' && a.includes('"result":0,')) ||
    (operation.call === 'pwrite' && operation.length === 0);
  if (flagged && b.includes('"EPERM"') && (unasked || /"E[A-Z]+"/.test(a))) return undefined;
  const target = before[0];
  const device = typeof target === 'object' && (target.type === 0o020000 || target.type === 0o060000);
  if (taken(operation, b)) return undefined;
  // The row of a removed directory is gone; its attributes are held by the service alone.
  if (operation.call === 'fxattr' && /EN(OENT|ODATA)"/.test(a) && /"mode":"4\d{4}",.*"nlink":0/.test(b))
    return undefined;
  const opens = ['open', 'reopen', 'byHandle', 'at'].includes(operation.call);
  if (opens && (device || (a.includes('EACCES') && /ENXIO|ENODEV/.test(b)))) return undefined;
  return `result\n    a: ${a}\n    b: ${b}`;
}

const FIFO = 0o010000;

/** Attributes equal, and mtime and ctime changed on both sides or on neither. */
function compareObserved(
  operation: Operation,
  paths: string[],
  before: [(Observed | string)[], (Observed | string)[]],
  after: [(Observed | string)[], (Observed | string)[]],
  ignore: Set<string>,
): string | undefined {
  // ext4 makes the whiteout first, and its directory keeps the times of that when the rename is refused.
  const whiteout = operation.call === 'rename' && (operation.flags & 4) !== 0;
  for (const [i, path] of paths.entries()) {
    const shown = [0, 1].map(side => {
      const now = after[side]![i]!;
      if (typeof now === 'string') return now;
      const { mtime, ctime, ino, ...rest } = now;
      // A rename brings another file to the path: its times are compared with its own.
      const then = before[side]!.find(o => typeof o !== 'string' && o.ino === ino) ?? '';
      const times =
        typeof then === 'string' ||
        ignore.has('times') ||
        (ignore.has('dir-times') && now.type === 0o040000) ||
        whiteout
          ? ''
          : `mtime ${now.type === FIFO ? '' : mtime === then.mtime ? 'kept' : 'new'}, ctime ${ctime === then.ctime ? 'kept' : 'new'}`;
      return `${JSON.stringify({ ...rest, mode: rest.mode.toString(8), type: rest.type.toString(8) })} ${times}`;
    });
    // ext4 leaves a file alone when an attribute gets the value that it has, but not for flags.
    if (['setxattr', 'setAcl'].includes(operation.call) && shown[0]!.replace(/ctime new$/, 'ctime kept') === shown[1])
      continue;
    if (operation.call === 'inodeFlags' && shown[1]!.replace(/ctime new$/, 'ctime kept') === shown[0]) continue;
    if (shown[0] !== shown[1])
      return `attributes of "${path}" after the call\n    a: ${shown[0]}\n    b: ${shown[1]}\n    a: ${raw(before[0], after[0][i])}\n    b: ${raw(before[1], after[1][i])}`;
  }
  return undefined;
}

/** ctime before and after, in nanoseconds. */
function raw(before: (Observed | string)[], after: Observed | string | undefined): string {
  if (typeof after !== 'object') return '';
  const then = before.find(o => typeof o !== 'string' && o.ino === after.ino);
  return typeof then === 'object' ? `ctime ${then.ctime} → ${after.ctime}` : '';
}

function learn(known: Knowledge, path: string, now: Observed | string): void {
  if (path === '' || /(^|\/)\.\.?(\/|$)|\/$/.test(path)) return;
  if (typeof now === 'string') known.paths.delete(path);
  else known.paths.set(path, now.type);
}

/** Which slots of a process hold an open file. */
function learnSlot(known: Knowledge, step: Step, result: unknown): void {
  const { operation, actor } = step;
  const filled = typeof result === 'object' && result !== null && 'result' in result ? result.result : result;
  if (['open', 'tmpfile', 'reopen', 'byHandle'].includes(operation.call) && 'slot' in operation && filled === 0)
    known.slots[actor]!.add(operation.slot);
  if (operation.call === 'close') known.slots[actor]!.delete(operation.slot);
}

/** A renamed directory takes its paths along, an exchange both ways. */
function moved(known: Knowledge, from: string, to: string, exchange: boolean): void {
  for (const [path, type] of [...known.paths]) {
    const [old, other] = path.startsWith(`${from}/`)
      ? [from, to]
      : exchange && path.startsWith(`${to}/`)
        ? [to, from]
        : [];
    if (old === undefined) continue;
    known.paths.delete(path);
    known.paths.set(other + path.slice(old.length), type);
  }
}

export async function run(options: Options): Promise<{ difference?: Difference; summary: Summary }> {
  const random: Random = seeded(options.seed);
  const summary: Summary = { operations: 0, succeeded: 0, perCall: new Map() };
  const difference = await compare(
    options,
    (index, known) => (index < options.operations ? nextStep(random, known) : undefined),
    ({ operation: { call } }, _a, b) => {
      const [tried, succeeded] = summary.perCall.get(call) ?? [0, 0];
      const good = !/^(\{"result":)?"(E[A-Z0-9]+|errno)/.test(b);
      summary.perCall.set(call, [tried + 1, succeeded + (good ? 1 : 0)]);
      summary.operations++;
      if (good) summary.succeeded++;
    },
  );
  return difference ? { difference, summary } : { summary };
}

/** Leaves out what the difference does not need, for at most `seconds`. */
export async function shrink(options: Options, found: Difference, seconds: number): Promise<Difference> {
  const end = Date.now() + seconds * 1000;
  let best = found;
  let size = Math.ceil(best.steps.length / 2);
  const kind = best.what.split('\n')[0]!;
  while (Date.now() < end) {
    let shorter = false;
    for (let at = best.steps.length - size; at > -size && Date.now() < end; at -= size) {
      const rest = [
        ...best.steps.slice(0, Math.max(0, at)),
        ...best.steps.slice(Math.max(0, at) + size + Math.min(0, at)),
      ];
      if (rest.length === best.steps.length) continue;
      const again = await compare(options, index => rest[index]);
      if (again && (again.what.split('\n')[0] === kind || again.step?.operation.call === found.step?.operation.call)) {
        best = again;
        shorter = true;
      }
    }
    if (size === 1 && !shorter) break;
    size = Math.max(1, Math.floor(size / 2));
  }
  return best;
}

export function describe(difference: Difference): string {
  const steps = difference.steps.slice(-12).map(s => `  ${JSON.stringify(s)}`);
  const last = difference.step ? `step ${difference.index}: ${JSON.stringify(difference.step)}` : 'at the end';
  return `${last}\n  ${difference.what}\nsteps (${difference.steps.length}, the last ones):\n${steps.join('\n')}`;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      a: { type: 'string' },
      b: { type: 'string' },
      seed: { type: 'string' },
      ops: { type: 'string', default: '5000' },
      runs: { type: 'string', default: '1' },
      ignore: { type: 'string', default: '' },
      'no-shrink': { type: 'boolean', default: false },
      print: { type: 'boolean', default: false },
      save: { type: 'string' },
      replay: { type: 'string' },
    },
  });
  if (!values.a || !values.b) {
    console.error(
      'usage: node differential.ts --a DIR --b DIR [--seed N] [--ops N] [--runs N] [--ignore WHAT,…] [--no-shrink] [--print]',
    );
    return 2;
  }
  for (const dir of [values.a, values.b]) mkdirSync(dir, { recursive: true });
  const ignore = values.ignore.split(',').filter(w => w !== '');
  if (values.replay) {
    const steps = JSON.parse(readFileSync(values.replay, 'utf8')) as Step[];
    const found = await compare(
      { a: values.a, b: values.b, seed: 0, operations: steps.length, ignore },
      i => steps[i],
      (step, a, b) => console.log(`${JSON.stringify(step)}\n    a: ${a}\n    b: ${b}`),
    );
    console.log(found ? describe(found) : 'equal');
    return found ? 1 : 0;
  }
  const first = Number(values.seed ?? Math.floor(Math.random() * 1e9));
  let failed = 0;
  for (let seed = first; seed < first + Number(values.runs); seed++) {
    const options: Options = {
      a: values.a,
      b: values.b,
      seed,
      operations: Number(values.ops),
      ignore,
    };
    const { difference, summary } = await run(options);
    console.log(
      `seed ${seed}: ${summary.operations} operations, ${summary.succeeded} succeeded, ${difference ? 'DIFFERENT' : 'equal'}`,
    );
    if (values.print)
      for (const [call, [made, good]] of summary.perCall)
        console.log(`  ${call.padEnd(12)} ${made} made, ${good} succeeded`);
    if (!difference) continue;
    failed++;
    const least = values['no-shrink'] ? difference : await shrink(options, difference, 60);
    console.log(describe(least));
    if (values.save) writeFileSync(values.save, `${JSON.stringify(least.steps)}\n`);
  }
  return failed > 0 ? 1 : 0;
}

if (import.meta.main) process.exitCode = await main();
