/** Change-log records (spec/meta-redis.md §9): `sec.nnnnnnnnn|OP(args)[:result]|(sid,txnid)`. */
import { type Ino, inoToString } from '../../format/ino.ts';
import type { Body, Tx } from './tx.ts';

let counter = 0;

/** %XX for bytes below 32, from 127 up, and for , % ( ) " \ */
function escapeLog(bytes: Uint8Array): string {
  let out = '';
  for (const b of bytes) {
    const plain = b >= 32 && b < 127 && b !== 44 && b !== 37 && b !== 40 && b !== 41 && b !== 34 && b !== 92;
    out += plain ? String.fromCharCode(b) : `%${b.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return out;
}

type Arg = number | string | boolean | bigint | Uint8Array;

/** An inode as an argument (numbers above 2^52 are ours). */
export function inoArg(ino: Ino): string {
  return inoToString(ino);
}

/** Writes the record when the volume has a change log. `args` is only called then. Strings go in as they are, bytes escaped. */
export function* logChange(tx: Tx, op: string, args: () => readonly Arg[], result?: number | string): Body<void> {
  if (!tx.volume.format.ChangeLog) return;
  const list = args().map(a => (a instanceof Uint8Array ? escapeLog(a) : String(a)));
  const nsec = String(tx.now.nsec).padStart(9, '0');
  const tail = result === undefined ? '' : `:${result}`;
  yield* tx.log(`${tx.now.sec}.${nsec}|${op}(${list.join(',')})${tail}|(${tx.volume.sid},${++counter})`);
}
