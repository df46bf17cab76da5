// timeout: 200
/**
 * Volumes that the Go client left (../shared/fixtures), loaded into real databases and mounted: every path, attribute, content, ACL and flag is as its
 * own mount showed it.
 */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { type EngineName, startEngine } from '../servers/engines.ts';
import { abortMount, missing, runClient } from '../support/volume.ts';

const fixtures = resolve(import.meta.dirname, '../../../../../shared/fixtures');
const script = join(import.meta.dirname, 'both-clients.py');
const tools = ['python3', 'getfacl', 'tar'].filter(t => spawnSync('which', [t]).status !== 0);
const lack =
  missing('steadfs') ??
  (existsSync(fixtures) ? undefined : 'no fixtures beside the repository') ??
  (tools.length > 0 ? `${tools} missing` : undefined) ??
  (process.getuid?.() === 0 ? undefined : 'needs root: files of the fixtures belong to others');

/** Without waiting in this process, which may have to answer for a server. */
function program(command: string, args: string[], input?: string): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn('timeout', ['100', command, ...args], { stdio: ['pipe', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.on('data', d => {
      errors += d;
    });
    child.on('close', code => (code === 0 ? done() : failed(new Error(`${command}: exit ${code}: ${errors}`))));
    child.stdin.end(input);
  });
}

/** Brings the metadata of a set into an empty database. */
async function load(engine: EngineName, set: string, url: string): Promise<void> {
  const folder = join(fixtures, set);
  if (engine === 'sqlite') copyFileSync(join(folder, 'meta.db'), url.replace('sqlite3://', ''));
  else if (engine === 'redis')
    await program(process.execPath, [join(fixtures, 'kv.mjs'), 'load', 'redis', url, join(folder, 'redis.jsonl')]);
  else {
    const sql = readFileSync(join(folder, 'meta.sql'), 'utf8');
    const at = /^\w+:\/\/(\w+)(?::\w+)?@\(?127\.0\.0\.1:(\d+)\)?\/(\w+)/.exec(url);
    assert.ok(at, url);
    const [, user, port, database] = at as unknown as [string, string, string, string];
    const connection = ['-h', '127.0.0.1', engine === 'postgres' ? '-p' : '-P', port];
    if (engine === 'postgres')
      await program('psql', [...connection, '-q', '-v', 'ON_ERROR_STOP=1', '-U', user, '-d', database], sql);
    else await program('mariadb', ['--no-defaults', ...connection, `-u${user}`, '-pp', database], sql);
  }
}

for (const [set, engine] of [
  ['a-sqlite', 'sqlite'],
  ['b-sqlite-lz4', 'sqlite'],
  ['d-redis', 'redis'],
  ['e1-postgres', 'postgres'],
  ['e2-mariadb', 'mariadb'],
] as const) {
  const server = lack ? { missing: lack } : await startEngine(engine);
  const skip = 'missing' in server ? server.missing : false;
  test(`${set} looks as it did`, { skip }, async () => {
    if ('missing' in server) return;
    const base = mkdtempSync(join(tmpdir(), 'fixture-'));
    chmodSync(base, 0o711);
    const point = join(base, 'mnt');
    mkdirSync(point);
    try {
      const url = await server.fresh();
      await load(engine, set, url);
      await program('tar', ['xzf', join(fixtures, set, 'objects.tar.gz'), '-C', base]);
      const bucket = `${base}/${set}${engine === 'mariadb' ? '-%d' : ''}/`;
      const flags = `--read-only --no-bgjob --enable-xattr --enable-ioctl --bucket ${bucket} --log ${base}/log`;
      const mounted = runClient('steadfs', ['mount', '-d', ...flags.split(' '), url, point]);
      assert.equal(mounted.status, 0, mounted.stdout + mounted.stderr);
      await program('sh', ['-c', `python3 "$0" fixture "$1" > "$2"`, script, point, join(base, 'shown')]);
      const [shown, expected] = [join(base, 'shown'), join(fixtures, set, 'expected.jsonl')].map(
        f =>
          new Map(
            readFileSync(f, 'utf8')
              .trim()
              .split('\n')
              .map(l => JSON.parse(l) as Record<string, unknown>)
              .map(l => [String(l.path ?? l.pathB64), l]),
          ),
      );
      assert.deepEqual([...shown!.keys()], [...expected!.keys()]);
      const files = [...expected!].filter(([path, line]) => path.startsWith('/.trash/') && line.type !== 'dir');
      const trashed = new Set(files.map(([, line]) => line.ino));
      for (const [path, line] of expected!) {
        const got = shown!.get(path)!;
        // Answered from memory: its times are those of the mount.
        if (path === '/.trash')
          for (const time of ['atimeNs', 'mtimeNs', 'ctimeNs', 'size', 'blocks']) got[time] = line[time];
        // Ours does not count links from the trash.
        if (trashed.has(line.ino)) got.nlink = line.nlink;
        assert.deepEqual(got, line, path);
      }
      const ended = runClient('steadfs', ['umount', point]);
      assert.equal(ended.status, 0, ended.stderr);
    } finally {
      abortMount(point);
      await server.stop();
      rmSync(base, { recursive: true, force: true });
    }
  });
}
