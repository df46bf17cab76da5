/**
 * System calls that Node does not offer, through koffi and glibc. No code of our own is compiled.
 *
 * Two kinds of functions:
 * - hot ones ({@link read}, {@link readv}, {@link write}, {@link writev}, {@link poll}, …) answer -errno like the kernel itself, so that EAGAIN costs no
 *   exception; they take plain addresses (numbers below 2^53), 0.2-0.4 µs a call;
 * - all others answer their result or throw an {@link Errno} that names the call.
 *
 * Structures passed to the kernel are built in anonymous mappings whose address is known ({@link Memory}). Their layouts are those of 64-bit
 * little-endian Linux (x86-64 and arm64 agree on all that is used here).
 */
import { getSystemErrorMap } from 'node:util';
import koffi from 'koffi';
import { EINVAL, type Errno, errnoOf } from './errno.ts';

// --- Constants (asm-generic; equal on x86-64 and arm64) ------------------------------------------------------------

export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
export const MADV_DONTDUMP = 16;
/** Linux 5.14. */
const MADV_POPULATE_WRITE = 23;
export const MFD_CLOEXEC = 1;
export const MFD_ALLOW_SEALING = 2;
export const F_SEAL_SEAL = 1;
export const F_SEAL_SHRINK = 2;
export const F_SEAL_GROW = 4;
export const F_SEAL_WRITE = 8;
export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;
export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLERR = 8;
export const POLLHUP = 16;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
/** Linux 5.6, needs CAP_SYS_RESOURCE; inherited by fork and execve. */
export const PR_SET_IO_FLUSHER = 57;
export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
export const MS_SYNCHRONOUS = 16;
export const MS_REMOUNT = 32;
export const MS_DIRSYNC = 128;
export const MS_NOATIME = 1024;
export const MS_NODIRATIME = 2048;
export const MS_RELATIME = 1 << 21;
export const MS_STRICTATIME = 1 << 24;
export const MNT_FORCE = 1;
export const MNT_DETACH = 2;
export const UMOUNT_NOFOLLOW = 8;
export const SIGHUP = 1;
export const SIGINT = 2;
export const SIGKILL = 9;
export const SIGTERM = 15;
export const SIGCONT = 18;
export const SIGSTOP = 19;
export const SIGVTALRM = 26;
export const MSG_DONTWAIT = 0x40;
export const PAGE = 4096;

export const RWF_NOWAIT = 8;
const RUSAGE_THREAD = 1;
const F_GETFD = 1;
const F_SETFD = 2;
const F_GETFL = 3;
const F_SETFL = 4;
const F_GETLK = 5;
const F_SETLK = 6;
const F_DUPFD_CLOEXEC = 1030;
const F_ADD_SEALS = 1033;
const FD_CLOEXEC = 1;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = O_NONBLOCK;
const SOCK_CLOEXEC = O_CLOEXEC;
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_CTRUNC = 8;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
// System call numbers without a wrapper in older glibc; one number on all architectures (they came after 424).
const SYS_pidfd_send_signal = 424;
const SYS_pidfd_open = 434;
const SYS_pidfd_getfd = 438;
const SYS_mlock2 = process.arch === 'arm64' ? 284 : 325;
const SYS_timer_create = process.arch === 'arm64' ? 107 : 222;
const SYS_timer_settime = process.arch === 'arm64' ? 110 : 223;
const MLOCK_ONFAULT = 1;
const AT_FDCWD = -100;
const AT_SYMLINK_FOLLOW = 0x400;

// --- Bindings -----------------------------------------------------------------------------------------------------

const libc = koffi.load('libc.so.6');
type N = number;
/** What koffi calls cannot be told by their type; one place for the cast. */
function bind<F extends (...args: never[]) => unknown>(
  definition: string,
): F & { async: (...args: unknown[]) => void } {
  return libc.func(definition) as unknown as F & { async: (...args: unknown[]) => void };
}

const c = {
  read: bind<(fd: N, a: N, n: N) => N>('long read(int, uintptr_t, size_t)'),
  readv: bind<(fd: N, a: N, n: N) => N>('long readv(int, uintptr_t, int)'),
  write: bind<(fd: N, a: N, n: N) => N>('long write(int, uintptr_t, size_t)'),
  writev: bind<(fd: N, a: N, n: N) => N>('long writev(int, uintptr_t, int)'),
  pread: bind<(fd: N, a: N, n: N, o: N) => N>('long pread64(int, uintptr_t, size_t, int64_t)'),
  pwrite: bind<(fd: N, a: N, n: N, o: N) => N>('long pwrite64(int, uintptr_t, size_t, int64_t)'),
  preadv2: bind<(fd: N, a: N, n: N, o: N, flags: N) => N>('long preadv64v2(int, uintptr_t, int, int64_t, int)'),
  linkat: bind<(from: N, path: string, to: N, target: string, flags: N) => N>(
    'int linkat(int, const char*, int, const char*, int)',
  ),
  getrusage: bind<(who: N, a: N) => N>('int getrusage(int, uintptr_t)'),
  open: bind<(path: string, flags: N, mode: N) => N>('int open64(const char*, int, uint)'),
  close: bind<(fd: N) => N>('int close(int)'),
  dup2: bind<(from: N, to: N) => N>('int dup2(int, int)'),
  fcntl: bind<(fd: N, cmd: N, arg: N) => N>('int fcntl64(int, int, uintptr_t)'),
  lseek: bind<(fd: N, o: N, w: N) => N>('int64_t lseek64(int, int64_t, int)'),
  pipe2: bind<(a: N, flags: N) => N>('int pipe2(uintptr_t, int)'),
  memfd: bind<(name: string, flags: N) => N>('int memfd_create(const char*, uint)'),
  ftruncate: bind<(fd: N, n: N) => N>('int ftruncate64(int, int64_t)'),
  fallocate: bind<(fd: N, mode: N, o: N, n: N) => N>('int fallocate64(int, int, int64_t, int64_t)'),
  mmap: bind<(a: N, n: N, prot: N, flags: N, fd: N, o: N) => N | bigint>(
    'uintptr_t mmap64(uintptr_t, size_t, int, int, int, int64_t)',
  ),
  munmap: bind<(a: N, n: N) => N>('int munmap(uintptr_t, size_t)'),
  mlock: bind<(a: N, n: N) => N>('int mlock(uintptr_t, size_t)'),
  madvise: bind<(a: N, n: N, advice: N) => N>('int madvise(uintptr_t, size_t, int)'),
  malloc_trim: bind<(pad: N) => N>('int malloc_trim(size_t)'),
  poll: bind<(a: N, n: N, timeout: N) => N>('int poll(uintptr_t, ulong, int)'),
  prctl: bind<(o: N, a: N, b: N, d: N, e: N) => N>('int prctl(int, ulong, ulong, ulong, ulong)'),
  kill: bind<(pid: N, signal: N) => N>('int kill(int, int)'),
  exit: bind<(code: N) => N>('void _exit(int)'),
  socket: bind<(d: N, t: N, p: N) => N>('int socket(int, int, int)'),
  socketpair: bind<(d: N, t: N, p: N, a: N) => N>('int socketpair(int, int, int, uintptr_t)'),
  bind: bind<(fd: N, a: N, n: N) => N>('int bind(int, uintptr_t, uint)'),
  listen: bind<(fd: N, n: N) => N>('int listen(int, int)'),
  accept4: bind<(fd: N, a: N, n: N, flags: N) => N>('int accept4(int, uintptr_t, uintptr_t, int)'),
  connect: bind<(fd: N, a: N, n: N) => N>('int connect(int, uintptr_t, uint)'),
  sendmsg: bind<(fd: N, a: N, flags: N) => N>('long sendmsg(int, uintptr_t, int)'),
  recvmsg: bind<(fd: N, a: N, flags: N) => N>('long recvmsg(int, uintptr_t, int)'),
  getsockopt: bind<(fd: N, l: N, o: N, a: N, n: N) => N>('int getsockopt(int, int, int, uintptr_t, uintptr_t)'),
  mount: bind<(s: string, t: string, type: string, flags: N, data: string) => N>(
    'int mount(const char*, const char*, const char*, ulong, const char*)',
  ),
  umount2: bind<(t: string, flags: N) => N>('int umount2(const char*, int)'),
  execve: bind<(p: string, argv: (string | null)[], env: (string | null)[]) => N>(
    'int execve(const char*, const char**, const char**)',
  ),
  sched_yield: bind<() => N>('int sched_yield()'),
  sched_getcpu: bind<() => N>('int sched_getcpu()'),
  sched_getaffinity: bind<(pid: N, n: N, mask: N) => N>('int sched_getaffinity(int, size_t, uintptr_t)'),
  sched_setaffinity: bind<(pid: N, n: N, mask: N) => N>('int sched_setaffinity(int, size_t, uintptr_t)'),
  geteuid: bind<() => N>('uint geteuid()'),
  getegid: bind<() => N>('uint getegid()'),
  syscall: bind<(nr: N, a: N, b: N, d: N, e: N) => N>('long syscall(long, long, long, long, long)'),
};

function fail(call: string): Errno {
  const errno = koffi.errno();
  const text = getSystemErrorMap().get(-errno)?.[1];
  return errnoOf(errno).because(text === undefined ? call : `${call}: ${text}`);
}

function check(result: number, call: string): number {
  if (result < 0) throw fail(call);
  return result;
}

// --- Memory ---------------------------------------------------------------------------------------------------------

/** A mapping: `bytes` is valid until {@link unmap}; touching it afterwards is a crash of the process. */
export interface Memory {
  readonly address: number;
  readonly length: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
}

/** `length` bytes at `address` as a JavaScript buffer (no copy, nothing is kept alive). Works in any thread of the process. */
export function viewOf(address: number, length: number): Memory {
  const buffer = koffi.view(BigInt(address), length);
  return { address, length, bytes: new Uint8Array(buffer), view: new DataView(buffer) };
}

/** mmap(2), address only: nothing is made for JavaScript. */
export function mapAddress(fd: number, offset: number, length: number, writable = true): number {
  const prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  const flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;
  const address = c.mmap(0, length, prot, flags, fd, offset);
  if (typeof address === 'bigint') throw fail(`mmap of ${length} bytes`);
  return address;
}

/** Maps `length` bytes of `fd` at `offset` (a multiple of 4096), shared. */
export function mapFd(fd: number, offset: number, length: number, writable = true): Memory {
  return viewOf(mapAddress(fd, offset, length, writable), length);
}

/** Private zeroed memory with a known address, for structures and buffers that the kernel is to see. */
export function allocate(length: number): Memory {
  return viewOf(mapAddress(-1, 0, length), length);
}

export function unmap(memory: { address: number; length: number }): void {
  check(c.munmap(memory.address, memory.length), 'munmap');
}

/** False when it is not allowed (RLIMIT_MEMLOCK). */
export function mlock(address: number, length: number): boolean {
  return c.mlock(address, length) === 0;
}

/** mlock2(MLOCK_ONFAULT): pages are locked as they come. False when it is not allowed. */
export function mlockOnFault(address: number, length: number): boolean {
  return c.syscall(SYS_mlock2, address, length, MLOCK_ONFAULT, 0) === 0;
}

/** madvise(2); answers -errno. */
export function madvise(address: number, length: number, advice: number): number {
  return c.madvise(address, length, advice) < 0 ? -koffi.errno() : 0;
}

/**
 * Makes the pages of a writable mapping present, so that no read(2) into them can fault. Before Linux 5.14 every page is touched with
 * an atomic `or 0` through `bytes` (which must be the memory at `address`).
 */
export function populate(address: number, length: number): void {
  for (;;) {
    const result = madvise(address, length, MADV_POPULATE_WRITE);
    if (result === 0) return;
    if (result === -4 || result === -11) continue;
    if (result !== -EINVAL.errno) throw errnoOf(-result).because(`MADV_POPULATE_WRITE of ${length} bytes`);
    const bytes = viewOf(address, length).bytes;
    for (let i = 0; i < length; i += PAGE) Atomics.or(bytes, i, 0);
    return;
  }
}

// --- Hot calls: -errno ----------------------------------------------------------------------------------------------

export function read(fd: number, address: number, length: number): number {
  const n = c.read(fd, address, length);
  return n < 0 ? -koffi.errno() : n;
}
/** `iovecs`: address of `count` struct iovec (base u64, length u64): {@link IoVecs}. */
export function readv(fd: number, iovecs: number, count: number): number {
  const n = c.readv(fd, iovecs, count);
  return n < 0 ? -koffi.errno() : n;
}
export function write(fd: number, address: number, length: number): number {
  const n = c.write(fd, address, length);
  return n < 0 ? -koffi.errno() : n;
}
export function writev(fd: number, iovecs: number, count: number): number {
  const n = c.writev(fd, iovecs, count);
  return n < 0 ? -koffi.errno() : n;
}
export function pread(fd: number, address: number, length: number, offset: number): number {
  const n = c.pread(fd, address, length, offset);
  return n < 0 ? -koffi.errno() : n;
}
export function pwrite(fd: number, address: number, length: number, offset: number): number {
  const n = c.pwrite(fd, address, length, offset);
  return n < 0 ? -koffi.errno() : n;
}
/** preadv2(2); with {@link RWF_NOWAIT} -EAGAIN where it would wait for a disk (fewer bytes where only a part is at hand), -EOPNOTSUPP where the file system cannot tell. */
export function preadv2(fd: number, iovecs: number, count: number, offset: number, flags: number): number {
  const n = c.preadv2(fd, iovecs, count, offset, flags);
  return n < 0 ? -koffi.errno() : n;
}

/** Gives an open file a (further) name, also one that has none (O_TMPFILE): linkat(2) by way of /proc, which needs no privilege. Nothing is replaced: -EEXIST. */
export function linkOpenFile(fd: number, path: string): number {
  return c.linkat(AT_FDCWD, `/proc/self/fd/${fd}`, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -koffi.errno() : 0;
}

let usageMemory: Memory | undefined;
/** How often this thread has slept so far (ru_nvcsw of getrusage(2), at 128 of struct rusage): a call that took long without it was only not given the processor. */
export function sleeps(): number {
  usageMemory ??= allocate(PAGE);
  c.getrusage(RUSAGE_THREAD, usageMemory.address);
  return usageMemory.view.getUint32(128, true);
}
/** write(2) on a thread of libuv's pool. */
export function writeAsync(fd: number, address: number, length: number): Promise<number> {
  return new Promise((resolve, reject) =>
    c.write.async(fd, address, length, (error: unknown, n: number) => {
      if (error) reject(error);
      else resolve(n < 0 ? -koffi.errno() : n);
    }),
  );
}
export function schedYield(): void {
  c.sched_yield();
}

/** The processor that this thread runs on. */
export function currentProcessor(): number {
  return c.sched_getcpu();
}

let processorMasks: Memory | undefined;
/** Bytes of a mask: 8,192 processors, the most that Linux can be built for. */
const MASK = 1024;
/**
 * Moves this thread to a processor, at once; from there the scheduler may move it on as before (what it may run on is not changed). False when it
 * may not run there.
 */
export function moveToProcessor(processor: number): boolean {
  processorMasks ??= allocate(PAGE);
  const { address, bytes } = processorMasks;
  if (c.sched_getaffinity(0, MASK, address) < 0 || ((bytes[processor >> 3] ?? 0) & (1 << (processor & 7))) === 0)
    return false;
  bytes.fill(0, MASK, 2 * MASK);
  bytes[MASK + (processor >> 3)] = 1 << (processor & 7);
  const moved = c.sched_setaffinity(0, MASK, address + MASK) === 0;
  // Refused only when the container's processors changed in between; the kernel has set what is allowed then.
  c.sched_setaffinity(0, MASK, address);
  return moved;
}

/** An array of struct iovec with a fixed capacity. */
export interface IoVecs {
  readonly address: number;
  readonly capacity: number;
  set(index: number, base: number, length: number): void;
}

export function ioVecs(capacity: number): IoVecs {
  const { address, view } = allocate(capacity * 16);
  return {
    address,
    capacity,
    set(index, base, length) {
      // Two 32-bit stores: a BigInt store would allocate.
      const at = index * 16;
      view.setUint32(at, base >>> 0, true);
      view.setUint32(at + 4, (base / 0x1_0000_0000) >>> 0, true);
      view.setUint32(at + 8, length >>> 0, true);
      view.setUint32(at + 12, (length / 0x1_0000_0000) >>> 0, true);
    },
  };
}

let pollMemory: Memory | undefined;

/** poll(2) of one fd: its revents, 0 after the timeout (ms; -1 waits for ever), or -errno. */
export function poll(fd: number, events: number, timeout: number): number {
  pollMemory ??= allocate(PAGE);
  pollMemory.view.setInt32(0, fd, true);
  pollMemory.view.setInt16(4, events, true);
  pollMemory.view.setInt16(6, 0, true);
  const n = c.poll(pollMemory.address, 1, timeout);
  return n < 0 ? -koffi.errno() : pollMemory.view.getUint16(6, true);
}

// --- Files and fds --------------------------------------------------------------------------------------------------

export function open(path: string, flags: number, mode = 0o600): number {
  return check(c.open(path, flags | O_CLOEXEC, mode), `open ${path}`);
}
export function close(fd: number): void {
  check(c.close(fd), `close ${fd}`);
}
/** dup2(2): the new number is *not* close-on-exec. */
export function dup2(from: number, to: number): void {
  check(c.dup2(from, to), `dup2 ${from} to ${to}`);
}
/** A duplicate with a number of at least `min`, close-on-exec. */
export function dup(fd: number, min = 3): number {
  return check(c.fcntl(fd, F_DUPFD_CLOEXEC, min), `dup ${fd}`);
}
export function isOpen(fd: number): boolean {
  return c.fcntl(fd, F_GETFD, 0) >= 0;
}
export function setCloexec(fd: number, on = true): void {
  check(c.fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0), `F_SETFD ${fd}`);
}
/** O_NONBLOCK belongs to the open file description: every holder of the fd shares it. */
export function setNonblock(fd: number, on = true): void {
  const flags = check(c.fcntl(fd, F_GETFL, 0), `F_GETFL ${fd}`);
  check(c.fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK), `F_SETFL ${fd}`);
}
/** A pipe [read end, write end], close-on-exec. */
export function pipe(flags = 0): [number, number] {
  const m = scratch();
  check(c.pipe2(m.address, O_CLOEXEC | flags), 'pipe2');
  return [m.view.getInt32(0, true), m.view.getInt32(4, true)];
}
/**
 * timer_create(2) on CLOCK_THREAD_CPUTIME_ID of the calling thread, not set: answers its id. `signal` goes to the process. Neither fork nor execve keeps it.
 * struct sigevent: value u64, signal i32, how i32 (SIGEV_SIGNAL = 0), 64 bytes in all.
 */
export function threadTimerCreate(signal: number): number {
  const m = scratch();
  m.bytes.fill(0, 0, 72);
  m.view.setInt32(8, signal, true);
  check(c.syscall(SYS_timer_create, 3, m.address, m.address + 64, 0), 'timer_create');
  return m.view.getInt32(64, true);
}
/** Lets it expire once, `seconds` of CPU time from now. struct itimerspec: interval and value, each seconds and nanoseconds i64. */
export function threadTimerSet(timer: number, seconds: number): void {
  const m = scratch();
  m.bytes.fill(0, 0, 32);
  m.view.setBigInt64(16, BigInt(Math.floor(seconds)), true);
  m.view.setBigInt64(24, BigInt(Math.floor((seconds % 1) * 1e9)), true);
  check(c.syscall(SYS_timer_settime, timer, 0, m.address, 0), 'timer_settime');
}
export function memfdCreate(name: string, flags = MFD_CLOEXEC): number {
  return check(c.memfd(name, flags), `memfd_create ${name}`);
}
export function addSeals(fd: number, seals: number): void {
  check(c.fcntl(fd, F_ADD_SEALS, seals), 'F_ADD_SEALS');
}
export function ftruncate(fd: number, length: number): void {
  check(c.ftruncate(fd, length), `ftruncate to ${length}`);
}
export function fallocate(fd: number, mode: number, offset: number, length: number): void {
  check(c.fallocate(fd, mode, offset, length), 'fallocate');
}
/** Gives the pages back; the range reads as zeros. Works on locked mappings, where MADV_REMOVE does not. */
export function punchHole(fd: number, offset: number, length: number): void {
  fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length);
}
/**
 * Gives a range of a memfd its pages, in libuv's pool; what is in it already stays. The first fallocate(2) only takes pages, the second one clears those that nobody
 * used yet (mm/shmem.c: shmem_get_folio_gfp), which is the dear part. No lock of the address space is held meanwhile. False: not all of it.
 */
export function allocateLater(fd: number, offset: number, length: number): Promise<boolean> {
  const once = (): Promise<boolean> =>
    new Promise(resolve =>
      c.fallocate.async(fd, FALLOC_FL_KEEP_SIZE, offset, length, (error: unknown, n: number) =>
        resolve(!error && n === 0),
      ),
    );
  return once().then(done => done && once());
}
/** The ranges of a sparse file that hold pages, ascending, as [start, end). Moves the file offset. */
export function* dataRanges(fd: number, size: number): Iterable<[number, number]> {
  for (let at = 0; at < size; ) {
    const start = c.lseek(fd, at, SEEK_DATA);
    if (start < 0) return; // ENXIO: no more data
    const end = c.lseek(fd, start, SEEK_HOLE);
    const stop = end < 0 ? size : end;
    yield [start, stop];
    at = stop;
  }
}

/** Gives free memory of the C heap back. */
export function trim(): boolean {
  return c.malloc_trim(0) === 1;
}

// --- fcntl locks ----------------------------------------------------------------------------------------------------

/** struct flock (64 bits): l_type s16 @0, l_whence s16 @2, l_start s64 @8, l_len s64 @16, l_pid s32 @24. */
function flock(type: number): Memory {
  const m = scratch();
  m.bytes.fill(0, 0, 32);
  m.view.setInt16(0, type, true);
  return m;
}
/**
 * A per-process write lock on the whole file (F_SETLK): false when another process has it. It is freed by the end of the process, and by close(2) of
 * *any* fd of that inode in this process.
 */
export function tryLock(fd: number): boolean {
  const m = flock(F_WRLCK);
  if (c.fcntl(fd, F_SETLK, m.address) >= 0) return true;
  const errno = koffi.errno();
  if (errno === 11 || errno === 13) return false;
  throw errnoOf(errno).because('F_SETLK');
}
export function unlock(fd: number): void {
  check(c.fcntl(fd, F_SETLK, flock(F_UNLCK).address), 'F_SETLK unlock');
}
/** The process (in our pid namespace; 0 = in another one) that holds a lock which excludes ours, or undefined. */
export function lockHolder(fd: number): number | undefined {
  const m = flock(F_WRLCK);
  check(c.fcntl(fd, F_GETLK, m.address), 'F_GETLK');
  return m.view.getInt16(0, true) === F_UNLCK ? undefined : m.view.getInt32(24, true);
}

// --- Processes ------------------------------------------------------------------------------------------------------

/** An fd that is readable once the process (all its threads) is gone; close-on-exec. ESRCH: no such process. */
export function pidfdOpen(pid: number): number {
  return check(c.syscall(SYS_pidfd_open, pid, 0, 0, 0), `pidfd_open ${pid}`);
}
/** False when the process is gone. */
export function pidfdSendSignal(pidfd: number, signal: number): boolean {
  if (c.syscall(SYS_pidfd_send_signal, pidfd, signal, 0, 0) >= 0) return true;
  if (koffi.errno() === 3) return false;
  throw fail(`pidfd_send_signal ${signal}`);
}
/** A duplicate of fd number `fd` of another process (Linux 5.6; the right to ptrace it is needed), close-on-exec. */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return check(c.syscall(SYS_pidfd_getfd, pidfd, fd, 0, 0), `pidfd_getfd ${fd}`);
}
export function kill(pid: number, signal: number): boolean {
  if (c.kill(pid, signal) >= 0) return true;
  if (koffi.errno() === 3) return false;
  throw fail(`kill ${pid}`);
}
/** prctl(2); false when it is refused. */
/** exit(3) by way of Node (listeners of 'exit' are called), but without waiting for threads: one of its pool may wait in a system call for long. */
export function leave(code: number): never {
  process.once('exit', () => c.exit(code));
  process.exit(code);
}
export function prctl(option: number, argument: number): boolean {
  return c.prctl(option, argument, 0, 0, 0) >= 0;
}
export function geteuid(): number {
  return c.geteuid();
}
export function getegid(): number {
  return c.getegid();
}
/** Only comes back by throwing. Fds without close-on-exec go on. */
export function execve(path: string, argv: readonly string[], env: Readonly<Record<string, string>>): never {
  c.execve(path, [...argv, null], [...Object.entries(env).map(([k, v]) => `${k}=${v}`), null]);
  throw fail(`execve ${path}`);
}

// --- Mounts -----------------------------------------------------------------------------------------------------------

/** mount(2). `data`: options of the file system, comma separated. */
export function mount(source: string, target: string, type: string, flags: number, data: string): void {
  check(c.mount(source, target, type, flags, data), `mount ${target}`);
}
/** umount2(2) in libuv's pool: it may wait for requests that only this process's loop answers. */
export function umount2Async(target: string, flags: number): Promise<void> {
  return new Promise((resolve, reject) =>
    c.umount2.async(target, flags, (error: unknown, n: number) => {
      if (error) reject(error);
      else if (n < 0) reject(fail(`umount ${target}`));
      else resolve();
    }),
  );
}

// --- Unix sockets ---------------------------------------------------------------------------------------------------

let scratchMemory: Memory | undefined;
/** 64 KiB for structures of one call; nothing in it outlives the call. */
function scratch(): Memory {
  scratchMemory ??= allocate(1 << 16);
  return scratchMemory;
}

/** struct sockaddr_un in the scratch memory; answers its length. A path that starts with NUL is abstract. */
function sockaddr(path: string): number {
  const m = scratch();
  const bytes = Buffer.from(path);
  if (bytes.length > 107) throw EINVAL.because(`socket path longer than 107 bytes: ${path}`);
  m.bytes.fill(0, 0, 110);
  m.view.setUint16(0, AF_UNIX, true);
  m.bytes.set(bytes, 2);
  return 2 + bytes.length + (path.startsWith('\0') ? 0 : 1);
}

/** A listening stream socket, non-blocking, close-on-exec. */
export function listenUnix(path: string): number {
  const fd = check(c.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket');
  const length = sockaddr(path);
  if (c.bind(fd, scratch().address, length) < 0 || c.listen(fd, 16) < 0) {
    const error = fail(`listen on ${path}`);
    close(fd);
    throw error;
  }
  return fd;
}
/** The next connection, non-blocking and close-on-exec; undefined when none waits. */
export function acceptUnix(fd: number): number | undefined {
  const n = c.accept4(fd, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (n >= 0) return n;
  const errno = koffi.errno();
  if (errno === 11 || errno === 4 || errno === 103) return undefined;
  throw errnoOf(errno).because('accept');
}
/** A connected stream socket, non-blocking, close-on-exec. */
export function connectUnix(path: string): number {
  const fd = check(c.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket');
  const length = sockaddr(path);
  if (c.connect(fd, scratch().address, length) < 0) {
    const error = fail(`connect to ${path}`);
    close(fd);
    throw error;
  }
  return fd;
}
/** A connected datagram socket to `path` (`@` first = abstract), for sd_notify. */
export function connectDatagram(path: string): number {
  const fd = check(c.socket(AF_UNIX, 2 | SOCK_CLOEXEC, 0), 'socket');
  const length = sockaddr(path.startsWith('@') ? `\0${path.slice(1)}` : path);
  if (c.connect(fd, scratch().address, length) < 0) {
    const error = fail(`connect to ${path}`);
    close(fd);
    throw error;
  }
  return fd;
}
/** A bound datagram socket, non-blocking: the receiving side of sd_notify, for tests. */
export function bindDatagram(path: string): number {
  const fd = check(c.socket(AF_UNIX, 2 | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket');
  const length = sockaddr(path);
  if (c.bind(fd, scratch().address, length) < 0) {
    const error = fail(`bind ${path}`);
    close(fd);
    throw error;
  }
  return fd;
}
/** Two connected sockets, close-on-exec: a stream, blocking; or one that keeps messages apart (SOCK_SEQPACKET), non-blocking. */
export function socketPair(messages = false): [number, number] {
  const m = scratch();
  const type = messages ? SOCK_SEQPACKET | SOCK_NONBLOCK : SOCK_STREAM;
  check(c.socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, m.address), 'socketpair');
  return [m.view.getInt32(0, true), m.view.getInt32(4, true)];
}

export interface PeerCredentials {
  /** 0 when the peer is in another pid namespace. */
  pid: number;
  uid: number;
  gid: number;
}
/** SO_PEERCRED: who connected (fixed at connect time). */
export function peerCredentials(fd: number): PeerCredentials {
  const m = scratch();
  m.view.setUint32(64, 12, true);
  check(c.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, m.address, m.address + 64), 'SO_PEERCRED');
  return { pid: m.view.getInt32(0, true), uid: m.view.getUint32(4, true), gid: m.view.getUint32(8, true) };
}

const MAX_FDS = 32;
const CONTROL = 1024;
const DATA = 4096;

/**
 * struct msghdr at 0 of the scratch memory: name u64, namelen u32 (+4), iov u64, iovlen u64, control u64, controllen u64, flags s32;
 * the iovec at 64, control data at 1024 (struct cmsghdr: len u64, level s32, type s32, then the fds), bytes at 4096.
 */
function msghdr(length: number, controlLength: number): Memory {
  const m = scratch();
  m.bytes.fill(0, 0, 128);
  m.view.setBigUint64(16, BigInt(m.address + 64), true);
  m.view.setBigUint64(24, 1n, true);
  if (controlLength) m.view.setBigUint64(32, BigInt(m.address + CONTROL), true);
  m.view.setBigUint64(40, BigInt(controlLength), true);
  m.view.setBigUint64(64, BigInt(m.address + DATA), true);
  m.view.setBigUint64(72, BigInt(length), true);
  return m;
}

/** Largest message of {@link sendFds} and {@link receiveFds}, bytes. */
export const MAX_MESSAGE = 60_000;

/** sendmsg(2) of 1 to MAX_MESSAGE bytes with fds; the number of bytes sent, or -errno. */
export function sendFds(fd: number, data: Uint8Array, fds: readonly number[] = [], flags = 0): number {
  if (data.length > MAX_MESSAGE || fds.length > MAX_FDS) throw EINVAL.because('message too large');
  const controlLength = fds.length ? 16 + fds.length * 4 : 0;
  const space = (controlLength + 7) & ~7;
  const m = msghdr(data.length, space);
  m.bytes.set(data, DATA);
  if (fds.length) {
    m.view.setBigUint64(CONTROL, BigInt(controlLength), true);
    m.view.setInt32(CONTROL + 8, SOL_SOCKET, true);
    m.view.setInt32(CONTROL + 12, SCM_RIGHTS, true);
    for (const [i, one] of fds.entries()) m.view.setInt32(CONTROL + 16 + i * 4, one, true);
  }
  const n = c.sendmsg(fd, m.address, MSG_NOSIGNAL | flags);
  return n < 0 ? -koffi.errno() : n;
}

/** recvmsg(2): bytes (length 0 = end) and the fds that came with them, close-on-exec; or -errno. */
export function receiveFds(fd: number, flags = 0): { data: Uint8Array; fds: number[] } | number {
  const m = msghdr(MAX_MESSAGE, 16 + MAX_FDS * 4);
  const n = c.recvmsg(fd, m.address, MSG_CMSG_CLOEXEC | flags);
  if (n < 0) return -koffi.errno();
  const fds: number[] = [];
  const controlLength = Number(m.view.getBigUint64(40, true));
  for (let at = 0; at + 16 <= controlLength; ) {
    const length = Number(m.view.getBigUint64(CONTROL + at, true));
    if (length < 16) break;
    if (
      m.view.getInt32(CONTROL + at + 8, true) === SOL_SOCKET &&
      m.view.getInt32(CONTROL + at + 12, true) === SCM_RIGHTS
    )
      for (let i = 16; i + 4 <= length; i += 4) fds.push(m.view.getInt32(CONTROL + at + i, true));
    at += (length + 7) & ~7;
  }
  if (m.view.getInt32(48, true) & MSG_CTRUNC) {
    for (const one of fds) close(one);
    throw EINVAL.because('fds were cut off from a message');
  }
  return { data: m.bytes.slice(DATA, DATA + n), fds };
}

// --- Waiting on the loop ----------------------------------------------------------------------------------------------

/** A libuv poll handle (one per fd). Keep the reference: the garbage collector closes a handle that nobody holds. */
export interface Watch {
  /** No calls until resume(). A paused watch does not keep the loop alive. */
  pause(): void;
  resume(): void;
  close(): void;
  unref(): void;
  ref(): void;
}

/**
 * Calls back whenever the fd is readable (or disconnected). libuv makes the fd non-blocking.
 *
 * koffi calls back outside of Node's callback scope: promises that are settled there are not looked at before the next turn of the loop, which may never come. So each event
 * is followed by an (empty) immediate.
 */
export function watchReadable(fd: number, callback: () => void): Watch {
  const events = { readable: true, disconnect: true };
  const called = () => {
    setImmediate(nothing);
    callback();
  };
  const handle = koffi.node.poll(fd, events, called);
  return {
    pause: () => handle.stop(),
    resume: () => handle.start(events, called),
    close: () => handle.close(),
    unref: () => handle.unref(),
    ref: () => handle.ref(),
  };
}

function nothing(): void {}
