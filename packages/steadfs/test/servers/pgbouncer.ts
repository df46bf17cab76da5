/** A real pgbouncer for tests, from Debian's package, in transaction mode in front of a PostgreSQL server on loopback. */
import { chownSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { freePort, type Missing, startServer, stopServer, userIds } from './process.ts';

interface Pooler {
  port: number;
  stop(): Promise<void>;
}

/** Two servers' connections for all clients, so that a transaction often meets another one than the last. */
export async function startPgbouncer(serverPort: number): Promise<Pooler | Missing> {
  const program = ['/usr/sbin/pgbouncer', '/usr/bin/pgbouncer'].find(p => existsSync(p));
  if (program === undefined) return { missing: 'no pgbouncer (package pgbouncer)' };
  const root = process.getuid?.() === 0;
  const ids = root ? userIds('postgres') : undefined;
  if (root && ids === undefined) return { missing: 'no user postgres to run pgbouncer as' };
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-bouncer-'));
  const port = await freePort();
  const config = join(dir, 'ini');
  writeFileSync(
    config,
    `[databases]
* = user=postgres host=127.0.0.1 port=${serverPort}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
server_round_robin = 1
max_client_conn = 200
server_check_delay = 10
`,
  );
  if (ids) for (const path of [dir, config]) chownSync(path, ids.uid, ids.gid);
  const ready = async (): Promise<void> => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
    client.on('error', () => {});
    await client.connect();
    await client.query('select 1');
    await client.end();
  };
  const child = await startServer(program, [config], { ...ids, cwd: dir }, ready);
  if (child === undefined) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: 'pgbouncer did not start' };
  }
  return {
    port,
    async stop() {
      await stopServer(child, 'SIGQUIT');
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
