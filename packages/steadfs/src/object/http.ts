/**
 * HTTP/1.1 requests of an object store, on connections that are kept. By hand because of CPU per GiB (bench/RESULTS.md, "S3 clients"): what is sent goes from its
 * place to the socket in one call, and the body of an answer is read by read(2) into its place.
 */
import type { Socket } from 'node:net';
import { read } from '@steadfs/fuse/sys';
import koffi from 'koffi';
import { dial, type Origin, proxyAuthorization } from './http-dial.ts';
import { type HttpResponse, ResponseReader } from './http-response.ts';
import { StoreError } from './store.ts';

export interface HttpCall {
  method: string;
  /** With the query. */
  path: string;
  /** `host` and, of a body, `content-length` included. */
  headers: Record<string, string>;
  /** Sent one after the other; unchanged until the promise settles. */
  body: readonly Uint8Array[];
  /** Where the body of a 2xx goes; more bytes than it holds are an error. */
  target?: Uint8Array | undefined;
  signal?: AbortSignal | undefined;
  /** For messages. */
  what: string;
}

export interface HttpClient {
  /** Rejects with StoreError; nothing writes to the target then, or reads the body. A response of any status resolves. */
  request(call: HttpCall): Promise<HttpResponse>;
  /** When the requests under way have ended. */
  close(): Promise<void>;
}

/** Without any byte in either direction, milliseconds. */
const SILENCE_MS = 60_000;
const IDLE_MS = 30_000;
/** Targets from this size on are filled by read(2). */
const DIRECT_FROM = 16 * 1024;
/** Bytes that one event of a connection reads at most. */
const DIRECT_MAX = 1024 * 1024;

/** The server ended a kept connection at the moment in which it was used again. */
class Stale extends Error {}

interface Exchange {
  call: HttpCall;
  reader: ResponseReader;
  /** Of the target, when it is to be filled by read(2). */
  address: number;
  resolve(response: HttpResponse): void;
  reject(error: Error): void;
  abort: (() => void) | undefined;
}

/** One connection. */
class Wire {
  readonly #socket: Socket;
  readonly #plain: boolean;
  /** Before each path: the origin, for a proxy that forwards. */
  readonly #before: string;
  readonly #more: string;
  readonly #idle: (wire: Wire) => void;
  #used = false;
  #heard = false;
  #now: Exchange | undefined;

  constructor(socket: Socket, plain: boolean, origin: Origin, idle: (wire: Wire) => void, gone: (wire: Wire) => void) {
    this.#socket = socket;
    this.#plain = plain;
    this.#idle = idle;
    const forwards = origin.proxy !== undefined && origin.url.protocol === 'http:';
    this.#before = forwards ? origin.url.origin : '';
    const authorization = forwards ? proxyAuthorization(origin.proxy!) : undefined;
    this.#more = authorization === undefined ? '' : `proxy-authorization: ${authorization}\r\n`;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, SILENCE_MS);
    socket.on('timeout', () => this.#fail(new Error(`timeout: no byte in ${SILENCE_MS / 1000} s`), false));
    socket.on('error', e => this.#fail(e));
    socket.on('close', () => {
      const now = this.#now;
      if (now?.reader.ended()) this.#finish(now);
      else this.#fail(new Error('the connection was closed'));
      gone(this);
    });
  }

  get usable(): boolean {
    return !this.#socket.destroyed && this.#socket.readable && this.#socket.writable;
  }

  exchange(call: HttpCall): Promise<HttpResponse> {
    if (!this.usable)
      return Promise.reject(this.#used ? new Stale() : storeError(call, new Error('the connection was closed')));
    return new Promise((resolve, reject) => {
      const { target, signal } = call;
      const reader = new ResponseReader(call.method, target, call.what);
      const direct = this.#plain && target !== undefined && target.length >= DIRECT_FROM;
      const abort = signal && (() => this.#fail(new Error('aborted'), false));
      this.#now = { call, reader, address: direct ? Number(koffi.address(target)) : 0, resolve, reject, abort };
      this.#heard = false;
      const socket = this.#socket;
      socket.ref();
      socket.setTimeout(SILENCE_MS);
      if (abort) signal.addEventListener('abort', abort, { once: true });
      let head = `${call.method} ${this.#before}${call.path} HTTP/1.1\r\n`;
      for (const [name, value] of Object.entries(call.headers)) head += `${name}: ${value}\r\n`;
      socket.cork();
      socket.write(Buffer.from(`${head}${this.#more}\r\n`, 'latin1'));
      for (const piece of call.body) if (piece.length > 0) socket.write(piece);
      socket.uncork();
    });
  }

  /** What arrived. */
  data(chunk: Uint8Array): void {
    const now = this.#now;
    if (now === undefined) {
      this.end();
      return;
    }
    this.#heard = true;
    const { reader } = now;
    try {
      reader.feed(chunk);
      if (now.address !== 0) this.#readOn(now);
    } catch (e) {
      this.#fail(e instanceof Error ? e : new Error(String(e)), false);
      return;
    }
    if (reader.done) this.#finish(now);
  }

  /** What more has arrived, straight into the target. End of file and errors are left to the stream. */
  #readOn({ reader, address }: Exchange): void {
    const fd = (this.#socket as unknown as { _handle?: { fd?: number } | null })._handle?.fd ?? -1;
    if (fd < 0) return;
    for (let most = DIRECT_MAX; most > 0 && reader.room > 0; ) {
      const n = read(fd, address + reader.response.length, Math.min(most, reader.room));
      if (n <= 0) return;
      reader.filled(n);
      most -= n;
    }
  }

  #settle(now: Exchange): void {
    this.#now = undefined;
    this.#used = true;
    if (now.abort) now.call.signal?.removeEventListener('abort', now.abort);
  }

  #finish(now: Exchange): void {
    this.#settle(now);
    const socket = this.#socket;
    // A request that was answered before it was sent whole has left its rest in the connection.
    if (now.reader.keepAlive && socket.writableLength === 0 && this.usable) {
      socket.unref();
      socket.setTimeout(IDLE_MS);
      this.#idle(this);
    } else socket.destroy();
    now.resolve(now.reader.response);
  }

  #fail(error: Error, stale = this.#used && !this.#heard): void {
    const now = this.#now;
    this.#socket.destroy();
    if (now === undefined) return;
    this.#settle(now);
    now.reject(stale ? new Stale() : storeError(now.call, error));
  }

  end(): void {
    this.#socket.destroy();
  }
}

function storeError({ what, signal }: HttpCall, e: Error): StoreError {
  if (e instanceof StoreError) return e;
  const late = signal?.aborted || /timeout|timed ?out/i.test(e.message);
  return new StoreError(late ? 'timeout' : 'away', `${what}: ${e.message || String((e as { code?: string }).code)}`, e);
}

/** `connections`: at most so many at a time; requests wait for one in the order in which they came. */
export function createHttpClient(origin: Origin, connections: number): HttpClient {
  const kept: Wire[] = [];
  const waiting: (() => void)[] = [];
  let open = 0;
  let closed: (() => void) | undefined;

  function gone(wire: Wire): void {
    open--;
    const at = kept.indexOf(wire);
    if (at >= 0) kept.splice(at, 1);
    next();
  }
  function next(): void {
    waiting.shift()?.();
    if (closed !== undefined && waiting.length === 0) {
      for (const wire of kept.splice(0)) wire.end();
      if (open === 0) closed();
    }
  }
  function idle(wire: Wire): void {
    kept.push(wire);
    next();
  }

  async function take(): Promise<Wire> {
    for (;;) {
      const wire = kept.pop();
      if (wire?.usable) return wire;
      if (wire === undefined && open < connections) break;
      if (wire === undefined) await new Promise<void>(go => waiting.push(go));
    }
    open++;
    let wire: Wire | undefined;
    try {
      const { socket, plain } = await dial(origin, chunk => wire?.data(chunk));
      wire = new Wire(socket, plain, origin, idle, gone);
      return wire;
    } catch (e) {
      open--;
      next();
      throw e;
    }
  }

  return {
    async request(call) {
      for (const value of Object.values(call.headers))
        if (/[\r\n\0]/.test(value)) throw new StoreError('invalid', `${call.what}: a line break in a header`);
      for (;;) {
        let wire: Wire;
        try {
          wire = await take();
        } catch (e) {
          throw storeError(call, e as Error);
        }
        if (call.signal?.aborted) {
          idle(wire);
          throw storeError(call, new Error('aborted'));
        }
        try {
          return await wire.exchange(call);
        } catch (e) {
          // Every request of a store may be repeated; the next connection is another one.
          if (!(e instanceof Stale)) throw e;
        }
      }
    },
    close() {
      return new Promise(resolve => {
        closed = resolve;
        next();
      });
    },
  };
}
