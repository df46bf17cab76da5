// timeout: 240
// alone
/** Deaths at fault points: a few drawn at random; with STEADFS_FULL=1 (or `node faults.ts --full`) every one. */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { makeBundle } from '../../../../scripts/build.ts';
import { missing } from '../support/volume.ts';
import { describeFaults, enumerate, pointsInSource } from './faults.ts';

const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));
const full = process.env.STEADFS_FULL === '1';
const lack = missing('steadfs') ?? (process.getuid?.() === 0 ? undefined : 'needs root');

test('the bundle that is shipped has no trace of fault points', async () => {
  await makeBundle();
  const dist = resolve(import.meta.dirname, '../../dist');
  const { files } = JSON.parse(readFileSync(join(dist, 'bundle.json'), 'utf8')) as { files: string[] };
  const names = pointsInSource();
  assert.ok(names.length > 60);
  for (const file of globSync('*.mjs', { cwd: dist }).filter(f => files.includes(f))) {
    const text = readFileSync(join(dist, file), 'utf8');
    for (const name of ['faultPoint', 'STEADFS_FAULT', ...names])
      assert.ok(!text.includes(`"${name}"`) && !text.includes(`${name}(`), `${file} has ${name}`);
  }
});

test(`the service dies at every point in turn, seed ${seed}`, { skip: lack ?? false }, async t => {
  const report = await enumerate({ seed, deaths: full ? undefined : Number(process.env.STEADFS_DEATHS ?? 10) });
  t.diagnostic(describeFaults(report));
  assert.deepEqual(report.faults, []);
  assert.deepEqual(report.unreached, []);
  assert.ok(report.hit.length > 0);
  if (full) assert.deepEqual(new Set(report.hit), new Set(report.points));
});
