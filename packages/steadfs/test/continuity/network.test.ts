// timeout: 300
// alone
/** Short storms with the metadata on Redis or PostgreSQL and the data in S3; `node storm.ts --mount --meta redis --store s3` is the long one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startNetwork } from '../servers/network.ts';
import { missing } from '../support/volume.ts';
import { describe, stormOnVolume } from './storm.ts';

const full = process.env.STEADFS_FULL === '1';
const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));
const lack = missing('steadfs');

for (const meta of ['redis', 'postgres'] as const)
  test(`${meta} and S3: no call fails, nothing is wrong, seed ${seed}`, { skip: lack ?? false }, async t => {
    const network = await startNetwork(meta, 's3');
    if ('missing' in network) return t.skip(network.missing);
    t.after(() => network.close());
    const report = await stormOnVolume({
      seed,
      network,
      events: ['service', 'keeper', 'inTurn', 'upgrade'],
      count: full ? 500 : 5,
      seconds: 0,
      ...(full ? {} : { programs: ['mutations', 'buffered', 'flock', 'posix', 'statProber'] }),
    });
    t.diagnostic(describe(report));
    assert.equal(report.failed + report.wrong + report.faults.length, 0, describe(report));
  });
