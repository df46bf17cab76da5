/** Objects that were stored without an fsync, by file: what an fsync that comes later has to make durable. */
import { EIO, ENOSPC } from '@steadfs/fuse/errno';
import type { Ino } from '../format/ino.ts';
import { StoreError } from '../object/store.ts';
import { sleep } from './transfer.ts';
import { RETRY_FIRST, type Trouble, text } from './trouble.ts';

/** Keys that are remembered; more, and the whole store is synced. */
const KEYS_MAX = 50_000;

export interface Unsynced {
  remember(ino: Ino, keys: readonly string[]): void;
  /** Nobody knows which objects: the next sync is one of the whole store. */
  unknown(): void;
  /** Settles when every object of the file is durable, those included that another call is making so. Throws EIO (ENOSPC) when the store cannot. */
  sync(ino: Ino): Promise<void>;
  forget(ino: Ino): void;
  stop(): void;
}

export function createUnsynced(options: {
  trouble: Trouble;
  syncObjects(keys: readonly string[]): Promise<void>;
  syncStore(): Promise<void>;
}): Unsynced {
  const files = new Map<Ino, string[]>();
  let count = 0;
  /** Objects of a process before us, or too many to remember. */
  let elsewhere = false;
  /** Syncs under way. */
  let store: Promise<void> | undefined;
  const under = new Map<Ino, Promise<void>>();
  let stopped = false;

  function remember(ino: Ino, keys: readonly string[]): void {
    if (elsewhere) return;
    const list = files.get(ino);
    if (list === undefined) files.set(ino, [...keys]);
    else for (const key of keys) list.push(key);
    count += keys.length;
    if (count > KEYS_MAX) {
      files.clear();
      count = 0;
      elsewhere = true;
    }
  }

  function forget(ino: Ino): void {
    count -= files.get(ino)?.length ?? 0;
    files.delete(ino);
  }

  async function persistently(work: () => Promise<void>): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        return await work();
      } catch (error) {
        options.trouble.failing(text(error));
        if (tries < 6 && !stopped && !(error instanceof StoreError && !error.retry)) {
          await sleep(RETRY_FIRST * 4 ** tries);
          continue;
        }
        throw error instanceof StoreError && error.kind === 'no-space'
          ? ENOSPC
          : EIO.because('fsync of objects', error);
      }
    }
  }

  async function syncStore(): Promise<void> {
    elsewhere = false;
    try {
      await persistently(options.syncStore);
    } catch (error) {
      elsewhere = true;
      throw error;
    }
  }

  async function syncFile(ino: Ino, keys: readonly string[]): Promise<void> {
    forget(ino);
    try {
      await persistently(() => options.syncObjects(keys));
    } catch (error) {
      remember(ino, keys);
      throw error;
    }
  }

  return {
    remember,
    forget,
    unknown() {
      elsewhere = true;
    },
    async sync(ino) {
      // What one under way takes care of is waited for; should it fail, its keys are ours again.
      while (store !== undefined || under.has(ino)) await (store ?? under.get(ino)!).catch(() => {});
      if (elsewhere) {
        store = syncStore().finally(() => {
          store = undefined;
        });
        await store;
      }
      const keys = files.get(ino);
      if (keys === undefined) return;
      const work = syncFile(ino, keys).finally(() => under.delete(ino));
      under.set(ino, work);
      await work;
    },
    stop() {
      stopped = true;
    },
  };
}
