/** The stores that a volume can have, by the name in its setting (`Storage`). A new store is one folder or file and one line here. */
import type { Format } from '../format/volume.ts';
import { createFileStore } from './file.ts';
import { createMemStore } from './mem.ts';
import { createShardedStore, shardBuckets } from './sharded.ts';
import { type ObjectStore, StoreError } from './store.ts';

type Opener = (format: Format, bucket: string) => ObjectStore | Promise<ObjectStore>;

/** Its client is loaded when it is used first. */
const s3: Opener = async (format, bucket) => {
  const { createS3Store } = await import('./s3.ts');
  const tiers = Object.values(format.Tiers ?? {}).map(
    t => [t.ID, { storageClass: t.StorageClass, tag: t.Tag }] as const,
  );
  return createS3Store({
    storage: format.Storage.toLowerCase() as 's3' | 'minio',
    bucket,
    accessKey: format.AccessKey,
    secretKey: format.SecretKey,
    sessionToken: format.SessionToken,
    tiers: {
      0: { storageClass: format.StorageClass ?? '', tag: '' },
      ...Object.fromEntries(tiers.filter(([id, t]) => id !== 0 || t.storageClass || t.tag)),
    },
    hedgeAfter: 1000,
  });
};

const STORES: Record<string, Opener> = {
  file: (_format, bucket) => createFileStore({ root: bucket }),
  mem: () => createMemStore(),
  s3,
  minio: s3,
};

/** Names for --storage. */
export function storeKinds(): string[] {
  return Object.keys(STORES);
}

/** The store of a volume. Keys begin with the volume's name and a slash. Throws StoreError 'invalid' for a storage that is unknown or malformed. */
export async function openStore(format: Format): Promise<ObjectStore> {
  const open = STORES[format.Storage.toLowerCase()];
  if (open === undefined)
    throw new StoreError(
      'invalid',
      `there is no storage of type "${format.Storage}" (there are ${storeKinds().join(', ')})`,
    );
  const shards = format.Shards ?? 0;
  if (shards <= 1) return await open(format, format.Bucket);
  let buckets: string[];
  try {
    buckets = shardBuckets(format.Bucket, shards);
  } catch (e) {
    throw new StoreError('invalid', e instanceof Error ? e.message : String(e), e);
  }
  return createShardedStore(await Promise.all(buckets.map(bucket => open(format, bucket))));
}
