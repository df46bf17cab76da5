/**
 * Usage on PostgreSQL and MySQL: what changes is kept in the op records, in the transaction of the change, and moved into the volume's tables now and then, once. The
 * numbers by which limits are checked are kept in memory (Volume.quotas).
 */
import { ENOENT } from '@steadfs/fuse/errno';
import { FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint } from '../../format/ino.ts';
import type { Op, Quota } from '../engine.ts';
import { noQuotas } from '../ops/quota.ts';
import { countChildren } from '../ops/sessions.ts';
import { runAsync, Usage } from '../ops/tx.ts';
import { addDelta, countUsage, type Delta, decodeDeltas } from '../usage.ts';
import type { SqlConnection, SqlRow } from './connection.ts';
import { type NetworkCore, step } from './network-core.ts';
import { type NetworkTx, toBytes, toIno, toNumber } from './network-tx.ts';

const FLUSH_MS = 1000;

/** What an op record is known by in this process. */
export const recordKey = (op: Op): string => `${op.kind}/${op.slot}`;

export type NetworkUsage = ReturnType<typeof usageOf>;

export function usageOf(core: NetworkCore) {
  const { kind, options, own, persist, prefix, read, transaction, volume } = core;
  let flushTimer: NodeJS.Timeout | undefined;

  /** Op records as this process wrote them last: seq and what stands in `acct`, also as what it means. */
  const records = new Map<string, { seq: number; acct: Buffer | null; deltas: readonly Delta[] }>();

  /** Keeps the numbers in memory, by which limits are checked. */
  const count = (d: Delta): void => countUsage(volume.quotas, d, false);

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
    return await read(function* (tx) {
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

  return {
    records,
    count,
    dirStat,
    applyUsage,
    flushOf,
    flush,
    scheduleFlush,
    loadQuotas,
    close: (): void => clearTimeout(flushTimer),
  };
}
