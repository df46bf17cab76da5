/**
 * A TCP proxy that counts what a database server is asked: commands that the client waits for. PostgreSQL: Query and Sync messages;
 * MySQL: packets that begin a command (sequence number 0) after the handshake, closing of statements (unanswered) left out.
 */
import { connect, createServer, type Socket } from 'node:net';

interface CountingProxy {
  port: number;
  /** Since the start. */
  count(): number;
  close(): Promise<void>;
}

/** Calls `message(type, body)` for each whole message of a stream of chunks; `split` answers its length, or 0 when more bytes are needed. */
function framed(split: (b: Buffer) => number, message: (b: Buffer) => void): (chunk: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return chunk => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (let n = split(rest); n > 0 && rest.length >= n; n = split(rest)) {
      message(rest.subarray(0, n));
      rest = rest.subarray(n);
    }
  };
}

export async function startCountingProxy(kind: 'postgres' | 'mysql', target: number): Promise<CountingProxy> {
  let counted = 0;
  const sockets = new Set<Socket>();
  const counter = (): ((chunk: Buffer) => void) => {
    if (kind === 'mysql') {
      let greeted = false;
      return framed(
        b => (b.length < 5 ? 0 : 4 + b.readUIntLE(0, 3)),
        b => {
          // The client's first packet answers the greeting.
          if (greeted && b[3] === 0 && b[4] !== 0x19 && b[4] !== 0x01) counted++;
          greeted = true;
        },
      );
    }
    let started = false;
    return framed(
      b => (!started ? (b.length < 4 ? 0 : b.readUInt32BE(0)) : b.length < 5 ? 0 : 1 + b.readUInt32BE(1)),
      b => {
        if (started && (b[0] === 0x51 || b[0] === 0x53)) counted++;
        started = true;
      },
    );
  };
  const server = createServer(client => {
    const upstream = connect(target, '127.0.0.1');
    const count = counter();
    for (const s of [client, upstream]) {
      s.setNoDelay(true);
      sockets.add(s);
      s.on('error', () => {});
      s.on('close', () => {
        sockets.delete(s);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on('data', (chunk: Buffer) => {
      count(chunk);
      upstream.write(chunk);
    });
    upstream.on('data', chunk => client.write(chunk));
  });
  await new Promise<void>(ready => server.listen(0, '127.0.0.1', ready));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    port: address.port,
    count: () => counted,
    async close() {
      for (const s of sockets) s.destroy();
      await new Promise<void>(closed => server.close(() => closed()));
    },
  };
}
