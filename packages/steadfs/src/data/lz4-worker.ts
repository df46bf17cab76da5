/** The thread of lz4.ts. */
import threads from 'node:worker_threads';
import { compressSync, uncompressSync } from 'lz4-napi';
import type { Done, Job } from './lz4.ts';

const port = threads.parentPort!;
port.on('message', ({ id, input, length, output, compress }: Job) => {
  const done: Done = { id, input, output, length: 0 };
  try {
    const bytes = (compress ? compressSync : uncompressSync)(Buffer.from(input, 0, length));
    done.length = bytes.length;
    new Uint8Array(output).set(bytes);
    // Freed now, by the thread that allocated it.
    if (bytes.buffer instanceof ArrayBuffer && bytes.length === bytes.buffer.byteLength) bytes.buffer.transfer(0);
  } catch (error) {
    done.error = error instanceof Error ? error.message : String(error);
  }
  port.postMessage(done, [input, output]);
});
