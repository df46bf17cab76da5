/**
 * A file system whose files live in the capsule and survive kill -9 of everything but their memory. One flat directory, files of up to 64 KiB.
 *
 *     node notes.ts mount DIR       mounts in the background
 *     node notes.ts upgrade DIR     replaces the process that serves, on the live mount
 *     node notes.ts state DIR       who serves it
 *     node notes.ts umount DIR
 *
 * How it is exactly-once: everything it knows is in two sections of records (notes, journal) and in the arena. Whatever changes more than one word is *decided* first:
 * the journal record of the request's slot says what is to be done, stored with one last word; then it is done, in steps that can be repeated; then it is marked done
 * with its result. A new process finishes what was decided, and a request that comes again (same op) finds its result.
 */
import { existsSync, open } from 'node:fs';
import {
  type Capsule,
  EEXIST,
  EFBIG,
  EINVAL,
  ENAMETOOLONG,
  ENOENT,
  ENOSPC,
  type EntryOut,
  endWhenHung,
  errnoOf,
  type FileSystem,
  type FuseAttr,
  type Name,
  type Op,
  type SetattrIn,
  serve,
} from '../src/index.ts';
import { endMount, mountState, replaceMount, runService, startMount } from '../src/service.ts';

const FILE_MAX = 65536;
const NAME_MAX = 64;
const FILES = 4096;
// A note: state @0 (1 = has a name, 2 = removed but in use), size @4, generation @8, lookups @12, arena offset / 4096 @16, mode @20, mtime f64 @24, length of the name @32, name @40.
const NOTE = 104;
const NAMED = 1;
const REMOVED = 2;
// A journal record, one per slot of the connection: state @0 (1 decided, 2 done), what @4, note @8, other note + 1 @12, errno @16, seq f64 @24, name length @32, name @40.
const JOURNAL = 104;
const DECIDED = 1;
const DONE = 2;
const ADD = 1;
const REMOVE = 2;
const RENAME = 3;

const VERSION = process.env.STEADFS_NOTES_VERSION ?? '1.0.0';
/** A version that knows nothing of the journal must not adopt: it would carry requests out twice. */
const OLDER = process.env.STEADFS_NOTES_FAULT === 'older';
const SECTIONS = [
  { name: 'notes', version: 1 },
  { name: 'generation', version: 1 },
  ...(OLDER ? [] : [{ name: 'journal', version: 1 }]),
];

export function notes(capsule: Capsule): FileSystem & { readonly count: number } {
  const { arena } = capsule;
  const table = capsule.records({ name: 'notes', version: 1, recordSize: NOTE, capacity: FILES });
  const journal = capsule.records({ name: 'journal', version: 1, recordSize: JOURNAL, capacity: 4096 });
  const { view, bytes } = table;
  const generations = capsule.blob('generation', 8);
  /** Name → note. Only a cache of the section. */
  const byName = new Map<string, number>();
  const key = (name: Uint8Array) => Buffer.from(name).toString('latin1');
  const dataOf = (i: number) => view.getUint32(i * NOTE + 16, true) * 4096;
  const nameOf = (i: number) => bytes.subarray(i * NOTE + 40, i * NOTE + 40 + view.getUint8(i * NOTE + 32));

  function setName(i: number, name: Uint8Array): void {
    view.setUint8(i * NOTE + 32, name.length);
    bytes.set(name, i * NOTE + 40);
  }

  // --- The journal
  function decide(op: Op, what: number, note: number, other: number, name: Uint8Array): void {
    const at = op.slot * JOURNAL;
    journal.setState(op.slot, 0);
    journal.view.setUint32(at + 4, what, true);
    journal.view.setUint32(at + 8, note, true);
    journal.view.setUint32(at + 12, other + 1, true);
    journal.view.setUint32(at + 16, 0, true);
    journal.view.setFloat64(at + 24, op.seq, true);
    journal.view.setUint8(at + 32, name.length);
    journal.bytes.set(name, at + 40);
    journal.setState(op.slot, DECIDED);
    carryOut(op.slot);
  }

  /** Repeatable; ends with the mark that it is done. */
  function carryOut(slot: number): void {
    const at = slot * JOURNAL;
    const what = journal.view.getUint32(at + 4, true);
    const note = journal.view.getUint32(at + 8, true);
    const other = journal.view.getUint32(at + 12, true) - 1;
    const name = journal.bytes.slice(at + 40, at + 40 + journal.view.getUint8(at + 32));
    if (what === ADD) {
      table.setState(note, NAMED);
      byName.set(key(name), note);
    } else if (what === REMOVE) {
      table.setState(note, REMOVED);
      byName.delete(key(name));
    } else if (what === RENAME) {
      if (other >= 0) table.setState(other, REMOVED);
      byName.delete(key(nameOf(note)));
      setName(note, name);
      byName.set(key(name), note);
    }
    journal.setState(slot, DONE);
  }

  /** The note that a request which was carried out before worked on. */
  function doneBefore(op: Op): number | undefined {
    const at = op.slot * JOURNAL;
    if (journal.state(op.slot) !== DONE || journal.view.getFloat64(at + 24, true) !== op.seq) return undefined;
    const errno = journal.view.getUint32(at + 16, true);
    if (errno) throw errnoOf(errno);
    return journal.view.getUint32(at + 8, true);
  }

  // --- Adoption: finish what was decided, then read the table. Records of the journal are addressed by slot, so all of them are taken from the free list.
  while (journal.alloc() !== undefined);
  for (const slot of [...journal.live()]) if (journal.state(slot) === DECIDED) carryOut(slot);
  byName.clear();
  for (const i of table.live()) {
    arena.claim(dataOf(i), FILE_MAX);
    if (table.state(i) === NAMED) byName.set(key(nameOf(i)), i);
  }

  function attr(i: number): FuseAttr {
    const at = i * NOTE;
    const time = i < 0 ? 0 : view.getFloat64(at + 24, true);
    return {
      ino: i + 2,
      size: i < 0 ? 0 : view.getUint32(at + 4, true),
      blocks: i < 0 ? 0 : FILE_MAX / 512,
      mode: i < 0 ? 0o40777 : 0o100000 | view.getUint32(at + 20, true),
      nlink: i < 0 ? 2 : table.state(i) === NAMED ? 1 : 0,
      uid: 0,
      gid: 0,
      rdev: 0,
      blksize: 4096,
      atime: Math.floor(time),
      mtime: Math.floor(time),
      ctime: Math.floor(time),
      atimensec: 0,
      mtimensec: 0,
      ctimensec: 0,
    };
  }

  /** Every entry that is answered counts as a lookup; counted before the answer, so a kill can only leave too many (and the record until the unmount). */
  function entry(i: number): EntryOut {
    view.setUint32(i * NOTE + 12, view.getUint32(i * NOTE + 12, true) + 1, true);
    return {
      nodeid: i + 2,
      generation: view.getUint32(i * NOTE + 8, true),
      attr: attr(i),
      attrValid: 1,
      entryValid: 1,
    };
  }

  function find(name: Name): number {
    const i = byName.get(key(name));
    if (i === undefined) throw ENOENT;
    return i;
  }

  function note(nodeid: number): number {
    const i = nodeid - 2;
    if (i < 0 || table.state(i) === 0) throw ENOENT;
    return i;
  }

  function setSize(i: number, size: number): void {
    if (size > FILE_MAX) throw EFBIG;
    const old = view.getUint32(i * NOTE + 4, true);
    // What lies between must read as zeros before it belongs to the file.
    if (size > old) arena.bytes.fill(0, dataOf(i) + old, dataOf(i) + size);
    view.setUint32(i * NOTE + 4, size, true);
  }

  return {
    get count() {
      return byName.size;
    },
    lookup: (_ctx, _parent, name) => entry(find(name)),
    forget(nodeid, n) {
      const i = nodeid - 2;
      if (i < 0 || table.state(i) === 0) return;
      const left = view.getUint32(i * NOTE + 12, true) - n;
      view.setUint32(i * NOTE + 12, Math.max(0, left), true);
      if (left > 0 || table.state(i) !== REMOVED) return;
      const data = dataOf(i);
      table.free(i);
      arena.free(data, FILE_MAX);
    },
    getattr: (_ctx, nodeid) => ({ attr: attr(nodeid === 1 ? -1 : note(nodeid)), attrValid: 1 }),
    setattr(_ctx, nodeid, set: SetattrIn) {
      const i = note(nodeid);
      if (set.size !== undefined) setSize(i, set.size);
      if (set.mode !== undefined) view.setUint32(i * NOTE + 20, set.mode & 0o7777, true);
      const mtime = set.mtime === 'now' ? Date.now() / 1000 : set.mtime?.sec;
      if (mtime !== undefined) view.setFloat64(i * NOTE + 24, mtime, true);
      return { attr: attr(i), attrValid: 1 };
    },
    create(ctx, _parent, name, mode, _umask, flags) {
      const done = doneBefore(ctx.op);
      if (done !== undefined) return { ...entry(done), fh: done, flags: 0 };
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      const there = byName.get(key(name));
      if (there !== undefined) {
        if (flags & 0o200) throw EEXIST; // O_EXCL
        return { ...entry(there), fh: there, flags: 0 };
      }
      const i = table.alloc();
      const data = i === undefined ? undefined : arena.alloc(FILE_MAX);
      if (i === undefined || data === undefined) {
        if (i !== undefined) table.free(i);
        throw ENOSPC;
      }
      const at = i * NOTE;
      const generation = new DataView((generations.get() ?? new Uint8Array(8)).buffer).getUint32(0, true) + 1;
      generations.set(new Uint8Array(new Uint32Array([generation, 0]).buffer));
      view.setUint32(at + 4, 0, true);
      view.setUint32(at + 8, generation, true);
      view.setUint32(at + 12, 0, true);
      view.setUint32(at + 16, data / 4096, true);
      view.setUint32(at + 20, mode & 0o7777, true);
      view.setFloat64(at + 24, Date.now() / 1000, true);
      setName(i, name);
      decide(ctx.op, ADD, i, -1, name);
      return { ...entry(i), fh: i, flags: 0 };
    },
    unlink(ctx, _parent, name) {
      if (doneBefore(ctx.op) !== undefined) return;
      decide(ctx.op, REMOVE, find(name), -1, name);
    },
    rename(ctx, _parent, name, _newParent, newName, flags) {
      if (doneBefore(ctx.op) !== undefined) return;
      if (flags & ~1) throw EINVAL;
      if (newName.length > NAME_MAX) throw ENAMETOOLONG;
      const i = find(name);
      const other = byName.get(key(newName));
      if (other !== undefined && flags & 1) throw EEXIST;
      if (other === i) return;
      decide(ctx.op, RENAME, i, other ?? -1, newName);
    },
    open: (_ctx, nodeid) => ({ fh: note(nodeid), flags: 0 }),
    read(_ctx, nodeid, { offset, size }) {
      const i = note(nodeid);
      const end = Math.min(offset + size, view.getUint32(i * NOTE + 4, true));
      return arena.bytes.subarray(dataOf(i) + offset, dataOf(i) + Math.max(offset, end));
    },
    write(_ctx, nodeid, { offset, data }) {
      const i = note(nodeid);
      const end = offset + data.bytes.length;
      if (end > FILE_MAX) throw EFBIG;
      const size = view.getUint32(i * NOTE + 4, true);
      if (offset > size) setSize(i, offset);
      arena.bytes.set(data.bytes, dataOf(i) + offset);
      if (end > size) view.setUint32(i * NOTE + 4, end, true);
      view.setFloat64(i * NOTE + 24, Date.now() / 1000, true);
      return data.bytes.length;
    },
    readdir(_ctx, _nodeid, _fh, offset, sink) {
      // The cookie is the record's index: stable while the entry lives.
      for (const i of table.live())
        if (
          i >= offset &&
          table.state(i) === NAMED &&
          !sink.add({ ino: i + 2, offset: i + 1, type: 8, name: nameOf(i) })
        )
          return;
    },
    statfs: () => ({
      blocks: FILES * 16,
      bfree: (FILES - byName.size) * 16,
      bavail: (FILES - byName.size) * 16,
      files: FILES,
      ffree: FILES - byName.size,
      bsize: 4096,
      frsize: 4096,
      namelen: NAME_MAX,
    }),
  };
}

/** For the tests: `create` of the name "poison" throws (also with a thread that hangs) or aborts; of "slow" waits for the file `go`. */
function faultyCreate(fileSystem: FileSystem, how: string, go: string): void {
  const { create } = fileSystem;
  if (!create) return;
  fileSystem.create = async (ctx, parent, name, mode, umask, flags, kill) => {
    const text = Buffer.from(name).toString();
    if (text === 'poison') {
      if (how === 'abort') process.abort();
      // A FIFO that nobody writes to.
      if (how === 'hang') open(`${go}.fifo`, 'r', () => {});
      setImmediate(() => {
        throw new Error('poison');
      });
      return new Promise<never>(() => {});
    }
    if (text === 'spin') for (;;);
    while (text === 'slow' && !existsSync(go)) await new Promise(resolve => setTimeout(resolve, 5));
    return create.call(fileSystem, ctx, parent, name, mode, umask, flags, kill);
  };
}

if (import.meta.main) {
  const [command, mountPoint = ''] = process.argv.slice(2);
  const common = {
    mountPoint,
    version: VERSION,
    command: [process.execPath, import.meta.filename, 'service', mountPoint],
    arenaSize: 320 * 2 ** 20,
    options: { fault: process.env.STEADFS_NOTES_FAULT },
    ...(process.env.STEADFS_NOTES_LOG && { log: process.env.STEADFS_NOTES_LOG }),
  };
  const mount = { source: 'notes', subtype: 'notes', defaultPermissions: true };
  const show = (value: unknown) => console.log(JSON.stringify(value));
  if (command === 'mount') show(await startMount({ ...common, mount }));
  else if (command === 'foreground') await startMount({ ...common, mount, foreground: true });
  else if (command === 'unit') await startMount({ ...common, mount, systemd: true });
  else if (command === 'upgrade')
    show(await replaceMount({ ...common, timeout: Number(process.env.STEADFS_NOTES_TIMEOUT ?? 30_000) }));
  else if (command === 'state') show(await mountState(mountPoint));
  else if (command === 'umount') await endMount(mountPoint);
  else if (command === 'service') {
    let session: ReturnType<typeof serve> | undefined;
    await runService({
      version: VERSION,
      sections: SECTIONS,
      // The tests' faults; a real file system connects to what it needs here.
      async prepare({ launch, why }) {
        const { fault } = launch.options as { fault?: string };
        if (fault === 'prepare') throw new Error('the database cannot be reached: cannot connect');
        if (fault === 'crash') process.kill(process.pid, 'SIGSEGV');
        if (fault === 'hang') await new Promise(resolve => setTimeout(resolve, 60_000));
        if (fault === 'restart' && why === 'crash') throw new Error('it will not start again');
      },
      async serve({ fd, capsule, serving, why, launch, before }) {
        endWhenHung(Number(process.env.STEADFS_NOTES_HANG ?? 60));
        const { fault } = launch.options as { fault?: string };
        if (fault === 'after-commit' && why === 'upgrade') process.kill(process.pid, 'SIGKILL');
        const fileSystem = notes(capsule);
        if (fault?.startsWith('create-')) faultyCreate(fileSystem, fault.slice('create-'.length), `${launch.log}.go`);
        session = serve({ fd, capsule, fileSystem, before });
        await session.start();
        serving({ notes: fileSystem.count, ...session.stats.adopted });
        await session.done;
      },
      yielding: () => session?.stopReading(),
      resume: () => session?.resumeReading(),
    });
  } else {
    console.error('usage: notes.ts mount|foreground|upgrade|state|umount DIR');
    process.exitCode = 1;
  }
}
