/**
 * The npm packages as others get them: made, installed outside the repository, used. $STEADFS_PACK=1 installs steadfs too by npm (`npm install -g`, which fetches a
 * Node of 100 MB); otherwise its tarball is unpacked beside the native libraries of the repository.
 */
import assert from 'node:assert/strict';
import { type SpawnSyncReturns, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pack } from '../../../../scripts/pack.ts';
import { abortMount, missing, mountOf } from '../support/volume.ts';

const repository = join(import.meta.dirname, '../../../..');
const skip = missing('steadfs') ?? (spawnSync('npm', ['--version']).error ? 'npm is not on PATH' : false);
const scratch = mkdtempSync(join(tmpdir(), 'steadfs-packed-'));
let tarballs: { fuse: string; steadfs: string };

before(async () => {
  if (!skip) tarballs = await pack(join(scratch, 'packages'));
});
after(() => rmSync(scratch, { recursive: true, force: true }));

function run(program: string, args: string[], cwd = scratch): SpawnSyncReturns<string> {
  const env = { ...process.env, STEADFS_NODE: process.execPath, STEADFS_RUNTIME_DIR: join(scratch, 'runtime') };
  return spawnSync(program, args, { cwd, env, encoding: 'utf8', timeout: 120_000, killSignal: 'SIGKILL' });
}

function succeeds(program: string, args: string[], cwd?: string): string {
  const { status, stdout, stderr, error } = run(program, args, cwd);
  assert.equal(status, 0, `${program} ${args.join(' ')}: ${error?.message ?? ''}${stdout}${stderr}`);
  return stdout;
}

const npmFlags = ['--prefer-offline', '--no-audit', '--no-fund', '--ignore-scripts'];

test('@steadfs/fuse: installed by npm, the example serves, types are there', { skip }, async t => {
  const folder = join(scratch, 'user');
  const mnt = join(scratch, 'hello');
  for (const f of [folder, mnt]) mkdirSync(f);
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  const installed = run('npm', ['install', ...npmFlags, tarballs.fuse], folder);
  if (installed.status !== 0 && /E(NOTCACHED|AI_AGAIN|NOTFOUND|CONNREFUSED|TIMEDOUT)/.test(installed.stderr))
    return t.skip('no npm registry can be reached');
  assert.equal(installed.status, 0, installed.stderr);
  const server = spawn(process.execPath, ['node_modules/@steadfs/fuse/examples/hello.js', mnt], {
    cwd: folder,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  try {
    while (!mountOf(mnt) && server.exitCode === null) await sleep(20);
    assert.equal(succeeds('cat', [join(mnt, 'hello')]), 'Hello from Node\n');
    succeeds('umount', [mnt]);
    while (server.exitCode === null && server.signalCode === null) await sleep(20);
    assert.equal(server.exitCode, 0);
  } finally {
    abortMount(mnt);
    server.kill('SIGKILL');
  }
  writeFileSync(
    join(folder, 'use.ts'),
    `import { createCapsule, ENOENT, type FileSystem, openCapsule, serve, type Session } from '@steadfs/fuse';
     import { runService } from '@steadfs/fuse/service';
     const fileSystem: FileSystem = { lookup() { throw ENOENT; }, getattr() { throw ENOENT; } };
     export const session = (fd: number): Session => serve({ fd, capsule: openCapsule(createCapsule()), fileSystem });
     // @ts-expect-error: the declarations are read
     runService(1);`,
  );
  mkdirSync(join(folder, 'node_modules/@types'), { recursive: true });
  for (const name of ['@types/node', 'undici-types'])
    if (!existsSync(join(folder, 'node_modules', name)))
      symlinkSync(join(repository, 'node_modules', name), join(folder, 'node_modules', name));
  const compiler = join(repository, 'node_modules/typescript/bin/tsc');
  const flags = '--noEmit --strict --module nodenext --target esnext --types node --ignoreConfig use.ts'.split(' ');
  succeeds(process.execPath, [compiler, ...flags], folder);
});

test('steadfs: the launcher of the package formats, mounts and unmounts', { skip }, () => {
  const mnt = join(scratch, 'mnt');
  mkdirSync(mnt);
  let steadfs: string;
  if (process.env.STEADFS_PACK) {
    succeeds('npm', ['install', '-g', '--prefix', join(scratch, 'global'), ...npmFlags, tarballs.steadfs]);
    steadfs = join(scratch, 'global/bin/steadfs');
  } else {
    succeeds('tar', ['xzf', tarballs.steadfs]);
    const modules = join(scratch, 'package/node_modules');
    mkdirSync(modules);
    for (const name of ['koffi', '@koromix', '@node-rs', 'lz4-napi', '@antoniomuso'])
      if (existsSync(join(repository, 'node_modules', name)))
        symlinkSync(join(repository, 'node_modules', name), join(modules, name));
    steadfs = join(scratch, 'package/bin/steadfs');
  }
  assert.match(succeeds(steadfs, ['version']), /^steadfs version \d+\.\d+\.\d+/);
  const meta = `sqlite3://${scratch}/meta.db`;
  succeeds(steadfs, ['format', '--storage', 'file', '--bucket', join(scratch, 'objects'), meta, 'packed']);
  try {
    succeeds(steadfs, ['mount', '-d', '--log', join(scratch, 'log'), '--metrics', '', meta, mnt]);
    succeeds('sh', ['-c', 'echo kept > "$0/file"', mnt]);
    succeeds(steadfs, ['umount', mnt]);
  } finally {
    abortMount(mnt);
  }
});
