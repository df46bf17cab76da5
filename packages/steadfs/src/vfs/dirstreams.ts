/**
 * Open directories: cookies, entries of our own, and what is read ahead of the kernel.
 *
 * Cookies (the offset of the *next* entry): 1 after ".", 2 after "..", 2 + i after the i-th internal entry (at most 14), 16 + c after the entry whose engine
 * cookie is c. They mean the same in every process; what the engine needs beside them is in the capsule (items.ts, owner = fh).
 */
import type { Dirent, DirentSink, EntryOut } from '@steadfs/fuse';
import type { Attr, FileType } from '../format/attr.ts';
import { type Ino, inoForStat } from '../format/ino.ts';
import type { DirEntry, DirStream, DirStreamState, Name } from '../meta/engine.ts';
import { direntType } from './attrs.ts';
import type { Items } from './items.ts';
import { type MaybePromise, then } from './maybe.ts';

export const ENGINE_COOKIES = 16;
const FEWEST = 32;
const MOST = 1024;

/** An entry that is not in the database: ".", "..", internal files. */
export interface OwnEntry {
  name: Name;
  ino: number | bigint;
  type: FileType;
  /** READDIRPLUS; absent for "." and "..", which the kernel does not count. */
  entry?: EntryOut;
}

export interface DirCursor {
  readonly stream: DirStream;
  /** Entries read ahead, and which of them comes next. */
  entries: DirEntry[];
  next: number;
  /** Engine cookie before entries[next]. */
  at: number;
  /** They have attributes. */
  plus: boolean;
  /** Value of the mount's change count when they were read: older attributes are not shown. */
  changes: number;
  /** When the engine's stream began to remember the names that it delivers: count of removals, and ms of the monotonic clock. */
  removals: number;
  since: number;
  /** How many to read at once. */
  batch: number;
  ended: boolean;
}

/** What an engine's stream remembers, kept in the capsule. */
export function streamState(items: Items, fh: number): DirStreamState {
  return {
    load: () => items.load(fh),
    append: item => items.append(fh, item),
    clear: () => items.clear(fh),
  };
}

/** The same without a capsule, for walks of our own. */
export function memoryState(): DirStreamState {
  let list: Uint8Array[] = [];
  return {
    load: () => list,
    append: item => list.push(Uint8Array.from(item)),
    clear: () => {
      list = [];
    },
  };
}

export function newCursor(stream: DirStream): DirCursor {
  return {
    stream,
    entries: [],
    next: 0,
    at: 0,
    plus: false,
    changes: -1,
    removals: -1,
    since: 0,
    batch: FEWEST * 2,
    ended: false,
  };
}

export interface ListingContext {
  /** Counts what may change attributes of any inode. */
  changes(): number;
  /** Counts what may have taken away a name. */
  removals(): number;
  /** The reply for an entry whose attributes are known; undefined: they must not be shown (they may be older than what was written since). */
  plusEntry(ino: Ino, attr: Attr): EntryOut | undefined;
  /** The same with attributes of now; undefined when the inode is gone. */
  freshEntry(ino: Ino): MaybePromise<EntryOut | undefined>;
}

/**
 * Fills a reply from `offset` on. `own` are the entries before those of the database, "." and ".." first. Answers after the last entry that
 * fits, or at the end of the directory.
 */
export function list(
  cursor: DirCursor,
  offset: number,
  own: readonly OwnEntry[],
  sink: DirentSink,
  ctx: ListingContext,
): MaybePromise<void> {
  let from = offset;
  if (from < ENGINE_COOKIES) {
    for (let i = from; i < own.length; i++) {
      const o = own[i]!;
      const last = i === own.length - 1;
      const dirent: Dirent = {
        ino: o.ino,
        offset: last ? ENGINE_COOKIES : i + 1,
        type: direntType(o.type),
        name: o.name,
      };
      if (sink.plus && o.entry !== undefined) dirent.entry = o.entry;
      if (!sink.add(dirent)) return;
    }
    from = ENGINE_COOKIES;
  }
  seek(cursor, from - ENGINE_COOKIES, sink.plus, ctx);
  return fill(cursor, sink, ctx);
}

function fill(cursor: DirCursor, sink: DirentSink, ctx: ListingContext): MaybePromise<void> {
  for (;;) {
    while (cursor.next < cursor.entries.length) {
      const e = cursor.entries[cursor.next]!;
      if (!sink.plus) {
        if (!put(cursor, e, undefined, sink)) return;
        continue;
      }
      let entry: MaybePromise<EntryOut | undefined>;
      entry = e.attr === undefined ? undefined : ctx.plusEntry(e.ino, e.attr);
      if (entry === undefined) entry = ctx.freshEntry(e.ino);
      if (entry instanceof Promise) {
        return entry.then(known => {
          if (!put(cursor, e, known, sink)) return;
          return fill(cursor, sink, ctx);
        });
      }
      if (!put(cursor, e, entry, sink)) return;
    }
    if (cursor.ended) return;
    const more = readMore(cursor, sink.plus, ctx);
    if (more instanceof Promise) return more.then(() => fill(cursor, sink, ctx));
  }
}

/** False when it did not fit. */
function put(cursor: DirCursor, e: DirEntry, entry: EntryOut | undefined, sink: DirentSink): boolean {
  const dirent: Dirent = {
    ino: inoForStat(e.ino),
    offset: e.cookie + ENGINE_COOKIES,
    type: direntType(e.type),
    name: e.name,
  };
  if (entry !== undefined) dirent.entry = entry;
  if (!sink.add(dirent)) return false;
  cursor.at = e.cookie;
  cursor.next++;
  return true;
}

/** What another mount removes is noticed by age alone. */
const NAMES_GOOD_MS = 500;

function namesAreGood(cursor: DirCursor, ctx: ListingContext): boolean {
  return cursor.removals === ctx.removals() && performance.now() - cursor.since < NAMES_GOOD_MS;
}

/** Puts the cursor behind `cookie`; what was read ahead is kept when it fits and is still good. */
function seek(cursor: DirCursor, cookie: number, plus: boolean, ctx: ListingContext): void {
  const usable =
    cookie !== 0 && (!plus || (cursor.plus && cursor.changes === ctx.changes() && namesAreGood(cursor, ctx)));
  if (usable && cookie === cursor.at) return;
  if (usable) {
    const found = cursor.entries.findIndex(e => e.cookie === cookie);
    if (found >= 0) {
      cursor.next = found + 1;
      cursor.at = cookie;
      return;
    }
  }
  // Thrown away unused: read less the next time.
  if (cursor.next < cursor.entries.length) cursor.batch = Math.max(FEWEST, Math.min(cursor.batch, cursor.next * 2));
  cursor.entries = [];
  cursor.next = 0;
  cursor.at = cookie;
  cursor.ended = false;
}

function readMore(cursor: DirCursor, plus: boolean, ctx: ListingContext): MaybePromise<void> {
  const changes = ctx.changes();
  // The kernel believes an entry with attributes, so it must not be given a name that was removed since the stream read it.
  if (plus && !namesAreGood(cursor, ctx)) {
    cursor.stream.close();
    cursor.removals = ctx.removals();
    cursor.since = performance.now();
  }
  if (cursor.entries.length > 0) cursor.batch = Math.min(MOST, cursor.batch * 2);
  return then(cursor.stream.read(cursor.at, cursor.batch, plus), entries => {
    cursor.entries = entries;
    cursor.next = 0;
    cursor.plus = plus;
    cursor.changes = changes;
    cursor.ended = entries.length === 0;
  });
}
