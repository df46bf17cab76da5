/** What the actors of the differential test do with open files beyond one plain call: aligned, vectored and mapped I/O, holes, flags. */
import { createHash } from 'node:crypto';
import * as c from '../support/libc.ts';
import type { Operation, Result } from './operations.ts';

const PAGE = 4096;
/** Where all direct and vectored I/O goes through. */
let memory: c.Memory | undefined;

type Of<Call extends Operation['call']> = Operation & { call: Call };

export const hash = (bytes: Uint8Array): string => createHash('sha1').update(bytes).digest('hex').slice(0, 12);
export const name = (r: number): Result => (r < 0 ? c.resultName(r) : r);

export function pattern(length: number, fill: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (fill * 31 + i * 7 + (i >> 8)) & 255;
  return bytes;
}

const isDirect = (fd: number): boolean => {
  const flags = c.getFlags(fd);
  return flags >= 0 && (flags & c.O.DIRECT) !== 0;
};

function scratch(length: number): c.Memory {
  memory ??= c.alignedMemory(2 << 20);
  return { bytes: memory.bytes.subarray(0, length), address: memory.address };
}

/**
 * Where a transfer goes and how much, at whole pages for a descriptor with O_DIRECT (local file systems refuse all others); undefined where the position is not
 * in our hands.
 */
function place(
  fd: number,
  at: number | undefined,
  length: number,
  writing: boolean,
): { at?: number; length: number } | undefined {
  if (!isDirect(fd)) return at === undefined ? { length } : { at, length };
  const whole = Math.ceil(length / PAGE) * PAGE;
  const appends = writing && (c.getFlags(fd) & c.O.APPEND) !== 0;
  const s = c.fstat(fd);
  if (typeof s === 'number') return { at: 0, length: whole };
  if (appends && s.size % PAGE !== 0) return undefined;
  if (at !== undefined) return { at: at - (at % PAGE), length: whole };
  return !appends && c.lseek(fd, 0, c.SEEK.CUR) % PAGE !== 0 ? undefined : { length: whole };
}

export function put(fd: number, at: number | undefined, length: number, fill: number): Result {
  const to = place(fd, at, length, true);
  if (!to) return 'not aligned';
  const { bytes } = scratch(to.length);
  bytes.set(pattern(to.length, fill));
  return name(to.at === undefined ? c.write(fd, bytes, to.length) : c.pwrite(fd, bytes, to.length, to.at));
}

export function take(fd: number, at: number | undefined, length: number): Result {
  const from = place(fd, at, length, false);
  if (!from) return 'not aligned';
  const { bytes } = scratch(from.length);
  const n = from.at === undefined ? c.read(fd, bytes, from.length) : c.pread(fd, bytes, from.length, from.at);
  return n < 0 ? c.resultName(n) : { n, hash: hash(bytes.subarray(0, n)) };
}

/** preadv2 and pwritev2 with two parts; `at` −1 means the position of the descriptor. */
export function vectored(fd: number, o: Of<'vectored'>): Result {
  if (isDirect(fd)) return 'not aligned';
  const { bytes, address } = scratch(o.length);
  const first = Math.floor(o.length / 3);
  const parts: [bigint, number][] = [
    [address, first],
    [address + BigInt(first), o.length - first],
  ];
  if (o.write) {
    bytes.set(pattern(o.length, o.fill));
    return name(c.pwritev2(fd, parts, o.at, o.flags));
  }
  const n = c.preadv2(fd, parts, o.at, o.flags);
  return n < 0 ? c.resultName(n) : { n, hash: hash(bytes.subarray(0, n)) };
}

/** A short answer is allowed: what was not copied is asked for again, the total compared. */
export function inParts(length: number, some: (done: number) => number): Result {
  let total = 0;
  for (let r = 1; r > 0 && total < length; total += Math.max(r, 0)) {
    r = some(total);
    if (r < 0) return total === 0 ? c.resultName(r) : { total, error: c.resultName(r) };
  }
  return total;
}

export function copy(from: number, to: number, o: Of<'copy'>): Result {
  if (isDirect(from) || isDirect(to)) return 'not aligned';
  return inParts(o.length, done => c.copyFileRange(from, o.at + done, to, o.toAt + done, o.length - done));
}

/** sendfile(2) from one file to the position of another. */
export function sendFile(from: number, to: number, o: Of<'sendfile'>): Result {
  if (isDirect(from) || isDirect(to)) return 'not aligned';
  return inParts(o.length, done => c.sendfile(to, from, o.at + done, o.length - done));
}

/** Where SEEK_DATA and SEEK_HOLE may point depends on the file system; what they claim must agree with the bytes. */
export function holes(fd: number): Result {
  const attributes = c.fstat(fd);
  if (typeof attributes === 'number') return c.resultName(attributes);
  if ((attributes.mode & 0o170000) !== 0o100000) return 'not a regular file';
  const size = attributes.size;
  const before = c.lseek(fd, 0, c.SEEK.CUR);
  let faults = '';
  const beyond = [
    c.lseek(fd, size, c.SEEK.DATA),
    c.lseek(fd, size, c.SEEK.HOLE),
    c.lseek(fd, size + 1, c.SEEK.HOLE),
  ].map(c.resultName);
  for (let from = 0, rounds = 0; from < size && rounds < 20; rounds++) {
    const data = c.lseek(fd, from, c.SEEK.DATA);
    const zeroUntil = data < 0 ? size : data;
    for (let p = from; p < zeroUntil; p += 1 << 20) {
      const bytes = Buffer.alloc(Math.min(1 << 20, zeroUntil - p));
      const n = c.pread(fd, bytes, bytes.length, p);
      if (n >= 0 && bytes.some(b => b !== 0)) faults += ` data in the hole at ${p}..${zeroUntil}`;
    }
    if (data < 0) {
      if (c.resultName(data) !== 'ENXIO') faults += ` SEEK_DATA ${from}: ${c.resultName(data)}`;
      break;
    }
    const hole = c.lseek(fd, data, c.SEEK.HOLE);
    if (hole <= data || hole > size) {
      faults += ` SEEK_HOLE ${data}: ${c.resultName(hole)} of ${size}`;
      break;
    }
    from = hole;
  }
  c.lseek(fd, before, c.SEEK.SET);
  return { size, beyond, faults };
}

/** Bits of FS_IOC_GETFLAGS that both file systems have: append-only and immutable. */
export const FLAG_BITS = 0x30;

/** Writes through a mapping, then does something else to the same bytes before they are synced. */
export function mapped(fd: number, o: Of<'mapped'>): Result {
  const attributes = c.fstat(fd);
  if (typeof attributes === 'number') return c.resultName(attributes);
  const from = o.at - (o.at % PAGE);
  const length = Math.min(o.length, attributes.size - from);
  if ((attributes.mode & 0o170000) !== 0o100000 || isDirect(fd)) return 'no plain file';
  if (length <= 0) return `nothing to map: ${attributes.size}`;
  // A write to a mapping of what became immutable is SIGBUS on ext4.
  const flags = c.getInodeFlags(fd);
  if (flags >= 0 && (flags & FLAG_BITS) !== 0) return 'immutable';
  const map = c.mmap(fd, from, length, true, o.next === 'private');
  if (typeof map === 'number') return c.resultName(map);
  const before = hash(map.bytes);
  map.bytes.set(pattern(length, o.fill));
  const half = Math.floor(length / 2);
  let then: Result = '';
  if (o.next === 'read' || o.next === 'private') {
    const bytes = Buffer.alloc(length);
    const n = c.pread(fd, bytes, length, from);
    then = n < 0 ? c.resultName(n) : hash(bytes.subarray(0, n));
  } else if (o.next === 'cut') then = name(c.ftruncate(fd, from + half));
  else if (o.next === 'punch')
    then = name(c.fallocate(fd, c.FALLOC.PUNCH_HOLE | c.FALLOC.KEEP_SIZE, from + Math.floor(half / 2), half + 1));
  else if (o.next === 'copy')
    then = inParts(half, done => c.copyFileRange(fd, from + done, fd, from + length + done, half - done));
  const synced = map.sync();
  map.unmap();
  return { before, then, synced };
}
