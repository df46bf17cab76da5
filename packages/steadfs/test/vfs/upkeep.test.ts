import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ROOT } from '../../src/format/ino.ts';
import { startLog } from '../../src/observe/log.ts';
import { Counters } from '../../src/vfs/counters.ts';
import { createUpkeep, type Upkeep } from '../../src/vfs/upkeep.ts';
import { MIB, makeVolume, patient, type Volume, writeData } from '../data/harness.ts';

const upkeepOf = (v: Volume, { data, capsule }: ReturnType<Volume['start']>, noJobs: boolean): Upkeep => {
  const counters = new Counters(capsule);
  return createUpkeep({
    engine: v.engine,
    data,
    log: startLog({ level: 'fatal' }),
    format: () => v.format,
    jobOp: slot => counters.jobOp(slot),
    heartbeat: 12,
    noJobs,
    deleteObjects: true,
  });
};

test('data of removed files is deleted, no two at a time by one op slot', async () => {
  const v = await makeVolume({ arena: 64 * MIB, format: { TrashDays: 0 } });
  try {
    const started = v.start({ bufferSize: 32 * MIB });
    const { data, capsule } = started;
    const upkeep = upkeepOf(v, started, true);
    const busy = new Set<number>();
    const { deleteFileData } = v.engine;
    v.engine.deleteFileData = async (op, ino, length) => {
      assert.ok(!busy.has(op.slot), `slot ${op.slot} twice`);
      busy.add(op.slot);
      await sleep(2);
      const result = await deleteFileData.call(v.engine, op, ino, length);
      busy.delete(op.slot);
      return result;
    };
    const objects = async () => (await v.store.list('', '', 1000)).objects;
    for (let i = 0; i < 40; i++) {
      const ino = await v.newFile(`f${i}`);
      await data.write(ino, 0, writeData(capsule, Buffer.alloc(1000, i)), await v.attr(ino), false, patient);
    }
    await data.flushAll();
    assert.ok((await objects()).length >= 40);
    for (let i = 0; i < 40; i++) {
      const { ino, attr, state } = await v.client.unlink(ROOT, `f${i}`);
      assert.equal(state, 'deleted');
      upkeep.deleted(ino, attr.length);
      upkeep.deleted(ino, attr.length);
    }
    const end = performance.now() + 10_000;
    while ((await objects()).length > 0 && performance.now() < end) await sleep(10);
    assert.deepEqual(
      (await objects()).map(o => o.key),
      [],
    );
    await upkeep.stop();
    assert.deepEqual(await v.engine.deletedFiles(Date.now() / 1000 + 10, 10), []);
    await data.shutdown();
  } finally {
    await v.dispose();
  }
});

test('sessions of others are not judged by a clock that has just jumped', async t => {
  const v = await makeVolume();
  try {
    const started = v.start({ bufferSize: 32 * MIB });
    const cleaned: number[] = [];
    // The other mount of this host, which was suspended as well: it has an hour less to live than the clock says now.
    v.engine.staleSessions = async () => (Date.now() > start + 3600_000 ? [77] : []);
    v.engine.cleanSession = async sid => void cleaned.push(sid);
    const start = Date.now();
    t.mock.timers.enable({ apis: ['Date', 'setInterval'], now: start });
    const upkeep = upkeepOf(v, started, false);
    upkeep.start();
    const rounds = async (n: number) => {
      for (let i = 0; i < n; i++) {
        t.mock.timers.tick(12_000);
        for (let turn = 0; turn < 20; turn++) await new Promise(resolve => setImmediate(resolve));
      }
    };
    await rounds(2);
    t.mock.timers.setTime(start + 2 * 3600_000);
    await rounds(4);
    assert.equal(cleaned.length, 0, 'it has had no time to renew its session');
    await rounds(6);
    assert.ok(cleaned.includes(77), 'it is gone for good');
    await upkeep.stop();
    t.mock.timers.reset();
    await started.data.shutdown();
  } finally {
    t.mock.timers.reset();
    await v.dispose();
  }
});
