/** The HTTP client of object stores against servers that answer byte by byte as told, and behind proxies. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { createServer as createTlsServer } from 'node:tls';
import { createHttpClient, type HttpClient } from '../../src/object/http.ts';
import { proxyFor } from '../../src/object/http-dial.ts';
import { ResponseReader } from '../../src/object/http-response.ts';
import { StoreError } from '../../src/object/store.ts';

interface Scripted {
  port: number;
  connections: number;
  requests: string[];
  stop(): void;
}

/** A server that calls `answer` for each request (head, and body by content-length), the n-th of its connection. */
async function scripted(
  answer: (socket: Socket, request: string, n: number, connection: number) => void,
  make: (listener: (socket: Socket) => void) => ReturnType<typeof createServer> = createServer,
): Promise<Scripted> {
  const open = new Set<Socket>();
  const server: Scripted = { port: 0, connections: 0, requests: [], stop: () => undefined };
  const listener = make(socket => {
    open.add(socket);
    const connection = server.connections++;
    let n = 0;
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (d: Buffer) => {
      text += d.toString('latin1');
      for (;;) {
        const end = text.indexOf('\r\n\r\n');
        if (end < 0) return;
        const length = Number(/content-length: (\d+)/.exec(text.slice(0, end))?.[1] ?? 0);
        if (text.length < end + 4 + length) return;
        const request = text.slice(0, end + 4 + length);
        text = text.slice(end + 4 + length);
        server.requests.push(request);
        answer(socket, request, n++, connection);
      }
    });
  });
  await new Promise<void>(resolve => listener.listen(0, '127.0.0.1', resolve));
  server.port = (listener.address() as AddressInfo).port;
  server.stop = () => {
    for (const s of open) s.destroy();
    listener.close();
  };
  after(server.stop);
  return server;
}

const clientOf = (port: number, env: NodeJS.ProcessEnv = {}, host = '127.0.0.1'): HttpClient => {
  const url = new URL(`http://${host}:${port}`);
  return createHttpClient({ url, tls: { rejectUnauthorized: true }, proxy: proxyFor(url, env) }, 2);
};
const get = { method: 'GET', path: '/k', headers: { host: 'h' }, body: [], what: 'GET k' };
const put = (body: Uint8Array) => ({
  ...get,
  method: 'PUT',
  headers: { host: 'h', 'content-length': String(body.length) },
  body: [body],
});
const ok = (body: string): string => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

describe('HTTP responses', () => {
  const CASES: [what: string, bytes: string, method: string, body: string, keep: boolean][] = [
    ['with a length', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Y:  z \r\n\r\nhello', 'GET', 'hello', true],
    ['behind 100 Continue', `HTTP/1.1 100 Continue\r\n\r\n${ok('hello')}`, 'PUT', 'hello', true],
    [
      'in chunks',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nT: r\r\n\r\n',
      'GET',
      'hello',
      true,
    ],
    [
      'that ends the connection',
      ok('hello').replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n'),
      'GET',
      'hello',
      false,
    ],
    ['of HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n', 'HEAD', '', true],
    ['with bytes behind it', `${ok('hello')}x`, 'GET', 'hello', false],
  ];
  for (const [what, bytes, method, body, keep] of CASES)
    it(`reads one ${what}, in one piece and byte by byte`, () => {
      for (const step of [bytes.length, 1, 7]) {
        for (const target of [undefined, Buffer.alloc(5)]) {
          const reader = new ResponseReader(method, target, 'x');
          for (let i = 0; i < bytes.length; i += step) reader.feed(Buffer.from(bytes.slice(i, i + step)));
          assert.ok(reader.done);
          assert.equal(reader.keepAlive, keep);
          const got = target?.subarray(0, reader.response.length) ?? reader.response.body;
          assert.equal(Buffer.from(got).toString(), body);
        }
      }
    });
  it('reads one without length up to the end of the connection', () => {
    const reader = new ResponseReader('GET', undefined, 'x');
    reader.feed(Buffer.from('HTTP/1.1 200 OK\r\n\r\nhel'));
    reader.feed(Buffer.from('lo'));
    assert.ok(!reader.done && reader.ended() && reader.done);
    assert.equal(reader.response.body.toString(), 'hello');
  });
  for (const bytes of [
    'FTP/1.1 200\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n',
    `HTTP/1.1 200 OK\r\nX: ${'y'.repeat(70_000)}`,
  ])
    it(`refuses ${JSON.stringify(bytes.slice(0, 70))}`, () => {
      assert.throws(() => new ResponseReader('GET', undefined, 'x').feed(Buffer.from(bytes)), StoreError);
    });
});

describe('HTTP client', () => {
  it('keeps connections, opens no more than it may, and fills targets of any size', async () => {
    const big = 'steady'.repeat(100_000);
    const server = await scripted((socket, request) => socket.write(ok(request.includes('/big') ? big : 'small')));
    const client = clientOf(server.port);
    await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const path = i % 2 ? '/big' : '/small';
        const body = i % 2 ? big : 'small';
        const target = Buffer.alloc(body.length);
        const response = await client.request({ ...get, path, target });
        assert.equal(response.length, body.length);
        assert.ok(target.toString('latin1') === body);
      }),
    );
    assert.ok(server.connections <= 2);
    await assert.rejects(
      client.request({ ...get, path: '/big', target: Buffer.alloc(20_000) }),
      (e: unknown) => e instanceof StoreError && e.kind === 'too-large',
    );
    assert.equal((await client.request(get)).body.toString(), 'small');
    await client.close();
    server.stop();
  });

  it('repeats what met the end of a kept connection, on a new one', async () => {
    const server = await scripted((socket, _request, n) => (n === 0 ? socket.write(ok('first')) : socket.destroy()));
    const client = clientOf(server.port);
    for (let i = 0; i < 3; i++)
      assert.equal((await client.request(put(Buffer.alloc(100_000)))).body.toString(), 'first');
    assert.ok(server.connections >= 3);
    await client.close();
    server.stop();
  });

  it('says that a server is away: refused, ended without an answer, and in the middle of a body', async () => {
    const away = (e: unknown): boolean => e instanceof StoreError && e.kind === 'away';
    const server = await scripted((socket, request) =>
      request.includes('/half') ? socket.end('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf') : socket.destroy(),
    );
    const client = clientOf(server.port);
    await assert.rejects(client.request(get), away);
    await assert.rejects(client.request({ ...get, path: '/half', target: Buffer.alloc(10) }), away);
    server.stop();
    await assert.rejects(client.request(get), away);
    await client.close();
  });

  it('takes an answer that comes before the request was sent, and does not use that connection again', async () => {
    const server = await scripted(
      () => undefined,
      listener =>
        createServer(socket => {
          listener(socket);
          socket.pause();
          socket.write('HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno');
        }),
    );
    const client = clientOf(server.port);
    for (let i = 0; i < 2; i++) {
      const { status, body } = await client.request(put(Buffer.alloc(32 << 20)));
      assert.deepEqual([status, body.toString()], [403, 'no']);
    }
    assert.equal(server.connections, 2);
    await client.close();
    server.stop();
  });

  it('ends a request at once when it is aborted, and writes nothing more to its target', async () => {
    let other: Socket | undefined;
    const server = await scripted(socket => {
      other = socket;
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc');
    });
    const client = clientOf(server.port);
    const control = new AbortController();
    const target = Buffer.alloc(100_000);
    const request = client.request({ ...get, target, signal: control.signal });
    while (target[2] === 0) await new Promise(wake => setImmediate(wake));
    control.abort();
    await assert.rejects(request, (e: unknown) => e instanceof StoreError && e.kind === 'timeout');
    other?.write('x'.repeat(1000));
    await new Promise(wake => other?.once('close', wake));
    assert.equal(target[3], 0);
    await assert.rejects(client.request({ ...get, signal: control.signal }), StoreError);
    await client.close();
    server.stop();
  });

  it('lets no line break into the head', async () => {
    const client = clientOf(1);
    const headers = { host: 'h', 'x-amz-tagging': 'a\r\nx: y' };
    await assert.rejects(
      client.request({ ...get, headers }),
      (e: unknown) => e instanceof StoreError && e.kind === 'invalid',
    );
    await client.close();
  });
});

describe('HTTP client with proxies', () => {
  it('finds the proxy in the environment', () => {
    const find = (url: string, env: NodeJS.ProcessEnv) => proxyFor(new URL(url), env)?.host;
    assert.equal(find('http://s/', {}), undefined);
    assert.equal(find('http://s/', { HTTP_PROXY: 'http://p:1', HTTPS_PROXY: 'http://q:2' }), 'p:1');
    assert.equal(find('https://s/', { http_proxy: 'p:1', HTTPS_PROXY: 'http://q:2' }), 'q:2');
    assert.equal(find('https://s/', { http_proxy: 'p:1' }), 'p:1');
    for (const no of ['s', '*', 'x, .b.s', 'a.b.s:443', '*.b.s'])
      assert.equal(find('https://a.b.s/', { http_proxy: 'p:1', NO_PROXY: no }), undefined, no);
    for (const no of ['', 'b', 'a.b.s:80', 'xa.b.s'])
      assert.equal(find('https://a.b.s/', { http_proxy: 'p:1', NO_PROXY: no }), 'p:1', no);
  });

  it('sends http by way of a proxy, with its password', async () => {
    const proxy = await scripted(socket => socket.write(ok('proxied')));
    const client = clientOf(proxy.port, { http_proxy: `http://u:p%40@127.0.0.1:${proxy.port}` }, 'store.invalid');
    assert.equal((await client.request(get)).body.toString(), 'proxied');
    assert.match(proxy.requests[0]!, /^GET http:\/\/store\.invalid:\d+\/k HTTP\/1\.1\r\n/);
    assert.ok(proxy.requests[0]!.includes(`proxy-authorization: Basic ${Buffer.from('u:p@').toString('base64')}\r\n`));
    await client.close();
    proxy.stop();
  });

  it('reaches https straight and through a tunnel, and verifies who answers', async t => {
    const folder = mkdtempSync(join(tmpdir(), 'steadfs-http-'));
    const made = spawnSync(
      'openssl',
      `req -x509 -newkey rsa:2048 -nodes -keyout ${folder}/key -out ${folder}/cert -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1`.split(
        ' ',
      ),
    );
    if (made.status !== 0) return t.skip('no openssl');
    const [key, cert] = [readFileSync(`${folder}/key`), readFileSync(`${folder}/cert`)];
    rmSync(folder, { recursive: true });
    const body = 'secret'.repeat(50_000);
    const server = await scripted(
      socket => socket.write(ok(body)),
      listener => createTlsServer({ key, cert }, listener),
    );
    const tunnels: string[] = [];
    const proxy = await scripted((socket, request) => {
      tunnels.push(request.split('\r\n')[0]!);
      const to = connect(server.port, '127.0.0.1', () => {
        socket.removeAllListeners('data');
        socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
        socket.pipe(to).pipe(socket);
      });
      to.on('error', () => undefined);
      socket.on('close', () => to.destroy());
    });
    const url = new URL(`https://127.0.0.1:${server.port}`);
    for (const via of [undefined, new URL(`http://127.0.0.1:${proxy.port}`)]) {
      const client = createHttpClient({ url, tls: { rejectUnauthorized: true, ca: cert }, proxy: via }, 2);
      for (let i = 0; i < 2; i++) {
        const target = Buffer.alloc(body.length);
        assert.equal((await client.request({ ...get, target })).length, body.length);
        assert.ok(target.toString() === body);
      }
      await client.close();
      const strict = createHttpClient({ url, tls: { rejectUnauthorized: true }, proxy: via }, 2);
      await assert.rejects(strict.request(get), (e: unknown) => e instanceof StoreError && e.kind === 'away');
      await strict.close();
    }
    assert.deepEqual(new Set(tunnels), new Set([`CONNECT 127.0.0.1:${server.port} HTTP/1.1`]));
    proxy.stop();
    server.stop();
  });
});
