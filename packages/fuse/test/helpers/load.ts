/**
 * Uses a mount and checks every result: `node load.ts DIR ID` until stdin ends, then prints {rounds, slowest, failures}. A call that fails or is wrong is a failure;
 * so is an entry of the directory that is not there, or there twice.
 */

import { strict as assert } from 'node:assert';
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';

const [dir = '', id = ''] = process.argv.slice(2);
const failures: string[] = [];
let rounds = 0;
let calls = 0;
let slowest = 0;
let goOn = true;
process.stdin.on('end', () => {
  goOn = false;
});
process.stdin.resume();

function timed<T>(what: string, call: () => T): T {
  const start = performance.now();
  calls++;
  try {
    return call();
  } catch (error) {
    failures.push(`${what}: ${(error as Error).message}`);
    throw error;
  } finally {
    slowest = Math.max(slowest, performance.now() - start);
  }
}

function round(n: number): void {
  const name = join(dir, `${id}-${n}`);
  const other = join(dir, `${id}-${n}-renamed`);
  const size = 1 + ((n * 7919) % 60_000);
  const data = Buffer.alloc(size, `${id}:${n};`);
  const fd = timed('create', () => openSync(name, 'wx+', 0o644));
  for (let at = 0; at < size; at += 20_000)
    timed('write', () =>
      assert.equal(writeSync(fd, data, at, Math.min(20_000, size - at), at), Math.min(20_000, size - at)),
    );
  timed('fstat', () => assert.equal(fstatSync(fd).size, size));
  timed('rename', () => renameSync(name, other));
  timed('old name', () => assert.equal(existsSync(name), false));
  timed('read', () => assert.ok(readFileSync(other).equals(data)));
  timed('create again', () => assert.throws(() => openSync(other, 'wx'), { code: 'EEXIST' }));
  if (n % 3 === 0) {
    timed('truncate', () => ftruncateSync(fd, 5));
    timed('stat', () => assert.equal(statSync(other).size, 5));
  }
  if (n % 5 === 0) {
    const mine = timed('readdir', () => readdirSync(dir)).filter(f => f.startsWith(`${id}-`));
    timed('names', () => assert.deepEqual(mine, [`${id}-${n}-renamed`]));
  }
  timed('unlink', () => unlinkSync(other));
  timed('unlink again', () => assert.throws(() => unlinkSync(other), { code: 'ENOENT' }));
  const back = Buffer.alloc(5);
  timed('read the unlinked', () => {
    const expected = Buffer.alloc(n % 3 === 0 ? 5 : Math.min(5, size));
    data.copy(expected);
    assert.equal(readSync(fd, back, 0, 5, 0), expected.length);
    assert.deepEqual(back.subarray(0, expected.length), expected);
  });
  timed('close', () => closeSync(fd));
}

while (goOn && failures.length < 5) {
  try {
    round(rounds);
  } catch (error) {
    if (failures.length === 0) failures.push(String(error));
  }
  rounds++;
  await new Promise(resolve => setImmediate(resolve));
}
console.log(JSON.stringify({ rounds, calls, slowest: Math.round(slowest), failures }));
