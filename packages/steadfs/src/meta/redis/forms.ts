/** Values as they travel: numbers and inodes as bytes, entries as scripts answer them, replies of a known kind. */
import { EIO, ENOSPC, type Errno } from '@steadfs/fuse/errno';
import { decodeAttr } from '../../format/attr.ts';
import { type Ino, inoFromHalves, inoHigh, inoLow } from '../../format/ino.ts';
import type { Entry, Removed } from '../engine.ts';
import { shown } from '../ops/access.ts';
import { type Reply, ReplyError } from './resp.ts';

/** 8 bytes, big-endian. */
export function ino8(ino: Ino): Buffer {
  const b = Buffer.allocUnsafe(8);
  b.writeUInt32BE(inoHigh(ino), 0);
  b.writeUInt32BE(inoLow(ino), 4);
  return b;
}

export function u64(n: number): Buffer {
  const b = Buffer.allocUnsafe(8);
  b.writeUInt32BE(Math.floor(n / 0x100000000), 0);
  b.writeUInt32BE(n % 0x100000000, 4);
  return b;
}

export function u32(...numbers: number[]): Buffer {
  const b = Buffer.allocUnsafe(numbers.length * 4);
  numbers.forEach((n, i) => {
    b.writeUInt32BE(n, i * 4);
  });
  return b;
}

export function readIno(b: Uint8Array, at: number): Ino {
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  return inoFromHalves(v.getUint32(at), v.getUint32(at + 4));
}

/** An entry as scripts answer it: inode u64, links in the trash u16, length u8, attributes. */
export function readEntry(b: Buffer, at: number): { entry: Entry; next: number } {
  const next = at + 11 + b[at + 10]!;
  return {
    entry: { ino: readIno(b, at), attr: shown(decodeAttr(b.subarray(at + 11, next)), b.readUInt16BE(at + 8)) },
    next,
  };
}

const STATES = ['kept', 'trash', 'sustained', 'deleted', 'gone'] as const;

export function readRemoved(b: Buffer, at: number): { removed: Removed; next: number } {
  const { entry, next } = readEntry(b, at + 1);
  return { removed: { ...entry, state: STATES[b[at]!]! }, next };
}

export function latin(name: Uint8Array): string {
  return Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');
}

export function asBuffer(r: Reply | undefined): Buffer {
  if (Buffer.isBuffer(r)) return r;
  if (typeof r === 'string') return Buffer.from(r);
  throw EIO.because(`a reply of another kind than expected (${r === null ? 'nil' : typeof r})`);
}

export function asList(r: Reply | undefined): Reply[] {
  if (Array.isArray(r)) return r;
  throw EIO.because('a reply of another kind than expected');
}

export function asNumber(r: Reply | undefined): number {
  return typeof r === 'number' ? r : r === null || r === undefined ? 0 : Number(asBuffer(r).toString());
}

/** Errors of the server and the connection as the programs see them. */
export function errnoFor(e: unknown, what: string): Errno {
  if (e instanceof ReplyError) {
    if (e.kind === 'OOM') return ENOSPC.because(`${what}: ${e.message}`);
    // An ACL without scripts, or commands that were renamed away.
    if (/^(NOPERM|ERR unknown command)\b.*\beval/i.test(e.message))
      return EIO.because(
        `the server refuses scripts (${e.message}); every change is one: the user needs EVALSHA and EVAL (ACL category @scripting)`,
      );
    return EIO.because(`${what}: ${e.message}`);
  }
  return EIO.because(`${what}: ${e instanceof Error ? e.message : String(e)}`, e);
}
