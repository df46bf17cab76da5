/**
 * The Redis protocol, RESP2 and RESP3 (redis.io/docs/reference/protocol-spec): requests as arrays of byte strings, replies by an incremental
 * parser that hands over each reply in the order of the stream. Bulk strings are Buffers of their own.
 */

/** An error reply. Its message never holds arguments of the request. */
export class ReplyError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'ReplyError';
  }
  /** The first word: ERR, NOSCRIPT, MOVED … */
  get kind(): string {
    const end = this.message.indexOf(' ');
    return end < 0 ? this.message : this.message.slice(0, end);
  }
}

/** Status replies are strings, maps are flat arrays [key, value, …], big numbers and doubles are numbers. */
export type Reply = Buffer | string | number | boolean | null | ReplyError | Reply[];
/** Strings go out as UTF-8. */
export type Arg = string | Uint8Array | number;

interface Frame {
  items: Reply[];
  left: number;
  push: boolean;
  /** An attribute map: its value is thrown away. */
  drop: boolean;
}

const LF = 10;

export class RespParser {
  readonly #reply: (r: Reply) => void;
  readonly #push: (items: Reply[]) => void;
  #rest: Buffer | undefined;
  /** Bytes that must be there before it is worth trying again. */
  #need = 0;
  #stack: Frame[] = [];

  constructor(reply: (r: Reply) => void, push: (items: Reply[]) => void) {
    this.#reply = reply;
    this.#push = push;
  }

  /** `chunk` is not kept. Throws on bytes that are no RESP: the connection must be given up. */
  feed(chunk: Uint8Array): void {
    let b = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    if (this.#rest !== undefined) {
      b = Buffer.concat([this.#rest, b]);
      this.#rest = undefined;
    }
    let at = 0;
    if (b.length >= this.#need) {
      this.#need = 0;
      for (let next = this.#scalar(b, at); next >= 0; next = this.#scalar(b, at)) at = next;
      if (this.#need > 0) this.#need -= at;
    }
    if (at < b.length) this.#rest = Buffer.from(b.subarray(at));
  }

  /** Takes one token; answers where the next begins, or -1 when it is incomplete. */
  #scalar(b: Buffer, at: number): number {
    const lf = b.indexOf(LF, at);
    if (lf < 0) return -1;
    const next = lf + 1;
    switch (b[at]) {
      case 0x24: // $ bulk string
      case 0x3d: // = verbatim
      case 0x21: {
        // ! bulk error
        const n = integer(b, at + 1, lf - 1);
        if (n < 0) {
          this.#done(null);
          return next;
        }
        if (b.length < next + n + 2) {
          this.#need = next + n + 2;
          return -1;
        }
        const value = Buffer.from(b.subarray(next, next + n));
        this.#done(b[at] === 0x21 ? new ReplyError(value.toString()) : value);
        return next + n + 2;
      }
      case 0x2b: // +
        this.#done(b.toString('utf8', at + 1, lf - 1));
        return next;
      case 0x2d: // -
        this.#done(new ReplyError(b.toString('utf8', at + 1, lf - 1)));
        return next;
      case 0x3a: // :
        this.#done(integer(b, at + 1, lf - 1));
        return next;
      case 0x5f: // _
        this.#done(null);
        return next;
      case 0x23: // #
        this.#done(b[at + 1] === 0x74);
        return next;
      case 0x2c: // ,
      case 0x28: // (
        this.#done(Number(b.toString('latin1', at + 1, lf - 1)));
        return next;
      case 0x2a: // *
      case 0x7e: // ~
        this.#open(integer(b, at + 1, lf - 1), 1, false, false);
        return next;
      case 0x25: // %
        this.#open(integer(b, at + 1, lf - 1), 2, false, false);
        return next;
      case 0x3e: // >
        this.#open(integer(b, at + 1, lf - 1), 1, true, false);
        return next;
      case 0x7c: // |
        this.#open(integer(b, at + 1, lf - 1), 2, false, true);
        return next;
      default:
        throw new Error(`byte ${b[at]} begins no RESP value`);
    }
  }

  #open(count: number, times: number, push: boolean, drop: boolean): void {
    if (count < 0) this.#done(null);
    else if (count === 0 && !push && !drop) this.#done([]);
    else if (count > 0) this.#stack.push({ items: [], left: count * times, push, drop });
  }

  #done(value: Reply): void {
    let v = value;
    for (;;) {
      const top = this.#stack.at(-1);
      if (top === undefined) {
        this.#reply(v);
        return;
      }
      top.items.push(v);
      if (--top.left > 0) return;
      this.#stack.pop();
      if (top.drop) return;
      if (top.push) {
        this.#push(top.items);
        return;
      }
      v = top.items;
    }
  }
}

function integer(b: Buffer, from: number, to: number): number {
  let n = 0;
  const negative = b[from] === 0x2d;
  for (let i = negative || b[from] === 0x2b ? from + 1 : from; i < to; i++) n = n * 10 + b[i]! - 48;
  return negative ? -n : n;
}

/** Collects requests until they are written. */
export class RespWriter {
  #b = Buffer.allocUnsafe(16384);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  request(args: readonly Arg[]): void {
    this.#room(32);
    this.#length += this.#b.write(`*${args.length}\r\n`, this.#length, 'latin1');
    for (const a of args) {
      if (typeof a === 'object') {
        this.#room(a.length + 32);
        this.#length += this.#b.write(`$${a.length}\r\n`, this.#length, 'latin1');
        this.#b.set(a, this.#length);
        this.#length += a.length;
      } else {
        const s = typeof a === 'number' ? String(a) : a;
        const n = Buffer.byteLength(s);
        this.#room(n + 32);
        this.#length += this.#b.write(`$${n}\r\n`, this.#length, 'latin1');
        this.#length += this.#b.write(s, this.#length);
      }
      this.#b[this.#length++] = 13;
      this.#b[this.#length++] = 10;
    }
  }

  /** What is to be written; good until the next request. */
  view(): Uint8Array {
    return this.#b.subarray(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
    if (this.#b.length > 1 << 20) this.#b = Buffer.allocUnsafe(16384);
  }

  #room(n: number): void {
    if (this.#length + n <= this.#b.length) return;
    const bigger = Buffer.allocUnsafe(Math.max(this.#b.length * 2, this.#length + n));
    this.#b.copy(bigger, 0, 0, this.#length);
    this.#b = bigger;
  }
}
