/**
 * Byte strings of any length that belong to an open file and outlive the process: what a directory stream remembers, requests and
 * results of control files. One capsule section of small parts; an item is a run of parts of which the last is marked.
 *
 * Section `vfs.items` version 1, 256 bytes a record: state u32 @0 (1 a part, 2 the last part of its item; stored last), length of the bytes u32 @4, owner
 * (fh) f64 @8, number of the part in the order of its owner f64 @16, bytes @24.
 */
import type { Capsule, Records } from '@steadfs/fuse';
import { ENOMEM } from '@steadfs/fuse/errno';

const SIZE = 256;
const AT = 24;
const ROOM = SIZE - AT;
const PART = 1;
const LAST = 2;

export class Items {
  readonly #records: Records;
  /** Record indexes by owner, in order. */
  readonly #parts = new Map<number, number[]>();

  constructor(capsule: Capsule) {
    this.#records = capsule.records({ name: 'vfs.items', version: 1, recordSize: SIZE, capacity: 1 << 18 });
    const { view } = this.#records;
    for (const index of this.#records.live()) {
      const owner = view.getFloat64(this.#records.offsetOf(index) + 8, true);
      const list = this.#parts.get(owner);
      if (list === undefined) this.#parts.set(owner, [index]);
      else list.push(index);
    }
    const number = (index: number) => view.getFloat64(this.#records.offsetOf(index) + 16, true);
    for (const list of this.#parts.values()) {
      list.sort((a, b) => number(a) - number(b));
      // An item whose last part is missing was never complete.
      while (list.length > 0 && this.#records.state(list.at(-1)!) !== LAST) this.#records.free(list.pop()!);
    }
  }

  owners(): Iterable<number> {
    return this.#parts.keys();
  }

  /** The owner's items in the order in which they were appended, copied. */
  load(owner: number): Uint8Array[] {
    const items: Uint8Array[] = [];
    let parts: Uint8Array[] = [];
    for (const index of this.#parts.get(owner) ?? []) {
      const at = this.#records.offsetOf(index);
      const length = this.#records.view.getUint32(at + 4, true);
      parts.push(this.#records.bytes.subarray(at + AT, at + AT + length));
      if (this.#records.state(index) !== LAST) continue;
      items.push(Buffer.concat(parts));
      parts = [];
    }
    return items;
  }

  /** Throws ENOMEM, without effect, when the section is full. */
  append(owner: number, item: Uint8Array): void {
    const list = this.#parts.get(owner) ?? [];
    const { view, bytes } = this.#records;
    const added: number[] = [];
    let number = 0;
    const before = list.at(-1);
    if (before !== undefined) number = view.getFloat64(this.#records.offsetOf(before) + 16, true) + 1;
    for (let from = 0; from === 0 || from < item.length; from += ROOM) {
      const index = this.#records.alloc();
      if (index === undefined) {
        for (const a of added) this.#records.free(a);
        throw ENOMEM.because('the capsule has no room for what an open file must remember');
      }
      added.push(index);
      const at = this.#records.offsetOf(index);
      const part = item.subarray(from, from + ROOM);
      view.setUint32(at + 4, part.length, true);
      view.setFloat64(at + 8, owner, true);
      view.setFloat64(at + 16, number++, true);
      bytes.set(part, at + AT);
      if (from + ROOM < item.length) this.#records.setState(index, PART);
    }
    this.#records.setState(added.at(-1)!, LAST);
    for (const a of added) list.push(a);
    this.#parts.set(owner, list);
  }

  clear(owner: number): void {
    const list = this.#parts.get(owner);
    if (list === undefined) return;
    this.#parts.delete(owner);
    // From the end: what a kill leaves is a shorter list of whole items.
    for (let i = list.length - 1; i >= 0; i--) this.#records.free(list[i]!);
  }
}
