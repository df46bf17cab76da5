/** POSIX lock records (spec/volume.md §8): 24 bytes big-endian `type u32 | pid u32 | start u64 | end u64`, end inclusive. */

/** F_RDLCK, F_WRLCK, F_UNLCK of Linux. */
export const LockType = { read: 0, write: 1, unlock: 2 } as const;
/** End of a lock that reaches to the end of the file. */
export const LOCK_EOF = 0x7fffffffffffffffn;
const LOCK_BYTES = 24;

export interface LockRecord {
  type: number;
  pid: number;
  start: bigint;
  end: bigint;
}

export function encodeLocks(records: readonly LockRecord[]): Buffer {
  const b = Buffer.allocUnsafe(records.length * LOCK_BYTES);
  let at = 0;
  for (const r of records) {
    b.writeUInt32BE(r.type, at);
    b.writeUInt32BE(r.pid >>> 0, at + 4);
    b.writeBigUInt64BE(r.start, at + 8);
    b.writeBigUInt64BE(r.end, at + 16);
    at += LOCK_BYTES;
  }
  return b;
}

/** Throws RangeError when the length is no multiple of 24. */
export function decodeLocks(b: Uint8Array): LockRecord[] {
  if (b.length % LOCK_BYTES !== 0) throw new RangeError(`a lock list of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const records: LockRecord[] = [];
  for (let at = 0; at < b.length; at += LOCK_BYTES) {
    records.push({
      type: v.getUint32(at),
      pid: v.getUint32(at + 4),
      start: v.getBigUint64(at + 8),
      end: v.getBigUint64(at + 16),
    });
  }
  return records;
}

/** Puts `lock` over the owner's sorted, disjoint records: unlocks cut, equal neighbours join. The inputs stay as they are. */
export function updateLocks(records: readonly LockRecord[], lock: LockRecord): LockRecord[] {
  const parts: LockRecord[] = [];
  for (const r of records) {
    if (r.end < lock.start || r.start > lock.end) {
      parts.push({ ...r });
      continue;
    }
    if (r.start < lock.start) parts.push({ ...r, end: lock.start - 1n });
    if (r.end > lock.end) parts.push({ ...r, start: lock.end + 1n });
  }
  if (lock.type !== LockType.unlock) parts.push({ ...lock });
  parts.sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  const merged: LockRecord[] = [];
  for (const p of parts) {
    const last = merged.at(-1);
    if (last !== undefined && last.type === p.type && last.pid === p.pid && last.end + 1n === p.start) last.end = p.end;
    else merged.push(p);
  }
  return merged;
}

/** The first record of another owner that keeps `lock` from being granted. */
export function findConflict(records: readonly LockRecord[], lock: LockRecord): LockRecord | undefined {
  if (lock.type === LockType.unlock) return undefined;
  return records.find(
    r => r.start <= lock.end && lock.start <= r.end && (r.type === LockType.write || lock.type === LockType.write),
  );
}
