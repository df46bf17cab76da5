/** One way to start what a metadata engine needs, by the engine's name: for tests and suites that run on each of them. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startMariadb } from './mariadb.ts';
import { startPostgres } from './postgres.ts';
import type { Missing } from './process.ts';
import { startRedis } from './redis.ts';

export const ENGINES = ['sqlite', 'redis', 'postgres', 'mariadb'] as const;
export type EngineName = (typeof ENGINES)[number];

interface EngineServer {
  /** META-URL of a new, empty database. */
  fresh(): Promise<string>;
  stop(): Promise<void>;
}

export function isEngineName(word: string): word is EngineName {
  return (ENGINES as readonly string[]).includes(word);
}

export async function startEngine(name: EngineName): Promise<EngineServer | Missing> {
  let count = 0;
  if (name === 'sqlite') {
    const dir = mkdtempSync(join(tmpdir(), 'steadfs-sqlite-'));
    return {
      fresh: async () => `sqlite3://${dir}/meta${count++}.db`,
      stop: async () => rmSync(dir, { recursive: true, force: true }),
    };
  }
  if (name === 'redis') {
    const server = await startRedis(['--maxmemory-policy', 'noeviction']);
    if ('missing' in server) return server;
    return {
      async fresh() {
        const db = count++ % 16;
        server.cli('-n', String(db), 'flushdb');
        return server.url(db);
      },
      stop: () => server.stop(),
    };
  }
  const server = await (name === 'postgres' ? startPostgres() : startMariadb());
  if ('missing' in server) return server;
  return { fresh: () => server.database(`volume${count++}`), stop: () => server.stop() };
}
