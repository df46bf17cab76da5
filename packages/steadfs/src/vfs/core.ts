/** What the parts of the file system share: the volume, the tables, and the translations between kernel and volume. */
import type { AttrOut, Context, EntryOut, Notifier } from '@steadfs/fuse';
import { ENAMETOOLONG, ENOENT, EROFS, ESTALE } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { FileData } from '../data/file-data.ts';
import { type Attr, FileType } from '../format/attr.ts';
import { type Ino, inoForStat, isTrash, ROOT, SPECIAL } from '../format/ino.ts';
import type { Format } from '../format/volume.ts';
import type { Cred, Entry, MetaEngine, Name, Op, Removed } from '../meta/engine.ts';
import type { Log } from '../observe/log.ts';
import type { AccessLog } from './accesslog.ts';
import { fuseAttr, versionOf, withPending } from './attrs.ts';
import type { ControlFiles } from './control.ts';
import { type Counters, step } from './counters.ts';
import { credOf } from './cred.ts';
import { type Handle, HandleKind, type Handles } from './handles.ts';
import { type Inodes, learn, type OpenInode } from './inodes.ts';
import type { Internals } from './internal.ts';
import type { Items } from './items.ts';
import type { Locks } from './locks.ts';
import { type MaybePromise, recover } from './maybe.ts';
import type { MountOptions } from './mount-options.ts';
import { Told } from './told.ts';
import { ownPeriod } from './upkeep.ts';

export const NAME_MAX = 255;
const O_ACCMODE = 3;
/** Number of the mutation that a removal or a failed open may need (see step()). */
const LAST_CLOSE = 3;

export interface CoreParts {
  engine: MetaEngine;
  data: FileData;
  format: Format;
  options: MountOptions;
  /** Inode that the mount's root maps to. */
  root: Ino;
  handles: Handles;
  inodes: Inodes;
  items: Items;
  locks: Locks;
  counters: Counters;
  internals: Internals;
  accessLog: AccessLog;
  log: Log;
  /** Data of a removed file can be deleted now. */
  deleted(ino: Ino, length: number): void;
  /** Contents of `.stats` and `.config`. */
  statsText(): Promise<string>;
  configText(): string;
}

export class Core {
  readonly engine: MetaEngine;
  readonly data: FileData;
  format: Format;
  options: MountOptions;
  readonly root: Ino;
  readonly handles: Handles;
  readonly inodes: Inodes;
  readonly items: Items;
  readonly locks: Locks;
  readonly counters: Counters;
  readonly internals: Internals;
  readonly accessLog: AccessLog;
  readonly log: Log;
  readonly deleted: (ino: Ino, length: number) => void;
  readonly texts: Pick<CoreParts, 'statsText' | 'configText'>;
  /** Set right after the construction: they need each other. */
  control!: ControlFiles;
  notify: Notifier | undefined;
  readonly told = new Told();
  /** Counts what may change attributes of any inode: attributes read before are not shown any more. */
  changes = 0;
  /** Counts what may have taken a name away: what a listing was read before that may not be shown as an entry any more. */
  removals = 0;
  #flushTimer: NodeJS.Timeout | undefined;

  constructor(parts: CoreParts) {
    this.engine = parts.engine;
    this.data = parts.data;
    this.format = parts.format;
    this.options = parts.options;
    this.root = parts.root;
    this.handles = parts.handles;
    this.inodes = parts.inodes;
    this.items = parts.items;
    this.locks = parts.locks;
    this.counters = parts.counters;
    this.internals = parts.internals;
    this.accessLog = parts.accessLog;
    this.log = parts.log;
    this.deleted = parts.deleted;
    this.texts = parts;
  }

  // ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────
  ino(nodeid: number): Ino {
    return nodeid === ROOT ? this.root : nodeid;
  }

  node(ino: Ino): number {
    return ino === this.root ? ROOT : ino;
  }

  statIno(ino: Ino): number | bigint {
    return ino === this.root ? ROOT : inoForStat(ino);
  }

  cred(ctx: Context): Cred {
    return credOf(this.options, ctx.uid, ctx.gid, ctx.pid);
  }

  umask(given: number): number {
    return this.options.umask ?? given;
  }

  // ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────
  /** Throws EROFS on a read-only mount. */
  mayWrite(): void {
    if (this.options.readOnly) throw EROFS;
  }

  checkName(name: Name): void {
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
  }

  /** One of our own files, which the volume knows nothing of. */
  isInternal(ino: Ino): boolean {
    return ino >= SPECIAL && !isTrash(ino);
  }

  // ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────────
  attrOut(ino: Ino, attr: Attr): AttrOut {
    if (attr.type === FileType.file) this.told.set(ino, attr);
    const pending = attr.type === FileType.file ? this.data.pending(ino) : undefined;
    return { attr: fuseAttr(this.statIno(ino), attr, pending), attrValid: this.options.attrCache };
  }

  entryOut(ino: Ino, attr: Attr): EntryOut {
    const o = this.options;
    const pending = attr.type === FileType.file ? this.data.pending(ino) : undefined;
    if (attr.type === FileType.file) this.told.set(ino, attr);
    return {
      nodeid: this.node(ino),
      generation: 1,
      // Where we check permissions, a name that one user may look up must not be there for all.
      entryValid: !o.defaultPermissions ? 0 : attr.type === FileType.directory ? o.dirEntryCache : o.entryCache,
      attrValid: o.attrCache,
      attr: fuseAttr(this.statIno(ino), attr, pending),
    };
  }

  /** An entry with attributes of now, which are taken in on the way. */
  freshEntry = (e: Entry): EntryOut => {
    this.fresh(e.ino, e.attr);
    return this.entryOut(e.ino, e.attr);
  };

  internalEntry(ino: Ino): EntryOut {
    const out = this.entryOut(ino, this.internalAttr(ino));
    out.attrValid = 3600;
    return out;
  }

  internalAttr(ino: Ino): Attr {
    const attr = this.internals.attr(ino);
    if (attr === undefined) throw ENOENT;
    return attr;
  }

  // ── what is known of inodes ───────────────────────────────────────────────────────────────────────────────────────
  /** Attributes of now, from the engine. Caches of an open file are dropped when another client changed it. */
  fresh(ino: Ino, attr: Attr): void {
    const inode = this.inodes.get(ino);
    if (inode !== undefined && attr.type === FileType.file) this.freshInode(inode, attr, inode.changes);
  }

  freshInode(inode: OpenInode, attr: Attr, before: number): void {
    if (learn(inode, attr, this.data.pending(inode.ino), before) !== 'foreign') return;
    this.data.invalidate(inode.ino);
    inode.seen = versionOf(attr);
    // After a restart nobody knows whether another client wrote meanwhile.
    inode.dropping++;
    this.invalidatePages(inode.ino).finally(() => inode.dropping--);
  }

  /** Settles when the kernel has dropped them; never rejects. */
  async invalidatePages(ino: Ino): Promise<void> {
    try {
      await this.notify?.invalInode(this.node(ino), 0, -1);
    } catch (e) {
      if ((e as { errno?: number }).errno !== ENOENT.errno)
        this.log.debug({ err: e as Error }, 'cannot drop cached pages');
    }
  }

  /** The kernel asks for the attributes of a file anew. */
  async invalidateAttr(ino: Ino): Promise<void> {
    try {
      await this.notify?.invalInode(this.node(ino), -1, 0);
    } catch (e) {
      if ((e as { errno?: number }).errno !== ENOENT.errno)
        this.log.debug({ err: e as Error }, 'cannot drop cached attributes');
    }
  }

  /** Attributes of an open inode; asked for when they are not known (after a restart). */
  attrOf(inode: OpenInode): MaybePromise<Attr> {
    if (inode.attr !== undefined) return inode.attr;
    const before = inode.changes;
    const got = this.engine.getattr(inode.ino);
    if (got instanceof Promise) {
      return got.then(attr => {
        this.freshInode(inode, attr, before);
        return inode.attr!;
      });
    }
    this.freshInode(inode, got, before);
    return inode.attr!;
  }

  /** After a mutation that changed attributes, not data. */
  changed(ino: Ino, attr: Attr): void {
    this.touched();
    this.inodes.ownChange(ino, attr);
    const inode = this.inodes.get(ino);
    if (inode?.attr === undefined) return;
    inode.attr = { ...attr, length: Math.max(attr.length, this.data.pending(ino)?.length ?? 0) };
  }

  /**
   * A handle for a file that the caller holds (Inodes.hold); the handle holds it from now on. A repeated request gets the handle that it made
   * before. Throws ENFILE, the caller still holding the inode.
   */
  openHandle(ctx: Context, inode: OpenInode, flags: number): Handle {
    const before = this.handles.madeBy(ctx.op, ctx.replay);
    if (before !== undefined) {
      this.inodes.drop(inode);
      return before;
    }
    const handle = this.handles.open(HandleKind.file, inode.ino, flags, ctx.op, ctx.uid, ctx.gid);
    faultPoint('open.handle-made');
    handle.inode = inode;
    if (writes(flags)) {
      inode.writers++;
      // What was read ahead of a listing may grow old without a further request.
      this.changes++;
    }
    return handle;
  }

  /**
   * Attributes for the reply of a repeated request: what its record says may be older than what was written and committed beside it, and the kernel
   * would take the old length for the new one.
   */
  current(ctx: Context, ino: Ino, attr: Attr): MaybePromise<Attr> {
    if (!ctx.replay) return attr;
    return recover<Attr>(
      () => this.engine.getattr(ino),
      error => {
        if (error !== ENOENT) throw error;
        return attr;
      },
    );
  }

  /** Gives up a hold that became no handle. */
  letGo(inode: OpenInode, op: Op): void {
    if (!this.inodes.drop(inode) || inode.removed !== 'sustained') return;
    this.#lastClose(step(op, LAST_CLOSE), inode.ino).catch(e =>
      this.log.warn({ err: e as Error }, `removed inode ${inode.ino} is kept until the mount ends`),
    );
  }

  /** The engine kept a removed inode for a handle that is closed by now. */
  async #lastClose(op: Op, ino: Ino): Promise<void> {
    this.data.drop(ino);
    const length = await this.engine.release(op, ino);
    this.touched();
    if (length !== undefined) this.deleted(ino, length);
  }

  /** A name is gone, and maybe the inode with it. `op` is that of the removal. */
  gone(removed: Removed, op: Op): Promise<void> | undefined {
    const { ino, attr, state } = removed;
    this.removals++;
    this.changed(ino, attr);
    const inode = this.inodes.get(ino);
    if (state === 'sustained' && inode !== undefined) inode.removed = 'sustained';
    else if (state === 'trash' && inode !== undefined) inode.removed ||= true;
    // Closed between the engine's decision and now, maybe in the process before.
    const closed = state === 'sustained' && inode === undefined;
    if (state !== 'deleted' && state !== 'gone' && !closed) return undefined;
    this.inodes.keepRemoved(ino, withPending(attr, this.data.pending(ino)));
    this.inodes.forgetSeen(ino);
    if (closed) return this.#lastClose(step(op, LAST_CLOSE), ino);
    if (attr.type !== FileType.file) return undefined;
    this.data.drop(ino);
    if (state === 'deleted') this.deleted(ino, attr.length);
    return undefined;
  }

  // ── usage counters ────────────────────────────────────────────────────────────────────────────────────────────────
  /** Something was changed: what was read ahead is old, and the engine has counters to flush soon. */
  touched(): void {
    this.changes++;
    if (this.#flushTimer !== undefined) return;
    this.#flushTimer = setTimeout(() => void this.#flushCounters(), 1000);
    this.#flushTimer.unref();
  }

  async #flushCounters(): Promise<void> {
    try {
      await this.engine.flush();
    } catch (e) {
      this.log.warn({ err: e as Error }, 'cannot store usage counters');
    }
    this.#flushTimer = undefined;
    // Commits of what is still being written change them again.
    if (this.data.stats().dirty > 0) this.touched();
  }

  // ── lost sessions ─────────────────────────────────────────────────────────────────────────────────────────────────
  #tick: NodeJS.Timeout | undefined;
  /** Date.now() up to which this process was not away for long. */
  #awakeUntil = Number.POSITIVE_INFINITY;
  /** ms */
  #awakeFor = 0;
  #awaking: Promise<void> | undefined;

  /**
   * Notices that this process stood still (SIGSTOP, a suspended machine) for so long that its session may have been cleaned up: data is read and taken only when the database
   * has said that it was not. Changes of metadata check by themselves. It looks with the heartbeat, so that an idle mount is not woken for it, and at least three times in the
   * time that it tolerates.
   */
  watchForFreezes(): void {
    const look = Math.min(20_000, ownPeriod(this.options.heartbeat));
    this.#awakeFor = 3 * look;
    this.#awakeUntil = Date.now() + this.#awakeFor;
    this.#tick = setInterval(() => {
      if (Date.now() > this.#awakeUntil) void this.awake();
      else this.#awakeUntil = Date.now() + this.#awakeFor;
    }, look);
    this.#tick.unref();
  }

  get frozen(): boolean {
    return Date.now() > this.#awakeUntil;
  }

  /** Settles when the session is known to be ours; a lost one ends this process (service.ts). */
  awake(): Promise<void> {
    this.#awaking ??= (async () => {
      for (;;) {
        try {
          await this.engine.heartbeat();
          break;
        } catch (e) {
          this.log.warn({ err: e as Error }, 'this process stood still, and the session cannot be checked');
        }
        await new Promise(wake => setTimeout(wake, 1000));
      }
      this.#awakeUntil = Date.now() + this.#awakeFor;
      this.#awaking = undefined;
    })();
    return this.#awaking;
  }

  /** After a session was lost: removed files that were open are gone. Their descriptors answer ESTALE. */
  async findStale(open: ReadonlySet<Ino>): Promise<void> {
    for (const ino of open) {
      try {
        await this.engine.getattr(ino);
      } catch (error) {
        if (error !== ENOENT) throw error;
        const inode = this.inodes.get(ino);
        if (inode !== undefined) inode.stale = true;
        await this.invalidatePages(ino);
      }
    }
    for (const ino of this.locks.lostInodes()) void this.invalidatePages(ino);
  }

  /** Throws ESTALE for a file that is gone with a lost session, EIO when the descriptor's locks are. */
  checkHandle(fh: number, inode: OpenInode): void {
    if (inode.stale) throw ESTALE;
    this.locks.check(fh);
  }

  stop(): void {
    clearInterval(this.#tick);
    clearTimeout(this.#flushTimer);
    this.#flushTimer = undefined;
  }
}

export function writes(flags: number): boolean {
  return (flags & O_ACCMODE) !== 0;
}
