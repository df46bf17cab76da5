/** A real S3 server for tests: versitygw from PATH or ~/go/bin, else by `go install` where Go 1.24 or newer is there. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, type Missing, startServer, stopServer } from './process.ts';

export interface S3Server {
  endpoint: string;
  port: number;
  accessKey: string;
  secretKey: string;
  /** Makes a bucket, answers its URL. */
  bucket(name: string): string;
  /** Directory of the buckets. */
  dir: string;
  pid: number;
  stop(): Promise<void>;
}

/** Path of versitygw, or a word why there is none. */
function findVersitygw(): { path: string } | Missing {
  const candidates = [
    ...(process.env.PATH ?? '').split(':').map(d => join(d, 'versitygw')),
    join(homedir(), 'go/bin/versitygw'),
  ];
  const found = candidates.find(p => existsSync(p));
  if (found) return { path: found };
  const go = spawnSync('go', ['version'], { encoding: 'utf8' });
  const minor = Number(/go1\.(\d+)/.exec(go.stdout ?? '')?.[1] ?? 0);
  if (minor < 24) return { missing: 'no versitygw on PATH, and no Go 1.24 to install it' };
  const install = spawnSync('go', ['install', 'github.com/versity/versitygw/cmd/versitygw@v1.8.0'], {
    encoding: 'utf8',
    timeout: 400_000,
  });
  const built = join(homedir(), 'go/bin/versitygw');
  return existsSync(built)
    ? { path: built }
    : { missing: `go install versitygw failed: ${install.stderr?.slice(-200)}` };
}

/** With a folder, keys or a port of the caller's; that folder stays after the end. */
export async function startS3(
  options: { dir?: string; accessKey?: string; secretKey?: string; port?: number } = {},
): Promise<S3Server | Missing> {
  const binary = findVersitygw();
  if ('missing' in binary) return binary;
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), 'steadfs-s3-'));
  const port = options.port ?? (await freePort());
  const { accessKey = 'test-access', secretKey = 'test-secret-key' } = options;
  const endpoint = `http://127.0.0.1:${port}`;
  const child = await startServer(
    binary.path,
    ['--keep-alive', '--quiet', '--port', `127.0.0.1:${port}`, 'posix', dir],
    { env: { ...process.env, ROOT_ACCESS_KEY: accessKey, ROOT_SECRET_KEY: secretKey } },
    async () => void (await fetch(endpoint, { signal: AbortSignal.timeout(1000) })),
  );
  if (child === undefined) return { missing: 'versitygw did not start' };
  return {
    endpoint,
    port,
    accessKey,
    secretKey,
    dir,
    pid: child.pid ?? 0,
    bucket(name) {
      mkdirSync(join(dir, name), { recursive: true });
      return `${endpoint}/${name}`;
    },
    async stop() {
      await stopServer(child);
      if (options.dir === undefined) rmSync(dir, { recursive: true, force: true });
    },
  };
}
