/**
 * One connection to the server that holds the volume, and how it is found again: a plain server, what sentinels name as the master, or the
 * node of a cluster that owns the volume's slot (all keys carry one hash tag, so a volume lives on one node). Replies and pushes are handed
 * over synchronously in the order of the stream: a value that is stored when its reply comes, and dropped when its push comes, is never
 * older than the last push. Requests that may be repeated survive a lost connection; the others answer {@link Lost}.
 */
import { connect as connectTcp, type NetConnectOpts, type OnReadOpts, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { allocate, type Memory, POLLIN, poll, read, write } from '@steadfs/fuse/sys';
import { type Arg, type Reply, ReplyError, RespParser, RespWriter } from './resp.ts';
import type { Address, RedisUrl } from './url.ts';

/** The connection was lost with the request under way: nobody knows whether it was carried out. */
export class Lost extends Error {}

/** The operation was over before the request could be sent (again). */
export class GivenUp extends Lost {
  /** It had been sent on a connection that is lost: nobody knows whether it was carried out, or will be. */
  readonly sent: boolean;

  constructor(sent: boolean) {
    super('given up');
    this.sent = sent;
  }
}

export type Done = (reply: Reply | Lost) => void;

interface Request {
  args: readonly Arg[];
  done: Done;
  /** May be sent again after a lost connection. */
  again: boolean;
  /** For whom; not sent any more when that is over. */
  op: { readonly over?: boolean } | undefined;
  attempts: number;
  sent: boolean;
}

export interface LinkEvents {
  /** A connection is ready; nothing has been sent on it yet. */
  up(): void;
  /** It is gone: pushes may have been missed. */
  down(): void;
  push(items: Reply[]): void;
  /** What keeps requests waiting; undefined: nothing any more. */
  trouble(message: string | undefined): void;
}

/** Requests without any answer are worth a word after this time, milliseconds. */
const STALL_MS = 3000;

/** Requests that may wait for a connection before anybody looks whether they are still wanted. */
const CROWD = 1024;

/** Answers of a server that will be able to serve later, or of one that is no longer the right one. */
const LATER = new Set([
  'LOADING',
  'BUSY',
  'MASTERDOWN',
  'TRYAGAIN',
  'CLUSTERDOWN',
  'MISCONF',
  'NOREPLICAS',
  'MOVED',
  'ASK',
  'READONLY',
  'UNBLOCKED',
]);
const REDIAL = new Set(['MOVED', 'ASK', 'READONLY', 'CLUSTERDOWN', 'MASTERDOWN']);

/**
 * Buffers for system calls on sockets of our own: requests are written without Node's stream machinery, and what has arrived can be read at
 * any moment, not only when the event loop comes round.
 */
const AREA_BYTES = 65536;
let areas: { in: Memory; out: Memory } | undefined;
function area(): { in: Memory; out: Memory } {
  areas ??= { in: allocate(AREA_BYTES), out: allocate(AREA_BYTES) };
  return areas;
}

/** A socket, its parser, and the requests that wait for replies in order. */
class Wire {
  readonly #socket: Socket;
  readonly #parser: RespParser;
  readonly #writer = new RespWriter();
  #waiting: Request[] = [];
  #head = 0;
  #scheduled = false;
  #closed = false;
  #feeding = false;
  /** TCP and Unix sockets; with TLS the stream is not ours to read. */
  readonly #plain: boolean;
  lastReply = performance.now();
  /** Since when requests have waited without any byte from the server. */
  silentSince = 0;
  onReply: (request: Request, reply: Reply) => void = (q, r) => q.done(r);
  onPush: (items: Reply[]) => void = () => {};
  onClose: (unanswered: Request[], why: string) => void = (unanswered, why) => {
    for (const q of unanswered) q.done(new Lost(why));
  };

  constructor(socket: Socket, plain: boolean) {
    this.#socket = socket;
    this.#plain = plain;
    this.#parser = new RespParser(
      reply => {
        const q = this.#waiting[this.#head++];
        if (this.#head === this.#waiting.length) {
          this.#waiting.length = 0;
          this.#head = 0;
        } else if (this.#head > 4096) {
          this.#waiting = this.#waiting.slice(this.#head);
          this.#head = 0;
        }
        if (q === undefined) throw new Error('a reply without request');
        this.onReply(q, reply);
      },
      items => this.onPush(items),
    );
    socket.on('close', () => this.close('the server closed the connection'));
    socket.on('error', e => this.close(e.message || String((e as { code?: string }).code)));
  }

  get outstanding(): number {
    return this.#waiting.length - this.#head;
  }

  feed(chunk: Uint8Array): void {
    this.lastReply = this.silentSince = performance.now();
    this.#feeding = true;
    try {
      this.#parser.feed(chunk);
    } catch (e) {
      this.close(e instanceof Error ? e.message : String(e));
    } finally {
      this.#feeding = false;
    }
  }

  get #fd(): number {
    return (this.#socket as unknown as { _handle?: { fd?: number } | null })._handle?.fd ?? -1;
  }

  /** Takes in what has arrived. False: something has, and cannot be read now. */
  drain(): boolean {
    if (this.#closed || this.#feeding) return false;
    const fd = this.#fd;
    if (fd < 0) return false;
    if (!this.#plain) return poll(fd, POLLIN, 0) === 0;
    const memory = area().in;
    for (;;) {
      const n = read(fd, memory.address, AREA_BYTES);
      // End of file and errors are left to the stream.
      if (n <= 0) return n !== 0;
      this.feed(memory.bytes.subarray(0, n));
      if (this.#closed) return false;
      if (n < AREA_BYTES) return true;
    }
  }

  send(q: Request): void {
    if (this.#closed) {
      queueMicrotask(() => this.onClose([q], 'closed'));
      return;
    }
    if (this.#waiting.length === 0) this.silentSince = performance.now();
    this.#waiting.push(q);
    this.#writer.request(q.args);
    if (this.#writer.length > 1 << 18) this.#flush();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      queueMicrotask(() => this.#flush());
    }
  }

  #flush(): void {
    this.#scheduled = false;
    if (this.#closed || this.#writer.length === 0) return;
    let data: Uint8Array = this.#writer.view();
    if (this.#plain && data.length <= AREA_BYTES && this.#socket.writableLength === 0) {
      const memory = area().out;
      memory.bytes.set(data);
      const n = write(this.#fd, memory.address, data.length);
      if (n > 0) data = data.subarray(n);
    }
    if (data.length > 0) this.#socket.write(Buffer.from(data));
    this.#writer.clear();
  }

  ask(...args: Arg[]): Promise<Reply> {
    return new Promise((resolve, reject) => {
      this.send({
        args,
        again: false,
        op: undefined,
        attempts: 0,
        sent: true,
        done: r => (r instanceof Lost ? reject(r) : resolve(r)),
      });
    });
  }

  close(why: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.destroy();
    const unanswered = this.#waiting.slice(this.#head);
    this.#waiting = [];
    this.#head = 0;
    this.onClose(unanswered, why);
  }
}

function dial(url: RedisUrl, address: Address | undefined): Promise<Wire> {
  return new Promise((resolve, reject) => {
    let wire: Wire | undefined;
    let socket: Socket;
    const where = address ? { host: address.host, port: address.port } : { path: url.socketPath! };
    if (url.tls) {
      const { servername, ...tls } = url.tls;
      const name = servername ?? (address && !/^[\d.]+$|:/.test(address.host) ? address.host : undefined);
      socket = connectTls({ ...where, ...tls, ...(name !== undefined && { servername: name }) });
      socket.on('data', (b: Buffer) => wire?.feed(b));
    } else {
      socket = connectTcp({
        ...where,
        onread: {
          buffer: Buffer.allocUnsafe(65536),
          callback(n: number, b: Uint8Array) {
            wire?.feed(b.subarray(0, n));
            return true;
          },
        },
      } as NetConnectOpts & { onread: OnReadOpts });
    }
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 10_000);
    const timer = setTimeout(() => socket.destroy(new Error('connecting took too long')), url.connectTimeoutMs);
    const failed = (e: Error): void => {
      clearTimeout(timer);
      reject(
        new Error(
          `${address ? `${address.host}:${address.port}` : url.socketPath}: ${e.message || String((e as { code?: string }).code)}`,
        ),
      );
    };
    socket.once('error', failed);
    socket.once(url.tls ? 'secureConnect' : 'connect', () => {
      clearTimeout(timer);
      socket.off('error', failed);
      wire = new Wire(socket, url.tls === undefined);
      resolve(wire);
    });
  });
}

/** CRC-16/XMODEM of a hash tag modulo 16384: the cluster slot. */
export function slotOf(tag: string): number {
  let crc = 0;
  for (const byte of Buffer.from(tag)) {
    crc ^= byte << 8;
    for (let i = 0; i < 8; i++) crc = crc & 0x8000 ? ((crc << 1) ^ 0x1021) & 0xffff : (crc << 1) & 0xffff;
  }
  return crc % 16384;
}

function fail(reply: Reply): Reply {
  if (reply instanceof ReplyError) throw reply;
  return reply;
}

const text = (r: Reply | undefined): string => (Buffer.isBuffer(r) ? r.toString() : String(r));

/** Waiting with a way to end it early. */
function pause(ms: number): { done: Promise<void>; end(): void } {
  let end = (): void => {};
  const done = new Promise<void>(resolve => {
    const timer = setTimeout(resolve, ms);
    end = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  return { done, end };
}

export class Link {
  readonly #url: RedisUrl;
  readonly #events: LinkEvents;
  /** Attempts of a request before it fails while nothing is mounted. */
  readonly #retries: number;
  /** True: requests wait for the server as long as it takes. */
  patient = false;
  #wire: Wire | undefined;
  #backlog: Request[] = [];
  /** Length of the backlog at which it is looked through. */
  #crowd = CROWD;
  #learned: Address[] = [];
  #dialling = false;
  #closed = false;
  #pause: { end(): void } | undefined;
  #watch: NodeJS.Timeout | undefined;
  #troubled = false;
  #delayed = 0;
  /** Connections in a row whose server sent us away. */
  #turns = 0;
  cluster = false;
  /** Invalidation pushes come on this connection. */
  tracking = false;
  serverVersion = '';

  constructor(url: RedisUrl, retries: number, events: LinkEvents) {
    this.#url = url;
    this.#retries = retries;
    this.#events = events;
  }

  /** First connection; rejects when there is none. */
  async open(): Promise<void> {
    await this.#attach(await this.#find());
  }

  get connected(): boolean {
    return this.#wire !== undefined;
  }

  /** performance.now() of the last byte from the server. */
  get lastReply(): number {
    return this.#wire?.lastReply ?? Number.NEGATIVE_INFINITY;
  }

  /** Takes in pushes that have arrived; false when that is not possible. */
  drain(): boolean {
    return this.#wire?.drain() ?? false;
  }

  close(): void {
    this.#closed = true;
    this.#pause?.end();
    clearTimeout(this.#watch);
    this.#wire?.close('closed');
    for (const q of this.#backlog.splice(0)) q.done(new Lost('closed'));
  }

  /** `done` is called inside the parser, in stream order. */
  call(args: readonly Arg[], again: boolean, done: Done, op?: { readonly over?: boolean }): void {
    this.#submit({ args, done, again, op, attempts: 0, sent: false });
  }

  /** Error replies reject. */
  ask(args: readonly Arg[], again = true): Promise<Reply> {
    return new Promise((resolve, reject) => {
      this.call(args, again, r => (r instanceof Error ? reject(r) : resolve(r)));
    });
  }

  #submit(q: Request): void {
    if (this.#closed) q.done(new Lost('the connection is closed'));
    else if (q.op?.over) q.done(new GivenUp(q.sent));
    else if (this.#wire === undefined) this.#queue(q);
    else {
      q.sent = true;
      this.#wire.send(q);
      this.#arm();
    }
  }

  /** Until there is a connection. Callers that are gone do not make the queue grow for ever. */
  #queue(q: Request): void {
    this.#backlog.push(q);
    if (this.#backlog.length < this.#crowd) return;
    const over = this.#backlog.filter(b => b.op?.over && !b.sent);
    if (over.length > 0) this.#backlog = this.#backlog.filter(b => !(b.op?.over && !b.sent));
    this.#crowd = Math.max(CROWD, 2 * this.#backlog.length);
    for (const b of over) b.done(new GivenUp(false));
  }

  /** Gives up a connection whose oldest request waits too long. */
  #arm(): void {
    if (this.#watch !== undefined) return;
    const every = Math.min(1000, this.#url.readTimeoutMs);
    this.#watch = setTimeout(() => {
      this.#watch = undefined;
      const w = this.#wire;
      if (w === undefined || w.outstanding === 0) return;
      const silence = performance.now() - w.silentSince;
      if (silence > this.#url.readTimeoutMs + every) w.close('no reply in time');
      else {
        if (silence > STALL_MS) this.#trouble(`no answer for ${Math.round(silence / 1000)} s`);
        this.#arm();
      }
    }, every);
    this.#watch.unref();
  }

  async #find(): Promise<Wire> {
    const url = this.#url;
    let targets: (Address | undefined)[] =
      url.socketPath === undefined ? [...this.#learned, ...url.addresses] : [undefined];
    if (url.master !== undefined) targets = [await this.#askSentinels()];
    let last: unknown = new Error('no address');
    for (const t of targets) {
      try {
        const wire = await this.#greet(t);
        if (!this.cluster || t === undefined) return wire;
        const owner = await this.#owner(wire, t);
        if (owner.host === t.host && owner.port === t.port) return wire;
        wire.close('not the owner of the slot');
        return await this.#greet(owner);
      } catch (e) {
        last = e;
      }
    }
    throw last;
  }

  async #askSentinels(): Promise<Address> {
    let last: unknown = new Error('no sentinel');
    for (const s of this.#url.addresses) {
      let wire: Wire | undefined;
      try {
        wire = await dial(this.#url, s);
        if (this.#url.sentinelPassword !== undefined) fail(await wire.ask('AUTH', this.#url.sentinelPassword));
        const answer = fail(await wire.ask('SENTINEL', 'get-master-addr-by-name', this.#url.master!));
        if (Array.isArray(answer)) return { host: text(answer[0]), port: Number(text(answer[1])) };
        last = new Error(`sentinel ${s.host}:${s.port} knows no master ${this.#url.master}`);
      } catch (e) {
        last = e;
      } finally {
        wire?.close('done');
      }
    }
    throw last;
  }

  /** Connects, logs in, switches tracking on. */
  async #greet(address: Address | undefined): Promise<Wire> {
    const { user, password, db, cache, master } = this.#url;
    const wire = await dial(this.#url, address);
    try {
      const auth = password === undefined ? [] : ['AUTH', user ?? 'default', password];
      const hello = await wire.ask('HELLO', '3', ...auth);
      let mode = 'standalone';
      const resp3 = Array.isArray(hello);
      if (Array.isArray(hello)) {
        for (let i = 0; i < hello.length; i += 2) {
          if (text(hello[i]) === 'version') this.serverVersion = text(hello[i + 1]);
          if (text(hello[i]) === 'mode') mode = text(hello[i + 1]);
        }
      } else {
        const kind = hello instanceof ReplyError ? hello.kind : '';
        if (kind !== 'ERR' && kind !== 'NOPROTO') fail(hello);
        if (password !== undefined)
          fail(await (user === undefined ? wire.ask('AUTH', password) : wire.ask('AUTH', user, password)));
        const info = await wire.ask('CLUSTER', 'INFO');
        if (!(info instanceof ReplyError) && text(info).includes('cluster_state:')) mode = 'cluster';
      }
      this.cluster = mode === 'cluster';
      if (!this.cluster && db !== 0) fail(await wire.ask('SELECT', db));
      if (master !== undefined) {
        const role = fail(await wire.ask('ROLE'));
        if (!Array.isArray(role) || text(role[0]) !== 'master')
          throw new Error('the sentinels name a server that is no master');
      }
      this.tracking = cache && resp3 && !((await wire.ask('CLIENT', 'TRACKING', 'ON', 'NOLOOP')) instanceof ReplyError);
      return wire;
    } catch (e) {
      wire.close('greeting failed');
      throw e;
    }
  }

  async #owner(wire: Wire, asked: Address): Promise<Address> {
    const slots = fail(await wire.ask('CLUSTER', 'SLOTS'));
    const slot = slotOf(String(this.#url.db));
    const nodes: Address[] = [];
    let owner: Address | undefined;
    for (const range of Array.isArray(slots) ? slots : []) {
      if (!Array.isArray(range)) continue;
      const node = range[2];
      if (!Array.isArray(node)) continue;
      const host = node[0] === null ? '' : text(node[0]);
      const address = { host: host === '' || host === '?' ? asked.host : host, port: Number(node[1]) };
      nodes.push(address);
      if (Number(range[0]) <= slot && slot <= Number(range[1])) owner = address;
    }
    if (owner === undefined) throw new ReplyError(`CLUSTERDOWN slot ${slot} is not served`);
    this.#learned = nodes;
    return owner;
  }

  #attach(wire: Wire): void {
    if (this.#closed) {
      wire.close('closed');
      return;
    }
    this.#wire = wire;
    wire.onPush = items => this.#events.push(items);
    wire.onReply = (q, r) => this.#replied(q, r);
    wire.onClose = (unanswered, why) => this.#detached(wire, unanswered, why);
    this.#events.up();
    const backlog = this.#backlog.splice(0);
    for (const q of backlog) this.#submit(q);
    if (backlog.length === 0 && this.#delayed === 0) this.#calm();
  }

  #calm(): void {
    if (!this.#troubled) return;
    this.#troubled = false;
    this.#events.trouble(undefined);
  }

  #trouble(message: string): void {
    this.#troubled = true;
    this.#events.trouble(message);
  }

  #replied(q: Request, r: Reply): void {
    if (r instanceof ReplyError && (LATER.has(r.kind) || r.message.startsWith('ERR max number of clients'))) {
      if (!this.patient && ++q.attempts > this.#retries) {
        q.done(r);
        return;
      }
      if (this.patient) q.attempts++;
      this.#trouble(r.message);
      if (REDIAL.has(r.kind)) {
        // Another server is the right one now, or this one will be again: look, and send it there.
        this.#backlog.push(q);
        this.#turns++;
        this.#wire?.close(r.message);
        return;
      }
      this.#delayed++;
      setTimeout(() => {
        this.#delayed--;
        this.#submit(q);
      }, this.#backoff(q.attempts));
      return;
    }
    this.#turns = 0;
    if (this.#troubled && this.#delayed === 0) this.#calm();
    q.done(r);
  }

  #backoff(attempt: number): number {
    const top = Math.min(this.#url.maxBackoffMs, this.#url.minBackoffMs * 2 ** Math.min(attempt, 20));
    return top / 2 + (Math.random() * top) / 2;
  }

  #detached(wire: Wire, unanswered: Request[], why: string): void {
    if (this.#wire === wire) {
      this.#wire = undefined;
      this.tracking = false;
      this.#events.down();
    }
    const back: Request[] = [];
    for (const q of unanswered) {
      if (q.again && !this.#closed) back.push(q);
      else q.done(new Lost(`connection lost: ${why}`));
    }
    this.#backlog = [...back, ...this.#backlog];
    if (!this.#closed) void this.#redial(why);
  }

  async #redial(why: string): Promise<void> {
    if (this.#dialling) return;
    this.#dialling = true;
    let reason = why;
    // At once the first time; a server that goes on sending us away is asked as seldom as one that is not there.
    for (let attempt = Math.max(0, this.#turns - 1); !this.#closed; attempt++) {
      if (attempt > 0) {
        this.#trouble(`no connection: ${reason}`);
        if (!this.patient && attempt > this.#retries) {
          for (const q of this.#backlog.splice(0)) q.done(new Lost(`no connection: ${reason}`));
        }
        const p = pause(this.#backoff(attempt));
        this.#pause = p;
        await p.done;
        if (this.#closed) break;
      }
      try {
        const wire = await this.#find();
        this.#dialling = false;
        this.#attach(wire);
        return;
      } catch (e) {
        reason = e instanceof Error ? e.message : String(e);
      }
    }
    this.#dialling = false;
  }
}
