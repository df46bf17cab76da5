/** What is particular to Redis: round trips, pushes, lost connections, other servers' forms, large numbers, the Go client's records. */
import assert from 'node:assert/strict';
import { createServer, type Server, type Socket, connect as tcp } from 'node:net';
import { after, describe, it } from 'node:test';
import { FileType } from '../../src/format/attr.ts';
import { type Ino, inoToString, isTrash, ROOT, TRASH } from '../../src/format/ino.ts';
import { CHUNK_SIZE } from '../../src/format/slice.ts';
import type { DirEntry, EngineOptions, MetaEngine } from '../../src/meta/engine.ts';
import { Link } from '../../src/meta/redis/link.ts';
import type { Reply } from '../../src/meta/redis/resp.ts';
import { parseDuration, parseRedisUrl } from '../../src/meta/redis/url.ts';
import { openEngine } from '../../src/meta/registry.ts';
import {
  type RedisServer,
  startRedis,
  startRedisCluster,
  startRedisSentinel,
  startRedisTls,
} from '../servers/redis.ts';
import { Client, defaultOptions, events, fails, memoryState, name, root, session, testFormat } from './contract.ts';
import { checkVolume, randomOperations } from './redis-check.ts';

const started = await startRedis(['--maxmemory-policy', 'noeviction']);
const skip = 'missing' in started ? started.missing : false;
const server = started as RedisServer;
const engines: MetaEngine[] = [];
after(async () => {
  for (const e of engines) await e.close();
  if (!skip) await server.stop();
});

let db = 0;
function freshUrl(): string {
  db = (db + 1) % 16;
  server.cli('-n', String(db), 'flushdb');
  return server.url(db);
}

async function openAt(url: string, options: Partial<EngineOptions> = {}): Promise<MetaEngine> {
  const e = await openEngine(url, { ...defaultOptions, ...options });
  engines.push(e);
  return e;
}

async function mountAt(url: string, options: Partial<EngineOptions> = {}, format = {}): Promise<Client> {
  const e = await openAt(url, options);
  if ((await e.load()) === undefined) await e.init(testFormat(format), false);
  await e.newSession(session);
  return new Client(e, { open: o => openAt(url, o), destroy: async () => undefined });
}

/** A client that only sends commands. */
async function raw(url: string): Promise<(...args: (string | Buffer)[]) => Promise<Reply>> {
  const link = new Link(parseRedisUrl(url, {}), 10, { up() {}, down() {}, push() {}, trouble() {} });
  await link.open();
  engines.push({ close: async () => link.close() } as unknown as MetaEngine);
  return (...args) => link.ask(args);
}

/** Calls per command since the last reset, without what the counting itself costs. */
function commands(): Map<string, number> {
  const out = new Map<string, number>();
  for (const m of server.cli('info', 'commandstats').matchAll(/cmdstat_([^:]+):calls=(\d+)/g))
    out.set(m[1]!, Number(m[2]));
  for (const own of ['info', 'config|resetstat', 'config']) out.delete(own);
  return out;
}

/** A TCP relay that can cut connections at chosen moments. */
class Relay {
  readonly server: Server;
  readonly sockets = new Set<Socket>();
  port = 0;
  /** Requests arrive, replies do not: the connection is cut when the server answers. */
  cutReplies = 0;
  refuse = false;

  constructor(target: number) {
    this.server = createServer(client => {
      if (this.refuse) {
        client.destroy();
        return;
      }
      const upstream = tcp(target, '127.0.0.1');
      for (const s of [client, upstream]) {
        this.sockets.add(s);
        s.on('error', () => undefined);
        s.on('close', () => {
          this.sockets.delete(s);
          client.destroy();
          upstream.destroy();
        });
      }
      client.on('data', d => upstream.write(d));
      upstream.on('data', d => {
        if (this.cutReplies > 0) {
          this.cutReplies--;
          client.destroy();
          upstream.destroy();
        } else client.write(d);
      });
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>(resolve => this.server.listen(0, '127.0.0.1', resolve));
    const a = this.server.address();
    this.port = typeof a === 'object' && a ? a.port : 0;
  }

  cut(): void {
    for (const s of this.sockets) s.destroy();
  }

  close(): void {
    this.cut();
    this.server.close();
  }
}

const closed = () => false;
const sleep = (ms: number): Promise<void> => new Promise(wake => setTimeout(wake, ms));

/**
 * A push leaves the server in the same round of its event loop as the writer's reply, but maybe after it. A round trip on the reader's connection
 * comes after it for sure.
 */
async function settle(...readers: Client[]): Promise<void> {
  await Promise.all(readers.map(r => r.engine.heartbeat()));
}

async function until(what: () => boolean | Promise<boolean>, ms = 5000): Promise<void> {
  const end = Date.now() + ms;
  while (!(await what())) {
    assert.ok(Date.now() < end, 'took too long');
    await sleep(20);
  }
}

describe('metadata on Redis', { skip, concurrency: 1, timeout: 120_000 }, () => {
  it('takes one script per mutation and no round trip for what it knows', async () => {
    const c = await mountAt(freshUrl(), {}, { TrashDays: 1 });
    const { ino: d } = await c.mkdir(ROOT, 'd');
    await c.create(d, 'warm');
    await c.unlink(d, 'warm');
    const count = async (what: () => unknown): Promise<Record<string, number>> => {
      server.cli('config', 'resetstat');
      await what();
      const all = commands();
      // What scripts call is counted under the commands' own names: those of clients are evalsha and plain reads.
      const clients: Record<string, number> = {};
      for (const k of ['evalsha', 'eval', 'ping', 'hscan', 'exec']) if (all.has(k)) clients[k] = all.get(k)!;
      return clients;
    };
    const once = { evalsha: 1 };
    // The first use of each script is an EVAL.
    const round = async (n: string): Promise<void> => {
      const f = (await c.create(d, n)).ino;
      await c.write(f, 0, 100);
      await c.engine.setattr(c.op(), root, f, { mode: 0o600 });
      await c.engine.setattr(c.op(), root, f, { size: 10 });
      await c.link(f, d, `${n}-l`);
      await c.rename(d, n, ROOT, n);
      await c.engine.setxattr(c.op(), root, f, name('user.a'), name('b'), 0);
      await c.unlink(ROOT, n);
      await c.mkdir(d, `${n}-d`);
      await c.rmdir(d, `${n}-d`);
    };
    await round('first');
    let f: Ino = 0;
    assert.deepEqual(await count(async () => (f = (await c.create(d, 'f')).ino)), once);
    assert.deepEqual(await count(() => c.write(f, 0, 100)), once);
    assert.deepEqual(await count(() => c.engine.setattr(c.op(), root, f, { mode: 0o600 })), once);
    assert.deepEqual(await count(() => c.engine.setattr(c.op(), root, f, { size: 10 })), once);
    assert.deepEqual(await count(() => c.link(f, d, 'l')), once);
    assert.deepEqual(await count(() => c.rename(d, 'f', ROOT, 'f')), once);
    assert.deepEqual(await count(() => c.engine.setxattr(c.op(), root, f, name('user.a'), name('b'), 0)), once);
    assert.deepEqual(await count(() => c.unlink(ROOT, 'f')), once);
    assert.deepEqual(await count(() => c.mkdir(d, 'e')), once);
    assert.deepEqual(await count(() => c.rmdir(d, 'e')), once);
    server.cli('config', 'resetstat');
    for (let i = 0; i < 50; i++) {
      assert.equal((await c.lookup(d, 'l')).ino, f);
      await c.getattr(f);
      await c.getattr(d);
      await fails(() => c.engine.lookup(root, d, name(`absent-${i}`)), 'ENOENT');
    }
    assert.deepEqual([...commands()], []);
  });

  it('hears of what others change, also after it has written itself', async () => {
    const url = freshUrl();
    const seen: string[] = [];
    const c = await mountAt(url, { events: { ...events, changed: (ino, what) => void seen.push(`${ino} ${what}`) } });
    const go = await raw(url);
    const { ino: d } = await c.mkdir(ROOT, 'd');
    const { ino } = await c.create(d, 'f');
    // The last to touch each key were we.
    const before = await c.getattr(ino);
    const stored = (await go('GET', `i${ino}`)) as Buffer;
    stored.writeUInt16BE((1 << 12) | 0o604, 1);
    await go('SET', `i${ino}`, stored);
    await settle(c);
    assert.equal((await c.getattr(ino)).mode, 0o604);
    assert.notEqual(before.mode, 0o604);
    assert.deepEqual(seen, [`${ino} attr`]);
    await fails(() => c.engine.lookup(root, d, name('g')), 'ENOENT');
    const dentry = (await go('HGET', `d${d}`, 'f')) as Buffer;
    await go('HSET', `d${d}`, 'g', dentry);
    await settle(c);
    assert.equal((await c.lookup(d, 'g')).ino, ino);
    await go('HDEL', `d${d}`, 'g');
    await settle(c);
    await fails(() => c.engine.lookup(root, d, name('g')), 'ENOENT');
    await c.write(ino, 0, 10);
    await c.engine.readChunk(ino, 0);
    await c.write(ino, 10, 10);
    seen.length = 0;
    await go('RPUSH', `c${ino}_0`, Buffer.alloc(24));
    await c.engine.heartbeat();
    assert.ok(seen.includes(`${ino} data`), seen.join());
    // Many names: the directory is read once and then known.
    const other = await mountAt(url);
    for (let i = 0; i < 100; i++) await c.create(d, `n${i}`);
    for (let i = 0; i < 4; i++) await fails(other.lookup(d, `absent${i}`), 'ENOENT');
    await other.engine.heartbeat();
    server.cli('config', 'resetstat');
    for (let i = 4; i < 50; i++) await fails(() => other.engine.lookup(root, d, name(`absent${i}`)), 'ENOENT');
    assert.equal(commands().get('evalsha'), undefined);
    await c.create(d, 'absent50');
    await settle(other);
    await other.lookup(d, 'absent50');
  });

  it('has no stale answers under concurrent change', async () => {
    const url = freshUrl();
    const clients = [await mountAt(url), await mountAt(url), await mountAt(url)];
    const { ino: d } = await clients[0]!.mkdir(ROOT, 'd');
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    console.log(`# seed ${seed}`);
    let state = seed;
    const random = (n: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % n;
    };
    const truth = new Map<string, Ino>();
    for (let i = 0; i < 1500; i++) {
      const c = clients[random(3)]!;
      const n = `n${random(8)}`;
      const has = truth.get(n);
      const what = random(6);
      if (what === 0 && has === undefined) truth.set(n, (await c.create(d, n)).ino);
      else if (what === 1 && has !== undefined) {
        await c.unlink(d, n);
        truth.delete(n);
      } else if (what === 2 && has !== undefined) {
        const to = `n${random(8)}`;
        await c.rename(d, n, d, to);
        if (to !== n) {
          truth.delete(n);
          truth.set(to, has);
        }
      } else if (what === 3 && has !== undefined) {
        const mode = random(0o1000);
        await c.engine.setattr(c.op(), root, has, { mode });
        await settle(...clients);
        for (const x of clients) assert.equal((await x.getattr(has)).mode, mode);
      }
      await settle(...clients);
      const reader = clients[random(3)]!;
      const q = `n${random(8)}`;
      const want = truth.get(q);
      if (want === undefined) await fails(async () => reader.engine.lookup(root, d, name(q)), 'ENOENT');
      else assert.equal((await reader.lookup(d, q)).ino, want, `step ${i}: ${q}`);
    }
  });

  it('keeps every count under random operations of several clients', async () => {
    const url = freshUrl();
    const clients = [
      await mountAt(url, {}, { TrashDays: 1, UserGroupQuota: true }),
      await mountAt(url),
      await mountAt(url),
    ];
    const { ino: d } = await clients[0]!.mkdir(ROOT, 'd');
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    console.log(`# seed ${seed}`);
    await Promise.all([0, 1, 2, 3, 4, 5].map(slot => randomOperations(clients[slot % 3]!, slot, d, seed, 3000)));
    assert.deepEqual(await checkVolume(await raw(url), { dirStats: true, sliceRefs: true }), []);
  });

  it('repeats a mutation whose reply was lost, and does it once', async () => {
    const relay = new Relay(server.port);
    await relay.listen();
    const base = freshUrl();
    const url = base.replace(String(server.port), String(relay.port));
    const troubles: (string | undefined)[] = [];
    const c = await mountAt(url, { events: { ...events, trouble: m => void troubles.push(m) } });
    const { ino: d } = await c.mkdir(ROOT, 'd');
    const { ino: f } = await c.create(d, 'f');
    for (let i = 0; i < 5; i++) {
      relay.cutReplies = 1;
      await c.create(d, `n${i}`);
      relay.cutReplies = 1;
      await c.write(f, i * 10, 10);
      relay.cutReplies = 1;
      await c.link(f, d, `l${i}`);
      relay.cutReplies = 1;
      assert.ok((await c.rename(d, `n${i}`, d, `m${i}`)).moved);
      relay.cutReplies = 1;
      await c.unlink(d, `m${i}`);
    }
    assert.equal((await c.engine.readChunk(f, 0)).length, 5);
    assert.equal((await c.getattr(f)).nlink, 6);
    assert.equal((await c.names(d)).length, 6);
    // Away for a while: requests wait.
    relay.refuse = true;
    relay.cut();
    const waiting = [c.create(d, 'later'), c.getattr(f), c.lookup(d, 'f')];
    await until(() => troubles.some(t => t?.includes('no connection')));
    relay.refuse = false;
    await Promise.all(waiting);
    await until(() => troubles.at(-1) === undefined);
    relay.close();
  });

  it('keeps every count while connections are cut', async () => {
    const relay = new Relay(server.port);
    await relay.listen();
    const base = freshUrl();
    const url = base.replace(String(server.port), String(relay.port));
    const clients = [await mountAt(url, {}, { TrashDays: 1 }), await mountAt(url)];
    const { ino: d } = await clients[0]!.mkdir(ROOT, 'd');
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    console.log(`# seed ${seed}`);
    let cuts = 0;
    const timer = setInterval(() => {
      if (cuts++ % 2 === 0) relay.cutReplies = 2;
      else relay.cut();
    }, 50);
    // On a busy machine a connection takes longer than that: what is under way in the end must come through.
    setTimeout(() => clearInterval(timer), 3000);
    const done = await Promise.all([0, 1, 2, 3].map(slot => randomOperations(clients[slot % 2]!, slot, d, seed, 3000)));
    relay.cutReplies = 0;
    assert.ok(cuts > 10 && done.every(n => n > 10), `${cuts} cuts, ${done} operations`);
    assert.deepEqual(await checkVolume(await raw(base), { dirStats: true, sliceRefs: true }), []);
    relay.close();
  });

  it('goes on after a restart of the server and a flush of its scripts', async () => {
    const own = await startRedis(['--appendonly', 'yes', '--appendfsync', 'always']);
    assert.ok(!('missing' in own));
    try {
      const c = await mountAt(own.url(3));
      await c.create(ROOT, 'a');
      own.cli('script', 'flush');
      await c.create(ROOT, 'b');
      const down = own.kill();
      const waiting = Promise.all(
        Array.from({ length: 20 }, (_, i) => c.engine.create(c.op(i), root, ROOT, name(`w${i}`), 0o644, 0, 2)),
      );
      await down;
      await sleep(200);
      await own.start();
      await waiting;
      assert.equal((await c.names(ROOT)).length, 22);
      assert.equal((await c.engine.statfs(ROOT)).usedInodes, 22);
    } finally {
      await own.stop();
    }
  });

  it('loses its session when another client cleaned it', async () => {
    const url = freshUrl();
    const reasons: string[] = [];
    const c = await mountAt(url, { events: { ...events, sessionLost: r => void reasons.push(r) } });
    const go = await raw(url);
    const [first] = (await go('ZRANGE', 'allSessions', '0', '-1')) as Buffer[];
    await go('ZREM', 'allSessions', first!);
    await fails(c.create(ROOT, 'f'), 'EIO');
    assert.deepEqual(reasons, ['cleaned by another client']);
    assert.equal(await go('EXISTS', 'd1'), 0);
    // And when its expiry is past, though nobody cleaned it.
    const e = await mountAt(url);
    const sids = (await go('ZRANGE', 'allSessions', '0', '-1')) as Buffer[];
    await go('ZADD', 'allSessions', '1000', sids[0]!);
    await fails(e.create(ROOT, 'f'), 'EIO');
  });

  it('answers EIO for a record set that is gone, and never runs again', async () => {
    const url = freshUrl();
    const c = await mountAt(url);
    await c.create(ROOT, 'f');
    const go = await raw(url);
    const [key] = (await go('KEYS', 'STEADFS.s*')) as Buffer[];
    await go('DEL', key!);
    await fails(c.create(ROOT, 'g'), 'EIO');
  });

  it('wakes waiters of locks by push', async () => {
    const url = freshUrl();
    const a = await mountAt(url);
    const b = await mountAt(url);
    const { ino } = await a.create(ROOT, 'f');
    await a.engine.flock(a.op(), ino, 7n, 'W');
    await fails(b.engine.flock(b.op(), ino, 7n, 'W'), 'EAGAIN');
    const begin = Date.now();
    const wait = b.engine.waitForUnlock(ino, 10_000);
    await sleep(50);
    await a.engine.flock(a.op(), ino, 7n, 'U');
    await wait;
    assert.ok(Date.now() - begin < 1000, 'woken');
    await b.engine.flock(b.op(), ino, 7n, 'W');
    // An unlock between the refusal and the wait is not missed.
    const lock = { type: 1, start: 10n, end: 0x7fffffffffffffffn, pid: 4 };
    await a.engine.setlk(a.op(), ino, 1n, lock);
    await fails(b.engine.setlk(b.op(), ino, 2n, { ...lock, start: 0x7ffffffffffffffen }), 'EAGAIN');
    await a.engine.setlk(a.op(), ino, 1n, { ...lock, type: 2, start: 0x20000000000001n });
    const again = Date.now();
    await b.engine.waitForUnlock(ino, 10_000);
    assert.ok(Date.now() - again < 1000, 'woken');
    await b.engine.setlk(b.op(), ino, 2n, { ...lock, start: 0x7ffffffffffffffen });
    assert.deepEqual(await b.engine.getlk(ino, 2n, { ...lock, start: 0n }), {
      type: 1,
      start: 10n,
      end: 0x20000000000000n,
      pid: 0,
    });
  });

  it('takes locks from sessions that no list knows', async () => {
    const url = freshUrl();
    const a = await mountAt(url);
    const go = await raw(url);
    const { ino } = await a.create(ROOT, 'f');
    await go('HSET', `lockf${ino}`, '99_0000000000000001', 'R');
    await a.engine.flock(a.op(), ino, 7n, 'W');
    assert.equal(await go('HLEN', `lockf${ino}`), 1);
  });

  it('keeps 64-bit numbers whole', async () => {
    const url = freshUrl();
    const c = await mountAt(url, {}, { TrashDays: 1 });
    const go = await raw(url);
    const { ino: d } = await c.mkdir(ROOT, 'd');
    await c.create(d, 'f');
    await go('SET', 'nextTrash', '960');
    const removed = await c.unlink(d, 'f');
    assert.equal(removed.attr.parent, TRASH + 961);
    assert.equal(String(await go('EXISTS', 'i9223372032828244929')), '1');
    assert.equal((await c.names(TRASH + 961)).length, 1);
    assert.ok(isTrash(removed.attr.parent));
    assert.equal(inoToString(removed.attr.parent), '9223372032828244929');
    const { ino: g } = await c.create(d, 'g');
    const max = Number.MAX_SAFE_INTEGER;
    assert.equal((await c.engine.setattr(c.op(), root, g, { size: max })).length, max);
    assert.equal((await c.engine.setattr(c.op(), root, g, { size: max - 1 })).length, max - 1);
    assert.deepEqual(await c.engine.dirStat(d), { length: max - 1, space: 2 ** 53, inodes: 1 });
    // A file of the largest length of the format, made by another client.
    const stored = (await go('GET', `i${g}`)) as Buffer;
    stored.writeBigUInt64BE(2n ** 57n - 1n, 51);
    await go('SET', `i${g}`, stored);
    const used = BigInt(((await go('GET', 'usedSpace')) as Buffer).toString());
    await c.engine.unlink(c.op(), root, d, name('g'), closed, true);
    assert.equal(BigInt(((await go('GET', 'usedSpace')) as Buffer).toString()), used - 2n ** 57n);
    const [member] = (await go('ZRANGE', 'delfiles', '0', '-1')) as Buffer[];
    assert.equal(member?.toString(), `${g}:${2n ** 57n - 1n}`);
  });

  it('cuts and deletes files with very many chunks in steps', async () => {
    const url = freshUrl();
    const c = await mountAt(url);
    const { ino } = await c.create(ROOT, 'f');
    const far = [0, 1, 1500, 2999, 3000];
    for (const i of far) await c.write(ino, 0, 100, i);
    assert.deepEqual(await c.engine.listChunks(ino, 0, 2 ** 32 - 1, 100), far);
    await c.engine.setattr(c.op(), root, ino, { size: 50 });
    for (const i of far.slice(1)) {
      const list = await c.engine.readChunk(ino, i);
      assert.equal(list.length, 2);
      assert.equal(list[1]!.id, 0);
      assert.ok(list[1]!.len >= 100);
    }
    await c.engine.setattr(c.op(), root, ino, { size: 2 ** 52 });
    await c.write(ino, 5, 10, 2 ** 26 - 1);
    assert.equal((await c.engine.readChunk(ino, 2 ** 26 - 1)).length, 1);
    assert.deepEqual(await c.engine.listChunks(ino, 3001, 2 ** 32 - 1, 100), [2 ** 26 - 1]);
    await c.engine.fallocate(c.op(), root, ino, 10, 2 ** 52 - 20, 3);
    assert.equal((await c.engine.readChunk(ino, 1500)).at(-1)!.len, CHUNK_SIZE);
    await c.engine.setattr(c.op(), root, ino, { size: 0 });
    const removed = await c.unlink(ROOT, 'f');
    assert.equal(removed.state, 'deleted');
    const dead: number[] = [];
    for (;;) {
      const r = await c.engine.deleteFileData({ kind: 3, slot: 0, seq: c.op().seq }, ino, 0);
      dead.push(...r.dead.map(s => s.id));
      if (r.done) break;
    }
    assert.equal(dead.length, far.length + 1);
    assert.deepEqual(await c.engine.deletedFiles(Date.now() / 1000 + 10, 10), []);
  });

  it('goes on with a listing in another process', async () => {
    const url = freshUrl();
    const a = await mountAt(url);
    const { ino: d } = await a.mkdir(ROOT, 'd');
    const want = new Set<string>();
    await Promise.all(
      Array.from({ length: 12_000 }, (_, i) => {
        want.add(`e${i}`);
        return a.engine.create(a.op(i), root, d, name(`e${i}`), 0o644, 0, 2);
      }),
    );
    const first = a.engine.dirStream(d, memoryState([]));
    const got: DirEntry[] = [];
    while (got.length < 5000) got.push(...(await first.read(got.at(-1)?.cookie ?? 0, 100, false)));
    await a.create(d, 'new');
    await a.unlink(d, 'e1');
    want.delete('e1');
    const b = await mountAt(url);
    const second = b.engine.dirStream(d, memoryState([]));
    for (;;) {
      const page = await second.read(got.at(-1)!.cookie, 1000, true);
      if (page.length === 0) break;
      for (const e of page) assert.equal(e.attr?.type, FileType.file);
      got.push(...page);
    }
    const names = got.map(e => e.name.toString());
    assert.equal(new Set(names).size, names.length);
    for (const n of want) assert.ok(names.includes(n), n);
  });

  it('writes the change log', async () => {
    const url = freshUrl();
    const c = await mountAt(url, {}, { ChangeLog: true, TrashDays: 1 });
    const go = await raw(url);
    const { ino: d } = await c.mkdir(ROOT, 'a,b%');
    const { ino } = await c.create(d, 'f');
    await c.write(ino, 0, 10);
    await c.unlink(d, 'f');
    const log = ((await go('LRANGE', 'txnLog', '0', '-1')) as Buffer[]).map(b => b.toString());
    for (const l of log) assert.match(l, /^\d+\.\d{9}\|[A-Z_]+\([^()]*\)(:\d+)?\|\(\d+,\d+\)$/);
    assert.equal(((await go('GET', 'txnLastLog')) as Buffer).toString(), String(log.length));
    assert.deepEqual(
      log.map(l => l.split('|')[1]!.replace(/\(.*/, '')),
      ['NEWSESSION', 'INCR_COUNTER', 'CREATE', 'CREATE', 'INCR_COUNTER', 'WRITE', 'CREATE', 'UNLINK'],
    );
    assert.match(log[2]!, /\|CREATE\(1,a%2Cb%25,0,0,2,493,0,,linux,true\):2\|\(1,1\)$/);
  });

  it('parses addresses', () => {
    const p = (u: string, env = {}) => parseRedisUrl(u, env);
    assert.deepEqual(p('redis://u:p%40x@h:7000/3').addresses, [{ host: 'h', port: 7000 }]);
    assert.deepEqual(
      [p('redis://u:p%40x@h:7000/3').user, p('redis://u:p%40x@h:7000/3').password, p('redis://u:p%40x@h:7000/3').db],
      ['u', 'p@x', 3],
    );
    assert.deepEqual(p('redis://m,a,b:1234/1').master, 'm');
    assert.deepEqual(p('redis://m,a,b:1234/1').addresses, [
      { host: 'a', port: 1234 },
      { host: 'b', port: 1234 },
    ]);
    assert.deepEqual(p('redis://m,a/1').addresses, [{ host: 'a', port: 26379 }]);
    assert.deepEqual(p('redis://a:1,b:2/1').addresses, [
      { host: 'a', port: 1 },
      { host: 'b', port: 2 },
    ]);
    assert.equal(p('redis://a:1,b:2/1').master, undefined);
    assert.deepEqual([p('unix:///run/r.sock?db=2').socketPath, p('unix:///run/r.sock?db=2').db], ['/run/r.sock', 2]);
    assert.equal(p('redis://h/1', { META_PASSWORD: 'x' }).password, 'x');
    assert.equal(p('redis://h/1', { META_PASSWORD: 'x', REDIS_PASSWORD: 'y' }).password, 'y');
    assert.deepEqual(p('redis://[::1]:7000').addresses, [{ host: '::1', port: 7000 }]);
    assert.equal(p('redis://h?read-timeout=5s&min_retry_backoff=1ms').readTimeoutMs, 5000);
    assert.equal(p('rediss://h?insecure-skip-verify=true').tls?.rejectUnauthorized, false);
    assert.ok(!p('redis://u:secret@h/1').display.includes('secret'));
    assert.throws(
      () => p('redis://u:secret@h:x/1'),
      e => e instanceof Error && !e.message.includes('secret'),
    );
    assert.throws(() => p('redis://h?read-timeout=5parsecs'), /not a duration/);
    assert.equal(parseDuration('1m30s'), 90_000);
    assert.equal(parseDuration('x'), undefined);
  });

  it('speaks over TLS, a Unix socket, with a password, as an ACL user', async () => {
    const tls = await startRedisTls();
    assert.ok(!('missing' in tls));
    try {
      const c = await mountAt(tls.url(1));
      const { ino } = await c.create(ROOT, 'f');
      assert.equal((await c.lookup(ROOT, 'f')).ino, ino);
      const d = await mountAt(tls.url(1));
      await d.unlink(ROOT, 'f');
      await until(async () => {
        try {
          await c.lookup(ROOT, 'f');
          return false;
        } catch {
          return true;
        }
      });
      await assert.rejects(openAt(tls.url(1).replace(/\?.*/, '')), /certificate|self-signed/i);
    } finally {
      await tls.stop();
    }
    const own = await startRedis([
      '--requirepass',
      'top secret',
      '--unixsocket',
      `/tmp/steadfs-redis-${process.pid}.sock`,
    ]);
    assert.ok(!('missing' in own));
    try {
      const go = await raw(`redis://:top%20secret@127.0.0.1:${own.port}/0`);
      await go('ACL', 'SETUSER', 'fs', 'on', '>pw', '~*', '&*', '+@all', '-@admin');
      await assert.rejects(openAt(own.url(0)), e => !String(e).includes('secret'));
      const c = await mountAt(`redis://fs:pw@127.0.0.1:${own.port}/2`);
      await c.create(ROOT, 'f');
      // A user who may not run scripts is told so, at the start and by the first change.
      await go('ACL', 'SETUSER', 'plain', 'on', '>pw', '~*', '&*', '+@all', '-@scripting');
      const forbidden = (e: Error) => /refuses scripts .*@scripting/.test(e.message) && !e.message.includes('pw');
      await assert.rejects(mountAt(`redis://plain:pw@127.0.0.1:${own.port}/2`), forbidden);
      await go('ACL', 'SETUSER', 'fs', '-@scripting');
      await assert.rejects(c.create(ROOT, 'g'), forbidden);
      await go('ACL', 'SETUSER', 'fs', '+@scripting');
      await c.create(ROOT, 'g');
      process.env.META_PASSWORD = 'top secret';
      const u = await mountAt(`unix:///tmp/steadfs-redis-${process.pid}.sock?db=2`);
      delete process.env.META_PASSWORD;
      await u.lookup(ROOT, 'f');
    } finally {
      delete process.env.META_PASSWORD;
      await own.stop();
    }
  });

  it('follows a fail-over behind a sentinel', async () => {
    const s = await startRedisSentinel();
    assert.ok(!('missing' in s));
    try {
      const c = await mountAt(s.url(1));
      await c.create(ROOT, 'before');
      await s.killMaster();
      await c.create(ROOT, 'after');
      assert.deepEqual((await c.names(ROOT)).sort(), ['after', 'before']);
    } finally {
      await s.stop();
    }
  });

  it('works on a cluster', async () => {
    const s = await startRedisCluster();
    assert.ok(!('missing' in s), 'missing' in s ? s.missing : '');
    try {
      for (const n of [0, 1, 2, 7]) {
        const c = await mountAt(s.url(n), {}, { TrashDays: 1 });
        const { ino: d } = await c.mkdir(ROOT, 'd');
        await c.create(d, 'f');
        await c.rename(d, 'f', ROOT, 'g');
        await c.unlink(ROOT, 'g');
        const other = await mountAt(s.url(n));
        assert.deepEqual(await other.names(ROOT), ['d']);
        await other.create(d, 'h');
        await until(async () => (await c.names(d)).length === 1);
        await c.engine.closeSession();
        await c.engine.reset();
        assert.equal(await c.engine.load(), undefined);
      }
    } finally {
      await s.stop();
    }
  });
});
