// timeout: 400
// alone
/** The store of a mount with load is away for some seconds; STEADFS_FULL=1: store and database, ten minutes each (`node away.ts` has any one of them). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { missing } from '../support/volume.ts';
import { type AwayOptions, awayRun } from './away.ts';
import { describeFaults } from './faults.ts';

const full = process.env.STEADFS_FULL === '1';
const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));
const lack = missing('steadfs');

const RUNS: Pick<AwayOptions, 'meta' | 'what' | 'how'>[] = [
  { meta: 'redis', what: 'store', how: 'refused' },
  ...(full
    ? ([
        { meta: 'postgres', what: 'database', how: 'refused' },
        { meta: 'mariadb', what: 'database', how: 'silent' },
        { meta: 'redis', what: 'database', how: 'silent' },
        { meta: 'postgres', what: 'store', how: 'silent' },
      ] as const)
    : []),
];

for (const run of RUNS)
  test(`${run.what} of ${run.meta} and S3 is away, ${run.how}, seed ${seed}`, { skip: lack ?? false }, async t => {
    const programs = full ? {} : { programs: ['mutations', 'buffered', 'held', 'flock'] };
    const report = await awayRun({ ...run, ...programs, seed, seconds: full ? 600 : 6 });
    if ('missing' in report) return t.skip(report.missing);
    t.diagnostic(describeFaults(report));
    assert.equal(report.failed + report.wrong + report.faults.length, 0, describeFaults(report));
  });
