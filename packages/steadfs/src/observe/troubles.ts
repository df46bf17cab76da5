/** What keeps a mount's operations waiting, and since when: for `status` and the log. */
import type { Log } from './log.ts';

export interface Trouble {
  /** 'database', 'reads', 'writes' */
  what: string;
  /** Milliseconds since 1970. */
  since: number;
  message: string;
}

export interface Troubles {
  /** Something fails and is tried again; undefined: it works. */
  set(what: string, message: string | undefined): void;
  readonly list: readonly Trouble[];
}

/** Shorter ones are not worth a line of the log. */
const WORTH_MS = 1000;

const subject = (what: string): string => (what === 'database' ? 'operations on the database' : what);

/** `shown` is called when the list changes, with message changes at most once a second. */
export function createTroubles(log: Log, shown: (list: readonly Trouble[]) => void): Troubles {
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
      entries.set(what, { what, since: now, message, logged: false, told: now });
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
