/**
 * The engine on PostgreSQL and MySQL/MariaDB: the operations of ops/ in interactive transactions (network-tx.ts), reads as single statements.
 * Every mutation's transaction begins with the upsert of its op record, whose row lock makes a twin wait (engine.ts), then reads the
 * session's header with a shared lock, so that nothing commits after a take-over.
 */
import { randomBytes } from 'node:crypto';
import { EINTR, EINVAL, EIO, ENOENT, ENOSPC, ENOTDIR, EROFS, Errno, ESTALE } from '@steadfs/fuse/errno';
import { type Attr, emptyDirectory, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint, isTrash, ROOT, TRASH } from '../../format/ino.ts';
import { decodeLocks } from '../../format/locks.ts';
import { CHUNK_SIZE, SLICE_BYTES } from '../../format/slice.ts';
import {
  changedImmutable,
  decryptSecrets,
  encryptSecrets,
  type Format,
  MAX_META_VERSION,
  parseFormat,
  serialiseFormat,
} from '../../format/volume.ts';
import { now, unixNow } from '../clock.ts';
import { pagedDirStream } from '../dir-pages.ts';
import type {
  Cred,
  Dentry,
  DirEntry,
  EngineDriver,
  EngineOptions,
  Entry,
  MetaEngine,
  Name,
  Op,
  PosixLock,
  Quota,
  SessionDetail,
  SessionIdentity,
  SessionInfo,
  WriteResult,
} from '../engine.ts';
import { SESSION_LOST } from '../engine.ts';
import { NAME_MAX } from '../ops/access.ts';
import { CHUNKS_PER_STEP, setattr } from '../ops/attrs.ts';
import { logChange } from '../ops/changelog.ts';
import { noQuotas, treeUsage } from '../ops/quota.ts';
import { attrCodec, type Codec, writeCodec } from '../ops/record.ts';
import { countChildren, dropSustained } from '../ops/sessions.ts';
import { type Body, runAsync, type Tx, type TxDriver, Usage, type Volume } from '../ops/tx.ts';
import { Cache, COMPLETE_LIMIT } from '../redis/cache.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import { txOperations } from '../tx-engine.ts';
import { addDelta, type Delta, decodeDeltas, encodeDeltas } from '../usage.ts';
import { failureOf, type SqlConnection, type SqlPool, type SqlRow } from './connection.ts';
import { openPlans } from './mysql-plan.ts';
import { openMysql } from './mysql-pool.ts';
import {
  EntryChanged,
  NetworkTx,
  type NetworkTxHost,
  NODE_COLUMNS,
  nodeFromRow,
  toBytes,
  toIno,
  toNumber,
} from './network-tx.ts';
import { type Clause, OptimisticTx, recordCount, type Statement, Unsupported } from './optimistic-tx.ts';
import { openPostgres } from './postgres-pool.ts';
import { channelOf, openPush, type Push } from './push.ts';
import { ownPrefix, ownStatements, schemaStatements, TABLES } from './schema.ts';
import { SeenRows } from './seen-rows.ts';
import { parseMysqlUrl, parsePostgresUrl } from './url.ts';

/** A session counts as alive for this long after its last heartbeat, seconds. */
const EXPIRE_AHEAD = 600;
/** Changes of usage that an op record holds at most before they are written to the volume's tables. */
const DELTAS_PER_RECORD = 64;
const FLUSH_MS = 1000;
/** Attributes and names kept by pushes at most, each. */
const CACHE_MAX = 100_000;
const INODE_BATCH = 1024;
const SLICE_BATCH = 4096;
/** Numbers that are left when transactions begin: more than run at once. */
const RESERVED = 256;
/** Conflicts with other transactions before the operation gives up. */
const ATTEMPTS_MAX = 50;
/** Chunks below which a truncation is one transaction, as bytes. */
const SHORT_TRUNCATION = CHUNKS_PER_STEP * CHUNK_SIZE;
const NODE_COLUMN_COUNT = NODE_COLUMNS.split(', ').length;
/** An outage is reported after this long, milliseconds. */
const TROUBLE_AFTER = 3000;

const sleep = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));

interface BeforePlan {
  mark: number;
  attrs: ReadonlyMap<Ino, Attr>;
}

export async function openNetworkEngine(pool: SqlPool, prefix: string, options: EngineOptions): Promise<MetaEngine> {
  const { kind } = pool;
  const own = ownPrefix(prefix);
  const volume: Volume = {
    format: {
      Name: '',
      UUID: '',
      Storage: '',
      Tiers: null,
      Bucket: '',
      BlockSize: 4096,
      TrashDays: 0,
      EnableACL: false,
    },
    sid: 0,
    skipDirMtime: options.skipDirMtime,
    atimeMode: options.atimeMode,
    quotas: noQuotas(),
  };
  let identity: SessionIdentity | undefined;
  let lost: string | undefined;
  let settingText = '';
  let flushTimer: NodeJS.Timeout | undefined;
  let troubleSince = 0;
  let troubled = false;
  const inodes = batches('nextInode', INODE_BATCH);
  const slices = batches('nextChunk', SLICE_BATCH);
  const seen = new SeenRows();
  const plans = kind === 'mysql' ? openPlans(pool, own) : undefined;
  const unlocked = new Map<Ino, Set<() => void>>();

  // ── what others change ────────────────────────────────────────────────────────────────────────────────────────────

  /** What announcements keep right; empty where there are none. */
  const cache = new Cache(options.cachesByPush === true && pool.listen !== undefined ? CACHE_MAX : 0);
  let push: Push | undefined;

  const nameKey = (name: Name): string => Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');
  const host: NetworkTxHost = {
    kind,
    prefix,
    volume,
    nextInode: () => inodes.take(1),
    seen,
    remembered: (parent, name) => cache.name(parent, nameKey(name)),
  };

  /** A command without a session announces too; before the volume is known there is nobody who could listen. */
  function startPush(): void {
    if (pool.listen === undefined || options.readOnly || volume.format.UUID === '') return;
    push ??= openPush(
      {
        pool,
        async sessions() {
          const rows = await pool.use(c =>
            c.all(
              `SELECT c.value, s.sid, s.info FROM ${prefix}counter c LEFT JOIN ${prefix}session2 s ON TRUE WHERE c.name = 'nextSession'`,
              [],
            ),
          );
          const recorded = rows.filter(r => r[1] !== null);
          return {
            allPush: rows.length > 0 && recorded.every(r => parseSessionInfo(toBytes(r[2])).pushes === true),
            others: recorded.some(r => toNumber(r[1]) !== volume.sid),
            ours: recorded.some(r => toNumber(r[1]) === volume.sid),
            made: toNumber(rows[0]?.[0] ?? 0),
          };
        },
        changed(ino, what) {
          if (ino === undefined) cache.clear();
          else if (what === 'e') cache.changed(ino);
          else if (what === 'a') cache.dropAttr(ino);
          if (ino !== undefined) options.events.changed(ino, what === 'e' ? 'entries' : what === 'a' ? 'attr' : 'data');
        },
        trouble: e => options.events.trouble(`announcing changes: ${e instanceof Error ? e.message : String(e)}`),
      },
      channelOf(volume.format.UUID, prefix),
    );
  }

  const trusted = (): boolean => options.cachesByPush === true && push?.trusted() === true;

  /** Rows of a transaction that has ended, well or with an unknown outcome. */
  function announce(tx: NetworkTx): void {
    if (tx.attrs.size + tx.dirs.size + tx.files.size === 0) return;
    startPush();
    if (push === undefined) return;
    for (const ino of tx.attrs) push.touched('a', ino);
    for (const ino of tx.dirs) push.touched('e', ino);
    for (const ino of tx.files) push.touched('d', ino);
  }

  /** What announcePlan needs to know of the time before a plan is sent: the present, and rows of which the plan knows only how they change. */
  function beforePlan(tx: OptimisticTx): BeforePlan | undefined {
    if (push === undefined || !trusted()) return undefined;
    const attrs = new Map<Ino, Attr>();
    for (const { ino, attr } of tx.outcome().nodes) {
      const before = attr === undefined ? cache.attr(ino) : undefined;
      if (before !== undefined) attrs.set(ino, before);
    }
    return { mark: push.mark(), attrs };
  }

  /** What a plan did, or may have done; with `sent` what it wrote is remembered. */
  function announcePlan(tx: OptimisticTx, sent: BeforePlan | undefined): void {
    if (push === undefined) return;
    const { nodes, edges, file } = tx.outcome();
    const mark = sent?.mark;
    const keep = sent !== undefined && trusted();
    const known: [Ino, Attr][] = [];
    const made: Ino[] = [];
    for (const n of keep ? nodes : []) {
      const { ino, attr, links, touch } = n;
      if (!push.storable(ino, sent?.mark ?? 0)) continue;
      // Nothing is in a directory that was made just now.
      if (n.made && attr?.type === FileType.directory) made.push(ino);
      // One that was fetched since the plan was sent may show what the plan did already.
      const before = cache.attr(ino) === sent?.attrs.get(ino) ? sent?.attrs.get(ino) : undefined;
      // Links in the trash are shown otherwise than stored: those rows are fetched.
      if (attr !== undefined && (attr.type === FileType.directory || (attr.parent !== 0 && !isTrash(attr.parent))))
        known.push([ino, { ...attr }]);
      else if (attr === undefined && before !== undefined && (links !== 0 || touch)) {
        const { sec, nsec } = tx.now;
        const times = touch ? { mtime: sec, mtimensec: nsec, ctime: sec, ctimensec: nsec } : {};
        known.push([ino, { ...before, nlink: before.nlink + links, ...times }]);
      }
    }
    const entries = mark !== undefined && keep ? edges.filter(e => push?.storable(e.parent, mark)) : [];
    for (const { ino } of nodes) push.touched('a', ino);
    for (const dir of new Set(edges.map(e => e.parent))) {
      // Our own change of a directory that is known leaves the rest of it known.
      if (entries.some(e => e.parent === dir)) push.touchedByUs('e', dir);
      else push.touched('e', dir);
    }
    if (file !== undefined) push.touched('d', file);
    for (const [ino, attr] of known) cache.setAttr(ino, attr);
    for (const ino of made) cache.setList(ino, new Map());
    for (const { parent, name, entry } of entries) cache.setName(parent, nameKey(name), entry ?? null);
  }

  // ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────

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
    if (lost === undefined) options.events.sessionLost(reason);
    lost = reason;
    throw EIO.because(`session ${volume.sid} lost: ${reason}`, SESSION_LOST);
  }

  async function checkSession(tx: NetworkTx, c: SqlConnection): Promise<void> {
    if (lost !== undefined) lose(lost);
    const share = kind === 'postgres' ? 'FOR SHARE OF s' : 'LOCK IN SHARE MODE';
    const rows = await c.all(
      `SELECT s.incarnation, s.epoch, j.expire FROM ${own}session s JOIN ${prefix}session2 j ON j.sid = s.sid WHERE s.sid = ? ${share}`,
      [volume.sid],
    );
    const row = rows[0];
    if (row === undefined) lose('its record is gone');
    else if (row[0] !== identity?.incarnation || toNumber(row[1]) !== identity?.epoch) lose('it was taken over');
    else if (toNumber(row[2]) < tx.now.sec) lose('it has expired');
  }

  /** Op records as this process wrote them last: seq and what stands in `acct`, also as what it means. */
  const records = new Map<string, { seq: number; acct: Buffer | null; deltas: readonly Delta[] }>();
  const recordKey = (op: Op): string => `${op.kind}/${op.slot}`;
  const stored = (deltas: readonly Delta[]): Buffer | null => (deltas.length > 0 ? encodeDeltas(deltas) : null);

  /** The steps that end every plan: op record and session. `fresh`: what takes the place of `acct` where a flush has just counted `old`. */
  function lastClauses(
    op: Op,
    old: Buffer | null,
    acct: Buffer | null,
    fresh: Buffer | null,
    result: Uint8Array,
    counted: boolean,
  ): Clause[] {
    const session = `FROM ${own}session s JOIN ${prefix}session2 j ON j.sid = s.sid WHERE s.sid = ? AND s.incarnation = ? AND s.epoch = ? AND j.expire >= ?`;
    // The number of records after a slice commit is known to the database only: it takes the place of the first 8 bytes.
    const value = !counted
      ? '?'
      : kind === 'postgres'
        ? `float8send((SELECT value FROM appended)::float8 / ${SLICE_BYTES}) || ?`
        : `concat(x'ff', unhex(lpad(hex(appended DIV ${SLICE_BYTES}), 14, '0')), ?)`;
    const bytes = counted ? result.subarray(8) : result;
    const key = [volume.sid, op.kind, op.slot];
    const record: Clause[] =
      kind === 'postgres'
        ? [
            {
              kind: 'none',
              sql: `FROM ${own}op WHERE sid = ? AND kind = ? AND slot = ? AND (seq >= ? OR (acct IS NOT NULL AND acct IS DISTINCT FROM ?))`,
              params: [...key, op.seq, old],
            },
            {
              kind: 'write',
              sql: `INSERT INTO ${own}op AS o (sid, kind, slot, seq, result, acct) VALUES (?, ?, ?, ?, ${value}, ?) ON CONFLICT (sid, kind, slot) DO UPDATE SET seq = EXCLUDED.seq, result = EXCLUDED.result, acct = CASE WHEN o.acct IS NULL THEN ? ELSE EXCLUDED.acct END WHERE o.seq < EXCLUDED.seq AND (o.acct IS NULL OR o.acct = ?)`,
              params: [...key, op.seq, bytes, acct, fresh, old],
              expect: true,
              answer: { name: 'record', value: 'acct' },
            },
          ]
        : [
            {
              kind: 'write',
              sql: `UPDATE ${own}op SET seq = ?, result = ${value}, acct = ? WHERE sid = ? AND kind = ? AND slot = ? AND seq < ? AND acct <=> ?`,
              params: [op.seq, bytes, acct, ...key, op.seq, old],
              expect: true,
            },
          ];
    return [
      ...record,
      {
        kind: 'one',
        sql: `${session} ${kind === 'postgres' ? 'FOR SHARE OF s' : 'LOCK IN SHARE MODE'}`,
        params: [volume.sid, identity?.incarnation ?? '', identity?.epoch ?? 0, now().sec],
      },
    ];
  }

  /** The operation in one round trip; without `value` when that is not possible, or what it was planned on did not hold. */
  async function mutateAtOnce<T>(
    op: Op,
    codec: Codec<T>,
    body: (tx: Tx) => Body<T>,
  ): Promise<{ value: T } | { unsure: OptimisticTx } | undefined> {
    const record = records.get(recordKey(op));
    if (lost !== undefined || identity === undefined || plans?.possible === false) return undefined;
    // Whether a slot has a record is known once one was written; MySQL's plans only change it.
    if (record === undefined ? kind === 'mysql' || op.seq > 1 : record.seq >= op.seq) return undefined;
    const tx = new OptimisticTx(host, seen, now(), persist);
    const old = record?.acct ?? null;
    const counts = codec === (writeCodec as Codec<unknown>);
    let value: T;
    let deltas: Delta[];
    let acct: Buffer | null;
    const ours: Delta[] = [];
    let statement: Statement | undefined;
    let clauses: Clause[] = [];
    try {
      value = await runAsync(body(tx));
      deltas = record?.deltas.map(d => ({ ...d })) ?? [];
      for (const d of tx.deltas) {
        addDelta(deltas, d);
        addDelta(ours, d);
      }
      if (deltas.length > DELTAS_PER_RECORD) return undefined;
      acct = stored(deltas);
      const last = lastClauses(op, old, acct, stored(ours), codec.encode(value), counts && tx.appendsChunk);
      if (kind === 'postgres') statement = tx.statement(last);
      else clauses = tx.sequence(last);
    } catch (e) {
      // A check may have failed on a stale row: only the database's own rows decide.
      tx.forget();
      if (e instanceof Errno || e instanceof Unsupported) return undefined;
      throw e;
    }
    const sent = beforePlan(tx);
    const check = (): void => {
      if (op.over) throw EINTR;
    };
    try {
      let row: SqlRow | undefined;
      if (statement === undefined) {
        const answered = await plans?.run(clauses, check);
        row = [1, answered?.[0]];
      } else {
        const { sql, params, first } = statement;
        [row] = await pool.use(c => {
          check();
          return first.length === 0 ? c.all(sql, params) : c.script!([...first, { sql, params }]);
        });
      }
      if (toNumber(row?.[0]) !== 1) {
        // Planned on a row that has changed; nothing has happened.
        tx.forget();
        records.delete(recordKey(op));
        return undefined;
      }
      // A flush that came before has counted what the record held.
      const kept = kind === 'postgres' ? (row?.at(-1) as Buffer | null) : acct;
      const flushed = kept === null ? acct !== null : acct === null || !kept.equals(acct);
      records.set(recordKey(op), { seq: op.seq, acct: kept, deltas: flushed ? ours : deltas });
      tx.remember();
      announcePlan(tx, sent);
      for (const d of tx.deltas) count(d);
      if (acct !== null) scheduleFlush();
      if (counts) (value as WriteResult).records = recordCount(row?.[1]);
      return { value };
    } catch (e) {
      // Whatever it was (a condition, a conflict, the connection): the record tells the interactive way what happened.
      tx.forget();
      announcePlan(tx, undefined);
      records.delete(recordKey(op));
      return failureOf(kind, e) === 'lost' ? { unsure: tx } : undefined;
    }
  }

  const driver: TxDriver = {
    async mutate<T>(op: Op, codec: Codec<T>, body: (tx: Tx) => Body<T>): Promise<T> {
      if (options.readOnly) throw EROFS;
      if (volume.sid === 0) return await driver.transact(body);
      if (op.over) throw EINTR;
      const quick = await mutateAtOnce(op, codec, body);
      if (quick !== undefined && 'value' in quick) return quick.value;
      try {
        return await mutateInteractively(op, codec, body, quick !== undefined);
      } finally {
        // As in transaction(): the plan may have been committed after its announcement.
        if (quick !== undefined) announcePlan(quick.unsure, undefined);
      }
    },

    transact: body =>
      options.readOnly
        ? Promise.reject(EROFS)
        : transaction(async (tx, c) => {
            const value = await runAsync(body(tx));
            for (const d of tx.deltas) count(d);
            await applyUsage(tx, c, tx.deltas);
            return value;
          }),

    read: body => persist(c => runAsync(body(new NetworkTx(host, c, now())))),
  };

  /** `sent`: an earlier attempt may have been carried out, or may be yet. */
  async function mutateInteractively<T>(op: Op, codec: Codec<T>, body: (tx: Tx) => Body<T>, sent: boolean): Promise<T> {
    let tried = sent;
    const over = (): boolean => op.over === true && !tried;
    if (!op.over) await inodes.reserve();
    const work = async (tx: NetworkTx, c: SqlConnection) => {
      if (over()) throw EINTR;
      const key = [volume.sid, op.kind, op.slot];
      const insert = `INSERT INTO ${own}op (sid, kind, slot, seq) VALUES (?, ?, ?, -1)`;
      let row: SqlRow | undefined;
      if (kind === 'postgres') {
        [row] = await c.all(
          `${insert} ON CONFLICT (sid, kind, slot) DO UPDATE SET seq = ${own}op.seq RETURNING seq, result, acct`,
          key,
        );
      } else {
        await c.run(`${insert} ON DUPLICATE KEY UPDATE seq = seq`, key);
        [row] = await c.all(
          `SELECT seq, result, acct FROM ${own}op WHERE sid = ? AND kind = ? AND slot = ? FOR UPDATE`,
          key,
        );
      }
      if (row === undefined) throw EIO.because('an op record cannot be made');
      await checkSession(tx, c);
      const seq = toNumber(row[0]);
      if (seq > op.seq) throw EIO.because(`operation ${op.kind}/${op.slot}/${op.seq} comes after ${seq}`);
      if (seq === op.seq) return { value: codec.decode(toBytes(row[1])), changes: [], acct: undefined, deltas: [] };
      // Nobody waits for it any more: a record without effect keeps what was sent before from having one.
      if (op.over) {
        await c.run(`UPDATE ${own}op SET seq = ?, result = NULL WHERE sid = ? AND kind = ? AND slot = ?`, [
          op.seq,
          ...key,
        ]);
        return undefined;
      }
      tried = true;
      const value = await runAsync(body(tx));
      let deltas: Delta[] = row[2] === null ? [] : decodeDeltas(toBytes(row[2]));
      for (const d of tx.deltas) addDelta(deltas, d);
      if (deltas.length > DELTAS_PER_RECORD) {
        await applyUsage(tx, c, deltas);
        deltas = [];
      }
      const acct = stored(deltas);
      await c.run(`UPDATE ${own}op SET seq = ?, result = ?, acct = ? WHERE sid = ? AND kind = ? AND slot = ?`, [
        op.seq,
        codec.encode(value),
        acct,
        ...key,
      ]);
      return { value, changes: tx.deltas, acct, deltas };
    };
    const ended = await transaction(work, over);
    if (ended === undefined) throw EINTR;
    for (const d of ended.changes) count(d);
    if (ended.acct !== undefined) records.set(recordKey(op), { seq: op.seq, acct: ended.acct, deltas: ended.deltas });
    if (ended.acct) scheduleFlush();
    return ended.value;
  }

  // ── usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Keeps the numbers in memory, by which limits are checked. */
  function count(d: Delta): void {
    const q = volume.quotas;
    if (d.kind === Usage.volume) {
      q.usedSpace += d.space;
      q.usedInodes += d.inodes;
      return;
    }
    const map =
      d.kind === Usage.dirQuota
        ? q.dirs
        : d.kind === Usage.user
          ? q.users
          : d.kind === Usage.group
            ? q.groups
            : undefined;
    const quota = map?.get(d.key);
    if (quota === undefined) return;
    quota.usedSpace += d.space;
    quota.usedInodes += d.inodes;
  }

  /** Statistics of a directory: the row, and what op records of this session hold beside it, of one moment. */
  async function dirStat(ino: Ino): Promise<{ length: number; space: number; inodes: number }> {
    const row = `SELECT data_length, used_space, used_inodes, NULL FROM ${prefix}dir_stats WHERE inode = ?`;
    const pending = `SELECT 0, 0, 0, acct FROM ${own}op WHERE sid = ? AND acct IS NOT NULL`;
    const stat = await persist(async c => {
      const rows =
        volume.sid === 0
          ? await c.all(row, [inoToBigint(ino)])
          : await c.all(`${row} UNION ALL ${pending}`, [inoToBigint(ino), volume.sid]);
      if (!rows.some(r => r[3] === null)) return undefined;
      const sum = { length: 0, space: 0, inodes: 0 };
      for (const r of rows) {
        const deltas =
          r[3] === null
            ? [{ length: toNumber(r[0]), space: toNumber(r[1]), inodes: toNumber(r[2]) }]
            : decodeDeltas(toBytes(r[3])).filter(d => d.kind === Usage.dirStat && d.key === ino);
        for (const d of deltas) {
          sum.length += d.length;
          sum.space += d.space;
          sum.inodes += d.inodes;
        }
      }
      return sum;
    });
    if (stat !== undefined && stat.length >= 0 && stat.space >= 0 && stat.inodes >= 0) return stat;
    return await driver.read(function* (tx) {
      if ((yield* tx.node(ino)) === undefined) throw ENOENT;
      return yield* countChildren(tx, ino);
    });
  }

  /** What a directory's row would say: its entries without what op records of any session hold beside them, of one moment (so one statement). */
  async function countDir(c: SqlConnection, dir: Ino): Promise<{ length: number; space: number; inodes: number }> {
    const blocks = kind === 'postgres' ? '(n.length + 4095) / 4096' : '(n.length + 4095) DIV 4096';
    const file = `n.type = ${FileType.file}`;
    const sum = { length: 0, space: 0, inodes: 0 };
    for (const r of await c.all(
      `SELECT sum(CASE WHEN ${file} THEN n.length ELSE 0 END), sum(CASE WHEN ${file} AND n.length > 0 THEN ${blocks} ELSE 1 END) * 4096, count(*), NULL FROM ${prefix}edge e JOIN ${prefix}node n ON n.inode = e.inode WHERE e.parent = ? UNION ALL SELECT 0, 0, 0, acct FROM ${own}op WHERE acct IS NOT NULL`,
      [inoToBigint(dir)],
    )) {
      if (r[3] === null) {
        sum.length += toNumber(r[0]);
        sum.space += toNumber(r[1]);
        sum.inodes += toNumber(r[2]);
        continue;
      }
      for (const p of decodeDeltas(toBytes(r[3]))) {
        if (p.kind !== Usage.dirStat || p.key !== dir) continue;
        sum.length -= p.length;
        sum.space -= p.space;
        sum.inodes -= p.inodes;
      }
    }
    return sum;
  }

  /** Rows in a fixed order, so that two clients never wait for each other. */
  async function applyUsage(tx: NetworkTx, c: SqlConnection, list: readonly Delta[]): Promise<void> {
    for (const d of [...list].sort((a, b) => a.kind - b.kind || a.key - b.key)) {
      if (d.kind === Usage.volume) {
        if (d.inodes !== 0) await runAsync(step(tx.addCounter('totalInodes', d.inodes)));
        if (d.space !== 0) await runAsync(step(tx.addCounter('usedSpace', d.space)));
      } else if (d.kind === Usage.dirStat) {
        const sql = `UPDATE ${prefix}dir_stats SET data_length = data_length + ?, used_space = used_space + ?, used_inodes = used_inodes + ? WHERE inode = ?`;
        if ((await c.run(sql, [d.length, d.space, d.inodes, inoToBigint(d.key)])) > 0) continue;
        // No row: counted anew, with everything that has happened. A directory that is gone needs none.
        const attr = await runAsync(step(tx.node(d.key)));
        if (attr?.type !== FileType.directory) continue;
        const ino = inoToBigint(d.key);
        const insert = `${prefix}dir_stats (inode, data_length, used_space, used_inodes) VALUES (?, 0, 0, 0)`;
        const made = await c.run(
          kind === 'postgres' ? `INSERT INTO ${insert} ON CONFLICT (inode) DO NOTHING` : `INSERT IGNORE INTO ${insert}`,
          [ino],
        );
        if (made === 0) await c.run(sql, [d.length, d.space, d.inodes, ino]);
        else {
          const s = await countDir(c, d.key);
          const set = `UPDATE ${prefix}dir_stats SET data_length = ?, used_space = ?, used_inodes = ? WHERE inode = ?`;
          await c.run(set, [s.length, s.space, s.inodes, ino]);
        }
      } else if (d.kind === Usage.dirQuota) {
        await c.run(
          `UPDATE ${prefix}dir_quota SET used_space = used_space + ?, used_inodes = used_inodes + ? WHERE inode = ?`,
          [d.space, d.inodes, inoToBigint(d.key)],
        );
      } else {
        const qtype = d.kind === Usage.user ? 1 : 2;
        const update = `UPDATE ${prefix}user_group_quota SET used_space = used_space + ?, used_inodes = used_inodes + ? WHERE qtype = ? AND qkey = ?`;
        if ((await c.run(update, [d.space, d.inodes, qtype, d.key])) > 0) continue;
        await c.run(
          `INSERT INTO ${prefix}user_group_quota (qtype, qkey, max_space, max_inodes, used_space, used_inodes) VALUES (?, ?, -1, -1, ?, ?)`,
          [qtype, d.key, d.space, d.inodes],
        );
      }
    }
  }

  /** Moves what the op records of a session hold into the volume's tables. */
  async function flushOf(sid: number, tx: NetworkTx, c: SqlConnection): Promise<void> {
    // Exactly the rows whose deltas are counted are cleared: others may get some meanwhile.
    let rows: SqlRow[];
    if (kind === 'postgres') {
      const old = `SELECT kind, slot, acct FROM ${own}op WHERE sid = ? AND acct IS NOT NULL ORDER BY kind, slot FOR UPDATE`;
      rows = await c.all(
        `UPDATE ${own}op o SET acct = NULL FROM (${old}) old WHERE o.sid = ? AND o.kind = old.kind AND o.slot = old.slot RETURNING old.acct`,
        [sid, sid],
      );
    } else {
      rows = await c.all(
        `SELECT acct, kind, slot FROM ${own}op WHERE sid = ? AND acct IS NOT NULL ORDER BY kind, slot FOR UPDATE`,
        [sid],
      );
      for (const row of rows) {
        await c.run(`UPDATE ${own}op SET acct = NULL WHERE sid = ? AND kind = ? AND slot = ?`, [
          sid,
          toNumber(row[1]),
          toNumber(row[2]),
        ]);
      }
    }
    const sum: Delta[] = [];
    for (const row of rows) for (const d of decodeDeltas(toBytes(row[0]))) addDelta(sum, d);
    if (sum.length > 0) await applyUsage(tx, c, sum);
  }

  async function flush(): Promise<void> {
    clearTimeout(flushTimer);
    flushTimer = undefined;
    const { sid } = volume;
    if (sid === 0 || options.readOnly) return;
    await transaction((tx, c) => flushOf(sid, tx, c));
    // One that was written since does not match any more, which the statement that comes next finds out.
    for (const record of records.values()) Object.assign(record, { acct: null, deltas: [] });
  }

  function scheduleFlush(): void {
    if (flushTimer !== undefined) return;
    flushTimer = setTimeout(() => {
      flushTimer = undefined;
      flush().catch(e => options.events.trouble(`flush of usage: ${e instanceof Error ? e.message : String(e)}`));
    }, FLUSH_MS);
    flushTimer.unref();
  }

  async function loadQuotas(): Promise<void> {
    const columns = 'max_space, max_inodes, used_space, used_inodes';
    const quota = (r: SqlRow, at: number): Quota => ({
      maxSpace: toNumber(r[at]),
      maxInodes: toNumber(r[at + 1]),
      usedSpace: toNumber(r[at + 2]),
      usedInodes: toNumber(r[at + 3]),
    });
    const q = noQuotas();
    await persist(async c => {
      const counters = new Map(
        (await c.all(`SELECT name, value FROM ${prefix}counter`, [])).map(r => [String(r[0]), toNumber(r[1])]),
      );
      q.usedSpace = counters.get('usedSpace') ?? 0;
      q.usedInodes = counters.get('totalInodes') ?? 0;
      if (volume.format.DirStats)
        for (const r of await c.all(`SELECT inode, ${columns} FROM ${prefix}dir_quota`, []))
          q.dirs.set(toIno(r[0]), quota(r, 1));
      if (volume.format.UserGroupQuota) {
        for (const r of await c.all(`SELECT qtype, qkey, ${columns} FROM ${prefix}user_group_quota`, []))
          (toNumber(r[0]) === 1 ? q.users : q.groups).set(toNumber(r[1]), quota(r, 2));
      }
    });
    Object.assign(volume.quotas, q);
  }

  // ── volume ────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function hasTable(c: SqlConnection, name: string): Promise<boolean> {
    const where = kind === 'postgres' ? 'table_schema = current_schema()' : 'table_schema = database()';
    return (
      (await c.all(`SELECT 1 FROM information_schema.tables WHERE ${where} AND table_name = ?`, [name])).length > 0
    );
  }

  function takeSetting(text: string): Format {
    try {
      const stored = parseFormat(text);
      if ((stored.MetaVersion ?? 0) > MAX_META_VERSION)
        throw new Error(
          `metadata version ${stored.MetaVersion} is newer than ${MAX_META_VERSION}, which this version knows`,
        );
      volume.format = decryptSecrets(stored);
    } catch (e) {
      throw EINVAL.because(`the volume's setting record in ${pool.display}: ${(e as Error).message}`, e);
    }
    settingText = text;
    return { ...volume.format };
  }

  async function readSetting(c: SqlConnection): Promise<string | undefined> {
    if (!(await hasTable(c, `${prefix}setting`))) return undefined;
    const rows = await c.all(`SELECT value FROM ${prefix}setting WHERE name = 'format'`, []);
    return rows[0] === undefined ? undefined : String(rows[0][0]);
  }

  /** The first contact: a server that cannot be reached is an error at once, not an outage to sit out. */
  async function load(): Promise<Format | undefined> {
    let text: string | undefined;
    try {
      text = await pool.use(readSetting);
    } catch (e) {
      throw EIO.because(`${pool.display} cannot be used: ${e instanceof Error ? e.message : String(e)}`, e);
    }
    return text === undefined ? undefined : takeSetting(text);
  }

  async function createTables(): Promise<void> {
    await persist(async c => {
      for (const sql of [...schemaStatements(kind, prefix), ...ownStatements(kind, prefix)]) await c.run(sql, []);
    });
  }

  async function init(format: Format, force: boolean): Promise<void> {
    await createTables();
    await transaction(async (tx, c) => {
      const text = await readSetting(c);
      let wanted = format;
      if (text !== undefined) {
        const old = decryptSecrets(parseFormat(text));
        const changed = changedImmutable(old, format);
        if (changed !== undefined && !force) throw EINVAL.because(`the volume's ${changed} cannot be changed`);
        wanted = { ...format, UUID: old.UUID };
        if (!old.DirStats && wanted.DirStats) await c.run(`DELETE FROM ${prefix}dir_stats`, []);
        if (!old.UserGroupQuota && wanted.UserGroupQuota) await c.run(`DELETE FROM ${prefix}user_group_quota`, []);
      }
      const { sec, nsec } = tx.now;
      const attr = (mode: number): Attr => emptyDirectory(mode, ROOT, sec, nsec);
      if (wanted.TrashDays > 0 && (await runAsync(step(tx.node(TRASH)))) === undefined)
        await runAsync(step(tx.insertNode(TRASH, attr(0o555))));
      const stored = serialiseFormat(encryptSecrets(wanted));
      if (text === undefined) {
        await c.run(`INSERT INTO ${prefix}setting (name, value) VALUES ('format', ?)`, [stored]);
        await runAsync(step(tx.insertNode(ROOT, attr(0o777))));
        const counters = {
          nextInode: 2,
          nextChunk: 1,
          nextSession: 0,
          usedSpace: 0,
          totalInodes: 0,
          nextCleanupSlices: 0,
        };
        for (const [name, value] of Object.entries(counters))
          await c.run(`INSERT INTO ${prefix}counter (name, value) VALUES (?, ?)`, [name, value]);
      } else await c.run(`UPDATE ${prefix}setting SET value = ? WHERE name = 'format'`, [stored]);
    });
    await load();
  }

  async function reset(): Promise<void> {
    await persist(async c => {
      for (const name of [...TABLES.map(t => prefix + t.name), `${prefix}session`, `${own}session`, `${own}op`])
        await c.run(`DROP TABLE IF EXISTS ${name}`, []);
      await plans?.drop(c);
    });
  }

  // ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function begin(id: SessionIdentity): SessionIdentity {
    startPush();
    identity = id;
    volume.sid = id.sid;
    lost = undefined;
    records.clear();
    seen.clear();
    if (options.cachesByPush === true) push?.start();
    return id;
  }

  const pushes = kind === 'postgres';

  async function newSession(info: SessionInfo): Promise<SessionIdentity> {
    if (options.readOnly) return { sid: 0, incarnation: '', epoch: 0 };
    await createTables();
    const incarnation = randomBytes(16).toString('hex');
    const sid = await transaction(async (tx, c) => {
      let id: number;
      do id = await runAsync(step(tx.addCounter('nextSession', 1)));
      while ((await c.all(`SELECT 1 FROM ${prefix}session2 WHERE sid = ?`, [id])).length > 0);
      // Rows of an older session with this number (the counter came back by a restore) must not be taken for ours.
      for (const table of ['op', 'session']) await c.run(`DELETE FROM ${own}${table} WHERE sid = ?`, [id]);
      const expire = tx.now.sec + EXPIRE_AHEAD;
      await c.run(`INSERT INTO ${prefix}session2 (sid, expire, info) VALUES (?, ?, ?)`, [
        id,
        expire,
        serialiseSessionInfo({ ...info, pushes }),
      ]);
      await c.run(`INSERT INTO ${own}session (sid, incarnation, volume, epoch) VALUES (?, ?, ?, 1)`, [
        id,
        incarnation,
        volume.format.UUID,
      ]);
      if (volume.format.ChangeLog)
        await runAsync(logChange(tx, 'NEWSESSION', () => [id, expire, serialiseSessionInfo({ ...info, pushes })]));
      return id;
    });
    await loadQuotas();
    return begin({ sid, incarnation, epoch: 1 });
  }

  async function adoptSession(old: SessionIdentity, info: SessionInfo): Promise<SessionIdentity> {
    if (options.readOnly || old.sid === 0) return old;
    const epoch = await transaction(async (tx, c) => {
      const rows = (await hasTable(c, `${own}session`))
        ? await c.all(`SELECT incarnation, volume, epoch FROM ${own}session WHERE sid = ? FOR UPDATE`, [old.sid])
        : [];
      const row = rows[0];
      if (row === undefined) throw ESTALE.because(`session ${old.sid} has no record`);
      if (row[0] !== old.incarnation || row[1] !== volume.format.UUID)
        throw ESTALE.because(`session ${old.sid} belongs to another mount`);
      if (toNumber(row[2]) < old.epoch)
        throw ESTALE.because(`session ${old.sid} comes from an older state of the database`);
      const next = toNumber(row[2]) + 1;
      await c.run(`UPDATE ${own}session SET epoch = ? WHERE sid = ?`, [next, old.sid]);
      const changed = await c.run(`UPDATE ${prefix}session2 SET expire = ?, info = ? WHERE sid = ?`, [
        tx.now.sec + EXPIRE_AHEAD,
        serialiseSessionInfo({ ...info, pushes }),
        old.sid,
      ]);
      if (changed === 0) throw ESTALE.because(`session ${old.sid} was cleaned by another client`);
      return next;
    });
    await loadQuotas();
    const taken = begin({ ...old, epoch });
    // The process before may have died between a commit and its announcement.
    push?.everything();
    scheduleFlush();
    return taken;
  }

  async function heartbeat(): Promise<void> {
    if (volume.sid !== 0 && !options.readOnly && lost === undefined) {
      await transaction(async (tx, c) => {
        await checkSession(tx, c);
        await c.run(`UPDATE ${prefix}session2 SET expire = ? WHERE sid = ?`, [tx.now.sec + EXPIRE_AHEAD, volume.sid]);
      });
    }
    const text = await persist(readSetting);
    if (text === undefined) options.events.volumeLost('the volume is gone');
    else if (text !== settingText) {
      const stored = parseFormat(text);
      if (stored.UUID !== volume.format.UUID) options.events.volumeLost('the database holds another volume now');
      else if ((stored.MetaVersion ?? 0) > MAX_META_VERSION)
        options.events.volumeLost(`metadata version ${stored.MetaVersion}`);
      else options.events.formatChanged(takeSetting(text));
    }
    await loadQuotas();
  }

  async function cleanSession(sid: number): Promise<void> {
    await transaction(async (tx, c) => {
      for (const table of ['flock', 'plock']) await c.run(`DELETE FROM ${prefix}${table} WHERE sid = ?`, [sid]);
      await runAsync(dropSustained(tx, sid));
      await applyUsage(tx, c, tx.deltas);
      if (await hasTable(c, `${own}op`)) {
        await flushOf(sid, tx, c);
        for (const table of ['op', 'session']) await c.run(`DELETE FROM ${own}${table} WHERE sid = ?`, [sid]);
      }
      await c.run(`DELETE FROM ${prefix}session2 WHERE sid = ?`, [sid]);
    });
    if (sid !== volume.sid) push?.everything();
  }

  async function listSessions(detail: boolean): Promise<SessionDetail[]> {
    return await persist(async c => {
      const out: SessionDetail[] = [];
      if (!(await hasTable(c, `${prefix}session2`))) return out;
      for (const row of await c.all(`SELECT sid, expire, info FROM ${prefix}session2 ORDER BY sid`, [])) {
        const session: SessionDetail = {
          ...parseSessionInfo(toBytes(row[2])),
          sid: toNumber(row[0]),
          expire: toNumber(row[1]),
        };
        out.push(session);
        if (!detail) continue;
        const of = (columns: string, table: string): Promise<SqlRow[]> =>
          c.all(`SELECT ${columns} FROM ${prefix}${table} WHERE sid = ?`, [session.sid]);
        const owner = (v: unknown): bigint => BigInt.asUintN(64, BigInt(v as bigint | number | string));
        session.sustained = (await of('inode', 'sustained')).map(r => toIno(r[0]));
        session.flocks = (await of('inode, owner, ltype', 'flock')).map(r => ({
          ino: toIno(r[0]),
          owner: owner(r[1]),
          type: toNumber(r[2]) === 87 ? 'W' : 'R',
        }));
        session.plocks = (await of('inode, owner, records', 'plock')).map(r => ({
          ino: toIno(r[0]),
          owner: owner(r[1]),
          records: decodeLocks(toBytes(r[2])),
        }));
      }
      return out;
    });
  }

  async function staleSessions(limit: number): Promise<number[]> {
    return await persist(async c => {
      const sids = (
        await c.all(`SELECT sid FROM ${prefix}session2 WHERE expire < ? LIMIT ${Math.floor(limit)}`, [unixNow()])
      ).map(r => toNumber(r[0]));
      // Sessions of ours that another client cleaned leave their own rows, with usage that was never counted.
      if (await hasTable(c, `${own}session`)) {
        const rows = await c.all(
          `SELECT sid FROM ${own}session WHERE sid NOT IN (SELECT sid FROM ${prefix}session2) LIMIT ${Math.floor(limit)}`,
          [],
        );
        for (const r of rows) if (!sids.includes(toNumber(r[0]))) sids.push(toNumber(r[0]));
      }
      return sids.slice(0, limit);
    });
  }

  // ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

  const generic = txOperations(driver, volume);

  /** Attributes of `n` for readers, and how many of its links are in the trash (only looked for where there can be several). */
  const shownColumns = `${NODE_COLUMNS.split(', ')
    .map(c => `n.${c}`)
    .join(
      ', ',
    )}, CASE WHEN n.type <> ${FileType.directory} AND coalesce(n.parent, 0) = 0 THEN (SELECT count(*) FROM ${prefix}edge h WHERE h.inode = n.inode AND h.parent >= ${inoToBigint(TRASH)}) ELSE 0 END`;

  /** ops/access.ts present, on a row of {@link shownColumns} from `at`. */
  function shownFromRow(ino: Ino, row: SqlRow, at: number): Attr {
    const attr = nodeFromRow(row, at);
    seen.sawNode(ino, { ...attr });
    if (attr.type === FileType.directory || attr.nlink === 0) return attr;
    const trashed = isTrash(attr.parent) ? 1 : toNumber(row[at + NODE_COLUMN_COUNT]);
    attr.nlink = Math.max(0, attr.nlink - trashed);
    return attr;
  }

  /** One statement; the checks of the general way only when it finds nothing or permissions are checked here. */
  async function lookup(cred: Cred, parent: Ino, name: Name): Promise<Entry> {
    if (cred.checkPermission || name.length > NAME_MAX) return await generic.lookup(cred, parent, name);
    const text = nameKey(name);
    if (trusted()) {
      const known = cache.name(parent, text);
      if (known === null) throw ENOENT;
      const attr = known === undefined ? undefined : cache.attr(known.ino);
      if (known !== undefined && attr !== undefined) return { ino: known.ino, attr: { ...attr } };
    }
    const mark = push?.mark() ?? 0;
    /** What was fetched is remembered unless it changed meanwhile. */
    const keep = (ino: Ino): boolean => trusted() && push?.storable(ino, mark) === true;
    const sql = `SELECT p.type, e.inode, ${shownColumns} FROM ${prefix}node p LEFT JOIN ${prefix}edge e ON e.parent = p.inode AND e.name = ? LEFT JOIN ${prefix}node n ON n.inode = e.inode WHERE p.inode = ?`;
    return await persist(async c => {
      const row = (await c.all(sql, [name, inoToBigint(parent)]))[0];
      if (row === undefined) throw ENOENT;
      if (toNumber(row[0]) !== FileType.directory) throw ENOTDIR;
      const key = SeenRows.key(parent, name);
      // An entry without its inode counts as none (spec/meta-sql.md §5).
      if (row[1] === null || row[2] === null) {
        seen.sawEdge(key, undefined);
        if (keep(parent)) {
          cache.setName(parent, text, null);
          if (cache.wanted(parent)) void loadDir(parent);
        }
        throw ENOENT;
      }
      const ino = toIno(row[1]);
      const attr = shownFromRow(ino, row, 2);
      seen.sawEdge(key, { ino, type: attr.type });
      if (keep(parent)) cache.setName(parent, text, { ino, type: attr.type });
      if (keep(ino)) cache.setAttr(ino, { ...attr });
      return { ino, attr };
    });
  }

  /** All names of a directory that is often asked for names that it does not have. */
  async function loadDir(dir: Ino): Promise<void> {
    const mark = push?.mark() ?? 0;
    const sql = `SELECT name, inode, type FROM ${prefix}edge WHERE parent = ? LIMIT ${COMPLETE_LIMIT + 1}`;
    const rows = await pool.use(c => c.all(sql, [inoToBigint(dir)])).catch(() => undefined);
    if (rows === undefined || rows.length > COMPLETE_LIMIT || !trusted() || !push?.storable(dir, mark)) return;
    const names = new Map<string, Dentry | null>();
    for (const r of rows) names.set(nameKey(toBytes(r[0])), { ino: toIno(r[1]), type: toNumber(r[2]) as FileType });
    cache.setList(dir, names);
  }

  async function getattr(ino: Ino): Promise<Attr> {
    const known = trusted() ? cache.attr(ino) : undefined;
    if (known !== undefined) return { ...known };
    const mark = push?.mark() ?? 0;
    return await persist(async c => {
      const rows = await c.all(`SELECT ${shownColumns} FROM ${prefix}node n WHERE n.inode = ?`, [inoToBigint(ino)]);
      if (rows[0] === undefined) throw ENOENT;
      const attr = shownFromRow(ino, rows[0], 0);
      if (trusted() && push?.storable(ino, mark)) cache.setAttr(ino, { ...attr });
      return attr;
    });
  }

  const quotaTable = (k: 'dir' | 'user' | 'group'): string => (k === 'dir' ? 'dir_quota' : 'user_group_quota');
  const quotaWhere = (k: 'dir' | 'user' | 'group'): string =>
    k === 'dir' ? 'inode = ?' : `qtype = ${k === 'user' ? 1 : 2} AND qkey = ?`;

  return {
    ...generic,
    name: pool.display,
    load,
    init,
    reset,
    newSession,
    adoptSession,
    heartbeat,
    cleanSession,
    listSessions,
    staleSessions,
    flush,
    lookup,
    getattr,
    // A truncation needs preparation only when it covers very many chunks, which the row as last seen tells.
    setattr: (op, cred, ino, set) => {
      const known = seen.node(ino).value;
      const short = set.size === undefined || (known !== undefined && known.length - set.size < SHORT_TRUNCATION);
      return short
        ? driver.mutate(op, attrCodec, tx => setattr(tx, cred, ino, set))
        : generic.setattr(op, cred, ino, set);
    },
    dirStat,
    newSliceIds: count => slices.take(count),
    async close() {
      clearTimeout(flushTimer);
      await push?.close();
      await pool.close();
    },
    async closeSession() {
      const { sid } = volume;
      if (sid === 0) return;
      // A session that was taken over is not ours to end.
      const ours = await persist(c =>
        c.all(`SELECT 1 FROM ${own}session WHERE sid = ? AND incarnation = ? AND epoch = ?`, [
          sid,
          identity?.incarnation ?? '',
          identity?.epoch ?? 0,
        ]),
      );
      if (ours.length > 0) await cleanSession(sid);
      volume.sid = 0;
      identity = undefined;
    },
    // The server's own settings say when a commit is on its disk.
    async sync() {},
    async durable() {},
    dirStream: (ino, state) =>
      pagedDirStream(
        {
          page: (after, upto, limit) =>
            persist(async c => {
              const bound = upto === undefined ? '' : ' AND name <= ?';
              const sql = `SELECT name, inode, type FROM ${prefix}edge WHERE parent = ? AND name > ?${bound} ORDER BY name LIMIT ${Math.floor(limit)}`;
              const rows = await c.all(sql, [
                inoToBigint(ino),
                after ?? Buffer.alloc(0),
                ...(upto === undefined ? [] : [upto]),
              ]);
              return rows.map(r => ({
                name: toBytes(r[0]),
                ino: toIno(r[1]),
                type: toNumber(r[2]) as FileType,
                cookie: 0,
              }));
            }),
          attributes: (entries: DirEntry[]) =>
            persist(async c => {
              const attrs = new Map<Ino, Attr>();
              const columns = `n.inode, ${shownColumns}`;
              for (let at = 0; at < entries.length; at += 1000) {
                const part = entries.slice(at, at + 1000).map(e => inoToBigint(e.ino));
                const rows =
                  kind === 'postgres'
                    ? await c.all(`SELECT ${columns} FROM ${prefix}node n WHERE n.inode = ANY(?::bigint[])`, [
                        `{${part.join(',')}}`,
                      ])
                    : await c.all(
                        `SELECT ${columns} FROM ${prefix}node n WHERE n.inode IN (${part.map(() => '?').join(',')})`,
                        part,
                      );
                for (const r of rows) attrs.set(toIno(r[0]), shownFromRow(toIno(r[0]), r, 1));
              }
              for (const e of entries) {
                const attr = attrs.get(e.ino);
                // One attribute object each: a directory may have several entries of an inode.
                if (attr !== undefined) e.attr = { ...attr };
              }
            }),
        },
        state,
      ),

    // ── locks: wake-ups of this process at once, others by asking again ─────────────────────────────────────────────
    async flock(op, ino, owner, type) {
      await generic.flock(op, ino, owner, type);
      wake(ino);
    },
    async setlk(op, ino, owner, lock: PosixLock) {
      await generic.setlk(op, ino, owner, lock);
      wake(ino);
    },
    async waitForUnlock(ino, timeoutMs) {
      await new Promise<void>(resolve => {
        const set = unlocked.get(ino) ?? new Set();
        unlocked.set(ino, set);
        const done = (): void => {
          clearTimeout(timer);
          set.delete(done);
          if (set.size === 0) unlocked.delete(ino);
          resolve();
        };
        const timer = setTimeout(done, Math.min(timeoutMs, 20));
        set.add(done);
      });
    },

    // ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async getQuota(k, key) {
      const rows = await persist(c =>
        c.all(
          `SELECT max_space, max_inodes, used_space, used_inodes FROM ${prefix}${quotaTable(k)} WHERE ${quotaWhere(k)}`,
          [k === 'dir' ? inoToBigint(key) : key],
        ),
      );
      const r = rows[0];
      return (
        r && {
          maxSpace: toNumber(r[0]),
          maxInodes: toNumber(r[1]),
          usedSpace: toNumber(r[2]),
          usedInodes: toNumber(r[3]),
        }
      );
    },
    async setQuota(k, key, quota) {
      const value = k === 'dir' ? inoToBigint(key) : key;
      const table = prefix + quotaTable(k);
      // What records hold is counted first: the row's usage then stands for everything up to now.
      await flush();
      await transaction(async (tx, c) => {
        const columns = 'max_space, max_inodes, used_space, used_inodes';
        const [old] = await c.all(`SELECT ${columns} FROM ${table} WHERE ${quotaWhere(k)} FOR UPDATE`, [value]);
        const tree = old === undefined && k === 'dir' ? await runAsync(treeUsage(tx, key)) : { space: 0, inodes: 0 };
        const before = old ?? [-1, -1, tree.space, tree.inodes];
        const values = [quota.maxSpace, quota.maxInodes, quota.usedSpace, quota.usedInodes].map(
          (v, i) => v ?? toNumber(before[i]),
        );
        if (old !== undefined) {
          const sets = columns.split(', ').map(name => `${name} = ?`);
          await c.run(`UPDATE ${table} SET ${sets.join(', ')} WHERE ${quotaWhere(k)}`, [...values, value]);
        } else if (k === 'dir')
          await c.run(`INSERT INTO ${table} (${columns}, inode) VALUES (?, ?, ?, ?, ?)`, [...values, value]);
        else
          await c.run(`INSERT INTO ${table} (${columns}, qkey, qtype) VALUES (?, ?, ?, ?, ?, ?)`, [
            ...values,
            key,
            k === 'user' ? 1 : 2,
          ]);
        const type = k === 'dir' ? 0 : k === 'user' ? 1 : 2;
        await runAsync(logChange(tx, 'SETQUOTA', () => [type, key, values[0]!, values[1]!]));
      });
      await loadQuotas();
    },
    async deleteQuota(k, key) {
      await transaction(async (_tx, c) => {
        if (k === 'dir') await c.run(`DELETE FROM ${prefix}dir_quota WHERE inode = ?`, [inoToBigint(key)]);
        else
          await c.run(`UPDATE ${prefix}user_group_quota SET max_space = -1, max_inodes = -1 WHERE ${quotaWhere(k)}`, [
            key,
          ]);
      });
      await loadQuotas();
    },
    async listQuotas() {
      await flush();
      await loadQuotas();
      const { dirs, users, groups } = volume.quotas;
      return [
        ...[...dirs].map(([key, quota]) => ({ kind: 'dir' as const, key, quota })),
        ...[...users].map(([key, quota]) => ({ kind: 'user' as const, key, quota })),
        ...[...groups].map(([key, quota]) => ({ kind: 'group' as const, key, quota })),
      ];
    },
  };

  function wake(ino: Ino): void {
    for (const done of unlocked.get(ino) ?? []) done();
  }
}

function* step<T>(s: Iterable<Promise<unknown>, T, unknown>): Body<T> {
  return yield* s;
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
