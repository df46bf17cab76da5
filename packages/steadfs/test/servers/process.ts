/** Servers that tests start and stop: free ports, waiting until one answers, ending it for sure. */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';

/** Why a server cannot run here; a test says it and counts as skipped. */
export interface Missing {
  missing: string;
}

export async function freePort(): Promise<number> {
  return await new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() =>
        typeof address === 'object' && address ? resolve(address.port) : reject(new Error('no port')),
      );
    });
  });
}

/** Starts a server and waits until `ready` answers without throwing; undefined when it ended or took longer than `timeout` ms. */
export async function startServer(
  command: string,
  args: readonly string[],
  options: SpawnOptions,
  ready: () => Promise<void>,
  timeout = 30_000,
): Promise<ChildProcess | undefined> {
  const child = spawn(command, args, { stdio: 'ignore', ...options });
  child.on('error', () => {});
  const deadline = Date.now() + timeout;
  while (child.exitCode === null && child.pid !== undefined && Date.now() < deadline) {
    try {
      await ready();
      return child;
    } catch {
      await new Promise(wake => setTimeout(wake, 50));
    }
  }
  child.kill('SIGKILL');
  return undefined;
}

/** SIGTERM (or `signal`), after 5 s SIGKILL; settles when the process is gone. */
export async function stopServer(child: ChildProcess, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()));
  child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
  await ended;
  clearTimeout(timer);
}

/** uid and gid of a user of /etc/passwd. */
export function userIds(name: string): { uid: number; gid: number } | undefined {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find(l => l.startsWith(`${name}:`));
  const fields = line?.split(':');
  return fields ? { uid: Number(fields[2]), gid: Number(fields[3]) } : undefined;
}
