/**
 * The store of a mount, which follows the volume's settings: with another bucket or other keys (`config`) a new store takes over, and the old one is closed when
 * its last call has ended. A call that is denied looks at the settings at once, and is made again when they changed.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Format } from '../format/volume.ts';
import { type ObjectStore, StoreError } from './store.ts';

export interface FollowingStore extends ObjectStore {
  /** The settings are these now. Never rejects: a store that cannot be opened leaves the one before in its place, and a warning. */
  follow(format: Format): Promise<void>;
}

export interface FollowingOptions {
  format: Format;
  open(format: Format): Promise<ObjectStore>;
  /** The settings as they are stored now. */
  reload(): Promise<Format | undefined>;
  log(level: 'info' | 'warn', message: string): void;
}

/** Looks at the settings at most this often (ms) because of denied calls. */
const RELOAD_PAUSE = 1000;

/** What a store is made of. */
function parts(f: Format): unknown[] {
  return [f.Storage, f.Bucket, f.AccessKey, f.SecretKey, f.SessionToken, f.StorageClass, f.Tiers].map(v => v ?? '');
}

interface Current {
  store: ObjectStore;
  calls: number;
  /** Another one took its place. */
  replaced: boolean;
}

export async function createFollowingStore(options: FollowingOptions): Promise<FollowingStore> {
  const first = await options.open(options.format);
  let current: Current = { store: first, calls: 0, replaced: false };
  let made = parts(options.format);
  let turn: Promise<void> = Promise.resolve();
  let reloading: Promise<void> | undefined;
  let reloaded = Number.NEGATIVE_INFINITY;

  async function close({ store }: Current): Promise<void> {
    try {
      await store.close();
    } catch (error) {
      options.log('warn', `closing ${store}: ${error instanceof Error ? error.message : error}`);
    }
  }

  async function change(format: Format): Promise<void> {
    const wanted = parts(format);
    if (isDeepStrictEqual(wanted, made)) return;
    try {
      const store = await options.open(format);
      const before = current;
      current = { store, calls: 0, replaced: false };
      made = wanted;
      before.replaced = true;
      if (before.calls === 0) await close(before);
      options.log('info', `data uses ${store} from now on, with the settings of the volume`);
    } catch (error) {
      options.log(
        'warn',
        `the storage in the volume's settings cannot be used, the one before stays: ${error instanceof Error ? error.message : error}`,
      );
    }
  }

  function follow(format: Format): Promise<void> {
    turn = turn.then(() => change(format));
    return turn;
  }

  /** At once, or not at all when that was done just now. */
  function look(): Promise<void> {
    if (reloading !== undefined) return reloading;
    if (performance.now() - reloaded < RELOAD_PAUSE) return turn;
    reloading = options
      .reload()
      .then(format => (format === undefined ? turn : follow(format)))
      .catch((error: unknown) =>
        options.log('warn', `the settings cannot be read: ${error instanceof Error ? error.message : error}`),
      )
      .finally(() => {
        reloaded = performance.now();
        reloading = undefined;
      });
    return reloading;
  }

  async function call<T>(work: (store: ObjectStore) => Promise<T>): Promise<T> {
    for (let again = false; ; again = true) {
      const used = current;
      used.calls++;
      try {
        return await work(used.store);
      } catch (error) {
        if (again || !(error instanceof StoreError) || error.kind !== 'denied') throw error;
        await look();
        if (current === used) throw error;
      } finally {
        if (--used.calls === 0 && used.replaced) void close(used);
      }
    }
  }

  return {
    toString: () => current.store.toString(),
    get limits() {
      return current.store.limits;
    },
    create: () => call(s => s.create()),
    put: (key, pieces, put) => call(s => s.put(key, pieces, put)),
    get: (key, offset, target, signal) => call(s => s.get(key, offset, target, signal)),
    ...(first.putNow ? { putNow: (key, pieces, size) => current.store.putNow?.(key, pieces, size) ?? false } : {}),
    ...(first.getNow ? { getNow: (key, offset, target) => current.store.getNow?.(key, offset, target) } : {}),
    read: (key, max) => call(s => s.read(key, max)),
    head: key => call(s => s.head(key)),
    delete: key => call(s => s.delete(key)),
    list: (prefix, after, limit) => call(s => s.list(prefix, after, limit)),
    sync: keys => call(s => s.sync(keys)),
    ...(first.syncAll ? { syncAll: () => call(async s => await s.syncAll?.()) } : {}),
    close: () => current.store.close(),
    follow,
  };
}
