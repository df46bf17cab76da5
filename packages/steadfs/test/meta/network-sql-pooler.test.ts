/** The contract through a pooler in transaction mode, where neither named statements nor settings nor announcements outlive a transaction. */
import { after, it } from 'node:test';
import pg from 'pg';
import { openEngine } from '../../src/meta/registry.ts';
import { startPgbouncer } from '../servers/pgbouncer.ts';
import { startPostgres } from '../servers/postgres.ts';
import { contractSuite, defaultOptions } from './contract.ts';

// Both are up before the first test begins: the runner does not wait for a file that goes on after its tests.
const server = await startPostgres(['fsync=off']);
const pooler = 'missing' in server ? server : await startPgbouncer(server.port);
if ('missing' in pooler) it('pgbouncer', { skip: pooler.missing }, () => {});
else if (!('missing' in server)) {
  after(async () => {
    await pooler.stop();
    await server.stop();
  });
  let count = 0;
  contractSuite(
    'postgres behind a pooler',
    async () => {
      const direct = await server.database(`contract${count++}`);
      const client = new pg.Client(direct);
      await client.connect();
      await client.query('create schema vol');
      await client.end();
      // In a schema of its own, which only a setting names.
      const url = `${direct.replace(`:${server.port}`, `:${pooler.port}`)}&search_path=vol`;
      return { open: options => openEngine(url, { ...defaultOptions, ...options }), destroy: async () => {} };
    },
    { short: process.env.STEADFS_FULL === undefined },
  );
}
