/**
 * The abstract transaction: rows of the volume as the operations see them. Operations (the other files here) are generator functions
 * that `yield*` these steps, written once for every engine that has transactions: a synchronous engine's steps are {@link done} values and
 * never yield; an asynchronous one yields the promise that it waits for (see {@link runSync}, {@link runAsync}).
 *
 * An operation makes all its checks before its first write, so that one that fails has written nothing. It may be run again from the
 * start (conflicts, busy databases), so it keeps no state outside the transaction.
 */
import type { AclRule } from '../../format/acl.ts';
import type { Attr, FileType } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import type { LockRecord } from '../../format/locks.ts';
import type { Slice } from '../../format/slice.ts';
import type { Format } from '../../format/volume.ts';
import type { DeadSlice, Dentry, Name, TimeSet } from '../engine.ts';
import type { Quotas } from './quota.ts';

export type Step<T> = Iterable<Promise<unknown>, T, unknown>;
export type Body<T> = Generator<Promise<unknown>, T, unknown>;

class Done<T> implements Iterator<Promise<unknown>, T, unknown> {
  readonly done = true as const;
  readonly value: T;
  constructor(value: T) {
    this.value = value;
  }
  [Symbol.iterator](): this {
    return this;
  }
  next(): this {
    return this;
  }
}

/** A step that is over already. */
export function done<T>(value: T): Step<T> {
  return new Done(value);
}

/** The finished step of nothing. */
export const nothing: Step<void> = new Done(undefined);

/** A step that waits for a promise. */
export function* wait<T>(promise: Promise<T>): Body<T> {
  return (yield promise) as T;
}

/** Runs a body whose steps never wait. */
export function runSync<T>(body: Body<T>): T {
  const r = body.next();
  if (r.done !== true) throw new Error('a synchronous transaction waited');
  return r.value;
}

export async function runAsync<T>(body: Body<T>): Promise<T> {
  let r = body.next();
  while (r.done !== true) {
    let value: unknown;
    try {
      value = await r.value;
    } catch (e) {
      r = body.throw(e);
      continue;
    }
    r = body.next(value);
  }
  return r.value;
}

/** What usage is kept for. The numbers stand in stored records. */
export const Usage = { volume: 0, dirStat: 1, dirQuota: 2, user: 3, group: 4 } as const;
export type UsageKind = (typeof Usage)[keyof typeof Usage];

export interface FlockRow {
  sid: number;
  owner: bigint;
  type: 'R' | 'W';
}

export interface PlockRow {
  sid: number;
  owner: bigint;
  records: LockRecord[];
}

/** What operations know of the volume and the mount beside the rows. */
export interface Volume {
  format: Format;
  /** 0: no session. */
  sid: number;
  /** Milliseconds. */
  skipDirMtime: number;
  atimeMode: 'noatime' | 'relatime' | 'strictatime';
  quotas: Quotas;
}

export interface Tx {
  readonly volume: Volume;
  /** The clock, one value for the whole transaction. */
  readonly now: TimeSet;

  // ── inodes ── attributes that are answered are shared: copy before changing.
  node(ino: Ino): Step<Readonly<Attr> | undefined>;
  /** The same, and the row stays locked until the end where the database has row locks. */
  nodeForUpdate(ino: Ino): Step<Readonly<Attr> | undefined>;
  /** A fresh inode number. */
  newInode(): Step<Ino>;
  insertNode(ino: Ino, attr: Attr): Step<void>;
  /** Writes every field, except the nlink of a directory (see {@link adjustDir}). */
  updateNode(ino: Ino, attr: Attr): Step<void>;
  deleteNode(ino: Ino): Step<void>;
  /** nlink += links by an expression (concurrent changes commute), and mtime = ctime = now when `touch`. */
  adjustDir(ino: Ino, links: number, touch: boolean): Step<void>;

  // ── entries ──
  edge(parent: Ino, name: Name): Step<Readonly<Dentry> | undefined>;
  insertEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void>;
  deleteEdge(parent: Ino, name: Name, ino: Ino): Step<void>;
  /** The destination is free. */
  moveEdge(parent: Ino, name: Name, newParent: Ino, newName: Name, ino: Ino, type: FileType): Step<void>;
  /** Lets an existing entry point to another inode. */
  setEdge(parent: Ino, name: Name, ino: Ino, type: FileType): Step<void>;
  hasEntries(ino: Ino): Step<boolean>;
  /** Parents of an inode whose attr.parent is 0, with the number of entries in each. */
  parentsOf(ino: Ino): Step<Map<Ino, number>>;
  /** The parents map of engines that have one (count may be negative); nothing where entries are indexed by inode. */
  addParent(ino: Ino, parent: Ino, count: number): Step<void>;
  deleteParents(ino: Ino): Step<void>;
  /** Entries in name order after `after` (all when undefined): for clean-up of trees, not for listings. */
  entries(parent: Ino, after: Name | undefined, limit: number): Step<{ name: Name; ino: Ino; type: FileType }[]>;

  symlink(ino: Ino): Step<Uint8Array | undefined>;
  insertSymlink(ino: Ino, target: Uint8Array): Step<void>;
  deleteSymlink(ino: Ino): Step<void>;

  xattr(ino: Ino, name: Name): Step<Uint8Array | undefined>;
  xattrNames(ino: Ino): Step<Name[]>;
  setXattr(ino: Ino, name: Name, value: Uint8Array): Step<void>;
  /** False: there was none. */
  deleteXattr(ino: Ino, name: Name): Step<boolean>;
  deleteXattrs(ino: Ino): Step<void>;
  copyXattrs(from: Ino, to: Ino): Step<void>;

  // ── data ──
  chunk(ino: Ino, index: number): Step<Slice[]>;
  /** Answers the number of records after it. */
  appendChunk(ino: Ino, index: number, records: readonly Slice[]): Step<number>;
  /** Appends a hole over the whole of an existing chunk. */
  coverChunk(ino: Ino, index: number): Step<void>;
  /** [] removes the chunk. */
  replaceChunk(ino: Ino, index: number, records: readonly Slice[]): Step<void>;
  /** Existing chunks from..to inclusive, ascending. */
  chunkIndexes(ino: Ino, from: number, to: number, limit: number): Step<number[]>;
  /** A slice with its first `refs` references; adds to those that it has. */
  addSlice(id: number, size: number, refs: number): Step<void>;
  /** Changes the count of an existing slice; answers what is left. */
  addRefs(id: number, size: number, refs: number): Step<number>;
  deadSlices(limit: number): Step<DeadSlice[]>;
  deleteSlice(id: number, size: number): Step<void>;
  insertDelayed(key: number, slices: readonly DeadSlice[]): Step<void>;
  delayedBefore(unixSeconds: number, limit: number): Step<{ key: number; slices: DeadSlice[] }[]>;
  deleteDelayed(key: number): Step<void>;
  /** Of all of them; locks nothing. */
  delayedSlices(): Step<DeadSlice[]>;

  // ── removed files ──
  insertDelfile(ino: Ino, length: number): Step<void>;
  delfiles(before: number, limit: number): Step<{ ino: Ino; length: number }[]>;
  deleteDelfile(ino: Ino, length: number): Step<void>;
  insertSustained(sid: number, ino: Ino): Step<void>;
  deleteSustained(sid: number, ino: Ino): Step<void>;
  /** Whether any session sustains it. */
  isSustained(ino: Ino): Step<boolean>;
  sustainedOf(sid: number): Step<Ino[]>;
  insertDetached(ino: Ino): Step<void>;
  deleteDetached(ino: Ino): Step<void>;

  // ── the rest ──
  acl(id: number): Step<AclRule | undefined>;
  /** The id of an equal rule, or of a new row. */
  aclId(rule: AclRule): Step<number>;
  flocks(ino: Ino): Step<FlockRow[]>;
  setFlock(ino: Ino, owner: bigint, type: 'R' | 'W'): Step<void>;
  deleteFlock(ino: Ino, owner: bigint): Step<void>;
  plocks(ino: Ino): Step<PlockRow[]>;
  /** [] removes the row. */
  setPlock(ino: Ino, owner: bigint, records: readonly LockRecord[]): Step<void>;
  /** New value. */
  addCounter(name: string, delta: number): Step<number>;
  counter(name: string): Step<number>;
  setCounter(name: string, value: number): Step<void>;
  insertDirStat(ino: Ino, length: number, space: number, inodes: number): Step<void>;
  dirStat(ino: Ino): Step<{ length: number; space: number; inodes: number } | undefined>;
  deleteDirStat(ino: Ino): Step<void>;
  deleteDirQuota(ino: Ino): Step<void>;
  /** Collects a change of usage; it takes effect with the transaction, exactly once. */
  account(kind: UsageKind, key: number, length: number, space: number, inodes: number): void;
  /** Appends to the change log (only called where Format.ChangeLog is set). */
  log(entry: string): Step<void>;
}

/** How an engine carries bodies out. */
export interface TxDriver {
  /** A mutation with its op record (see record.ts); settles after the commit. */
  mutate<T>(
    op: import('../engine.ts').Op,
    codec: import('./record.ts').Codec<T>,
    body: (tx: Tx) => Body<T>,
  ): Promise<T>;
  /** A mutation that may be repeated without harm. */
  transact<T>(body: (tx: Tx) => Body<T>): Promise<T>;
  /** A consistent read; what it sees is committed when it answers. */
  read<T>(body: (tx: Tx) => Body<T>): T | Promise<T>;
}
