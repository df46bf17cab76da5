/** The contract on real PostgreSQL and MariaDB servers, for users who may create routines and users who may not. */
import { after, it } from 'node:test';
import { openEngine } from '../../src/meta/registry.ts';
import { startMariadb } from '../servers/mariadb.ts';
import { startPostgres } from '../servers/postgres.ts';
import { contractSuite, defaultOptions } from './contract.ts';

for (const [name, start] of [
  ['postgres', startPostgres],
  ['mariadb', startMariadb],
] as const) {
  const server = await start();
  if ('missing' in server) {
    it(name, { skip: server.missing }, () => {});
    continue;
  }
  after(() => server.stop());
  let count = 0;
  contractSuite(name, async () => {
    const url = await server.database(`contract${count++}`);
    return { open: options => openEngine(url, { ...defaultOptions, ...options }), destroy: async () => {} };
  });
}
