// timeout: 120
/** The file system through real system calls, made by processes of their own (cases.ts); the service is killed where they ask for it. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { abortMount, missing, openVolume, runClient, type Volume } from '../support/volume.ts';

const lack = missing('steadfs');
const skip = lack ?? false;
let volume: Volume | undefined;

before(() => {
  if (!lack) volume = openVolume();
});
after(() => {
  const fault = volume?.close();
  assert.equal(fault, undefined);
});

/** Pid of the process that serves the mount, from `status`. */
function servicePid(dir: string): number {
  const r = runClient('steadfs', ['status', dir]);
  return (JSON.parse(r.stdout) as { mount: { service: { pid: number } } }).mount.service.pid;
}

async function runCase(name: string, dir: string, timeout = 60_000): Promise<void> {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'cases.ts'), name, dir], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  let errors = '';
  child.stderr.on('data', d => {
    errors += d;
  });
  child.stdout.on('data', d => {
    if (!String(d).includes('kill')) return;
    process.kill(servicePid(volume!.dir), 'SIGKILL');
    child.stdin.write('killed\n');
  });
  const timer = setTimeout(() => {
    errors += `\nno end after ${timeout} ms`;
    child.kill('SIGKILL');
    abortMount(volume!.dir);
  }, timeout);
  const code = await new Promise(resolve => child.on('close', resolve));
  clearTimeout(timer);
  assert.equal(code, 0, errors);
}

const inFolder = (name: string): string => {
  const dir = join(volume!.dir, name);
  assert.equal(spawnSync('mkdir', ['-p', '-m', '777', dir], { timeout: 10_000 }).status, 0);
  return dir;
};

for (const [name, what] of [
  ['removed', 'what is held without a name keeps its attributes and data, also after kill -9'],
  ['stream', 'a directory stream goes on after kill -9, under change'],
  ['limits', 'long and odd names, huge offsets, fallocate, copy_file_range, whiteout'],
  ['locks', 'fcntl, OFD and flock locks, deadlocks'],
  ['times', 'times out of range become the nearest'],
  ['setid', 'set-id bits go with a write'],
] as const)
  test(what, { skip }, () => runCase(name, inFolder(name)));

test('FIFOs and sockets, which the kernel opens without asking, where permissions are checked here', {
  skip: skip || (process.getuid!() !== 0 && 'it needs root'),
}, async () => {
  const checked = openVolume({ mount: ['--non-default-permission'] });
  try {
    await runCase('unasked', checked.dir);
  } finally {
    assert.equal(checked.close(), undefined);
  }
});

test('internal files', { skip }, () => runCase('internal', volume!.dir));

test('info, summary, clone, compact and rmr through .control', { skip }, () => {
  const dir = inFolder('tree');
  const sh = (script: string) => {
    const r = spawnSync('sh', ['-ec', script], { cwd: dir, encoding: 'utf8', timeout: 30_000 });
    assert.equal(r.status, 0, r.stderr);
    return r.stdout;
  };
  const run = (...args: string[]) => {
    const r = runClient('steadfs', args);
    assert.equal(r.status, 0, `${args.join(' ')}: ${r.stdout}${r.stderr}`);
    return r.stdout;
  };
  sh(
    'mkdir -p a/b/c; for i in 1 2 3 4 5; do echo content $i > a/b/$i; ln -s $i a/b/c/l$i; done; head -c 100000 /dev/zero > a/z',
  );
  assert.match(
    run('info', join(dir, 'a/z')),
    /length: .*\(100000 Bytes\)[\s\S]*path: \/tree\/a\/z[\s\S]*judged\/chunks\/0\/0\//,
  );
  assert.match(run('info', '-r', '--strict', join(dir, 'a')), /files: 11\n {3}dirs: 3/);
  assert.match(run('summary', '--csv', join(dir, 'a')), /,3,11/);
  run('clone', '-p', join(dir, 'a'), join(dir, 'copy'));
  sh(
    'diff -r --no-dereference a copy; echo more >> copy/b/1; cmp a/b/1 copy/b/1 && exit 1 || true; test "$(cat a/b/1)" = "content 1"',
  );
  const twice = runClient('steadfs', ['clone', join(dir, 'a'), join(dir, 'copy/b/1')]);
  assert.notEqual(twice.status, 0);
  run('compact', dir);
  run('rmr', join(dir, 'a'));
  assert.equal(sh('ls'), 'copy\n');
  assert.equal(sh('cat copy/b/2'), 'content 2\n');
  const gone = runClient('steadfs', ['rmr', join(dir, 'a')]);
  assert.notEqual(gone.status, 0);
  run('rmr', join(dir, 'copy'));
  assert.equal(sh('ls -A'), '');
});

test('--subdir with --read-only', { skip }, async () => {
  const dir = inFolder('sub/dir');
  assert.equal(spawnSync('sh', ['-c', `printf 'in sub' > ${dir}/file`], { timeout: 10_000 }).status, 0);
  const second = join(volume!.base, 'second');
  mkdirSync(second);
  const log = join(volume!.base, 'log2');
  const r = runClient('steadfs', [
    'mount',
    '-d',
    '--log',
    log,
    '--subdir',
    'sub/dir',
    '--read-only',
    volume!.meta,
    second,
  ]);
  assert.equal(r.status, 0, `${r.stderr}${readFileSync(log, { encoding: 'utf8', flag: 'a+' })}`);
  try {
    await runCase('readonly', second);
  } finally {
    runClient('steadfs', ['umount', second]);
    abortMount(second);
  }
});

const tools = ['setfacl', 'chattr', 'getfattr'].filter(t => spawnSync('which', [t]).status !== 0);
test('POSIX ACLs, attributes and inode flags', {
  skip: lack ?? (tools.length > 0 ? `${tools} missing` : false),
}, () => {
  const own = openVolume({ format: ['--trash-days', '0', '--enable-acl'], mount: ['--enable-ioctl'] });
  try {
    const sh = (script: string) => {
      const r = spawnSync('sh', ['-ec', script], { cwd: own.dir, encoding: 'utf8', timeout: 30_000 });
      assert.equal(r.status, 0, r.stderr);
      return r.stdout;
    };
    sh('mkdir d; setfacl -m u:1234:rwx d; setfacl -d -m g:55:rx d; umask 077; touch d/f');
    assert.match(sh('getfacl -c d'), /^user:1234:rwx$[\s\S]*^default:group:55:r-x$/m);
    // The default ACL takes the place of the umask.
    assert.match(sh('getfacl -c d/f'), /^group:55:r-x\s+#effective:r--$/m);
    assert.equal(sh('getfattr -m - d | grep -c posix_acl'), '2\n');
    sh('setfacl -b d; test "$(stat -c %a d)" = 755');
    // (`! command` would not end a script of sh -e.)
    const no =
      'no() { if ( eval "$1" ) 2> no; then echo "went well: $1" >&2; exit 1; fi; grep -qi "not permitted" no; };';
    sh(
      `${no} touch i; chattr +i i; no 'echo x >> i'; no 'rm -f i'; no 'mv i j'; no 'chmod 600 i'; lsattr i | grep -q -- ----i; chattr -i i; rm i`,
    );
    sh(`${no} exec 3>>w; chattr +i w; no '/bin/echo x >&3'; chattr -i w; echo x >&3; test -s w`);
    sh(`${no} touch a; chattr +a a; no ': > a'; echo x >> a; no 'truncate -s 0 a'; chattr -a a; : > a`);
    sh('touch t; was=$(stat -c %z t); chattr +a t; test "$(stat -c %z t)" != "$was"; chattr -a t');
    sh('mkdir gone; cd gone; rmdir ../gone; getfattr -m - .');
  } finally {
    assert.equal(own.close(), undefined);
  }
});
