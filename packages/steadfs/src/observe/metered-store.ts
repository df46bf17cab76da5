/** Counts requests of an object store, their time, bytes and errors. */
import type { ObjectStore } from '../object/store.ts';
import type { Metrics } from './metrics.ts';

export function meteredStore(store: ObjectStore, metrics: Metrics): ObjectStore {
  const timed = async <T>(method: string, work: Promise<T>, bytes: (result: T) => number): Promise<T> => {
    const begin = performance.now();
    try {
      const result = await work;
      metrics.objectBytes.inc(bytes(result), method);
      return result;
    } catch (error) {
      metrics.objectErrors.inc();
      throw error;
    } finally {
      metrics.objectRequests.observe((performance.now() - begin) / 1000, method);
    }
  };
  const { getNow, putNow } = store;
  return {
    toString: () => store.toString(),
    limits: store.limits,
    create: () => store.create(),
    put: (key, pieces, options) =>
      timed('PUT', store.put(key, pieces, options), () => pieces.reduce((sum, p) => sum + p.length, 0)),
    ...(putNow && {
      putNow(key, pieces, size) {
        const begin = performance.now();
        // Otherwise `put` is called.
        if (!putNow(key, pieces, size)) return false;
        metrics.objectBytes.inc(size, 'PUT');
        metrics.objectRequests.observe((performance.now() - begin) / 1000, 'PUT');
        return true;
      },
    }),
    get: (key, offset, target, signal) => timed('GET', store.get(key, offset, target, signal), n => n),
    ...(getNow && {
      getNow(key, offset, target) {
        const begin = performance.now();
        const n = getNow(key, offset, target);
        // What is not at hand is asked for again, by `get`.
        if (n === undefined) return n;
        metrics.objectBytes.inc(n, 'GET');
        metrics.objectRequests.observe((performance.now() - begin) / 1000, 'GET');
        return n;
      },
    }),
    read: (key, max) => timed('GET', store.read(key, max), b => b.length),
    head: key => store.head(key),
    delete: key => timed('DELETE', store.delete(key), () => 0),
    list: (prefix, after, limit) => store.list(prefix, after, limit),
    sync: keys => store.sync(keys),
    ...(store.syncAll ? { syncAll: () => store.syncAll!() } : {}),
    close: () => store.close(),
  };
}
