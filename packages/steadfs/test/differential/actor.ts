/**
 * One process of the differential test on one of the two directories: takes operations over IPC, carries each out by system calls under
 * its own user id, answers what the kernel answered. Arguments: base directory, uid, gid, supplementary groups (comma-separated).
 */
import { createHash } from 'node:crypto';
import * as c from '../support/libc.ts';
import type { Observed, Operation, Reply, Request, Result } from './operations.ts';

const [base = '', uid = '0', gid = '0', groups = ''] = process.argv.slice(2);
const slots = new Map<number, number>();
let stream: { fd: number; path: string; before: Map<string, bigint>; seen: string[] } | undefined;

const at = (path: string): string => (path === '' ? base : `${base}/${path}`);
const slotOf = (slot: number): number => slots.get(slot) ?? -1;
const hash = (bytes: Uint8Array): string => createHash('sha1').update(bytes).digest('hex').slice(0, 12);
const name = (r: number): Result => (r < 0 ? c.resultName(r) : r);

function pattern(length: number, fill: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = (fill * 31 + i * 7 + (i >> 8)) & 255;
  return bytes;
}

function put(slot: number, fd: number): Result {
  if (fd < 0) return c.resultName(fd);
  const old = slots.get(slot);
  if (old !== undefined) c.close(old);
  slots.set(slot, fd);
  return 0;
}

function readAll(fd: number): c.Dirent[] | number {
  const entries: c.Dirent[] = [];
  for (;;) {
    const some = c.getdents(fd);
    if (typeof some === 'number') return some;
    if (some.length === 0) return entries;
    entries.push(...some);
  }
}

function listing(path: string): c.Dirent[] | number {
  const fd = c.open(at(path), c.O.RDONLY | c.O.DIRECTORY);
  if (fd < 0) return fd;
  const entries = readAll(fd);
  c.close(fd);
  return entries;
}

const label = (entry: c.Dirent): string => `${entry.name.toString('latin1')}:${entry.type}`;

/** Reads with small buffers, then goes back to each remembered place: the rest must be the same from there. */
function seekdir(path: string): Result {
  const fd = c.open(at(path), c.O.RDONLY | c.O.DIRECTORY);
  if (fd < 0) return c.resultName(fd);
  const entries: c.Dirent[] = [];
  for (;;) {
    // Room for one entry of the longest name.
    const some = c.getdents(fd, 300);
    if (typeof some === 'number') return c.resultName(some);
    if (some.length === 0) break;
    entries.push(...some);
  }
  const names = entries.map(label);
  let faults = '';
  for (const from of [0, Math.floor(entries.length / 2), entries.length - 2].filter(i => i >= 0)) {
    const r = c.seekdir(fd, entries[from]!.off);
    const rest = readAll(fd);
    if (r < 0 || typeof rest === 'number') faults += ` seek to ${from}: ${r} ${rest}`;
    else if (rest.map(label).join() !== names.slice(from + 1).join())
      faults += ` after ${names[from]}: ${rest.map(label)} in place of ${names.slice(from + 1)}`;
  }
  c.close(fd);
  return { names: [...names].sort(), faults };
}

/** Where SEEK_DATA and SEEK_HOLE may point depends on the file system; what they claim must agree with the bytes. */
function holes(slot: number): Result {
  const fd = slotOf(slot);
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

function isDirectory(fd: number): boolean {
  const s = c.fstat(fd);
  return typeof s !== 'number' && (s.mode & 0o170000) === 0o040000;
}

const CHANGING = new Set(['pwrite', 'write', 'ftruncate', 'fallocate', 'copy', 'mapped', 'fchmod', 'fchown']);

/** The result, and what an operation on an open file has made of the file. */
function withFile(o: Operation, result: Result): Result {
  if (!CHANGING.has(o.call)) return result;
  const s = c.fstat(slotOf(o.call === 'copy' ? o.to : (o as { slot: number }).slot));
  if (typeof s === 'number') return result;
  const { mode, size, nlink, uid, gid } = plain(s);
  return { result, mode: mode.toString(8), size, nlink, uid, gid };
}

function mapped(operation: Operation & { call: 'mapped' }): Result {
  const fd = slotOf(operation.slot);
  const attributes = c.fstat(fd);
  if (typeof attributes === 'number') return c.resultName(attributes);
  const from = operation.at - (operation.at % 4096);
  const length = Math.min(operation.length, attributes.size - from);
  if ((attributes.mode & 0o170000) !== 0o100000 || length <= 0) return `nothing to map: ${attributes.size}`;
  const map = c.mmap(fd, from, length);
  if (typeof map === 'number') return c.resultName(map);
  const before = hash(map.bytes);
  map.bytes.set(pattern(length, operation.fill));
  const synced = map.sync();
  map.unmap();
  return { before, synced };
}

function carryOut(o: Operation): Result {
  switch (o.call) {
    case 'open':
      return put(o.slot, c.open(at(o.path), o.flags | c.O.NONBLOCK, o.mode));
    case 'tmpfile':
      return put(o.slot, c.open(at(o.path), c.O.TMPFILE | c.O.RDWR, o.mode));
    case 'linkSlot':
      return name(c.link(`/proc/self/fd/${slotOf(o.slot)}`, at(o.path), c.AT.SYMLINK_FOLLOW));
    case 'close': {
      const fd = slotOf(o.slot);
      slots.delete(o.slot);
      return name(c.close(fd));
    }
    case 'pwrite':
      return name(c.pwrite(slotOf(o.slot), pattern(o.length, o.fill), o.length, o.at));
    case 'write':
      return name(c.write(slotOf(o.slot), pattern(o.length, o.fill), o.length));
    case 'pread':
    case 'read': {
      const bytes = Buffer.alloc(o.length);
      const n =
        o.call === 'read' ? c.read(slotOf(o.slot), bytes, o.length) : c.pread(slotOf(o.slot), bytes, o.length, o.at);
      return n < 0 ? c.resultName(n) : { n, hash: hash(bytes.subarray(0, n)) };
    }
    case 'lseek':
      // Places in a directory are the file system's own.
      if (isDirectory(slotOf(o.slot))) return 'directory';
      return name(c.lseek(slotOf(o.slot), o.at, o.how));
    case 'holes':
      return holes(o.slot);
    case 'ftruncate':
      return name(c.ftruncate(slotOf(o.slot), o.length));
    case 'truncate':
      return name(c.truncate(at(o.path), o.length));
    case 'fallocate':
      return name(c.fallocate(slotOf(o.slot), o.mode, o.at, o.length));
    case 'copy': {
      // A short answer is allowed: what was not copied is asked for again, the total compared.
      let total = 0;
      for (let r = 1; r > 0 && total < o.length; total += Math.max(r, 0)) {
        r = c.copyFileRange(slotOf(o.slot), o.at + total, slotOf(o.to), o.toAt + total, o.length - total);
        if (r < 0) return total === 0 ? c.resultName(r) : { total, error: c.resultName(r) };
      }
      return total;
    }
    case 'fsync':
      return name(o.data ? c.fdatasync(slotOf(o.slot)) : c.fsync(slotOf(o.slot)));
    case 'mapped':
      return mapped(o);
    case 'fstat': {
      const s = c.fstat(slotOf(o.slot));
      return typeof s === 'number' ? c.resultName(s) : { ...plain(s), mtime: '', ctime: '', ino: '' };
    }
    case 'fchmod':
      return name(c.fchmod(slotOf(o.slot), o.mode));
    case 'fchown':
      return name(c.fchown(slotOf(o.slot), o.uid, o.gid));
    case 'lstat': {
      const s = c.lstat(at(o.path));
      return typeof s === 'number' ? c.resultName(s) : { ...plain(s), mtime: '', ctime: '', ino: '' };
    }
    case 'mkdir':
      return name(c.mkdir(at(o.path), o.mode));
    case 'rmdir':
      return name(c.rmdir(at(o.path)));
    case 'unlink':
      return name(c.unlink(at(o.path)));
    case 'rename':
      return name(c.rename(at(o.path), at(o.to), o.flags));
    case 'link':
      return name(c.link(at(o.path), at(o.to)));
    case 'symlink':
      return name(c.symlink(o.target, at(o.path)));
    case 'readlink': {
      const r = c.readlink(at(o.path));
      return typeof r === 'number' ? c.resultName(r) : Buffer.from(r).toString('latin1');
    }
    case 'mknod':
      return name(c.mknod(at(o.path), o.mode, o.dev));
    case 'chmod':
      return name(c.chmod(at(o.path), o.mode));
    case 'chown':
      return name(c.lchown(at(o.path), o.uid, o.gid));
    case 'utimens': {
      const r = c.utimens(at(o.path), o.atime, o.mtime);
      const s = c.lstat(at(o.path));
      // Times that were given come back to the nanosecond (a symlink on the way to itself has been read since).
      const link = typeof s !== 'number' && (s.mode & 0o170000) === 0o120000;
      const given =
        typeof s !== 'number' && o.atime[1] < 1e9 && o.mtime[1] < 1e9 ? `${link ? '' : s.atime} ${s.mtime}` : '';
      return r < 0 ? c.resultName(r) : { given };
    }
    case 'access':
      return name(c.access(at(o.path), o.mode));
    case 'setxattr':
      return name(c.setxattr(at(o.path), o.name, pattern(o.length, o.length), o.flags));
    case 'getxattr': {
      const r = c.getxattr(at(o.path), o.name, o.size);
      return typeof r === 'number' ? name(r) : hash(r);
    }
    case 'listxattr': {
      const r = c.listxattr(at(o.path));
      return typeof r === 'number' ? c.resultName(r) : r.join();
    }
    case 'removexattr':
      return name(c.removexattr(at(o.path), o.name));
    case 'list': {
      const r = listing(o.path);
      return typeof r === 'number' ? c.resultName(r) : r.map(label).sort().join();
    }
    case 'seekdir':
      return seekdir(o.path);
    case 'streamStart': {
      if (stream) c.close(stream.fd);
      stream = undefined;
      const fd = c.open(at(o.path), c.O.RDONLY | c.O.DIRECTORY);
      if (fd < 0) return c.resultName(fd);
      const entries = listing(o.path);
      const first = c.getdents(fd, 300);
      if (typeof entries === 'number' || typeof first === 'number') return 'unreadable';
      const key = (e: c.Dirent): string => e.name.toString('latin1');
      stream = { fd, path: o.path, before: new Map(entries.map(e => [key(e), e.ino])), seen: first.map(key) };
      return entries.length;
    }
    case 'streamEnd': {
      if (!stream) return 'no stream';
      const { fd, path, before, seen } = stream;
      stream = undefined;
      const rest = readAll(fd);
      c.close(fd);
      if (typeof rest === 'number') return c.resultName(rest);
      seen.push(...rest.map(e => e.name.toString('latin1')));
      const after = listing(path);
      if (typeof after === 'number') return 'gone';
      // Only entries that were there throughout have a place in the stream that is not free.
      const stable = after
        .filter(e => before.get(e.name.toString('latin1')) === e.ino)
        .map(e => e.name.toString('latin1'));
      const missed = stable.filter(n => !seen.includes(n));
      const doubled = stable.filter(n => seen.indexOf(n) !== seen.lastIndexOf(n));
      return { missed: missed.sort().join(), doubled: doubled.sort().join() };
    }
    case 'flock':
      return name(c.flock(slotOf(o.slot), o.how | c.LOCK.NB));
    case 'lock':
      return name(c.fcntlLock(slotOf(o.slot), o.ofd ? c.F.OFD_SETLK : c.F.SETLK, o) as number);
    case 'getlock': {
      const r = c.fcntlLock(slotOf(o.slot), o.ofd ? c.F.OFD_GETLK : c.F.GETLK, o);
      return typeof r === 'number'
        ? c.resultName(r)
        : r.type === c.F_UNLCK
          ? 'free'
          : { type: r.type, start: r.start, length: r.length };
    }
  }
}

function plain(s: c.Statx): Observed {
  const type = s.mode & 0o170000;
  return {
    type,
    mode: s.mode & 0o7777,
    nlink: s.nlink,
    uid: s.uid,
    gid: s.gid,
    size: type === 0o040000 ? 0 : s.size,
    rdev: `${s.rdevMajor}:${s.rdevMinor}`,
    mtime: String(s.mtime),
    ctime: String(s.ctime),
    ino: String(s.ino),
  };
}

function observe(path: string): Observed | string {
  const s = c.lstat(at(path));
  return typeof s === 'number' ? c.resultName(s) : plain(s);
}

/** Everything below the base: attributes, contents, targets, extended attributes, and which names share an inode. */
function tree(): Record<string, string> {
  const found: Record<string, string> = {};
  const inodes = new Map<bigint, string>();
  const visit = (path: string): void => {
    const s = c.lstat(at(path));
    if (typeof s === 'number') {
      found[path] = c.resultName(s);
      return;
    }
    const { mtime: _, ctime: __, ino: ___, ...rest } = plain(s);
    let text = JSON.stringify({ ...rest, mode: rest.mode.toString(8) });
    const type = s.mode & 0o170000;
    const first = inodes.get(s.ino);
    if (first !== undefined) text += ` same as ${first}`;
    else inodes.set(s.ino, path);
    const names = c.listxattr(at(path));
    if (typeof names === 'number') text += ` listxattr ${c.resultName(names)}`;
    else
      for (const n of names.filter(each => !each.startsWith('system.'))) {
        const value = c.getxattr(at(path), n);
        text += ` ${n}=${typeof value === 'number' ? c.resultName(value) : hash(value)}`;
      }
    if (type === 0o120000) {
      const target = c.readlink(at(path));
      text += ` -> ${typeof target === 'number' ? target : Buffer.from(target).toString('latin1')}`;
    } else if (type === 0o100000) {
      const fd = c.open(at(path), c.O.RDONLY);
      const digest = createHash('sha1');
      const bytes = Buffer.alloc(1 << 20);
      let n = fd;
      for (let p = 0; n >= 0; p += n) {
        n = c.pread(fd, bytes, bytes.length, p);
        if (n <= 0) break;
        digest.update(bytes.subarray(0, n));
      }
      text += n < 0 ? ` read: ${c.resultName(n)}` : ` ${digest.digest('hex')}`;
      if (fd >= 0) c.close(fd);
    }
    found[path] = text;
    if (type !== 0o040000) return;
    const entries = listing(path);
    if (typeof entries === 'number') found[path] = `${text} list: ${c.resultName(entries)}`;
    else
      for (const entry of entries.map(e => e.name.toString()).sort())
        if (entry !== '.' && entry !== '..') visit(path === '' ? entry : `${path}/${entry}`);
  };
  visit('');
  return found;
}

/** Folders that every user meets: one for all, one with sticky bit, one of a user, one that hands its group on. */
function prepare(): Result {
  c.umask(0o022);
  c.chmod(base, 0o777);
  for (const [path, mode, owner, group] of [
    ['pub', 0o1777, 0, 0],
    ['own', 0o755, 1001, 1001],
    ['grp', 0o2775, 0, 1001],
    ['shut', 0o700, 0, 0],
  ] as const) {
    c.mkdir(at(path), 0o755);
    if (process.getuid?.() === 0) c.lchown(at(path), owner, group);
    c.chmod(at(path), mode);
  }
  return 0;
}

if (uid !== '0') c.setIds(Number(uid), Number(gid), groups === '' ? [] : groups.split(',').map(Number));
c.umask(0o022);
process.on('message', (request: Request) => {
  const reply: Reply =
    request.kind === 'operation'
      ? { result: withFile(request.operation, carryOut(request.operation)) }
      : request.kind === 'observe'
        ? { observed: request.paths.map(observe) }
        : request.kind === 'prepare'
          ? { result: prepare() }
          : { tree: tree() };
  process.send?.(reply);
});
process.on('disconnect', () => process.exit(0));
