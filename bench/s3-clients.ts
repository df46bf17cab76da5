/**
 * Candidates for requests to S3, side by side on a real server (versitygw on loopback), signed the same way, without checksums:
 *
 *   node bench/s3-clients.ts   [--seconds 2]
 *
 * undici (what object/s3.ts uses), Node's http, and HTTP/1.1 by hand on a socket (body read by read(2) straight into its place). Four requests at a time; CPU is the
 * client's own, and the server's.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { connect, type NetConnectOpts, type OnReadOpts, type Socket } from 'node:net';
import { parseArgs } from 'node:util';
import { allocate, read } from '@steadfs/fuse/sys';
import { Pool } from 'undici';
import { signRequest } from '../packages/steadfs/src/object/s3-sign.ts';
import { startS3 } from '../packages/steadfs/test/servers/s3.ts';

const { values } = parseArgs({ options: { seconds: { type: 'string', default: '2' } } });
const AT_ONCE = 4;
const server = await startS3();
if ('missing' in server) {
  console.log(`skipped: ${server.missing}`);
  process.exit(0);
}
const url = new URL(server.bucket('candidates'));
const keys = { accessKeyId: server.accessKey, secretAccessKey: server.secretKey };

/** A body in memory with an address. */
interface Area {
  address: number;
  bytes: Uint8Array;
}
type Client = (method: 'GET' | 'PUT', path: string, headers: Record<string, string>, body: Area) => Promise<number>;

function signed(method: 'GET' | 'PUT', path: string, length: number): Record<string, string> {
  const headers = signRequest(
    { method, path, query: [], headers: { host: url.host }, region: 'us-east-1', service: 's3', date: new Date() },
    keys,
  );
  if (method === 'PUT') headers['content-length'] = String(length);
  return headers;
}

const pool = new Pool(url.origin, { connections: AT_ONCE });
const viaUndici: Client = (method, path, headers, body) =>
  new Promise((resolve, reject) => {
    let at = 0;
    let status = 0;
    pool.dispatch(
      { origin: url.origin, path, method, headers, body: method === 'PUT' ? body.bytes : null },
      {
        onRequestStart() {},
        onResponseStart(_controller, code) {
          status = code;
        },
        onResponseData(_controller, chunk) {
          body.bytes.set(chunk, at);
          at += chunk.length;
        },
        onResponseEnd: () => (status === 200 ? resolve(at) : reject(new Error(`status ${status}`))),
        onResponseError: (_controller, error) => reject(error),
      },
    );
  });

const agent = new http.Agent({ keepAlive: true, maxSockets: AT_ONCE });
const viaHttp: Client = (method, path, headers, body) =>
  new Promise((resolve, reject) => {
    const request = http.request({ agent, host: url.hostname, port: url.port, method, path, headers }, response => {
      let at = 0;
      response.on('data', (chunk: Buffer) => {
        body.bytes.set(chunk, at);
        at += chunk.length;
      });
      response.on('end', () =>
        response.statusCode === 200 ? resolve(at) : reject(new Error(`status ${response.statusCode}`)),
      );
    });
    request.on('error', reject);
    request.end(method === 'PUT' ? body.bytes : undefined);
  });

/** One connection, one request at a time. */
class Wire {
  readonly #socket: Socket;
  #head = '';
  #left = -1;
  #at = 0;
  #status = 0;
  #body: Area | undefined;
  #done: ((length: number) => void) | undefined;
  #failed: ((error: Error) => void) | undefined;
  constructor() {
    this.#socket = connect({
      host: url.hostname,
      port: Number(url.port),
      onread: {
        buffer: Buffer.allocUnsafe(65536),
        callback: (n: number, b: Uint8Array) => {
          this.#take(b.subarray(0, n));
          return true;
        },
      },
    } as NetConnectOpts & { onread: OnReadOpts });
    this.#socket.setNoDelay(true);
    this.#socket.on('error', e => this.#failed?.(e));
  }
  #take(chunk: Uint8Array): void {
    let rest = chunk;
    if (this.#left < 0) {
      this.#head += Buffer.from(chunk).toString('latin1');
      const end = this.#head.indexOf('\r\n\r\n');
      if (end < 0) return;
      rest = chunk.subarray(chunk.length - (this.#head.length - end - 4));
      this.#status = Number(this.#head.slice(9, 12));
      this.#left = Number(/\r\ncontent-length: *(\d+)/i.exec(this.#head.slice(0, end))?.[1] ?? 0);
    }
    const body = this.#body!;
    if (rest.length > 0 && this.#status === 200) body.bytes.set(rest, this.#at);
    this.#at += rest.length;
    this.#left -= rest.length;
    const fd = (this.#socket as unknown as { _handle: { fd: number } })._handle.fd;
    while (this.#left > 0 && this.#status === 200) {
      const n = read(fd, body.address + this.#at, this.#left);
      if (n <= 0) break;
      this.#at += n;
      this.#left -= n;
    }
    if (this.#left > 0) return;
    this.#head = '';
    this.#left = -1;
    if (this.#status === 200) this.#done!(this.#at);
    else this.#failed!(new Error(`status ${this.#status}`));
  }
  send(method: string, path: string, headers: Record<string, string>, body: Area): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#body = body;
      this.#at = 0;
      this.#done = resolve;
      this.#failed = reject;
      let head = `${method} ${path} HTTP/1.1\r\n`;
      for (const [k, v] of Object.entries(headers)) head += `${k}: ${v}\r\n`;
      this.#socket.cork();
      this.#socket.write(`${head}\r\n`, 'latin1');
      if (method === 'PUT') this.#socket.write(body.bytes);
      this.#socket.uncork();
    });
  }
  end(): void {
    this.#socket.destroy();
  }
}
const idle: Wire[] = [];
const byHand: Client = async (method, path, headers, body) => {
  const wire = idle.pop() ?? new Wire();
  const length = await wire.send(method, path, headers, body);
  idle.push(wire);
  return length;
};

const cpuOfServer = (): number => {
  const stat = readFileSync(`/proc/${server.pid}/stat`, 'latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
};

const rows = ['| | MiB/s | objects/s | client CPU, s/GiB | server CPU, s/GiB |', '|---|---:|---:|---:|---:|'];
const bodies: Area[] = Array.from({ length: AT_ONCE }, () => {
  const { address, bytes } = allocate(4 << 20);
  bytes.set(Buffer.alloc(4 << 20, createHash('sha256').update('x').digest()));
  return { address, bytes };
});
for (const [label, size] of [
  ['4 MiB', 4 << 20],
  ['100 KiB', 100 << 10],
] as const)
  for (const method of ['PUT', 'GET'] as const)
    for (const [name, client] of [
      ['undici', viaUndici],
      ['node:http', viaHttp],
      ['by hand', byHand],
    ] as const) {
      const end = performance.now() + Number(values.seconds) * 1000;
      let bytes = 0;
      const before = process.cpuUsage();
      const atServer = cpuOfServer();
      const start = performance.now();
      await Promise.all(
        bodies.map(async ({ address, bytes: all }, i) => {
          const body = { address, bytes: all.subarray(0, size) };
          for (let n = 0; performance.now() < end; n++) {
            const path = `${url.pathname}/${label.replace(' ', '')}-${i}-${n % 8}`;
            const got = await client(method, path, signed(method, path, size), body);
            if (method === 'GET' && got !== size) throw new Error(`${got} bytes`);
            bytes += size;
          }
        }),
      );
      const seconds = (performance.now() - start) / 1000;
      const { user, system } = process.cpuUsage(before);
      const gib = bytes / 2 ** 30;
      const cells = [
        (bytes / 2 ** 20 / seconds).toFixed(0),
        (bytes / size / seconds).toFixed(0),
        ((user + system) / 1e6 / gib).toFixed(2),
        ((cpuOfServer() - atServer) / gib).toFixed(2),
      ];
      rows.push(`| ${method} ${label}, ${name} | ${cells.join(' | ')} |`);
    }
console.log(rows.join('\n'));
for (const wire of idle) wire.end();
agent.destroy();
await pool.close();
await server.stop();
