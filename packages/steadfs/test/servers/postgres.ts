/** A real PostgreSQL server for tests, from Debian's package, on a free loopback port. */
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { freePort, type Missing, startServer, stopServer, userIds } from './process.ts';

export interface PostgresServer {
  /** postgres://… of a new, empty database. */
  database(name: string): Promise<string>;
  /** As `database`, for a user who may not create functions. */
  restricted(name: string): Promise<string>;
  port: number;
  dir: string;
  /** kill -9 and start again (`immediate`), or an orderly restart. */
  restart(immediate: boolean): Promise<void>;
  stop(): Promise<void>;
}

function binaries(): string | undefined {
  const root = '/usr/lib/postgresql';
  if (!existsSync(root)) return undefined;
  const versions = readdirSync(root)
    .filter(v => existsSync(join(root, v, 'bin/initdb')))
    .sort((a, b) => Number(b) - Number(a));
  return versions[0] === undefined ? undefined : join(root, versions[0], 'bin');
}

export async function startPostgres(settings: readonly string[] = []): Promise<PostgresServer | Missing> {
  const bin = binaries();
  if (bin === undefined) return { missing: 'no PostgreSQL below /usr/lib/postgresql (package postgresql)' };
  const root = process.getuid?.() === 0;
  const ids = root ? userIds('postgres') : undefined;
  if (root && ids === undefined) return { missing: 'no user postgres to run the server as' };
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-pg-'));
  chmodSync(dir, 0o711);
  const data = join(dir, 'data');
  mkdirSync(data, { mode: 0o700 });
  if (ids) chownSync(data, ids.uid, ids.gid);
  const as = ids ? { uid: ids.uid, gid: ids.gid } : {};
  const init = spawnSync(
    join(bin, 'initdb'),
    ['-D', data, '-A', 'trust', '-U', 'postgres', '--no-sync', '--locale=C.UTF-8'],
    { ...as, cwd: dir, encoding: 'utf8', timeout: 60_000 },
  );
  if (init.status !== 0) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: `initdb failed: ${init.stderr.slice(-200)}` };
  }
  const port = await freePort();
  const admin = async (sql: string, database = 'postgres'): Promise<void> => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database });
    client.on('error', () => {});
    await client.connect();
    try {
      await client.query(sql);
    } finally {
      await client.end();
    }
  };
  const args = ['-D', data, '-p', String(port), '-h', '127.0.0.1', '-k', data, ...settings.flatMap(s => ['-c', s])];
  const start = () => startServer(join(bin, 'postgres'), args, { ...as, cwd: dir }, () => admin('select 1'));
  let child = await start();
  if (child === undefined) {
    rmSync(dir, { recursive: true, force: true });
    return { missing: 'PostgreSQL did not start' };
  }
  return {
    port,
    dir,
    async database(name) {
      await admin(`create database "${name}"`);
      return `postgres://postgres@127.0.0.1:${port}/${name}?sslmode=disable`;
    },
    async restricted(name) {
      await admin(`create database "${name}"`);
      await admin('do $$ begin create role plain login; exception when duplicate_object then null; end $$');
      // Tables yes, functions no: USAGE is revoked on the language that functions are written in.
      await admin(
        `create schema vol authorization plain; alter role plain in database "${name}" set search_path = vol; revoke usage on language plpgsql from public`,
        name,
      );
      return `postgres://plain@127.0.0.1:${port}/${name}?sslmode=disable&search_path=vol`;
    },
    async restart(immediate) {
      if (child) await stopServer(child, immediate ? 'SIGQUIT' : 'SIGINT');
      child = await start();
      if (child === undefined) throw new Error('PostgreSQL did not come back');
    },
    async stop() {
      if (child) await stopServer(child, 'SIGQUIT');
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
