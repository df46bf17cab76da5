/** What sessions leave behind, trees that are half made, statistics: bodies that any transactional engine needs. */
import type { Attr } from '../../format/attr.ts';
import { FileType } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import { logChange } from './changelog.ts';
import { release } from './data.ts';
import { spaceOf } from './quota.ts';
import type { Body, Tx } from './tx.ts';

/** Ends the sustained marks of a session; answers how many there were. */
export function* dropSustained(tx: Tx, sid: number): Body<number> {
  const inos = yield* tx.sustainedOf(sid);
  for (const ino of inos) yield* release(tx, sid, ino);
  return inos.length;
}

/** Statistics of the immediate children, counted. */
export function* countChildren(tx: Tx, dir: Ino): Body<{ length: number; space: number; inodes: number }> {
  const sum = { length: 0, space: 0, inodes: 0 };
  let after: Uint8Array | undefined;
  for (;;) {
    const page: { name: Uint8Array; ino: Ino }[] = yield* tx.entries(dir, after, 1000);
    for (const e of page) {
      const attr: Readonly<Attr> | undefined = yield* tx.node(e.ino);
      if (attr === undefined) continue;
      if (attr.type === FileType.file) sum.length += attr.length;
      sum.space += spaceOf(attr);
      sum.inodes++;
    }
    if (page.length < 1000) return sum;
    after = page.at(-1)!.name;
  }
}

/** True when the duty was taken: the stored time is at most now - 0.9 period (spec/volume.md §7.1). */
export function* claimDuty(tx: Tx, name: string, period: number): Body<boolean> {
  if ((yield* tx.counter(name)) > tx.now.sec - 0.9 * period) return false;
  yield* tx.setCounter(name, tx.now.sec);
  yield* logChange(tx, 'SET', () => [name, tx.now.sec]);
  return true;
}
