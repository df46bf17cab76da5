/**
 * What people feel, one workload per process: `node workload.ts NAME DIR SCRATCH SCALE` prints one JSON object of figures. SCALE is 1 for the full
 * size; everything large is multiplied by it. Figures named …_s, …_ms are better small, …/s better large.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import * as c from '../packages/steadfs/test/support/libc.ts';
import { seeded } from '../packages/steadfs/test/support/random.ts';

const REPOSITORY = resolve(import.meta.dirname, '..');
const PACKAGES = ['packages/fuse/package.json', 'packages/steadfs/package.json', 'packages/steadfs/bin/steadfs'];

type Figures = Record<string, number>;
const now = (): number => Number(process.hrtime.bigint()) / 1e9;
const sleep = (seconds: number): void => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, seconds * 1000);
};

/** Cold: page cache and dentries dropped (root), attributes expired. */
function cool(): void {
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '3');
  } catch {
    // not root: only what expires
  }
  sleep(1.2);
}

function timed(command: string, args: string[], cwd?: string): number {
  const begin = now();
  const r = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: { ...process.env, LC_ALL: 'C', GIT_CONFIG_GLOBAL: '/dev/null' },
  });
  if (r.status !== 0)
    throw new Error(`${command} ${args.join(' ')}: exit ${r.status ?? r.signal}\n${r.stderr?.slice(-500)}`);
  return now() - begin;
}

function check(what: string, r: number): number {
  if (r < 0) throw new Error(`${what}: ${c.resultName(r)}`);
  return r;
}

/** A source tree of small files, made once per scratch folder. */
function sourceTree(scratch: string, files: number): string {
  const tree = join(scratch, 'tree');
  if (existsSync(tree)) return tree;
  const random = seeded(5);
  for (let i = 0; i < files; i++) {
    const folder = join(tree, `package${i % 97}`, `lib${i % 3}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `file${i}.js`), `// ${i}\n`.repeat(random.below(random.chance(10) ? 12_000 : 600) + 1));
  }
  const git = (...args: string[]): void => {
    timed('git', ['-c', 'user.name=a', '-c', 'user.email=a@example.org', ...args], tree);
  };
  git('init', '-q');
  git('add', '-A');
  git('commit', '-q', '-m', 'all');
  timed('tar', ['cf', join(scratch, 'tree.tar'), '-C', scratch, 'tree']);
  return tree;
}

/** p-th of sorted samples. */
const at = (samples: number[], share: number): number =>
  samples.sort((a, b) => a - b)[Math.min(samples.length - 1, Math.floor(samples.length * share))] ?? 0;

function fill(path: string, bytes: number): void {
  const fd = check('open', c.open(path, c.O.CREAT | c.O.TRUNC | c.O.WRONLY));
  const block = Buffer.alloc(4 << 20);
  const words = new Uint32Array(block.buffer, block.byteOffset, block.length / 4);
  let x = 1;
  for (let i = 0; i < words.length; i++) words[i] = x = (Math.imul(x, 1103515245) + 12345) >>> 0;
  for (let done = 0; done < bytes; done += block.length) {
    words[0] = done / block.length;
    check('write', c.write(fd, block, Math.min(block.length, bytes - done)));
  }
  check('fsync', c.fsync(fd));
  check('close', c.close(fd));
}

const WORKLOADS: Record<string, (dir: string, scratch: string, scale: number) => Figures | Promise<Figures>> = {
  untar(dir, scratch, scale) {
    sourceTree(scratch, Math.round(8000 * scale));
    const untar = timed('tar', ['xf', join(scratch, 'tree.tar'), '-C', dir]);
    cool();
    const status = timed('git', ['status', '--porcelain'], join(dir, 'tree'));
    const warm = timed('git', ['status', '--porcelain'], join(dir, 'tree'));
    cool();
    const find = timed('find', [join(dir, 'tree'), '-type', 'f', '-size', '+1k']);
    cool();
    const grep = timed('sh', ['-c', `grep -r -c nothing-like-it '${join(dir, 'tree')}' >/dev/null; test $? -le 1`]);
    const copy = timed('cp', ['-r', join(dir, 'tree'), join(dir, 'copy')]);
    const remove = timed('rm', ['-rf', join(dir, 'copy')]);
    return {
      untar_s: untar,
      'git status, cold_s': status,
      'git status, warm_s': warm,
      'find -size, cold_s': find,
      'grep -r, cold_s': grep,
      'cp -r_s': copy,
      'rm -rf_s': remove,
    };
  },
  npm(dir, scratch) {
    // This repository's own lock. The first run, elsewhere, fills npm's cache; nothing is asked of a registry afterwards.
    const install = (app: string, ...flags: string[]): number => {
      for (const file of ['package.json', 'package-lock.json', ...PACKAGES]) {
        mkdirSync(join(app, file, '..'), { recursive: true });
        copyFileSync(join(REPOSITORY, file), join(app, file));
      }
      return timed('npm', ['ci', '--no-audit', '--no-fund', '--ignore-scripts', ...flags], app);
    };
    install(join(scratch, 'app'), '--prefer-offline');
    rmSync(join(scratch, 'app'), { recursive: true });
    return { 'npm ci_s': install(join(dir, 'app'), '--offline') };
  },
  ls(dir, _scratch, scale) {
    const entries = Math.round(100_000 * scale);
    const folder = join(dir, 'many');
    mkdirSync(folder);
    for (let i = 0; i < entries; i++)
      check('close', c.close(check('create', c.open(`${folder}/entry-${i}`, c.O.CREAT | c.O.WRONLY))));
    cool();
    const cold = timed('ls', ['-l', folder]);
    const warm = timed('ls', ['-l', folder]);
    cool();
    const names = timed('ls', ['-U', folder]);
    return { [`ls -l of ${entries}, cold_s`]: cold, [`ls -l of ${entries}, warm_s`]: warm, 'ls -U, cold_s': names };
  },
  checkpoint(dir, _scratch, scale) {
    const bytes = Math.max(64 << 20, Math.round((10 * scale * 2 ** 30) / 2 ** 22) * 2 ** 22);
    const begin = now();
    fill(join(dir, 'checkpoint.tmp'), bytes);
    renameSync(join(dir, 'checkpoint.tmp'), join(dir, 'checkpoint'));
    const d = check('open', c.open(dir, c.O.RDONLY | c.O.DIRECTORY));
    check('fsync', c.fsync(d));
    const seconds = now() - begin;
    rmSync(join(dir, 'checkpoint'));
    return { [`checkpoint of ${bytes / 2 ** 20} MiB_s`]: seconds };
  },
  randomReads(dir, _scratch, scale) {
    // Larger than --buffer-size (300 MiB) and read past the page cache.
    const bytes = Math.max(640 << 20, Math.round((4 * scale * 2 ** 30) / 2 ** 22) * 2 ** 22);
    const path = join(dir, 'set');
    fill(path, bytes);
    cool();
    const fd = check('open', c.open(path, c.O.RDONLY | c.O.DIRECT));
    const buffer = c.alignedBuffer(128 << 10);
    const random = seeded(11);
    const samples: number[] = [];
    const begin = now();
    while (now() - begin < 5) {
      const one = now();
      check('pread', c.pread(fd, buffer, buffer.length, random.below(bytes / buffer.length) * buffer.length));
      samples.push((now() - one) * 1000);
    }
    const seconds = now() - begin;
    c.close(fd);
    rmSync(path);
    return { 'random 128 KiB reads/s': samples.length / seconds, 'random 128 KiB read, p99_ms': at(samples, 0.99) };
  },
  async besideWriter(dir) {
    const writer: ChildProcess = spawn(process.execPath, [import.meta.filename, 'stream', dir, dir, '1'], {
      stdio: 'ignore',
    });
    sleep(1);
    const samples: number[] = [];
    const path = join(dir, 'small');
    const begin = now();
    for (let i = 0; now() - begin < 6; i++) {
      const one = now();
      if (i % 3 === 0) check('close', c.close(check('create', c.open(path, c.O.CREAT | c.O.EXCL | c.O.WRONLY))));
      else if (i % 3 === 1) {
        const fd = check('open', c.open(path, c.O.RDONLY));
        const s = c.fstat(fd, c.AT.STATX_FORCE_SYNC);
        if (typeof s === 'number') check('stat', s);
        check('close', c.close(fd));
      } else check('unlink', c.unlink(path));
      samples.push((now() - one) * 1000);
    }
    const seconds = now() - begin;
    writer.kill('SIGKILL');
    await new Promise(done => writer.once('exit', done));
    rmSync(join(dir, 'stream'), { force: true });
    return { 'small operations beside a writer/s': samples.length / seconds, 'the same, p99_ms': at(samples, 0.99) };
  },
  /** The writer of besideWriter: never ends. */
  stream(dir) {
    const fd = check('open', c.open(join(dir, 'stream'), c.O.CREAT | c.O.WRONLY));
    const block = Buffer.alloc(1 << 20, 7);
    for (let i = 0; ; i++) check('pwrite', c.pwrite(fd, block, block.length, (i % 1024) * block.length));
  },
  rewrite(dir, _scratch, scale) {
    // Four times --buffer-size at full scale: 8 KiB read, changed and written back at random places, fsync at the end.
    const bytes = Math.max(128 << 20, Math.round((1200 * scale * 2 ** 20) / 2 ** 22) * 2 ** 22);
    const path = join(dir, 'rewritten');
    fill(path, bytes);
    cool();
    const fd = check('open', c.open(path, c.O.RDWR));
    const buffer = Buffer.alloc(8192);
    const random = seeded(13);
    let n = 0;
    const begin = now();
    for (; now() - begin < 8; n++) {
      const place = random.below(bytes / 8192) * 8192;
      check('pread', c.pread(fd, buffer, 8192, place));
      buffer[5] = n & 255;
      check('pwrite', c.pwrite(fd, buffer, 8192, place));
    }
    check('fsync', c.fsync(fd));
    const seconds = now() - begin;
    c.close(fd);
    rmSync(path);
    return { [`8 KiB rewrites in ${bytes >> 20} MiB/s`]: n / seconds };
  },
  /** Metadata only, for CPU per operation. */
  operations(dir) {
    const n = 3000;
    for (let i = 0; i < n; i++)
      check('close', c.close(check('create', c.open(`${dir}/o${i}`, c.O.CREAT | c.O.WRONLY))));
    for (let i = 0; i < n; i++) {
      const s = c.lstat(`${dir}/o${i}`, c.AT.STATX_FORCE_SYNC);
      if (typeof s === 'number') check('stat', s);
    }
    for (let i = 0; i < n; i++) check('rename', c.rename(`${dir}/o${i}`, `${dir}/r${i}`));
    for (let i = 0; i < n; i++) check('unlink', c.unlink(`${dir}/r${i}`));
    return { operations: 4 * n, left: readdirSync(dir).length };
  },
};

const [name = '', dir = '', scratch = '', scale = '1'] = process.argv.slice(2);
const workload = Object.hasOwn(WORKLOADS, name) ? WORKLOADS[name] : undefined;
if (!workload) throw new Error(`no workload "${name}": ${Object.keys(WORKLOADS).join(', ')}`);
mkdirSync(dir, { recursive: true });
console.log(JSON.stringify(await workload(dir, scratch, Number(scale))));
