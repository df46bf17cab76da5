/** Connections of an HTTP client: plain or with TLS, straight or by way of the proxy that the environment names. */
import { connect, type NetConnectOpts, type OnReadOpts, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';

export interface Origin {
  url: URL;
  tls: { rejectUnauthorized: boolean; ca?: Buffer; cert?: Buffer; key?: Buffer };
  /** See {@link proxyFor}. */
  proxy: URL | undefined;
}

const CONNECT_MS = 10_000;

/**
 * The proxy for an origin (HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case): https falls back to HTTP_PROXY. NO_PROXY is a list of hosts, each with all
 * below it and perhaps a port, or `*`.
 */
export function proxyFor(origin: URL, env: NodeJS.ProcessEnv): URL | undefined {
  const of = (name: string): string | undefined => env[name.toLowerCase()] || env[name] || undefined;
  const proxy = (origin.protocol === 'https:' && of('HTTPS_PROXY')) || of('HTTP_PROXY');
  if (proxy === undefined) return undefined;
  for (const entry of (of('NO_PROXY') ?? '').split(/[\s,]+/)) {
    if (entry === '*') return undefined;
    const [, host = '', port] = /^\*?\.?(.+?)(?::(\d+))?$/.exec(entry) ?? [];
    if (host === '' || (port !== undefined && Number(port) !== portOf(origin))) continue;
    if (origin.hostname === host.toLowerCase() || origin.hostname.endsWith(`.${host.toLowerCase()}`)) return undefined;
  }
  return new URL(proxy.includes('://') ? proxy : `http://${proxy}`);
}

const portOf = (url: URL): number => Number(url.port || (url.protocol === 'https:' ? 443 : 80));
const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, '');

/** `Basic …` for a proxy with a name and password in its URL. */
export function proxyAuthorization(proxy: URL): string | undefined {
  if (proxy.username === '') return undefined;
  const pair = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  return `Basic ${Buffer.from(pair).toString('base64')}`;
}

/** A socket on which something failed before it could be used. */
function settled(socket: Socket, event: 'connect' | 'secureConnect', where: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => socket.destroy(new Error(`timeout of ${CONNECT_MS / 1000} s`)), CONNECT_MS);
    const failed = (e: Error): void => {
      clearTimeout(timer);
      reject(new Error(`connecting to ${where}: ${e.message || String((e as { code?: string }).code)}`, { cause: e }));
    };
    socket.once('error', failed);
    socket.once(event, () => {
      clearTimeout(timer);
      socket.off('error', failed);
      resolve();
    });
  });
}

/** TLS sessions, so that the next connection begins sooner. A session stands for what was verified: by origin with its settings, not by name. */
const sessions = new WeakMap<Origin, Buffer>();

/**
 * Connects. `data` gets what arrives, in memory that is used again. `plain`: the socket's descriptor carries the bytes as they are.
 */
export async function dial(
  origin: Origin,
  data: (chunk: Uint8Array) => void,
): Promise<{ socket: Socket; plain: boolean }> {
  const { url, proxy, tls } = origin;
  const where = proxy ?? url;
  const first: NetConnectOpts = { host: hostOf(where), port: portOf(where) };
  if (url.protocol === 'http:' && where.protocol === 'http:') {
    const onread: OnReadOpts = {
      buffer: Buffer.allocUnsafe(65536),
      callback(n, b) {
        data(b.subarray(0, n));
        return true;
      },
    };
    const socket = connect({ ...first, onread } as NetConnectOpts);
    await settled(socket, 'connect', where.host);
    return { socket, plain: true };
  }
  let socket: Socket;
  if (where.protocol === 'https:' && where === proxy) {
    socket = connectTls({ ...first, ALPNProtocols: ['http/1.1'] });
    await settled(socket, 'secureConnect', where.host);
  } else {
    socket = connect(first);
    await settled(socket, 'connect', where.host);
  }
  if (url.protocol === 'https:') {
    if (proxy !== undefined) await tunnel(socket, url, proxy);
    const name = hostOf(url);
    const session = sessions.get(origin);
    const secure = connectTls({
      socket,
      ...tls,
      ALPNProtocols: ['http/1.1'],
      ...(/^[\d.]+$|:/.test(name) ? { host: name } : { servername: name }),
      ...(session !== undefined && { session }),
    });
    secure.on('session', s => sessions.set(origin, s));
    const below = socket;
    secure.on('close', () => below.destroy());
    await settled(secure, 'secureConnect', url.host);
    socket = secure;
  }
  socket.on('data', data);
  return { socket, plain: false };
}

/** CONNECT. */
function tunnel(socket: Socket, url: URL, proxy: URL): Promise<void> {
  return new Promise((resolve, reject) => {
    const to = `${url.hostname}:${portOf(url)}`;
    const authorization = proxyAuthorization(proxy);
    const lines = [`CONNECT ${to} HTTP/1.1`, `host: ${to}`];
    if (authorization !== undefined) lines.push(`proxy-authorization: ${authorization}`);
    let head = '';
    const end = (why?: string): void => {
      clearTimeout(timer);
      socket.off('data', take).off('close', closed).off('error', closed);
      if (why === undefined) resolve();
      else {
        socket.destroy();
        reject(new Error(`proxy ${proxy.host}: ${why}`));
      }
    };
    const closed = (): void => end('the connection was closed');
    const take = (chunk: Buffer): void => {
      head += chunk.toString('latin1');
      if (!head.includes('\r\n\r\n')) return;
      socket.pause();
      end(/^HTTP\/1\.[01] 2/.test(head) ? undefined : head.slice(0, head.indexOf('\r\n')));
    };
    const timer = setTimeout(() => end('timeout'), CONNECT_MS);
    socket.on('data', take).on('close', closed).on('error', closed);
    socket.write(`${lines.join('\r\n')}\r\n\r\n`);
  });
}
