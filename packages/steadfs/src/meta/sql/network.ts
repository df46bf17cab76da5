/**
 * The engine on PostgreSQL and MySQL/MariaDB: the operations of ops/ in interactive transactions (network-tx.ts), reads as single statements.
 * Every mutation's transaction begins with the upsert of its op record, whose row lock makes a twin wait (engine.ts), then reads the
 * session's header with a shared lock, so that nothing commits after a take-over.
 *
 * Statements, transactions and outages: network-core.ts; by what they are about: announce, mutations, reading, usage, quotas, sessions, volume.
 */
import { EINVAL } from '@steadfs/fuse/errno';
import { CHUNK_SIZE } from '../../format/slice.ts';
import type { EngineDriver, EngineOptions, MetaEngine } from '../engine.ts';
import { CHUNKS_PER_STEP, setattr } from '../ops/attrs.ts';
import { attrCodec } from '../ops/record.ts';
import { txOperations } from '../tx-engine.ts';
import { UnlockWaiters } from '../unlock-waiters.ts';
import type { SqlPool } from './connection.ts';
import { openPlans } from './mysql-plan.ts';
import { openMysql } from './mysql-pool.ts';
import { createCore } from './network-core.ts';
import { mutations } from './network-mutations.ts';
import { quotas } from './network-quotas.ts';
import { reading } from './network-reading.ts';
import { sessions } from './network-sessions.ts';
import { usageOf } from './network-usage.ts';
import { volumeRecord } from './network-volume.ts';
import { openPostgres } from './postgres-pool.ts';
import { parseMysqlUrl, parsePostgresUrl } from './url.ts';

/** Chunks below which a truncation is one transaction, as bytes. */
const SHORT_TRUNCATION = CHUNKS_PER_STEP * CHUNK_SIZE;
/** Other processes' unlocks are found by asking again after this time, milliseconds. */
const LOCK_POLL_MS = 20;

export async function openNetworkEngine(pool: SqlPool, prefix: string, options: EngineOptions): Promise<MetaEngine> {
  const core = createCore(pool, prefix, options);
  const { announcer, seen, slices } = core;
  const plans = pool.kind === 'mysql' ? openPlans(pool, core.own) : undefined;
  const usage = usageOf(core);
  const driver = mutations(core, usage, plans);
  const generic = txOperations(driver, core.volume);
  const volume = volumeRecord(core, plans);
  const unlocked = new UnlockWaiters();

  return {
    ...generic,
    ...reading(core, generic),
    ...quotas(core, usage),
    ...sessions(core, usage, volume),
    name: pool.display,
    load: volume.load,
    init: volume.init,
    reset: volume.reset,
    flush: usage.flush,
    dirStat: usage.dirStat,
    newSliceIds: count => slices.take(count),
    // A truncation needs preparation only when it covers very many chunks, which the row as last seen tells.
    setattr: (op, cred, ino, set) => {
      const known = seen.node(ino).value;
      const short = set.size === undefined || (known !== undefined && known.length - set.size < SHORT_TRUNCATION);
      return short
        ? driver.mutate(op, attrCodec, tx => setattr(tx, cred, ino, set))
        : generic.setattr(op, cred, ino, set);
    },
    async close() {
      usage.close();
      await announcer.close();
      await pool.close();
    },
    // The server's own settings say when a commit is on its disk.
    async sync() {},
    async durable() {},
    // Wake-ups of this process at once, of others by asking again.
    async flock(op, ino, owner, type) {
      await generic.flock(op, ino, owner, type);
      unlocked.wake(ino);
    },
    async setlk(op, ino, owner, lock) {
      await generic.setlk(op, ino, owner, lock);
      unlocked.wake(ino);
    },
    waitForUnlock: (ino, timeoutMs) => unlocked.wait(ino, Math.min(timeoutMs, LOCK_POLL_MS)),
  };
}

export const postgresDriver: EngineDriver = {
  schemes: ['postgres', 'postgresql'],
  async open(url, options) {
    const parsed = checked(() => parsePostgresUrl(url, process.env));
    return await openNetworkEngine(openPostgres(parsed), parsed.tablePrefix, options);
  },
};

export const mysqlDriver: EngineDriver = {
  schemes: ['mysql'],
  async open(url, options) {
    const parsed = checked(() => parseMysqlUrl(url, process.env));
    return await openNetworkEngine(openMysql(parsed), parsed.tablePrefix, options);
  },
};

function checked<T>(parse: () => T): T {
  try {
    return parse();
  } catch (e) {
    throw EINVAL.because((e as Error).message);
  }
}
