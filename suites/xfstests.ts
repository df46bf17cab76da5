/**
 * xfstests' generic tests, each judged by what `check` prints. A folder in front of PATH holds a `mount` that carries out
 * -t fuse.steadfs as mount(8) does with its helper installed, and a `df` that calls the type `fuse`, as xfstests expects. Nothing is installed, and
 * xfstests' own folder stays as it is.
 */
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { abortMount, clientCommand } from '../packages/steadfs/test/support/volume.ts';
import { type Context, execute, find, isRoot, onPath, type Suite, skip, tail, type Verdict } from './harness.ts';

/** Tests that a FUSE file system, or this one, cannot pass, with the reason. */
const CANNOT: Record<string, string> = {
  'generic/003': 'access times are kept with --atime-mode only, not by the mount options that it sets',
  'generic/424':
    'the kernel shows chattr flags of local file systems only in statx(2); it asks no FUSE server for them',
  'generic/504': 'the kernel lists no locks of FUSE servers in /proc/locks',
};

/** Options of every mount: what is off by default and has tests, and no files of our own. */
const OPTIONS = ['dev', 'suid', 'hide-internal', 'enable-xattr', 'enable-cap', 'enable-ioctl', 'metrics='];

const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** Programs in front of PATH. `volumes`: META-URL and log by the source that the kernel shows. */
function writeTools(folder: string, volumes: Record<string, { meta: string; log: string }>): void {
  mkdirSync(folder);
  // The launcher takes a name that begins with mount. for mount(8)'s call.
  const helper = join(folder, 'mount.steadfs');
  symlinkSync(clientCommand('steadfs')[0]!, helper);
  const cases = Object.entries(volumes).map(
    ([source, { meta, log }]) => `    ${quote(source)}) word=${quote(meta)} log=${quote(log)} ;;`,
  );
  const script = (name: string, lines: string[]): void =>
    writeFileSync(join(folder, name), ['#!/bin/sh', ...lines, ''].join('\n'), { mode: 0o755 });
  script('mount', [
    `[ "$1 $2" = '-t fuse.steadfs' ] || exec ${quote(onPath('mount')!)} "$@"`,
    'for word; do',
    '  shift',
    '  case $word in',
    ...cases,
    '  esac',
    '  set -- "$@" "$word"',
    'done',
    `exec ${quote(helper)} -o "log=$log,${OPTIONS.join(',')}" "$@"`,
  ]);
  // Without a path df looks at every mount of the machine, also at those that hang.
  script('df', [
    'case "$*" in /* | *\\ /*) ;; *) set -- "$@" "$TEST_DIR" "$SCRATCH_MNT" ;; esac',
    `${quote(onPath('df')!)} "$@" | sed 's/fuse\\.steadfs/fuse/'`,
  ]);
}

/** What `check` printed about each test, in its order. */
export function judge(output: string): Verdict[] {
  const verdicts: Verdict[] = [];
  const blocks = output.split(/^(?=generic\/\d+\b)/m);
  for (const block of blocks) {
    const [, name, first = ''] = /^(generic\/\d+)\b(.*)/.exec(block) ?? [];
    if (!name) continue;
    const verdict: Verdict = { name };
    const unable = /\[not run\]|\[expunged\]/.test(block);
    if (unable) verdict.skipped = 'says so itself';
    else if (/\[failed|output mismatch|_check_dmesg|fatal/i.test(block)) verdict.failure = tail(block, 40);
    else if (!/\d+s\s*$/.test(first.trimEnd())) verdict.failure = `did not end\n${tail(block, 5)}`;
    const reason =
      CANNOT[name] ??
      (/ulimit: .*not permitted/.test(block) ? 'a limit cannot be raised (CAP_SYS_RESOURCE)' : undefined);
    if (reason !== undefined && verdict.failure !== undefined) {
      delete verdict.failure;
      verdict.skipped = `fails: ${reason}`;
    } else if (reason !== undefined && verdict.skipped === undefined) verdict.note = `passes although: ${reason}`;
    verdicts.push(verdict);
  }
  return verdicts;
}

/** Every fortieth test of the group. */
function someQuick(folder: string, seed: number): string[] {
  const lines = readFileSync(join(folder, 'tests/generic/group.list'), 'utf8').split('\n');
  return lines
    .filter(line => / quick\b/.test(line))
    .map(line => `generic/${line.split(' ')[0]}`)
    .filter((_, i) => i % 40 === seed % 40);
}

async function run(context: Context): Promise<Verdict[]> {
  const check = find(context, 'xfstests/check', 'xfstests-check');
  if (!check) return skip('xfstests', 'xfstests is missing');
  const folder = join(check, '..');
  if (!existsSync(join(folder, 'ltp/fsstress'))) return skip('xfstests', `${folder} is not built`);
  if (!isRoot()) return skip('xfstests', 'it needs root');
  if (!context.volume) return skip('xfstests', 'it mounts volumes of its own: --mount, client steadfs');
  // Names of this run alone: xfstests looks for its devices among all mounts.
  const names = { test: `xtest-${process.pid}`, scratch: `xscratch-${process.pid}` };
  const test = await context.volume(names.test);
  const scratch = await context.volume(names.scratch);
  const tools = join(context.scratch, 'bin');
  const results = join(context.scratch, 'results');
  mkdirSync(results);
  writeTools(tools, {
    [`Steadfs:${names.test}`]: { meta: test.meta, log: join(test.base, 'log') },
    [`Steadfs:${names.scratch}`]: { meta: scratch.meta, log: join(scratch.base, 'log') },
  });
  const config = join(context.scratch, 'config');
  const settings = {
    FSTYP: 'fuse',
    FUSE_SUBTYP: '.steadfs',
    TEST_DEV: `Steadfs:${names.test}`,
    TEST_DIR: test.dir,
    SCRATCH_DEV: `Steadfs:${names.scratch}`,
    SCRATCH_MNT: scratch.dir,
    RESULT_BASE: results,
  };
  writeFileSync(
    config,
    Object.entries(settings)
      .map(([name, value]) => `export ${name}=${quote(value)}\n`)
      .join(''),
  );
  const tests =
    context.tests.length > 0 ? context.tests : context.full ? ['-g', 'quick'] : someQuick(folder, context.seed);
  const outcome = await execute('./check', tests, {
    cwd: folder,
    timeout: 3 * 3600_000,
    env: {
      HOST_OPTIONS: config,
      PATH: `${tools}${delimiter}${process.env.PATH}${delimiter}/usr/sbin${delimiter}/sbin`,
      STEADFS_NODE: process.execPath,
    },
  });
  const verdicts = judge(outcome.output);
  if (outcome.timedOut) for (const volume of [test, scratch]) abortMount(volume.dir);
  if (outcome.timedOut || verdicts.length === 0)
    verdicts.push({
      name: 'check',
      failure: `${outcome.timedOut ? 'did not end in time' : ''}\n${tail(outcome.output)}`,
    });
  return verdicts;
}

export const suite: Suite = {
  summary: "xfstests: some of the group quick, all of them with --full, or --tests 'generic/001 …'",
  run,
};
