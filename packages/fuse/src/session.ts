/**
 * The conversation with the kernel: INIT, requests to calls of a {@link FileSystem}, their results to replies, interrupts, forgets,
 * and taking over from a process that died. What is stored when is told in slots.ts.
 *
 * `serve({ fd, capsule, fileSystem })` makes a {@link Session}; `start()` is the one way to begin: a fresh mount, a restart after
 * a crash and an upgrade differ only in what the capsule holds. Order of an adoption: the old process is dead; the file
 * system has read its own sections and claimed its arena runs; `start()`: the spills of slots and parked requests are claimed,
 * `fileSystem.init`, stored replies are written, requests that were taken are handed out again, then the first read(2).
 *
 * A request that crashes the service (slots.ts counts; a death by SIGKILL or by exit(2) is no crash) is repeated, but not for ever. Those that the file system had when the
 * service crashed are *suspects*: the next service answers all others first, then hands suspects out one after the other, fewest crashes first, and reads
 * nothing new meanwhile (both for a bounded time: one may be waiting for something). At the third crash a request is answered EIO, if it was the only one that the
 * file system had at that crash; else from the ninth on. So a request that was there by chance is answered before it can be blamed.
 */
import {
  EXPIRE_ONLY,
  F_UNLCK,
  IN_HEADER,
  IN_NODEID,
  INIT,
  initIn,
  KERNEL_MAJOR,
  LEAST_BODY,
  NOTIFY,
  notifyBare,
  notifyDelete,
  notifyInvalEntry,
  notifyInvalInode,
  notifyPrune,
  notifyStore,
  OLDEST_MINOR,
  OP,
  OUT_HEADER,
  opcodeName,
  PAGE,
  putInitOut,
} from './abi.ts';
import { createCapsule, openCapsule } from './capsule.ts';
import type { Blob, Capsule } from './capsule-types.ts';
import { Device, type DeviceStats, type Receiver } from './device.ts';
import { EBUSY, EINTR, EINVAL, EIO, EOPNOTSUPP, EPERM, EPROTO, Errno, errnoFrom, errnoOf } from './errno.ts';
import { faultPoint } from './fault.ts';
import {
  CONNECTION_BLOB,
  decodeConnection,
  encodeConnection,
  INIT_BLOB,
  type InitOptions,
  LARGEST_OTHER,
  MIB,
  negotiate,
} from './init.ts';
import { diedOfItself, type Ended } from './launch.ts';
import { type Handler, handlers, isPromise, mutates, O_TRUNC } from './opcodes.ts';
import { ENDLESS, isDying, LOOK_MS, Request, STAYS, wasKilled } from './request.ts';
import { APPLIED, HANDED, INTERRUPTED, PARKED_REPLY_MAX, REPLY, SLOTS, Slots } from './slots.ts';
import type { Connection, FileSystem, Notifier, Op, ReadOut, Reply } from './types.ts';

// --- Public -------------------------------------------------------------------------------------------------------

export type Log = (level: 'error' | 'warn' | 'info' | 'debug', message: string, cause?: unknown) => void;

export interface ServeOptions {
  /** A mounted /dev/fuse, non-blocking or not (it is made so). */
  fd: number;
  /** What shall outlive the process; default: a new one, which nobody else holds. */
  capsule?: Capsule;
  fileSystem: FileSystem;
  init?: InitOptions;
  /**
   * The connection was initialised by a server whose capsule cannot be used: its parameters. The requests that that server
   * took are asked for again (RESEND); reads and look-ups among them are carried out, mutations answered EIO, since their outcome is unknown.
   */
  orphan?: Connection;
  /** How the process before has ended, as far as its keeper knows: {@link import('./service-types.ts').Start}. */
  before?: Ended | undefined;
  /**
   * Errors of system calls that the file system throws (node:fs) are answered with their errno, as a file system wants that shows another one. Default: EIO and a line in the
   * log, since they tell of things that the caller knows nothing of.
   */
  systemErrors?: boolean;
  /** Longest busy poll after a request, microseconds; default 100, 0 = none. */
  spin?: number;
  log?: Log;
  /** The file system answers nothing: see company.ts. No request is blamed for a crash of this process, and a FLUSH whose caller is let go stays, to be carried out later. */
  company?: boolean;
}

export interface SessionStats {
  /** Requests answered, and of those with an error. */
  answered: number;
  failed: number;
  /** Handed to the file system and not answered (parked ones included). */
  inFlight: number;
  parked: number;
  /** Parked because no slot was free. */
  queued: number;
  slots: { used: number; total: number };
  interrupts: number;
  forgets: number;
  /** Requests carried over by `start()`: answered from a stored reply, handed out again, waiting in the parked table. */
  adopted: { answered: number; repeated: number; parked: number };
  device: Readonly<DeviceStats>;
}

/** More than {@link Notifier}: what a caller of the library may use. Each answers false where the kernel has no such message, ENOENT (nothing cached) included. */
export interface FullNotifier extends Notifier {
  /** Puts data into the page cache of a cached inode. */
  store(nodeid: number, offset: number, data: Uint8Array): Promise<boolean>;
  /** FUSE_NOTIFY_PRUNE (7.45): drops unused inodes from the kernel's cache. */
  prune(nodeids: readonly number[]): Promise<boolean>;
  /** FUSE_NOTIFY_RESEND (7.40). */
  resend(): Promise<boolean>;
}

export interface Session {
  /** Undefined until INIT was answered. */
  readonly connection: Connection | undefined;
  readonly notify: FullNotifier;
  readonly stats: SessionStats;
  /** The request memory is locked; false: not allowed (RLIMIT_MEMLOCK), populated only. */
  readonly locked: boolean;
  /** Adopts what the capsule holds and begins to read. Settles when the first read(2) may come; throws what `fileSystem.init` throws. */
  start(): Promise<void>;
  /** No request is read from now on; those that were taken go on. For a planned take-over. */
  stopReading(): void;
  /** After stopReading: the take-over was called off. */
  resumeReading(): void;
  /**
   * Something outside does not answer: from now on a request that has waited `ms` longer ends with EIO, except for those that wait by their nature (blocked locks,
   * Context.endless). Undefined: all is well again, no limit. What the request has asked for may still take effect, once.
   */
  limit(ms: number | undefined): void;
  /** Reads, answers and looks at nothing any more. What was taken is the next server's of this capsule, which may be one of this process. */
  leave(): void;
  /** Settles after the mount is gone and `fileSystem.destroy` is done. */
  readonly done: Promise<void>;
}

export function serve(options: ServeOptions): Session {
  return new Server(options);
}

// --- The server ---------------------------------------------------------------------------------------------------

const TWO32 = 0x1_0000_0000;
const ENOENT_WRITE = -2;
const EINVAL_WRITE = -22;
const ENODEV_WRITE = -19;
/** FORGETs carried out between two looks at the clock. */
const FORGET_SLICE = 256;
/** What a request in flight has after the unmount to come to its end, before `destroy`. */
const LAST_CALLS = 1000;
/** Crashes after which a request is answered EIO: when it was alone at the last one; when it was not. */
const CRASHES_ALONE = 3;
const CRASHES_IN_COMPANY = 9;
/** A suspect is alone for so long at most, and all others are waited for so long before the first one, ms. */
const ALONE_MS = 1000;
/** Nothing new is read for so long at most while there are suspects, ms. */
const HOLD_MS = 3000;

/** Connections of this process, for the word in their capsules. */
const serving = new Set<Slots>();

function noteCrash(): void {
  for (const slots of serving) slots.crashing();
}

class Server implements Session, Receiver {
  readonly slots: Slots;
  readonly device: Device;
  readonly notify: FullNotifier;
  readonly done: Promise<void>;
  connection: Connection | undefined;
  locked = false;
  ended = false;
  setxattrExt = false;
  readonly #options: ServeOptions;
  readonly #fs: FileSystem;
  readonly #log: Log;
  readonly #parameters: Blob;
  readonly #requests: (Request | undefined)[] = new Array(SLOTS).fill(undefined);
  /** Parked requests that the file system has. */
  readonly #parked = new Map<number, Request>();
  /** id → index of every record in the parked table. */
  readonly #parkedIds = new Map<number, number>();
  /** Parked records that wait for a slot to be handed out, in order. */
  #queue: number[] = [];
  #queueHead = 0;
  /** Parked requests that want a slot again. */
  #returning: { request: Request; resolve: (op: Op) => void; reject: (error: Errno) => void }[] = [];
  /** Of them, those that were answered before they were handed out. */
  readonly #skipped = new Map<number, number>();
  /** Interrupted ones of the queue, and since when those of the queue are seen waiting under a limit. */
  readonly #queueInterrupted = new Set<number>();
  readonly #queueSeen = new Map<number, number>();
  #limit: number | undefined;
  #look: NodeJS.Timeout | undefined;
  #forgetting = false;
  /** A landed request finds neither slot nor parked record. */
  #stuck = false;
  #starting = false;
  working = 0;
  #answered = 0;
  #failed = 0;
  #interrupts = 0;
  #forgets = 0;
  #adopted = { answered: 0, repeated: 0, parked: 0 };
  #finish!: () => void;

  constructor(options: ServeOptions) {
    this.#options = options;
    this.#fs = options.fileSystem;
    this.#log = options.log ?? defaultLog;
    this.done = new Promise(resolve => {
      this.#finish = resolve;
    });
    const capsule = options.capsule ?? openCapsule(createCapsule());
    this.#parameters = capsule.blob(INIT_BLOB, CONNECTION_BLOB);
    const stored = this.#parameters.get();
    const known = stored ? decodeConnection(stored) : options.orphan;
    const maxWrite = known?.maxWrite ?? Math.max(PAGE, options.init?.maxWrite ?? MIB);
    const { arena } = capsule;
    const largest = Math.max(maxWrite, LARGEST_OTHER);
    if (arena.size < 2 * largest)
      throw EINVAL.because(`an arena of ${arena.size} bytes is too small for requests of up to ${largest}`);
    this.slots = new Slots(capsule, largest);
    this.device = new Device(options.fd, this.slots, this, (options.spin ?? 100) / 1000);
    this.notify = notifier(this.device, () => this.connection);
    if (known) this.#connected(known);
    if (!stored && known) this.#parameters.set(encodeConnection(known));
  }

  get stats(): SessionStats {
    return {
      answered: this.#answered,
      failed: this.#failed,
      inFlight: this.slots.used + this.#parked.size,
      parked: this.slots.parkedCount,
      queued: this.#queue.length - this.#queueHead,
      slots: { used: this.slots.used, total: SLOTS },
      interrupts: this.#interrupts,
      forgets: this.#forgets,
      adopted: this.#adopted,
      device: this.device.stats,
    };
  }

  async start(): Promise<void> {
    if (this.#starting) throw EBUSY.because('start() is called once');
    this.#starting = true;
    this.locked = this.device.pin();
    if (!this.locked) {
      this.#log(
        'warn',
        'request memory cannot be locked (RLIMIT_MEMLOCK): a crash under memory pressure can lose a request',
      );
    }
    this.#dropTwin();
    if (!this.slots.adoptLanding() && this.slots.landedLength !== 0) {
      this.#log('warn', 'a request was only half copied when the server died: dropped, its caller has EIO');
      this.slots.clearLanding();
    }
    this.#claimSpills();
    const { slots } = this;
    const { before } = this.#options;
    const crash = slots.crashed || (before?.pid === slots.server && diedOfItself(before.code));
    const handed = slots.settleHanded(crash);
    const { company } = this.#options;
    slots.serving(company ? 0 : process.pid);
    if (!company) {
      if (serving.size === 0) process.on('uncaughtExceptionMonitor', noteCrash);
      serving.add(slots);
    }
    faultPoint('adopt.claimed');
    if (this.connection) await this.#fs.init?.(this.connection, this.notify);
    this.#replay(crash && handed === 1);
    if (this.slots.landedLength !== 0) this.received(this.slots.landedLength, true);
    this.device.start();
    if (this.#options.orphan) await this.notify.resend();
  }

  stopReading(): void {
    this.device.stop();
  }

  resumeReading(): void {
    if (!this.ended) this.device.start();
  }

  leave(): void {
    this.ended = true;
    this.device.stop();
    clearTimeout(this.#look);
    this.#look = undefined;
    this.#dropFromServing();
  }

  #dropFromServing(): void {
    if (serving.delete(this.slots) && serving.size === 0) process.off('uncaughtExceptionMonitor', noteCrash);
  }

  #connected(connection: Connection): void {
    this.connection = connection;
    this.setxattrExt = (connection.flags & INIT.SETXATTR_EXT) !== 0n;
  }

  // --- Adoption ---------------------------------------------------------------------------------------------------

  /** A landed request that has its slot already (or is parked) counts only there. Before anything is claimed or answered. */
  #dropTwin(): void {
    const { slots } = this;
    if (slots.landedLength < IN_HEADER) return;
    const opcode = slots.landedOpcode;
    if (opcode === OP.FORGET || opcode === OP.BATCH_FORGET || opcode === OP.INTERRUPT) return;
    const [lo, hi] = [slots.landedUniqueLo, slots.landedUniqueHi];
    if (slots.find(slots.slots, lo, hi) >= 0 || slots.find(slots.parked, lo, hi) >= 0) slots.clearLanding();
  }

  /** Spills whose run somebody has claimed already: their data was taken before the crash. */
  readonly #foreign = new Set<number>();

  #claimSpills(): void {
    const { slots } = this;
    for (const from of [slots.slots, slots.parked]) {
      for (const index of from.records.live()) {
        const spill = slots.spill(from, index);
        if (!spill) continue;
        if (from.records.state(index) === APPLIED) continue;
        try {
          slots.arena.claim(spill.offset, spill.length);
        } catch (error) {
          if (!(error instanceof Errno)) throw error;
          this.#foreign.add(spill.offset);
        }
      }
    }
  }

  /** Answers APPLIED slots again, hands TAKEN ones out again, queues what is parked. `alone`: the process before has crashed with a single request. */
  #replay(alone: boolean): void {
    const { slots } = this;
    const { slots: table, parked } = slots;
    const taken: number[] = [];
    const ids = new Set<number>();
    for (const k of table.records.live()) {
      ids.add(this.#id(slots.uniqueLo(table, k), slots.uniqueHi(table, k)));
      if (table.records.state(k) === APPLIED) {
        const n = this.device.write(slots.replyAddress(k), slots.replyLength(k));
        if (n < 0 && n !== ENOENT_WRITE && n !== ENODEV_WRITE)
          this.#log('error', `a stored reply is refused with errno ${-n}`);
        faultPoint('adopt.answered-again');
        slots.free(k);
        this.#adopted.answered++;
      } else taken.push(k);
    }
    const waiting: number[] = [];
    for (const p of parked.records.live()) {
      const id = this.#id(slots.uniqueLo(parked, p), slots.uniqueHi(parked, p));
      if (ids.has(id)) slots.freeParked(p);
      else if (parked.records.state(p) === APPLIED) this.#answerParked(p);
      else {
        this.#parkedIds.set(id, p);
        waiting.push(p);
      }
    }
    // By age, as far as ids tell it.
    waiting.sort((a, b) => this.#idOf(parked, a) - this.#idOf(parked, b));
    taken.sort((a, b) => this.#idOf(table, a) - this.#idOf(table, b));
    this.#adopted.parked = waiting.length;
    this.#replayed = new Set(waiting);
    this.#queue = waiting;
    this.#adopted.repeated = taken.length;
    faultPoint('adopt.before-replay');
    for (const k of taken)
      if (slots.crashes(k) === 0 || this.#options.company) this.#dispatch(k, true);
      else this.#suspects.push(k);
    faultPoint('adopt.replayed');
    this.#pump();
    if (this.#suspects.length > 0) this.#suspect(alone);
  }

  // --- Requests that were there when the service crashed --------------------------------------------------------------

  /** Slots of suspects that were not handed out yet. */
  #suspects: number[] = [];
  /** The suspect that was handed out last, and when (before the first: when the waiting for the others began), ms. */
  #alone: Request | undefined;
  #aloneSince = 0;
  #holdUntil = 0;

  #suspect(alone: boolean): void {
    const { slots } = this;
    const blamed = (k: number): boolean => {
      const opcode = slots.opcodeOf(slots.slots, k);
      return slots.crashes(k) >= (alone ? CRASHES_ALONE : CRASHES_IN_COMPANY) && opcode !== OP.INIT;
    };
    // Of equals the oldest first, next time the newest: one that waits for long must not always be there when the other crashes the service.
    const age = (a: number, b: number) => this.#idOf(slots.slots, a) - this.#idOf(slots.slots, b);
    const order = this.#suspects.sort(
      (a, b) => slots.crashes(a) - slots.crashes(b) || (slots.crashes(a) % 2 === 0 ? age(b, a) : age(a, b)),
    );
    this.#suspects = order.filter(k => !blamed(k));
    for (const k of order) if (blamed(k)) this.#blame(k);
    this.#aloneSince = performance.now();
    this.#holdUntil = this.#aloneSince + HOLD_MS;
    // Behind the start, so that a crash is one of a service that served.
    setTimeout(this.#nextSuspect, 0);
  }

  /** Answers a request that has crashed the service too often. */
  #blame(k: number): void {
    const request = new Request(this, k);
    if (this.#foreign.delete(request.spill)) request.dataTaken = true;
    this.#requests[k] = request;
    this.working++;
    const { opcode, nodeid, pid, uid } = request;
    this.#log(
      'error',
      `${opcodeName[opcode] ?? opcode} of inode ${nodeid} (process ${pid}, user ${uid}) has crashed the service ${this.slots.crashes(k)} times: answered EIO, it may have taken effect. ` +
        'Keep from calling it again, report the crashes that are logged above, and upgrade to a version without the fault',
    );
    this.#fail(request, EIO);
  }

  readonly #nextSuspect = (): void => {
    for (;;) {
      if (this.ended) return;
      const now = performance.now();
      const current = this.#alone;
      const busy = current ? !current.answered && current.slot >= 0 : this.working > 0;
      if (busy && now - this.#aloneSince < ALONE_MS) break;
      const k = this.#suspects.shift();
      this.#alone = undefined;
      if (k === undefined) return;
      this.#aloneSince = now;
      this.#dispatch(k, true);
      this.#alone = this.#requests[k];
    }
    setTimeout(this.#nextSuspect, 2);
  };

  #answerParked(p: number): void {
    const { slots, device } = this;
    const { view, address } = device.staging;
    const { errno, payload } = slots.parkedReply(p, view);
    const { parked } = slots;
    this.#header(view, 0, OUT_HEADER + payload, errno, slots.uniqueLo(parked, p), slots.uniqueHi(parked, p));
    const n = device.write(address, OUT_HEADER + payload);
    if (n < 0 && n !== ENOENT_WRITE && n !== ENODEV_WRITE)
      this.#log('error', `a stored reply is refused with errno ${-n}`);
    slots.freeParked(p);
    this.#adopted.answered++;
  }

  /** Parked records of the process before: their requests are replays. */
  #replayed = new Set<number>();

  #id(lo: number, hi: number): number {
    return (hi & 0x7fff_ffff) * TWO32 + lo;
  }
  #idOf(from: Slots['slots'], index: number): number {
    return this.#id(this.slots.uniqueLo(from, index), this.slots.uniqueHi(from, index));
  }

  // --- Taking requests ----------------------------------------------------------------------------------------------

  ready(): 'ready' | 'soon' | 'blocked' {
    if (this.#holdUntil !== 0) {
      if ((this.#suspects.length > 0 || this.#alone) && performance.now() < this.#holdUntil) return 'blocked';
      this.#holdUntil = 0;
    }
    if (this.#forgetting) {
      this.#forget();
      if (this.#forgetting) return 'soon';
    }
    if (this.#stuck) {
      this.#stuck = false;
      this.received(this.slots.landedLength);
      if (this.#stuck) return 'blocked';
    }
    return 'ready';
  }

  received(length: number, replay = false): void {
    const { slots } = this;
    const opcode = slots.landedOpcode;
    if (length !== slots.landedLength || length < IN_HEADER) {
      this.trouble(`a request of ${length} bytes says ${slots.landedLength}: dropped`);
      slots.clearLanding();
      return;
    }
    switch (opcode) {
      case OP.FORGET:
      case OP.BATCH_FORGET:
        if (
          length < IN_HEADER + 8 ||
          (opcode === OP.BATCH_FORGET && 16 * slots.landedWord(IN_HEADER) > length - IN_HEADER - 8)
        ) {
          this.trouble(`FORGETs that are not there, in ${length} bytes: dropped`);
          slots.clearLanding();
          return;
        }
        this.#forgetting = true;
        this.#forget();
        return;
      case OP.INTERRUPT:
        this.#interrupts++;
        if (length >= IN_HEADER + 8) this.#interrupt(slots.landedWord(IN_HEADER), slots.landedWord(IN_HEADER + 4));
        slots.clearLanding();
        return;
      case OP.NOTIFY_REPLY:
        slots.clearLanding();
        return;
    }
    if (slots.landedUniqueHi >>> 31 !== 0 && this.#resent(opcode)) return;
    const privileged =
      opcode === OP.RELEASE ||
      opcode === OP.RELEASEDIR ||
      opcode === OP.FLUSH ||
      ((opcode === OP.SETLK || opcode === OP.SETLKW) && slots.landedWord(IN_HEADER + 32) === F_UNLCK);
    const k = slots.acquire(privileged);
    if (k >= 0) {
      slots.take(k);
      this.#dispatch(k, replay);
      return;
    }
    const id = this.#id(slots.landedUniqueLo, slots.landedUniqueHi);
    const p = slots.queue();
    if (p === undefined) {
      this.#stuck = true;
      return;
    }
    this.#parkedIds.set(id, p);
    this.#queue.push(p);
  }

  /** Bit 63 is set: true when that settles it. */
  #resent(opcode: number): boolean {
    const { slots } = this;
    const found = this.#find(slots.landedUniqueLo, slots.landedUniqueHi);
    if (found) {
      slots.markResent(found.from, found.index);
      slots.clearLanding();
      return true;
    }
    const truncates = opcode === OP.OPEN && (slots.landedWord(IN_HEADER) & O_TRUNC) !== 0;
    if (!truncates && !mutates.has(opcode)) return false;
    this.#log(
      'error',
      `${opcodeName[opcode] ?? opcode} was taken by a server that is gone, its outcome is unknown: EIO`,
    );
    const { view, address } = this.device.staging;
    this.#header(view, 0, OUT_HEADER, EIO.errno, slots.landedUniqueLo, slots.landedUniqueHi);
    this.device.write(address, OUT_HEADER);
    slots.clearLanding();
    return true;
  }

  #find(lo: number, hi: number): { from: Slots['slots']; index: number } | undefined {
    const { slots } = this;
    const k = slots.find(slots.slots, lo, hi);
    if (k >= 0) return { from: slots.slots, index: k };
    const p = this.#parkedIds.get(this.#id(lo, hi));
    return p === undefined ? undefined : { from: slots.parked, index: p };
  }

  #forget(): void {
    const { slots } = this;
    const batch = slots.landedOpcode === OP.BATCH_FORGET;
    const count = batch ? slots.landedWord(IN_HEADER) : 1;
    const start = performance.now();
    const fs = this.#fs;
    if (fs.forget) {
      for (let i = slots.progress; i < count; i++) {
        if ((i & (FORGET_SLICE - 1)) === FORGET_SLICE - 1 && performance.now() - start > 1) return;
        slots.progress = i + 1;
        faultPoint('forget.step');
        const at = batch ? IN_HEADER + 8 + 16 * i : IN_NODEID;
        const next = batch ? at + 8 : IN_HEADER;
        try {
          fs.forget(
            slots.landedWord(at + 4) * TWO32 + slots.landedWord(at),
            slots.landedWord(next + 4) * TWO32 + slots.landedWord(next),
          );
        } catch (error) {
          this.#log('error', 'forget failed', error);
        }
      }
    }
    this.#forgets += count;
    this.#forgetting = false;
    slots.clearLanding();
  }

  #interrupt(lo: number, hi: number): void {
    const found = this.#find(lo, hi);
    if (!found) return; // answered meanwhile
    this.slots.setFlag(found.from, found.index, INTERRUPTED);
    faultPoint('interrupt.noted');
    const request = found.from === this.slots.slots ? this.#requests[found.index] : this.#parked.get(found.index);
    if (request === undefined && found.from === this.slots.parked) this.#queueInterrupted.add(found.index);
    request?.fire();
    this.#armLook();
  }

  // --- Ending waits -------------------------------------------------------------------------------------------------

  limit(ms: number | undefined): void {
    if (ms === undefined) {
      for (const request of this.#requests) if (request) request.seen = undefined;
      for (const request of this.#parked.values()) request.seen = undefined;
      this.#queueSeen.clear();
    }
    this.#limit = ms;
    if (ms !== undefined) this.#armLook();
  }

  #armLook(): void {
    if (this.#look !== undefined || this.ended) return;
    this.#look = setTimeout(() => {
      this.#look = undefined;
      this.#lookAtWaits();
    }, LOOK_MS);
    this.#look.unref();
  }

  /**
   * Answers requests whose caller is being killed, and those that have waited too long, in the file system's place: nothing that it waits for need know
   * of interrupts. The kernel does not let a process go before its request is answered.
   */
  #lookAtWaits(): void {
    const now = performance.now();
    const limit = this.#limit;
    let again = limit !== undefined;
    for (const requests of [this.#requests, [...this.#parked.values()]])
      for (const request of requests) {
        if (request === undefined || request.answered) continue;
        const { opcode } = request;
        if ((request.fired || opcode === OP.FLUSH) && !STAYS.has(opcode)) {
          again = true;
          if (request.fired ? request.callerIsDying() : request.pid !== 0 && wasKilled(request.pid)) {
            this.#abandon(request, EINTR);
            continue;
          }
        }
        if (limit === undefined || request.endless || ENDLESS.has(opcode)) continue;
        request.seen ??= now;
        if (now - request.seen < limit) continue;
        // Only its own code knows whether the data of a WRITE was taken.
        if (opcode === OP.WRITE) request.expire();
        else
          this.#abandon(
            request,
            EIO.because(`${opcodeName[opcode]} has waited ${Math.round(limit / 1000)} s: given up`),
          );
      }
    const { parked } = this.slots;
    for (let i = this.#queueHead; i < this.#queue.length; i++) {
      const p = this.#queue[i]!;
      if (this.#skipped.has(p)) continue;
      if (this.#queueInterrupted.has(p)) {
        again = true;
        if (isDying(this.slots.pidOf(parked, p))) {
          this.#skip(p, EINTR.errno);
          continue;
        }
      }
      if (limit === undefined || STAYS.has(this.slots.opcodeOf(parked, p))) continue;
      const since = this.#queueSeen.get(p) ?? now;
      this.#queueSeen.set(p, since);
      if (now - since >= limit) this.#skip(p, EIO.errno);
    }
    if (again) this.#armLook();
  }

  /** Answers a parked request that was not handed out. */
  #skip(p: number, errno: number): void {
    const { slots } = this;
    const { parked } = slots;
    const { view, address } = this.device.staging;
    const spill = slots.spill(parked, p);
    this.#header(view, 0, OUT_HEADER, errno, slots.uniqueLo(parked, p), slots.uniqueHi(parked, p));
    slots.appliedParked(p, errno, 0, view);
    this.device.write(address, OUT_HEADER);
    if (spill) slots.arena.free(spill.offset, spill.length);
    this.#parkedIds.delete(this.#idOf(parked, p));
    this.#replayed.delete(p);
    this.#forgetQueued(p);
    // The record can be taken again before its old place in the queue comes up.
    this.#skipped.set(p, (this.#skipped.get(p) ?? 0) + 1);
    slots.freeParked(p);
    this.#answered++;
    this.#failed++;
    this.device.answered();
  }

  #forgetQueued(p: number): void {
    this.#queueInterrupted.delete(p);
    this.#queueSeen.delete(p);
  }

  #abandon(request: Request, error: Errno): void {
    if (this.#options.company && request.opcode === OP.FLUSH) {
      // Its unlocking must still be done: only the caller is let go. The next server's answer finds nobody.
      this.device.write(this.#prepare(request, error.errno, OUT_HEADER), OUT_HEADER);
      request.answered = true;
      if (request.slot >= 0) this.park(request);
      return;
    }
    // Data on pages of its own may be read at any time.
    if (request.spill >= 0 && !request.dataTaken) return;
    request.abandoned = true;
    (request.op as { over?: boolean }).over = true;
    this.#returning = this.#returning.filter(r => {
      if (r.request === request) r.reject(error);
      return r.request !== request;
    });
    this.#fail(request, error);
  }

  /** The file system has come to an end with a request that was answered before. */
  #late(request: Request, value: unknown): void {
    this.#releaseMemory(request);
    if (request.opcode === OP.READ) {
      this.#fs.readDone?.(value as ReadOut);
      return;
    }
    if (typeof value !== 'object' || value === null) return;
    const { nodeid, fh } = value as { nodeid?: number; fh?: number };
    if (nodeid !== undefined && nodeid !== 0) this.#fs.forget?.(nodeid, 1);
    if (fh === undefined) return;
    const ended =
      request.opcode === OP.OPENDIR
        ? this.#fs.releasedir?.(request, request.nodeid, fh)
        : this.#fs.release?.(request, nodeid ?? request.nodeid, fh, 0, 0n, false);
    if (isPromise(ended))
      ended.catch((error: unknown) => this.#log('warn', 'closing what was opened too late failed', error));
  }

  #dispatch(k: number, replay: boolean): void {
    const request = new Request(this, k);
    const { slots } = this;
    request.replay = replay;
    if (slots.flags(slots.slots, k) & INTERRUPTED) request.fired = true;
    if (replay) {
      slots.setFlag(slots.slots, k, HANDED);
      if (this.#foreign.delete(request.spill)) request.dataTaken = true;
    }
    this.#requests[k] = request;
    this.working++;
    this.#run(request);
  }

  #run(request: Request): void {
    if (request.opcode === OP.INIT && request.length - IN_HEADER >= LEAST_BODY[OP.INIT]!) {
      this.#init(request).catch(error => this.#fail(request, error));
      return;
    }
    const handler = handlers[request.opcode];
    try {
      faultPoint('request.before-run', request);
      if (!handler) throw EOPNOTSUPP.because(`opcode ${request.opcode}`);
      if (request.length - IN_HEADER < LEAST_BODY[request.opcode]!)
        throw EIO.because(`a request of ${request.length} bytes is too short`);
      const reply: Reply<never> = handler.run(this.#fs, request);
      if (isPromise(reply)) {
        if (request.opcode === OP.FLUSH) this.#armLook();
        reply.then(
          value => this.#answer(request, handler, value),
          error => this.#fail(request, error),
        );
      } else this.#answer(request, handler, reply);
    } catch (error) {
      this.#fail(request, error);
    }
  }

  async #init(request: Request): Promise<void> {
    const kernel = initIn(request.view, request.body);
    const { view } = this.slots.slots;
    const at = this.slots.replyOffset(request.slot) + OUT_HEADER;
    if (kernel.major > KERNEL_MAJOR) {
      // The kernel falls back to our major and sends another INIT.
      for (let i = 0; i < 64; i += 4) view.setUint32(at + i, 0, true);
      view.setUint32(at, KERNEL_MAJOR, true);
      this.#send(request, 0, 64);
      return;
    }
    if (kernel.major < KERNEL_MAJOR || kernel.minor < OLDEST_MINOR)
      throw EPROTO.because(
        `the kernel speaks FUSE ${kernel.major}.${kernel.minor}, 7.${OLDEST_MINOR} is the oldest served`,
      );
    const out = negotiate(kernel, this.#options.init ?? {}, this.#fs.setlk !== undefined);
    if (!this.connection) {
      const { major, minor, flags, maxWrite, maxReadahead } = out;
      const connection = { major, minor, flags, maxWrite, maxReadahead };
      await this.#fs.init?.(connection, this.notify);
      // From here on an adopter calls init itself.
      this.#parameters.set(encodeConnection(connection));
      this.#connected(connection);
    } else {
      out.flags = this.connection.flags;
      out.maxWrite = this.connection.maxWrite;
      out.maxReadahead = this.connection.maxReadahead;
      out.maxPages = Math.min(0xffff, Math.ceil(out.maxWrite / PAGE));
    }
    this.#send(request, 0, putInitOut(view, at, out));
  }

  // --- Parking ----------------------------------------------------------------------------------------------------

  park(request: Request): void {
    const k = request.slot;
    const p = this.slots.park(k);
    if (p === undefined) return; // no room: it keeps its slot
    faultPoint('request.parked', request);
    request.slot = -1;
    request.parked = p;
    this.#requests[k] = undefined;
    this.#parked.set(p, request);
    this.#parkedIds.set(this.#idOf(this.slots.parked, p), p);
    this.working--;
    this.#freed();
  }

  unpark(request: Request): Promise<Op> {
    if (request.answered) return Promise.reject(EBUSY.because('unpark after the answer'));
    return new Promise((resolve, reject) => {
      this.#returning.push({ request, resolve, reject });
      this.#pump();
    });
  }

  /** Gives free slots to those that wait for one. */
  #pump(): void {
    while (this.#returning.length > 0) {
      const { request, resolve } = this.#returning[0]!;
      if (request.slot < 0) {
        const k = this.slots.acquire(false);
        if (k < 0) return;
        const p = request.parked;
        this.#parkedIds.delete(this.#idOf(this.slots.parked, p));
        this.#parked.delete(p);
        this.slots.unpark(p, k);
        faultPoint('request.unparked', request);
        request.slot = k;
        request.parked = -1;
        request.op = { kind: 0, slot: k, seq: this.slots.seq(k) };
        this.#requests[k] = request;
        this.working++;
      }
      this.#returning.shift();
      resolve(request.op);
    }
    while (this.#queueHead < this.#queue.length) {
      const p = this.#queue[this.#queueHead]!;
      const skips = this.#skipped.get(p) ?? 0;
      const k = skips > 0 ? -1 : this.slots.acquire(false);
      if (skips === 0 && k < 0) return;
      this.#queueHead++;
      if (this.#queueHead > 1024 && this.#queueHead * 2 > this.#queue.length) {
        this.#queue = this.#queue.slice(this.#queueHead);
        this.#queueHead = 0;
      }
      if (skips > 0) {
        if (skips > 1) this.#skipped.set(p, skips - 1);
        else this.#skipped.delete(p);
        continue;
      }
      this.#forgetQueued(p);
      this.#parkedIds.delete(this.#idOf(this.slots.parked, p));
      this.slots.unpark(p, k);
      this.#dispatch(k, this.#replayed.delete(p));
    }
  }

  #freed(): void {
    if (this.#returning.length > 0 || this.#queueHead < this.#queue.length) {
      if (!this.#pumping) {
        this.#pumping = true;
        queueMicrotask(() => {
          this.#pumping = false;
          this.#pump();
        });
      }
    }
    if (this.#stuck) this.device.wake();
  }
  #pumping = false;

  // --- Answering --------------------------------------------------------------------------------------------------

  #answer(request: Request, handler: Handler<never>, value: never): void {
    if (request.abandoned) {
      this.#late(request, value);
      return;
    }
    try {
      faultPoint('request.carried-out', request);
      const slot = request.slot;
      const view = slot >= 0 ? this.slots.slots.view : this.device.staging.view;
      const at = slot >= 0 ? this.slots.replyOffset(slot) : 0;
      const length = handler.encode(request, value, view, at + OUT_HEADER);
      if (length >= 0) this.#send(request, 0, length);
    } catch (error) {
      this.#fail(request, error);
    }
  }

  /** Answers an error that was not thrown (-> -1: it is sent). */
  refuse(request: Request, error: Errno): number {
    this.#fail(request, error);
    return -1;
  }

  #fail(request: Request, error: unknown): void {
    if (request.answered && request.abandoned) {
      this.#releaseMemory(request);
      return;
    }
    if (request.answered) {
      this.#log('error', `${opcodeName[request.opcode]}: error after the answer`, error);
      return;
    }
    let errno: number;
    if (this.#options.systemErrors) error = errnoFrom(error);
    if (error instanceof Errno) {
      errno = error.errno;
      if (errno === 38) errno = EOPNOTSUPP.errno;
      if (errno === 4 && !request.fired && !request.abandoned && !this.ended) {
        this.#log('error', `${opcodeName[request.opcode]} ended with EINTR though nobody interrupted it: EIO`, error);
        errno = EIO.errno;
      }
      if (errno <= 0 || errno >= 512) errno = EIO.errno;
      if (errno === EIO.errno && error !== EIO) this.#log('error', `${opcodeName[request.opcode]}: EIO`, error);
    } else {
      errno = EIO.errno;
      this.#log('error', `${opcodeName[request.opcode] ?? request.opcode} failed, answered EIO`, error);
    }
    this.#send(request, errno, 0);
  }

  #header(view: DataView, at: number, length: number, errno: number, lo: number, hi: number): void {
    view.setUint32(at, length, true);
    view.setInt32(at + 4, -errno, true);
    view.setUint32(at + 8, lo, true);
    view.setUint32(at + 12, hi, true);
  }

  /** Header of the reply, in the slot or (parked) in the staging page; answers its address. */
  #prepare(request: Request, errno: number, length: number): number {
    const { slots, device } = this;
    const k = request.slot;
    if (k >= 0) {
      const table = slots.slots;
      this.#header(table.view, slots.replyOffset(k), length, errno, slots.uniqueLo(table, k), slots.uniqueHi(table, k));
      return slots.replyAddress(k);
    }
    const { parked } = slots;
    const p = request.parked;
    this.#header(device.staging.view, 0, length, errno, slots.uniqueLo(parked, p), slots.uniqueHi(parked, p));
    return device.staging.address;
  }

  /** A reply of `payload` bytes that is in place: stored (APPLIED), written, slot free. */
  #send(request: Request, errno: number, payload: number): void {
    const length = OUT_HEADER + payload;
    const address = this.#prepare(request, errno, length);
    if (request.slot >= 0) this.slots.applied(request.slot, length);
    else if (payload <= PARKED_REPLY_MAX)
      this.slots.appliedParked(request.parked, errno, payload, this.device.staging.view);
    faultPoint('request.stored', request);
    this.#written(request, this.device.write(address, length), errno);
  }

  /** Sends bytes: short ones by way of the slot (-> their length), others from where they are (-> -1). */
  sendBytes(request: Request, data: Uint8Array, view: DataView, at: number): number {
    const n = data.length;
    if (n > REPLY - OUT_HEADER) return this.sendPieces(request, [data]);
    if (request.opcode === OP.READ && n > request.size) throw tooLong(n, request.size);
    for (let i = 0; i < n; i++) view.setUint8(at + i, data[i]!);
    return n;
  }

  /** Sends data from where it is. Not stored: the request only reads, so it can be repeated. */
  sendPieces(request: Request, pieces: readonly Uint8Array[]): number {
    let total = 0;
    for (const piece of pieces) total += piece.length;
    if (request.opcode === OP.READ && total > request.size) throw tooLong(total, request.size);
    const address = this.#prepare(request, 0, OUT_HEADER + total);
    this.#written(request, this.device.writeData(address, pieces, total), 0);
    return -1;
  }

  readDone(data: ReadOut): void {
    this.#fs.readDone?.(data);
  }

  /** Sends the READDIR buffer. */
  sendBuffer(request: Request, length: number): number {
    const memory = request.memory!;
    const { slots } = this;
    const from = request.slot >= 0 ? slots.slots : slots.parked;
    const index = request.slot >= 0 ? request.slot : request.parked;
    this.#header(memory.view, 0, OUT_HEADER + length, 0, slots.uniqueLo(from, index), slots.uniqueHi(from, index));
    this.#written(request, this.device.write(memory.address, OUT_HEADER + length), 0);
    return -1;
  }

  /** The READDIR buffer; entries that are added from now on go nowhere. */
  #releaseMemory(request: Request): void {
    if (!request.memory) return;
    if (request.writer) request.writer.closed = true;
    this.device.release(request.memory);
    request.memory = undefined;
  }

  /** After the write(2) of a reply. */
  #written(request: Request, result: number, errno: number): void {
    faultPoint('request.answered', request);
    request.answered = true;
    this.#answered++;
    if (errno !== 0) this.#failed++;
    if (result < 0) this.#refused(request, result);
    if (!request.abandoned) this.#releaseMemory(request);
    const { slots } = this;
    if (request.spill >= 0 && !request.dataTaken) slots.arena.free(request.spill, request.spillLength);
    if (request.slot >= 0) {
      this.#requests[request.slot] = undefined;
      slots.free(request.slot);
      this.working--;
    } else {
      this.#parkedIds.delete(this.#idOf(slots.parked, request.parked));
      this.#parked.delete(request.parked);
      slots.freeParked(request.parked);
    }
    faultPoint('request.freed', request);
    this.device.answered();
    this.#freed();
  }

  /** The kernel did not take the reply: ENOENT (already answered, or gone) is final, and no look-up was counted. */
  #refused(request: Request, result: number): void {
    if (result === ENOENT_WRITE) {
      if (request.looked !== 0) this.#fs.forget?.(request.looked, 1);
      for (const nodeid of request.writer?.looked ?? []) this.#fs.forget?.(nodeid, 1);
      return;
    }
    if (result === ENODEV_WRITE) return;
    this.#log('error', `reply to ${opcodeName[request.opcode]} is refused with errno ${-result}`);
    if (result !== EINVAL_WRITE) return;
    // A malformed reply can leave the request unanswered; this one cannot be malformed.
    this.device.write(this.#prepare(request, EIO.errno, OUT_HEADER), OUT_HEADER);
  }

  // --- The end ----------------------------------------------------------------------------------------------------

  trouble(message: string): void {
    this.#log('error', message);
  }

  gone(errno: number): void {
    if (this.ended) return;
    this.ended = true;
    this.#dropFromServing();
    if (errno === EPERM.errno || errno === EINVAL.errno)
      this.#log('error', `read of /dev/fuse fails with errno ${errno}`, errnoOf(errno));
    for (const request of this.#requests) request?.fire();
    for (const request of this.#parked.values()) request.fire();
    this.#end().catch(error => this.#log('error', 'destroy failed', error));
  }

  async #end(): Promise<void> {
    const until = performance.now() + LAST_CALLS;
    while (this.working > 0 && performance.now() < until) await new Promise(resolve => setTimeout(resolve, 5));
    const left = this.#requests.filter(request => request !== undefined);
    if (left.length > 0) {
      const names = left.slice(0, 10).map(({ opcode, nodeid }) => `${opcodeName[opcode] ?? opcode} of inode ${nodeid}`);
      this.#log('warn', `the file system has not answered ${left.length} requests: ${names.join(', ')}`);
    }
    try {
      await this.#fs.destroy?.();
    } finally {
      this.#finish();
    }
  }
}

function tooLong(n: number, size: number): Errno {
  return EIO.because(`read answers ${n} bytes, ${size} were asked for`);
}

function defaultLog(level: string, message: string, cause?: unknown): void {
  if (level === 'debug') return;
  if (cause === undefined) console.error(`fuse: ${message}`);
  else console.error(`fuse: ${message}:`, cause);
}

// --- Notifications ------------------------------------------------------------------------------------------------

function notifier(device: Device, connection: () => Connection | undefined): FullNotifier {
  const minor = (): number => connection()?.minor ?? 0;
  const send = async (message: Uint8Array): Promise<boolean> => (await device.notify(message)) >= 0;
  return {
    async invalInode(nodeid, offset, length) {
      await send(notifyInvalInode(nodeid, offset, length));
    },
    async invalEntry(parent, name) {
      await send(notifyInvalEntry(parent, name, 0));
    },
    async expireEntry(parent, name) {
      await send(notifyInvalEntry(parent, name, minor() >= 38 ? EXPIRE_ONLY : 0));
    },
    async delete(parent, child, name) {
      await send(notifyDelete(parent, child, name));
    },
    async incEpoch() {
      return minor() >= 44 && send(notifyBare(NOTIFY.INC_EPOCH));
    },
    store: (nodeid, offset, data) => send(notifyStore(nodeid, offset, data)),
    async prune(nodeids) {
      return minor() >= 45 && nodeids.length > 0 && send(notifyPrune(nodeids));
    },
    async resend() {
      return minor() >= 40 && send(notifyBare(NOTIFY.RESEND));
    },
  };
}
