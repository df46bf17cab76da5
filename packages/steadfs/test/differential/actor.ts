/**
 * One process of the differential test on one of the two directories: takes operations over IPC, carries each out by system calls under
 * its own user id, answers what the kernel answered. Arguments: base directory, uid, gid, supplementary groups (comma-separated).
 */
import { createHash } from 'node:crypto';
import * as c from '../support/libc.ts';
import * as files from './open-files.ts';
import { hash, name, pattern } from './open-files.ts';
import type { Observed, Operation, Reply, Request, Result } from './operations.ts';

const [base = '', uid = '0', gid = '0', groups = ''] = process.argv.slice(2);
const slots = new Map<number, number>();
let stream: { fd: number; path: string; before: Map<string, bigint>; seen: string[] } | undefined;

const at = (path: string): string => (path === '' ? base : `${base}/${path}`);
const slotOf = (slot: number): number => slots.get(slot) ?? -1;
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

function isDirectory(fd: number): boolean {
  const s = c.fstat(fd);
  return typeof s !== 'number' && (s.mode & 0o170000) === 0o040000;
}

const CHANGING = new Set([
  'pwrite',
  'write',
  'vectored',
  'sendfile',
  'clone',
  'ftruncate',
  'fallocate',
  'copy',
  'mapped',
  'fchmod',
  'fchown',
  'futimens',
  'fxattr',
  'reopen',
  'at',
]);

/** The result, and what an operation on an open file has made of the file. */
function withFile(o: Operation, result: Result): Result {
  if (!CHANGING.has(o.call)) return result;
  const s = c.fstat(slotOf('to' in o && 'slot' in o ? o.to : (o as { slot: number }).slot));
  if (typeof s === 'number') return result;
  const { mode, type, size, nlink, uid, gid } = plain(s);
  return { result, mode: (type | mode).toString(8), size, nlink, uid, gid };
}

/** version 2, then tag, permissions and id of each entry. */
function aclValue(entries: [number, number, number][]): Buffer {
  const value = Buffer.alloc(4 + 8 * entries.length);
  value.writeUInt32LE(2, 0);
  for (const [i, [tag, perm, id]] of entries.entries()) {
    value.writeUInt16LE(tag, 4 + 8 * i);
    value.writeUInt16LE(perm, 6 + 8 * i);
    value.writeUInt32LE(id, 8 + 8 * i);
  }
  return value;
}

function inodeFlags(o: Operation & { call: 'inodeFlags' }): Result {
  const s = c.lstat(at(o.path));
  if (typeof s === 'number') return c.resultName(s);
  if (![0o100000, 0o040000].includes(s.mode & 0o170000)) return 'no file';
  const fd = c.open(at(o.path), c.O.RDONLY | c.O.NONBLOCK);
  if (fd < 0) return c.resultName(fd);
  const old = c.getInodeFlags(fd);
  const r = o.set === undefined || old < 0 ? 0 : c.setInodeFlags(fd, (old & ~files.FLAG_BITS) | o.set);
  const now = c.getInodeFlags(fd);
  c.close(fd);
  return { r: name(r), flags: now < 0 ? c.resultName(now) : now & files.FLAG_BITS };
}

function relative(o: Operation & { call: 'at' }): Result {
  const fd = slotOf(o.slot);
  if (o.what === 'make') return name(c.mkdirAt(fd, o.name, 0o755));
  if (o.what === 'unlink' || o.what === 'rmdir')
    return name(c.unlinkAt(fd, o.name, o.what === 'rmdir' ? c.AT.REMOVEDIR : 0));
  const made = c.openAt(fd, o.name, c.O.NONBLOCK | (o.what === 'create' ? c.O.RDWR | c.O.CREAT : c.O.RDONLY));
  if (made < 0) return c.resultName(made);
  c.close(made);
  return 0;
}

function carryOut(o: Operation): Result {
  switch (o.call) {
    case 'open':
      return put(o.slot, c.open(at(o.path), o.flags | c.O.NONBLOCK, o.mode));
    case 'tmpfile':
      return put(o.slot, c.open(at(o.path), c.O.TMPFILE | c.O.RDWR | o.flags, o.mode));
    case 'linkSlot':
      return name(
        o.empty
          ? c.linkFd(slotOf(o.slot), at(o.path))
          : c.link(`/proc/self/fd/${slotOf(o.slot)}`, at(o.path), c.AT.SYMLINK_FOLLOW),
      );
    case 'reopen': {
      const from = slotOf(o.from);
      const s = c.fstat(from);
      // No server is told of O_PATH: what only such a descriptor holds is gone.
      if (typeof s !== 'number' && s.nlink === 0 && (c.getFlags(from) & c.O.PATH) !== 0) return 'gone';
      return put(o.slot, c.open(`/proc/self/fd/${slotOf(o.from)}`, o.flags | c.O.NONBLOCK));
    }
    case 'byHandle': {
      const mount = c.open(base, c.O.RDONLY | c.O.DIRECTORY);
      const handle = c.nameToHandle(at(o.path));
      const flags = o.flags | c.O.NONBLOCK | c.O.CLOEXEC;
      const fd = typeof handle === 'number' ? handle : c.openByHandle(mount, handle, flags);
      c.close(mount);
      return put(o.slot, fd);
    }
    case 'close': {
      const fd = slotOf(o.slot);
      slots.delete(o.slot);
      return name(c.close(fd));
    }
    case 'pwrite':
      return files.put(slotOf(o.slot), o.at, o.length, o.fill);
    case 'write':
      return files.put(slotOf(o.slot), undefined, o.length, o.fill);
    case 'pread':
      return files.take(slotOf(o.slot), o.at, o.length);
    case 'read':
      return files.take(slotOf(o.slot), undefined, o.length);
    case 'vectored':
      return files.vectored(slotOf(o.slot), o);
    case 'sendfile':
      return files.sendFile(slotOf(o.slot), slotOf(o.to), o);
    case 'advise':
      return name(c.fadvise(slotOf(o.slot), o.at, o.length, o.advice));
    case 'syncRange':
      // Wait, write, wait.
      return name(c.syncFileRange(slotOf(o.slot), o.at, o.length, 7));
    case 'clone':
      return name(c.clone(slotOf(o.to), slotOf(o.slot)));
    case 'lseek':
      // Places in a directory are the file system's own.
      if (isDirectory(slotOf(o.slot))) return 'directory';
      return name(c.lseek(slotOf(o.slot), o.at, o.how));
    case 'holes':
      return files.holes(slotOf(o.slot));
    case 'ftruncate':
      return name(c.ftruncate(slotOf(o.slot), o.length));
    case 'truncate':
      return name(c.truncate(at(o.path), o.length));
    case 'fallocate':
      return name(c.fallocate(slotOf(o.slot), o.mode, o.at, o.length));
    case 'copy':
      return files.copy(slotOf(o.slot), slotOf(o.to), o);
    case 'fsync':
      return name(o.data ? c.fdatasync(slotOf(o.slot)) : c.fsync(slotOf(o.slot)));
    case 'mapped':
      return files.mapped(slotOf(o.slot), o);
    case 'fstat': {
      const s = c.fstat(slotOf(o.slot));
      return typeof s === 'number' ? c.resultName(s) : { ...plain(s), mtime: '', ctime: '', ino: '' };
    }
    case 'fchmod':
      return name((o.empty ? c.chmodFd : c.fchmod)(slotOf(o.slot), o.mode));
    case 'fchown':
      return name((o.empty ? c.chownFd : c.fchown)(slotOf(o.slot), o.uid, o.gid));
    case 'futimens':
      return name(c.futimens(slotOf(o.slot), o.atime, o.mtime));
    case 'fxattr': {
      const fd = slotOf(o.slot);
      if (o.what === 'set') return name(c.fsetxattr(fd, o.name, pattern(o.length, o.length)));
      if (o.what === 'remove') return name(c.fremovexattr(fd, o.name));
      const r = c.fgetxattr(fd, o.name);
      return typeof r === 'number' ? name(r) : hash(r);
    }
    case 'at':
      return relative(o);
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
    case 'setAcl':
      return name(c.setxattr(at(o.path), `system.posix_acl_${o.kind}`, aclValue(o.entries)));
    case 'getAcl': {
      const r = c.getxattr(at(o.path), `system.posix_acl_${o.kind}`);
      return typeof r === 'number' ? name(r) : Buffer.from(r).toString('hex');
    }
    case 'inodeFlags':
      return inodeFlags(o);
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
      for (const n of names) {
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
