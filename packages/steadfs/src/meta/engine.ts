/**
 * The MetaEngine contract: names and attributes of a volume in a database. One call per file-system operation, with every check and
 * the op record inside, so that an engine can carry it out in one round trip and exactly once.
 *
 * Rules for every engine (held by test/meta/contract.ts):
 * - A call throws or rejects with an Errno (from @steadfs/fuse/errno). EIO carries a context.
 * - Every mutation takes an {@link Op}. In its own transaction it first compares the stored record of (session, op.kind, op.slot):
 *   stored seq < op.seq → carry out, and end by storing (seq, errno 0, result); stored seq = op.seq → no effect, the stored
 *   result is returned; stored seq > op.seq → EIO (a late twin). Failed checks store nothing. The same transaction checks that
 *   the session's row is there with our incarnation and epoch and has not expired, else it throws EIO 'session lost' and calls
 *   `events.sessionLost`.
 * - A mutation whose Op is `over` (its caller has been answered) is left undone, with EINTR, where that is still possible. In any case its promise settles only when it has been
 *   carried out, or never can be.
 * - A mutation's promise settles after the commit. Reads that see uncommitted data settle after that commit too.
 * - Names are bytes. Lookups of "." and ".." do not get here. Special names (.trash, control files) are the vfs's; an engine only knows
 *   that the node TRASH and its folders exist.
 * - Permission checks as spec/volume.md §15: done when cred.checkPermission (and uid is not 0); sticky, immutable, append and trash
 *   rules always.
 * - Attr objects that are returned belong to the caller.
 * - Names and data handed in are valid until the promise settles; an engine that keeps them longer copies.
 */
import type { Name, Op } from '@steadfs/fuse';
import type { AclRule } from '../format/acl.ts';
import type { Attr, FileType } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import type { Slice } from '../format/slice.ts';
import type { Format } from '../format/volume.ts';

export type { Name, Op };
export type MaybePromise<T> = T | Promise<T>;

/** Cause of the EIO that mutations fail with when the session is lost for good: another client may have what was ours. */
export const SESSION_LOST = new Error('the session is lost');

/** Kinds of Op. Request slots belong to @steadfs/fuse; the others are numbered by whoever starts the work, seq from the capsule. */
export const OpKind = {
  request: 0,
  /** Slice commit; slot = the pending slice's record in the capsule. */
  slice: 1,
  /** Flush of accumulated counters. */
  flush: 2,
  /** A plan of several steps (rmr, clone, compaction …). */
  job: 3,
} as const;

/** Who asks. */
export interface Cred {
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  /** Supplementary groups and gid; read lazily (only checks need it). */
  groups(): readonly number[];
  /** False on ordinary FUSE mounts: the kernel's default_permissions decides. */
  readonly checkPermission: boolean;
}

export interface Entry {
  ino: Ino;
  attr: Attr;
}

/** An edge: type is known without the inode. */
export interface Dentry {
  ino: Ino;
  type: FileType;
}

export interface TimeSet {
  sec: number;
  nsec: number;
}

/** Fields to change. ctime becomes now when anything changes, and for an empty set not by handle: chown(2) that keeps both ids. */
export interface AttrSet {
  mode?: number;
  uid?: number;
  gid?: number;
  /** Truncation: in the same transaction, before the other fields (spec/volume.md §15). */
  size?: number;
  atime?: TimeSet | 'now';
  mtime?: TimeSet | 'now';
  flags?: number;
  tier?: number;
  /** Clear suid/sgid as a write or truncation does (kernel's KILL_SUIDGID). */
  killSuidgid?: boolean;
  /** The truncation comes by an open handle: no permission or trash check. */
  byHandle?: boolean;
  /** This mount has handles of the inode: fchmod, futimens … work on a removed file, also where it went to the trash. */
  inUse?: boolean;
}

export interface MakeNode {
  type: FileType;
  /** 12 bits. */
  mode: number;
  umask: number;
  rdev: number;
  /** Symlinks: 1..4096 bytes. */
  target?: Uint8Array;
}

export interface CreateResult extends Entry {
  /** False: the name existed and O_EXCL was not set; the file was opened (and truncated with O_TRUNC). */
  created: boolean;
}

/** What an unlink, rmdir or rename removed or moved; the vfs keeps caches and data right by it. */
export interface Removed {
  ino: Ino;
  /** Attributes after the operation (nlink 0 when it is gone). */
  attr: Attr;
  /**
   * 'kept': other links remain; 'trash'; 'sustained': gone from the tree, alive for open handles; 'deleted': data to be deleted (a delfile);
   * 'gone': it had no data.
   */
  state: 'kept' | 'trash' | 'sustained' | 'deleted' | 'gone';
}

export interface RenameResult {
  /** The moved inode; undefined when nothing happened (same file). */
  moved?: Entry;
  /** The destination that was replaced. */
  replaced?: Removed;
  /** RENAME_EXCHANGE: the other inode. */
  exchanged?: Entry;
}

export interface WriteResult {
  attr: Attr;
  /** Raw records in the chunk after the append (the compaction trigger). */
  records: number;
}

export interface DirEntry {
  name: Name;
  ino: Ino;
  type: FileType;
  /** With `plus`, unless the inode is missing. */
  attr?: Attr;
  /** Cookie that goes on after this entry; 1 ≤ cookie < 2^53. */
  cookie: number;
}

/** What a directory stream must remember to go on in another process; kept in the capsule by the vfs. */
export interface DirStreamState {
  load(): readonly Uint8Array[];
  append(item: Uint8Array): void;
  clear(): void;
}

/**
 * A listing in progress. `read(cookie)` answers the entries after `cookie` (0 = the start, which takes a new view), in an order in which
 * every entry that was there throughout comes exactly once, whatever changes meanwhile and in whichever process. [] = the end.
 */
export interface DirStream {
  read(cookie: number, limit: number, plus: boolean): MaybePromise<DirEntry[]>;
  /** Drops what was read ahead; a further read shows the directory of now, cookies stay good. */
  close(): void;
}

export interface StatfsResult {
  totalSpace: number;
  availSpace: number;
  usedInodes: number;
  availInodes: number;
}

/** F_RDLCK 0, F_WRLCK 1, F_UNLCK 2; end inclusive, 2^63-1 = end of file. */
export interface PosixLock {
  type: number;
  start: bigint;
  end: bigint;
  pid: number;
}

/** What a session is known by after a restart; kept in the capsule. */
export interface SessionIdentity {
  sid: number;
  /** 16 random bytes in hex, made with the session. */
  incarnation: string;
  epoch: number;
}

export interface SessionInfo {
  version: string;
  hostName: string;
  ipAddrs?: string[];
  mountPoint: string;
  /** RFC 3339 with nanoseconds. */
  mountTime: string;
  processId: number;
  /** Set by the engine: the session announces what it changes (field SteadfsPushes; sql/push.ts). */
  pushes?: boolean;
}

export interface EngineEvents {
  /** The session is gone, expired or taken over: stop mutating. */
  sessionLost(reason: string): void;
  /** The setting record changed. */
  formatChanged(format: Format): void;
  /** The volume is gone, has another UUID or a newer layout. */
  volumeLost(reason: string): void;
  /** Another client changed the inode (attributes, data) or entries of the directory. Engines without push never call it. */
  changed(ino: Ino, what: 'attr' | 'entries' | 'data'): void;
  /** The database cannot be reached since …; undefined: it can again. */
  trouble(message: string | undefined): void;
  /** Something about the database that its administrator should change (eviction, persistence, version); nothing waits for it. */
  warning?(message: string): void;
}

export interface EngineOptions {
  readOnly: boolean;
  /** --skip-dir-mtime, milliseconds. */
  skipDirMtime: number;
  /** --heartbeat, seconds. */
  heartbeat: number;
  /** relatime … */
  atimeMode: 'noatime' | 'relatime' | 'strictatime';
  /** --io-retries */
  retries: number;
  /** Attributes and names may be answered from memory where pushes of all other clients keep that right (PostgreSQL; Redis always does). */
  cachesByPush?: boolean;
  events: EngineEvents;
}

export interface Quota {
  maxSpace: number;
  maxInodes: number;
  usedSpace: number;
  usedInodes: number;
}

export interface SessionDetail extends SessionInfo {
  sid: number;
  /** Unix seconds. */
  expire: number;
  sustained?: Ino[];
  flocks?: { ino: Ino; owner: bigint; type: 'R' | 'W' }[];
  plocks?: { ino: Ino; owner: bigint; records: PosixLock[] }[];
}

export interface MetaEngine {
  /** Database kind and address without secrets, for people. */
  readonly name: string;

  // ── volume ────────────────────────────────────────────────────────────────────────────────────────────────────────
  /** The setting record; undefined when the database holds no volume. Throws for a newer MetaVersion or foreign contents. */
  load(): Promise<Format | undefined>;
  /** Creates the volume, or stores changed settings (`force` overrides immutables). */
  init(format: Format, force: boolean): Promise<void>;
  /** Removes the volume's metadata, ours included. */
  reset(): Promise<void>;
  close(): Promise<void>;

  // ── session ───────────────────────────────────────────────────────────────────────────────────────────────────────
  /** Registers a session. */
  newSession(info: SessionInfo): Promise<SessionIdentity>;
  /**
   * Takes the session over after the death of its process: raises the epoch in its own transaction before anything else. Rejects with
   * ESTALE when the session's header record is missing or different (outcome of open requests unknown).
   */
  adoptSession(identity: SessionIdentity, info: SessionInfo): Promise<SessionIdentity>;
  /** Renews the expiry (written ahead: now + 10 min at least while mounted), reloads setting, quotas, counters. */
  heartbeat(): Promise<void>;
  /** Flushes and removes the session, its locks and sustained inodes. */
  closeSession(): Promise<void>;
  listSessions(detail: boolean): Promise<SessionDetail[]>;
  /** Sids whose expiry is past, at most `limit`. */
  staleSessions(limit: number): Promise<number[]>;
  /** Locks, sustained inodes (→ delfiles), then the record; ours too. */
  cleanSession(sid: number): Promise<void>;
  /** Flushes accumulated counters, directory statistics and quotas (each exactly once). */
  flush(): Promise<void>;
  /** What fsync and fsyncdir need: everything committed is durable. */
  sync(): Promise<void>;

  // ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────
  lookup(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry>;
  /** The same, undefined for an absent name: offered where throwing ENOENT would cost more than the look-up. */
  find?(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry | undefined>;
  getattr(ino: Ino): MaybePromise<Attr>;
  /** mask: R 4, W 2, X 1; for mounts that check in the client. */
  access(cred: Cred, ino: Ino, mask: number): MaybePromise<void>;
  readlink(ino: Ino): MaybePromise<Uint8Array>;
  dirStream(ino: Ino, state: DirStreamState): DirStream;
  /** Raw records of a chunk in commit order; [] for a hole. */
  readChunk(ino: Ino, index: number): MaybePromise<Slice[]>;
  /** Indexes of chunks that have records, from..to inclusive, ascending, at most limit (lseek, truncate). */
  listChunks(ino: Ino, from: number, to: number, limit: number): MaybePromise<number[]>;
  getxattr(ino: Ino, name: Name): MaybePromise<Uint8Array>;
  listxattr(ino: Ino): MaybePromise<Name[]>;
  getAcl(ino: Ino, kind: 'access' | 'default'): MaybePromise<AclRule | undefined>;
  /** Parent directories with the number of links in each. */
  parents(ino: Ino): MaybePromise<Map<Ino, number>>;
  statfs(root: Ino): MaybePromise<StatfsResult>;
  /** Statistics of the immediate children. */
  dirStat(ino: Ino): MaybePromise<{ length: number; space: number; inodes: number }>;

  // ── mutations ─────────────────────────────────────────────────────────────────────────────────────────────────────
  mknod(op: Op, cred: Cred, parent: Ino, name: Name, node: MakeNode): Promise<Entry>;
  /** open(2) with O_CREAT. flags: O_EXCL, O_TRUNC, access mode. Existing: open checks as `open`. */
  create(
    op: Op,
    cred: Cred,
    parent: Ino,
    name: Name,
    mode: number,
    umask: number,
    flags: number,
  ): Promise<CreateResult>;
  /** O_TMPFILE: an inode without name, sustained by this session. */
  tmpfile(op: Op, cred: Cred, parent: Ino, mode: number, umask: number): Promise<Entry>;
  /**
   * Checks of open(2) and the attributes of now. A mutation only with O_TRUNC. Checks: type, immutable/append flags, trash,
   * permission when cred.checkPermission.
   */
  open(op: Op, cred: Cred, ino: Ino, flags: number): MaybePromise<Attr>;
  /**
   * The last handle of a removed inode was closed (or its session ended): data becomes deletable. Repeatable. Answers the file's length
   * when there is data to delete (see deleteFileData).
   */
  release(op: Op, ino: Ino): Promise<number | undefined>;
  setattr(op: Op, cred: Cred, ino: Ino, set: AttrSet): Promise<Attr>;
  /** Removes a sustained mark (O_TMPFILE) too. */
  link(op: Op, cred: Cred, ino: Ino, parent: Ino, name: Name): Promise<Entry>;
  /** `isOpen` tells whether this mount has handles of the inode: sustained instead of deleted. */
  unlink(
    op: Op,
    cred: Cred,
    parent: Ino,
    name: Name,
    isOpen: (ino: Ino) => boolean,
    skipTrash?: boolean,
  ): Promise<Removed>;
  /** An hourly folder of the trash is only removed by the expiry job: parent TRASH with skipTrash. */
  rmdir(op: Op, cred: Cred, parent: Ino, name: Name, skipTrash?: boolean): Promise<Removed>;
  /** flags: NOREPLACE 1, EXCHANGE 2, RESTORE 32 (out of the trash, with 1). */
  rename(
    op: Op,
    cred: Cred,
    parent: Ino,
    name: Name,
    newParent: Ino,
    newName: Name,
    flags: number,
    isOpen: (ino: Ino) => boolean,
  ): Promise<RenameResult>;
  /** Attributes with the new ctime. mode: XATTR_CREATE 1, XATTR_REPLACE 2. */
  setxattr(op: Op, cred: Cred, ino: Ino, name: Name, value: Uint8Array, mode: number): Promise<Attr>;
  removexattr(op: Op, cred: Cred, ino: Ino, name: Name): Promise<Attr>;
  /** undefined removes the rule. A minimal access ACL becomes mode bits. */
  setAcl(op: Op, cred: Cred, ino: Ino, kind: 'access' | 'default', rule: AclRule | undefined): Promise<Attr>;
  /**
   * Slice commit: appends the records (one slice object may serve several, spec/volume.md §4.1: references count records), grows
   * length to `end` if that is beyond it, mtime as given, ctime as given unless a later one is there. op.kind = slice. Quota and ENOSPC are
   * checked here too.
   */
  write(
    op: Op,
    ino: Ino,
    index: number,
    records: readonly Slice[],
    end: number,
    mtime: TimeSet,
    ctime: TimeSet,
    killSuidgid: boolean,
  ): Promise<WriteResult>;
  /** FALLOC_FL_* in mode; data of the range must have been flushed. Clears suid/sgid as Linux does. */
  fallocate(op: Op, cred: Cred, ino: Ino, offset: number, length: number, mode: number): Promise<Attr>;
  /** Shares the source's slices; may copy less than asked for (what fits one transaction). Both ranges must have been flushed. */
  copyFileRange(
    op: Op,
    cred: Cred,
    ino: Ino,
    offset: number,
    out: Ino,
    outOffset: number,
    length: number,
  ): Promise<{ copied: number; attr: Attr }>;
  /** Updates atime as the mount's atime mode says; losing one is fine. */
  touchAtime(ino: Ino): MaybePromise<void>;
  /** Next `count` slice ids, as [first, first+count). Fetched in batches of 4096. */
  newSliceIds(count: number): MaybePromise<number>;

  // ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
  /** EAGAIN when somebody holds a conflicting lock; never waits. 'U' unlocks. */
  flock(op: Op, ino: Ino, owner: bigint, type: 'R' | 'W' | 'U'): Promise<void>;
  getlk(ino: Ino, owner: bigint, lock: PosixLock): MaybePromise<PosixLock>;
  setlk(op: Op, ino: Ino, owner: bigint, lock: PosixLock): Promise<void>;
  /** Holders of conflicting locks, for deadlock detection: owners of this session by number, others as sid alone. */
  lockHolders(ino: Ino, owner: bigint, lock: PosixLock): MaybePromise<{ sid: number; owner: bigint }[]>;
  /** Settles when locks of the inode may have changed (a push, or a local unlock), at the latest after `timeoutMs`. */
  waitForUnlock(ino: Ino, timeoutMs: number): Promise<void>;

  // ── compaction and dead data ──────────────────────────────────────────────────────────────────────────────────────
  /**
   * Replaces the first `original.length` records of the chunk, which must still be `original` (else answers false and marks the new slice
   * for deletion): the first `skipped` stay, the others become `replacement`. Old slices: delayed by TrashDays, else dereferenced.
   */
  compact(
    op: Op,
    ino: Ino,
    index: number,
    original: readonly Slice[],
    skipped: number,
    replacement: Slice,
  ): Promise<boolean>;
  /** Removed files whose data is to be deleted: deletion time < before, at most limit. */
  deletedFiles(before: number, limit: number): Promise<{ ino: Ino; length: number }[]>;
  /**
   * Deletes chunks of a removed file (at most a bounded number a call) and dereferences their slices. Answers the slices without
   * references left, and whether the file is done (its delfile row is gone).
   */
  deleteFileData(op: Op, ino: Ino, length: number): Promise<{ dead: DeadSlice[]; done: boolean }>;
  /** Slices without references, at most limit (hourly job). */
  deadSlices(limit: number): Promise<DeadSlice[]>;
  /** All slices that are put off (TrashDays); nothing is changed (`status --more`). */
  delayedSlices(): Promise<DeadSlice[]>;
  /** Dereferences delayed slices older than `before`; answers those that are dead now. */
  expireDelayedSlices(op: Op, before: number, limit: number): Promise<{ dead: DeadSlice[]; more: boolean }>;
  /** The objects of these slices are gone: forget the reference rows. */
  slicesDeleted(slices: readonly DeadSlice[]): Promise<void>;
  /** True if this client has the duty now: stores now under `name` when the stored time is ≤ now - period (spec/volume.md §7.1). */
  claimDuty(name: string, periodSeconds: number): Promise<boolean>;
  /**
   * True when what was committed before the call is durable (SQLite: after a WAL fsync). Objects are deleted only after
   * that (design.md §2.11, metadata-notes 6).
   */
  durable(): Promise<void>;

  // ── trees (clone, rmr, summary are built on these by the vfs) ─────────────────────────────────────────────────────
  /** Copies one inode (attributes, xattrs, ACL, symlink target, chunk lists with references) as parent/name, or detached (name undefined, directories). */
  cloneNode(
    op: Op,
    cred: Cred,
    source: Ino,
    parent: Ino,
    name: Name | undefined,
    options: { preserve: boolean; umask: number },
  ): Promise<Entry>;
  /** Gives a detached clone its name. */
  attachClone(op: Op, cred: Cred, detached: Ino, parent: Ino, name: Name): Promise<Entry>;

  // ── quotas (commands come later; `check` is inside the mutations) ─────────────────────────────────────────────────
  getQuota(kind: 'dir' | 'user' | 'group', key: number): Promise<Quota | undefined>;
  setQuota(
    kind: 'dir' | 'user' | 'group',
    key: number,
    quota: { maxSpace?: number; maxInodes?: number; usedSpace?: number; usedInodes?: number },
  ): Promise<void>;
  deleteQuota(kind: 'dir' | 'user' | 'group', key: number): Promise<void>;
  listQuotas(): Promise<{ kind: 'dir' | 'user' | 'group'; key: number; quota: Quota }[]>;
}

export interface DeadSlice {
  id: number;
  size: number;
}

/** How an engine is made: one line in meta/registry.ts per URL scheme. The URL may hold a password; it never appears in messages. */
export interface EngineDriver {
  schemes: readonly string[];
  open(url: string, options: EngineOptions): Promise<MetaEngine>;
}
