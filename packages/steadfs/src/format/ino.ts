/**
 * Inode numbers as JavaScript numbers. The format has 64 bits: ordinary inodes count up from 1 (far below 2^52), and the internal
 * ones start at 0x7FFFFFFF00000000 (spec/volume.md §2: internal files, trash). Inside Steadfs an `Ino` is a safe integer:
 * ordinary inodes are themselves, an internal one is 2^52 + (value - 0x7FFFFFFF00000000). Only the edges (databases, wire formats,
 * st_ino) convert. An Ino is also the FUSE node id.
 */
export type Ino = number;

export const ROOT: Ino = 1;
/** 2^52: everything from here up is internal or trash. */
export const SPECIAL: Ino = 2 ** 52;
export const ACCESSLOG_INO: Ino = SPECIAL + 1;
export const CONTROL_INO: Ino = SPECIAL + 2;
export const STATS_INO: Ino = SPECIAL + 3;
export const CONFIG_INO: Ino = SPECIAL + 4;
/** .trash; hourly folder n is TRASH + n. */
export const TRASH: Ino = SPECIAL + 0x10000000;

const SPECIAL_STORED = 0x7fffffff00000000n;
const SPECIAL_HIGH = 0x7fffffff;

/** True for .trash and its hourly folders. */
export function isTrash(ino: Ino): boolean {
  return ino >= TRASH;
}

/** The 64-bit number of the format. */
export function inoToBigint(ino: Ino): bigint {
  return ino < SPECIAL ? BigInt(ino) : SPECIAL_STORED + BigInt(ino - SPECIAL);
}

/** From the 64-bit number of the format. Throws RangeError for numbers that are neither ordinary nor internal. */
export function inoFromBigint(stored: bigint): Ino {
  return inoFromHalves(Number(stored >> 32n), Number(stored & 0xffffffffn));
}

/** From the high and low 32 bits (unsigned). */
export function inoFromHalves(high: number, low: number): Ino {
  if (high === SPECIAL_HIGH) return SPECIAL + low;
  if (high >= 0x100000 || high < 0)
    throw new RangeError(`inode 0x${high.toString(16)}:${low.toString(16)} is out of range`);
  return high * 0x100000000 + low;
}

export function inoHigh(ino: Ino): number {
  return ino < SPECIAL ? Math.floor(ino / 0x100000000) : SPECIAL_HIGH;
}

export function inoLow(ino: Ino): number {
  return ino < SPECIAL ? ino % 0x100000000 : ino - SPECIAL;
}

/** For st_ino: a number where it is safe, else a bigint. */
export function inoForStat(ino: Ino): number | bigint {
  return ino < SPECIAL ? ino : inoToBigint(ino);
}

/** Decimal form of the format, as it stands in key names and messages. */
export function inoToString(ino: Ino): string {
  return ino < SPECIAL ? String(ino) : inoToBigint(ino).toString();
}
