/**
 * What every part of the engine stands on: the connection, what is known of the volume and the session, scripts as they are called, and what their answers mean for
 * the cache.
 */
import { EINTR, EIO, EROFS, type Errno, errnoOf } from '@steadfs/fuse/errno';
import type { AclRule } from '../../format/acl.ts';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoFromBigint, inoToString } from '../../format/ino.ts';
import type { Format } from '../../format/volume.ts';
import { Cache } from '../cache.ts';
import { now } from '../clock.ts';
import {
  type Cred,
  type Dentry,
  type EngineOptions,
  type Entry,
  type Op,
  type Removed,
  SESSION_LOST,
  type SessionIdentity,
} from '../engine.ts';
import { asBuffer, asList, errnoFor, readEntry, readRemoved } from './forms.ts';
import { GivenUp, Link, type Lost } from './link.ts';
import { type Arg, type Reply, ReplyError } from './resp.ts';
import { packContext, type Script, type Scripts, scripts } from './script.ts';
import { checkServer } from './server-check.ts';
import type { RedisUrl } from './url.ts';

export const EMPTY = new Uint8Array(0);
const NO_HEAD = Buffer.alloc(20);
/** Cached answers are given while the server was heard from within this time; a silent connection may have lost pushes. */
const FRESH_MS = 3000;
const PING_MS = 1000;

/** A script wants to know something before it goes on. */
export class Question {
  readonly kind: string;
  readonly value: Buffer;
  constructor(kind: string, value: Buffer) {
    this.kind = kind;
    this.value = value;
  }
}

/** Result of a script, in the order of the stream. fresh: carried out now, not answered from the record. */
export type Take<T> = (main: Buffer, fresh: boolean, extra: Buffer) => T;

interface LockWait {
  changed: boolean;
  wake: Set<() => void>;
}

interface Call {
  keys: readonly Arg[];
  args: readonly Arg[];
  cred?: Cred;
  /** The script asks for the caller's groups in any case. */
  groups?: boolean;
  /** No op record: repeatable. */
  unrecorded?: boolean;
}

/** What changes in the life of an engine. */
interface State {
  format: Format | undefined;
  /** As it was read, for comparison. */
  settingText: string;
  session: { identity: SessionIdentity; info: Buffer; head: Buffer } | undefined;
  /** Why the session is lost. */
  lost: string | undefined;
  /** Number of the change-log transaction. */
  txn: number;
}

export type Core = Awaited<ReturnType<typeof createCore>>;

/** Connects. */
export async function createCore(url: RedisUrl, options: EngineOptions) {
  const state: State = { format: undefined, settingText: '', session: undefined, lost: undefined, txn: 0 };
  /** What to forget when the connection is lost. */
  const downs: (() => void)[] = [];
  const cache = new Cache(url.cacheSize);
  const lockWaits = new Map<Ino, LockWait>();
  let prefix = '';

  const link = new Link(url, options.retries, {
    up() {},
    down() {
      cache.clear();
      for (const forget of downs) forget();
      for (const w of lockWaits.values()) wakeAll(w);
    },
    push(items) {
      if (String(items[0]) !== 'invalidate') return;
      const keys = items[1];
      if (!Array.isArray(keys)) cache.clear();
      else for (const k of keys) if (Buffer.isBuffer(k)) invalidate(k.toString('latin1'));
    },
    trouble: m => options.events.trouble(m === undefined ? undefined : `${url.display}: ${m}`),
  });

  try {
    await link.open();
  } catch (e) {
    link.close();
    throw errnoFor(e, url.display);
  }

  if (link.cluster) prefix = `{${url.db}}`;

  const S: Scripts = scripts(prefix);

  await checkServer(link, url, m => options.events.warning?.(m));

  const rules = new Map<number, AclRule>();

  function wakeAll(w: LockWait): void {
    w.changed = true;
    for (const f of w.wake) f();
    w.wake.clear();
  }

  function lockChanged(ino: Ino): void {
    const w = lockWaits.get(ino);
    if (w !== undefined) wakeAll(w);
  }

  /** A key that we read was changed elsewhere (or the server forgot that we read it). */
  function invalidate(whole: string): void {
    if (!whole.startsWith(prefix)) return;
    const key = whole.slice(prefix.length);
    const m = /^(i|d|c|lockf|lockp)(\d+)(?:_\d+)?$/.exec(key);
    if (m === null) return;
    let ino: Ino;
    try {
      ino = inoFromBigint(BigInt(m[2]!));
    } catch {
      // No inode of the format: a key that we never read.
      return;
    }
    switch (m[1]) {
      case 'i':
        cache.dropAttr(ino);
        options.events.changed(ino, 'attr');
        break;
      case 'd':
        cache.changed(ino);
        options.events.changed(ino, 'entries');
        break;
      case 'c':
        options.events.changed(ino, 'data');
        break;
      default:
        lockChanged(ino);
    }
  }

  /** Cached answers are as good as the server's. */
  function fresh(): boolean {
    if (!link.tracking || !link.drain() || !link.tracking) return false;
    const age = performance.now() - link.lastReply;
    if (age < PING_MS) return true;
    link.call(['PING'], true, () => {});
    return age < FRESH_MS;
  }

  const iKey = (ino: Ino): string => `${prefix}i${inoToString(ino)}`;

  const dKey = (ino: Ino): string => `${prefix}d${inoToString(ino)}`;

  const key = (name: string): string => prefix + name;

  function need(): Format {
    if (state.format === undefined) throw EIO.because('the volume has not been loaded');
    return state.format;
  }

  function ask(...args: Arg[]): Promise<Reply> {
    return link.ask(args).catch((e: unknown) => {
      throw errnoFor(e, String(args[0]));
    });
  }

  /** EVALSHA, and EVAL when the server does not know the script. */
  function evaluate(
    s: Script,
    keys: readonly Arg[],
    args: readonly Arg[],
    again: boolean,
    done: (r: Reply | Lost) => void,
    op?: Op,
  ): void {
    const known = (r: Reply | Lost): void => {
      if (r instanceof ReplyError && r.kind === 'NOSCRIPT')
        link.call(['EVAL', s.source, keys.length, ...keys, ...args], again, done, op);
      else done(r);
    };
    link.call(['EVALSHA', s.sha, keys.length, ...keys, ...args], again, known, op);
  }

  function run(s: Script, keys: readonly Arg[], args: readonly Arg[], again = true): Promise<Reply> {
    return new Promise((resolve, reject) => {
      evaluate(s, keys, args, again, r => (r instanceof Error ? reject(errnoFor(r, 'script')) : resolve(r)));
    });
  }

  /** The same, with `take` called in the order of the stream. */
  function runTake<T>(s: Script, keys: readonly Arg[], args: readonly Arg[], take: (r: Reply) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      evaluate(s, keys, args, true, r => {
        if (r instanceof Error) return reject(errnoFor(r, 'script'));
        try {
          resolve(take(r));
        } catch (e) {
          reject(e);
        }
      });
    });
  }

  function readTake<T>(args: readonly Arg[], take: (r: Reply) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      link.call(args, true, r => {
        if (r instanceof Error) return reject(errnoFor(r, String(args[0])));
        try {
          resolve(take(r));
        } catch (e) {
          reject(e);
        }
      });
    });
  }

  function sessionLost(reason: string): Errno {
    if (state.lost === undefined) {
      state.lost = reason;
      cache.clear();
      options.events.sessionLost(reason);
    }
    return EIO.because(`session lost: ${reason}`, SESSION_LOST);
  }

  /** Carries a mutation out. Rejects with a Question when the script asks one. */
  function mutate<T>(s: Script, op: Op | undefined, call: Call, take: Take<T>): Promise<T> {
    if (options.readOnly) return Promise.reject(EROFS);
    if (state.lost !== undefined) return Promise.reject(EIO.because(`session lost: ${state.lost}`, SESSION_LOST));
    const f = need();
    const record = op !== undefined && state.session !== undefined && call.unrecorded !== true;
    const context = packContext(
      {
        head: state.session?.head ?? NO_HEAD,
        session: state.session !== undefined,
        record,
        tracking: link.tracking,
        skipDirMtime: options.skipDirMtime,
        format: f,
      },
      op,
      now(),
      call.cred,
      call.groups === true,
    );
    const sid = state.session?.identity.sid ?? 0;
    const field = record ? `${op.kind}.${op.slot}` : '';
    // A cluster wants to know where to send it.
    const keys = link.cluster && call.keys.length === 0 ? [key('setting')] : call.keys;
    // A script without record that was lost may have been carried out: repeating it is only right where that does no harm.
    const again = record || call.unrecorded === true;
    return new Promise((resolve, reject) => {
      evaluate(
        s,
        keys,
        [context, field, sid, f.ChangeLog ? ++state.txn : 0, ...call.args],
        again,
        r => {
          if (r instanceof GivenUp && op !== undefined) {
            // What was sent may be on its way yet: a record without effect keeps it from having one.
            if (r.sent && record)
              mutate(S.nothing, { ...op, over: false }, { args: [], keys: [] }, take).then(resolve, reject);
            else reject(EINTR);
            return;
          }
          if (r instanceof Error) return reject(errnoFor(r, 'mutation'));
          try {
            const b = asBuffer(r);
            switch (b[0]) {
              case 0x4b: {
                // K
                if (s === S.nothing) return reject(EINTR);
                const end = 5 + b.readUInt32BE(1);
                resolve(take(b.subarray(5, end), true, b.subarray(end)));
                return;
              }
              case 0x52: // R
                resolve(take(b.subarray(1), false, b.subarray(b.length)));
                return;
              case 0x45: // E
                reject(b.length > 2 ? errnoOf(b[1]!).because(b.toString('utf8', 2)) : errnoOf(b[1]!));
                return;
              case 0x4c: // L
                reject(sessionLost(b.toString('utf8', 1)));
                return;
              default:
                reject(new Question(String.fromCharCode(b[0]!), b.subarray(1)));
            }
          } catch (e) {
            reject(e);
          }
        },
        op,
      );
    });
  }

  /** Directories that the script wrote, after their declared keys were read again. */
  function keepExtra(extra: Buffer): void {
    if (!link.tracking) return;
    for (let at = 0; at < extra.length; ) {
      const { entry, next } = readEntry(extra, at);
      cache.setAttr(entry.ino, entry.attr);
      at = next;
    }
  }

  /** `declared`: the inode's key was among KEYS. */
  function keepAttr(e: Entry, isFresh: boolean, declared: boolean): void {
    if (isFresh && declared && link.tracking) cache.setAttr(e.ino, { ...e.attr });
    else cache.dropAttr(e.ino);
  }

  function keepName(parent: Ino, name: string, d: Dentry | null, isFresh: boolean): void {
    if (isFresh && link.tracking) cache.setName(parent, name, d);
    else cache.dropDir(parent);
  }

  const takeEntry =
    (declared: boolean): Take<Entry> =>
    (main, isFresh, extra) => {
      const { entry } = readEntry(main, 0);
      keepAttr(entry, isFresh, declared);
      keepExtra(extra);
      return entry;
    };

  const takeAttr: Take<Attr> = (main, isFresh) => {
    const { entry } = readEntry(main, 0);
    keepAttr(entry, isFresh, true);
    return entry.attr;
  };

  function takeRemoved(
    main: Buffer,
    at: number,
    hint: Ino | undefined,
    isFresh: boolean,
  ): { removed: Removed; next: number } {
    const r = readRemoved(main, at);
    const { ino, attr, state } = r.removed;
    if (state === 'gone' || state === 'deleted') cache.dropAttr(ino);
    else keepAttr({ ino, attr }, isFresh, ino === hint);
    if (attr.type === FileType.directory) cache.dropDir(ino);
    return r;
  }

  function logStamp(): string {
    if (!state.format?.ChangeLog) return '';
    const t = now();
    return `${t.sec}.${String(t.nsec).padStart(9, '0')}`;
  }

  /** All fields of a hash. */
  async function* hashFields(name: string): AsyncGenerator<[Buffer, Buffer]> {
    for (let cursor = '0'; ; ) {
      const [next, flat] = asList(await ask('HSCAN', key(name), cursor, 'COUNT', '1000'));
      const list = asList(flat);
      for (let i = 0; i < list.length; i += 2) yield [asBuffer(list[i]), asBuffer(list[i + 1])];
      cursor = String(next);
      if (cursor === '0') return;
    }
  }

  return {
    S,
    ask,
    cache,
    dKey,
    downs,
    fresh,
    hashFields,
    iKey,
    keepAttr,
    keepExtra,
    keepName,
    key,
    link,
    lockChanged,
    lockWaits,
    logStamp,
    mutate,
    need,
    options,
    prefix,
    readTake,
    rules,
    run,
    runTake,
    sessionLost,
    state,
    takeAttr,
    takeEntry,
    takeRemoved,
    url,
  };
}
