/** Requests that are handed out again after a death, at the file system's door: the volume is on SQLite, processes follow each other on one capsule. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Capsule, Context, FileSystem, Op } from '@steadfs/fuse';
import { ROOT } from '../../src/format/ino.ts';
import { startLog } from '../../src/observe/log.ts';
import { Metrics } from '../../src/observe/metrics.ts';
import { defaultMountOptions } from '../../src/vfs/mount-options.ts';
import { createVfs } from '../../src/vfs/vfs.ts';
import { MIB, makeVolume, type Volume, writeData } from '../data/harness.ts';

const O_RDWR = 2;
const O_CREAT = 0o100;
const O_TRUNC = 0o1000;

type Methods = Required<FileSystem>;

interface Process {
  fs: Methods;
  capsule: Capsule;
  deleted: number[];
}

/** What ends the process that serves now. */
let die: () => Promise<void> = async () => {};

/** A process that serves what the one before left. */
async function serve(v: Volume): Promise<Process> {
  await die();
  const { data, capsule } = v.start({ bufferSize: 32 * MIB });
  die = () => data.shutdown();
  const deleted: number[] = [];
  const vfs = await createVfs({
    engine: v.engine,
    data,
    capsule,
    format: v.format,
    options: { ...defaultMountOptions, heartbeat: 1e6 },
    session: { sid: 1, incarnation: '', epoch: 0 },
    metrics: new Metrics(),
    log: startLog({ level: 'fatal' }),
    version: '',
    mountPoint: '/',
    deleted: ino => deleted.push(ino),
  });
  await vfs.start();
  return { fs: vfs.fileSystem as Methods, capsule, deleted };
}

let seqs = 0;
/** A request; `again` is the same one in the next process. */
function request(slot = 1): { ctx: Context; again: Context; parks: number } {
  const op: Op = { kind: 0, slot, seq: ++seqs };
  const counted = { parks: 0 };
  const context = (replay: boolean): Context => ({
    unique: BigInt(op.seq),
    opcode: 0,
    uid: 0,
    gid: 0,
    pid: process.pid,
    op,
    replay,
    interrupt: { fired: false, promise: new Promise(() => {}), callerIsDying: () => false },
    park: () => {
      counted.parks++;
    },
    unpark: async () => op,
  });
  return Object.assign(counted, { ctx: context(false), again: context(true) });
}

const name = (s: string): Buffer => Buffer.from(s);
const write = (p: Process, nodeid: number, fh: number, offset: number, bytes: Buffer) =>
  p.fs.write(request().ctx, nodeid, {
    fh,
    offset,
    flags: O_RDWR,
    fromCache: false,
    killSuidgid: false,
    data: writeData(p.capsule, bytes),
  });

async function withVolume(work: (v: Volume) => Promise<void>): Promise<void> {
  const v = await makeVolume({ arena: 64 * MIB, format: { TrashDays: 0 } });
  // Called by timers of processes that are dead.
  v.engine.flush = async () => {};
  try {
    await work(v);
  } finally {
    await die();
    await v.dispose();
  }
}

test('CREATE with O_TRUNC of a file with pending data: what is committed before the death does not come back', () =>
  withVolume(async v => {
    const first = await serve(v);
    const { nodeid, fh } = await first.fs.create(request().ctx, ROOT, name('f'), 0o644, 0, O_CREAT | O_RDWR, false);
    await write(first, nodeid, fh, 0, Buffer.alloc(10_000, 1));
    // The process dies behind the commit of the pending data, before the truncation that follows it.
    const { setattr } = v.engine;
    v.engine.setattr = () => new Promise(() => {});
    const r = request(2);
    void first.fs.create(r.ctx, ROOT, name('f'), 0o644, 0, O_CREAT | O_TRUNC | O_RDWR, false);
    for (let i = 0; i < 500 && (await v.attr(nodeid)).length === 0; i++) await new Promise(go => setTimeout(go, 10));
    assert.equal((await v.attr(nodeid)).length, 10_000);
    v.engine.setattr = setattr;

    const second = await serve(v);
    const made = await second.fs.create(r.again, ROOT, name('f'), 0o644, 0, O_CREAT | O_TRUNC | O_RDWR, false);
    assert.equal(made.attr.size, 0);
    assert.equal((await v.attr(nodeid)).length, 0);
    // Once more: the same handle, and nothing is truncated any more.
    await write(second, nodeid, made.fh, 0, Buffer.alloc(100, 2));
    await second.fs.flush(request().ctx, nodeid, made.fh, 0n);
    const third = await serve(v);
    const same = await third.fs.create(r.again, ROOT, name('f'), 0o644, 0, O_CREAT | O_TRUNC | O_RDWR, false);
    assert.deepEqual([same.fh, same.attr.size], [made.fh, 100]);
  }));

test('a repeated SETATTR answers the length of now, and one with pending data keeps its Op', () =>
  withVolume(async v => {
    const first = await serve(v);
    const { nodeid, fh } = await first.fs.create(request().ctx, ROOT, name('f'), 0o644, 0, O_CREAT | O_RDWR, false);
    const chmod = request(2);
    const set = { killSuidgid: false };
    await first.fs.setattr(chmod.ctx, nodeid, { ...set, mode: 0o600 });
    await write(first, nodeid, fh, 0, Buffer.alloc(5000, 1));
    await first.fs.flush(request().ctx, nodeid, fh, 0n);
    const second = await serve(v);
    assert.equal((await second.fs.setattr(chmod.again, nodeid, { ...set, mode: 0o600 })).attr.size, 5000);

    const truncate = request(3);
    await write(second, nodeid, fh, 0, Buffer.alloc(100, 3));
    await second.fs.setattr(truncate.again, nodeid, { ...set, size: 50 });
    assert.equal(truncate.parks, 0);
    await write(second, nodeid, fh, 0, Buffer.alloc(100, 3));
    await second.fs.setattr(truncate.ctx, nodeid, { ...set, size: 50 });
    assert.equal(truncate.parks, 1);
  }));

test('a file that was closed while its UNLINK was under way is deleted', () =>
  withVolume(async v => {
    const first = await serve(v);
    const { nodeid, fh } = await first.fs.create(request().ctx, ROOT, name('f'), 0o644, 0, O_CREAT | O_RDWR, false);
    await write(first, nodeid, fh, 0, Buffer.alloc(5000, 1));
    await first.fs.flush(request().ctx, nodeid, fh, 0n);
    // The engine's decision, whose answer waits.
    const { unlink } = v.engine;
    const { promise: waits, resolve: answer } = Promise.withResolvers<void>();
    v.engine.unlink = async (...args) => {
      const removed = await unlink.apply(v.engine, args);
      await waits;
      return removed;
    };
    const r = request(2);
    const unlinked = first.fs.unlink(r.ctx, ROOT, name('f'));
    await new Promise(go => setTimeout(go, 50));
    await first.fs.release(request().ctx, nodeid, fh, O_RDWR, 0n, false);
    assert.deepEqual(first.deleted, []);
    answer();
    await unlinked;
    v.engine.unlink = unlink;
    assert.deepEqual(first.deleted, [nodeid]);
    assert.deepEqual(
      (await v.engine.listSessions(true)).flatMap(s => s.sustained ?? []),
      [],
    );
    // The next process, should the answer not have been stored.
    const second = await serve(v);
    await second.fs.unlink(r.again, ROOT, name('f'));
    assert.deepEqual(second.deleted, [nodeid]);
  }));
