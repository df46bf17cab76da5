/**
 * flock, fcntl and open-file-description locks. The database decides; here is who waits, who must be released when a descriptor is closed, and
 * the search for deadlocks.
 *
 * Section `vfs.lockowners` version 1, 32 bytes a record: state u32 @0 (1 fcntl or OFD, 2 flock, and 4: lost; stored last), fh f64 @8, owner u64 @16. A record says that
 * the owner may hold locks on the file of that handle; it is there before the lock is granted, and goes with the last of them.
 *
 * Lost are the locks of a session that another client cleaned up: somebody else may have had them since. The owner is told as Linux tells it on NFS: reading, writing and
 * locking by that descriptor fail with EIO until it unlocks or closes.
 *
 * Owners (spec/volume.md §8): fcntl locks have the kernel's lock owner, flock locks that number XOR fh. The kernel does not tell fcntl owners from
 * OFD owners: a FLUSH drops what its owner (a process) holds, and what is left at the RELEASE of the handle was an open file description's.
 *
 * A request may be answered in the place of its call: its caller was killed, or the time for it is up (Op.over). What such a call does in the end is known to nobody, so later
 * calls of the same owner, and the closing of the handle, wait until it has settled; a lock that it was granted is given back, unless the owner held something before.
 * What a close(2) unlocks is unlocked even when nobody waits for the answer.
 */
import { readFile } from 'node:fs/promises';
import type { Capsule, Context, LockIn, LockOut, Records } from '@steadfs/fuse';
import { EAGAIN, EDEADLK, EINTR, EIO, ENOLCK } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { LOCK_EOF, LockType } from '../format/locks.ts';
import { type MetaEngine, type Op, OpKind, type PosixLock } from '../meta/engine.ts';
import { step } from './counters.ts';

const POSIX = 1;
const FLOCK = 2;
const LOST = 4;
const SIZE = 32;
const SECTION = { name: 'vfs.lockowners', version: 1, recordSize: SIZE, capacity: 1 << 18 };
/** Step 1 of a RELEASE tells the engine of the last close (io.ts). */
const FIRST_STEP = 2;
/** Slots of Op for unlocking that no request stands for; above them are the compactor's, below those of upkeep.ts. */
const FIRST_SLOT = 1 << 18;

interface Owner {
  readonly record: number;
  readonly kind: number;
  readonly fh: number;
  readonly owner: bigint;
  readonly lost: boolean;
}

/** Marks all locks as lost. Answers how many owners there are. */
export function loseLocks(capsule: Capsule): number {
  const r = capsule.records(SECTION);
  let count = 0;
  for (const record of r.live()) {
    r.setState(record, r.state(record) | LOST);
    count++;
  }
  return count;
}

/** Somebody who waits for a lock of an inode. */
interface Waiter {
  readonly ino: Ino;
  readonly owner: bigint;
  readonly lock: PosixLock;
  readonly flock: boolean;
  readonly pid: number;
}

/** A lock call under way. */
interface Asking {
  readonly ctx: Context;
  readonly ino: Ino;
  readonly owner: bigint;
  readonly fh: number;
  /** All that the owner will hold on the inode is what this call is granted. */
  alone: boolean;
  settled: Promise<unknown>;
}

const WHOLE: PosixLock = { type: LockType.unlock, start: 0n, end: LOCK_EOF, pid: 0 };
/** How long to wait before looking again when a lock may be held by another client, ms: first and at most. */
const POLL_FIRST = 5;
const POLL_MOST = 200;

export class Locks {
  readonly #engine: MetaEngine;
  readonly #records: Records;
  readonly #inoOf: (fh: number) => Ino | undefined;
  readonly #owners = new Map<Ino, Owner[]>();
  /** Records of the process before that are not in #owners yet; undefined: nobody has looked. */
  #left: number[] | undefined;
  readonly #waiting = new Set<Waiter>();
  /** The search for a deadlock that was asked for last. */
  #searching: Promise<unknown> = Promise.resolve();
  /** What they note must not be removed beside them. */
  readonly #asking = new Set<Asking>();
  readonly #nextSeq: () => number;
  /** Slots of our own that are in use. */
  readonly #slots = new Set<number>();
  /** Handles with lost locks. */
  readonly #lost = new Set<number>();

  constructor(engine: MetaEngine, capsule: Capsule, inoOf: (fh: number) => Ino | undefined, nextSeq: () => number) {
    this.#engine = engine;
    const r = capsule.records(SECTION);
    this.#records = r;
    this.#inoOf = inoOf;
    this.#nextSeq = nextSeq;
  }

  /**
   * Takes in up to `count` of the owners that were there at the start; false when there are no more. The first use of the table does all that is left, so this is
   * called while nobody waits for it.
   */
  adopt(count = Number.POSITIVE_INFINITY): boolean {
    const r = this.#records;
    this.#left ??= [...r.live()];
    for (; count > 0 && this.#left.length > 0; count--) {
      const record = this.#left.pop()!;
      const at = r.offsetOf(record);
      const fh = r.view.getFloat64(at + 8, true);
      const ino = this.#inoOf(fh);
      if (ino === undefined) r.free(record);
      else {
        const state = r.state(record);
        const lost = (state & LOST) !== 0;
        if (lost) this.#lost.add(fh);
        this.#add(ino, { record, kind: state & ~LOST, fh, owner: r.view.getBigUint64(at + 16, true), lost });
      }
    }
    return this.#left.length > 0;
  }

  #of(ino: Ino): readonly Owner[] | undefined {
    if (this.#left === undefined || this.#left.length > 0) this.adopt();
    return this.#owners.get(ino);
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  #add(ino: Ino, owner: Owner): void {
    const list = this.#owners.get(ino);
    if (list === undefined) this.#owners.set(ino, [owner]);
    else list.push(owner);
  }

  /** Notes that the owner may hold locks. False: that is known. Throws ENOLCK when there is no room. */
  #note(ino: Ino, kind: number, fh: number, owner: bigint): boolean {
    let known = false;
    for (const o of this.#of(ino) ?? [])
      if (o.kind === kind && o.owner === owner && !o.lost) {
        if (o.fh === fh) return false;
        known = true;
      }
    const r = this.#records;
    const record = r.alloc();
    if (record === undefined) throw ENOLCK;
    const at = r.offsetOf(record);
    r.view.setFloat64(at + 8, fh, true);
    r.view.setBigUint64(at + 16, owner, true);
    r.setState(record, kind);
    this.#add(ino, { record, kind, fh, owner, lost: false });
    return !known;
  }

  #remove(ino: Ino, gone: (o: Owner) => boolean): void {
    const list = this.#of(ino);
    if (list === undefined) return;
    const lost: number[] = [];
    const left = list.filter(o => {
      if (!gone(o)) return true;
      this.#records.free(o.record);
      if (o.lost) lost.push(o.fh);
      return false;
    });
    for (const fh of lost) if (!left.some(o => o.lost && o.fh === fh)) this.#lost.delete(fh);
    if (left.length > 0) this.#owners.set(ino, left);
    else this.#owners.delete(ino);
  }

  /** Throws EIO when the handle's locks are lost. */
  check(fh: number): void {
    if (this.#lost.size > 0 && this.#lost.has(fh)) throw EIO;
  }

  /** Files with lost locks: what was written to them and is not stored yet was written under these locks. */
  lostInodes(): Set<Ino> {
    this.adopt();
    return new Set([...this.#owners].filter(([, list]) => list.some(o => o.lost)).map(([ino]) => ino));
  }

  async getlk(ino: Ino, lock: LockIn): Promise<LockOut> {
    return await this.#engine.getlk(ino, lock.owner, lockOf(lock));
  }

  /** SETLK, SETLKW, flock(2), and their unlocks. */
  async setlk(ctx: Context, ino: Ino, lock: LockIn, wait: boolean): Promise<void> {
    const owner = lock.flock ? flockOwner(lock.owner, lock.fh) : lock.owner;
    await this.#givenUp(a => a.ino === ino && a.owner === owner);
    if (lock.type === LockType.unlock) return this.#unlock(ctx, ino, owner, lock);
    this.check(lock.fh);
    const asking: Asking = { ctx, ino, owner, fh: lock.fh, alone: true, settled: Promise.resolve() };
    for (const a of this.#asking)
      if (a.ino === ino && a.owner === owner) {
        a.alone = false;
        asking.alone = false;
      }
    this.#asking.add(asking);
    const locked = this.#ask(asking, lock, wait);
    asking.settled = locked.catch(() => undefined);
    try {
      await locked;
    } finally {
      this.#asking.delete(asking);
    }
  }

  /** The lock, which is given back when nobody has waited for it to the end. */
  async #ask(asking: Asking, lock: LockIn, wait: boolean): Promise<void> {
    const { ctx, ino, owner } = asking;
    let error: unknown;
    try {
      await this.#lock(asking, lock, wait);
    } catch (e) {
      error = e;
    }
    // EINTR and EAGAIN say that it was not granted; any other error leaves it open.
    if (ctx.op.over && asking.alone && error !== EINTR && error !== EAGAIN) {
      await this.#byItself(op =>
        lock.flock
          ? this.#engine.flock(op, ino, owner, 'U')
          : this.#engine.setlk(op, ino, owner, { ...lockOf(lock), type: LockType.unlock }),
      );
    }
    if (error !== undefined) throw error;
  }

  /** Settles when those that nobody waits for any more have come to their ends; undefined when there are none. */
  #givenUp(which: (a: Asking) => boolean): Promise<unknown> | undefined {
    if (this.#asking.size === 0) return undefined;
    const them = [...this.#asking].filter(a => a.ctx.op.over === true && which(a));
    return them.length > 0 ? Promise.all(them.map(a => a.settled)) : undefined;
  }

  /** Work that stands for no request, or for one that was answered. */
  async #byItself(work: (op: Op) => Promise<void> | void): Promise<void> {
    let slot = FIRST_SLOT;
    while (this.#slots.has(slot)) slot++;
    this.#slots.add(slot);
    try {
      await work({ kind: OpKind.job, slot, seq: this.#nextSeq() });
    } finally {
      this.#slots.delete(slot);
    }
  }

  async #unlock(ctx: Context, ino: Ino, owner: bigint, lock: LockIn): Promise<void> {
    const kind = lock.flock ? FLOCK : POSIX;
    const whole = lock.flock || (lock.start === 0n && lock.end === LOCK_EOF);
    await this.#try(ctx.op, ino, owner, lock);
    const idle = whole && !this.#asked(ino, owner);
    this.#remove(ino, o => o.kind === kind && o.owner === owner && (idle || o.lost));
  }

  #asked(ino: Ino, owner: bigint): boolean {
    for (const a of this.#asking) if (a.ino === ino && a.owner === owner) return true;
    return false;
  }

  async #lock(asking: Asking, lock: LockIn, wait: boolean): Promise<void> {
    const { ctx, ino, owner } = asking;
    const held = lock.flock && this.#holds(ino, FLOCK, owner);
    if (!this.#note(ino, lock.flock ? FLOCK : POSIX, lock.fh, owner)) asking.alone = false;
    if (await this.#try(ctx.op, ino, owner, lock)) return;
    // As Linux does: a flock lock that is to become another one is given up first.
    if (held) await this.#engine.flock(step(ctx.op, 1), ino, owner, 'U');
    if (!wait) throw EAGAIN;
    const waiter: Waiter = { ino, owner, lock: lockOf(lock), flock: lock.flock, pid: ctx.pid };
    this.#waiting.add(waiter);
    try {
      for (let pause = POLL_FIRST; ; pause = Math.min(pause * 2, POLL_MOST)) {
        // Asked for before the look, so that an unlock in between is not missed.
        const changed = this.#engine.waitForUnlock(ino, pause);
        if (lock.flock || !(await this.#taken(waiter))) {
          if (await this.#try(await ctx.unpark(), ino, owner, lock)) return;
        }
        if (!lock.flock && (await this.#deadlock(waiter))) throw EDEADLK;
        if (ctx.interrupt.fired) throw EINTR;
        ctx.park();
        await Promise.race([changed, ctx.interrupt.promise]);
        if (ctx.interrupt.fired) throw EINTR;
      }
    } finally {
      this.#waiting.delete(waiter);
    }
  }

  #holds(ino: Ino, kind: number, owner: bigint): boolean {
    return this.#of(ino)?.some(o => o.kind === kind && o.owner === owner) ?? false;
  }

  /** False when somebody else holds it. */
  async #try(op: Op, ino: Ino, owner: bigint, lock: LockIn): Promise<boolean> {
    try {
      if (lock.flock) await this.#engine.flock(op, ino, owner, flockType(lock.type));
      else await this.#engine.setlk(op, ino, owner, lockOf(lock));
      return true;
    } catch (e) {
      if (e !== EAGAIN) throw e;
      return false;
    }
  }

  /** A look without a mutation. */
  async #taken(w: Waiter): Promise<boolean> {
    return (await this.#engine.getlk(w.ino, w.owner, w.lock)).type !== LockType.unlock;
  }

  /**
   * True when granting must wait for `w` itself: a cycle of fcntl waiters of this mount (Linux looks no further than its own host either).
   * OFD locks take no part; only the caller's system call tells them apart, which is asked when a cycle was found.
   */
  #deadlock(w: Waiter): Promise<boolean> {
    // One after the other: two members of a cycle that both find it would both give up.
    const found = this.#searching.then(() => this.#inCycle(w));
    this.#searching = found.catch(() => undefined);
    return found;
  }

  /** Takes the waiter off the list when it is the one that gives up. */
  async #inCycle(w: Waiter): Promise<boolean> {
    const cycle = await findCycle(w, this.#waiting, at => this.#engine.lockHolders(at.ino, at.owner, at.lock));
    if (cycle === undefined) return false;
    for (const member of cycle) if (await waitsWithOfd(member.pid)) return false;
    this.#waiting.delete(w);
    return true;
  }

  /** close(2) of a descriptor: the process loses its fcntl locks on the file. Answers at once when it has none. */
  flush(ctx: Context, ino: Ino, owner: bigint): Promise<void> | undefined {
    return this.#holds(ino, POSIX, owner) ? this.#flush(ctx, ino, owner) : undefined;
  }

  async #flush(ctx: Context, ino: Ino, owner: bigint): Promise<void> {
    await this.#givenUp(a => a.ino === ino && a.owner === owner);
    const unlock = (op: Op) => this.#engine.setlk(op, ino, owner, WHOLE);
    try {
      await unlock(await ctx.unpark());
    } catch (error) {
      // The process was killed, and has its answer.
      if (!ctx.op.over) throw error;
      await this.#byItself(unlock);
    }
    const asked = this.#asked(ino, owner);
    this.#remove(ino, o => o.kind === POSIX && o.owner === owner && (!asked || o.lost));
  }

  /** The last descriptor of the handle is closed: its flock and OFD locks go. */
  release(op: Op, ino: Ino, fh: number): Promise<void> | undefined {
    return this.#of(ino)?.some(o => o.fh === fh) ? this.#release(op, ino, fh) : undefined;
  }

  async #release(op: Op, ino: Ino, fh: number): Promise<void> {
    // All at once, and not a turn later: who asks for the lock right after close(2) must not come in between.
    const givenUp = this.#givenUp(a => a.ino === ino && a.fh === fh);
    if (givenUp !== undefined) await givenUp;
    const list = this.#of(ino)?.filter(o => o.fh === fh) ?? [];
    await Promise.all(
      list.map((o, i) => {
        const own = step(op, FIRST_STEP + i);
        return o.kind === FLOCK
          ? this.#engine.flock(own, ino, o.owner, 'U')
          : this.#engine.setlk(own, ino, o.owner, WHOLE);
      }),
    );
    this.#remove(ino, o => o.fh === fh);
  }
}

/** The members of a cycle that `start` closes; undefined when there is none. */
export async function findCycle(
  start: Pick<Waiter, 'ino' | 'owner' | 'lock' | 'pid'>,
  waiting: Iterable<Waiter>,
  holders: (w: Pick<Waiter, 'ino' | 'owner' | 'lock'>) => PromiseLike<{ owner: bigint }[]> | { owner: bigint }[],
): Promise<{ pid: number }[] | undefined> {
  const byOwner = new Map<bigint, Waiter[]>();
  for (const w of waiting) {
    if (w.flock) continue;
    const list = byOwner.get(w.owner);
    if (list === undefined) byOwner.set(w.owner, [w]);
    else list.push(w);
  }
  const visited = new Set<bigint>();
  const visit = async (w: Pick<Waiter, 'ino' | 'owner' | 'lock' | 'pid'>): Promise<{ pid: number }[] | undefined> => {
    for (const { owner } of await holders(w)) {
      if (owner === start.owner && w.owner !== start.owner) return [w];
      if (visited.has(owner)) continue;
      visited.add(owner);
      for (const next of byOwner.get(owner) ?? []) {
        if (next.owner === start.owner) continue;
        const rest = await visit(next);
        if (rest !== undefined) return [w, ...rest];
      }
    }
    return undefined;
  };
  return visit(start);
}

const F_OFD_SETLKW = 0x26;

/** Whether the thread is in fcntl(F_OFD_SETLKW), by /proc/TID/syscall ("number arg0 arg1 …", hexadecimal). False when it cannot be told. */
async function waitsWithOfd(tid: number): Promise<boolean> {
  if (tid <= 0) return false;
  let text: string;
  try {
    text = await readFile(`/proc/${tid}/syscall`, 'latin1');
  } catch {
    // Gone, or not ours to look at: counts as an fcntl lock.
    return false;
  }
  return Number(text.split(' ')[2]) === F_OFD_SETLKW;
}

function flockOwner(owner: bigint, fh: number): bigint {
  return owner ^ BigInt(fh);
}

function flockType(type: number): 'R' | 'W' | 'U' {
  return type === LockType.read ? 'R' : type === LockType.write ? 'W' : 'U';
}

function lockOf(lock: LockIn): PosixLock {
  return { type: lock.type, start: lock.start, end: lock.end, pid: lock.pid };
}
