/** Puts the data path together: one {@link FileData} for a mount. */
import type { Capsule } from '@steadfs/fuse';
import type { Attr } from '../format/attr.ts';
import type { Ino } from '../format/ino.ts';
import { CHUNK_SIZE } from '../format/slice.ts';
import type { Format } from '../format/volume.ts';
import type { MetaEngine } from '../meta/engine.ts';
import type { ObjectStore } from '../object/store.ts';
import { type BlockLayout, blockCount, sliceKeys } from './blocks.ts';
import { createBlockCache } from './cache.ts';
import { createChunkLists } from './chunk-lists.ts';
import { codecOf } from './codec.ts';
import { createCompactor } from './compactor.ts';
import type { FileData } from './file-data.ts';
import { openJournal } from './journal.ts';
import { createMemory } from './memory.ts';
import { createReader } from './reader.ts';
import { type BlockCodec, createTransfer, plainCodec, sleep } from './transfer.ts';
import { createWriter } from './writer.ts';

export interface FileDataOptions {
  meta: MetaEngine;
  store: ObjectStore;
  capsule: Capsule;
  format: Pick<Format, 'Name' | 'BlockSize' | 'HashPrefix' | 'Compression'>;
  /** How blocks are stored; as the volume's Compression says unless given. */
  codec?: BlockCodec;
  readOnly?: boolean;
  /** Bytes; 32 MiB at the least, and never more than the arena. */
  bufferSize?: number;
  maxUploads?: number;
  maxDownloads?: number;
  /** Bytes that one handle reads ahead; 0 or absent: 8 blocks. */
  maxReadahead?: number;
  prefetch?: number;
  ioRetries?: number;
  /** ms */
  getTimeout?: number;
  putTimeout?: number;
  /** Bytes a second, 0 = no limit. */
  uploadLimit?: number;
  downloadLimit?: number;
  /** Deletions at a time; 0: nothing is ever deleted from the store by this mount. */
  maxDeletes?: number;
  /** ms without use after which a cached block is dropped. */
  cacheIdle?: number;
  warn?(message: string): void;
  /** What reads or writes wait for; undefined: nothing any more. */
  trouble?(what: 'reads' | 'writes', message: string | undefined): void;
  /** The session is a new one in an adopted capsule: what was committed before is not known by op records (see writer.ts). */
  outcomesUnknown?: boolean;
  /** Attributes as a slice commit stored them. */
  committed?(ino: Ino, attr: Attr): void;
}

const MIB = 1024 * 1024;

export function createFileData(options: FileDataOptions): FileData {
  const { meta, store, capsule } = options;
  const warn = options.warn ?? (() => {});
  const layout: BlockLayout = {
    prefix: `${options.format.Name}/`,
    blockSize: options.format.BlockSize * 1024,
    hashPrefix: options.format.HashPrefix ?? false,
  };
  const ceiling = Math.min(capsule.arena.size, Math.max(32 * MIB, options.bufferSize ?? 300 * MIB));
  const maxDeletes = options.maxDeletes ?? 10;
  const memory = createMemory(capsule.arena, ceiling);
  const journal = openJournal(capsule);
  const transfer = createTransfer({
    store,
    codec: options.codec ?? codecOf(options.format.Compression) ?? plainCodec,
    maxUploads: Math.max(1, options.maxUploads ?? 20),
    maxDownloads: options.maxDownloads && options.maxDownloads > 0 ? options.maxDownloads : 200,
    putTimeout: options.putTimeout ?? 60_000,
    getTimeout: options.getTimeout ?? 60_000,
    uploadLimit: options.uploadLimit ?? 0,
    downloadLimit: options.downloadLimit ?? 0,
  });
  const cache = createBlockCache(memory, transfer, layout, options.cacheIdle ?? 120_000);
  const lists = createChunkLists(meta);

  async function nextId(): Promise<number> {
    return journal.nextId() ?? (await meta.newSliceIds(1));
  }

  const writer = createWriter({
    meta,
    memory,
    journal,
    transfer,
    cache,
    lists,
    layout,
    warn,
    trouble: message => options.trouble?.('writes', message),
    outcomesUnknown: options.outcomesUnknown ?? false,
    syncObjects: keys => store.sync(keys),
    syncStore: async () => store.syncAll?.(),
    deleteObject: key => store.delete(key),
    committed(ino, index, result) {
      compactor.committed(ino, index, result.records);
      options.committed?.(ino, result.attr);
    },
    compactFirst: (ino, index) => compactor.first(ino, index),
  });
  const reader = createReader({
    meta,
    memory,
    transfer,
    cache,
    lists,
    layout,
    writer,
    warn,
    storeAway: message => options.trouble?.('reads', message),
    storeBack: () => options.trouble?.('reads', undefined),
    ioRetries: options.ioRetries ?? 10,
    maxReadahead: options.maxReadahead && options.maxReadahead > 0 ? options.maxReadahead : 8 * layout.blockSize,
    prefetch: options.prefetch ?? 1,
    sawRecords: (ino, index, records) => compactor.sawRecords(ino, index, records),
  });
  const compactor = createCompactor({
    meta,
    memory,
    journal,
    transfer,
    lists,
    layout,
    reader,
    readOnly: options.readOnly ?? false,
    tierOf: async ino => (await meta.getattr(ino)).tier,
    hasPending: (ino, index) => writer.hasPending(ino, index),
    syncObjects: keys => store.sync(keys),
    deleteObject: key => store.delete(key),
    nextId,
    warn,
  });

  async function deleteSlice(id: number, size: number): Promise<void> {
    for (let i = 0; i < blockCount(layout, size); i++) cache.remove(id, i);
    for (const key of sliceKeys(layout, id, size)) {
      for (let failures = 0; ; ) {
        try {
          await store.delete(key);
          break;
        } catch (error) {
          if (++failures >= 3) throw error;
          await sleep(failures * failures * 1000);
        }
      }
    }
  }

  return {
    recover: giveUp => writer.recover(giveUp),
    write: (ino, offset, data, attr, killSuidgid, waiting) =>
      writer.write(ino, offset, data, attr, killSuidgid, waiting),
    read: (ino, fh, offset, size, length, waiting) => reader.read(ino, fh, offset, size, length, waiting),
    releaseRead: out => reader.release(out),
    pending: ino => writer.pending(ino),
    setPendingMtime: (ino, mtime) => writer.setMtime(ino, mtime),
    invalidate: ino => lists.invalidate(ino),
    invalidateRange: (ino, offset, length) =>
      lists.invalidate(ino, Math.floor(offset / CHUNK_SIZE), Math.floor((offset + length) / CHUNK_SIZE)),
    flush: (ino, waiting) => writer.flush(ino, waiting, false),
    sync: (ino, waiting) => writer.flush(ino, waiting, true),
    freeze: (ino, offset, length) => writer.freeze(ino, offset, length),
    flushAll: () => writer.flushAll(),
    drop(ino) {
      writer.drop(ino);
      lists.invalidate(ino);
    },
    seek: (ino, offset, whence, length) => reader.seek(ino, offset, whence, length),
    close(ino, fh) {
      reader.close(fh);
      writer.closed(ino);
    },
    forgotten: ino => writer.forgotten(ino),
    compact: (ino, index) => compactor.compact(ino, index),

    async deleteSlices(slices) {
      if (maxDeletes <= 0 || slices.length === 0) return 0;
      // A machine crash must not bring back metadata whose objects are gone.
      await meta.durable();
      const gone: { id: number; size: number }[] = [];
      let next = 0;
      let failure: unknown;
      const worker = async (): Promise<void> => {
        while (next < slices.length) {
          const slice = slices[next++]!;
          try {
            await deleteSlice(slice.id, slice.size);
            gone.push(slice);
          } catch (error) {
            failure ??= error;
          }
        }
      };
      await Promise.all(Array.from({ length: Math.min(maxDeletes, slices.length) }, worker));
      if (gone.length > 0) await meta.slicesDeleted(gone);
      // The rest stays listed as dead; the hourly job comes by again.
      if (failure !== undefined)
        warn(`dead slices stay in the store: ${failure instanceof Error ? failure.message : failure}`);
      return gone.length;
    },

    stats: () => ({
      dirty: memory.dirty,
      cached: cache.bytes,
      ceiling,
      uploading: transfer.uploading,
      ...(writer.trouble === undefined ? {} : { trouble: writer.trouble }),
    }),
    async shutdown() {
      await writer.shutdown();
      await compactor.shutdown();
      cache.close();
    },
  };
}
