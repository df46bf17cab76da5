/**
 * Mutations on PostgreSQL and MySQL: planned on rows last seen and sent as one statement where that is possible, else in an interactive transaction. Both keep the op
 * record's rules (engine.ts).
 */
import { EINTR, EIO, EROFS, Errno } from '@steadfs/fuse/errno';
import { SLICE_BYTES } from '../../format/slice.ts';
import { now } from '../clock.ts';
import type { Op, WriteResult } from '../engine.ts';
import { type Codec, writeCodec } from '../ops/record.ts';
import { type Body, runAsync, type Tx, type TxDriver } from '../ops/tx.ts';
import { addDelta, type Delta, decodeDeltas, encodeDeltas } from '../usage.ts';
import { failureOf, type SqlConnection, type SqlRow } from './connection.ts';
import type { Plans } from './mysql-plan.ts';
import type { NetworkCore } from './network-core.ts';
import { type NetworkTx, toBytes, toNumber } from './network-tx.ts';
import { type NetworkUsage, recordKey } from './network-usage.ts';
import { type Clause, OptimisticTx, recordCount, type Statement, Unsupported } from './optimistic-tx.ts';

/** Changes of usage that an op record holds at most before they are written to the volume's tables. */
const DELTAS_PER_RECORD = 64;

/** Deltas as `acct` of an op record has them. */
const stored = (deltas: readonly Delta[]): Buffer | null => (deltas.length > 0 ? encodeDeltas(deltas) : null);

/** The driver of ops/. `plans`: of MySQL. */
export function mutations(core: NetworkCore, usage: NetworkUsage, plans: Plans | undefined): TxDriver {
  const {
    announcer,
    host,
    inodes,
    kind,
    options,
    own,
    persist,
    pool,
    prefix,
    read,
    seen,
    state,
    transaction,
    volume,
    checkSession,
  } = core;
  const { announcePlan, beforePlan } = announcer;
  const { applyUsage, count, records, scheduleFlush } = usage;

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
        params: [volume.sid, state.identity?.incarnation ?? '', state.identity?.epoch ?? 0, now().sec],
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
    if (state.lost !== undefined || state.identity === undefined || plans?.possible === false) return undefined;
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

    read,
  };

  return driver;
}
