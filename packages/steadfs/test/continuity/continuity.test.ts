// timeout: 200
// alone
/** Short storms: every event a few times. `node storm.ts --mount --full` is the long one. */
import assert from 'node:assert/strict';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { removeTree } from '../support/remove.ts';
import { missing } from '../support/volume.ts';
import { describe, type EventKind, type Report, storm, stormOnVolume } from './storm.ts';

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
test(`without events nothing fails on a mount, seed ${seed}`, { skip: lack ?? false }, async () => {
  clean(await stormOnVolume({ seed, events: [], count: 0, seconds: 3 }));
});

for (const kind of ['service', 'keeper', 'inTurn', 'upgrade'] satisfies EventKind[])
  test(`${kind}: no call fails, nothing is wrong, seed ${seed}`, { skip: lack ?? false }, async t => {
    const report = await stormOnVolume({ seed, events: [kind], count: full ? 1000 : 6, seconds: 0 });
    t.diagnostic(describe(report));
    clean(report);
  });
