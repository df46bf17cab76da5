/** What one client planned on rows that another one has changed costs a round trip, and no error in the server's log. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { ROOT } from '../../src/format/ino.ts';
import type { MetaEngine, Op } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { startPostgres } from '../servers/postgres.ts';
import { defaultOptions, name, root, session, testFormat } from './contract.ts';

const server = await startPostgres(['fsync=off', 'logging_collector=on', 'log_directory=log']);
if ('missing' in server) it('stale plans', { skip: server.missing }, () => {});
else {
  after(() => server.stop());
  describe('stale plans on PostgreSQL', () => {
    it('are not errors', async () => {
      const url = await server.database('stale');
      const [a, b] = (await Promise.all([1, 2].map(() => openEngine(url, { ...defaultOptions })))) as [
        MetaEngine,
        MetaEngine,
      ];
      let seq = 0;
      const op = (): Op => ({ kind: 0, slot: 1, seq: ++seq });
      const open = (): boolean => false;
      try {
        await a.init(testFormat(), false);
        for (const e of [a, b]) {
          await e.load();
          await e.newSession(session);
        }
        const make = (e: MetaEngine, n: string) => e.create(op(), root, ROOT, name(n), 0o644, 0, 0o200);
        const absent = (e: MetaEngine, n: string) =>
          assert.rejects(async () => await e.lookup(root, ROOT, name(n)), { code: 'ENOENT' });

        const { ino } = await make(a, 'f');
        await b.setattr(op(), root, ino, { mode: 0o600 });
        assert.equal((await a.setattr(op(), root, ino, { uid: 7 })).mode, 0o600);

        await absent(a, 'new');
        await make(b, 'new');
        await assert.rejects(make(a, 'new'), { code: 'EEXIST' });

        await make(a, 'moved');
        await absent(a, 'taken');
        const taken = await make(b, 'taken');
        const renamed = await a.rename(op(), root, ROOT, name('moved'), ROOT, name('taken'), 0, open);
        assert.equal(renamed.replaced?.ino, taken.ino);

        await make(a, 'gone');
        await b.unlink(op(), root, ROOT, name('gone'), open);
        await assert.rejects(a.unlink(op(), root, ROOT, name('gone'), open), { code: 'ENOENT' });

        const dir = await a.mknod(op(), root, ROOT, name('dir'), { type: 2, mode: 0o755, umask: 0, rdev: 0 });
        await b.create(op(), root, dir.ino, name('in'), 0o644, 0, 0o200);
        await assert.rejects(a.rmdir(op(), root, ROOT, name('dir')), { code: 'ENOTEMPTY' });

        // Usage that was flushed: the op record is not what it was.
        await make(a, 'counted');
        await Promise.all([a.flush(), make(a, 'meanwhile')]);
        await make(a, 'afterwards');
      } finally {
        for (const e of [a, b]) {
          await e.closeSession();
          await e.close();
        }
      }
      const folder = join(server.dir, 'data/log');
      const log = readdirSync(folder)
        .map(f => readFileSync(join(folder, f), 'utf8'))
        .join('');
      assert.match(log, /ready to accept connections/);
      assert.deepEqual(
        log.split('\n').filter(l => /ERROR|STATEMENT/.test(l)),
        [],
      );
    });
  });
}
