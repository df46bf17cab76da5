/**
 * Proxies that misbehave on demand, between a client under test and a real server: one for any TCP protocol (cut, half-close, stall, delay, away), one for
 * HTTP that answers errors in the server's place or tears bodies. Each lives in a thread of its own: tests wait for commands synchronously, which must not
 * stop the traffic. An order settles when it is in force.
 */
import { createServer as createHttp, type IncomingMessage, request, type ServerResponse } from 'node:http';
import { connect, createServer, type Socket } from 'node:net';
import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { seeded } from '../support/random.ts';

export interface TcpProxy {
  port: number;
  /** Connections that are open, and that were ever accepted. */
  readonly open: number;
  readonly accepted: number;
  /** Where new connections go. */
  target(port: number): Promise<void>;
  /** Resets all connections; new ones are accepted. */
  cut(): Promise<void>;
  /** Ends the server's direction of all connections; what clients send is still taken. */
  halfClose(): Promise<void>;
  /** Resets a connection right after so many more bytes went to the server: in the middle of whatever is being said. */
  cutAfter(bytes: number): Promise<void>;
  /** Swallows the answers: the server gets and does what is asked, the client hears nothing; `cut` or `flow` ends it. */
  stall(): Promise<void>;
  /** Nothing passes in any direction, connections stay: as if the route were gone. */
  freeze(): Promise<void>;
  /** Milliseconds that each piece is held back in each direction. */
  delay(ms: number): Promise<void>;
  /** Connections are refused (reset when accepted) until `flow`. */
  refuse(): Promise<void>;
  /** Everything as it should be again. What was held back by `stall` or `freeze` is delivered. */
  flow(): Promise<void>;
  close(): Promise<void>;
}

async function tcpProxy(port: number, cells: Int32Array, listen: string): Promise<{ port: number; orders: Orders }> {
  let mode: 'flow' | 'refuse' | 'stall' | 'freeze' = 'flow';
  let held = 0;
  let budget = Number.POSITIVE_INFINITY;
  let target = port;
  const pairs = new Set<{ client: Socket; server: Socket; pump(): void }>();

  const server = createServer({ allowHalfOpen: true }, client => {
    Atomics.add(cells, ACCEPTED, 1);
    client.on('error', () => {});
    if (mode === 'refuse') {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ port: target, host: '127.0.0.1', allowHalfOpen: true });
    upstream.setNoDelay(true);
    client.setNoDelay(true);
    const waiting: { to: Socket; data: Buffer | undefined; at: number }[] = [];
    const blocked = (to: Socket): boolean => mode === 'freeze' || (mode === 'stall' && to === client);
    const pump = (): void => {
      for (let i = 0; i < waiting.length; ) {
        const next = waiting[i]!;
        if (blocked(next.to) || waiting.slice(0, i).some(w => w.to === next.to) || next.at > performance.now()) {
          i++;
          continue;
        }
        waiting.splice(i, 1);
        if (next.to.destroyed) continue;
        if (next.data === undefined) next.to.end();
        else next.to.write(next.data);
      }
    };
    const pair = { client, server: upstream, pump };
    pairs.add(pair);
    Atomics.store(cells, OPEN, pairs.size);
    const drop = (): void => {
      pairs.delete(pair);
      Atomics.store(cells, OPEN, pairs.size);
      client.destroy();
      upstream.destroy();
    };
    const pass = (from: Socket, to: Socket): void => {
      from.on('data', (data: Buffer) => {
        if (to === upstream) {
          budget -= data.length;
          if (budget <= 0) {
            budget = Number.POSITIVE_INFINITY;
            if (!upstream.destroyed) upstream.write(data);
            client.resetAndDestroy();
            return;
          }
        }
        if (mode === 'flow' && held === 0 && waiting.length === 0) {
          if (!to.destroyed) to.write(data);
          return;
        }
        waiting.push({ to, data, at: performance.now() + held });
        setTimeout(pump, held + 1).unref();
      });
      from.on('end', () => {
        waiting.push({ to, data: undefined, at: performance.now() + held });
        setTimeout(pump, held + 1).unref();
      });
      from.on('error', drop);
      from.on('close', () => {
        if (from.errored || from === client) drop();
        else if (client.writableEnded) drop();
      });
    };
    pass(client, upstream);
    pass(upstream, client);
  });
  await new Promise<void>(done => server.listen(0, listen, done));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');

  const reset = (): void => {
    for (const { client, server: upstream } of pairs) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    pairs.clear();
    Atomics.store(cells, OPEN, 0);
  };
  return {
    port: address.port,
    orders: {
      target(to: number) {
        target = to;
      },
      cut: reset,
      halfClose() {
        for (const { client } of pairs) client.end();
      },
      cutAfter(n: number) {
        budget = n;
      },
      stall() {
        mode = 'stall';
      },
      freeze() {
        mode = 'freeze';
      },
      delay(ms: number) {
        held = ms;
      },
      refuse() {
        mode = 'refuse';
        reset();
      },
      flow() {
        mode = 'flow';
        held = 0;
        budget = Number.POSITIVE_INFINITY;
        for (const { pump } of pairs) pump();
      },
    },
  };
}

/** What the HTTP proxy does with a request in place of passing it on. */
export type HttpFault =
  /** This status, with S3's error document of that code. */
  | { status: number; code: string }
  /** The answer's body breaks off after so many bytes, its length having been announced. */
  | { tear: number }
  /** The request is carried out, and the connection reset before the answer. */
  | { lose: true }
  /** The connection is reset at once. */
  | { reset: true }
  /** Body and answer pass in pieces of 16 KiB with this pause (ms) between them. */
  | { slow: number }
  /** No answer at all. */
  | { silent: true };

interface HttpRule {
  /** Percent of the requests that it hits. */
  chance: number;
  /** One of these each time. */
  faults: HttpFault[];
  /** Only these methods; all when absent. */
  methods?: string[];
  seed: number;
}

export interface HttpProxy {
  port: number;
  /** Requests that came, and those that were spoilt. */
  readonly requests: number;
  readonly faults: number;
  /** Undefined: everything passes. */
  rule(rule: HttpRule | undefined): Promise<void>;
  close(): Promise<void>;
}

/** Requests go on with the Host that the client named, as signatures cover it. */
async function httpProxy(port: number, cells: Int32Array, listen: string): Promise<{ port: number; orders: Orders }> {
  let rule: HttpRule | undefined;
  let random = seeded(1);
  const serve = (from: IncomingMessage, to: ServerResponse): void => {
    Atomics.add(cells, ACCEPTED, 1);
    from.on('error', () => {});
    to.on('error', () => {});
    const meant = rule && (rule.methods?.includes(from.method ?? '') ?? true) && random.chance(rule.chance);
    const fault = meant ? random.pick(rule!.faults) : undefined;
    if (fault !== undefined) Atomics.add(cells, FAULTS, 1);
    if (fault && 'reset' in fault) {
      from.socket.resetAndDestroy();
      return;
    }
    if (fault && 'status' in fault) {
      const body = `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${fault.code}</Code><Message>as the test wants it</Message></Error>`;
      from.resume();
      from.on('end', () => {
        to.writeHead(fault.status, { 'content-type': 'application/xml', 'content-length': body.length });
        to.end(from.method === 'HEAD' ? undefined : body);
      });
      return;
    }
    if (fault && 'silent' in fault) {
      from.resume();
      return;
    }
    const pause = fault && 'slow' in fault ? fault.slow : 0;
    const onward = request(
      { host: '127.0.0.1', port, method: from.method, path: from.url, headers: from.headers, agent: false },
      answer => {
        if (fault && 'lose' in fault) {
          answer.resume();
          answer.on('end', () => from.socket.resetAndDestroy());
          return;
        }
        to.writeHead(answer.statusCode ?? 502, answer.headers);
        if (fault && 'tear' in fault) {
          let left = fault.tear;
          answer.on('data', (data: Buffer) => {
            to.write(data.subarray(0, left), () => {
              if (left <= 0) from.socket.resetAndDestroy();
            });
            left -= data.length;
            if (left <= 0) answer.destroy();
          });
          answer.on('end', () => to.end());
          answer.on('error', () => {});
          return;
        }
        answer.on('error', () => to.destroy());
        void trickle(answer, to, pause);
      },
    );
    onward.on('error', () => from.socket.destroy());
    void trickle(from, onward, pause);
  };
  const server = createHttp({ keepAliveTimeout: 30_000 }, serve);
  // The server's own "100 Continue" and limits would hide what is tested.
  server.requestTimeout = 0;
  await new Promise<void>(done => server.listen(0, listen, done));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    port: address.port,
    orders: {
      rule(next: HttpRule | undefined) {
        rule = next;
        random = seeded(next?.seed ?? 1);
      },
    },
  };
}

async function trickle(from: IncomingMessage, to: Writable, pause: number): Promise<void> {
  try {
    if (pause === 0) {
      await pipeline(from, to);
      return;
    }
    for await (const data of from as AsyncIterable<Buffer>) {
      for (let at = 0; at < data.length && !to.destroyed; at += 16_384) {
        to.write(data.subarray(at, at + 16_384));
        await new Promise(wake => setTimeout(wake, pause));
      }
    }
    to.end();
  } catch {
    // One of the two is gone, and with it the other.
    from.destroy();
    to.destroy();
  }
}

// ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────
const ACCEPTED = 0;
const OPEN = 1;
const FAULTS = 1;
type Orders = Record<string, (argument: never) => void>;

interface Thread {
  port: number;
  cells: Int32Array;
  order(name: string, argument?: unknown): Promise<void>;
  close(): Promise<void>;
}

async function startThread(kind: 'tcp' | 'http', port: number, listen = '127.0.0.1'): Promise<Thread> {
  const cells = new Int32Array(new SharedArrayBuffer(16));
  const worker = new Worker(new URL(import.meta.url), { workerData: { kind, port, cells, listen } });
  const own = await new Promise<number>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  worker.on('error', e => {
    throw e;
  });
  const obeyed: (() => void)[] = [];
  worker.on('message', () => obeyed.shift()?.());
  worker.unref();
  return {
    port: own,
    cells,
    order: (name, argument) =>
      new Promise(done => {
        obeyed.push(done);
        worker.postMessage({ name, argument });
      }),
    close: async () => void (await worker.terminate()),
  };
}

/** From `listen` (loopback by default) to `port` of loopback. */
export async function startTcpProxy(port: number, listen?: string): Promise<TcpProxy> {
  const { port: own, cells, order, close } = await startThread('tcp', port, listen);
  return {
    port: own,
    get open() {
      return Atomics.load(cells, OPEN);
    },
    get accepted() {
      return Atomics.load(cells, ACCEPTED);
    },
    target: to => order('target', to),
    cut: () => order('cut'),
    halfClose: () => order('halfClose'),
    cutAfter: n => order('cutAfter', n),
    stall: () => order('stall'),
    freeze: () => order('freeze'),
    delay: ms => order('delay', ms),
    refuse: () => order('refuse'),
    flow: () => order('flow'),
    close,
  };
}

export async function startHttpProxy(port: number): Promise<HttpProxy> {
  const { port: own, cells, order, close } = await startThread('http', port);
  return {
    port: own,
    get requests() {
      return Atomics.load(cells, ACCEPTED);
    },
    get faults() {
      return Atomics.load(cells, FAULTS);
    },
    rule: rule => order('rule', rule),
    close,
  };
}

if (!isMainThread && (workerData as { kind?: string } | null)?.kind !== undefined) {
  const { kind, port, cells, listen } = workerData as {
    kind: 'tcp' | 'http';
    port: number;
    cells: Int32Array;
    listen: string;
  };
  const made = await (kind === 'tcp' ? tcpProxy : httpProxy)(port, cells, listen);
  parentPort!.on('message', ({ name, argument }: { name: string; argument: never }) => {
    made.orders[name]!(argument);
    parentPort!.postMessage(name);
  });
  parentPort!.postMessage(made.port);
}
