/**
 * S3 and compatible object stores: requests signed by s3-sign.ts, sent by http.ts. No SDK because of CPU per object. An object's user metadata `crc32c` (decimal CRC-32C of the stored bytes,
 * spec/volume.md §5.3) is written with every put and checked by every get of a whole object that has it.
 */
import { readFileSync } from 'node:fs';
import { crc32c } from '@node-rs/crc32';
import { createHttpClient } from './http.ts';
import { type Origin, proxyFor } from './http-dial.ts';
import type { HttpResponse } from './http-response.ts';
import { parseS3Endpoint, type S3Endpoint } from './s3-endpoint.ts';
import { canonicalQuery, type S3Credentials, signRequest, uriEncode } from './s3-sign.ts';
import { type ObjectInfo, type ObjectStore, type PutOptions, StoreError, type StoreErrorKind } from './store.ts';

export interface S3Options {
  storage: 's3' | 'minio';
  bucket: string;
  accessKey?: string | undefined;
  secretKey?: string | undefined;
  sessionToken?: string | undefined;
  /** Storage class and tag per tier id; tier 0 is the default. */
  tiers?: Record<number, { storageClass: string; tag: string }>;
  /** Connections to the endpoint at most. */
  connections?: number;
  /** Tries of one call, the first included. Longer outages are the caller's to wait for. */
  tries?: number;
  /** Milliseconds without a first byte after which a second, equal GET is sent; 0 = never. */
  hedgeAfter?: number;
  env?: NodeJS.ProcessEnv;
}

interface Call {
  method: 'GET' | 'PUT' | 'HEAD' | 'DELETE' | 'POST';
  key: string;
  query?: readonly (readonly [string, string])[];
  headers?: Record<string, string>;
  body?: readonly Uint8Array[];
  /** Where the body of a 2xx goes; more bytes than it holds are an error. */
  target?: Uint8Array;
  signal?: AbortSignal | undefined;
}

/** Parts of a multipart upload; single PUTs up to PART_FROM. */
const PART_SIZE = 16 * 1024 * 1024;
const PART_FROM = 64 * 1024 * 1024;
/** Second GETs under way at once: each has a buffer outside of the mount's ceiling, and a store that is slow as a whole gets no faster by them. */
const HEDGES_MAX = 4;

export function createS3Store(options: S3Options): ObjectStore {
  const env = options.env ?? process.env;
  const endpoint = parseS3Endpoint(options.storage, options.bucket, env);
  const url = new URL(endpoint.origin);
  const { host } = url;
  const origin = { url, tls: tlsOf(endpoint), proxy: proxyFor(url, env) };
  const http = createHttpClient(origin, options.connections ?? 64);
  const credentials = credentialSource(options, env);
  const tries = options.tries ?? 3;
  const checksum = endpoint.params.get('disable-checksum') !== 'true';
  const sse = sseHeaders(endpoint.params);
  const name = `${options.storage}://${endpoint.pathStyle ? `${host}/${endpoint.bucket}` : host}/`;

  const pathOf = (key: string): string => {
    const encoded = uriEncode(key, true);
    return endpoint.pathStyle
      ? `/${uriEncode(endpoint.bucket, false)}${key === '' ? '' : `/${encoded}`}`
      : `/${encoded}`;
  };

  /** One attempt. */
  async function attempt(call: Call): Promise<HttpResponse> {
    const query = call.query ?? [];
    const path = pathOf(call.key);
    const headers = signRequest(
      {
        method: call.method,
        path,
        query,
        headers: { host, ...call.headers },
        region: endpoint.region,
        service: 's3',
        date: new Date(),
      },
      await credentials(),
    );
    const body = call.body ?? [];
    if (call.method === 'PUT' || call.method === 'POST')
      headers['content-length'] = String(body.reduce((n, p) => n + p.length, 0));
    return await http.request({
      method: call.method,
      path: query.length > 0 ? `${path}?${canonicalQuery(query)}` : path,
      headers,
      body,
      target: call.target,
      signal: call.signal,
      what: `${call.method} ${name}${call.key}`,
    });
  }

  /** Attempts with back-off; answers with status 2xx or throws. */
  async function request(call: Call): Promise<HttpResponse> {
    for (let n = 1; ; n++) {
      let failure: StoreError;
      try {
        const response = await attempt(call);
        if (response.status >= 200 && response.status < 300) return response;
        failure = errorOf(call, response);
      } catch (e) {
        if (!(e instanceof StoreError)) throw e;
        failure = e;
      }
      if (!failure.retry || n >= tries || call.signal?.aborted) throw failure;
      await new Promise(wake => setTimeout(wake, 50 * 2 ** n * (0.5 + Math.random())));
    }
  }

  function errorOf(call: Call, response: HttpResponse): StoreError {
    const text = response.body.toString('utf8');
    const code = xmlText(text, 'Code') ?? '';
    const message = xmlText(text, 'Message') ?? '';
    const what = `${call.method} ${name}${call.key}: ${response.status}${code ? ` ${code}` : ''}${message ? `: ${message}` : ''}`;
    return new StoreError(kindOf(response.status, code), what);
  }

  let hedges = 0;
  const store: ObjectStore = {
    toString: () => name,
    limits: { rangeGet: true },

    async create() {
      try {
        await request({ method: 'HEAD', key: '' });
        return;
      } catch (e) {
        if (!(e instanceof StoreError) || e.kind !== 'not-found') throw e;
      }
      const location =
        endpoint.region === 'us-east-1'
          ? []
          : [
              Buffer.from(
                `<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>${endpoint.region}</LocationConstraint></CreateBucketConfiguration>`,
              ),
            ];
      try {
        await request({ method: 'PUT', key: '', body: location });
      } catch (e) {
        if (e instanceof StoreError && /BucketAlready/.test(e.message)) return;
        throw e;
      }
    },

    async put(key: string, pieces: readonly Uint8Array[], put: PutOptions = {}) {
      const total = pieces.reduce((n, p) => n + p.length, 0);
      const headers: Record<string, string> = { ...sse, ...tierHeaders(options.tiers?.[put.tier ?? 0]) };
      if (checksum) {
        let crc = 0;
        for (const piece of pieces) crc = crc32c(piece, crc);
        headers['x-amz-meta-crc32c'] = String(crc);
        const wire = Buffer.allocUnsafe(4);
        wire.writeUInt32BE(crc);
        headers['x-amz-checksum-crc32c'] = wire.toString('base64');
      }
      if (total <= PART_FROM) {
        await request({ method: 'PUT', key, headers, body: pieces, signal: put.signal });
        return;
      }
      delete headers['x-amz-checksum-crc32c'];
      await multipart(key, pieces, headers, put.signal);
    },

    async get(key: string, offset: number, target: Uint8Array, signal?: AbortSignal) {
      if (target.length === 0) return 0;
      const headers = { range: `bytes=${offset}-${offset + target.length - 1}` };
      let response: HttpResponse;
      try {
        response = await hedged({ method: 'GET', key, headers, target, signal });
      } catch (e) {
        // Past the end of the object.
        if (e instanceof StoreError && e.kind === 'invalid' && / 416 /.test(`${e.message} `)) return 0;
        throw e;
      }
      const range = response.headers['content-range'];
      if (response.status === 200 && offset !== 0)
        throw new StoreError('invalid', `${name}${key}: the store ignores ranges`);
      const whole = offset === 0 && (typeof range !== 'string' || range.endsWith(`/${response.length}`));
      const expected = response.headers['x-amz-meta-crc32c'];
      if (
        checksum &&
        whole &&
        typeof expected === 'string' &&
        Number(expected) !== crc32c(target.subarray(0, response.length))
      ) {
        throw new StoreError('io', `${name}${key}: the content does not match its checksum ${expected}`);
      }
      return response.length;
    },

    async read(key: string, max: number) {
      const response = await request({ method: 'GET', key });
      if (response.body.length > max)
        throw new StoreError('too-large', `${name}${key}: ${response.body.length} bytes, ${max} expected at most`);
      return response.body;
    },

    async head(key: string): Promise<ObjectInfo> {
      const { headers } = await request({ method: 'HEAD', key });
      return {
        key,
        size: Number(headers['content-length'] ?? 0),
        mtime: Date.parse(String(headers['last-modified'] ?? '')) / 1000,
      };
    },

    async delete(key: string) {
      try {
        await request({ method: 'DELETE', key });
      } catch (e) {
        if (!(e instanceof StoreError) || e.kind !== 'not-found') throw e;
      }
    },

    async list(prefix: string, after: string, limit: number) {
      const query: [string, string][] = [
        ['list-type', '2'],
        ['encoding-type', 'url'],
        ['max-keys', String(Math.min(limit, 1000))],
      ];
      if (prefix) query.push(['prefix', prefix]);
      if (after) query.push(['start-after', after]);
      const { body } = await request({ method: 'GET', key: '', query });
      const text = body.toString('utf8');
      // Some servers ignore encoding-type and say so by not naming it.
      const decode =
        xmlText(text, 'EncodingType') === 'url'
          ? (k: string) => decodeURIComponent(k.replaceAll('+', ' '))
          : (k: string) => k;
      const objects: ObjectInfo[] = [];
      for (const [, item] of text.matchAll(/<Contents>(.*?)<\/Contents>/gs)) {
        objects.push({
          key: decode(xmlText(item!, 'Key') ?? ''),
          size: Number(xmlText(item!, 'Size') ?? 0),
          mtime: Date.parse(xmlText(item!, 'LastModified') ?? '') / 1000,
        });
      }
      return { objects, more: xmlText(text, 'IsTruncated') === 'true' };
    },

    async sync() {},

    async close() {
      await http.close();
    },
  };
  return store;

  /** A GET; a second one is sent when the first has no byte after `hedgeAfter`. Each has a buffer of its own, the first to end wins. */
  async function hedged(call: Call): Promise<HttpResponse> {
    const delay = options.hedgeAfter ?? 0;
    const target = call.target!;
    if (delay === 0 || target.length > PART_SIZE) return await request(call);
    const stop = [new AbortController(), new AbortController()] as const;
    const linked = (i: 0 | 1): AbortSignal =>
      call.signal ? AbortSignal.any([call.signal, stop[i].signal]) : stop[i].signal;
    const first = request({ ...call, signal: linked(0) });
    // Awaited below; until then a failure is nobody's.
    first.catch(() => {});
    let timer: NodeJS.Timeout | undefined;
    const late = await Promise.race([
      first.then(
        () => false,
        () => false,
      ),
      new Promise<boolean>(wake => {
        timer = setTimeout(() => wake(true), delay);
      }),
    ]);
    clearTimeout(timer);
    if (!late || hedges >= HEDGES_MAX) return await first;
    hedges++;
    try {
      return await race(call, first, stop, linked(1));
    } finally {
      hedges--;
    }
  }

  /** The GET that is under way against a second one. */
  async function race(
    call: Call,
    first: Promise<HttpResponse>,
    stop: readonly [AbortController, AbortController],
    signal: AbortSignal,
  ): Promise<HttpResponse> {
    const target = call.target!;
    const buffer = Buffer.allocUnsafe(target.length);
    const second = request({ ...call, target: buffer, signal });
    // The one that loses is aborted.
    second.catch(() => {});
    const [winner, response] = await Promise.any([
      first.then(r => [0, r] as const),
      second.then(r => [1, r] as const),
    ]).catch((e: AggregateError) => {
      throw e.errors[0];
    });
    stop[winner === 0 ? 1 : 0].abort();
    if (winner === 1) {
      // The first must have let go of the target before it is filled again.
      await first.catch(() => {});
      target.set(buffer.subarray(0, response.length));
    }
    return response;
  }

  async function multipart(
    key: string,
    pieces: readonly Uint8Array[],
    headers: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const started = await request({ method: 'POST', key, query: [['uploads', '']], headers, body: [], signal });
    const uploadId = xmlText(started.body.toString('utf8'), 'UploadId');
    if (uploadId === undefined) throw new StoreError('invalid', `${name}${key}: no UploadId in the answer`);
    try {
      const tags: string[] = [];
      for (const part of partsOf(pieces, PART_SIZE)) {
        const query: [string, string][] = [
          ['partNumber', String(tags.length + 1)],
          ['uploadId', uploadId],
        ];
        const { headers: answer } = await request({ method: 'PUT', key, query, body: part, signal });
        tags.push(String(answer.etag ?? ''));
      }
      const list = tags.map((tag, i) => `<Part><PartNumber>${i + 1}</PartNumber><ETag>${tag}</ETag></Part>`).join('');
      const done = await request({
        method: 'POST',
        key,
        query: [['uploadId', uploadId]],
        body: [Buffer.from(`<CompleteMultipartUpload>${list}</CompleteMultipartUpload>`)],
        signal,
      });
      // S3 may answer 200 and then an error in the body.
      const code = xmlText(done.body.toString('utf8'), 'Code');
      if (code !== undefined) throw new StoreError('io', `${name}${key}: completing the upload: ${code}`);
    } catch (e) {
      // Parts that cannot be deleted stay to the bucket's own rules; the first error is the one to tell.
      await request({ method: 'DELETE', key, query: [['uploadId', uploadId]] }).catch(() => {});
      throw e;
    }
  }
}

function kindOf(status: number, code: string): StoreErrorKind {
  // Some servers answer 404 for a user they do not know.
  if (status === 404)
    return code === '' || /^(NoSuch(Key|Bucket|Upload)|NotFound)$/.test(code) ? 'not-found' : 'denied';
  if (status === 401 || status === 403) return code === 'RequestTimeTooSkewed' ? 'io' : 'denied';
  if (status === 429 || status === 503 || code === 'SlowDown' || code === 'RequestLimitExceeded') return 'throttled';
  if (status === 408 || status === 504 || code === 'RequestTimeout') return 'timeout';
  if (status === 507 || code === 'QuotaExceeded' || code === 'XMinioStorageFull') return 'no-space';
  return status >= 500 ? 'away' : 'invalid';
}

/** The text of the first <tag>, entities decoded. */
function xmlText(xml: string, tag: string): string | undefined {
  const match = new RegExp(`<${tag}>([^<]*)</${tag}>`).exec(xml);
  return match?.[1]?.replace(/&(lt|gt|quot|apos|amp|#x?[0-9a-fA-F]+);/g, (_, e: string) =>
    e[0] === '#'
      ? String.fromCodePoint(e[1] === 'x' ? Number.parseInt(e.slice(2), 16) : Number(e.slice(1)))
      : (ENTITIES[e] ?? ''),
  );
}
const ENTITIES: Record<string, string> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' };

/** The bytes of `pieces` in groups of `size`. */
function* partsOf(pieces: readonly Uint8Array[], size: number): Iterable<Uint8Array[]> {
  let part: Uint8Array[] = [];
  let room = size;
  for (let piece of pieces) {
    while (piece.length > 0) {
      const head = piece.subarray(0, room);
      part.push(head);
      room -= head.length;
      piece = piece.subarray(head.length);
      if (room === 0) {
        yield part;
        part = [];
        room = size;
      }
    }
  }
  if (part.length > 0) yield part;
}

function tierHeaders(tier: { storageClass: string; tag: string } | undefined): Record<string, string> {
  const headers: Record<string, string> = {};
  if (tier?.storageClass) headers['x-amz-storage-class'] = tier.storageClass;
  if (tier?.tag) {
    const [key = '', value = ''] = tier.tag.split('=');
    headers['x-amz-tagging'] = `${encodeURIComponent(key)}=${encodeURIComponent(value)}`;
  }
  return headers;
}

/** Bucket-URL parameters `sse=AES256` or `sse=aws:kms&sse-kms-key-id=…`. */
function sseHeaders(params: URLSearchParams): Record<string, string> {
  const kind = params.get('sse');
  if (!kind) return {};
  if (kind !== 'AES256' && kind !== 'aws:kms' && kind !== 'aws:kms:dsse')
    throw new Error(`--bucket: sse=${kind} is not AES256, aws:kms or aws:kms:dsse`);
  const keyId = params.get('sse-kms-key-id');
  return {
    'x-amz-server-side-encryption': kind,
    ...(keyId ? { 'x-amz-server-side-encryption-aws-kms-key-id': keyId } : {}),
  };
}

/** With the files of --bucket's parameters. */
function tlsOf({ tls: { rejectUnauthorized, ca, cert, key } }: S3Endpoint): Origin['tls'] {
  return ca && cert && key
    ? { rejectUnauthorized, ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(key) }
    : { rejectUnauthorized };
}

/**
 * Keys given, `anonymous`, or the AWS chain (environment, profile files, SSO, web identity, container, instance metadata), whose
 * library is loaded only then. Refreshed five minutes before they expire.
 */
function credentialSource(
  options: S3Options,
  env: NodeJS.ProcessEnv,
): () => Promise<S3Credentials | undefined> | S3Credentials | undefined {
  if (options.accessKey === 'anonymous') return () => undefined;
  const accessKeyId = options.accessKey || (options.storage === 'minio' ? env.MINIO_ACCESS_KEY : undefined);
  const secretAccessKey = options.secretKey || (options.storage === 'minio' ? env.MINIO_SECRET_KEY : undefined);
  if (accessKeyId && secretAccessKey) {
    const fixed = { accessKeyId, secretAccessKey, sessionToken: options.sessionToken || undefined };
    return () => fixed;
  }
  let current: (S3Credentials & { expiration?: Date | undefined }) | undefined;
  let pending: Promise<S3Credentials> | undefined;
  const refresh = async (): Promise<S3Credentials> => {
    try {
      const { defaultProvider } = await import('./s3-credentials.ts');
      current = await defaultProvider()();
      return current;
    } catch (e) {
      throw new StoreError(
        'denied',
        `no S3 credentials: ${e instanceof Error ? e.message : String(e)}; give --access-key and --secret-key, or set up the AWS environment`,
        e,
      );
    } finally {
      pending = undefined;
    }
  };
  return () => {
    const fresh = current && (current.expiration === undefined || current.expiration.getTime() - Date.now() > 300_000);
    if (fresh) return current;
    pending ??= refresh();
    return pending;
  };
}
