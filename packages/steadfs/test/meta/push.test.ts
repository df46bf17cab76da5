/** Announcements between clients on PostgreSQL, and what is answered from memory on their strength. */
import assert from 'node:assert/strict';
import { after, it } from 'node:test';
import pg from 'pg';
import { type Attr, FileType } from '../../src/format/attr.ts';
import { ROOT } from '../../src/format/ino.ts';
import type { MetaEngine, Op } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { startCountingProxy } from '../servers/counting-proxy.ts';
import { startPostgres } from '../servers/postgres.ts';
import { missing, openVolume } from '../support/volume.ts';
import { defaultOptions, name, root, session, testFormat } from './contract.ts';

const server = await startPostgres(['fsync=off']);
if ('missing' in server) it('announcements', { skip: server.missing }, () => {});
else {
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
