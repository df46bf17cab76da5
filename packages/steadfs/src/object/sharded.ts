/**
 * One volume over several buckets (spec/volume.md §5): shard of a key = FNV-1a-32 of the full key modulo the number of shards.
 * The bucket pattern has `%d` where the number goes.
 */
import type { ObjectInfo, ObjectStore } from './store.ts';

/** FNV-1a, 32 bits, over the UTF-8 bytes. */
export function fnv1a32(key: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(key)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** The bucket names of a pattern: `…/b-%d/` → 0..shards-1. */
export function shardBuckets(pattern: string, shards: number): string[] {
  if (!pattern.includes('%d')) throw new Error(`a volume of ${shards} shards needs %d in its bucket: ${pattern}`);
  return Array.from({ length: shards }, (_, i) => pattern.replace('%d', String(i)));
}

export function createShardedStore(stores: readonly ObjectStore[]): ObjectStore {
  const of = (key: string): ObjectStore => stores[fnv1a32(key) % stores.length]!;
  return {
    toString: () => `${stores.length} shards: ${stores[0]} …`,
    limits: { rangeGet: stores.every(s => s.limits.rangeGet) },
    create: async () => void (await Promise.all(stores.map(s => s.create()))),
    put: (key, pieces, options) => of(key).put(key, pieces, options),
    get: (key, offset, target, signal) => of(key).get(key, offset, target, signal),
    ...(stores.every(s => s.putNow) ? { putNow: (key, pieces, size) => of(key).putNow!(key, pieces, size) } : {}),
    ...(stores.every(s => s.getNow) ? { getNow: (key, offset, target) => of(key).getNow!(key, offset, target) } : {}),
    read: (key, max) => of(key).read(key, max),
    head: key => of(key).head(key),
    delete: key => of(key).delete(key),
    async list(prefix, after, limit) {
      const pages = await Promise.all(stores.map(s => s.list(prefix, after, limit)));
      const bytes = (o: ObjectInfo): Buffer => Buffer.from(o.key);
      const all = pages.flatMap(p => p.objects).sort((a, b) => Buffer.compare(bytes(a), bytes(b)));
      return { objects: all.slice(0, limit), more: all.length > limit || pages.some(p => p.more) };
    },
    async sync(keys) {
      const groups = Map.groupBy(keys, of);
      await Promise.all([...groups].map(([store, group]) => store.sync(group)));
    },
    ...(stores.some(s => s.syncAll)
      ? { syncAll: async () => void (await Promise.all(stores.map(s => s.syncAll?.()))) }
      : {}),
    close: async () => void (await Promise.all(stores.map(s => s.close()))),
  };
}
