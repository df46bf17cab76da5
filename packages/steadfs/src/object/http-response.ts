/** An HTTP/1.1 response (RFC 9112) as its bytes come: head, then a body by length, in chunks, or up to the end of the connection. */
import { StoreError } from './store.ts';

export interface HttpResponse {
  status: number;
  /** By name in lower case; of several with one name the last. */
  headers: Record<string, string>;
  /** Empty where the body went to a target. */
  body: Buffer;
  /** Bytes written to the target. */
  length: number;
}

const HEAD_MAX = 64 * 1024;
/** Bodies that are collected: of a success (listings), of an error. */
const BODY_MAX = 16 * 1024 * 1024;
const ERROR_BODY_MAX = 64 * 1024;

type Stage = 'head' | 'body' | 'size' | 'chunk' | 'gap' | 'trailers' | 'rest' | 'end';

export class ResponseReader {
  readonly #method: string;
  readonly #target: Uint8Array | undefined;
  readonly #what: string;
  readonly #parts: Buffer[] = [];
  #collected = 0;
  #stage: Stage = 'head';
  /** Of a head or a line that is not complete. */
  #text = '';
  /** Bytes of the body, or of the chunk, that are to come. */
  #left = 0;
  #direct = false;
  #keep = true;
  readonly response: HttpResponse = { status: 0, headers: {}, body: Buffer.alloc(0), length: 0 };

  /** The body of a 2xx goes to `target`; more bytes than it holds are an error. `what` is for messages. */
  constructor(method: string, target: Uint8Array | undefined, what: string) {
    this.#method = method;
    this.#target = target;
    this.#what = what;
  }

  get done(): boolean {
    return this.#stage === 'end';
  }

  /** The connection can carry another request. */
  get keepAlive(): boolean {
    return this.#keep;
  }

  /** Bytes that come next and belong, as they are, to the target at `response.length`. */
  get room(): number {
    return this.#stage === 'body' && this.#direct ? this.#left : 0;
  }

  /** `n` bytes of the room were filled by the caller. */
  filled(n: number): void {
    this.response.length += n;
    this.#left -= n;
    if (this.#left === 0) this.#finish();
  }

  /** Takes bytes, which are not kept. Throws StoreError where they are no response, or too many; bytes behind the end make the connection useless. */
  feed(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.length && this.#stage !== 'end') {
      switch (this.#stage) {
        case 'head':
          at = this.#head(chunk, at);
          break;
        case 'size':
        case 'gap':
        case 'trailers':
          at = this.#line(chunk, at);
          break;
        case 'rest':
          this.#add(chunk.subarray(at));
          at = chunk.length;
          break;
        default: {
          const n = Math.min(this.#left, chunk.length - at);
          this.#add(chunk.subarray(at, at + n));
          at += n;
          this.#left -= n;
          if (this.#left > 0) break;
          if (this.#stage === 'body') this.#finish();
          else this.#stage = 'gap';
        }
      }
    }
    if (at < chunk.length) this.#keep = false;
  }

  /** The connection has ended: true when that was the end of the body. */
  ended(): boolean {
    if (this.#stage !== 'rest') return false;
    this.#keep = false;
    this.#finish();
    return true;
  }

  #broken(why: string): StoreError {
    return new StoreError('away', `${this.#what}: ${why}`);
  }

  #head(chunk: Uint8Array, at: number): number {
    const before = this.#text.length;
    this.#text += Buffer.from(chunk.buffer, chunk.byteOffset + at, chunk.length - at).toString('latin1');
    const end = this.#text.indexOf('\r\n\r\n', Math.max(0, before - 3));
    if (this.#text.length > HEAD_MAX && (end < 0 || end > HEAD_MAX)) throw this.#broken('no end of the answer’s head');
    if (end < 0) return chunk.length;
    const [first = '', ...lines] = this.#text.slice(0, end).split('\r\n');
    const next = at + end + 4 - before;
    this.#text = '';
    const status = /^HTTP\/1\.([01]) (\d{3})/.exec(first);
    if (status === null) throw this.#broken('the answer is no HTTP/1.1');
    if (status[2]![0] === '1') return next;
    const { response } = this;
    response.status = Number(status[2]);
    for (const line of lines) {
      const colon = line.indexOf(':');
      if (colon > 0) response.headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
    }
    const { connection = '', 'transfer-encoding': coding, 'content-length': length } = response.headers;
    this.#keep = status[1] === '1' ? !/\bclose\b/i.test(connection) : /\bkeep-alive\b/i.test(connection);
    this.#direct = this.#target !== undefined && response.status < 300;
    if (this.#method === 'HEAD' || response.status === 204 || response.status === 304) this.#finish();
    else if (coding !== undefined) {
      if (!/^chunked$/i.test(coding)) throw this.#broken(`a body of transfer coding ${coding}`);
      this.#stage = 'size';
    } else if (length === undefined) this.#stage = 'rest';
    else {
      if (!/^\d{1,15}$/.test(length)) throw this.#broken('a body of no known length');
      this.#left = Number(length);
      this.#check(this.#left);
      this.#stage = 'body';
      if (this.#left === 0) this.#finish();
    }
    return next;
  }

  #line(chunk: Uint8Array, at: number): number {
    const lf = chunk.indexOf(10, at);
    const stop = lf < 0 ? chunk.length : lf;
    this.#text += Buffer.from(chunk.subarray(at, stop)).toString('latin1');
    if (this.#text.length > HEAD_MAX) throw this.#broken('a line without end in the body');
    if (lf < 0) return stop;
    const line = this.#text.replace(/\r$/, '');
    this.#text = '';
    if (this.#stage === 'gap') {
      if (line !== '') throw this.#broken('a chunk is longer than it says');
      this.#stage = 'size';
    } else if (this.#stage === 'size') {
      const size = /^[0-9a-f]{1,12}(?=[\s;]|$)/i.exec(line);
      if (size === null) throw this.#broken('a chunk without size');
      this.#left = Number.parseInt(size[0], 16);
      this.#stage = this.#left === 0 ? 'trailers' : 'chunk';
    } else if (line === '') this.#finish();
    return lf + 1;
  }

  /** That so many more bytes are no more than there may be. */
  #check(n: number): void {
    const { status, length } = this.response;
    if (this.#direct) {
      const { length: most } = this.#target!;
      if (length + n > most) throw new StoreError('too-large', `${this.#what}: more than the ${most} bytes expected`);
    } else if (this.#collected + n > (status < 300 ? BODY_MAX : ERROR_BODY_MAX))
      throw new StoreError('too-large', `${this.#what}: an answer of more than ${this.#collected} bytes`);
  }

  #add(bytes: Uint8Array): void {
    this.#check(bytes.length);
    if (this.#direct) {
      this.#target!.set(bytes, this.response.length);
      this.response.length += bytes.length;
    } else {
      this.#parts.push(Buffer.from(bytes));
      this.#collected += bytes.length;
    }
  }

  #finish(): void {
    this.#stage = 'end';
    this.response.body = Buffer.concat(this.#parts);
  }
}
