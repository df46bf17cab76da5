/** The contract with interactive transactions only, the way that everything falls back to. */
import { openNetworkEngine } from '../../src/meta/sql/network.ts';
import { interactive, networkContract, poolOf } from './network-sql.ts';

await networkContract(', interactive', false, (server, url, options) =>
  openNetworkEngine(interactive(poolOf(server, url)), 'jfs_', options),
);
