/** The ObjectStore contract: what a volume's blocks are kept in. Keys are without the bucket, with the volume prefix ("NAME/chunks/…"). */

export interface ObjectInfo {
  key: string;
  size: number;
  /** Unix seconds, fractions allowed. */
  mtime: number;
}

export interface PutOptions {
  /** Storage class and tag of the file's tier, where the store has them. */
  tier?: number;
  signal?: AbortSignal;
}

/**
 * Every call rejects with a StoreError. All are safe to repeat: a key is only ever written with one content.
 */
export interface ObjectStore {
  /** For people: "file:///var/steadfs/myvol/"; no secrets. */
  toString(): string;
  readonly limits: { rangeGet: boolean };
  /** Makes the bucket where that is possible (mkdir). */
  create(): Promise<void>;
  /**
   * Atomic: the object is there whole or not at all. `pieces` are written one after the other, and must not change until the
   * promise settles. Not durable until `sync`.
   */
  put(key: string, pieces: readonly Uint8Array[], options?: PutOptions): Promise<void>;
  /**
   * Like `put`, where it takes no longer than copying the bytes: true when the object is there. False: `put` has to be called, which also says why. Never throws;
   * absent where nothing is ever so fast.
   */
  putNow?(key: string, pieces: readonly Uint8Array[], size: number): boolean;
  /**
   * Bytes [offset, offset+length) into `target` (its length), the whole object when offset is 0 and target is as long as it.
   * Answers the bytes read: fewer only at the object's end.
   */
  get(key: string, offset: number, target: Uint8Array, signal?: AbortSignal): Promise<number>;
  /**
   * Like `get`, for what is at hand: the bytes read, or undefined where a disk or a network would have to be waited for (or it cannot be told). Never throws; absent
   * where nothing is ever at hand.
   */
  getNow?(key: string, offset: number, target: Uint8Array): number | undefined;
  /** The whole object, for small ones of unknown size. At most `max` bytes (else StoreError 'too-large'). */
  read(key: string, max: number): Promise<Buffer>;
  head(key: string): Promise<ObjectInfo>;
  /** An object that is not there is success. */
  delete(key: string): Promise<void>;
  /** Keys under `prefix` in byte order, after `after`, at most `limit`; `more` tells whether there are others. */
  list(prefix: string, after: string, limit: number): Promise<{ objects: ObjectInfo[]; more: boolean }>;
  /**
   * Makes the objects of these keys durable, names included (file: fsync of file and directories); a store whose put is durable
   * (S3) answers at once.
   */
  sync(keys: readonly string[]): Promise<void>;
  /** Makes durable whatever was put by any process of this machine (after a restart nobody knows the keys). Absent where a put is durable. */
  syncAll?(): Promise<void>;
  close(): Promise<void>;
}

export type StoreErrorKind =
  | 'not-found'
  | 'denied'
  | 'no-space'
  | 'throttled'
  | 'timeout'
  | 'too-large'
  | 'invalid'
  /** The store cannot be reached, or says that it cannot serve now: whoever waits for it goes on waiting. */
  | 'away'
  | 'io';

export class StoreError extends Error {
  readonly kind: StoreErrorKind;
  /** Whether the same call may succeed later. */
  readonly retry: boolean;
  /** The store's fault of the moment, not the object's. */
  readonly away: boolean;

  constructor(kind: StoreErrorKind, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StoreError';
    this.kind = kind;
    this.away = kind === 'away' || kind === 'throttled' || kind === 'timeout';
    this.retry = this.away || kind === 'io' || kind === 'no-space';
  }
}
