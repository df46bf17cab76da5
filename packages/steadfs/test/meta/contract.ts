/**
 * What every MetaEngine must do, as a suite over an engine factory. Engines are held to it by a small test file of their own:
 * `contractSuite('sqlite3', fresh)`.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { afterEach, describe, it } from 'node:test';
import { type Attr, FileType } from '../../src/format/attr.ts';
import { type Ino, isTrash, ROOT, TRASH } from '../../src/format/ino.ts';
import { buildSlices, CHUNK_SIZE } from '../../src/format/slice.ts';
import { trashEntryName } from '../../src/format/trash.ts';
import type { Format } from '../../src/format/volume.ts';
import {
  type Cred,
  type DirEntry,
  type EngineOptions,
  type MetaEngine,
  type Op,
  OpKind,
  type PosixLock,
} from '../../src/meta/engine.ts';
import { cleanStaleSessions, expireTrash, hourlyJobs, type JobContext } from '../../src/meta/jobs.ts';
import { removedData } from '../../src/meta/statistics.ts';
import { randomOperations } from './model.ts';

/** One database, empty at first, and clients of it. */
export interface EngineUnderTest {
  /** Another client of the same database. */
  open(options?: Partial<EngineOptions>): Promise<MetaEngine>;
  destroy(): Promise<void>;
}

export const events = {
  sessionLost: () => undefined,
  formatChanged: () => undefined,
  volumeLost: () => undefined,
  changed: () => undefined,
  trouble: () => undefined,
};

export const defaultOptions: EngineOptions = {
  readOnly: false,
  skipDirMtime: 0,
  heartbeat: 12,
  atimeMode: 'noatime',
  retries: 10,
  events,
};

export function testFormat(changes: Partial<Format> = {}): Format {
  return {
    Name: 'contract',
    UUID: randomUUID(),
    Storage: 'file',
    Tiers: { '0': { ID: 0, StorageClass: '', Tag: '' } },
    Bucket: '/tmp/contract/',
    BlockSize: 4096,
    Compression: 'none',
    EncryptAlgo: 'aes256gcm-rsa',
    TrashDays: 0,
    MetaVersion: 1,
    MinClientVersion: '1.1.0-A',
    DirStats: true,
    EnableACL: true,
    ...changes,
  };
}

export const session = {
  version: '1.4.1+steadfs.0.1.0',
  hostName: 'host',
  mountPoint: '/mnt',
  mountTime: '2026-11-21T00:00:00Z',
  processId: 1,
};

export function user(uid: number, gid = uid, groups: number[] = [gid]): Cred {
  return { uid, gid, pid: 1, groups: () => groups, checkPermission: true };
}

export const root: Cred = { uid: 0, gid: 0, pid: 1, groups: () => [0], checkPermission: false };
export const name = (s: string): Buffer => Buffer.from(s);
const closed = () => false;
const EXCL = 0o200;
const TRUNC = 0o1000;
const RDWR = 2;

/** A formatted volume with one mounted client and short forms of its operations. */
export class Client {
  readonly engine: MetaEngine;
  readonly db: EngineUnderTest;
  #seq = 0;

  constructor(engine: MetaEngine, db: EngineUnderTest) {
    this.engine = engine;
    this.db = db;
  }

  /** Requests in flight at once are in slots of their own, as the server's are. */
  op(slot = 100 + (this.#seq % 32)): Op {
    return { kind: OpKind.request, slot, seq: ++this.#seq };
  }

  mkdir(parent: Ino, n: string, mode = 0o755, cred = root) {
    return this.engine.mknod(this.op(), cred, parent, name(n), { type: FileType.directory, mode, umask: 0, rdev: 0 });
  }

  create(parent: Ino, n: string, flags = RDWR, mode = 0o644, cred = root) {
    return this.engine.create(this.op(), cred, parent, name(n), mode, 0, flags);
  }

  unlink(parent: Ino, n: string, isOpen: (ino: Ino) => boolean = closed, cred = root) {
    return this.engine.unlink(this.op(), cred, parent, name(n), isOpen);
  }

  rmdir(parent: Ino, n: string, cred = root) {
    return this.engine.rmdir(this.op(), cred, parent, name(n));
  }

  rename(parent: Ino, n: string, newParent: Ino, newName: string, flags = 0, cred = root) {
    return this.engine.rename(this.op(), cred, parent, name(n), newParent, name(newName), flags, closed);
  }

  link(ino: Ino, parent: Ino, n: string, cred = root) {
    return this.engine.link(this.op(), cred, ino, parent, name(n));
  }

  async lookup(parent: Ino, n: string, cred = root) {
    return await this.engine.lookup(cred, parent, name(n));
  }

  async getattr(ino: Ino): Promise<Attr> {
    return await this.engine.getattr(ino);
  }

  /** Commits one slice of `len` bytes at `pos` of chunk `index`. */
  async write(ino: Ino, pos: number, len: number, index = 0, size = len, off = 0) {
    const id = await this.engine.newSliceIds(1);
    const op = { kind: OpKind.slice, slot: 0, seq: ++this.#seq };
    const end = index * CHUNK_SIZE + pos + len;
    return await this.engine.write(
      op,
      ino,
      index,
      [{ pos, id, size, off, len }],
      end,
      { sec: 1000, nsec: 5 },
      { sec: 1000, nsec: 5 },
      false,
    );
  }

  async list(ino: Ino, plus = true, limit = 100): Promise<DirEntry[]> {
    const state: Uint8Array[] = [];
    const stream = this.engine.dirStream(ino, memoryState(state));
    const out: DirEntry[] = [];
    for (let cookie = 0; ; cookie = out.at(-1)!.cookie) {
      const page = await stream.read(cookie, limit, plus);
      if (page.length === 0) break;
      out.push(...page);
    }
    stream.close();
    return out;
  }

  async names(ino: Ino): Promise<string[]> {
    return (await this.list(ino, false)).map(e => Buffer.from(e.name).toString('latin1')).sort();
  }
}

export function memoryState(items: Uint8Array[]) {
  return {
    load: () => items,
    append: (item: Uint8Array) => {
      items.push(Uint8Array.from(item));
    },
    clear: () => {
      items.length = 0;
    },
  };
}

const code =
  (c: string) =>
  (e: unknown): true => {
    assert.equal((e as { code?: string }).code, c, e instanceof Error ? (e.stack ?? e.message) : String(e));
    return true;
  };

/**
 * An engine that serves from what the server pushes may get a push some microseconds after the writer got its reply. Between processes nobody can
 * tell; two clients in one process can.
 */
const pushed = (): Promise<void> => new Promise(wake => setTimeout(wake, 20));

/** The call fails with this errno. */
export async function fails(what: Promise<unknown> | (() => unknown), errno: string): Promise<void> {
  await assert.rejects(async () => (typeof what === 'function' ? await what() : await what), code(errno));
}

/** `short`: without the comparison with a model, and with smaller directories. */
export function contractSuite(label: string, fresh: () => Promise<EngineUnderTest>, { short = false } = {}): void {
  const open: EngineUnderTest[] = [];
  const engines: MetaEngine[] = [];

  async function mount(changes: Partial<Format> = {}, options: Partial<EngineOptions> = {}): Promise<Client> {
    const db = await fresh();
    open.push(db);
    const engine = await db.open(options);
    engines.push(engine);
    await engine.init(testFormat(changes), false);
    await engine.load();
    await engine.newSession(session);
    return new Client(engine, db);
  }

  async function second(c: Client, options: Partial<EngineOptions> = {}): Promise<Client> {
    const engine = await c.db.open(options);
    engines.push(engine);
    await engine.load();
    await engine.newSession(session);
    return new Client(engine, c.db);
  }

  describe(`metadata engine ${label}`, { concurrency: 1 }, () => {
    afterEach(async () => {
      for (const e of engines.splice(0)) await e.close();
      for (const db of open.splice(0)) await db.destroy();
    });

    it('has no volume, then one, then none', async () => {
      const db = await fresh();
      open.push(db);
      const e = await db.open();
      engines.push(e);
      assert.equal(await e.load(), undefined);
      const format = testFormat({ SecretKey: 'secret <&>', TrashDays: 3 });
      await e.init(format, false);
      const other = await db.open();
      engines.push(other);
      const loaded = await other.load();
      assert.equal(loaded?.UUID, format.UUID);
      assert.equal(loaded?.SecretKey, 'secret <&>');
      await fails(other.init({ ...format, BlockSize: 1024 }, false), 'EINVAL');
      await other.init({ ...format, TrashDays: 7 }, false);
      assert.equal((await e.load())?.TrashDays, 7);
      assert.equal((await e.getattr(ROOT)).nlink, 2);
      assert.equal((await e.getattr(ROOT)).mode, 0o777);
      assert.equal((await e.getattr(TRASH)).mode, 0o555);
      await e.reset();
      assert.equal(await e.load(), undefined);
    });

    it('makes and finds nodes of every type', async () => {
      const c = await mount();
      const { ino: d } = await c.mkdir(ROOT, 'd');
      assert.equal((await c.getattr(ROOT)).nlink, 3);
      for (const type of [1, 4, 5, 6, 7] as FileType[]) {
        const made = await c.engine.mknod(c.op(), root, d, name(`n${type}`), {
          type,
          mode: 0o6640,
          umask: 0o022,
          rdev: 0x10305,
        });
        const found = await c.lookup(d, `n${type}`);
        assert.deepEqual(found, made);
        assert.equal(found.attr.mode, 0o6640);
        assert.equal(found.attr.rdev, type === 5 || type === 6 ? 0x10305 : 0);
        assert.equal(found.attr.nlink, 1);
        assert.equal(found.attr.parent, d);
      }
      const target = Buffer.from([0x66, 0xff, 0xfe, 0x2f]);
      const link = await c.engine.mknod(c.op(), root, d, name('s'), {
        type: 3,
        mode: 0o777,
        umask: 0,
        rdev: 0,
        target,
      });
      assert.equal(link.attr.length, 4);
      assert.deepEqual(Buffer.from(await c.engine.readlink(link.ino)), target);
      await fails(() => c.engine.readlink(d), 'EINVAL');
      await fails(() => c.lookup(d, 'absent'), 'ENOENT');
      await fails(() => c.lookup(link.ino, 'x'), 'ENOTDIR');
      await fails(c.mkdir(d, 'n1'), 'EEXIST');
      await fails(c.mkdir(link.ino, 'x'), 'ENOTDIR');
      await fails(c.mkdir(4711, 'x'), 'ENOENT');
      await fails(c.mkdir(d, '.'), 'EEXIST');
      await fails(c.mkdir(d, ''), 'EINVAL');
      await fails(c.mkdir(d, 'x'.repeat(256)), 'ENAMETOOLONG');
      await fails(() => c.lookup(d, 'x'.repeat(256)), 'ENAMETOOLONG');
      await c.mkdir(d, 'x'.repeat(255));
      const odd = Buffer.from([0xff, 0x00 + 1, 0x0a, 0x80]);
      const { ino } = await c.engine.create(c.op(), root, d, odd, 0o600, 0, RDWR);
      assert.equal((await c.engine.lookup(root, d, odd)).ino, ino);
    });

    it('creates with O_EXCL and O_TRUNC', async () => {
      const c = await mount();
      const a = await c.create(ROOT, 'f', RDWR | EXCL);
      assert.equal(a.created, true);
      await fails(c.create(ROOT, 'f', RDWR | EXCL), 'EEXIST');
      await c.write(a.ino, 0, 5000);
      const b = await c.create(ROOT, 'f', RDWR);
      assert.deepEqual([b.created, b.ino, b.attr.length], [false, a.ino, 5000]);
      const t = await c.create(ROOT, 'f', RDWR | TRUNC);
      assert.deepEqual([t.created, t.attr.length], [false, 0]);
      await c.mkdir(ROOT, 'd');
      await fails(c.create(ROOT, 'd', RDWR), 'EISDIR');
    });

    it('links and unlinks', async () => {
      const c = await mount();
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const { ino } = await c.create(ROOT, 'a');
      assert.equal((await c.link(ino, d, 'b')).attr.nlink, 2);
      assert.deepEqual(
        await c.engine.parents(ino),
        new Map([
          [ROOT, 1],
          [d, 1],
        ]),
      );
      await fails(c.link(ino, d, 'b'), 'EEXIST');
      await fails(c.link(d, ROOT, 'x'), 'EPERM');
      const gone = await c.unlink(ROOT, 'a');
      assert.deepEqual([gone.state, gone.attr.nlink], ['kept', 1]);
      assert.deepEqual(await c.engine.parents(ino), new Map([[d, 1]]));
      await fails(c.unlink(ROOT, 'a'), 'ENOENT');
      await fails(c.unlink(ROOT, 'd'), 'EISDIR');
      const last = await c.unlink(d, 'b');
      assert.equal(last.attr.nlink, 0);
      assert.ok(last.state === 'gone' || last.state === 'deleted');
      await fails(() => c.getattr(ino), 'ENOENT');
    });

    it('removes directories', async () => {
      const c = await mount();
      const { ino: d } = await c.mkdir(ROOT, 'd');
      await c.mkdir(d, 'e');
      await fails(c.rmdir(ROOT, 'd'), 'ENOTEMPTY');
      await c.rmdir(d, 'e');
      assert.equal((await c.getattr(d)).nlink, 2);
      await c.create(ROOT, 'f');
      await fails(c.rmdir(ROOT, 'f'), 'ENOTDIR');
      await fails(c.rmdir(ROOT, 'x'), 'ENOENT');
      await c.rmdir(ROOT, 'd');
      assert.equal((await c.getattr(ROOT)).nlink, 2);
      await fails(() => c.getattr(d), 'ENOENT');
    });

    it('renames', async () => {
      const c = await mount();
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const { ino: e } = await c.mkdir(d, 'e');
      const { ino: f } = await c.create(ROOT, 'f');
      const { ino: g } = await c.create(d, 'g');
      await fails(c.rename(ROOT, 'f', d, 'g', 1), 'EEXIST');
      const r = await c.rename(ROOT, 'f', d, 'g');
      assert.equal(r.moved?.ino, f);
      assert.deepEqual([r.replaced?.ino, r.replaced?.attr.nlink], [g, 0]);
      assert.equal((await c.lookup(d, 'g')).ino, f);
      assert.equal((await c.getattr(f)).parent, d);
      await fails(c.rename(ROOT, 'd', e, 'x'), 'EINVAL');
      await fails(c.rename(ROOT, 'd', d, 'x'), 'EINVAL');
      await fails(c.rename(d, 'g', d, 'e'), 'EISDIR');
      await fails(c.rename(d, 'e', d, 'g'), 'ENOTDIR');
      await fails(c.rename(d, 'absent', d, 'g'), 'ENOENT');
      // A directory changes its parent.
      await c.rename(d, 'e', ROOT, 'e2');
      assert.deepEqual([(await c.getattr(d)).nlink, (await c.getattr(ROOT)).nlink], [2, 4]);
      assert.equal((await c.getattr(e)).parent, ROOT);
      // Exchange of a directory and a file.
      const x = await c.rename(ROOT, 'e2', d, 'g', 2);
      assert.deepEqual([x.moved?.ino, x.exchanged?.ino], [e, f]);
      assert.deepEqual([(await c.lookup(d, 'g')).ino, (await c.lookup(ROOT, 'e2')).ino], [e, f]);
      assert.deepEqual([(await c.getattr(d)).nlink, (await c.getattr(ROOT)).nlink], [3, 3]);
      await fails(c.rename(ROOT, 'e2', d, 'absent', 2), 'ENOENT');
      // Onto another link of the same inode nothing happens.
      await c.link(f, ROOT, 'f2');
      assert.deepEqual(await c.rename(ROOT, 'e2', ROOT, 'f2'), {});
      assert.deepEqual((await c.names(ROOT)).sort(), ['d', 'e2', 'f2']);
      // Over an empty directory, and over one that is not.
      await c.mkdir(ROOT, 'p');
      const { ino: q } = await c.mkdir(ROOT, 'q');
      await c.create(q, 'inner');
      await fails(c.rename(ROOT, 'p', ROOT, 'q'), 'ENOTEMPTY');
      await c.rename(ROOT, 'q', ROOT, 'p');
      assert.equal((await c.lookup(ROOT, 'p')).ino, q);
      assert.equal((await c.getattr(ROOT)).nlink, 4);
    });

    it('keeps unlinked open files until release', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      await c.write(ino, 0, 100);
      const r = await c.unlink(ROOT, 'f', i => i === ino);
      assert.deepEqual([r.state, r.attr.nlink], ['sustained', 0]);
      assert.equal((await c.getattr(ino)).nlink, 0);
      await c.write(ino, 100, 100);
      assert.equal((await c.getattr(ino)).length, 200);
      await fails(
        c.link(ino, ROOT, 'again').then(a => c.getattr(a.ino + 1e6)),
        'ENOENT',
      );
      await c.unlink(ROOT, 'again');
      const t = await c.engine.tmpfile(c.op(), root, ROOT, 0o600, 0);
      await c.write(t.ino, 0, 50);
      assert.equal(await c.engine.release(c.op(), t.ino), 50);
      await fails(() => c.getattr(t.ino), 'ENOENT');
      const held = (await c.engine.deletedFiles(Date.now() / 1000 + 10, 10)).map(f => f.ino);
      assert.ok(held.includes(t.ino));
    });

    it('gives O_TMPFILE files a name', async () => {
      const c = await mount();
      const t = await c.engine.tmpfile(c.op(), root, ROOT, 0o600, 0);
      assert.equal(t.attr.nlink, 0);
      assert.equal((await c.link(t.ino, ROOT, 'named')).attr.nlink, 1);
      await c.engine.release(c.op(), t.ino);
      assert.equal((await c.lookup(ROOT, 'named')).ino, t.ino);
    });

    it('checks permissions as Linux does', async () => {
      const c = await mount();
      const u = user(1000);
      const other = user(2000);
      const { ino: d } = await c.mkdir(ROOT, 'd', 0o755);
      await fails(c.create(d, 'f', RDWR, 0o644, u), 'EACCES');
      await c.engine.setattr(c.op(), root, d, { mode: 0o777 });
      const { ino, attr } = await c.create(d, 'f', RDWR, 0o644, u);
      assert.deepEqual([attr.uid, attr.gid], [1000, 1000]);
      await fails(() => c.engine.open(c.op(), other, ino, RDWR), 'EACCES');
      await c.engine.open(c.op(), other, ino, 0);
      await fails(c.engine.setattr(c.op(), other, ino, { mode: 0o777 }), 'EPERM');
      await fails(c.engine.setattr(c.op(), other, ino, { size: 0 }), 'EACCES');
      await fails(c.engine.setattr(c.op(), u, ino, { uid: 2000 }), 'EPERM');
      await fails(c.engine.setattr(c.op(), u, ino, { gid: 2000 }), 'EPERM');
      await c.engine.setattr(c.op(), user(1000, 1000, [1000, 5]), ino, { gid: 5 });
      await fails(c.engine.setattr(c.op(), other, ino, { atime: 'now', mtime: 'now' }), 'EACCES');
      await fails(c.engine.setattr(c.op(), other, ino, { atime: { sec: 1, nsec: 2 } }), 'EPERM');
      // Sticky directory.
      await c.engine.setattr(c.op(), root, d, { mode: 0o1777 });
      await fails(c.unlink(d, 'f', closed, other), 'EPERM');
      await fails(c.rename(d, 'f', d, 'g', 0, other), 'EPERM');
      await c.unlink(d, 'f', closed, u);
      // Search permission.
      await c.engine.setattr(c.op(), root, d, { mode: 0o700 });
      await fails(() => c.lookup(d, 'f', u), 'EACCES');
      await fails(() => c.engine.access(u, d, 1), 'EACCES');
      await c.engine.access(root, d, 7);
    });

    it('keeps the rules of setuid, setgid and times', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f', RDWR, 0o6755);
      const set = (cred: Cred, s: Parameters<MetaEngine['setattr']>[3]) => c.engine.setattr(c.op(), cred, ino, s);
      assert.equal((await set(root, { uid: 1000 })).mode, 0o755);
      await set(root, { mode: 0o6744 });
      assert.equal((await set(root, { gid: 1000 })).mode, 0o2744);
      await set(root, { mode: 0o6777 });
      assert.equal((await set(root, { killSuidgid: true, size: 10 })).mode, 0o777);
      assert.equal((await set(user(1000, 1000), { mode: 0o2777 })).mode, 0o2777);
      assert.equal((await set(user(1000, 7, [7]), { mode: 0o2777 })).mode, 0o777);
      const t = await set(root, { atime: { sec: -86401, nsec: 999999999 }, mtime: { sec: 7258118400, nsec: 1 } });
      assert.deepEqual([t.atime, t.atimensec, t.mtime, t.mtimensec], [-86401, 999999999, 7258118400, 1]);
      const far = await set(root, { mtime: { sec: 2 ** 35, nsec: 123456789 } });
      const again = await (await second(c)).getattr(ino);
      assert.deepEqual(again, { ...far });
      assert.deepEqual([again.atime, again.atimensec], [-86401, 999999999]);
      const before = await c.getattr(ino);
      await new Promise(resolve => setTimeout(resolve, 2));
      const now = await set(root, { uid: 1000 });
      assert.ok(now.ctime > before.ctime || now.ctimensec > before.ctimensec, 'ctime advances');
      // A setgid directory.
      const { ino: d } = await c.mkdir(ROOT, 'd');
      await c.engine.setattr(c.op(), root, d, { mode: 0o2777, gid: 4321 });
      await c.engine.setattr(c.op(), root, d, { mode: 0o2777 });
      assert.deepEqual(
        await c.create(d, 'f', RDWR, 0o644, user(1000)).then(r => [r.attr.gid, r.attr.mode]),
        [4321, 0o644],
      );
      assert.deepEqual(await c.mkdir(d, 'e', 0o755, user(1000)).then(r => [r.attr.gid, r.attr.mode]), [4321, 0o2755]);
    });

    it('respects immutable and append-only', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      await c.engine.setattr(c.op(), root, ino, { flags: 1 });
      await fails(() => c.engine.open(c.op(), root, ino, RDWR), 'EPERM');
      await fails(c.unlink(ROOT, 'f'), 'EPERM');
      await fails(c.rename(ROOT, 'f', ROOT, 'g'), 'EPERM');
      await fails(c.link(ino, ROOT, 'g'), 'EPERM');
      await fails(c.engine.setattr(c.op(), root, ino, { size: 5 }), 'EPERM');
      await fails(c.engine.fallocate(c.op(), root, ino, 0, 5, 0), 'EPERM');
      await c.engine.setattr(c.op(), root, ino, { flags: 2 });
      await fails(() => c.engine.open(c.op(), root, ino, RDWR), 'EPERM');
      await c.engine.open(c.op(), root, ino, RDWR | 0o2000);
      await fails(() => c.engine.open(c.op(), root, ino, RDWR | 0o2000 | TRUNC), 'EPERM');
      await c.engine.setattr(c.op(), root, ino, { flags: 32 });
      const { ino: d } = await c.mkdir(ROOT, 'd');
      await c.engine.setattr(c.op(), root, d, { flags: 32 });
      assert.equal((await c.create(d, 'child')).attr.flags, 32);
      await c.engine.setattr(c.op(), root, d, { flags: 1 });
      await fails(c.create(d, 'x'), 'EPERM');
      await fails(c.unlink(d, 'child'), 'EPERM');
    });

    it('a slice commit stores mtime as given, and ctime unless a later one is there', async () => {
      const c = await mount();
      const { ino, attr } = await c.create(ROOT, 'f');
      const write = async (mtime: number, ctime: number) => {
        const id = await c.engine.newSliceIds(1);
        const op = { kind: OpKind.slice, slot: 9, seq: id };
        const rec = [{ pos: 0, id, size: 10, off: 0, len: 10 }];
        const at = (sec: number) => ({ sec, nsec: 7 });
        const w = await c.engine.write(op, ino, 0, rec, 10, at(mtime), at(ctime), false);
        assert.deepEqual(await c.getattr(ino), w.attr);
        return [w.attr.mtime - attr.ctime, w.attr.mtimensec, w.attr.ctime - attr.ctime, w.attr.ctimensec];
      };
      const made = attr.ctime;
      assert.deepEqual(await write(made + 10, made + 10), [10, 7, 10, 7]);
      assert.deepEqual(await write(made + 10, made + 10), [10, 7, 10, 7]);
      // Earlier than a change of attributes, then with an mtime set by hand.
      assert.deepEqual(await write(made + 12, made + 9), [12, 7, 10, 7]);
      assert.deepEqual(await write(made - 500, made + 11), [-500, 7, 11, 7]);
      assert.deepEqual(await write(made + 900, made + 11), [900, 7, 11, 7]);
    });

    it('writes, truncates, punches and copies', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      const w = await c.write(ino, 1000, 5000);
      assert.deepEqual([w.attr.length, w.attr.mtime, w.attr.mtimensec, w.records], [6000, 1000, 5, 1]);
      assert.equal((await c.write(ino, 0, 100)).records, 2);
      await c.write(ino, 0, 10, 1);
      assert.equal((await c.getattr(ino)).length, CHUNK_SIZE + 10);
      assert.deepEqual(await c.engine.listChunks(ino, 0, 100, 10), [0, 1]);
      await c.engine.setattr(c.op(), root, ino, { size: 3000 });
      await c.engine.setattr(c.op(), root, ino, { size: 5000 });
      const pieces = buildSlices(await c.engine.readChunk(ino, 0));
      const at = (pos: number) => pieces.find(p => p.pos <= pos && pos < p.pos + p.len)?.id ?? 0;
      assert.ok(at(50) > 0 && at(500) === 0 && at(1500) > 0 && at(3500) === 0 && at(4500) === 0);
      const { ino: out } = await c.create(ROOT, 'out');
      const copy = await c.engine.copyFileRange(c.op(), root, ino, 500, out, CHUNK_SIZE - 100, 2000);
      assert.deepEqual([copy.copied, copy.attr.length], [2000, CHUNK_SIZE + 1900]);
      const last = buildSlices(await c.engine.readChunk(out, 1));
      assert.ok(last.some(p => p.id > 0 && p.pos <= 1000 && p.pos + p.len > 1000));
      await c.engine.fallocate(c.op(), root, ino, 1000, 1000, 3);
      assert.equal(
        buildSlices(await c.engine.readChunk(ino, 0)).find(p => p.pos <= 1500 && 1500 < p.pos + p.len)?.id,
        0,
      );
      assert.equal((await c.engine.fallocate(c.op(), root, ino, 0, 9000, 0)).length, 9000);
      assert.equal((await c.engine.fallocate(c.op(), root, ino, 0, 19000, 1)).length, 9000);
      await fails(() => c.engine.fallocate(c.op(), root, ino, 0, 0, 0), 'EINVAL');
      await fails(() => c.engine.fallocate(c.op(), root, ino, 0, 10, 8), 'EOPNOTSUPP');
      await fails(() => c.engine.fallocate(c.op(), root, ino, 0, 10, 2), 'EINVAL');
      await fails(c.engine.copyFileRange(c.op(), root, ino, 0, ino, 10, 100), 'EINVAL');
      await fails(c.write(ROOT, 0, 10), 'EPERM');
      await fails(c.write(98765, 0, 10), 'ENOENT');
      // A length near the limit of the format's files that we take.
      const max = Number.MAX_SAFE_INTEGER;
      assert.equal((await c.engine.setattr(c.op(), root, out, { size: max })).length, max);
      await fails(c.engine.setattr(c.op(), root, out, { size: max + 1 }), 'EFBIG');
      await c.engine.setattr(c.op(), root, out, { size: 0 });
    });

    it('counts references of slices and deletes dead data', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      await c.write(ino, 0, 4096);
      const { ino: out } = await c.create(ROOT, 'out');
      await c.engine.copyFileRange(c.op(), root, ino, 0, out, 0, 4096);
      const [slice] = await c.engine.readChunk(ino, 0);
      const r = await c.unlink(ROOT, 'f');
      assert.equal(r.state, 'deleted');
      assert.deepEqual(await c.engine.deleteFileData(c.op(), ino, 4096), { dead: [], done: true });
      assert.deepEqual(await c.engine.deadSlices(10), []);
      await c.unlink(ROOT, 'out');
      const dead = [{ id: slice!.id, size: 4096 }];
      assert.deepEqual(await c.engine.deleteFileData(c.op(), out, 4096), { dead, done: true });
      assert.deepEqual(await c.engine.deadSlices(10), dead);
      await c.engine.slicesDeleted(dead);
      assert.deepEqual(await c.engine.deadSlices(10), []);
      assert.deepEqual(await c.engine.deletedFiles(Date.now() / 1000 + 10, 10), []);
    });

    it('compacts', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      for (let i = 0; i < 4; i++) await c.write(ino, i * 100, 200);
      const original = await c.engine.readChunk(ino, 0);
      await c.write(ino, 0, 10);
      const id = await c.engine.newSliceIds(1);
      const replacement = { pos: 100, id, size: 400, off: 0, len: 400 };
      assert.equal(await c.engine.compact(c.op(), ino, 0, original, 1, replacement), true);
      const after = await c.engine.readChunk(ino, 0);
      assert.equal(after.length, 3);
      assert.deepEqual(after[0], original[0]);
      assert.deepEqual(after[1], replacement);
      assert.deepEqual(
        (await c.engine.deadSlices(10)).map(s => s.id).sort(),
        original
          .slice(1)
          .map(s => s.id)
          .sort(),
      );
      const lost = await c.engine.newSliceIds(1);
      assert.equal(await c.engine.compact(c.op(), ino, 0, original, 0, { ...replacement, id: lost }), false);
      assert.ok((await c.engine.deadSlices(10)).some(s => s.id === lost));
    });

    it('keeps what is committed beside a compaction, and copies what it read', async () => {
      const c = await mount();
      const other = await c.db.open();
      await other.load();
      for (let round = 0; round < 12; round++) {
        const { ino } = await c.create(ROOT, `f${round}`);
        const { ino: out } = await c.create(ROOT, `out${round}`);
        for (let i = 0; i < 4; i++) await c.write(ino, i * 100, 100);
        const original = await c.engine.readChunk(ino, 0);
        const id = await c.engine.newSliceIds(1);
        const [compacted] = await Promise.all([
          other.compact(c.op(), ino, 0, original, 0, { pos: 0, id, size: 400, off: 0, len: 400 }),
          ...[4, 5, 6, 7].map(async i => {
            const record = { pos: i * 100, id: await c.engine.newSliceIds(1), size: 100, off: 0, len: 100 };
            const time = { sec: 1_700_000_000 + round, nsec: i };
            await c.engine.write(c.op(), ino, 0, [record], i * 100 + 100, time, time, false);
          }),
          c.engine.copyFileRange(c.op(), root, ino, 0, out, 0, 400),
        ]);
        const records = await c.engine.readChunk(ino, 0);
        assert.equal(compacted, true);
        assert.deepEqual(
          records.map(r => r.pos).sort((a, b) => a - b),
          [0, 400, 500, 600, 700],
        );
        // Whatever the copy refers to is not listed as dead.
        const copied = await c.engine.readChunk(out, 0);
        const dead = new Set((await c.engine.deadSlices(1000)).map(s => s.id));
        assert.deepEqual(
          copied.filter(r => dead.has(r.id)),
          [],
        );
      }
      await other.close();
    });

    it('delays the old slices of a compaction where there is trash', async () => {
      const c = await mount({ TrashDays: 1 });
      const { ino } = await c.create(ROOT, 'f');
      for (let i = 0; i < 3; i++) await c.write(ino, i * 100, 200);
      const original = await c.engine.readChunk(ino, 0);
      const id = await c.engine.newSliceIds(1);
      assert.ok(await c.engine.compact(c.op(), ino, 0, original, 0, { pos: 0, id, size: 400, off: 0, len: 400 }));
      assert.deepEqual(await c.engine.deadSlices(10), []);
      const future = Math.floor(Date.now() / 1000) + 10;
      assert.deepEqual((await c.engine.expireDelayedSlices(c.op(), 10, 10)).dead, []);
      const gone = await c.engine.expireDelayedSlices(c.op(), future, 10);
      assert.deepEqual(gone.dead.map(s => s.id).sort(), original.map(s => s.id).sort());
      assert.equal(gone.more, false);
    });

    it('counts what the trash keeps and what is still to be deleted', async () => {
      const c = await mount({ TrashDays: 1 });
      const nothing = { count: 0, bytes: 0 };
      assert.deepEqual(await removedData(c.engine), {
        trashFiles: nothing,
        pendingFiles: nothing,
        trashSlices: nothing,
        pendingSlices: nothing,
      });
      const { ino } = await c.create(ROOT, 'f');
      for (let i = 0; i < 3; i++) await c.write(ino, i * 100, 200);
      const original = await c.engine.readChunk(ino, 0);
      const id = await c.engine.newSliceIds(1);
      assert.ok(await c.engine.compact(c.op(), ino, 0, original, 0, { pos: 0, id, size: 400, off: 0, len: 400 }));
      for (const n of ['a', 'b']) {
        const made = await c.create(ROOT, n);
        await c.write(made.ino, 0, 1000);
        await c.unlink(ROOT, n);
      }
      await c.mkdir(ROOT, 'd');
      await c.engine.rmdir(c.op(), root, ROOT, name('d'));
      // Out of the trash: its data is to be deleted.
      const gone = await c.create(ROOT, 'gone');
      await c.write(gone.ino, 0, 50);
      await c.engine.unlink(c.op(), root, ROOT, name('gone'), () => false, true);
      const expected = {
        trashFiles: { count: 3, bytes: 2000 },
        pendingFiles: { count: 1, bytes: 50 },
        trashSlices: { count: 3, bytes: 600 },
        pendingSlices: nothing,
      };
      assert.deepEqual(await removedData(c.engine), expected);
      await c.engine.deleteFileData(c.op(), gone.ino, 50);
      assert.deepEqual(await removedData(c.engine), {
        ...expected,
        pendingFiles: nothing,
        pendingSlices: { count: 1, bytes: 50 },
      });
    });

    it('has extended attributes', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f');
      const set = (n: string, v: string | Buffer, mode = 0) =>
        c.engine.setxattr(c.op(), root, ino, Buffer.from(n), typeof v === 'string' ? Buffer.from(v) : v, mode);
      await fails(() => c.engine.getxattr(ino, name('user.a')), 'ENODATA');
      const before = await c.getattr(ino);
      await new Promise(resolve => setTimeout(resolve, 2));
      const after = await set('user.a', 'one');
      assert.ok(after.ctime > before.ctime || after.ctimensec > before.ctimensec);
      await set('user.b', '');
      await fails(set('user.a', 'x', 1), 'EEXIST');
      await fails(set('user.c', 'x', 2), 'ENODATA');
      await set('user.a', 'two', 2);
      assert.equal(Buffer.from(await c.engine.getxattr(ino, name('user.a'))).toString(), 'two');
      assert.equal((await c.engine.getxattr(ino, name('user.b'))).length, 0);
      const big = Buffer.alloc(60000, 7);
      await set('user.big', big);
      assert.deepEqual(Buffer.from(await c.engine.getxattr(ino, name('user.big'))), big);
      assert.deepEqual((await c.engine.listxattr(ino)).map(n => Buffer.from(n).toString()).sort(), [
        'user.a',
        'user.b',
        'user.big',
      ]);
      await fails(set('x'.repeat(256), ''), 'ERANGE');
      await fails(set('user.big', Buffer.alloc(65537)), 'ERANGE');
      await c.engine.removexattr(c.op(), root, ino, name('user.a'));
      await fails(c.engine.removexattr(c.op(), root, ino, name('user.a')), 'ENODATA');
      await fails(c.engine.setxattr(c.op(), root, 99999, name('user.a'), name('x'), 0), 'ENOENT');
    });

    it('has POSIX ACLs', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f', RDWR, 0o640);
      const rule = {
        owner: 6,
        group: 4,
        mask: 6,
        other: 0,
        users: [{ id: 1001, perm: 6 }],
        groups: [{ id: 2002, perm: 4 }],
      };
      assert.equal(await c.engine.getAcl(ino, 'access'), undefined);
      const a = await c.engine.setAcl(c.op(), root, ino, 'access', rule);
      assert.equal(a.mode, 0o660);
      assert.deepEqual(await c.engine.getAcl(ino, 'access'), rule);
      await c.engine.access(user(1001), ino, 6);
      await c.engine.access(user(5, 2002), ino, 4);
      await fails(() => c.engine.access(user(5, 2002), ino, 2), 'EACCES');
      await fails(() => c.engine.access(user(5), ino, 4), 'EACCES');
      const chmodded = await c.engine.setattr(c.op(), root, ino, { mode: 0o604 });
      assert.equal(chmodded.mode, 0o604);
      assert.deepEqual(await c.engine.getAcl(ino, 'access'), { ...rule, mask: 0, other: 4 });
      await fails(c.engine.setAcl(c.op(), user(9), ino, 'access', undefined), 'EPERM');
      const without = await c.engine.setAcl(c.op(), root, ino, 'access', undefined);
      assert.equal(await c.engine.getAcl(ino, 'access'), undefined);
      const again = await c.engine.setAcl(c.op(), root, ino, 'access', undefined);
      assert.deepEqual(
        [again.ctime, again.ctimensec],
        [without.ctime, without.ctimensec],
        'nothing to remove, nothing changed',
      );
      // Inheritance.
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const inherited = { owner: 7, group: 5, mask: 7, other: 0, users: [{ id: 1003, perm: 7 }], groups: [] };
      await c.engine.setAcl(c.op(), root, d, 'default', inherited);
      const f = await c.engine.create(c.op(), root, d, name('f'), 0o666, 0o077, RDWR);
      assert.equal(f.attr.mode, 0o660);
      assert.deepEqual(await c.engine.getAcl(f.ino, 'access'), { ...inherited, owner: 6, mask: 6 });
      const e = await c.mkdir(d, 'e');
      assert.deepEqual(await c.engine.getAcl(e.ino, 'default'), inherited);
      assert.deepEqual(
        (await c.engine.listxattr(e.ino)).map(n => Buffer.from(n).toString()),
        ['system.posix_acl_access', 'system.posix_acl_default'],
      );
      const plain = { owner: 6, group: 4, mask: 0xffff, other: 4, users: [], groups: [] };
      assert.equal((await c.engine.setAcl(c.op(), root, f.ino, 'access', plain)).accessAcl, 0);
      await fails(c.engine.setAcl(c.op(), root, f.ino, 'default', inherited), 'EACCES');
      const off = await mount({ EnableACL: false });
      await fails(off.engine.setAcl(off.op(), root, ROOT, 'default', inherited), 'EOPNOTSUPP');
    });

    it('moves what is removed to the trash', async () => {
      const c = await mount({ TrashDays: 1 });
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const { ino } = await c.create(d, 'f');
      await c.write(ino, 0, 10);
      const r = await c.unlink(d, 'f');
      assert.deepEqual([r.state, r.attr.nlink], ['trash', 0]);
      const hours = await c.list(TRASH);
      assert.equal(hours.length, 1);
      const hour = hours[0]!.ino;
      assert.ok(isTrash(hour) && hour > TRASH);
      const entry = trashEntryName(d, ino, name('f'));
      assert.deepEqual(await c.names(hour), [entry.toString('latin1')]);
      assert.equal((await c.getattr(ino)).parent, hour);
      await fails(() => c.engine.open(c.op(), root, ino, RDWR), 'EPERM');
      await fails(c.engine.setattr(c.op(), root, ino, { mode: 0 }), 'EPERM');
      assert.equal((await c.engine.setattr(c.op(), root, ino, { mode: 0o600, inUse: true })).mode, 0o600);
      await fails(c.create(hour, 'x'), 'EPERM');
      await fails(c.mkdir(TRASH, 'x'), 'EPERM');
      await fails(c.rename(ROOT, 'd', hour, 'x'), 'EPERM');
      await fails(c.rmdir(TRASH, Buffer.from(hours[0]!.name).toString()), 'EPERM');
      await fails(c.engine.unlink(c.op(), { ...user(1000), checkPermission: false }, hour, entry, closed), 'EPERM');
      // A hard link in the trash does not count in the shown number.
      const { ino: h } = await c.create(d, 'a');
      await c.link(h, d, 'b');
      assert.equal((await c.unlink(d, 'b')).attr.nlink, 1);
      assert.equal((await c.getattr(h)).nlink, 1);
      assert.equal((await c.lookup(d, 'a')).attr.nlink, 1);
      assert.equal((await c.link(h, d, 'b')).attr.nlink, 2);
      // Restore.
      const back = await c.engine.rename(c.op(), root, hour, entry, d, name('f'), 33, closed);
      assert.deepEqual([back.moved?.attr.nlink, back.moved?.attr.parent], [1, d]);
      // Replaced by a rename; a directory.
      await c.create(d, 'new');
      assert.equal((await c.rename(d, 'new', d, 'f')).replaced?.state, 'trash');
      await c.mkdir(d, 'sub');
      const gone = await c.rmdir(d, 'sub');
      assert.equal(gone.state, 'trash');
      assert.equal((await c.getattr(gone.ino)).type, FileType.directory);
      await fails(c.create(gone.ino, 'x'), 'ENOENT');
      // For good.
      const e2 = trashEntryName(d, ino, name('f'));
      const last = await c.engine.unlink(c.op(), root, hour, e2, closed);
      assert.equal(last.state, 'deleted');
      const skip = await c.create(d, 'skip');
      assert.equal((await c.engine.unlink(c.op(), root, d, name('skip'), closed, true)).state, 'gone');
      await fails(() => c.getattr(skip.ino), 'ENOENT');
    });

    it('expires the trash and deletes data', async () => {
      const c = await mount({ TrashDays: 1 });
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const { ino } = await c.create(d, 'f');
      await c.write(ino, 0, 10);
      await c.unlink(d, 'f');
      await c.mkdir(d, 'e');
      await c.rmdir(d, 'e');
      const { ino: a } = await c.create(d, 'a');
      await c.link(a, ROOT, 'b');
      await c.unlink(d, 'a');
      const objects: number[] = [];
      const context: JobContext = {
        engine: c.engine,
        trashDays: () => 1,
        op: lane => ({ kind: OpKind.job, slot: lane, seq: c.op().seq }),
        deletesObjects: true,
        deleteSlices: async dead => {
          await c.engine.durable();
          objects.push(...dead.map(s => s.id));
          await c.engine.slicesDeleted(dead);
          return dead.length;
        },
        stopping: () => false,
        log: message => assert.fail(message),
      };
      await hourlyJobs(context);
      assert.equal((await c.list(TRASH)).length, 1);
      await expireTrash(context, Date.now() / 1000 + 3600, () => false);
      assert.deepEqual(await c.list(TRASH), []);
      assert.equal(objects.length, 1);
      assert.deepEqual(await c.engine.deletedFiles(Date.now() / 1000 + 10, 10), []);
      assert.deepEqual(await c.engine.deadSlices(10), []);
      assert.equal((await c.getattr(a)).nlink, 1);
      await cleanStaleSessions(context, 12);
      await c.engine.flush();
      await c.engine.heartbeat();
      assert.equal((await c.engine.statfs(ROOT)).usedInodes, 2);
    });

    it('lists directories', async () => {
      const c = await mount();
      const { ino: d } = await c.mkdir(ROOT, 'd');
      assert.deepEqual(await c.list(d), []);
      const entries = short ? 500 : 5000;
      const want = new Set<string>();
      const jobs: Promise<unknown>[] = [];
      for (let i = 0; i < entries; i++) {
        want.add(`entry-${i}`);
        jobs.push(c.engine.create(c.op(i % 8), root, d, name(`entry-${i}`), 0o644, 0, RDWR));
        if (i % 8 === 7) await Promise.all(jobs.splice(0));
      }
      await Promise.all(jobs);
      const all = await c.list(d, true, 77);
      assert.equal(all.length, entries);
      assert.deepEqual(new Set(all.map(e => Buffer.from(e.name).toString())), want);
      assert.ok(all.every(e => e.attr?.type === FileType.file && e.cookie > 0 && e.cookie < 2 ** 53));
      // Changes while reading, and another process that goes on with the state alone.
      const items: Uint8Array[] = [];
      const first = c.engine.dirStream(d, memoryState(items));
      const got = new Map<string, number>();
      let cookie = 0;
      let turn = 0;
      for (let stream = first; ; turn++) {
        const page = await stream.read(cookie, 50, false);
        if (page.length === 0) break;
        for (const e of page) {
          const n = Buffer.from(e.name).toString();
          got.set(n, (got.get(n) ?? 0) + 1);
        }
        cookie = page.at(-1)!.cookie;
        if (turn % 10 === 3) stream = (turn % 20 === 3 ? c : c).engine.dirStream(d, memoryState(items));
        if (turn % 9 === 0) {
          await c.unlink(d, `entry-${turn}`);
          want.delete(`entry-${turn}`);
          await c.create(d, `new-${turn}`);
        }
      }
      for (const n of want) assert.equal(got.get(n), 1, n);
      for (const [n, k] of got) assert.equal(k, 1, n);
    });

    it('carries an operation out once', async () => {
      const c = await mount();
      const op = { kind: 0, slot: 3, seq: 5 };
      const a = await c.engine.mknod(op, root, ROOT, name('once'), { type: 1, mode: 0o600, umask: 0, rdev: 0 });
      const b = await c.engine.mknod(op, root, ROOT, name('once'), { type: 1, mode: 0o600, umask: 0, rdev: 0 });
      assert.deepEqual(b, a);
      const un = { kind: 0, slot: 3, seq: 6 };
      const x = await c.unlink(ROOT, 'once').then(
        () => undefined,
        e => e,
      );
      assert.equal(x, undefined);
      await c.create(ROOT, 'once');
      const r1 = await c.engine.unlink(un, root, ROOT, name('once'), closed);
      await c.create(ROOT, 'once');
      const r2 = await c.engine.unlink(un, root, ROOT, name('once'), closed);
      assert.deepEqual(r2, r1);
      assert.ok((await c.lookup(ROOT, 'once')).ino > 0, 'the second file is still there');
      // A late twin of an older request.
      await fails(c.engine.mknod(op, root, ROOT, name('late'), { type: 1, mode: 0o600, umask: 0, rdev: 0 }), 'EIO');
      await fails(() => c.lookup(ROOT, 'late'), 'ENOENT');
      // A failed check leaves no record.
      const dup = { kind: 0, slot: 3, seq: 9 };
      await fails(c.engine.mknod(dup, root, ROOT, name('once'), { type: 1, mode: 0, umask: 0, rdev: 0 }), 'EEXIST');
      await c.unlink(ROOT, 'once');
      await c.engine.mknod(dup, root, ROOT, name('once'), { type: 1, mode: 0, umask: 0, rdev: 0 });
      // Slice commits, links, renames.
      const { ino } = await c.create(ROOT, 'f');
      const id = await c.engine.newSliceIds(1);
      const s = { kind: OpKind.slice, slot: 1, seq: 1 };
      const rec = [{ pos: 0, id, size: 10, off: 0, len: 10 }];
      const w1 = await c.engine.write(s, ino, 0, rec, 10, { sec: 1, nsec: 1 }, { sec: 1, nsec: 1 }, false);
      const w2 = await c.engine.write(s, ino, 0, rec, 10, { sec: 1, nsec: 1 }, { sec: 1, nsec: 1 }, false);
      assert.deepEqual(w2, w1);
      assert.equal((await c.engine.readChunk(ino, 0)).length, 1);
      const l = { kind: 0, slot: 4, seq: 1 };
      await c.engine.link(l, root, ino, ROOT, name('f2'));
      assert.equal((await c.engine.link(l, root, ino, ROOT, name('f2'))).attr.nlink, 2);
      assert.equal((await c.getattr(ino)).nlink, 2);
      const m = { kind: 0, slot: 4, seq: 2 };
      const m1 = await c.engine.rename(m, root, ROOT, name('f2'), ROOT, name('once'), 0, closed);
      assert.deepEqual(await c.engine.rename(m, root, ROOT, name('f2'), ROOT, name('once'), 0, closed), m1);
    });

    it('adopts a session and fences the old process off', async () => {
      const c = await mount();
      const old = await c.db.open();
      engines.push(old);
      await old.load();
      const id = await old.newSession(session);
      const op = { kind: 0, slot: 0, seq: 1 };
      const made = await old.mknod(op, root, ROOT, name('a'), { type: 1, mode: 0o600, umask: 0, rdev: 0 });
      const next = await c.db.open();
      engines.push(next);
      await next.load();
      const adopted = await next.adoptSession(id, session);
      assert.ok(adopted.epoch > id.epoch && adopted.sid === id.sid);
      await fails(old.mknod({ ...op, seq: 2 }, root, ROOT, name('b'), { type: 1, mode: 0, umask: 0, rdev: 0 }), 'EIO');
      await fails(() => c.lookup(ROOT, 'b'), 'ENOENT');
      const again = await next.mknod(op, root, ROOT, name('a'), { type: 1, mode: 0o600, umask: 0, rdev: 0 });
      assert.deepEqual(again, made);
      await next.mknod({ ...op, seq: 2 }, root, ROOT, name('b'), { type: 1, mode: 0, umask: 0, rdev: 0 });
      await next.flush();
      // What the old process still does to its session touches nothing.
      await old.closeSession();
      await old.close();
      engines.splice(engines.indexOf(old), 1);
      assert.equal((await c.engine.listSessions(false)).length, 2);
      const { ino: d } = await next.mknod({ ...op, seq: 3 }, root, ROOT, name('d'), {
        type: 2,
        mode: 0o700,
        umask: 0,
        rdev: 0,
      });
      await next.mknod({ ...op, seq: 4 }, root, d, name('x'), { type: 1, mode: 0o700, umask: 0, rdev: 0 });
      assert.equal((await next.dirStat(d)).inodes, 1);
      const third = await c.db.open();
      engines.push(third);
      await third.load();
      await fails(third.adoptSession({ ...id, incarnation: '0'.repeat(32) }, session), 'ESTALE');
      await fails(third.adoptSession({ ...id, sid: 4711 }, session), 'ESTALE');
      // Cleaned by a peer: mutations are refused, and nothing can be adopted.
      await c.engine.cleanSession(id.sid);
      // The usage that its records held was counted, once.
      assert.equal((await c.engine.dirStat(d)).inodes, 1);
      await c.engine.heartbeat();
      assert.equal((await c.engine.statfs(ROOT)).usedInodes, 4);
      await fails(next.mknod({ ...op, seq: 5 }, root, ROOT, name('c'), { type: 1, mode: 0, umask: 0, rdev: 0 }), 'EIO');
      await fails(third.adoptSession(adopted, session), 'ESTALE');
    });

    it('cleans up after sessions', async () => {
      const c = await mount();
      const d = await second(c);
      const sids = (await c.engine.listSessions(false)).map(s => s.sid);
      assert.equal(sids.length, 2);
      const { ino } = await d.create(ROOT, 'f');
      await d.write(ino, 0, 10);
      const { ino: g } = await d.create(ROOT, 'g');
      await d.unlink(ROOT, 'f', () => true);
      await d.engine.flock(d.op(), g, 7n, 'W');
      await d.engine.setlk(d.op(), g, 8n, { type: 1, start: 0n, end: 10n, pid: 5 });
      await fails(c.engine.flock(c.op(), g, 7n, 'R'), 'EAGAIN');
      const detail = (await c.engine.listSessions(true)).find(s => s.sid === Math.max(...sids))!;
      assert.deepEqual(detail.sustained, [ino]);
      assert.deepEqual(detail.flocks, [{ ino: g, owner: 7n, type: 'W' }]);
      assert.equal(detail.plocks?.[0]?.records[0]?.end, 10n);
      assert.equal(detail.mountPoint, '/mnt');
      assert.deepEqual(await c.engine.staleSessions(10), []);
      await d.engine.closeSession();
      assert.equal((await c.engine.listSessions(false)).length, 1);
      await c.engine.flock(c.op(), g, 7n, 'R');
      await fails(() => c.getattr(ino), 'ENOENT');
      assert.deepEqual(await c.engine.deletedFiles(Date.now() / 1000 + 10, 10), [{ ino, length: 10 }]);
      await c.engine.heartbeat();
    });

    it('has flock and POSIX locks', async () => {
      const c = await mount();
      const d = await second(c);
      const { ino } = await c.create(ROOT, 'f');
      const lk = (type: number, start: bigint, end: bigint): PosixLock => ({ type, start, end, pid: 9 });
      await c.engine.flock(c.op(), ino, 1n, 'R');
      await d.engine.flock(d.op(), ino, 2n, 'R');
      await fails(c.engine.flock(c.op(), ino, 1n, 'W'), 'EAGAIN');
      await d.engine.flock(d.op(), ino, 2n, 'U');
      await c.engine.flock(c.op(), ino, 1n, 'W');
      await fails(d.engine.flock(d.op(), ino, 2n, 'R'), 'EAGAIN');
      const big = 0xfedcba9876543210n;
      await c.engine.setlk(c.op(), ino, big, lk(1, 100n, 199n));
      await c.engine.setlk(c.op(), ino, big, lk(2, 140n, 149n));
      await fails(d.engine.setlk(d.op(), ino, 5n, lk(0, 199n, 300n)), 'EAGAIN');
      await d.engine.setlk(d.op(), ino, 5n, lk(1, 140n, 149n));
      await d.engine.setlk(d.op(), ino, 5n, lk(1, 200n, 0x7fffffffffffffffn));
      const found = await d.engine.getlk(ino, 5n, lk(1, 0n, 0x7fffffffffffffffn));
      assert.deepEqual([found.type, found.start, found.end, found.pid], [1, 100n, 139n, 0]);
      assert.equal((await c.engine.getlk(ino, 3n, lk(0, 100n, 100n))).pid, 9);
      assert.equal((await c.engine.getlk(ino, big, lk(1, 100n, 110n))).type, 2);
      const holders = await c.engine.lockHolders(ino, 3n, lk(1, 0n, 0x7fffffffffffffffn));
      assert.equal(holders.length, 2);
      assert.ok(holders.some(h => h.owner === big));
      const woken = c.engine.waitForUnlock(ino, 5000);
      await c.engine.setlk(c.op(), ino, big, lk(2, 0n, 0x7fffffffffffffffn));
      await woken;
      await fails(c.engine.flock(c.op(), 98765, 1n, 'R'), 'ENOENT');
    });

    it('keeps usage, statistics and quotas', async () => {
      const c = await mount({ UserGroupQuota: true });
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const { ino } = await c.create(d, 'f', RDWR, 0o644, user(0));
      await c.write(ino, 0, 5000);
      await c.link(ino, ROOT, 'l');
      assert.deepEqual(await c.engine.dirStat(d), { length: 5000, space: 8192, inodes: 1 });
      await c.engine.flush();
      assert.deepEqual(await c.engine.dirStat(d), { length: 5000, space: 8192, inodes: 1 });
      assert.deepEqual(await c.engine.dirStat(ROOT), { length: 5000, space: 8192 + 4096, inodes: 2 });
      const other = await second(c);
      await other.engine.heartbeat();
      assert.equal((await other.engine.statfs(ROOT)).usedInodes, 2);
      const uq = await other.engine.getQuota('user', 0);
      assert.deepEqual([uq?.usedSpace, uq?.usedInodes], [8192 + 4096, 2]);
      // Directory quota.
      await c.engine.setQuota('dir', d, { maxSpace: 20000, maxInodes: 3 });
      assert.deepEqual(await c.engine.getQuota('dir', d), {
        maxSpace: 20000,
        maxInodes: 3,
        usedSpace: 8192,
        usedInodes: 1,
      });
      const { ino: e } = await c.mkdir(d, 'e');
      await c.create(e, 'g');
      await fails(c.create(e, 'h'), 'EDQUOT');
      await fails(c.link(ino, e, 'h'), 'EDQUOT');
      await fails(c.write(ino, 0, 100000), 'EDQUOT');
      await fails(c.engine.setattr(c.op(), root, ino, { size: 30000 }), 'EDQUOT');
      await fails(c.rename(ROOT, 'l', e, 'l'), 'EDQUOT');
      await c.rename(d, 'e', ROOT, 'e');
      await c.create(e, 'h');
      // Usage is written once a second.
      await c.engine.flush();
      assert.equal((await c.engine.getQuota('dir', d))?.usedInodes, 1);
      assert.equal((await c.engine.statfs(d)).usedInodes, 1);
      await c.engine.deleteQuota('dir', d);
      await c.create(d, 'free');
      // User and group.
      await c.engine.setQuota('user', 1000, { maxInodes: 1 });
      await c.engine.setattr(c.op(), root, d, { mode: 0o777 });
      await c.create(d, 'u1', RDWR, 0o644, user(1000));
      await fails(c.create(d, 'u2', RDWR, 0o644, user(1000)), 'EDQUOT');
      const u1 = await c.lookup(d, 'u1');
      await c.engine.setattr(c.op(), root, u1.ino, { uid: 5 });
      await c.create(d, 'u2', RDWR, 0o644, user(1000));
      assert.equal((await c.engine.listQuotas()).filter(q => q.kind === 'user').length, 3);
    });

    it('has a capacity', async () => {
      const c = await mount({ Capacity: 64 << 10, Inodes: 3 });
      const { ino } = await c.create(ROOT, 'a');
      await fails(c.write(ino, 0, 100000), 'ENOSPC');
      await c.write(ino, 0, 40000);
      await c.create(ROOT, 'b');
      await c.create(ROOT, 'c');
      await fails(c.create(ROOT, 'd'), 'ENOSPC');
      await c.unlink(ROOT, 'c');
      await c.create(ROOT, 'd');
      const s = await c.engine.statfs(ROOT);
      assert.deepEqual([s.totalSpace, s.usedInodes, s.availInodes], [64 << 10, 3, 0]);
      assert.equal(s.availSpace, (64 << 10) - 40960 - 8192);
    });

    it('clones', async () => {
      const c = await mount();
      const { ino } = await c.create(ROOT, 'f', RDWR, 0o640);
      await c.write(ino, 0, 5000);
      await c.engine.setxattr(c.op(), root, ino, name('user.x'), name('v'), 0);
      const copy = await c.engine
        .cloneNode(c.op(), user(1000), ROOT + 0 === 1 ? ino : 0, ROOT, name('g'), { preserve: false, umask: 0o22 })
        .catch(e => e);
      assert.equal(copy.code, 'EACCES');
      const g = await c.engine.cloneNode(c.op(), root, ino, ROOT, name('g'), { preserve: true, umask: 0o22 });
      assert.deepEqual(await c.engine.readChunk(g.ino, 0), await c.engine.readChunk(ino, 0));
      assert.equal(Buffer.from(await c.engine.getxattr(g.ino, name('user.x'))).toString(), 'v');
      await c.unlink(ROOT, 'f');
      assert.deepEqual((await c.engine.deleteFileData(c.op(), ino, 5000)).dead, []);
      const { ino: d } = await c.mkdir(ROOT, 'd');
      const detached = await c.engine.cloneNode(c.op(), root, d, ROOT, undefined, { preserve: false, umask: 0 });
      await c.engine.cloneNode(c.op(), root, g.ino, detached.ino, name('inner'), { preserve: false, umask: 0 });
      assert.deepEqual(await c.names(ROOT), ['d', 'g']);
      await c.engine.attachClone(c.op(), root, detached.ino, ROOT, name('copy'));
      assert.deepEqual(await c.names(ROOT), ['copy', 'd', 'g']);
      assert.equal((await c.getattr(ROOT)).nlink, 4);
      assert.deepEqual(await c.names(detached.ino), ['inner']);
    });

    it('lets one client have a duty', async () => {
      const c = await mount();
      const d = await second(c);
      assert.equal(await c.engine.claimDuty('lastCleanupTest', 3600), true);
      assert.equal(await d.engine.claimDuty('lastCleanupTest', 3600), false);
    });

    it('sees what another client does', async () => {
      const c = await mount();
      const d = await second(c);
      await fails(() => d.lookup(ROOT, 'f'), 'ENOENT');
      const { ino } = await c.create(ROOT, 'f');
      await pushed();
      assert.equal((await d.lookup(ROOT, 'f')).ino, ino);
      await c.engine.setattr(c.op(), root, ino, { mode: 0o700 });
      await pushed();
      assert.equal((await d.getattr(ino)).mode, 0o700);
      await d.unlink(ROOT, 'f');
      await pushed();
      await fails(() => c.lookup(ROOT, 'f'), 'ENOENT');
      // Both at once.
      const both = await Promise.allSettled(
        Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? c : d).create(ROOT, `race-${i >> 1}`, RDWR | EXCL)),
      );
      assert.equal(both.filter(r => r.status === 'fulfilled').length, 10);
      for (const r of both) if (r.status === 'rejected') code('EEXIST')(r.reason);
      assert.equal((await c.names(ROOT)).length, 10);
    });

    it('counts the links that another client left', async () => {
      const c = await mount({ TrashDays: 1 });
      const d = await second(c);
      const { ino } = await c.create(ROOT, 'f');
      for (const n of ['l', 'm', 'n']) await c.link(ino, ROOT, n);
      // One slot: what is known of its record decides how a change is made.
      const chmod = async (mode: number): Promise<number> =>
        (await c.engine.setattr(c.op(200), root, ino, { mode })).nlink;
      for (const mode of [0o600, 0o601, 0o602]) assert.equal(await chmod(mode), 4);
      await d.unlink(ROOT, 'l');
      await pushed();
      assert.equal((await c.getattr(ino)).nlink, 3);
      assert.equal(await chmod(0o604), 3);
      await d.unlink(ROOT, 'm');
      assert.equal(await chmod(0o605), 2);
    });

    it('refuses to change anything on a read-only mount', async () => {
      const c = await mount();
      await c.create(ROOT, 'f');
      const e = await c.db.open({ readOnly: true });
      engines.push(e);
      await e.load();
      const r = new Client(e, c.db);
      assert.equal((await r.lookup(ROOT, 'f')).attr.nlink, 1);
      await fails(r.create(ROOT, 'g'), 'EROFS');
      await fails(() => r.engine.setattr(r.op(), root, ROOT, { mode: 0 }), 'EROFS');
    });

    it('is durable when asked', async () => {
      const c = await mount();
      await c.create(ROOT, 'f');
      await Promise.all([c.engine.sync(), c.engine.durable(), c.engine.sync()]);
    });

    for (const trash of short ? [] : [0, 1]) {
      it(`does what a simple model does, with trash ${trash === 0 ? 'off' : 'on'}`, async () => {
        const c = await mount({ TrashDays: trash });
        await randomOperations(c, trash > 0);
      });
    }
  });
}
