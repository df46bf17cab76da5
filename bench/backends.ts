import { startMariadb } from '../packages/steadfs/test/servers/mariadb.ts';
import { startPostgres } from '../packages/steadfs/test/servers/postgres.ts';
import type { Missing } from '../packages/steadfs/test/servers/process.ts';
import { startRedis } from '../packages/steadfs/test/servers/redis.ts';
import { startS3 } from '../packages/steadfs/test/servers/s3.ts';

const DATABASES = ['sqlite', 'redis', 'postgres', 'mariadb'] as const;
export type DatabaseName = (typeof DATABASES)[number];
export const STORES = ['file', 's3'] as const;
export type StoreName = (typeof STORES)[number];

const LABELS: Record<DatabaseName, string> = {
  sqlite: 'SQLite',
  redis: 'Redis',
  postgres: 'PostgreSQL',
  mariadb: 'MariaDB',
};

export interface Backend {
  /** As in headings: "Redis", "PostgreSQL and S3". */
  label: string;
  database: DatabaseName;
  store: StoreName;
  /** URL of an empty database; undefined: SQLite in the volume's own folder. */
  meta(): Promise<string | undefined>;
  /** Flags of `format` for an empty store; undefined: a local directory. */
  storage(): string[] | undefined;
  stop(): Promise<void>;
}

/** Starts what is needed, or says what is missing. */
export async function startBackend(database: DatabaseName, store: StoreName): Promise<Backend | Missing> {
  const stops: (() => Promise<void>)[] = [];
  let meta: Backend['meta'] = async () => undefined;
  let storage: Backend['storage'] = () => undefined;
  let count = 0;
  if (database === 'redis') {
    const server = await startRedis();
    if ('missing' in server) return server;
    stops.push(() => server.stop());
    meta = async () => server.url(count++);
  } else if (database !== 'sqlite') {
    const server = await (database === 'postgres' ? startPostgres() : startMariadb());
    if ('missing' in server) return server;
    stops.push(() => server.stop());
    meta = () => server.database(`bench${count++}`);
  }
  if (store === 's3') {
    const server = await startS3();
    if ('missing' in server) {
      for (const stop of stops) await stop();
      return server;
    }
    stops.push(() => server.stop());
    storage = () => {
      const bucket = server.bucket(`bench${count++}`);
      return [
        ...['--storage', 's3', '--bucket', bucket],
        ...['--access-key', server.accessKey, '--secret-key', server.secretKey],
      ];
    };
  }
  return {
    label: LABELS[database] + (store === 's3' ? ' and S3' : ''),
    database,
    store,
    meta,
    storage,
    async stop() {
      for (const stop of stops) await stop();
    },
  };
}
