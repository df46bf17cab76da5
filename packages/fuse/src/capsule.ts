/**
 * The capsule and the arena (capsule-types.ts) over two sparse memfds.
 *
 * `steadfs-capsule`, all numbers little endian:
 *
 *     page 0        header, immutable after creation
 *       0  u64      magic "STEADCAP"
 *       8  u32      layout version of this page and the directory (1)
 *      12  u32      CRC-32 of bytes 16..63
 *      16  16 bytes random id of the capsule
 *      32  u64      bytes of the capsule memfd
 *      40  u64      bytes of the arena memfd at creation (it may have grown since: fstat tells)
 *      48  u64      creation, milliseconds since 1970
 *      56  u32      entries of the directory
 *      60  u32      bytes of a directory entry (128)
 *      64  u32      complete: 1, stored last
 *      68  u32      adoptions: how often the capsule was opened for serving (mutable)
 *     pages 1..8    section directory, 256 entries of 128 bytes
 *       0  u32      state: 0 free, 1 valid, 2 retired (replaced by a migrated one); stored last
 *       4  u32      CRC-32 of bytes 8..119
 *       8  u32      kind: 1 records, 2 blob, 3 hint (a blob that a version may do without)
 *      12  u32      layout version of the section's records
 *      16  u64      record size (blob: the greatest length)
 *      24  u64      capacity (blob: 1)
 *      32  u64      offset of the section, a multiple of 4096
 *      40  u64      length of its range
 *      48  u8 + 71  length of the name, name (UTF-8)
 *     120  u32      records: no record at or behind this index was ever used (mutable, grows; stored before a record is published)
 *     then          the sections' ranges, one behind the other. Pages never touched cost nothing.
 *
 * A blob's range: u32 selector (0 unset, 1, 2) at 0; of a hint, u32 at 4: the adoption in which it was opened last; its copies at 64 and at 64 + 8 + max rounded up to 8, each u32 length, u32 CRC-32, bytes. The copy that is
 * not selected is written, then the selector stored.
 *
 * Exclusion (design: exactly one server): {@link lockCapsule} takes a per-process fcntl write lock on the memfd before anything else. The kernel drops such a
 * lock as soon as the process closes *any* fd of the inode, so nothing here or elsewhere may duplicate and close the capsule's fd in the serving process.
 */

import { randomFillSync } from 'node:crypto';
import { fstatSync } from 'node:fs';
import { type ArenaTables, arenaTables, createArena } from './arena.ts';
import type { Arena, Blob, Capsule, Cells, Records, SectionSpec } from './capsule-types.ts';
import { crc32 } from './crc32.ts';
import { faultPoint } from './fault.ts';
import {
  ftruncate,
  lockHolder,
  MADV_DONTDUMP,
  type Memory,
  madvise,
  mapAddress,
  mapFd,
  memfdCreate,
  mlockOnFault,
  tryLock,
  unmap,
  viewOf,
} from './sys.ts';

const MAGIC = 0x5041_4344_4145_5453n; // "STEADCAP"
const LAYOUT = 1;
const DIRECTORY = 4096;
const ENTRIES = 256;
const ENTRY = 128;
const FIRST_SECTION = DIRECTORY + ENTRIES * ENTRY;
const KIND_RECORDS = 1;
const KIND_BLOB = 2;
const KIND_HINT = 3;
const KINDS = { [KIND_RECORDS]: 'records', [KIND_BLOB]: 'blob', [KIND_HINT]: 'hint' } as const;
/** Place of the number of adoptions. */
const ADOPTIONS = 68;
/** Ends the name of a section that is being filled. */
const TEMPORARY = ' (new)';
const FREE = 0;
const VALID = 1;
const RETIRED = 2;

/** 64 GiB of address space; only what is used takes memory. */
const CAPSULE_BYTES = 2 ** 36;

export type CapsuleFault =
  /** Not a capsule of ours. */
  | 'foreign'
  /** A checksum or a bound is wrong, or it was never completed. */
  | 'damaged'
  /** Written by a newer version in a layout that this one does not know. */
  | 'newer'
  /** Another process serves it. */
  | 'locked'
  /** No room for a section. */
  | 'full';

/** Why a capsule is not used. It was not changed. */
export class CapsuleError extends Error {
  readonly fault: CapsuleFault;
  constructor(fault: CapsuleFault, message: string) {
    super(message);
    this.name = 'CapsuleError';
    this.fault = fault;
  }
}

/** The fds of one capsule, as they are held by the keeper and the service. */
export interface CapsuleFds {
  capsule: number;
  arena: number;
}

export interface CapsuleOptions {
  /** Bytes of the arena, rounded up to 256 KiB. At adoption the arena grows to it, and never shrinks. */
  arenaSize?: number;
  /** It will be opened once more by this process, for serving: this time does not count as an adoption (hints stay what they are). */
  beforehand?: boolean;
}

/** What a section directory says: for checks before a take-over and for `status`. */
export interface SectionInfo {
  name: string;
  kind: 'records' | 'blob' | 'hint';
  version: number;
  recordSize: number;
  capacity: number;
}

interface Section extends SectionInfo {
  /** Index in the directory. */
  entry: number;
  offset: number;
  length: number;
}

interface Header {
  id: string;
  created: Date;
  size: number;
}

export interface OpenCapsule extends Capsule {
  /** Random, hexadecimal: tells capsules apart. */
  readonly id: string;
  /** Arena pages are locked in memory as they come; false without CAP_IPC_LOCK and enough RLIMIT_MEMLOCK: whoever reads requests into them locks its own few. */
  readonly locked: boolean;
}

/** A section with a smaller version than wanted, and the new one to be filled from it. Must be repeatable: a kill in the middle begins it anew. */
export type Migration = (from: Records, to: Records) => void;

/** Makes the two memfds (close-on-exec), empty and sparse, and completes them. */
export function createCapsule(options: CapsuleOptions = {}): CapsuleFds {
  const capsule = memfdCreate('steadfs-capsule');
  const arena = memfdCreate('steadfs-arena');
  const arenaSize = roundArena(options.arenaSize ?? 64 * 2 ** 20);
  ftruncate(capsule, CAPSULE_BYTES);
  ftruncate(arena, arenaSize);
  const { bytes, view, ...memory } = mapFd(capsule, 0, FIRST_SECTION);
  view.setBigUint64(0, MAGIC, true);
  view.setUint32(8, LAYOUT, true);
  randomFillSync(bytes, 16, 16);
  view.setBigUint64(32, BigInt(CAPSULE_BYTES), true);
  view.setBigUint64(40, BigInt(arenaSize), true);
  view.setBigUint64(48, BigInt(Date.now()), true);
  view.setUint32(56, ENTRIES, true);
  view.setUint32(60, ENTRY, true);
  view.setUint32(12, crc32(bytes.subarray(16, 64)), true);
  Atomics.store(new Int32Array(bytes.buffer, 64, 1), 0, 1);
  unmap(memory);
  return { capsule, arena };
}

/**
 * Takes the write lock that one server holds for life: the first act of every adoption. Throws CapsuleError 'locked' when another process has it; one that is
 * just ending is waited for (up to `patience` ms).
 */
export function lockCapsule(fd: number, patience = 0): void {
  const end = performance.now() + patience;
  const pause = new Int32Array(new SharedArrayBuffer(4));
  while (!tryLock(fd)) {
    if (performance.now() >= end)
      throw new CapsuleError('locked', `the mount is served by process ${lockHolder(fd) ?? '?'}`);
    Atomics.wait(pause, 0, 0, 1);
  }
}

/**
 * Reads header and directory without changing or locking anything: for `status`, and before a take-over. Throws CapsuleError. (In a process that holds the lock
 * it may be used only with the fd that is locked.)
 */
export function inspectCapsule(fd: number): Header & { sections: SectionInfo[] } {
  const memory = mapWhole(fd, false);
  try {
    return { ...readHeader(memory), sections: readDirectory(memory).map(publicInfo) };
  } finally {
    unmap(memory);
  }
}

/** Reads one blob of a capsule that another process serves; undefined when there is none. */
export function peekBlob(fd: number, name: string): Uint8Array | undefined {
  const head = mapWhole(fd, false);
  try {
    readHeader(head);
    const section = readDirectory(head).find(s => s.name === name && s.kind !== 'records');
    if (!section) return undefined;
    const memory = mapFd(fd, section.offset, section.length, false);
    try {
      // What a version left behind that the serving one does not know says nothing of now.
      const stale = section.kind === 'hint' && openedIn(memory) !== head.view.getUint32(ADOPTIONS, true);
      return stale ? undefined : blobOver(memory, section).get();
    } finally {
      unmap(memory);
    }
  } finally {
    unmap(head);
  }
}

/** Address space and tables for {@link openCapsule}, made beforehand. */
export interface MappedCapsule {
  memory: Memory;
  arena: Memory;
  tables: ArenaTables;
}

/**
 * Maps capsule and arena without changing anything: what of opening takes time (V8 counts a view of an arena as external memory and collects garbage for it), to
 * be done before a take-over is committed. Throws CapsuleError.
 */
export function mapCapsule(fds: CapsuleFds, options: CapsuleOptions = {}): MappedCapsule {
  const memory = mapWhole(fds.capsule, true);
  readHeader(memory);
  const have = fstatSync(fds.arena).size;
  if (have % ARENA_UNIT !== 0 || have === 0) throw new CapsuleError('foreign', `an arena of ${have} bytes`);
  // Behind the end of the memfd only addresses are taken; it grows in openCapsule.
  const arena = mapFd(fds.arena, 0, Math.max(have, roundArena(options.arenaSize ?? 0)));
  return { memory, arena, tables: arenaTables(arena.length) };
}

/**
 * Opens the capsule for serving. The caller holds its lock ({@link lockCapsule}). `fresh` is true when no section was ever made, so a first process that died early
 * is followed by one that starts afresh too. Throws CapsuleError.
 */
export function openCapsule(
  fds: CapsuleFds,
  options: CapsuleOptions = {},
  { memory, arena: arenaMemory, tables }: MappedCapsule = mapCapsule(fds, options),
): OpenCapsule {
  const header = readHeader(memory);
  const directory = readDirectory(memory);
  if (fstatSync(fds.arena).size < arenaMemory.length) ftruncate(fds.arena, arenaMemory.length);
  madvise(arenaMemory.address, arenaMemory.length, MADV_DONTDUMP);
  const locked = mlockOnFault(arenaMemory.address, arenaMemory.length);
  const arena: Arena = createArena(fds.arena, arenaMemory, tables);
  const fresh = directory.length === 0;
  const adoption = (memory.view.getUint32(ADOPTIONS, true) + (options.beforehand ? 0 : 1)) >>> 0;
  memory.view.setUint32(ADOPTIONS, adoption, true);
  const opened = new Map<string, Records | Blob>();

  function sectionMemory(section: Section): Memory {
    return viewOf(memory.address + section.offset, section.length);
  }

  /** Entries are given out in order and never again, so that of two sections of one name the one behind is the newer. */
  function freeEntry(): number {
    for (let i = 0; i < ENTRIES; i++) if (memory.view.getUint32(DIRECTORY + i * ENTRY, true) === FREE) return i;
    throw new CapsuleError('full', 'the section directory is full');
  }

  function add(info: SectionInfo): Section {
    const used = readDirectory(memory, true);
    const offset = Math.max(FIRST_SECTION, ...used.map(s => s.offset + s.length));
    const bytes = info.kind === 'records' ? info.recordSize * info.capacity : 64 + 2 * copySize(info.recordSize);
    const length = Math.ceil(bytes / 4096) * 4096;
    const entry = freeEntry();
    if (offset + length > header.size) throw new CapsuleError('full', `no room for section ${info.name}`);
    const section = { ...info, entry, offset, length };
    writeEntry(memory, section);
    faultPoint('section.made', section);
    return section;
  }

  function records(spec: SectionSpec, migrate?: Migration): Records {
    if (spec.recordSize % 8 !== 0) throw new RangeError(`record size of ${spec.name} is not a multiple of 8`);
    const before = opened.get(spec.name);
    if (before) return before as Records;
    const wanted: SectionInfo = { kind: 'records', ...spec };
    let found = directory.find(s => s.name === spec.name);
    if (found) checkSection(found, wanted);
    if (found && found.version < spec.version) found = migrated(found, wanted, migrate);
    const result = recordsOver(memory, found ?? add(wanted));
    opened.set(spec.name, result);
    return result;
  }

  /**
   * A new range takes the place of `old`: filled under a temporary name, then published. A kill before leaves the old one valid, a kill between publishing and
   * retiring leaves two of one name, of which the newer counts.
   */
  function replace(old: Section, wanted: SectionInfo, fill: (section: Section) => void): Section {
    const filled = add({ ...wanted, name: wanted.name + TEMPORARY });
    fill(filled);
    const high = memory.view.getUint32(DIRECTORY + filled.entry * ENTRY + 120, true);
    setEntryState(memory, filled.entry, RETIRED);
    const published = { ...filled, name: wanted.name, entry: freeEntry() };
    writeEntry(memory, published, high);
    setEntryState(memory, old.entry, RETIRED);
    return published;
  }

  function migrated(old: Section, wanted: SectionInfo, migrate: Migration | undefined): Section {
    if (!migrate)
      throw new CapsuleError(
        'foreign',
        `section ${old.name} has version ${old.version}, and nothing turns it into ${wanted.version}`,
      );
    return replace(old, wanted, to => migrate(recordsOver(memory, old), recordsOver(memory, to)));
  }

  function blob(name: string, max: number, kind: 'blob' | 'hint' = 'blob'): Blob {
    const before = opened.get(name);
    if (before) return before as Blob;
    const wanted: SectionInfo = { name, kind, version: 1, recordSize: max, capacity: 1 };
    let found = directory.find(s => s.name === name);
    if (found?.kind === 'records') throw new CapsuleError('foreign', `section ${name} is not a blob`);
    if (found && found.version > 1) throw new CapsuleError('newer', `blob ${name} has version ${found.version}`);
    if (found && found.recordSize < max) {
      const value = blobOver(sectionMemory(found), found).get();
      found = replace(found, wanted, to => {
        if (value) blobOver(sectionMemory(to), to).set(value);
      });
    }
    const section = found ?? add(wanted);
    const range = sectionMemory(section);
    const result = blobOver(range, section);
    if (section.kind === 'hint') {
      if (openedIn(range) !== (adoption - 1) >>> 0) result.clear();
      range.view.setUint32(4, adoption, true);
    }
    opened.set(name, result);
    return result;
  }

  return { id: header.id, fresh, locked, records, blob, hint: (name, max) => blob(name, max, 'hint'), arena };
}

const ARENA_UNIT = 2 ** 18;

function roundArena(size: number): number {
  return Math.ceil(size / ARENA_UNIT) * ARENA_UNIT;
}

/** Maps the whole range (address space only) and makes a view of header and directory; sections get views of their own, whose small offsets are faster. */
function mapWhole(fd: number, writable: boolean): Memory {
  const stat = fstatSync(fd);
  if (!stat.isFile() || stat.size < FIRST_SECTION)
    throw new CapsuleError('foreign', `the capsule fd is no memfd of ours (${stat.size} bytes)`);
  const length = writable ? stat.size : FIRST_SECTION;
  const address = mapAddress(fd, 0, length, writable);
  return { ...viewOf(address, FIRST_SECTION), length };
}

function readHeader({ view, bytes, length }: Memory): Header {
  if (view.getBigUint64(0, true) !== MAGIC) throw new CapsuleError('foreign', 'the capsule has no magic number');
  const layout = view.getUint32(8, true);
  if (layout > LAYOUT)
    throw new CapsuleError('newer', `the capsule has layout ${layout}, this version reads up to ${LAYOUT}`);
  if (view.getUint32(12, true) !== crc32(bytes.subarray(16, 64)))
    throw new CapsuleError('damaged', 'the checksum of the capsule header is wrong');
  if (view.getUint32(64, true) !== 1) throw new CapsuleError('damaged', 'the capsule was never completed');
  if (view.getUint32(56, true) !== ENTRIES || view.getUint32(60, true) !== ENTRY)
    throw new CapsuleError('damaged', 'the section directory has an unknown shape');
  const size = Number(view.getBigUint64(32, true));
  if (length !== FIRST_SECTION && size > length)
    throw new CapsuleError('damaged', `the capsule says ${size} bytes and has ${length}`);
  return {
    id: Buffer.from(bytes.subarray(16, 32)).toString('hex'),
    created: new Date(Number(view.getBigUint64(48, true))),
    size,
  };
}

/** The valid sections, one per name (the newest); with `all` those that take up room. */
function readDirectory({ view, bytes }: Memory, all = false): Section[] {
  const byName = new Map<string, Section>();
  const every: Section[] = [];
  const size = Number(view.getBigUint64(32, true));
  for (let entry = 0; entry < ENTRIES; entry++) {
    const at = DIRECTORY + entry * ENTRY;
    const state = view.getUint32(at, true);
    if (state === FREE) continue;
    if (view.getUint32(at + 4, true) !== crc32(bytes.subarray(at + 8, at + 120)))
      throw new CapsuleError('damaged', `the checksum of section ${entry} is wrong`);
    const code = view.getUint32(at + 8, true);
    const kind = (KINDS as Record<number, SectionInfo['kind']>)[code];
    if (!kind) throw new CapsuleError('newer', `section ${entry} has unknown kind ${code}`);
    const section: Section = {
      entry,
      kind,
      version: view.getUint32(at + 12, true),
      recordSize: Number(view.getBigUint64(at + 16, true)),
      capacity: Number(view.getBigUint64(at + 24, true)),
      offset: Number(view.getBigUint64(at + 32, true)),
      length: Number(view.getBigUint64(at + 40, true)),
      name: Buffer.from(bytes.subarray(at + 49, at + 49 + view.getUint8(at + 48))).toString(),
    };
    if (
      section.offset < FIRST_SECTION ||
      section.offset + section.length > size ||
      section.recordSize * section.capacity > section.length
    )
      throw new CapsuleError('damaged', `section ${section.name} lies outside the capsule`);
    every.push(section);
    if (state === VALID && !section.name.endsWith(TEMPORARY)) byName.set(section.name, section);
  }
  return all ? every : [...byName.values()];
}

function publicInfo({ name, kind, version, recordSize, capacity }: Section): SectionInfo {
  return { name, kind, version, recordSize, capacity };
}

function checkSection(found: SectionInfo, wanted: SectionInfo): void {
  if (found.kind !== wanted.kind)
    throw new CapsuleError('foreign', `section ${found.name} holds a ${found.kind}, not a ${wanted.kind}`);
  if (found.version > wanted.version)
    throw new CapsuleError(
      'newer',
      `section ${found.name} has version ${found.version}, this version reads up to ${wanted.version}`,
    );
  if (found.version === wanted.version && found.recordSize !== wanted.recordSize)
    throw new CapsuleError(
      'damaged',
      `section ${found.name} has records of ${found.recordSize} bytes, not ${wanted.recordSize}`,
    );
}

/**
 * Whether a version that knows these sections can adopt a capsule with those: undefined, or the reason why not. A section it does not know would be
 * lost, so that is a reason too, unless it is a hint. Asked before a take-over: the old process goes on then.
 */
export function incompatible(
  have: readonly SectionInfo[],
  known: readonly { name: string; version: number }[],
): string | undefined {
  for (const section of have) {
    const ours = known.find(k => k.name === section.name);
    if (!ours && section.kind === 'hint') continue;
    if (!ours) return `the capsule has a section "${section.name}" that this version does not know`;
    if (section.version > ours.version)
      return `section "${section.name}" of the capsule has version ${section.version}, this version reads up to ${ours.version}`;
  }
  return undefined;
}

function setEntryState({ bytes }: Memory, entry: number, state: number): void {
  Atomics.store(new Int32Array(bytes.buffer, bytes.byteOffset + DIRECTORY + entry * ENTRY, 1), 0, state);
}

function writeEntry(memory: Memory, section: Section, high = 0): void {
  const { view, bytes } = memory;
  const at = DIRECTORY + section.entry * ENTRY;
  const name = Buffer.from(section.name);
  if (name.length > 71) throw new RangeError(`section name too long: ${section.name}`);
  bytes.fill(0, at, at + ENTRY);
  const code = { records: KIND_RECORDS, blob: KIND_BLOB, hint: KIND_HINT }[section.kind];
  view.setUint32(at + 8, code, true);
  view.setUint32(at + 12, section.version, true);
  view.setBigUint64(at + 16, BigInt(section.recordSize), true);
  view.setBigUint64(at + 24, BigInt(section.capacity), true);
  view.setBigUint64(at + 32, BigInt(section.offset), true);
  view.setBigUint64(at + 40, BigInt(section.length), true);
  view.setUint8(at + 48, name.length);
  bytes.set(name, at + 49);
  view.setUint32(at + 120, high, true);
  view.setUint32(at + 4, crc32(bytes.subarray(at + 8, at + 120)), true);
  setEntryState(memory, section.entry, VALID);
}

function recordsOver(memory: Memory, section: Section): Records {
  const { recordSize, capacity, name, version } = section;
  const { bytes, view } = viewOf(memory.address + section.offset, recordSize * capacity);
  const states = new Int32Array(bytes.buffer, 0, (recordSize * capacity) >> 2);
  const stride = recordSize >> 2;
  const highWord = new Int32Array(memory.bytes.buffer, DIRECTORY + section.entry * ENTRY + 120, 1);
  let high = Atomics.load(highWord, 0);
  if (high < 0 || high > capacity)
    throw new CapsuleError('damaged', `section ${name} uses ${high} of ${capacity} records`);
  /** Free indexes below `high`, the last one is given out next: the lowest after an adoption, the warmest later. */
  const free: number[] = [];
  const listed = new Uint8Array(capacity);
  /** So many indexes are opened at a time: the shared word is not written for every record. */
  const step = Math.max(1, Math.min(64, Math.floor(4096 / recordSize)));
  function list(index: number): void {
    listed[index] = 1;
    free.push(index);
  }
  for (let i = high - 1; i >= 0; i--) if (states[i * stride] === 0) list(i);
  return {
    name,
    version,
    recordSize,
    capacity,
    view,
    bytes,
    cells: cellsOver(bytes),
    offsetOf: index => index * recordSize,
    alloc() {
      if (free.length === 0) {
        const from = high;
        high = Math.min(capacity, from + step);
        Atomics.store(highWord, 0, high);
        faultPoint('record.high', name);
        for (let i = high - 1; i >= from; i--) list(i);
      }
      const index = free.pop();
      if (index !== undefined) listed[index] = 0;
      return index;
    },
    state: index => Atomics.load(states, index * stride),
    setState(index, state) {
      faultPoint('record.before-state', name);
      Atomics.store(states, index * stride, state);
      faultPoint('record.state', name);
    },
    free(index) {
      if (!(index < high) || listed[index]) throw new RangeError(`record ${index} of ${name} is free already`);
      faultPoint('record.before-free', name);
      Atomics.store(states, index * stride, 0);
      faultPoint('record.free', name);
      list(index);
    },
    *live() {
      for (let i = 0; i < high; i++) if (Atomics.load(states, i * stride) !== 0) yield i;
    },
  };
}

function cellsOver({ buffer, byteOffset, byteLength }: Uint8Array): Cells {
  const u32 = new Uint32Array(buffer, byteOffset, byteLength >> 2);
  const f64 = new Float64Array(buffer, byteOffset, byteLength >> 3);
  return {
    getUint32: at => u32[at >>> 2]!,
    setUint32: (at, value) => {
      u32[at >>> 2] = value;
    },
    getFloat64: at => f64[at / 8]!,
    setFloat64: (at, value) => {
      f64[at / 8] = value;
    },
  };
}

/** The adoption in which a hint was opened last. */
const openedIn = ({ view }: Pick<Memory, 'view'>): number => view.getUint32(4, true);

function copySize(max: number): number {
  return 8 + Math.ceil(max / 8) * 8;
}

function blobOver({ bytes, view }: Memory, section: Section): Blob & { clear(): void } {
  const { name, recordSize: max } = section;
  const selector = new Int32Array(bytes.buffer, bytes.byteOffset, 1);
  const at = (copy: number) => 64 + (copy - 1) * copySize(max);
  return {
    get() {
      const copy = Atomics.load(selector, 0);
      if (copy === 0) return undefined;
      if (copy !== 1 && copy !== 2) throw new CapsuleError('damaged', `blob ${name} has no copy ${copy}`);
      const length = view.getUint32(at(copy), true);
      if (length > max) throw new CapsuleError('damaged', `blob ${name} says ${length} bytes of ${max}`);
      const value = bytes.slice(at(copy) + 8, at(copy) + 8 + length);
      if (crc32(value) !== view.getUint32(at(copy) + 4, true))
        throw new CapsuleError('damaged', `the checksum of blob ${name} is wrong`);
      return value;
    },
    clear() {
      Atomics.store(selector, 0, 0);
    },
    set(value) {
      if (value.length > max) throw new RangeError(`blob ${name} takes ${max} bytes, not ${value.length}`);
      const copy = Atomics.load(selector, 0) === 1 ? 2 : 1;
      view.setUint32(at(copy), value.length, true);
      view.setUint32(at(copy) + 4, crc32(value), true);
      bytes.set(value, at(copy) + 8);
      faultPoint('blob.before-select', name);
      Atomics.store(selector, 0, copy);
      faultPoint('blob.selected', name);
    },
  };
}
