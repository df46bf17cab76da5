/**
 * The low-level file system interface of @steadfs/fuse: what a server implements, in terms of the kernel's requests.
 *
 * Rules that hold for every call:
 * - A call answers with its value, or with a promise of it, or throws (rejects with) an {@link Errno}. Anything else that is
 *   thrown is logged and answered EIO. A call is never left without an answer; one that waits for long must watch
 *   `ctx.interrupt`.
 * - Node ids are the file system's own numbers, 1 for the root, below 2^53. They must mean the same file for the life of the
 *   mount (across restarts of the server too), so a persistent inode number is the right choice.
 * - Bytes (names, data) are views into shared memory, valid until the answer was given. Whoever keeps them longer copies them.
 * - A call that changes something is handed `ctx.op`, a stable identity of the request: after a crash of the server the
 *   same request is handed to the next process with the same op, so that it can be carried out exactly once.
 */
import type { Errno } from './errno.ts';

export type { Errno };

export type Reply<T> = T | Promise<T>;

/** Bytes without terminator, 255 at the most: any byte but NUL and '/'. Not necessarily UTF-8. */
export type Name = Uint8Array;

/**
 * Identity of one mutation. For a request: kind 0, slot = number of the request slot that holds it, seq = count of requests
 * that the slot has held (never reused while the capsule lives). Background work of a file system uses other kinds (see its
 * own documentation). Two calls with equal Op are the same mutation; a greater seq of the same (kind, slot) supersedes.
 */
export interface Op {
  readonly kind: number;
  readonly slot: number;
  readonly seq: number;
  /** The request was answered in the call's place (its caller was killed, or the time is up): what was not carried out yet is left undone. */
  readonly over?: boolean;
}

export interface Context {
  /** The kernel's id of the request (bit 63 removed). */
  readonly unique: bigint;
  readonly opcode: number;
  readonly uid: number;
  readonly gid: number;
  /** 0 for callers outside the mount's pid namespace and for the kernel's own write-back. */
  readonly pid: number;
  readonly op: Op;
  /** True when this request was taken by a process that died, and is now repeated. */
  readonly replay: boolean;
  /**
   * Signals the kernel's INTERRUPT for this request. `fired` tells whether one came; `promise` settles when one comes. A blocked
   * lock answers EINTR then; everything else only when `callerIsDying()` (a handled signal must not break a read).
   */
  readonly interrupt: Interrupt;
  /**
   * The request will wait for something outside (a lock, a stalled store): moves it to the parked table, so that its slot
   * can take other requests. `op` stays valid for reading; before it mutates anything the call takes a new Op by
   * `unpark()`. Idempotent.
   */
  park(): void;
  unpark(): Promise<Op>;
  /** Set by a call that waits by its nature, for a time that says nothing of a fault: no limit holds for it (Session.limit). */
  endless?: boolean;
}

export interface Interrupt {
  readonly fired: boolean;
  readonly promise: Promise<void>;
  /** The request has waited as long as it may: the call ends it with EIO. Only WRITE is told so; others are answered in the call's place. */
  readonly expired?: boolean;
  /** Reads /proc/PID/status: a fatal signal is pending for the caller (never cmdline or maps: they take the mmap lock). */
  callerIsDying(): boolean;
}

/** st_* of a file, the kernel's struct fuse_attr. Times: seconds (may be negative) and nanoseconds. */
export interface FuseAttr {
  /** st_ino; a bigint when it is 2^53 or more. */
  ino: number | bigint;
  size: number;
  /** Units of 512 bytes. */
  blocks: number;
  atime: number;
  mtime: number;
  ctime: number;
  atimensec: number;
  mtimensec: number;
  ctimensec: number;
  /** Type and permissions, S_IF* included. */
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  /** The kernel's new_encode_dev form. */
  rdev: number;
  blksize: number;
  /** Birth time for STATX, when known. */
  btime?: number;
  btimensec?: number;
}

export interface AttrOut {
  attr: FuseAttr;
  /** How long the kernel may use it, seconds (fractions allowed). */
  attrValid: number;
}

export interface EntryOut extends AttrOut {
  /** From lookup, 0 = a negative entry that the kernel may cache for entryValid (instead of ENOENT). */
  nodeid: number;
  /** Tells the files apart that had this node id one after the other; default 0. */
  generation?: number;
  /** How long the kernel may use the name, seconds (fractions allowed). */
  entryValid: number;
}

export interface OpenOut {
  /** File handle, below 2^53; never reused for another file while the mount lives. */
  fh: number;
  /** FOPEN_* of abi.ts. */
  flags: number;
}

export interface CreateOut extends EntryOut, OpenOut {}

/** What SETATTR asks for; a field that is not to be changed is undefined. */
export interface SetattrIn {
  fh?: number;
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  atime?: TimeSpec | 'now';
  mtime?: TimeSpec | 'now';
  ctime?: TimeSpec;
  lockOwner?: bigint;
  /** FATTR_KILL_SUIDGID */
  killSuidgid: boolean;
}

export interface TimeSpec {
  sec: number;
  nsec: number;
}

export interface ReadIn {
  fh: number;
  offset: number;
  size: number;
  /** open(2) flags of the file. */
  flags: number;
  lockOwner?: bigint;
}

export interface WriteIn {
  fh: number;
  offset: number;
  flags: number;
  lockOwner?: bigint;
  /** FUSE_WRITE_CACHE: from the page cache (mmap), with an arbitrary fh and no credentials. */
  fromCache: boolean;
  killSuidgid: boolean;
  data: WriteData;
}

/** The data of a WRITE, still where read(2) put it: whole pages of the capsule's arena. */
export interface WriteData {
  /** Valid until the answer; afterwards other requests land there. */
  readonly bytes: Uint8Array;
  /**
   * Makes the caller the owner of the pages: answers their offset in the arena (a multiple of 4096), or undefined when
   * they cannot be given away (the data is so short that a copy is cheaper, or they were taken before: also by the process before
   * this one, which then described them in its own records): copy `bytes` then. The pages are given back by `arena.free(offset, length)`.
   */
  take(): number | undefined;
}

/**
 * Data of a READ: at most the bytes asked for; fewer mean end of file. Several pieces go out by one writev(2). It is looked at once, when the answer is given, so it may be
 * memory that changes afterwards (readDone tells when).
 */
export type ReadOut = Uint8Array | readonly Uint8Array[];

export interface Dirent {
  /** d_ino */
  ino: number | bigint;
  /** Cookie of the *next* entry: what READDIR's offset will be to go on after this one. An integer from 1 to 2^53-1; it must mean the same as long as the directory is open. */
  offset: number;
  /** DT_* (abi.ts). */
  type: number;
  name: Name;
  /** READDIRPLUS: attributes, counted as a lookup unless nodeid is 0 or absent. */
  entry?: EntryOut;
}

/** Takes directory entries until the reply is full. */
export interface DirentSink {
  readonly plus: boolean;
  /** False when the entry did not fit: it was not added (a lookup counted for it is to be taken back), the reply is complete. */
  add(entry: Dirent): boolean;
}

export interface LockIn {
  fh: number;
  owner: bigint;
  start: bigint;
  /** Inclusive; 2^63-1 = to the end of the file. */
  end: bigint;
  /** F_RDLCK 0, F_WRLCK 1, F_UNLCK 2. */
  type: number;
  pid: number;
  /** FUSE_LK_FLOCK: the whole-file BSD lock. */
  flock: boolean;
}

export interface LockOut {
  start: bigint;
  end: bigint;
  type: number;
  pid: number;
}

export interface Statfs {
  blocks: number;
  bfree: number;
  bavail: number;
  files: number;
  ffree: number;
  bsize: number;
  namelen: number;
  frsize: number;
}

export interface IoctlIn {
  fh: number;
  cmd: number;
  arg: bigint;
  flags: number;
  input: Uint8Array;
  outSize: number;
}

/** What the kernel offered and what was agreed on in INIT. */
export interface Connection {
  readonly major: number;
  readonly minor: number;
  /** FUSE_* INIT flags in force (64 bits). */
  readonly flags: bigint;
  readonly maxWrite: number;
  readonly maxReadahead: number;
}

/** Messages to the kernel that answer no request (written off the loop: they may wait for a request that only the loop answers). */
export interface Notifier {
  /** FUSE_NOTIFY_INVAL_INODE: length 0 with offset -1 = attributes only; length -1... = to the end. */
  invalInode(nodeid: number, offset: number, length: number): Promise<void>;
  invalEntry(parent: number, name: Name): Promise<void>;
  /** FUSE_NOTIFY_INVAL_ENTRY with FUSE_EXPIRE_ONLY. */
  expireEntry(parent: number, name: Name): Promise<void>;
  delete(parent: number, child: number, name: Name): Promise<void>;
  /** FUSE_NOTIFY_INC_EPOCH (7.44): all dentries stale. Answers false where the kernel has none. */
  incEpoch(): Promise<boolean>;
}

/** The file system. Absent methods are answered as the table in opcodes.ts says (never ENOSYS where that is sticky and a later version may implement it). */
export interface FileSystem {
  /** After INIT (or adoption), before the first request. */
  init?(connection: Connection, notify: Notifier): Reply<void>;
  /** The mount is gone: flush, close. */
  destroy?(): Reply<void>;
  /**
   * Each entry that is answered, here and by whatever makes a file, counts one use of its node id, until `forget`. An absent name may be answered as ENOENT itself, which costs
   * less than throwing it. `.` and `..` come with INIT.EXPORT_SUPPORT only.
   */
  lookup(ctx: Context, parent: number, name: Name): Reply<EntryOut | Errno>;
  forget?(nodeid: number, nlookup: number): void;
  getattr(ctx: Context, nodeid: number, fh: number | undefined): Reply<AttrOut>;
  setattr?(ctx: Context, nodeid: number, set: SetattrIn): Reply<AttrOut>;
  readlink?(ctx: Context, nodeid: number): Reply<Uint8Array>;
  symlink?(ctx: Context, parent: number, name: Name, target: Uint8Array): Reply<EntryOut>;
  mknod?(ctx: Context, parent: number, name: Name, mode: number, rdev: number, umask: number): Reply<EntryOut>;
  mkdir?(ctx: Context, parent: number, name: Name, mode: number, umask: number): Reply<EntryOut>;
  unlink?(ctx: Context, parent: number, name: Name): Reply<void>;
  rmdir?(ctx: Context, parent: number, name: Name): Reply<void>;
  /** flags: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4. */
  rename?(ctx: Context, parent: number, name: Name, newParent: number, newName: Name, flags: number): Reply<void>;
  link?(ctx: Context, nodeid: number, newParent: number, newName: Name): Reply<EntryOut>;
  /** killSuidgid: with O_TRUNC, take the set-id bits away. */
  open?(ctx: Context, nodeid: number, flags: number, killSuidgid: boolean): Reply<OpenOut>;
  create?(
    ctx: Context,
    parent: number,
    name: Name,
    mode: number,
    umask: number,
    flags: number,
    killSuidgid: boolean,
  ): Reply<CreateOut>;
  tmpfile?(ctx: Context, parent: number, mode: number, umask: number, flags: number): Reply<CreateOut>;
  read?(ctx: Context, nodeid: number, read: ReadIn): Reply<ReadOut>;
  /** What `read` answered was sent: its memory is no longer looked at. Not called when that failed. */
  readDone?(out: ReadOut): void;
  /** Answers the number of bytes written. */
  write?(ctx: Context, nodeid: number, write: WriteIn): Reply<number>;
  flush?(ctx: Context, nodeid: number, fh: number, lockOwner: bigint): Reply<void>;
  release?(
    ctx: Context,
    nodeid: number,
    fh: number,
    flags: number,
    lockOwner: bigint,
    flockRelease: boolean,
  ): Reply<void>;
  fsync?(ctx: Context, nodeid: number, fh: number, datasync: boolean): Reply<void>;
  opendir?(ctx: Context, nodeid: number, flags: number): Reply<OpenOut>;
  readdir?(ctx: Context, nodeid: number, fh: number, offset: number, sink: DirentSink): Reply<void>;
  releasedir?(ctx: Context, nodeid: number, fh: number): Reply<void>;
  fsyncdir?(ctx: Context, nodeid: number, fh: number, datasync: boolean): Reply<void>;
  statfs?(ctx: Context, nodeid: number): Reply<Statfs>;
  access?(ctx: Context, nodeid: number, mask: number): Reply<void>;
  /** flags: XATTR_CREATE 1, XATTR_REPLACE 2; killSgid: FUSE_SETXATTR_ACL_KILL_SGID. */
  setxattr?(ctx: Context, nodeid: number, name: Name, value: Uint8Array, flags: number, killSgid: boolean): Reply<void>;
  getxattr?(ctx: Context, nodeid: number, name: Name): Reply<Uint8Array>;
  listxattr?(ctx: Context, nodeid: number): Reply<readonly Name[]>;
  removexattr?(ctx: Context, nodeid: number, name: Name): Reply<void>;
  getlk?(ctx: Context, nodeid: number, lock: LockIn): Reply<LockOut>;
  /** `wait`: SETLKW. An unlock is type F_UNLCK. */
  setlk?(ctx: Context, nodeid: number, lock: LockIn, wait: boolean): Reply<void>;
  fallocate?(ctx: Context, nodeid: number, fh: number, offset: number, length: number, mode: number): Reply<void>;
  lseek?(ctx: Context, nodeid: number, fh: number, offset: number, whence: number): Reply<number>;
  copyFileRange?(
    ctx: Context,
    nodeid: number,
    fh: number,
    offset: number,
    outNodeid: number,
    outFh: number,
    outOffset: number,
    length: number,
    flags: number,
  ): Reply<number>;
  ioctl?(ctx: Context, nodeid: number, ioctl: IoctlIn): Reply<{ result: number; output: Uint8Array }>;
  /** Ready events (EPOLL*) now. */
  poll?(ctx: Context, nodeid: number, fh: number, events: number): Reply<number>;
  statx?(ctx: Context, nodeid: number, fh: number | undefined, flags: number, mask: number): Reply<AttrOut>;
  syncfs?(ctx: Context, nodeid: number): Reply<void>;
}
