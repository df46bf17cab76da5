import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FileType } from '../../src/format/attr.ts';
import { Counters, step } from '../../src/vfs/counters.ts';
import { HandleKind, Handles } from '../../src/vfs/handles.ts';
import { Inodes, learn } from '../../src/vfs/inodes.ts';
import { Items } from '../../src/vfs/items.ts';
import { seeded } from '../support/random.ts';
import { anAttr } from './attr.ts';
import { withCapsule } from './capsule.ts';

const op = (slot: number, seq: number) => ({ kind: 0, slot, seq });

test('handles are found by the next process, numbers never come twice', () =>
  withCapsule((capsule, again) => {
    const first = new Handles(capsule, new Counters(capsule));
    const a = first.open(HandleKind.file, 42, 2, op(3, 7), 1000, 100);
    const b = first.open(HandleKind.directory, 1, 0, op(4, 1), 0, 0);
    first.close(a);
    const c = first.open(HandleKind.file, 43, 0, op(3, 8), 1, 2);
    assert.equal(new Set([a.fh, b.fh, c.fh]).size, 3);

    const capsule2 = again();
    const second = new Handles(capsule2, new Counters(capsule2));
    assert.equal(second.size, 2);
    assert.equal(second.get(a.fh), undefined);
    const found = second.get(c.fh)!;
    assert.deepEqual([found.ino, found.flags, found.uid, found.gid, found.kind], [43, 0, 1, 2, HandleKind.file]);
    assert.equal(second.madeBy(op(3, 8)), found);
    assert.equal(second.madeBy(op(3, 7)), undefined);
    assert.ok(second.open(HandleKind.file, 42, 0, op(5, 1), 0, 0).fh > c.fh);
    second.close(found);
    assert.equal(second.madeBy(op(3, 8)), undefined);
  }));

test('a damaged handle is left out', () =>
  withCapsule((capsule, again) => {
    const h = new Handles(capsule, new Counters(capsule)).open(HandleKind.file, 42, 2, op(1, 1), 0, 0);
    const records = capsule.records({ name: 'vfs.handles', version: 1, recordSize: 64, capacity: 1 << 20 });
    records.view.setFloat64(records.offsetOf(h.record) + 16, 41, true);
    const capsule2 = again();
    const second = new Handles(capsule2, new Counters(capsule2));
    assert.equal(second.damaged, 1);
    assert.equal(second.size, 0);
  }));

test('further mutations of a request have identities of their own', () => {
  const seen = new Set<string>();
  for (let n = 1; n < 20; n++) {
    const s = step(op(9, 5), n);
    assert.deepEqual([s.slot, s.seq], [9, 5]);
    seen.add(String(s.kind));
  }
  assert.equal(seen.size, 19);
});

test('items of any length come back in order, and only whole ones', () =>
  withCapsule((capsule, again) => {
    const seed = Math.floor(Math.random() * 2 ** 32);
    console.log(`seed ${seed}`);
    const random = seeded(seed);
    const items = new Items(capsule);
    const wanted = new Map<number, Buffer[]>();
    for (let i = 0; i < 500; i++) {
      const owner = 1 + random.below(5);
      if (random.chance(3)) {
        items.clear(owner);
        wanted.delete(owner);
        continue;
      }
      const item = Buffer.alloc(random.below(700), random.below(256));
      items.append(owner, item);
      wanted.set(owner, [...(wanted.get(owner) ?? []), item]);
    }
    const second = new Items(again());
    for (const all of [items, second]) {
      for (let owner = 1; owner <= 5; owner++) {
        assert.deepEqual(all.load(owner).map(String), (wanted.get(owner) ?? []).map(String));
      }
    }
    // A kill in the middle of an append leaves parts without an end.
    const records = again().records({ name: 'vfs.items', version: 1, recordSize: 256, capacity: 1 << 18 });
    const owner = [...wanted.keys()][0]!;
    const part = records.alloc()!;
    records.view.setUint32(records.offsetOf(part) + 4, 232, true);
    records.view.setFloat64(records.offsetOf(part) + 8, owner, true);
    records.view.setFloat64(records.offsetOf(part) + 16, 1e9, true);
    records.setState(part, 1);
    assert.deepEqual(new Items(again()).load(owner).map(String), wanted.get(owner)!.map(String));
  }));

test('what was forgotten before a restart goes after it', () =>
  withCapsule((capsule, again) => {
    let inodes = new Inodes(capsule);
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 500; i++) {
        const ino = 1000 + round * 500 + i;
        inodes.keepRemoved(ino, anAttr({ length: 1 }));
        inodes.forget(ino);
      }
      inodes = new Inodes(again());
    }
    const kept = Array.from({ length: 10_000 }, (_, i) => 1000 + i).filter(ino => inodes.removed(ino) !== undefined);
    assert.equal(kept.length, 1024);
  }));

test('removed inodes keep their attributes until they are forgotten', () =>
  withCapsule((capsule, again) => {
    const inodes = new Inodes(capsule);
    inodes.keepRemoved(100, anAttr({ length: 123, nlink: 1 }));
    assert.deepEqual(inodes.removed(100)?.length, 123);
    assert.equal(inodes.removed(100)?.nlink, 0);
    const second = new Inodes(again());
    assert.equal(second.removed(100)?.length, 123);
    // One of several look-ups was given back: it may still be asked for.
    second.forget(100);
    assert.equal(second.removed(100)?.length, 123);
    for (let i = 0; i < 1100; i++) {
      second.keepRemoved(1000 + i, anAttr({ type: FileType.directory }));
      second.forget(1000 + i);
    }
    assert.equal(second.removed(100), undefined);
  }));

test('fresh attributes tell own changes from foreign ones', () =>
  withCapsule(capsule => {
    const inodes = new Inodes(capsule);
    const inode = inodes.hold(7);
    const at = (mtime: number, length: number) => anAttr({ mtime, length, ctime: mtime });
    assert.equal(learn(inode, at(1, 10), undefined, 0), 'foreign');
    inode.seen = { mtime: 1, mtimensec: 0, ctime: 1, ctimensec: 0, length: 10 };
    assert.equal(learn(inode, at(1, 10), undefined, 0), 'same');
    assert.equal(learn(inode, at(2, 10), undefined, 0), 'foreign');
    // Pending data of ours covers what the engine knows.
    assert.equal(
      learn(inode, at(2, 10), { length: 30, mtime: { sec: 3, nsec: 0 }, ctime: { sec: 3, nsec: 0 } }, 0),
      'ours',
    );
    assert.equal(inode.attr?.length, 30);
    inode.ownMtime = 3;
    inode.ownMtimensec = 0;
    assert.equal(learn(inode, at(3, 30), undefined, 0), 'ours');
    assert.equal(learn(inode, at(3, 31), undefined, 0), 'foreign');
    // Asked for before a write of ours: the length does not shrink.
    inode.changes++;
    inode.attr = at(4, 50);
    assert.equal(learn(inode, at(3, 31), undefined, inode.changes - 1), 'ours');
    assert.equal(inode.attr?.length, 50);
  }));

test('what is open is known after a restart, each handle and inode made when it is asked for', () =>
  withCapsule((capsule, again) => {
    const first = new Handles(capsule, new Counters(capsule));
    const opened = Array.from({ length: 2000 }, (_, i) =>
      first.open(HandleKind.file, 10 + (i % 500), i % 2, op(i % 100, i), 0, 0),
    );
    const capsule2 = again();
    const handles = new Handles(capsule2, new Counters(capsule2));
    const inodes = new Inodes(capsule2);
    let attached = 0;
    handles.attach = handle => {
      attached++;
      handle.inode = inodes.get(handle.ino);
    };
    handles.eachAdopted((kind, ino, flags) => {
      assert.equal(kind, HandleKind.file);
      inodes.adopt(ino, flags === 1);
    });
    assert.deepEqual([handles.size, inodes.openCount, attached], [2000, 500, 0]);
    assert.deepEqual([10, 509, 9, 510].map(inodes.isOpen), [true, true, false, false]);
    assert.equal(handles.inoOf(opened[7]!.fh), 17);
    const handle = handles.get(opened[7]!.fh)!;
    assert.deepEqual({ ...handle, inode: undefined }, { ...opened[7]! });
    assert.deepEqual(
      [handle.inode!.ino, handle.inode!.refs, handle.inode!.writers, handle.inode!.dirty],
      [17, 4, 4, true],
    );
    assert.equal(handles.get(handle.fh), handle);
    assert.equal(inodes.hold(18).refs, 5);
    assert.equal(handles.madeBy(op(9, 9), false), undefined);
    assert.equal(handles.madeBy(op(9, 9))!.fh, opened[9]!.fh);
    assert.equal(handles.madeBy(op(7, 7)), handle);
    for (const { fh } of opened) {
      const h = handles.get(fh)!;
      handles.close(h);
      inodes.drop(h.inode!);
    }
    assert.deepEqual([handles.size, inodes.openCount, attached], [0, 1, 2000]);
    assert.equal(new Handles(again(), new Counters(again())).size, 0);
  }));
