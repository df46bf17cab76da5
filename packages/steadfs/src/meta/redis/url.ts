/**
 * Metadata URLs of Redis (spec/meta-redis.md §1). A password that the URL lacks comes from REDIS_PASSWORD, META_PASSWORD, or the file that
 * META_PASSWORD_FILE names. Error texts and `display` never contain the URL.
 */
import { readFileSync } from 'node:fs';
import type { TlsOptions } from 'node:tls';
import { metaPassword } from '../sql/url.ts';

export interface Address {
  host: string;
  port: number;
}

export interface RedisUrl {
  /** Servers, sentinels (with `master`), or cluster nodes. Empty with `socketPath`. */
  addresses: Address[];
  socketPath: string | undefined;
  /** Name of the master that the addresses, then sentinels, are asked for. */
  master: string | undefined;
  user: string | undefined;
  password: string | undefined;
  sentinelPassword: string | undefined;
  db: number;
  tls:
    | (Pick<TlsOptions, 'ca' | 'cert' | 'key'> & { servername: string | undefined; rejectUnauthorized: boolean })
    | undefined;
  minBackoffMs: number;
  maxBackoffMs: number;
  readTimeoutMs: number;
  connectTimeoutMs: number;
  /** false: no client-side caching. Default on. */
  cache: boolean;
  /** Attributes, and names of directories, that are kept at most. */
  cacheSize: number;
  /** For people: no user, no password. */
  display: string;
}

const SENTINEL_PORT = 26379;
const PORT = 6379;

/** Go's time.ParseDuration, in milliseconds: "20ms", "1m30s". */
export function parseDuration(text: string): number | undefined {
  if (text === '0') return 0;
  const units: Record<string, number> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
  let total = 0;
  let at = 0;
  for (const m of text.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)/gy)) {
    total += Number(m[1]) * units[m[2]!]!;
    at = m.index + m[0].length;
  }
  return at === text.length && at > 0 ? total : undefined;
}

export function parseRedisUrl(text: string, env: NodeJS.ProcessEnv): RedisUrl {
  const bad = (why: string): Error => new Error(`metadata URL ${why}; expected redis://USER:PASSWORD@HOST:6379/DB`);
  const whole = /^(?:(redis|rediss|unix):\/\/)?(.*)$/s.exec(text)!;
  const scheme = whole[1] ?? 'redis';
  const rest = whole[2]!;
  const question = rest.indexOf('?');
  const params = new URLSearchParams(question < 0 ? '' : rest.slice(question + 1));
  const main = question < 0 ? rest : rest.slice(0, question);
  const take = (...names: string[]): string | undefined => {
    let found: string | undefined;
    for (const n of names.flatMap(x => [x, x.replaceAll('-', '_')])) {
      found ??= params.get(n) ?? undefined;
      params.delete(n);
    }
    return found;
  };
  const duration = (name: string, fallback: number): number => {
    const given = take(name);
    const ms = given === undefined ? fallback : parseDuration(given);
    if (ms === undefined) throw new Error(`metadata URL: ${name}=${given} is not a duration`);
    return ms;
  };
  const whole32 = (name: string, given: string | undefined, fallback: number): number => {
    if (given === undefined) return fallback;
    if (!/^\d{1,9}$/.test(given)) throw new Error(`metadata URL: ${name}=${given} is not a number`);
    return Number(given);
  };
  // The last @ ends the user part: passwords may hold one.
  const unix = scheme === 'unix';
  const at = main.lastIndexOf('@');
  const account = at < 0 ? '' : main.slice(0, at);
  const target = main.slice(at + 1);
  const colon = account.indexOf(':');
  const user = percentDecoded(colon < 0 ? account : account.slice(0, colon));
  const password = colon < 0 ? '' : percentDecoded(account.slice(colon + 1));
  const slash = unix ? -1 : target.indexOf('/');
  const hosts = slash < 0 ? target : target.slice(0, slash);
  const db = whole32(
    'database',
    (unix ? take('db') : slash < 0 ? undefined : target.slice(slash + 1) || undefined) ?? take('db'),
    0,
  );
  const addresses: Address[] = [];
  let master: string | undefined;
  let socketPath: string | undefined;
  if (unix) {
    if (!target.startsWith('/')) throw new Error('metadata URL names no socket: unix:///PATH');
    socketPath = percentDecoded(target);
  } else {
    const list = hosts.split(',');
    const comma = hosts.indexOf(',');
    const firstColon = hosts.indexOf(':');
    if (comma >= 0 && (firstColon < 0 || comma < firstColon)) master = list.shift();
    let lastPort: number | undefined;
    for (const item of list.reverse()) {
      const m = /^(\[[0-9a-fA-F:.]+\]|[^:[\]]*)(?::(\d+))?$/.exec(item);
      if (m === null) throw bad('is malformed');
      const given = m[2] === undefined ? undefined : Number(m[2]);
      lastPort = given ?? lastPort ?? (master === undefined ? PORT : SENTINEL_PORT);
      addresses.unshift({ host: m[1]!.replace(/^\[|\]$/g, '') || '127.0.0.1', port: lastPort });
    }
    if (addresses.length === 0) throw bad('names no host');
  }
  const skipVerify = take('insecure-skip-verify');
  const file = (name: string): Buffer | undefined => {
    const path = take(name);
    if (path === undefined) return undefined;
    try {
      return readFileSync(path);
    } catch (e) {
      throw new Error(`metadata URL: ${name} cannot be read: ${e instanceof Error ? e.message : String(e)}`);
    }
  };
  const cert = file('tls-cert-file');
  const key = file('tls-key-file');
  const ca = file('tls-ca-cert-file');
  const servername = take('tls-server-name');
  if ((cert === undefined) !== (key === undefined))
    throw new Error('metadata URL: tls-cert-file and tls-key-file belong together');
  const cache = take('client-cache');
  const result: RedisUrl = {
    addresses,
    socketPath,
    master,
    user: user || undefined,
    password: password || env.REDIS_PASSWORD || metaPassword(env),
    sentinelPassword: env.SENTINEL_PASSWORD || undefined,
    db,
    tls:
      scheme === 'rediss'
        ? {
            ...(ca && { ca }),
            ...(cert && { cert }),
            ...(key && { key }),
            servername,
            rejectUnauthorized: skipVerify === undefined || skipVerify === 'false',
          }
        : undefined,
    minBackoffMs: duration('min-retry-backoff', 20),
    maxBackoffMs: duration('max-retry-backoff', 10_000),
    readTimeoutMs: duration('read-timeout', 30_000),
    connectTimeoutMs: duration('dial-timeout', 5000),
    cache: cache !== 'false',
    cacheSize: whole32('client-cache-size', take('client-cache-size'), 100_000),
    display: unix
      ? `unix://${socketPath}`
      : `${scheme}://${master === undefined ? '' : `${master},`}${addresses.map(a => `${a.host}:${a.port}`).join(',')}/${db}`,
  };
  // Accepted and without meaning here: pushes make an expiry needless, replicas are never read.
  for (const n of ['write-timeout', 'route-read', 'client-cache-expire', 'client-cache-preload']) take(n);
  for (const name of params.keys()) throw new Error(`metadata URL: unknown parameter ${name}`);
  return result;
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
