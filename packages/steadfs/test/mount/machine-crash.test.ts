/**
 * What was fsync'ed survives the crash of the machine: database and objects are on an ext4 of their own in a loop device; a copy of the device, which
 * has what the file system has written and not what waits in the page cache, is what such a crash leaves. It is mounted in the place of the first, and the volume from it.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, cpSync, existsSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { missing, openVolume, type Volume } from '../support/volume.ts';

const IMAGE_BYTES = 256 << 20;

/** What a program does on the mount; each step ends with the call that makes it durable. */
const WRITE = `
  const fs = require('node:fs');
  const durable = (path, flags, act) => { const fd = fs.openSync(path, flags); act(fd); fs.fsyncSync(fd); fs.closeSync(fd); };
  const nothing = () => {};
  process.chdir(process.argv[1]);
  fs.mkdirSync('d');
  durable('d/a', 'w', fd => fs.writeSync(fd, Buffer.alloc(5 * 2 ** 20 + 123, 'a')));
  fs.renameSync('d/a', 'd/b');
  fs.mkdirSync('x/y/z', { recursive: true });
  durable('d', 'r', nothing);
  durable('x/y/z', 'r', nothing);
  for (let i = 0; i < 20; i++) durable('log', 'a', fd => fs.writeSync(fd, Buffer.alloc(4096, 65 + i)));
  const big = fs.openSync('big', 'w');
  fs.writeSync(big, Buffer.alloc(8 * 2 ** 20, 'x'));
  fs.fdatasyncSync(big);
  fs.writeSync(big, Buffer.alloc(4096, 'y'), 0, 4096, 5 * 2 ** 20 + 1);
  fs.fchmodSync(big, 0o640);
  fs.fsyncSync(big);
  fs.writeFileSync('gone', 'gone');
  fs.unlinkSync('gone');
  durable('log', 'r+', fd => fs.ftruncateSync(fd, 10000));
  fs.writeFileSync('late', Buffer.alloc(2 ** 20, 'l'));
  durable('late', 'r', nothing);
  durable('.', 'r', nothing);
`;

/** Prints what a program finds: names, modes, lengths and a digest of each file. */
const LOOK = `
  const fs = require('node:fs'); const { createHash } = require('node:crypto');
  const look = dir => fs.readdirSync(dir, { withFileTypes: true }).filter(e => !e.name.startsWith('.')).sort((a, b) => a.name < b.name ? -1 : 1).forEach(e => {
    const path = dir + '/' + e.name, s = fs.statSync(path);
    const what = e.isDirectory() ? '' : s.size + ' ' + createHash('sha256').update(fs.readFileSync(path)).digest('hex');
    console.log(path, (s.mode & 0o7777).toString(8), what);
    if (e.isDirectory()) look(path);
  });
  process.chdir(process.argv[1]);
  look('.');
`;

function run(command: string, ...args: string[]): string {
  const r = spawnSync(command, args, { encoding: 'utf8', timeout: 60_000, killSignal: 'SIGKILL' });
  if (r.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${r.error?.message ?? r.stderr}`);
  return r.stdout;
}

const lacks =
  missing('steadfs') ??
  (process.getuid?.() !== 0 ? 'needs root' : undefined) ??
  (spawnSync('losetup', ['-f']).status !== 0 ? 'no loop device' : undefined) ??
  (spawnSync('mkfs.ext4', ['-V']).error ? 'mkfs.ext4 is missing' : undefined);

test('what was fsynced is there after a crash of the machine', { skip: lacks ?? false, timeout: 240_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'steadfs-crash-'));
  const disk = join(folder, 'disk');
  const image = join(folder, 'image');
  const crashed = join(folder, 'crashed');
  let volume: Volume | undefined;
  let mounted = false;
  // Nothing is committed by a timer: only what asks for it reaches the device.
  const mount = (file: string): void => {
    run('mount', '-o', 'loop,commit=600', file, disk);
    mounted = true;
  };
  const unmount = (): void => {
    assert.equal(volume?.close({ keep: true }), undefined);
    volume = undefined;
    if (mounted) run('umount', disk);
    mounted = false;
  };
  try {
    mkdirSync(disk);
    const fd = openSync(image, 'w');
    ftruncateSync(fd, IMAGE_BYTES);
    closeSync(fd);
    run('mkfs.ext4', '-q', image);
    mount(image);
    volume = openVolume({ base: disk });
    // What format and mount wrote is not the matter: a new volume is made durable by its first fsync at the latest.
    run(process.execPath, '-e', WRITE, volume.dir);
    const services = volume.processes();
    for (const pid of services) process.kill(pid, 'SIGSTOP');
    cpSync(image, crashed);
    for (const pid of services) process.kill(pid, 'SIGCONT');
    const expected = run(process.execPath, '-e', LOOK, volume.dir);
    assert.match(expected, /\.\/x\/y\/z/);
    unmount();
    mount(crashed);
    assert.ok(existsSync(join(disk, 'meta.db')), 'the database is on the device');
    volume = openVolume({ base: disk, format: 'there' });
    assert.equal(run(process.execPath, '-e', LOOK, volume.dir), expected);
  } finally {
    try {
      unmount();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
});
