/**
 * URLs of the network SQL engines (spec/meta-sql.md §1). Passwords missing in the URL come from META_PASSWORD, else from the file that
 * META_PASSWORD_FILE names. Error texts never contain the URL.
 */
import { readFileSync } from 'node:fs';

/** Parameters that are ours, removed before the driver sees the rest. */
export interface PoolParams {
  /** `max_open_conns`; 0 = our default. */
  maxConnections: number;
  /** `max_idle_time`, seconds. */
  idleSeconds: number;
  /** `jfs_` or `jfs_{table_prefix}_`. */
  tablePrefix: string;
}

export interface PostgresUrl extends PoolParams {
  host: string;
  port: number;
  user: string;
  password: string | undefined;
  database: string;
  /** disable, allow, prefer, require, verify-ca, verify-full. */
  sslMode: string;
  sslRootCert: string | undefined;
  sslCert: string | undefined;
  sslKey: string | undefined;
  /** The one schema of search_path, or undefined. */
  schema: string | undefined;
  /** For people: host, port, database. */
  display: string;
}

export interface MysqlUrl extends PoolParams {
  host: string;
  port: number;
  socketPath: string | undefined;
  user: string;
  password: string | undefined;
  database: string;
  /** undefined: no TLS. */
  tls: { rejectUnauthorized: boolean } | undefined;
  display: string;
}

type Env = NodeJS.ProcessEnv;

export function metaPassword(env: Env): string | undefined {
  if (env.META_PASSWORD) return env.META_PASSWORD;
  if (!env.META_PASSWORD_FILE) return undefined;
  try {
    return readFileSync(env.META_PASSWORD_FILE, 'utf8').replace(/\r?\n$/, '');
  } catch (e) {
    throw new Error(`META_PASSWORD_FILE cannot be read: ${e instanceof Error ? e.message : String(e)}`);
  }
}

function poolParams(params: URLSearchParams): PoolParams {
  const number = (name: string, fallback: number): number => {
    const text = params.get(name);
    params.delete(name);
    if (text === null) return fallback;
    if (!/^\d+$/.test(text)) throw new Error(`metadata URL: ${name}=${text} is not a number`);
    return Number(text);
  };
  const prefix = params.get('table_prefix');
  params.delete('table_prefix');
  if (prefix !== null && !/^[A-Za-z0-9_]{1,32}$/.test(prefix))
    throw new Error('metadata URL: table_prefix may have letters, digits and _');
  const result = {
    maxConnections: number('max_open_conns', 0),
    idleSeconds: number('max_idle_time', 300),
    tablePrefix: prefix ? `jfs_${prefix}_` : 'jfs_',
  };
  number('max_idle_conns', 0);
  number('max_life_time', 0);
  return result;
}

const SSL_MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'];

/** postgres://user:pass@host:5432/db?sslmode=…&search_path=…, or ?host=/dir for a Unix socket. */
export function parsePostgresUrl(text: string, env: Env): PostgresUrl {
  let url: URL;
  try {
    url = new URL(text.replace(/^(postgres|postgresql):\/\/([^/@]*@)?\//, '$1://$2localhost/'));
  } catch {
    throw new Error('metadata URL is malformed; expected postgres://USER:PASSWORD@HOST:5432/DATABASE');
  }
  const params = url.searchParams;
  const pool = poolParams(params);
  const host = params.get('host') ?? decodeURIComponent(url.hostname).replace(/^\[|\]$/g, '');
  const port = Number(params.get('port') ?? (url.port || 5432));
  const database = params.get('dbname') ?? decodeURIComponent(url.pathname.slice(1));
  const user = params.get('user') ?? decodeURIComponent(url.username);
  const password = params.get('password') ?? (decodeURIComponent(url.password) || metaPassword(env));
  const sslMode = params.get('sslmode') ?? env.PGSSLMODE ?? 'prefer';
  const searchPath = params.get('search_path');
  if (!database) throw new Error('metadata URL names no database: postgres://USER:PASSWORD@HOST:5432/DATABASE');
  if (!SSL_MODES.includes(sslMode))
    throw new Error(`metadata URL: sslmode=${sslMode} is none of ${SSL_MODES.join(', ')}`);
  if (searchPath?.includes(',')) throw new Error('metadata URL: search_path may name one schema');
  const known = [
    'host',
    'port',
    'dbname',
    'user',
    'password',
    'sslmode',
    'sslrootcert',
    'sslcert',
    'sslkey',
    'search_path',
    'application_name',
    'connect_timeout',
  ];
  for (const name of params.keys())
    if (!known.includes(name)) throw new Error(`metadata URL: unknown parameter ${name}`);
  return {
    ...pool,
    host,
    port,
    user,
    password: password || undefined,
    database,
    sslMode,
    sslRootCert: params.get('sslrootcert') ?? undefined,
    sslCert: params.get('sslcert') ?? undefined,
    sslKey: params.get('sslkey') ?? undefined,
    schema: searchPath?.trim().replace(/^"|"$/g, '') || undefined,
    display: `postgres://${host}:${port}/${database}${searchPath ? ` schema ${searchPath}` : ''}`,
  };
}

/** mysql://user:pass@(host:3306)/db?…, also @tcp(host:port), @unix(/sock) and plain @host:port; the last @ ends the user part. */
export function parseMysqlUrl(text: string, env: Env): MysqlUrl {
  const rest = text.replace(/^[a-z]+:\/\//, '');
  const question = rest.indexOf('?');
  const params = new URLSearchParams(question < 0 ? '' : rest.slice(question + 1));
  const main = question < 0 ? rest : rest.slice(0, question);
  const slash = main.lastIndexOf('/');
  const at = main.lastIndexOf('@', slash);
  const account = at < 0 ? '' : main.slice(0, at);
  const address = main.slice(at + 1, slash);
  const database = slash < 0 ? '' : main.slice(slash + 1);
  const form = /^(?:(tcp|unix)?\((.*)\)|([^()]*))$/.exec(address);
  if (slash < 0 || form === null || !/^[^/()]+$/.test(database)) {
    throw new Error('metadata URL is malformed; expected mysql://USER:PASSWORD@(HOST:3306)/DATABASE');
  }
  const pool = poolParams(params);
  const colon = account.indexOf(':');
  const user = colon < 0 ? account : account.slice(0, colon);
  const given = colon < 0 ? '' : account.slice(colon + 1);
  const target = form[2] ?? form[3] ?? '';
  const socketPath = form[1] === 'unix' ? target : undefined;
  const portAt = /:(\d+)$/.exec(target);
  const host =
    socketPath === undefined ? (portAt ? target.slice(0, portAt.index) : target) || '127.0.0.1' : 'localhost';
  const port = Number(portAt?.[1] ?? 3306);
  const tls = params.get('tls');
  if (tls !== null && !['true', 'false', 'skip-verify', 'preferred'].includes(tls))
    throw new Error(`metadata URL: tls=${tls} is none of true, false, skip-verify`);
  return {
    ...pool,
    host,
    port,
    socketPath,
    user: user || 'root',
    password: percentDecoded(given) || metaPassword(env),
    database,
    tls:
      tls === 'true' ? { rejectUnauthorized: true } : tls === 'skip-verify' ? { rejectUnauthorized: false } : undefined,
    display: `mysql://${socketPath ?? `${host}:${port}`}/${database}`,
  };
}

/** A password that is URL-escaped is unescaped; one with a lone % is taken as it is. */
function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
