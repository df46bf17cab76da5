/**
 * Attributes of an inode (spec/volume.md §3) and their binary form, used by Redis, key-value engines, binary dumps and our op records.
 */
import { type Ino, inoFromHalves, inoHigh, inoLow } from './ino.ts';

/** spec/volume.md §2.1 */
export const FileType = { file: 1, directory: 2, symlink: 3, fifo: 4, blockdev: 5, chardev: 6, socket: 7 } as const;
export type FileType = (typeof FileType)[keyof typeof FileType];

export const Flag = { immutable: 1, append: 2, skipTrash: 32 } as const;

export interface Attr {
  /** Bits of {@link Flag}. */
  flags: number;
  type: FileType;
  /** 12 bits: permissions, setuid, setgid, sticky. */
  mode: number;
  uid: number;
  gid: number;
  /** Seconds (may be negative) and nanoseconds. */
  atime: number;
  atimensec: number;
  mtime: number;
  mtimensec: number;
  ctime: number;
  ctimensec: number;
  nlink: number;
  /** Bytes; at most 2^53-1 here. */
  length: number;
  rdev: number;
  /** 0: the file has or had several links; its parents are in the parents map (edges on SQL). */
  parent: Ino;
  accessAcl: number;
  defaultAcl: number;
  tier: number;
}

/** A directory of root without entries, as the volume's own ones begin: length 4096, nlink 2, the three times the same. */
export function emptyDirectory(mode: number, parent: Ino, sec: number, nsec: number): Attr {
  return {
    flags: 0,
    type: FileType.directory,
    mode,
    uid: 0,
    gid: 0,
    atime: sec,
    atimensec: nsec,
    mtime: sec,
    mtimensec: nsec,
    ctime: sec,
    ctimensec: nsec,
    nlink: 2,
    length: 4096,
    rdev: 0,
    parent,
    accessAcl: 0,
    defaultAcl: 0,
    tier: 0,
  };
}

/** S_IFMT bits of a type, for st_mode. */
export function typeMode(type: FileType): number {
  return TYPE_MODES[type] ?? 0;
}
const TYPE_MODES: Record<number, number> = {
  1: 0o100000,
  2: 0o040000,
  3: 0o120000,
  4: 0o010000,
  5: 0o060000,
  6: 0o020000,
  7: 0o140000,
};

/** The type for the S_IFMT bits of a mode; 0 bits mean a regular file; undefined for an unknown one. */
export function typeOfMode(mode: number): FileType | undefined {
  switch (mode & 0o170000) {
    case 0:
    case 0o100000:
      return FileType.file;
    case 0o040000:
      return FileType.directory;
    case 0o120000:
      return FileType.symlink;
    case 0o010000:
      return FileType.fifo;
    case 0o060000:
      return FileType.blockdev;
    case 0o020000:
      return FileType.chardev;
    case 0o140000:
      return FileType.socket;
    default:
      return undefined;
  }
}

/** Bytes that {@link encodeAttr} writes: 72, 73, 80 or 81. */
function attrSize(a: Attr): number {
  return 72 + (a.accessAcl !== 0 || a.defaultAcl !== 0 ? 8 : 0) + (a.tier !== 0 ? 1 : 0);
}

/** spec/volume.md §3: big-endian; one zero byte of padding at the end. */
export function encodeAttr(a: Attr): Buffer {
  const size = attrSize(a);
  const b = Buffer.allocUnsafe(size);
  b[size - 1] = 0;
  b.writeUInt8(a.flags, 0);
  b.writeUInt16BE((a.type << 12) | (a.mode & 0xfff), 1);
  b.writeUInt32BE(a.uid, 3);
  b.writeUInt32BE(a.gid, 7);
  writeTime(b, 11, a.atime, a.atimensec);
  writeTime(b, 23, a.mtime, a.mtimensec);
  writeTime(b, 35, a.ctime, a.ctimensec);
  b.writeUInt32BE(a.nlink, 47);
  b.writeUInt32BE(Math.floor(a.length / 0x100000000), 51);
  b.writeUInt32BE(a.length % 0x100000000, 55);
  b.writeUInt32BE(a.rdev, 59);
  b.writeUInt32BE(inoHigh(a.parent), 63);
  b.writeUInt32BE(inoLow(a.parent), 67);
  let at = 71;
  if (a.accessAcl !== 0 || a.defaultAcl !== 0) {
    b.writeUInt32BE(a.accessAcl, at);
    b.writeUInt32BE(a.defaultAcl, at + 4);
    at += 8;
  }
  if (a.tier !== 0) b.writeUInt8(a.tier, at);
  return b;
}

/** Decodes 63 bytes or more (old records have no parent). Throws RangeError on anything shorter. */
export function decodeAttr(b: Uint8Array): Attr {
  if (b.length < 63) throw new RangeError(`an attribute record of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const typeAndMode = v.getUint16(1);
  const a: Attr = {
    flags: v.getUint8(0),
    type: (typeAndMode >> 12) as FileType,
    mode: typeAndMode & 0xfff,
    uid: v.getUint32(3),
    gid: v.getUint32(7),
    atime: readSeconds(v, 11),
    atimensec: v.getUint32(19),
    mtime: readSeconds(v, 23),
    mtimensec: v.getUint32(31),
    ctime: readSeconds(v, 35),
    ctimensec: v.getUint32(43),
    nlink: v.getUint32(47),
    length: v.getUint32(51) * 0x100000000 + v.getUint32(55),
    rdev: v.getUint32(59),
    parent: 0,
    accessAcl: 0,
    defaultAcl: 0,
    tier: 0,
  };
  let at = 63;
  if (b.length - at >= 8) {
    a.parent = inoFromHalves(v.getUint32(at), v.getUint32(at + 4));
    at += 8;
  }
  if (b.length - at >= 8) {
    a.accessAcl = v.getUint32(at);
    a.defaultAcl = v.getUint32(at + 4);
    at += 8;
  }
  if (b.length - at >= 1) a.tier = v.getUint8(at);
  return a;
}

function writeTime(b: Buffer, at: number, sec: number, nsec: number): void {
  b.writeInt32BE(Math.floor(sec / 0x100000000), at);
  b.writeUInt32BE(((sec % 0x100000000) + 0x100000000) % 0x100000000, at + 4);
  b.writeUInt32BE(nsec, at + 8);
}

function readSeconds(v: DataView, at: number): number {
  return v.getInt32(at) * 0x100000000 + v.getUint32(at + 4);
}
