/** A real MariaDB server for tests, from Debian's package, on a free loopback port. */
import { spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import mysql from 'mysql2/promise';
import { freePort, type Missing, startServer, stopServer, userIds } from './process.ts';

export interface MariadbServer {
  /** mysql://u:p@(127.0.0.1:PORT)/NAME of a new, empty database (utf8mb4). */
  database(name: string): Promise<string>;
  /** As `database`, for a user who may not create routines. */
  restricted(name: string): Promise<string>;
  port: number;
  dir: string;
  restart(immediate: boolean): Promise<void>;
  stop(): Promise<void>;
}

export async function startMariadb(settings: readonly string[] = []): Promise<MariadbServer | Missing> {
  const server = ['/usr/sbin/mariadbd', '/usr/local/sbin/mariadbd', '/usr/libexec/mariadbd'].find(p => existsSync(p));
  if (server === undefined) return { missing: 'no mariadbd (package mariadb-server)' };
  const root = process.getuid?.() === 0;
  const ids = root ? userIds('mysql') : undefined;
  if (root && ids === undefined) return { missing: 'no user mysql to run the server as' };
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-my-'));
  const data = join(dir, 'data');
  mkdirSync(data);
  if (ids) for (const d of [dir, data]) chownSync(d, ids.uid, ids.gid);
  const user = root ? ['--user=mysql'] : [];
  // The server's own user cannot write where TMPDIR may point to.
  const env = { ...process.env, TMPDIR: dir };
  const init = spawnSync(
    'mariadb-install-db',
    ['--no-defaults', ...user, `--datadir=${data}`, '--auth-root-authentication-method=socket', '--skip-test-db'],
    { encoding: 'utf8', timeout: 120_000, env },
  );
  if (init.status !== 0) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: `mariadb-install-db failed: ${(init.stderr ?? '').slice(-200)}` };
  }
  const port = await freePort();
  const socket = join(dir, 's.sock');
  const args = [
    '--no-defaults',
    ...user,
    `--datadir=${data}`,
    `--port=${port}`,
    '--bind-address=127.0.0.1',
    `--socket=${socket}`,
    ...settings.map(s => `--${s}`),
  ];
  // root logs in by the socket as the operating system's root.
  const admin = async (...sql: string[]): Promise<void> => {
    const connection = await mysql.createConnection({
      socketPath: socket,
      user: root ? 'root' : (process.env.USER ?? 'root'),
    });
    try {
      for (const s of sql) await connection.query(s);
    } finally {
      await connection.end();
    }
  };
  const start = () => startServer(server, args, { env }, () => admin('select 1'));
  let child = await start();
  if (child === undefined) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: 'MariaDB did not start' };
  }
  const create = (name: string, account: string, rights: string): Promise<void> =>
    admin(
      `create database \`${name}\` character set utf8mb4`,
      `create user if not exists '${account}'@'127.0.0.1' identified by 'p'`,
      `grant ${rights} on \`${name}\`.* to '${account}'@'127.0.0.1'`,
    );
  return {
    port,
    dir,
    async database(name) {
      await create(name, 'u', 'all');
      return `mysql://u:p@(127.0.0.1:${port})/${name}`;
    },
    async restricted(name) {
      await create(
        name,
        'plain',
        'select, insert, update, delete, create, drop, alter, index, references, create temporary tables, lock tables',
      );
      return `mysql://plain:p@(127.0.0.1:${port})/${name}`;
    },
    async restart(immediate) {
      if (child) await stopServer(child, immediate ? 'SIGKILL' : 'SIGTERM');
      child = await start();
      if (child === undefined) throw new Error('MariaDB did not come back');
    },
    async stop() {
      if (child) await stopServer(child, 'SIGKILL');
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
