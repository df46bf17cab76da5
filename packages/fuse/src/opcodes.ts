/**
 * Each opcode: request bytes to a call of {@link FileSystem}, and its result to the payload of the reply.
 *
 * A method that the file system lacks is answered so (ENOSYS is never sent, nor passed on: the kernel remembers it for the life
 * of the mount, so no later version of the server could offer the call):
 *
 *   open, opendir              success with fh 0
 *   flush, release, releasedir, fsync, fsyncdir, syncfs, access      success
 *   forget                     nothing
 *   statx                      from getattr
 *   lseek                      SEEK_DATA, SEEK_HOLE from getattr: data up to the size, then a hole
 *   statfs                     zeros, block size 4096, names of 255 bytes
 *   listxattr                  empty
 *   poll                       always ready for reading and writing
 *   getlk, setlk               the INIT flags are not set: the kernel keeps the locks itself
 *   readlink, bmap             EINVAL
 *   ioctl                      ENOTTY
 *   readdir                    ENOTDIR
 *   symlink, mknod, mkdir, unlink, rmdir, rename, link        EPERM
 *   all others                 EOPNOTSUPP
 */
import {
  copyBytes,
  DirentWriter,
  FSYNC_FDATASYNC,
  GETATTR_FH,
  ioctlIn,
  lockIn,
  OP,
  OPEN_KILL_SUIDGID,
  OUT_HEADER,
  PAGE,
  put64,
  putAttrOut,
  putEntryOut,
  putLockOut,
  putOpenOut,
  putStatfsOut,
  putStatxOut,
  READ_LOCKOWNER,
  RELEASE_FLOCK_UNLOCK,
  ROOT_ID,
  SETXATTR_ACL_KILL_SGID,
  setattrIn,
  WRITE_CACHE,
  WRITE_KILL_SUIDGID,
  WRITE_LOCKOWNER,
  WRITE_PREFIX,
} from './abi.ts';
import { EFBIG, EINVAL, EIO, ENOTDIR, ENOTTY, ENXIO, EOPNOTSUPP, EPERM, ERANGE, Errno } from './errno.ts';
import { MIB } from './init.ts';
import { LandedData, NO_BYTES, type Request } from './request.ts';
import { REPLY } from './slots.ts';
import type { AttrOut, CreateOut, EntryOut, FileSystem, FuseAttr, Name, OpenOut, ReadOut, Reply } from './types.ts';

/** How an opcode is carried out and answered: `encode` fills the payload (at most 304 bytes) at `at` and answers its length, or sends by itself and answers -1. */
export interface Handler<T = unknown> {
  run(fs: FileSystem, r: Request): Reply<T>;
  encode(r: Request, value: T, view: DataView, at: number): number;
}

export const handlers: (Handler<never> | undefined)[] = [];

function on<T>(opcode: number, run: Handler<T>['run'], encode: Handler<T>['encode']): void {
  handlers[opcode] = { run, encode } as Handler<never>;
}

const nothing = (): number => 0;

// What the kernel would answer EIO for, without a word, or misunderstand is refused here, with one.

/** An integer between `least` and `most`. */
function checked(what: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most && Number.isInteger(value)) return value;
  throw EIO.because(`the file system answers ${what} ${value}, not an integer between ${least} and ${most}`);
}
/** S_IFMT >>> 12 of the seven types. */
const TYPES = (1 << 1) | (1 << 2) | (1 << 4) | (1 << 6) | (1 << 8) | (1 << 10) | (1 << 12);
function checkedAttr(attr: FuseAttr): void {
  const type = attr.mode >>> 12;
  if (type > 12 || ((TYPES >>> type) & 1) === 0 || !(attr.size >= 0))
    throw EIO.because(`the file system answers attributes of mode 0${attr.mode?.toString(8)} and size ${attr.size}`);
}
function putEntry(r: Request, out: EntryOut, view: DataView, at: number): number {
  checkedAttr(out.attr);
  r.looked = out.nodeid;
  return putEntryOut(view, at, out);
}
/** LOOKUP: 0 is a negative entry. */
function found(r: Request, out: EntryOut, view: DataView, at: number): number {
  return checked('node id', out.nodeid, 0, MAX) === 0 ? putEntryOut(view, at, out) : putEntry(r, out, view, at);
}
function entry(r: Request, out: EntryOut, view: DataView, at: number): number {
  checked('node id', out.nodeid, ROOT_ID + 1, MAX);
  return putEntry(r, out, view, at);
}
function opened(_: Request, out: OpenOut, view: DataView, at: number): number {
  checked('file handle', out.fh, 0, MAX);
  return putOpenOut(view, at, out);
}
function created(r: Request, out: CreateOut, view: DataView, at: number): number {
  const n = entry(r, out, view, at);
  return n + opened(r, out, view, at + n);
}
function attributes(_: Request, out: AttrOut, view: DataView, at: number): number {
  checkedAttr(out.attr);
  return putAttrOut(view, at, out);
}
/** u32 and padding: fuse_write_out, fuse_getxattr_out, fuse_poll_out. */
function word(_: Request, value: number, view: DataView, at: number): number {
  view.setUint32(at, value, true);
  view.setUint32(at + 4, 0, true);
  return 8;
}
/** Bytes done, at most those of the request: fuse_write_out. */
const amount = (r: Request, value: number, view: DataView, at: number): number =>
  word(r, checked('bytes', value, 0, r.size), view, at);
function long(_: Request, value: number, view: DataView, at: number): number {
  put64(view, at, checked('offset', value, 0, MAX));
  return 8;
}
const noHandle: OpenOut = { fh: 0, flags: 0 };
const MAX = Number.MAX_SAFE_INTEGER;

on<EntryOut | Errno>(
  OP.LOOKUP,
  (fs, r) => fs.lookup(r, r.nodeid, r.name(0)),
  (r, out, view, at) => (out instanceof Errno ? r.server.refuse(r, out) : found(r, out, view, at)),
);
on<AttrOut>(OP.GETATTR, (fs, r) => fs.getattr(r, r.nodeid, r.u32(0) & GETATTR_FH ? r.u64(8) : undefined), attributes);
on<AttrOut>(
  OP.SETATTR,
  (fs, r) => {
    if (!fs.setattr) throw EOPNOTSUPP;
    const set = setattrIn(r.view, r.body);
    if (set.size !== undefined && set.size > MAX) throw EFBIG;
    return fs.setattr(r, r.nodeid, set);
  },
  attributes,
);
on<Uint8Array>(
  OP.READLINK,
  (fs, r) => {
    if (!fs.readlink) throw EINVAL;
    return fs.readlink(r, r.nodeid);
  },
  (r, target, view, at) => r.server.sendBytes(r, target, view, at),
);
on<EntryOut>(
  OP.SYMLINK,
  (fs, r) => {
    if (!fs.symlink) throw EPERM;
    const name = r.name(0);
    return fs.symlink(r, r.nodeid, name, r.string(name.length + 1));
  },
  entry,
);
on<EntryOut>(
  OP.MKNOD,
  (fs, r) => {
    if (!fs.mknod) throw EPERM;
    return fs.mknod(r, r.nodeid, r.name(16), r.u32(0), r.u32(4), r.u32(8));
  },
  entry,
);
on<EntryOut>(
  OP.MKDIR,
  (fs, r) => {
    if (!fs.mkdir) throw EPERM;
    return fs.mkdir(r, r.nodeid, r.name(8), r.u32(0), r.u32(4));
  },
  entry,
);
on<void>(
  OP.UNLINK,
  (fs, r) => {
    if (!fs.unlink) throw EPERM;
    return fs.unlink(r, r.nodeid, r.name(0));
  },
  nothing,
);
on<void>(
  OP.RMDIR,
  (fs, r) => {
    if (!fs.rmdir) throw EPERM;
    return fs.rmdir(r, r.nodeid, r.name(0));
  },
  nothing,
);
function rename(fs: FileSystem, r: Request, at: number, flags: number): Reply<void> {
  if (!fs.rename) throw EPERM;
  const name = r.name(at);
  return fs.rename(r, r.nodeid, name, r.u64(0), r.name(at + name.length + 1), flags);
}
on<void>(OP.RENAME, (fs, r) => rename(fs, r, 8, 0), nothing);
on<void>(OP.RENAME2, (fs, r) => rename(fs, r, 16, r.u32(8)), nothing);
on<EntryOut>(
  OP.LINK,
  (fs, r) => {
    if (!fs.link) throw EPERM;
    return fs.link(r, r.u64(0), r.nodeid, r.name(8));
  },
  entry,
);
on<OpenOut>(
  OP.OPEN,
  (fs, r) => fs.open?.(r, r.nodeid, r.u32(0), (r.u32(4) & OPEN_KILL_SUIDGID) !== 0) ?? noHandle,
  opened,
);
on<CreateOut>(
  OP.CREATE,
  (fs, r) => {
    if (!fs.create) throw EOPNOTSUPP;
    const kill = (r.u32(12) & OPEN_KILL_SUIDGID) !== 0;
    return fs.create(r, r.nodeid, r.name(16), r.u32(4), r.u32(8), r.u32(0), kill);
  },
  created,
);
on<CreateOut>(
  OP.TMPFILE,
  (fs, r) => {
    if (!fs.tmpfile) throw EOPNOTSUPP;
    return fs.tmpfile(r, r.nodeid, r.u32(4), r.u32(8), r.u32(0));
  },
  created,
);
on<ReadOut>(
  OP.READ,
  (fs, r) => {
    if (!fs.read) throw EOPNOTSUPP;
    const offset = r.u64(8);
    r.size = r.u32(16);
    if (offset > MAX) return NO_BYTES;
    return fs.read(r, r.nodeid, {
      fh: r.u64(0),
      offset,
      size: r.size,
      flags: r.u32(32),
      ...(r.u32(20) & READ_LOCKOWNER ? { lockOwner: r.big(24) } : undefined),
    });
  },
  (r, data, view, at) => {
    const length = data instanceof Uint8Array ? r.server.sendBytes(r, data, view, at) : r.server.sendPieces(r, data);
    // Written, or copied into the slot: the file system may use the memory again.
    r.server.readDone(data);
    return length;
  },
);
on<number>(
  OP.WRITE,
  (fs, r) => {
    if (!fs.write) throw EOPNOTSUPP;
    const offset = r.u64(8);
    const size = r.u32(16);
    const flags = r.u32(20);
    if (size > r.length - WRITE_PREFIX) throw EIO.because(`WRITE of ${size} bytes in a request of ${r.length}`);
    r.size = size;
    if (offset + size > MAX) throw EFBIG;
    return fs.write(r, r.nodeid, {
      fh: r.u64(0),
      offset,
      flags: r.u32(32),
      fromCache: (flags & WRITE_CACHE) !== 0,
      killSuidgid: (flags & WRITE_KILL_SUIDGID) !== 0,
      data: new LandedData(r, size),
      ...(flags & WRITE_LOCKOWNER ? { lockOwner: r.big(24) } : undefined),
    });
  },
  amount,
);
on(
  OP.STATFS,
  (fs, r) =>
    fs.statfs?.(r, r.nodeid) ?? {
      blocks: 0,
      bfree: 0,
      bavail: 0,
      files: 0,
      ffree: 0,
      bsize: PAGE,
      namelen: 255,
      frsize: PAGE,
    },
  (_, out, view, at) => putStatfsOut(view, at, out),
);
on<void>(
  OP.RELEASE,
  (fs, r) => fs.release?.(r, r.nodeid, r.u64(0), r.u32(8), r.big(16), (r.u32(12) & RELEASE_FLOCK_UNLOCK) !== 0),
  nothing,
);
on<void>(OP.RELEASEDIR, (fs, r) => fs.releasedir?.(r, r.nodeid, r.u64(0)), nothing);
on<void>(OP.FSYNC, (fs, r) => fs.fsync?.(r, r.nodeid, r.u64(0), (r.u32(8) & FSYNC_FDATASYNC) !== 0), nothing);
on<void>(OP.FSYNCDIR, (fs, r) => fs.fsyncdir?.(r, r.nodeid, r.u64(0), (r.u32(8) & FSYNC_FDATASYNC) !== 0), nothing);
on<void>(OP.FLUSH, (fs, r) => fs.flush?.(r, r.nodeid, r.u64(0), r.big(16)), nothing);
on<void>(OP.SYNCFS, (fs, r) => fs.syncfs?.(r, r.nodeid), nothing);
on<void>(OP.ACCESS, (fs, r) => fs.access?.(r, r.nodeid, r.u32(0)), nothing);
on<void>(OP.DESTROY, () => undefined, nothing);
on<OpenOut>(OP.OPENDIR, (fs, r) => fs.opendir?.(r, r.nodeid, r.u32(0)) ?? noHandle, opened);

function readdir(fs: FileSystem, r: Request, plus: boolean): Reply<void> {
  if (!fs.readdir) throw ENOTDIR;
  const size = Math.min(r.u32(16), MIB);
  const memory = r.server.device.buffer(OUT_HEADER + size);
  r.memory = memory;
  r.writer = new DirentWriter(memory.view, memory.bytes, OUT_HEADER, size, plus);
  return fs.readdir(r, r.nodeid, r.u64(0), r.u64(8), r.writer);
}
const listed = (r: Request): number => r.server.sendBuffer(r, r.writer!.length);
on<void>(OP.READDIR, (fs, r) => readdir(fs, r, false), listed);
on<void>(OP.READDIRPLUS, (fs, r) => readdir(fs, r, true), listed);

on<void>(
  OP.SETXATTR,
  (fs, r) => {
    if (!fs.setxattr) throw EOPNOTSUPP;
    const size = r.u32(0);
    const extended = r.server.setxattrExt;
    const at = extended ? 16 : 8;
    const name = r.name(at);
    const start = r.body + at + name.length + 1;
    if (start + size > r.end) throw EIO.because(`SETXATTR of ${size} bytes in a request of ${r.length}`);
    const kill = extended && (r.u32(8) & SETXATTR_ACL_KILL_SGID) !== 0;
    return fs.setxattr(r, r.nodeid, name, copyBytes(r.bytes, start, size), r.u32(4), kill);
  },
  nothing,
);
/** With size 0 only the length is asked for. */
function xattr(r: Request, value: Uint8Array, view: DataView, at: number): number {
  if (r.size === 0) return word(r, value.length, view, at);
  if (value.length > r.size) throw ERANGE;
  return r.server.sendBytes(r, value, view, at);
}
on<Uint8Array>(
  OP.GETXATTR,
  (fs, r) => {
    if (!fs.getxattr) throw EOPNOTSUPP;
    r.size = r.u32(0);
    return fs.getxattr(r, r.nodeid, r.name(8));
  },
  xattr,
);
on<readonly Name[]>(
  OP.LISTXATTR,
  (fs, r) => {
    r.size = r.u32(0);
    return fs.listxattr?.(r, r.nodeid) ?? [];
  },
  (r, names, view, at) => {
    const list = new Uint8Array(names.reduce((sum, name) => sum + name.length + 1, 0));
    let to = 0;
    for (const name of names) {
      list.set(name, to);
      to += name.length + 1;
    }
    return xattr(r, list, view, at);
  },
);
on<void>(
  OP.REMOVEXATTR,
  (fs, r) => {
    if (!fs.removexattr) throw EOPNOTSUPP;
    return fs.removexattr(r, r.nodeid, r.name(0));
  },
  nothing,
);
on(
  OP.GETLK,
  (fs, r) => {
    if (!fs.getlk) throw EOPNOTSUPP;
    return fs.getlk(r, r.nodeid, lockIn(r.view, r.body));
  },
  (_, lock, view, at) => putLockOut(view, at, lock),
);
function setlk(fs: FileSystem, r: Request, wait: boolean): Reply<void> {
  if (!fs.setlk) throw EOPNOTSUPP;
  return fs.setlk(r, r.nodeid, lockIn(r.view, r.body), wait);
}
on<void>(OP.SETLK, (fs, r) => setlk(fs, r, false), nothing);
on<void>(OP.SETLKW, (fs, r) => setlk(fs, r, true), nothing);
on<void>(
  OP.FALLOCATE,
  (fs, r) => {
    if (!fs.fallocate) throw EOPNOTSUPP;
    const offset = r.u64(8);
    const length = r.u64(16);
    if (offset + length > MAX) throw EFBIG;
    return fs.fallocate(r, r.nodeid, r.u64(0), offset, length, r.u32(24));
  },
  nothing,
);
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
on<number>(
  OP.LSEEK,
  (fs, r) => {
    const fh = r.u64(0);
    const offset = r.u64(8);
    const whence = r.u32(16);
    if (fs.lseek) return fs.lseek(r, r.nodeid, fh, offset, whence);
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw EINVAL;
    return then(fs.getattr(r, r.nodeid, fh), ({ attr }) => {
      if (offset >= attr.size) throw ENXIO;
      return whence === SEEK_DATA ? offset : attr.size;
    });
  },
  long,
);
function copyRange(fs: FileSystem, r: Request): Reply<number> {
  if (!fs.copyFileRange) throw EOPNOTSUPP;
  const from = r.u64(8);
  const to = r.u64(32);
  const length = r.u64(40);
  r.size = length;
  if (from > MAX) return 0;
  if (to > MAX) throw EFBIG;
  return fs.copyFileRange(r, r.nodeid, r.u64(0), from, r.u64(16), r.u64(24), to, length, r.u32(48));
}
/** The old opcode's answer has 32 bits: what it copies in one call stays below. */
const COPY_MAX = 0x7fff_f000;
on<number>(
  OP.COPY_FILE_RANGE,
  (fs, r) => {
    if (r.u64(40) > COPY_MAX) put64(r.view, r.body + 40, COPY_MAX);
    return copyRange(fs, r);
  },
  amount,
);
on<number>(OP.COPY_FILE_RANGE_64, copyRange, (r, value, view, at) => {
  put64(view, at, checked('bytes', value, 0, r.size));
  return 8;
});
on(
  OP.IOCTL,
  (fs, r) => {
    if (!fs.ioctl) throw ENOTTY;
    const input = ioctlIn(r.view, r.bytes, r.body, r.end);
    r.size = input.outSize;
    return fs.ioctl(r, r.nodeid, input);
  },
  (r, { result, output }, view, at) => {
    if (output.length > r.size) throw EIO.because(`ioctl output of ${output.length} bytes, room for ${r.size}`);
    const head = output.length <= REPLY - OUT_HEADER - 16 ? undefined : new Uint8Array(16);
    const to = head ? new DataView(head.buffer) : view;
    const where = head ? 0 : at;
    to.setInt32(where, result, true);
    for (let i = 4; i < 16; i += 4) to.setUint32(where + i, 0, true);
    if (head) return r.server.sendPieces(r, [head, output]);
    for (let i = 0; i < output.length; i++) view.setUint8(at + 16 + i, output[i]!);
    return 16 + output.length;
  },
);
/** EPOLLIN, OUT, RDNORM, WRNORM */
const ALWAYS_READY = 0x1 | 0x4 | 0x40 | 0x100;
on<number>(OP.POLL, (fs, r) => fs.poll?.(r, r.nodeid, r.u64(0), r.u32(20)) ?? r.u32(20) & ALWAYS_READY, word);
on<AttrOut>(
  OP.STATX,
  (fs, r) => {
    const fh = r.u32(0) & GETATTR_FH ? r.u64(8) : undefined;
    return fs.statx ? fs.statx(r, r.nodeid, fh, r.u32(16), r.u32(20)) : fs.getattr(r, r.nodeid, fh);
  },
  (_, out, view, at) => {
    checkedAttr(out.attr);
    return putStatxOut(view, at, out);
  },
);
on<void>(
  OP.BMAP,
  () => {
    throw EINVAL;
  },
  nothing,
);

/** What changes the volume: sent again to a server that does not know its outcome, it is answered EIO. */
export const mutates = new Set<number>([
  OP.SETATTR,
  OP.SYMLINK,
  OP.MKNOD,
  OP.MKDIR,
  OP.UNLINK,
  OP.RMDIR,
  OP.RENAME,
  OP.RENAME2,
  OP.LINK,
  OP.WRITE,
  OP.SETXATTR,
  OP.REMOVEXATTR,
  OP.CREATE,
  OP.TMPFILE,
  OP.SETLK,
  OP.SETLKW,
  OP.FALLOCATE,
  OP.COPY_FILE_RANGE,
  OP.COPY_FILE_RANGE_64,
  OP.IOCTL,
]);
export const O_TRUNC = 0o1000;

export function isPromise<T>(value: Reply<T>): value is Promise<T> {
  return value instanceof Promise || (typeof value === 'object' && value !== null && 'then' in value);
}
function then<T, U>(value: Reply<T>, f: (value: T) => U): Reply<U> {
  return isPromise(value) ? value.then(f) : f(value);
}
