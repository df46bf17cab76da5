/**
 * The table of open files and directories, in the capsule: a descriptor that a program holds means the same in every process that serves
 * the mount.
 *
 * Section `vfs.handles` version 1, 64 bytes a record: state u32 @0 (1 file, 2 directory, 3 internal file; stored last), open flags u32 @4, fh
 * f64 @8, inode f64 @16, seq f64 @24 and slot u32 @32 and kind u32 @36 of the request that opened it, uid u32 @40, gid u32 @44, CRC-32 of bytes 4..47
 * u32 @48.
 */
import type { Capsule, Op, Records } from '@steadfs/fuse';
import { crc32 } from '@steadfs/fuse/crc32';
import { ENFILE } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import type { Counters } from './counters.ts';
import type { DirCursor } from './dirstreams.ts';
import type { OpenInode } from './inodes.ts';

export const HandleKind = { file: 1, directory: 2, internal: 3 } as const;
export type HandleKind = (typeof HandleKind)[keyof typeof HandleKind];

export interface Handle {
  readonly fh: number;
  readonly kind: HandleKind;
  readonly ino: Ino;
  readonly flags: number;
  readonly uid: number;
  readonly gid: number;
  readonly op: Op;
  readonly record: number;
  /** Files: shared by all handles of the inode. */
  inode: OpenInode | undefined;
  /** Directories: the listing under way. */
  cursor: DirCursor | undefined;
}

const SIZE = 64;
const CAPACITY = 1 << 20;

export class Handles {
  readonly #records: Records;
  readonly #counters: Counters;
  readonly #byFh = new Map<number, Handle>();
  /** Records of handles that were there at the start and that nobody has asked for yet, by fh: a take-over has no time to make thousands of objects. */
  readonly #untouched = new Map<number, number>();
  /** Handles that were there at the start, by the request that opened them: it may come again. Made at the first question. */
  #adopted: Map<string, number> | undefined;
  /** Completes a handle that was there at the start when it is asked for first. */
  attach: (handle: Handle) => void = () => {};
  /** Records that were not what they should be; they are left out. */
  damaged = 0;

  constructor(capsule: Capsule, counters: Counters) {
    this.#counters = counters;
    const r = capsule.records({ name: 'vfs.handles', version: 1, recordSize: SIZE, capacity: CAPACITY });
    this.#records = r;
    const { cells, bytes } = r;
    for (const record of r.live()) {
      const at = record * SIZE;
      if (cells.getUint32(at + 48) === crc32(bytes, at + 4, at + 48))
        this.#untouched.set(cells.getFloat64(at + 8), record);
      else {
        r.free(record);
        this.damaged++;
      }
    }
  }

  /** Tells of every handle that was there at the start and was not asked for yet. */
  eachAdopted(visit: (kind: HandleKind, ino: Ino, flags: number, fh: number) => void): void {
    const { cells } = this.#records;
    for (const [fh, record] of this.#untouched) {
      const at = record * SIZE;
      visit(cells.getUint32(at) as HandleKind, cells.getFloat64(at + 16), cells.getUint32(at + 4), fh);
    }
  }

  #touch(fh: number): Handle | undefined {
    const record = this.#untouched.get(fh);
    if (record === undefined) return undefined;
    const { cells } = this.#records;
    const at = record * SIZE;
    const handle: Handle = {
      fh,
      kind: cells.getUint32(at) as HandleKind,
      ino: cells.getFloat64(at + 16),
      flags: cells.getUint32(at + 4),
      uid: cells.getUint32(at + 40),
      gid: cells.getUint32(at + 44),
      op: this.#opOf(record),
      record,
      inode: undefined,
      cursor: undefined,
    };
    this.#untouched.delete(fh);
    this.#byFh.set(fh, handle);
    this.attach(handle);
    return handle;
  }

  #opOf(record: number): Op {
    const { cells } = this.#records;
    const at = record * SIZE;
    return { kind: cells.getUint32(at + 36), slot: cells.getUint32(at + 32), seq: cells.getFloat64(at + 24) };
  }

  /** Inode of a handle. */
  inoOf(fh: number): Ino | undefined {
    const record = this.#untouched.get(fh);
    return record === undefined ? this.#byFh.get(fh)?.ino : this.#records.cells.getFloat64(record * SIZE + 16);
  }

  get size(): number {
    return this.#byFh.size + this.#untouched.size;
  }

  get(fh: number): Handle | undefined {
    const handle = this.#byFh.get(fh);
    return handle === undefined && this.#untouched.size > 0 ? this.#touch(fh) : handle;
  }

  /** The handle that a request made before the process died, when it is a repeated one (`replay`). */
  madeBy(op: Op, replay = true): Handle | undefined {
    if (!replay) return undefined;
    this.#adopted ??= new Map([
      ...[...this.#untouched].map(([fh, record]) => [opKey(this.#opOf(record)), fh] as const),
      ...[...this.#byFh.values()].map(handle => [opKey(handle.op), handle.fh] as const),
    ]);
    const fh = this.#adopted.get(opKey(op));
    return fh === undefined ? undefined : this.get(fh);
  }

  /** Throws ENFILE when a million are open. */
  open(kind: HandleKind, ino: Ino, flags: number, op: Op, uid: number, gid: number): Handle {
    const r = this.#records;
    const record = r.alloc();
    if (record === undefined) throw ENFILE;
    const fh = this.#counters.nextFh();
    const at = r.offsetOf(record);
    const v = r.view;
    v.setUint32(at + 4, flags, true);
    v.setFloat64(at + 8, fh, true);
    v.setFloat64(at + 16, ino, true);
    v.setFloat64(at + 24, op.seq, true);
    v.setUint32(at + 32, op.slot, true);
    v.setUint32(at + 36, op.kind, true);
    v.setUint32(at + 40, uid, true);
    v.setUint32(at + 44, gid, true);
    v.setUint32(at + 48, crc32(r.bytes.subarray(at + 4, at + 48)), true);
    r.setState(record, kind);
    const handle: Handle = { fh, kind, ino, flags, uid, gid, op, record, inode: undefined, cursor: undefined };
    this.#byFh.set(fh, handle);
    return handle;
  }

  close(handle: Handle): void {
    if (!this.#byFh.delete(handle.fh)) return;
    this.#records.free(handle.record);
    this.#adopted?.delete(opKey(handle.op));
  }
}

function opKey(op: Op): string {
  return `${op.kind}.${op.slot}.${op.seq}`;
}
