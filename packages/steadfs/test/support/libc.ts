/**
 * System calls as the kernel answers them, through koffi: Node's fs module restarts interrupted calls and hides EINTR, and has no flags of
 * renameat2, fallocate, statx … Every function answers ≥ 0 or −errno. Credentials (setIds) are those of the calling thread alone.
 */
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');

type Arg = number | bigint | Uint8Array | null;
/** A C function that sets errno, as one that answers −errno. */
function fallible(name: string, args: string[], result = 'int64_t'): (...values: Arg[]) => number {
  const f = libc.func(name, result, args) as (...values: Arg[]) => number;
  return (...values) => {
    const r = f(...values);
    return r < 0 ? -koffi.errno() : r;
  };
}

/** A path or name as C wants it. Strings are UTF-8; bytes stay as they are. */
function cstr(path: string | Uint8Array): Uint8Array {
  return typeof path === 'string' ? Buffer.from(`${path}\0`) : Buffer.concat([path, Buffer.of(0)]);
}

// include/uapi/asm-generic/fcntl.h, x86-64 values; arm64 differs in the four that are marked.
const arm = process.arch === 'arm64';
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0o100,
  EXCL: 0o200,
  NOCTTY: 0o400,
  TRUNC: 0o1000,
  APPEND: 0o2000,
  NONBLOCK: 0o4000,
  DSYNC: 0o10000,
  DIRECT: arm ? 0o200000 : 0o40000,
  DIRECTORY: arm ? 0o40000 : 0o200000,
  NOFOLLOW: arm ? 0o100000 : 0o400000,
  NOATIME: 0o1000000,
  CLOEXEC: 0o2000000,
  SYNC: 0o4010000,
  PATH: 0o10000000,
  TMPFILE: 0o20000000 | (arm ? 0o40000 : 0o200000),
} as const;
export const AT = {
  FDCWD: -100,
  SYMLINK_NOFOLLOW: 0x100,
  REMOVEDIR: 0x200,
  SYMLINK_FOLLOW: 0x400,
  EMPTY_PATH: 0x1000,
  STATX_FORCE_SYNC: 0x2000,
} as const;
export const RENAME = { NOREPLACE: 1, EXCHANGE: 2, WHITEOUT: 4 } as const;
export const FALLOC = { KEEP_SIZE: 1, PUNCH_HOLE: 2, COLLAPSE: 8, ZERO: 16, INSERT: 32 } as const;
/** preadv2, pwritev2 (include/uapi/linux/fs.h). */
export const RWF = { DSYNC: 2, SYNC: 4, APPEND: 16, NOAPPEND: 32 } as const;
export const FADV = { RANDOM: 1, SEQUENTIAL: 2, WILLNEED: 3, DONTNEED: 4 } as const;
export const SEEK = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const;
export const LOCK = { SH: 1, EX: 2, NB: 4, UN: 8 } as const;
export const F = { GETLK: 5, SETLK: 6, SETLKW: 7, OFD_GETLK: 36, OFD_SETLK: 37, OFD_SETLKW: 38 } as const;
export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;

const fd = 'int';
const path = 'void *';
const buffer = 'void *';

// Non-variadic declarations of variadic functions pass integers alike on x86-64 and arm64 Linux.
const openat_ = fallible('openat', [fd, path, 'int', 'uint'], 'int');
const fcntl_ = fallible('fcntl', [fd, 'int', buffer], 'int');
const fcntlInt_ = fallible('fcntl', [fd, 'int', 'int'], 'int');
const syscall1 = libc.func('syscall', 'long', ['long', 'long', 'long', 'long']) as (
  ...values: (number | bigint)[]
) => number;
const fchmodat2_ = fallible('syscall', ['long', 'long', path, 'long', 'long'], 'long');
const openat2_ = fallible('syscall', ['long', 'long', path, buffer, 'long'], 'long');
const syscallBuffer = fallible('syscall', ['long', 'long', buffer, 'long', 'long'], 'long');

export const open = (p: string | Uint8Array, flags: number, mode = 0o644): number =>
  openat_(AT.FDCWD, cstr(p), flags | O.CLOEXEC, mode);
/** openat2(2): struct open_how of flags, mode and resolve, eight bytes each. */
export function openHow(p: string | Uint8Array, flags: number): number {
  const how = new BigUint64Array([BigInt(flags | O.CLOEXEC), 0n, 0n]);
  return openat2_(437, AT.FDCWD, cstr(p), new Uint8Array(how.buffer), 24);
}
export const close = fallible('close', [fd], 'int') as (fd: number) => number;
export const read = fallible('read', [fd, buffer, 'size_t']) as (fd: number, b: Uint8Array, n: number) => number;
export const write = fallible('write', [fd, buffer, 'size_t']) as (fd: number, b: Uint8Array, n: number) => number;
export const pread = fallible('pread64', [fd, buffer, 'size_t', 'int64_t']) as (
  fd: number,
  b: Uint8Array,
  n: number,
  at: number,
) => number;
export const pwrite = fallible('pwrite64', [fd, buffer, 'size_t', 'int64_t']) as typeof pread;
export const lseek = fallible('lseek64', [fd, 'int64_t', 'int']) as (fd: number, at: number, how: number) => number;
export const ftruncate = fallible('ftruncate64', [fd, 'int64_t'], 'int') as (fd: number, n: number) => number;
const truncate_ = fallible('truncate64', [path, 'int64_t'], 'int');
export const truncate = (p: string, n: number): number => truncate_(cstr(p), n);
export const fsync = fallible('fsync', [fd], 'int') as (fd: number) => number;
export const fdatasync = fallible('fdatasync', [fd], 'int') as (fd: number) => number;
export const fallocate = fallible('fallocate64', [fd, 'int', 'int64_t', 'int64_t'], 'int') as (
  fd: number,
  mode: number,
  at: number,
  n: number,
) => number;
const copyFileRange_ = fallible('copy_file_range', [fd, buffer, fd, buffer, 'size_t', 'uint']);
export function copyFileRange(from: number, fromAt: number, to: number, toAt: number, n: number): number {
  const a = new BigInt64Array([BigInt(fromAt)]);
  const b = new BigInt64Array([BigInt(toAt)]);
  return copyFileRange_(from, new Uint8Array(a.buffer), to, new Uint8Array(b.buffer), n, 0);
}

const preadv2_ = fallible('preadv2', [fd, buffer, 'int', 'int64_t', 'int']);
const pwritev2_ = fallible('pwritev2', [fd, buffer, 'int', 'int64_t', 'int']);
/** struct iovec[]: address and length, eight bytes each. */
const iovec = (parts: readonly [address: bigint, length: number][]): Uint8Array =>
  new Uint8Array(new BigUint64Array(parts.flatMap(([address, length]) => [address, BigInt(length)])).buffer);
export const preadv2 = (f: number, parts: readonly [bigint, number][], at: number, flags: number): number =>
  preadv2_(f, iovec(parts), parts.length, at, flags);
export const pwritev2 = (f: number, parts: readonly [bigint, number][], at: number, flags: number): number =>
  pwritev2_(f, iovec(parts), parts.length, at, flags);
const sendfile_ = fallible('sendfile64', [fd, fd, buffer, 'size_t']);
export const sendfile = (to: number, from: number, at: number, n: number): number =>
  sendfile_(to, from, new Uint8Array(new BigInt64Array([BigInt(at)]).buffer), n);
const fadvise_ = libc.func('posix_fadvise64', 'int', [fd, 'int64_t', 'int64_t', 'int']) as (
  ...values: number[]
) => number;
/** posix_fadvise answers the error itself. */
export const fadvise = (f: number, at: number, n: number, advice: number): number => 0 - fadvise_(f, at, n, advice);
export const syncFileRange = fallible('sync_file_range', [fd, 'int64_t', 'int64_t', 'uint'], 'int') as (
  f: number,
  at: number,
  n: number,
  flags: number,
) => number;

const mkdir_ = fallible('mkdir', [path, 'uint'], 'int');
export const mkdir = (p: string | Uint8Array, mode: number): number => mkdir_(cstr(p), mode);
const rmdir_ = fallible('rmdir', [path], 'int');
export const rmdir = (p: string | Uint8Array): number => rmdir_(cstr(p));
const unlink_ = fallible('unlink', [path], 'int');
export const unlink = (p: string | Uint8Array): number => unlink_(cstr(p));
const renameat2_ = fallible('renameat2', [fd, path, fd, path, 'uint'], 'int');
export const rename = (a: string | Uint8Array, b: string | Uint8Array, flags = 0): number =>
  renameat2_(AT.FDCWD, cstr(a), AT.FDCWD, cstr(b), flags);
const linkat_ = fallible('linkat', [fd, path, fd, path, 'int'], 'int');
export const link = (a: string | Uint8Array, b: string | Uint8Array, flags = 0): number =>
  linkat_(AT.FDCWD, cstr(a), AT.FDCWD, cstr(b), flags);
/** A name for an open file: linkat(2) with AT_EMPTY_PATH. */
export const linkFd = (f: number, b: string): number => linkat_(f, cstr(''), AT.FDCWD, cstr(b), AT.EMPTY_PATH);
const unlinkat_ = fallible('unlinkat', [fd, path, 'int'], 'int');
export const unlinkAt = (f: number, p: string, flags: number): number => unlinkat_(f, cstr(p), flags);
const mkdirat_ = fallible('mkdirat', [fd, path, 'uint'], 'int');
export const mkdirAt = (f: number, p: string, mode: number): number => mkdirat_(f, cstr(p), mode);
export const openAt = (f: number, p: string, flags: number, mode = 0o644): number =>
  openat_(f, cstr(p), flags | O.CLOEXEC, mode);
const symlink_ = fallible('symlink', [path, path], 'int');
export const symlink = (target: string | Uint8Array, p: string | Uint8Array): number => symlink_(cstr(target), cstr(p));
const readlink_ = fallible('readlink', [path, buffer, 'size_t']);
export function readlink(p: string | Uint8Array): number | Uint8Array {
  const b = Buffer.alloc(4096);
  const n = readlink_(cstr(p), b, b.length);
  return n < 0 ? n : b.subarray(0, n);
}
const mknodat_ = fallible('mknodat', [fd, path, 'uint', 'uint64_t'], 'int');
export const mknod = (p: string, mode: number, dev: number): number => mknodat_(AT.FDCWD, cstr(p), mode, dev);
const chmod_ = fallible('chmod', [path, 'uint'], 'int');
export const chmod = (p: string, mode: number): number => chmod_(cstr(p), mode);
export const fchmod = fallible('fchmod', [fd, 'uint'], 'int') as (fd: number, mode: number) => number;
const lchown_ = fallible('lchown', [path, 'uint', 'uint'], 'int');
/** An id of -1 stays as it is. */
export const lchown = (p: string, uid: number, gid: number): number => lchown_(cstr(p), uid >>> 0, gid >>> 0);
const fchown_ = fallible('fchown', [fd, 'uint', 'uint'], 'int');
export const fchown = (f: number, uid: number, gid: number): number => fchown_(f, uid >>> 0, gid >>> 0);
const fchownat_ = fallible('fchownat', [fd, path, 'uint', 'uint', 'int'], 'int');
/** By AT_EMPTY_PATH: O_PATH descriptors will do. */
export const chownFd = (f: number, uid: number, gid: number): number =>
  fchownat_(f, cstr(''), uid >>> 0, gid >>> 0, AT.EMPTY_PATH);
/** fchmodat2(2) with AT_EMPTY_PATH. */
export const chmodFd = (f: number, mode: number): number => fchmodat2_(452, f, cstr(''), mode, AT.EMPTY_PATH);
const faccessat_ = fallible('faccessat', [fd, path, 'int', 'int'], 'int');
/** With effective ids (AT_EACCESS). */
export const access = (p: string, mode: number): number => faccessat_(AT.FDCWD, cstr(p), mode, 0x200);

/** Nanoseconds of utimensat: these mean "now" and "leave it". */
export const UTIME_NOW = 0x3fffffff;
export const UTIME_OMIT = 0x3ffffffe;
const utimensat_ = fallible('utimensat', [fd, path, buffer, 'int'], 'int');
/** Times as [seconds, nanoseconds] of atime and mtime. */
export function utimens(p: string, atime: [number, number], mtime: [number, number]): number {
  const ts = new BigInt64Array([atime[0], atime[1], mtime[0], mtime[1]].map(BigInt));
  return utimensat_(AT.FDCWD, cstr(p), new Uint8Array(ts.buffer), AT.SYMLINK_NOFOLLOW);
}

const futimens_ = fallible('futimens', [fd, buffer], 'int');
export function futimens(f: number, atime: [number, number], mtime: [number, number]): number {
  const ts = new BigInt64Array([atime[0], atime[1], mtime[0], mtime[1]].map(BigInt));
  return futimens_(f, new Uint8Array(ts.buffer));
}

export interface Statx {
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  ino: bigint;
  size: number;
  blocks: number;
  /** Nanoseconds since 1970. */
  atime: bigint;
  mtime: bigint;
  ctime: bigint;
  rdevMajor: number;
  rdevMinor: number;
}
const statx_ = fallible('statx', [fd, path, 'int', 'uint', buffer], 'int');
/** struct statx of include/uapi/linux/stat.h, 256 bytes. */
function statx(dir: number, p: string | Uint8Array, flags: number): number | Statx {
  const b = Buffer.alloc(256);
  const r = statx_(dir, cstr(p), flags, 0x7ff, b);
  if (r < 0) return r;
  const time = (at: number): bigint => b.readBigInt64LE(at) * 1_000_000_000n + BigInt(b.readUInt32LE(at + 8));
  return {
    nlink: b.readUInt32LE(16),
    uid: b.readUInt32LE(20),
    gid: b.readUInt32LE(24),
    mode: b.readUInt16LE(28),
    ino: b.readBigUInt64LE(32),
    size: Number(b.readBigUInt64LE(40)),
    blocks: Number(b.readBigUInt64LE(48)),
    atime: time(64),
    ctime: time(96),
    mtime: time(112),
    rdevMajor: b.readUInt32LE(128),
    rdevMinor: b.readUInt32LE(132),
  };
}
export const lstat = (p: string | Uint8Array, flags = 0): number | Statx =>
  statx(AT.FDCWD, p, AT.SYMLINK_NOFOLLOW | flags);
export const stat = (p: string | Uint8Array, flags = 0): number | Statx => statx(AT.FDCWD, p, flags);
export const fstat = (f: number, flags = 0): number | Statx => statx(f, '', AT.EMPTY_PATH | flags);

const lsetxattr_ = fallible('lsetxattr', [path, path, buffer, 'size_t', 'int'], 'int');
export const setxattr = (p: string, name: string, value: Uint8Array, flags = 0): number =>
  lsetxattr_(cstr(p), cstr(name), value, value.length, flags);
const lgetxattr_ = fallible('lgetxattr', [path, path, buffer, 'size_t']);
/** size 0 asks for the length alone. */
export function getxattr(p: string, name: string, size = 65536): number | Uint8Array {
  const b = Buffer.alloc(size);
  const n = lgetxattr_(cstr(p), cstr(name), b, size);
  return n < 0 || size === 0 ? n : b.subarray(0, n);
}
const llistxattr_ = fallible('llistxattr', [path, buffer, 'size_t']);
/** Sorted names. */
export function listxattr(p: string): number | string[] {
  const b = Buffer.alloc(65536);
  const n = llistxattr_(cstr(p), b, b.length);
  if (n < 0) return n;
  return b.toString('latin1', 0, n).split('\0').slice(0, -1).sort();
}
const lremovexattr_ = fallible('lremovexattr', [path, path], 'int');
export const removexattr = (p: string, name: string): number => lremovexattr_(cstr(p), cstr(name));

const fsetxattr_ = fallible('fsetxattr', [fd, path, buffer, 'size_t', 'int'], 'int');
export const fsetxattr = (f: number, name: string, value: Uint8Array, flags = 0): number =>
  fsetxattr_(f, cstr(name), value, value.length, flags);
const fgetxattr_ = fallible('fgetxattr', [fd, path, buffer, 'size_t']);
export function fgetxattr(f: number, name: string): number | Uint8Array {
  const b = Buffer.alloc(65536);
  const n = fgetxattr_(f, cstr(name), b, b.length);
  return n < 0 ? n : b.subarray(0, n);
}
const fremovexattr_ = fallible('fremovexattr', [fd, path], 'int');
export const fremovexattr = (f: number, name: string): number => fremovexattr_(f, cstr(name));

export interface Dirent {
  name: Buffer;
  ino: bigint;
  type: number;
  /** What seekdir takes to go on after this entry. */
  off: bigint;
}
// linux/asm-generic/unistd.h for arm64, arch/x86/entry/syscalls/syscall_64.tbl for x86-64.
const NR = arm
  ? { getdents64: 61, setresuid: 147, setresgid: 149, setgroups: 159 }
  : { getdents64: 217, setresuid: 117, setresgid: 119, setgroups: 116 };
/** One getdents64 call: the entries of one buffer; none at the end. */
export function getdents(f: number, size = 32768): number | Dirent[] {
  const b = Buffer.alloc(size);
  const n = syscallBuffer(NR.getdents64, f, b, size, 0);
  if (n < 0) return n;
  const entries: Dirent[] = [];
  for (let at = 0; at < n; at += b.readUInt16LE(at + 16)) {
    const end = b.indexOf(0, at + 19);
    entries.push({
      ino: b.readBigUInt64LE(at),
      off: b.readBigInt64LE(at + 8),
      type: b[at + 18]!,
      name: Buffer.from(b.subarray(at + 19, end)),
    });
  }
  return entries;
}
const lseekBig_ = libc.func('lseek64', 'int64_t', [fd, 'int64_t', 'int']) as (
  f: number,
  at: bigint,
  how: number,
) => number | bigint;
export function seekdir(f: number, off: bigint): number {
  return Number(lseekBig_(f, off, 0)) < 0 ? -koffi.errno() : 0;
}

export const flock = fallible('flock', [fd, 'int'], 'int') as (fd: number, how: number) => number;
export interface Lock {
  type: number;
  start: number;
  length: number;
  pid: number;
}
/** fcntl with a struct flock (64-bit: type, whence, start at 8, len at 16, pid at 24). GETLK answers the lock. */
export function fcntlLock(f: number, cmd: number, lock: Omit<Lock, 'pid'>): number | Lock {
  const b = Buffer.alloc(32);
  b.writeInt16LE(lock.type, 0);
  b.writeBigInt64LE(BigInt(lock.start), 8);
  b.writeBigInt64LE(BigInt(lock.length), 16);
  const r = fcntl_(f, cmd, b);
  if (r < 0) return r;
  if (cmd !== F.GETLK && cmd !== F.OFD_GETLK) return 0;
  return {
    type: b.readInt16LE(0),
    start: Number(b.readBigInt64LE(8)),
    length: Number(b.readBigInt64LE(16)),
    pid: b.readInt32LE(24),
  };
}
const socket_ = fallible('socket', ['int', 'int', 'int'], 'int');
const connect_ = fallible('connect', [fd, buffer, 'uint'], 'int');
/** A stream socket connected to a path, and closed. */
export function connect(p: string): number {
  const s = socket_(1, 1, 0);
  if (s < 0) return s;
  // struct sockaddr_un: family, path.
  const address = Buffer.concat([Buffer.of(1, 0), cstr(p)]);
  const r = connect_(s, address, address.length);
  close(s);
  return r;
}

/** F_SETLEASE: F_RDLCK, F_WRLCK, or F_UNLCK to let go. */
export const lease = (f: number, type: number): number => fcntlInt_(f, 1024, type);
export const getFlags = (f: number): number => fcntlInt_(f, 3, 0);
export const setFlags = (f: number, flags: number): number => fcntlInt_(f, 4, flags);

const ioctl_ = fallible('ioctl', [fd, 'ulong', buffer], 'int');
const ioctlInt_ = fallible('ioctl', [fd, 'ulong', 'long'], 'int');
/** FS_IOC_GETFLAGS: the flags of chattr(1), or −errno. */
export function getInodeFlags(f: number): number {
  const b = Buffer.alloc(8);
  const r = ioctl_(f, 0x80086601, b);
  return r < 0 ? r : b.readInt32LE(0);
}
export function setInodeFlags(f: number, flags: number): number {
  const b = Buffer.alloc(8);
  b.writeInt32LE(flags, 0);
  return ioctl_(f, 0x40086602, b);
}
/** FICLONE. */
export const clone = (to: number, from: number): number => ioctlInt_(to, 0x40049409, from);

const mmap_ = libc.func('mmap', 'void *', ['void *', 'size_t', 'int', 'int', fd, 'int64_t']) as (
  ...values: (number | null)[]
) => unknown;
const munmap_ = libc.func('munmap', 'int', ['void *', 'size_t']) as (address: unknown, n: number) => number;
const msync_ = libc.func('msync', 'int', ['void *', 'size_t', 'int']) as (
  address: unknown,
  n: number,
  f: number,
) => number;
interface Mapping {
  bytes: Buffer;
  sync(): number;
  unmap(): number;
}
/** A shared mapping (or a private one); the file must be as long, or a touch beyond its end is SIGBUS. */
export function mmap(f: number, at: number, n: number, write = true, isPrivate = false): number | Mapping {
  const address = mmap_(null, n, write ? 3 : 1, isPrivate ? 2 : 1, f, at);
  if (koffi.address(address) === 0xffffffffffffffffn) return -koffi.errno();
  return {
    bytes: Buffer.from(koffi.view(address, n)),
    sync: () => (msync_(address, n, 4) < 0 ? -koffi.errno() : 0),
    unmap: () => (munmap_(address, n) < 0 ? -koffi.errno() : 0),
  };
}
export interface Memory {
  bytes: Buffer;
  address: bigint;
}
/** Memory at a multiple of 4096, for O_DIRECT. Lives as long as the process. */
export function alignedMemory(n: number): Memory {
  const pointer = mmap_(null, n, 3, 0x22, -1, 0);
  const address = koffi.address(pointer);
  if (address === 0xffffffffffffffffn) throw new Error(`mmap: errno ${koffi.errno()}`);
  return { bytes: Buffer.from(koffi.view(pointer, n)), address };
}
export const alignedBuffer = (n: number): Buffer => alignedMemory(n).bytes;

/** Changes the calling thread's ids for good (no way back without root). Supplementary groups become `groups`. */
export function setIds(uid: number, gid: number, groups: number[] = []): void {
  const list = new Uint8Array(new Uint32Array([...groups, 0]).buffer);
  const check = (what: string, r: number): void => {
    if (r < 0) throw new Error(`${what}: errno ${koffi.errno()}`);
  };
  const r = syscallBuffer(NR.setgroups, groups.length, list, 0, 0);
  if (r < 0) throw new Error(`setgroups: errno ${-r}`);
  check('setresgid', syscall1(NR.setresgid, gid, gid, gid));
  check('setresuid', syscall1(NR.setresuid, uid, uid, uid));
}
/** Bytes of a struct file_handle: handle_bytes u32, type i32, the handle (MAX_HANDLE_SZ). */
const HANDLE = 8 + 128;
const nameToHandle_ = fallible('name_to_handle_at', ['int', path, buffer, buffer, 'int'], 'int');
const openByHandle_ = fallible('open_by_handle_at', ['int', buffer, 'int'], 'int');
/** What an NFS server gives its clients for a file. */
export function nameToHandle(p: string): Uint8Array | number {
  const handle = new Uint8Array(HANDLE);
  new DataView(handle.buffer).setUint32(0, HANDLE - 8, true);
  const r = nameToHandle_(AT.FDCWD, cstr(p), handle, new Uint8Array(4), 0);
  return r < 0 ? r : handle;
}
/** `mount`: a descriptor of any file of the mount. */
export const openByHandle = (mount: number, handle: Uint8Array, flags: number): number =>
  openByHandle_(mount, handle, flags);
export const umask = libc.func('umask', 'uint', ['uint']) as (mask: number) => number;

const names: Record<number, string> = {
  1: 'EPERM',
  2: 'ENOENT',
  4: 'EINTR',
  5: 'EIO',
  6: 'ENXIO',
  7: 'E2BIG',
  9: 'EBADF',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  16: 'EBUSY',
  17: 'EEXIST',
  18: 'EXDEV',
  19: 'ENODEV',
  20: 'ENOTDIR',
  21: 'EISDIR',
  22: 'EINVAL',
  23: 'ENFILE',
  24: 'EMFILE',
  25: 'ENOTTY',
  26: 'ETXTBSY',
  27: 'EFBIG',
  28: 'ENOSPC',
  29: 'ESPIPE',
  30: 'EROFS',
  31: 'EMLINK',
  34: 'ERANGE',
  35: 'EDEADLK',
  36: 'ENAMETOOLONG',
  37: 'ENOLCK',
  38: 'ENOSYS',
  39: 'ENOTEMPTY',
  40: 'ELOOP',
  61: 'ENODATA',
  75: 'EOVERFLOW',
  95: 'EOPNOTSUPP',
  103: 'ECONNABORTED',
  107: 'ENOTCONN',
  110: 'ETIMEDOUT',
  111: 'ECONNREFUSED',
  116: 'ESTALE',
  122: 'EDQUOT',
  512: 'ERESTARTSYS',
};
/** `ENOENT` for −2, the number itself otherwise. */
export function resultName(r: number): string {
  return r >= 0 ? String(r) : (names[-r] ?? `errno ${-r}`);
}
