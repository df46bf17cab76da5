/**
 * The SQLite engine. How its transactions run: sqlite-core.ts. Operations are the bodies of ops/ on its rows (sqlite-tx.ts); by what they are about beside
 * those: reading, usage, quotas, sessions, volume.
 */
import { resolve as resolvePath } from 'node:path';
import { EINVAL } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { EngineDriver, EngineOptions, MaybePromise, MetaEngine } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import type { Body } from '../ops/tx.ts';
import { txOperations } from '../tx-engine.ts';
import { SqliteCore } from './sqlite-core.ts';
import { quotas } from './sqlite-quotas.ts';
import { reading } from './sqlite-reading.ts';
import { sessions } from './sqlite-sessions.ts';
import { volumeRecord } from './sqlite-volume.ts';

/** Slice numbers that are fetched at once. */
const SLICE_BATCH = 4096;

/** Numbers for new slices from the volume's counter, a batch at a time. */
function sliceIds(core: SqliteCore): (count: number) => MaybePromise<number> {
  let next = 0;
  let end = 0;
  return count => {
    if (next + count <= end) {
      next += count;
      return next - count;
    }
    const batch = Math.max(SLICE_BATCH, count);
    return core
      .transact(function* (tx): Body<number> {
        yield* logChange(tx, 'INCR_COUNTER', () => ['nextChunk', batch]);
        return yield* tx.addCounter('nextChunk', batch);
      })
      .then(fetched => {
        // Another call may have fetched a batch meanwhile; the rest of the smaller one is wasted.
        faultPoint('meta.slice-ids');
        const first = fetched - batch;
        next = first + count;
        end = fetched;
        return first;
      });
  };
}

/** The engine on the database file `path`, whose tables begin with `prefix`. */
function sqliteEngine(path: string, prefix: string, options: EngineOptions): MetaEngine {
  const core = new SqliteCore(path, prefix, options);
  const { look, ...volume } = volumeRecord(core);
  const ops = txOperations(
    {
      mutate: (op, codec, body) => core.mutate(op, codec, body),
      transact: body => core.transact(body),
      read: body => core.readBody(body),
    },
    core.volume,
  );
  return {
    ...ops,
    ...volume,
    ...sessions(core, look),
    ...reading(core),
    ...quotas(core),
    name: `sqlite3 ${path}`,
    close: () => core.close(),
    flush: () => core.flush(),
    sync: () => core.sync(),
    durable: () => core.durable(),
    dirStat: ino => core.read(() => core.usage.dirStat(ino)),
    statfs(root) {
      if (core.usage.stale && !core.grouping) core.read(() => core.usage.load());
      return ops.statfs(root);
    },
    touchAtime: ino => (options.readOnly ? undefined : ops.touchAtime(ino)),
    newSliceIds: sliceIds(core),
    waitForUnlock: (ino, timeoutMs) => core.waiters.wait(ino, timeoutMs),
  };
}

/** Parameters of the Go client's URL form that mean nothing here. */
const FOREIGN_PARAMS = [
  'cache',
  '_journal',
  '_journal_mode',
  '_timeout',
  '_busy_timeout',
  'max_open_conns',
  'max_idle_conns',
  'max_idle_time',
  'max_life_time',
];

/** sqlite3://PATH[?table_prefix=NAME] */
export const sqliteDriver: EngineDriver = {
  schemes: ['sqlite3'],
  async open(url, options) {
    const rest = url.slice('sqlite3://'.length);
    const question = rest.indexOf('?');
    const path = question < 0 ? rest : rest.slice(0, question);
    const params = new URLSearchParams(question < 0 ? '' : rest.slice(question + 1));
    if (path === '' || path.endsWith('/') || path.includes('\0'))
      throw EINVAL.because('sqlite3:// needs the path of a database file');
    for (const k of params.keys()) {
      if (k !== 'table_prefix' && !FOREIGN_PARAMS.includes(k))
        throw EINVAL.because(`sqlite3:// has no parameter "${k}"`);
    }
    const prefix = params.get('table_prefix') ?? '';
    if (!/^[A-Za-z0-9_]*$/.test(prefix)) throw EINVAL.because('table_prefix may only have letters, digits and _');
    const engine = sqliteEngine(resolvePath(path), prefix === '' ? 'jfs_' : `jfs_${prefix}_`, options);
    return engine;
  },
};
