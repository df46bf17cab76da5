/**
 * What outlives the process: the capsule (small typed records) and the arena (pages of data), two sparse memfds kept beside
 * the /dev/fuse fd. Pages that were never touched cost nothing, so sections have a fixed place and a generous maximum, and the
 * set of fds never changes. capsule.ts implements this; sections of the connection are in slots.ts and its neighbours, a
 * file system adds its own.
 *
 * Writing: kill -9 can strike between any two stores, never inside an aligned one of 4 or 8 bytes. A record is filled first
 * and its state word (bytes 0..3) stored last; state 0 = free. Immutable parts carry a CRC-32.
 */

/** Fixed-size records with a state word, in one section. Indexes are stable. */
/** Numbers of a section, little endian; `at` is in bytes and aligned. Each change is one store, never seen in part. */
export interface Cells {
  getUint32(at: number): number;
  setUint32(at: number, value: number): void;
  getFloat64(at: number): number;
  setFloat64(at: number, value: number): void;
}

export interface Records {
  readonly name: string;
  readonly version: number;
  readonly recordSize: number;
  readonly capacity: number;
  /** The whole section's records: record i is at offsetOf(i). */
  readonly view: DataView;
  readonly bytes: Uint8Array;
  /** For what changes in a published record: the stores of a DataView go byte by byte until V8 optimises them, and a kill leaves half of one. */
  readonly cells: Cells;
  offsetOf(index: number): number;
  /** Index of a free record (state 0, contents undefined), now reserved in this process only; undefined when the section is full. */
  alloc(): number | undefined;
  state(index: number): number;
  /** Publishes the record: an atomic store of the state word after everything else. */
  setState(index: number, state: number): void;
  /** setState(0) and makes the index available again. */
  free(index: number): void;
  /** Indexes whose state is not 0, ascending. */
  live(): Iterable<number>;
}

export interface SectionSpec {
  name: string;
  /** Layout version; a greater one than this code knows makes the capsule refused, a lower one is handed to the `migrate` of {@link Capsule.records}. */
  version: number;
  /** Bytes, a multiple of 8. */
  recordSize: number;
  capacity: number;
}

export interface Capsule {
  /** True when it was created by this process, false when adopted. */
  readonly fresh: boolean;
  /**
   * Opens the section, creates it in a fresh capsule (or when an older version had none). `migrate` fills a section of this version from one of a lower
   * version (repeatable: a kill in the middle begins anew with an empty `to`); without it a lower version is refused.
   */
  records(spec: SectionSpec, migrate?: (from: Records, to: Records) => void): Records;
  /** One variable-length value, replaced atomically (two copies, a selector word). At most `max` bytes. */
  blob(name: string, max: number): Blob;
  /**
   * A blob that a version may do without: one that does not know it can adopt the capsule all the same (a downgrade), and what it said before is gone when a
   * version that knows it comes back. Also gone when a process died before it opened it.
   */
  hint(name: string, max: number): Blob;
  readonly arena: Arena;
}

export interface Blob {
  /** A copy, or undefined when never set. Throws when the checksum of the selected copy is wrong. */
  get(): Uint8Array | undefined;
  set(value: Uint8Array): void;
}

/**
 * Page allocator over the arena memfd. Which runs are in use is not stored here: after an adoption every owner claims its runs
 * (extents, parked writes) from its own records; what nobody claims is free.
 */
export interface Arena {
  /** Bytes, a multiple of 4096. */
  readonly size: number;
  readonly bytes: Uint8Array;
  /** Address of byte 0, for iovecs. */
  readonly address: bigint;
  /** Bytes allocated now. */
  readonly used: number;
  /** Contiguous pages for `length` bytes, populated; undefined when there is no such run. `near`: the run should begin there (the end of another run), if it can. */
  alloc(length: number, near?: number): number | undefined;
  /** Like alloc, of memory that needs no populating, where the pages lie that were freed last; undefined: there is none. */
  allocPresent(length: number): number | undefined;
  /** Makes the run longer in place: true when the pages behind it were free (with `present`: and need no populating) and are now part of it. */
  extend(offset: number, length: number, newLength: number, present?: boolean): boolean;
  free(offset: number, length: number): void;
  /** At adoption: marks the run used; throws when it overlaps one that is. */
  claim(offset: number, length: number): void;
  /** Gives pages that were free for long back to the system (MADV_REMOVE). */
  trim(): void;
  /** Set by whoever keeps in the arena what can be had again (caches): frees about that many bytes, false when there is nothing to be freed. Asked before requests are left unread. */
  makeRoom?: (bytes: number) => boolean;
}
