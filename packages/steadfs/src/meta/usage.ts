/** Changes of usage that op records hold until they are flushed into the volume's tables (exactly once: in the records' own transactions). */
import type { Quotas } from './ops/quota.ts';
import { Usage, type UsageKind } from './ops/tx.ts';

export interface Delta {
  kind: UsageKind;
  /** Directory inode, uid or gid; 0 for the volume. */
  key: number;
  length: number;
  space: number;
  inodes: number;
}

const DELTA_BYTES = 33;

export function addDelta(list: Delta[], d: Delta): void {
  const found = list.find(x => x.kind === d.kind && x.key === d.key);
  if (found === undefined) list.push({ ...d });
  else {
    found.length += d.length;
    found.space += d.space;
    found.inodes += d.inodes;
  }
}

/** Counts a change to the numbers in memory. `unlimited`: users and groups are counted from their first file on, also without a limit. */
export function countUsage(q: Quotas, d: Delta, unlimited: boolean): void {
  if (d.kind === Usage.volume) {
    q.usedSpace += d.space;
    q.usedInodes += d.inodes;
    return;
  }
  const map =
    d.kind === Usage.dirQuota
      ? q.dirs
      : d.kind === Usage.user
        ? q.users
        : d.kind === Usage.group
          ? q.groups
          : undefined;
  let quota = map?.get(d.key);
  if (quota === undefined && unlimited && map !== undefined && d.kind !== Usage.dirQuota) {
    quota = { maxSpace: -1, maxInodes: -1, usedSpace: 0, usedInodes: 0 };
    map.set(d.key, quota);
  }
  if (quota === undefined) return;
  quota.usedSpace += d.space;
  quota.usedInodes += d.inodes;
}

/** 33 bytes each: kind u8, then key, length, space, inodes as big-endian doubles (all safe integers). */
export function encodeDeltas(list: readonly Delta[]): Buffer {
  const b = Buffer.allocUnsafe(list.length * DELTA_BYTES);
  let at = 0;
  for (const d of list) {
    b[at] = d.kind;
    b.writeDoubleBE(d.key, at + 1);
    b.writeDoubleBE(d.length, at + 9);
    b.writeDoubleBE(d.space, at + 17);
    b.writeDoubleBE(d.inodes, at + 25);
    at += DELTA_BYTES;
  }
  return b;
}

/** Throws RangeError when the length is no multiple of 33. */
export function decodeDeltas(b: Uint8Array): Delta[] {
  if (b.length % DELTA_BYTES !== 0) throw new RangeError(`a usage record of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  return Array.from({ length: b.length / DELTA_BYTES }, (_, i) => ({
    kind: v.getUint8(i * DELTA_BYTES) as UsageKind,
    key: v.getFloat64(i * DELTA_BYTES + 1),
    length: v.getFloat64(i * DELTA_BYTES + 9),
    space: v.getFloat64(i * DELTA_BYTES + 17),
    inodes: v.getFloat64(i * DELTA_BYTES + 25),
  }));
}
