/**
 * What the network SQL engines need of a database connection, for PostgreSQL (pg) and MySQL/MariaDB (mysql2). Statements are written
 * with `?` for parameters; 64-bit integers come back as number, bigint or decimal string, bytes as Buffer.
 */
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import mysql from 'mysql2/promise';
import pg from 'pg';
import { type BatchResult, PreparedNames, runBatch } from './postgres-batch.ts';
import type { MysqlUrl, PostgresUrl } from './url.ts';

export type SqlValue = string | number | bigint | Uint8Array | null;
export type SqlRow = readonly unknown[];

export interface SqlConnection {
  /** Rows as arrays. */
  all(sql: string, params: readonly SqlValue[]): Promise<SqlRow[]>;
  /** Rows changed or deleted (an update that changes nothing counts too). */
  run(sql: string, params: readonly SqlValue[]): Promise<number>;
  /** PostgreSQL: several statements in one round trip, outside of a transaction as one; rows of the last one. */
  script?(statements: readonly { sql: string; params: readonly SqlValue[] }[]): Promise<SqlRow[]>;
}

export type SqlKind = 'postgres' | 'mysql';

export interface SqlPool {
  readonly kind: SqlKind;
  readonly display: string;
  /** Runs `work` with a connection of its own; a connection that failed is thrown away. */
  use<T>(work: (connection: SqlConnection) => Promise<T>): Promise<T>;
  /** Called each second while a statement has waited longer than STALL_MS, with that time. */
  stalled?: (ms: number) => void;
  /** PostgreSQL: a connection of its own that hears a channel; `lost` is called once when it ends by itself. */
  listen?(channel: string, heard: (payload: string) => void, lost: () => void): Promise<Listening>;
  close(): Promise<void>;
}

export interface Listening {
  close(): Promise<void>;
  /** Breaks the connection, which counts as an end by itself. */
  drop(): void;
}

/** A statement without answer is worth a word after this time, milliseconds. */
const STALL_MS = 3000;
/**
 * A connection whose statement has no answer after this time is given up: its route may be gone, and TCP would need a quarter of an hour to say so. The statement
 * may be under way all the same; its twin waits for it at the op record's row.
 */
const SILENCE_MS = 30_000;
/** The end of a listening connection is not waited for longer than this. */
const CLOSE_MS = 1000;

/** Watches statements under way; `kill` breaks the connection, so that the statement fails. */
function createWatch(pool: () => SqlPool): <T>(statement: Promise<T>, kill: () => void) => Promise<T> {
  const under = new Set<{ since: number; kill: () => void }>();
  let timer: NodeJS.Timeout | undefined;
  const look = (): void => {
    const now = performance.now();
    let oldest = 0;
    for (const s of under) {
      oldest = Math.max(oldest, now - s.since);
      if (now - s.since > SILENCE_MS) s.kill();
    }
    if (oldest > STALL_MS) pool().stalled?.(oldest);
    if (under.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
  return async (statement, kill) => {
    const entry = { since: performance.now(), kill };
    under.add(entry);
    if (timer === undefined) {
      timer = setInterval(look, 1000);
      timer.unref();
    }
    try {
      return await statement;
    } finally {
      under.delete(entry);
    }
  };
}

/** What a failed statement means for the transaction. */
export type SqlFailure =
  /** Conflict with another transaction: nothing happened, run it again. */
  | 'retry'
  /** The connection broke: the outcome is unknown unless the op record tells. */
  | 'lost'
  | 'duplicate'
  | 'no-space'
  | 'read-only'
  | 'denied'
  | 'other';

/**
 * Settings of a session. A plan for the first parameters serves all: every statement looks for keys. Without plans of its own kind the server would
 * plan a statement of eight parts again and again (150-450 µs); a table that was empty when it was planned must not be read through later.
 */
const SESSION_SETTINGS =
  "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off; SET default_transaction_isolation = 'read committed'";
/** What a pool keeps ready beside `pg`'s own list is given back after this time without work, milliseconds. */
const SPARE_MS = 1000;

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
  /** A server behind a pooler does not tell its own number at the start; each transaction may meet another one. */
  let pooled: boolean | undefined;

  interface Member {
    client: pg.PoolClient;
    connection: SqlConnection;
    broken: boolean;
  }
  const members = new WeakMap<pg.PoolClient, Member>();
  /** Connections that are free, taken from the pool: taking one costs nothing. */
  const spare: Member[] = [];
  let spareTimer: NodeJS.Timeout | undefined;
  let closed = false;

  async function memberOf(client: pg.PoolClient): Promise<Member> {
    const known = members.get(client);
    if (known !== undefined) return known;
    if (pooled === undefined) {
      const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      pooled = rows[0]?.pid !== (client as unknown as { processID: number }).processID;
    }
    if (!pooled) {
      const path = url.schema === undefined ? '' : `; SET search_path TO ${pg.escapeIdentifier(url.schema)}`;
      await client.query(SESSION_SETTINGS + path);
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
      client,
      broken: false,
      connection: {
        all: async (sql, params) => (await run([{ sql, params }])).rows,
        run: async (sql, params) => (await run([{ sql, params }])).count,
        script: async statements => (await run(statements)).rows,
      },
    };
    client.on('error', () => {
      member.broken = true;
      const at = spare.indexOf(member);
      if (at < 0) return;
      spare.splice(at, 1);
      client.release(true);
    });
    members.set(client, member);
    return member;
  }

  function giveBack(member: Member): void {
    if (member.broken || closed || pool.waitingCount > 0) {
      member.client.release(member.broken);
      return;
    }
    spare.push(member);
    spareTimer ??= setTimeout(releaseSpare, SPARE_MS).unref();
    spareTimer.refresh();
  }

  function releaseSpare(): void {
    for (const member of spare.splice(0)) member.client.release();
  }

  const self: SqlPool = {
    kind: 'postgres',
    display: url.display,
    async use(work) {
      let member = spare.pop();
      if (member === undefined) {
        const client = await pool.connect();
        try {
          member = await memberOf(client);
        } catch (e) {
          client.release(true);
          throw e;
        }
      }
      try {
        return await work(member.connection);
      } catch (e) {
        member.broken ||= failureOf('postgres', e) === 'lost';
        throw e;
      } finally {
        giveBack(member);
      }
    },
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
      clearTimeout(spareTimer);
      closed = true;
      releaseSpare();
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

const COMPOUND = /^(CALL|BEGIN NOT ATOMIC) /;

export function openMysql(url: MysqlUrl): SqlPool {
  const pool = mysql.createPool({
    ...(url.socketPath === undefined ? { host: url.host, port: url.port } : { socketPath: url.socketPath }),
    user: url.user,
    ...(url.password === undefined ? {} : { password: url.password }),
    database: url.database,
    connectionLimit: url.maxConnections || 16,
    idleTimeout: url.idleSeconds * 1000,
    connectTimeout: 10_000,
    enableKeepAlive: true,
    rowsAsArray: true,
    supportBigNumbers: true,
    bigNumberStrings: false,
    // Found rows, not changed rows: an update to the same value is one too.
    flags: ['FOUND_ROWS'],
    timezone: 'Z',
    ...(url.tls ? { ssl: url.tls } : {}),
  });
  const ready = new WeakSet<object>();
  const values = (params: readonly SqlValue[]): (string | number | Buffer | null)[] =>
    params.map(p =>
      typeof p === 'bigint' ? p.toString() : p instanceof Uint8Array && !Buffer.isBuffer(p) ? Buffer.from(p) : p,
    );
  const watched = createWatch(() => self);
  const self: SqlPool = {
    kind: 'mysql',
    display: url.display,
    async use(work) {
      const connection = await pool.getConnection();
      let broken = false;
      const kill = (): void => {
        (connection.connection as unknown as { stream: Socket }).stream.destroy();
      };
      try {
        const raw = connection.connection as unknown as object;
        if (!ready.has(raw)) {
          await connection.query('set session transaction isolation level read committed');
          await connection.query("set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'");
          ready.add(raw);
        }
        return await work({
          async all(sql, params) {
            const [rows] = await watched(connection.execute(sql, values(params)), kill);
            if (!Array.isArray(rows)) return [];
            // A compound statement answers one list a result, and its own end.
            return (COMPOUND.test(sql) ? rows[0] : rows) as unknown as SqlRow[];
          },
          async run(sql, params) {
            const [result] = await watched(connection.execute(sql, values(params)), kill);
            return (result as { affectedRows?: number }).affectedRows ?? 0;
          },
        });
      } catch (e) {
        broken = failureOf('mysql', e) === 'lost';
        throw e;
      } finally {
        if (broken) connection.destroy();
        else connection.release();
      }
    },
    close: () => pool.end(),
  };
  return self;
}

/** Classes of database errors (PostgreSQL: SQLSTATE; MySQL: error numbers; both: errors of the socket). */
export function failureOf(kind: SqlKind, e: unknown): SqlFailure {
  if (typeof e !== 'object' || e === null) return 'other';
  const { code, errno, message } = e as { code?: unknown; errno?: unknown; message?: unknown };
  const text = String(message ?? '').toLowerCase();
  if (kind === 'postgres' && typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code)) {
    // Among them a statement that the server's own time limit ended.
    if (['40001', '40P01', '55P03', '25P02', '57014'].includes(code)) return 'retry';
    if (code === '23505') return 'duplicate';
    if (code === '53100' || code === '53200') return 'no-space';
    if (code === '25006') return 'read-only';
    if (code === '42501' || code.startsWith('28')) return 'denied';
    if (code.startsWith('08') || code.startsWith('57P') || code === '53300' || code === '25P03') return 'lost';
    return 'other';
  }
  if (kind === 'mysql' && typeof errno === 'number' && errno >= 1000) {
    if ([1205, 1213, 1020, 3572, 1969, 3024].includes(errno)) return 'retry';
    if (errno === 1062) return 'duplicate';
    if ([1021, 1114, 1041, 3675].includes(errno)) return 'no-space';
    if ([1290, 1792, 1836].includes(errno)) return 'read-only';
    if ([1044, 1045, 1142, 1227, 1370].includes(errno)) return 'denied';
    if ([1040, 1053, 1129, 1152, 1158, 1159, 1160, 1161, 1203, 1226, 1927, 2006, 2013, 4031].includes(errno))
      return 'lost';
    return 'other';
  }
  if (typeof code === 'string' && /^(ECONN|EPIPE|ETIMEDOUT|EHOST|ENET|PROTOCOL_|ENOTFOUND|EAI_)/.test(code))
    return 'lost';
  return /connection (terminated|ended|error|timeout)|timeout exceeded|client has encountered|closed state|not queryable/.test(
    text,
  )
    ? 'lost'
    : 'other';
}
