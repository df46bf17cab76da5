import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { EBUSY, Errno } from '../src/errno.ts';
import {
  clearDeadMounts,
  findMount,
  fusermountOptions,
  mountData,
  mountFlags,
  mountFuse,
  parseMountInfo,
  probe,
  unmount,
  usersOf,
} from '../src/mount.ts';
import { mountState } from '../src/service.ts';
import * as sys from '../src/sys.ts';

const skip = existsSync('/dev/fuse') && sys.geteuid() === 0 ? false : 'needs root and /dev/fuse';
const notes = new URL('../examples/notes.ts', import.meta.url).pathname;

test('mountinfo: optional fields, escapes, several mounts on one place', () => {
  const text = [
    '22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/root rw',
    '36 22 0:40 / /mnt/a\\040b\\134c rw,nosuid,nodev - fuse.steadfs Steadfs:v\\303\\266l rw,user_id=0,group_id=0',
    '37 22 0:41 /sub /mnt/x rw shared:2 master:1 propagate_from:3 - fuse.steadfs Steadfs:one rw,user_id=1000,allow_other',
    '38 37 0:42 / /mnt/x ro - tmpfs tmpfs rw,size=1k',
    '',
  ].join('\n');
  const list = parseMountInfo(text);
  assert.equal(list.length, 4);
  assert.deepEqual(list[1], {
    id: 36,
    parent: 22,
    device: '0:40',
    root: '/',
    mountPoint: '/mnt/a b\\c',
    options: ['rw', 'nosuid', 'nodev'],
    type: 'fuse.steadfs',
    source: 'Steadfs:völ',
    superOptions: ['rw', 'user_id=0', 'group_id=0'],
  });
  assert.equal(list[2]!.source, 'Steadfs:one');
  assert.equal(findMount('/mnt/x', list)!.type, 'tmpfs');
  assert.equal(findMount('/mnt', list), undefined);
  // UTF-8 as it is, read as latin1.
  const raw = Buffer.from('1 0 0:9 / /mnt/ü rw - tmpfs t rw').toString('latin1');
  assert.equal(parseMountInfo(raw)[0]!.mountPoint, '/mnt/ü');
});

test('options of mount(2) and fusermount3', () => {
  const options = {
    source: 'Steadfs:a,b\\c',
    subtype: 'steadfs',
    allowOther: true,
    defaultPermissions: true,
    maxRead: 4096,
  };
  assert.equal(
    mountData(options, 5, 0o40755, 7, 8),
    'fd=5,rootmode=40000,user_id=7,group_id=8,default_permissions,allow_other,max_read=4096',
  );
  assert.equal(
    fusermountOptions({ ...options, readOnly: true, flags: ['noatime'] }),
    'fsname=Steadfs:a\\,b\\\\c,subtype=steadfs,default_permissions,allow_other,max_read=4096,noatime,ro',
  );
  const base = { source: 's', subtype: 't' };
  assert.equal(mountFlags(base), sys.MS_NOSUID | sys.MS_NODEV);
  assert.equal(
    mountFlags({ ...base, flags: ['suid', 'dev', 'noexec'], readOnly: true }),
    sys.MS_NOEXEC | sys.MS_RDONLY,
  );
  assert.throws(() => mountFlags({ ...base, flags: ['bogus'] }), /bogus/);
});

test('a dead mount is seen without hanging, and cleared; users are found', { skip, timeout: 30_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'steadfs-mount-'));
  try {
    const { fd, device } = await mountFuse(dir, { source: 'Steadfs:a b', subtype: 'steadfs-test' });
    assert.match(device, /^0:\d+$/);
    const mount = findMount(dir)!;
    assert.equal(mount.source, 'Steadfs:a b');
    assert.equal(mount.type, 'fuse.steadfs-test');
    // Nobody answers INIT: a stat of it would never come back.
    assert.equal(await probe(dir, 200), 'hung');
    assert.equal((await mountState(dir))!.state, 'unknown');
    sys.close(fd);
    assert.equal(await probe(dir, 5000), 'dead');
    assert.equal((await mountState(dir))!.state, 'dead');
    assert.equal(await clearDeadMounts(dir), 1);
    assert.equal(findMount(dir), undefined);
    await assert.rejects(unmount(dir), /not a mount point/);
  } finally {
    if (findMount(dir)) await unmount(dir, { force: true });
    rmSync(dir, { recursive: true });
  }
});

test('busy: umount says EBUSY and who it is; lazy and force work', { skip, timeout: 30_000 }, async () => {
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-busy-'));
  const dir = join(scratch, 'm');
  mkdirSync(dir);
  const run = (command: string) =>
    execFileSync(process.execPath, [notes, command, dir], { timeout: 20_000, stdio: 'pipe' });
  const user = () => spawn('sleep', ['30'], { cwd: dir, stdio: 'ignore' });
  try {
    run('mount');
    const child = user();
    await sleep(100);
    await assert.rejects(unmount(dir), (e: unknown) => e instanceof Errno && e.errno === EBUSY.errno);
    assert.deepEqual(await usersOf(dir), [{ pid: child.pid, command: 'sleep' }]);
    const { service } = (await mountState(dir))!;
    await unmount(dir, { lazy: true });
    assert.equal(findMount(dir), undefined);
    assert.ok(existsSync(`/proc/${service!.pid}/fd`), 'the service goes on for those who are inside');
    child.kill();
    for (let i = 0; i < 500 && existsSync(`/proc/${service!.pid}`); i++) await sleep(10);
    assert.ok(!existsSync(`/proc/${service!.pid}`), 'and ends with the last one');
    run('mount');
    const other = user();
    await sleep(100);
    await unmount(dir, { force: true });
    assert.equal(findMount(dir), undefined);
    other.kill();
  } finally {
    if (findMount(dir)) await unmount(dir, { force: true });
    rmSync(scratch, { recursive: true, force: true });
  }
});

const userSkip =
  skip ||
  (spawnSync('fusermount3', ['-V']).status === 0 ? false : 'needs fusermount3') ||
  (existsSync('/proc/self/uid_map') ? false : 'no /proc');

test('a user mounts by fusermount3, upgrades, survives kill -9, unmounts', {
  skip: userSkip,
  timeout: 60_000,
}, async t => {
  const uid = 65_534;
  const scratch = mkdtempSync(join(tmpdir(), 'steadfs-user-'));
  chmodSync(scratch, 0o777);
  const dir = join(scratch, 'm');
  const as = (command: string, ...args: string[]) =>
    spawnSync(command, args, {
      uid,
      gid: uid,
      timeout: 20_000,
      encoding: 'utf8',
      cwd: '/',
      env: { PATH: process.env.PATH, HOME: scratch, TMPDIR: scratch, STEADFS_NOTES_LOG: join(scratch, 'log') },
    });
  // udev gives everybody the right; a container's /dev may not.
  const mode = statSync('/dev/fuse').mode & 0o777;
  try {
    chmodSync('/dev/fuse', 0o666);
    assert.equal(as('mkdir', dir).status, 0);
    if (as(process.execPath, '-e', `require('fs').readFileSync(${JSON.stringify(notes)})`).status !== 0)
      return t.skip('another user cannot read this tree');
    const made = as(process.execPath, notes, 'mount', dir);
    assert.equal(made.status, 0, made.stderr);
    const mount = findMount(dir)!;
    assert.equal(mount.type, 'fuse.notes');
    assert.equal(mount.source, 'notes');
    assert.equal(as('sh', '-c', `echo hello >${dir}/a && cat ${dir}/a`).stdout, 'hello\n');
    const before = (await mountState(dir))!;
    assert.equal(before.state, 'serving');
    sys.kill(before.service!.pid, sys.SIGKILL);
    assert.equal(as('cat', join(dir, 'a')).stdout, 'hello\n');
    sys.kill(before.keeper!.pid, sys.SIGKILL);
    assert.equal(as('cat', join(dir, 'a')).stdout, 'hello\n');
    const upgraded = as(process.execPath, notes, 'upgrade', dir);
    assert.equal(upgraded.status, 0, upgraded.stderr);
    assert.equal(as('cat', join(dir, 'a')).stdout, 'hello\n');
    const after = (await mountState(dir))!;
    const private_ = readdirSync(scratch).find(n => n.startsWith('steadfs-'))!;
    assert.match(execFileSync('stat', ['-c', '%a %u', join(scratch, private_)]).toString(), /^700 65534/);
    // The owner's root may upgrade it as well; another user may not.
    const ended = as(process.execPath, notes, 'umount', dir);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal(findMount(dir), undefined);
    assert.ok(!existsSync(`/proc/${after.service!.pid}`));
  } catch (error) {
    if (existsSync(join(scratch, 'log'))) console.log(readFileSync(join(scratch, 'log'), 'utf8'));
    throw error;
  } finally {
    chmodSync('/dev/fuse', mode);
    if (findMount(dir)) await unmount(dir, { force: true });
    rmSync(scratch, { recursive: true, force: true });
  }
});
