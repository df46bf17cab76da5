/**
 * What clients of one PostgreSQL database tell each other (push.ts), as the engine uses it: names and attributes are kept in memory while everybody who changes the
 * volume announces it, and our own changes are announced, and kept.
 */
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, isTrash } from '../../format/ino.ts';
import { Cache } from '../cache.ts';
import type { EngineOptions, Name } from '../engine.ts';
import type { Volume } from '../ops/tx.ts';
import { parseSessionInfo } from '../session-info.ts';
import type { SqlPool } from './connection.ts';
import { type NetworkTx, toBytes, toNumber } from './network-tx.ts';
import type { OptimisticTx } from './optimistic-tx.ts';
import { channelOf, openPush, type Push } from './push.ts';

/** Attributes and names kept by pushes at most, each. */
const CACHE_MAX = 100_000;

export interface BeforePlan {
  mark: number;
  attrs: ReadonlyMap<Ino, Attr>;
}

/** A name as a key of the cache. */
export const nameKey = (name: Name): string =>
  Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');

export function createAnnouncer(pool: SqlPool, prefix: string, options: EngineOptions, volume: Volume) {
  /** What announcements keep right; empty where there are none. */
  const cache = new Cache(options.cachesByPush === true && pool.listen !== undefined ? CACHE_MAX : 0);
  let push: Push | undefined;

  /** A command without a session announces too; before the volume is known there is nobody who could listen. */
  function startPush(): void {
    if (pool.listen === undefined || options.readOnly || volume.format.UUID === '') return;
    push ??= openPush(
      {
        pool,
        async sessions() {
          const rows = await pool.use(c =>
            c.all(
              `SELECT c.value, s.sid, s.info FROM ${prefix}counter c LEFT JOIN ${prefix}session2 s ON TRUE WHERE c.name = 'nextSession'`,
              [],
            ),
          );
          const recorded = rows.filter(r => r[1] !== null);
          return {
            allPush: rows.length > 0 && recorded.every(r => parseSessionInfo(toBytes(r[2])).pushes === true),
            others: recorded.some(r => toNumber(r[1]) !== volume.sid),
            ours: recorded.some(r => toNumber(r[1]) === volume.sid),
            made: toNumber(rows[0]?.[0] ?? 0),
          };
        },
        changed(ino, what) {
          if (ino === undefined) cache.clear();
          else if (what === 'e') cache.changed(ino);
          else if (what === 'a') cache.dropAttr(ino);
          if (ino !== undefined) options.events.changed(ino, what === 'e' ? 'entries' : what === 'a' ? 'attr' : 'data');
        },
        trouble: e => options.events.trouble(`announcing changes: ${e instanceof Error ? e.message : String(e)}`),
      },
      channelOf(volume.format.UUID, prefix),
    );
  }

  const trusted = (): boolean => options.cachesByPush === true && push?.trusted() === true;

  /** Rows of a transaction that has ended, well or with an unknown outcome. */
  function announce(tx: NetworkTx): void {
    if (tx.attrs.size + tx.dirs.size + tx.files.size === 0) return;
    startPush();
    if (push === undefined) return;
    for (const ino of tx.attrs) push.touched('a', ino);
    for (const ino of tx.dirs) push.touched('e', ino);
    for (const ino of tx.files) push.touched('d', ino);
  }

  /** What announcePlan needs to know of the time before a plan is sent: the present, and rows of which the plan knows only how they change. */
  function beforePlan(tx: OptimisticTx): BeforePlan | undefined {
    if (push === undefined || !trusted()) return undefined;
    const attrs = new Map<Ino, Attr>();
    for (const { ino, attr } of tx.outcome().nodes) {
      const before = attr === undefined ? cache.attr(ino) : undefined;
      if (before !== undefined) attrs.set(ino, before);
    }
    return { mark: push.mark(), attrs };
  }

  /** What a plan did, or may have done; with `sent` what it wrote is remembered. */
  function announcePlan(tx: OptimisticTx, sent: BeforePlan | undefined): void {
    if (push === undefined) return;
    const { nodes, edges, file } = tx.outcome();
    const mark = sent?.mark;
    const keep = sent !== undefined && trusted();
    const known: [Ino, Attr][] = [];
    const made: Ino[] = [];
    for (const n of keep ? nodes : []) {
      const { ino, attr, links, touch } = n;
      if (!push.storable(ino, sent?.mark ?? 0)) continue;
      // Nothing is in a directory that was made just now.
      if (n.made && attr?.type === FileType.directory) made.push(ino);
      // One that was fetched since the plan was sent may show what the plan did already.
      const before = cache.attr(ino) === sent?.attrs.get(ino) ? sent?.attrs.get(ino) : undefined;
      // Links in the trash are shown otherwise than stored: those rows are fetched.
      if (attr !== undefined && (attr.type === FileType.directory || (attr.parent !== 0 && !isTrash(attr.parent))))
        known.push([ino, { ...attr }]);
      else if (attr === undefined && before !== undefined && (links !== 0 || touch)) {
        const { sec, nsec } = tx.now;
        const times = touch ? { mtime: sec, mtimensec: nsec, ctime: sec, ctimensec: nsec } : {};
        known.push([ino, { ...before, nlink: before.nlink + links, ...times }]);
      }
    }
    const entries = mark !== undefined && keep ? edges.filter(e => push?.storable(e.parent, mark)) : [];
    for (const { ino } of nodes) push.touched('a', ino);
    for (const dir of new Set(edges.map(e => e.parent))) {
      // Our own change of a directory that is known leaves the rest of it known.
      if (entries.some(e => e.parent === dir)) push.touchedByUs('e', dir);
      else push.touched('e', dir);
    }
    if (file !== undefined) push.touched('d', file);
    for (const [ino, attr] of known) cache.setAttr(ino, attr);
    for (const ino of made) cache.setList(ino, new Map());
    for (const { parent, name, entry } of entries) cache.setName(parent, nameKey(name), entry ?? null);
  }

  /** A new session begins: what others announce is heard from now on. */
  function begin(): void {
    startPush();
    if (options.cachesByPush === true) push?.start();
  }

  /** A moment before something is fetched; answers whether what was fetched of an inode may be kept: nothing of it has changed since. */
  function fetching(): (ino: Ino) => boolean {
    const mark = push?.mark() ?? 0;
    return ino => trusted() && push?.storable(ino, mark) === true;
  }

  return {
    cache,
    trusted,
    fetching,
    announce,
    beforePlan,
    announcePlan,
    begin,
    /** Everything may have changed. */
    everything: (): void => push?.everything(),
    close: async (): Promise<void> => {
      await push?.close();
    },
  };
}
