/**
 * One file in one directory: `node hello.ts MOUNTPOINT`, then `cat MOUNTPOINT/hello`. Ends when it is unmounted (`umount MOUNTPOINT`).
 */
import { createCapsule, ENOENT, type FileSystem, type FuseAttr, mountFuse, openCapsule, serve } from '../src/index.ts';

const text = Buffer.from('Hello from Node\n');
// biome-ignore format: one thought a line
const attr = (ino: number): FuseAttr => ({
  ino, mode: ino === 1 ? 0o40555 : 0o100444, nlink: 1, uid: 0, gid: 0, rdev: 0, size: ino === 1 ? 0 : text.length, blocks: 1,
  blksize: 4096, atime: 0, mtime: 0, ctime: 0, atimensec: 0, mtimensec: 0, ctimensec: 0,
});
const names = ['.', '..', 'hello'];

const hello: FileSystem = {
  lookup(_ctx, _parent, name) {
    if (Buffer.from(name).toString() !== 'hello') throw ENOENT;
    return { nodeid: 2, generation: 0, entryValid: 60, attrValid: 60, attr: attr(2) };
  },
  getattr: (_ctx, ino) => ({ attr: attr(ino), attrValid: 60 }),
  read: (_ctx, _ino, { offset, size }) => text.subarray(offset, offset + size),
  readdir(_ctx, _ino, _fh, offset, sink) {
    for (let i = offset; i < names.length; i++) {
      if (!sink.add({ name: Buffer.from(names[i]!), ino: i < 2 ? 1 : 2, offset: i + 1, type: i < 2 ? 4 : 8 })) return;
    }
  },
};

const { fd } = await mountFuse(process.argv[2]!, { source: 'hello', subtype: 'hello' });
const session = serve({ fd, capsule: openCapsule(createCapsule()), fileSystem: hello });
await session.start();
await session.done;
