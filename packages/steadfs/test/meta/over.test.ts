/**
 * Mutations whose callers have been answered in the meantime (Op.over): what was not sent is left undone; of what was sent on a connection that is lost, the outcome is known when
 * the promise settles, and does not change any more, even when the network delivers it later.
 */
import assert from 'node:assert/strict';
import { connect, createServer, type Socket } from 'node:net';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { FileType } from '../../src/format/attr.ts';
import { ROOT } from '../../src/format/ino.ts';
import type { MetaEngine, Op } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import type { SqlConnection, SqlPool } from '../../src/meta/sql/connection.ts';
import { openNetworkEngine } from '../../src/meta/sql/network.ts';
import { startEngine } from '../servers/engines.ts';
import { startRedis } from '../servers/redis.ts';
import { defaultOptions, name, root, session, testFormat } from './contract.ts';
import { poolOf } from './network-sql.ts';

type Over = Op & { over?: boolean };

let seq = 0;
const newOp = (): Over => ({ kind: 0, slot: 5, seq: ++seq });

function mkdir(engine: MetaEngine, op: Op, n: string) {
  return Promise.resolve(
    engine.mknod(op, root, ROOT, name(n), { type: FileType.directory, mode: 0o755, umask: 0, rdev: 0 }),
  );
}

async function exists(engine: MetaEngine, n: string): Promise<boolean> {
  try {
    await engine.lookup(root, ROOT, name(n));
    return true;
  } catch (e) {
    assert.equal((e as { code: string }).code, 'ENOENT');
    return false;
  }
}

const interrupted = { code: 'EINTR' };

async function mounted(engine: MetaEngine): Promise<MetaEngine> {
  if ((await engine.load()) === undefined) await engine.init(testFormat(), false);
  await engine.newSession(session);
  return engine;
}

/** Nothing was sent when its caller was answered. */
async function notBegun(engine: MetaEngine): Promise<void> {
  await assert.rejects(mkdir(engine, { ...newOp(), over: true }, 'never'), interrupted);
  assert.equal(await exists(engine, 'never'), false);
}

test('sqlite: what waits for the file and is over is left undone', async t => {
  const server = await startEngine('sqlite');
  if ('missing' in server) return t.skip(server.missing);
  t.after(() => server.stop());
  const url = await server.fresh();
  const engine = await mounted(await openEngine(url, defaultOptions));
  t.after(() => engine.close());
  const other = new DatabaseSync(url.slice('sqlite3://'.length));
  t.after(() => other.close());
  other.exec('begin immediate');
  const [gone, wanted] = [newOp(), { ...newOp(), slot: 6 }];
  const made = [mkdir(engine, gone, 'never'), mkdir(engine, wanted, 'made')];
  gone.over = true;
  other.exec('rollback');
  await assert.rejects(made[0]!, interrupted);
  await made[1];
  assert.equal(await exists(engine, 'never'), false);
  assert.equal(await exists(engine, 'made'), true);
});

for (const kind of ['postgres', 'mariadb'] as const)
  test(`${kind}: a statement that comes late has no effect`, async t => {
    const server = await startEngine(kind);
    if ('missing' in server) return t.skip(server.missing);
    t.after(() => server.stop());
    let lose: ((run: (c: SqlConnection) => Promise<unknown>) => Promise<unknown>) | undefined;
    const real = poolOf(kind, await server.fresh());
    const pool: SqlPool = {
      ...real,
      use: work =>
        real.use(c =>
          work({
            ...c,
            async all(sql, params) {
              if (lose === undefined || !/^(WITH|CALL|BEGIN NOT)/.test(sql)) return await c.all(sql, params);
              const losing = lose;
              lose = undefined;
              return (await losing(other => other.all(sql, params))) as never;
            },
          }),
        ),
    };
    const engine = await mounted(await openNetworkEngine(pool, 'jfs_', defaultOptions));
    t.after(() => engine.close());
    // Plans need rows that were seen and a record to change.
    for (const n of ['a', 'b', 'c']) await mkdir(engine, newOp(), n);
    await notBegun(engine);

    let late: ((c: SqlConnection) => Promise<unknown>) | undefined;
    let op = newOp();
    lose = async run => {
      late = run;
      op.over = true;
      throw Object.assign(new Error('lost by the test'), { code: 'ECONNRESET' });
    };
    await assert.rejects(mkdir(engine, op, 'late'), interrupted);
    assert.ok(late !== undefined, 'it was sent');
    // A guard of the plan does not hold: an error on MariaDB, an answer without effect on PostgreSQL.
    await real.use(late).catch(() => undefined);
    assert.equal(await exists(engine, 'late'), false);

    op = newOp();
    lose = async run => {
      await real.use(run);
      op.over = true;
      throw Object.assign(new Error('lost by the test'), { code: 'ECONNRESET' });
    };
    const { ino } = await mkdir(engine, op, 'done');
    assert.equal((await engine.lookup(root, ROOT, name('done'))).ino, ino);
    await mkdir(engine, newOp(), 'after');
  });

test('redis: a script that comes late has no effect', async t => {
  const server = await startRedis(['--maxmemory-policy', 'noeviction']);
  if ('missing' in server) return t.skip(server.missing);
  t.after(() => server.stop());
  /** 'hold': what clients send is kept back; 'answers': it is passed on, and nothing comes back. */
  let mode: 'flow' | 'hold' | 'answers' = 'flow';
  const held: { to: Socket; data: Buffer }[] = [];
  const clients = new Set<Socket>();
  const sockets = new Set<Socket>();
  const relay = createServer(client => {
    const upstream = connect(server.port, '127.0.0.1');
    clients.add(client);
    for (const s of [client, upstream]) {
      sockets.add(s);
      s.on('error', () => {});
    }
    client.on('close', () => clients.delete(client));
    client.on('data', (data: Buffer) => {
      if (mode === 'hold') held.push({ to: upstream, data });
      else upstream.write(data);
    });
    upstream.on('data', (data: Buffer) => {
      if (mode !== 'answers') client.write(data);
    });
  });
  await new Promise<void>(done => relay.listen(0, '127.0.0.1', done));
  t.after(() => {
    relay.close();
    for (const s of sockets) s.destroy();
  });
  const { port } = relay.address() as { port: number };
  const engine = await mounted(await openEngine(`redis://127.0.0.1:${port}/1`, defaultOptions));
  t.after(() => engine.close());
  await mkdir(engine, newOp(), 'before');
  await notBegun(engine);
  /** The connection is lost when the mutation has come so far; its caller has been answered by then. */
  const lost = async (how: typeof mode, n: string): Promise<unknown> => {
    mode = how;
    const op = newOp();
    const made = mkdir(engine, op, n);
    const far = () => (how === 'hold' ? held.length > 0 : server.cli('-n', '1', 'hexists', 'd1', n).startsWith('1'));
    for (const end = Date.now() + 30_000; !far(); await new Promise(wake => setTimeout(wake, 10)))
      assert.ok(Date.now() < end, `${n} was not sent`);
    op.over = true;
    mode = 'flow';
    for (const client of clients) client.destroy();
    return await made;
  };
  await assert.rejects(lost('hold', 'late'), interrupted);
  for (const { to, data } of held) to.write(data);
  // The server has read it when it answers a later command on the same connection.
  const answered = new Promise<void>(resolve => {
    held[0]!.to.on('data', (data: Buffer) => data.includes('PONG') && resolve());
  });
  held[0]!.to.write('PING\r\n');
  await answered;
  assert.equal(await exists(engine, 'late'), false);

  await mkdir(engine, newOp(), 'between');
  const { ino } = (await lost('answers', 'done')) as { ino: number };
  assert.equal((await engine.lookup(root, ROOT, name('done'))).ino, ino);
  await mkdir(engine, newOp(), 'after');
});
