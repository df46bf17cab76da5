/**
 * Numbers that must never come twice while the mount lives.
 *
 * Section `vfs.counters` version 1, one record of 64 bytes: state u32 @0 (1), next file handle f64 @8, next seq of background work f64 @16.
 * Each is one aligned store, made before the number is used.
 */
import type { Capsule } from '@steadfs/fuse';
import { type Op, OpKind } from '../meta/engine.ts';

export class Counters {
  readonly #cells: Float64Array;

  constructor(capsule: Capsule) {
    const records = capsule.records({ name: 'vfs.counters', version: 1, recordSize: 64, capacity: 1 });
    this.#cells = new Float64Array(records.bytes.buffer, records.bytes.byteOffset + records.offsetOf(0), 8);
    if (records.state(0) === 0) {
      this.#cells[1] = 1;
      this.#cells[2] = 1;
      if (records.alloc() !== 0) throw new Error('the counters of the capsule are in use');
      records.setState(0, 1);
    }
  }

  #next(cell: number): number {
    const n = this.#cells[cell]!;
    this.#cells[cell] = n + 1;
    return n;
  }

  nextFh(): number {
    return this.#next(1);
  }

  /** A seq that is greater than every one before, so that it serves any slot. */
  nextSeq(): number {
    return this.#next(2);
  }

  /** A new operation of background work in `slot`; only one of a slot may be under way. */
  jobOp(slot: number): Op {
    return { kind: OpKind.job, slot, seq: this.nextSeq() };
  }
}

/**
 * A request's further mutations. Each has an identity of its own that a repeated request makes again: kind 16·n + the request's, same
 * slot, same seq. n counts from 1.
 */
export function step(op: Op, n: number): Op {
  return { kind: 16 * n + op.kind, slot: op.slot, seq: op.seq };
}
