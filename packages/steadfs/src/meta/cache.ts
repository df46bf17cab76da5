/**
 * Attributes and names that somebody has promised to tell us about (Redis by its tracking, clients of PostgreSQL by their announcements), dropped when they do. Everything is
 * stored and dropped in the order of the connection's stream, so nothing here is older than the last push. Whoever loses the connection clears it.
 */
import type { Attr } from '../format/attr.ts';
import { type Ino, isTrash } from '../format/ino.ts';
import type { Dentry } from './engine.ts';

interface Dir {
  /** null: the name does not exist. */
  names: Map<string, Dentry | null>;
  /** Names that are not in the map do not exist. */
  complete: boolean;
}

/** Directories up to this size are worth knowing completely. */
export const COMPLETE_LIMIT = 4096;

export class Cache {
  readonly #limit: number;
  /** Two generations instead of a list in order of use. */
  #young = new Map<Ino, Attr>();
  #old = new Map<Ino, Attr>();
  #dirs = new Map<Ino, Dir>();
  #names = 0;
  /** How often a directory was asked for a name that it did not have, and how often it changed under us. */
  #misses = new Map<Ino, { absent: number; changed: number }>();

  constructor(limit: number) {
    this.#limit = Math.max(2, limit);
  }

  clear(): void {
    this.#young.clear();
    this.#old.clear();
    this.#dirs.clear();
    this.#misses.clear();
    this.#names = 0;
  }

  attr(ino: Ino): Attr | undefined {
    const a = this.#young.get(ino);
    if (a !== undefined) return a;
    const b = this.#old.get(ino);
    if (b !== undefined) {
      this.#old.delete(ino);
      this.#young.set(ino, b);
    }
    return b;
  }

  setAttr(ino: Ino, attr: Attr): void {
    if (isTrash(ino)) return;
    this.#old.delete(ino);
    this.#young.set(ino, attr);
    if (this.#young.size > this.#limit / 2) {
      this.#old = this.#young;
      this.#young = new Map();
    }
  }

  dropAttr(ino: Ino): void {
    this.#young.delete(ino);
    this.#old.delete(ino);
  }

  /** undefined: not known; null: known not to exist. */
  name(dir: Ino, name: string): Dentry | null | undefined {
    const d = this.#dirs.get(dir);
    if (d === undefined) return undefined;
    const e = d.names.get(name);
    return e === undefined && d.complete ? null : e;
  }

  setName(dir: Ino, name: string, entry: Dentry | null): void {
    if (isTrash(dir)) return;
    let d = this.#dirs.get(dir);
    if (d === undefined) {
      d = { names: new Map(), complete: false };
      this.#dirs.set(dir, d);
    }
    if (entry === null && d.complete) {
      if (d.names.delete(name)) this.#names--;
      return;
    }
    const before = d.names.size;
    d.names.set(name, entry);
    this.#names += d.names.size - before;
    this.#shrink();
  }

  /** The complete list, when it is known. */
  list(dir: Ino): ReadonlyMap<string, Dentry | null> | undefined {
    const d = this.#dirs.get(dir);
    return d?.complete ? d.names : undefined;
  }

  setList(dir: Ino, names: Map<string, Dentry | null>): void {
    if (isTrash(dir)) return;
    this.dropDir(dir);
    this.#dirs.set(dir, { names, complete: true });
    this.#names += names.size;
    this.#shrink();
  }

  dropDir(dir: Ino): void {
    const d = this.#dirs.get(dir);
    if (d === undefined) return;
    this.#names -= d.names.size;
    this.#dirs.delete(dir);
  }

  /** The directory changed elsewhere. */
  changed(dir: Ino): void {
    if (this.#dirs.get(dir)?.complete) {
      const m = this.#misses.get(dir);
      if (m !== undefined) m.changed++;
    }
    this.dropDir(dir);
  }

  /** A name was absent: true when the directory should be read completely. It takes more of them the more often that was in vain. */
  wanted(dir: Ino): boolean {
    if (this.#misses.size > 10_000) this.#misses.clear();
    let m = this.#misses.get(dir);
    if (m === undefined) {
      m = { absent: 0, changed: 0 };
      this.#misses.set(dir, m);
    }
    if (++m.absent < 2 << Math.min(m.changed, 8)) return false;
    m.absent = 0;
    return true;
  }

  /** The oldest directories go; one that is too large alone forgets all it knows. */
  #shrink(): void {
    for (const dir of this.#dirs.keys()) {
      if (this.#names <= this.#limit) return;
      this.dropDir(dir);
    }
  }
}
