/**
 * The requests of the connection, in memory that outlives the process: the landing area, the request slots and the table
 * of parked requests. No system call is made here; device.ts reads and writes, session.ts decides.
 *
 * A read(2) of /dev/fuse lands in two places (readv): the first 80 bytes in the landing record, the rest in the landing
 * *run*, free pages of the arena. 80 bytes are a header and a fuse_write_in, so the data of a WRITE begins on a page and stays
 * where it is: the pages go on with the slot and, by WriteData.take(), to the file system. Everything else is copied into
 * the slot, but for what is larger than INLINE, whose pages go with the slot too.
 *
 * The order of stores, so that kill -9 between any two leaves something that can be adopted (each of the state words is one
 * aligned store; the kernel's copy itself is not interrupted because all of the memory is present):
 *
 *   landing   header.len = 0; run offset stored; a canary in the first word of each page of the run
 *   read(2)   the kernel fills header, then body. From here on header.len != 0
 *   take      slot k: id, seq + 1, request bytes, spill; then state = TAKEN; then landing header.len = 0
 *   answer    slot k: reply, its length; state = APPLIED; write(2); spill pages freed; state = EMPTY
 *   park      parked p: everything but the reply; state = PARKED; then slot k EMPTY
 *   unpark    slot k: everything, seq + 1; state = TAKEN; then parked p EMPTY
 *
 * What the adopter does with what it finds:
 *
 *   landing header.len != 0   its id is in a slot or parked: dropped. Incomplete (the canary in the last page it covers is still
 *                             there): the kernel has answered EIO already, dropped. FORGETs go on where `progress` says.
 *                             Else it is taken now
 *   TAKEN                     handed to the file system again, with the same Op (but see below: requests that crash the service)
 *   APPLIED                   only answered again; ENOENT from the kernel means that it was answered
 *   PARKED                    its id is in a slot too: dropped. Else it is queued for a slot, and gets a new Op there
 *   APPLIED (parked)          only answered again; for replies of at most 8 bytes (a WRITE that waited must not come after a newer one)
 *
 * A request that crashes the service would be repeated for ever, so crashes are counted: HANDED in a slot's flags says that the file system has it, and
 * bits 8..15 hold at how many crashes it had it. The landing record tells who hands requests out (its pid) and whether it has died of an uncaught
 * exception (a word that is set before it exits); of a death by signal the keeper tells the next service (STEADFS_ENDED). SIGKILL and whatever else comes from
 * outside never counts. The adopter counts (one store for flag and count of a slot), and hands suspects out last and alone; see session.ts.
 *
 * Pages of the arena are not marked anywhere: who adopts claims those of its records. A WRITE whose data the file system has
 * taken is in the file system's records and in the slot until it is answered; so the file system claims first (before
 * `start()` of session.ts), and a spill that overlaps a claim is the file system's.
 *
 * Slots are few (one op record each in the engine) and a request that waits must not keep one. RESERVED of them only take what ends
 * a wait (unlock, release, flush); other requests are then put into the parked table at once, to be handed out when a
 * slot gets free. So reading goes on until the parked table itself is full.
 */
import koffi from 'koffi';
import { IN_HEADER, IN_LEN, IN_OPCODE, IN_PID, IN_UNIQUE, OP, OUT_HEADER, PAGE, WRITE_PREFIX } from './abi.ts';
import type { Arena, Capsule, Records } from './capsule-types.ts';

export const SLOTS = 256;
export const RESERVED = 16;
/** Bytes of a request that are kept in its slot: two names of 255 and the largest fixed part fit. */
const INLINE = 640;
/** Bytes of a stored reply: fuse_out_header and fuse_statx_out (304) or fuse_entry_out and fuse_open_out fit. */
export const REPLY = 320;
const PARKED_CAPACITY = 65_536;

export const EMPTY = 0;
const TAKEN = 1;
export const APPLIED = 2;
const PARKED = 1;

/** Flags of a slot or parked request. */
export const INTERRUPTED = 1;
/** Parked before it was handed to the file system. */
const QUEUED = 2;
/** The file system has it (slots only; of no meaning in the parked table). */
export const HANDED = 4;
/** Bits 8..15: crashes of the service while the file system had it, since it was read. */
const CRASHES_SHIFT = 8;
const CRASHES = 0xff << CRASHES_SHIFT;

// Slot and parked record: state u32 @0, flags u32 @4, seq f64 @8 (exact integer: one aligned store), unique u32 u32 @16 (low, high),
// request length u32 @24, of that inline u32 @28, arena offset of the spill f64 @32 (-1 = none), its length u32 @40,
// reply length u32 @44 (slots) or the slot of the op (parked), 48..63 unused (slots) or the reply (parked): bytes behind its header
// u32 @48, errno u32 @52, those bytes @56.
const FLAGS = 4;
const SEQ = 8;
const UNIQUE = 16;
const LENGTH = 24;
const INLINE_LENGTH = 28;
const SPILL = 32;
const SPILL_LENGTH = 40;
const REPLY_LENGTH = 44;
const PARKED_REPLY = 48;
/** Bytes of a reply that a parked record has room for. */
export const PARKED_REPLY_MAX = 8;
const RECORD_HEADER = 64;
/** The reply is at this offset of the slot, the request behind it. */
const REPLY_AT = RECORD_HEADER;
const SLOT_REQUEST_AT = RECORD_HEADER + REPLY;
const SLOT_SIZE = SLOT_REQUEST_AT + INLINE;
const PARKED_REQUEST_AT = RECORD_HEADER;
const PARKED_SIZE = PARKED_REQUEST_AT + INLINE;

// Landing record: state u32 @0 (1), progress u32 @4 (forgets already done), run offset f64 @8, canary u32 u32 @16,
// run length u32 @24 (bytes that were present when the read began), pid of the process that hands requests out u32 @28 (0: none has),
// it has died of an uncaught exception u32 @32 (1), header and first 40 bytes of the body @48..127.
const PROGRESS = 4;
const RUN = 8;
const CANARY = 16;
const RUN_LENGTH = 24;
const SERVER = 28;
const CRASHED = 32;
const LANDING_AT = 48;
const LANDING_SIZE = 128;

/** More than the largest request in the run, so that short data does not make it grow at every request. */
const SLACK = 64 * PAGE;

/** What a connection keeps in the capsule, with the greatest version that is read. */
export const CONNECTION_SECTIONS: readonly { name: string; version: number }[] = [
  { name: 'fuse.slots', version: 1 },
  { name: 'fuse.parked', version: 1 },
  { name: 'fuse.landing', version: 1 },
  { name: 'fuse.connection', version: 1 },
];

/** One section with typed views: DataView stores are bytewise before V8 optimises them, these never are. */
interface Table {
  readonly records: Records;
  readonly view: DataView;
  readonly bytes: Uint8Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly f64: Float64Array;
  readonly size: number;
  /** Bytes from the record to its request. */
  readonly requestAt: number;
}

function table(records: Records, requestAt: number): Table {
  const { buffer, byteOffset, byteLength } = records.bytes;
  return {
    records,
    view: records.view,
    bytes: records.bytes,
    i32: new Int32Array(buffer, byteOffset, byteLength >> 2),
    u32: new Uint32Array(buffer, byteOffset, byteLength >> 2),
    f64: new Float64Array(buffer, byteOffset, byteLength >> 3),
    size: records.recordSize,
    requestAt,
  };
}

/** Where the bytes of a request are, for its decoder; `at` is the fuse_in_header. */
export interface RequestBytes {
  view: DataView;
  bytes: Uint8Array;
  at: number;
  length: number;
  /** Arena offset of the pages that hold its data, -1 without. */
  spill: number;
  spillLength: number;
}

function pagesOf(length: number): number {
  return (length + PAGE - 1) & ~(PAGE - 1);
}

export class Slots {
  readonly arena: Arena;
  readonly slots: Table;
  readonly parked: Table;
  /** Address of slot 0. */
  readonly address: number;
  /** First iovec of the read: 80 bytes. */
  readonly headerAddress: number;
  readonly #landing: Table;
  readonly #land: Uint32Array;
  readonly #arenaBytes: Uint8Array;
  readonly #arena32: Uint32Array;
  readonly #arenaAddress: number;
  /** Bytes that a run must have: the largest request without its first 80 bytes. */
  readonly #need: number;
  #run = -1;
  #runLength = 0;
  /** The run has lost its first pages to a spill; the landing record tells the old place until its header is cleared. */
  #moved = false;
  /** Bytes of the run from its start whose canaries are in place. */
  #canaried = 0;
  readonly #canaryLo: number;
  readonly #canaryHi: number;
  /** Free slots, taken from the end. */
  readonly #free: number[] = [];
  /** Slots of this process that hold a request. */
  used = 0;
  parkedCount = 0;

  /** `bodySize`: bytes of the largest request without its first 80 bytes. */
  constructor(capsule: Capsule, bodySize: number) {
    this.arena = capsule.arena;
    this.slots = table(
      capsule.records({ name: 'fuse.slots', version: 1, recordSize: SLOT_SIZE, capacity: SLOTS }),
      SLOT_REQUEST_AT,
    );
    this.parked = table(
      capsule.records({ name: 'fuse.parked', version: 1, recordSize: PARKED_SIZE, capacity: PARKED_CAPACITY }),
      PARKED_REQUEST_AT,
    );
    this.#landing = table(
      capsule.records({ name: 'fuse.landing', version: 1, recordSize: LANDING_SIZE, capacity: 1 }),
      LANDING_AT,
    );
    this.address = addressOf(this.slots.records);
    this.headerAddress = addressOf(this.#landing.records) + LANDING_AT;
    const { buffer, byteOffset } = this.#landing.bytes;
    this.#land = new Uint32Array(buffer, byteOffset + LANDING_AT, WRITE_PREFIX / 4);
    this.#arenaBytes = this.arena.bytes;
    this.#arena32 = new Uint32Array(this.arena.bytes.buffer, this.arena.bytes.byteOffset, this.arena.size / 4);
    this.#arenaAddress = Number(this.arena.address);
    this.#need = pagesOf(bodySize);
    const landing = this.#landing;
    if (landing.records.state(0) === EMPTY) {
      landing.records.alloc();
      landing.u32[CANARY / 4] = (Math.random() * 0x1_0000_0000) >>> 0;
      landing.u32[CANARY / 4 + 1] = (Math.random() * 0x1_0000_0000) >>> 0;
      landing.f64[RUN / 8] = -1;
      landing.u32[SERVER / 4] = 0;
      landing.u32[CRASHED / 4] = 0;
      landing.records.setState(0, 1);
    }
    this.#canaryLo = landing.u32[CANARY / 4]!;
    this.#canaryHi = landing.u32[CANARY / 4 + 1]!;
    for (const _ of this.parked.records.live()) this.parkedCount++;
    // All slots are handed out here, for the life of the process.
    while (this.slots.records.alloc() !== undefined);
    for (let k = SLOTS - 1; k >= 0; k--) {
      if (this.slots.records.state(k) === EMPTY) this.#free.push(k);
      else this.used++;
    }
  }

  /** The sections that read(2) and write(2) touch, for populate and mlock: address and bytes. */
  hotMemory(): { address: number; length: number }[] {
    return [
      { address: this.address, length: SLOTS * SLOT_SIZE },
      { address: this.headerAddress, length: WRITE_PREFIX },
    ];
  }

  // --- Landing ----------------------------------------------------------------------------------------------------

  /** Second iovec of the read. */
  get bodyAddress(): number {
    return this.#arenaAddress + this.#run;
  }
  get bodyLength(): number {
    return this.#runLength;
  }

  /**
   * Makes the landing area ready for a read(2) of the largest request. False when the arena has no room for one: then nothing may be
   * read until pages were freed.
   */
  prepare(): boolean {
    if (this.#runLength < this.#need && !this.#renewRun()) return false;
    if (this.#canaried < this.#runLength) {
      const words = this.#arena32;
      for (let at = this.#run + this.#canaried, end = this.#run + this.#runLength; at < end; at += PAGE) {
        words[at >>> 2] = this.#canaryLo;
        words[(at >>> 2) + 1] = this.#canaryHi;
      }
      this.#canaried = this.#runLength;
    }
    return true;
  }

  #renewRun(): boolean {
    const arena = this.arena;
    const want = this.#need + SLACK;
    const some = this.#runLength > 0;
    // Memory that was in use before is far cheaper than fresh one.
    let other: number | undefined;
    let longer = some && arena.extend(this.#run, this.#runLength, want, true);
    if (some && !longer) {
      other = arena.allocPresent(want);
      longer = other === undefined && arena.extend(this.#run, this.#runLength, want);
    }
    if (longer) this.#runLength = want;
    else {
      let length = want;
      let run = other ?? arena.alloc(length);
      if (run === undefined) {
        length = this.#need;
        run = arena.alloc(length);
        // What is freed need not lie together: more and more of it.
        for (let bytes = want; run === undefined && arena.makeRoom?.(bytes) === true; bytes *= 2)
          run = arena.alloc(length);
        if (run === undefined) return false;
      }
      if (some) arena.free(this.#run, this.#runLength);
      this.#run = run;
      this.#runLength = length;
      this.#canaried = 0;
    }
    this.#publishRun();
    return true;
  }

  /** Only while nothing has landed. */
  #publishRun(): void {
    this.#landing.f64[RUN / 8] = this.#run;
    this.#landing.u32[RUN_LENGTH / 4] = this.#runLength;
  }

  get landedLength(): number {
    return this.#land[IN_LEN / 4]!;
  }
  get landedOpcode(): number {
    return this.#land[IN_OPCODE / 4]!;
  }
  get landedUniqueLo(): number {
    return this.#land[IN_UNIQUE / 4]!;
  }
  get landedUniqueHi(): number {
    return this.#land[IN_UNIQUE / 4 + 1]!;
  }
  /** 32-bit word at `at` (a multiple of 4) of the landed request. */
  landedWord(at: number): number {
    return at < WRITE_PREFIX ? this.#land[at >>> 2]! : this.#arena32[(this.#run + at - WRITE_PREFIX) >>> 2]!;
  }

  /** Number of entries of the landed FORGET or BATCH_FORGET that are done. Stored before an entry is applied: none is ever applied twice. */
  get progress(): number {
    return this.#landing.u32[PROGRESS / 4]!;
  }
  set progress(count: number) {
    this.#landing.u32[PROGRESS / 4] = count;
  }

  /** Thread that made the request which has landed; 0: nobody. */
  get landedPid(): number {
    return this.#land[IN_PID / 4]!;
  }

  /** The landed request is somewhere else (or of no use): header.len = 0. */
  clearLanding(): void {
    const length = this.#land[IN_LEN / 4]!;
    Atomics.store(this.#land, IN_LEN / 4, 0);
    // Only now: while the length stands, an adopter goes on with the FORGETs where this says.
    if (this.#landing.u32[PROGRESS / 4] !== 0) this.#landing.u32[PROGRESS / 4] = 0;
    if (this.#moved) {
      this.#moved = false;
      this.#publishRun();
    } else if (length > WRITE_PREFIX) this.#dirty(length - WRITE_PREFIX);
  }

  /** The first `length` bytes of the run were written over. */
  #dirty(length: number): void {
    const words = this.#arena32;
    for (let at = this.#run, end = at + Math.min(length, this.#canaried); at < end; at += PAGE) {
      words[at >>> 2] = this.#canaryLo;
      words[(at >>> 2) + 1] = this.#canaryHi;
    }
  }

  /** At adoption: false when the landed request is there in part only (the kernel ended it with EIO). The run is claimed when it is whole and has a body. */
  adoptLanding(): boolean {
    const length = this.landedLength;
    const run = this.#landing.f64[RUN / 8]!;
    if (length < IN_HEADER) {
      this.progress = 0;
      return false;
    }
    if (length <= WRITE_PREFIX) return true;
    const body = length - WRITE_PREFIX;
    const runLength = this.#landing.u32[RUN_LENGTH / 4]!;
    if (run < 0 || body > runLength || run + runLength > this.arena.size) return false;
    const last = (run + ((body - 1) & ~(PAGE - 1))) >>> 2;
    if (this.#arena32[last] === this.#canaryLo && this.#arena32[last + 1] === this.#canaryHi) return false;
    this.arena.claim(run, runLength);
    this.#run = run;
    this.#runLength = runLength;
    this.#canaried = 0;
    return true;
  }

  // --- Slots ------------------------------------------------------------------------------------------------------

  /** A free slot for a new request, or -1. `privileged`: what ends a wait may have the last ones. */
  acquire(privileged: boolean): number {
    const free = this.#free;
    if (free.length <= (privileged ? 0 : RESERVED)) return -1;
    this.used++;
    return free.pop()!;
  }

  get freeSlots(): number {
    return Math.max(0, this.#free.length - RESERVED);
  }

  // --- Crashes ----------------------------------------------------------------------------------------------------

  /** Pid of the process that hands requests out. */
  get server(): number {
    return this.#landing.u32[SERVER / 4]!;
  }
  /** It is dying of an uncaught exception. */
  get crashed(): boolean {
    return this.#landing.u32[CRASHED / 4] !== 0;
  }
  crashing(): void {
    this.#landing.u32[CRASHED / 4] = 1;
  }
  /** This process hands them out from now on; 0: nobody does that a crash could be blamed on. */
  serving(pid: number): void {
    this.#landing.u32[SERVER / 4] = pid;
    this.#landing.u32[CRASHED / 4] = 0;
  }

  /** At adoption: nobody has the requests that are taken. With `crash`, those that the file system had get one more. Answers how many it had. */
  settleHanded(crash: boolean): number {
    const { u32, records } = this.slots;
    let count = 0;
    for (const k of records.live()) {
      const at = (k * SLOT_SIZE + FLAGS) / 4;
      const flags = u32[at]!;
      if (records.state(k) !== TAKEN || (flags & HANDED) === 0) continue;
      count++;
      const crashes = Math.min(0xff, this.crashes(k) + (crash ? 1 : 0));
      u32[at] = (flags & ~(HANDED | CRASHES)) | (crashes << CRASHES_SHIFT);
    }
    return count;
  }

  /** How often the service has crashed while the file system had the request of slot k. */
  crashes(k: number): number {
    return (this.slots.u32[(k * SLOT_SIZE + FLAGS) / 4]! & CRASHES) >>> CRASHES_SHIFT;
  }

  /** Landing → slot k (acquired), to be handed out at once. The landing area is free afterwards. */
  take(k: number): void {
    this.#store(this.slots, k, this.slots.f64[(k * SLOT_SIZE + SEQ) / 8]! + 1, HANDED, 0);
    this.slots.records.setState(k, TAKEN);
    this.clearLanding();
  }

  /** Landing → parked table, to be handed out later; its index, or undefined when the table is full. */
  queue(): number | undefined {
    const p = this.parked.records.alloc();
    if (p === undefined) return undefined;
    this.#store(this.parked, p, 0, QUEUED, 0);
    this.parked.records.setState(p, PARKED);
    this.parkedCount++;
    this.clearLanding();
    return p;
  }

  opcodeOf(from: Table, index: number): number {
    return from.u32[(index * from.size + from.requestAt + IN_OPCODE) >>> 2]!;
  }

  pidOf(from: Table, index: number): number {
    return from.u32[(index * from.size + from.requestAt + IN_PID) >>> 2]!;
  }

  /** Fills a record from the landing area. */
  #store(to: Table, index: number, seq: number, flags: number, slot: number): void {
    const land = this.#land;
    const u32 = to.u32;
    const base = index * to.size;
    const w = base >>> 2;
    const length = land[IN_LEN / 4]!;
    let inline = length;
    let spill = -1;
    let spillLength = 0;
    if (length > INLINE) {
      inline = WRITE_PREFIX;
      spill = this.#run;
      spillLength = pagesOf(length - WRITE_PREFIX);
    }
    u32[w + FLAGS / 4] = flags;
    to.f64[(base + SEQ) / 8] = seq;
    u32[w + UNIQUE / 4] = land[IN_UNIQUE / 4]!;
    u32[w + UNIQUE / 4 + 1] = land[IN_UNIQUE / 4 + 1]!;
    u32[w + LENGTH / 4] = length;
    u32[w + INLINE_LENGTH / 4] = inline;
    to.f64[(base + SPILL) / 8] = spill;
    u32[w + SPILL_LENGTH / 4] = spillLength;
    u32[w + REPLY_LENGTH / 4] = slot;
    const r = (base + to.requestAt) >>> 2;
    for (let i = 0, n = Math.min(inline, WRITE_PREFIX) >>> 2; i < n; i++) u32[r + i] = land[i]!;
    if ((inline & 3) !== 0 && inline < WRITE_PREFIX) u32[r + (inline >>> 2)] = land[inline >>> 2]!;
    if (inline > WRITE_PREFIX) {
      const from = this.#run >>> 2;
      const words = this.#arena32;
      for (let i = 0, n = (inline - WRITE_PREFIX + 3) >>> 2; i < n; i++) {
        u32[r + WRITE_PREFIX / 4 + i] = words[from + i]!;
      }
    }
    if (spillLength > 0) {
      // The pages leave the run with the request; what is behind them stays.
      this.#run += spillLength;
      this.#runLength -= spillLength;
      this.#canaried = Math.max(0, this.#canaried - spillLength);
      this.#moved = true;
    }
  }

  /** Slot k → parked table; undefined when it is full (the request keeps its slot). */
  park(k: number): number | undefined {
    const p = this.parked.records.alloc();
    if (p === undefined) return undefined;
    this.#move(this.slots, k, this.parked, p, this.seq(k));
    this.parked.u32[(p * PARKED_SIZE + REPLY_LENGTH) / 4] = k;
    this.parked.records.setState(p, PARKED);
    this.parkedCount++;
    this.#release(k);
    return p;
  }

  /** Parked p → slot k (acquired), with a new seq, for the file system. */
  unpark(p: number, k: number): void {
    this.#move(this.parked, p, this.slots, k, this.seq(k) + 1);
    const at = (k * SLOT_SIZE + FLAGS) / 4;
    this.slots.u32[at] = (this.slots.u32[at]! & ~QUEUED) | HANDED;
    this.slots.records.setState(k, TAKEN);
    this.freeParked(p);
  }

  #move(from: Table, a: number, to: Table, b: number, seq: number): void {
    const fromWord = (a * from.size) >>> 2;
    const toWord = (b * to.size) >>> 2;
    for (let i = FLAGS / 4; i < RECORD_HEADER / 4; i++) {
      if (i !== SEQ / 4 && i !== SEQ / 4 + 1) to.u32[toWord + i] = from.u32[fromWord + i]!;
    }
    to.f64[(b * to.size + SEQ) / 8] = seq;
    const length = from.u32[fromWord + INLINE_LENGTH / 4]!;
    const start = a * from.size + from.requestAt;
    to.bytes.set(from.bytes.subarray(start, start + length), b * to.size + to.requestAt);
  }

  /** The slot is free again. Its spill must have been freed (or given away) before. */
  #release(k: number): void {
    this.slots.records.setState(k, EMPTY);
    this.used--;
    this.#free.push(k);
  }
  free(k: number): void {
    this.#release(k);
  }
  freeParked(p: number): void {
    this.parked.records.free(p);
    this.parkedCount--;
  }

  seq(k: number): number {
    return this.slots.f64[(k * SLOT_SIZE + SEQ) / 8]!;
  }

  /** Address and offset (in the section) of the reply of slot k. */
  replyOffset(k: number): number {
    return k * SLOT_SIZE + REPLY_AT;
  }
  replyAddress(k: number): number {
    return this.address + k * SLOT_SIZE + REPLY_AT;
  }
  /** state = APPLIED: from now on the request is only answered again. */
  applied(k: number, replyLength: number): void {
    this.slots.u32[(k * SLOT_SIZE + REPLY_LENGTH) / 4] = replyLength;
    this.slots.records.setState(k, APPLIED);
  }
  /** The same for a parked request; the reply (at most 8 bytes) is in `view` behind its header. */
  appliedParked(p: number, errno: number, payload: number, view: DataView): void {
    const { u32, records } = this.parked;
    const w = (p * PARKED_SIZE + PARKED_REPLY) / 4;
    u32[w] = payload;
    u32[w + 1] = errno;
    u32[w + 2] = view.getUint32(OUT_HEADER, true);
    u32[w + 3] = view.getUint32(OUT_HEADER + 4, true);
    records.setState(p, APPLIED);
  }
  /** Puts the stored reply's bytes into `view`; answers how many and the errno. */
  parkedReply(p: number, view: DataView): { errno: number; payload: number } {
    const { u32 } = this.parked;
    const w = (p * PARKED_SIZE + PARKED_REPLY) / 4;
    view.setUint32(OUT_HEADER, u32[w + 2]!, true);
    view.setUint32(OUT_HEADER + 4, u32[w + 3]!, true);
    return { errno: u32[w + 1]!, payload: u32[w]! };
  }
  replyLength(k: number): number {
    return this.slots.u32[(k * SLOT_SIZE + REPLY_LENGTH) / 4]!;
  }

  /** Where the request of a slot (or parked) is. A large one that is no WRITE is put together in a copy. */
  bytesOf(from: Table, index: number, into: RequestBytes): void {
    const w = (index * from.size) >>> 2;
    const length = from.u32[w + LENGTH / 4]!;
    const at = index * from.size + from.requestAt;
    into.spill = from.f64[(index * from.size + SPILL) / 8]!;
    into.spillLength = from.u32[w + SPILL_LENGTH / 4]!;
    into.length = length;
    into.view = from.view;
    into.bytes = from.bytes;
    into.at = at;
    if (into.spill < 0 || from.u32[(at + IN_OPCODE) >>> 2] === OP.WRITE) return;
    const bytes = new Uint8Array(length);
    bytes.set(from.bytes.subarray(at, at + WRITE_PREFIX));
    bytes.set(this.#arenaBytes.subarray(into.spill, into.spill + length - WRITE_PREFIX), WRITE_PREFIX);
    into.view = new DataView(bytes.buffer);
    into.bytes = bytes;
    into.at = 0;
  }

  /** The id as two words, bit 63 as the kernel gave it. */
  uniqueLo(from: Table, index: number): number {
    return from.u32[(index * from.size + UNIQUE) >>> 2]!;
  }
  uniqueHi(from: Table, index: number): number {
    return from.u32[(index * from.size + UNIQUE + 4) >>> 2]!;
  }
  /** The request came again after a RESEND: only the id with bit 63 can be answered now. */
  markResent(from: Table, index: number): void {
    from.u32[(index * from.size + UNIQUE + 4) >>> 2]! |= 0x8000_0000;
  }
  flags(from: Table, index: number): number {
    return from.u32[(index * from.size + FLAGS) >>> 2]!;
  }
  setFlag(from: Table, index: number, flag: number): void {
    from.u32[(index * from.size + FLAGS) >>> 2]! |= flag;
  }
  spill(from: Table, index: number): { offset: number; length: number } | undefined {
    const offset = from.f64[(index * from.size + SPILL) / 8]!;
    return offset < 0 ? undefined : { offset, length: from.u32[(index * from.size + SPILL_LENGTH) >>> 2]! };
  }

  /** Index of the record with this id (bit 63 ignored), or -1. Linear: only for INTERRUPT, RESEND and adoption. */
  find(from: Table, lo: number, hi: number): number {
    hi &= 0x7fff_ffff;
    for (const index of from.records.live()) {
      if (this.uniqueLo(from, index) === lo && (this.uniqueHi(from, index) & 0x7fff_ffff) === hi) return index;
    }
    return -1;
  }
}

/** Address of a section's first record. */
function addressOf(records: Records): number {
  return Number(koffi.address(records.bytes));
}
