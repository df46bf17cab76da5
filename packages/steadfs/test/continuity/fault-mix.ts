/**
 * The operation mix of the fault enumeration, as a process of its own: every kind of request, each result compared with what it must be.
 *
 *     node fault-mix.ts DIR      a line "run" on stdin: one round; "end": everything is looked at once more. Answers "ok CALLS" or "fault TEXT"
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import * as c from '../support/libc.ts';
import { stamp } from './checked.ts';

const base = process.argv[2]!;
/** Trees of rounds before the last ones are removed. */
const KEPT = 2;
const ENOENT = -2;
const EAGAIN = -11;
const EEXIST = -17;
const ENOTEMPTY = -39;
const ENODATA = -61;

let calls = 0;
let round = 0;
const trees = new Map<string, Map<string, Buffer | string>>();

class Wrong extends Error {}

function is(what: string, got: number, wanted: number): void {
  calls++;
  if (got !== wanted) throw new Wrong(`${what}: ${c.resultName(got)} in place of ${c.resultName(wanted)}`);
}
function must(what: string, got: number): number {
  calls++;
  if (got < 0) throw new Wrong(`${what}: ${c.resultName(got)}`);
  return got;
}
function have<T>(what: string, got: number | T): T {
  calls++;
  if (typeof got === 'number' && got < 0) throw new Wrong(`${what}: ${c.resultName(got)}`);
  return got as T;
}
function same(what: string, got: unknown, wanted: unknown): void {
  if (String(got) !== String(wanted)) throw new Wrong(`${what}: ${String(got)} in place of ${String(wanted)}`);
}

/** The whole file, past the kernel's pages. */
function contents(path: string, length: number): Buffer {
  const fd = must(`open ${path}`, c.open(path, c.O.RDONLY | c.O.DIRECT));
  const room = c.alignedBuffer(Math.ceil((length + 1) / 4096) * 4096);
  let at = 0;
  for (;;) {
    const n = must(`read ${path}`, c.pread(fd, room.subarray(at), room.length - at, at));
    at += n;
    if (n === 0 || at >= room.length) break;
  }
  is(`close ${path}`, c.close(fd), 0);
  return room.subarray(0, at);
}

function compare(path: string, wanted: Buffer): void {
  const got = contents(path, wanted.length);
  if (got.equals(wanted)) return;
  let i = 0;
  while (i < Math.min(got.length, wanted.length) && got[i] === wanted[i]) i++;
  throw new Wrong(`${path}: ${got.length} bytes of ${wanted.length}, different from byte ${i} on`);
}

function names(path: string): string[] {
  const fd = must(`open ${path}`, c.open(path, c.O.RDONLY | c.O.DIRECTORY));
  const found: string[] = [];
  for (;;) {
    const page = have(`getdents ${path}`, c.getdents(fd, 700));
    if (page.length === 0) break;
    for (const e of page) found.push(e.name.toString());
  }
  is(`close ${path}`, c.close(fd), 0);
  return found.filter(n => n !== '.' && n !== '..').sort();
}

function check(dir: string, tree: Map<string, Buffer | string>): void {
  same(`names in ${dir}`, names(dir), [...tree.keys()].sort());
  for (const [name, wanted] of tree) {
    const path = join(dir, name);
    const s = have(`lstat ${path}`, c.lstat(path, c.AT.STATX_FORCE_SYNC));
    if (typeof wanted === 'string') {
      same(`type of ${path}`, (s.mode & 0o170000).toString(8), wanted);
      continue;
    }
    same(`size of ${path}`, s.size, wanted.length);
    compare(path, wanted);
  }
}

function remove(dir: string, tree: Map<string, Buffer | string>): void {
  for (const [name, what] of tree)
    is(`remove ${dir}/${name}`, what === '40000' ? c.rmdir(join(dir, name)) : c.unlink(join(dir, name)), 0);
  is(`rmdir ${dir}`, c.rmdir(dir), 0);
  trees.delete(dir);
}

/** flock(1) on the file, which waits. */
function waiter(path: string, seconds?: number): ChildProcess {
  const command = seconds === undefined ? ['flock', path, 'true'] : ['timeout', String(seconds), 'flock', path, 'true'];
  return spawn(command[0]!, command.slice(1), { stdio: 'ignore', cwd: '/' });
}

async function exitCode(child: ChildProcess): Promise<number> {
  if (child.exitCode === null) await once(child, 'exit');
  return child.exitCode ?? -1;
}

async function run(): Promise<void> {
  const dir = join(base, `r${++round}`);
  const tree = new Map<string, Buffer | string>();
  const at = (name: string): string => join(dir, name);
  is(`mkdir ${dir}`, c.mkdir(dir, 0o755), 0);
  trees.set(dir, tree);

  // ── a file's life: appended, in pages of its own, in whole blocks, over what is there
  let wanted = stamp(Buffer.alloc(200), round, 0);
  const f = must('create f', c.open(at('f'), c.O.RDWR | c.O.CREAT | c.O.EXCL, 0o644));
  is('create f again', c.open(at('f'), c.O.RDWR | c.O.CREAT | c.O.EXCL, 0o644), EEXIST);
  is('write', c.pwrite(f, wanted.subarray(0, 100), 100, 0), 100);
  is('write behind', c.pwrite(f, wanted.subarray(100), 100, 100), 100);
  const grow = (at: number, length: number, salt: number): void => {
    const bytes = stamp(Buffer.alloc(length), salt, at);
    is(`write ${length} at ${at}`, c.pwrite(f, bytes, length, at), length);
    const next = Buffer.alloc(Math.max(wanted.length, at + length));
    wanted.copy(next);
    bytes.copy(next, at);
    wanted = next;
  };
  grow(4096, 20_000, round + 1);
  for (let i = 0; i < 3; i++) grow(24_096 + i * 100_000, 100_000, round + 2);
  grow(30_000, 3000, round + 3);
  is('fsync', c.fsync(f), 0);
  grow(90_000, 10_000, round + 4);
  is('fdatasync', c.fdatasync(f), 0);
  tree.set('f', wanted);
  check(dir, tree);

  // ── length and space
  is('ftruncate', c.ftruncate(f, 50_000), 0);
  is('ftruncate longer', c.ftruncate(f, 60_000), 0);
  wanted = Buffer.concat([wanted.subarray(0, 50_000), Buffer.alloc(10_000)]);
  is('fallocate', c.fallocate(f, 0, 60_000, 5000), 0);
  wanted = Buffer.concat([wanted, Buffer.alloc(5000)]);
  is('punch', c.fallocate(f, c.FALLOC.PUNCH_HOLE | c.FALLOC.KEEP_SIZE, 8192, 8192), 0);
  wanted.fill(0, 8192, 16_384);
  const g = must('create g', c.open(at('g'), c.O.RDWR | c.O.CREAT, 0o600));
  is('copy_file_range', c.copyFileRange(f, 0, g, 0, 40_000), 40_000);
  is('close g', c.close(g), 0);
  is('close f', c.close(f), 0);
  tree.set('f', wanted);
  tree.set('g', Buffer.from(wanted.subarray(0, 40_000)));
  check(dir, tree);
  const h = must('open with O_TRUNC', c.open(at('g'), c.O.WRONLY | c.O.TRUNC | c.O.APPEND));
  for (let i = 0; i < 4; i++) is('append', c.write(h, Buffer.from(`line ${i}\n`), 7), 7);
  is('close', c.close(h), 0);
  tree.set('g', Buffer.from('line 0\nline 1\nline 2\nline 3\n'));

  // ── attributes
  is('chmod', c.chmod(at('g'), 0o640), 0);
  is('chown', c.lchown(at('g'), 12, 34), 0);
  is('utimens', c.utimens(at('g'), [1e9, 5], [1e9 + 1, 7]), 0);
  is('setxattr', c.setxattr(at('g'), 'user.a', Buffer.from('value')), 0);
  is('setxattr', c.setxattr(at('g'), 'user.b', Buffer.from(String(round))), 0);
  is('setxattr that is there', c.setxattr(at('g'), 'user.a', Buffer.from('x'), 1), EEXIST);
  is('removexattr', c.removexattr(at('g'), 'user.a'), 0);
  is('removexattr again', c.removexattr(at('g'), 'user.a'), ENODATA);
  same('listxattr', have('listxattr', c.listxattr(at('g'))), 'user.b');
  same('getxattr', Buffer.from(have('getxattr', c.getxattr(at('g'), 'user.b'))), round);
  const s = have('stat', c.stat(at('g'), c.AT.STATX_FORCE_SYNC));
  same('attributes', [s.mode.toString(8), s.uid, s.gid, s.mtime], ['100640', 12, 34, 1_000_000_001_000_000_007n]);

  // ── names
  is('link', c.link(at('g'), at('l')), 0);
  is('link again', c.link(at('g'), at('l')), EEXIST);
  same('links', have('stat', c.stat(at('l'), c.AT.STATX_FORCE_SYNC)).nlink, 2);
  is('rename over', c.rename(at('f'), at('l')), 0);
  is('rename of nothing', c.rename(at('f'), at('x')), ENOENT);
  same('links', have('stat', c.stat(at('g'), c.AT.STATX_FORCE_SYNC)).nlink, 1);
  tree.set('l', tree.get('f')!);
  tree.delete('f');
  is('rename that may not replace', c.rename(at('g'), at('l'), c.RENAME.NOREPLACE), EEXIST);
  is('exchange', c.rename(at('g'), at('l'), c.RENAME.EXCHANGE), 0);
  const other = tree.get('g')!;
  tree.set('g', tree.get('l')!);
  tree.set('l', other);
  is('symlink', c.symlink(`to ${round}`, at('s')), 0);
  same('readlink', Buffer.from(have('readlink', c.readlink(at('s')))), `to ${round}`);
  tree.set('s', '120000');
  is('mknod', c.mknod(at('p'), 0o010600, 0), 0);
  tree.set('p', '10000');
  is('mkdir d', c.mkdir(at('d'), 0o700), 0);
  is('mkdir d again', c.mkdir(at('d'), 0o700), EEXIST);
  for (let i = 0; i < 12; i++) {
    const fd = must('create', c.open(at(`d/file ${i}`), c.O.WRONLY | c.O.CREAT | c.O.EXCL));
    is('write', c.write(fd, Buffer.from(`content ${i}`), i < 10 ? 9 : 10), i < 10 ? 9 : 10);
    is('close', c.close(fd), 0);
  }
  is('rmdir of a full one', c.rmdir(at('d')), ENOTEMPTY);
  same('names', names(at('d')), Array.from({ length: 12 }, (_, i) => `file ${i}`).sort());
  for (let i = 0; i < 12; i++) {
    compare(at(`d/file ${i}`), Buffer.from(`content ${i}`));
    is('unlink', c.unlink(at(`d/file ${i}`)), 0);
    is('unlink again', c.unlink(at(`d/file ${i}`)), ENOENT);
  }
  is('rmdir', c.rmdir(at('d')), 0);
  is('rmdir again', c.rmdir(at('d')), ENOENT);
  is('mkdir e', c.mkdir(at('e'), 0o700), 0);
  tree.set('e', '40000');

  // ── without a name
  const u = must('create u', c.open(at('u'), c.O.RDWR | c.O.CREAT));
  is('write', c.pwrite(u, wanted, wanted.length, 0), wanted.length);
  is('fsync', c.fsync(u), 0);
  is('unlink u', c.unlink(at('u')), 0);
  is('write', c.pwrite(u, Buffer.from('more'), 4, 10), 4);
  const room = Buffer.alloc(wanted.length);
  is('read', c.pread(u, room, room.length, 0), room.length);
  const mixed = Buffer.from(wanted);
  mixed.write('more', 10);
  same('what is in u', room.equals(mixed), true);
  same('links of u', have('fstat', c.fstat(u, c.AT.STATX_FORCE_SYNC)).nlink, 0);
  is('close u', c.close(u), 0);
  const t = must('O_TMPFILE', c.open(dir, c.O.RDWR | c.O.TMPFILE));
  is('write', c.write(t, Buffer.from('temporary'), 9), 9);
  is('close', c.close(t), 0);

  // ── locks
  const a = must('open', c.open(at('l'), c.O.RDWR));
  const b = must('open', c.open(at('l'), c.O.RDWR));
  is('flock', c.flock(a, c.LOCK.EX), 0);
  is('flock that is taken', c.flock(b, c.LOCK.EX | c.LOCK.NB), EAGAIN);
  const loser = waiter(at('l'), 0.2);
  same('a waiter that is interrupted', await exitCode(loser), 124);
  const winner = waiter(at('l'));
  await new Promise(wake => setTimeout(wake, 60));
  same('the other waiter still waits', winner.exitCode, null);
  is('unlock', c.flock(a, c.LOCK.UN), 0);
  same('the other waiter', await exitCode(winner), 0);
  is('flock', c.flock(b, c.LOCK.EX | c.LOCK.NB), 0);
  is('close', c.close(b), 0);
  is('flock', c.flock(a, c.LOCK.EX | c.LOCK.NB), 0);
  const range = { type: c.F_WRLCK, start: 10, length: 5 };
  is('fcntl lock', Number(c.fcntlLock(a, c.F.OFD_SETLK, range)), 0);
  const o = must('open', c.open(at('l'), c.O.RDWR));
  same('holder', (have('GETLK', c.fcntlLock(o, c.F.OFD_GETLK, range)) as c.Lock).start, 10);
  is('close', c.close(a), 0);
  is('fcntl lock', Number(c.fcntlLock(o, c.F.OFD_SETLK, range)), 0);
  is('close', c.close(o), 0);

  check(dir, tree);
  const olds = [...trees.keys()];
  for (const old of olds.slice(0, Math.max(0, olds.length - KEPT))) {
    const before = trees.get(old)!;
    check(old, before);
    remove(old, before);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  calls = 0;
  try {
    if (line === 'run') await run();
    else {
      same(
        `names in ${base}`,
        names(base).filter(n => !n.startsWith('.')),
        [...trees.keys()].map(t => t.slice(base.length + 1)).sort(),
      );
      for (const [dir, tree] of trees) check(dir, tree);
    }
    console.log(`ok ${calls}`);
  } catch (error) {
    console.log(
      `fault round ${round}: ${error instanceof Wrong ? error.message : (error as Error).stack}`.replaceAll('\n', ' '),
    );
  }
}
