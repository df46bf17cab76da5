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
  /** Handles that were there at the start, by the request that opened them: it may come again. */
  readonly #adopted = new Map<string, Handle>();
  /** Records that were not what they should be; they are left out. */
  damaged = 0;

  constructor(capsule: Capsule, counters: Counters) {
    this.#counters = counters;
    const r = capsule.records({ name: 'vfs.handles', version: 1, recordSize: SIZE, capacity: CAPACITY });
    this.#records = r;
    for (const record of [...r.live()]) {
      const at = r.offsetOf(record);
      const v = r.view;
      if (v.getUint32(at + 48, true) !== crc32(r.bytes.subarray(at + 4, at + 48))) {
        r.free(record);
        this.damaged++;
        continue;
      }
      const handle: Handle = {
        fh: v.getFloat64(at + 8, true),
        kind: r.state(record) as HandleKind,
        ino: v.getFloat64(at + 16, true),
        flags: v.getUint32(at + 4, true),
        uid: v.getUint32(at + 40, true),
        gid: v.getUint32(at + 44, true),
        op: { kind: v.getUint32(at + 36, true), slot: v.getUint32(at + 32, true), seq: v.getFloat64(at + 24, true) },
        record,
        inode: undefined,
        cursor: undefined,
      };
      this.#byFh.set(handle.fh, handle);
      this.#adopted.set(opKey(handle.op), handle);
    }
  }

  get size(): number {
    return this.#byFh.size;
  }

  values(): Iterable<Handle> {
    return this.#byFh.values();
  }

  get(fh: number): Handle | undefined {
    return this.#byFh.get(fh);
  }

  /** The handle that a repeated request made before the process died. */
  madeBy(op: Op): Handle | undefined {
    if (this.#adopted.size === 0) return undefined;
    const handle = this.#adopted.get(opKey(op));
    return handle !== undefined && this.#byFh.get(handle.fh) === handle ? handle : undefined;
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
    if (this.#adopted.size > 0) this.#adopted.delete(opKey(handle.op));
  }
}

function opKey(op: Op): string {
  return `${op.kind}.${op.slot}.${op.seq}`;
}
