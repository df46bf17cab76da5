import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACCESSLOG_INO, CONTROL_INO, ROOT, STATS_INO, TRASH } from '../../src/format/ino.ts';
import { AccessLog, shownName, timestamp } from '../../src/vfs/accesslog.ts';
import { fuseAttr } from '../../src/vfs/attrs.ts';
import { credOf } from '../../src/vfs/cred.ts';
import { internals } from '../../src/vfs/internal.ts';
import {
  carryOver,
  defaultMountOptions,
  fixedOption,
  parseMountOptions,
  parseSquash,
} from '../../src/vfs/mount-options.ts';
import { anAttr } from './attr.ts';

test('pending data is laid over attributes', () => {
  const a = anAttr({ length: 100, mtime: 10, ctime: 20, mtimensec: 5 });
  assert.deepEqual([fuseAttr(7, a, undefined).size, fuseAttr(7, a, undefined).blocks], [100, 1]);
  const at = (sec: number, nsec: number, ctime = { sec, nsec }) => ({ length: 5000, mtime: { sec, nsec }, ctime });
  const out = fuseAttr(7, a, at(30, 1));
  assert.deepEqual(
    [out.size, out.blocks, out.mtime, out.mtimensec, out.ctime, out.ctimensec],
    [5000, 10, 30, 1, 30, 1],
  );
  // chmod after the write: ctime stays.
  assert.equal(fuseAttr(7, anAttr({ ctime: 40 }), at(30, 0)).ctime, 40);
  // mtime set by hand is no ctime.
  const set = fuseAttr(7, anAttr({ ctime: 40 }), at(9000, 0, { sec: 30, nsec: 0 }));
  assert.deepEqual([set.mtime, set.ctime], [9000, 40]);
  assert.equal(fuseAttr(7, anAttr({ length: 10_000 }), at(1, 0)).size, 10_000);
});

test('names of internal files', () => {
  const root = internals(defaultMountOptions, ROOT);
  const name = (s: string) => Buffer.from(s);
  assert.equal(root.find(ROOT, name('.stats')), STATS_INO);
  assert.equal(root.find(5, name('.stats')), undefined);
  assert.equal(root.find(5, name('.control')), CONTROL_INO);
  assert.equal(root.find(ROOT, name('.trash')), TRASH);
  assert.equal(root.find(ROOT, name('.trashy')), undefined);
  assert.deepEqual(
    root.listed.map(l => String(l.name)),
    ['.accesslog', '.stats', '.config', '.trash'],
  );
  const below = internals({ ...defaultMountOptions, hideInternal: true, prefixInternal: true }, 77);
  assert.equal(below.find(77, name('.trash')), undefined);
  assert.equal(below.find(77, name('.jfs.accesslog')), ACCESSLOG_INO);
  assert.equal(below.find(77, name('.accesslog')), undefined);
  assert.deepEqual(below.listed, []);
  assert.equal(below.attr(TRASH), undefined);
});

test('options: what a live mount cannot change, squashing', () => {
  const live = { ...defaultMountOptions, mountedAt: 5, uid: 3 };
  assert.equal(fixedOption(live, { ...defaultMountOptions, attrCache: 9 }), undefined);
  assert.equal(fixedOption(live, { ...defaultMountOptions, subdir: 'x' }), 'subdir');
  assert.deepEqual(carryOver(live, { ...defaultMountOptions, attrCache: 9 }), { ...live, attrCache: 9 });
  assert.deepEqual(parseMountOptions('{"attrCache":3}'), { ...defaultMountOptions, attrCache: 3 });
  assert.throws(() => parseMountOptions('{"attrCache":"3"}'), SyntaxError);
  assert.deepEqual(parseSquash('12:'), { uid: 12, gid: 65534 });
  assert.deepEqual(parseSquash(''), { uid: 65534, gid: 65534 });
  assert.throws(() => parseSquash('a:b'), RangeError);
  const squashed = { ...defaultMountOptions, rootSquash: { uid: 5, gid: 6 } };
  assert.deepEqual([credOf(squashed, 0, 0, 1).uid, credOf(squashed, 0, 0, 1).gid], [5, 6]);
  assert.equal(credOf(squashed, 0, 0, 1).checkPermission, true);
  assert.equal(credOf(squashed, 7, 8, 1).uid, 7);
  assert.deepEqual(credOf(squashed, 0, 0, process.pid).groups(), [6]);
  assert.ok(credOf(defaultMountOptions, 0, process.getgid!(), process.pid).groups().includes(process.getgid!()));
});

test('the access log gives every reader its own lines', async () => {
  const log = new AccessLog();
  const waiting = (promise: Promise<void>) => ({
    interrupt: { fired: false, promise, callerIsDying: () => false },
    park() {},
  });
  const never = waiting(new Promise<void>(() => undefined));
  assert.equal(log.active, false);
  log.open(1);
  log.open(2);
  const ctx = { uid: 1, gid: 2, pid: 3 } as Parameters<AccessLog['add']>[0];
  log.add(ctx, 'mkdir (1,d)', '', undefined, 0.0001);
  log.add(ctx, 'lookup (1,x)', '', 'no such file or directory', 0.00002);
  const text = Buffer.from(await log.read(1, 4096, never)).toString();
  assert.match(
    text,
    /^\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d\.\d{6} \[uid:1,gid:2,pid:3\] mkdir \(1,d\): OK <0\.000100>\n.*: no such file or directory <0\.000020>\n$/,
  );
  const short = Buffer.concat([await log.read(2, 10, never), await log.read(2, 4096, never)]).toString();
  assert.equal(short, text);
  assert.equal(Buffer.from(await log.read(1, 100, waiting(Promise.resolve()))).toString(), '#\n');
  log.close(1);
  log.close(2);
  assert.equal(log.active, false);
  assert.equal(timestamp(new Date(2026, 0, 2, 3, 4, 5, 6).getTime() + 0.25), '2026.01.02 03:04:05.006250');
  assert.equal(shownName(Buffer.from('plain name')), 'plain name');
  assert.equal(shownName(Buffer.from('a\nb')), '"a\\nb"');
});
