/** Warming up: played requests through everything that real ones go through, beside a mount that is at work. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { OP } from '@steadfs/fuse/abi';
import { type PlayedKernel, playKernel } from '@steadfs/fuse/rehearsal';
import { Flags } from '../../src/commands/command.ts';
import { mountFlags, planMount, type ServiceOptions } from '../../src/commands/mount-flags.ts';
import { throwAwayMount } from '../../src/commands/rehearsal.ts';
import { connect } from '../../src/commands/volume.ts';
import { warmUp, warmUpWhenQuiet } from '../../src/commands/warm-up.ts';
import { ROOT } from '../../src/format/ino.ts';
import type { Format } from '../../src/format/volume.ts';
import { playNetworkEngine } from '../../src/meta/sql/play.ts';
import { startLog } from '../../src/observe/log.ts';

const folder = mkdtempSync(join(tmpdir(), 'warm-up-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const format: Format = {
  Name: 'real',
  UUID: randomUUID(),
  Storage: 'file',
  Tiers: null,
  Bucket: `${folder}/objects/`,
  BlockSize: 4096,
  TrashDays: 0,
  MetaVersion: 1,
  DirStats: true,
  EnableACL: false,
};
const options: ServiceOptions = {
  ...planMount(new Flags(mountFlags, new Map([['buffer-size', '32M']])), 'fatal').options,
  metaUrl: `sqlite3://${folder}/meta.db`,
  volume: { name: format.Name, uuid: format.UUID },
};
const log = startLog({ level: 'fatal' });

/** What descriptors of this process refer to; those of memory and of files without names are what a played mount has. */
function open(): string[] {
  return readdirSync('/proc/self/fd')
    .map(fd => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return 'gone'; // the directory that was listed
      }
    })
    .filter(target => /memfd|steadfs-warm-up|socket:/.test(target))
    .map(target => target.replace(/\d+/g, ''))
    .sort();
}

function left(): string[] {
  return readdirSync('/dev/shm').filter(name => name.startsWith('steadfs-warm-up-'));
}

/** Makes and removes files until `done`; answers how many there were. */
async function work(kernel: PlayedKernel, done: () => boolean): Promise<number> {
  let n = 0;
  for (; !done(); n++) {
    assert.equal(await kernel.call(OP.LOOKUP, ROOT, `real-${n}`), 2);
    assert.equal(await kernel.call(OP.CREATE, ROOT, 0o102, 0o644, 0o022, 0, `real-${n}`), 0);
    const ino = kernel.u64(0);
    const fh = BigInt(kernel.u64(128));
    assert.equal(await kernel.call(OP.FLUSH, ino, fh, 0n, 1n), 0);
    assert.equal(await kernel.call(OP.RELEASE, ino, fh, 0n, 0n), 0);
    if (n % 2 === 1) {
      assert.equal(await kernel.call(OP.UNLINK, ROOT, `real-${n}`), 0);
      kernel.forget(ino);
    }
  }
  return n;
}

test('a mount at work is served during a warm-up, and nothing of that is left', async () => {
  const before = left();
  const mount = await throwAwayMount(options, format, log);
  const kernel = await playKernel(mount.capsule, mount.fileSystem);
  let files = 0;
  try {
    const descriptors = open();
    let over = false;
    const warm = warmUp({ options, format }, () => true).finally(() => {
      over = true;
    });
    files = await work(kernel, () => over);
    assert.ok((await warm) > 20, `${await warm} requests were played`);
    assert.ok(files > 0);
    assert.deepEqual(left(), before);
    assert.deepEqual(open(), descriptors);
  } finally {
    await kernel.end();
    await mount.discard();
  }
  // The volume has what was really asked for, and no more.
  const stranger = await connect(options.metaUrl);
  await stranger.load();
  assert.equal((await stranger.statfs(ROOT)).usedInodes, Math.ceil(files / 2));
  assert.deepEqual(await stranger.listSessions(false), []);
  await stranger.close();
});

test('it ends between two requests when it is told to, whatever they are', async () => {
  const before = left();
  const descriptors = open();
  for (const limit of [0, 1, 20, 61]) {
    let asked = 0;
    const played = await warmUp({ options, format }, () => ++asked <= limit);
    assert.ok(played <= limit + 2, `${played} requests after ${limit}`); // and INIT of each mount
    assert.deepEqual(left(), before);
    assert.deepEqual(open(), descriptors);
  }
});

for (const kind of ['postgres', 'mysql'] as const)
  test(`the engine of ${kind} plays without a server, every mutation one statement but the first`, async () => {
    let rounds = 0;
    const { mutations, plans } = await playNetworkEngine(kind, () => ++rounds <= 20);
    assert.equal(mutations, 1 + 20 * 4);
    assert.ok(plans >= mutations - 1, `${plans} of ${mutations} were one statement`);
  });

test('a mount whose end has come and one that only reads are left alone', async () => {
  const requests = () => Number.POSITIVE_INFINITY;
  const parts = { options, format, log, requests };
  assert.equal(await warmUpWhenQuiet(parts), false);
  const quiet = { ...parts, requests: () => 1 };
  const mount = { ...options.mount, readOnly: true };
  assert.equal(await warmUpWhenQuiet({ ...quiet, options: { ...options, mount } }), false);
});
