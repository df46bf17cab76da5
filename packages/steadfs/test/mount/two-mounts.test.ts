// timeout: 120
/** Close-to-open consistency of two mounts of one volume (spec/algorithms.md §6): what one closed the other reads, also with attributes cached. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { abortMount, missing, openVolume, runClient } from '../support/volume.ts';

const skip = missing('steadfs') ?? false;

/** Run as a process of its own: rounds of a change by one mount and a read by the other, in turn; prints what was read wrongly. */
const PROGRAM = `
const fs = require('node:fs');
const [a, b, rounds, seed] = process.argv.slice(1);
let state = Number(seed);
const random = n => ((state = (Math.imul(state, 1103515245) + 12345) >>> 0) >>> 8) % n;
const kinds = {
  inPlace: (w, text) => { const fd = fs.openSync(w + '/inPlace', 'r+'); fs.writeSync(fd, text.padEnd(300, '.'), 0); fs.closeSync(fd); return text.padEnd(300, '.'); },
  truncate: (w, text) => { fs.writeFileSync(w + '/truncate', text); return text; },
  rename: (w, text) => { fs.writeFileSync(w + '/t', text); fs.renameSync(w + '/t', w + '/rename'); return text; },
};
const wrong = [];
for (const name of Object.keys(kinds)) fs.writeFileSync(a + '/' + name, 'start'.padEnd(300, '.'));
for (let i = 0; i < Number(rounds); i++) {
  const name = Object.keys(kinds)[random(3)];
  const [w, r] = random(2) ? [a, b] : [b, a];
  const text = kinds[name](w, 'round ' + i + ' ' + 'x'.repeat(random(200)));
  const got = fs.readFileSync(r + '/' + name, 'utf8');
  if (got !== text) wrong.push(name + ' ' + i + ': ' + got.slice(0, 12));
}
console.log(JSON.stringify(wrong));
`;

for (const [what, flags] of [
  ['no attributes cached', ['--attr-cache', '0', '--entry-cache', '0']],
  ['attributes cached', ['--attr-cache', '30s', '--entry-cache', '0']],
] as const) {
  test(`what one mount closed is read by the other: ${what}`, { skip, timeout: 100_000 }, async () => {
    const seed = Number(process.env.STEADFS_SEED ?? Date.now() % 1e6);
    const volume = openVolume({ mount: [...flags, '--metrics', ''] });
    const second = join(volume.base, 'second');
    try {
      mkdirSync(second);
      const r = runClient('steadfs', [
        'mount',
        '-d',
        '--log',
        join(volume.base, 'log2'),
        ...flags,
        '--metrics',
        '',
        volume.meta,
        second,
      ]);
      assert.equal(r.status, 0, r.stderr);
      const args = ['-e', PROGRAM, volume.dir, second, process.env.STEADFS_ROUNDS ?? '1500', String(seed)];
      const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 80_000 });
      assert.deepEqual(JSON.parse(stdout), [], `seed ${seed}`);
    } finally {
      runClient('steadfs', ['umount', second]);
      abortMount(second);
      assert.equal(volume.close(), undefined);
    }
  });
}
