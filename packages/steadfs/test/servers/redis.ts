/** Real Redis servers for tests, from Debian's package, on free loopback ports: single, with TLS, behind a sentinel, as a cluster. */
import { type ChildProcess, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, type Missing, startServer, stopServer } from './process.ts';

export interface RedisServer {
  port: number;
  dir: string;
  /** redis://127.0.0.1:PORT/DB */
  url(db: number): string;
  /** Sends inline commands, answers the raw replies as text. */
  cli(...args: string[]): string;
  kill(signal?: NodeJS.Signals): Promise<void>;
  start(): Promise<void>;
  restart(): Promise<void>;
  stop(): Promise<void>;
}

function missing(): Missing | undefined {
  return spawnSync('redis-server', ['--version']).status === 0
    ? undefined
    : { missing: 'no redis-server on PATH (package redis-server)' };
}

function ping(port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write('PING\r\n'));
    socket.setTimeout(1000, () => socket.destroy(new Error('no answer')));
    socket.once('data', d => {
      socket.destroy();
      // -NOAUTH is an answer too.
      if (/^(\+PONG|-NOAUTH)/.test(d.toString())) resolve();
      else reject(new Error(d.toString()));
    });
    socket.once('error', reject);
  });
}

export async function startRedis(settings: readonly string[] = []): Promise<RedisServer | Missing> {
  const not = missing();
  if (not !== undefined) return not;
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-redis-'));
  const port = await freePort();
  const args = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--dir', dir, ...settings];
  const run = (): Promise<ChildProcess | undefined> => startServer('redis-server', args, {}, () => ping(port));
  let child = await run();
  if (child === undefined) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: 'redis-server did not start' };
  }
  const server: RedisServer = {
    port,
    dir,
    url: db => `redis://127.0.0.1:${port}/${db}`,
    cli(...words) {
      const r = spawnSync('redis-cli', ['-p', String(port), ...words], { encoding: 'utf8', timeout: 20_000 });
      if (r.status !== 0) throw new Error(`redis-cli ${words[0]}: ${r.stderr}${r.stdout}`);
      return r.stdout;
    },
    async kill(signal = 'SIGKILL') {
      if (child) await stopServer(child, signal);
      child = undefined;
    },
    async start() {
      child = await run();
      if (child === undefined) throw new Error('redis-server did not come back');
    },
    async restart() {
      await server.kill();
      await server.start();
    },
    async stop() {
      await server.kill();
      rmSync(dir, { recursive: true, force: true });
    },
  };
  return server;
}

interface RedisTls {
  /** rediss:// with the CA file. */
  url(db: number): string;
  port: number;
  stop(): Promise<void>;
}

export async function startRedisTls(): Promise<RedisTls | Missing> {
  const not = missing();
  if (not !== undefined) return not;
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-redis-tls-'));
  const port = await freePort();
  const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')];
  const made = spawnSync(
    'openssl',
    `req -x509 -newkey rsa:2048 -nodes -keyout ${key} -out ${cert} -days 30 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost`.split(
      ' ',
    ),
    { timeout: 30_000 },
  );
  if (made.status !== 0) return { missing: 'no openssl' };
  const child = await startServer(
    'redis-server',
    [
      '--port',
      '0',
      '--tls-port',
      String(port),
      '--bind',
      '127.0.0.1',
      '--save',
      '',
      '--dir',
      dir,
      '--tls-cert-file',
      cert,
      '--tls-key-file',
      key,
      '--tls-ca-cert-file',
      cert,
      '--tls-auth-clients',
      'no',
    ],
    {},
    () =>
      new Promise((resolve, reject) => {
        const socket = connect(port, '127.0.0.1', () => {
          socket.destroy();
          resolve();
        });
        socket.once('error', reject);
      }),
  );
  if (child === undefined) return { missing: 'redis-server did not start with TLS' };
  return {
    port,
    url: db => `rediss://127.0.0.1:${port}/${db}?tls-ca-cert-file=${cert}`,
    async stop() {
      await stopServer(child, 'SIGKILL');
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

interface RedisSentinel {
  /** redis://mymaster,127.0.0.1:PORT/DB */
  url(db: number): string;
  /** Kills the server that the sentinel names as the master; answers its port. */
  killMaster(): Promise<number>;
  /** Port of the server that the sentinel names as the master. */
  master(): number;
  stop(): Promise<void>;
}

/** One master, its replicas, one sentinel with a quorum of one. */
export async function startRedisSentinel(count = 1): Promise<RedisSentinel | Missing> {
  const master = await startRedis(['--repl-diskless-sync-delay', '0']);
  if ('missing' in master) return master;
  const replicas: RedisServer[] = [];
  for (let i = 0; i < count; i++) {
    const of = ['--replicaof', '127.0.0.1', String(master.port), '--repl-diskless-sync-delay', '0'];
    const replica = await startRedis(of);
    if ('missing' in replica) return replica;
    replicas.push(replica);
  }
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-sentinel-'));
  const port = await freePort();
  const file = join(dir, 'sentinel.conf');
  writeFileSync(
    file,
    [
      `port ${port}`,
      'bind 127.0.0.1',
      `dir ${dir}`,
      `sentinel monitor mymaster 127.0.0.1 ${master.port} 1`,
      'sentinel down-after-milliseconds mymaster 1000',
      'sentinel failover-timeout mymaster 3000',
      '',
    ].join('\n'),
  );
  const child = await startServer('redis-server', [file, '--sentinel'], {}, () => ping(port));
  const stop = async (): Promise<void> => {
    if (child) await stopServer(child, 'SIGKILL');
    for (const server of [...replicas, master]) await server.stop();
    rmSync(dir, { recursive: true, force: true });
  };
  if (child === undefined) {
    await stop();
    return { missing: 'the sentinel did not start' };
  }
  const ask = (...words: string[]): string =>
    spawnSync('redis-cli', ['-p', String(port), 'sentinel', ...words, 'mymaster'], { encoding: 'utf8' }).stdout;
  const replication = (r: RedisServer): string => r.cli('info', 'replication');
  const offset = (r: RedisServer, field: string): number =>
    Number(new RegExp(`^${field}:(\\d+)`, 'm').exec(replication(r))?.[1]);
  const linked = (r: RedisServer): boolean => replication(r).includes('master_link_status:up');
  for (let i = 0; i < 300 && !replicas.every(linked); i++) await new Promise(wake => setTimeout(wake, 100));
  // The sentinel has to learn of the replicas from the master.
  for (let i = 0; i < 300 && !replicas.every(r => ask('replicas').includes(String(r.port))); i++)
    await new Promise(wake => setTimeout(wake, 100));
  const named = (): number => Number(ask('get-master-addr-by-name').split('\n')[1]);
  return {
    url: db => `redis://mymaster,127.0.0.1:${port}/${db}`,
    master: named,
    async killMaster() {
      const victim = [master, ...replicas].find(s => s.port === named())!;
      // What was answered before this call is to be there afterwards; replication is asynchronous.
      const sent = offset(victim, 'master_repl_offset');
      const followers = replicas.filter(r => replication(r).includes(`master_port:${victim.port}`));
      for (let i = 0; i < 300 && !followers.some(r => offset(r, 'slave_repl_offset') >= sent); i++)
        await new Promise(wake => setTimeout(wake, 20));
      await victim.kill();
      return victim.port;
    },
    stop,
  };
}

interface RedisCluster {
  /** Any one node is enough. */
  url(db: number): string;
  nodes: RedisServer[];
  stop(): Promise<void>;
}

export async function startRedisCluster(settings: readonly string[] = []): Promise<RedisCluster | Missing> {
  const nodes: RedisServer[] = [];
  const stop = async (): Promise<void> => {
    for (const n of nodes) await n.stop();
  };
  for (let i = 0; i < 3; i++) {
    const dir = mkdtempSync(join(tmpdir(), 'steadfs-cluster-'));
    mkdirSync(dir, { recursive: true });
    // The bus port is free with luck only; ports above 55535 have none.
    const n = await startRedis([
      '--cluster-enabled',
      'yes',
      '--cluster-config-file',
      join(dir, 'nodes.conf'),
      '--cluster-port',
      String(await freePort()),
      ...settings,
    ]);
    if ('missing' in n) {
      await stop();
      return n;
    }
    nodes.push(n);
  }
  const addresses = nodes.map(n => `127.0.0.1:${n.port}`);
  const made = spawnSync('redis-cli', ['--cluster', 'create', ...addresses, '--cluster-yes'], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  for (let i = 0; i < 100 && nodes.some(n => !n.cli('cluster', 'info').includes('cluster_state:ok')); i++)
    await new Promise(wake => setTimeout(wake, 100));
  if (made.status !== 0) {
    await stop();
    return { missing: `no cluster: ${made.stdout.slice(-300)}` };
  }
  return { url: db => `redis://${addresses[0]}/${db}`, nodes, stop };
}
