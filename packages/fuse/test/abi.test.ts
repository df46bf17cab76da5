/**
 * Numbers of the wire against the kernel's header: the table below is linux/fuse.h 7.45 by hand, and what the header of this machine (/usr/include/linux/fuse.h, often older) defines
 * must agree with it.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as abi from '../src/abi.ts';
import { attributes } from '../src/attributes.ts';
import { DEFAULT_FLAGS, DUTY_FLAGS, negotiate } from '../src/init.ts';

/** Offsets of the fields that are read or written, and the size, by structure. */
// biome-ignore format: a table
const STRUCTURES: Record<string, Record<string, number>> = {
  fuse_attr: { ino: 0, size: 8, blocks: 16, atime: 24, mtime: 32, ctime: 40, atimensec: 48, mtimensec: 52, ctimensec: 56, mode: 60, nlink: 64, uid: 68, gid: 72, rdev: 76, blksize: 80, flags: 84, '': 88 },
  fuse_kstatfs: { blocks: 0, bfree: 8, bavail: 16, files: 24, ffree: 32, bsize: 40, namelen: 44, frsize: 48, '': 80 },
  fuse_file_lock: { start: 0, end: 8, type: 16, pid: 20, '': 24 },
  fuse_entry_out: { nodeid: 0, generation: 8, entry_valid: 16, attr_valid: 24, entry_valid_nsec: 32, attr_valid_nsec: 36, attr: 40, '': 128 },
  fuse_forget_in: { nlookup: 0, '': 8 },
  fuse_forget_one: { nodeid: 0, nlookup: 8, '': 16 },
  fuse_batch_forget_in: { count: 0, '': 8 },
  fuse_getattr_in: { getattr_flags: 0, fh: 8, '': 16 },
  fuse_attr_out: { attr_valid: 0, attr_valid_nsec: 8, attr: 16, '': 104 },
  fuse_mknod_in: { mode: 0, rdev: 4, umask: 8, '': 16 },
  fuse_mkdir_in: { mode: 0, umask: 4, '': 8 },
  fuse_rename_in: { newdir: 0, '': 8 },
  fuse_rename2_in: { newdir: 0, flags: 8, '': 16 },
  fuse_link_in: { oldnodeid: 0, '': 8 },
  fuse_setattr_in: { valid: 0, fh: 8, size: 16, lock_owner: 24, atime: 32, mtime: 40, ctime: 48, atimensec: 56, mtimensec: 60, ctimensec: 64, mode: 68, uid: 76, gid: 80, '': 88 },
  fuse_open_in: { flags: 0, open_flags: 4, '': 8 },
  fuse_create_in: { flags: 0, mode: 4, umask: 8, open_flags: 12, '': 16 },
  fuse_open_out: { fh: 0, open_flags: 8, '': 16 },
  fuse_release_in: { fh: 0, flags: 8, release_flags: 12, lock_owner: 16, '': 24 },
  fuse_flush_in: { fh: 0, lock_owner: 16, '': 24 },
  fuse_read_in: { fh: 0, offset: 8, size: 16, read_flags: 20, lock_owner: 24, flags: 32, '': 40 },
  fuse_write_in: { fh: 0, offset: 8, size: 16, write_flags: 20, lock_owner: 24, flags: 32, '': 40 },
  fuse_write_out: { size: 0, '': 8 },
  fuse_fsync_in: { fh: 0, fsync_flags: 8, '': 16 },
  fuse_setxattr_in: { size: 0, flags: 4, setxattr_flags: 8, '': 16 },
  fuse_getxattr_in: { size: 0, '': 8 },
  fuse_getxattr_out: { size: 0, '': 8 },
  fuse_lk_in: { fh: 0, owner: 8, lk: 16, lk_flags: 40, '': 48 },
  fuse_access_in: { mask: 0, '': 8 },
  fuse_init_in: { major: 0, minor: 4, max_readahead: 8, flags: 12, flags2: 16, '': 64 },
  fuse_init_out: { major: 0, minor: 4, max_readahead: 8, flags: 12, max_background: 16, congestion_threshold: 18, max_write: 20, time_gran: 24, max_pages: 28, map_alignment: 30, flags2: 32, '': 64 },
  fuse_interrupt_in: { unique: 0, '': 8 },
  fuse_bmap_in: { block: 0, blocksize: 8, '': 16 },
  fuse_ioctl_in: { fh: 0, flags: 8, cmd: 12, arg: 16, in_size: 24, out_size: 28, '': 32 },
  fuse_ioctl_out: { result: 0, flags: 4, in_iovs: 8, out_iovs: 12, '': 16 },
  fuse_poll_in: { fh: 0, kh: 8, flags: 16, events: 20, '': 24 },
  fuse_poll_out: { revents: 0, '': 8 },
  fuse_fallocate_in: { fh: 0, offset: 8, length: 16, mode: 24, '': 32 },
  fuse_in_header: { len: 0, opcode: 4, unique: 8, nodeid: 16, uid: 24, gid: 28, pid: 32, total_extlen: 36, '': 40 },
  fuse_out_header: { len: 0, error: 4, unique: 8, '': 16 },
  fuse_notify_inval_inode_out: { ino: 0, off: 8, len: 16, '': 24 },
  fuse_notify_inval_entry_out: { parent: 0, namelen: 8, flags: 12, '': 16 },
  fuse_notify_delete_out: { parent: 0, child: 8, namelen: 16, '': 24 },
  fuse_notify_store_out: { nodeid: 0, offset: 8, size: 16, '': 24 },
  fuse_lseek_in: { fh: 0, offset: 8, whence: 16, '': 24 },
  fuse_lseek_out: { offset: 0, '': 8 },
  fuse_copy_file_range_in: { fh_in: 0, off_in: 8, nodeid_out: 16, fh_out: 24, off_out: 32, len: 40, flags: 48, '': 56 },
  fuse_copy_file_range_out: { bytes_copied: 0, '': 8 },
  fuse_syncfs_in: { '': 8 },
  fuse_notify_prune_out: { count: 0, '': 16 },
  fuse_statx_in: { getattr_flags: 0, fh: 8, sx_flags: 16, sx_mask: 20, '': 24 },
  fuse_statx_out: { attr_valid: 0, attr_valid_nsec: 8, flags: 12, stat: 32, '': 288 },
  fuse_sx_time: { tv_sec: 0, tv_nsec: 8, '': 16 },
};

const BYTES: Record<string, number> = { uint64_t: 8, int64_t: 8, uint32_t: 4, int32_t: 4, uint16_t: 2, char: 1 };

/** Offsets of a header's structures, as a C compiler lays them out. */
function layouts(header: string): Record<string, Record<string, number>> {
  const found: Record<string, Record<string, number>> = {};
  const text = header.replace(/\/\*[\s\S]*?\*\//g, '');
  for (const [, name, body] of text.matchAll(/struct (\w+) \{([^}]*)\};/g)) {
    const fields: Record<string, number> = {};
    let at = 0;
    let align = 1;
    for (const [, struct, type, field, count] of body!.matchAll(/^\s*(struct\s+)?(\w+)\s+(\w+)(?:\[(\w*)\])?;/gm)) {
      const size = struct ? found[type!]![''] : BYTES[type!];
      assert.ok(size !== undefined, `${name}: ${type}`);
      const own = struct ? 8 : size;
      align = Math.max(align, own);
      at = Math.ceil(at / own) * own;
      fields[field!] = at;
      if (count === '') break; // a flexible array
      at += size * Number(count ?? 1);
    }
    found[name!] = { ...fields, '': Math.ceil(at / align) * align };
  }
  return found;
}

const HEADER = '/usr/include/linux/fuse.h';

test('structures: the header of this machine', { skip: existsSync(HEADER) ? false : `${HEADER} is missing` }, () => {
  const found = layouts(readFileSync(HEADER, 'utf8'));
  let compared = 0;
  for (const [name, fields] of Object.entries(STRUCTURES)) {
    const theirs = found[name];
    if (!theirs) continue; // newer than the header
    for (const [field, at] of Object.entries(fields)) {
      if (field !== '' && theirs[field] === undefined) continue;
      assert.equal(theirs[field], at, `${name}.${field}`);
      compared++;
    }
  }
  assert.ok(compared > 100, `${compared}`);
});

test('numbers: the header of this machine', { skip: existsSync(HEADER) ? false : `${HEADER} is missing` }, () => {
  const header = readFileSync(HEADER, 'utf8');
  const theirs = new Map<string, bigint>();
  for (const [, name, value] of header.matchAll(/^#define (F\w+)\s+\(?1(?:ULL)? << (\d+)\)?/gm))
    theirs.set(name!, 1n << BigInt(value!));
  for (const [, name, value] of header.matchAll(/^\s+(FUSE_\w+)\s*=\s*(\d+),/gm)) theirs.set(name!, BigInt(value!));
  const ours: [string, Record<string, number | bigint>][] = [
    ['FUSE_', abi.OP],
    ['FUSE_NOTIFY_', abi.NOTIFY],
    ['FUSE_', abi.INIT],
    ['FATTR_', abi.FATTR],
  ];
  let compared = 0;
  for (const [prefix, table] of ours)
    for (const [name, value] of Object.entries(table)) {
      const other = theirs.get(prefix + name);
      if (other === undefined) continue;
      assert.equal(BigInt(value), other, prefix + name);
      compared++;
    }
  // No opcode or notification that the header knows is missing here.
  for (const [block, prefix, table] of [
    ['fuse_opcode', 'FUSE_', abi.OP],
    ['fuse_notify_code', 'FUSE_NOTIFY_', abi.NOTIFY],
  ] as const) {
    const body = new RegExp(`enum ${block} \\{([^}]*)\\}`).exec(header)![1]!;
    for (const [, name] of body.matchAll(/^\s+(FUSE_\w+)\s*=/gm))
      if (!/RESERVED$|CODE_MAX$/.test(name!)) assert.ok(name!.slice(prefix.length) in table, `${name}`);
  }
  assert.ok(compared > 80, `${compared}`);
});

test('sizes and offsets that the encoders use', () => {
  const size = (name: string): number => STRUCTURES[name]![''] as number;
  assert.deepEqual(
    [
      abi.IN_HEADER,
      abi.OUT_HEADER,
      abi.ATTR,
      abi.ENTRY_OUT,
      abi.ATTR_OUT,
      abi.OPEN_OUT,
      abi.STATFS_OUT,
      abi.LK_OUT,
      abi.STATX_OUT,
      abi.INIT_OUT,
    ],
    [
      'fuse_in_header',
      'fuse_out_header',
      'fuse_attr',
      'fuse_entry_out',
      'fuse_attr_out',
      'fuse_open_out',
      'fuse_kstatfs',
      'fuse_file_lock',
      'fuse_statx_out',
      'fuse_init_out',
    ].map(size),
  );
  const view = new DataView(new ArrayBuffer(512));
  const a = attributes({
    ino: 11,
    mode: 0o100644,
    size: 12,
    blocks: 13,
    atime: 14,
    mtime: 15,
    ctime: 16,
    nlink: 17,
    uid: 18,
    gid: 19,
    rdev: 20,
    blksize: 21,
  });
  abi.putEntryOut(view, 0, { nodeid: 1, generation: 2, entryValid: 3, attrValid: 4, attr: a });
  const entry = STRUCTURES.fuse_entry_out!;
  const attr = STRUCTURES.fuse_attr!;
  for (const [field, value] of [
    ['nodeid', 1],
    ['generation', 2],
    ['entry_valid', 3],
    ['attr_valid', 4],
  ] as const)
    assert.equal(abi.u64(view, entry[field]!), value, field);
  for (const [field, value] of [
    ['ino', 11],
    ['size', 12],
    ['blocks', 13],
    ['atime', 14],
    ['mtime', 15],
    ['ctime', 16],
  ] as const)
    assert.equal(abi.u64(view, entry.attr! + attr[field]!), value, field);
  for (const [field, value] of [
    ['mode', 0o100644],
    ['nlink', 17],
    ['uid', 18],
    ['gid', 19],
    ['rdev', 20],
    ['blksize', 21],
  ] as const)
    assert.equal(view.getUint32(entry.attr! + attr[field]!, true), value, field);
});

test('INIT flags: what an older kernel offers, duties only when asked for, one way of invalidation', () => {
  /** Linux 6.1: everything up to HAS_EXPIRE_ONLY's neighbour, without the flags of 7.39 and later. */
  const offered61 = (1n << 35n) - 1n;
  const kernel = { major: 7, minor: 38, maxReadahead: 1 << 17, flags: offered61 };
  for (const flags of [undefined, DEFAULT_FLAGS | DUTY_FLAGS, (1n << 64n) - 1n]) {
    const out = negotiate(kernel, flags === undefined ? {} : { flags }, true);
    assert.equal(out.flags & ~offered61, 0n);
    assert.equal(out.minor, 38);
    const both = abi.INIT.AUTO_INVAL_DATA | abi.INIT.EXPLICIT_INVAL_DATA;
    assert.notEqual(out.flags & both, both);
  }
  assert.equal(negotiate(kernel, {}, true).flags & DUTY_FLAGS, 0n);
  assert.notEqual(
    negotiate(
      { ...kernel, flags: offered61 & ~abi.INIT.EXPLICIT_INVAL_DATA },
      { flags: DEFAULT_FLAGS | DUTY_FLAGS },
      true,
    ).flags & abi.INIT.AUTO_INVAL_DATA,
    0n,
  );
});
