/**
 * Hosts for tests: network namespaces, each with a mount of one volume. The database is reached only by the namespace's own link, which can be pulled; the store is
 * a directory that all share. nsenter rather than `ip netns exec`, which would hide the mounts in a mount namespace.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { startTcpProxy, type TcpProxy } from '../servers/proxy.ts';
import { abortMount, clientCommand, mountOf } from '../support/volume.ts';

/** Why there can be no hosts; undefined when there can. */
export function hostsMissing(): string | undefined {
  if (process.getuid!() !== 0) return 'network namespaces need root';
  const name = `sfs-probe-${process.pid}`;
  const made = spawnSync('ip', ['netns', 'add', name], { encoding: 'utf8' });
  if (made.error) return 'no ip (package iproute2)';
  if (made.status !== 0) return `ip netns: ${made.stderr.trim()}`;
  const link = spawnSync('ip', [
    'link',
    'add',
    `sfp${process.pid}`,
    'type',
    'veth',
    'peer',
    'name',
    'eth0',
    'netns',
    name,
  ]);
  if (link.status === 0) spawnSync('ip', ['link', 'del', `sfp${process.pid}`]);
  spawnSync('ip', ['netns', 'del', name]);
  if (link.status !== 0) return 'no veth links';
  return spawnSync('nsenter', ['--version']).error ? 'no nsenter (package util-linux)' : undefined;
}

export interface Command {
  child: ChildProcess;
  /** Exit code or signal, a blank, and what was written to both outputs. */
  ended: Promise<string>;
  over(): boolean;
}

export interface Host {
  dir: string;
  log(): string;
  /** A shell command with $D as the mount point. */
  start(command: string): Command;
  /** Its text; throws when it fails or takes 60 s. */
  run(command: string): Promise<string>;
  link(up: boolean): void;
  close(): Promise<string | undefined>;
}

function ip(...args: string[]): void {
  const r = spawnSync('ip', args, { encoding: 'utf8', timeout: 20_000 });
  if (r.status !== 0) throw new Error(`ip ${args.join(' ')}: ${r.stderr}`);
}

export function command(text: string, env: NodeJS.ProcessEnv = process.env): Command {
  const child = spawn('sh', ['-c', text], { stdio: ['ignore', 'pipe', 'pipe'], env });
  let out = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      out += data.toString();
    });
  const ended = new Promise<string>(done => child.on('close', (code, signal) => done(`${signal ?? code} ${out}`)));
  return { child, ended, over: () => child.exitCode !== null || child.signalCode !== null };
}

let count = 0;

/** `meta`: URL with 127.0.0.1:PORT, which is replaced by the way over the link. */
export async function startHost(base: string, meta: string, port: number, mount: string[]): Promise<Host> {
  const n = count++;
  const id = `${process.pid % 100_000}x${n}`;
  const [ns, near] = [`sfs-${id}`, `sf${id}`];
  const net = `10.${200 + n}.${process.pid % 250}`;
  const dir = join(base, `mnt${n}`);
  const logFile = join(base, `log${n}`);
  mkdirSync(dir);
  ip('netns', 'add', ns);
  let proxy: TcpProxy | undefined;
  const tidy = async (): Promise<void> => {
    await proxy?.close();
    spawnSync('ip', ['netns', 'del', ns]);
    spawnSync('ip', ['link', 'del', near]);
  };
  const inside = (text: string): Command =>
    command(`exec nsenter --net=/run/netns/${ns} ${text}`, {
      ...process.env,
      STEADFS_NODE: process.env.STEADFS_NODE ?? process.execPath,
    });
  try {
    ip('link', 'add', near, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', ns);
    ip('addr', 'add', `${net}.1/24`, 'dev', near);
    ip('link', 'set', near, 'up');
    ip('-n', ns, 'addr', 'add', `${net}.2/24`, 'dev', 'eth0');
    ip('-n', ns, 'link', 'set', 'eth0', 'up');
    ip('-n', ns, 'link', 'set', 'lo', 'up');
    proxy = await startTcpProxy(port, `${net}.1`);
    const url = meta.replace(`127.0.0.1:${port}`, `${net}.1:${proxy.port}`);
    const args = ['mount', '-d', '--log', logFile, '--heartbeat', '1s', '--metrics', "''", ...mount, `'${url}'`, dir];
    const mounted = await inside([...clientCommand('steadfs'), ...args].join(' ')).ended;
    if (!mounted.startsWith('0 ')) throw new Error(`mount: ${mounted}`);
  } catch (error) {
    abortMount(dir);
    await tidy();
    throw error;
  }
  const host: Host = {
    dir,
    log: () => (existsSync(logFile) ? readFileSync(logFile, 'utf8') : ''),
    start: text => command(`D=${dir}; ${text}`),
    async run(text) {
      const { child, ended } = host.start(text);
      const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
      const result = await ended;
      clearTimeout(timer);
      if (!result.startsWith('0 ')) throw new Error(`${text}: ${result}`);
      return result.slice(2);
    },
    link: up => ip('link', 'set', near, up ? 'up' : 'down'),
    async close() {
      spawnSync('ip', ['link', 'set', near, 'up']);
      const done = await command([...clientCommand('steadfs'), 'umount', dir].join(' ')).ended;
      const fault = mountOf(dir) ? `umount: ${done}` : undefined;
      if (fault) abortMount(dir);
      await tidy();
      return fault;
    },
  };
  return host;
}
