/**
 * A directory shown at another place: `node passthrough.ts DIRECTORY MOUNTPOINT`, as root. What it teaches:
 *
 * - a node id stands for a file, not for a path: each is held by an O_PATH descriptor, as long as the kernel knows it (lookup counts, forget takes back);
 * - file handles are descriptors, directory handles lists of names, so that an offset means the same as long as the directory is open;
 * - READDIRPLUS: each entry is a lookup; one that did not fit is taken back;
 * - reads, writes and syncs answer with promises: what may wait for a disk is not done on the event loop. Bytes of a WRITE are used before its answer;
 * - errors of node:fs are answered as they are (systemErrors); what node:fs lacks is called by koffi;
 * - no setlk: the kernel keeps the locks. No DUTY_FLAGS: the kernel truncates, applies the umask and takes set-id bits away.
 *
 * Each inode that the kernel knows takes a descriptor (ulimit -n). Nothing of it survives its process: see memory.ts for that.
 */
import * as fs from 'node:fs';
import koffi from 'koffi';
import {
  attributesOf,
  type Context,
  type DirentSink,
  type EntryOut,
  ESTALE,
  errnoOf,
  type FileSystem,
  type FuseAttr,
  mountFuse,
  type Name,
  type SetattrIn,
  serve,
  unmount,
} from '../src/index.ts';

const libc = koffi.load('libc.so.6');
type Call = (...args: unknown[]) => number;
/** A function of the C library that answers -1 with errno. */
function call(prototype: string): Call {
  const f = libc.func(prototype) as Call;
  return (...args) => {
    const result = f(...args);
    if (result < 0) throw errnoOf(koffi.errno());
    return result;
  };
}
const linkat = call('int linkat(int, const char *, int, const uint8_t *, int)');
const renameat2 = call('int renameat2(int, const uint8_t *, int, const uint8_t *, unsigned int)');
const mknod = call('int mknod(const uint8_t *, uint32_t, uint64_t)');
const readlinkat = call('int64_t readlinkat(int, const char *, uint8_t *, size_t)');
const utimensat = call('int utimensat(int, const char *, const int64_t *, int)');
const setxattr = call('int setxattr(const char *, const uint8_t *, const uint8_t *, size_t, int)');
const getxattr = call('int64_t getxattr(const char *, const uint8_t *, uint8_t *, size_t)');
const listxattr = call('int64_t listxattr(const char *, uint8_t *, size_t)');
const removexattr = call('int removexattr(const char *, const uint8_t *)');
const fallocate = call('int fallocate(int, int, int64_t, int64_t)');
const lseek = call('int64_t lseek(int, int64_t, int)');
const copyFileRange = call('int64_t copy_file_range(int, int64_t *, int, int64_t *, size_t, unsigned int)');
const [setfsuid, setfsgid] = ['setfsuid', 'setfsgid'].map(name => libc.func(`int ${name}(uint32_t)`) as Call);

const O_PATH = 0o10000000;
const O_TMPFILE = 0o20200000;
const { O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_TRUNC } = fs.constants;
const AT_SYMLINK_FOLLOW = 0x400;
const UTIME_NOW = 0x3fffffff;
const UTIME_OMIT = 0x3ffffffe;
/** Seconds that the kernel may believe what it was told; what changes below is seen then. */
const VALID = 1;

interface Node {
  /** O_PATH */
  fd: number;
  key: string;
  lookups: number;
}
interface Listed {
  fd: number;
  entries: fs.Dirent<Buffer>[];
}

function passthrough(root: string): FileSystem {
  const nodes = new Map<number, Node>();
  const known = new Map<string, number>();
  const lists = new Map<number, Listed>();
  let last = 0;

  const nodeOf = (nodeid: number): Node => {
    const node = nodes.get(nodeid);
    if (!node) throw ESTALE;
    return node;
  };
  /** A path that leads to the file itself, whatever it is named now. */
  const self = (nodeid: number): string => `/proc/self/fd/${nodeOf(nodeid).fd}`;
  const within = (parent: number, name: Name): Buffer => Buffer.concat([Buffer.from(`${self(parent)}/`), name]);
  /** NUL-terminated. */
  const c = (bytes: Uint8Array): Buffer => Buffer.concat([bytes, Buffer.of(0)]);

  function attrOf(nodeid: number): FuseAttr {
    return attributesOf(fs.fstatSync(nodeOf(nodeid).fd, { bigint: true }));
  }
  const out = (nodeid: number) => ({ attr: attrOf(nodeid), attrValid: VALID });

  function enter(path: fs.PathLike): EntryOut {
    const fd = fs.openSync(path, O_PATH | O_NOFOLLOW);
    const { dev, ino } = fs.fstatSync(fd, { bigint: true });
    const key = `${dev}:${ino}`;
    let nodeid = known.get(key);
    if (nodeid === undefined) {
      nodeid = ++last;
      known.set(key, nodeid);
      nodes.set(nodeid, { fd, key, lookups: 0 });
    } else fs.closeSync(fd);
    nodeOf(nodeid).lookups++;
    return { nodeid, entryValid: VALID, ...out(nodeid) };
  }

  /** Makes a file as the caller would. */
  function as<T>(ctx: Context, make: () => T): T {
    setfsgid!(ctx.gid);
    setfsuid!(ctx.uid);
    try {
      return make();
    } finally {
      setfsuid!(0);
      setfsgid!(0);
    }
  }
  const made = (ctx: Context, parent: number, name: Name, make: (path: Buffer) => void): EntryOut => {
    const path = within(parent, name);
    as(ctx, () => make(path));
    return enter(path);
  };
  /** The kernel has dealt with these. */
  const openFlags = (flags: number): number => flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_NOFOLLOW | O_APPEND | O_DIRECT);

  enter(root);
  return {
    lookup: (_ctx, parent, name) => enter(within(parent, name)),
    forget(nodeid, count) {
      const node = nodes.get(nodeid);
      if (!node) return;
      node.lookups -= count;
      if (node.lookups > 0) return;
      fs.closeSync(node.fd);
      nodes.delete(nodeid);
      known.delete(node.key);
    },
    getattr: (_ctx, nodeid) => out(nodeid),
    setattr(_ctx, nodeid, set: SetattrIn) {
      const path = self(nodeid);
      if (set.mode !== undefined) fs.chmodSync(path, set.mode & 0o7777);
      if (set.uid !== undefined || set.gid !== undefined) fs.chownSync(path, set.uid ?? -1, set.gid ?? -1);
      if (set.size !== undefined) {
        if (set.fh !== undefined) fs.ftruncateSync(set.fh, set.size);
        else fs.truncateSync(path, set.size);
      }
      if (set.atime || set.mtime) {
        const times = [set.atime, set.mtime].flatMap(t =>
          t === 'now' ? [0, UTIME_NOW] : t ? [t.sec, t.nsec] : [0, UTIME_OMIT],
        );
        utimensat(-100, path, new BigInt64Array(times.map(BigInt)), 0);
      }
      return out(nodeid);
    },
    readlink(_ctx, nodeid) {
      const target = Buffer.alloc(4096);
      return target.subarray(0, readlinkat(nodeOf(nodeid).fd, '', target, target.length));
    },
    symlink: (ctx, parent, name, target) => made(ctx, parent, name, path => fs.symlinkSync(Buffer.from(target), path)),
    mknod: (ctx, parent, name, mode, rdev) => made(ctx, parent, name, path => mknod(c(path), mode, rdev)),
    mkdir: (ctx, parent, name, mode) => made(ctx, parent, name, path => fs.mkdirSync(path, mode)),
    unlink: (_ctx, parent, name) => fs.unlinkSync(within(parent, name)),
    rmdir: (_ctx, parent, name) => fs.rmdirSync(within(parent, name)),
    rename: (_ctx, parent, name, newParent, newName, flags) =>
      void renameat2(-100, c(within(parent, name)), -100, c(within(newParent, newName)), flags),
    link(_ctx, nodeid, newParent, newName) {
      linkat(-100, self(nodeid), -100, c(within(newParent, newName)), AT_SYMLINK_FOLLOW);
      return enter(within(newParent, newName));
    },

    open: (_ctx, nodeid, flags) => ({ fh: fs.openSync(self(nodeid), openFlags(flags)), flags: 0 }),
    create(ctx, parent, name, mode, _umask, flags) {
      const path = within(parent, name);
      const fh = as(ctx, () => fs.openSync(path, openFlags(flags) | O_CREAT | O_EXCL, mode));
      return { ...enter(path), fh, flags: 0 };
    },
    tmpfile(ctx, parent, mode, _umask, flags) {
      const fh = as(ctx, () => fs.openSync(self(parent), (flags & ~(O_CREAT | O_EXCL)) | O_TMPFILE, mode));
      return { ...enter(`/proc/self/fd/${fh}`), fh, flags: 0 };
    },
    async read(_ctx, _nodeid, { fh, offset, size }) {
      const buffer = Buffer.allocUnsafe(size);
      return buffer.subarray(0, await promised<number>(done => fs.read(fh, buffer, 0, size, offset, done)));
    },
    write: (_ctx, _nodeid, { fh, offset, data }) =>
      promised(done => fs.write(fh, data.bytes, 0, data.bytes.length, offset, done)),
    fsync: (_ctx, _nodeid, fh, datasync) => promised(done => (datasync ? fs.fdatasync : fs.fsync)(fh, done)),
    release: (_ctx, _nodeid, fh) => fs.closeSync(fh),
    fallocate: (_ctx, _nodeid, fh, offset, length, mode) => void fallocate(fh, mode, offset, length),
    lseek: (_ctx, _nodeid, fh, offset, whence) => lseek(fh, offset, whence),
    copyFileRange: (_ctx, _from, fh, offset, _to, toFh, toOffset, length) =>
      copyFileRange(fh, BigInt64Array.of(BigInt(offset)), toFh, BigInt64Array.of(BigInt(toOffset)), length, 0),

    opendir(_ctx, nodeid) {
      const fd = fs.openSync(self(nodeid), O_DIRECTORY);
      lists.set(fd, { fd, entries: [] });
      return { fh: fd, flags: 0 };
    },
    readdir(_ctx, nodeid, fh, offset, sink: DirentSink) {
      const list = lists.get(fh)!;
      if (offset === 0) list.entries = fs.readdirSync(self(nodeid), { withFileTypes: true, encoding: 'buffer' });
      for (let i = offset; i < list.entries.length + 2; i++) {
        const name = i === 0 ? Buffer.from('.') : i === 1 ? Buffer.from('..') : list.entries[i - 2]!.name;
        if (!sink.plus || i < 2) {
          if (!sink.add({ ino: i + 1, offset: i + 1, type: i < 2 ? 4 : 0, name })) return;
          continue;
        }
        let entry: EntryOut;
        try {
          entry = enter(within(nodeid, name));
        } catch {
          continue; // removed meanwhile
        }
        if (sink.add({ ino: entry.attr.ino, offset: i + 1, type: entry.attr.mode >>> 12, name, entry })) continue;
        this.forget!(entry.nodeid, 1);
        return;
      }
    },
    releasedir(_ctx, _nodeid, fh) {
      lists.delete(fh);
      fs.closeSync(fh);
    },
    fsyncdir: (_ctx, _nodeid, fh) => promised(done => fs.fsync(fh, done)),
    statfs(_ctx, nodeid) {
      const { blocks, bfree, bavail, files, ffree, bsize } = fs.statfsSync(self(nodeid));
      return { blocks, bfree, bavail, files, ffree, bsize, frsize: bsize, namelen: 255 };
    },

    setxattr: (_ctx, nodeid, name, value, flags) =>
      void setxattr(self(nodeid), c(name), value.length ? value : null, value.length, flags),
    getxattr(_ctx, nodeid, name) {
      const value = Buffer.alloc(65536);
      return value.subarray(0, getxattr(self(nodeid), c(name), value, value.length));
    },
    listxattr(_ctx, nodeid) {
      const names = Buffer.alloc(65536);
      const text = names.toString('latin1', 0, listxattr(self(nodeid), names, names.length));
      return text
        .split('\0')
        .slice(0, -1)
        .map(name => Buffer.from(name, 'latin1'));
    },
    removexattr: (_ctx, nodeid, name) => void removexattr(self(nodeid), c(name)),
  };
}

function promised<T>(start: (done: (error: Error | null, value?: T) => void) => void): Promise<T> {
  return new Promise((resolve, reject) => start((error, value) => (error ? reject(error) : resolve(value as T))));
}

process.umask(0);
const [directory, mountPoint] = process.argv.slice(2) as [string, string];
const fileSystem = passthrough(directory);
const { fd } = await mountFuse(mountPoint, {
  source: directory,
  subtype: 'passthrough',
  allowOther: true,
  defaultPermissions: true,
});
const session = serve({ fd, fileSystem, systemErrors: true });
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => unmount(mountPoint, { lazy: true }));
await session.start();
await session.done;
