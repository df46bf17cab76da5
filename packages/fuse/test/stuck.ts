/** A server over fd 3 whose one file is never read to the end: it drops the pages that the READ is to fill, and makes a name in a directory while it drops another there. */
import { createCapsule, ENOENT, openCapsule, serve } from '../src/index.ts';

const never = new Promise<never>(() => {});
const times = { atime: 0, mtime: 0, ctime: 0, atimensec: 0, mtimensec: 0, ctimensec: 0 };
const common = { nlink: 1, uid: 0, gid: 0, rdev: 0, size: 4096, blocks: 0, blksize: 4096, ...times };
const root = { ino: 1, mode: 0o40777, ...common };
const file = { ino: 2, mode: 0o100666, ...common };
const entry = { nodeid: 2, generation: 0, attr: file, attrValid: 1000, entryValid: 1000 };
const notified = (): void => console.log('notified');
const session = serve({
  fd: 3,
  capsule: openCapsule(createCapsule()),
  fileSystem: {
    lookup(_request, _parent, name) {
      if (Buffer.from(name).toString() === 'f') return entry;
      throw ENOENT;
    },
    getattr: (_request, node) => ({ attr: node === 1 ? root : file, attrValid: 1000 }),
    open: () => ({ fh: 1, flags: 0 }),
    read() {
      console.log('asked');
      session.notify.invalInode(2, 0, -1).then(notified, notified);
      return never;
    },
    mkdir() {
      console.log('asked');
      session.notify.invalEntry(1, Buffer.from('f')).then(notified, notified);
      return never;
    },
  },
  log: (_level, message) => console.log(message),
});
await session.start();
await session.done;
