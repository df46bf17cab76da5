// timeout: 400
// alone
/** Several hosts on one volume: what one closed the other sees, locks between them, a host that was cut off. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import pg from 'pg';
import { startNetwork } from '../servers/network.ts';
import { missing, runClient } from '../support/volume.ts';
import { type Host, hostsMissing, startHost } from './hosts.ts';

const lack = missing('steadfs') ?? hostsMissing();

async function until(check: () => boolean | Promise<boolean>, what: string, seconds = 60): Promise<void> {
  for (const end = Date.now() + seconds * 1000; !(await check()); ) {
    if (Date.now() > end) assert.fail(`not within ${seconds} s: ${what}`);
    await new Promise(wake => setTimeout(wake, 100));
  }
}

for (const meta of ['redis', 'postgres'] as const)
  test(`${meta}: three hosts`, { skip: lack ?? false }, async t => {
    const network = await startNetwork(meta, 'file');
    if ('missing' in network) return t.skip(network.missing);
    const base = mkdtempSync(join(tmpdir(), 'hosts-'));
    const hosts: Host[] = [];
    const port = (network.redis ?? network.postgres)!.port;
    // Around the proxy of the network: each host has its own.
    const url = network.meta!.replace(`:${network.metaProxy!.port}`, `:${port}`);
    try {
      const store = ['--storage', 'file', '--bucket', `${base}/objects/`];
      const made = runClient('steadfs', ['format', '--trash-days', '0', ...store, url, 'hosts']);
      assert.equal(made.status, 0, made.stderr);
      for (let i = 0; i < 3; i++)
        hosts.push(await startHost(base, url, port, ['--attr-cache', '10s', '--entry-cache', '10s']));
      const [a, b, c] = hosts as [Host, Host, Host];

      await t.test('what one closed, the other sees at its next open, with attributes cached', async () => {
        await a.run('mkdir $D/shared; echo 0 > $D/shared/f');
        for (let i = 1; i <= 8; i++) {
          const [writer, reader] = i % 2 ? [a, b] : [b, a];
          // Both have its attributes, and its pages.
          assert.match(await reader.run('stat -c %s $D/shared/f; cat $D/shared/f'), new RegExp(`^\\d+\n${i - 1}\\b`));
          await writer.run(`seq -s ' ' ${i} ${i + i * 100} > $D/shared/f`);
          const expected = await writer.run('md5sum < $D/shared/f');
          assert.equal(await reader.run('md5sum < $D/shared/f'), expected, `round ${i}`);
        }
      });

      await t.test('locks hold between hosts, and those who wait get them', async () => {
        await a.run('touch $D/lock');
        // One process, so that its end ends the lock.
        const holder = a.start('exec 9>$D/lock; flock 9; echo held > $D/state; kill -STOP $$');
        await until(async () => (await b.run('cat $D/state 2>/dev/null || true')).includes('held'), 'the lock is held');
        assert.match(await b.start('flock -n $D/lock true').ended, /^1 /);
        const waiters = [b, c].map(h => h.start('flock $D/lock true'));
        await new Promise(wake => setTimeout(wake, 500));
        assert.deepEqual(
          waiters.map(w => w.over()),
          [false, false],
        );
        holder.child.kill('SIGKILL');
        for (const w of waiters) assert.equal(await w.ended, '0 ');
      });

      await t.test('a host that was cut off loses its session, once, and writes nothing afterwards', async () => {
        await a.run('echo before > $D/owned');
        const holder = a.start(
          'exec 9>>$D/owned; flock 9; echo got > $D/got; while echo late >&9; do sleep 0.3; done; echo "no more"',
        );
        await until(async () => (await b.run('cat $D/got 2>/dev/null || true')).includes('got'), 'a has the lock');
        const waiter = b.start('flock $D/owned sh -c "cat $D/owned > $D/copy; echo mine > $D/owned"');
        await new Promise(wake => setTimeout(wake, 300));
        assert.equal(waiter.over(), false);
        a.link(false);
        const sid = await expire(network, meta, a.dir);
        assert.equal(await waiter.ended, '0 ');
        // Names and data of the new owner stay what they are when the old one is back.
        a.link(true);
        await until(() => /the session is lost/.test(a.log()), 'a knows that its session is lost');
        assert.match(await holder.ended, /^0 .*no more/s);
        await new Promise(wake => setTimeout(wake, 1500));
        assert.equal(await b.run('cat $D/owned'), 'mine\n');
        assert.equal(await c.run('cat $D/owned; ls $D'), 'mine\ncopy\ngot\nlock\nowned\nshared\nstate\n');
        const times = () => [b, c].map(h => h.log().split(`session ${sid} has expired`).length - 1);
        await until(() => times().some(n => n > 0), 'it is cleaned');
        const cleaned = times();
        assert.equal(cleaned[0]! + cleaned[1]!, 1, `cleaned ${cleaned} times`);
      });
    } finally {
      const faults = await Promise.all(hosts.map(h => h.close()));
      await network.close();
      rmSync(base, { recursive: true, force: true });
      assert.deepEqual(
        faults.filter(f => f !== undefined),
        [],
      );
    }
  });

/** Makes the session of a mount one whose time is over; its id. */
async function expire(
  network: { redis?: { cli(...words: string[]): string }; postgres?: { port: number } },
  meta: 'redis' | 'postgres',
  dir: string,
): Promise<number> {
  if (meta === 'redis') {
    const all = network.redis!.cli('-n', '1', 'hgetall', 'sessionInfos').split('\n');
    const at = all.findIndex(line => line.includes(`"${dir}"`));
    const sid = all[at - 1]!;
    network.redis!.cli('-n', '1', 'zadd', 'allSessions', '1', sid);
    return Number(sid);
  }
  const client = new pg.Client({ host: '127.0.0.1', port: network.postgres!.port, user: 'postgres', database: 'vol' });
  await client.connect();
  try {
    const found = await client.query("select sid from jfs_session2 where convert_from(info, 'utf8') like $1", [
      `%"${dir}"%`,
    ]);
    const sid = Number(found.rows[0].sid);
    await client.query('update jfs_session2 set expire = 1 where sid = $1', [sid]);
    return sid;
  } finally {
    await client.end();
  }
}
