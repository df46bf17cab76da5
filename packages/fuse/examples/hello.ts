/**
 * One file in one directory: `node hello.ts MOUNTPOINT`, then `cat MOUNTPOINT/hello`. Ends when it is unmounted (`umount MOUNTPOINT`), or unmounts at Ctrl-C.
 */
import { attributes, ENOENT, type FileSystem, mountFuse, serve, unmount } from '../src/index.ts';

const text = Buffer.from('Hello from Node\n');
const directory = { attr: attributes({ ino: 1, mode: 0o40555 }), attrValid: 60 };
const file = { attr: attributes({ ino: 2, mode: 0o100444, size: text.length }), attrValid: 60 };
const names = ['.', '..', 'hello'];

const hello: FileSystem = {
  lookup(_ctx, _parent, name) {
    if (Buffer.from(name).toString() !== 'hello') throw ENOENT;
    return { nodeid: 2, entryValid: 60, ...file };
  },
  getattr: (_ctx, nodeid) => (nodeid === 1 ? directory : file),
  read: (_ctx, _nodeid, { offset, size }) => text.subarray(offset, offset + size),
  readdir(_ctx, _nodeid, _fh, offset, sink) {
    for (let i = offset; i < names.length; i++)
      if (!sink.add({ name: Buffer.from(names[i]!), ino: i < 2 ? 1 : 2, offset: i + 1, type: i < 2 ? 4 : 8 })) return;
  },
};

const mountPoint = process.argv[2]!;
const { fd } = await mountFuse(mountPoint, { source: 'hello', subtype: 'hello' });
const session = serve({ fd, fileSystem: hello });
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => unmount(mountPoint, { lazy: true }));
await session.start();
await session.done;
