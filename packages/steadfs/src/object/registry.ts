/** The stores that a volume can have, by the name in its setting (`Storage`). A new store is one folder or file and one line here. */
import type { Format } from '../format/volume.ts';
import { createFileStore } from './file.ts';
import { createMemStore } from './mem.ts';
import { type ObjectStore, StoreError } from './store.ts';

type Opener = (format: Format) => ObjectStore;

const STORES: Record<string, Opener> = {
  file: format => createFileStore({ root: format.Bucket }),
  mem: () => createMemStore(),
};

/** Names for --storage. */
export function storeKinds(): string[] {
  return Object.keys(STORES);
}

/**
 * The store of a volume. Keys begin with the volume's name and a slash. Throws StoreError 'invalid' for a storage that is unknown, and for volumes that need what is
 * not built yet.
 */
export async function openStore(format: Format): Promise<ObjectStore> {
  const open = STORES[format.Storage.toLowerCase()];
  if (open === undefined)
    throw new StoreError(
      'invalid',
      `there is no storage of type "${format.Storage}" (there are ${storeKinds().join(', ')})`,
    );
  if ((format.Shards ?? 0) > 1)
    throw new StoreError('invalid', `a volume over ${format.Shards} buckets is not supported yet`);
  return open(format);
}
