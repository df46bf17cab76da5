/** Our engine and the Go client on one volume at once. Needs its binary (`juicefs` on PATH) and FUSE. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, describe, it } from 'node:test';
import { FileType } from '../../src/format/attr.ts';
import { ROOT } from '../../src/format/ino.ts';
import { buildSlices } from '../../src/format/slice.ts';
import type { MetaEngine } from '../../src/meta/engine.ts';
import { Link } from '../../src/meta/redis/link.ts';
import { parseRedisUrl } from '../../src/meta/redis/url.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { startRedis } from '../servers/redis.ts';
import { Client, defaultOptions, name, root, session } from './contract.ts';
import { type Ask, checkVolume, randomOperations } from './redis-check.ts';

const there = spawnSync('juicefs', ['version']).status === 0;
const redis = there ? await startRedis(['--maxmemory-policy', 'noeviction']) : { missing: 'no juicefs on PATH' };
const skip = 'missing' in redis ? redis.missing : false;
const dir = mkdtempSync(join(tmpdir(), 'steadfs-redis-go-'));
const mnt = join(dir, 'mnt');
const url = 'missing' in redis ? '' : redis.url(1);
const engines: MetaEngine[] = [];
const links: Link[] = [];

function run(command: string, ...args: string[]): string {
  const r = spawnSync('timeout', ['60', command, ...args], { encoding: 'utf8' });
  assert.equal(r.status, 0, `${command} ${args[0]}: ${r.stderr}${r.stdout}`);
  return r.stdout + r.stderr;
}

/** A shell script on the mount, in a process of its own. */
function shell(script: string): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile('timeout', ['60', 'sh', '-ec', script], { cwd: dir, maxBuffer: 1 << 24 }, (e, out, err) =>
      e ? reject(new Error(`${e.message}${err}`)) : resolve(out),
    );
  });
}

async function client(): Promise<Client> {
  const e = await openEngine(url, defaultOptions);
  engines.push(e);
  await e.load();
  await e.newSession(session);
  return new Client(e, { open: async () => e, destroy: async () => undefined });
}

async function rawAsk(): Promise<Ask> {
  const link = new Link(parseRedisUrl(url, {}), 10, { up() {}, down() {}, push() {}, trouble() {} });
  links.push(link);
  await link.open();
  return (...args) => link.ask(args);
}

let mount: ChildProcess | undefined;
async function mountGo(): Promise<void> {
  mkdirSync(mnt, { recursive: true });
  mount = spawn(
    'juicefs',
    [
      'mount',
      '--no-usage-report',
      '--enable-xattr',
      '--backup-meta',
      '0',
      '--cache-dir',
      join(dir, 'cache'),
      '--entry-cache',
      '0',
      '--attr-cache',
      '0',
      '--dir-entry-cache',
      '0',
      url,
      mnt,
    ],
    { stdio: 'ignore' },
  );
  for (let i = 0; i < 100; i++) {
    if (spawnSync('timeout', ['5', 'stat', '-c', '%i', mnt], { encoding: 'utf8' }).stdout.trim() === '1') return;
    await new Promise(wake => setTimeout(wake, 100));
  }
  throw new Error('the Go client did not mount');
}

async function umountGo(): Promise<void> {
  if (mount === undefined) return;
  const ended = new Promise(resolve => mount!.once('exit', resolve));
  spawnSync('timeout', ['20', 'juicefs', 'umount', mnt]);
  await Promise.race([ended, new Promise(wake => setTimeout(wake, 10_000))]);
  mount = undefined;
}

after(async () => {
  await umountGo();
  spawnSync('timeout', ['10', 'umount', '-l', mnt]);
  for (const e of engines) await e.close();
  for (const l of links) l.close();
  if (!('missing' in redis)) await redis.stop();
  rmSync(dir, { recursive: true, force: true });
});

describe('Redis: a volume of the Go client', { skip, concurrency: 1, timeout: 180_000 }, () => {
  it('is read and changed from both sides', async () => {
    mkdirSync(join(dir, 'obj'));
    run(
      'juicefs',
      'format',
      '--storage',
      'file',
      '--bucket',
      `${dir}/obj/`,
      '--trash-days',
      '1',
      '--enable-acl',
      url,
      'vol',
    );
    const c = await client();
    const { ino: d } = await c.mkdir(ROOT, 'ours');
    const { ino: f } = await c.create(d, 'file');
    await c.engine.setattr(c.op(), root, f, {
      size: 5000,
      mode: 0o4640,
      uid: 1000,
      gid: 1001,
      mtime: { sec: 12345, nsec: 678 },
    });
    await c.engine.setxattr(c.op(), root, f, name('user.x'), Buffer.from('value'), 0);
    await c.engine.mknod(c.op(), root, d, name('sym'), {
      type: FileType.symlink,
      mode: 0o777,
      umask: 0,
      rdev: 0,
      target: name('file'),
    });
    await c.engine.mknod(c.op(), root, d, name('dev'), { type: FileType.chardev, mode: 0o600, umask: 0, rdev: 0x103 });
    await c.link(f, d, 'hard');
    await c.create(d, 'gone');
    await c.unlink(d, 'gone');
    await c.mkdir(d, 'sub');
    await c.rename(d, 'sub', ROOT, 'moved');
    await mountGo();
    const stat = await shell(
      `cd mnt/ours; stat -c '%n %F %a %u %g %s %h %Y %t:%T' *; readlink sym; getfattr --only-values -n user.x file; echo; ls ../.trash/*`,
    );
    assert.deepEqual(stat.trim().split('\n').slice(0, 3), [
      `dev character special file 600 0 0 0 1 ${stat.split('\n')[0]!.split(' ')[9]} 1:3`,
      'file regular file 4640 1000 1001 5000 2 12345 0:0',
      'hard regular file 4640 1000 1001 5000 2 12345 0:0',
    ]);
    assert.match(stat, /\nfile\nvalue\n\d+-\d+-gone\n/);
    await shell(
      `cd mnt; mkdir theirs; echo hello > theirs/a; ln theirs/a theirs/b; mv theirs/b ours/b; setfattr -n user.y -v z theirs; rm theirs/a; truncate -s 70000000 ours/b; chmod 600 ours/file; rmdir moved`,
    );
    const theirs = await c.lookup(ROOT, 'theirs');
    assert.deepEqual(await c.names(theirs.ino), []);
    const b = await c.lookup(d, 'b');
    assert.equal(b.attr.length, 70000000);
    assert.equal(b.attr.nlink, 1, 'a link in the trash does not count');
    assert.equal((await c.getattr(f)).mode, 0o600);
    assert.equal((await c.engine.getxattr(theirs.ino, name('user.y'))).toString(), 'z');
    assert.equal((await c.engine.readChunk(b.ino, 0))[0]!.len, 6);
  });

  it('stays sound under load from both sides', async () => {
    const a = await client();
    const b = await client();
    const { ino: d } = await a.mkdir(ROOT, 'load', 0o777);
    const script = `
import os, random, time
random.seed(7)
os.chdir('mnt/load')
end = time.time() + 6
n = 0
while time.time() < end:
    x, y = 'n%d' % random.randrange(30), 'n%d' % random.randrange(30)
    try:
        k = random.randrange(8)
        if k == 0: open(x, 'w').write('x' * random.randrange(9000))
        elif k == 1: os.unlink(x)
        elif k == 2: os.rename(x, y)
        elif k == 3: os.link(x, y)
        elif k == 4: os.mkdir(x)
        elif k == 5: os.rmdir(x)
        elif k == 6: os.truncate(x, random.randrange(9000))
        else: open(x + '/' + y, 'w').close()
        n += 1
    except OSError: pass
print(n)
`;
    writeFileSync(join(dir, 'load.py'), script);
    const go = shell('python3 load.py');
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    console.log(`# seed ${seed}`);
    // No slices: their objects would be missed by fsck.
    const counts = await Promise.all([a, a, b, b].map((c, slot) => randomOperations(c, slot, d, seed, 6000, false)));
    const done = counts.reduce((x, y) => x + y, 0);
    const theirs = Number(await go);
    console.log(`# operations: ${done} ours, ${theirs} the Go client's`);
    assert.ok(done > 300 && theirs > 30);
    // What each side shows is the same.
    const seen = (await shell('cd mnt/load; ls -U')).split('\n').filter(Boolean).sort();
    assert.deepEqual(await a.names(d), seen);
    assert.deepEqual(await b.names(d), seen);
    await umountGo();
    // The Go client flushes directory statistics apart from its transactions: lengths drift under such races (ours alone do not).
    const wrong = await checkVolume(await rawAsk(), { dirStats: false, sliceRefs: false });
    assert.deepEqual(wrong, []);
    const fsck = run('juicefs', 'fsck', url);
    assert.ok(!/ERROR|broken|lost/i.test(fsck), fsck);
  });

  it('compacts while the Go client copies ranges, and breaks nothing', async () => {
    await mountGo();
    const c = await client();
    await shell(`python3 - <<'P'
import os
f = os.open('mnt/src', os.O_RDWR | os.O_CREAT)
for i in range(30):
    os.pwrite(f, bytes([i]) * 9000, i * 1000)
    os.fsync(f)
P`);
    const { ino } = await c.lookup(ROOT, 'src');
    const copies = shell(`python3 - <<'P'
import os, time
s = os.open('mnt/src', os.O_RDWR)
end = time.time() + 6
n = 0
while time.time() < end:
    d = os.open('mnt/copy-%d' % n, os.O_RDWR | os.O_CREAT)
    os.copy_file_range(s, d, 38000, 0, 0)
    os.close(d)
    os.pwrite(s, b'y' * 500, (n * 700) % 30000)
    os.fsync(s)
    n += 1
print(n)
P`);
    let compacted = 0;
    const end = Date.now() + 6000;
    while (Date.now() < end) {
      const records = await c.engine.readChunk(ino, 0);
      if (records.length < 2) {
        await new Promise(wake => setTimeout(wake, 2));
        continue;
      }
      const pieces = buildSlices(records);
      const size = pieces.at(-1)!.pos + pieces.at(-1)!.len;
      const id = await c.engine.newSliceIds(1);
      // The content does not matter here, only that the object is there.
      const path = join(
        dir,
        'obj/vol/chunks',
        String(Math.floor(id / 1e6)),
        String(Math.floor(id / 1000)),
        `${id}_0_${size}`,
      );
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, Buffer.alloc(size));
      const op = { kind: 3, slot: 0, seq: c.op().seq };
      if (await c.engine.compact(op, ino, 0, records, 0, { pos: 0, id, size, off: 0, len: size })) compacted++;
    }
    const copied = Number(await copies);
    console.log(`# ${copied} copies, ${compacted} compactions`);
    assert.ok(copied > 5 && compacted > 5);
    await umountGo();
    // The old slices are still delayed: nothing is deleted yet that a copy refers to; when they are dereferenced, copies keep theirs.
    const ask = await rawAsk();
    await c.engine.expireDelayedSlices({ kind: 3, slot: 1, seq: 1 }, Date.now() / 1000 + 10, 100_000);
    assert.deepEqual(await checkVolume(ask, { dirStats: false, sliceRefs: true }), []);
    const dead = await c.engine.deadSlices(100_000);
    for (const { id, size } of dead)
      rmSync(
        join(dir, 'obj/vol/chunks', String(Math.floor(id / 1e6)), String(Math.floor(id / 1000)), `${id}_0_${size}`),
        { force: true },
      );
    await c.engine.slicesDeleted(dead);
    const fsck = run('juicefs', 'fsck', url);
    assert.ok(!/ERROR|broken|lost/i.test(fsck), fsck);
  });
});
