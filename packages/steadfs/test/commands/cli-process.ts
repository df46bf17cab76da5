/** Runs the command line in a process of its own: the launcher, so from the bundle when it is fresh. */
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';

const LAUNCHER = resolve(import.meta.dirname, '../../bin/steadfs');

export interface Result {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Never longer than `limit` ms. */
export function steadfs(
  args: readonly string[],
  options: { env?: Record<string, string>; cwd?: string; limit?: number } = {},
): Promise<Result> {
  return new Promise((done, failed) => {
    const child = spawn(LAUNCHER, args, {
      env: { ...process.env, STEADFS_NODE: process.execPath, ...options.env },
      ...(options.cwd ? { cwd: options.cwd } : {}),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), options.limit ?? 30_000);
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', data => {
      stdout += data;
    });
    child.stderr.on('data', data => {
      stderr += data;
    });
    child.on('error', failed);
    child.on('exit', status => {
      clearTimeout(timer);
      // Daemons may keep the pipes open; what the command itself wrote has arrived by the next turn.
      setTimeout(() => {
        child.stdout.destroy();
        child.stderr.destroy();
        done({ status, stdout, stderr });
      }, 50);
    });
  });
}
