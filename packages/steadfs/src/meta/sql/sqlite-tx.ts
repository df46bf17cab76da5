/** The rows of a volume on SQLite: prepared statements and the caches before them, as the steps of an abstract transaction. */
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite';
import { EIO } from '@steadfs/fuse/errno';
import { type AclRule, decodeAclEntries, encodeAclEntries } from '../../format/acl.ts';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint, SPECIAL } from '../../format/ino.ts';
import { decodeLocks, encodeLocks, type LockRecord } from '../../format/locks.ts';
import { CHUNK_SIZE, decodeSlices, encodeSlices, hole, type Slice } from '../../format/slice.ts';
import { now } from '../clock.ts';
import type { RawEntry } from '../dir-pages.ts';
import type { DeadSlice, Dentry, Name, TimeSet } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import { decodeDead, encodeDead } from '../ops/record.ts';
import {
  done,
  type FlockRow,
  nothing,
  type PlockRow,
  runSync,
  type Step,
  type Tx,
  type UsageKind,
  type Volume,
} from '../ops/tx.ts';
import { addDelta, type Delta } from '../usage.ts';
import { ownPrefix } from './schema.ts';

/** 0x7FFFFFFF00000000, the first internal inode of the format, and what its distance to ours is. */
const STORED_SPECIAL = '9223372032559808512';
const STORED_SHIFT = '9218868432932438016';

/** An inode column as our number (safe for JavaScript). */
export function inoColumn(column: string): string {
  return `CASE WHEN ${column}>=${STORED_SPECIAL} THEN ${column}-${STORED_SHIFT} ELSE ${column} END`;
}

/** An inode as a parameter. */
export function inoParam(ino: Ino): number | bigint {
  return ino < SPECIAL ? ino : inoToBigint(ino);
}

/** Columns of a node for {@link attrOfRow}, with a table alias. */
function nodeColumns(t = ''): string {
  const parent = inoColumn(`${t}parent`);
  return `${t}flags,${t}type,${t}mode,${t}uid,${t}gid,${t}atime,${t}mtime,${t}ctime,${t}atimensec,${t}mtimensec,${t}ctimensec,${t}nlink,${t}length,${t}rdev,${parent},${t}access_acl_id,${t}default_acl_id,${t}tier_id`;
}

export type Row = (number | bigint | string | Uint8Array | null)[];

const BAD_YEAR = 2 ** 53;

/** Microseconds and the rest below one (0..999) as seconds and nanoseconds. */
function splitTime(us: number | bigint, rest: number): [sec: number, nsec: number] {
  if (typeof us === 'bigint') {
    let r = us % 1000000n;
    if (r < 0n) r += 1000000n;
    return [Number((us - r) / 1000000n), Number(r) * 1000 + rest];
  }
  let r = us % 1000000;
  if (r < 0) r += 1000000;
  return [(us - r) / 1000000, r * 1000 + rest];
}

function joinTime(sec: number, nsec: number): number | bigint {
  const us = sec * 1000000 + Math.floor(nsec / 1000);
  return us < BAD_YEAR && us > -BAD_YEAR ? us : BigInt(sec) * 1000000n + BigInt(Math.floor(nsec / 1000));
}

/** Attributes from the columns of {@link nodeColumns}, which begin at `at`. */
function attrOfRow(row: Row, at: number): Attr {
  const r = row as (number | null)[];
  const [atime, atimensec] = splitTime(r[at + 5]!, Number(r[at + 8]));
  const [mtime, mtimensec] = splitTime(r[at + 6]!, Number(r[at + 9]));
  const [ctime, ctimensec] = splitTime(r[at + 7]!, Number(r[at + 10]));
  return {
    flags: r[at]!,
    type: r[at + 1]! as FileType,
    mode: r[at + 2]!,
    uid: r[at + 3]!,
    gid: r[at + 4]!,
    atime,
    atimensec,
    mtime,
    mtimensec,
    ctime,
    ctimensec,
    nlink: r[at + 11]!,
    length: r[at + 12]!,
    rdev: r[at + 13] ?? 0,
    parent: r[at + 14] ?? 0,
    accessAcl: r[at + 15] ?? 0,
    defaultAcl: r[at + 16] ?? 0,
    tier: r[at + 17] ?? 0,
  };
}

/** The same for a row read with big integers: what does not fit a number is clamped (lengths of the Go client go to 2^57). */
function attrOfBigRow(row: Row, at: number): Attr {
  const small = row.map((v, i) => {
    if (typeof v !== 'bigint' || (i >= at + 5 && i <= at + 7)) return v;
    return v > 9007199254740991n ? Number.MAX_SAFE_INTEGER : Number(v);
  });
  return attrOfRow(small, at);
}

function isOutOfRange(e: unknown): boolean {
  return e instanceof Error && (e as { code?: string }).code === 'ERR_OUT_OF_RANGE';
}

/** Names as keys of maps. */
export function nameKey(name: Name): string {
  return Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');
}

/** Prepared statements, made when first used; rows come as arrays. */
export class Statements {
  readonly db: DatabaseSync;
  readonly prefix: string;
  #cache = new Map<string, StatementSync>();

  constructor(db: DatabaseSync, prefix: string) {
    this.db = db;
    this.prefix = prefix;
  }

  /** `$` in the text stands for the prefix of the volume's tables, `@` for that of our own. */
  get(sql: string, big = false): StatementSync {
    const key = big ? `B${sql}` : sql;
    let s = this.#cache.get(key);
    if (s === undefined) {
      s = this.db.prepare(sql.replaceAll('$', this.prefix).replaceAll('@', ownPrefix(this.prefix)));
      s.setReturnArrays(true);
      if (big) s.setReadBigInts(true);
      this.#cache.set(key, s);
    }
    return s;
  }

  one(sql: string, ...params: SQLInputValue[]): Row | undefined {
    return this.get(sql).get(...params) as Row | undefined;
  }

  all(sql: string, ...params: SQLInputValue[]): Row[] {
    return this.get(sql).all(...params) as unknown as Row[];
  }

  /**
   * A write. Not by run(): that reads the last row id, which a trash folder's inode makes too large for a number.
   */
  exec(sql: string, ...params: SQLInputValue[]): void {
    this.get(sql).get(...params);
  }

  /** A write; rows changed. */
  run(sql: string, ...params: SQLInputValue[]): number {
    this.get(sql).get(...params);
    return (this.get('SELECT changes()').get() as unknown as number[])[0]!;
  }
}

/** Attributes and entries that a cache holds at most. */
const CACHE_LIMIT = 20000;
/** After so many absent names in a directory its entries are read, when they are not more than that: the next one needs no query. */
const ABSENT_MANY = 16;
const LIST_FEW = 1024;
const INODE_BATCH = 1024;
/** Row numbers taken at once from sqlite_sequence, whose page would otherwise be written with every row. */
const ROW_BATCH = 1024;

const SELECT_NODE = `SELECT ${nodeColumns()} FROM $node WHERE inode=?`;
const LOOKUP = `SELECT ${inoColumn('e.inode')},e.type,${nodeColumns('n.')} FROM $edge e LEFT JOIN $node n ON n.inode=e.inode WHERE e.parent=? AND e.name=?`;
const SELECT_EDGE = `SELECT ${inoColumn('inode')},type FROM $edge WHERE parent=? AND name=?`;
const INSERT_EDGE = 'INSERT INTO $edge(id,parent,name,inode,type) VALUES(?,?,?,?,?)';
const DELETE_EDGE = 'DELETE FROM $edge WHERE parent=? AND name=?';
const INSERT_NODE =
  'INSERT INTO $node(inode,type,flags,mode,uid,gid,atime,mtime,ctime,atimensec,mtimensec,ctimensec,nlink,length,rdev,parent,access_acl_id,default_acl_id,tier_id) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)';
const UPDATE_NODE =
  'UPDATE $node SET type=?,flags=?,mode=?,uid=?,gid=?,atime=?,mtime=?,ctime=?,atimensec=?,mtimensec=?,ctimensec=?,nlink=?,length=?,rdev=?,parent=?,access_acl_id=?,default_acl_id=?,tier_id=? WHERE inode=?';

function nodeParams(a: Attr): SQLInputValue[] {
  return [
    a.type,
    a.flags,
    a.mode,
    a.uid,
    a.gid,
    joinTime(a.atime, a.atimensec),
    joinTime(a.mtime, a.mtimensec),
    joinTime(a.ctime, a.ctimensec),
    a.atimensec % 1000,
    a.mtimensec % 1000,
    a.ctimensec % 1000,
    a.nlink,
    a.length,
    a.rdev,
    inoParam(a.parent),
    a.accessAcl,
    a.defaultAcl,
    a.tier,
  ];
}

export class SqliteTx implements Tx {
  readonly volume: Volume;
  readonly st: Statements;
  now: TimeSet = now();
  /** Writes of the body that runs. */
  writes = 0;
  /** Usage that the body that runs has collected. */
  deltas: Delta[] = [];
  /** Inodes whose locks were released by the group that runs. */
  readonly unlocked = new Set<Ino>();
  #nodes = new Map<Ino, Attr>();
  /** Known entries by directory, null for names known to be absent. */
  #edges = new Map<Ino, Map<string, Dentry | null>>();
  #edgeCount = 0;
  /** Directories all of whose entries are in #edges (no nulls there): made here, or listed, and unchanged by others since. */
  #complete = new Set<Ino>();
  /** The directory that was listed last, while it is known whole and unchanged: who lists it again gets the same entries, hashed and sorted already. */
  #listed: { dir: Ino; entries: RawEntry[] } | undefined;
  /** Queries that found nothing, by directory. */
  #absent = new Map<Ino, number>();
  #links = new Map<Ino, Map<Ino, number>>();
  #acls = new Map<number, AclRule>();
  #nextInode = 0;
  #endInode = 0;
  #rows = { edge: { next: 0, end: 0 }, chunk: { next: 0, end: 0 } };

  constructor(st: Statements, volume: Volume) {
    this.st = st;
    this.volume = volume;
  }

  /** Begins the body of one operation. */
  begin(): void {
    this.now = now();
    this.writes = 0;
    this.deltas = [];
  }

  /** Another connection has written: nothing that was read counts. */
  dropCaches(): void {
    if (this.#nodes.size > 0) this.#nodes = new Map();
    if (this.#edges.size > 0) this.#edges = new Map();
    this.#edgeCount = 0;
    this.#listed = undefined;
    if (this.#complete.size > 0) this.#complete = new Set();
    if (this.#absent.size > 0) this.#absent = new Map();
    if (this.#links.size > 0) this.#links.clear();
  }

  /** The transaction was rolled back. */
  rolledBack(): void {
    this.dropCaches();
    this.#acls.clear();
    this.#endInode = this.#nextInode = 0;
    this.#rows = { edge: { next: 0, end: 0 }, chunk: { next: 0, end: 0 } };
    this.unlocked.clear();
  }

  // ── inodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

  cacheNode(ino: Ino, attr: Attr): void {
    if (this.#nodes.size >= CACHE_LIMIT) this.#nodes = new Map();
    this.#nodes.set(ino, attr);
  }

  /** Shared with the cache. */
  readNode(ino: Ino): Attr | undefined {
    let attr = this.#nodes.get(ino);
    if (attr !== undefined) return attr;
    attr = this.#selectNode(ino);
    if (attr !== undefined) this.cacheNode(ino, attr);
    return attr;
  }

  #selectNode(ino: Ino): Attr | undefined {
    const key = inoParam(ino);
    try {
      const row = this.st.get(SELECT_NODE).get(key) as unknown as Row | undefined;
      return row === undefined ? undefined : attrOfRow(row, 0);
    } catch (e) {
      if (!isOutOfRange(e)) throw e;
      const row = this.st.get(SELECT_NODE, true).get(key) as unknown as Row | undefined;
      return row === undefined ? undefined : attrOfBigRow(row, 0);
    }
  }

  cachedNode(ino: Ino): Attr | undefined {
    return this.#nodes.get(ino);
  }

  /** Attributes, by one statement, of those inodes that are not in the cache; nor are they put there. Missing ones are not in the answer. */
  fetchNodes(inos: readonly Ino[]): Map<Ino, Attr> {
    const out = new Map<Ino, Attr>();
    const missing = inos.filter(ino => ino < SPECIAL && !this.#nodes.has(ino));
    if (missing.length < 8) return out;
    const sql = `SELECT inode,${nodeColumns()} FROM $node WHERE inode IN (SELECT value FROM json_each(?))`;
    try {
      for (const row of this.st.all(sql, `[${missing.join(',')}]`)) out.set(row[0] as number, attrOfRow(row, 1));
    } catch (e) {
      // A time or length beyond 2^53 among them: one by one then.
      if (!isOutOfRange(e)) throw e;
    }
    return out;
  }

  node(ino: Ino): Step<Readonly<Attr> | undefined> {
    return done(this.readNode(ino));
  }

  nodeForUpdate(ino: Ino): Step<Readonly<Attr> | undefined> {
    return done(this.readNode(ino));
  }

  newInode(): Step<Ino> {
    if (this.#nextInode >= this.#endInode) {
      this.#endInode = this.bump('nextInode', INODE_BATCH);
      runSync(logChange(this, 'INCR_COUNTER', () => ['nextInode', INODE_BATCH]));
      this.#nextInode = this.#endInode - INODE_BATCH;
    }
    return done(this.#nextInode++);
  }

  /** The next row number of a table with AUTOINCREMENT. */
  #rowId(table: 'edge' | 'chunk'): number {
    const range = this.#rows[table];
    if (range.next >= range.end) {
      const key = this.st.prefix + table;
      let row = this.st.one('UPDATE sqlite_sequence SET seq=seq+? WHERE name=? RETURNING seq', ROW_BATCH, key);
      if (row === undefined) {
        this.st.exec('INSERT INTO sqlite_sequence(name,seq) VALUES(?,?)', key, ROW_BATCH);
        row = [ROW_BATCH];
      }
      range.end = (row[0] as number) + 1;
      range.next = range.end - ROW_BATCH;
    }
    return range.next++;
  }

  insertNode(ino: Ino, attr: Attr): Step<void> {
    this.writes++;
    // run() answers the row id, which is the inode: a trash inode is beyond 2^53.
    this.st.get(INSERT_NODE).get(inoParam(ino), ...nodeParams(attr));
    this.cacheNode(ino, { ...attr });
    // Inode numbers are never used again: a new directory has no entries.
    if (attr.type === FileType.directory) this.#setComplete(ino, new Map());
    return nothing;
  }

  updateNode(ino: Ino, attr: Attr): Step<void> {
    this.writes++;
    const stored = { ...attr };
    // A directory's nlink is only ever changed by adjustDir, which may have run since `attr` was read.
    if (attr.type === FileType.directory) stored.nlink = this.readNode(ino)?.nlink ?? attr.nlink;
    this.st.get(UPDATE_NODE).get(...nodeParams(stored), inoParam(ino));
    this.cacheNode(ino, stored);
    return nothing;
  }

  deleteNode(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $node WHERE inode=?', inoParam(ino));
    this.#nodes.delete(ino);
    this.#links.delete(ino);
    this.#forgetEdges(ino);
    return nothing;
  }

  adjustDir(ino: Ino, links: number, touch: boolean): Step<void> {
    this.writes++;
    const { sec, nsec } = this.now;
    const us = joinTime(sec, nsec);
    const rest = nsec % 1000;
    const cached = this.#nodes.get(ino);
    if (!touch) this.st.exec('UPDATE $node SET nlink=nlink+? WHERE inode=?', links, inoParam(ino));
    else {
      const sql = 'UPDATE $node SET nlink=nlink+?,mtime=?,ctime=?,mtimensec=?,ctimensec=? WHERE inode=?';
      this.st.get(sql).get(links, us, us, rest, rest, inoParam(ino));
    }
    if (cached !== undefined) {
      const next = { ...cached, nlink: cached.nlink + links };
      if (touch) {
        next.mtime = next.ctime = sec;
        next.mtimensec = next.ctimensec = nsec;
      }
      this.#nodes.set(ino, next);
    }
    return nothing;
  }

  // ── entries ───────────────────────────────────────────────────────────────────────────────────────────────────────

  #forgetEdges(dir: Ino): void {
    if (this.#listed?.dir === dir) this.#listed = undefined;
    const names = this.#edges.get(dir);
    if (names === undefined) return;
    // A directory counts as one: an empty one takes memory too.
    this.#edgeCount -= names.size + 1;
    this.#edges.delete(dir);
    this.#complete.delete(dir);
    this.#absent.delete(dir);
  }

  /** The entries that were put there first go, by directory, until half of the room is free. */
  #makeRoom(): void {
    for (const dir of this.#edges.keys()) {
      if (this.#edgeCount <= CACHE_LIMIT / 2) break;
      this.#forgetEdges(dir);
    }
  }

  #setComplete(dir: Ino, names: Map<string, Dentry>): void {
    this.#forgetEdges(dir);
    if (this.#edgeCount + names.size >= CACHE_LIMIT) this.#makeRoom();
    this.#edges.set(dir, names);
    this.#edgeCount += names.size + 1;
    this.#complete.add(dir);
  }

  #cacheEdge(parent: Ino, key: string, entry: Dentry | null): void {
    if (this.#listed?.dir === parent) this.#listed = undefined;
    if (this.#edgeCount >= CACHE_LIMIT) this.#makeRoom();
    let names = this.#edges.get(parent);
    if (names === undefined) {
      names = new Map();
      this.#edges.set(parent, names);
      this.#edgeCount++;
    }
    const before = names.size;
    if (entry === null && this.#complete.has(parent)) names.delete(key);
    else names.set(key, entry);
    this.#edgeCount += names.size - before;
  }

  /** null: known to be absent; undefined: not known. */
  #knownEdge(parent: Ino, key: string): Dentry | null | undefined {
    const names = this.#edges.get(parent);
    if (names === undefined) return undefined;
    const entry = names.get(key);
    return entry === undefined && this.#complete.has(parent) ? null : entry;
  }

  /** A query found no entry of this name. */
  #noEdge(parent: Ino, key: string): void {
    const count = (this.#absent.get(parent) ?? 0) + 1;
    this.#absent.set(parent, count);
    if (count !== ABSENT_MANY) {
      this.#cacheEdge(parent, key, null);
      return;
    }
    const list = this.listNames(parent, undefined, undefined, LIST_FEW + 1);
    if (list.length > LIST_FEW) this.#cacheEdge(parent, key, null);
    else this.#setComplete(parent, edgesOf(list));
  }

  /** null: known to be absent. */
  readEdge(parent: Ino, name: Name): Dentry | null {
    const key = nameKey(name);
    const known = this.#knownEdge(parent, key);
    if (known !== undefined) return known;
    const row = this.st.get(SELECT_EDGE).get(inoParam(parent), name) as unknown as number[] | undefined;
    if (row === undefined) {
      this.#noEdge(parent, key);
      return null;
    }
    const entry = { ino: row[0]!, type: row[1]! as FileType };
    this.#cacheEdge(parent, key, entry);
    return entry;
  }

  /** The inode of a name, attributes loaded into the cache with it; 0 when there is none. */
  lookup(parent: Ino, name: Name): Ino {
    const key = nameKey(name);
    const known = this.#knownEdge(parent, key);
    if (known === null) return 0;
    if (known !== undefined && this.#nodes.has(known.ino)) return known.ino;
    let row: Row | undefined;
    let attr: Attr | undefined;
    try {
      row = this.st.get(LOOKUP).get(inoParam(parent), name) as unknown as Row | undefined;
      // An entry whose inode is missing has no attributes: as good as absent, but not remembered as such.
      if (row !== undefined && row[2] !== null) attr = attrOfRow(row, 2);
    } catch (e) {
      if (!isOutOfRange(e)) throw e;
      row = this.st.get(LOOKUP, true).get(inoParam(parent), name) as unknown as Row | undefined;
      if (row !== undefined && row[2] !== null) attr = attrOfBigRow(row, 2);
    }
    if (row === undefined) this.#noEdge(parent, key);
    if (row === undefined || attr === undefined) return 0;
    const ino = Number(row[0]);
    this.cacheNode(ino, attr);
    this.#cacheEdge(parent, key, { ino, type: Number(row[1]) as FileType });
    return ino;
  }

  edge(parent: Ino, name: Name): Step<Readonly<Dentry> | undefined> {
    return done(this.readEdge(parent, name) ?? undefined);
  }

  insertEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void> {
    this.writes++;
    this.st.get(INSERT_EDGE).get(this.#rowId('edge'), inoParam(parent), name, inoParam(ino), type);
    this.#cacheEdge(parent, nameKey(name), { ino, type });
    this.#links.delete(ino);
    return nothing;
  }

  deleteEdge(parent: Ino, name: Name, ino: Ino): Step<void> {
    this.writes++;
    this.st.get(DELETE_EDGE).get(inoParam(parent), name);
    this.#cacheEdge(parent, nameKey(name), null);
    this.#links.delete(ino);
    return nothing;
  }

  moveEdge(parent: Ino, name: Name, newParent: Ino, newName: Name, ino: Ino, type: FileType): Step<void> {
    this.writes++;
    const sql = 'UPDATE $edge SET parent=?,name=? WHERE parent=? AND name=?';
    this.st.get(sql).get(inoParam(newParent), newName, inoParam(parent), name);
    this.#cacheEdge(parent, nameKey(name), null);
    this.#cacheEdge(newParent, nameKey(newName), { ino, type });
    this.#links.delete(ino);
    return nothing;
  }

  setEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void> {
    this.writes++;
    this.st.exec(
      'UPDATE $edge SET inode=?,type=? WHERE parent=? AND name=?',
      inoParam(ino),
      type,
      inoParam(parent),
      name,
    );
    this.#cacheEdge(parent, nameKey(name), { ino, type });
    this.#links.delete(ino);
    return nothing;
  }

  hasEntries(ino: Ino): Step<boolean> {
    if (this.#complete.has(ino)) return done(this.#edges.get(ino)!.size > 0);
    return done(this.st.one('SELECT 1 FROM $edge WHERE parent=? LIMIT 1', inoParam(ino)) !== undefined);
  }

  readLinks(ino: Ino): Map<Ino, number> {
    let links = this.#links.get(ino);
    if (links === undefined) {
      links = new Map();
      for (const row of this.st.all(`SELECT ${inoColumn('parent')} FROM $edge WHERE inode=?`, inoParam(ino))) {
        const parent = row[0] as number;
        links.set(parent, (links.get(parent) ?? 0) + 1);
      }
      if (this.#links.size >= CACHE_LIMIT) this.#links.clear();
      this.#links.set(ino, links);
    }
    return links;
  }

  parentsOf(ino: Ino): Step<Map<Ino, number>> {
    return done(this.readLinks(ino));
  }

  addParent(): Step<void> {
    return nothing;
  }

  deleteParents(): Step<void> {
    return nothing;
  }

  entries(parent: Ino, after: Name | undefined, limit: number): Step<{ name: Name; ino: Ino; type: FileType }[]> {
    return done(this.listNames(parent, after, undefined, limit));
  }

  listNames(parent: Ino, after: Name | undefined, upto: Name | undefined, limit: number): RawEntry[] {
    const range = `${after === undefined ? '' : ' AND name>?'}${upto === undefined ? '' : ' AND name<=?'}`;
    const params: SQLInputValue[] = [inoParam(parent)];
    if (after !== undefined) params.push(after);
    if (upto !== undefined) params.push(upto);
    params.push(limit);
    const sql = `SELECT name,${inoColumn('inode')},type FROM $edge WHERE parent=?${range} ORDER BY name LIMIT ?`;
    return this.st
      .all(sql, ...params)
      .map(r => ({ name: r[0] as Uint8Array, ino: r[1] as number, type: r[2] as FileType, cookie: 0 }));
  }

  /** A page of a listing, as {@link PageSource} wants it. What is known whole needs no query; what was read whole is known from now on. */
  listPage(dir: Ino, after: Name | undefined, upto: Name | undefined, limit: number): RawEntry[] {
    const whole = after === undefined && upto === undefined;
    if (whole && this.#complete.has(dir)) {
      const names = this.#edges.get(dir)!;
      if (names.size < limit) {
        if (this.#listed?.dir !== dir) this.#listed = { dir, entries: rawEntries(names) };
        return this.#listed.entries;
      }
    }
    const list = this.listNames(dir, after, upto, limit);
    if (whole && list.length < limit && list.length <= LIST_FEW) {
      this.#setComplete(dir, edgesOf(list));
      this.#listed = { dir, entries: list };
    }
    return list;
  }

  symlink(ino: Ino): Step<Uint8Array | undefined> {
    return done(this.st.one('SELECT target FROM $symlink WHERE inode=?', inoParam(ino))?.[0] as Uint8Array | undefined);
  }

  insertSymlink(ino: Ino, target: Uint8Array): Step<void> {
    this.writes++;
    this.st.exec('INSERT INTO $symlink(inode,target) VALUES(?,?)', inoParam(ino), target);
    return nothing;
  }

  deleteSymlink(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $symlink WHERE inode=?', inoParam(ino));
    return nothing;
  }

  // ── extended attributes ── names are text with any bytes in them.

  xattr(ino: Ino, name: Name): Step<Uint8Array | undefined> {
    const row = this.st.one('SELECT value FROM $xattr WHERE inode=? AND name=CAST(? AS TEXT)', inoParam(ino), name);
    return done(row === undefined ? undefined : toBytes(row[0]!));
  }

  xattrNames(ino: Ino): Step<Name[]> {
    return done(
      this.st.all('SELECT CAST(name AS BLOB) FROM $xattr WHERE inode=?', inoParam(ino)).map(r => toBytes(r[0]!)),
    );
  }

  setXattr(ino: Ino, name: Name, value: Uint8Array): Step<void> {
    this.writes++;
    const sql =
      'INSERT INTO $xattr(inode,name,value) VALUES(?,CAST(? AS TEXT),?) ON CONFLICT(inode,name) DO UPDATE SET value=excluded.value';
    this.st.exec(sql, inoParam(ino), name, value);
    return nothing;
  }

  deleteXattr(ino: Ino, name: Name): Step<boolean> {
    this.writes++;
    return done(this.st.run('DELETE FROM $xattr WHERE inode=? AND name=CAST(? AS TEXT)', inoParam(ino), name) > 0);
  }

  deleteXattrs(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $xattr WHERE inode=?', inoParam(ino));
    return nothing;
  }

  copyXattrs(from: Ino, to: Ino): Step<void> {
    this.writes++;
    this.st.exec(
      'INSERT INTO $xattr(inode,name,value) SELECT ?,name,value FROM $xattr WHERE inode=?',
      inoParam(to),
      inoParam(from),
    );
    return nothing;
  }

  // ── data ── `slices` may be text with arbitrary bytes (spec/meta-sql.md §3): always cast.

  chunk(ino: Ino, index: number): Step<Slice[]> {
    const row = this.st.one('SELECT CAST(slices AS BLOB) FROM $chunk WHERE inode=? AND indx=?', inoParam(ino), index);
    if (row === undefined || row[0] === null) return done([]);
    const bytes = row[0] as Uint8Array;
    if (bytes.length % 24 !== 0)
      throw EIO.because(`chunk ${index} of inode ${ino}: ${bytes.length} bytes is no slice list`);
    return done(decodeSlices(bytes));
  }

  appendChunk(ino: Ino, index: number, records: readonly Slice[]): Step<number> {
    this.writes++;
    const bytes = encodeSlices(records);
    const update = 'UPDATE $chunk SET slices=CAST(slices||? AS BLOB) WHERE inode=? AND indx=? RETURNING length(slices)';
    const row = this.st.one(update, bytes, inoParam(ino), index);
    if (row !== undefined) return done((row[0] as number) / 24);
    const insert = 'INSERT INTO $chunk(id,inode,indx,slices) VALUES(?,?,?,?)';
    this.st.exec(insert, this.#rowId('chunk'), inoParam(ino), index, bytes);
    return done(records.length);
  }

  coverChunk(ino: Ino, index: number): Step<void> {
    this.appendChunk(ino, index, [hole(0, CHUNK_SIZE)]);
    return nothing;
  }

  replaceChunk(ino: Ino, index: number, records: readonly Slice[]): Step<void> {
    this.writes++;
    if (records.length === 0) this.st.exec('DELETE FROM $chunk WHERE inode=? AND indx=?', inoParam(ino), index);
    else {
      const sql =
        'INSERT INTO $chunk(inode,indx,slices) VALUES(?,?,?) ON CONFLICT(inode,indx) DO UPDATE SET slices=excluded.slices';
      this.st.exec(sql, inoParam(ino), index, encodeSlices(records));
    }
    return nothing;
  }

  chunkIndexes(ino: Ino, from: number, to: number, limit: number): Step<number[]> {
    if (to < from) return done([]);
    const sql = 'SELECT indx FROM $chunk WHERE inode=? AND indx>=? AND indx<=? ORDER BY indx LIMIT ?';
    return done(this.st.all(sql, inoParam(ino), from, to, limit).map(r => r[0] as number));
  }

  addSlice(id: number, size: number, refs: number): Step<void> {
    this.writes++;
    const sql =
      'INSERT INTO $chunk_ref(chunkid,size,refs) VALUES(?,?,?) ON CONFLICT(chunkid) DO UPDATE SET refs=refs+excluded.refs';
    this.st.exec(sql, id, size, refs);
    return nothing;
  }

  addRefs(id: number, size: number, refs: number): Step<number> {
    this.writes++;
    const row = this.st.one(
      'UPDATE $chunk_ref SET refs=refs+? WHERE chunkid=? AND size=? RETURNING refs',
      refs,
      id,
      size,
    );
    // A missing row: nobody else refers to it.
    return done(row === undefined ? refs : (row[0] as number));
  }

  deadSlices(limit: number): Step<DeadSlice[]> {
    const rows = this.st.all('SELECT chunkid,size FROM $chunk_ref WHERE refs<=0 LIMIT ?', limit);
    return done(rows.map(r => ({ id: r[0] as number, size: r[1] as number })));
  }

  deleteSlice(id: number, size: number): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $chunk_ref WHERE chunkid=? AND size=? AND refs<=0', id, size);
    return nothing;
  }

  insertDelayed(key: number, slices: readonly DeadSlice[]): Step<void> {
    this.writes++;
    this.st.exec('INSERT INTO $delslices(chunkid,deleted,slices) VALUES(?,?,?)', key, this.now.sec, encodeDead(slices));
    return nothing;
  }

  delayedBefore(unixSeconds: number, limit: number): Step<{ key: number; slices: DeadSlice[] }[]> {
    const rows = this.st.all(
      'SELECT chunkid,CAST(slices AS BLOB) FROM $delslices WHERE deleted<? LIMIT ?',
      unixSeconds,
      limit,
    );
    return done(rows.map(r => ({ key: r[0] as number, slices: decodeDead(r[1] as Uint8Array) })));
  }

  delayedSlices(): Step<DeadSlice[]> {
    const rows = this.st.all('SELECT CAST(slices AS BLOB) FROM $delslices');
    return done(rows.flatMap(r => decodeDead(r[0] as Uint8Array)));
  }

  deleteDelayed(key: number): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $delslices WHERE chunkid=?', key);
    return nothing;
  }

  // ── removed files ─────────────────────────────────────────────────────────────────────────────────────────────────

  insertDelfile(ino: Ino, length: number): Step<void> {
    this.writes++;
    this.st.exec(
      'INSERT OR REPLACE INTO $delfile(inode,length,expire) VALUES(?,?,?)',
      inoParam(ino),
      length,
      this.now.sec,
    );
    return nothing;
  }

  delfiles(before: number, limit: number): Step<{ ino: Ino; length: number }[]> {
    const sql = `SELECT ${inoColumn('inode')},min(length,9007199254740991) FROM $delfile WHERE expire<? LIMIT ?`;
    return done(this.st.all(sql, before, limit).map(r => ({ ino: r[0] as number, length: r[1] as number })));
  }

  deleteDelfile(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $delfile WHERE inode=?', inoParam(ino));
    return nothing;
  }

  insertSustained(sid: number, ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('INSERT OR IGNORE INTO $sustained(sid,inode) VALUES(?,?)', sid, inoParam(ino));
    return nothing;
  }

  deleteSustained(sid: number, ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $sustained WHERE sid=? AND inode=?', sid, inoParam(ino));
    return nothing;
  }

  isSustained(ino: Ino): Step<boolean> {
    // No index on inode alone: the sessions are few.
    const sql =
      'SELECT 1 FROM (SELECT sid FROM $session2) s CROSS JOIN $sustained u ON u.sid=s.sid AND u.inode=? LIMIT 1';
    return done(this.st.one(sql, inoParam(ino)) !== undefined);
  }

  sustainedOf(sid: number): Step<Ino[]> {
    return done(this.st.all(`SELECT ${inoColumn('inode')} FROM $sustained WHERE sid=?`, sid).map(r => r[0] as number));
  }

  insertDetached(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('INSERT INTO $detached_node(inode,added) VALUES(?,?)', inoParam(ino), this.now.sec);
    return nothing;
  }

  deleteDetached(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $detached_node WHERE inode=?', inoParam(ino));
    return nothing;
  }

  // ── ACL ── rules never change once stored.

  acl(id: number): Step<AclRule | undefined> {
    let rule = this.#acls.get(id);
    if (rule === undefined) {
      const row = this.st.one('SELECT owner,`group`,mask,other,named_users,named_groups FROM $acl WHERE id=?', id);
      if (row === undefined) return done(undefined);
      const [owner, group, mask, other] = row as number[];
      const list = (v: Row[number] | undefined) => (v == null ? [] : decodeAclEntries(toBytes(v)));
      rule = { owner: owner!, group: group!, mask: mask!, other: other!, users: list(row[4]), groups: list(row[5]) };
      this.#acls.set(id, rule);
    }
    return done(rule);
  }

  aclId(rule: AclRule): Step<number> {
    const users = encodeAclEntries(rule.users);
    const groups = encodeAclEntries(rule.groups);
    const values: SQLInputValue[] = [rule.owner, rule.group, rule.mask, rule.other, users, groups];
    const where = 'owner=? AND `group`=? AND mask=? AND other=? AND named_users=? AND named_groups=?';
    const found = this.st.one(`SELECT min(id) FROM $acl WHERE ${where}`, ...values)?.[0];
    if (typeof found === 'number') return done(found);
    this.writes++;
    const sql = 'INSERT INTO $acl(owner,`group`,mask,other,named_users,named_groups) VALUES(?,?,?,?,?,?) RETURNING id';
    return done(this.st.one(sql, ...values)![0] as number);
  }

  // ── locks ── owners are 64-bit numbers, stored signed; ltype is the character code.

  flocks(ino: Ino): Step<FlockRow[]> {
    const rows = this.st
      .get('SELECT sid,owner,ltype FROM $flock WHERE inode=?', true)
      .all(inoParam(ino)) as unknown as bigint[][];
    return done(
      rows.map(r => ({ sid: Number(r[0]), owner: BigInt.asUintN(64, r[1]!), type: r[2] === 87n ? 'W' : 'R' })),
    );
  }

  setFlock(ino: Ino, owner: bigint, type: 'R' | 'W'): Step<void> {
    this.writes++;
    const sql =
      'INSERT INTO $flock(inode,sid,owner,ltype) VALUES(?,?,?,?) ON CONFLICT(inode,sid,owner) DO UPDATE SET ltype=excluded.ltype';
    this.st.exec(sql, inoParam(ino), this.volume.sid, BigInt.asIntN(64, owner), type.charCodeAt(0));
    this.unlocked.add(ino);
    return nothing;
  }

  deleteFlock(ino: Ino, owner: bigint): Step<void> {
    this.writes++;
    this.st.exec(
      'DELETE FROM $flock WHERE inode=? AND sid=? AND owner=?',
      inoParam(ino),
      this.volume.sid,
      BigInt.asIntN(64, owner),
    );
    this.unlocked.add(ino);
    return nothing;
  }

  plocks(ino: Ino): Step<PlockRow[]> {
    const sql = 'SELECT sid,owner,CAST(records AS BLOB) FROM $plock WHERE inode=?';
    const rows = this.st.get(sql, true).all(inoParam(ino)) as unknown as [bigint, bigint, Uint8Array][];
    return done(rows.map(r => ({ sid: Number(r[0]), owner: BigInt.asUintN(64, r[1]), records: decodeLocks(r[2]) })));
  }

  setPlock(ino: Ino, owner: bigint, records: readonly LockRecord[]): Step<void> {
    this.writes++;
    this.unlocked.add(ino);
    const key: SQLInputValue[] = [inoParam(ino), this.volume.sid, BigInt.asIntN(64, owner)];
    if (records.length === 0) this.st.exec('DELETE FROM $plock WHERE inode=? AND sid=? AND owner=?', ...key);
    else {
      const sql =
        'INSERT INTO $plock(inode,sid,owner,records) VALUES(?,?,?,?) ON CONFLICT(inode,sid,owner) DO UPDATE SET records=excluded.records';
      this.st.exec(sql, ...key, encodeLocks(records));
    }
    return nothing;
  }

  // ── counters and the rest ─────────────────────────────────────────────────────────────────────────────────────────

  bump(name: string, delta: number): number {
    this.writes++;
    const row = this.st.one('UPDATE $counter SET value=value+? WHERE name=? RETURNING value', delta, name);
    if (row !== undefined) return row[0] as number;
    this.st.exec('INSERT INTO $counter(name,value) VALUES(?,?)', name, delta);
    return delta;
  }

  addCounter(name: string, delta: number): Step<number> {
    return done(this.bump(name, delta));
  }

  counter(name: string): Step<number> {
    return done((this.st.one('SELECT value FROM $counter WHERE name=?', name)?.[0] as number | undefined) ?? 0);
  }

  setCounter(name: string, value: number): Step<void> {
    this.writes++;
    this.st.exec(
      'INSERT INTO $counter(name,value) VALUES(?,?) ON CONFLICT(name) DO UPDATE SET value=excluded.value',
      name,
      value,
    );
    return nothing;
  }

  insertDirStat(ino: Ino, length: number, space: number, inodes: number): Step<void> {
    this.writes++;
    const sql = 'INSERT OR REPLACE INTO $dir_stats(inode,data_length,used_space,used_inodes) VALUES(?,?,?,?)';
    this.st.exec(sql, inoParam(ino), length, space, inodes);
    return nothing;
  }

  dirStat(ino: Ino): Step<{ length: number; space: number; inodes: number } | undefined> {
    const row = this.st.one('SELECT data_length,used_space,used_inodes FROM $dir_stats WHERE inode=?', inoParam(ino)) as
      | number[]
      | undefined;
    return done(row === undefined ? undefined : { length: row[0]!, space: row[1]!, inodes: row[2]! });
  }

  deleteDirStat(ino: Ino): Step<void> {
    this.writes++;
    this.st.exec('DELETE FROM $dir_stats WHERE inode=?', inoParam(ino));
    return nothing;
  }

  deleteDirQuota(ino: Ino): Step<void> {
    if (this.volume.quotas.dirs.has(ino)) {
      this.writes++;
      this.st.exec('DELETE FROM $dir_quota WHERE inode=?', inoParam(ino));
      this.volume.quotas.dirs.delete(ino);
    }
    return nothing;
  }

  account(kind: UsageKind, key: number, length: number, space: number, inodes: number): void {
    addDelta(this.deltas, { kind, key, length, space, inodes });
  }

  log(entry: string): Step<void> {
    this.writes++;
    this.st.exec('INSERT INTO $change_log(entry) VALUES(?)', entry);
    return nothing;
  }
}

function edgesOf(list: readonly RawEntry[]): Map<string, Dentry> {
  const names = new Map<string, Dentry>();
  for (const e of list) names.set(nameKey(e.name), { ino: e.ino, type: e.type });
  return names;
}

function rawEntries(names: ReadonlyMap<string, Dentry | null>): RawEntry[] {
  const list: RawEntry[] = [];
  for (const [key, entry] of names)
    if (entry !== null) list.push({ name: Buffer.from(key, 'latin1'), ino: entry.ino, type: entry.type, cookie: 0 });
  return list;
}

function toBytes(v: NonNullable<Row[number]>): Uint8Array {
  if (v instanceof Uint8Array) return v;
  return Buffer.from(String(v), 'utf8');
}
