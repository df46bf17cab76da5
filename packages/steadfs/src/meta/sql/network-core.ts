/** What every part of the engine on PostgreSQL and MySQL stands on: the state, statements and transactions that outlive conflicts and outages, the session's check. */
import { EINTR, EIO, ENOSPC, EROFS, Errno } from '@steadfs/fuse/errno';
import { now } from '../clock.ts';
import { type EngineOptions, SESSION_LOST, type SessionIdentity } from '../engine.ts';
import { type Body, runAsync, type Tx } from '../ops/tx.ts';
import { emptyVolume } from '../tx-engine.ts';
import { failureOf, type SqlConnection, type SqlPool } from './connection.ts';
import { createAnnouncer, nameKey } from './network-announce.ts';
import { EntryChanged, NetworkTx, type NetworkTxHost, toNumber } from './network-tx.ts';
import { ownPrefix } from './schema.ts';
import { SeenRows } from './seen-rows.ts';

const INODE_BATCH = 1024;
const SLICE_BATCH = 4096;
/** Numbers that are left when transactions begin: more than run at once. */
const RESERVED = 256;
/** Conflicts with other transactions before the operation gives up. */
const ATTEMPTS_MAX = 50;
/** An outage is reported after this long, milliseconds. */
const TROUBLE_AFTER = 3000;

const sleep = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));

/** A step of a transaction as a body of its own. */
export function* step<T>(s: Iterable<Promise<unknown>, T, unknown>): Body<T> {
  return yield* s;
}

export type NetworkCore = ReturnType<typeof createCore>;

export function createCore(pool: SqlPool, prefix: string, options: EngineOptions) {
  const { kind } = pool;
  const own = ownPrefix(prefix);
  const volume = emptyVolume(options);
  const state: {
    identity: SessionIdentity | undefined;
    /** Why the session is lost. */
    lost: string | undefined;
  } = { identity: undefined, lost: undefined };
  let troubleSince = 0;
  let troubled = false;
  const inodes = batches('nextInode', INODE_BATCH);
  const slices = batches('nextChunk', SLICE_BATCH);
  const seen = new SeenRows();
  const announcer = createAnnouncer(pool, prefix, options, volume);
  const { announce, cache } = announcer;

  const host: NetworkTxHost = {
    kind,
    prefix,
    volume,
    nextInode: () => inodes.take(1),
    seen,
    remembered: (parent, name) => cache.name(parent, nameKey(name)),
  };

  /** A database error as the caller's errno. */
  function toErrno(e: unknown): Errno {
    if (e instanceof Errno) return e;
    const message = `metadata database: ${e instanceof Error ? e.message : String(e)}`;
    switch (failureOf(kind, e)) {
      case 'no-space':
        return ENOSPC.because(message, e);
      case 'read-only':
        return EROFS.because(message, e);
      default:
        return EIO.because(message, e);
    }
  }

  function recovered(): void {
    troubleSince = 0;
    if (!troubled) return;
    troubled = false;
    options.events.trouble(undefined);
  }

  pool.stalled = ms => {
    if (volume.sid === 0) return;
    troubleSince ||= Date.now() - ms;
    troubled = true;
    options.events.trouble(`${pool.display} has not answered for ${Math.round(ms / 1000)} s`);
  };

  async function outage(e: unknown, attempt: number): Promise<void> {
    troubleSince ||= Date.now();
    if (!troubled && Date.now() - troubleSince > TROUBLE_AFTER) {
      troubled = true;
      options.events.trouble(`${pool.display} does not answer: ${e instanceof Error ? e.message : String(e)}`);
    }
    await sleep(Math.min(100 * 2 ** Math.min(attempt, 6), 3000) * (0.5 + Math.random() / 2));
  }

  /**
   * Runs `work` until it succeeds or fails for good: again at once after a conflict, with pauses while the database is away. EINTR when it is `over` before an attempt.
   */
  async function persist<T>(work: (connection: SqlConnection) => Promise<T>, over?: () => boolean): Promise<T> {
    for (let conflicts = 0, outages = 0; ; ) {
      if (over?.()) throw EINTR;
      try {
        const value = await pool.use(work);
        if (troubleSince !== 0) recovered();
        return value;
      } catch (e) {
        if (e instanceof Errno) throw e;
        const failure = e instanceof EntryChanged ? 'retry' : failureOf(kind, e);
        // A mount waits for its database; a command without a session gives up.
        const waits = volume.sid !== 0 || outages < options.retries;
        if (waits && (failure === 'lost' || (failure === 'read-only' && volume.sid !== 0))) await outage(e, outages++);
        else if ((failure === 'retry' || failure === 'duplicate') && ++conflicts < ATTEMPTS_MAX)
          await sleep(Math.random() * Math.min(conflicts * conflicts, 200));
        else throw toErrno(e);
      }
    }
  }

  async function transaction<T>(
    work: (tx: NetworkTx, c: SqlConnection) => Promise<T>,
    over?: () => boolean,
  ): Promise<T> {
    const unsure: NetworkTx[] = [];
    try {
      return await attempts(work, unsure, over);
    } finally {
      // What a broken connection left under way may have been committed after it was announced; its twin has waited for it.
      for (const tx of unsure) announce(tx);
    }
  }

  async function attempts<T>(
    work: (tx: NetworkTx, c: SqlConnection) => Promise<T>,
    unsure: NetworkTx[],
    over: (() => boolean) | undefined,
  ): Promise<T> {
    return await persist(async c => {
      await c.run(kind === 'postgres' ? 'BEGIN ISOLATION LEVEL READ COMMITTED' : 'START TRANSACTION', []);
      const tx = new NetworkTx(host, c, now(), true);
      try {
        const value = await work(tx, c);
        await c.run('COMMIT', []);
        return value;
      } catch (e) {
        if (failureOf(kind, e) === 'lost') unsure.push(tx);
        else await c.run('ROLLBACK', []);
        throw e;
      } finally {
        announce(tx);
      }
    }, over);
  }

  /** A body that changes nothing. */
  async function read<T>(body: (tx: Tx) => Body<T>): Promise<T> {
    return await persist(c => runAsync(body(new NetworkTx(host, c, now()))));
  }

  /**
   * Ranges of numbers from a counter whose value is the next free one. `reserve` before a transaction, so that none of them waits for a
   * connection of the pool while it has one.
   */
  function batches(counter: string, size: number): { take(count: number): Promise<number>; reserve(): Promise<void> } {
    let next = 0;
    let end = 0;
    let fetching: Promise<void> | undefined;
    const fetch = async (count: number): Promise<void> => {
      fetching ??= transaction(async tx => {
        end = await runAsync(step(tx.addCounter(counter, Math.max(size, count))));
        next = end - Math.max(size, count);
      }).finally(() => {
        fetching = undefined;
      });
      await fetching;
    };
    return {
      async take(count) {
        while (end - next < count) await fetch(count);
        next += count;
        return next - count;
      },
      async reserve() {
        if (end - next < RESERVED) await fetch(1);
      },
    };
  }

  function lose(reason: string): never {
    if (state.lost === undefined) options.events.sessionLost(reason);
    state.lost = reason;
    throw EIO.because(`session ${volume.sid} lost: ${reason}`, SESSION_LOST);
  }

  async function checkSession(tx: NetworkTx, c: SqlConnection): Promise<void> {
    if (state.lost !== undefined) lose(state.lost);
    const share = kind === 'postgres' ? 'FOR SHARE OF s' : 'LOCK IN SHARE MODE';
    const rows = await c.all(
      `SELECT s.incarnation, s.epoch, j.expire FROM ${own}session s JOIN ${prefix}session2 j ON j.sid = s.sid WHERE s.sid = ? ${share}`,
      [volume.sid],
    );
    const row = rows[0];
    if (row === undefined) lose('its record is gone');
    else if (row[0] !== state.identity?.incarnation || toNumber(row[1]) !== state.identity?.epoch)
      lose('it was taken over');
    else if (toNumber(row[2]) < tx.now.sec) lose('it has expired');
  }

  async function hasTable(c: SqlConnection, name: string): Promise<boolean> {
    const where = kind === 'postgres' ? 'table_schema = current_schema()' : 'table_schema = database()';
    return (
      (await c.all(`SELECT 1 FROM information_schema.tables WHERE ${where} AND table_name = ?`, [name])).length > 0
    );
  }

  return {
    pool,
    kind,
    prefix,
    own,
    options,
    volume,
    state,
    seen,
    host,
    inodes,
    slices,
    announcer,
    persist,
    transaction,
    read,
    checkSession,
    hasTable,
  };
}
