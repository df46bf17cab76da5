/** Random operations that meet each other: few names, a few open files per process, paths that exist more often than not. */
import { FADV, FALLOC, LOCK, O, RENAME, RWF, SEEK, UTIME_NOW, UTIME_OMIT } from '../support/libc.ts';
import type { Random } from '../support/random.ts';
import type { Operation, Step } from './operations.ts';

export const SLOTS = 5;

const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'x', 'y', 'z', 'dir', 'sub', 'ü', '.hidden', 'N'.repeat(255)];
const ODD_NAMES = ['L'.repeat(256), '.', '..', 'a/', 'new line\n'];
const XATTRS = ['user.a', 'user.a', 'user.a', 'user.b', 'user.long-name-of-an-attribute', 'trusted.t', 'security.x'];
const KIB = 1024;
const BLOCK = 4 << 20;
const CHUNK = 64 << 20;

export interface Knowledge {
  /** Paths that exist on the reference, with their types (S_IF…). */
  paths: Map<string, number>;
  /** The slots of each process that hold an open file. */
  slots: Set<number>[];
  root: boolean;
}

const weights: [number, Operation['call']][] = [
  [10, 'open'],
  [2, 'tmpfile'],
  [2, 'linkSlot'],
  [2, 'reopen'],
  [1, 'byHandle'],
  [4, 'close'],
  [3, 'vectored'],
  [2, 'sendfile'],
  [4, 'advise'],
  [1, 'syncRange'],
  [1, 'clone'],
  [9, 'pwrite'],
  [5, 'write'],
  [8, 'pread'],
  [4, 'read'],
  [3, 'lseek'],
  [3, 'holes'],
  [4, 'ftruncate'],
  [3, 'truncate'],
  [5, 'fallocate'],
  [4, 'copy'],
  [2, 'fsync'],
  [3, 'mapped'],
  [4, 'fstat'],
  [2, 'fchmod'],
  [2, 'fchown'],
  [2, 'futimens'],
  [2, 'fxattr'],
  [3, 'at'],
  [4, 'lstat'],
  [7, 'mkdir'],
  [4, 'rmdir'],
  [7, 'unlink'],
  [10, 'rename'],
  [5, 'link'],
  [3, 'symlink'],
  [2, 'readlink'],
  [3, 'mknod'],
  [5, 'chmod'],
  [4, 'chown'],
  [4, 'utimens'],
  [2, 'access'],
  [4, 'setxattr'],
  [2, 'getxattr'],
  [2, 'listxattr'],
  [2, 'removexattr'],
  [3, 'setAcl'],
  [1, 'getAcl'],
  [1, 'inodeFlags'],
  [3, 'list'],
  [2, 'seekdir'],
  [2, 'streamStart'],
  [2, 'streamEnd'],
  [3, 'flock'],
  [5, 'lock'],
  [3, 'getlock'],
];
const total = weights.reduce((sum, [w]) => sum + w, 0);

export function nextStep(random: Random, known: Knowledge): Step {
  // Root meets fewer closed doors, so its calls go deeper.
  const actor = random.pick([0, 0, 0, 1, 1, 2, 3, 3]);
  let left = random.below(total);
  const call = weights.find(([weight]) => {
    left -= weight;
    return left < 0;
  })![1];
  return { actor, operation: make(call, actor, random, known) };
}

const DIRECTORY = 0o040000;
const REGULAR = 0o100000;

function make(call: Operation['call'], actor: number, random: Random, known: Knowledge): Operation {
  const open = [...known.slots[actor]!];
  const fills = call === 'open' || call === 'tmpfile' || call === 'reopen' || call === 'byHandle';
  const anySlot = (): number =>
    !fills && open.length > 0 && random.chance(90) ? random.pick(open) : random.below(SLOTS);
  const slot = anySlot();
  const existing = (type?: number): string | undefined => {
    const all = [...known.paths].filter(([, t]) => type === undefined || t === type);
    return all.length === 0 ? undefined : random.pick(all)[0];
  };
  const fresh = (): string => {
    const parent = random.chance(10) ? 'pub' : (existing(DIRECTORY) ?? '');
    // Not deeper than PATH_MAX allows.
    const folder = parent.length > 900 ? 'pub' : parent;
    const name = random.chance(3) ? random.pick(ODD_NAMES) : random.pick(NAMES);
    return folder === '' ? name : `${folder}/${name}`;
  };
  const path = (): string => (random.chance(70) ? (existing() ?? fresh()) : fresh());
  const file = (): string => (random.chance(75) ? (existing(REGULAR) ?? fresh()) : path());
  const folder = (): string => (random.chance(85) ? (existing(DIRECTORY) ?? '') : path());
  const position = (): number => {
    const near = random.pick([0, 0, 4 * KIB, 64 * KIB, 128 * KIB, 1 << 20, BLOCK, BLOCK, 2 * BLOCK]);
    if (random.chance(1)) return CHUNK + random.below(10_000) - 5000;
    return Math.max(0, near + random.below(12_000) - (near === 0 ? 0 : 6000));
  };
  const length = (): number => random.pick([0, 1, 7, 100, 4 * KIB, 5000, 64 * KIB, 130_000, 1 << 20]);
  const ids = known.root ? [-1, 0, 1001, 1002, 70_000] : [-1];
  const range = (): { start: number; length: number } => ({
    start: random.below(20) * 10,
    length: random.pick([0, 1, 10, 25, 100]),
  });
  const mode = (): number =>
    random.pick([
      0o644, 0o666, 0o755, 0o777, 0o755, 0o777, 0o600, 0o4755, 0o2755, 0o2644, 0o1777, 0o6777, 0o000, 0o444, 0o711,
    ]);
  const acl = (): [number, number, number][] => {
    if (random.chance(10)) return [];
    const perm = (): number => random.pick([0, 4, 5, 6, 7, 7]);
    // Tags: owner 1, user 2, group 4, named group 8, mask 16, others 32. Without a mask named entries are EINVAL.
    const named: [number, number, number][] = [];
    if (random.chance(60)) named.push([2, perm(), 1001]);
    if (random.chance(30)) named.push([2, perm(), 1002]);
    if (random.chance(30)) named.push([8, perm(), 2001]);
    const users = named.filter(([tag]) => tag === 2);
    const groups = named.filter(([tag]) => tag === 8);
    const mask: [number, number, number][] =
      (named.length > 0 && !random.chance(5)) || random.chance(20) ? [[16, perm(), 0xffffffff]] : [];
    const none = 0xffffffff;
    return [[1, perm(), none], ...users, [4, perm(), none], ...groups, ...mask, [32, perm(), none]];
  };
  const time = (): [number, number] =>
    random.chance(25)
      ? [0, UTIME_NOW]
      : random.chance(25)
        ? [0, UTIME_OMIT]
        : [
            random.pick([0, 1, 1_000_000_000, 2_000_000_000, 4_000_000_000, -5]),
            random.pick([0, 1, 999_999_999, 123_456_789]),
          ];
  switch (call) {
    case 'open': {
      if (random.chance(8)) return { call, slot, path: folder(), flags: O.RDONLY | O.DIRECTORY, mode: 0 };
      let flags = random.pick([O.RDONLY, O.WRONLY, O.RDWR, O.RDWR, O.RDWR]) as number;
      if (random.chance(60)) flags |= O.CREAT;
      if (random.chance(10)) flags |= O.EXCL;
      if (random.chance(10)) flags |= O.TRUNC;
      if (random.chance(15)) flags |= O.APPEND;
      if (random.chance(5)) flags |= random.pick([O.SYNC, O.DSYNC]);
      if (random.chance(8)) flags |= O.DIRECT;
      if (random.chance(2)) flags |= O.NOATIME;
      if (random.chance(5)) flags |= O.NOFOLLOW;
      if (random.chance(4)) flags |= O.DIRECTORY;
      // Alone it is open(2) without access: no error but those of the path.
      if (random.chance(4)) flags = O.PATH;
      return { call, slot, path: file(), flags, mode: mode() };
    }
    case 'tmpfile':
      return { call, slot, path: folder(), mode: mode(), flags: random.chance(15) ? O.EXCL : 0 };
    case 'linkSlot':
      return { call, slot, path: fresh(), empty: random.chance(40) };
    case 'reopen': {
      const access = random.pick([O.RDONLY, O.WRONLY, O.RDWR, O.RDWR]) as number;
      const more = random.pick([0, 0, 0, O.APPEND, O.TRUNC, O.DIRECT, O.APPEND | O.DIRECT]);
      return { call, slot, from: open.length > 0 ? random.pick(open) : 0, flags: access | more };
    }
    case 'byHandle':
      return { call, slot, path: path(), flags: random.pick([O.RDONLY, O.RDWR, O.PATH]) };
    case 'close':
    case 'holes':
    case 'fstat':
      return { call, slot };
    case 'pwrite':
      return { call, slot, at: position(), length: length(), fill: random.below(250) + 1 };
    case 'write':
      return { call, slot, length: length(), fill: random.below(250) + 1 };
    case 'pread':
      return { call, slot, at: position(), length: length() };
    case 'read':
      return { call, slot, length: length() };
    case 'vectored': {
      const write = random.chance(70);
      const flags = write ? random.pick([0, 0, RWF.DSYNC, RWF.SYNC, RWF.APPEND, RWF.APPEND, RWF.NOAPPEND]) : 0;
      const at = random.chance(25) ? -1 : position();
      return { call, slot, at, length: length(), fill: random.below(250) + 1, flags, write };
    }
    case 'sendfile':
      return { call, slot, at: position(), to: anySlot(), length: length() };
    case 'advise':
      return {
        call,
        slot,
        at: random.chance(60) ? 0 : position(),
        length: random.chance(60) ? 0 : length(),
        advice: random.pick([FADV.DONTNEED, FADV.DONTNEED, FADV.DONTNEED, FADV.WILLNEED, FADV.RANDOM]),
      };
    case 'syncRange':
      return { call, slot, at: position(), length: length() };
    case 'clone':
      return { call, slot, to: anySlot() };
    case 'futimens':
      return { call, slot, atime: time(), mtime: time() };
    case 'fxattr':
      return {
        call,
        slot,
        what: random.pick(['set', 'set', 'get', 'remove']),
        name: random.pick(XATTRS),
        length: random.pick([0, 1, 40, 200]),
      };
    case 'at':
      return {
        call,
        slot,
        what: random.pick(['make', 'create', 'create', 'unlink', 'rmdir', 'open']),
        name: random.pick(NAMES),
      };
    case 'setAcl':
      return { call, path: path(), kind: random.chance(70) ? 'access' : 'default', entries: acl() };
    case 'getAcl':
      return { call, path: path(), kind: random.chance(70) ? 'access' : 'default' };
    case 'inodeFlags': {
      const chosen = random.pick([undefined, 0, 0, 0, 0x10, 0x20, 0x30]);
      return { call, path: path(), ...(chosen === undefined ? {} : { set: chosen }) };
    }
    case 'lseek':
      return { call, slot, at: random.chance(10) ? -10 : position(), how: random.pick([SEEK.SET, SEEK.CUR, SEEK.END]) };
    case 'ftruncate':
      return { call, slot, length: random.chance(3) ? -1 : position() };
    case 'truncate':
      return { call, path: file(), length: position() };
    case 'fallocate': {
      const punch = FALLOC.PUNCH_HOLE | FALLOC.KEEP_SIZE;
      const how = random.pick([
        0,
        FALLOC.KEEP_SIZE,
        punch,
        punch,
        FALLOC.ZERO,
        FALLOC.ZERO | FALLOC.KEEP_SIZE,
        FALLOC.PUNCH_HOLE,
      ]);
      return { call, slot, mode: how, at: position(), length: length() };
    }
    case 'copy':
      return { call, slot, at: position(), to: anySlot(), toAt: position(), length: length() };
    case 'fsync':
      return { call, slot, data: random.chance(50) };
    case 'mapped':
      return {
        call,
        slot,
        at: position(),
        length: length() + 1,
        fill: random.below(250) + 1,
        next: random.pick(['sync', 'sync', 'read', 'private', 'cut', 'punch', 'copy']),
      };
    case 'fchmod':
      return { call, slot, mode: mode(), empty: random.chance(30) };
    case 'fchown':
      return { call, slot, uid: random.pick(ids), gid: random.pick(ids), empty: random.chance(30) };
    case 'lstat':
    case 'readlink':
    case 'listxattr':
    case 'rmdir':
      return { call, path: call === 'rmdir' ? folder() : path() };
    case 'unlink':
      return { call, path: file() };
    case 'mkdir':
      return { call, path: fresh(), mode: mode() };
    case 'rename': {
      const flags = random.pick([
        0,
        0,
        0,
        0,
        RENAME.NOREPLACE,
        RENAME.EXCHANGE,
        RENAME.EXCHANGE,
        RENAME.NOREPLACE | RENAME.EXCHANGE,
        RENAME.WHITEOUT,
        RENAME.WHITEOUT | RENAME.NOREPLACE,
        8,
      ]);
      return { call, path: path(), to: path(), flags };
    }
    case 'link':
      return { call, path: path(), to: fresh() };
    case 'symlink': {
      const target = random.pick(['a', '../a', 'pub/a', 'nowhere', '.', 'x'.repeat(200), 'own/dir', 'loop']);
      return { call, path: fresh(), target };
    }
    case 'mknod': {
      // Numbers that no driver has.
      const kinds = [0o010000, 0o010000, 0o140000, 0o100000, ...(known.root ? [0o020000, 0o060000] : [])];
      return { call, path: fresh(), mode: random.pick(kinds) | mode(), dev: random.pick([0x1f0, 0xf5 * 256 + 3]) };
    }
    case 'chmod':
      return { call, path: path(), mode: mode() };
    case 'chown':
      return { call, path: path(), uid: random.pick(ids), gid: random.pick(ids) };
    case 'utimens':
      return { call, path: path(), atime: time(), mtime: time() };
    case 'access':
      return { call, path: path(), mode: random.below(8) };
    case 'setxattr':
      // Short: ext4 keeps all attributes of a file in one block.
      return {
        call,
        path: path(),
        name: random.pick(XATTRS),
        length: random.pick([0, 1, 40, 200]),
        flags: random.pick([0, 0, 0, 1, 2]),
      };
    case 'getxattr':
      return { call, path: path(), name: random.pick(XATTRS), size: random.pick([0, 1, 65536]) };
    case 'removexattr':
      return { call, path: path(), name: random.pick(XATTRS) };
    case 'list':
    case 'seekdir':
    case 'streamStart':
      return { call, path: folder() };
    case 'streamEnd':
      return { call };
    case 'flock':
      return { call, slot, how: random.pick([LOCK.SH, LOCK.EX, LOCK.UN]) };
    case 'lock':
      return { call, slot, ofd: random.chance(30), type: random.below(3), ...range() };
    case 'getlock':
      return { call, slot, ofd: random.chance(30), type: random.below(2), ...range() };
  }
}
