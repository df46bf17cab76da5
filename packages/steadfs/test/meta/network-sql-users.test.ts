/** The contract for users who may not create routines: a schema of the user's own on PostgreSQL, anonymous blocks on MariaDB. */
import { openEngine } from '../../src/meta/registry.ts';
import { networkContract } from './network-sql.ts';

await networkContract(', user without routines', true, (_server, url, options) => openEngine(url, options));
