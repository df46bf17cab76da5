/**
 * The abstract transaction on PostgreSQL and MySQL/MariaDB: every step is one statement on the transaction's connection, in READ COMMITTED
 * with row locks (spec/meta-sql.md §4, §5). This is the interactive way, for databases where the user may not create routines.
 */
import { EINVAL, EIO } from '@steadfs/fuse/errno';
import { type AclRule, decodeAclEntries, encodeAclEntries } from '../../format/acl.ts';
import type { Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoFromBigint, inoToBigint } from '../../format/ino.ts';
import { decodeLocks, encodeLocks, type LockRecord } from '../../format/locks.ts';
import { CHUNK_SIZE, decodeSlices, encodeSlices, hole, SLICE_BYTES, type Slice } from '../../format/slice.ts';
import type { DeadSlice, Dentry, Name, TimeSet } from '../engine.ts';
import { decodeDead, encodeDead } from '../ops/record.ts';
import {
  type Body,
  type FlockRow,
  nothing,
  type PlockRow,
  type Step,
  type Tx,
  type UsageKind,
  type Volume,
} from '../ops/tx.ts';
import type { Delta } from '../usage.ts';
import type { SqlConnection, SqlKind, SqlRow, SqlValue } from './connection.ts';
import { SeenRows } from './seen-rows.ts';

export const NODE_COLUMNS =
  'type, flags, mode, uid, gid, atime, mtime, ctime, atimensec, mtimensec, ctimensec, nlink, length, rdev, parent, access_acl_id, default_acl_id, tier_id';
const I32_MAX = 0x7fffffff;

/** 64-bit integers come as bigint (PostgreSQL), number or decimal string (MySQL). */
export function toNumber(value: unknown): number {
  return value === null ? 0 : Number(value);
}

export function toIno(value: unknown): Ino {
  return value === null ? 0 : inoFromBigint(BigInt(value as bigint | number | string));
}

export function toBytes(value: unknown): Buffer {
  if (Buffer.isBuffer(value)) return value;
  if (value === null || value === undefined) return Buffer.alloc(0);
  return Buffer.from(String(value), 'utf8');
}

const owner64 = (owner: bigint): bigint => BigInt.asIntN(64, owner);

/** Microseconds and the rest below, spec/meta-sql.md §3. */
export function micros(sec: number, nsec: number): bigint {
  return BigInt(sec) * 1_000_000n + BigInt(Math.floor(nsec / 1000));
}

function fromMicros(value: unknown, rest: unknown): [sec: number, nsec: number] {
  const us = BigInt(value as bigint | number | string);
  const sec = us >= 0n ? us / 1_000_000n : -((-us + 999_999n) / 1_000_000n);
  return [Number(sec), Number(us - sec * 1_000_000n) * 1000 + toNumber(rest)];
}

/** The columns of {@link NODE_COLUMNS} from position `at`. */
export function nodeFromRow(row: SqlRow, at: number): Attr {
  const [atime, atimensec] = fromMicros(row[at + 5], row[at + 8]);
  const [mtime, mtimensec] = fromMicros(row[at + 6], row[at + 9]);
  const [ctime, ctimensec] = fromMicros(row[at + 7], row[at + 10]);
  return {
    type: toNumber(row[at]) as FileType,
    flags: toNumber(row[at + 1]),
    mode: toNumber(row[at + 2]),
    uid: toNumber(row[at + 3]),
    gid: toNumber(row[at + 4]),
    atime,
    atimensec,
    mtime,
    mtimensec,
    ctime,
    ctimensec,
    nlink: toNumber(row[at + 11]),
    length: toNumber(row[at + 12]),
    rdev: toNumber(row[at + 13]),
    parent: toIno(row[at + 14]),
    accessAcl: toNumber(row[at + 15]),
    defaultAcl: toNumber(row[at + 16]),
    tier: toNumber(row[at + 17]),
  };
}

export function nodeValues(a: Attr): SqlValue[] {
  // The columns are signed 32 bits: an id beyond cannot be stored (spec/meta-sql.md §2.3).
  if (a.uid > I32_MAX || a.gid > I32_MAX || a.rdev > I32_MAX)
    throw EINVAL.because('this database has no room for user, group or device numbers of 2^31 and more');
  return [
    a.type,
    a.flags,
    a.mode,
    a.uid,
    a.gid,
    micros(a.atime, a.atimensec),
    micros(a.mtime, a.mtimensec),
    micros(a.ctime, a.ctimensec),
    a.atimensec % 1000,
    a.mtimensec % 1000,
    a.ctimensec % 1000,
    a.nlink,
    a.length,
    a.rdev,
    inoToBigint(a.parent),
    a.accessAcl,
    a.defaultAcl,
    a.tier,
  ];
}

/** What the engine keeps for its transactions. */
export interface NetworkTxHost {
  readonly kind: SqlKind;
  readonly prefix: string;
  readonly volume: Volume;
  nextInode(): Promise<Ino>;
  /** Rows by which plans are made; told of what the interactive way reads and changes. */
  readonly seen?: SeenRows;
  /** An entry as the cache has it, null for none: enough to plan with, so that names looked up in memory are not asked for again. */
  remembered?(parent: Ino, name: Name): Dentry | null | undefined;
}

/** Columns of a rule; see {@link aclFromRow}. */
export function aclSelect(host: { kind: SqlKind; prefix: string }): string {
  const group = host.kind === 'mysql' ? '`group`' : '"group"';
  return `SELECT owner, ${group}, mask, other, named_users, named_groups FROM ${host.prefix}acl WHERE id = ?`;
}

export function aclFromRow(row: SqlRow): AclRule {
  return {
    owner: toNumber(row[0]),
    group: toNumber(row[1]),
    mask: toNumber(row[2]),
    other: toNumber(row[3]),
    users: decodeAclEntries(toBytes(row[4])),
    groups: decodeAclEntries(toBytes(row[5])),
  };
}

export class NetworkTx implements Tx {
  readonly volume: Volume;
  readonly now: TimeSet;
  readonly deltas: Delta[] = [];
  /** Inodes whose rows, directories whose entries, files whose data change. */
  readonly attrs = new Set<Ino>();
  readonly dirs = new Set<Ino>();
  readonly files = new Set<Ino>();
  readonly #c: SqlConnection;
  readonly #host: NetworkTxHost;
  readonly #p: string;
  readonly #mysql: boolean;
  readonly #writes: boolean;

  /** `writes`: inside a transaction, whose reads of slice lists lock them. */
  constructor(host: NetworkTxHost, connection: SqlConnection, now: TimeSet, writes = false) {
    this.#host = host;
    this.#writes = writes;
    this.#c = connection;
    this.#p = host.prefix;
    this.#mysql = host.kind === 'mysql';
    this.volume = host.volume;
    this.now = now;
  }

  *#all(sql: string, params: readonly SqlValue[]): Body<SqlRow[]> {
    return (yield this.#c.all(sql, params)) as SqlRow[];
  }

  *#run(sql: string, params: readonly SqlValue[]): Body<number> {
    return (yield this.#c.run(sql, params)) as number;
  }

  *#do(sql: string, params: readonly SqlValue[]): Body<void> {
    yield this.#c.run(sql, params);
  }

  /** INSERT … that updates `columns` where the key exists. */
  #upsert(table: string, columns: string, key: string, update: string): string {
    const marks = columns
      .split(',')
      .map(() => '?')
      .join(', ');
    const insert = `INSERT INTO ${this.#p}${table} (${columns}) VALUES (${marks}) `;
    return this.#mysql
      ? `${insert}ON DUPLICATE KEY UPDATE ${update.replace(/\bNEW\.(\w+)/g, 'VALUES($1)').replace(/\bOLD\./g, '')}`
      : `${insert}ON CONFLICT (${key}) DO UPDATE SET ${update.replace(/\bNEW\./g, 'EXCLUDED.').replace(/\bOLD\./g, `${this.#p}${table}.`)}`;
  }

  *#node(ino: Ino, lock: string): Body<Readonly<Attr> | undefined> {
    const rows = yield* this.#all(`SELECT ${NODE_COLUMNS} FROM ${this.#p}node WHERE inode = ?${lock}`, [
      inoToBigint(ino),
    ]);
    const attr = rows[0] && nodeFromRow(rows[0], 0);
    this.#host.seen?.sawNode(ino, attr);
    return attr;
  }

  /** A row that this transaction changes: plans made on it would fail. */
  #changes(ino: Ino): void {
    this.attrs.add(ino);
    this.#host.seen?.forgetNode(ino);
    this.#host.seen?.forgetLinks(ino);
  }

  #changesEdge(parent: Ino, name: Name): void {
    this.dirs.add(parent);
    this.#host.seen?.forgetEdge(SeenRows.key(parent, name));
  }

  node(ino: Ino): Step<Readonly<Attr> | undefined> {
    return this.#node(ino, '');
  }

  nodeForUpdate(ino: Ino): Step<Readonly<Attr> | undefined> {
    return this.#node(ino, ' FOR UPDATE');
  }

  *newInode(): Body<Ino> {
    return (yield this.#host.nextInode()) as Ino;
  }

  insertNode(ino: Ino, attr: Attr): Step<void> {
    this.#changes(ino);
    return this.#do(`INSERT INTO ${this.#p}node (inode, ${NODE_COLUMNS}) VALUES (?${', ?'.repeat(18)})`, [
      inoToBigint(ino),
      ...nodeValues(attr),
    ]);
  }

  updateNode(ino: Ino, attr: Attr): Step<void> {
    this.#changes(ino);
    const columns = NODE_COLUMNS.split(', ');
    const values = nodeValues(attr);
    const skip = attr.type === 2 ? columns.indexOf('nlink') : -1;
    const sets = columns.filter((_, i) => i !== skip).map(c => `${c} = ?`);
    return this.#do(`UPDATE ${this.#p}node SET ${sets.join(', ')} WHERE inode = ?`, [
      ...values.filter((_, i) => i !== skip),
      inoToBigint(ino),
    ]);
  }

  deleteNode(ino: Ino): Step<void> {
    this.#changes(ino);
    return this.#do(`DELETE FROM ${this.#p}node WHERE inode = ?`, [inoToBigint(ino)]);
  }

  *adjustDir(ino: Ino, links: number, touch: boolean): Body<void> {
    this.#changes(ino);
    const t = micros(this.now.sec, this.now.nsec);
    const rest = this.now.nsec % 1000;
    const changed = touch
      ? yield* this.#run(
          `UPDATE ${this.#p}node SET nlink = nlink + ?, mtime = ?, ctime = ?, mtimensec = ?, ctimensec = ? WHERE inode = ?`,
          [links, t, t, rest, rest, inoToBigint(ino)],
        )
      : yield* this.#run(`UPDATE ${this.#p}node SET nlink = nlink + ? WHERE inode = ?`, [links, inoToBigint(ino)]);
    if (changed === 0) throw EIO.because(`directory ${ino} vanished`);
  }

  *edge(parent: Ino, name: Name): Body<Readonly<Dentry> | undefined> {
    const rows = yield* this.#all(`SELECT inode, type FROM ${this.#p}edge WHERE parent = ? AND name = ?`, [
      inoToBigint(parent),
      name,
    ]);
    const found = rows[0] && { ino: toIno(rows[0][0]), type: toNumber(rows[0][1]) as FileType };
    this.#host.seen?.sawEdge(SeenRows.key(parent, name), found);
    return found;
  }

  insertEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void> {
    this.#changesEdge(parent, name);
    return this.#do(`INSERT INTO ${this.#p}edge (parent, name, inode, type) VALUES (?, ?, ?, ?)`, [
      inoToBigint(parent),
      name,
      inoToBigint(ino),
      type,
    ]);
  }

  *deleteEdge(parent: Ino, name: Name, ino: Ino): Body<void> {
    this.#changesEdge(parent, name);
    const n = yield* this.#run(`DELETE FROM ${this.#p}edge WHERE parent = ? AND name = ? AND inode = ?`, [
      inoToBigint(parent),
      name,
      inoToBigint(ino),
    ]);
    if (n === 0) throw new EntryChanged();
  }

  *moveEdge(parent: Ino, name: Name, newParent: Ino, newName: Name, ino: Ino, type: FileType): Body<void> {
    this.#changesEdge(parent, name);
    this.#changesEdge(newParent, newName);
    const n = yield* this.#run(
      `UPDATE ${this.#p}edge SET parent = ?, name = ?, type = ? WHERE parent = ? AND name = ? AND inode = ?`,
      [inoToBigint(newParent), newName, type, inoToBigint(parent), name, inoToBigint(ino)],
    );
    if (n === 0) throw new EntryChanged();
  }

  *setEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Body<void> {
    this.#changesEdge(parent, name);
    const n = yield* this.#run(`UPDATE ${this.#p}edge SET inode = ?, type = ? WHERE parent = ? AND name = ?`, [
      inoToBigint(ino),
      type,
      inoToBigint(parent),
      name,
    ]);
    if (n === 0) throw new EntryChanged();
  }

  *hasEntries(ino: Ino): Body<boolean> {
    return (yield* this.#all(`SELECT 1 FROM ${this.#p}edge WHERE parent = ? LIMIT 1`, [inoToBigint(ino)])).length > 0;
  }

  *parentsOf(ino: Ino): Body<Map<Ino, number>> {
    const rows = yield* this.#all(`SELECT parent, count(*) FROM ${this.#p}edge WHERE inode = ? GROUP BY parent`, [
      inoToBigint(ino),
    ]);
    return new Map(rows.map(r => [toIno(r[0]), toNumber(r[1])]));
  }

  addParent(): Step<void> {
    return nothing;
  }

  deleteParents(): Step<void> {
    return nothing;
  }

  *entries(parent: Ino, after: Name | undefined, limit: number): Body<{ name: Name; ino: Ino; type: FileType }[]> {
    const rows = yield* this.#all(
      `SELECT name, inode, type FROM ${this.#p}edge WHERE parent = ? AND name > ? ORDER BY name LIMIT ${Math.floor(limit)}`,
      [inoToBigint(parent), after ?? Buffer.alloc(0)],
    );
    return rows.map(r => ({ name: toBytes(r[0]), ino: toIno(r[1]), type: toNumber(r[2]) as FileType }));
  }

  *symlink(ino: Ino): Body<Uint8Array | undefined> {
    const rows = yield* this.#all(`SELECT target FROM ${this.#p}symlink WHERE inode = ?`, [inoToBigint(ino)]);
    return rows[0] && toBytes(rows[0][0]);
  }

  insertSymlink(ino: Ino, target: Uint8Array): Step<void> {
    return this.#do(`INSERT INTO ${this.#p}symlink (inode, target) VALUES (?, ?)`, [inoToBigint(ino), target]);
  }

  deleteSymlink(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}symlink WHERE inode = ?`, [inoToBigint(ino)]);
  }

  *xattr(ino: Ino, name: Name): Body<Uint8Array | undefined> {
    const rows = yield* this.#all(`SELECT value FROM ${this.#p}xattr WHERE inode = ? AND name = ?`, [
      inoToBigint(ino),
      xattrName(name),
    ]);
    const value = rows[0] && toBytes(rows[0][0]);
    this.#host.seen?.sawXattr(SeenRows.key(ino, name), value);
    return value;
  }

  *xattrNames(ino: Ino): Body<Name[]> {
    const rows = yield* this.#all(`SELECT name FROM ${this.#p}xattr WHERE inode = ?`, [inoToBigint(ino)]);
    return rows.map(r => toBytes(r[0]));
  }

  setXattr(ino: Ino, name: Name, value: Uint8Array): Step<void> {
    this.#host.seen?.forgetXattr(SeenRows.key(ino, name));
    return this.#do(this.#upsert('xattr', 'inode, name, value', 'inode, name', 'value = NEW.value'), [
      inoToBigint(ino),
      xattrName(name),
      value,
    ]);
  }

  *deleteXattr(ino: Ino, name: Name): Body<boolean> {
    this.#host.seen?.forgetXattr(SeenRows.key(ino, name));
    return (
      (yield* this.#run(`DELETE FROM ${this.#p}xattr WHERE inode = ? AND name = ?`, [
        inoToBigint(ino),
        xattrName(name),
      ])) > 0
    );
  }

  deleteXattrs(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}xattr WHERE inode = ?`, [inoToBigint(ino)]);
  }

  copyXattrs(from: Ino, to: Ino): Step<void> {
    return this.#do(
      `INSERT INTO ${this.#p}xattr (inode, name, value) SELECT ${inoToBigint(to)}, name, value FROM ${this.#p}xattr WHERE inode = ?`,
      [inoToBigint(from)],
    );
  }

  *chunk(ino: Ino, index: number): Body<Slice[]> {
    // A commit appends without reading: between a plain read and the list that is made of it, its record would be lost.
    const lock = this.#writes ? ' FOR UPDATE' : '';
    const rows = yield* this.#all(`SELECT slices FROM ${this.#p}chunk WHERE inode = ? AND indx = ?${lock}`, [
      inoToBigint(ino),
      index,
    ]);
    return rows[0] ? slicesOf(toBytes(rows[0][0]), ino, index) : [];
  }

  *appendChunk(ino: Ino, index: number, records: readonly Slice[]): Body<number> {
    this.files.add(ino);
    const join = this.#mysql ? 'concat(OLD.slices, NEW.slices)' : 'OLD.slices || NEW.slices';
    yield* this.#run(this.#upsert('chunk', 'inode, indx, slices', 'inode, indx', `slices = ${join}`), [
      inoToBigint(ino),
      index,
      encodeSlices(records),
    ]);
    const rows = yield* this.#all(`SELECT length(slices) FROM ${this.#p}chunk WHERE inode = ? AND indx = ?`, [
      inoToBigint(ino),
      index,
    ]);
    return toNumber(rows[0]?.[0] ?? 0) / SLICE_BYTES;
  }

  coverChunk(ino: Ino, index: number): Step<void> {
    this.files.add(ino);
    const join = this.#mysql ? 'concat(slices, ?)' : 'slices || ?';
    return this.#do(`UPDATE ${this.#p}chunk SET slices = ${join} WHERE inode = ? AND indx = ?`, [
      encodeSlices([hole(0, CHUNK_SIZE)]),
      inoToBigint(ino),
      index,
    ]);
  }

  replaceChunk(ino: Ino, index: number, records: readonly Slice[]): Step<void> {
    this.files.add(ino);
    if (records.length === 0)
      return this.#do(`DELETE FROM ${this.#p}chunk WHERE inode = ? AND indx = ?`, [inoToBigint(ino), index]);
    return this.#do(this.#upsert('chunk', 'inode, indx, slices', 'inode, indx', 'slices = NEW.slices'), [
      inoToBigint(ino),
      index,
      encodeSlices(records),
    ]);
  }

  *chunkIndexes(ino: Ino, from: number, to: number, limit: number): Body<number[]> {
    const rows = yield* this.#all(
      `SELECT indx FROM ${this.#p}chunk WHERE inode = ? AND indx >= ? AND indx <= ? ORDER BY indx LIMIT ${Math.floor(limit)}`,
      [inoToBigint(ino), from, Math.min(to, I32_MAX)],
    );
    return rows.map(r => toNumber(r[0]));
  }

  addSlice(id: number, size: number, refs: number): Step<void> {
    return this.#do(this.#upsert('chunk_ref', 'chunkid, size, refs', 'chunkid', 'refs = OLD.refs + NEW.refs'), [
      id,
      size,
      refs,
    ]);
  }

  *addRefs(id: number, size: number, refs: number): Body<number> {
    yield* this.#run(`UPDATE ${this.#p}chunk_ref SET refs = refs + ? WHERE chunkid = ? AND size = ?`, [refs, id, size]);
    const rows = yield* this.#all(`SELECT refs FROM ${this.#p}chunk_ref WHERE chunkid = ?`, [id]);
    return toNumber(rows[0]?.[0] ?? 0);
  }

  *deadSlices(limit: number): Body<DeadSlice[]> {
    const rows = yield* this.#all(
      `SELECT chunkid, size FROM ${this.#p}chunk_ref WHERE refs <= 0 LIMIT ${Math.floor(limit)}`,
      [],
    );
    return rows.map(r => ({ id: toNumber(r[0]), size: toNumber(r[1]) }));
  }

  deleteSlice(id: number): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}chunk_ref WHERE chunkid = ? AND refs <= 0`, [id]);
  }

  insertDelayed(key: number, slices: readonly DeadSlice[]): Step<void> {
    return this.#do(`INSERT INTO ${this.#p}delslices (chunkid, deleted, slices) VALUES (?, ?, ?)`, [
      key,
      this.now.sec,
      encodeDead(slices),
    ]);
  }

  *delayedBefore(unixSeconds: number, limit: number): Body<{ key: number; slices: DeadSlice[] }[]> {
    const rows = yield* this.#all(
      `SELECT chunkid, slices FROM ${this.#p}delslices WHERE deleted < ? LIMIT ${Math.floor(limit)} FOR UPDATE`,
      [Math.floor(unixSeconds)],
    );
    return rows.map(r => ({ key: toNumber(r[0]), slices: decodeDead(toBytes(r[1])) }));
  }

  *delayedSlices(): Body<DeadSlice[]> {
    const rows = yield* this.#all(`SELECT slices FROM ${this.#p}delslices`, []);
    return rows.flatMap(r => decodeDead(toBytes(r[0])));
  }

  deleteDelayed(key: number): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}delslices WHERE chunkid = ?`, [key]);
  }

  insertDelfile(ino: Ino, length: number): Step<void> {
    return this.#do(`INSERT INTO ${this.#p}delfile (inode, length, expire) VALUES (?, ?, ?)`, [
      inoToBigint(ino),
      length,
      this.now.sec,
    ]);
  }

  *delfiles(before: number, limit: number): Body<{ ino: Ino; length: number }[]> {
    const rows = yield* this.#all(
      `SELECT inode, length FROM ${this.#p}delfile WHERE expire < ? LIMIT ${Math.floor(limit)}`,
      [Math.floor(before)],
    );
    return rows.map(r => ({ ino: toIno(r[0]), length: toNumber(r[1]) }));
  }

  deleteDelfile(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}delfile WHERE inode = ?`, [inoToBigint(ino)]);
  }

  insertSustained(sid: number, ino: Ino): Step<void> {
    return this.#do(this.#upsert('sustained', 'sid, inode', 'sid, inode', 'sid = NEW.sid'), [sid, inoToBigint(ino)]);
  }

  deleteSustained(sid: number, ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}sustained WHERE sid = ? AND inode = ?`, [sid, inoToBigint(ino)]);
  }

  *isSustained(ino: Ino): Body<boolean> {
    return (
      (yield* this.#all(`SELECT 1 FROM ${this.#p}sustained WHERE inode = ? LIMIT 1`, [inoToBigint(ino)])).length > 0
    );
  }

  *sustainedOf(sid: number): Body<Ino[]> {
    return (yield* this.#all(`SELECT inode FROM ${this.#p}sustained WHERE sid = ?`, [sid])).map(r => toIno(r[0]));
  }

  insertDetached(ino: Ino): Step<void> {
    return this.#do(`INSERT INTO ${this.#p}detached_node (inode, added) VALUES (?, ?)`, [
      inoToBigint(ino),
      this.now.sec,
    ]);
  }

  deleteDetached(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}detached_node WHERE inode = ?`, [inoToBigint(ino)]);
  }

  *acl(id: number): Body<AclRule | undefined> {
    const rows = yield* this.#all(aclSelect(this.#host), [id]);
    return rows[0] && aclFromRow(rows[0]);
  }

  #group(): string {
    return this.#mysql ? '`group`' : '"group"';
  }

  *aclId(rule: AclRule): Body<number> {
    const values = [
      rule.owner,
      rule.group,
      rule.mask,
      rule.other,
      encodeAclEntries(rule.users),
      encodeAclEntries(rule.groups),
    ];
    const found = yield* this.#all(
      `SELECT id FROM ${this.#p}acl WHERE owner = ? AND ${this.#group()} = ? AND mask = ? AND other = ? AND named_users = ? AND named_groups = ? ORDER BY id LIMIT 1`,
      values,
    );
    if (found[0]) return toNumber(found[0][0]);
    const insert = `INSERT INTO ${this.#p}acl (owner, ${this.#group()}, mask, other, named_users, named_groups) VALUES (?, ?, ?, ?, ?, ?)`;
    if (!this.#mysql) return toNumber((yield* this.#all(`${insert} RETURNING id`, values))[0]?.[0] ?? 0);
    yield* this.#run(insert, values);
    return toNumber((yield* this.#all('SELECT last_insert_id()', []))[0]?.[0] ?? 0);
  }

  *flocks(ino: Ino): Body<FlockRow[]> {
    const rows = yield* this.#all(`SELECT sid, owner, ltype FROM ${this.#p}flock WHERE inode = ? FOR UPDATE`, [
      inoToBigint(ino),
    ]);
    return rows.map(r => ({
      sid: toNumber(r[0]),
      owner: BigInt.asUintN(64, BigInt(r[1] as bigint)),
      type: toNumber(r[2]) === 82 ? 'R' : 'W',
    }));
  }

  setFlock(ino: Ino, owner: bigint, type: 'R' | 'W'): Step<void> {
    return this.#do(this.#upsert('flock', 'inode, sid, owner, ltype', 'inode, sid, owner', 'ltype = NEW.ltype'), [
      inoToBigint(ino),
      this.volume.sid,
      owner64(owner),
      type.charCodeAt(0),
    ]);
  }

  deleteFlock(ino: Ino, owner: bigint): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}flock WHERE inode = ? AND sid = ? AND owner = ?`, [
      inoToBigint(ino),
      this.volume.sid,
      owner64(owner),
    ]);
  }

  *plocks(ino: Ino): Body<PlockRow[]> {
    const rows = yield* this.#all(`SELECT sid, owner, records FROM ${this.#p}plock WHERE inode = ? FOR UPDATE`, [
      inoToBigint(ino),
    ]);
    return rows.map(r => ({
      sid: toNumber(r[0]),
      owner: BigInt.asUintN(64, BigInt(r[1] as bigint)),
      records: decodeLocks(toBytes(r[2])),
    }));
  }

  setPlock(ino: Ino, owner: bigint, records: readonly LockRecord[]): Step<void> {
    const key = [inoToBigint(ino), this.volume.sid, owner64(owner)];
    if (records.length === 0)
      return this.#do(`DELETE FROM ${this.#p}plock WHERE inode = ? AND sid = ? AND owner = ?`, key);
    return this.#do(this.#upsert('plock', 'inode, sid, owner, records', 'inode, sid, owner', 'records = NEW.records'), [
      ...key,
      encodeLocks(records),
    ]);
  }

  *addCounter(name: string, delta: number): Body<number> {
    yield* this.#run(this.#upsert('counter', 'name, value', 'name', 'value = OLD.value + NEW.value'), [name, delta]);
    return yield* this.#counter(name);
  }

  *#counter(name: string): Body<number> {
    return toNumber((yield* this.#all(`SELECT value FROM ${this.#p}counter WHERE name = ?`, [name]))[0]?.[0] ?? 0);
  }

  counter(name: string): Step<number> {
    return this.#counter(name);
  }

  setCounter(name: string, value: number): Step<void> {
    return this.#do(this.#upsert('counter', 'name, value', 'name', 'value = NEW.value'), [name, value]);
  }

  insertDirStat(ino: Ino, length: number, space: number, inodes: number): Step<void> {
    return this.#do(
      this.#upsert(
        'dir_stats',
        'inode, data_length, used_space, used_inodes',
        'inode',
        'data_length = NEW.data_length, used_space = NEW.used_space, used_inodes = NEW.used_inodes',
      ),
      [inoToBigint(ino), length, space, inodes],
    );
  }

  *dirStat(ino: Ino): Body<{ length: number; space: number; inodes: number } | undefined> {
    const rows = yield* this.#all(
      `SELECT data_length, used_space, used_inodes FROM ${this.#p}dir_stats WHERE inode = ?`,
      [inoToBigint(ino)],
    );
    return rows[0] && { length: toNumber(rows[0][0]), space: toNumber(rows[0][1]), inodes: toNumber(rows[0][2]) };
  }

  deleteDirStat(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}dir_stats WHERE inode = ?`, [inoToBigint(ino)]);
  }

  deleteDirQuota(ino: Ino): Step<void> {
    return this.#do(`DELETE FROM ${this.#p}dir_quota WHERE inode = ?`, [inoToBigint(ino)]);
  }

  account(kind: UsageKind, key: number, length: number, space: number, inodes: number): void {
    const same = this.deltas.find(d => d.kind === kind && d.key === key);
    if (same === undefined) this.deltas.push({ kind, key, length, space, inodes });
    else {
      same.length += length;
      same.space += space;
      same.inodes += inodes;
    }
  }

  log(entry: string): Step<void> {
    return this.#do(`INSERT INTO ${this.#p}change_log (entry) VALUES (?)`, [entry]);
  }
}

/** An entry that was read is not what it was: the transaction is run again. */
export class EntryChanged extends Error {
  constructor() {
    super('an entry changed under the transaction');
    this.name = 'EntryChanged';
  }
}

/** A name as the text that the column holds; EINVAL when it is none. */
export function xattrName(name: Name): string {
  const text = Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('utf8');
  if (!Buffer.from(text, 'utf8').equals(name))
    throw EINVAL.because('this database stores names of extended attributes as UTF-8 text');
  return text;
}

function slicesOf(bytes: Buffer, ino: Ino, index: number): Slice[] {
  try {
    return decodeSlices(bytes);
  } catch (e) {
    throw EIO.because(`chunk ${index} of inode ${ino}`, e);
  }
}
