/**
 * Mutations in one statement on PostgreSQL. The operation's body runs here, on rows as this process last saw them; what it read
 * becomes conditions and what it writes becomes clauses of one statement with data-modifying CTEs, which holds the op record and the session's
 * check as well, and fails as a whole (division by zero) when a condition does not hold. Then the interactive transaction of
 * network-tx.ts decides. So a stale row costs a round trip and never a wrong result.
 *
 * All clauses see one snapshot, and a row may be changed once only: operations that need more (empty directories, hard links in
 * several folders, lists of rows) throw {@link Unsupported} before anything was sent.
 */
import { EIO } from '@steadfs/fuse/errno';
import type { AclRule } from '../../format/acl.ts';
import type { Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint } from '../../format/ino.ts';
import { encodeSlices, SLICE_BYTES, type Slice } from '../../format/slice.ts';
import type { Dentry, Name, TimeSet } from '../engine.ts';
import { type Body, done, nothing, type Step, type Tx, type UsageKind, type Volume } from '../ops/tx.ts';
import type { SqlConnection, SqlValue } from './connection.ts';
import {
  micros,
  type NetworkTxHost,
  NODE_COLUMNS,
  nodeFromRow,
  nodeValues,
  toIno,
  toNumber,
  type UsageDelta,
} from './network-tx.ts';

/** The operation cannot be one statement. */
export class Unsupported extends Error {
  constructor() {
    super('not one statement');
    this.name = 'Unsupported';
  }
}

/** Rows as last seen, by which operations are planned. Bounded; never trusted. */
export class SeenRows {
  readonly #nodes = new Map<Ino, Readonly<Attr> | undefined>();
  readonly #edges = new Map<string, Readonly<Dentry> | undefined>();
  readonly #max: number;

  constructor(max = 50_000) {
    this.#max = max;
  }

  static key(parent: Ino, name: Name): string {
    return `${parent}/${Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1')}`;
  }

  /** `known: false` when nothing was seen. */
  node(ino: Ino): { known: boolean; value: Readonly<Attr> | undefined } {
    return { known: this.#nodes.has(ino), value: this.#nodes.get(ino) };
  }
  edge(key: string): { known: boolean; value: Readonly<Dentry> | undefined } {
    return { known: this.#edges.has(key), value: this.#edges.get(key) };
  }
  sawNode(ino: Ino, attr: Readonly<Attr> | undefined): void {
    if (this.#nodes.size >= this.#max) this.#nodes.clear();
    this.#nodes.set(ino, attr);
  }
  sawEdge(key: string, dentry: Readonly<Dentry> | undefined): void {
    if (this.#edges.size >= this.#max) this.#edges.clear();
    this.#edges.set(key, dentry);
  }
  forgetNode(ino: Ino): void {
    this.#nodes.delete(ino);
  }
  forgetEdge(key: string): void {
    this.#edges.delete(key);
  }
  clear(): void {
    this.#nodes.clear();
    this.#edges.clear();
  }
}

/** What a body read and means to do with one inode. */
interface NodePlan {
  ino: Ino;
  /** As read; undefined: absent or new. */
  read: Readonly<Attr> | undefined;
  locked: boolean;
  write?: { kind: 'insert' | 'update'; attr: Attr } | { kind: 'delete' };
  adjust?: { links: number; touch: boolean };
}

interface EdgePlan {
  parent: Ino;
  name: Name;
  read: Readonly<Dentry> | undefined;
  write?: { kind: 'insert' | 'set'; ino: Ino; type: FileType } | { kind: 'delete' };
}

/** Columns that an operation on a directory's entries depends on. */
const STABLE = ['type', 'flags', 'mode', 'uid', 'gid', 'parent', 'access_acl_id', 'default_acl_id'];
const COLUMNS = NODE_COLUMNS.split(', ');

export class OptimisticTx implements Tx {
  readonly volume: Volume;
  readonly now: TimeSet;
  readonly deltas: UsageDelta[] = [];
  readonly #nodes = new Map<Ino, NodePlan>();
  readonly #edges = new Map<string, EdgePlan>();
  readonly #host: NetworkTxHost;
  readonly #seen: SeenRows;
  readonly #read: <T>(work: (c: SqlConnection) => Promise<T>) => Promise<T>;
  /** Further clauses. */
  readonly #clauses: { sql: string; params: SqlValue[]; expect: boolean }[] = [];
  /** Clause that answers the number of records of the chunk. */
  #chunkClause = -1;

  constructor(
    host: NetworkTxHost,
    seen: SeenRows,
    now: TimeSet,
    read: <T>(work: (c: SqlConnection) => Promise<T>) => Promise<T>,
  ) {
    this.#host = host;
    this.#seen = seen;
    this.volume = host.volume;
    this.now = now;
    this.#read = read;
  }

  *#node(ino: Ino, locked: boolean): Body<Readonly<Attr> | undefined> {
    let plan = this.#nodes.get(ino);
    if (plan === undefined) {
      let { known, value } = this.#seen.node(ino);
      if (!known) {
        const rows = (yield this.#read(c =>
          c.all(`SELECT ${NODE_COLUMNS} FROM ${this.#host.prefix}node WHERE inode = ?`, [inoToBigint(ino)]),
        )) as (readonly unknown[])[];
        value = rows[0] && nodeFromRow(rows[0], 0);
        this.#seen.sawNode(ino, value);
      }
      plan = { ino, read: value, locked };
      this.#nodes.set(ino, plan);
    } else if (plan.write !== undefined || plan.adjust !== undefined) throw new Unsupported();
    plan.locked ||= locked;
    return plan.read;
  }

  node(ino: Ino): Step<Readonly<Attr> | undefined> {
    return this.#node(ino, false);
  }

  nodeForUpdate(ino: Ino): Step<Readonly<Attr> | undefined> {
    return this.#node(ino, true);
  }

  *newInode(): Body<Ino> {
    return (yield this.#host.nextInode()) as Ino;
  }

  #planOf(ino: Ino): NodePlan {
    const plan = this.#nodes.get(ino);
    if (plan === undefined || plan.write !== undefined || plan.adjust !== undefined) throw new Unsupported();
    return plan;
  }

  insertNode(ino: Ino, attr: Attr): Step<void> {
    this.#nodes.set(ino, { ino, read: undefined, locked: false, write: { kind: 'insert', attr: { ...attr } } });
    return nothing;
  }

  updateNode(ino: Ino, attr: Attr): Step<void> {
    const plan = this.#planOf(ino);
    plan.locked = true;
    plan.write = { kind: 'update', attr: { ...attr } };
    return nothing;
  }

  deleteNode(ino: Ino): Step<void> {
    const plan = this.#planOf(ino);
    plan.locked = true;
    plan.write = { kind: 'delete' };
    return nothing;
  }

  adjustDir(ino: Ino, links: number, touch: boolean): Step<void> {
    let plan = this.#nodes.get(ino);
    if (plan === undefined) {
      plan = { ino, read: undefined, locked: false };
      this.#nodes.set(ino, plan);
    }
    if (plan.write !== undefined) throw new Unsupported();
    plan.adjust = { links: links + (plan.adjust?.links ?? 0), touch: touch || (plan.adjust?.touch ?? false) };
    return nothing;
  }

  *edge(parent: Ino, name: Name): Body<Readonly<Dentry> | undefined> {
    const key = SeenRows.key(parent, name);
    let plan = this.#edges.get(key);
    if (plan === undefined) {
      let { known, value } = this.#seen.edge(key);
      if (!known) {
        const rows = (yield this.#read(c =>
          c.all(`SELECT inode, type FROM ${this.#host.prefix}edge WHERE parent = ? AND name = ?`, [
            inoToBigint(parent),
            name,
          ]),
        )) as (readonly unknown[])[];
        value = rows[0] && { ino: toIno(rows[0][0]), type: toNumber(rows[0][1]) as FileType };
        this.#seen.sawEdge(key, value);
      }
      plan = { parent, name: Buffer.from(name), read: value };
      this.#edges.set(key, plan);
    } else if (plan.write !== undefined) throw new Unsupported();
    return plan.read;
  }

  #edgePlan(parent: Ino, name: Name): EdgePlan {
    const plan = this.#edges.get(SeenRows.key(parent, name));
    if (plan === undefined || plan.write !== undefined) throw new Unsupported();
    return plan;
  }

  insertEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void> {
    const key = SeenRows.key(parent, name);
    const plan: EdgePlan = this.#edges.get(key) ?? { parent, name: Buffer.from(name), read: undefined };
    if (plan.write !== undefined || plan.read !== undefined) throw new Unsupported();
    plan.write = { kind: 'insert', ino, type };
    this.#edges.set(key, plan);
    return nothing;
  }

  deleteEdge(parent: Ino, name: Name): Step<void> {
    this.#edgePlan(parent, name).write = { kind: 'delete' };
    return nothing;
  }

  moveEdge(parent: Ino, name: Name, newParent: Ino, newName: Name, ino: Ino, type: FileType): Step<void> {
    this.#edgePlan(parent, name).write = { kind: 'delete' };
    return this.insertEdge(newParent, newName, ino, type);
  }

  setEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void> {
    this.#edgePlan(parent, name).write = { kind: 'set', ino, type };
    return nothing;
  }

  hasEntries(): Step<boolean> {
    throw new Unsupported();
  }
  parentsOf(): Step<Map<Ino, number>> {
    throw new Unsupported();
  }
  addParent(): Step<void> {
    return nothing;
  }
  deleteParents(): Step<void> {
    return nothing;
  }
  entries(): Step<{ name: Name; ino: Ino; type: FileType }[]> {
    throw new Unsupported();
  }
  symlink(): Step<Uint8Array | undefined> {
    throw new Unsupported();
  }

  #clause(sql: string, params: SqlValue[], expect = false): Step<void> {
    this.#clauses.push({ sql, params, expect });
    return nothing;
  }

  insertSymlink(ino: Ino, target: Uint8Array): Step<void> {
    return this.#clause(`INSERT INTO ${this.#host.prefix}symlink (inode, target) VALUES (?, ?)`, [
      inoToBigint(ino),
      target,
    ]);
  }
  deleteSymlink(ino: Ino): Step<void> {
    return this.#clause(`DELETE FROM ${this.#host.prefix}symlink WHERE inode = ?`, [inoToBigint(ino)]);
  }
  xattr(): Step<Uint8Array | undefined> {
    throw new Unsupported();
  }
  xattrNames(): Step<Name[]> {
    throw new Unsupported();
  }
  setXattr(): Step<void> {
    throw new Unsupported();
  }
  deleteXattr(): Step<boolean> {
    throw new Unsupported();
  }
  deleteXattrs(ino: Ino): Step<void> {
    return this.#clause(`DELETE FROM ${this.#host.prefix}xattr WHERE inode = ?`, [inoToBigint(ino)]);
  }
  copyXattrs(): Step<void> {
    throw new Unsupported();
  }
  chunk(): Step<Slice[]> {
    throw new Unsupported();
  }

  appendChunk(ino: Ino, index: number, records: readonly Slice[]): Step<number> {
    if (this.#chunkClause >= 0) throw new Unsupported();
    const table = `${this.#host.prefix}chunk`;
    this.#chunkClause = this.#clauses.length;
    this.#clause(
      `INSERT INTO ${table} (inode, indx, slices) VALUES (?, ?, ?) ON CONFLICT (inode, indx) DO UPDATE SET slices = ${table}.slices || EXCLUDED.slices RETURNING length(slices)`,
      [inoToBigint(ino), index, encodeSlices(records)],
    );
    return done(0);
  }

  get appendsChunk(): boolean {
    return this.#chunkClause >= 0;
  }

  coverChunk(): Step<void> {
    throw new Unsupported();
  }
  replaceChunk(): Step<void> {
    throw new Unsupported();
  }
  chunkIndexes(): Step<number[]> {
    throw new Unsupported();
  }
  addSlice(id: number, size: number, refs: number): Step<void> {
    const table = `${this.#host.prefix}chunk_ref`;
    return this.#clause(
      `INSERT INTO ${table} (chunkid, size, refs) VALUES (?, ?, ?) ON CONFLICT (chunkid) DO UPDATE SET refs = ${table}.refs + EXCLUDED.refs`,
      [id, size, refs],
    );
  }
  addRefs(): Step<number> {
    throw new Unsupported();
  }
  deadSlices(): Step<never> {
    throw new Unsupported();
  }
  deleteSlice(): Step<void> {
    throw new Unsupported();
  }
  insertDelayed(): Step<void> {
    throw new Unsupported();
  }
  delayedBefore(): Step<never> {
    throw new Unsupported();
  }
  deleteDelayed(): Step<void> {
    throw new Unsupported();
  }
  insertDelfile(ino: Ino, length: number): Step<void> {
    return this.#clause(`INSERT INTO ${this.#host.prefix}delfile (inode, length, expire) VALUES (?, ?, ?)`, [
      inoToBigint(ino),
      length,
      this.now.sec,
    ]);
  }
  delfiles(): Step<never> {
    throw new Unsupported();
  }
  deleteDelfile(): Step<void> {
    throw new Unsupported();
  }
  insertSustained(sid: number, ino: Ino): Step<void> {
    return this.#clause(
      `INSERT INTO ${this.#host.prefix}sustained (sid, inode) VALUES (?, ?) ON CONFLICT (sid, inode) DO NOTHING`,
      [sid, inoToBigint(ino)],
    );
  }
  deleteSustained(): Step<void> {
    throw new Unsupported();
  }
  isSustained(): Step<boolean> {
    throw new Unsupported();
  }
  sustainedOf(): Step<Ino[]> {
    throw new Unsupported();
  }
  insertDetached(): Step<void> {
    throw new Unsupported();
  }
  deleteDetached(): Step<void> {
    throw new Unsupported();
  }
  acl(): Step<AclRule | undefined> {
    throw new Unsupported();
  }
  aclId(): Step<number> {
    throw new Unsupported();
  }
  flocks(): Step<never> {
    throw new Unsupported();
  }
  setFlock(): Step<void> {
    throw new Unsupported();
  }
  deleteFlock(): Step<void> {
    throw new Unsupported();
  }
  plocks(): Step<never> {
    throw new Unsupported();
  }
  setPlock(): Step<void> {
    throw new Unsupported();
  }
  addCounter(): Step<number> {
    throw new Unsupported();
  }
  counter(): Step<number> {
    throw new Unsupported();
  }
  setCounter(): Step<void> {
    throw new Unsupported();
  }
  insertDirStat(ino: Ino, length: number, space: number, inodes: number): Step<void> {
    return this.#clause(
      `INSERT INTO ${this.#host.prefix}dir_stats (inode, data_length, used_space, used_inodes) VALUES (?, ?, ?, ?) ON CONFLICT (inode) DO UPDATE SET data_length = EXCLUDED.data_length, used_space = EXCLUDED.used_space, used_inodes = EXCLUDED.used_inodes`,
      [inoToBigint(ino), length, space, inodes],
    );
  }
  dirStat(): Step<never> {
    throw new Unsupported();
  }
  deleteDirStat(ino: Ino): Step<void> {
    return this.#clause(`DELETE FROM ${this.#host.prefix}dir_stats WHERE inode = ?`, [inoToBigint(ino)]);
  }
  deleteDirQuota(ino: Ino): Step<void> {
    return this.#clause(`DELETE FROM ${this.#host.prefix}dir_quota WHERE inode = ?`, [inoToBigint(ino)]);
  }

  account(kind: UsageKind, key: number, length: number, space: number, inodes: number): void {
    this.deltas.push({ kind, key, length, space, inodes });
  }

  log(entry: string): Step<void> {
    return this.#clause(`INSERT INTO ${this.#host.prefix}change_log (entry) VALUES (?)`, [entry]);
  }

  // ── the statement ─────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * One statement of the conditions, the writes and `last` (clauses that must each answer a row; they may use `appended`, the chunk's length in
   * bytes after the append). Answers a row: 1, and that length (or null).
   */
  statement(last: readonly { sql: string; params: readonly SqlValue[] }[]): { sql: string; params: SqlValue[] } {
    const p = this.#host.prefix;
    const clauses: { sql: string; params: readonly SqlValue[]; expect: boolean }[] = [];
    for (const plan of this.#nodes.values()) clauses.push(...this.#nodeClauses(plan));
    for (const plan of this.#edges.values()) {
      const key = [inoToBigint(plan.parent), plan.name];
      const where = 'parent = ? AND name = ?';
      if (plan.write === undefined) {
        if (plan.read === undefined)
          clauses.push({
            sql: `SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM ${p}edge WHERE ${where})`,
            params: key,
            expect: true,
          });
        else
          clauses.push({
            sql: `SELECT 1 FROM ${p}edge WHERE ${where} AND inode = ?`,
            params: [...key, inoToBigint(plan.read.ino)],
            expect: true,
          });
      } else if (plan.write.kind === 'insert') {
        clauses.push({
          sql: `INSERT INTO ${p}edge (parent, name, inode, type) VALUES (?, ?, ?, ?) RETURNING 1`,
          params: [...key, inoToBigint(plan.write.ino), plan.write.type],
          expect: true,
        });
      } else if (plan.read === undefined) throw new Unsupported();
      else if (plan.write.kind === 'delete') {
        clauses.push({
          sql: `DELETE FROM ${p}edge WHERE ${where} AND inode = ? RETURNING 1`,
          params: [...key, inoToBigint(plan.read.ino)],
          expect: true,
        });
      } else {
        clauses.push({
          sql: `UPDATE ${p}edge SET inode = ?, type = ? WHERE ${where} AND inode = ? RETURNING 1`,
          params: [inoToBigint(plan.write.ino), plan.write.type, ...key, inoToBigint(plan.read.ino)],
          expect: true,
        });
      }
    }
    const appended = this.#chunkClause < 0 ? -1 : clauses.length + this.#chunkClause;
    clauses.push(...this.#clauses, ...last.map(c => ({ ...c, expect: true })));
    const params: SqlValue[] = [];
    const ctes = clauses.map((c, i) => {
      params.push(...c.params);
      return `${i === appended ? 'appended' : `c${i}`} AS (${/^SELECT|RETURNING/.test(c.sql) ? c.sql : `${c.sql} RETURNING 1`})`;
    });
    const conditions = clauses.flatMap((c, i) => (c.expect ? [`EXISTS (SELECT 1 FROM c${i})`] : []));
    const chunk = appended < 0 ? 'NULL' : '(SELECT length FROM appended)';
    return {
      sql: `WITH ${ctes.join(', ')} SELECT 1 / (CASE WHEN ${conditions.join(' AND ')} THEN 1 ELSE 0 END), ${chunk}`,
      params,
    };
  }

  #nodeClauses(plan: NodePlan): { sql: string; params: SqlValue[]; expect: boolean }[] {
    const p = this.#host.prefix;
    const ino = inoToBigint(plan.ino);
    if (plan.write?.kind === 'insert') {
      return [
        {
          sql: `INSERT INTO ${p}node (inode, ${NODE_COLUMNS}) VALUES (?${', ?'.repeat(COLUMNS.length)}) RETURNING 1`,
          params: [ino, ...nodeValues(plan.write.attr)],
          expect: true,
        },
      ];
    }
    const conditions: string[] = ['inode = ?'];
    const keys: SqlValue[] = [ino];
    if (plan.read !== undefined) {
      const values = nodeValues(plan.read);
      COLUMNS.forEach((c, i) => {
        // The tier never decides anything; NULL stands for 0 in databases made by old versions.
        if (c === 'tier_id' || c === 'rdev' || !(plan.locked || STABLE.includes(c))) return;
        conditions.push(c === 'parent' || c.endsWith('acl_id') ? `coalesce(${c}, 0) = ?` : `${c} = ?`);
        keys.push(values[i]!);
      });
    } else if (plan.adjust === undefined) {
      // Absent, and that mattered.
      return [
        { sql: `SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM ${p}node WHERE inode = ?)`, params: [ino], expect: true },
      ];
    }
    const where = `WHERE ${conditions.join(' AND ')}`;
    if (plan.write?.kind === 'delete')
      return [{ sql: `DELETE FROM ${p}node ${where} RETURNING 1`, params: keys, expect: true }];
    if (plan.write?.kind === 'update') {
      const values = nodeValues(plan.write.attr);
      const skip = plan.write.attr.type === 2 ? COLUMNS.indexOf('nlink') : -1;
      const sets = COLUMNS.flatMap((c, i) => (i === skip ? [] : [`${c} = ?`]));
      return [
        {
          sql: `UPDATE ${p}node SET ${sets.join(', ')} ${where} RETURNING 1`,
          params: [...values.filter((_, i) => i !== skip), ...keys],
          expect: true,
        },
      ];
    }
    if (plan.adjust !== undefined) {
      const t = micros(this.now.sec, this.now.nsec);
      const rest = this.now.nsec % 1000;
      const touch = plan.adjust.touch ? ', mtime = ?, ctime = ?, mtimensec = ?, ctimensec = ?' : '';
      const values: SqlValue[] = [plan.adjust.links, ...(plan.adjust.touch ? [t, t, rest, rest] : [])];
      return [
        {
          sql: `UPDATE ${p}node SET nlink = nlink + ?${touch} ${where} RETURNING 1`,
          params: [...values, ...keys],
          expect: true,
        },
      ];
    }
    // Whoever removes the directory locks its row; whoever only uses it shares it.
    return [
      {
        sql: `SELECT 1 FROM ${p}node ${where} FOR ${plan.locked ? 'UPDATE' : 'KEY SHARE'}`,
        params: keys,
        expect: true,
      },
    ];
  }

  /** After the commit: what is known now. */
  remember(): void {
    const { sec, nsec } = this.now;
    for (const plan of this.#nodes.values()) {
      if (plan.write?.kind === 'delete') this.#seen.sawNode(plan.ino, undefined);
      else if (plan.write !== undefined) this.#seen.sawNode(plan.ino, plan.write.attr);
      else if (plan.adjust !== undefined) {
        if (plan.read === undefined) this.#seen.forgetNode(plan.ino);
        else {
          const times = plan.adjust.touch ? { mtime: sec, mtimensec: nsec, ctime: sec, ctimensec: nsec } : {};
          this.#seen.sawNode(plan.ino, { ...plan.read, nlink: plan.read.nlink + plan.adjust.links, ...times });
        }
      }
    }
    for (const [key, plan] of this.#edges) {
      if (plan.write === undefined) continue;
      this.#seen.sawEdge(
        key,
        plan.write.kind === 'delete' ? undefined : { ino: plan.write.ino, type: plan.write.type },
      );
    }
  }

  /** After a failure: what was read may be stale. */
  forget(): void {
    for (const ino of this.#nodes.keys()) this.#seen.forgetNode(ino);
    for (const key of this.#edges.keys()) this.#seen.forgetEdge(key);
  }
}

/** Records in a chunk of `bytes`. */
export function recordCount(bytes: unknown): number {
  const length = toNumber(bytes);
  if (length % SLICE_BYTES !== 0) throw EIO.because(`a slice list of ${length} bytes`);
  return length / SLICE_BYTES;
}
