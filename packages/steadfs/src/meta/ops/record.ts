/** Results of mutations as bytes, for op records, so that a repeated request gets the answer of the first. Big-endian. */
import { type Attr, decodeAttr, encodeAttr } from '../../format/attr.ts';
import { type Ino, inoFromHalves, inoHigh, inoLow } from '../../format/ino.ts';
import type { CreateResult, DeadSlice, Entry, Removed, RenameResult, WriteResult } from '../engine.ts';

export interface Codec<T> {
  encode(value: T): Uint8Array;
  decode(bytes: Uint8Array): T;
}

const EMPTY = new Uint8Array(0);

export const voidCodec: Codec<void> = { encode: () => EMPTY, decode: () => undefined };

export const booleanCodec: Codec<boolean> = { encode: v => Uint8Array.of(v ? 1 : 0), decode: b => b[0] === 1 };

/** A length, or nothing. */
export const lengthCodec: Codec<number | undefined> = {
  encode(value) {
    if (value === undefined) return EMPTY;
    const b = Buffer.allocUnsafe(8);
    b.writeDoubleBE(value, 0);
    return b;
  },
  decode: b => (b.length === 0 ? undefined : new DataView(b.buffer, b.byteOffset, b.byteLength).getFloat64(0)),
};

export const attrCodec: Codec<Attr> = { encode: encodeAttr, decode: decodeAttr };

/** head bytes, the inode as u64, the attributes. */
function encodeEntry(head: number, e: Entry): Buffer {
  const attr = encodeAttr(e.attr);
  const b = Buffer.allocUnsafe(9 + attr.length);
  b[0] = head;
  b.writeUInt32BE(inoHigh(e.ino), 1);
  b.writeUInt32BE(inoLow(e.ino), 5);
  b.set(attr, 9);
  return b;
}

function decodeEntry(b: Uint8Array): Entry {
  return { ino: readIno(b, 1), attr: decodeAttr(b.subarray(9)) };
}

function readIno(b: Uint8Array, at: number): Ino {
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  return inoFromHalves(v.getUint32(at), v.getUint32(at + 4));
}

export const entryCodec: Codec<Entry> = { encode: e => encodeEntry(0, e), decode: decodeEntry };

export const createCodec: Codec<CreateResult> = {
  encode: r => encodeEntry(r.created ? 1 : 0, r),
  decode: b => ({ ...decodeEntry(b), created: b[0] === 1 }),
};

const STATES = ['kept', 'trash', 'sustained', 'deleted', 'gone'] as const;

export const removedCodec: Codec<Removed> = {
  encode: r => encodeEntry(STATES.indexOf(r.state), r),
  decode: b => ({ ...decodeEntry(b), state: STATES[b[0]!]! }),
};

/** Byte 0: which of moved 1, replaced 2, exchanged 4 follow, each as length u16 and bytes. */
export const renameCodec: Codec<RenameResult> = {
  encode(r) {
    const parts = [
      r.moved && encodeEntry(0, r.moved),
      r.replaced && removedCodec.encode(r.replaced),
      r.exchanged && encodeEntry(0, r.exchanged),
    ];
    const out: Uint8Array[] = [Uint8Array.of(parts.reduce<number>((bits, p, i) => bits | (p ? 1 << i : 0), 0))];
    for (const p of parts) if (p) out.push(Uint8Array.of(p.length >> 8, p.length & 255), p);
    return Buffer.concat(out);
  },
  decode(b) {
    const r: RenameResult = {};
    let at = 1;
    for (let i = 0; i < 3; i++) {
      if ((b[0]! & (1 << i)) === 0) continue;
      const part = b.subarray(at + 2, at + 2 + b[at]! * 256 + b[at + 1]!);
      at += 2 + part.length;
      if (i === 0) r.moved = decodeEntry(part);
      else if (i === 1) r.replaced = removedCodec.decode(part);
      else r.exchanged = decodeEntry(part);
    }
    return r;
  },
};

/** A number below 2^53 and attributes. */
function numberAndAttr<T>(make: (n: number, attr: Attr) => T, take: (v: T) => [number, Attr]): Codec<T> {
  return {
    encode(value) {
      const [n, a] = take(value);
      const attr = encodeAttr(a);
      const b = Buffer.allocUnsafe(8 + attr.length);
      b.writeDoubleBE(n, 0);
      b.set(attr, 8);
      return b;
    },
    decode: b => make(new DataView(b.buffer, b.byteOffset, b.byteLength).getFloat64(0), decodeAttr(b.subarray(8))),
  };
}

/** A database that cannot make the bytes of a double itself stores 0xff and 56 bits instead. */
export const writeCodec: Codec<WriteResult> = (() => {
  const codec = numberAndAttr<WriteResult>(
    (records, attr) => ({ records, attr }),
    r => [r.records, r.attr],
  );
  return {
    encode: codec.encode,
    decode: b =>
      b[0] === 0xff
        ? { records: Buffer.from(b.buffer, b.byteOffset, 8).readUIntBE(2, 6), attr: decodeAttr(b.subarray(8)) }
        : codec.decode(b),
  };
})();

export const copyCodec: Codec<{ copied: number; attr: Attr }> = numberAndAttr(
  (copied, attr) => ({ copied, attr }),
  r => [r.copied, r.attr],
);

/** A flag and dead slices: u8, then 12 bytes each. */
function deadCodec<K extends string>(flag: K): Codec<{ dead: DeadSlice[] } & Record<K, boolean>> {
  return {
    encode: r => Buffer.concat([Uint8Array.of(r[flag] ? 1 : 0), encodeDead(r.dead)]),
    decode: b =>
      ({ dead: decodeDead(b.subarray(1)), [flag]: b[0] === 1 }) as { dead: DeadSlice[] } & Record<K, boolean>,
  };
}

export const fileDataCodec = deadCodec('done');
export const delayedCodec = deadCodec('more');

/** 12 bytes each, big-endian: id u64, size u32. The form of the delayed list too (spec/volume.md §4.2). */
export function encodeDead(slices: readonly DeadSlice[]): Buffer {
  const b = Buffer.allocUnsafe(slices.length * 12);
  slices.forEach((s, i) => {
    b.writeUInt32BE(Math.floor(s.id / 0x100000000), i * 12);
    b.writeUInt32BE(s.id % 0x100000000, i * 12 + 4);
    b.writeUInt32BE(s.size, i * 12 + 8);
  });
  return b;
}

/** Throws RangeError when the length is no multiple of 12. */
export function decodeDead(b: Uint8Array): DeadSlice[] {
  if (b.length % 12 !== 0) throw new RangeError(`a list of delayed slices of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  return Array.from({ length: b.length / 12 }, (_, i) => ({
    id: v.getUint32(i * 12) * 0x100000000 + v.getUint32(i * 12 + 4),
    size: v.getUint32(i * 12 + 8),
  }));
}
