/**
 * Directory streams over a listing without order: entries sorted by a hash of their name, which is the cookie. So a stream goes on in any process
 * from its cookie alone: the directory is read again, and every entry that was there throughout comes exactly once.
 */
import type { Attr } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import type { Dentry, DirEntry, DirStream } from '../engine.ts';

export interface Listing {
  /** Names as latin1 text of their bytes. */
  scan(dir: Ino): Promise<Map<string, Dentry | null>>;
  attrs(inos: readonly Ino[]): Promise<(Attr | undefined)[]>;
}

/** 48 bits of hash times 16: room for names of one hash. */
function cookieOf(name: string): number {
  let a = 0x9e3779b9;
  let b = 0x85ebca6b;
  for (let i = 0; i < name.length; i++) {
    const c = name.charCodeAt(i);
    a = Math.imul(a ^ c, 2654435761);
    b = Math.imul(b ^ c, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 15), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return ((b >>> 16) * 0x100000000 + (a >>> 0)) * 16 + 1;
}

interface View {
  names: string[];
  cookies: Float64Array;
  entries: Map<string, Dentry | null>;
}

export function view(entries: Map<string, Dentry | null>): View {
  const pairs: [number, string][] = [];
  for (const [name, d] of entries) if (d !== null) pairs.push([cookieOf(name), name]);
  pairs.sort((x, y) => x[0] - y[0] || (x[1] < y[1] ? -1 : 1));
  const cookies = new Float64Array(pairs.length);
  const names: string[] = new Array(pairs.length);
  pairs.forEach(([cookie, name], i) => {
    names[i] = name;
    // Names of one hash take the next numbers.
    cookies[i] = i > 0 && cookies[i - 1]! >= cookie ? cookies[i - 1]! + 1 : cookie;
  });
  return { names, cookies, entries };
}

export function dirStream(listing: Listing, dir: Ino): DirStream {
  let current: View | undefined;
  return {
    async read(cookie, limit, plus) {
      if (cookie === 0 || current === undefined) current = view(await listing.scan(dir));
      const { names, cookies, entries } = current;
      let low = 0;
      for (let high = cookies.length; low < high; ) {
        const middle = (low + high) >> 1;
        if (cookies[middle]! <= cookie) low = middle + 1;
        else high = middle;
      }
      const out: DirEntry[] = [];
      for (let i = low; i < names.length && out.length < limit; i++) {
        const d = entries.get(names[i]!)!;
        out.push({ name: Buffer.from(names[i]!, 'latin1'), ino: d.ino, type: d.type, cookie: cookies[i]! });
      }
      if (plus) {
        const attrs = await listing.attrs(out.map(e => e.ino));
        out.forEach((e, i) => {
          const attr = attrs[i];
          if (attr !== undefined) e.attr = attr;
        });
      }
      return out;
    },
    close() {
      current = undefined;
    },
  };
}
