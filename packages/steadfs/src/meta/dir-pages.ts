/**
 * Directory streams for engines that can list names in order. The listing is cut into pages by name; the boundaries are what the stream's
 * state remembers. Within a page entries come in the order of a hash of their name, and a cookie is page * 2^36 + hash: it is good in any
 * process that has the boundaries, without storing the entries.
 */

import type { FileType } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import type { DirEntry, DirStream, DirStreamState, MaybePromise, Name } from './engine.ts';

const HASH_SPAN = 2 ** 36;
/** Entries of a page; all of them are in memory while the stream is in it. */
const PAGE = 2048;
/** Boundary of the last page: no name is empty. */
const END = new Uint8Array(0);

export interface RawEntry {
  name: Name;
  ino: Ino;
  type: FileType;
  /** 0: the page sets it. */
  cookie: number;
}

export interface PageSource {
  /** Entries with after < name ≤ upto (either may be undefined), at most limit; in byte order, or in any when these are all that there are. The list is sorted in place, the entries get their cookies: all that there are may be the same list again. */
  page(after: Name | undefined, upto: Name | undefined, limit: number): MaybePromise<RawEntry[]>;
  /** Fills in the attributes of now; entries whose inode is gone stay without. */
  attributes(entries: DirEntry[]): MaybePromise<void>;
}

/** 1 … 2^36-1; two rounds of a multiplicative hash over the bytes. */
function nameHash(name: Name): number {
  let a = 0xdeadbeef;
  let b = 0x41c6ce57;
  for (let i = 0; i < name.length; i++) {
    a = Math.imul(a ^ name[i]!, 2654435761);
    b = Math.imul(b ^ name[i]!, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return 1 + (((b & 15) * 0x100000000 + (a >>> 0)) % (HASH_SPAN - 1));
}

function byCookie(x: RawEntry, y: RawEntry): number {
  return x.cookie - y.cookie;
}

function byName(x: RawEntry, y: RawEntry): number {
  return Buffer.compare(x.name, y.name);
}

interface Page {
  index: number;
  /** In hash order; cookies are set. */
  entries: DirEntry[];
}

export function pagedDirStream(source: PageSource, state: DirStreamState, pageSize = PAGE): DirStream {
  let bounds: Uint8Array[] = [...state.load()];
  let current: Page | undefined;

  /** Sorts the list that it is given. */
  function build(index: number, entries: RawEntry[]): Page {
    const base = index * HASH_SPAN;
    for (const e of entries) e.cookie = base + nameHash(e.name);
    entries.sort(byCookie);
    return { index, entries };
  }

  /** Number of leading names (in name order) without two of the same hash: where a page that has two such must end. */
  function distinct(names: readonly Name[]): number {
    const seen = new Set<number>();
    const found = names.findIndex(name => seen.size === seen.add(nameHash(name)).size);
    return found < 0 ? names.length : found;
  }

  function take(index: number, raw: RawEntry[], known: boolean): Page {
    const more = !known && raw.length > pageSize;
    let bound = more ? raw[pageSize - 1]!.name : END;
    let page = build(index, more ? raw.slice(0, pageSize) : raw);
    if (!known) {
      if (page.entries.some((e, i) => i > 0 && page.entries[i - 1]!.cookie === e.cookie)) {
        const sorted = [...page.entries].sort(byName);
        const keep = distinct(sorted.map(e => e.name));
        bound = sorted[keep - 1]!.name;
        page = build(index, sorted.slice(0, keep));
      }
      bound = Uint8Array.from(bound);
      bounds.push(bound);
      state.append(bound);
    }
    current = page;
    return page;
  }

  function load(index: number): MaybePromise<Page> {
    if (current?.index === index) return current;
    const after = index === 0 ? undefined : bounds[index - 1];
    const bound = bounds[index];
    const known = bound !== undefined;
    const raw = source.page(
      after,
      known && bound.length > 0 ? bound : undefined,
      known ? Number.MAX_SAFE_INTEGER : pageSize + 1,
    );
    return raw instanceof Promise ? raw.then(r => take(index, r, known)) : take(index, raw, known);
  }

  function deliver(page: Page, cookie: number, limit: number, plus: boolean): MaybePromise<DirEntry[]> {
    let low = 0;
    for (let high = page.entries.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (page.entries[middle]!.cookie <= cookie) low = middle + 1;
      else high = middle;
    }
    if (low === page.entries.length) {
      if (bounds[page.index]!.length === 0) return [];
      return at(page.index + 1, (page.index + 1) * HASH_SPAN, limit, plus);
    }
    const out = page.entries.slice(low, low + limit);
    if (!plus) return out;
    const copies = out.map(e => ({ ...e }));
    const filled = source.attributes(copies);
    return filled instanceof Promise ? filled.then(() => copies) : copies;
  }

  function at(index: number, cookie: number, limit: number, plus: boolean): MaybePromise<DirEntry[]> {
    const page = load(index);
    return page instanceof Promise
      ? page.then(p => deliver(p, cookie, limit, plus))
      : deliver(page, cookie, limit, plus);
  }

  return {
    read(cookie, limit, plus) {
      if (cookie === 0) {
        bounds = [];
        current = undefined;
        state.clear();
      }
      const index = Math.floor(cookie / HASH_SPAN);
      // A cookie of a page that was never read (a made-up offset) is the end.
      return index > bounds.length ? [] : at(index, cookie, limit, plus);
    },
    close() {
      current = undefined;
    },
  };
}
