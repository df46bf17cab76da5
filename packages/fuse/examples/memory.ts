/**
 * A file system in memory that survives kill -9 of its server: all it knows is in the capsule and the arena, and the
 * JavaScript maps are an index that is made anew by whoever adopts them. About everything a server for such a mount has to do:
 *
 * - records are filled first and published by their state word;
 * - a mutation of several records is a list of 32-bit stores, written into the op record of its slot before they are done: after a crash they
 *   are done again (recover), and a request that was carried out is recognised by its seq (once);
 * - directory offsets are record indexes, so they mean the same in the next process;
 * - an unlinked inode stays while the kernel knows it (nlookup);
 * - a WRITE of a whole page keeps the page it landed in (take).
 *
 *     node memory.ts MOUNTPOINT            mounts and serves until it is unmounted
 *     node memory.ts --adopt               serves fds 3 (/dev/fuse), 4 (capsule), 5 (arena), which someone else holds as well
 */
import {
  type AttrOut,
  type Capsule,
  type Context,
  createCapsule,
  DEFAULT_FLAGS,
  type DirentSink,
  EAGAIN,
  EEXIST,
  EINTR,
  EINVAL,
  EISDIR,
  ENOENT,
  ENOSPC,
  ENOTDIR,
  ENOTEMPTY,
  type EntryOut,
  type FileSystem,
  type FuseAttr,
  INIT,
  type LockIn,
  lockCapsule,
  mountFuse,
  type Name,
  openCapsule,
  type Records,
  type SetattrIn,
  serve,
  type TimeSpec,
  type WriteIn,
} from '../src/index.ts';

const PAGE = 4096;
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFLNK = 0o120000;

// inode i (record i - 1): state u32, mode, uid, gid, nlink, rdev, nlookup u32 @4..27, size f64 @32, seconds of atime, mtime, ctime f64 @40, ns u32 @64
const MODE = 4,
  UID = 8,
  GID = 12,
  NLINK = 16,
  RDEV = 20,
  NLOOKUP = 24,
  SIZE = 32,
  TIMES = 40,
  NSEC = 64,
  INODE = 80;
// name: state u32, parent u32 @4, inode u32 @8, length u32 @12, bytes @16
const PARENT = 4,
  CHILD = 8,
  LENGTH = 12,
  BYTES = 16,
  NAME = 272;
// page: state u32, inode u32 @4, index in the file u32 @8, page of the arena u32 @12
const OWNER = 4,
  INDEX = 8,
  PLACE = 12,
  PAGE_RECORD = 16;
// op: state u32 (1 = its stores must be done, 2 = done), count u32 @4, seq f64 @8, result (inode) u32 @16, stores from @24: table u32, offset u32, value u32
const COUNT = 4,
  SEQ = 8,
  RESULT = 16,
  STORES = 24,
  OP_RECORD = 24 + 12 * 24;
// lock of a whole file: state u32, inode u32 @4, owner u64 @8, type u32 @16
const LOCK = 24;

interface Table {
  records: Records;
  u32: Uint32Array;
  f64: Float64Array;
  size: number;
}

function table(capsule: Capsule, name: string, recordSize: number, capacity: number): Table {
  const records = capsule.records({ name, version: 1, recordSize, capacity });
  const { buffer, byteOffset, byteLength } = records.bytes;
  return {
    records,
    u32: new Uint32Array(buffer, byteOffset, byteLength / 4),
    f64: new Float64Array(buffer, byteOffset, byteLength / 8),
    size: recordSize,
  };
}
/** Records that #redo published after the section was opened are not to be given out. */
function reserve(records: Records): void {
  const free: number[] = [];
  const last = Math.max(-1, ...records.live());
  for (let i = records.alloc(); i !== undefined; i = records.alloc()) {
    if (records.state(i) === 0) free.push(i);
    if (i > last) break;
  }
  for (const i of free.reverse()) records.free(i);
}
const key = (name: Name): string => Buffer.from(name.buffer, name.byteOffset, name.length).toString('latin1');

export class MemoryFs implements FileSystem {
  readonly #capsule: Capsule;
  readonly #tables: Table[];
  readonly #inodes: Table;
  readonly #names: Table;
  readonly #pages: Table;
  readonly #ops: Table;
  readonly #locks: Table;
  /** parent → name → record of the name */
  readonly #children = new Map<number, Map<string, number>>();
  /** inode → page of the file → record */
  readonly #data = new Map<number, Map<number, number>>();
  readonly #waiting = new Set<() => void>();
  /** Stores of the mutation being planned. */
  #plan: [Table, number, number][] = [];
  readonly #attrValid: number;

  /** Before `start()` of the session: claims what it has in the arena. */
  constructor(capsule: Capsule, attrValid = 1) {
    this.#capsule = capsule;
    this.#attrValid = attrValid;
    this.#inodes = table(capsule, 'memory.inodes', INODE, 1 << 20);
    this.#names = table(capsule, 'memory.names', NAME, 1 << 20);
    this.#pages = table(capsule, 'memory.pages', PAGE_RECORD, 1 << 20);
    this.#ops = table(capsule, 'memory.ops', OP_RECORD, 256);
    this.#locks = table(capsule, 'memory.locks', LOCK, 1 << 16);
    this.#tables = [this.#inodes, this.#names, this.#pages, this.#ops, this.#locks];
    while (this.#ops.records.alloc() !== undefined);
    if (this.#inodes.records.state(0) === 0) {
      this.#newInode(S_IFDIR | 0o755, process.getuid!(), process.getgid!(), 0, 2);
      this.#inodes.records.setState(0, 1);
    }
    this.#recover();
  }

  #recover(): void {
    for (const k of this.#ops.records.live()) if (this.#ops.records.state(k) === 1) this.#redo(k);
    reserve(this.#inodes.records);
    reserve(this.#names.records);
    for (const i of this.#names.records.live()) this.#index(i);
    for (const p of this.#pages.records.live()) {
      const at = (p * PAGE_RECORD) / 4;
      const ino = this.#pages.u32[at + OWNER / 4]!;
      const index = this.#pages.u32[at + INDEX / 4]!;
      const place = this.#pages.u32[at + PLACE / 4]! * PAGE;
      if (this.#inodes.records.state(ino - 1) === 0 || index * PAGE >= this.#size(ino)) this.#pages.records.free(p);
      else {
        this.#capsule.arena.claim(place, PAGE);
        this.#pagesOf(ino).set(index, p);
      }
    }
    for (const i of this.#inodes.records.live()) this.#zeroTail(i + 1);
  }

  // --- Mutations --------------------------------------------------------------------------------------------------

  /** Carries out `plan` exactly once for the op; it checks, prepares free records, calls #set for what becomes visible, answers the inode. */
  #once(ctx: Context, plan: () => number): number {
    const k = ctx.op.slot;
    const at = k * OP_RECORD;
    const ops = this.#ops;
    if (ops.records.state(k) === 2 && ops.f64[(at + SEQ) / 8] === ctx.op.seq) return ops.u32[(at + RESULT) / 4]!;
    this.#plan = [];
    const ino = plan();
    ops.records.setState(k, 0);
    ops.f64[(at + SEQ) / 8] = ctx.op.seq;
    ops.u32[(at + RESULT) / 4] = ino;
    ops.u32[(at + COUNT) / 4] = this.#plan.length;
    for (const [i, [t, offset, value]] of this.#plan.entries()) {
      const s = (at + STORES + 12 * i) / 4;
      ops.u32[s] = this.#tables.indexOf(t);
      ops.u32[s + 1] = offset;
      ops.u32[s + 2] = value;
    }
    ops.records.setState(k, 1);
    this.#redo(k);
    return ino;
  }
  #redo(k: number): void {
    const at = k * OP_RECORD;
    const u32 = this.#ops.u32;
    for (let i = 0; i < u32[(at + COUNT) / 4]!; i++) {
      const s = (at + STORES + 12 * i) / 4;
      this.#tables[u32[s]!]!.u32[u32[s + 1]! / 4] = u32[s + 2]!;
    }
    this.#ops.records.setState(k, 2);
  }
  #set(t: Table, record: number, field: number, value: number): void {
    this.#plan.push([t, record * t.size + field, value]);
  }
  #setDouble(t: Table, record: number, field: number, value: number): void {
    const words = new Uint32Array(new Float64Array([value]).buffer);
    this.#set(t, record, field, words[0]!);
    this.#set(t, record, field + 4, words[1]!);
  }
  /** mtime (1) or ctime (2) of an inode = now. */
  #touch(ino: number, ...which: number[]): void {
    const now = Date.now();
    for (const w of which) {
      this.#setDouble(this.#inodes, ino - 1, TIMES + 8 * w, Math.floor(now / 1000));
      this.#set(this.#inodes, ino - 1, NSEC + 4 * w, (now % 1000) * 1e6);
    }
  }

  #newInode(mode: number, uid: number, gid: number, rdev: number, nlink: number): number {
    const i = this.#inodes.records.alloc();
    if (i === undefined) throw ENOSPC;
    const { u32, f64 } = this.#inodes;
    const at = i * INODE;
    u32[(at + MODE) / 4] = mode;
    u32[(at + UID) / 4] = uid;
    u32[(at + GID) / 4] = gid;
    u32[(at + NLINK) / 4] = nlink;
    u32[(at + RDEV) / 4] = rdev;
    u32[(at + NLOOKUP) / 4] = 0;
    f64[(at + SIZE) / 8] = 0;
    const now = Date.now();
    for (let w = 0; w < 3; w++) {
      f64[(at + TIMES) / 8 + w] = Math.floor(now / 1000);
      u32[(at + NSEC) / 4 + w] = (now % 1000) * 1e6;
    }
    return i + 1;
  }
  #newName(parent: number, name: Name, ino: number): number {
    const i = this.#names.records.alloc();
    if (i === undefined) throw ENOSPC;
    const at = i * NAME;
    this.#names.u32[(at + PARENT) / 4] = parent;
    this.#names.u32[(at + CHILD) / 4] = ino;
    this.#names.u32[(at + LENGTH) / 4] = name.length;
    this.#names.records.bytes.set(name, at + BYTES);
    return i;
  }
  #index(i: number): void {
    const at = i * NAME;
    const start = at + BYTES;
    const name = this.#names.records.bytes.subarray(start, start + this.#names.u32[(at + LENGTH) / 4]!);
    this.#list(this.#names.u32[(at + PARENT) / 4]!).set(key(name), i);
  }
  #list(parent: number): Map<string, number> {
    let list = this.#children.get(parent);
    if (!list) {
      list = new Map();
      this.#children.set(parent, list);
    }
    return list;
  }
  #pagesOf(ino: number): Map<number, number> {
    let pages = this.#data.get(ino);
    if (!pages) {
      pages = new Map();
      this.#data.set(ino, pages);
    }
    return pages;
  }

  // --- Reading ----------------------------------------------------------------------------------------------------

  #get(ino: number, field: number): number {
    return this.#inodes.u32[((ino - 1) * INODE + field) / 4]!;
  }
  #size(ino: number): number {
    return this.#inodes.f64[((ino - 1) * INODE + SIZE) / 8]!;
  }
  #isDir(ino: number): boolean {
    return (this.#get(ino, MODE) & S_IFMT) === S_IFDIR;
  }
  #find(parent: number, name: Name): number | undefined {
    return this.#children.get(parent)?.get(key(name));
  }
  #child(record: number): number {
    return this.#names.u32[(record * NAME + CHILD) / 4]!;
  }

  #attr(ino: number): FuseAttr {
    const { u32, f64, records } = this.#inodes;
    if (!(ino >= 1 && ino <= records.capacity) || records.state(ino - 1) === 0) throw ENOENT;
    const w = ((ino - 1) * INODE) / 4;
    const d = ((ino - 1) * INODE) / 8;
    const size = f64[d + SIZE / 8]!;
    return {
      ino,
      size,
      blocks: Math.ceil(size / 512),
      blksize: PAGE,
      mode: u32[w + MODE / 4]!,
      uid: u32[w + UID / 4]!,
      gid: u32[w + GID / 4]!,
      nlink: u32[w + NLINK / 4]!,
      rdev: u32[w + RDEV / 4]!,
      atime: f64[d + TIMES / 8]!,
      mtime: f64[d + TIMES / 8 + 1]!,
      ctime: f64[d + TIMES / 8 + 2]!,
      atimensec: u32[w + NSEC / 4]!,
      mtimensec: u32[w + NSEC / 4 + 1]!,
      ctimensec: u32[w + NSEC / 4 + 2]!,
    };
  }
  #entry(ino: number): EntryOut {
    const attr = this.#attr(ino);
    this.#inodes.u32[((ino - 1) * INODE + NLOOKUP) / 4]!++;
    return { nodeid: ino, generation: 0, entryValid: this.#attrValid, attrValid: this.#attrValid, attr };
  }

  lookup(_ctx: Context, parent: number, name: Name): EntryOut {
    const record = this.#find(parent, name);
    if (record === undefined) throw ENOENT;
    return this.#entry(this.#child(record));
  }
  getattr(_ctx: Context, ino: number): AttrOut {
    return { attr: this.#attr(ino), attrValid: this.#attrValid };
  }
  forget(ino: number, nlookup: number): void {
    const at = ((ino - 1) * INODE + NLOOKUP) / 4;
    this.#inodes.u32[at] = Math.max(0, this.#inodes.u32[at]! - nlookup);
    this.#reap(ino);
  }
  /** Deletes what has no name and no user. */
  #reap(ino: number): void {
    if (this.#get(ino, NLINK) > 0 || this.#get(ino, NLOOKUP) > 0 || this.#inodes.records.state(ino - 1) === 0) return;
    this.#inodes.records.free(ino - 1);
    this.#dropPages(ino, 0);
    this.#data.delete(ino);
  }
  #dropPages(ino: number, from: number): void {
    for (const [index, record] of this.#pagesOf(ino)) {
      if (index < from) continue;
      const place = this.#pages.u32[(record * PAGE_RECORD + PLACE) / 4]! * PAGE;
      this.#pages.records.free(record);
      this.#pagesOf(ino).delete(index);
      this.#capsule.arena.free(place, PAGE);
    }
  }
  #zeroTail(ino: number): void {
    const size = this.#size(ino);
    const record = this.#data.get(ino)?.get(Math.floor(size / PAGE));
    if (record === undefined) return;
    const place = this.#pages.u32[(record * PAGE_RECORD + PLACE) / 4]! * PAGE;
    this.#capsule.arena.bytes.fill(0, place + (size % PAGE), place + PAGE);
  }

  setattr(ctx: Context, ino: number, set: SetattrIn): AttrOut {
    const before = this.#attr(ino);
    this.#once(ctx, () => {
      const r = ino - 1;
      if (set.mode !== undefined) this.#set(this.#inodes, r, MODE, (before.mode & S_IFMT) | (set.mode & 0o7777));
      if (set.uid !== undefined) this.#set(this.#inodes, r, UID, set.uid);
      if (set.gid !== undefined) this.#set(this.#inodes, r, GID, set.gid);
      if (set.size !== undefined) this.#setDouble(this.#inodes, r, SIZE, set.size);
      if (set.size !== undefined) this.#touch(ino, 1);
      this.#touch(ino, 2);
      const time = (w: number, t: TimeSpec | 'now' | undefined) => {
        if (t === 'now') this.#touch(ino, w);
        else if (t) {
          this.#setDouble(this.#inodes, r, TIMES + 8 * w, t.sec);
          this.#set(this.#inodes, r, NSEC + 4 * w, t.nsec);
        }
      };
      time(0, set.atime);
      time(1, set.mtime);
      return ino;
    });
    if (set.size !== undefined) {
      this.#dropPages(ino, Math.ceil(set.size / PAGE));
      this.#zeroTail(ino);
    }
    return this.getattr(ctx, ino);
  }

  // --- Names ------------------------------------------------------------------------------------------------------

  #make(ctx: Context, parent: number, name: Name, mode: number, rdev: number, content?: Uint8Array): EntryOut {
    const ino = this.#once(ctx, () => {
      if (this.#find(parent, name) !== undefined) throw EEXIST;
      const dir = (mode & S_IFMT) === S_IFDIR;
      const fresh = this.#newInode(mode, ctx.uid, ctx.gid, rdev, dir ? 2 : 1);
      if (content) this.#write(fresh, 0, content);
      const record = this.#newName(parent, name, fresh);
      this.#set(this.#inodes, fresh - 1, 0, 1);
      this.#set(this.#names, record, 0, 1);
      if (dir) this.#set(this.#inodes, parent - 1, NLINK, this.#get(parent, NLINK) + 1);
      this.#touch(parent, 1, 2);
      this.#list(parent).set(key(name), record);
      return fresh;
    });
    return this.#entry(ino);
  }
  mknod(ctx: Context, parent: number, name: Name, mode: number, rdev: number, umask: number): EntryOut {
    return this.#make(ctx, parent, name, mode & ~umask, rdev);
  }
  mkdir(ctx: Context, parent: number, name: Name, mode: number, umask: number): EntryOut {
    return this.#make(ctx, parent, name, S_IFDIR | (mode & ~umask), 0);
  }
  symlink(ctx: Context, parent: number, name: Name, target: Uint8Array): EntryOut {
    return this.#make(ctx, parent, name, S_IFLNK | 0o777, 0, target);
  }
  create(ctx: Context, parent: number, name: Name, mode: number, umask: number) {
    return { ...this.#make(ctx, parent, name, mode & ~umask, 0), fh: 0, flags: 0 };
  }
  readlink(_ctx: Context, ino: number): Uint8Array {
    return this.#read(ino, 0, this.#size(ino));
  }

  /** Takes a name away; the inode goes with its last one, unless somebody uses it. */
  #remove(record: number, parent: number, dir: boolean): number {
    const ino = this.#child(record);
    this.#set(this.#names, record, 0, 0);
    this.#set(this.#inodes, ino - 1, NLINK, dir ? 0 : this.#get(ino, NLINK) - 1);
    if (dir) this.#set(this.#inodes, parent - 1, NLINK, this.#get(parent, NLINK) - 1);
    this.#touch(parent, 1, 2);
    this.#touch(ino, 2);
    return ino;
  }
  unlink(ctx: Context, parent: number, name: Name): void {
    this.#unlink(ctx, parent, name, false);
  }
  rmdir(ctx: Context, parent: number, name: Name): void {
    this.#unlink(ctx, parent, name, true);
  }
  #unlink(ctx: Context, parent: number, name: Name, dir: boolean): void {
    let gone: number | undefined;
    const ino = this.#once(ctx, () => {
      const record = this.#find(parent, name);
      if (record === undefined) throw ENOENT;
      const child = this.#child(record);
      if (this.#isDir(child) !== dir) throw dir ? ENOTDIR : EISDIR;
      if (dir && (this.#children.get(child)?.size ?? 0) > 0) throw ENOTEMPTY;
      gone = record;
      return this.#remove(record, parent, dir);
    });
    if (gone !== undefined) {
      this.#list(parent).delete(key(name));
      this.#names.records.free(gone);
    }
    this.#reap(ino);
  }
  link(ctx: Context, ino: number, parent: number, name: Name): EntryOut {
    this.#once(ctx, () => {
      if (this.#find(parent, name) !== undefined) throw EEXIST;
      const record = this.#newName(parent, name, ino);
      this.#set(this.#names, record, 0, 1);
      this.#set(this.#inodes, ino - 1, NLINK, this.#get(ino, NLINK) + 1);
      this.#touch(parent, 1, 2);
      this.#touch(ino, 2);
      this.#list(parent).set(key(name), record);
      return ino;
    });
    return this.#entry(ino);
  }
  rename(ctx: Context, parent: number, name: Name, newParent: number, newName: Name, flags: number): void {
    const gone: number[] = [];
    let replaced: number | undefined;
    this.#once(ctx, () => {
      if (flags & ~1) throw EINVAL;
      const from = this.#find(parent, name);
      if (from === undefined) throw ENOENT;
      const ino = this.#child(from);
      const to = this.#find(newParent, newName);
      const dir = this.#isDir(ino);
      if (to !== undefined) {
        if (flags & 1) throw EEXIST;
        const target = this.#child(to);
        if (target === ino) return ino;
        if (this.#isDir(target) !== dir) throw dir ? ENOTDIR : EISDIR;
        if (dir && (this.#children.get(target)?.size ?? 0) > 0) throw ENOTEMPTY;
        replaced = target;
        gone.push(to);
        this.#set(this.#names, to, 0, 0);
        this.#set(this.#inodes, target - 1, NLINK, dir ? 0 : this.#get(target, NLINK) - 1);
      }
      const record = this.#newName(newParent, newName, ino);
      gone.push(from);
      this.#set(this.#names, record, 0, 1);
      this.#set(this.#names, from, 0, 0);
      if (dir) {
        const less = to === undefined ? 0 : 1;
        if (parent === newParent) this.#set(this.#inodes, parent - 1, NLINK, this.#get(parent, NLINK) - less);
        else {
          this.#set(this.#inodes, parent - 1, NLINK, this.#get(parent, NLINK) - 1);
          this.#set(this.#inodes, newParent - 1, NLINK, this.#get(newParent, NLINK) + 1 - less);
        }
      }
      this.#touch(parent, 1, 2);
      if (newParent !== parent) this.#touch(newParent, 1, 2);
      this.#touch(ino, 2);
      this.#list(parent).delete(key(name));
      this.#list(newParent).set(key(newName), record);
      return ino;
    });
    for (const record of gone) this.#names.records.free(record);
    if (replaced !== undefined) this.#reap(replaced);
  }

  readdir(_ctx: Context, ino: number, _fh: number, offset: number, sink: DirentSink): void {
    if (offset < 1 && !sink.add({ ino, name: Buffer.from('.'), type: 4, offset: 1 })) return;
    if (offset < 2 && !sink.add({ ino, name: Buffer.from('..'), type: 4, offset: 2 })) return;
    const records = [...this.#list(ino).values()].sort((a, b) => a - b);
    for (const record of records) {
      if (record + 3 <= offset) continue;
      const start = record * NAME + BYTES;
      const child = this.#child(record);
      const name = this.#names.records.bytes.subarray(start, start + this.#names.u32[(record * NAME + LENGTH) / 4]!);
      const entry = sink.plus ? this.#entry(child) : undefined;
      if (
        !sink.add({
          ino: child,
          name,
          type: this.#get(child, MODE) >>> 12,
          offset: record + 3,
          ...(entry && { entry }),
        })
      ) {
        if (entry) this.forget(child, 1);
        return;
      }
    }
  }
  statfs() {
    const { size, used } = this.#capsule.arena;
    const [blocks, free] = [size / PAGE, (size - used) / PAGE];
    return {
      blocks,
      bfree: free,
      bavail: free,
      files: 1 << 20,
      ffree: 1 << 19,
      bsize: PAGE,
      namelen: 255,
      frsize: PAGE,
    };
  }

  // --- Data -------------------------------------------------------------------------------------------------------

  open(ctx: Context, ino: number, flags: number) {
    if (flags & 0o1000) this.setattr(ctx, ino, { size: 0, killSuidgid: false });
    return { fh: 0, flags: 0 };
  }
  read(_ctx: Context, ino: number, { offset, size }: { offset: number; size: number }): Uint8Array {
    return this.#read(ino, offset, Math.max(0, Math.min(size, this.#size(ino) - offset)));
  }
  #read(ino: number, offset: number, size: number): Uint8Array {
    const out = new Uint8Array(size);
    const pages = this.#data.get(ino);
    for (let at = 0; pages && at < size; ) {
      const within = (offset + at) % PAGE;
      const n = Math.min(PAGE - within, size - at);
      const record = pages.get(Math.floor((offset + at) / PAGE));
      if (record !== undefined) {
        const place = this.#pages.u32[(record * PAGE_RECORD + PLACE) / 4]! * PAGE + within;
        out.set(this.#capsule.arena.bytes.subarray(place, place + n), at);
      }
      at += n;
    }
    return out;
  }
  write(_ctx: Context, ino: number, { offset, data }: WriteIn): number {
    const n = data.bytes.length;
    if (offset > this.#size(ino)) this.#zeroTail(ino);
    const whole = offset % PAGE === 0 && n === PAGE ? data.take() : undefined;
    if (whole === undefined) this.#write(ino, offset, data.bytes);
    else this.#place(ino, offset / PAGE, whole);
    const f64 = this.#inodes.f64;
    const d = ((ino - 1) * INODE) / 8;
    if (offset + n > f64[d + SIZE / 8]!) f64[d + SIZE / 8] = offset + n;
    f64[d + TIMES / 8 + 1] = f64[d + TIMES / 8 + 2] = Math.floor(Date.now() / 1000);
    return n;
  }
  /** Page `index` of the file is page `place` of the arena from now on. */
  #place(ino: number, index: number, place: number): void {
    const pages = this.#pagesOf(ino);
    let record = pages.get(index);
    if (record !== undefined) {
      const at = (record * PAGE_RECORD + PLACE) / 4;
      const old = this.#pages.u32[at]! * PAGE;
      this.#pages.u32[at] = place / PAGE;
      if (old !== place) this.#capsule.arena.free(old, PAGE);
      return;
    }
    record = this.#pages.records.alloc();
    if (record === undefined) throw ENOSPC;
    this.#pages.u32[(record * PAGE_RECORD + OWNER) / 4] = ino;
    this.#pages.u32[(record * PAGE_RECORD + INDEX) / 4] = index;
    this.#pages.u32[(record * PAGE_RECORD + PLACE) / 4] = place / PAGE;
    this.#pages.records.setState(record, 1);
    pages.set(index, record);
  }
  #write(ino: number, offset: number, bytes: Uint8Array): void {
    const { arena } = this.#capsule;
    if (offset > this.#size(ino)) this.#zeroTail(ino);
    for (let at = 0; at < bytes.length; ) {
      const index = Math.floor((offset + at) / PAGE);
      const within = (offset + at) % PAGE;
      const n = Math.min(PAGE - within, bytes.length - at);
      const record = this.#pagesOf(ino).get(index);
      let place: number | undefined;
      if (record !== undefined) place = this.#pages.u32[(record * PAGE_RECORD + PLACE) / 4]! * PAGE;
      else {
        place = arena.alloc(PAGE);
        if (place === undefined) throw ENOSPC;
        arena.bytes.fill(0, place, place + PAGE);
      }
      arena.bytes.set(bytes.subarray(at, at + n), place + within);
      if (record === undefined) this.#place(ino, index, place);
      at += n;
    }
    const d = ((ino - 1) * INODE + SIZE) / 8;
    if (offset + bytes.length > this.#inodes.f64[d]!) this.#inodes.f64[d] = offset + bytes.length;
  }

  // --- Locks of whole files ---------------------------------------------------------------------------------------

  *#locksOf(ino: number): Iterable<{ record: number; owner: bigint; type: number }> {
    for (const record of this.#locks.records.live()) {
      const at = (record * LOCK) / 4;
      if (this.#locks.u32[at + 1] !== ino) continue;
      yield {
        record,
        owner: this.#locks.records.view.getBigUint64(record * LOCK + 8, true),
        type: this.#locks.u32[at + 4]!,
      };
    }
  }
  #conflict(ino: number, lock: LockIn) {
    for (const held of this.#locksOf(ino))
      if (held.owner !== lock.owner && (held.type === 1 || lock.type === 1)) return held;
    return undefined;
  }
  getlk(_ctx: Context, ino: number, lock: LockIn) {
    const held = this.#conflict(ino, lock);
    return { start: 0n, end: 0x7fffffffffffffffn, type: held?.type ?? 2, pid: 0 };
  }
  async setlk(ctx: Context, ino: number, lock: LockIn, wait: boolean): Promise<void> {
    if (lock.type !== 2) {
      while (this.#conflict(ino, lock)) {
        if (!wait) throw EAGAIN;
        if (ctx.interrupt.fired) throw EINTR;
        ctx.park();
        const { promise, resolve: wake } = Promise.withResolvers<void>();
        this.#waiting.add(wake);
        await Promise.race([ctx.interrupt.promise, promise]);
        this.#waiting.delete(wake);
      }
      await ctx.unpark();
      if (this.#conflict(ino, lock)) return this.setlk(ctx, ino, lock, wait);
    }
    const mine = [...this.#locksOf(ino)].find(held => held.owner === lock.owner)?.record;
    if (lock.type === 2) {
      if (mine !== undefined) this.#locks.records.free(mine);
      for (const wake of this.#waiting) wake();
      return;
    }
    const record = mine ?? this.#locks.records.alloc();
    if (record === undefined) throw ENOSPC;
    this.#locks.u32[(record * LOCK) / 4 + 1] = ino;
    this.#locks.records.view.setBigUint64(record * LOCK + 8, lock.owner, true);
    this.#locks.u32[(record * LOCK) / 4 + 4] = lock.type;
    this.#locks.records.setState(record, 1);
  }
  release(_ctx: Context, ino: number, _fh: number, _flags: number, owner: bigint): void {
    this.#unlock(ino, owner);
  }
  flush(_ctx: Context, ino: number, _fh: number, owner: bigint): void {
    this.#unlock(ino, owner);
  }
  #unlock(ino: number, owner: bigint): void {
    for (const held of [...this.#locksOf(ino)]) if (held.owner === owner) this.#locks.records.free(held.record);
    for (const wake of this.#waiting) wake();
  }
}

if (import.meta.main) {
  const adopt = process.argv[2] === '--adopt';
  const fds = adopt ? { capsule: 4, arena: 5 } : createCapsule({ arenaSize: 256 << 20 });
  const { fd } = adopt
    ? { fd: 3 }
    : await mountFuse(process.argv[2]!, {
        source: 'memory',
        subtype: 'memory',
        defaultPermissions: true,
        allowOther: process.getuid!() === 0,
      });
  lockCapsule(fds.capsule, 1000);
  const capsule = openCapsule(fds);
  const fileSystem = new MemoryFs(capsule, Number(process.env.ATTR_VALID ?? 1));
  const session = serve({
    fd,
    capsule,
    fileSystem,
    init: { flags: DEFAULT_FLAGS | INIT.ATOMIC_O_TRUNC | INIT.DONT_MASK },
  });
  await session.start();
  if (adopt) console.log(`serving ${JSON.stringify(session.stats.adopted)}`);
  await session.done;
}
