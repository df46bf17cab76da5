/**
 * LZ4 blocks on a thread of their own that lives while there is work. The binding's own asynchronous calls allocate on threads of libuv's pool what the loop's thread frees,
 * and its allocator then keeps hundreds of blocks (1.5 GiB were seen); here one thread does both, and memory for input and output goes to and fro.
 */
import { Worker } from 'node:worker_threads';

/** The binding puts a block's length before it (u32, little endian) and wants it there. */
const LENGTH_BYTES = 4;
/** Without work the thread ends after this long, ms. */
const IDLE_MS = 5000;

interface Scratch {
  input: ArrayBuffer;
  output: ArrayBuffer;
}
export interface Job extends Scratch {
  id: number;
  /** Bytes of the input. */
  length: number;
  compress: boolean;
}
export interface Done extends Scratch {
  id: number;
  /** Bytes of the output. */
  length: number;
  error?: string;
}

/** Bytes that `size` bytes become at most (LZ4_compressBound). */
export const bound = (size: number): number => size + Math.ceil(size / 255) + 16;

interface Waiting {
  take(output: Uint8Array): void;
  resolve(): void;
  reject(error: Error): void;
}

let worker: Worker | undefined;
let ids = 0;
let idle: NodeJS.Timeout | undefined;
const waiting = new Map<number, Waiting>();
const spare: Scratch[] = [];

function started(): Worker {
  const made = new Worker(new URL('./lz4-worker.ts', import.meta.url), { name: 'lz4', stdout: false, stderr: false });
  made.on('message', (done: Done) => {
    const { take, resolve, reject } = waiting.get(done.id)!;
    waiting.delete(done.id);
    if (done.error === undefined) {
      take(new Uint8Array(done.output, 0, done.length));
      resolve();
    } else reject(new Error(done.error));
    spare.push({ input: done.input, output: done.output });
    if (waiting.size > 0) return;
    made.unref();
    idle = setTimeout(() => {
      // Whoever comes from now on starts another one.
      worker = undefined;
      spare.length = 0;
      void made.terminate();
    }, IDLE_MS).unref();
  });
  let reason: unknown = new Error('the thread for LZ4 has ended');
  made.on('error', error => {
    reason = error;
  });
  made.on('exit', () => {
    if (worker !== made) return;
    worker = undefined;
    spare.length = 0;
    const lost = [...waiting.values()];
    waiting.clear();
    for (const { reject } of lost) reject(reason instanceof Error ? reason : new Error(String(reason)));
  });
  return made;
}

/** `fill` writes the input, `take` looks at the output; both at once. */
function run(
  compress: boolean,
  length: number,
  outputSize: number,
  fill: (input: Uint8Array) => void,
  take: Waiting['take'],
): Promise<void> {
  clearTimeout(idle);
  worker ??= started();
  const fits = ({ input, output }: Scratch): boolean => input.byteLength >= length && output.byteLength >= outputSize;
  const at = spare.findIndex(fits);
  const scratch = at >= 0 ? spare.splice(at, 1)[0]! : undefined;
  // What is too small for this block makes room for what is not.
  if (!scratch) spare.pop();
  const { input, output } = scratch ?? { input: new ArrayBuffer(length), output: new ArrayBuffer(outputSize) };
  fill(new Uint8Array(input, 0, length));
  const id = ids++;
  return new Promise((resolve, reject) => {
    waiting.set(id, { take, resolve, reject });
    worker!.ref();
    worker!.postMessage({ id, input, output, length, compress } satisfies Job, [input, output]);
  });
}

/** One raw LZ4 block. */
export async function compress(block: Uint8Array): Promise<Uint8Array> {
  let result: Uint8Array | undefined;
  await run(
    true,
    block.length,
    LENGTH_BYTES + bound(block.length),
    input => input.set(block),
    output => {
      result = output.slice(LENGTH_BYTES);
    },
  );
  return result!;
}

/** Decompresses into `target` and answers how many bytes, at most those of `target`. Rejects when the block is damaged, or longer. */
export async function decompress(stored: Uint8Array, target: Uint8Array): Promise<number> {
  let bytes = 0;
  const fill = (input: Uint8Array): void => {
    new DataView(input.buffer, input.byteOffset).setUint32(0, target.length, true);
    input.set(stored, LENGTH_BYTES);
  };
  await run(false, LENGTH_BYTES + stored.length, target.length, fill, output => {
    target.set(output);
    bytes = output.length;
  });
  return bytes;
}
