/**
 * Programs of the storm that others wrote: SQLite (the one inside of Node), tar, fio. And reads that an object store takes 5 s to answer: a write
 * lease (fcntl(2), F_SETLEASE) on an object of a store that is a directory makes the store's open(2) wait until the holder lets go.
 */
import { fork, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import * as c from '../support/libc.ts';
import { seeded } from '../support/random.ts';
import { firstDifference, now, opener, type Program, type Setting, stamp } from './checked.ts';

const repository = resolve(import.meta.dirname, '../../../..');

/** Runs a program to its end; says what it said when that was not success. */
async function run(program: string, args: string[], cwd: string): Promise<string | undefined> {
  const child = spawn(program, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (t: string) => {
      text += t;
    });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  return code === 0 ? undefined : `${program} ${args.join(' ')}: ${code ?? signal}: ${text.slice(-1500)}`;
}

/** A program that has nothing to do because something is missing here. */
function missing(setting: Setting, what: string): Program {
  setting.did(`${what} is missing, skipped:`, 1);
  return { rest: 500, step() {}, verify() {} };
}

/**
 * Transactions on a database beside a model of its rows. Instance 0 has one of its own with a write-ahead log (shared memory by mmap), the others
 * share one with a rollback journal, whose locks they wait for, and count in it together.
 */
export function sqlite(setting: Setting): Program {
  const { instance, fault, count } = setting;
  const random = seeded(setting.seed);
  const path = instance === 0 ? join(setting.dir, 'own.db') : join(setting.shared, 'shared.db');
  const connect = (): DatabaseSync => {
    const opened = new DatabaseSync(path, { timeout: 60_000 });
    opened.exec(`PRAGMA journal_mode = ${instance === 0 ? 'WAL' : 'DELETE'}; PRAGMA synchronous = FULL;`);
    return opened;
  };
  let db = connect();
  const table = `t${instance}`;
  db.exec(`CREATE TABLE IF NOT EXISTS total (n INTEGER); CREATE TABLE ${table} (k INTEGER PRIMARY KEY, v BLOB)`);
  db.exec('BEGIN IMMEDIATE; INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total); COMMIT');
  let rows = new Map<number, Buffer>();
  let added = 0;
  let salt = 0;
  const compare = (when: string): void => {
    const found = db.prepare(`SELECT k, v FROM ${table} ORDER BY k`).all() as { k: number; v: Uint8Array }[];
    count();
    if (found.length !== rows.size) fault('wrong', `SQLite ${when}: ${found.length} rows in place of ${rows.size}`);
    for (const { k, v } of found)
      if (!rows.get(k)?.equals(v)) fault('wrong', `SQLite ${when}: row ${k} has another value`);
  };
  return {
    rest: 20,
    step() {
      const next = new Map(rows);
      try {
        db.exec('BEGIN IMMEDIATE');
        for (let i = random.below(6); i >= 0; i--) {
          const k = random.below(300);
          if (random.chance(25)) {
            const { changes } = db.prepare(`DELETE FROM ${table} WHERE k = ?`).run(k);
            if (Number(changes) !== (next.delete(k) ? 1 : 0))
              fault('wrong', `SQLite deleted ${changes} rows of key ${k}`);
          } else {
            const value = stamp(Buffer.alloc(random.below(3000)), ++salt, 0);
            db.prepare(`INSERT INTO ${table} VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v`).run(k, value);
            next.set(k, value);
          }
        }
        db.exec('UPDATE total SET n = n + 1');
        const keep = random.chance(85);
        db.exec(keep ? 'COMMIT' : 'ROLLBACK');
        if (keep) {
          rows = next;
          added++;
        }
        setting.did('transactions');
        count(6);
        if (random.chance(5)) compare('on the way');
      } catch (error) {
        fault('failed', `SQLite: ${(error as Error).message}`);
        if (db.isTransaction) db.exec('ROLLBACK');
      }
    },
    verify() {
      db.close();
      db = connect();
      const [answer] = db.prepare('PRAGMA integrity_check').all() as { integrity_check: string }[];
      if (answer?.integrity_check !== 'ok') fault('wrong', `integrity_check: ${answer?.integrity_check}`);
      compare('at the end');
      const { n } = db.prepare('SELECT n FROM total').get() as { n: number };
      process.send?.({ kind: 'counter', how: instance === 0 ? 'SQLite, WAL' : 'SQLite', added, found: n });
      db.close();
    },
  };
}

/** Unpacks some of this repository's sources again and again; tar compares every file with its archive. */
export function untar(setting: Setting): Program {
  const { dir, fault, count } = setting;
  if (spawnSync('tar', ['--version']).error) return missing(setting, 'tar');
  const scratch = mkdtempSync(join(tmpdir(), 'storm-tar-'));
  const archive = join(scratch, 'archive.tar');
  const made = spawnSync('tar', ['cf', archive, '-C', repository, 'docs', 'packages/fuse/src']);
  if (made.status !== 0) throw new Error(`tar: ${made.stderr}`);
  const entries = spawnSync('tar', ['tf', archive], { encoding: 'utf8' }).stdout.split('\n').length - 1;
  let i = 0;
  const must = async (program: string, args: string[]): Promise<void> => {
    const wrong = await run(program, args, scratch);
    if (wrong) fault('failed', wrong);
  };
  return {
    rest: 300,
    async step() {
      const into = join(dir, `tree-${++i}`);
      mkdirSync(into);
      await must('tar', ['xf', archive, '-C', into]);
      await must('tar', ['df', archive, '-C', into]);
      // The last one stays for the verification.
      if (i > 1) await must('rm', ['-r', join(dir, `tree-${i - 1}`)]);
      count(entries * 6);
      setting.did('trees unpacked');
    },
    async verify() {
      if (i > 0) await must('tar', ['df', archive, '-C', join(dir, `tree-${i}`)]);
      rmSync(scratch, { recursive: true });
    },
  };
}

const FIO_JOBS = [
  ['--ioengine=psync', '--rw=randrw', '--bsrange=1k-64k', '--bs_unaligned=1'],
  ['--ioengine=libaio', '--rw=randwrite', '--bs=16k', '--iodepth=8', '--direct=1'],
  ['--ioengine=mmap', '--rw=randwrite', '--bs=4k'],
  ['--ioengine=pvsync2', '--rw=randrw', '--bs=32k', '--direct=1', '--fsync=8'],
  ['--ioengine=sync', '--rw=write', '--bs=128k', '--fdatasync=4'],
];

/** fio with verification: buffered, past the page cache, asynchronous, mapped, with fsync. */
export function fio(setting: Setting): Program {
  const { dir, fault, count } = setting;
  if (spawnSync('fio', ['--version']).error) return missing(setting, 'fio');
  const random = seeded(setting.seed);
  const scratch = mkdtempSync(join(tmpdir(), 'storm-fio-'));
  const job = async (kind: string[]): Promise<void> => {
    const common = ['--name=storm', `--directory=${dir}`, '--size=2m', '--nrfiles=2', '--thread', '--minimal'];
    const verify = ['--verify=crc32c', '--verify_fatal=1', '--do_verify=1', '--verify_state_save=0'];
    const seed = `--randseed=${random.below(1e9)}`;
    const wrong = await run('fio', [...common, ...kind, ...verify, seed], scratch);
    if (wrong) fault(/verify|bad magic|crc/i.test(wrong) ? 'wrong' : 'failed', wrong);
    count(300);
    setting.did('fio jobs');
  };
  return {
    rest: 300,
    step: () => job(random.pick(FIO_JOBS)),
    async verify() {
      for (const kind of setting.full ? FIO_JOBS : [random.pick(FIO_JOBS)]) await job(kind);
      rmSync(scratch, { recursive: true });
    },
  };
}

/** How long a held object waits, ms. */
const HELD_MS = 5000;

/** Whole reads of files past the page cache, whose objects the store hands out after 5 s. */
export function slowReads(setting: Setting): Program {
  const { fault, dir, objects, instance } = setting;
  const { must, expect } = opener(setting);
  const many = setting.full ? 60 : 24;
  const sizeOf = (i: number): number => 700_000 + 2 * i + instance;
  for (let i = 0; i < many; i++) {
    const fd = must('create', c.open(join(dir, `slow-${i}`), c.O.CREAT | c.O.WRONLY));
    const n = sizeOf(i);
    expect('write', c.write(fd, stamp(Buffer.alloc(n), i, 0), n), n);
    expect('fsync', c.fsync(fd), 0);
    expect('close', c.close(fd), 0);
  }
  // {slice}_{index}_{size}: the size tells which object is whose.
  const found = new Map<number, string>();
  if (objects)
    for (const name of readdirSync(objects, { recursive: true }) as string[]) {
      const size = /_0_(\d+)$/.exec(name)?.[1];
      if (size !== undefined) found.set(Number(size), join(objects, name));
    }
  const holder = fork(join(import.meta.dirname, 'holder.ts'), [String(HELD_MS)], {
    execArgv: ['--disable-warning=ExperimentalWarning'],
  });
  const ask = async (question: { hold: string } | { free: true }): Promise<string> => {
    holder.send(question);
    const [answer] = (await once(holder, 'message')) as [string];
    return answer;
  };
  const buffer = c.alignedBuffer(768 << 10);
  let at = 0;
  return {
    rest: 50,
    async step() {
      const i = at++ % many;
      const object = found.get(sizeOf(i));
      const held = object !== undefined && (await ask({ hold: object })) === 'held';
      const fd = must('open', c.open(join(dir, `slow-${i}`), c.O.RDONLY | c.O.DIRECT));
      const begin = now();
      const n = c.pread(fd, buffer, buffer.length, 0);
      const took = now() - begin;
      expect('slow read', n, sizeOf(i));
      const bad = firstDifference(buffer.subarray(0, Math.max(0, n)), stamp(Buffer.alloc(Math.max(0, n)), i, 0));
      if (bad >= 0) fault('wrong', `slow read: wrong byte at ${bad}`);
      c.close(fd);
      if (held) await ask({ free: true });
      setting.did(took > HELD_MS * 0.8 ? 'slow reads' : 'reads that were not slow');
    },
    verify() {
      holder.disconnect();
    },
  };
}
