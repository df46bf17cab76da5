/** What the suites share: running a program with a bound, finding it, counting verdicts. */
import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import type { Volume } from '../packages/steadfs/test/support/volume.ts';

export { removeTree } from '../packages/steadfs/test/support/remove.ts';

export interface Context {
  /** An empty directory on the file system that is judged. */
  dir: string;
  /** A directory elsewhere, for logs and sources. */
  scratch: string;
  full: boolean;
  seed: number;
  /** Folders that hold suites which are not installed: pjdfstest/, xfstests/, ior/. */
  folders: string[];
  /** Chosen tests of the suite, where it has names for them. */
  tests: string[];
  /** One more fresh volume, mounted, of the kind that is judged; it is unmounted after the suite. Not with --dir. */
  volume?: (name: string) => Promise<Volume>;
}

export interface Verdict {
  name: string;
  /** undefined: passed. */
  failure?: string;
  /** Why it did not run. */
  skipped?: string;
  note?: string;
}

export interface Suite {
  summary: string;
  run(context: Context): Promise<Verdict[]>;
}

export interface Outcome {
  code: number | null;
  output: string;
  timedOut: boolean;
}

/**
 * Runs a program in a process group of its own and answers its stdout and stderr together. After `timeout` ms the whole group is
 * killed; a process in uninterruptible sleep is left behind, so that the caller can free the mount it hangs on.
 */
export async function execute(
  command: string,
  args: readonly string[],
  options: {
    cwd?: string;
    timeout?: number;
    env?: Record<string, string>;
    input?: string;
    uid?: number;
    gid?: number;
  } = {},
): Promise<Outcome> {
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: { ...process.env, LC_ALL: 'C', ...options.env },
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.gid ?? options.uid }),
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    detached: true,
  });
  const chunks: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => chunks.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => chunks.push(chunk));
  if (options.input !== undefined) child.stdin?.end(options.input);
  return await new Promise(resolve => {
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      if (child.pid) process.kill(-child.pid, 'SIGKILL');
      setTimeout(() => done(null), 5000).unref();
    }, options.timeout ?? 120_000);
    const done = (code: number | null): void => {
      clearTimeout(timer);
      resolve({ code, output: Buffer.concat(chunks).toString(), timedOut });
    };
    child.on('error', error => {
      chunks.push(Buffer.from(String(error)));
      done(null);
    });
    child.on('close', done);
  });
}

/** A program on PATH (or in /usr/sbin, /sbin). */
export function onPath(program: string): string | undefined {
  return executables(
    (process.env.PATH ?? '')
      .split(delimiter)
      .concat('/usr/sbin', '/sbin')
      .map(d => join(d, program)),
  );
}

/** The first of these files in one of the given folders, or the program of the last name on PATH. */
export function find(context: Context, ...files: string[]): string | undefined {
  return (
    executables(context.folders.flatMap(folder => files.map(file => join(folder, file)))) ??
    onPath(files.at(-1)!.split('/').at(-1)!)
  );
}

function executables(candidates: string[]): string | undefined {
  return candidates.find(file => {
    if (!existsSync(file)) return false;
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export const skip = (name: string, word: string): Verdict[] => [{ name, skipped: word }];

/** The end of an output, for a failure's text. */
export function tail(text: string, lines = 12): string {
  return text.trimEnd().split('\n').slice(-lines).join('\n');
}

/** A verdict on a program that says by its exit code whether it is satisfied. */
export function byCode(name: string, outcome: Outcome, note?: string): Verdict {
  if (outcome.timedOut) return { name, failure: `did not end in time\n${tail(outcome.output)}` };
  if (outcome.code !== 0) return { name, failure: `exit ${outcome.code}\n${tail(outcome.output)}` };
  return note === undefined ? { name } : { name, note };
}

export function isRoot(): boolean {
  return process.getuid?.() === 0;
}
