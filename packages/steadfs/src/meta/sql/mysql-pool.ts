/** Connections to MySQL and MariaDB, by the library `mysql2` (connection.ts). */
import type { Socket } from 'node:net';
import mysql from 'mysql2';
import { createSpares, createWatch, type Member, type SqlPool, type SqlRow, type SqlValue } from './connection.ts';
import type { MysqlUrl } from './url.ts';

const SESSION_SETTINGS = [
  'set session transaction isolation level read committed',
  "set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
];
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
    // A stack kept for each call costs 9 µs.
    trace: false,
    ...(url.tls ? { ssl: url.tls } : {}),
  });
  const values = (params: readonly SqlValue[]): (string | number | Buffer | null)[] =>
    params.map(p =>
      typeof p === 'bigint' ? p.toString() : p instanceof Uint8Array && !Buffer.isBuffer(p) ? Buffer.from(p) : p,
    );
  const watched = createWatch(() => self);
  const members = new WeakMap<object, Member>();

  async function memberOf(pooled: mysql.PoolConnection): Promise<Member> {
    const raw = pooled as unknown as { stream: Socket };
    const known = members.get(raw);
    if (known !== undefined) return known;
    for (const setting of SESSION_SETTINGS)
      await new Promise<void>((resolve, reject) => {
        pooled.query(setting, e => (e === null ? resolve() : reject(e)));
      });
    const kill = (): void => {
      raw.stream.destroy();
    };
    const execute = (sql: string, params: readonly SqlValue[]): Promise<unknown> =>
      watched(
        new Promise((resolve, reject) => {
          pooled.execute(sql, values(params), (e, result) => (e === null ? resolve(result) : reject(e)));
        }),
        kill,
      );
    const member: Member = {
      broken: false,
      release: () => (member.broken ? pooled.destroy() : pooled.release()),
      connection: {
        async all(sql, params) {
          const rows = await execute(sql, params);
          if (!Array.isArray(rows)) return [];
          // A compound statement answers one list a result, and its own end.
          return (COMPOUND.test(sql) ? rows[0] : rows) as unknown as SqlRow[];
        },
        run: async (sql, params) => ((await execute(sql, params)) as { affectedRows?: number }).affectedRows ?? 0,
      },
    };
    pooled.on('error', () => spares.broke(member));
    members.set(raw, member);
    return member;
  }

  let waiting = 0;
  const spares = createSpares(
    'mysql',
    async () => {
      waiting++;
      const pooled = await new Promise<mysql.PoolConnection>((resolve, reject) => {
        pool.getConnection((e, c) => (e === null ? resolve(c) : reject(e)));
      }).finally(() => waiting--);
      try {
        return await memberOf(pooled);
      } catch (e) {
        pooled.destroy();
        throw e;
      }
    },
    () => waiting > 0,
  );

  const self: SqlPool = {
    kind: 'mysql',
    display: url.display,
    use: work => spares.use(work),
    close() {
      spares.close();
      return new Promise((resolve, reject) => {
        pool.end(e => (e === null || e === undefined ? resolve() : reject(e)));
      });
    },
  };
  return self;
}
