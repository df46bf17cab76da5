/**
 * `.control` files: what a program writes is a request, the answer is read from the same descriptor behind it. Requests, results and how much of
 * the stream was made are in the capsule, so that a job goes on in the next process and its reader notices nothing.
 *
 * Items (items.ts, owner = fh), by their first byte: "Q" u32 uid, u32 gid, u32 pid, u32 number of groups, u32 each, then bytes as written; "R" u32 number of
 * progress items, then the end of the stream. A request belongs to the credentials of its first write.
 *
 * Section `vfs.jobs` version 1, 64 bytes a record: state u32 @0 (1), fh f64 @8, progress items made of the request under way f64 @16, seq of the
 * job's first mutation f64 @24 (0 = none yet), an inode that the job remembers f64 @32.
 */
import type { Capsule, Context, Records } from '@steadfs/fuse';
import { EFBIG, EINVAL, EIO, Errno } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { type Cred, type Op, OpKind } from '../meta/engine.ts';
import { errnoItem, MAX_MESSAGE, messageLength, parseRequest, progressItem, type Request } from './control-protocol.ts';
import type { Counters } from './counters.ts';
import { RequestCred } from './cred.ts';
import type { Items } from './items.ts';

const REQUEST = 0x51;
const RESULT = 0x52;
const PROGRESS_EVERY = 300;
/** Streams longer than this lose what was read already. */
const KEEP = 1 << 20;

/** What a job is given. */
export interface JobContext {
  cred: Cred;
  /** Stops when the descriptor is closed. */
  signal: AbortSignal;
  /** It was begun by a process that died: what is done already is no error. */
  resumed: boolean;
  /** Running totals so far. */
  progress(a: number, b: number): void;
  /** Operation of the job's first mutation: the same in every process that carries the job on. */
  firstOp(): Op;
  /** A new operation, in one of the job's lanes 0…63; a lane has one under way at most. */
  op(lane: number): Op;
  /** Keeps an inode for the next process. */
  remember(ino: Ino): void;
  remembered(): Ino | undefined;
}

/** Carries a request out. Answers the end of the stream: data, or an errno byte. */
export type RunJob = (request: Request, ctx: JobContext) => Promise<Buffer>;

interface Job {
  readonly record: number;
  readonly abort: AbortController;
  made: number;
  totals: [number, number];
}

interface Stream {
  readonly fh: number;
  /** Credentials of the request that is being written or run. */
  cred: RequestCred | undefined;
  /** Everything written and answered; [0] is at offset `start`. */
  bytes: Buffer;
  start: number;
  /** Where in `bytes` the request that is not answered begins. */
  request: number;
  job: Job | undefined;
}

/** Jobs' first mutations are numbered from here, out of the way of lanes. */

const LANES = 64;

export class ControlFiles {
  readonly #items: Items;
  readonly #counters: Counters;
  readonly #records: Records;
  readonly #streams = new Map<number, Stream>();
  readonly #run: RunJob;

  constructor(capsule: Capsule, items: Items, counters: Counters, run: RunJob) {
    this.#items = items;
    this.#counters = counters;
    this.#run = run;
    this.#records = capsule.records({ name: 'vfs.jobs', version: 1, recordSize: 64, capacity: 1000 });
  }

  get running(): number {
    let n = 0;
    for (const s of this.#streams.values()) if (s.job !== undefined) n++;
    return n;
  }

  /** Goes on with what a process before was doing. `open` are the control files that are open. */
  resume(open: Iterable<number>): void {
    const records = new Map<number, number>();
    for (const index of this.#records.live()) {
      records.set(this.#records.view.getFloat64(this.#records.offsetOf(index) + 8, true), index);
    }
    for (const fh of open) {
      const stream = this.#stream(fh);
      const record = records.get(fh);
      records.delete(fh);
      for (const item of this.#items.load(fh)) {
        const b = Buffer.from(item.buffer, item.byteOffset, item.byteLength);
        if (b[0] === REQUEST) {
          const groups = b.readUInt32BE(13);
          const ids = Array.from({ length: groups }, (_, i) => b.readUInt32BE(17 + i * 4));
          stream.cred ??= new RequestCred(b.readUInt32BE(1), b.readUInt32BE(5), b.readUInt32BE(9), true, ids);
          stream.bytes = Buffer.concat([stream.bytes, b.subarray(17 + groups * 4)]);
        } else {
          // The progress items were read, or their values matter to nobody.
          const made = Array.from({ length: b.readUInt32BE(1) }, () => progressItem(0, 0));
          stream.bytes = Buffer.concat([stream.bytes, ...made, b.subarray(5)]);
          stream.request = stream.bytes.length;
          stream.cred = undefined;
        }
      }
      const waiting = stream.bytes.length > stream.request;
      if (record !== undefined && !waiting) this.#records.free(record);
      if (waiting) this.#begin(stream, record);
    }
    for (const record of records.values()) this.#records.free(record);
  }

  #stream(fh: number): Stream {
    let stream = this.#streams.get(fh);
    if (stream === undefined) {
      stream = { fh, cred: undefined, bytes: Buffer.alloc(0), start: 0, request: 0, job: undefined };
      this.#streams.set(fh, stream);
    }
    return stream;
  }

  /** Takes a piece of a request; the job starts when it is whole. */
  write(ctx: Context, fh: number, offset: number, piece: Uint8Array): number {
    const stream = this.#stream(fh);
    // Repeated, and taken before the process died.
    if (ctx.replay && offset + piece.length <= stream.start + stream.bytes.length) return piece.length;
    if (stream.job !== undefined) throw EINVAL;
    if (stream.bytes.length - stream.request + piece.length > MAX_MESSAGE) throw EFBIG;
    stream.cred ??= new RequestCred(ctx.uid, ctx.gid, ctx.pid, true);
    const groups = stream.cred.groups();
    const head = Buffer.alloc(17 + groups.length * 4);
    head[0] = REQUEST;
    head.writeUInt32BE(ctx.uid, 1);
    head.writeUInt32BE(ctx.gid, 5);
    head.writeUInt32BE(ctx.pid, 9);
    head.writeUInt32BE(groups.length, 13);
    groups.forEach((g, i) => {
      head.writeUInt32BE(g, 17 + i * 4);
    });
    this.#items.append(fh, Buffer.concat([head, piece]));
    stream.bytes = Buffer.concat([stream.bytes, piece]);
    this.#begin(stream, undefined);
    return piece.length;
  }

  /** Starts the job when its request is complete. */
  #begin(stream: Stream, record: number | undefined): void {
    const written = stream.bytes.subarray(stream.request);
    const length = messageLength(written);
    if (length === undefined || written.length < length) return;
    const request = length === written.length ? parseRequest(written) : undefined;
    if (request === undefined) {
      // Unknown commands say EINVAL, bytes behind the message EIO.
      this.#end(stream, 0, errnoItem(length === written.length ? EINVAL.errno : EIO.errno));
      return;
    }
    const r = this.#records;
    const resumed = record !== undefined;
    record ??= r.alloc();
    if (record === undefined) {
      this.#end(stream, 0, errnoItem(EIO.errno));
      return;
    }
    const at = r.offsetOf(record);
    if (!resumed) {
      r.cells.setFloat64(at + 8, stream.fh);
      for (const field of [16, 24, 32]) r.cells.setFloat64(at + field, 0);
      r.setState(record, 1);
    }
    const made = r.view.getFloat64(at + 16, true);
    for (let i = 0; i < made; i++) stream.bytes = Buffer.concat([stream.bytes, progressItem(0, 0)]);
    const job: Job = { record, abort: new AbortController(), made, totals: [0, 0] };
    stream.job = job;
    void this.#work(stream, job, request, resumed);
  }

  async #work(stream: Stream, job: Job, request: Request, resumed: boolean): Promise<void> {
    const r = this.#records;
    const at = r.offsetOf(job.record);
    const slot = (lane: number) => (job.record + 1) * LANES + lane;
    const timer = setInterval(() => this.#progress(stream, job), PROGRESS_EVERY);
    timer.unref();
    let end: Buffer;
    try {
      end = await this.#run(request, {
        cred: stream.cred!,
        signal: job.abort.signal,
        resumed,
        progress: (a, b) => {
          job.totals = [a, b];
        },
        firstOp: () => {
          let seq = r.view.getFloat64(at + 24, true);
          if (seq === 0) {
            seq = this.#counters.nextSeq();
            r.cells.setFloat64(at + 24, seq);
          }
          return { kind: OpKind.job, slot: slot(0), seq };
        },
        op: lane => this.#counters.jobOp(slot(1 + lane)),
        remember: ino => r.cells.setFloat64(at + 32, ino),
        remembered: () => r.view.getFloat64(at + 32, true) || undefined,
      });
      // At least one on success; a failed `info` has none, and says so in its JSON.
      this.#progress(stream, job);
    } catch (error) {
      end = errnoItem(error instanceof Errno ? error.errno : EIO.errno);
    } finally {
      clearInterval(timer);
    }
    if (this.#streams.get(stream.fh) === stream) this.#end(stream, job.made, end);
    r.free(job.record);
    stream.job = undefined;
  }

  #progress(stream: Stream, job: Job): void {
    if (job.abort.signal.aborted) return;
    job.made++;
    this.#records.cells.setFloat64(this.#records.offsetOf(job.record) + 16, job.made);
    stream.bytes = Buffer.concat([stream.bytes, progressItem(...job.totals)]);
  }

  #end(stream: Stream, made: number, end: Buffer): void {
    const item = Buffer.alloc(5 + end.length);
    item[0] = RESULT;
    item.writeUInt32BE(made, 1);
    end.copy(item, 5);
    try {
      this.#items.append(stream.fh, item);
    } catch (error) {
      // The capsule is full: the reader has its answer all the same, only the next process would carry the request out again.
      if (!(error instanceof Errno)) throw error;
    }
    stream.bytes = Buffer.concat([stream.bytes, end]);
    stream.request = stream.bytes.length;
    stream.cred = undefined;
  }

  /** What is there from `offset` on; nothing while the job has no more to say. */
  read(fh: number, offset: number, size: number): Uint8Array {
    const stream = this.#stream(fh);
    const from = Math.max(0, offset - stream.start);
    const out = stream.bytes.subarray(from, from + size);
    if (stream.job === undefined && stream.bytes.length > 2 * KEEP && from > KEEP) {
      stream.bytes = Buffer.from(stream.bytes.subarray(from));
      stream.start += from;
      stream.request = Math.max(0, stream.request - from);
    }
    return out;
  }

  /** Closing the descriptor stops its job at its next step. */
  close(fh: number): void {
    const stream = this.#streams.get(fh);
    this.#streams.delete(fh);
    this.#items.clear(fh);
    stream?.job?.abort.abort();
  }
}
