import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, describe, it } from 'node:test';
import { createS3Store } from '../../src/object/s3.ts';
import { parseS3Endpoint } from '../../src/object/s3-endpoint.ts';
import { fnv1a32 } from '../../src/object/sharded.ts';
import { StoreError } from '../../src/object/store.ts';
import { startS3 } from '../servers/s3.ts';
import { storeContract } from './contract.ts';

const server = await startS3();
if ('missing' in server) it('S3 store', { skip: server.missing }, () => {});
else {
  after(() => server.stop());
  const { accessKey, secretKey } = server;
  let count = 0;
  storeContract('s3', async () => ({
    store: createS3Store({ storage: 's3', bucket: server.bucket(`bucket-${count++}`), accessKey, secretKey }),
    dispose: async () => {},
  }));

  describe('S3 store', () => {
    it('says what is wrong with keys and buckets, without the secret', async () => {
      const wrong = createS3Store({
        storage: 's3',
        bucket: server.bucket('other'),
        accessKey,
        secretKey: 'not-this-one',
      });
      await assert.rejects(
        wrong.put('a', [Buffer.from('x')]),
        (e: unknown) => e instanceof StoreError && e.kind === 'denied' && !e.message.includes('not-this-one'),
      );
      await wrong.close();
    });

    it('puts large objects in parts', async () => {
      const store = createS3Store({ storage: 's3', bucket: server.bucket('large'), accessKey, secretKey });
      const piece = Buffer.alloc(9 << 20, 'steady ');
      await store.put(
        'v/large',
        Array.from({ length: 8 }, () => piece),
      );
      assert.equal((await store.head('v/large')).size, 72 << 20);
      const tail = Buffer.alloc(100);
      assert.equal(await store.get('v/large', (72 << 20) - 100, tail), 100);
      assert.ok(tail.equals(piece.subarray(-100)));
      await store.close();
    });
  });
}

/** A server that misbehaves as told; `answer` gives status and body per request, undefined cuts the connection. */
async function faulty(
  answer: (n: number) => { status: number; body: string; delay?: number } | undefined,
): Promise<{ url: string; requests(): number; stop(): void }> {
  let n = 0;
  const http = createServer((request, response) => {
    const what = answer(n++);
    request.resume();
    if (what === undefined) return void request.socket.destroy();
    setTimeout(() => {
      response.writeHead(what.status, { 'content-length': what.body.length });
      response.end(what.body);
    }, what.delay ?? 0);
  });
  await new Promise<void>(resolve => http.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(http.address() as AddressInfo).port}/bucket`,
    requests: () => n,
    stop: () => {
      http.closeAllConnections();
      http.close();
    },
  };
}

describe('S3 store with a bad server', () => {
  const keys = { accessKey: 'a', secretKey: 's' };
  it('tries again after 500, 503 and lost connections', async () => {
    const bad = await faulty(n =>
      n === 0
        ? { status: 503, body: '<Error><Code>SlowDown</Code></Error>' }
        : n === 1
          ? undefined
          : { status: 200, body: '' },
    );
    const store = createS3Store({ storage: 's3', bucket: bad.url, ...keys });
    await store.put('k', [Buffer.from('data')]);
    assert.equal(bad.requests(), 3);
    await store.close();
    bad.stop();
  });

  it('gives up with a kind that tells whether later may help', async () => {
    const bad = await faulty(() => ({ status: 503, body: '' }));
    const store = createS3Store({ storage: 's3', bucket: bad.url, ...keys, tries: 2 });
    await assert.rejects(
      store.put('k', [Buffer.from('data')]),
      (e: unknown) => e instanceof StoreError && e.kind === 'throttled' && e.retry,
    );
    await store.close();
    bad.stop();
  });

  it('hedges a read whose first byte is late', async () => {
    const bad = await faulty(n => ({ status: 206, body: 'data', delay: n === 0 ? 5000 : 0 }));
    const store = createS3Store({ storage: 's3', bucket: bad.url, ...keys, hedgeAfter: 100 });
    const target = Buffer.alloc(4);
    const start = performance.now();
    assert.equal(await store.get('k', 0, target), 4);
    assert.ok(performance.now() - start < 4000);
    assert.equal(target.toString(), 'data');
    await store.close();
    bad.stop();
  });

  it('notices more data than asked for', async () => {
    const bad = await faulty(() => ({ status: 206, body: 'too much' }));
    const store = createS3Store({ storage: 's3', bucket: bad.url, ...keys });
    await assert.rejects(
      store.get('k', 0, Buffer.alloc(3)),
      (e: unknown) => e instanceof StoreError && e.kind === 'too-large',
    );
    await store.close();
    bad.stop();
  });
});

describe('S3 endpoints', () => {
  const parse = (text: string, env: NodeJS.ProcessEnv = {}, storage = 's3') => {
    const e = parseS3Endpoint(storage, text, env);
    return [e.origin, e.bucket, e.pathStyle, e.region];
  };
  it('takes the forms of --bucket', () => {
    assert.deepEqual(parse('https://b.s3.eu-west-1.amazonaws.com'), [
      'https://b.s3.eu-west-1.amazonaws.com',
      'b',
      false,
      'eu-west-1',
    ]);
    assert.deepEqual(parse('https://s3.eu-west-1.amazonaws.com/b'), [
      'https://s3.eu-west-1.amazonaws.com',
      'b',
      true,
      'eu-west-1',
    ]);
    assert.deepEqual(parse('mybucket', { AWS_REGION: 'us-west-2' }), [
      'https://mybucket.s3.us-west-2.amazonaws.com',
      'mybucket',
      false,
      'us-west-2',
    ]);
    assert.deepEqual(parse('http://127.0.0.1:9000/b'), ['http://127.0.0.1:9000', 'b', true, 'us-east-1']);
    assert.deepEqual(parse('http://b.minio.local:9000'), ['http://minio.local:9000', 'b', true, 'us-east-1']);
    assert.deepEqual(parse('http://b.store.local', { JFS_S3_VHOST_STYLE: '1' }), [
      'http://b.store.local',
      'b',
      false,
      'us-east-1',
    ]);
    assert.deepEqual(parse('127.0.0.1:9000/b?region=x', {}, 'minio'), ['http://127.0.0.1:9000', 'b', true, 'x']);
    for (const bad of [
      'http://127.0.0.1:9000',
      'ftp://h/b',
      'http://h/a/b',
      'https://u:p@h/b',
      'http://h/b?ca-certs=x',
    ])
      assert.throws(() => parse(bad), Error, bad);
  });

  it('shards as the other client does', () => {
    // FNV-1a, 32 bits: published test vectors.
    assert.equal(fnv1a32(''), 0x811c9dc5);
    assert.equal(fnv1a32('foobar'), 0xbf9cf968);
  });
});
