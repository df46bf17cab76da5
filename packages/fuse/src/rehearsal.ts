/** Serving without a kernel, so that the code is compiled and warm before somebody waits for it. */

import { IN_HEADER, KERNEL_MAJOR, KERNEL_MINOR, OP } from './abi.ts';
import type { Capsule } from './capsule-types.ts';
import { serve } from './session.ts';
import * as sys from './sys.ts';
import type { FileSystem } from './types.ts';

/** Times that each request comes. */
const ROUNDS = 20;

/**
 * Lets a session of `fileSystem` answer INIT and then LOOKUP of `name` in the root, GETATTR of the root and STATFS some times over a socket, and ends it (with
 * it `destroy` is called). Both must be thrown away afterwards.
 */
export async function rehearseSession(capsule: Capsule, fileSystem: FileSystem, name: string): Promise<void> {
  const [kernel, server] = sys.socketPair(true);
  const memory = sys.allocate(1 << 17);
  const session = serve({ fd: server, capsule, fileSystem, log() {} });
  let unique = 2n;

  async function call(opcode: number, body: Uint8Array): Promise<void> {
    const length = IN_HEADER + body.length;
    memory.bytes.fill(0, 0, IN_HEADER);
    memory.view.setUint32(0, length, true);
    memory.view.setUint32(4, opcode, true);
    memory.view.setBigUint64(8, unique, true);
    memory.view.setUint32(16, 1, true);
    unique += 2n;
    memory.bytes.set(body, IN_HEADER);
    sys.write(kernel, memory.address, length);
    const until = performance.now() + 1000;
    while (sys.read(kernel, memory.address, memory.length) < 0 && performance.now() < until)
      await new Promise(resolve => setImmediate(resolve));
  }

  try {
    await session.start();
    const init = new Uint8Array(64);
    new DataView(init.buffer).setUint32(0, KERNEL_MAJOR, true);
    new DataView(init.buffer).setUint32(4, KERNEL_MINOR, true);
    await call(OP.INIT, init);
    for (let i = 0; i < ROUNDS; i++) {
      await call(OP.LOOKUP, Buffer.from(`${name}\0`));
      await call(OP.GETATTR, new Uint8Array(16));
      await call(OP.STATFS, new Uint8Array(0));
    }
  } finally {
    sys.close(kernel);
    await session.done;
    sys.close(server);
    sys.unmap(memory);
  }
}
