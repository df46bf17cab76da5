/**
 * POSIX errors as values. One frozen instance per errno, so that throwing one costs no stack trace: `throw ENOENT`.
 * Numbers are Linux's (include/uapi/asm-generic/errno{-base,}.h), the same on x86-64 and arm64.
 */
export class Errno extends Error {
  readonly errno: number;
  readonly code: string;

  constructor(errno: number, code: string, message: string) {
    // The shared instances are made once at load: a stack trace would only point here.
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    super(message);
    Error.stackTraceLimit = limit;
    this.errno = errno;
    this.code = code;
    this.name = 'Errno';
  }

  /** The same errno with a context for logs: `throw EIO.because('chunk 7 of inode 12: 25 bytes is no slice list')`. */
  because(context: string, cause?: unknown): Errno {
    const e = new Errno(this.errno, this.code, `${this.code}: ${context}`);
    if (cause !== undefined) e.cause = cause;
    Error.captureStackTrace(e, this.because);
    return e;
  }
}

const table = new Map<number, Errno>();

function define(errno: number, code: string, message: string): Errno {
  const e = new Errno(errno, code, message);
  table.set(errno, e);
  return e;
}

export const EPERM = define(1, 'EPERM', 'operation not permitted');
export const ENOENT = define(2, 'ENOENT', 'no such file or directory');
export const EINTR = define(4, 'EINTR', 'interrupted system call');
export const EIO = define(5, 'EIO', 'input/output error');
export const ENXIO = define(6, 'ENXIO', 'no such device or address');
export const E2BIG = define(7, 'E2BIG', 'argument list too long');
export const EBADF = define(9, 'EBADF', 'bad file descriptor');
export const EAGAIN = define(11, 'EAGAIN', 'resource temporarily unavailable');
export const ENOMEM = define(12, 'ENOMEM', 'cannot allocate memory');
export const EACCES = define(13, 'EACCES', 'permission denied');
export const EFAULT = define(14, 'EFAULT', 'bad address');
export const EBUSY = define(16, 'EBUSY', 'device or resource busy');
export const EEXIST = define(17, 'EEXIST', 'file exists');
export const EXDEV = define(18, 'EXDEV', 'invalid cross-device link');
export const ENODEV = define(19, 'ENODEV', 'no such device');
export const ENOTDIR = define(20, 'ENOTDIR', 'not a directory');
export const EISDIR = define(21, 'EISDIR', 'is a directory');
export const EINVAL = define(22, 'EINVAL', 'invalid argument');
export const ENFILE = define(23, 'ENFILE', 'too many open files in system');
export const EMFILE = define(24, 'EMFILE', 'too many open files');
export const ENOTTY = define(25, 'ENOTTY', 'inappropriate ioctl for device');
export const ETXTBSY = define(26, 'ETXTBSY', 'text file busy');
export const EFBIG = define(27, 'EFBIG', 'file too large');
export const ENOSPC = define(28, 'ENOSPC', 'no space left on device');
export const ESPIPE = define(29, 'ESPIPE', 'illegal seek');
export const EROFS = define(30, 'EROFS', 'read-only file system');
export const EMLINK = define(31, 'EMLINK', 'too many links');
export const EPIPE = define(32, 'EPIPE', 'broken pipe');
export const ERANGE = define(34, 'ERANGE', 'numerical result out of range');
export const EDEADLK = define(35, 'EDEADLK', 'resource deadlock avoided');
export const ENAMETOOLONG = define(36, 'ENAMETOOLONG', 'file name too long');
export const ENOLCK = define(37, 'ENOLCK', 'no locks available');
export const ENOSYS = define(38, 'ENOSYS', 'function not implemented');
export const ENOTEMPTY = define(39, 'ENOTEMPTY', 'directory not empty');
export const ELOOP = define(40, 'ELOOP', 'too many levels of symbolic links');
export const ENODATA = define(61, 'ENODATA', 'no data available');
export const EPROTO = define(71, 'EPROTO', 'protocol error');
export const EOVERFLOW = define(75, 'EOVERFLOW', 'value too large for defined data type');
export const EOPNOTSUPP = define(95, 'EOPNOTSUPP', 'operation not supported');
export const ENOTSUP = EOPNOTSUPP;
export const ETIMEDOUT = define(110, 'ETIMEDOUT', 'connection timed out');
export const ENOTCONN = define(107, 'ENOTCONN', 'transport endpoint is not connected');
export const ECONNABORTED = define(103, 'ECONNABORTED', 'software caused connection abort');
export const ECONNREFUSED = define(111, 'ECONNREFUSED', 'connection refused');
export const ESTALE = define(116, 'ESTALE', 'stale file handle');
export const EDQUOT = define(122, 'EDQUOT', 'disk quota exceeded');
export const ECANCELED = define(125, 'ECANCELED', 'operation canceled');

/** The shared instance of a number; one that is not in the table becomes a new Errno of that number. */
export function errnoOf(errno: number): Errno {
  return table.get(errno) ?? new Errno(errno, `E${errno}`, `errno ${errno}`);
}

/** What to throw for an error of node:fs and other system calls: its errno; EIO with the error as its cause for anything else. */
export function errnoFrom(error: unknown): Errno {
  if (error instanceof Errno) return error;
  const { errno, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  if (typeof errno === 'number' && errno < 0 && syscall !== undefined) return errnoOf(-errno);
  return EIO.because(String(error), error);
}
