import assert from 'node:assert/strict';
import fs from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { describe, it } from 'node:test';
import {
  aclAllows,
  aclChmod,
  aclFromXattr,
  aclInherit,
  aclMode,
  aclToXattr,
  decodeAcl,
  encodeAcl,
} from '../../src/format/acl.ts';
import { decodeAttr, encodeAttr } from '../../src/format/attr.ts';
import { inoFromBigint, inoToBigint, inoToString, TRASH } from '../../src/format/ino.ts';
import { decodeLocks, encodeLocks, findConflict, type LockRecord, updateLocks } from '../../src/format/locks.ts';
import {
  buildSlices,
  CHUNK_SIZE,
  clipPieces,
  decodeSlices,
  encodeSlices,
  holesOf,
  type Slice,
} from '../../src/format/slice.ts';
import { parseTrashEntryName, trashEntryName, trashFolderName, trashFolderTime } from '../../src/format/trash.ts';
import {
  changedImmutable,
  compareVersions,
  decryptSecrets,
  encryptSecrets,
  fixBlockSize,
  isValidName,
  parseFormat,
  removeSecrets,
  serialiseFormat,
  versionGate,
} from '../../src/format/volume.ts';
import { randomFrom } from '../meta/model.ts';

const FIXTURES = '../shared/fixtures';
const skip = fs.existsSync(FIXTURES) ? false : 'no fixtures here';

function seeded(): (below: number) => number {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`# seed ${seed}`);
  return randomFrom(seed);
}

function setting(set: string): string {
  const copy = fs.mkdtempSync('/tmp/steadfs-format-');
  try {
    fs.copyFileSync(`${FIXTURES}/${set}/meta.db`, `${copy}/meta.db`);
    const db = new DatabaseSync(`${copy}/meta.db`);
    const row = db.prepare("SELECT value FROM jfs_setting WHERE name='format'").get() as { value: string };
    db.close();
    return row.value;
  } finally {
    fs.rmSync(copy, { recursive: true });
  }
}

describe('the setting record', () => {
  for (const set of ['a-sqlite', 'b-sqlite-lz4', 'c-sqlite-zstd-aes', 'c2-sqlite-lz4-chacha']) {
    it(`of ${set} is written as it was read`, { skip }, () => {
      const text = setting(set);
      assert.equal(serialiseFormat(parseFormat(text)), text);
      const plain = decryptSecrets(parseFormat(text));
      if (plain.EncryptKey) assert.match(plain.EncryptKey, /^-----BEGIN .*PRIVATE KEY-----/);
      assert.equal(versionGate(plain, '1.4.1+steadfs.0.1.0'), undefined);
    });
  }

  it('keeps secrets', () => {
    const format = parseFormat(
      '{"Name":"abc","UUID":"4c3d028d-a981-415a-9671-942a2ebfeba5","Storage":"s3","Tiers":null,"Bucket":"x","SecretKey":"s&<x>","BlockSize":4096,"TrashDays":1,"EnableACL":false,"Unknown":7}',
    );
    assert.deepEqual(format.Tiers, { '0': { ID: 0, StorageClass: '', Tag: '' } });
    const stored = encryptSecrets(format);
    assert.equal(stored.KeyEncrypted, true);
    assert.notEqual(stored.SecretKey, format.SecretKey);
    assert.equal(decryptSecrets(parseFormat(serialiseFormat(stored))).SecretKey, 's&<x>');
    assert.deepEqual(encryptSecrets(stored), stored);
    assert.match(serialiseFormat(format), /"SecretKey": "s\\u0026\\u003cx\\u003e"/);
    assert.equal(removeSecrets(format).SecretKey, 'removed');
    assert.throws(() => decryptSecrets({ ...stored, SecretKey: 'removed' }), /SecretKey was removed/);
    assert.throws(() => decryptSecrets({ ...stored, UUID: 'other' }), /cannot be decrypted/);
    for (const bad of ['', '[]', 'null', '{"Name":"a"}', '{"Name":1,"UUID":"x"}'])
      assert.throws(() => parseFormat(bad), SyntaxError);
  });

  it('has gates, names and sizes', () => {
    const order = ['1.0', '1.1.0-A', '1.1.0-B', '1.1.0', '1.2.0-A', '1.4.1', '1.5.0-dev', '2'];
    for (let i = 1; i < order.length; i++) assert.ok(compareVersions(order[i - 1]!, order[i]!) < 0, order[i]!);
    assert.equal(compareVersions('1.4.1+steadfs.0.1.0', '1.4.1+x'), 0);
    const format = parseFormat(serialiseFormat({ ...base, MinClientVersion: '1.5.0-A' }));
    assert.match(versionGate(format, '1.4.1')!, /needs a client/);
    assert.match(versionGate({ ...base, MetaVersion: 2 }, '1.4.1')!, /metadata version 2/);
    assert.match(versionGate({ ...base, MaxClientVersion: '1.3' }, '1.4.1')!, /up to version 1.3/);
    for (const [name, ok] of [
      ['abc', true],
      ['ab', false],
      ['a-b-9', true],
      ['-ab', false],
      ['Abc', false],
      ['a'.repeat(64), false],
      ['ab-', false],
    ] as const) {
      assert.equal(isValidName(name), ok, name);
    }
    for (const [kib, fixed] of [
      [3000, 2048],
      [1000, 512],
      [10, 64],
      [4096, 4096],
      [99999, 16384],
      [0, 64],
    ] as const)
      assert.equal(fixBlockSize(kib), fixed);
    assert.equal(changedImmutable(base, { ...base, TrashDays: 9 }), undefined);
    assert.equal(changedImmutable({ ...base, Compression: 'none' }, { ...base, Compression: '' }), undefined);
    assert.equal(changedImmutable(base, { ...base, Compression: 'lz4' }), 'Compression');
  });
});

const base = parseFormat(
  '{"Name":"abc","UUID":"4c3d028d-a981-415a-9671-942a2ebfeba5","Storage":"file","Tiers":null,"Bucket":"x","BlockSize":4096,"TrashDays":1,"MetaVersion":1,"EnableACL":false}',
);

describe('inodes and attributes', () => {
  it('map internal inodes', () => {
    assert.equal(inoToString(TRASH), '9223372032828243968');
    assert.equal(inoFromBigint(9223372032828243973n), TRASH + 5);
    for (const n of [1n, 2n ** 40n, 0x7fffffff00000001n]) assert.equal(inoToBigint(inoFromBigint(n)), n);
  });

  it('round-trip in all four sizes', () => {
    const a = {
      flags: 3,
      type: 1 as const,
      mode: 0o6755,
      uid: 4294967294,
      gid: 1,
      atime: -86401,
      atimensec: 999999999,
      mtime: 7258118400,
      mtimensec: 1,
      ctime: 0,
      ctimensec: 0,
      nlink: 7,
      length: 2 ** 53 - 1,
      rdev: 268501761,
      parent: TRASH + 3,
      accessAcl: 0,
      defaultAcl: 0,
      tier: 0,
    };
    const sizes = [
      [0, 0, 72],
      [0, 2, 73],
      [5, 0, 80],
      [5, 2, 81],
    ] as const;
    for (const [accessAcl, tier, size] of sizes) {
      const b = encodeAttr({ ...a, accessAcl, tier });
      assert.equal(b.length, size);
      assert.deepEqual(decodeAttr(b), { ...a, accessAcl, tier });
    }
  });
});

describe('slices', () => {
  it('overlay as a byte array does', () => {
    const random = seeded();
    for (let round = 0; round < 300; round++) {
      const size = 200;
      const bytes: (readonly [number, number])[] = Array.from({ length: size }, () => [0, 0] as const);
      const records: Slice[] = [];
      let end = 0;
      for (let i = 1 + random(12); i > 0; i--) {
        const pos = random(size - 1);
        const len = 1 + random(size - pos - 1 || 1);
        const off = random(50);
        const id = random(4) === 0 ? 0 : 100 + i;
        records.push({ pos, id, size: id === 0 ? 0 : off + len, off: id === 0 ? 0 : off, len });
        end = Math.max(end, pos + len);
        for (let k = 0; k < len; k++) bytes[pos + k] = id === 0 ? [0, 0] : [id, off + k];
      }
      let at = 0;
      for (const p of buildSlices(records)) {
        assert.equal(p.pos, at);
        for (let k = 0; k < p.len; k++) assert.deepEqual(p.id === 0 ? [0, 0] : [p.id, p.off + k], bytes[at + k]);
        at += p.len;
      }
      assert.equal(at, end);
      const from = random(size);
      const to = from + 1 + random(size - from);
      let clipped = from;
      for (const p of clipPieces(buildSlices(records), from, to)) {
        assert.equal(p.pos, clipped);
        clipped += p.len;
        if (p.id !== 0) assert.deepEqual([p.id, p.off], bytes[p.pos]);
      }
      assert.equal(clipped, to);
      assert.deepEqual(decodeSlices(encodeSlices(records)), records);
    }
  });

  it('punch holes over chunk boundaries', () => {
    assert.deepEqual(
      [...holesOf(CHUNK_SIZE - 10, 2 * CHUNK_SIZE + 5)].map(([i, r]) => [i, r.pos, r.len]),
      [
        [0, CHUNK_SIZE - 10, 10],
        [1, 0, CHUNK_SIZE],
        [2, 0, 5],
      ],
    );
  });
});

describe('POSIX lock records', () => {
  it('merge as a table of bytes does', () => {
    const random = seeded();
    for (let round = 0; round < 200; round++) {
      let list: LockRecord[] = [];
      const table: (string | undefined)[] = new Array(60).fill(undefined);
      for (let i = 0; i < 12; i++) {
        const start = random(55);
        const end = start + random(59 - start);
        const lock = { type: random(3), pid: random(2), start: BigInt(start), end: BigInt(end) };
        list = updateLocks(list, lock);
        for (let k = start; k <= end; k++) table[k] = lock.type === 2 ? undefined : `${lock.type}/${lock.pid}`;
        const seen: (string | undefined)[] = new Array(60).fill(undefined);
        let last = -1n;
        for (const r of list) {
          assert.ok(r.start > last && r.end >= r.start && r.type !== 2);
          last = r.end;
          for (let k = Number(r.start); k <= Number(r.end); k++) seen[k] = `${r.type}/${r.pid}`;
        }
        assert.deepEqual(seen, table);
        assert.deepEqual(decodeLocks(encodeLocks(list)), list);
        for (let k = 1; k < list.length; k++) {
          const [a, b] = [list[k - 1]!, list[k]!];
          assert.ok(a.end + 1n < b.start || a.type !== b.type || a.pid !== b.pid, 'neighbours are joined');
        }
      }
    }
  });

  it('conflict', () => {
    const held = [{ type: 0, pid: 1, start: 5n, end: 9n }];
    assert.equal(findConflict(held, { type: 0, pid: 2, start: 0n, end: 20n }), undefined);
    assert.equal(findConflict(held, { type: 1, pid: 2, start: 9n, end: 20n }), held[0]);
    assert.equal(findConflict(held, { type: 1, pid: 2, start: 10n, end: 20n }), undefined);
  });
});

describe('trash names', () => {
  it('are made and read', () => {
    assert.equal(trashFolderName(1795246794), '2026-11-21-07');
    assert.equal(trashFolderTime('2026-11-21-07'), 1795244400);
    assert.equal(trashFolderTime('2026-13-21-07'), undefined);
    assert.equal(trashFolderTime('x'), undefined);
    const long = trashEntryName(18, 20, Buffer.alloc(255, 76));
    assert.equal(long.length, 255);
    assert.equal(long.subarray(0, 7).toString(), '18-20-L');
    assert.deepEqual(parseTrashEntryName(Buffer.from('18-20-a-b')), {
      parent: '18',
      ino: '20',
      name: Buffer.from('a-b'),
    });
    assert.equal(parseTrashEntryName(Buffer.from('x')), undefined);
  });
});

describe('ACL rules', () => {
  const rule = {
    owner: 6,
    group: 4,
    mask: 6,
    other: 4,
    users: [{ id: 1001, perm: 6 }],
    groups: [{ id: 2002, perm: 4 }],
  };

  it('have a stored and a kernel form', () => {
    assert.equal(encodeAcl(rule).length, 16 + 12);
    assert.deepEqual(decodeAcl(encodeAcl(rule)), rule);
    assert.deepEqual(aclFromXattr(aclToXattr(rule)), rule);
    const minimal = { owner: 6, group: 4, mask: 0xffff, other: 4, users: [], groups: [] };
    assert.deepEqual(aclFromXattr(aclToXattr(minimal)), minimal);
    assert.equal(aclFromXattr(Buffer.from([2, 0, 0, 0])), undefined);
    const noMask = aclToXattr({ ...rule, mask: 0xffff });
    for (const bad of [
      Buffer.alloc(3),
      Buffer.from([1, 0, 0, 0]),
      noMask,
      aclToXattr({ ...rule, users: [rule.users[0]!, rule.users[0]!] }),
    ]) {
      assert.throws(() => aclFromXattr(bad), RangeError);
    }
  });

  it('follow chmod, are inherited and checked', () => {
    assert.equal(aclMode(rule), 0o664);
    assert.deepEqual(aclChmod(rule, 0o750), { ...rule, owner: 7, mask: 5, other: 0 });
    // As in fixture a-sqlite: /acl/default/child made with 0644.
    const inherited = aclInherit({ ...rule, owner: 7, group: 5, mask: 7, other: 0 }, 0o666);
    assert.deepEqual([inherited.mode, inherited.access?.mask, inherited.access?.group], [0o660, 6, 5]);
    const plain = aclInherit({ owner: 7, group: 5, mask: 0xffff, other: 0, users: [], groups: [] }, 0o4666);
    assert.deepEqual([plain.access, plain.mode], [undefined, 0o4640]);
    assert.ok(aclAllows(rule, 1, 1, 1001, [9], 6));
    assert.ok(!aclAllows({ ...rule, mask: 4 }, 1, 1, 1001, [9], 6));
    assert.ok(aclAllows(rule, 1, 1, 5, [2002], 4));
    assert.ok(!aclAllows(rule, 1, 1, 5, [2002], 2));
    assert.ok(aclAllows(rule, 1, 1, 5, [9], 4));
    assert.ok(!aclAllows(rule, 1, 1, 5, [9], 1));
  });
});
