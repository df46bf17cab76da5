/** Lines of /etc/fstab and what mount(8) calls. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { mountFlags } from '../../src/commands/mount-flags.ts';
import { fstabLine, helperArguments, updateFstab, withLine } from '../../src/commands/mount-helper.ts';
import { abortMount, missing, mountOf, openVolume, runClient } from '../support/volume.ts';

const folder = mkdtempSync(join(tmpdir(), 'steadfs-fstab-'));
after(() => rmSync(folder, { recursive: true, force: true }));

test('words of -o become flags, those for mount(8) go, the others stay', () => {
  assert.deepEqual(
    helperArguments(
      [
        'sqlite3:///a.db',
        '/m',
        '-rw',
        '-o',
        '_netdev,nofail,remount,noatime,attrcacheto=5,attr-cache=7s,enable-xattr,x-systemd.automount,nosuid,log=/l',
        '-t',
        'steadfs',
      ],
      mountFlags,
    ),
    [
      'mount',
      '-d',
      '--attr-cache=5',
      '--attr-cache=7s',
      '--enable-xattr',
      '--log=/l',
      '-o',
      'ro,remount,noatime,nosuid',
      'sqlite3:///a.db',
      '/m',
    ],
  );
  assert.equal(helperArguments(['a', '/m', '-f'], mountFlags), undefined);
  assert.throws(() => helperArguments(['a', '/m', '-o', 'buffer-size'], mountFlags), /buffer-size needs a value/);
  assert.throws(() => helperArguments(['a'], mountFlags), /META-URL and MOUNTPOINT/);
});

test('a line is written once, and in the place of an older one', () => {
  const flags = new Map<string, string | boolean | string[]>([
    ['update-fstab', true],
    ['background', true],
    ['enable-xattr', true],
    ['attr-cache', '5s'],
    ['o', ['ro,nosuid']],
  ]);
  const line = fstabLine('sqlite3:///a b.db', '/m', flags);
  assert.equal(line, 'sqlite3:///a\\040b.db  /m  steadfs  _netdev,nofail,attr-cache=5s,enable-xattr,ro,nosuid  0 0');
  const table = '# head\nUUID=1 / ext4 defaults 0 1\n';
  const once = withLine(table, line)!;
  assert.equal(once, `${table}${line}\n`);
  assert.equal(withLine(once, line), undefined);
  const changed = line.replace('5s', '9s');
  assert.equal(withLine(`${once}tail\n`, changed), `${table}${changed}\ntail\n`);
  assert.throws(() => fstabLine('a', '/m', new Map([['log', '/a,b']])), /cannot be written/);
});

test('the table is replaced, its mode kept; the helper is linked once', () => {
  const fstab = join(folder, 'fstab');
  const helper = join(folder, 'mount.steadfs');
  writeFileSync(fstab, 'a b c d 0 0\n', { mode: 0o640 });
  for (let i = 0; i < 2; i++) updateFstab('s  /m  steadfs  _netdev  0 0', '/bin/true', fstab, helper);
  assert.equal(readFileSync(fstab, 'utf8'), 'a b c d 0 0\ns  /m  steadfs  _netdev  0 0\n');
  assert.equal(lstatSync(fstab).mode & 0o777, 0o640);
  assert.equal(readlinkSync(helper), '/bin/true');
  assert.throws(() => updateFstab('s /m steadfs x 0 0', '/bin/true', join(folder, 'none'), helper), /--update-fstab/);
});

test('called by the name mount.steadfs it mounts in the background', {
  skip: missing('steadfs') ?? false,
  timeout: 60_000,
}, () => {
  const volume = openVolume();
  const second = join(volume.base, 'second');
  const helper = join(folder, 'mount.fuse.steadfs');
  try {
    mkdirSync(second);
    symlinkSync(resolve(import.meta.dirname, '../../bin/steadfs'), helper);
    const options = `_netdev,ro,metrics=,log=${volume.base}/log2`;
    const env = { ...process.env, STEADFS_NODE: process.execPath };
    const r = spawnSync(helper, [volume.meta, second, '-o', options], { encoding: 'utf8', timeout: 30_000, env });
    assert.deepEqual([r.status, r.stdout, r.stderr], [0, '', '']);
    assert.equal(mountOf(second)?.type, 'fuse.steadfs');
    assert.match(spawnSync('grep', [second, '/proc/mounts'], { encoding: 'utf8' }).stdout, / ro,/);
    assert.ok(existsSync(`${volume.base}/log2`));
  } finally {
    runClient('steadfs', ['umount', second]);
    abortMount(second);
    assert.equal(volume.close(), undefined);
  }
});
