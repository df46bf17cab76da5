/** Connections to PostgreSQL, by the library `pg` (connection.ts); statements by postgres-batch.ts. */
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import pg from 'pg';
import { createSpares, createWatch, type Member, type SqlPool, type SqlValue } from './connection.ts';
import { type BatchResult, PreparedNames, runBatch } from './postgres-batch.ts';
import type { PostgresUrl } from './url.ts';

/**
 * Settings of a session. A plan for the first parameters serves all: every statement looks for keys. Without plans of its own kind the server would
 * plan a statement of eight parts again and again (150-450 µs); a table that was empty when it was planned must not be read through later.
 */
const SESSION_SETTINGS = 'SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off';
/** SQLSTATE where a server has no such setting. */
const UNDEFINED_OBJECT = '42704';
/** The end of a listening connection is not waited for longer than this. */
const CLOSE_MS = 1000;

export function openPostgres(url: PostgresUrl): SqlPool {
  const config: pg.ClientConfig = {
    host: url.host,
    port: url.port,
    user: url.user || undefined,
    password: url.password,
    database: url.database,
    connectionTimeoutMillis: 10_000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    application_name: 'steadfs',
    ssl: postgresTls(url),
  };
  const pool = new pg.Pool({
    ...config,
    max: url.maxConnections || 16,
    idleTimeoutMillis: url.idleSeconds * 1000,
  });
  // A broken idle connection: the pool has dropped it already.
  pool.on('error', () => {});
  const silent = new Error('connection terminated: no answer in time');
  const watched = createWatch(() => self);
  const searchPath =
    url.schema === undefined
      ? undefined
      : { sql: "SELECT set_config('search_path', ?, true)", params: [pg.escapeIdentifier(url.schema)] };
  /** A pooler tells a number of its own at the start. Behind it each transaction may meet another server: no names, no settings. */
  let pooled: boolean | undefined;

  const members = new WeakMap<pg.PoolClient, Member>();

  async function memberOf(client: pg.PoolClient): Promise<Member> {
    const known = members.get(client);
    if (known !== undefined) return known;
    if (pooled === undefined) {
      const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      pooled = rows[0]?.pid !== (client as unknown as { processID: number }).processID;
    }
    if (!pooled) {
      const path = url.schema === undefined ? '' : `; SET search_path TO ${pg.escapeIdentifier(url.schema)}`;
      await client.query(`SET default_transaction_isolation = 'read committed'${path}`);
      await client.query(SESSION_SETTINGS).catch(e => {
        if ((e as { code?: string }).code !== UNDEFINED_OBJECT) throw e;
      });
    }
    const names = new PreparedNames(!pooled);
    const kill = (): void => {
      (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy(silent);
    };
    const run = (batch: readonly { sql: string; params: readonly SqlValue[] }[]): Promise<BatchResult> => {
      const local = pooled && searchPath !== undefined && !/^(BEGIN|COMMIT|ROLLBACK)/.test(batch[0]!.sql);
      return watched(runBatch(client, names, local ? [searchPath, ...batch] : batch), kill);
    };
    const member: Member = {
      broken: false,
      release: () => client.release(member.broken),
      connection: {
        all: async (sql, params) => (await run([{ sql, params }])).rows,
        run: async (sql, params) => (await run([{ sql, params }])).count,
        script: async statements => (await run(statements)).rows,
      },
    };
    client.on('error', () => spares.broke(member));
    members.set(client, member);
    return member;
  }

  const spares = createSpares(
    'postgres',
    async () => {
      const client = await pool.connect();
      try {
        return await memberOf(client);
      } catch (e) {
        client.release(true);
        throw e;
      }
    },
    () => pool.waitingCount > 0,
  );

  const self: SqlPool = {
    kind: 'postgres',
    display: url.display,
    use: work => spares.use(work),
    async listen(channel, heard, lost) {
      if (pooled) throw new Error('a pooler passes no announcements on');
      const client = new pg.Client(config);
      let open = true;
      const drop = (): void => {
        (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy();
      };
      const ended = (): void => {
        if (!open) return;
        open = false;
        lost();
      };
      client.on('error', ended);
      client.on('end', ended);
      client.on('notification', message => heard(message.payload ?? ''));
      try {
        await client.connect();
        await client.query(`LISTEN ${pg.escapeIdentifier(channel)}`);
      } catch (e) {
        open = false;
        // Why it cannot be used says more than how it ends.
        client.end().catch(() => {});
        throw e;
      }
      return {
        async close() {
          open = false;
          const timer = setTimeout(drop, CLOSE_MS);
          await client.end().finally(() => clearTimeout(timer));
        },
        drop,
      };
    },
    async close() {
      spares.close();
      await pool.end();
    },
  };
  return self;
}

function postgresTls(url: PostgresUrl): false | Record<string, unknown> {
  if (url.sslMode === 'disable' || url.sslMode === 'allow' || url.sslMode === 'prefer') return false;
  const tls: Record<string, unknown> = {
    rejectUnauthorized: url.sslMode !== 'require' || url.sslRootCert !== undefined,
  };
  if (url.sslRootCert) tls.ca = readFileSync(url.sslRootCert);
  if (url.sslCert) tls.cert = readFileSync(url.sslCert);
  if (url.sslKey) tls.key = readFileSync(url.sslKey);
  if (url.sslMode === 'verify-ca') tls.checkServerIdentity = () => undefined;
  return tls;
}
