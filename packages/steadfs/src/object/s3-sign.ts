/**
 * AWS Signature Version 4 for S3 requests (docs: "Signature Calculations for the Authorization Header"). The payload is not hashed
 * (`UNSIGNED-PAYLOAD`): integrity is by checksum headers, which are signed, and by TLS.
 */
import { createHash, createHmac } from 'node:crypto';

export interface S3Credentials {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string | undefined;
}

export interface SignInput {
  method: string;
  /** Already percent-encoded path, starting with '/'. */
  path: string;
  /** Query as pairs, not encoded. */
  query: readonly (readonly [string, string])[];
  /** Lower-case names; `host` must be there. The signer adds x-amz-date, x-amz-content-sha256, the token and authorization. */
  headers: Record<string, string>;
  region: string;
  service: 's3';
  date: Date;
}

const UNSIGNED_PAYLOAD = 'UNSIGNED-PAYLOAD';

/** RFC 3986: everything but A-Z a-z 0-9 - . _ ~ is escaped; '/' stays when `slash`. */
export function uriEncode(text: string, slash: boolean): string {
  const encoded = encodeURIComponent(text).replace(/[!'()*]/g, c => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  return slash ? encoded.replaceAll('%2F', '/') : encoded;
}

export function canonicalQuery(query: readonly (readonly [string, string])[]): string {
  return query
    .map(([k, v]) => [uriEncode(k, false), uriEncode(v, false)] as const)
    .sort(([a, x], [b, y]) => (a < b ? -1 : a > b ? 1 : x < y ? -1 : x > y ? 1 : 0))
    .map(([k, v]) => `${k}=${v}`)
    .join('&');
}

const hmac = (key: string | Buffer, data: string): Buffer => createHmac('sha256', key).update(data).digest();

/** The key depends on secret, day and region only: kept between requests. */
let cachedKey: { id: string; key: Buffer } | undefined;

function signingKey(secret: string, day: string, region: string, service: string): Buffer {
  const id = `${secret}\n${day}\n${region}`;
  if (cachedKey?.id !== id) {
    const key = hmac(hmac(hmac(hmac(`AWS4${secret}`, day), region), service), 'aws4_request');
    cachedKey = { id, key };
  }
  return cachedKey.key;
}

/** Headers of the request with its signature. */
export function signRequest(input: SignInput, credentials: S3Credentials | undefined): Record<string, string> {
  const stamp = input.date.toISOString().replace(/[-:]|\.\d{3}/g, '');
  const day = stamp.slice(0, 8);
  const headers: Record<string, string> = {
    ...input.headers,
    'x-amz-content-sha256': UNSIGNED_PAYLOAD,
    'x-amz-date': stamp,
  };
  if (credentials === undefined) return headers;
  if (credentials.sessionToken) headers['x-amz-security-token'] = credentials.sessionToken;
  const names = Object.keys(headers)
    .filter(n => n === 'host' || n === 'range' || n === 'content-type' || n.startsWith('x-amz-'))
    .sort();
  const canonical = [
    input.method,
    input.path,
    canonicalQuery(input.query),
    ...names.map(n => `${n}:${headers[n]!.trim()}`),
    '',
    names.join(';'),
    UNSIGNED_PAYLOAD,
  ].join('\n');
  const scope = `${day}/${input.region}/${input.service}/aws4_request`;
  const toSign = `AWS4-HMAC-SHA256\n${stamp}\n${scope}\n${createHash('sha256').update(canonical).digest('hex')}`;
  const signature = createHmac('sha256', signingKey(credentials.secretAccessKey, day, input.region, input.service))
    .update(toSign)
    .digest('hex');
  headers.authorization = `AWS4-HMAC-SHA256 Credential=${credentials.accessKeyId}/${scope}, SignedHeaders=${names.join(';')}, Signature=${signature}`;
  return headers;
}
