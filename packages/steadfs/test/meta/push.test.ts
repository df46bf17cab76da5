/** Announcements between clients on PostgreSQL, and what is answered from memory on their strength. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import pg from 'pg';
import { type Attr, FileType } from '../../src/format/attr.ts';
import { type Ino, ROOT } from '../../src/format/ino.ts';
import type { MetaEngine, Op } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import type { SqlConnection, SqlPool } from '../../src/meta/sql/connection.ts';
import { openNetworkEngine } from '../../src/meta/sql/network.ts';
import { openPostgres } from '../../src/meta/sql/postgres-pool.ts';
import { parsePostgresUrl } from '../../src/meta/sql/url.ts';
import { startCountingProxy } from '../servers/counting-proxy.ts';
import { startPostgres } from '../servers/postgres.ts';
import { missing, openVolume } from '../support/volume.ts';
import { defaultOptions, name, root, session, testFormat } from './contract.ts';

const server = await startPostgres(['fsync=off']);
if ('missing' in server) it('announcements', { skip: server.missing }, () => {});
else {
  const { database } = server;
  after(() => server.stop());
  let seq = 0;
  const op = (): Op => ({ kind: 0, slot: 1, seq: ++seq });
  const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
    for (const end = Date.now() + 30_000; !(await holds()); await new Promise(wake => setTimeout(wake, 20)))
      assert.ok(Date.now() < end, what);
  };
  const proxied = async (url: string) => {
    const proxy = await startCountingProxy('postgres', server.port);
    const engine = await openEngine(url.replace(`:${server.port}`, `:${proxy.port}`), {
      ...defaultOptions,
      cachesByPush: true,
    });
    /** Whether the call asked the database. Checks of sessions in the background may count: so several tries. */
    const asks = async (call: () => unknown): Promise<boolean> => {
      for (let i = 0; i < 4; i++) {
        const before = proxy.count();
        await call();
        if (proxy.count() === before) return false;
      }
      return true;
    };
    return { engine, proxy, asks };
  };

  it('attributes and names are answered from memory, and what another client changes is seen', async () => {
    const url = await server.database('push');
    const a = await proxied(url);
    await a.engine.init(testFormat({ EnableACL: false }), false);
    const b = await proxied(url);
    for (const e of [a.engine, b.engine]) {
      await e.load();
      await e.newSession(session);
    }
    const foreign = new pg.Client({ connectionString: url });
    await foreign.connect();
    try {
      const mkdir = await a.engine.mknod(op(), root, ROOT, name('d'), {
        type: FileType.directory,
        mode: 0o755,
        umask: 0,
        rdev: 0,
      });
      const dir = mkdir.ino;
      const { ino } = await a.engine.create(op(), root, dir, name('f'), 0o644, 0, 0);
      const mode = async (e: MetaEngine): Promise<number> => (await e.getattr(ino)).mode;
      const exists = async (e: MetaEngine, n: string): Promise<boolean> => {
        try {
          await e.lookup(root, dir, name(n));
          return true;
        } catch {
          return false;
        }
      };
      await until('a cached attribute', async () => !(await b.asks(() => mode(b.engine))));
      await until('a cached name', async () => !(await b.asks(() => exists(b.engine, 'f'))));
      await until('a cached absence', async () => !(await b.asks(() => exists(b.engine, 'g'))));

      await a.engine.setattr(op(), root, ino, { mode: 0o600 });
      // open(2) never answers from memory.
      assert.equal(((await b.engine.open(op(), root, ino, 0)) as Attr).mode, 0o600);
      await until('a new mode', async () => (await mode(b.engine)) === 0o600);
      await a.engine.create(op(), root, dir, name('g'), 0o644, 0, 0);
      await until('a new name', () => exists(b.engine, 'g'));
      await a.engine.rename(op(), root, dir, name('g'), dir, name('h'), 0, () => false);
      await until('a name that is gone', async () => !(await exists(b.engine, 'g')));
      await a.engine.unlink(op(), root, dir, name('h'), () => false);
      await until('a name that was removed', async () => !(await exists(b.engine, 'h')));
      // What a client changed itself it sees at once.
      await b.engine.setattr(op(), root, ino, { mode: 0o640 });
      assert.equal(await mode(b.engine), 0o640);

      // A client that announces nothing: after the next look at the sessions nothing is answered from memory.
      await foreign.query(
        'insert into jfs_session2 (sid, expire, info) values (999, extract(epoch from now()) + 600, \'{"Version":"1.4.1"}\')',
      );
      await new Promise(wake => setTimeout(wake, 2100));
      for (let i = 0; i < 3; i++) {
        await foreign.query('update jfs_node set mode = $1 where inode = $2', [0o700 + i, ino]);
        assert.equal(await mode(b.engine), 0o700 + i);
      }
      await foreign.query('delete from jfs_session2 where sid = 999');
      await until('trust again', async () => !(await b.asks(() => mode(b.engine))));
    } finally {
      await foreign.end();
      for (const x of [a, b]) {
        await x.engine.closeSession();
        await x.engine.close();
        await x.proxy.close();
      }
    }
  });

  // ── windows in which something old could be answered ────────────────────────────────────────────────────────────

  /** Takes the place of a statement, which `run` carries out; undefined: nothing special about it. */
  type Statement = (
    pool: SqlPool,
    sql: string,
    run: (c: SqlConnection) => Promise<unknown>,
  ) => Promise<unknown> | undefined;

  /** Faults of one client's connections: whether it hears, and what happens to a statement. */
  interface Faults {
    deaf: boolean;
    statement?: Statement | undefined;
  }

  function faulty(url: string, faults: Faults): SqlPool {
    const parsed = parsePostgresUrl(url, {});
    const pool = openPostgres(parsed);
    return {
      ...pool,
      use: work =>
        pool.use(c =>
          work({
            ...c,
            all: (sql, params) =>
              (faults.statement?.(pool, sql, x => x.all(sql, params)) ?? c.all(sql, params)) as ReturnType<
                typeof c.all
              >,
          }),
        ),
      listen: (channel, heard, lost) => pool.listen!(channel, payload => faults.deaf || heard(payload), lost),
    };
  }

  interface Pair {
    a: MetaEngine;
    b: MetaEngine;
    url: string;
    foreign: pg.Client;
    /** Of b. */
    faults: Faults;
    /** A directory and a file in it. */
    dir: Ino;
    file: Ino;
    mkdir(e: MetaEngine, parent: Ino, n: string): Promise<Ino>;
    mode(e: MetaEngine): Promise<number>;
    /** Whether calls of b ask the database. */
    asks(call: () => unknown): Promise<boolean>;
  }

  /** Two clients, both with a memory that they trust; b's holds the file's attributes and name. */
  async function pair(base: string, work: (p: Pair) => Promise<void>): Promise<void> {
    const url = await database(base);
    const faults: Faults = { deaf: false };
    let asked = 0;
    const counted: Faults = {
      get deaf() {
        return faults.deaf;
      },
      statement(pool, sql, run) {
        if (/FROM jfs_(node|edge) /.test(sql)) asked++;
        return faults.statement?.(pool, sql, run);
      },
    };
    const options = { ...defaultOptions, cachesByPush: true };
    const a = await openEngine(url, options);
    await a.init(testFormat({ EnableACL: false }), false);
    const b = await openNetworkEngine(faulty(url, counted), 'jfs_', options);
    const foreign = new pg.Client({ connectionString: url });
    await foreign.connect();
    try {
      for (const e of [a, b]) {
        await e.load();
        await e.newSession(session);
      }
      const mkdir = async (e: MetaEngine, parent: Ino, n: string): Promise<Ino> =>
        (await e.mknod(op(), root, parent, name(n), { type: FileType.directory, mode: 0o755, umask: 0, rdev: 0 })).ino;
      const dir = await mkdir(a, ROOT, 'd');
      const file = (await a.create(op(), root, dir, name('f'), 0o644, 0, 0)).ino;
      const mode = async (e: MetaEngine): Promise<number> => (await e.getattr(file)).mode;
      const asks = async (call: () => unknown): Promise<boolean> => {
        const before = asked;
        await call();
        return asked > before;
      };
      // The first change of a client is made the long way.
      await b.setattr(op(), root, file, { mode: 0o644 });
      await until('trust', async () => {
        await b.lookup(root, dir, name('f'));
        return !(await asks(() => mode(b)));
      });
      await work({ a, b, url, foreign, faults, dir, file, mkdir, mode, asks });
    } finally {
      faults.statement = undefined;
      await foreign.end();
      for (const e of [a, b]) {
        await e.closeSession().catch(() => {});
        await e.close();
      }
    }
  }

  const come = "insert into jfs_session2 (sid, expire, info) values (999, extract(epoch from now()) + 600, '{}')";
  const made = "update jfs_counter set value = value + 1 where name = 'nextSession'";
  const gone = 'delete from jfs_session2 where sid = 999';

  describe('windows', { concurrency: true }, () => {
    it('what was remembered before a client without announcements came is forgotten when it has gone', () =>
      pair('window1', async ({ b, foreign, dir, file, mode, asks }) => {
        for (const noticed of [true, false]) {
          await until('a cached attribute', async () => !(await asks(() => mode(b))));
          await foreign.query(made);
          await foreign.query(come);
          if (noticed) await until('distrust', () => asks(() => mode(b)));
          const mine = noticed ? 0o701 : 0o702;
          await foreign.query('update jfs_node set mode = $1 where inode = $2', [mine, file]);
          await foreign.query(gone);
          // Longer than one look at the sessions is good for.
          await new Promise(wake => setTimeout(wake, 1100));
          for (let remembered = false; !remembered; ) {
            await b.getattr(dir);
            await new Promise(wake => setTimeout(wake, 100));
            remembered = !(await asks(async () => assert.equal(await mode(b), mine)));
          }
        }
      }));

    it('a listening connection that hears nothing any more, without an end, is not trusted', () =>
      pair('window2', async ({ a, b, faults, file, mode, asks }) => {
        faults.deaf = true;
        await until('distrust', async () => {
          for (let i = 0; i < 5; i++) {
            if (!(await asks(() => mode(b)))) return false;
            await new Promise(wake => setTimeout(wake, 100));
          }
          return true;
        });
        await a.setattr(op(), root, file, { mode: 0o600 });
        assert.equal(await mode(b), 0o600);
        faults.deaf = false;
        await until('trust again', async () => !(await asks(() => mode(b))));
      }));

    it('a session that is gone hears no announcements: its memory is not trusted', () =>
      pair('window3', async ({ b, foreign, mode, asks }) => {
        await foreign.query('delete from jfs_session2 where sid = (select max(sid) from jfs_session2)');
        await until('distrust', async () => {
          for (let i = 0; i < 5; i++) {
            if (!(await asks(() => mode(b)))) return false;
            await new Promise(wake => setTimeout(wake, 300));
          }
          return true;
        });
      }));

    it('a command without a session announces what it changes', () =>
      pair('window4', async ({ b, url, file, mode }) => {
        const command = await openEngine(url, defaultOptions);
        await command.load();
        await command.setattr(op(), root, file, { mode: 0o611 });
        await command.close();
        const end = Date.now() + 8000;
        while ((await mode(b)) !== 0o611) {
          assert.ok(Date.now() < end, 'the old mode for seconds');
          await new Promise(wake => setTimeout(wake, 5));
        }
      }));

    it('attributes that were fetched while a change of ours was under way are not changed twice', () =>
      pair('window5', async ({ a, b, faults, mkdir }) => {
        // b knows what plans need, not the directory's attributes.
        const dir = await mkdir(a, ROOT, 'theirs');
        await assert.rejects(async () => b.lookup(root, dir, name('none')));
        const { promise: held, resolve: release } = Promise.withResolvers<void>();
        const { promise: committed, resolve: sent } = Promise.withResolvers<void>();
        faults.statement = (pool, sql, run) => {
          if (!sql.startsWith('WITH ')) return undefined;
          faults.statement = undefined;
          return (async () => {
            try {
              return await pool.use(run);
            } finally {
              sent();
              await held;
            }
          })();
        };
        const under = mkdir(b, dir, 'sub');
        await committed;
        assert.equal((await b.getattr(dir)).nlink, 3);
        release();
        await under;
        assert.equal((await b.getattr(dir)).nlink, 3);
      }));

    it('a directory of ours in which another client made something before we heard that it is there', () =>
      pair('window6', async ({ a, b, faults, dir, mkdir }) => {
        const { promise: held, resolve: release } = Promise.withResolvers<void>();
        const { promise: committed, resolve: sent } = Promise.withResolvers<void>();
        faults.statement = (pool, sql, run) => {
          if (!sql.startsWith('WITH ')) return undefined;
          faults.statement = undefined;
          return (async () => {
            const answer = await pool.use(run);
            sent();
            await held;
            return answer;
          })();
        };
        const under = mkdir(b, dir, 'new');
        await committed;
        const { ino } = await a.lookup(root, dir, name('new'));
        await a.create(op(), root, ino, name('inside'), 0o644, 0, 0);
        // Time to hear of it, in which trust does not lapse.
        for (const end = Date.now() + 500; Date.now() < end; await b.getattr(dir))
          await new Promise(wake => setTimeout(wake, 20));
        release();
        await under;
        assert.ok((await b.lookup(root, ino, name('inside'))).ino > 0);
      }));

    it('a change that is committed after its connection broke is announced after that', () =>
      pair('window7', async ({ b, url, file, dir, mode, asks }) => {
        // The third client's plan breaks off at its end, and is committed a second later.
        const broken: Faults = { deaf: false };
        const c = await openNetworkEngine(faulty(url, broken), 'jfs_', { ...defaultOptions, cachesByPush: true });
        await c.load();
        await c.newSession(session);
        try {
          await c.lookup(root, dir, name('f'));
          await c.setattr(op(), root, file, { mode: 0o640 });
          await until('the first mode', async () => (await mode(b)) === 0o640);
          let late: Promise<void> | undefined;
          broken.statement = (pool, sql, run) => {
            if (!sql.startsWith('WITH ')) return undefined;
            broken.statement = undefined;
            return new Promise((_, reject) => {
              late = pool.use(async x => {
                await x.run('BEGIN', []);
                await run(x);
                reject(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }));
                await new Promise(wake => setTimeout(wake, 1000));
                await x.run('COMMIT', []);
              });
            });
          };
          let done = false;
          const change = c.setattr(op(), root, file, { mode: 0o660 }).finally(() => {
            done = true;
          });
          // b remembers the old mode again meanwhile.
          while (!done) {
            await mode(b);
            await new Promise(wake => setTimeout(wake, 5));
          }
          await change;
          await late;
          assert.equal((await c.getattr(file)).mode, 0o660);
          const end = Date.now() + 8000;
          while ((await mode(b)) !== 0o660) {
            assert.ok(Date.now() < end, 'the old mode for seconds');
            await new Promise(wake => setTimeout(wake, 5));
          }
          await until('a memory again', async () => !(await asks(() => mode(b))));
          assert.equal(await mode(b), 0o660);
        } finally {
          await c.closeSession();
          await c.close();
        }
      }));
  });

  const lack = missing('juicefs');
  it('beside the Go client every answer is the database’s', { skip: lack ?? false }, async () => {
    const url = await server.database('pushgo');
    const volume = openVolume({ client: 'juicefs', meta: url });
    const { engine, proxy } = await proxied(url);
    try {
      await engine.load();
      await engine.newSession(session);
      const { ino } = await engine.create(op(), root, ROOT, name('f'), 0o644, 0, 0);
      for (const end = Date.now() + 2500; Date.now() < end; ) {
        const before = proxy.count();
        await engine.getattr(ino);
        assert.ok(proxy.count() > before, 'an answer from memory');
        await new Promise(wake => setTimeout(wake, 10));
      }
      volume.close();
      await until('trust, when it is gone', async () => {
        const before = proxy.count();
        await engine.getattr(ino);
        return proxy.count() === before;
      });
    } finally {
      volume.close();
      await engine.closeSession();
      await engine.close();
      await proxy.close();
    }
  });
}
