/**
 * What the network SQL engines need of a database connection, for PostgreSQL (postgres-pool.ts) and MySQL/MariaDB (mysql-pool.ts). Statements are written
 * with `?` for parameters; 64-bit integers come back as number, bigint or decimal string, bytes as Buffer.
 */

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

/** Watches statements under way; `kill` breaks the connection, so that the statement fails. */
export function createWatch(pool: () => SqlPool): <T>(statement: Promise<T>, kill: () => void) => Promise<T> {
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

/** Free connections beside the library's own list are given back after this time without work, milliseconds. */
const SPARE_MS = 1000;

/** A connection taken from a library's pool. */
export interface Member {
  connection: SqlConnection;
  broken: boolean;
  /** To the library's pool, which throws a broken one away. */
  release(): void;
}

/**
 * Runs work on connections of a library's pool, of which those that were used last stay taken: taking one from the library costs timers, ticks
 * and promises. Nobody waits in the library's list while one is spare.
 */
export function createSpares(kind: SqlKind, take: () => Promise<Member>, someoneWaits: () => boolean) {
  const spare: Member[] = [];
  let timer: NodeJS.Timeout | undefined;
  let closed = false;
  const releaseAll = (): void => {
    for (const member of spare.splice(0)) member.release();
  };
  return {
    async use<T>(work: (connection: SqlConnection) => Promise<T>): Promise<T> {
      const member = spare.pop() ?? (await take());
      try {
        return await work(member.connection);
      } catch (e) {
        member.broken ||= failureOf(kind, e) === 'lost';
        throw e;
      } finally {
        if (member.broken || closed || someoneWaits()) member.release();
        else {
          spare.push(member);
          timer ??= setTimeout(releaseAll, SPARE_MS).unref();
          timer.refresh();
        }
      }
    },
    /** The connection ended by itself. */
    broke(member: Member): void {
      member.broken = true;
      const at = spare.indexOf(member);
      if (at < 0) return;
      spare.splice(at, 1);
      member.release();
    },
    close(): void {
      closed = true;
      clearTimeout(timer);
      releaseAll();
    },
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
