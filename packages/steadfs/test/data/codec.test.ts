/** Compressed blocks: round trips, damage, and what the Go client stored and reads. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import { codecOf } from '../../src/data/codec.ts';
import { createTransfer } from '../../src/data/transfer.ts';
import { createMemStore } from '../../src/object/mem.ts';

const limits = {
  maxUploads: 20,
  maxDownloads: 20,
  putTimeout: 5000,
  getTimeout: 5000,
  uploadLimit: 0,
  downloadLimit: 0,
};

describe('compressed blocks', () => {
  for (const name of ['lz4', 'zstd', 'LZ4', 'none', '']) {
    it(`come back: "${name}"`, async () => {
      const store = createMemStore();
      const transfer = createTransfer({ store, codec: codecOf(name)!, ...limits });
      const blocks = {
        one: Buffer.from('x'),
        noise: randomBytes(4 << 20),
        text: Buffer.alloc(1 << 20, 'the same words again and again, '),
        zeros: Buffer.alloc(65536),
      };
      for (const [key, block] of Object.entries(blocks)) {
        let released = 0;
        // In pieces, as the writer has them.
        const pieces = [block.subarray(0, block.length >> 1), block.subarray(block.length >> 1)].filter(
          p => p.length > 0,
        );
        await transfer.put(key, pieces, block.length, 0, () => released++);
        assert.equal(released, 1);
        // Into the middle of something: nothing beside the block changes.
        const around = Buffer.alloc(block.length + 200, 0xee);
        await transfer.getBlock(key, around.subarray(100, 100 + block.length), () => assert.fail());
        assert.ok(around.subarray(100, 100 + block.length).equals(block), key);
        assert.ok(around.subarray(0, 100).equals(Buffer.alloc(100, 0xee)));
        assert.ok(around.subarray(100 + block.length).equals(Buffer.alloc(100, 0xee)));
      }
      const stored = await store.head('zeros');
      assert.equal(stored.size < 1000, name !== 'none' && name !== '');
      assert.equal(transfer.seekable, name === 'none' || name === '');
    });
  }

  it('zstd: a frame tells how much is in it', async () => {
    for (const length of [1, 300, 100_000]) {
      const [frame] = await codecOf('zstd')!.encode([Buffer.alloc(length, 'ab')]);
      // RFC 8878 §3.1.1.1: a content size of two bits' choice, or one byte in a single segment; 0 is "unknown".
      const descriptor = frame![4]!;
      assert.ok((descriptor & 0xc0) !== 0 || (descriptor & 0x20) !== 0, `descriptor ${descriptor} of ${length} bytes`);
    }
  });

  for (const name of ['lz4', 'zstd']) {
    it(`${name}: what is damaged, too short or too long is an error, not other bytes`, async () => {
      const store = createMemStore();
      const transfer = createTransfer({ store, codec: codecOf(name)!, ...limits });
      const block = Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * i) >> 7));
      await transfer.put('good', [block], block.length, 0, () => {});
      const stored = await store.read('good', 10_000);
      await store.put('cut', [stored.subarray(0, stored.length - 10)]);
      await store.put('empty', [Buffer.alloc(0)]);
      await store.put('noise', [randomBytes(3000)]);
      for (const [key, length] of [
        ['good', block.length - 1],
        ['good', block.length + 1],
        ['cut', block.length],
        ['empty', block.length],
        ['noise', block.length],
        ['nowhere', block.length],
      ] as const) {
        let failed = 0;
        await assert.rejects(
          transfer.getBlock(key, Buffer.alloc(length), () => failed++),
          (e: Error) => e.name === 'StoreError',
          `${key} as ${length} bytes`,
        );
        assert.equal(failed, 1, 'the memory is given back');
      }
    });
  }

  it('of algorithms that nobody knows are refused', () => {
    assert.equal(codecOf('brotli'), undefined);
    assert.equal(codecOf('constructor'), undefined);
  });
});
