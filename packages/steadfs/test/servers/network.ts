/** A database and a store of a volume, both real servers, each behind a proxy that can misbehave. */
import { type MariadbServer, startMariadb } from './mariadb.ts';
import { type PostgresServer, startPostgres } from './postgres.ts';
import type { Missing } from './process.ts';
import { type HttpProxy, startHttpProxy, startTcpProxy, type TcpProxy } from './proxy.ts';
import { type RedisServer, startRedis } from './redis.ts';
import { type S3Server, startS3 } from './s3.ts';

export type MetaKind = 'sqlite' | 'redis' | 'postgres' | 'mariadb';
export type StoreKind = 'file' | 's3';
export const META_KINDS: readonly MetaKind[] = ['sqlite', 'redis', 'postgres', 'mariadb'];
export const STORE_KINDS: readonly StoreKind[] = ['file', 's3'];

export interface Network {
  /** Metadata URL of a new, empty database, by way of the proxy; undefined for SQLite. */
  meta?: string;
  /** Flags of `format` for the store, by way of the proxy; undefined for a local directory. */
  store?: string[];
  redis?: RedisServer;
  postgres?: PostgresServer;
  mariadb?: MariadbServer;
  s3?: S3Server;
  /** Before the database. */
  metaProxy?: TcpProxy;
  /** Before the store. */
  storeProxy?: HttpProxy;
  close(): Promise<void>;
}

/** Redis keeps every acknowledged write over a kill -9: it writes to its log before it answers. */
export const REDIS_DURABLE = ['--appendonly', 'yes', '--appendfsync', 'no', '--maxmemory-policy', 'noeviction'];

export async function startNetwork(metaKind: MetaKind, storeKind: StoreKind): Promise<Network | Missing> {
  const closers: (() => Promise<void>)[] = [];
  const network: Network = {
    async close() {
      for (const close of closers.reverse()) await close();
    },
  };
  const absent = async (why: Missing): Promise<Missing> => {
    await network.close();
    return why;
  };
  let port = 0;
  let url = '';
  if (metaKind === 'redis') {
    const server = await startRedis(REDIS_DURABLE);
    if ('missing' in server) return await absent(server);
    closers.push(() => server.stop());
    network.redis = server;
    port = server.port;
    url = server.url(1);
  } else if (metaKind === 'postgres') {
    const server = await startPostgres();
    if ('missing' in server) return await absent(server);
    closers.push(() => server.stop());
    network.postgres = server;
    port = server.port;
    url = await server.database('vol');
  } else if (metaKind === 'mariadb') {
    const server = await startMariadb();
    if ('missing' in server) return await absent(server);
    closers.push(() => server.stop());
    network.mariadb = server;
    port = server.port;
    url = await server.database('vol');
  }
  if (port !== 0) {
    const proxy = await startTcpProxy(port);
    closers.push(() => proxy.close());
    network.metaProxy = proxy;
    network.meta = url.replace(`:${port}`, `:${proxy.port}`);
  }
  if (storeKind === 's3') {
    const server = await startS3();
    if ('missing' in server) return await absent(server);
    closers.push(() => server.stop());
    network.s3 = server;
    server.bucket('bucket');
    const proxy = await startHttpProxy(Number(new URL(server.endpoint).port));
    closers.push(() => proxy.close());
    network.storeProxy = proxy;
    network.store = [
      '--storage',
      's3',
      '--bucket',
      `http://127.0.0.1:${proxy.port}/bucket`,
      '--access-key',
      server.accessKey,
      '--secret-key',
      server.secretKey,
    ];
  }
  return network;
}
