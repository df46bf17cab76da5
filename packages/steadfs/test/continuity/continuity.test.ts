// timeout: 300
// alone
/**
 * Short storms: every event a few times. STEADFS_FULL=1 makes 1,000 of each kind (some hours); `node storm.ts` runs one alone, with the seed that is
 * printed.
 */
import assert from 'node:assert/strict';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { removeTree } from '../support/remove.ts';
import { missing } from '../support/volume.ts';
import { describe, type EventKind, ONCE, type Report, storm, stormOnVolume } from './storm.ts';

const full = process.env.STEADFS_FULL === '1';
const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));

function clean(report: Report): void {
  assert.equal(report.failed + report.wrong + report.faults.length, 0, describe(report));
}

test(`without events nothing fails on a local file system, seed ${seed}`, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'calm-'));
  try {
    clean(await storm({ dir, seed, events: [], count: 0, seconds: 3 }));
  } finally {
    removeTree(dir);
  }
});

const lack = missing('steadfs');
const kinds = ['service', 'keeper', 'inTurn', 'upgrade'] satisfies EventKind[];
for (const events of full ? kinds.map(kind => [kind]) : [kinds])
  test(`${events.join(', ')}: no call fails, nothing is wrong, seed ${seed}`, { skip: lack ?? false }, async t => {
    const report = await stormOnVolume({ seed, events, count: full ? 1000 : 6, seconds: 0 });
    t.diagnostic(describe(report));
    clean(report);
    assert.ok(!full || (report.deeds['slow reads'] ?? 0) > 100, 'objects were held back');
  });

const store = ['service', 'both', 'upgrade'] satisfies EventKind[];
for (const events of full ? store.map(kind => [kind]) : [store])
  test(`fd store, ${events.join(', ')}: no call fails, seed ${seed}`, { skip: lack ?? false }, async t => {
    const report = await stormOnVolume({ seed, unit: true, events, count: full ? 1000 : 4, seconds: 0 });
    t.diagnostic(describe(report));
    clean(report);
  });

test(`each mutation exactly once, seed ${seed}`, { skip: lack ?? false }, async t => {
  const report = await stormOnVolume({ ...ONCE, seed, count: full ? 1000 : 25, seconds: 0 });
  t.diagnostic(describe(report));
  clean(report);
  assert.ok(!full || report.deeds.mutations! + report.deeds['refused mutations']! >= 100_000, 'enough mutations');
});
