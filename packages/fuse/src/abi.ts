/**
 * The wire format of the Linux FUSE protocol 7.38 to 7.45 (include/uapi/linux/fuse.h): constants, decoding of what the
 * kernel sends and encoding of what it is answered. Everything is little-endian (x86-64, arm64) and 8-byte aligned.
 * Structures are not materialised: functions read or write at an offset of a DataView.
 *
 * What differs between the minors: 7.38 total_extlen in the header and EXPIRE_ONLY; 7.39 STATX; 7.40 RESEND, backing_id in
 * fuse_open_out (was padding); 7.43 request_timeout in fuse_init_out (was unused); 7.44 INC_EPOCH; 7.45 COPY_FILE_RANGE_64
 * and PRUNE. No structure changed its size. A request with FUSE_SETXATTR_EXT has the longer setxattr header.
 */
import { EIO } from './errno.ts';
import type {
  AttrOut,
  Dirent,
  DirentSink,
  EntryOut,
  FuseAttr,
  IoctlIn,
  LockIn,
  LockOut,
  OpenOut,
  SetattrIn,
  Statfs,
} from './types.ts';

export const KERNEL_MAJOR = 7;
export const KERNEL_MINOR = 45;
/** The oldest minor that is served: Linux 6.1 speaks 7.37/7.38. */
export const OLDEST_MINOR = 37;
export const ROOT_ID = 1;
export const PAGE = 4096;

/** enum fuse_opcode */
export const OP = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  GETLK: 31,
  SETLK: 32,
  SETLKW: 33,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SETUPMAPPING: 48,
  REMOVEMAPPING: 49,
  SYNCFS: 50,
  TMPFILE: 51,
  STATX: 52,
  COPY_FILE_RANGE_64: 53,
} as const;

/**
 * Bytes that a request has behind its header at the least, by opcode: its fuse_*_in, and the NUL of each name. Below that it is no request of a kernel, and what a decoder would
 * read is not there.
 */
export const LEAST_BODY: readonly number[] = (() => {
  const least: number[] = [];
  // biome-ignore format: a table
  const sizes: Record<keyof typeof OP, number> = {
    LOOKUP: 1, FORGET: 8, GETATTR: 16, SETATTR: 88, READLINK: 0, SYMLINK: 2, MKNOD: 17, MKDIR: 9, UNLINK: 1, RMDIR: 1, RENAME: 10, LINK: 9,
    OPEN: 8, READ: 40, WRITE: 40, STATFS: 0, RELEASE: 24, FSYNC: 16, SETXATTR: 9, GETXATTR: 9, LISTXATTR: 8, REMOVEXATTR: 1, FLUSH: 24, INIT: 16,
    OPENDIR: 8, READDIR: 40, RELEASEDIR: 24, FSYNCDIR: 16, GETLK: 48, SETLK: 48, SETLKW: 48, ACCESS: 8, CREATE: 17, INTERRUPT: 8, BMAP: 16,
    DESTROY: 0, IOCTL: 32, POLL: 24, NOTIFY_REPLY: 40, BATCH_FORGET: 8, FALLOCATE: 32, READDIRPLUS: 40, RENAME2: 18, LSEEK: 24,
    COPY_FILE_RANGE: 56, SETUPMAPPING: 40, REMOVEMAPPING: 4, SYNCFS: 8, TMPFILE: 16, STATX: 24, COPY_FILE_RANGE_64: 56,
  };
  for (const [name, bytes] of Object.entries(sizes)) least[OP[name as keyof typeof OP]] = bytes;
  return least;
})();

/** Names by opcode, for logs. */
export const opcodeName: readonly string[] = (() => {
  const names: string[] = [];
  for (const [name, code] of Object.entries(OP)) names[code] = name;
  return names;
})();

/** enum fuse_notify_code */
export const NOTIFY = {
  POLL: 1,
  INVAL_INODE: 2,
  INVAL_ENTRY: 3,
  STORE: 4,
  RETRIEVE: 5,
  DELETE: 6,
  RESEND: 7,
  INC_EPOCH: 8,
  PRUNE: 9,
} as const;

/** INIT flags; bits 32 and up travel in flags2. */
export const INIT = {
  ASYNC_READ: 1n << 0n,
  POSIX_LOCKS: 1n << 1n,
  FILE_OPS: 1n << 2n,
  ATOMIC_O_TRUNC: 1n << 3n,
  EXPORT_SUPPORT: 1n << 4n,
  BIG_WRITES: 1n << 5n,
  DONT_MASK: 1n << 6n,
  SPLICE_WRITE: 1n << 7n,
  SPLICE_MOVE: 1n << 8n,
  SPLICE_READ: 1n << 9n,
  FLOCK_LOCKS: 1n << 10n,
  HAS_IOCTL_DIR: 1n << 11n,
  AUTO_INVAL_DATA: 1n << 12n,
  DO_READDIRPLUS: 1n << 13n,
  READDIRPLUS_AUTO: 1n << 14n,
  ASYNC_DIO: 1n << 15n,
  WRITEBACK_CACHE: 1n << 16n,
  NO_OPEN_SUPPORT: 1n << 17n,
  PARALLEL_DIROPS: 1n << 18n,
  HANDLE_KILLPRIV: 1n << 19n,
  POSIX_ACL: 1n << 20n,
  ABORT_ERROR: 1n << 21n,
  MAX_PAGES: 1n << 22n,
  CACHE_SYMLINKS: 1n << 23n,
  NO_OPENDIR_SUPPORT: 1n << 24n,
  EXPLICIT_INVAL_DATA: 1n << 25n,
  MAP_ALIGNMENT: 1n << 26n,
  SUBMOUNTS: 1n << 27n,
  HANDLE_KILLPRIV_V2: 1n << 28n,
  SETXATTR_EXT: 1n << 29n,
  INIT_EXT: 1n << 30n,
  SECURITY_CTX: 1n << 32n,
  HAS_INODE_DAX: 1n << 33n,
  CREATE_SUPP_GROUP: 1n << 34n,
  HAS_EXPIRE_ONLY: 1n << 35n,
  DIRECT_IO_ALLOW_MMAP: 1n << 36n,
  PASSTHROUGH: 1n << 37n,
  NO_EXPORT_SUPPORT: 1n << 38n,
  HAS_RESEND: 1n << 39n,
  ALLOW_IDMAP: 1n << 40n,
  OVER_IO_URING: 1n << 41n,
  REQUEST_TIMEOUT: 1n << 42n,
} as const;

export const FATTR = {
  MODE: 1,
  UID: 2,
  GID: 4,
  SIZE: 8,
  ATIME: 16,
  MTIME: 32,
  FH: 64,
  ATIME_NOW: 128,
  MTIME_NOW: 256,
  LOCKOWNER: 512,
  CTIME: 1024,
  KILL_SUIDGID: 2048,
} as const;

/** Flags of {@link OpenOut}. */
export const FOPEN_DIRECT_IO = 1;
export const FOPEN_KEEP_CACHE = 2;
export const FOPEN_NONSEEKABLE = 4;
export const FOPEN_CACHE_DIR = 8;
export const FOPEN_STREAM = 16;
export const FOPEN_NOFLUSH = 32;
export const FOPEN_PARALLEL_DIRECT_WRITES = 64;

export const GETATTR_FH = 1;
export const RELEASE_FLOCK_UNLOCK = 2;
export const LK_FLOCK = 1;
export const WRITE_CACHE = 1;
export const WRITE_LOCKOWNER = 2;
export const WRITE_KILL_SUIDGID = 4;
export const READ_LOCKOWNER = 2;
export const FSYNC_FDATASYNC = 1;
/** In open_flags of OPEN and CREATE: take the set-id bits away (O_TRUNC by a caller without CAP_FSETID). */
export const OPEN_KILL_SUIDGID = 1;
export const SETXATTR_ACL_KILL_SGID = 1;
export const EXPIRE_ONLY = 1;

/** d_type of directory entries. */
export const DT = { UNKNOWN: 0, FIFO: 1, CHR: 2, DIR: 4, BLK: 6, REG: 8, LNK: 10, SOCK: 12 } as const;

export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;

// struct fuse_in_header: len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, total_extlen u16, padding u16
export const IN_LEN = 0;
export const IN_OPCODE = 4;
export const IN_UNIQUE = 8;
export const IN_NODEID = 16;
export const IN_UID = 24;
export const IN_GID = 28;
export const IN_PID = 32;
export const IN_HEADER = 40;
export const WRITE_IN = 40;
/** Header and fuse_write_in: what comes before the data of a WRITE. */
export const WRITE_PREFIX = IN_HEADER + WRITE_IN;
// struct fuse_out_header: len u32, error i32, unique u64
export const OUT_HEADER = 16;

export const ATTR = 88;
export const ENTRY_OUT = 128;
export const ATTR_OUT = 104;
export const OPEN_OUT = 16;
export const STATFS_OUT = 80;
export const LK_OUT = 24;
export const STATX_OUT = 288;
export const INIT_OUT = 64;
export const DIRENT = 24;

const TWO32 = 0x1_0000_0000;

/** Unsigned 64 bits as a number: exact below 2^53, rounded above. */
export function u64(view: DataView, at: number): number {
  const hi = view.getUint32(at + 4, true);
  const lo = view.getUint32(at, true);
  return hi === 0 ? lo : hi * TWO32 + lo;
}

/** Signed 64 bits as a number. */
export function i64(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * TWO32 + view.getUint32(at, true);
}

/** Writes an integer (negative ones in two's complement, numbers or bigints) as 64 bits. */
export function put64(view: DataView, at: number, value: number | bigint): void {
  if (typeof value === 'bigint') {
    view.setBigUint64(at, BigInt.asUintN(64, value), true);
    return;
  }
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / TWO32) >>> 0, true);
}

/** Length of the NUL-terminated string at `at`, at most up to `end`. */
export function cstringLength(bytes: Uint8Array, at: number, end: number): number {
  let i = at;
  while (i < end && bytes[i] !== 0) i++;
  return i - at;
}

/** A copy of `length` bytes (on the heap when short, which is cheaper than a view and outlives the slot). */
export function copyBytes(bytes: Uint8Array, at: number, length: number): Uint8Array {
  if (length > 64) return bytes.slice(at, at + length);
  const out = new Uint8Array(length);
  for (let i = 0; i < length; i++) out[i] = bytes[at + i]!;
  return out;
}

export interface InitIn {
  major: number;
  minor: number;
  maxReadahead: number;
  flags: bigint;
}

/** struct fuse_init_in (flags2 only counts with INIT_EXT). */
export function initIn(view: DataView, at: number): InitIn {
  let flags = BigInt(view.getUint32(at + 12, true));
  if (flags & INIT.INIT_EXT) flags |= BigInt(view.getUint32(at + 16, true)) << 32n;
  return {
    major: view.getUint32(at, true),
    minor: view.getUint32(at + 4, true),
    maxReadahead: view.getUint32(at + 8, true),
    flags,
  };
}

export interface InitOut {
  major: number;
  minor: number;
  maxReadahead: number;
  flags: bigint;
  maxBackground: number;
  congestionThreshold: number;
  maxWrite: number;
  /** Granularity of times, ns. */
  timeGran: number;
  maxPages: number;
}

/** struct fuse_init_out, 64 bytes. */
export function putInitOut(view: DataView, at: number, out: InitOut): number {
  for (let i = 0; i < INIT_OUT; i += 4) view.setUint32(at + i, 0, true);
  view.setUint32(at, out.major, true);
  view.setUint32(at + 4, out.minor, true);
  view.setUint32(at + 8, out.maxReadahead, true);
  view.setUint32(at + 12, Number(out.flags & 0xffffffffn), true);
  view.setUint16(at + 16, out.maxBackground, true);
  view.setUint16(at + 18, out.congestionThreshold, true);
  view.setUint32(at + 20, out.maxWrite, true);
  view.setUint32(at + 24, out.timeGran, true);
  view.setUint16(at + 28, out.maxPages, true);
  view.setUint32(at + 32, Number(out.flags >> 32n), true);
  return INIT_OUT;
}

/** struct fuse_setattr_in, 88 bytes. */
export function setattrIn(view: DataView, at: number): SetattrIn {
  const valid = view.getUint32(at, true);
  const set: SetattrIn = { killSuidgid: (valid & FATTR.KILL_SUIDGID) !== 0 };
  if (valid & FATTR.FH) set.fh = u64(view, at + 8);
  if (valid & FATTR.SIZE) set.size = u64(view, at + 16);
  if (valid & FATTR.LOCKOWNER) set.lockOwner = view.getBigUint64(at + 24, true);
  if (valid & FATTR.ATIME) {
    set.atime = valid & FATTR.ATIME_NOW ? 'now' : { sec: i64(view, at + 32), nsec: view.getUint32(at + 56, true) };
  }
  if (valid & FATTR.MTIME) {
    set.mtime = valid & FATTR.MTIME_NOW ? 'now' : { sec: i64(view, at + 40), nsec: view.getUint32(at + 60, true) };
  }
  if (valid & FATTR.CTIME) set.ctime = { sec: i64(view, at + 48), nsec: view.getUint32(at + 64, true) };
  if (valid & FATTR.MODE) set.mode = view.getUint32(at + 68, true);
  if (valid & FATTR.UID) set.uid = view.getUint32(at + 76, true);
  if (valid & FATTR.GID) set.gid = view.getUint32(at + 80, true);
  return set;
}

/** struct fuse_lk_in, 48 bytes: fh, owner, start, end, type, pid, lk_flags. */
export function lockIn(view: DataView, at: number): LockIn {
  return {
    fh: u64(view, at),
    owner: view.getBigUint64(at + 8, true),
    start: view.getBigUint64(at + 16, true),
    end: view.getBigUint64(at + 24, true),
    type: view.getUint32(at + 32, true),
    pid: view.getUint32(at + 36, true),
    flock: (view.getUint32(at + 40, true) & LK_FLOCK) !== 0,
  };
}

/** struct fuse_ioctl_in, 32 bytes, and the input behind it. */
export function ioctlIn(view: DataView, bytes: Uint8Array, at: number, end: number): IoctlIn {
  const inSize = Math.min(view.getUint32(at + 24, true), end - at - 32);
  return {
    fh: u64(view, at),
    flags: view.getUint32(at + 8, true),
    cmd: view.getUint32(at + 12, true),
    arg: view.getBigUint64(at + 16, true),
    input: copyBytes(bytes, at + 32, inSize),
    outSize: view.getUint32(at + 28, true),
  };
}

/** struct fuse_attr, 88 bytes. */
export function putAttr(view: DataView, at: number, a: FuseAttr): void {
  put64(view, at, a.ino);
  put64(view, at + 8, a.size);
  put64(view, at + 16, a.blocks);
  put64(view, at + 24, a.atime);
  put64(view, at + 32, a.mtime);
  put64(view, at + 40, a.ctime);
  view.setUint32(at + 48, a.atimensec, true);
  view.setUint32(at + 52, a.mtimensec, true);
  view.setUint32(at + 56, a.ctimensec, true);
  view.setUint32(at + 60, a.mode, true);
  view.setUint32(at + 64, a.nlink, true);
  view.setUint32(at + 68, a.uid, true);
  view.setUint32(at + 72, a.gid, true);
  view.setUint32(at + 76, a.rdev, true);
  view.setUint32(at + 80, a.blksize, true);
  view.setUint32(at + 84, 0, true);
}

function putValid(view: DataView, secAt: number, nsecAt: number, seconds: number): void {
  const whole = Math.floor(seconds);
  put64(view, secAt, whole);
  view.setUint32(nsecAt, whole === seconds ? 0 : Math.floor((seconds - whole) * 1e9), true);
}

/** struct fuse_attr_out, 104 bytes. */
export function putAttrOut(view: DataView, at: number, out: AttrOut): number {
  putValid(view, at, at + 8, out.attrValid);
  view.setUint32(at + 12, 0, true);
  putAttr(view, at + 16, out.attr);
  return ATTR_OUT;
}

/** struct fuse_entry_out, 128 bytes. */
export function putEntryOut(view: DataView, at: number, out: EntryOut): number {
  put64(view, at, out.nodeid);
  put64(view, at + 8, out.generation ?? 0);
  putValid(view, at + 16, at + 32, out.entryValid);
  putValid(view, at + 24, at + 36, out.attrValid);
  putAttr(view, at + 40, out.attr);
  return ENTRY_OUT;
}

/** struct fuse_open_out, 16 bytes. */
export function putOpenOut(view: DataView, at: number, out: OpenOut): number {
  put64(view, at, out.fh);
  view.setUint32(at + 8, out.flags, true);
  view.setUint32(at + 12, 0, true);
  return OPEN_OUT;
}

/** struct fuse_statfs_out, 80 bytes. */
export function putStatfsOut(view: DataView, at: number, s: Statfs): number {
  put64(view, at, s.blocks);
  put64(view, at + 8, s.bfree);
  put64(view, at + 16, s.bavail);
  put64(view, at + 24, s.files);
  put64(view, at + 32, s.ffree);
  view.setUint32(at + 40, s.bsize, true);
  view.setUint32(at + 44, s.namelen, true);
  view.setUint32(at + 48, s.frsize, true);
  for (let i = 52; i < STATFS_OUT; i += 4) view.setUint32(at + i, 0, true);
  return STATFS_OUT;
}

/** struct fuse_lk_out, 24 bytes. */
export function putLockOut(view: DataView, at: number, lock: LockOut): number {
  put64(view, at, lock.start);
  put64(view, at + 8, lock.end);
  view.setUint32(at + 16, lock.type, true);
  view.setUint32(at + 20, lock.pid, true);
  return LK_OUT;
}

/** STATX_BASIC_STATS and STATX_BTIME of linux/stat.h. */
const STATX_BASIC = 0x7ff;
const STATX_BTIME = 0x800;

/** struct fuse_statx_out, 288 bytes; the device numbers split rdev's new_encode_dev form. */
export function putStatxOut(view: DataView, at: number, out: AttrOut): number {
  const a = out.attr;
  for (let i = 0; i < STATX_OUT; i += 4) view.setUint32(at + i, 0, true);
  putValid(view, at, at + 8, out.attrValid);
  const s = at + 32;
  view.setUint32(s, a.btime === undefined ? STATX_BASIC : STATX_BASIC | STATX_BTIME, true);
  view.setUint32(s + 4, a.blksize, true);
  view.setUint32(s + 16, a.nlink, true);
  view.setUint32(s + 20, a.uid, true);
  view.setUint32(s + 24, a.gid, true);
  view.setUint16(s + 28, a.mode, true);
  put64(view, s + 32, a.ino);
  put64(view, s + 40, a.size);
  put64(view, s + 48, a.blocks);
  put64(view, s + 64, a.atime);
  view.setUint32(s + 72, a.atimensec, true);
  put64(view, s + 80, a.btime ?? 0);
  view.setUint32(s + 88, a.btimensec ?? 0, true);
  put64(view, s + 96, a.ctime);
  view.setUint32(s + 104, a.ctimensec, true);
  put64(view, s + 112, a.mtime);
  view.setUint32(s + 120, a.mtimensec, true);
  view.setUint32(s + 128, (a.rdev >>> 8) & 0xfff, true);
  view.setUint32(s + 132, (a.rdev & 0xff) | ((a.rdev >>> 12) & 0xfff00), true);
  return STATX_OUT;
}

/** Bytes of a name that the kernel takes from READDIR (PATH_MAX - 1; 1024 before 6.16). */
const NAME_MOST = 4095;

/** Bytes of one record of READDIR (or READDIRPLUS). */
export function direntSize(nameLength: number, plus: boolean): number {
  return ((plus ? ENTRY_OUT : 0) + DIRENT + nameLength + 7) & ~7;
}

/** A {@link DirentSink} that fills `bytes` from `at` with at most `size` bytes of records. */
export class DirentWriter implements DirentSink {
  readonly plus: boolean;
  /** Bytes written. */
  length = 0;
  /** The answer was given: the memory is somebody else's. */
  closed = false;
  /** Node ids that were counted as looked up, to take back when the kernel refuses the reply. */
  readonly looked: number[] = [];
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #at: number;
  readonly #size: number;

  constructor(view: DataView, bytes: Uint8Array, at: number, size: number, plus: boolean) {
    this.#view = view;
    this.#bytes = bytes;
    this.#at = at;
    this.#size = size;
    this.plus = plus;
  }

  add(entry: Dirent): boolean {
    const name = entry.name;
    const n = name.length;
    if (n === 0 || n > NAME_MOST) throw EIO.because(`directory entry with a name of ${n} bytes`);
    const size = direntSize(n, this.plus);
    if (this.closed || this.length + size > this.#size) return false;
    const view = this.#view;
    let at = this.#at + this.length;
    if (this.plus) {
      const e = entry.entry;
      if (e === undefined) {
        // nodeid 0: the kernel takes the name and type only.
        for (let i = 0; i < ENTRY_OUT; i += 4) view.setUint32(at + i, 0, true);
      } else {
        putEntryOut(view, at, e);
        if (e.nodeid !== 0 && !isDots(name)) this.looked.push(e.nodeid);
      }
      at += ENTRY_OUT;
    }
    put64(view, at, entry.ino);
    put64(view, at + 8, entry.offset);
    view.setUint32(at + 16, n, true);
    view.setUint32(at + 20, entry.type, true);
    this.#bytes.set(name, at + DIRENT);
    for (let i = at + DIRENT + n, end = this.#at + this.length + size; i < end; i++) this.#bytes[i] = 0;
    this.length += size;
    return true;
  }
}

/** `.` and `..`: the kernel counts no lookup for them. */
function isDots(name: Uint8Array): boolean {
  return (name.length === 1 && name[0] === 46) || (name.length === 2 && name[0] === 46 && name[1] === 46);
}

// Notifications: fuse_out_header with unique 0 and the code in `error`, then the structure.

function notification(code: number, length: number): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(OUT_HEADER + length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setInt32(4, code, true);
  return { bytes, view };
}

/** struct fuse_notify_inval_inode_out; offset -1: attributes only, length -1 (or 0): to the end. */
export function notifyInvalInode(nodeid: number, offset: number, length: number): Uint8Array {
  const { bytes, view } = notification(NOTIFY.INVAL_INODE, 24);
  put64(view, 16, nodeid);
  put64(view, 24, offset);
  put64(view, 32, length);
  return bytes;
}

/** struct fuse_notify_inval_entry_out, name, NUL. */
export function notifyInvalEntry(parent: number, name: Uint8Array, flags: number): Uint8Array {
  const { bytes, view } = notification(NOTIFY.INVAL_ENTRY, 16 + name.length + 1);
  put64(view, 16, parent);
  view.setUint32(24, name.length, true);
  view.setUint32(28, flags, true);
  bytes.set(name, 32);
  return bytes;
}

/** struct fuse_notify_delete_out, name, NUL. */
export function notifyDelete(parent: number, child: number, name: Uint8Array): Uint8Array {
  const { bytes, view } = notification(NOTIFY.DELETE, 24 + name.length + 1);
  put64(view, 16, parent);
  put64(view, 24, child);
  view.setUint32(32, name.length, true);
  bytes.set(name, 40);
  return bytes;
}

/** struct fuse_notify_store_out and the data: puts it into the page cache of the inode. */
export function notifyStore(nodeid: number, offset: number, data: Uint8Array): Uint8Array {
  const { bytes, view } = notification(NOTIFY.STORE, 24 + data.length);
  put64(view, 16, nodeid);
  put64(view, 24, offset);
  view.setUint32(32, data.length, true);
  bytes.set(data, 40);
  return bytes;
}

/** struct fuse_notify_prune_out and the node ids whose unused inodes are dropped. */
export function notifyPrune(nodeids: readonly number[]): Uint8Array {
  const { bytes, view } = notification(NOTIFY.PRUNE, 16 + 8 * nodeids.length);
  view.setUint32(16, nodeids.length, true);
  for (const [i, nodeid] of nodeids.entries()) put64(view, 32 + 8 * i, nodeid);
  return bytes;
}

/** RESEND and INC_EPOCH: the header alone. */
export function notifyBare(code: number): Uint8Array {
  return notification(code, 0).bytes;
}
