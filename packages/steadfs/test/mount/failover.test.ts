// timeout: 300
// alone
/** Mounts with load whose Redis fails over: behind a sentinel to a replica (STEADFS_FULL=1: to one after the other), and on a cluster whose nodes die and come back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describe, roles, stormOnVolume } from '../continuity/storm.ts';
import { REDIS_DURABLE } from '../servers/network.ts';
import { startRedisCluster, startRedisSentinel } from '../servers/redis.ts';
import { missing, type Volume } from '../support/volume.ts';

const lack = missing('steadfs');
const full = process.env.STEADFS_FULL === '1';
const seed = Number(process.env.STEADFS_SEED ?? Math.floor(Math.random() * 1e6));
const programs = ['mutations', 'buffered', 'held', 'flock', 'posix'];

async function until(check: () => boolean, what: string): Promise<void> {
  for (const end = Date.now() + 60_000; !check(); await new Promise(wake => setTimeout(wake, 100)))
    assert.ok(Date.now() < end, what);
}

/** A storm in which `fail` happens as often as said, each time with a kill -9 of the service beside it. */
async function stormWith(meta: string, count: number, fail: () => Promise<void>): Promise<string[]> {
  let volume: Volume | undefined;
  const report = await stormOnVolume({
    seed,
    network: { meta },
    events: ['action'],
    count,
    seconds: 0,
    programs,
    rest: [1000, 1500],
    mounted: v => {
      volume = v;
    },
    async action() {
      const before = roles(volume!.dir).service;
      const failed = fail();
      if (before !== undefined) process.kill(before, 'SIGKILL');
      await failed;
      await until(() => ![undefined, before].includes(roles(volume!.dir).service), 'another service');
      return undefined;
    },
  });
  const found = [...report.faults, ...report.texts];
  return found.length + report.failed + report.wrong > 0 ? [describe(report)] : [];
}

test(`sentinel: the master dies, seed ${seed}`, { skip: lack ?? false }, async t => {
  const sentinel = await startRedisSentinel(2);
  if ('missing' in sentinel) return t.skip(sentinel.missing);
  t.after(() => sentinel.stop());
  const faults = await stormWith(sentinel.url(1), full ? 2 : 1, async () => {
    const dead = await sentinel.killMaster();
    await until(() => ![dead, Number.NaN].includes(sentinel.master()), 'another master');
  });
  assert.deepEqual(faults, []);
});

test(`cluster: all nodes die and come back, seed ${seed}`, { skip: lack ?? false }, async t => {
  const cluster = await startRedisCluster(REDIS_DURABLE);
  if ('missing' in cluster) return t.skip(cluster.missing);
  t.after(() => cluster.stop());
  const faults = await stormWith(cluster.url(1), full ? 5 : 1, async () => {
    await Promise.all(cluster.nodes.map(node => node.restart()));
  });
  assert.deepEqual(faults, []);
});
