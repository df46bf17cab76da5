/** What keeps a mount's operations waiting, and since when: for `status` and the log. */
import type { Blob } from '@steadfs/fuse/capsule-types';
import type { Log } from './log.ts';

export interface Trouble {
  /** 'database', 'reads', 'writes' */
  what: string;
  /** Milliseconds since 1970. */
  since: number;
  message: string;
}

/** What of a trouble outlives the process: JSON in a hint of the capsule, written when the list changes. */
export type Since = Pick<Trouble, 'what' | 'since'>;
export const TROUBLES_HINT = 'vfs.troubles';
export const TROUBLES_BYTES = 1024;

export function keepTroubles(blob: Blob, list: readonly Trouble[]): void {
  const text = JSON.stringify(list.map(({ what, since }): Since => ({ what, since })));
  if (text !== Buffer.from(blob.get() ?? '[]').toString()) blob.set(Buffer.from(text));
}

export function decodeTroubles(bytes: Uint8Array | undefined): Since[] {
  return bytes === undefined ? [] : (JSON.parse(Buffer.from(bytes).toString()) as Since[]);
}

export interface Troubles {
  /** Something fails and is tried again; undefined: it works. */
  set(what: string, message: string | undefined): void;
  readonly list: readonly Trouble[];
}

/** Shorter ones are not worth a line of the log. */
const WORTH_MS = 1000;

const subject = (what: string): string => (what === 'database' ? 'operations on the database' : what);

/** A trouble of the process before that comes up again in the first so many ms is the same one. */
export const SAME_MS = 15_000;

/**
 * `shown` is called when the list changes, with message changes at most once a second; `before`: what the process before this one has shown last.
 */
export function createTroubles(
  log: Log,
  shown: (list: readonly Trouble[]) => void,
  before: readonly Since[],
): Troubles {
  const entries = new Map<string, Trouble & { logged: boolean; told: number }>();
  const list = (): Trouble[] => [...entries.values()].map(({ what, since, message }) => ({ what, since, message }));
  return {
    get list() {
      return list();
    },
    set(what, message) {
      const now = Date.now();
      const entry = entries.get(what);
      if (message === undefined) {
        if (entry === undefined) return;
        entries.delete(what);
        if (entry.logged) log.warn(`${subject(what)} go on after ${Math.round((now - entry.since) / 1000)} s`);
        shown(list());
        return;
      }
      if (entry !== undefined) {
        entry.message = message;
        if (now - entry.told < 1000) return;
        entry.told = now;
        shown(list());
        return;
      }
      const known = performance.now() < SAME_MS ? before.find(t => t.what === what) : undefined;
      entries.set(what, { what, since: known?.since ?? now, message, logged: false, told: now });
      shown(list());
      const mine = entries.get(what)!;
      setTimeout(() => {
        if (entries.get(what) !== mine) return;
        mine.logged = true;
        log.warn(`${subject(what)} wait: ${mine.message}`);
      }, WORTH_MS).unref();
    },
  };
}
