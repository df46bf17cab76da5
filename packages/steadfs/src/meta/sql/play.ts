/** The engine of PostgreSQL and MySQL at play, for commands/warm-up.ts: on a database that agrees to everything and holds nothing. */
import { ENOENT } from '@steadfs/fuse/errno';
import { FileType } from '../../format/attr.ts';
import { type Ino, ROOT } from '../../format/ino.ts';
import { type Cred, type EngineOptions, type Op, OpKind } from '../engine.ts';
import type { SqlConnection, SqlKind, SqlPool, SqlRow, SqlValue } from './connection.ts';
import { openNetworkEngine } from './network.ts';

/** Columns of a node without links in the trash, in the order of NODE_COLUMNS. */
const nodeRow = (type: FileType): SqlRow => [type, 0, 0o755, 0, 0, 1, 1, 1, 0, 0, 0, 2, 0, 0, ROOT, 0, 0, 0];
const FOREVER = Number.MAX_SAFE_INTEGER;

/**
 * Answers what the engine has to hear to go on: plans hold, records and sessions are as they were written, the root is a directory, other inodes are files, names are absent. `plans` counts
 * the mutations that came as one statement.
 */
function agreeingPool(kind: SqlKind): SqlPool & { plans: number } {
  let numbers = 2;
  let incarnation: SqlValue = null;
  const rows = (sql: string, params: readonly SqlValue[]): SqlRow[] => {
    if (/^(WITH|CALL|BEGIN NOT ATOMIC) /.test(sql)) {
      pool.plans++;
      return kind === 'postgres' ? [[1, null]] : [];
    }
    if (sql.startsWith('SELECT value ')) {
      numbers += 5000;
      return [[numbers]];
    }
    if (sql.startsWith('SELECT s.incarnation,')) return [[incarnation, 1, FOREVER]];
    if (/(SELECT|RETURNING) seq, /.test(sql)) return [[-1, null, null]];
    if (/^SELECT (n\.)?type, .* WHERE (n\.)?inode = \?/.test(sql))
      return [nodeRow(Number(params[0]) === ROOT ? FileType.directory : FileType.file)];
    return [];
  };
  const connection: SqlConnection = {
    all: async (sql, params) => rows(sql, params),
    async run(sql, params) {
      if (/^INSERT INTO \S+session \(sid, incarnation,/.test(sql)) incarnation = params[1]!;
      return 1;
    },
    script: async statements => rows(statements.at(-1)!.sql, statements.at(-1)!.params),
  };
  const pool = {
    kind,
    display: 'play',
    plans: 0,
    use: <T>(work: (c: SqlConnection) => Promise<T>) => work(connection),
    async close() {},
  };
  return pool;
}

const silent = (): void => {};
const OPTIONS: EngineOptions = {
  readOnly: false,
  skipDirMtime: 100,
  heartbeat: 12,
  atimeMode: 'noatime',
  retries: 1,
  events: { sessionLost: silent, formatChanged: silent, volumeLost: silent, changed: silent, trouble: silent },
};
const INFO = { version: '', hostName: '', mountPoint: '', mountTime: '', processId: 0 };
const CRED: Cred = { uid: 0, gid: 0, pid: 0, groups: () => [0], checkPermission: false };

/** Lives of small files and directories while `going`. Answers how many mutations were asked for, and how many of them were one statement. */
export async function playNetworkEngine(
  kind: SqlKind,
  going: () => boolean,
): Promise<{ mutations: number; plans: number }> {
  const pool = agreeingPool(kind);
  const engine = await openNetworkEngine(pool, 'jfs_', OPTIONS);
  let seq = 0;
  const op = (): Op => ({ kind: OpKind.request, slot: 0, seq: ++seq });
  const opening: Op = { kind: OpKind.request, slot: 1, seq: 1 };
  const absent = async (name: Buffer): Promise<void> => {
    await Promise.resolve(engine.lookup(CRED, ROOT, name)).catch(e => {
      if (e !== ENOENT) throw e;
    });
  };
  const make = async (name: Buffer, i: number): Promise<Ino> => {
    await absent(name);
    const made =
      i % 2 === 0
        ? await engine.create(op(), CRED, ROOT, name, 0o644, 0o022, 0o102)
        : await engine.mknod(op(), CRED, ROOT, name, { type: FileType.directory, mode: 0o755, umask: 0o022, rdev: 0 });
    return made.ino;
  };
  try {
    await engine.newSession(INFO);
    // The first one with a record is interactive on MySQL, and nothing is found again after it.
    await engine.setattr(op(), CRED, ROOT, { mode: 0o777 });
    for (let i = 0; going(); i++) {
      const name = Buffer.from(`name-${i}`);
      const other = Buffer.from(`other-${i}`);
      const ino = await make(name, i);
      if (i % 2 === 0) {
        await engine.getattr(ino);
        await engine.open(opening, CRED, ino, 0);
      }
      await engine.setattr(op(), CRED, ino, { mode: 0o600 });
      await absent(other);
      await engine.rename(op(), CRED, ROOT, name, ROOT, other, 0, () => false);
      if (i % 2 === 0) await engine.unlink(op(), CRED, ROOT, other, () => false);
      else await engine.rmdir(op(), CRED, ROOT, other);
      // The loop has its turns: real requests come before these.
      await new Promise<void>(resolve => setImmediate(resolve));
    }
  } finally {
    await engine.close();
  }
  return { mutations: seq, plans: pool.plans };
}
