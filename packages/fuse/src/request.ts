/**
 * A request in flight: its bytes, its caller, its interrupt, and where it is (slot or parked).
 */
import { readFileSync } from 'node:fs';
import {
  copyBytes,
  cstringLength,
  type DirentWriter,
  IN_GID,
  IN_HEADER,
  IN_NODEID,
  IN_OPCODE,
  IN_PID,
  IN_UID,
  OP,
  u64,
  WRITE_PREFIX,
} from './abi.ts';
import type { Device } from './device.ts';
import { EBUSY, EINTR, EIO, ENAMETOOLONG, type Errno } from './errno.ts';
import type { Slots } from './slots.ts';
import type { Memory } from './sys.ts';
import type { Context, Interrupt, Name, Op, ReadOut, WriteData } from './types.ts';

/** Bytes of a name, as everywhere in Linux. */
const NAME_MAX = 255;
export const NO_BYTES = new Uint8Array(0);

/** Requests whose callers are being killed, or that wait too long, are looked for this often, ms. */
export const LOOK_MS = 100;
/** Nobody waits for these, or nothing can be done without them. */
export const STAYS: ReadonlySet<number> = new Set([OP.INIT, OP.DESTROY, OP.RELEASE, OP.RELEASEDIR, OP.WRITE]);
/** No limit of time. */
export const ENDLESS: ReadonlySet<number> = new Set([
  OP.INIT,
  OP.DESTROY,
  OP.RELEASE,
  OP.RELEASEDIR,
  OP.SETLKW,
  OP.POLL,
]);

/** What a request needs of the server that it belongs to. */
export interface Replier {
  readonly slots: Slots;
  readonly device: Device;
  readonly ended: boolean;
  /** The kernel sends the long form of SETXATTR. */
  readonly setxattrExt: boolean;
  park(request: Request): void;
  unpark(request: Request): Promise<Op>;
  /** Answers an error that was not thrown (-> -1: it is sent). */
  refuse(request: Request, error: Errno): number;
  /** Sends bytes: short ones by way of the slot (-> their length), others from where they are (-> -1). */
  sendBytes(request: Request, data: Uint8Array, view: DataView, at: number): number;
  /** Sends data from where it is (-> -1). Not stored: the request only reads, so it can be repeated. */
  sendPieces(request: Request, pieces: readonly Uint8Array[]): number;
  /** Sends the READDIR buffer (-> -1). */
  sendBuffer(request: Request, length: number): number;
  /** The data of a READ is written, or copied into the slot. */
  readDone(data: ReadOut): void;
}

/** A request and its {@link Context}. The bytes are where slots.ts put them; everything that outlives the dispatch is copied. */
export class Request implements Context, Interrupt {
  readonly server: Replier;
  /** Slot, or -1 while parked. */
  slot: number;
  parked = -1;
  view!: DataView;
  bytes!: Uint8Array;
  at = 0;
  length = 0;
  spill = -1;
  spillLength = 0;
  opcode = 0;
  nodeid = 0;
  uid = 0;
  gid = 0;
  pid = 0;
  op: Op;
  replay = false;
  fired = false;
  answered = false;
  /** Answered while the file system is still at it. */
  abandoned = false;
  expired = false;
  endless = false;
  /** When it was first seen waiting under a limit, ms. */
  seen: number | undefined;
  /** The spill belongs to the file system. */
  dataTaken = false;
  /** Bytes that the caller has room for (READ, READDIR, xattrs). */
  size = 0;
  /** Node id that the reply counts as looked up. */
  looked = 0;
  /** READDIR: the buffer and its writer. */
  memory: Memory | undefined;
  writer: DirentWriter | undefined;
  #settled: Promise<void> | undefined;
  #settle: (() => void) | undefined;

  constructor(server: Replier, slot: number) {
    this.server = server;
    this.slot = slot;
    const { slots } = server;
    slots.bytesOf(slots.slots, slot, this);
    const { view, at } = this;
    this.opcode = view.getUint32(at + IN_OPCODE, true);
    this.nodeid = u64(view, at + IN_NODEID);
    this.uid = view.getUint32(at + IN_UID, true);
    this.gid = view.getUint32(at + IN_GID, true);
    this.pid = view.getUint32(at + IN_PID, true);
    this.op = { kind: 0, slot, seq: slots.seq(slot) };
  }

  /** First byte of the body in `view`. */
  get body(): number {
    return this.at + IN_HEADER;
  }
  get end(): number {
    return this.at + this.length;
  }
  u32(at: number): number {
    return this.view.getUint32(this.at + IN_HEADER + at, true);
  }
  u64(at: number): number {
    return u64(this.view, this.at + IN_HEADER + at);
  }
  big(at: number): bigint {
    return this.view.getBigUint64(this.at + IN_HEADER + at, true);
  }
  /** The name at `at` of the body; ENAMETOOLONG above 255 bytes, which kernels since 6.14 leave to us. */
  name(at: number): Name {
    const name = this.string(at);
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
    return name;
  }
  /** The string at `at` of the body. */
  string(at: number): Uint8Array {
    const start = this.at + IN_HEADER + at;
    const length = cstringLength(this.bytes, start, this.end);
    if (start + length >= this.end) throw EIO.because('a request with a name that has no end');
    return copyBytes(this.bytes, start, length);
  }

  get unique(): bigint {
    const { slots } = this.server;
    const from = this.slot >= 0 ? slots.slots : slots.parked;
    const index = this.slot >= 0 ? this.slot : this.parked;
    return (BigInt(slots.uniqueHi(from, index) & 0x7fff_ffff) << 32n) | BigInt(slots.uniqueLo(from, index));
  }

  get interrupt(): Interrupt {
    return this;
  }
  get promise(): Promise<void> {
    this.#settled ??= this.fired
      ? Promise.resolve()
      : new Promise(resolve => {
          this.#settle = resolve;
        });
    return this.#settled;
  }
  fire(): void {
    if (this.fired) return;
    this.fired = true;
    this.#settle?.();
  }
  callerIsDying(): boolean {
    return this.server.ended || (this.pid !== 0 && isDying(this.pid));
  }

  expire(): void {
    this.expired = true;
    this.fire();
  }

  park(): void {
    if (this.slot >= 0 && !this.answered) this.server.park(this);
  }
  unpark(): Promise<Op> {
    if (this.abandoned) return Promise.reject(EINTR);
    return this.slot >= 0 ? Promise.resolve(this.op) : this.server.unpark(this);
  }
}

/** SIGKILL is pending for the thread (any fatal signal ends up so), or it is gone. */
export function isDying(pid: number): boolean {
  let status: string;
  try {
    status = readFileSync(`/proc/${pid}/status`, 'latin1');
  } catch {
    return true; // no such process any more
  }
  for (const [, mask] of status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm)) {
    if (Number.parseInt(mask!.slice(-4), 16) & 0x100) return true;
  }
  return /^State:\s*[ZX]/m.test(status) || wasKilled(pid);
}

/** PF_SIGNALED of include/linux/sched.h */
const PF_SIGNALED = 0x400;

/**
 * A signal has ended the process, and it is giving its files back. Nothing is pending any more then, and the kernel sends no INTERRUPT, but waits for the answers to the
 * FLUSHes. Those of a process that ends by itself are waited for: they are its close(2)s.
 */
export function wasKilled(pid: number): boolean {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    // No such process any more.
    return true;
  }
  // Behind the name in parentheses: state, ppid, pgrp, session, tty, tpgid, flags.
  return (Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6]) & PF_SIGNALED) !== 0;
}

/** Data of a WRITE that is on pages of its own, or (short) a copy. */
export class LandedData implements WriteData {
  readonly bytes: Uint8Array;
  readonly #request: Request;
  constructor(request: Request, size: number) {
    this.#request = request;
    const { spill, bytes, at } = request;
    if (spill < 0) this.bytes = copyBytes(bytes, at + WRITE_PREFIX, size);
    else this.bytes = request.server.slots.arena.bytes.subarray(spill, spill + size);
  }
  take(): number | undefined {
    const request = this.#request;
    if (request.answered) throw EBUSY.because('data of a WRITE taken after its answer');
    // Taken before: a repeated request whose pages the file system described before the process died, or a second try. They have an owner.
    if (request.spill < 0 || request.dataTaken) return undefined;
    request.dataTaken = true;
    return request.spill;
  }
}
