/**
 * Compressed blocks (spec/volume.md §5.1): the whole block at once, as one raw LZ4 block (no frame, no length) or one zstd frame of level 1. Its length is not in
 * the object, it follows from the key. The work is done by libuv's threads, on memory of their own: a codec may not be given more than a few blocks at a time.
 */

import zlib from 'node:zlib';
import { StoreError } from '../object/store.ts';
import { type BlockCodec, plainCodec } from './transfer.ts';

/** Values of Format.Compression, in small letters; also "" for none. */
export const COMPRESSIONS: readonly string[] = ['none', 'lz4', 'zstd'];

interface Algorithm {
  compress(block: Uint8Array): Promise<Uint8Array>;
  /** Rejects when it is damaged; may answer fewer bytes than `size`, never more. */
  decompress(stored: Uint8Array, size: number): Promise<Uint8Array>;
  /** Bytes that `size` bytes become at most. */
  bound(size: number): number;
}

/** The binding puts a block's length before it (u32, little endian) and wants it there. */
const LENGTH_BYTES = 4;
/** Least size of zlib's pieces of output. */
const CHUNK_LEAST = 64;
/** Node's pool holds buffers of less than 4 KiB. */
const OWN_FROM = 64 * 1024;

const lz4: Algorithm = {
  async compress(block) {
    const { compress } = await import('lz4-napi');
    return (await compress(asBuffer(block))).subarray(LENGTH_BYTES);
  },
  async decompress(stored, size) {
    const { uncompress } = await import('lz4-napi');
    const input = Buffer.allocUnsafe(LENGTH_BYTES + stored.length);
    input.writeUInt32LE(size);
    input.set(stored, LENGTH_BYTES);
    return await uncompress(input);
  },
  bound: size => size + Math.ceil(size / 255) + 16,
};

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
  decompress: (stored, size) =>
    new Promise((resolve, reject) =>
      zlib.zstdDecompress(
        stored,
        { maxOutputLength: size, chunkSize: Math.max(size + 1, CHUNK_LEAST) },
        settled(resolve, reject),
      ),
    ),
  bound: size => size + (size >>> 8) + 128,
};

/**
 * Frees the memory of a large buffer that nobody else has, now instead of at some collection of garbage: the next block gets the same pages, and fresh ones are dear (12 times
 * the decompressed blocks a second, a third of the memory). Small ones are parts of a pool.
 */
function discard(bytes: Uint8Array): void {
  if (bytes.buffer instanceof ArrayBuffer && bytes.length >= OWN_FROM) bytes.buffer.transfer(0);
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function codec(name: string, algorithm: Algorithm): BlockCodec {
  return {
    seekable: false,
    async encode(pieces) {
      return [await algorithm.compress(pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces))];
    },
    async load(store, key, target) {
      const stored = await store.read(key, algorithm.bound(target.length));
      let block: Uint8Array;
      try {
        block = await algorithm.decompress(stored, target.length);
      } catch (error) {
        throw new StoreError('io', `get ${store}${key}: it is no ${name} block of ${target.length} bytes`, error);
      }
      target.set(block);
      const { length } = block;
      discard(block);
      return length;
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
