/**
 * Usage on SQLite: what changes is kept in the op records, in the transaction of the change, and moved into the volume's tables now and then, once. The numbers by
 * which limits are checked are kept in memory (Volume.quotas).
 */
import { ENOENT } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { FileType } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import type { Op, Quota } from '../engine.ts';
import { countChildren } from '../ops/sessions.ts';
import { type Body, runSync, Usage, type Volume } from '../ops/tx.ts';
import { addDelta, countUsage, type Delta, decodeDeltas } from '../usage.ts';
import { inoColumn, inoParam, type Row, type SqliteTx, type Statements } from './sqlite-tx.ts';

/** How old limits and usage may be that another connection has changed, milliseconds. */
const REFRESH_MS = 1000;

/** What is known of an op record. */
export interface OpRecord {
  seq: number;
  exists: boolean;
  /** Changes of usage not yet in the volume's tables. */
  deltas: Delta[];
}

export class SqliteUsage {
  readonly #st: Statements;
  readonly #tx: SqliteTx;
  readonly #volume: Volume;
  #records = new Map<number, OpRecord>();
  /** All records that hold usage are in the map. */
  #recordsKnown = false;
  /** Another connection may have changed what is in memory. */
  #stale = true;
  #loaded = 0;

  constructor(st: Statements, tx: SqliteTx, volume: Volume) {
    this.#st = st;
    this.#tx = tx;
    this.#volume = volume;
  }

  get stale(): boolean {
    return this.#stale;
  }

  /** Another connection has committed. */
  outdate(): void {
    this.#stale = true;
  }

  /** Nothing of what is known of records and limits holds any more. */
  forget(): void {
    this.#records.clear();
    this.#recordsKnown = false;
    this.#stale = true;
    this.#loaded = 0;
  }

  /** Loads again what another connection changed, once a second at most. */
  refresh(): void {
    if (this.#stale && Date.now() - this.#loaded > REFRESH_MS) this.load();
  }

  /** Every record of this session that holds usage. */
  #allRecords(): Map<number, OpRecord> {
    if (!this.#recordsKnown && this.#volume.sid !== 0) {
      for (const row of this.#st.all('SELECT kind,slot FROM @op WHERE sid=? AND acct IS NOT NULL', this.#volume.sid)) {
        this.record({ kind: row[0] as number, slot: row[1] as number, seq: 0 });
      }
    }
    this.#recordsKnown = true;
    return this.#records;
  }

  record(op: Op): OpRecord {
    const key = op.kind * 2 ** 40 + op.slot;
    let record = this.#records.get(key);
    if (record === undefined) {
      const row = this.#st.one(
        'SELECT seq,acct FROM @op WHERE sid=? AND kind=? AND slot=?',
        this.#volume.sid,
        op.kind,
        op.slot,
      );
      record =
        row === undefined
          ? { seq: -1, exists: false, deltas: [] }
          : { seq: row[0] as number, exists: true, deltas: row[1] === null ? [] : decodeDeltas(row[1] as Uint8Array) };
      this.#records.set(key, record);
    }
    return record;
  }

  /** Keeps the numbers in memory, by which limits are checked. */
  count(d: Delta): void {
    countUsage(this.#volume.quotas, d, true);
  }

  /** Stored limits and usage, and what our records hold beside them. */
  load(): void {
    const q = this.#volume.quotas;
    const counters = new Map(
      this.#st.all("SELECT name,value FROM $counter WHERE name IN ('usedSpace','totalInodes')").map(r => [r[0], r[1]]),
    );
    q.usedSpace = Number(counters.get('usedSpace') ?? 0);
    q.usedInodes = Number(counters.get('totalInodes') ?? 0);
    const columns = 'max_space,max_inodes,used_space,used_inodes';
    const quota = (r: Row, at: number): Quota => {
      const [maxSpace, maxInodes, usedSpace, usedInodes] = r.slice(at) as number[];
      return { maxSpace: maxSpace!, maxInodes: maxInodes!, usedSpace: usedSpace!, usedInodes: usedInodes! };
    };
    q.dirs = new Map();
    q.users = new Map();
    q.groups = new Map();
    if (this.#volume.format.DirStats) {
      for (const r of this.#st.all(`SELECT ${inoColumn('inode')},${columns} FROM $dir_quota`))
        q.dirs.set(r[0] as number, quota(r, 1));
    }
    if (this.#volume.format.UserGroupQuota) {
      for (const r of this.#st.all(`SELECT qtype,qkey,${columns} FROM $user_group_quota`)) {
        (r[0] === 1 ? q.users : q.groups).set(r[1] as number, quota(r, 2));
      }
    }
    if (this.#volume.sid !== 0) {
      for (const r of this.#st.all('SELECT acct FROM @op WHERE sid=? AND acct IS NOT NULL', this.#volume.sid)) {
        for (const d of decodeDeltas(r[0] as Uint8Array)) this.count(d);
      }
    }
    this.#stale = false;
    this.#loaded = Date.now();
  }

  /** Moves what all records of this session hold into the volume's tables, inside the open transaction. */
  flush(): void {
    const sum: Delta[] = [];
    let pending = false;
    for (const record of this.#allRecords().values()) {
      for (const d of record.deltas) addDelta(sum, d);
      pending ||= record.deltas.length > 0;
      record.deltas = [];
    }
    if (!pending) return;
    this.apply(sum);
    faultPoint('meta.usage-applied');
    this.#st.exec('UPDATE @op SET acct=NULL WHERE sid=? AND acct IS NOT NULL', this.#volume.sid);
  }

  apply(list: readonly Delta[]): void {
    const tx = this.#tx;
    for (const d of list) {
      tx.writes++;
      if (d.kind === Usage.volume) {
        if (d.space !== 0) tx.bump('usedSpace', d.space);
        if (d.inodes !== 0) tx.bump('totalInodes', d.inodes);
      } else if (d.kind === Usage.dirStat) {
        const sql =
          'UPDATE $dir_stats SET data_length=data_length+?,used_space=used_space+?,used_inodes=used_inodes+? WHERE inode=?';
        if (this.#st.run(sql, d.length, d.space, d.inodes, inoParam(d.key)) > 0) continue;
        // No row: counted anew, with everything that has happened. A directory that is gone needs none.
        if (tx.readNode(d.key)?.type !== FileType.directory) continue;
        const s = runSync(countChildren(tx, d.key));
        // What records still hold of it will come with a flush.
        for (const record of this.#allRecords().values()) {
          for (const p of record.deltas) {
            if (p.kind !== Usage.dirStat || p.key !== d.key) continue;
            s.length -= p.length;
            s.space -= p.space;
            s.inodes -= p.inodes;
          }
        }
        tx.insertDirStat(d.key, s.length, s.space, s.inodes);
      } else if (d.kind === Usage.dirQuota) {
        this.#st.exec(
          'UPDATE $dir_quota SET used_space=used_space+?,used_inodes=used_inodes+? WHERE inode=?',
          d.space,
          d.inodes,
          inoParam(d.key),
        );
      } else {
        const sql =
          'INSERT INTO $user_group_quota(qtype,qkey,max_space,max_inodes,used_space,used_inodes) VALUES(?,?,-1,-1,?,?) ON CONFLICT(qtype,qkey) DO UPDATE SET used_space=used_space+excluded.used_space,used_inodes=used_inodes+excluded.used_inodes';
        this.#st.exec(sql, d.kind === Usage.user ? 1 : 2, d.key, d.space, d.inodes);
      }
    }
  }

  /** Statistics with what is not yet in their table. */
  dirStat(ino: Ino): { length: number; space: number; inodes: number } {
    const stored = runSync(first(this.#tx.dirStat(ino)));
    if (stored === undefined) {
      if (this.#tx.readNode(ino) === undefined) throw ENOENT;
      return runSync(countChildren(this.#tx, ino));
    }
    for (const record of this.#allRecords().values()) {
      for (const d of record.deltas) {
        if (d.kind !== Usage.dirStat || d.key !== ino) continue;
        stored.length += d.length;
        stored.space += d.space;
        stored.inodes += d.inodes;
      }
    }
    return stored.length < 0 || stored.space < 0 || stored.inodes < 0 ? runSync(countChildren(this.#tx, ino)) : stored;
  }
}

function* first<T>(step: Iterable<Promise<unknown>, T, unknown>): Body<T> {
  return yield* step;
}
