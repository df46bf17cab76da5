/** Outputs of format, status, config and info: the same shape as the Go client's. */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { showInfo } from '../../src/commands/info.ts';
import { table } from '../../src/commands/table.ts';
import { steadfs } from './cli-process.ts';

const FIXTURES = resolve(import.meta.dirname, '../../../../../shared/fixtures');
const folder = mkdtempSync(join(tmpdir(), 'steadfs-output-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const url = `sqlite3://${folder}/v.db`;

async function output(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await steadfs(args);
  assert.equal(status, 0, stderr);
  return stdout;
}

test('format, config and status of a new volume', async () => {
  await output(
    'format',
    url,
    'myvol',
    '--bucket',
    join(folder, 'objects'),
    '--capacity',
    '10',
    '--inodes',
    '1000',
    '--block-size',
    '3M',
  );
  const { UUID, ...setting } = JSON.parse(await output('config', url)) as Record<string, unknown>;
  assert.match(String(UUID), /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.deepEqual(setting, {
    Name: 'myvol',
    Storage: 'file',
    Tiers: { 0: { ID: 0, StorageClass: '', Tag: '' } },
    Bucket: `${folder}/objects/`,
    BlockSize: 2048,
    Compression: 'none',
    Capacity: 10 * 2 ** 30,
    Inodes: 1000,
    EncryptAlgo: 'aes256gcm-rsa',
    TrashDays: 1,
    MetaVersion: 1,
    MinClientVersion: '1.1.0-A',
    DirStats: true,
    EnableACL: false,
  });
  assert.equal(readFileSync(join(folder, 'objects/myvol/juicefs_uuid'), 'utf8'), UUID);

  assert.equal(
    await output('config', url, '--user-group-quota', '--enable-acl', '--trash-days', '2'),
    [
      'enable-acl: false -> true',
      'min-client-version: 1.1.0-A -> 1.2.0-A',
      'trash-days: 1 -> 2',
      'user-group-quota: false -> true',
      '',
    ].join('\n'),
  );
  assert.equal(await output('config', url, '--dir-stats=false'), ' dir-stats: true -> false\n');
  assert.equal(
    await output('config', url, '--inodes', '2000', '--capacity', '9', '-y'),
    '  capacity: 10 GiB -> 9.0 GiB\n    inodes: 1,000 -> 2,000\n',
  );
  await output('config', url, '--inodes', '1000', '--capacity', '10');

  const text = await output('status', url);
  const status = JSON.parse(text) as { Setting: Record<string, unknown>; Sessions: unknown[]; Stat: unknown };
  assert.equal(text, `${JSON.stringify(status, null, 2)}\n`);
  assert.deepEqual(Object.keys(status), ['Setting', 'Sessions', 'Stat']);
  assert.equal('DirStats' in status.Setting, false);
  assert.equal(status.Setting.EnableACL, true);
  assert.deepEqual(status.Sessions, []);
  assert.deepEqual(status.Stat, { UsedSpace: 0, AvailableSpace: 10 * 2 ** 30, UsedInodes: 0, AvailableInodes: 1000 });

  await output('format', url, 'myvol', '--no-update', '--capacity', '1');
  assert.equal((JSON.parse(await output('config', url)) as { Capacity: number }).Capacity, 10 * 2 ** 30);
  await output('format', url, 'myvol', '--capacity', '20');
  assert.equal((JSON.parse(await output('config', url)) as { Capacity: number }).Capacity, 20 * 2 ** 30);
});

test('secrets are stored encrypted and shown as removed', async () => {
  const secret = `sqlite3://${folder}/secret.db`;
  const made = await steadfs(
    [
      'format',
      secret,
      'myvol',
      '--bucket',
      join(folder, 'objects2'),
      '--access-key',
      'ak',
      '--secret-key',
      'hush-hush',
    ],
    { env: { SESSION_TOKEN: 'token-hush' } },
  );
  assert.equal(made.status, 0, made.stderr);
  assert.doesNotMatch(made.stderr + made.stdout, /hush/);
  const setting = JSON.parse(await output('config', secret)) as Record<string, unknown>;
  assert.deepEqual([setting.AccessKey, setting.SecretKey, setting.SessionToken], ['ak', 'removed', 'removed']);
  assert.doesNotMatch(
    readFileSync(`${folder}/secret.db`, 'latin1') +
      (existsSync(`${folder}/secret.db-wal`) ? readFileSync(`${folder}/secret.db-wal`, 'latin1') : ''),
    /hush/,
  );
  const changed = await output('config', secret, '--secret-key', 'hush-again');
  assert.equal(changed, 'secret-key: updated\n');
});

test('the process list does not show secrets', async () => {
  // A FIFO as the database would block; a lookup of a missing host is not needed: the title is set before anything else happens.
  const { maskArguments } = await import('../../src/cli.ts');
  assert.deepEqual(maskArguments(['format', 'redis://:pw@h/1', 'v', '--secret-key', 'sk', '--access-key=ak']), [
    'format',
    'redis://:****@h/1',
    'v',
    '--secret-key',
    '****',
    '--access-key=****',
  ]);
});

test('status and a session of the Go client', { skip: existsSync(FIXTURES) ? false : 'no fixtures' }, async () => {
  const copy = join(folder, 'a.db');
  copyFileSync(join(FIXTURES, 'a-sqlite/meta.db'), copy);
  const expected = JSON.parse(readFileSync(join(FIXTURES, 'a-sqlite/status.json'), 'utf8')) as {
    Sessions: { Expire: string }[];
    Stat: Record<string, number>;
  };
  // A little later than the database was copied.
  expected.Sessions[0]!.Expire = '2026-11-21T07:40:53Z';
  // The mount that was there then had the delayed slices counted twice.
  expected.Stat.TrashSliceCount! /= 2;
  expected.Stat.TrashSliceSize! /= 2;
  const more = JSON.parse(await output('status', '--more', `sqlite3://${copy}`)) as object;
  assert.deepEqual(more, expected);
  for (const name of Object.keys(expected.Stat)) if (/Trash|Pending/.test(name)) delete expected.Stat[name];
  assert.equal(await output('status', `sqlite3://${copy}`), `${JSON.stringify(expected, null, 2)}\n`);
  const session = JSON.parse(await output('status', `sqlite3://${copy}`, '--session', '1')) as Record<
    string,
    unknown[]
  >;
  assert.deepEqual(Object.keys(session).slice(-3), ['Sustained', 'Flocks', 'Plocks']);
  assert.equal(session.Sustained!.length, 1);
  assert.deepEqual((session.Flocks as { Ltype: string }[]).map(l => l.Ltype).sort(), ['R', 'W']);
  assert.equal(
    (session.Plocks as { Records: unknown[] }[]).reduce((sum, l) => sum + l.Records.length, 0),
    2,
  );
  const none = await steadfs(['status', `sqlite3://${copy}`, '-s', '99']);
  assert.deepEqual([none.status, none.stdout], [1, '']);
});

test('info of a file, a hole included', () => {
  const text = showInfo(
    '/mnt/f',
    {
      Ino: 5,
      Failed: false,
      Reason: '',
      Summary: { Length: 8388608, Size: 8388608, Files: 1, Dirs: 0 },
      Paths: ['/f'],
      Chunks: null,
      Objects: [
        { ChunkIndex: 0, Key: 'myvol/chunks/0/0/1_0_4194304', Size: 4194304, Off: 0, Len: 4194304 },
        { ChunkIndex: 0, Key: '', Size: 4194304, Off: 0, Len: 4194304 },
      ],
      PLocks: null,
      FLocks: null,
    },
    false,
  );
  assert.equal(
    text,
    `/mnt/f :
  inode: 5
  files: 1
   dirs: 0
 length: 8.00 MiB (8388608 Bytes)
   size: 8.00 MiB (8388608 Bytes)
   path: /f
 objects:
+------------+------------------------------+---------+--------+---------+---------+
| chunkIndex |          objectName          |   size  | offset |  length |   pos   |
+------------+------------------------------+---------+--------+---------+---------+
|          0 | myvol/chunks/0/0/1_0_4194304 | 4194304 |      0 | 4194304 |       0 |
|          0 |                              | 4194304 |      0 | 4194304 | 4194304 |
+------------+------------------------------+---------+--------+---------+---------+`,
  );
  assert.equal(table(['a'], [['bb']], 0), '+----+\n|  a |\n+----+\n| bb |\n+----+');
});
