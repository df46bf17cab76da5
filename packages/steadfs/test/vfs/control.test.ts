import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Context } from '@steadfs/fuse';
import { EEXIST, EINVAL, EIO } from '@steadfs/fuse/errno';
import { ControlFiles, type JobContext, type RunJob } from '../../src/vfs/control.ts';
import { dataItem, errnoItem, parseRequest, type Request } from '../../src/vfs/control-protocol.ts';
import { Counters } from '../../src/vfs/counters.ts';
import { Items } from '../../src/vfs/items.ts';
import { withCapsule } from './capsule.ts';

const FH = 9;
const caller = { uid: 1000, gid: 100, pid: process.pid, replay: false } as Context;

function message(command: number, body: Buffer): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(command, 0);
  head.writeUInt32BE(body.length, 4);
  return Buffer.concat([head, body]);
}

const u64 = (n: bigint) => {
  const b = Buffer.alloc(8);
  b.writeBigUInt64BE(n);
  return b;
};

test('requests of spec/volume.md §13.1, fields at the end optional', () => {
  const rmr = Buffer.concat([u64(1n), Buffer.of(3), Buffer.from('dir')]);
  assert.deepEqual(parseRequest(message(1002, rmr)), {
    command: 'rmr',
    parent: 1,
    name: Buffer.from('dir'),
    skipTrash: false,
    threads: 50,
  });
  const full = parseRequest(message(1002, Buffer.concat([rmr, Buffer.of(1, 7)]))) as Request & { command: 'rmr' };
  assert.deepEqual([full.skipTrash, full.threads], [true, 7]);
  const trash = parseRequest(message(1005, Buffer.concat([u64(0x7fffffff10000000n), Buffer.of(1, 0, 1)])));
  assert.deepEqual(trash, { command: 'info', ino: 2 ** 52 + 0x10000000, recursive: true, raw: false, strict: true });
  const clone = Buffer.concat([u64(5n), u64(1n), u64(2n), Buffer.of(1), Buffer.from('x'), Buffer.of(0, 0o22, 2, 9)]);
  assert.deepEqual(parseRequest(message(1006, clone)), {
    command: 'clone',
    source: 5,
    sourceParent: 1,
    parent: 2,
    name: Buffer.from('x'),
    umask: 0o22,
    preserve: true,
    threads: 9,
  });
  assert.equal(parseRequest(message(1004, Buffer.alloc(20))), undefined);
  assert.equal(parseRequest(message(1002, u64(1n))), undefined);
  assert.equal(parseRequest(message(1005, Buffer.alloc(3))), undefined);
});

/** Reads the stream to its end. */
async function readAll(files: ControlFiles, from: number, done: (b: Buffer) => boolean): Promise<Buffer> {
  let out = Buffer.alloc(0);
  for (let i = 0; i < 1000; i++) {
    out = Buffer.concat([out, files.read(FH, from + out.length, 5)]);
    if (done(out)) return out;
    await new Promise(resolve => setTimeout(resolve, 1));
  }
  throw new Error(`no end after ${out.toString('hex')}`);
}

/** Skips progress items; the rest, or undefined while there is none. */
function afterProgress(b: Buffer): Buffer | undefined {
  let at = 0;
  while (b[at] === 0xfe && b.length >= at + 17) at += 17;
  return at < b.length && b[at] !== 0xfe ? b.subarray(at) : undefined;
}

test('a request in pieces, progress, and a result behind it; then the next one', () =>
  withCapsule(async capsule => {
    const run: RunJob = async (request, ctx) => {
      assert.deepEqual([ctx.cred.uid, ctx.cred.gid, ctx.cred.checkPermission], [1000, 100, true]);
      ctx.progress(3, 4);
      if (request.command === 'compact') throw EEXIST;
      return dataItem('{"a":1}');
    };
    const files = new ControlFiles(capsule, new Items(capsule), new Counters(capsule), run);
    const m = message(1007, u64(1n));
    assert.equal(files.write(caller, FH, 0, m.subarray(0, 3)), 3);
    assert.equal(files.read(FH, 3, 100).length, 0);
    files.write(caller, FH, 3, m.subarray(3));
    const stream = await readAll(files, m.length, b => (afterProgress(b)?.length ?? 0) === 12);
    assert.equal(stream[0], 0xfe);
    assert.deepEqual([stream.readBigUInt64BE(1), stream.readBigUInt64BE(9)], [3n, 4n]);
    assert.equal(afterProgress(stream)!.subarray(5).toString(), '{"a":1}');

    const at = m.length + stream.length;
    const second = message(1008, u64(1n));
    files.write(caller, FH, at, second);
    const end = await readAll(files, at + second.length, b => afterProgress(b) !== undefined);
    assert.equal(afterProgress(end)![0], EEXIST.errno);
  }));

test('unknown commands and bytes behind a message', () =>
  withCapsule(async capsule => {
    const files = new ControlFiles(capsule, new Items(capsule), new Counters(capsule), async () => errnoItem(0));
    const unknown = message(4242, Buffer.alloc(3));
    files.write(caller, FH, 0, unknown);
    assert.deepEqual([...files.read(FH, unknown.length, 9)], [EINVAL.errno]);
    files.close(FH);
    const long = Buffer.concat([message(1008, u64(1n)), Buffer.of(0)]);
    files.write(caller, FH, 0, long);
    assert.deepEqual([...files.read(FH, long.length, 9)], [EIO.errno]);
  }));

test('a job goes on in the next process: same stream, same first operation, its reader notices nothing', () =>
  withCapsule(async (capsule, again) => {
    const seen: { op: number; remembered: number | undefined; resumed: boolean; uid: number }[] = [];
    const note = (ctx: JobContext) =>
      seen.push({ op: ctx.firstOp().seq, remembered: ctx.remembered(), resumed: ctx.resumed, uid: ctx.cred.uid });
    const first = new ControlFiles(capsule, new Items(capsule), new Counters(capsule), async (_request, ctx) => {
      note(ctx);
      ctx.remember(77);
      return new Promise<Buffer>(() => undefined);
    });
    const m = message(1002, Buffer.concat([u64(1n), Buffer.of(1), Buffer.from('d')]));
    first.write(caller, FH, 0, m);
    const early = await readAll(first, m.length, b => b.length >= 17);

    const capsule2 = again();
    const files = new ControlFiles(capsule2, new Items(capsule2), new Counters(capsule2), async (request, ctx) => {
      note(ctx);
      assert.equal(request.command, 'rmr');
      return errnoItem(0);
    });
    files.resume([FH]);
    // The write may come again, if its answer was lost.
    assert.equal(files.write({ ...caller, replay: true } as Context, FH, 0, m), m.length);
    const rest = await readAll(files, m.length + early.length, b => afterProgress(b) !== undefined);
    assert.equal((early.length + rest.length) % 17, 1);
    assert.equal(rest.at(-1), 0);
    assert.equal(seen.length, 2);
    assert.deepEqual(
      seen.map(s => [s.resumed, s.remembered, s.uid]),
      [
        [false, undefined, 1000],
        [true, 77, 1000],
      ],
    );
    assert.equal(seen[0]!.op, seen[1]!.op);

    // A finished job is only read again.
    const capsule3 = again();
    const third = new ControlFiles(capsule3, new Items(capsule3), new Counters(capsule3), async () => {
      throw new Error('run again');
    });
    third.resume([FH]);
    assert.equal(third.running, 0);
    assert.equal(third.read(FH, m.length + early.length, 1000).length, rest.length);
  }));
