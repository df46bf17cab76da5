/** Serving without a kernel, so that the code is compiled and warm before somebody waits for it. */

import { IN_HEADER, KERNEL_MAJOR, KERNEL_MINOR, OP, OUT_HEADER, put64, u64 } from './abi.ts';
import type { Capsule } from './capsule-types.ts';
import { EIO } from './errno.ts';
import { serve } from './session.ts';
import * as sys from './sys.ts';
import type { FileSystem } from './types.ts';

/** A request that is not answered for so long (ms) is the end. */
const ANSWER_MS = 5000;
/** Room for the largest message, WRITE of 100 KiB. */
const MESSAGE = 1 << 17;

/** Fields of a request's body: numbers are u32, bigints u64, strings end with NUL, bytes are taken as they are. */
export type Field = number | bigint | string | Uint8Array;

/** The kernel's end of a connection, played. */
export interface PlayedKernel {
  /** Requests that were answered. */
  readonly requests: number;
  /**
   * Sends a request and waits, some turns of the loop, for its reply: errno (0: none). EIO (thrown): there is none. Only one at a time.
   */
  call(opcode: number, nodeid: number, ...fields: Field[]): Promise<number>;
  /** FORGET of one look-up. */
  forget(nodeid: number): void;
  /** Length of the last reply's body, and its numbers. */
  readonly length: number;
  u64(at: number): number;
  u32(at: number): number;
  /** Ends connection and session (`destroy` of the file system included). */
  end(): Promise<void>;
}

/** Serves `fileSystem` over a socket; INIT is answered. Capsule and file system must be thrown away afterwards. */
export async function playKernel(capsule: Capsule, fileSystem: FileSystem): Promise<PlayedKernel> {
  const [kernel, server] = sys.socketPair(true);
  const memory = sys.allocate(MESSAGE);
  const { view, bytes } = memory;
  const session = serve({ fd: server, capsule, fileSystem, log() {} });
  let unique = 2;
  let requests = 0;

  function send(opcode: number, nodeid: number, fields: readonly Field[]): void {
    let at = IN_HEADER;
    for (const field of fields) {
      if (typeof field === 'number') {
        view.setUint32(at, field, true);
        at += 4;
      } else if (typeof field === 'bigint') {
        view.setBigUint64(at, field, true);
        at += 8;
      } else if (typeof field === 'string') {
        for (let i = 0; i < field.length; i++) bytes[at++] = field.charCodeAt(i);
        bytes[at++] = 0;
      } else {
        bytes.set(field, at);
        at += field.length;
      }
    }
    unique += 2;
    view.setUint32(0, at, true);
    view.setUint32(4, opcode, true);
    put64(view, 8, unique);
    put64(view, 16, nodeid);
    put64(view, 24, 0); // uid and gid
    put64(view, 32, process.pid);
    sys.write(kernel, memory.address, at);
  }

  const played: PlayedKernel = {
    get requests() {
      return requests;
    },
    async call(opcode, nodeid, ...fields) {
      send(opcode, nodeid, fields);
      const until = performance.now() + ANSWER_MS;
      while (sys.read(kernel, memory.address, memory.length) < OUT_HEADER) {
        if (performance.now() > until) throw EIO.because('a played request is not answered');
        await new Promise(resolve => setImmediate(resolve));
      }
      requests++;
      return 0 - view.getInt32(4, true);
    },
    forget(nodeid) {
      send(OP.FORGET, nodeid, [1n]);
    },
    get length() {
      return view.getUint32(0, true) - OUT_HEADER;
    },
    u64: at => u64(view, OUT_HEADER + at),
    u32: at => view.getUint32(OUT_HEADER + at, true),
    async end() {
      sys.close(kernel);
      await session.done;
      sys.close(server);
      sys.unmap(memory);
    },
  };
  try {
    await session.start();
    await played.call(OP.INIT, 0, KERNEL_MAJOR, KERNEL_MINOR, new Uint8Array(56));
  } catch (error) {
    await played.end();
    throw error;
  }
  return played;
}

/** Times that each request comes. */
const ROUNDS = 20;

/** LOOKUP of `name` in the root, GETATTR of the root and STATFS some times. Capsule and file system must be thrown away afterwards. */
export async function rehearseSession(capsule: Capsule, fileSystem: FileSystem, name: string): Promise<void> {
  const kernel = await playKernel(capsule, fileSystem);
  try {
    for (let i = 0; i < ROUNDS; i++) {
      await kernel.call(OP.LOOKUP, 1, name);
      await kernel.call(OP.GETATTR, 1, 0n, 0n);
      await kernel.call(OP.STATFS, 1);
    }
  } finally {
    await kernel.end();
  }
}
