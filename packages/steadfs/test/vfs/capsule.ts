/** A capsule of its own for a test; `again` opens it as the next process would. */

import type { Capsule } from '@steadfs/fuse';
import { type CapsuleFds, createCapsule, openCapsule } from '@steadfs/fuse/capsule';
import * as sys from '@steadfs/fuse/sys';

export async function withCapsule(
  body: (capsule: Capsule, again: () => Capsule) => Promise<void> | void,
): Promise<void> {
  const fds: CapsuleFds = createCapsule({ arenaSize: 1 << 20 });
  try {
    await body(openCapsule(fds), () => openCapsule(fds));
  } finally {
    sys.close(fds.capsule);
    sys.close(fds.arena);
  }
}
