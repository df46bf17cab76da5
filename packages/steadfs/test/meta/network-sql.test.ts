/** The contract for users who may create routines: PostgreSQL's statements, procedures on MariaDB. */
import { openEngine } from '../../src/meta/registry.ts';
import { networkContract } from './network-sql.ts';

await networkContract('', false, (_server, url, options) => openEngine(url, options));
