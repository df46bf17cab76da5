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

/** One piece of a chunk's content: `id` 0 reads as zeros. Same meaning as {@link Slice}; pieces do not overlap and leave no gap. */
export type Piece = Slice;

export function hole(pos: number, len: number): Slice {
  return { pos, id: 0, size: 0, off: 0, len };
}

/** The hole record of each chunk that the byte range [from, to) touches, as [index, record]. Meant for short ranges. */
export function* holesOf(from: number, to: number): Generator<[index: number, record: Slice]> {
  for (let at = from; at < to; ) {
    const index = Math.floor(at / CHUNK_SIZE);
    const pos = at - index * CHUNK_SIZE;
    const len = Math.min(CHUNK_SIZE - pos, to - at);
    yield [index, hole(pos, len)];
    at += len;
  }
}

/**
 * Overlays records in commit order (spec/volume.md §4): a later one replaces what it overlaps of earlier ones. Answers the pieces in order of
 * position from offset 0, gaps as holes, up to the end of the last record. Zero-length records count for nothing.
 */
export function buildSlices(records: readonly Slice[]): Piece[] {
  // From the newest to the oldest: each record fills only what is still uncovered. `covered` is kept sorted and disjoint.
  let covered: Piece[] = [];
  for (let i = records.length - 1; i >= 0; i--) {
    const r = records[i]!;
    if (r.len === 0) continue;
    const end = r.pos + r.len;
    let low = 0;
    for (let high = covered.length; low < high; ) {
      const middle = (low + high) >> 1;
      const c = covered[middle]!;
      if (c.pos + c.len <= r.pos) low = middle + 1;
      else high = middle;
    }
    const added: Piece[] = [];
    let at = r.pos;
    let next = low;
    while (at < end) {
      const c = covered[next];
      const stop = c === undefined ? end : Math.min(end, c.pos);
      if (at < stop)
        added.push({ pos: at, id: r.id, size: r.size, off: r.id === 0 ? 0 : r.off + at - r.pos, len: stop - at });
      if (c === undefined || c.pos >= end) break;
      added.push(c);
      at = c.pos + c.len;
      next++;
    }
    if (low === 0 && next === covered.length) covered = added;
    else covered.splice(low, next - low, ...added);
  }
  const pieces: Piece[] = [];
  let at = 0;
  for (const p of covered) {
    if (p.pos > at) pieces.push(hole(at, p.pos - at));
    pieces.push(p);
    at = p.pos + p.len;
  }
  return pieces;
}

/** The part [from, to) of built pieces (positions unchanged); bytes beyond the last piece are a hole. */
export function clipPieces(pieces: readonly Piece[], from: number, to: number): Piece[] {
  const out: Piece[] = [];
  let at = from;
  for (const p of pieces) {
    const start = Math.max(p.pos, from);
    const end = Math.min(p.pos + p.len, to);
    if (start >= end) continue;
    out.push({ pos: start, id: p.id, size: p.size, off: p.id === 0 ? 0 : p.off + start - p.pos, len: end - start });
    at = end;
  }
  if (at < to) out.push(hole(at, to - at));
  return out;
}
