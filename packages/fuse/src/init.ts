/**
 * INIT: what is asked of the kernel, and what was agreed on, as the capsule keeps it.
 */
import { INIT, type InitOut, KERNEL_MAJOR, KERNEL_MINOR, PAGE } from './abi.ts';
import { EPROTO } from './errno.ts';
import type { Connection } from './types.ts';

/**
 * What is asked for when the caller says nothing, each flag only where the kernel offers it: what any file system can live with. {@link DUTY_FLAGS} are for one that does
 * what the kernel then leaves to it. (Locks only with `setlk`.)
 */
export const DEFAULT_FLAGS =
  INIT.ASYNC_READ |
  INIT.POSIX_LOCKS |
  INIT.BIG_WRITES |
  INIT.FLOCK_LOCKS |
  INIT.HAS_IOCTL_DIR |
  INIT.AUTO_INVAL_DATA |
  INIT.DO_READDIRPLUS |
  INIT.READDIRPLUS_AUTO |
  INIT.PARALLEL_DIROPS |
  INIT.MAX_PAGES |
  INIT.CACHE_SYMLINKS |
  INIT.HAS_RESEND;

/**
 * Flags that save requests, or allow more, and hand a duty to the file system; to be added to {@link DEFAULT_FLAGS}, all or some:
 *
 *   ATOMIC_O_TRUNC         open and create truncate when their flags have O_TRUNC (no SETATTR comes)
 *   DONT_MASK              create, mkdir, mknod and tmpfile take `umask` off the mode (with POSIX_ACL: where no default ACL holds)
 *   HANDLE_KILLPRIV_V2     write, open and setattr take S_ISUID, S_ISGID and security.capability away when `killSuidgid` says so (no GETXATTR comes before each write)
 *   EXPORT_SUPPORT         lookup of `.` and `..` in any node id ever given out, also after its FORGET: NFS, open_by_handle_at(2)
 *   EXPLICIT_INVAL_DATA    cached pages stay although mtime changes: Notifier.invalInode when others change a file (takes the place of AUTO_INVAL_DATA)
 *   SETXATTR_EXT           setxattr takes S_ISGID away when `killSgid` says so (ACLs)
 *
 * In neither, to be asked for by who knows why: ASYNC_DIO (with it the kernel does not drop cached pages when an asynchronous O_DIRECT write is through, so a buffered read
 * beside it may leave old data in the page cache: xfstests generic/451), WRITEBACK_CACHE (the kernel owns size and times, and guesses handles: not for files that others
 * change), POSIX_ACL (the kernel checks permissions, and getxattr is asked for ACLs), DIRECT_IO_ALLOW_MMAP, ABORT_ERROR, NO_OPEN_SUPPORT, NO_OPENDIR_SUPPORT, ALLOW_IDMAP (uid and gid of
 * the caller are not told any more, but in calls that create).
 */
export const DUTY_FLAGS =
  INIT.ATOMIC_O_TRUNC |
  INIT.DONT_MASK |
  INIT.HANDLE_KILLPRIV_V2 |
  INIT.EXPORT_SUPPORT |
  INIT.EXPLICIT_INVAL_DATA |
  INIT.SETXATTR_EXT;

/** Flags that would need what this server does not do (rings, splices, extensions of requests, a limit of time that ends the connection). */
const NEVER =
  INIT.FILE_OPS |
  INIT.SPLICE_WRITE |
  INIT.SPLICE_MOVE |
  INIT.SPLICE_READ |
  INIT.MAP_ALIGNMENT |
  INIT.SUBMOUNTS |
  INIT.SECURITY_CTX |
  INIT.HAS_INODE_DAX |
  INIT.CREATE_SUPP_GROUP |
  INIT.PASSTHROUGH |
  INIT.OVER_IO_URING |
  INIT.REQUEST_TIMEOUT;

/** Name of the blob with {@link Connection}; without it INIT has not been answered. */
export const INIT_BLOB = 'fuse.connection';

export interface InitOptions {
  /** Wanted flags ({@link INIT}); those in force are in Connection.flags. Default {@link DEFAULT_FLAGS}. */
  flags?: bigint;
  /** Bytes of the largest WRITE, default 1 MiB; the kernel also limits it by fs.fuse.max_pages_limit. */
  maxWrite?: number;
  /** Bytes, default what the kernel offers. */
  maxReadahead?: number;
  /** Background requests (read-ahead, asynchronous I/O, RELEASE) that the kernel sends at once, default 64, and from where on it holds back. */
  maxBackground?: number;
  congestionThreshold?: number;
}

export const MIB = 1 << 20;
/** Bytes of a request beside WRITE that must fit: the largest xattr (64 KiB) and its name. */
export const LARGEST_OTHER = 72 << 10;

/** The answer to INIT: pure. */
export function negotiate(
  kernel: { major: number; minor: number; maxReadahead: number; flags: bigint },
  options: InitOptions,
  locks: boolean,
): InitOut {
  let flags = (options.flags ?? DEFAULT_FLAGS) & ~NEVER;
  if (!locks) flags &= ~(INIT.POSIX_LOCKS | INIT.FLOCK_LOCKS);
  if (flags & kernel.flags & INIT.EXPLICIT_INVAL_DATA) flags &= ~INIT.AUTO_INVAL_DATA;
  flags = (flags | INIT.INIT_EXT | INIT.MAX_PAGES | INIT.BIG_WRITES) & kernel.flags;
  let maxWrite = Math.max(PAGE, options.maxWrite ?? MIB);
  if (!(flags & INIT.MAX_PAGES)) maxWrite = Math.min(maxWrite, 32 * PAGE);
  const maxBackground = options.maxBackground ?? 64;
  return {
    major: KERNEL_MAJOR,
    minor: Math.min(kernel.minor, KERNEL_MINOR),
    maxReadahead: Math.min(kernel.maxReadahead, options.maxReadahead ?? kernel.maxReadahead),
    flags,
    maxBackground,
    congestionThreshold: options.congestionThreshold ?? Math.floor((maxBackground * 3) / 4),
    maxWrite,
    timeGran: 1,
    maxPages: Math.min(0xffff, Math.ceil(maxWrite / PAGE)),
  };
}

// Blob "fuse.connection", 40 bytes: format u32 (1), major u32, minor u32, max_write u32, max_readahead u32, padding u32, flags u64.
export const CONNECTION_BLOB = 40;

export function encodeConnection(c: Connection): Uint8Array {
  const bytes = new Uint8Array(CONNECTION_BLOB);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of [1, c.major, c.minor, c.maxWrite, c.maxReadahead, 0].entries())
    view.setUint32(4 * i, value, true);
  view.setBigUint64(24, c.flags, true);
  return bytes;
}

/** Decodes the blob `fuse.connection` of a capsule (also for `status`). */
export function decodeConnection(bytes: Uint8Array): Connection {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < CONNECTION_BLOB || view.getUint32(0, true) !== 1)
    throw EPROTO.because(`INIT parameters in the capsule have format ${view.getUint32(0, true)}`);
  return {
    major: view.getUint32(4, true),
    minor: view.getUint32(8, true),
    maxWrite: view.getUint32(12, true),
    maxReadahead: view.getUint32(16, true),
    flags: view.getBigUint64(24, true),
  };
}
