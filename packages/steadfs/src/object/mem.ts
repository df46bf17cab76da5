/** Objects in the memory of the process: for tests and for trying things out. Gone with the process. */
import { type ObjectInfo, type ObjectStore, StoreError } from './store.ts';

export function createMemStore(): ObjectStore {
  const objects = new Map<string, { data: Buffer; mtime: number }>();
  const find = (key: string): { data: Buffer; mtime: number } => {
    const object = objects.get(key);
    if (object === undefined) throw new StoreError('not-found', `mem://${key}: no such object`);
    return object;
  };
  return {
    toString: () => 'mem://',
    limits: { rangeGet: true },
    async create() {},
    async put(key, pieces) {
      if (key === '') throw new StoreError('invalid', 'an object needs a name');
      objects.set(key, { data: Buffer.concat(pieces), mtime: Date.now() / 1000 });
    },
    async get(key, offset, target) {
      const { data } = find(key);
      return offset >= data.length ? 0 : data.copy(target, 0, offset, offset + target.length);
    },
    async read(key, max) {
      const { data } = find(key);
      if (data.length > max)
        throw new StoreError('too-large', `mem://${key} has ${data.length} bytes, at most ${max} were expected`);
      return Buffer.from(data);
    },
    async head(key) {
      const { data, mtime } = find(key);
      return { key, size: data.length, mtime };
    },
    async delete(key) {
      objects.delete(key);
    },
    async list(prefix, after, limit) {
      const bytes = Buffer.from(after);
      const found: { info: ObjectInfo; order: Buffer }[] = [];
      for (const [key, { data, mtime }] of objects) {
        const order = Buffer.from(key);
        if (key.startsWith(prefix) && Buffer.compare(order, bytes) > 0)
          found.push({ info: { key, size: data.length, mtime }, order });
      }
      found.sort((a, b) => Buffer.compare(a.order, b.order));
      return { objects: found.slice(0, limit).map(f => f.info), more: found.length > limit };
    },
    async sync() {},
    async close() {},
  };
}
