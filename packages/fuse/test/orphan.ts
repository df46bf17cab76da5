/**
 * Servers over fd 3 with a capsule of their own each. `node orphan.ts hang` never answers a mkdir, nor a getattr after it; `node orphan.ts MAXWRITE FLAGS MINOR`
 * takes the connection over without the other's capsule.
 */
import { createCapsule, ENOENT, openCapsule, serve } from '../src/index.ts';

const hang = process.argv[2] === 'hang';
const never = new Promise<never>(() => {});
let made = false;
const times = { atime: 0, mtime: 0, ctime: 0, atimensec: 0, mtimensec: 0, ctimensec: 0 };
const attr = { ino: 1, mode: 0o40777, nlink: 2, uid: 0, gid: 0, rdev: 0, size: 0, blocks: 0, blksize: 4096, ...times };
const session = serve({
  fd: 3,
  capsule: openCapsule(createCapsule()),
  fileSystem: {
    init: ({ maxWrite, flags, minor }) => console.log(`${maxWrite} ${flags} ${minor}`),
    lookup() {
      throw ENOENT;
    },
    getattr() {
      if (!hang || !made) return { attr, attrValid: 0 };
      console.log('getattr');
      return never;
    },
    mkdir() {
      made = true;
      console.log('mkdir');
      return never;
    },
  },
  ...(hang
    ? {}
    : {
        orphan: {
          major: 7,
          minor: Number(process.argv[4]),
          maxWrite: Number(process.argv[2]),
          maxReadahead: 131072,
          flags: BigInt(process.argv[3]!),
        },
      }),
  log: (_level, message) => console.log(message),
});
await session.start();
await session.done;
