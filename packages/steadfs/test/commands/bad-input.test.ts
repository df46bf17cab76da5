/** Whatever is wrong in what was asked gets one clear message and exit code 1, and loses nothing. */
import assert from 'node:assert/strict';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { steadfs } from './cli-process.ts';

const FIXTURES = resolve(import.meta.dirname, '../../../../../shared/fixtures');
const folder = mkdtempSync(join(tmpdir(), 'steadfs-bad-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const at = (...parts: string[]) => join(folder, ...parts);
const url = (file: string) => `sqlite3://${at(file)}`;

/** Runs, and checks that exactly one line explains the failure. */
async function refused(args: string[], message: RegExp, env: Record<string, string> = {}): Promise<void> {
  const { status, stdout, stderr } = await steadfs(args, { env, cwd: folder });
  const shown = `steadfs ${args.join(' ')}\n${stderr}`;
  assert.equal(status, 1, shown);
  assert.equal(stdout, '', shown);
  const lines = stderr.split('\n').filter(l => l.startsWith('ERROR: '));
  assert.equal(lines.length, 1, shown);
  assert.match(lines[0]!, message, shown);
  assert.doesNotMatch(stderr, /^\s+at /m, `a stack trace: ${shown}`);
}

before(async () => {
  const made = await steadfs(['format', url('good.db'), 'good', '--bucket', at('good-objects')]);
  assert.equal(made.status, 0, made.stderr);
  mkdirSync(at('mp'));
});

/** The setting of a copy of good.db with other fields. */
function altered(name: string, change: (setting: Record<string, unknown>) => void): string {
  copyFileSync(at('good.db'), at(name));
  const db = new DatabaseSync(at(name));
  const row = db.prepare("select value from jfs_setting where name = 'format'").get() as { value: string };
  const setting = JSON.parse(row.value) as Record<string, unknown>;
  change(setting);
  db.prepare("update jfs_setting set value = ? where name = 'format'").run(JSON.stringify(setting));
  db.close();
  return url(name);
}

test('commands, flags and arguments', async () => {
  await refused(['frobnicate'], /there is no command "frobnicate"/);
  await refused(['format'], /requires at least 2 arguments/);
  await refused(['mount', url('good.db')], /requires at least 2 arguments/);
  await refused(['umount'], /requires at least 1 argument$/);
  await refused(['status', url('good.db'), 'x'], /at most 1 argument: x is too many/);
  await refused(['mount', '--frob', url('good.db'), at('mp')], /unknown option '--frob'/);
  await refused(['format', '--compress=lzo', url('x.db'), 'myvol'], /--compress/);
  await refused(['mount', url('good.db'), at('mp'), '--buffer-size'], /--buffer-size needs a value/);
});

test('values of flags', async () => {
  const mount = (...flags: string[]) => ['mount', '-d', url('good.db'), at('mp'), ...flags];
  await refused(mount('--buffer-size', '4MiB'), /--buffer-size: "4MiB" is not a size/);
  await refused(mount('--buffer-size', '1M'), /--buffer-size must be at least 32M/);
  await refused(mount('--buffer-size', '9999T'), /--buffer-size must be less than this machine's memory/);
  await refused(mount('--metrics', 'nonsense'), /--metrics: "nonsense" is no HOST:PORT/);
  await refused(mount('--metrics', '127.0.0.1:99999'), /--metrics: "127\.0\.0\.1:99999" is no HOST:PORT/);
  await refused(mount('--attr-cache', 'soon'), /--attr-cache: "soon" is not a duration/);
  await refused(mount('--attr-cache', '-1'), /--attr-cache must be between 0/);
  await refused(mount('--heartbeat', '0'), /--heartbeat must be between 1/);
  await refused(mount('--max-fuse-io', '2M'), /--max-fuse-io must be between/);
  await refused(mount('--max-uploads', 'many'), /--max-uploads: "many" is not an integer/);
  await refused(mount('--atime-mode', 'often'), /--atime-mode: "often"/);
  await refused(mount('--umask', '999'), /--umask: "999" is no octal umask/);
  await refused(mount('--root-squash', 'me'), /--root-squash: "me" is not uid:gid/);
  await refused(mount('-o', 'frob'), /-o frob: not supported/);
  await refused(['--log-level', 'loud', 'status', url('good.db')], /--log-level: "loud"/);
  await refused(['format', url('x.db'), 'myvol', '--capacity', 'all'], /--capacity: "all" is not a size/);
  await refused(['format', url('x.db'), 'myvol', '--trash-days', '-1'], /--trash-days must not be negative/);
  assert.ok(!existsSync(at('x.db')));
});

test('metadata URLs', async () => {
  await refused(['status', 'frob://x/y'], /no metadata engine for frob:\/\//);
  await refused(['format', at('x.db'), 'myvol'], /is no metadata URL/);
  await refused(['status', 'sqlite3://'], /ERROR/);
  await refused(['status', url('missing.db')], /missing\.db/);
  assert.ok(!existsSync(at('missing.db')));
  await refused(['format', url('no/such/folder/x.db'), 'myvol', '--bucket', at('o1')], /no\/such\/folder/);
  const secret = await steadfs(['status', 'frob://user:hush@host/db']);
  assert.equal(secret.status, 1);
  assert.doesNotMatch(secret.stderr, /hush/);
});

test('what is not there is named once', async () => {
  const { stderr } = await steadfs(['status', 'postgres://user:hush@127.0.0.1:1/db']);
  assert.equal(
    stderr,
    'ERROR: cannot load the volume in postgres://127.0.0.1:1/db: connect ECONNREFUSED 127.0.0.1:1\n',
  );
});

test('a service is not started by people', async () => {
  await refused(['service', at('mp')], /this command is started by a keeper, not by people/);
});

test('storages', async () => {
  const format = (...flags: string[]) => ['format', url('x.db'), 'myvol', ...flags];
  // Where mkdir(2) answers ENOENT although the folder above is there.
  await refused(format('--bucket', '/proc/objects'), /cannot make file:\/\/\/proc\/objects\//);
  await refused(format('--bucket', at('good.db')), /cannot make file:/);
  const s3 = ['--storage', 's3', '--bucket', 'http://127.0.0.1:1/bucket'];
  const nobody = {
    HOME: at('nobody'),
    AWS_ACCESS_KEY_ID: '',
    AWS_PROFILE: '',
    AWS_EC2_METADATA_DISABLED: 'true',
    AWS_REGION: 'us-east-1',
  };
  await refused(format(...s3), /no S3 credentials: Could not load credentials from any providers/, nobody);
  const keys = { ...nobody, AWS_ACCESS_KEY_ID: 'id', AWS_SECRET_ACCESS_KEY: 'hush' };
  await refused(format(...s3), /ECONNREFUSED/, keys);
  assert.ok(!existsSync(at('x.db')));
});

test('databases that hold something else', async () => {
  writeFileSync(at('text.db'), 'this is no database, but a text of some length\n'.repeat(100));
  await refused(['status', url('text.db')], /text\.db/);
  await refused(['mount', '-d', url('text.db'), at('mp')], /text\.db/);
  assert.ok(readFileSync(at('text.db'), 'utf8').startsWith('this is no database'));
  const db = new DatabaseSync(at('other.db'));
  db.exec('create table people(name text); insert into people values (1)');
  db.close();
  await refused(['status', url('other.db')], /holds other data \(table people\)/);
  await refused(['mount', '-d', url('other.db'), at('mp')], /holds other data/);
  await refused(['format', url('other.db'), 'myvol', '--bucket', at('o3')], /holds other data/);
  mkdirSync(at('folder.db'));
  await refused(['status', url('folder.db')], /folder\.db/);
});

test('volume names', async () => {
  for (const name of ['', 'ab', 'Abc', '-abc', 'abc-', 'a_b', 'a'.repeat(64)])
    await refused(['format', url('x.db'), '--bucket', at('o2'), '--', name], /is no volume name/);
  assert.ok(!existsSync(at('x.db')));
});

test('volumes that this version cannot use', async () => {
  const cases: [string, (s: Record<string, unknown>) => void, RegExp][] = [
    ['newer.db', s => Object.assign(s, { MetaVersion: 2 }), /metadata version 2/],
    ['min.db', s => Object.assign(s, { MinClientVersion: '1.5.0' }), /needs a client of version 1\.5\.0 or newer/],
    ['max.db', s => Object.assign(s, { MaxClientVersion: '1.2.0' }), /allows clients up to version 1\.2\.0/],
  ];
  for (const [file, change, message] of cases) {
    const u = altered(file, change);
    for (const args of [
      ['status', u],
      ['config', u, '--trash-days', '2'],
      ['mount', '-d', u, at('mp')],
      ['format', u, 'good'],
    ])
      await refused(args, message);
  }
  const needs: [string, Record<string, unknown>, RegExp][] = [
    ['lzo.db', { Compression: 'lzo' }, /compression/],
    ['key.db', { EncryptKey: 'removed' }, /EncryptKey|encryption/],
    ['shards.db', { Shards: 3 }, /needs %d in its bucket/],
    [
      'tiers.db',
      { Tiers: { 0: { ID: 0, StorageClass: '', Tag: '' }, 1: { ID: 1, StorageClass: 'IA', Tag: '' } } },
      /tiers/,
    ],
    ['ceph.db', { Storage: 'ceph' }, /storage of type "ceph"/],
  ];
  for (const [file, fields, message] of needs)
    await refused(['mount', '-d', altered(file, s => Object.assign(s, fields)), at('mp')], message);
});

test('the fixtures that need what is not built yet are refused with the reason', {
  skip: existsSync(FIXTURES) ? false : 'no fixtures',
}, async () => {
  for (const [set, message] of [['c-sqlite-zstd-aes', /not built yet: encryption/]] as const) {
    copyFileSync(join(FIXTURES, set, 'meta.db'), at(`${set}.db`));
    await refused(['mount', '-d', url(`${set}.db`), at('mp')], message);
  }
});

test('settings that are fixed', async () => {
  await refused(['format', url('good.db'), 'better'], /volume good exists .* its Name \(good\) cannot become better/);
  await refused(['format', url('good.db'), 'good', '--block-size', '1M'], /its BlockSize \(4096\) cannot become 1024/);
  await refused(['config', url('good.db'), '--min-client-version', '1.0.0'], /cannot lower/);
  await refused(['config', url('good.db'), '--max-client-version', 'x'], /is no version/);
  await refused(['config', url('good.db'), '--trash-days', '0'], /give --yes/);
});

test('a block size that is rounded', async () => {
  const { status, stderr } = await steadfs(['format', url('b.db'), 'bvol', '--block-size', '3M', '--bucket', at('b')]);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /WARN.*--block-size: blocks are of 2048K/);
});

test('stores', async () => {
  mkdirSync(at('used/myvol'), { recursive: true });
  writeFileSync(at('used/myvol/precious'), 'data of somebody');
  await refused(['format', url('y.db'), 'myvol', '--bucket', at('used')], /not empty: it holds myvol\/precious/);
  assert.equal(readFileSync(at('used/myvol/precious'), 'utf8'), 'data of somebody');
  writeFileSync(at('plain'), '');
  await refused(['format', url('y.db'), 'myvol', '--bucket', at('plain')], /plain/);
  await refused(['format', url('y.db'), 'myvol', '--bucket', at('o4'), '--shards', '3'], /needs %d in its bucket/);
  await refused(
    ['format', url('y.db'), 'myvol', '--bucket', at('o4-%d'), '--shards', '300'],
    /--shards must be at most 256/,
  );
  await refused(['format', url('y.db'), 'myvol', '--storage', 's3'], /--storage s3 needs a --bucket/);
  await refused(['format', url('y.db'), 'myvol', '--storage', 'floppy'], /no storage of type "floppy"/);
  await refused(['config', url('good.db'), '--bucket', at('plain')], /plain/);
});

test('mount points', async () => {
  const mount = (point: string, ...flags: string[]) => ['mount', '-d', url('good.db'), point, ...flags];
  await refused(mount(at('nowhere')), /mount point .*nowhere does not exist/);
  await refused(mount(at('nowhere/below')), /nowhere/);
  assert.ok(!existsSync(at('nowhere')));
  writeFileSync(at('file'), '');
  await refused(mount(at('file')), /is not a directory/);
  mkdirSync(at('full'));
  writeFileSync(at('full/something'), '');
  await refused(mount(at('full')), /is not empty: it holds something/);
  await refused(mount('/proc'), /\/proc is busy: proc \(proc\) is mounted there/);
  await refused(mount(folder, '-o', 'nonempty'), /lies below the mount point/);
  await refused(mount(at('mp'), '--log', at('mp/log')), /the log .* lies below the mount point/);
  await refused(['umount', at('mp')], /nothing is mounted at/);
  await refused(['umount', '/proc'], /\/proc is not a Steadfs mount/);
  await refused(['status', at('mp')], /nothing is mounted at/);
  assert.deepEqual(readdirSync(at('mp')), []);
});

test('paths that are not on a mount', async () => {
  await refused(['info', at('mp')], /is not on a Steadfs mount/);
  await refused(['info', at('nowhere')], /nowhere/);
  await refused(['info', '-i', 'x'], /"x" is no inode number/);
  await refused(['rmr', at('nowhere')], /nowhere/);
  await refused(['summary', at('mp')], /is not on a Steadfs mount/);
  await refused(['clone', at('mp'), at('mp2')], /is not on a Steadfs mount/);
});
