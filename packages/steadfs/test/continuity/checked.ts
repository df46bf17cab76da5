/** What the programs of the storm have in common: how they say what went wrong, and bytes that can be recognised. */
import * as c from '../support/libc.ts';

export interface Program {
  step(): void | Promise<void>;
  verify(): void | Promise<void>;
  /** ms of rest between steps. */
  rest: number;
}

export interface Setting {
  dir: string;
  seed: number;
  /** Number of this instance of its kind, and a directory that all instances of the kind share. */
  instance: number;
  shared: string;
  /** A call that failed, or an answer that is wrong. */
  fault(kind: 'failed' | 'wrong', text: string): void;
  /** Calls made. */
  count(n?: number): void;
  /** Something else that was done and is to be told: mutations, transactions, slow reads … */
  did(what: string, n?: number): void;
  /** Directory of the volume's objects, where it is a directory. */
  objects: string;
  /** Whether the storm is a long one. */
  full: boolean;
  /** A call that took long: begin and length in ms of the monotonic clock. */
  slow(begin: number, length: number): void;
}

/** ms of the monotonic clock, which all processes share. */
export const now = (): number => Number(process.hrtime.bigint() / 1000n) / 1000;

/** Bytes that say where they belong: a word of (salt, position / 8) each 8 bytes. */
export function stamp(bytes: Buffer, salt: number, at: number): Buffer {
  for (let i = 0; i < bytes.length; i++) {
    const p = at + i;
    const word = Math.imul((p >>> 3) + salt * 40503 + 1, 2654435761) >>> 0;
    bytes[i] = (word >>> ((p & 3) * 8)) & 255;
  }
  return bytes;
}

export function opener({ fault, count }: Setting) {
  /** The result, which must not be an error. */
  const must = (what: string, result: number): number => {
    count();
    if (result < 0) fault('failed', `${what}: ${c.resultName(result)}`);
    return result;
  };
  /** The result, which must be this one. */
  const expect = (what: string, result: number, wanted: number): void => {
    count();
    if (result === wanted) return;
    fault(
      result < 0 && wanted >= 0 ? 'failed' : 'wrong',
      `${what}: ${c.resultName(result)} in place of ${c.resultName(wanted)}`,
    );
  };
  return { must, expect };
}

export function firstDifference(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return -1;
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i;
  return -1;
}
