import { after, before } from 'node:test';
import { openEngine } from '../../src/meta/registry.ts';
import { type RedisServer, startRedis } from '../servers/redis.ts';
import { contractSuite, defaultOptions } from './contract.ts';

const started = await startRedis();
if ('missing' in started) console.log(`# skipped: ${started.missing}`);
else {
  const server: RedisServer = started;
  before(() => server.cli('config', 'set', 'maxmemory-policy', 'noeviction'));
  after(() => server.stop());
  let db = 0;
  contractSuite('redis', async () => {
    const url = server.url(db++ % 16);
    server.cli('-n', url.slice(url.lastIndexOf('/') + 1), 'flushdb');
    return {
      open: options => openEngine(url, { ...defaultOptions, ...options }),
      destroy: async () => undefined,
    };
  });
}
