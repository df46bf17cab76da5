/**
 * Invalidation between clients on PostgreSQL. What a mutation changed is announced by NOTIFY after its commit, many changes in one statement of
 * their own (inside the mutation it would serialise commits: research measured 14,591 → 5,015 transactions a second), and heard on a
 * connection that LISTENs. A client that knows to be alone announces nothing.
 *
 * Attributes and names may be answered from memory only while (a) the listening connection hears: a probe of ours that was sent less than
 * {@link HEARD_MS} ago has come back (a route that is gone says nothing for minutes), (b) every session has declared that it announces
 * (`pushes` in its SessionInfo) and ours is among them, so that others announce to us, which is looked up again at least once in
 * {@link CHECK_MS}, and (c) they are younger than {@link AGE_MAX_MS}, for whoever died between commit and announcement. So a client without
 * announcements that mounts the volume is noticed within a second, the default of --attr-cache. Whatever was remembered before a time
 * without trust in which such a client may have been there is forgotten. open(2) asks the database in any case.
 *
 * Not covered but by (c): changes by commands of the Go client that have no session (restore, sync, gc).
 */
import { createHash, randomBytes } from 'node:crypto';
import { type Ino, inoFromBigint, inoToBigint } from '../../format/ino.ts';
import type { Listening, SqlPool } from './connection.ts';

const CHECK_MS = 1000;
const AGE_MAX_MS = 30_000;
const HEARD_MS = 2 * CHECK_MS;
/** A listening connection that has heard before is given up when it does not hear a probe for this long. */
const SILENCE_MS = 10_000;
/** How long changes are collected. */
const BATCH_MS = 10;
/** A client trusts what it hears when others have had time to notice it: a client that knows to be alone announces nothing. */
const NOTICED_MS = 3 * CHECK_MS;
/** The same where the first look finds nobody else: only a command without a session may still believe that it is alone, by a look that counts so long. */
const ALONE_MS = 1.25 * CHECK_MS;
/** A payload is shorter than 8000 bytes. */
const PAYLOAD_MAX = 7500;
const AGAIN_MS = 1000;
const REMEMBERED = 20_000;

export type Touched = 'a' | 'e' | 'd';

export interface Sessions {
  /** All announce what they change. */
  allPush: boolean;
  /** There are others than ours. */
  others: boolean;
  /** Ours is there. */
  ours: boolean;
  /** Sessions that there ever were: who came and went between two looks changed it. */
  made: number;
}

export interface PushHost {
  pool: SqlPool;
  /** All sessions that are recorded, of one moment. */
  sessions(): Promise<Sessions>;
  /** undefined: everything may have changed. */
  changed(ino: Ino | undefined, what: Touched): void;
  trouble(e: unknown): void;
}

export interface Push {
  /** Opens the listening connection; without one there is no caching. Called again for each session. */
  start(): void;
  /** After a commit, or when its outcome is unknown. */
  touched(what: Touched, ino: Ino): void;
  /** The same for a change of ours that the caller has put into what is remembered. */
  touchedByUs(what: Touched, ino: Ino): void;
  /** Others may have missed announcements of ours. */
  everything(): void;
  /** Whether memory may answer now. */
  trusted(): boolean;
  /** The present, for {@link storable}. */
  mark(): number;
  /** Whether a row that was fetched since `mark` may be remembered: it was not invalidated meanwhile. */
  storable(ino: Ino, mark: number): boolean;
  /** Announces what is left. */
  flush(): Promise<void>;
  close(): Promise<void>;
}

/** A channel is a name in the database: volumes in other schemas or with other prefixes have their own. */
export function channelOf(uuid: string, prefix: string): string {
  return `steadfs_${createHash('sha256').update(`${uuid}/${prefix}`).digest('hex').slice(0, 24)}`;
}

export function openPush(host: PushHost, channel: string): Push {
  const { pool } = host;
  const self = randomBytes(6).toString('base64url');
  let listening: Listening | undefined;
  /** When the last probe that was heard had been sent. */
  let heardAt = Number.NEGATIVE_INFINITY;
  /** When the first probe was sent that nothing was heard after. */
  let unheardSince: number | undefined;
  let started = false;
  let closed = false;
  let retry: NodeJS.Timeout | undefined;
  let timer: NodeJS.Timeout | undefined;
  let pending = new Set<string>();
  let sending: Promise<void> = Promise.resolve();
  let checkedAt = Number.NEGATIVE_INFINITY;
  let known: Sessions | undefined;
  /** Since when every look has found our session. */
  let seenSince = Number.POSITIVE_INFINITY;
  let noticedAfter = NOTICED_MS;
  let checking = false;
  let clearedAt = 0;
  /** Count of invalidations, and when each inode was last invalidated. */
  let now = 1;
  let floor = 0;
  const last = new Map<Ino, number>();

  function invalidate(what: Touched, ino: Ino): void {
    if (last.size >= REMEMBERED) {
      last.clear();
      floor = now;
    }
    last.set(ino, ++now);
    host.changed(ino, what);
  }

  function dropAll(): void {
    last.clear();
    floor = ++now;
    host.changed(undefined, 'a');
  }

  /** `SENDER:` and words like `a1z` (inode in base 36), `*` (everything) or `?123` (a probe, sent at that time). */
  function hear(payload: string): void {
    const colon = payload.indexOf(':');
    const own = payload.slice(0, colon) === self;
    for (const word of payload.slice(colon + 1).split(',')) {
      if (own) {
        if (word[0] !== '?') continue;
        heardAt = Math.max(heardAt, Number(word.slice(1)));
        unheardSince = undefined;
      } else if (word === '*') dropAll();
      else if (/^[aed][0-9a-z]+$/.test(word)) {
        let n = 0n;
        for (const c of word.slice(1)) n = n * 36n + BigInt(Number.parseInt(c, 36));
        invalidate(word[0] as Touched, inoFromBigint(n));
      }
    }
  }

  const notify = (words: string): Promise<unknown> =>
    pool.use(c => c.all('SELECT pg_notify(?, ?)', [channel, `${self}:${words}`]));

  async function send(): Promise<void> {
    timer = undefined;
    const words = [...pending];
    pending = new Set();
    let at = 0;
    try {
      while (at < words.length) {
        let text = words[at]!;
        let next = at + 1;
        while (next < words.length && text.length + words[next]!.length < PAYLOAD_MAX) text += `,${words[next++]}`;
        await notify(text);
        at = next;
      }
    } catch (e) {
      host.trouble(e);
      for (const word of words.slice(at)) pending.add(word);
      if (!closed) timer ??= setTimeout(sendNext, AGAIN_MS);
    }
  }

  function sendNext(): void {
    sending = sending.then(send);
  }

  function announce(word: string): void {
    const at = performance.now();
    if (at - checkedAt > CHECK_MS / 2 && !checking && !closed) void check();
    if (known?.others === false && at - checkedAt < CHECK_MS) return;
    pending.add(word);
    timer ??= setTimeout(sendNext, BATCH_MS);
  }

  async function listen(): Promise<void> {
    if (closed || pool.listen === undefined) return;
    try {
      const connection = await pool.listen(channel, hear, () => {
        // What was missed is unknown.
        listening = undefined;
        heardAt = Number.NEGATIVE_INFINITY;
        unheardSince = undefined;
        dropAll();
        if (!closed) retry = setTimeout(() => void listen(), AGAIN_MS);
      });
      if (closed) return await connection.close();
      listening = connection;
      dropAll();
      await probe();
    } catch {
      // Unheard, nothing is cached: slower, not wrong. The statements of the mount tell of the outage.
      if (!closed && listening === undefined) retry = setTimeout(() => void listen(), AGAIN_MS);
    }
  }

  /** Through a pooler in transaction mode this is never heard, and nothing is cached. */
  async function probe(): Promise<void> {
    if (listening === undefined) return;
    const at = Math.floor(performance.now());
    unheardSince ??= at;
    if (at - unheardSince > SILENCE_MS && heardAt > 0) listening.drop();
    else await notify(`?${at}`);
  }

  async function check(): Promise<void> {
    checking = true;
    const at = performance.now();
    try {
      const [found] = await Promise.all([host.sessions(), probe()]);
      const unbroken = known?.allPush && known.ours && known.made === found.made;
      known = found;
      checkedAt = at;
      if (!found.ours) seenSince = Number.POSITIVE_INFINITY;
      else if (seenSince > at) {
        seenSince = at;
        noticedAfter = found.others ? NOTICED_MS : ALONE_MS;
      }
      if (!unbroken) dropAll();
    } catch {
      // Who is there is unknown: nothing is trusted until the next look.
      checkedAt = Number.NEGATIVE_INFINITY;
    } finally {
      checking = false;
    }
  }

  return {
    start() {
      // Nobody announced to us between the last session's end and now.
      known = undefined;
      checkedAt = Number.NEGATIVE_INFINITY;
      seenSince = Number.POSITIVE_INFINITY;
      if (!started) void listen();
      started = true;
      if (!checking) void check();
    },
    touched(what, ino) {
      invalidate(what, ino);
      announce(`${what}${inoToBigint(ino).toString(36)}`);
    },
    touchedByUs(what, ino) {
      last.set(ino, ++now);
      announce(`${what}${inoToBigint(ino).toString(36)}`);
    },
    everything() {
      dropAll();
      announce('*');
    },
    trusted() {
      if (!started || closed) return false;
      const at = performance.now();
      if (at - checkedAt > CHECK_MS / 2 && !checking) void check();
      if (at - clearedAt > AGE_MAX_MS) {
        clearedAt = at;
        dropAll();
      }
      return (
        known?.allPush === true && at - checkedAt < CHECK_MS && at - heardAt < HEARD_MS && at - seenSince > noticedAfter
      );
    },
    mark: () => now,
    storable: (ino, mark) => (last.get(ino) ?? floor) <= mark,
    async flush() {
      clearTimeout(timer);
      timer = undefined;
      sending = sending.then(send);
      await sending;
    },
    async close() {
      closed = true;
      clearTimeout(retry);
      clearTimeout(timer);
      if (pending.size > 0) {
        sending = sending.then(send);
        await sending;
      }
      await listening?.close();
    },
  };
}
