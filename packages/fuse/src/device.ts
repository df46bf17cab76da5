/**
 * The /dev/fuse fd on the event loop: reading in bounded drains, the adaptive busy poll, replies, notifications.
 *
 * Waking a sleeping thread costs more (25-30 µs) than the whole work of a small request, so after a request the loop keeps itself awake with
 * setImmediate for up to 100 µs, timers and sockets being served at each turn. How long is learnt: a time that brought nothing
 * several times in a row is halved, down to none, and comes back when a request (or an answer) would have fallen into it. Two such times are kept, one
 * for the next request and one for an answer that is under way (a database on this machine answers in it, an object store does not).
 * A caller that is on the loop's own processor (nearness.ts) cannot call while the loop tries to read: the processor is offered after each attempt.
 * A spinner that was not given the processor is in the way of those that the machine is for: it sleeps for a growing time.
 *
 * Rules of the kernel that matter here: the fd must be mounted before it is polled (epoll of an unmounted one can hang); every
 * read needs room for the largest request; a reply's memory must be present, else SIGKILL during the copy gives its caller EIO; ENOENT for a reply is
 * final and no error; a notification may wait for a request that only this loop, or the next service's, answers: notifier.ts.
 */
import koffi from 'koffi';
import { PAGE, WRITE_PREFIX } from './abi.ts';
import { faultPoint } from './fault.ts';
import { Nearness } from './nearness.ts';
import { type NotificationWriter, notificationWriter } from './notifier.ts';
import type { Slots } from './slots.ts';
import {
  allocate,
  ioVecs,
  type Memory,
  mlock,
  populate,
  readv,
  schedYield,
  unmap,
  type Watch,
  watchReadable,
  write,
  writev,
} from './sys.ts';

const ENOENT = -2;
const EINTR = -4;
const EAGAIN = -11;
const ENODEV = -19;
const EINVAL = -22;
const EPERM = -1;
const ENOTCONN = -107;
const ECONNABORTED = -103;

/** Requests and milliseconds after which a drain lets timers and sockets have their turn. */
const DRAIN_COUNT = 64;
const DRAIN_TIME = 1;
/** A turn of the spinning loop that took this long (ms) without work of ours: someone else had the processor. */
const PREEMPTED = 0.25;
/** The longest time (ms) without spinning after that. */
const COOL_MAX = 20;
/** Time (ms) after which a wake-up shows that spinning would have caught the request (spin + wake-up itself). */
const WAKE = 0.05;
/** Attempts to read in one turn of the spinning loop while no answer is awaited: a turn of libuv's loop costs more than an attempt. */
const ATTEMPTS = 16;
const MAX_PIECES = 1000;
/**
 * Drains with requests since the last sleep from which on the fd is not watched while the loop keeps itself awake: whatever came during a turn of
 * libuv's loop would be told by a call (10 µs) that says nothing new.
 */
const WARM = 3;

/** What the loop hands requests to. */
export interface Receiver {
  /** 'ready': a request may land. 'soon': not now, ask again in the next turn. 'blocked': something must be freed first. */
  ready(): 'ready' | 'soon' | 'blocked';
  /** A request of `length` bytes has landed. */
  received(length: number): void;
  /** Requests that the file system works on, parked ones not counted. */
  readonly working: number;
  /** The fd delivers nothing any more: errno of the read (ENODEV = unmounted; 0 = end of a test's socket). */
  gone(errno: number): void;
  /** A request was lost by a failed copy (its caller has EIO), or another thing for the log. */
  trouble(message: string): void;
}

/** A time that is worth spinning for, learnt from hits and misses. */
class SpinTime {
  readonly max: number;
  now: number;
  #misses = 0;
  constructor(max: number) {
    this.max = max;
    this.now = max;
  }
  hit(): void {
    this.#misses = 0;
    this.now = this.max;
  }
  miss(): void {
    if (++this.#misses < 8) return;
    this.#misses = 0;
    this.now = this.now > 0.03 ? this.now / 2 : 0;
  }
}

export interface DeviceStats {
  /** Requests read. */
  read: number;
  /** Turns of the loop that read at least one. */
  drains: number;
  /** Wake-ups by poll from sleep. */
  wakeups: number;
  /** Turns that only spun. */
  spins: number;
  /** Times that spinning was given up because the processor was taken away. */
  preempted: number;
  /** Milliseconds that the last and the longest drain took (the file system's synchronous work included). */
  lastDrain: number;
  longestDrain: number;
  /** Requests lost by a failed copy. */
  lost: number;
}

export class Device {
  readonly fd: number;
  readonly stats: DeviceStats = {
    read: 0,
    drains: 0,
    wakeups: 0,
    spins: 0,
    preempted: 0,
    lastDrain: 0,
    longestDrain: 0,
    lost: 0,
  };
  readonly #slots: Slots;
  readonly #receiver: Receiver;
  readonly #readVecs = ioVecs(2);
  readonly #writeVecs = ioVecs(MAX_PIECES + 1);
  /** Replies of parked requests, and data that is copied together. */
  readonly staging: Memory;
  readonly #nextRequest: SpinTime;
  readonly #nextAnswer: SpinTime;
  #watch: Watch | undefined;
  #running = false;
  /** Drains with requests since the last sleep. */
  #drains = 0;
  #watching = false;
  /** An immediate is pending. */
  #armed = false;
  #draining = false;
  /** Of the last request or answer, ms. */
  #activity = 0;
  #lastTurn = 0;
  #coolUntil = 0;
  #coolFor = 1;
  #retry: NodeJS.Timeout | undefined;
  #body = -1;
  #bodyLength = -1;
  #notifying: Promise<unknown> = Promise.resolve();
  readonly #notifications: NotificationWriter;
  readonly #nearness = new Nearness();

  /** `spin`: the longest busy poll, milliseconds (0: none). */
  constructor(fd: number, slots: Slots, receiver: Receiver, spin = 0.1) {
    this.fd = fd;
    this.#notifications = notificationWriter(fd);
    this.#slots = slots;
    this.#receiver = receiver;
    this.#nextRequest = new SpinTime(spin);
    this.#nextAnswer = new SpinTime(spin);
    this.staging = allocate(1 << 17);
    populate(this.staging.address, this.staging.length);
  }

  /** Makes everything present that read(2) and write(2) touch, and locks it where that is allowed. False when it is not. */
  pin(): boolean {
    let locked = mlock(this.staging.address, PAGE);
    for (const { address, length } of this.#slots.hotMemory()) {
      const start = address - (address % PAGE);
      const end = Math.ceil((address + length) / PAGE) * PAGE;
      populate(start, end - start);
      locked = mlock(start, end - start) && locked;
    }
    return locked;
  }

  /** Reads from now on. The fd must be mounted. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    this.#watch = watchReadable(this.fd, this.#woken);
    this.#watching = true;
    this.wake();
  }

  /** Before a sleep. */
  #watchAgain(): void {
    this.#drains = 0;
    if (this.#watching) return;
    this.#watching = true;
    this.#watch?.resume();
  }

  /** Reads nothing any more; replies go on. */
  stop(): void {
    this.#running = false;
    this.#watch?.close();
    this.#watch = undefined;
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#notifications.end();
  }

  /** Something was freed, or an answer is expected at once: has a look in the next turn. */
  wake(): void {
    if (this.#armed || !this.#running) return;
    this.#armed = true;
    this.#lastTurn = 0;
    setImmediate(this.#turn);
  }

  /** An answer was given outside of a drain. */
  answered(): void {
    if (this.#draining) return;
    const now = performance.now();
    if (now - this.#activity < this.#nextAnswer.max + WAKE) this.#nextAnswer.hit();
    this.#activity = now;
    if (this.#running && !this.#armed && this.#nextRequest.now > 0 && now >= this.#coolUntil) this.wake();
  }

  /**
   * The fd is readable. The work is left to an immediate, which comes right after: koffi calls from outside of a callback scope of Node, so promises
   * that settle in here would wait for the next event.
   */
  readonly #woken = (): void => {
    if (!this.#running || this.#armed) return;
    this.stats.wakeups++;
    if (performance.now() - this.#activity < this.#nextRequest.max + WAKE) {
      this.#nextRequest.hit();
      if (this.#receiver.working > 0) this.#nextAnswer.hit();
    }
    this.wake();
  };

  readonly #turn = (): void => {
    this.#armed = false;
    if (this.#running) this.#step(this.#poll());
  };

  /** After a drain: once more, spin, or sleep. */
  #step(more: boolean): void {
    if (!this.#running || this.#armed) return;
    const now = performance.now();
    if (!more) {
      const working = this.#receiver.working > 0;
      const time = working ? this.#nextAnswer : this.#nextRequest;
      // Work of ours may be part of the turn: an answer that was given after the drain (a commit) ends it.
      const idle = Math.max(this.#lastTurn, this.#activity);
      if (this.#lastTurn !== 0 && now - idle > PREEMPTED && this.stats.lastDrain < PREEMPTED / 2) {
        this.stats.preempted++;
        // Longer when it goes on; once in a while is no shortage.
        this.#coolFor = now - this.#coolUntil < 10 * this.#coolFor ? Math.min(this.#coolFor * 2, COOL_MAX) : 1;
        this.#coolUntil = now + this.#coolFor;
      }
      if (now < this.#coolUntil || time.now === 0 || now - this.#activity >= time.now) {
        if (time.now > 0 && now >= this.#coolUntil) time.miss();
        this.#lastTurn = 0;
        this.#watchAgain();
        return;
      }
      this.stats.spins++;
    }
    if (this.#watching && this.#drains >= WARM) {
      this.#watching = false;
      this.#watch?.pause();
    }
    this.#lastTurn = now;
    this.#armed = true;
    setImmediate(this.#turn);
  }

  /** Reads what waits; true when there may be more at once. */
  #poll(): boolean {
    const receiver = this.#receiver;
    const slots = this.#slots;
    const attempts = receiver.working > 0 || this.#nearness.together ? 1 : ATTEMPTS;
    let empty = 0;
    let count = 0;
    let start = 0;
    let more = false;
    while (this.#running) {
      const state = receiver.ready();
      if (state !== 'ready') {
        more = state === 'soon';
        if (!more) this.#retryLater();
        break;
      }
      if (!slots.prepare()) {
        this.#retryLater();
        break;
      }
      if (slots.bodyAddress !== this.#body || slots.bodyLength !== this.#bodyLength) {
        this.#body = slots.bodyAddress;
        this.#bodyLength = slots.bodyLength;
        this.#readVecs.set(0, slots.headerAddress, WRITE_PREFIX);
        this.#readVecs.set(1, this.#body, this.#bodyLength);
      }
      const n = readv(this.fd, this.#readVecs.address, 2);
      if (n > 0) {
        if (count++ === 0) start = performance.now();
        this.#draining = true;
        faultPoint('request.read');
        this.#nearness.called(slots.landedPid);
        receiver.received(n);
        this.#draining = false;
        empty = 0;
        if (count >= DRAIN_COUNT || ((count & 7) === 0 && performance.now() - start > DRAIN_TIME)) {
          more = true;
          break;
        }
        continue;
      }
      if (n === EAGAIN) {
        if (++empty >= attempts || receiver.working > 0) break;
        continue;
      }
      if (!this.#readFailed(n)) break;
    }
    if (count > 0) {
      const stats = this.stats;
      const now = performance.now();
      this.#activity = now;
      this.#drains++;
      this.#nextRequest.hit();
      stats.read += count;
      stats.drains++;
      stats.lastDrain = now - start;
      if (stats.lastDrain > stats.longestDrain) stats.longestDrain = stats.lastDrain;
    } else schedYield();
    return more;
  }

  /** True when reading goes on. */
  #readFailed(n: number): boolean {
    // Aborted while it was copied, or a signal: the next one.
    if (n === ENOENT || n === EINTR) {
      this.#slots.clearLanding();
      return true;
    }
    if (n === 0 || n === ENODEV || n === ECONNABORTED || n === ENOTCONN || n === EPERM || n === EINVAL) {
      this.stop();
      this.#receiver.gone(-n);
      return false;
    }
    this.stats.lost++;
    this.#slots.clearLanding();
    this.#receiver.trouble(`read of /dev/fuse failed with errno ${-n}: a request was lost, its caller has EIO`);
    return true;
  }

  #retryLater(): void {
    this.#retry ??= setTimeout(() => {
      this.#retry = undefined;
      this.wake();
    }, 1);
  }

  /** write(2) of one reply at `address`: its length or -errno. */
  write(address: number, length: number): number {
    return write(this.fd, address, length);
  }

  /** writev(2) of a reply header (16 bytes at `address`) and data. */
  writeData(address: number, pieces: readonly Uint8Array[], total: number): number {
    const arena = this.#slots.arena;
    const arenaBuffer = arena.bytes.buffer;
    const vecs = this.#writeVecs;
    // Heap memory may not be present; what is small goes through memory that is.
    if (pieces.length > MAX_PIECES || (total <= 1 << 16 && !pieces.every(p => p.buffer === arenaBuffer))) {
      if (total > this.staging.length - PAGE) return this.#writeMerged(address, pieces, total);
      let at = PAGE;
      for (const piece of pieces) {
        this.staging.bytes.set(piece, at);
        at += piece.length;
      }
      vecs.set(0, address, 16);
      vecs.set(1, this.staging.address + PAGE, total);
      return writev(this.fd, vecs.address, 2);
    }
    vecs.set(0, address, 16);
    let count = 1;
    const base = Number(arena.address) - arena.bytes.byteOffset;
    for (const piece of pieces) {
      if (piece.length === 0) continue;
      const where = piece.buffer === arenaBuffer ? base + piece.byteOffset : Number(koffi.address(piece));
      vecs.set(count++, where, piece.length);
    }
    return writev(this.fd, vecs.address, count);
  }

  #writeMerged(address: number, pieces: readonly Uint8Array[], total: number): number {
    const memory = this.buffer(total);
    let at = 0;
    for (const piece of pieces) {
      memory.bytes.set(piece, at);
      at += piece.length;
    }
    this.#writeVecs.set(0, address, 16);
    this.#writeVecs.set(1, memory.address, total);
    const n = writev(this.fd, this.#writeVecs.address, 2);
    this.release(memory);
    return n;
  }

  /** Populated buffers by power of two, kept for the next one. */
  readonly #buffers = new Map<number, Memory[]>();

  /** A populated buffer of at least `length` bytes. */
  buffer(length: number): Memory {
    let size = 4 * PAGE;
    while (size < length) size *= 2;
    const memory = this.#buffers.get(size)?.pop();
    if (memory) return memory;
    const fresh = allocate(size);
    populate(fresh.address, size);
    return fresh;
  }
  release(memory: Memory): void {
    let list = this.#buffers.get(memory.length);
    if (!list) {
      list = [];
      this.#buffers.set(memory.length, list);
    }
    if (list.length < 8) list.push(memory);
    else unmap(memory);
  }

  /** Writes a notification off the loop, after those before it: its length or -errno. */
  notify(message: Uint8Array): Promise<number> {
    const result = this.#notifying.then(() => this.#notifications.write(message));
    this.#notifying = result;
    return result;
  }

  /** Back-pressure of notifications: settles when those given so far are written. */
  get notified(): Promise<unknown> {
    return this.#notifying;
  }
}
