/** Slice records (spec/volume.md §4): what a chunk's content is made of. */

/** 64 MiB */
export const CHUNK_SIZE = 64 * 1024 * 1024;
export const SLICE_BYTES = 24;

/** One 24-byte record. `id` 0 is a hole. Ids are safe integers (they count up from 1). */
export interface Slice {
  /** Offset inside the chunk. */
  pos: number;
  id: number;
  /** Size of the whole slice object (all its blocks). */
  size: number;
  /** Where in the slice object this record's bytes begin. */
  off: number;
  len: number;
}

export function encodeSlices(slices: readonly Slice[]): Buffer {
  const b = Buffer.allocUnsafe(slices.length * SLICE_BYTES);
  let at = 0;
  for (const s of slices) {
    b.writeUInt32BE(s.pos, at);
    b.writeUInt32BE(Math.floor(s.id / 0x100000000), at + 4);
    b.writeUInt32BE(s.id % 0x100000000, at + 8);
    b.writeUInt32BE(s.size, at + 12);
    b.writeUInt32BE(s.off, at + 16);
    b.writeUInt32BE(s.len, at + 20);
    at += SLICE_BYTES;
  }
  return b;
}

/** Throws RangeError when the length is no multiple of 24. */
export function decodeSlices(b: Uint8Array): Slice[] {
  if (b.length % SLICE_BYTES !== 0) throw new RangeError(`a slice list of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const slices: Slice[] = [];
  for (let at = 0; at < b.length; at += SLICE_BYTES) {
    slices.push({
      pos: v.getUint32(at),
      id: v.getUint32(at + 4) * 0x100000000 + v.getUint32(at + 8),
      size: v.getUint32(at + 12),
      off: v.getUint32(at + 16),
      len: v.getUint32(at + 20),
    });
  }
  return slices;
}
