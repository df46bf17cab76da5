/**
 * What a program does on a mount and what it must get, in a process of its own: `node cases.ts NAME DIRECTORY`. A case that wants the service killed
 * writes "kill" and goes on when it reads a line.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import * as c from '../support/libc.ts';
import { F, F_RDLCK, F_UNLCK, F_WRLCK, FALLOC, LOCK, O, RENAME, resultName, SEEK } from '../support/libc.ts';

const ok = (r: number, what: string): number => {
  assert.ok(r >= 0, `${what}: ${resultName(r)}`);
  return r;
};
const fails = (r: number | object, name: string, what: string) =>
  assert.equal(typeof r === 'number' ? resultName(r) : 'success', name, what);
const statOf = (r: number | c.Statx): c.Statx => {
  assert.ok(typeof r === 'object', `stat: ${typeof r === 'number' ? resultName(r) : ''}`);
  return r;
};

function kill(): void {
  writeSync(1, 'kill\n');
  readSync(0, Buffer.alloc(16));
}

/** Runs another case of this file; its output and exit code. */
function other(name: string, ...args: string[]) {
  const child = spawn(process.execPath, [import.meta.filename, name, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', d => {
    out += d;
  });
  const ended = new Promise<number | null>(resolve => child.on('close', resolve));
  return {
    child,
    said: async (word: string) => {
      for (let i = 0; i < 3000 && !out.includes(word); i++) await new Promise(resolve => setTimeout(resolve, 10));
      assert.ok(out.includes(word), `${name} did not say ${word}: ${out}`);
    },
    ended,
  };
}

/** Waits until the main thread of a process sleeps in fcntl(2) (/proc/PID/syscall, proc(5): number and arguments in hexadecimal, or "running"): its request is on its way. */
async function blockedInFcntl(pid: number): Promise<void> {
  const fcntl = process.arch === 'arm64' ? '25' : '72';
  for (let i = 0; i < 3000; i++) {
    if (readFileSync(`/proc/${pid}/syscall`, 'utf8').split(' ')[0] === fcntl) return;
    await new Promise(resolve => setTimeout(resolve, 10));
  }
  assert.fail(`process ${pid} never waits in fcntl`);
}

const lock = (fd: number, cmd: number, type: number, start = 0, length = 0) => {
  const r = c.fcntlLock(fd, cmd, { type, start, length });
  return typeof r === 'number' ? r : 0;
};

const cases: Record<string, (dir: string, ...more: string[]) => Promise<void> | void> = {
  async unasked(dir) {
    assert.equal(c.mknod(`${dir}/pipe`, 0o010000, 0), 0);
    assert.equal(c.mknod(`${dir}/socket`, 0o140000, 0), 0);
    for (const name of ['pipe', 'socket']) chmodSync(`${dir}/${name}`, 0o624);
    for (const [uid, gid] of [
      [1001, 0],
      [1001, 1001],
    ])
      assert.equal(await other('unaskedUser', dir, String(uid), String(gid)).ended, 0);
  },
  unaskedUser(dir, uid, gid) {
    c.setIds(Number(uid), Number(gid));
    const group = gid === '0';
    const pipe = `${dir}/pipe`;
    // A writer without a reader: ENXIO where it may.
    const open = (flags: number, right: boolean, what: string) => {
      const fd = c.open(pipe, flags | O.NONBLOCK);
      assert.equal(['EACCES', 'EEXIST'].includes(resultName(fd)), !right, `${what}: ${resultName(fd)}`);
      if (fd >= 0) c.close(fd);
    };
    open(O.RDONLY, !group, 'read');
    open(O.WRONLY, group, 'write');
    open(O.RDWR, false, 'read and write');
    open(O.RDONLY | O.TRUNC, false, 'read and truncate');
    open(O.RDONLY | O.CREAT, !group, 'with O_CREAT');
    fails(c.open(pipe, O.RDWR | O.CREAT | O.EXCL), 'EEXIST', 'O_EXCL comes first');
    fails(c.open(pipe, O.RDWR | O.DIRECTORY), 'ENOTDIR', 'O_DIRECTORY comes first');
    ok(c.close(ok(c.open(pipe, O.PATH), 'O_PATH')), 'close');
    assert.equal(statOf(c.stat(pipe)).mode & 0o777, 0o624);
    fails(c.openHow(pipe, O.RDWR | O.NONBLOCK), 'EACCES', 'openat2');
    // Nobody listens: ECONNREFUSED where it may.
    fails(c.connect(`${dir}/socket`), group ? 'ECONNREFUSED' : 'EACCES', 'connect');
  },
  removed(dir) {
    mkdirSync(`${dir}/cwd`);
    writeFileSync(`${dir}/file`, 'x'.repeat(1234));
    chmodSync(`${dir}/file`, 0o6755);
    process.chdir(`${dir}/cwd`);
    const path = ok(c.open(`${dir}/file`, O.PATH), 'O_PATH');
    const open = ok(c.open(`${dir}/held`, O.CREAT | O.RDWR), 'held');
    ok(c.write(open, Buffer.alloc(300_000, 7), 300_000), 'write');
    ok(c.unlink(`${dir}/held`), 'unlink held');
    rmdirSync(`${dir}/cwd`);
    unlinkSync(`${dir}/file`);
    assert.equal(statOf(c.fstat(path, c.AT.STATX_FORCE_SYNC)).mode & 0o7777, 0o6755);
    chownSync(`/proc/self/fd/${path}`, process.getuid!(), process.getgid!());
    assert.equal(statOf(c.fstat(path, c.AT.STATX_FORCE_SYNC)).mode & 0o7777, 0o755, 'chown takes set-id bits away');
    const check = () => {
      const s = statOf(c.fstat(path, c.AT.STATX_FORCE_SYNC));
      assert.deepEqual([s.size, s.nlink], [1234, 0]);
      assert.equal(statOf(c.stat('.', c.AT.STATX_FORCE_SYNC)).nlink, 0);
      assert.deepEqual(readdirSync('.'), []);
      fails(c.open('new', O.CREAT | O.RDWR), 'ENOENT', 'create in a removed directory');
      assert.equal(statOf(c.fstat(open, c.AT.STATX_FORCE_SYNC)).size, 300_000);
      const b = Buffer.alloc(300_000);
      assert.equal(c.pread(open, b, b.length, 0), 300_000);
      assert.ok(b.equals(Buffer.alloc(300_000, 7)));
    };
    check();
    kill();
    check();
    ok(c.chmod('.', 0o700), 'chmod of a removed directory');
    assert.equal(statOf(c.stat('.', c.AT.STATX_FORCE_SYNC)).mode & 0o777, 0o700);
    ok(c.pwrite(open, Buffer.from('end'), 3, 400_000), 'write to a removed file');
    assert.equal(statOf(c.fstat(open)).size, 400_003);
    ok(c.close(open), 'close');
  },

  stream(dir) {
    for (let i = 0; i < 3000; i++) writeFileSync(`${dir}/stays-${i}`, '');
    for (let i = 0; i < 300; i++) writeFileSync(`${dir}/goes-${i}`, '');
    const fd = ok(c.open(dir, O.RDONLY | O.DIRECTORY), 'opendir');
    const seen: string[] = [];
    const offs: bigint[] = [];
    for (let round = 0; ; round++) {
      const page = c.getdents(fd, 2048);
      assert.ok(typeof page === 'object', `getdents: ${typeof page === 'number' ? resultName(page) : ''}`);
      if (page.length === 0) break;
      for (const e of page) {
        seen.push(e.name.toString());
        offs.push(e.off);
      }
      if (round === 5 || round === 20) kill();
      if (round < 100) {
        unlinkSync(`${dir}/goes-${round}`);
        writeFileSync(`${dir}/comes-${round}`, '');
      }
    }
    assert.equal(new Set(seen).size, seen.length, 'an entry came twice');
    for (let i = 0; i < 3000; i++) assert.ok(seen.includes(`stays-${i}`), `stays-${i} is missing`);
    // telldir and seekdir, in whichever process.
    const at = seen.indexOf('stays-1500');
    ok(c.seekdir(fd, offs[at]!), 'seekdir');
    const again = c.getdents(fd, 2048) as c.Dirent[];
    const after = seen.slice(at + 1).filter(n => n.startsWith('stays'));
    assert.deepEqual(
      again
        .map(e => e.name.toString())
        .filter(n => n.startsWith('stays'))
        .slice(0, 5),
      after.slice(0, 5),
    );
  },

  limits(dir) {
    const name = 'n'.repeat(255);
    ok(c.open(`${dir}/${name}`, O.CREAT | O.RDWR), '255 bytes');
    for (const call of [
      () => c.open(`${dir}/${name}n`, O.CREAT | O.RDWR),
      () => c.mkdir(`${dir}/${name}n`, 0o755),
      () => c.unlink(`${dir}/${name}n`),
      () => c.rename(`${dir}/${name}`, `${dir}/${name}n`),
    ])
      fails(call(), 'ENAMETOOLONG', '256 bytes');
    const odd = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0xfe, 10, 0x80])]);
    ok(c.open(odd, O.CREAT | O.RDWR), 'a name that is no text');
    assert.ok(readdirSync(dir, 'buffer').some(n => n.equals(odd.subarray(dir.length + 1))));
    const fd = ok(c.open(`${dir}/big`, O.CREAT | O.RDWR), 'big');
    fails(c.ftruncate(fd, Number.MAX_SAFE_INTEGER + 1), 'EFBIG', 'too long');
    ok(c.ftruncate(fd, 2 ** 50), 'a petabyte of nothing');
    assert.equal(c.pread(fd, Buffer.alloc(10), 10, 2 ** 50 - 5), 5);
    ok(c.ftruncate(fd, 0), 'and back');
    fails(c.fallocate(fd, FALLOC.COLLAPSE, 0, 4096), 'EOPNOTSUPP', 'collapse');
    ok(c.fallocate(fd, FALLOC.KEEP_SIZE, 0, 10_000), 'keep size');
    assert.equal(statOf(c.fstat(fd)).size, 0);
    fails(c.fallocate(fd, 0, 0, 2 ** 52), 'ENOSPC', 'more than statfs shows');
    ok(c.fallocate(fd, 0, 0, 10_000), 'allocate');
    assert.equal(statOf(c.fstat(fd)).size, 10_000);
    ok(c.pwrite(fd, Buffer.alloc(10_000, 1), 10_000, 0), 'write');
    ok(c.fallocate(fd, FALLOC.KEEP_SIZE | FALLOC.PUNCH_HOLE, 1000, 2000), 'punch');
    const b = Buffer.alloc(10_000);
    assert.equal(c.pread(fd, b, 10_000, 0), 10_000);
    assert.ok(b.subarray(1000, 3000).every(x => x === 0) && b[999] === 1 && b[3000] === 1);
    const pages = ok(c.open(`${dir}/pages`, O.CREAT | O.RDWR), 'pages');
    ok(c.ftruncate(pages, 20_000), 'pages');
    ok(c.pwrite(pages, Buffer.from('x'), 1, 10_000), 'one byte');
    const found = [
      [0, SEEK.DATA],
      [8300, SEEK.DATA],
      [0, SEEK.HOLE],
      [8192, SEEK.HOLE],
      [12_300, SEEK.HOLE],
    ].map(([from, how]) => c.lseek(pages, from!, how!));
    assert.deepEqual(found, [8192, 8300, 0, 12_288, 12_300], 'data are whole pages');
    fails(c.lseek(pages, 12_288, SEEK.DATA), 'ENXIO', 'no data any more');
    const to = ok(c.open(`${dir}/copy`, O.CREAT | O.RDWR), 'copy');
    assert.equal(c.copyFileRange(fd, 500, to, 100, 5000), 5000);
    // A hole before data that is not committed yet.
    const sparse = ok(c.open(`${dir}/sparse`, O.CREAT | O.RDWR), 'sparse');
    ok(c.pwrite(sparse, b, 100, 0), 'its begin');
    ok(c.fsync(sparse), 'fsync');
    ok(c.pwrite(sparse, b, 100, 2 ** 26), 'its end');
    assert.equal(c.copyFileRange(sparse, 50, to, 0, 1 << 20), 1 << 20);
    ok(c.ftruncate(to, 5100), 'as it was');
    assert.equal(c.copyFileRange(fd, 500, to, 100, 5000), 5000);
    const d = Buffer.alloc(5000);
    assert.equal(c.pread(to, d, 5000, 100), 5000);
    assert.ok(d.equals(b.subarray(500, 5500)));
    ok(c.rename(`${dir}/copy`, `${dir}/moved`, RENAME.WHITEOUT), 'whiteout');
    const white = statOf(c.lstat(`${dir}/copy`));
    assert.deepEqual([white.mode & 0o170000, white.rdevMajor, white.rdevMinor], [0o020000, 0, 0]);
  },

  internal(dir) {
    fails(c.setxattr(`${dir}/.`, 'user.x', Buffer.from('1')), 'EOPNOTSUPP', 'xattrs are off');
    assert.match(readFileSync(`${dir}/.stats`, 'utf8'), /juicefs_fuse_ops_total_lookup \d+/);
    const config = JSON.parse(readFileSync(`${dir}/.config`, 'utf8')) as { Format: { Name: string } };
    assert.equal(config.Format.Name, 'judged');
    for (const name of ['.stats', '.config', '.accesslog', '.control']) {
      fails(c.unlink(`${dir}/${name}`), 'EPERM', `unlink ${name}`);
      fails(c.mkdir(`${dir}/${name}`, 0o755), 'EEXIST', `mkdir ${name}`);
      ok(c.chmod(`${dir}/${name}`, 0o600), `chmod ${name}`);
      ok(c.truncate(`${dir}/${name}`, 0), `truncate ${name}`);
    }
    fails(c.open(`${dir}/.stats`, O.RDWR), 'EACCES', 'stats for writing');
    mkdirSync(`${dir}/sub`);
    ok(c.open(`${dir}/sub/.control`, O.RDWR), '.control is everywhere');
    fails(c.open(`${dir}/sub/.stats`, O.RDONLY), 'ENOENT', '.stats is not');
    assert.ok(!readdirSync(dir).includes('.control'));
    const log = ok(c.open(`${dir}/.accesslog`, O.RDONLY), 'accesslog');
    mkdirSync(`${dir}/seen`);
    const b = Buffer.alloc(65536);
    const n = ok(c.read(log, b, b.length), 'read accesslog');
    assert.match(b.toString('utf8', 0, n), /mkdir \(1,seen,\d+,\d+\).*OK <0\.\d{6}>/);
  },

  async locks(dir) {
    const watcher = ok(c.open(`${dir}/closed`, O.CREAT | O.RDWR), 'closed');
    for (let i = 0; i < 200; i++) {
      const holder = ok(c.open(`${dir}/closed`, O.RDWR), 'holder');
      ok(lock(holder, F.OFD_SETLK, F_WRLCK), 'OFD lock');
      ok(c.close(holder), 'close');
      const r = c.fcntlLock(watcher, F.OFD_GETLK, { type: F_WRLCK, start: 0, length: 0 });
      assert.ok(typeof r === 'object' && r.type === F_UNLCK, `close ${i} leaves its lock`);
    }
    const path = `${dir}/locked`;
    writeFileSync(path, '');
    const a = ok(c.open(path, O.RDWR), 'open');
    const b = ok(c.open(path, O.RDWR), 'open again');
    // OFD locks belong to the description.
    ok(lock(a, F.OFD_SETLK, F_WRLCK, 0, 10), 'OFD');
    fails(lock(b, F.OFD_SETLK, F_WRLCK, 5, 10), 'EAGAIN', 'OFD conflict in one process');
    ok(c.close(a), 'close');
    ok(lock(b, F.OFD_SETLK, F_WRLCK, 5, 10), 'OFD after the close');
    ok(lock(b, F.OFD_SETLK, F_UNLCK), 'unlock');
    // flock: a second description conflicts, a conversion that fails loses the lock.
    const d = ok(c.open(path, O.RDWR), 'open');
    ok(c.flock(b, LOCK.SH), 'shared');
    ok(c.flock(d, LOCK.SH), 'shared too');
    fails(c.flock(d, LOCK.EX | LOCK.NB), 'EAGAIN', 'conversion');
    ok(c.flock(b, LOCK.EX | LOCK.NB), 'the other one has none any more');
    ok(c.close(b), 'close');
    ok(c.flock(d, LOCK.EX | LOCK.NB), 'closed with its lock');
    ok(c.flock(d, LOCK.UN), 'unlock');
    // A deadlock of two processes is found; one waiter gets EDEADLK, the other the lock.
    ok(lock(d, F.SETLK, F_WRLCK, 0, 1), 'first');
    const peer = other('lockPeer', dir);
    await peer.said('second');
    peer.child.stdin.write('go\n');
    await peer.said('waits');
    await blockedInFcntl(peer.child.pid!);
    fails(lock(d, F.SETLKW, F_WRLCK, 1, 1), 'EDEADLK', 'the second waiter');
    const held = c.fcntlLock(d, F.GETLK, { type: F_WRLCK, start: 1, length: 1 }) as c.Lock;
    assert.deepEqual([held.type, held.pid], [F_WRLCK, peer.child.pid]);
    ok(lock(d, F.SETLK, F_UNLCK, 0, 1), 'let go');
    assert.equal(await peer.ended, 0);
    assert.equal((c.fcntlLock(d, F.GETLK, { type: F_WRLCK, start: 0, length: 9 }) as c.Lock).type, F_UNLCK);
    // Closing any descriptor of the file drops the process's locks.
    ok(lock(d, F.SETLK, F_RDLCK, 0, 1), 'read lock');
    ok(c.close(ok(c.open(path, O.RDONLY), 'open')), 'close another');
    const free = other('lockFree', dir);
    assert.equal(await free.ended, 0);
  },

  lockPeer(dir) {
    const fd = ok(c.open(`${dir}/locked`, O.RDWR), 'open');
    ok(lock(fd, F.SETLK, F_WRLCK, 1, 1), 'second');
    writeSync(1, 'second\n');
    readSync(0, Buffer.alloc(8));
    writeSync(1, 'waits\n');
    ok(lock(fd, F.SETLKW, F_WRLCK, 0, 1), 'the first waiter');
  },

  lockFree(dir) {
    const fd = ok(c.open(`${dir}/locked`, O.RDWR), 'open');
    ok(lock(fd, F.SETLK, F_WRLCK, 0, 9), 'all free');
  },

  /** Times beyond what can be stored become the nearest that can, as on local file systems (xfstests generic/634). */
  times(dir) {
    const path = `${dir}/times`;
    writeFileSync(path, '');
    for (const [wanted, stored] of [
      [99_999_999_999, 99_999_999_999n],
      [-62_135_596_800, -62_135_596_800n],
      [2 ** 62, 9_223_372_036_854n],
      [-(2 ** 62), -9_223_372_036_854n],
    ] as const) {
      ok(c.utimens(path, [wanted, 5000], [wanted, 5000]), `utimens ${wanted}`);
      const seconds = (statOf(c.stat(path)).mtime - 5000n) / 1_000_000_000n;
      assert.ok(seconds - stored <= 0n && seconds - stored >= -1n, `${wanted}: ${seconds}`);
    }
  },

  /** Set-id bits go with a write of somebody else, at once. */
  setid(dir) {
    const path = `${dir}/suid`;
    writeFileSync(path, 'abc');
    ok(c.chmod(path, 0o2644), 'chmod');
    const mine = ok(c.open(path, O.WRONLY), 'open to write');
    const { ctime } = statOf(c.stat(path));
    ok(c.lchown(path, -1, -1), 'chown of neither id');
    assert.ok(statOf(c.stat(path)).ctime > ctime, 'its ctime is renewed while the file is open for writing');
    ok(c.close(mine), 'close');
    ok(c.chmod(path, 0o6777), 'chmod');
    c.setIds(1234, 1234);
    const fd = ok(c.open(path, O.RDWR), 'open');
    ok(c.write(fd, Buffer.from('x'), 1), 'write');
    assert.equal(statOf(c.fstat(fd)).mode & 0o7777, 0o777);
    // But not with one that came before they were set, and is committed later.
    const own = ok(c.open(`${dir}/own`, O.CREAT | O.RDWR, 0o755), 'create');
    ok(c.write(own, Buffer.from('x'), 1), 'write');
    ok(c.fchmod(own, 0o4755), 'fchmod');
    ok(c.fsync(own), 'fsync');
    ok(c.close(own), 'close');
    assert.equal(statOf(c.stat(`${dir}/own`, c.AT.STATX_FORCE_SYNC)).mode & 0o7777, 0o4755);
  },

  readonly(dir) {
    fails(c.open(`${dir}/new`, O.CREAT | O.RDWR), 'EROFS', 'create');
    fails(c.mkdir(`${dir}/new`, 0o755), 'EROFS', 'mkdir');
    fails(c.open(`${dir}/file`, O.RDWR), 'EROFS', 'open to write');
    assert.equal(readFileSync(`${dir}/file`, 'utf8'), 'in sub');
    assert.equal(statOf(c.stat(dir)).ino, 1n);
    assert.ok(!readdirSync(dir).includes('.trash'));
  },
};

const [name, dir, ...more] = process.argv.slice(2);
await cases[name!]!(dir!, ...more);
