// timeout: 300
// alone
/** Locks whose callers are killed while the database holds the answer back: whatever becomes of them there, nobody may own them in the end. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import mysql from 'mysql2/promise';
import pg from 'pg';
import { META_KINDS, type MetaKind, type Network, startNetwork } from '../servers/network.ts';
import { abortMount, missing, openVolume, type Volume } from '../support/volume.ts';
import { statusOf } from './faults.ts';

const lack = missing('steadfs');

async function until(check: () => boolean, what: string): Promise<void> {
  for (const end = Date.now() + 120_000; !check(); await new Promise(wake => setTimeout(wake, 50)))
    assert.ok(Date.now() < end, what);
}

/**
 * Lets no lock of these inodes be granted until the function that it answers is called. The SQL servers carry out everything else meanwhile, so that the unlocking of a process that
 * was killed comes before the lock.
 */
async function holdBack(
  meta: MetaKind,
  network: Network,
  volume: Volume,
  inodes: number[],
): Promise<() => Promise<void>> {
  const rows = `select inode from jfs_node where inode in (${inodes.join()}) for update`;
  if (meta === 'postgres') {
    const client = new pg.Client({
      host: '127.0.0.1',
      port: network.postgres!.port,
      user: 'postgres',
      database: 'vol',
    });
    await client.connect();
    await client.query('begin');
    await client.query(rows);
    return () => client.end();
  }
  if (meta === 'mariadb') {
    const client = await mysql.createConnection({
      socketPath: `${network.mariadb!.dir}/s.sock`,
      user: 'root',
      database: 'vol',
    });
    await client.query('start transaction');
    await client.query(rows);
    return () => client.end();
  }
  if (meta === 'redis') {
    await network.metaProxy!.freeze();
    return () => network.metaProxy!.flow();
  }
  const db = new DatabaseSync(join(volume.base, 'meta.db'));
  db.exec('begin immediate');
  return async () => db.close();
}

/** Exit code or signal. */
const endOf = async (child: ChildProcess): Promise<string> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return String(child.signalCode ?? child.exitCode);
};

/**
 * Opens a file, says so, and locks it when it is told to. `shared`: the lock is asked for by a child (whose number is said too), while the description lives on in the parent. `both`: locks
 * several files in each way at once, and ends.
 */
const PROGRAM = `
import fcntl, os, sys, time
kind, path = sys.argv[1:3]
if kind == 'both':
    for path in sys.argv[2:]:
        file = open(path, 'r+')
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
    sys.exit()
file = open(path, 'r+')
child = os.fork() if kind == 'shared' else 0
if child:
    os.write(1, b'pid %d\\n' % child) # in one piece: print writes number and line end apart, and both processes write here
    time.sleep(600)
os.write(1, b'open\\n')
sys.stdin.readline()
fcntl.lockf(file, fcntl.LOCK_EX) if kind == 'fcntl' else fcntl.flock(file, fcntl.LOCK_EX)
`;
const KINDS = ['flock', 'fcntl', 'shared'];

for (const meta of META_KINDS)
  test(`${meta}: a lock that is granted after its caller was killed is nobody's`, { skip: lack ?? false }, async t => {
    const network = await startNetwork(meta, 'file');
    if ('missing' in network) return t.skip(network.missing);
    t.after(() => network.close());
    const volume = openVolume(network.meta ? { meta: network.meta } : {});
    const children: ChildProcess[] = [];
    const start = (kind: string, ...files: string[]): ChildProcess => {
      const child = spawn('python3', ['-c', PROGRAM, kind, ...files], { stdio: ['pipe', 'pipe', 'inherit'] });
      children.push(child);
      return child;
    };
    let release: (() => Promise<void>) | undefined;
    try {
      const paths = KINDS.map(name => join(volume.dir, name));
      assert.equal(await endOf(spawn('touch', paths)), '0');
      const inodes = paths.map(path => statSync(path).ino);
      const victims = KINDS.map((kind, i) => start(kind, paths[i]!));
      let said = '';
      for (const victim of victims)
        victim.stdout!.on('data', (data: Buffer) => {
          said += data.toString();
        });
      await until(() => said.match(/open/g)?.length === KINDS.length && said.includes('pid '), 'all files are open');
      release = await holdBack(meta, network, volume, inodes);
      for (const victim of victims) victim.stdin!.write('\n');
      await until(() => statusOf(volume.dir).mount.waiting! >= KINDS.length, 'all three wait');
      process.kill(Number(/pid (\d+)/.exec(said)![1]), 'SIGKILL');
      for (const victim of victims.slice(0, -1)) {
        victim.kill('SIGKILL');
        assert.equal(await endOf(victim), 'SIGKILL');
      }
      await release();
      release = undefined;
      const next = start('both', ...paths);
      await until(() => next.exitCode !== null, 'a file is locked by nobody');
      assert.equal(next.exitCode, 0);
    } finally {
      await release?.();
      for (const child of children) child.kill('SIGKILL');
      await Promise.all(children.map(endOf));
      const fault = volume.close();
      if (fault) abortMount(volume.dir);
      else assert.equal(fault, undefined);
    }
  });
