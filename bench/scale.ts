/**
 * What many clients and many inodes do to a metadata engine, without mounts:
 *
 *   node bench/scale.ts hot|directory|inodes   [--meta redis,postgres,mariadb] [--count N]
 *
 * hot: 16 clients, each in its own directory, then all in one, then one client as often (rates summed; a row that all of them lock would keep
 * the sum at one client's rate). directory: --count files (1,000,000) in one directory: the rate at each tenth, then listing, lookups,
 * removals. inodes: rates on an empty volume and on one with --count files (10,000,000) in turn, filled by the database itself.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import mysql from 'mysql2/promise';
import pg from 'pg';
import { encodeAttr } from '../packages/steadfs/src/format/attr.ts';
import type { Cred, MetaEngine, Op } from '../packages/steadfs/src/meta/engine.ts';
import { openEngine } from '../packages/steadfs/src/meta/registry.ts';
import { parseMysqlUrl } from '../packages/steadfs/src/meta/sql/url.ts';
import { type Backend, type DatabaseName, startBackend } from './backends.ts';

const quiet = (): undefined => undefined;
const cred: Cred = { uid: 0, gid: 0, pid: 1, groups: () => [0], checkPermission: false };
const name = (s: string): Buffer => Buffer.from(s);
const CLIENTS = 16;

/** A mounted client with a number of request slots. */
class Client {
  readonly engine: MetaEngine;
  readonly #seq = new Map<number, number>();
  /** A session expires. */
  readonly #beat: NodeJS.Timeout;
  constructor(engine: MetaEngine) {
    this.engine = engine;
    this.#beat = setInterval(() => void engine.heartbeat(), 60_000);
  }
  async close(): Promise<void> {
    clearInterval(this.#beat);
    await this.engine.closeSession();
    await this.engine.close();
  }
  op(slot: number): Op {
    const seq = (this.#seq.get(slot) ?? 0) + 1;
    this.#seq.set(slot, seq);
    return { kind: 0, slot, seq };
  }
  create(slot: number, dir: number, n: string): Promise<{ ino: number }> {
    return this.engine.create(this.op(slot), cred, dir, name(n), 0o644, 0, 0);
  }
  async mkdir(slot: number, dir: number, n: string): Promise<number> {
    return (await this.engine.mknod(this.op(slot), cred, dir, name(n), { type: 2, mode: 0o755, umask: 0, rdev: 0 }))
      .ino;
  }
}

async function connect(url: string, format: boolean): Promise<Client> {
  const engine = await openEngine(url, {
    readOnly: false,
    skipDirMtime: 100,
    heartbeat: 12,
    atimeMode: 'noatime',
    retries: 10,
    cachesByPush: true,
    events: {
      sessionLost: m => console.error(m),
      formatChanged: quiet,
      volumeLost: quiet,
      changed: quiet,
      trouble: m => m && console.error(m),
    },
  });
  if (format)
    await engine.init(
      {
        Name: 'bench',
        UUID: '6d1d1c3e-7e0c-4b46-9d8e-1a0a5f6f3a11',
        Storage: 'file',
        Tiers: null,
        Bucket: '/tmp/bench/',
        BlockSize: 4096,
        TrashDays: 0,
        MetaVersion: 1,
        DirStats: true,
        EnableACL: false,
      },
      false,
    );
  await engine.load();
  await engine.newSession({
    version: '1.4.1+steadfs.0.1.0',
    hostName: 'h',
    mountPoint: '/m',
    mountTime: '2026-11-21T00:00:00Z',
    processId: 1,
  });
  return new Client(engine);
}

/** Calls a second of `total` calls, `at` of them under way at once. */
async function rate(total: number, at: number, call: (i: number, slot: number) => Promise<unknown>): Promise<number> {
  const start = performance.now();
  let next = 0;
  await Promise.all(
    Array.from({ length: at }, async (_, slot) => {
      while (next < total) await call(next++, slot);
    }),
  );
  return total / ((performance.now() - start) / 1000);
}

type Row = [what: string, ...figures: (number | string)[]];
const show = (v: number | string): string => (typeof v === 'string' ? v : Math.round(v).toLocaleString('en'));

async function hot(url: string, count: number): Promise<Row[]> {
  const clients: Client[] = [];
  for (let i = 0; i < CLIENTS; i++) clients.push(await connect(url, i === 0));
  const [first] = clients;
  try {
    const shared = await first!.mkdir(0, 1, 'shared');
    const own = await Promise.all(clients.map((c, i) => c.mkdir(1, 1, `own${i}`)));
    const rows: Row[] = [];
    // Every client's procedures and statements are there before anything is measured.
    for (const [i, c] of clients.entries()) for (let k = 0; k < 4; k++) await c.create(0, own[i]!, `warm${k}`);
    const measure = async (
      what: string,
      of: (c: Client, client: number, i: number) => Promise<unknown>,
    ): Promise<void> => {
      const alone = await rate(Math.round(count / 4), 1, i => of(first!, 0, i + 1e6));
      const all = await rate(count, CLIENTS, (i, slot) => of(clients[slot]!, slot, i));
      rows.push([what, alone, all]);
    };
    await measure('create, own directories', (c, n, i) => c.create(0, own[n]!, `f${i}`));
    await measure('create, one directory', (c, _n, i) => c.create(0, shared, `f${i}`));
    await measure('mkdir, one directory', (c, _n, i) => c.mkdir(0, shared, `d${i}`));
    await measure('unlink, one directory', (c, _n, i) =>
      c.engine.unlink(c.op(0), cred, shared, name(`f${i}`), () => false),
    );
    return rows;
  } finally {
    for (const c of clients) await c.close();
  }
}

async function directory(url: string, count: number): Promise<Row[]> {
  const c = await connect(url, true);
  try {
    const dir = await c.mkdir(0, 1, 'many');
    const rows: Row[] = [];
    const tenth = Math.round(count / 10);
    for (let k = 0; k < 10; k++)
      rows.push([
        `create, ${k * tenth}…`,
        await rate(tenth, 32, (i, slot) => c.create(slot, dir, `file-${k * tenth + i}`)),
      ]);
    const state: Uint8Array[] = [];
    const stream = c.engine.dirStream(dir, {
      load: () => state,
      append: x => void state.push(x),
      clear: () => {
        state.length = 0;
      },
    });
    const start = performance.now();
    let listed = 0;
    for (let cookie = 0; ; ) {
      const page = await stream.read(cookie, 1000, true);
      if (page.length === 0) break;
      listed += page.length;
      cookie = page.at(-1)!.cookie;
    }
    stream.close();
    if (listed !== count) throw new Error(`${listed} of ${count} entries listed`);
    rows.push(['readdir with attributes, entries', listed / ((performance.now() - start) / 1000)]);
    const some = (i: number): string => `file-${(i * 7919) % count}`;
    rows.push(['lookup', await rate(5000, 32, async i => await c.engine.lookup(cred, dir, name(some(i))))]);
    rows.push([
      'unlink',
      await rate(Math.min(5000, tenth), 32, (i, slot) =>
        c.engine.unlink(c.op(slot), cred, dir, name(some(i)), () => false),
      ),
    ]);
    return rows;
  } finally {
    await c.close();
  }
}

const FIRST = 1_000_000_000;
const FIRST_DIR = 2_000_000_000;

/** `count` empty files in directories of a thousand, in the volume's own tables or keys. */
async function fill(database: DatabaseName, url: string, count: number): Promise<void> {
  const dirs = Math.ceil(count / 1000);
  const t = 1_790_000_000;
  const us = `${t}000000`;
  const step = 250_000;
  const sql = async (
    run: (text: string) => Promise<unknown>,
    series: (a: number, b: number) => string,
  ): Promise<void> => {
    const columns =
      'inode, type, flags, mode, uid, gid, atime, mtime, ctime, atimensec, mtimensec, ctimensec, nlink, length, rdev, parent, access_acl_id, default_acl_id, tier_id';
    const text = database === 'postgres' ? (s: string) => `convert_to(${s}, 'UTF8')` : (s: string) => s;
    const nameOf = (prefix: string): string =>
      text(database === 'postgres' ? `'${prefix}' || i` : `concat('${prefix}', i)`);
    const add = async (total: number, base: number, node: string, edge: string): Promise<void> => {
      for (let a = 0; a < total; a += step) {
        const from = series(a, Math.min(total, a + step) - 1);
        await run(`INSERT INTO jfs_node (${columns}) SELECT ${base} + i, ${node} FROM ${from}`);
        await run(`INSERT INTO jfs_edge (parent, name, inode, type) SELECT ${edge} FROM ${from}`);
      }
    };
    const times = `0, 0, ${us}, ${us}, ${us}, 0, 0, 0`;
    await add(
      dirs,
      FIRST_DIR,
      `2, 0, 493, ${times}, 2, 4096, 0, 1, 0, 0, 0`,
      `1, ${nameOf('fill')}, ${FIRST_DIR} + i, 2`,
    );
    const parent = `${FIRST_DIR} + (i % ${dirs})`;
    await add(
      count,
      FIRST,
      `1, 0, 420, ${times}, 1, 0, 0, ${parent}, 0, 0, 0`,
      `${parent}, ${nameOf('file')}, ${FIRST} + i, 1`,
    );
  };
  if (database === 'postgres') {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    await sql(
      q => client.query(q),
      (a, b) => `generate_series(${a}, ${b}) AS i`,
    );
    await client.query('ANALYZE jfs_node, jfs_edge');
    await client.end();
  } else if (database === 'mariadb') {
    const u = parseMysqlUrl(url, {});
    const client = await mysql.createConnection({
      ...{ host: u.host, port: u.port, user: u.user, database: u.database },
      ...(u.password === undefined ? {} : { password: u.password }),
    });
    await sql(
      q => client.query(q),
      (a, b) => `(SELECT seq AS i FROM seq_${a}_to_${b}) s`,
    );
    await client.end();
  } else {
    const { port, pathname } = new URL(url);
    const pipe = spawn('redis-cli', ['-p', port, '-n', pathname.slice(1), '--pipe'], {
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    const word = (w: string | Uint8Array): Buffer => {
      const b = Buffer.from(w);
      return Buffer.concat([Buffer.from(`$${b.length}\r\n`), b, Buffer.from('\r\n')]);
    };
    const command = (...words: (string | Uint8Array)[]): Buffer =>
      Buffer.concat([Buffer.from(`*${words.length}\r\n`), ...words.map(word)]);
    const times = { atime: t, atimensec: 0, mtime: t, mtimensec: 0, ctime: t, ctimensec: 0 };
    const rest = { flags: 0, uid: 0, gid: 0, rdev: 0, accessAcl: 0, defaultAcl: 0, tier: 0, ...times };
    const entry = (type: number, ino: number): Buffer => {
      const b = Buffer.alloc(9, type);
      b.writeBigUInt64BE(BigInt(ino), 1);
      return b;
    };
    let batch: Buffer[] = [];
    const send = async (force: boolean): Promise<void> => {
      if (batch.length < 4000 && !force) return;
      if (!pipe.stdin.write(Buffer.concat(batch))) await once(pipe.stdin, 'drain');
      batch = [];
    };
    for (let i = 0; i < dirs; i++) {
      const ino = FIRST_DIR + i;
      batch.push(
        command('SET', `i${ino}`, encodeAttr({ ...rest, type: 2, mode: 0o755, nlink: 2, length: 4096, parent: 1 })),
      );
      batch.push(command('HSET', 'd1', `fill${i}`, entry(2, ino)));
      await send(false);
    }
    for (let i = 0; i < count; i++) {
      const ino = FIRST + i;
      const parent = FIRST_DIR + (i % dirs);
      batch.push(command('SET', `i${ino}`, encodeAttr({ ...rest, type: 1, mode: 0o644, nlink: 1, length: 0, parent })));
      batch.push(command('HSET', `d${parent}`, `file${i}`, entry(1, ino)));
      await send(false);
    }
    await send(true);
    pipe.stdin.end();
    await once(pipe, 'exit');
  }
}

/** Rates on an empty volume (`emptyUrl`, on a server of its own) and on a full one, in turn, so that both see the same machine. */
async function inodes(database: DatabaseName, url: string, emptyUrl: string, count: number): Promise<Row[]> {
  const [empty, full] = [await connect(emptyUrl, true), await connect(url, true)];
  const calls = 3000;
  const rates = async (c: Client, label: string): Promise<number[]> => {
    const dir = await c.mkdir(0, 1, label);
    const made: number[] = [];
    const out = [await rate(calls, 8, async (i, slot) => void made.push((await c.create(slot, dir, `f${i}`)).ino))];
    out.push(await rate(calls, 8, async i => await c.engine.getattr(made[(i * 31) % calls]!)));
    out.push(await rate(calls, 8, async i => await c.engine.lookup(cred, dir, name(`f${i}`))));
    out.push(
      await rate(calls, 8, (i, slot) =>
        c.engine.rename(c.op(slot), cred, dir, name(`f${i}`), dir, name(`r${i}`), 0, () => false),
      ),
    );
    out.push(await rate(calls, 8, (i, slot) => c.engine.unlink(c.op(slot), cred, dir, name(`r${i}`), () => false)));
    return out;
  };
  try {
    const start = performance.now();
    await fill(database, url, count);
    console.log(`${database}: ${count} files in ${((performance.now() - start) / 1000).toFixed(0)} s`);
    const rounds: [number[], number[]][] = [];
    for (let i = 0; i < 6; i++) {
      const label = `round${i}`;
      const round: [number[], number[]] = [await rates(empty, label), await rates(full, label)];
      if (i > 0) rounds.push(round); // the first warms both up
    }
    // A file of the fill is found.
    const folder = await full.engine.lookup(cred, 1, name('fill0'));
    await full.engine.lookup(cred, folder.ino, name('file0'));
    const median = (of: number[]): number => of.sort((a, b) => a - b)[of.length >> 1]!;
    return ['create', 'getattr', 'lookup', 'rename', 'unlink'].map((what, i) => {
      const [without, withFiles] = [median(rounds.map(r => r[0][i]!)), median(rounds.map(r => r[1][i]!))];
      return [what, without, withFiles, median(rounds.map(r => r[1][i]! / r[0][i]!)).toFixed(2)];
    });
  } finally {
    await empty.close();
    await full.close();
  }
}

/** Runs something with the URL of a second, empty server. */
async function besideEmpty<T>(database: DatabaseName, run: (url: string) => Promise<T>): Promise<T> {
  const backend = await startBackend(database, 'file');
  if ('missing' in backend) throw new Error(backend.missing);
  try {
    return await run((await backend.meta()) ?? '');
  } finally {
    await backend.stop();
  }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { meta: { type: 'string', default: 'redis,postgres,mariadb' }, count: { type: 'string' } },
});
const HEADS: Record<string, string[]> = {
  hot: ['calls a second', 'one client', `${CLIENTS} clients`],
  directory: ['a second', 'rate'],
  inodes: ['calls a second', 'empty volume', 'full volume', 'ratio'],
};
for (const what of positionals.length > 0 ? positionals : ['hot']) {
  for (const database of values.meta.split(',') as DatabaseName[]) {
    const backend: Backend | { missing: string } = await startBackend(database, 'file');
    if ('missing' in backend) {
      console.log(`skipped: ${database}: ${backend.missing}`);
      continue;
    }
    try {
      const url = (await backend.meta()) ?? '';
      const given = values.count === undefined ? undefined : Number(values.count);
      const rows =
        what === 'hot'
          ? await hot(url, given ?? 4000)
          : what === 'directory'
            ? await directory(url, given ?? 1_000_000)
            : await besideEmpty(database, emptyUrl => inodes(database, url, emptyUrl, given ?? 10_000_000));
      const heads = HEADS[what]!;
      console.log(`\n${what}, ${backend.label}\n| ${heads.join(' | ')} |\n|---|${'---:|'.repeat(heads.length - 1)}`);
      for (const row of rows) console.log(`| ${row.map(show).join(' | ')} |`);
    } finally {
      await backend.stop();
    }
  }
}
