// timeout: 240
// alone
/** Databases and stores that misbehave under a mount, briefly; `node faults.ts` has the long versions. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { META_KINDS, type MetaKind, startNetwork } from '../servers/network.ts';
import { abortMount, missing, openVolume } from '../support/volume.ts';
import { describeFaults, faultRun, statusOf } from './faults.ts';

const full = process.env.STEADFS_FULL === '1';
const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));
const lack = missing('steadfs');

/** Until `check` is true; what it said last when it does not become so. */
async function until(check: () => boolean | string, what: string, seconds = 60): Promise<void> {
  const end = Date.now() + seconds * 1000;
  for (let last: boolean | string = false; ; ) {
    last = check();
    if (last === true) return;
    if (Date.now() > end) assert.fail(`${what}: ${last}`);
    await new Promise(wake => setTimeout(wake, 100));
  }
}

test('status and log say what is wrong and since when, and a write waits', { skip: lack ?? false }, async t => {
  const network = await startNetwork('redis', 's3');
  if ('missing' in network) return t.skip(network.missing);
  const volume = openVolume({ meta: network.meta!, store: network.store! });
  const troubles = () => statusOf(volume.dir).mount.troubles ?? [];
  try {
    assert.deepEqual(troubles(), []);
    const before = Date.now();
    network.storeProxy!.rule({ chance: 100, faults: [{ status: 503, code: 'SlowDown' }], seed });
    const writer = spawn('sh', ['-c', `echo hello > ${join(volume.dir, 'f')} && sync ${join(volume.dir, 'f')}`]);
    const ended = new Promise<number | null>(done => writer.on('exit', done));
    await until(
      () => troubles().some(x => x.what === 'writes') || JSON.stringify(troubles()),
      'trouble with the store',
    );
    const [entry] = troubles();
    assert.match(entry!.message, /503 SlowDown/);
    const since = Date.parse(entry!.since);
    assert.ok(since >= before && since <= Date.now(), entry!.since);
    await until(() => /writes wait: .*503 SlowDown/.test(readFileSync(join(volume.base, 'log'), 'utf8')), 'the log');
    assert.equal(writer.exitCode, null);
    network.storeProxy!.rule(undefined);
    assert.equal(await ended, 0);
    await until(() => troubles().length === 0 || JSON.stringify(troubles()), 'no trouble any more');

    network.metaProxy!.refuse();
    const maker = spawn('mkdir', [join(volume.dir, 'd')]);
    const made = new Promise<number | null>(done => maker.on('exit', done));
    await until(() => troubles().some(x => x.what === 'database') || JSON.stringify(troubles()), 'trouble with Redis');
    network.metaProxy!.flow();
    assert.equal(await made, 0);
    await until(() => troubles().length === 0 || JSON.stringify(troubles()), 'no trouble with Redis any more');
    assert.match(readFileSync(join(volume.base, 'log'), 'utf8'), /writes go on after \d+ s/);
  } finally {
    network.metaProxy!.flow();
    network.storeProxy!.rule(undefined);
    const fault = volume.close();
    if (fault) abortMount(volume.dir);
    await network.close();
    assert.equal(fault, undefined);
  }
});

for (const meta of META_KINDS.filter(k => k !== 'sqlite') satisfies MetaKind[])
  test(`${meta} and S3: nothing fails, nothing is wrong, seed ${seed}`, { skip: lack ?? false }, async t => {
    const report = await faultRun({
      meta,
      store: 's3',
      seed,
      count: full ? 200 : 5,
      ms: full ? 20_000 : 1500,
      ...(full ? {} : { random: true, programs: ['mutations', 'buffered', 'held', 'flock', 'posix'] }),
    });
    if ('missing' in report) return t.skip(report.missing);
    t.diagnostic(describeFaults(report));
    assert.equal(report.failed + report.wrong + report.faults.length, 0, describeFaults(report));
  });
