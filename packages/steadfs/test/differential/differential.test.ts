// timeout: 200
/**
 * Short runs of the differential test, with known seeds and with one that is new each time; `STEADFS_SEED=N` repeats a run, `STEADFS_FULL=1` makes
 * many long ones. Steadfs is compared with the file system of the temporary folder.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { removeTree } from '../support/remove.ts';
import { abortMount, missing, openVolume } from '../support/volume.ts';
import { describe, run } from './differential.ts';

const full = process.env.STEADFS_FULL === '1';
const fresh = Math.floor(Math.random() * 1e6);
const chosen = process.env.STEADFS_SEED;
const seeds =
  chosen !== undefined ? [Number(chosen)] : full ? Array.from({ length: 20 }, (_, i) => fresh + i) : [48, fresh];

/** A folder that other users may pass through. */
function folder(prefix: string): string {
  const path = mkdtempSync(join(tmpdir(), prefix));
  chmodSync(path, 0o711);
  return path;
}

async function sequences(a: string, b: string, operations: number): Promise<void> {
  for (const seed of seeds) {
    const { difference, summary } = await run({ a, b, seed, operations });
    assert.equal(difference && `seed ${seed}: ${describe(difference)}`, undefined);
    assert.ok(summary.succeeded > operations / 10, `seed ${seed}: only ${summary.succeeded} operations succeeded`);
  }
}

test(`a local file system equals itself, seeds ${seeds}`, async () => {
  const [a, b] = [folder('a-'), folder('b-')];
  try {
    await sequences(a, b, 500);
  } finally {
    removeTree(a);
    removeTree(b);
  }
});

const lack = missing('steadfs');
test(`Steadfs equals a local file system, seeds ${seeds}`, { skip: lack ?? false }, async () => {
  const b = folder('b-');
  // Directory times at once: local file systems do not wait 100 ms.
  const volume = openVolume({ mount: ['--enable-xattr', '--skip-dir-mtime', '0'] });
  let good = false;
  try {
    await sequences(volume.dir, b, full ? 20_000 : 2500);
    good = true;
  } finally {
    if (!good) abortMount(volume.dir);
    const fault = volume.close();
    removeTree(b);
    if (good) assert.equal(fault, undefined);
  }
});
