/**
 * Opens that no request tells of. FIFOs and devices are opened, and sockets connected, by the kernel itself; a mount whose permissions are checked here sees their LOOKUP only,
 * which stat(2) sends as well. What the caller is about to do stands in /proc/TID/syscall (proc(5)) while it waits for the answer.
 */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { FileType } from '../format/attr.ts';

const R = 4;
const W = 2;
// include/uapi/asm-generic/fcntl.h
const O_ACCMODE = 3;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
const O_TRUNC = 0o1000;
const O_DIRECTORY = process.arch === 'arm64' ? 0o40000 : 0o200000;
const O_PATH = 0o10000000;

// Numbers of the calls: arch/x86/entry/syscalls/syscall_64.tbl; scripts/syscall.tbl for arm64.
const arm = process.arch === 'arm64';
/** Argument that holds the flags. */
const FLAGS: Record<string, number> = arm ? { '56': 2 } : { '2': 1, '257': 2 };
const OPENAT2 = '437';
/** creat, connect, sendto, sendmsg, sendmmsg: their path is to be written to. */
const WRITING = arm ? ['203', '206', '211', '269'] : ['85', '42', '44', '46', '307'];

const TRIES = 100;

export const opensUnasked = (type: FileType): boolean =>
  type !== FileType.file && type !== FileType.directory && type !== FileType.symlink;

/** Access (4: read, 2: write) that open(2) with these flags needs of a file that is there and no directory; 0 where another error comes first. */
function accessOf(flags: number): number {
  if ((flags & (O_PATH | O_DIRECTORY)) !== 0 || (flags & (O_CREAT | O_EXCL)) === (O_CREAT | O_EXCL)) return 0;
  const mode = flags & O_ACCMODE;
  return (mode === 1 ? 0 : R) | (mode !== 0 || (flags & O_TRUNC) !== 0 ? W : 0);
}

/** `flags` of the struct open_how of openat2(2), from the caller's memory. */
function openHow(tid: number, address: number): number {
  const memory = openSync(`/proc/${tid}/mem`, 'r');
  try {
    const bytes = Buffer.alloc(8);
    return readSync(memory, bytes, 0, 8, address) === 8 ? bytes.readUInt32LE(0) : O_PATH;
  } finally {
    closeSync(memory);
  }
}

/**
 * Access (4: read, 2: write) that the call needs in which a thread waits for an answer. 0: it opens nothing, or cannot be looked at (it is gone, belongs to somebody else, or asks by way of
 * io_uring).
 */
export async function accessAsked(tid: number): Promise<number> {
  for (let i = 0; tid > 0 && i < TRIES; i++) {
    try {
      const [call = '', ...args] = readFileSync(`/proc/${tid}/syscall`, 'latin1').trim().split(' ');
      if (WRITING.includes(call)) return W;
      if (call === OPENAT2) return accessOf(openHow(tid, Number(args[2])));
      if (call !== 'running') return Object.hasOwn(FLAGS, call) ? accessOf(Number(args[FLAGS[call]!])) : 0;
    } catch {
      return 0;
    }
    // It has sent its request and does not sleep yet.
    await new Promise(wake => setTimeout(wake, 1));
  }
  return 0;
}
