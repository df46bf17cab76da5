/**
 * Which attributes of a file the kernel was given last, as far as it fits: an open whose attributes are others must take the kernel's away, as
 * neither its reply nor dropping the pages does so, and a read ends at the length that the kernel knows.
 */
import type { Attr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';

/** Inodes that are SLOTS apart share a place, and the later one has it. */
const SLOTS = 8192;
const FIELDS = 4;

export class Told {
  readonly #slots = new Float64Array(SLOTS * FIELDS);

  /** The kernel gets these now. */
  set(ino: Ino, attr: Attr): void {
    const at = (ino % SLOTS) * FIELDS;
    const slots = this.#slots;
    slots[at] = ino;
    slots[at + 1] = attr.length;
    slots[at + 2] = attr.ctime;
    slots[at + 3] = attr.ctimensec;
  }

  /** Whether it has the same, or none that it still uses. False when that is not known. */
  has(ino: Ino, attr: Attr): boolean {
    const at = (ino % SLOTS) * FIELDS;
    const slots = this.#slots;
    return (
      slots[at] === ino &&
      slots[at + 1] === attr.length &&
      slots[at + 2] === attr.ctime &&
      slots[at + 3] === attr.ctimensec
    );
  }
}
