/**
 * Compressed blocks (spec/volume.md §5.1): the whole block at once, as one raw LZ4 block (no frame, no length) or one zstd frame of level 1. Its length is not in
 * the object, it follows from the key. The work is done by other threads, on memory of their own: a codec may not be given more than a few blocks at a time.
 */

import zlib from 'node:zlib';
import { StoreError } from '../object/store.ts';
import { bound as boundLz4, compress as compressLz4, decompress as decompressLz4 } from './lz4.ts';
import { type BlockCodec, plainCodec } from './transfer.ts';

/** Values of Format.Compression, in small letters; also "" for none. */
export const COMPRESSIONS: readonly string[] = ['none', 'lz4', 'zstd'];

interface Algorithm {
  compress(block: Uint8Array): Promise<Uint8Array>;
  /** Into `target`, and answers how many bytes: at most those of `target`. Rejects when it is damaged, or more. */
  decompress(stored: Uint8Array, target: Uint8Array): Promise<number>;
  /** Bytes that `size` bytes become at most. */
  bound(size: number): number;
}

/** Least size of zlib's pieces of output. */
const CHUNK_LEAST = 64;
/** Node's pool holds buffers of less than 4 KiB. */
const OWN_FROM = 64 * 1024;

const lz4: Algorithm = { compress: compressLz4, decompress: decompressLz4, bound: boundLz4 };

const settled =
  (resolve: (bytes: Uint8Array) => void, reject: (error: Error) => void) =>
  (error: Error | null, bytes: Uint8Array): void =>
    error ? reject(error) : resolve(bytes);

const zstd: Algorithm = {
  compress: block =>
    new Promise((resolve, reject) =>
      // The frame tells its content's length: the Go client makes room by it, and cannot read one without.
      zlib.zstdCompress(
        block,
        {
          pledgedSrcSize: block.length,
          // Every piece of output is a job for the pool.
          chunkSize: Math.min(1024 * 1024, zstd.bound(block.length)),
          params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 },
        },
        settled(resolve, reject),
      ),
    ),
  // One piece of output, with room to spare: without any left Node would ask for more.
  async decompress(stored, target) {
    const size = target.length;
    const block = await new Promise<Uint8Array>((resolve, reject) =>
      zlib.zstdDecompress(
        stored,
        { maxOutputLength: size, chunkSize: Math.max(size + 1, CHUNK_LEAST) },
        settled(resolve, reject),
      ),
    );
    target.set(block);
    const { length } = block;
    discard(block);
    return length;
  },
  bound: size => size + (size >>> 8) + 128,
};

/**
 * Frees the memory of a large buffer that nobody else has, now instead of at some collection of garbage: the next block gets the same pages, and fresh ones are dear (12 times
 * the decompressed blocks a second, a third of the memory). Small ones are parts of a pool.
 */
function discard(bytes: Uint8Array): void {
  if (bytes.buffer instanceof ArrayBuffer && bytes.length >= OWN_FROM) bytes.buffer.transfer(0);
}

function codec(name: string, algorithm: Algorithm): BlockCodec {
  return {
    seekable: false,
    async encode(pieces) {
      if (pieces.length === 1) return [await algorithm.compress(pieces[0]!)];
      const whole = Buffer.concat(pieces);
      try {
        return [await algorithm.compress(whole)];
      } finally {
        discard(whole);
      }
    },
    discard: stored => stored.forEach(discard),
    async load(store, key, target) {
      const stored = await store.read(key, algorithm.bound(target.length));
      try {
        return await algorithm.decompress(stored, target);
      } catch (error) {
        throw new StoreError('io', `get ${store}${key}: it is no ${name} block of ${target.length} bytes`, error);
      }
    },
  };
}

const CODECS: Record<string, BlockCodec> = {
  '': plainCodec,
  none: plainCodec,
  lz4: codec('lz4', lz4),
  zstd: codec('zstd', zstd),
};

/** undefined: an algorithm that is not known. */
export function codecOf(compression: string | undefined): BlockCodec | undefined {
  const name = (compression ?? '').toLowerCase();
  return Object.hasOwn(CODECS, name) ? CODECS[name] : undefined;
}
