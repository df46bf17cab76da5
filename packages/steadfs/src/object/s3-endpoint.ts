/** The forms of `--bucket` for S3 and compatible stores (spec/cli.md §10), as an endpoint. */

export interface S3Endpoint {
  /** https://host[:port] of the requests. */
  origin: string;
  bucket: string;
  /** True: /BUCKET/key on `origin`; false: the bucket is in the host. */
  pathStyle: boolean;
  region: string;
  tls: { rejectUnauthorized: boolean; ca?: string; cert?: string; key?: string };
  /** `disable-100-continue`, `disable-checksum` … as given. */
  params: URLSearchParams;
}

const AWS = /^(?:(?<bucket>.+)\.)?s3(?:[.-](?<dual>dualstack))?[.-](?<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$/;
const AWS_GLOBAL = /^(?:(?<bucket>.+)\.)?s3\.amazonaws\.com$/;
const VPCE = /^(?:(?<bucket>.+?)\.)?(?:bucket\.)?vpce-[^.]+\.s3\.(?<region>[^.]+)\.vpce\.amazonaws\.com$/;
const OVH = /^(?:.+\.)?s3\.(?<region>[^.]+)\.(?:io|perf|standard)?\.?cloud\.ovh\.[a-z]+$/;
const OCI = /^(?:.+\.)?compat\.objectstorage\.(?<region>[^.]+)\.oraclecloud\.com$/;

/**
 * `storage` is `s3` or `minio`. Throws Error with a text for people. Environment: AWS_REGION, AWS_DEFAULT_REGION, MINIO_REGION,
 * JFS_S3_VHOST_STYLE.
 */
export function parseS3Endpoint(storage: string, bucketUrl: string, env: NodeJS.ProcessEnv): S3Endpoint {
  let text = bucketUrl.trim();
  const defaultRegion = env.AWS_REGION || env.AWS_DEFAULT_REGION || 'us-east-1';
  if (!text.includes('://')) {
    if (storage === 's3' && /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(text) && !text.includes('.')) {
      return {
        origin: `https://${text}.s3.${defaultRegion}.amazonaws.com`,
        bucket: text,
        pathStyle: false,
        region: defaultRegion,
        tls: { rejectUnauthorized: true },
        params: new URLSearchParams(),
      };
    }
    text = `${storage === 'minio' || (text.split('/')[0]!.includes('.') && !text.includes('amazonaws.com')) ? 'http' : 'https'}://${text}`;
  }
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new Error(
      `--bucket ${bucketUrl}: not a URL; expected https://BUCKET.s3.REGION.amazonaws.com or http://HOST:PORT/BUCKET`,
    );
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:')
    throw new Error(`--bucket ${bucketUrl}: the scheme must be http or https`);
  if (url.username || url.password)
    throw new Error('--bucket: give credentials by --access-key and --secret-key, not in the URL');
  const path = decodeURIComponent(url.pathname).replace(/^\/+|\/+$/g, '');
  if (path.includes('/')) throw new Error(`--bucket ${bucketUrl}: one path element, the bucket, is allowed`);
  const host = url.hostname;
  const match = AWS.exec(host) ?? VPCE.exec(host) ?? AWS_GLOBAL.exec(host);
  const tls = tlsOf(url.searchParams);
  const base = { tls, params: url.searchParams };
  if (match) {
    const region = match.groups?.region ?? 'us-east-1';
    const fromHost = match.groups?.bucket;
    const bucket = fromHost ?? path;
    if (!bucket) throw new Error(`--bucket ${bucketUrl}: no bucket name in it`);
    return {
      origin: fromHost ? url.origin : `${url.protocol}//${url.host}`,
      bucket,
      pathStyle: !fromHost,
      region,
      ...base,
    };
  }
  const region =
    url.searchParams.get('region') ||
    (storage === 'minio' ? env.MINIO_REGION : '') ||
    OVH.exec(host)?.groups?.region ||
    OCI.exec(host)?.groups?.region ||
    defaultRegion;
  const virtualHost = Boolean(env.JFS_S3_VHOST_STYLE);
  if (path) {
    return virtualHost && storage === 's3'
      ? { origin: `${url.protocol}//${path}.${url.host}`, bucket: path, pathStyle: false, region, ...base }
      : { origin: url.origin, bucket: path, pathStyle: true, region, ...base };
  }
  const dot = host.indexOf('.');
  if (dot <= 0 || storage === 'minio' || /^[0-9.]+$/.test(host))
    throw new Error(`--bucket ${bucketUrl}: no bucket name in it; expected ${url.origin}/BUCKET`);
  const bucket = host.slice(0, dot);
  return virtualHost
    ? { origin: url.origin, bucket, pathStyle: false, region, ...base }
    : { origin: `${url.protocol}//${url.host.slice(dot + 1)}`, bucket, pathStyle: true, region, ...base };
}

function tlsOf(params: URLSearchParams): S3Endpoint['tls'] {
  const tls: S3Endpoint['tls'] = { rejectUnauthorized: params.get('tls-insecure-skip-verify') !== 'true' };
  const files = { ca: params.get('ca-certs'), cert: params.get('ssl-cert'), key: params.get('ssl-key') };
  const given = Object.values(files).filter(v => v).length;
  if (given !== 0 && given !== 3) throw new Error('--bucket: ca-certs, ssl-cert and ssl-key belong together');
  if (given === 3) {
    tls.ca = files.ca!;
    tls.cert = files.cert!;
    tls.key = files.key!;
  }
  return tls;
}
