/**
 * Blocks between memory and the store: how many at once, time limits, rates, and the form in which a block is stored ({@link BlockCodec}). One try each; who asks
 * decides about more.
 */
import { type ObjectStore, StoreError } from '../object/store.ts';

/** The one seam for compression and encryption: what lies between a block's bytes and its object. */
export interface BlockCodec {
  /** Whether a part of a block can be read without the rest. */
  readonly seekable: boolean;
  encode(pieces: readonly Uint8Array[]): Uint8Array[] | Promise<Uint8Array[]>;
  /** The store has done with what encode made. */
  discard?(stored: readonly Uint8Array[]): void;
  /** The whole block into `target` (its exact size); answers the bytes that there were. */
  load(store: ObjectStore, key: string, target: Uint8Array, signal: AbortSignal): Promise<number>;
}

export const plainCodec: BlockCodec = {
  seekable: true,
  encode: pieces => pieces as Uint8Array[],
  load: (store, key, target, signal) => store.get(key, 0, target, signal),
};

export interface TransferOptions {
  store: ObjectStore;
  codec: BlockCodec;
  maxUploads: number;
  maxDownloads: number;
  /** ms */
  putTimeout: number;
  getTimeout: number;
  /** Bytes a second, 0 = no limit. */
  uploadLimit: number;
  downloadLimit: number;
}

export interface Transfer {
  readonly uploading: number;
  /** False while all upload places are taken. */
  readonly canUpload: boolean;
  /**
   * Stores one object; the caller keeps `pieces` unchanged until `released` was called, which with a store that ignores a time-out may come after the rejection.
   */
  put(key: string, pieces: readonly Uint8Array[], size: number, tier: number, released: () => void): Promise<void>;
  /** Stores a small object at once; false: {@link Transfer.put} has to. Absent where that never is possible. */
  putNow?(key: string, pieces: readonly Uint8Array[], size: number): boolean;
  /**
   * The whole block. Rejects with StoreError 'io' when the object is shorter than `target`. After a rejection `failed` is called once nothing writes to `target` any
   * more, which with a store that ignores a time-out is later.
   */
  getBlock(key: string, target: Uint8Array, failed: () => void): Promise<void>;
  /** Part of a block; only with a seekable codec. */
  getRange(key: string, offset: number, target: Uint8Array, failed: () => void): Promise<void>;
  /** Part of a block that is at hand, into `target`; false: it has to be waited for. Absent where nothing ever is. */
  getNow?(key: string, offset: number, target: Uint8Array): boolean;
  /** Parts were at hand before: the store has a cache of its own (the page cache of a directory), and a second one of whole blocks gains nothing for reads of parts. */
  readonly cachedBelow: boolean;
  readonly seekable: boolean;
}

/** Blocks in another form at a time, each way: they are in memory beside the buffer. */
const CODED_MAX = 6;

export function createTransfer(options: TransferOptions): Transfer {
  const { store, codec } = options;
  const most = (places: number): number => (codec === plainCodec ? places : Math.min(places, CODED_MAX));
  const maxUploads = most(options.maxUploads);
  const upload = createRate(options.uploadLimit);
  const download = createRate(options.downloadLimit);
  const gets = createPlaces(most(options.maxDownloads));
  let uploading = 0;
  let cachedBelow = false;

  async function load(
    key: string,
    target: Uint8Array,
    failed: () => void,
    run: (signal: AbortSignal) => Promise<number>,
  ): Promise<void> {
    const place = gets.take();
    if (place !== undefined) await place;
    let work: Promise<number> | undefined;
    try {
      const pause = download.take(target.length);
      if (pause > 0) await sleep(pause);
      const got = await limited(options.getTimeout, `get ${key}`, signal => {
        work = run(signal);
        return work;
      });
      if (got !== target.length)
        throw new StoreError(
          'io',
          `get ${store}${key}: the object has ${got} bytes where ${target.length} are expected`,
        );
    } catch (error) {
      if (work === undefined) failed();
      else work.then(failed, failed);
      throw error;
    } finally {
      gets.give();
    }
  }

  return {
    get uploading() {
      return uploading;
    },
    get canUpload() {
      return uploading < maxUploads;
    },
    seekable: codec.seekable && store.limits.rangeGet,
    async put(key, pieces, size, tier, released) {
      uploading++;
      let work: Promise<void> | undefined;
      try {
        const pause = upload.take(size);
        if (pause > 0) await sleep(pause);
        const encoded = codec.encode(pieces);
        const stored = encoded instanceof Promise ? await encoded : encoded;
        await limited(options.putTimeout, `put ${key}`, signal => {
          work = store.put(key, stored, { tier, signal }).finally(() => codec.discard?.(stored));
          return work;
        });
      } finally {
        uploading--;
        if (work === undefined) released();
        else work.then(released, released);
      }
    },
    ...(codec === plainCodec && options.uploadLimit === 0 && store.putNow
      ? { putNow: (key: string, pieces: readonly Uint8Array[], size: number) => store.putNow!(key, pieces, size) }
      : {}),
    getBlock: (key, target, failed) => load(key, target, failed, signal => codec.load(store, key, target, signal)),
    ...(codec.seekable && options.downloadLimit === 0 && store.getNow
      ? {
          getNow(key: string, offset: number, target: Uint8Array) {
            if (store.getNow!(key, offset, target) !== target.length) return false;
            cachedBelow = true;
            return true;
          },
        }
      : {}),
    get cachedBelow() {
      return cachedBelow;
    },
    getRange: (key, offset, target, failed) =>
      load(key, target, failed, signal => store.get(key, offset, target, signal)),
  };
}

export const sleep = (ms: number): Promise<void> => new Promise(wake => setTimeout(wake, ms));

/** Ends the wait after `ms`; the work is told by the signal, and may go on if it does not listen. */
async function limited<T>(ms: number, what: string, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const control = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      run(control.signal),
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => {
          reject(new StoreError('timeout', `${what}: no answer in ${ms / 1000} s`));
          control.abort();
        }, ms);
        // The work itself keeps the process alive.
        timer.unref();
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

/** A token bucket with a tenth of a second of burst: how long (ms) to wait before the next bytes. */
function createRate(bytesPerSecond: number): { take(bytes: number): number } {
  if (bytesPerSecond <= 0) return { take: () => 0 };
  let free = 0;
  return {
    take(bytes) {
      const now = performance.now();
      const start = Math.max(free, now - 100);
      free = start + (bytes / bytesPerSecond) * 1000;
      return Math.max(0, start - now);
    },
  };
}

function createPlaces(count: number): { take(): Promise<void> | undefined; give(): void } {
  let left = count;
  const waiting: (() => void)[] = [];
  return {
    take() {
      if (left > 0) {
        left--;
        return undefined;
      }
      return new Promise(go => waiting.push(go));
    },
    give() {
      const next = waiting.shift();
      if (next) next();
      else left++;
    },
  };
}
