// timeout: 240
/**
 * Keys and bucket of the storage change while a volume is mounted (`config`), and passwords stay secret: on Redis with a password and S3 (versitygw), with the
 * passwords in the environment and in a file.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { startRedis } from '../servers/redis.ts';
import { startS3 } from '../servers/s3.ts';
import { abortMount, clientCommand, missing, processesWith } from '../support/volume.ts';

const PASSWORD = 'redis-pass-5f1c';
const KEYS = [
  { accessKey: 'first-access', secretKey: 'first-secret-91ab' },
  { accessKey: 'second-access', secretKey: 'second-secret-77de' },
  { accessKey: 'third-access', secretKey: 'third-secret-20cc' },
] as const;
const SECRETS = [PASSWORD, ...KEYS.map(k => k.secretKey)];

const lack = missing('steadfs');
const redis = lack
  ? { missing: lack }
  : await startRedis(['--requirepass', PASSWORD, '--maxmemory-policy', 'noeviction']);
const base = mkdtempSync(join(tmpdir(), 'rotation-'));
chmodSync(base, 0o711);
const objects = join(base, 'objects');
const point = join(base, 'mnt');
for (const dir of [objects, point, join(objects, 'one'), join(objects, 'two')]) mkdirSync(dir);
const first = 'missing' in redis ? redis : await startS3({ dir: objects, ...KEYS[0] });
const servers: { stop(): Promise<void> }[] = [];
for (const s of [redis, first]) if (!('missing' in s)) servers.push(s);

after(async () => {
  abortMount(point);
  for (const server of servers) await server.stop();
  rmSync(base, { recursive: true, force: true });
});

let said = '';
/** Our command line; what it prints is searched for secrets at the end. */
function steadfs(args: string[], env: Record<string, string> = {}) {
  const [program, ...rest] = clientCommand('steadfs');
  const r = spawnSync(program!, [...rest, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    env: { ...process.env, STEADFS_NODE: process.execPath, ...env },
  });
  said += `\n$ ${args[0]}\n${r.stdout}${r.stderr}`;
  return r;
}

function good(r: ReturnType<typeof steadfs>, what: string): void {
  assert.equal(r.status, 0, `${what}: ${r.stdout}${r.stderr}`);
}

/** By processes of their own: what hangs on the mount does not hang the test. */
function sh(script: string): string {
  const r = spawnSync('timeout', ['40', 'sh', '-ec', script], { cwd: point, encoding: 'utf8' });
  assert.equal(r.status, 0, `${script}: ${r.stderr}`);
  return r.stdout;
}

test('keys and bucket change on a live mount; no secret is shown anywhere', {
  skip: 'missing' in redis ? redis.missing : 'missing' in first ? first.missing : false,
}, async () => {
  if ('missing' in redis || 'missing' in first) return;
  const url = redis.url(0);
  const env = { META_PASSWORD: PASSWORD };
  const file = join(base, 'password');
  writeFileSync(file, `${PASSWORD}\n`, { mode: 0o600 });
  const keys = (n: 0 | 1 | 2): string[] => ['--access-key', KEYS[n].accessKey, '--secret-key', KEYS[n].secretKey];

  good(
    steadfs(
      [
        'format',
        '--storage',
        'minio',
        '--bucket',
        `${first.endpoint}/one`,
        '--trash-days',
        '0',
        ...keys(0),
        url,
        'turned',
      ],
      env,
    ),
    'format',
  );
  // Without a cache to read from: what is read comes from the store.
  const flags = ['--log', join(base, 'log'), '--attr-cache', '0', '--io-retries', '30'];
  good(steadfs(['mount', '-d', ...flags, url, point], { META_PASSWORD_FILE: file }), 'mount');
  sh('head -c 100000 /dev/urandom > a; sync; sha256sum a > /dev/null');
  const sum = sh('sha256sum a').slice(0, 64);
  assert.ok(readdirSync(join(objects, 'one/turned')).includes('chunks'));

  // Another server, with other keys, and the same objects; then the first one is gone.
  const second = await startS3({ dir: objects, ...KEYS[1] });
  assert.ok(!('missing' in second));
  servers.push(second);
  good(steadfs(['config', url, '--bucket', `${second.endpoint}/one`, ...keys(1), '--yes'], env), 'config');
  await first.stop();
  // The mount learns of it at its heartbeat at the latest; what is written meanwhile waits.
  sh('head -c 200000 /dev/urandom > b; sync b; cp b c; sync c');

  // Revoked keys: the first call that is denied looks at the settings itself.
  await second.stop();
  const third = await startS3({ dir: objects, ...KEYS[2], port: second.port });
  assert.ok(!('missing' in third));
  servers.push(third);
  good(steadfs(['config', url, ...keys(2), '--yes'], env), 'config');
  const began = Date.now();
  sh('head -c 300000 /dev/urandom > d; sync d; cmp b c');
  assert.ok(Date.now() - began < 40_000);
  // A bucket that cannot be: the mount stays with what works.
  good(steadfs(['config', url, '--bucket', `http://127.0.0.1:1/one`, '--force', '--yes'], env), 'config --force');
  good(steadfs(['config', url, '--bucket', `${second.endpoint}/one`, '--yes'], env), 'config');
  sh('head -c 1000 /dev/urandom > e; sync e');
  assert.equal(sh('sha256sum a').slice(0, 64), sum);
  const list = sh('ls').trim();
  good(steadfs(['umount', point]), 'umount');
  good(steadfs(['mount', '-d', ...flags, url, point], env), 'mount again');
  assert.equal(sh('ls').trim(), list);
  assert.equal(sh('cat b | cmp - c; sha256sum a').slice(0, 64), sum);

  // Everything that anybody can look at.
  const shown: [string, string][] = [
    ['/proc/mounts', readFileSync('/proc/self/mounts', 'utf8') + readFileSync('/proc/self/mountinfo', 'utf8')],
    ['ps', spawnSync('ps', ['axwwo', 'args'], { encoding: 'utf8' }).stdout],
    ['.config', sh('cat .config')],
    ['.stats', sh('cat .stats')],
  ];
  const processes = processesWith(point);
  assert.ok(processes.length >= 2);
  for (const pid of processes) {
    shown.push([`arguments of ${pid}`, readFileSync(`/proc/${pid}/cmdline`, 'latin1')]);
    shown.push([`environment of ${pid}`, readFileSync(`/proc/${pid}/environ`, 'latin1')]);
  }
  good(steadfs(['status', url], env), 'status');
  good(steadfs(['status', point]), 'status');
  good(steadfs(['config', url], env), 'config');
  // Errors: wrong passwords and keys, in the URL and beside it, at debug level.
  const wrong = url.replace('redis://', `redis://:wrong-${PASSWORD}@`);
  for (const args of [
    ['status', wrong],
    ['mount', '-d', '--log', join(base, 'log'), wrong, join(base, 'objects/two')],
    ['status', `${wrong}?unknown=1`],
    ['config', '--debug', url, ...keys(1), '--yes'],
    ['config', url, '--bucket', `http://x:${KEYS[0].secretKey}@127.0.0.1:1/one`, '--yes'],
    ['format', `mysql://u:${PASSWORD}@(127.0.0.1:1)/x`, 'abc'],
    ['format', `postgres://u:${PASSWORD}@127.0.0.1:1/x`, 'abc'],
    ['mount', `nothing://u:${PASSWORD}@h/x`, point],
  ])
    assert.notEqual(steadfs(args, args[0] === 'config' ? env : {}).status, 0, args.join(' '));
  good(steadfs(['umount', point]), 'umount');
  shown.push(['what the commands said', said], ['the log', readFileSync(join(base, 'log'), 'utf8')]);
  for (const [where, text] of shown)
    for (const secret of SECRETS)
      assert.ok(!text.includes(secret), `${where} shows ${secret}:\n${text.slice(0, 20_000)}`);
});
