// timeout: 200
/**
 * Short runs of the differential test with seeds that have found something; `STEADFS_SEED=N` takes another one, `STEADFS_FULL=1` makes many long runs with
 * new ones, `STEADFS_ENGINES=redis,…` runs on those engines in place of SQLite. Steadfs is compared with the file system of the temporary folder.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isEngineName, startEngine } from '../servers/engines.ts';
import { removeTree } from '../support/remove.ts';
import { abortMount, missing, openVolume, type Volume } from '../support/volume.ts';
import { describe, run } from './differential.ts';

const full = process.env.STEADFS_FULL === '1';
const chosen = process.env.STEADFS_SEED;
const fresh = Math.floor(Math.random() * 1e6);
const seeds =
  chosen !== undefined ? [Number(chosen)] : full ? Array.from({ length: 20 }, (_, i) => fresh + i) : [629657, 629662];

const engines = (process.env.STEADFS_ENGINES ?? 'sqlite').split(',').filter(isEngineName);

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
for (const engine of engines)
  test(`Steadfs on ${engine} equals a local file system, seeds ${seeds}`, { skip: lack ?? false }, async t => {
    const server = await startEngine(engine);
    if ('missing' in server) return t.skip(server.missing);
    const b = folder('b-');
    let volume: Volume | undefined;
    let good = false;
    try {
      volume = openVolume({
        meta: await server.fresh(),
        format: ['--trash-days', '0', '--enable-acl'],
        // Directory times at once: local file systems do not wait 100 ms.
        mount: ['--enable-xattr', '--enable-ioctl', '--skip-dir-mtime', '0'],
      });
      await sequences(volume.dir, b, full ? 20_000 : 2500);
      good = true;
    } finally {
      if (!good && volume) abortMount(volume.dir);
      const fault = volume?.close();
      removeTree(b);
      await server.stop();
      if (good) assert.equal(fault, undefined);
    }
  });
