import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Dirent, EntryOut } from '@steadfs/fuse';
import { FileType } from '../../src/format/attr.ts';
import type { DirEntry, DirStream } from '../../src/meta/engine.ts';
import { fuseAttr } from '../../src/vfs/attrs.ts';
import { type ListingContext, list, newCursor, type OwnEntry } from '../../src/vfs/dirstreams.ts';
import { seeded } from '../support/random.ts';
import { anAttr } from './attr.ts';

/** A directory whose entry i has the cookie i + 1; entries come and go, numbers never return. */
class Model {
  readonly entries = new Map<number, string>();
  #next = 1;
  reads = 0;

  add(): number {
    this.entries.set(this.#next, `name-${this.#next}`);
    return this.#next++;
  }

  stream(wait: boolean): DirStream {
    return {
      read: (cookie, limit, plus) => {
        this.reads++;
        const out: DirEntry[] = [];
        for (const [id, name] of this.entries) {
          if (id <= cookie || out.length >= limit) continue;
          const e: DirEntry = { name: Buffer.from(name), ino: id + 100, type: FileType.file, cookie: id };
          if (plus) e.attr = anAttr();
          out.push(e);
        }
        return wait ? Promise.resolve(out) : out;
      },
      close() {},
    };
  }
}

const entryOut = (ino: number): EntryOut => ({
  nodeid: ino,
  generation: 1,
  entryValid: 1,
  attrValid: 1,
  attr: fuseAttr(ino, anAttr(), undefined),
});

const own: OwnEntry[] = [
  { name: Buffer.from('.'), ino: 1, type: FileType.directory },
  { name: Buffer.from('..'), ino: 1, type: FileType.directory },
  { name: Buffer.from('.stats'), ino: 5, type: FileType.file, entry: entryOut(5) },
];

/** One READDIR with room for `room` entries. */
async function readdir(
  cursor: ReturnType<typeof newCursor>,
  offset: number,
  room: number,
  plus: boolean,
  ctx: ListingContext,
): Promise<Dirent[]> {
  const out: Dirent[] = [];
  const add = (e: Dirent) => out.length < room && out.push(e) > 0;
  await list(cursor, offset, own, { plus, add }, ctx);
  return out;
}

for (const wait of [false, true]) {
  for (const plus of [false, true]) {
    test(`listing under change, ${wait ? 'asynchronous' : 'synchronous'} engine, ${plus ? 'with' : 'without'} attributes`, async () => {
      const seed = Math.floor(Math.random() * 2 ** 32);
      console.log(`seed ${seed}`);
      const random = seeded(seed);
      for (let round = 0; round < 20; round++) {
        const dir = new Model();
        let changes = 0;
        const ctx: ListingContext = {
          changes: () => changes,
          removals: () => 0,
          plusEntry: ino => (random.chance(90) ? entryOut(ino) : undefined),
          freshEntry: ino => (wait ? Promise.resolve(entryOut(ino)) : entryOut(ino)),
        };
        const n = random.below(3000);
        for (let i = 0; i < n; i++) dir.add();
        const before = new Set(dir.entries.keys());
        let cursor = newCursor(dir.stream(wait));
        const seen: string[] = [];
        for (let offset = 0; ; ) {
          const page = await readdir(cursor, offset, 1 + random.below(60), plus, ctx);
          if (page.length === 0) break;
          for (const e of page) seen.push(Buffer.from(e.name).toString());
          if (plus)
            assert.ok(page.every(e => e.entry !== undefined || ['.', '..'].includes(Buffer.from(e.name).toString())));
          offset = Number(page.at(-1)!.offset);
          if (random.chance(30)) {
            changes++;
            for (let k = random.below(5); k > 0; k--) dir.add();
            const victim = [...dir.entries.keys()][random.below(dir.entries.size || 1)];
            if (victim !== undefined) dir.entries.delete(victim);
          }
          // Another process goes on.
          if (random.chance(10)) cursor = newCursor(dir.stream(wait));
        }
        assert.deepEqual(seen.slice(0, 3), ['.', '..', '.stats']);
        assert.equal(new Set(seen).size, seen.length, 'an entry came twice');
        const shown = new Set(seen);
        for (const id of before) if (dir.entries.has(id)) assert.ok(shown.has(`name-${id}`), `entry ${id} is missing`);
      }
    });
  }
}

test('seekdir to any earlier place, and what was read ahead is used', async () => {
  const dir = new Model();
  for (let i = 0; i < 500; i++) dir.add();
  const ctx: ListingContext = { changes: () => 0, removals: () => 0, plusEntry: entryOut, freshEntry: entryOut };
  const cursor = newCursor(dir.stream(false));
  const all: Dirent[] = [];
  for (let offset = 0; ; ) {
    const page = await readdir(cursor, offset, 7, false, ctx);
    if (page.length === 0) break;
    all.push(...page);
    offset = Number(page.at(-1)!.offset);
  }
  assert.equal(all.length, 503);
  assert.ok(dir.reads < 10, `${dir.reads} readings of 500 entries`);
  for (const i of [0, 1, 2, 50, 3, 499, 501]) {
    const [next] = await readdir(cursor, Number(all[i]!.offset), 1, false, ctx);
    assert.equal(Buffer.from(next!.name).toString(), Buffer.from(all[i + 1]!.name).toString());
  }
});
