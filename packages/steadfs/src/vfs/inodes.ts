/**
 * What is known of open inodes, of inodes that the kernel may have pages of, and of removed ones that it still holds.
 *
 * Section `vfs.removed` version 1, 128 bytes a record: state u32 @0 (1; 2: the kernel gave references up since), length of the attributes u32 @4, inode f64 @8, attributes as format/attr.ts encodes
 * them @16. An inode that is held without a handle (a working directory, O_PATH) is deleted at once when its last name goes; its last
 * attributes answer GETATTR until the kernel forgets it.
 */
import type { Capsule, Records } from '@steadfs/fuse';
import type { PendingAttr } from '../data/file-data.ts';
import { type Attr, decodeAttr, encodeAttr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import { sameVersion, type Version, versionOf } from './attrs.ts';

export interface OpenInode {
  readonly ino: Ino;
  /** As the database had it last, length grown by our writes since; undefined after a restart, until somebody asks. */
  attr: Attr | undefined;
  /** Milliseconds of performance.now() at which attr came. */
  checked: number;
  /** Handles, and requests that are about to make one. */
  refs: number;
  /** Handles that may write. */
  writers: number;
  /**
   * Its last name may be gone, so that the engine must be told of the last close; undefined: not known (after a restart). 'sustained': it is, and
   * nobody will ever read what is still pending.
   */
  removed: boolean | 'sustained' | undefined;
  /** The database has deleted it with a session that was lost, while it was open here. */
  stale: boolean;
  /** Data may have been written since the last flush. */
  dirty: boolean;
  /** Counts local changes of data and length: what was asked before one is old. */
  changes: number;
  /** Version whose content the kernel's pages have; undefined when we do not know. */
  seen: Version | undefined;
  /** Notifications on their way that make the kernel drop its pages: until they are through, it may have older ones than `seen`. */
  dropping: number;
  /** mtime that our last write set. */
  ownMtime: number;
  ownMtimensec: number;
}

/** More than there can be handles. */
const WRITER = 2 ** 24;
const SEEN_MAX = 65_536;
const REMOVED_SIZE = 128;
const REMOVED_MAX = 1 << 17;
/** Removed inodes that were forgotten stay a while: a FORGET may be for one of several look-ups only. */
const FORGOTTEN_MAX = 1024;
/** State of a record. */
const FORGOTTEN = 2;

export class Inodes {
  readonly #open = new Map<Ino, OpenInode>();
  /** Open ones of the process before that nobody has asked for yet: handles, and those of them that may write times WRITER. */
  readonly #adopted = new Map<Ino, number>();
  /** Of inodes that are closed; oldest first. */
  readonly #seen = new Map<Ino, Version>();
  readonly #removed = new Map<Ino, number>();
  readonly #records: Records;
  readonly #forgotten: Ino[] = [];

  constructor(capsule: Capsule) {
    this.#records = capsule.records({
      name: 'vfs.removed',
      version: 1,
      recordSize: REMOVED_SIZE,
      capacity: REMOVED_MAX,
    });
    for (const index of [...this.#records.live()]) {
      const ino = this.#records.view.getFloat64(this.#records.offsetOf(index) + 8, true);
      // Two of one inode: the process died between storing the newer and freeing the older.
      if (this.#removed.has(ino)) this.#records.free(index);
      else {
        this.#removed.set(ino, index);
        if (this.#records.state(index) === FORGOTTEN) this.#forgotten.push(ino);
      }
    }
  }

  get openCount(): number {
    return this.#open.size + this.#adopted.size;
  }

  get(ino: Ino): OpenInode | undefined {
    const inode = this.#open.get(ino);
    return inode === undefined && this.#adopted.size > 0 ? this.#touch(ino) : inode;
  }

  isOpen = (ino: Ino): boolean => this.#open.has(ino) || this.#adopted.has(ino);

  /** At the start: a handle of the process before. */
  adopt(ino: Ino, mayWrite: boolean): void {
    this.#adopted.set(ino, (this.#adopted.get(ino) ?? 0) + (mayWrite ? 1 + WRITER : 1));
  }

  #touch(ino: Ino): OpenInode | undefined {
    const count = this.#adopted.get(ino);
    if (count === undefined) return undefined;
    this.#adopted.delete(ino);
    const inode = this.#make(ino);
    inode.refs = count % WRITER;
    inode.writers = Math.floor(count / WRITER);
    // Whatever was not flushed before is flushed at the next close.
    inode.dirty = true;
    return inode;
  }

  #make(ino: Ino): OpenInode {
    const inode: OpenInode = {
      ino,
      attr: undefined,
      checked: Number.NEGATIVE_INFINITY,
      refs: 0,
      writers: 0,
      removed: undefined,
      stale: false,
      dirty: false,
      changes: 0,
      seen: this.#seen.get(ino),
      ownMtime: 0,
      ownMtimensec: -1,
      dropping: 0,
    };
    this.#open.set(ino, inode);
    return inode;
  }

  /** Counts one more handle or one about to be made. */
  hold(ino: Ino): OpenInode {
    const inode = this.get(ino) ?? this.#make(ino);
    inode.refs++;
    return inode;
  }

  /** True when that was the last one: the inode is no longer open. */
  drop(inode: OpenInode): boolean {
    if (--inode.refs > 0) return false;
    this.#open.delete(inode.ino);
    if (inode.seen !== undefined && inode.dropping === 0 && inode.removed !== 'sustained')
      this.#remember(inode.ino, inode.seen);
    else this.#seen.delete(inode.ino);
    return true;
  }

  #remember(ino: Ino, version: Version): void {
    this.#seen.delete(ino);
    this.#seen.set(ino, version);
    if (this.#seen.size > SEEN_MAX) this.#seen.delete(this.#seen.keys().next().value!);
  }

  /** Nothing is known any more of what the kernel's pages hold. */
  forgetSeen(ino: Ino): void {
    this.#seen.delete(ino);
    const inode = this.get(ino);
    if (inode !== undefined) inode.seen = undefined;
  }

  /**
   * A mutation of ours that changes no data had this result: pages that were right stay right. (Not for utimes: the new mtime hides
   * what another client may have written.)
   */
  ownChange(ino: Ino, attr: Attr): void {
    const inode = this.get(ino);
    const seen = inode === undefined ? this.#seen.get(ino) : inode.seen;
    if (seen === undefined || seen.mtime !== attr.mtime || seen.mtimensec !== attr.mtimensec) return;
    if (seen.length !== attr.length) return;
    seen.ctime = attr.ctime;
    seen.ctimensec = attr.ctimensec;
  }

  /** Version of a directory whose listing the kernel may have cached. */
  seenOf(ino: Ino): Version | undefined {
    return this.#seen.get(ino);
  }

  setSeen(ino: Ino, version: Version): void {
    this.#remember(ino, version);
  }

  // ── removed inodes ────────────────────────────────────────────────────────────────────────────────────────────────

  /** Keeps the last attributes of an inode that is gone. */
  keepRemoved(ino: Ino, attr: Attr): void {
    const r = this.#records;
    const encoded = encodeAttr({ ...attr, nlink: 0 });
    const before = this.#removed.get(ino);
    let index = r.alloc();
    if (index === undefined) {
      for (const oldest of this.#removed.keys()) {
        if (oldest === ino) continue;
        this.#dropRemoved(oldest);
        break;
      }
      index = r.alloc();
      if (index === undefined) return;
    }
    const at = r.offsetOf(index);
    r.view.setUint32(at + 4, encoded.length, true);
    r.view.setFloat64(at + 8, ino, true);
    r.bytes.set(encoded, at + 16);
    r.setState(index, 1);
    this.#removed.set(ino, index);
    if (before !== undefined && before !== index) r.free(before);
  }

  #dropRemoved(ino: Ino): void {
    const index = this.#removed.get(ino);
    if (index === undefined) return;
    this.#removed.delete(ino);
    this.#records.free(index);
  }

  removed(ino: Ino): Attr | undefined {
    const index = this.#removed.get(ino);
    if (index === undefined) return undefined;
    const at = this.#records.offsetOf(index);
    const length = this.#records.view.getUint32(at + 4, true);
    return decodeAttr(this.#records.bytes.subarray(at + 16, at + 16 + length));
  }

  /** The kernel gave up (some of) its references. */
  forget(ino: Ino): void {
    const index = this.#removed.get(ino);
    if (index === undefined) return;
    this.#records.setState(index, FORGOTTEN);
    this.#forgotten.push(ino);
    if (this.#forgotten.length > FORGOTTEN_MAX) this.#dropRemoved(this.#forgotten.shift()!);
  }

  /** The inode has a name again (a removed file that was linked). */
  revive(ino: Ino): void {
    this.#dropRemoved(ino);
    const inode = this.get(ino);
    if (inode !== undefined) inode.removed = false;
  }
}

/** What fresh attributes of an open inode tell about its content: 'foreign' also when nothing is known of what was there before. */
export type News = 'same' | 'ours' | 'foreign';

/**
 * Takes fresh attributes of an open inode in. `before` is inode.changes when they were asked for: with a write since then they may be older
 * than what we know, and the length does not shrink. Tells whether the content changed, and by whom, as far as mtime, ctime and length say.
 */
export function learn(inode: OpenInode, attr: Attr, pending: PendingAttr | undefined, before: number): News {
  let length = attr.length;
  if (pending !== undefined && pending.length > length) length = pending.length;
  if (inode.changes !== before && inode.attr !== undefined && inode.attr.length > length) length = inode.attr.length;
  const old = inode.attr;
  inode.attr = length === attr.length ? attr : { ...attr, length };
  inode.checked = performance.now();
  if (attr.nlink === 0) inode.removed ||= true;
  else if (inode.removed === undefined) inode.removed = false;
  if (pending !== undefined || inode.changes !== before) return 'ours';
  if (inode.seen === undefined) return 'foreign';
  if (sameVersion(inode.seen, attr)) return 'same';
  const ownMtime = inode.ownMtimensec === attr.mtimensec && inode.ownMtime === attr.mtime;
  if (ownMtime && (old === undefined || old.length === attr.length)) {
    inode.seen = versionOf(attr);
    return 'ours';
  }
  return 'foreign';
}
