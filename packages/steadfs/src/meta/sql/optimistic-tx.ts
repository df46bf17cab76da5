/**
 * Mutations in one round trip. The operation's body runs here, on rows as this process last saw them; what it read becomes conditions and what
 * it writes becomes clauses, which go to the server together with the op record and the session's check and fail as a whole when a
 * condition does not hold. Then the interactive transaction of network-tx.ts decides. So a stale row costs a round trip and never a wrong
 * result.
 *
 * PostgreSQL: one statement with data-modifying CTEs, whose clauses see one snapshot. MySQL and MariaDB: the
 * clauses in order, as the body of a routine or an anonymous block (mysql-plan.ts). A row may be changed once only: operations that need more
 * (lists of rows, locks) throw {@link Unsupported} before anything was sent.
 */
import { EIO } from '@steadfs/fuse/errno';
import type { AclRule } from '../../format/acl.ts';
import type { Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint, isTrash, TRASH } from '../../format/ino.ts';
import { encodeSlices, SLICE_BYTES, type Slice } from '../../format/slice.ts';
import type { Dentry, Name, TimeSet } from '../engine.ts';
import { type Body, done, nothing, type Step, type Tx, type UsageKind, type Volume } from '../ops/tx.ts';
import type { Delta } from '../usage.ts';
import type { SqlConnection, SqlValue } from './connection.ts';
import {
  aclFromRow,
  aclSelect,
  micros,
  type NetworkTxHost,
  NODE_COLUMNS,
  nodeFromRow,
  nodeValues,
  toIno,
  toNumber,
  xattrName,
} from './network-tx.ts';
import { SeenRows } from './seen-rows.ts';

/** The operation cannot be one statement. */
export class Unsupported extends Error {
  constructor() {
    super('not one statement');
    this.name = 'Unsupported';
  }
}

/**
 * One step of a plan. `write`: a statement that changes rows, exactly one with `expect`. The others are the part of a SELECT from FROM on, which
 * finds exactly one row (`one`, may lock it), at least one (`some`), or none (`none`).
 */
export interface Clause {
  kind: 'write' | 'one' | 'some' | 'none';
  sql: string;
  params: readonly SqlValue[];
  expect?: boolean;
  /** PostgreSQL: what the statement answers of the row written, and the name by which other clauses find it, as `value`. */
  answer?: { name: string; value: string };
}

/** A plan as one statement; `first` must be carried out before it, in the same transaction and round trip. */
export interface Statement {
  sql: string;
  params: SqlValue[];
  first: { sql: string; params: SqlValue[] }[];
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

const INSERT = /^INSERT /;

/** A write that happens when the CTE `gate` has its one row. */
function gated(sql: string, gate: string): string {
  return INSERT.test(sql)
    ? sql.replace(/ VALUES \((.*?)\)(?= ON CONFLICT| RETURNING|$)/, ` SELECT $1 FROM ${gate} WHERE true`)
    : `${sql} AND EXISTS (SELECT 1 FROM ${gate})`;
}

export class OptimisticTx implements Tx {
  readonly volume: Volume;
  readonly now: TimeSet;
  readonly deltas: Delta[] = [];
  readonly #nodes = new Map<Ino, NodePlan>();
  readonly #edges = new Map<string, EdgePlan>();
  readonly #host: NetworkTxHost;
  readonly #seen: SeenRows;
  readonly #read: <T>(work: (c: SqlConnection) => Promise<T>) => Promise<T>;
  readonly #xattrs = new Map<string, { ino: Ino; name: Name; value: Uint8Array | undefined }>();
  readonly #links = new Map<Ino, Map<Ino, number>>();
  /** Directories that must be empty. */
  readonly #emptied: Ino[] = [];
  /** Further clauses. */
  readonly #clauses: Clause[] = [];
  readonly #mysql: boolean;
  /** Clause that answers the number of records of the chunk. */
  #chunkClause = -1;
  #chunkKey: SqlValue[] = [];

  constructor(
    host: NetworkTxHost,
    seen: SeenRows,
    now: TimeSet,
    read: <T>(work: (c: SqlConnection) => Promise<T>) => Promise<T>,
  ) {
    this.#host = host;
    this.#mysql = host.kind === 'mysql';
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
        const entry = this.#host.remembered?.(parent, name);
        known = entry !== undefined;
        value = entry ?? undefined;
      }
      // Names in the trash hold the inode's number: they are new.
      if (!known && !(isTrash(parent) && parent !== TRASH)) {
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
    // What was deleted and comes again is one row that changes.
    const again = plan.write?.kind === 'delete' && plan.read !== undefined;
    if (!again && (plan.write !== undefined || plan.read !== undefined)) throw new Unsupported();
    plan.write = { kind: again ? 'set' : 'insert', ino, type };
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

  /** Planned as empty. */
  hasEntries(ino: Ino): Step<boolean> {
    this.#emptied.push(ino);
    this.#clauses.push({
      kind: 'none',
      sql: `FROM ${this.#host.prefix}edge WHERE parent = ?`,
      params: [inoToBigint(ino)],
    });
    return done(false);
  }

  /** Whoever changes the entries of an inode changes its row as well, whose condition therefore covers them. */
  *parentsOf(ino: Ino): Body<Map<Ino, number>> {
    const plan = this.#nodes.get(ino);
    if (plan?.read === undefined || !plan.locked) throw new Unsupported();
    let base: ReadonlyMap<Ino, number> | undefined =
      plan.read.parent === 0 ? this.#seen.links(ino, plan.read) : new Map([[plan.read.parent, 1]]);
    if (base === undefined) {
      const rows = (yield this.#read(c =>
        c.all(`SELECT parent, count(*) FROM ${this.#host.prefix}edge WHERE inode = ? GROUP BY parent`, [
          inoToBigint(ino),
        ]),
      )) as (readonly unknown[])[];
      base = new Map(rows.map(r => [toIno(r[0]), toNumber(r[1])]));
      this.#seen.sawLinks(ino, base, plan.read);
    }
    const links = new Map(base);
    const add = (parent: Ino, n: number): void => {
      const count = (links.get(parent) ?? 0) + n;
      if (count === 0) links.delete(parent);
      else links.set(parent, count);
    };
    for (const edge of this.#edges.values()) {
      if (edge.write === undefined) continue;
      if (edge.read?.ino === ino) add(edge.parent, -1);
      if (edge.write.kind !== 'delete' && edge.write.ino === ino) add(edge.parent, 1);
    }
    this.#links.set(ino, links);
    return links;
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
    this.#clauses.push({ kind: 'write', sql, params, expect });
    return nothing;
  }

  /** INSERT … that updates where the key is there; NEW. is the row that was to be inserted, OLD. the one that is there. */
  #upsert(table: string, columns: string, key: string, update: string): string {
    const name = `${this.#host.prefix}${table}`;
    const insert = `INSERT INTO ${name} (${columns}) VALUES (${columns.replace(/\w+/g, '?')})`;
    return this.#mysql
      ? `${insert} ON DUPLICATE KEY UPDATE ${update.replace(/\bNEW\.(\w+)/g, 'VALUES($1)').replace(/\bOLD\./g, '')}`
      : `${insert} ON CONFLICT (${key}) DO UPDATE SET ${update.replace(/\bNEW\./g, 'EXCLUDED.').replace(/\bOLD\./g, `${name}.`)}`;
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
  /** One that was never seen is planned as absent. */
  xattr(ino: Ino, name: Name): Step<Uint8Array | undefined> {
    const key = SeenRows.key(ino, name);
    const { value } = this.#seen.xattr(key);
    if (value !== undefined)
      this.#clauses.push({
        kind: 'one',
        sql: `FROM ${this.#host.prefix}xattr WHERE inode = ? AND name = ? AND value = ?`,
        params: [inoToBigint(ino), xattrName(name), value],
      });
    this.#xattrs.set(key, { ino, name: Buffer.from(name), value });
    return done(value);
  }
  xattrNames(): Step<Name[]> {
    throw new Unsupported();
  }
  setXattr(ino: Ino, name: Name, value: Uint8Array): Step<void> {
    const plan = this.#xattrs.get(SeenRows.key(ino, name));
    if (plan === undefined) throw new Unsupported();
    const key = [inoToBigint(ino), xattrName(name)];
    const table = `${this.#host.prefix}xattr`;
    const old = plan.value;
    plan.value = Buffer.from(value);
    return old === undefined
      ? this.#clause(`INSERT INTO ${table} (inode, name, value) VALUES (?, ?, ?)`, [...key, plan.value], true)
      : this.#clause(
          `UPDATE ${table} SET value = ? WHERE inode = ? AND name = ? AND value = ?`,
          [plan.value, ...key, old],
          true,
        );
  }
  deleteXattr(ino: Ino, name: Name): Step<boolean> {
    const plan = this.#xattrs.get(SeenRows.key(ino, name));
    if (plan === undefined) throw new Unsupported();
    plan.value = undefined;
    this.#clause(
      `DELETE FROM ${this.#host.prefix}xattr WHERE inode = ? AND name = ?`,
      [inoToBigint(ino), xattrName(name)],
      true,
    );
    return done(true);
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
    this.#chunkClause = this.#clauses.length;
    const join = this.#mysql ? 'concat(OLD.slices, NEW.slices)' : 'OLD.slices || NEW.slices';
    const sql = this.#upsert('chunk', 'inode, indx, slices', 'inode, indx', `slices = ${join}`);
    const params = [inoToBigint(ino), index, encodeSlices(records)];
    this.#clauses.push({ kind: 'write', sql, params, answer: { name: 'appended', value: 'length(slices)' } });
    this.#chunkKey = [inoToBigint(ino), index];
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
  /** Whether there is data at all: planned by the file's length. A slice commit to an empty file changes its row, to another it changes nothing here. */
  chunkIndexes(ino: Ino, from: number, _to: number, limit: number): Step<number[]> {
    const attr = this.#nodes.get(ino)?.read;
    if (from !== 0 || limit !== 1 || attr === undefined) throw new Unsupported();
    this.#clauses.push({
      kind: attr.length > 0 ? 'some' : 'none',
      sql: `FROM ${this.#host.prefix}chunk WHERE inode = ?`,
      params: [inoToBigint(ino)],
    });
    return done(attr.length > 0 ? [0] : []);
  }
  addSlice(id: number, size: number, refs: number): Step<void> {
    return this.#clause(this.#upsert('chunk_ref', 'chunkid, size, refs', 'chunkid', 'refs = OLD.refs + NEW.refs'), [
      id,
      size,
      refs,
    ]);
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
  delayedSlices(): Step<never> {
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
    return this.#clause(this.#upsert('sustained', 'sid, inode', 'sid, inode', 'sid = NEW.sid'), [
      sid,
      inoToBigint(ino),
    ]);
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
  *acl(id: number): Body<AclRule | undefined> {
    const known = this.#seen.acl(id);
    if (known !== undefined) return known;
    const rows = (yield this.#read(c => c.all(aclSelect(this.#host), [id]))) as (readonly unknown[])[];
    const rule = rows[0] && aclFromRow(rows[0]);
    if (rule !== undefined) this.#seen.sawAcl(id, rule);
    return rule;
  }
  aclId(rule: AclRule): Step<number> {
    const id = this.#seen.aclId(rule);
    if (id === undefined) throw new Unsupported();
    return done(id);
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
      this.#upsert(
        'dir_stats',
        'inode, data_length, used_space, used_inodes',
        'inode',
        'data_length = NEW.data_length, used_space = NEW.used_space, used_inodes = NEW.used_inodes',
      ),
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

  // ── the plan ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Conditions and writes of one entry. */
  #edgeClause(plan: EdgePlan): Clause {
    const table = `${this.#host.prefix}edge`;
    const key = [inoToBigint(plan.parent), plan.name];
    const found = plan.read === undefined ? [] : [...key, inoToBigint(plan.read.ino)];
    const where = 'WHERE parent = ? AND name = ?';
    const { write } = plan;
    if (write === undefined) {
      if (plan.read === undefined) return { kind: 'none', sql: `FROM ${table} ${where}`, params: key };
      return { kind: 'one', sql: `FROM ${table} ${where} AND inode = ?`, params: found };
    }
    if (write.kind === 'insert') {
      const params = [...key, inoToBigint(write.ino), write.type];
      return {
        kind: 'write',
        sql: `INSERT INTO ${table} (parent, name, inode, type) VALUES (?, ?, ?, ?)`,
        params,
        expect: true,
      };
    }
    if (plan.read === undefined) throw new Unsupported();
    if (write.kind === 'delete')
      return { kind: 'write', sql: `DELETE FROM ${table} ${where} AND inode = ?`, params: found, expect: true };
    return {
      kind: 'write',
      sql: `UPDATE ${table} SET inode = ?, type = ? ${where} AND inode = ?`,
      params: [inoToBigint(write.ino), write.type, ...found],
      expect: true,
    };
  }

  #nodeClause(plan: NodePlan): Clause {
    const table = `${this.#host.prefix}node`;
    const ino = inoToBigint(plan.ino);
    if (plan.write?.kind === 'insert') {
      const params = [ino, ...nodeValues(plan.write.attr)];
      const sql = `INSERT INTO ${table} (inode, ${NODE_COLUMNS}) VALUES (?${', ?'.repeat(COLUMNS.length)})`;
      return { kind: 'write', sql, params, expect: true };
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
      return { kind: 'none', sql: `FROM ${table} WHERE inode = ?`, params: [ino] };
    }
    const where = `WHERE ${conditions.join(' AND ')}`;
    if (plan.write?.kind === 'delete')
      return { kind: 'write', sql: `DELETE FROM ${table} ${where}`, params: keys, expect: true };
    if (plan.write?.kind === 'update') {
      const values = nodeValues(plan.write.attr);
      const skip = plan.write.attr.type === 2 ? COLUMNS.indexOf('nlink') : -1;
      const sets = COLUMNS.flatMap((c, i) => (i === skip ? [] : [`${c} = ?`]));
      const params = [...values.filter((_, i) => i !== skip), ...keys];
      return { kind: 'write', sql: `UPDATE ${table} SET ${sets.join(', ')} ${where}`, params, expect: true };
    }
    if (plan.adjust !== undefined) {
      const t = micros(this.now.sec, this.now.nsec);
      const rest = this.now.nsec % 1000;
      const touch = plan.adjust.touch ? ', mtime = ?, ctime = ?, mtimensec = ?, ctimensec = ?' : '';
      const params = [plan.adjust.links, ...(plan.adjust.touch ? [t, t, rest, rest] : []), ...keys];
      return { kind: 'write', sql: `UPDATE ${table} SET nlink = nlink + ?${touch} ${where}`, params, expect: true };
    }
    // Whoever removes the directory locks its row; whoever makes an entry shares it. One that only loses an entry cannot be removed before that.
    const share = this.#mysql ? 'LOCK IN SHARE MODE' : 'FOR KEY SHARE';
    const lock = plan.locked ? ' FOR UPDATE' : this.#onlyLoses(plan.ino) ? '' : ` ${share}`;
    return { kind: 'one', sql: `FROM ${table} ${where}${lock}`, params: keys };
  }

  #onlyLoses(dir: Ino): boolean {
    const kinds = [...this.#edges.values()].filter(e => e.parent === dir).map(e => e.write?.kind);
    return kinds.includes('delete') && !kinds.includes('insert') && !kinds.includes('set');
  }

  /** Row locks in one order for all clients; rows of directories that many clients change come last and are held shortly. */
  #inOrder(): { nodes: Clause[]; edges: Clause[]; hot: Clause[] } {
    const plans = [...this.#nodes.values()].sort((a, b) => a.ino - b.ino);
    const isHot = (plan: NodePlan): boolean => plan.write === undefined && plan.adjust !== undefined;
    return {
      nodes: plans.filter(p => !isHot(p)).map(p => this.#nodeClause(p)),
      edges: [...this.#edges.values()].map(p => this.#edgeClause(p)),
      hot: plans.filter(isHot).map(p => this.#nodeClause(p)),
    };
  }

  /**
   * PostgreSQL: one statement of the conditions, the writes and `last`, which may use the answers of clauses before it (`appended`: the chunk's
   * length in bytes after the append). Its row: 1 and the answers in order; 0 when a condition or the first write did not hold, and then nothing has changed. A later
   * write that does not hold, which takes a change in the same moment, fails by a division by zero.
   */
  statement(last: readonly Clause[]): Statement {
    const { nodes, edges, hot } = this.#inOrder();
    const clauses = [...nodes, ...edges, ...this.#clauses, ...last, ...hot];
    // What is most likely stale: the row that changes, and where only new rows are made, the name.
    const first = nodes.find(c => c.kind === 'write' && !INSERT.test(c.sql)) ?? edges.find(c => c.kind === 'write');
    const checks: Clause[] = [
      ...clauses.filter(c => c.kind !== 'write'),
      ...edges.filter(c => c !== first && INSERT.test(c.sql)).map(c => this.#absent(c)),
    ];
    const params: SqlValue[] = [];
    const ctes: string[] = [];
    const add = (name: string, sql: string, values: readonly SqlValue[] = []): string => {
      params.push(...values);
      ctes.push(`${name} AS (${sql})`);
      return `EXISTS (SELECT 1 FROM ${name})`;
    };
    const held = checks.map((c, i) => {
      const found =
        c.kind === 'one'
          ? `SELECT 1 ${c.sql}`
          : `SELECT 1 WHERE ${c.kind === 'none' ? 'NOT ' : ''}EXISTS (SELECT 1 ${c.sql})`;
      return add(`c${i}`, found, c.params);
    });
    add('held', `SELECT 1${held.length > 0 ? ` WHERE ${held.join(' AND ')}` : ''}`);
    const conflict =
      first !== undefined && edges.includes(first) && INSERT.test(first.sql)
        ? ' ON CONFLICT (parent, name) DO NOTHING'
        : '';
    const begun =
      first === undefined
        ? 'EXISTS (SELECT 1 FROM held)'
        : add('begun', `${gated(first.sql, 'held')}${conflict} RETURNING 1`, first.params);
    const done = clauses
      .filter(c => c.kind === 'write' && c !== first)
      .flatMap((c, i) => {
        const sql = gated(c.sql, first === undefined ? 'held' : 'begun');
        const there = add(c.answer?.name ?? `w${i}`, `${sql} RETURNING ${c.answer?.value ?? 1} AS value`, c.params);
        return c.expect ? [there] : [];
      });
    const checked = done.length > 0 ? `1 / (CASE WHEN ${done.join(' AND ')} THEN 1 ELSE 0 END)` : '1';
    const answers = clauses.flatMap(c => (c.answer === undefined ? [] : [`, (SELECT value FROM ${c.answer.name})`]));
    return {
      sql: `WITH ${ctes.join(', ')} SELECT CASE WHEN ${begun} THEN ${checked} ELSE 0 END${answers.join('')}`,
      params,
      // An entry made while the statement waits for the directory's row would be in no snapshot of its own.
      first: this.#emptied.map(ino => ({
        sql: `SELECT 1 FROM ${this.#host.prefix}node WHERE inode = ? FOR UPDATE`,
        params: [inoToBigint(ino)],
      })),
    };
  }

  /** That the entry which `insert` makes is not there. */
  #absent(insert: Clause): Clause {
    return {
      kind: 'none',
      sql: `FROM ${this.#host.prefix}edge WHERE parent = ? AND name = ?`,
      params: insert.params.slice(0, 2),
    };
  }

  /** MySQL: statements with `?`, in order; `appended` (an integer variable) takes the chunk's length after the append. */
  sequence(last: readonly Clause[]): Clause[] {
    const { nodes, edges, hot } = this.#inOrder();
    if (this.#chunkClause < 0) return [...last, ...nodes, ...edges, ...this.#clauses, ...hot];
    const length: Clause = {
      kind: 'write',
      sql: `SELECT length(slices) INTO appended FROM ${this.#host.prefix}chunk WHERE inode = ? AND indx = ?`,
      params: this.#chunkKey,
    };
    const clauses = this.#clauses.toSpliced(this.#chunkClause + 1, 0, length);
    return [...nodes, ...clauses, ...last, ...edges, ...hot];
  }

  /** What changes: rows (with the attributes that they get, where the plan knows them whole), entries, and the file that gets data. */
  outcome(): {
    nodes: { ino: Ino; attr: Readonly<Attr> | undefined; links: number; touch: boolean; made: boolean }[];
    edges: { parent: Ino; name: Name; entry: Dentry | undefined }[];
    file: Ino | undefined;
  } {
    return {
      nodes: [...this.#nodes.values()]
        .filter(p => p.write !== undefined || p.adjust !== undefined)
        .map(({ ino, write, adjust }) => ({
          ino,
          attr: write === undefined || write.kind === 'delete' ? undefined : write.attr,
          links: adjust?.links ?? 0,
          touch: adjust?.touch ?? false,
          made: write?.kind === 'insert',
        })),
      edges: [...this.#edges.values()]
        .filter(p => p.write !== undefined)
        .map(({ parent, name, write }) => ({
          parent,
          name,
          entry: write === undefined || write.kind === 'delete' ? undefined : { ino: write.ino, type: write.type },
        })),
      file: this.#chunkKey.length > 0 ? toIno(this.#chunkKey[0]) : undefined,
    };
  }

  /** After the commit: what is known now. */
  remember(): void {
    const { sec, nsec } = this.now;
    for (const plan of this.#nodes.values()) {
      if (plan.write?.kind === 'delete') this.#seen.sawNode(plan.ino, undefined);
      else if (plan.write !== undefined) {
        // A change of the row alone leaves its entries as they were; those that this plan changed are forgotten or written below.
        const links = plan.read && (this.#links.get(plan.ino) ?? this.#seen.links(plan.ino, plan.read));
        if (links !== undefined) this.#seen.sawLinks(plan.ino, links, plan.write.attr);
        this.#seen.sawNode(plan.ino, plan.write.attr);
      } else if (plan.adjust !== undefined) {
        if (plan.read === undefined) this.#seen.forgetNode(plan.ino);
        else {
          const times = plan.adjust.touch ? { mtime: sec, mtimensec: nsec, ctime: sec, ctimensec: nsec } : {};
          this.#seen.sawNode(plan.ino, { ...plan.read, nlink: plan.read.nlink + plan.adjust.links, ...times });
        }
      }
    }
    for (const [key, { value }] of this.#xattrs) this.#seen.sawXattr(key, value);
    for (const [key, plan] of this.#edges) {
      if (plan.write === undefined) continue;
      for (const ino of [plan.read?.ino, plan.write.kind === 'delete' ? undefined : plan.write.ino])
        if (ino !== undefined && !this.#links.has(ino)) this.#seen.forgetLinks(ino);
      this.#seen.sawEdge(
        key,
        plan.write.kind === 'delete' ? undefined : { ino: plan.write.ino, type: plan.write.type },
      );
    }
  }

  /** After a failure: what was read may be stale. */
  forget(): void {
    for (const ino of this.#nodes.keys()) {
      this.#seen.forgetNode(ino);
      this.#seen.forgetLinks(ino);
    }
    for (const key of this.#edges.keys()) this.#seen.forgetEdge(key);
    for (const key of this.#xattrs.keys()) this.#seen.forgetXattr(key);
  }
}

/** Records in a chunk of `bytes`. */
export function recordCount(bytes: unknown): number {
  const length = toNumber(bytes);
  if (length % SLICE_BYTES !== 0) throw EIO.because(`a slice list of ${length} bytes`);
  return length / SLICE_BYTES;
}
