/** Each operation is one round trip to the database, counted between client and server. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { FileType } from '../../src/format/attr.ts';
import { ROOT } from '../../src/format/ino.ts';
import { type Op, OpKind } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { startCountingProxy } from '../servers/counting-proxy.ts';
import { startMariadb } from '../servers/mariadb.ts';
import { startPostgres } from '../servers/postgres.ts';
import { defaultOptions, name, root, session, testFormat } from './contract.ts';

const ROUNDS = 8;
let count = 0;

// Both are up before the first test begins: the runner does not wait for a file that goes on after its tests.
for (const [label, server] of [
  ['postgres', await startPostgres(['fsync=off'])],
  ['mariadb', await startMariadb(['innodb-flush-log-at-trx-commit=0'])],
] as const) {
  if ('missing' in server) {
    it(label, { skip: server.missing }, () => {});
    continue;
  }
  after(() => server.stop());
  for (const [who, trashDays, make] of [
    ['', 0, server.database],
    [', with trash', 1, server.database],
    [', user without routines', 0, server.restricted],
  ] as const) {
    describe(`${label}${who}`, async () => {
      it('is asked once an operation', async () => {
        const proxy = await startCountingProxy(label === 'postgres' ? 'postgres' : 'mysql', server.port);
        const url = (await make(`trips${count++}`)).replace(`:${server.port}`, `:${proxy.port}`);
        // One connection, so that its statements are prepared after the first round.
        const engine = await openEngine(`${url}${url.includes('?') ? '&' : '?'}max_open_conns=1`, {
          ...defaultOptions,
          skipDirMtime: 100,
        });
        try {
          await engine.init(testFormat({ TrashDays: trashDays }), false);
          await engine.newSession(session);
          let seq = 0;
          const op = (kind: Op['kind'] = OpKind.request): Op => ({ kind, slot: 1, seq: ++seq });
          const dir = (await engine.mknod(op(), root, ROOT, name('dir'), { type: 2, mode: 0o755, umask: 0, rdev: 0 }))
            .ino;
          const other = (
            await engine.mknod(op(), root, ROOT, name('other'), { type: 2, mode: 0o755, umask: 0, rdev: 0 })
          ).ino;
          const trips = new Map<string, number[]>();
          const counted = async <T>(what: string, call: () => T | Promise<T>): Promise<T> => {
            const before = proxy.count();
            const value = await call();
            trips.set(what, [...(trips.get(what) ?? []), proxy.count() - before]);
            return value;
          };
          for (let i = 0; i < ROUNDS; i++) {
            const n = (s: string): Buffer => name(`${s}${i}`);
            const node = { mode: 0o755, umask: 0, rdev: 0 };
            // The kernel looks names up before it makes them.
            for (const s of ['f', 'd', 's', 'l', 'data']) {
              await counted('lookup of an absent name', async () => {
                await assert.rejects(async () => await engine.lookup(root, dir, n(s)), { code: 'ENOENT' });
              });
            }
            for (const s of ['g', 'h']) await assert.rejects(async () => await engine.lookup(root, other, n(s)));
            const { ino } = await counted('create', () => engine.create(op(), root, dir, n('f'), 0o644, 0, 0o200));
            const made = await counted('mkdir', () =>
              engine.mknod(op(), root, dir, n('d'), { ...node, type: FileType.directory }),
            );
            await counted('symlink', () =>
              engine.mknod(op(), root, dir, n('s'), { ...node, type: FileType.symlink, target: name('t') }),
            );
            await counted('link', () => engine.link(op(), root, ino, dir, n('l')));
            await counted('lookup', () => engine.lookup(root, dir, n('f')));
            await counted('getattr', () => engine.getattr(ino));
            await counted('open', () => engine.open(op(), root, made.ino, 0));
            await counted('setattr', () => engine.setattr(op(), root, ino, { mode: 0o600 }));
            await counted('setxattr', () => engine.setxattr(op(), root, ino, name('user.a'), name('1'), 0));
            await counted('setxattr again', () => engine.setxattr(op(), root, ino, name('user.a'), name('2'), 0));
            await counted('getxattr', () => engine.getxattr(ino, name('user.a')));
            await counted('removexattr', () => engine.removexattr(op(), root, ino, name('user.a')));
            const id = await engine.newSliceIds(1);
            const time = { sec: 1_800_000_000 + i, nsec: 5 };
            const file = await engine.create(op(), root, dir, n('data'), 0o644, 0, 0o200);
            const records = [{ pos: 0, id, size: 10, off: 0, len: 10 }];
            const wrote = await counted('write', () =>
              engine.write(op(OpKind.slice), file.ino, 0, records, 10, time, time, false),
            );
            assert.equal(wrote.records, 1);
            await counted('truncate', () => engine.setattr(op(), root, file.ino, { size: 5 }));
            await counted('unlink of one link', () => engine.unlink(op(), root, dir, n('l'), () => false));
            await counted('rename', () => engine.rename(op(), root, dir, n('f'), other, n('g'), 0, () => false));
            await engine.create(op(), root, other, n('h'), 0o644, 0, 0o200);
            await counted('rename over a file', () =>
              engine.rename(op(), root, other, n('h'), other, n('g'), 0, () => false),
            );
            await counted('unlink', () => engine.unlink(op(), root, other, n('g'), () => false));
            await counted('unlink of data', () => engine.unlink(op(), root, dir, n('data'), () => false));
            await counted('rmdir', () => engine.rmdir(op(), root, dir, n('d')));
            await counted('unlink of a symlink', () => engine.unlink(op(), root, dir, n('s'), () => false));
          }
          // The first rounds prepare statements and make procedures; a flush of usage may fall into another.
          const off = [...trips].filter(([, t]) => t.slice(2).sort((a, b) => a - b)[2] !== 1);
          assert.deepEqual(Object.fromEntries(off), {});
        } finally {
          await engine.closeSession();
          await engine.close();
          await proxy.close();
        }
      });
    });
  }
}
