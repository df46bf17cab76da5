/** Random operations against an engine and a model of a tree in memory; every result, errno and the final state are compared. */
import assert from 'node:assert/strict';
import { FileType } from '../../src/format/attr.ts';
import { type Ino, isTrash, ROOT } from '../../src/format/ino.ts';
import { type Client, name, root } from './contract.ts';

interface Node {
  ino: Ino;
  type: FileType;
  mode: number;
  length: number;
  nlink: number;
  entries: Map<string, Node> | undefined;
  parent: Node | undefined;
}

/** A small generator (mulberry32), so that a seed gives the same run everywhere. */
export function randomFrom(seed: number): (below: number) => number {
  let a = seed >>> 0;
  return below => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

async function outcome<T>(what: Promise<T> | T): Promise<T | string> {
  try {
    return await what;
  } catch (e) {
    const { code } = e as { code?: string };
    if (code === undefined) throw e;
    return code;
  }
}

export async function randomOperations(c: Client, trash: boolean, count = 1500): Promise<void> {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`# model seed ${seed}`);
  const random = randomFrom(seed);
  const top: Node = { ino: ROOT, type: 2, mode: 0o777, length: 4096, nlink: 2, entries: new Map(), parent: undefined };
  top.parent = top;
  const dirs = [top];
  const files: Node[] = [];
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const someName = () => `n${random(12)}`;
  const below = (n: Node, of: Node): boolean => n === of || (n.parent !== n && below(n.parent!, of));
  const alive = (d: Node) => dirs.includes(d);
  const drop = (n: Node) => {
    if (n.type === FileType.directory) dirs.splice(dirs.indexOf(n), 1);
    else if (--n.nlink === 0) files.splice(files.indexOf(n), 1);
  };

  for (let i = 0; i < count; i++) {
    const d = pick(dirs);
    const n = someName();
    const old = d.entries!.get(n);
    const what = random(10);
    const context = `step ${i} kind ${what} in ${d.ino} name ${n}`;
    if (what <= 1) {
      const type = what === 0 ? FileType.directory : pick([1, 1, 1, 4, 7] as const);
      const mode = random(0o10000);
      const r = await outcome(c.engine.mknod(c.op(), root, d.ino, name(n), { type, mode, umask: 0o022, rdev: 0 }));
      if (old !== undefined) assert.equal(r, 'EEXIST', context);
      else {
        assert.ok(typeof r !== 'string', `${context}: ${String(r)}`);
        const dir = type === FileType.directory;
        const node: Node = {
          ino: r.ino,
          type,
          mode: mode & ~0o022,
          length: dir ? 4096 : 0,
          nlink: dir ? 2 : 1,
          entries: dir ? new Map() : undefined,
          parent: d,
        };
        if (dir && (d.mode & 0o2000) !== 0) node.mode |= 0o2000;
        d.entries!.set(n, node);
        if (dir) {
          d.nlink++;
          dirs.push(node);
        } else files.push(node);
      }
    } else if (what === 2) {
      const r = await outcome(c.unlink(d.ino, n));
      if (old === undefined) assert.equal(r, 'ENOENT', context);
      else if (old.type === FileType.directory) assert.equal(r, 'EISDIR', context);
      else {
        assert.ok(typeof r !== 'string', `${context}: ${String(r)}`);
        d.entries!.delete(n);
        drop(old);
        assert.equal(r.attr.nlink, old.nlink, context);
      }
    } else if (what === 3) {
      const r = await outcome(c.rmdir(d.ino, n));
      if (old === undefined) assert.equal(r, 'ENOENT', context);
      else if (old.type !== FileType.directory) assert.equal(r, 'ENOTDIR', context);
      else if (old.entries!.size > 0) assert.equal(r, 'ENOTEMPTY', context);
      else {
        assert.ok(typeof r !== 'string', `${context}: ${String(r)}`);
        d.entries!.delete(n);
        d.nlink--;
        drop(old);
      }
    } else if (what === 4 && files.length > 0) {
      const f = pick(files);
      const r = await outcome(c.link(f.ino, d.ino, n));
      if (old !== undefined) assert.equal(r, 'EEXIST', context);
      else {
        assert.ok(typeof r !== 'string', `${context}: ${String(r)}`);
        f.nlink++;
        d.entries!.set(n, f);
        assert.equal(r.attr.nlink, f.nlink, context);
      }
    } else if (what <= 7) {
      const to = pick(dirs);
      const nn = someName();
      const target = to.entries!.get(nn);
      const flags = pick([0, 0, 0, 1, 2]);
      const r = await outcome(c.rename(d.ino, n, to.ino, nn, flags));
      const dir = old?.type === FileType.directory;
      const targetDir = target?.type === FileType.directory;
      let want: string | undefined;
      if (old === undefined) want = 'ENOENT';
      else if (target !== undefined && flags === 1) want = 'EEXIST';
      else if (target === undefined && flags === 2) want = 'ENOENT';
      else if (target === old) want = undefined;
      else if (dir && d !== to && below(to, old)) want = 'EINVAL';
      else if (flags === 2) want = targetDir && d !== to && below(d, target!) ? 'EINVAL' : undefined;
      else if (target !== undefined && dir && !targetDir) want = 'ENOTDIR';
      else if (target !== undefined && !dir && targetDir) want = 'EISDIR';
      else if (target !== undefined && targetDir && target.entries!.size > 0) want = 'ENOTEMPTY';
      if (want !== undefined) {
        assert.equal(r, want, `${context} to ${to.ino}/${nn} flags ${flags}`);
        continue;
      }
      assert.ok(typeof r !== 'string', `${context} to ${to.ino}/${nn} flags ${flags}: ${String(r)}`);
      if (target === old) continue;
      if (dir) {
        d.nlink--;
        to.nlink++;
        old!.parent = to;
      }
      if (flags === 2) {
        if (targetDir) {
          to.nlink--;
          d.nlink++;
          target!.parent = d;
        }
        d.entries!.set(n, target!);
      } else {
        d.entries!.delete(n);
        if (target !== undefined) {
          if (targetDir) to.nlink--;
          drop(target);
          assert.equal(r.replaced?.ino, target.ino, context);
        }
      }
      to.entries!.set(nn, old!);
    } else if (what === 8) {
      const node = old ?? d;
      if (!alive(d)) continue;
      const mode = random(0o10000);
      const a = await c.engine.setattr(c.op(), root, node.ino, { mode });
      node.mode = mode;
      assert.equal(a.mode, mode, context);
    } else if (old?.type === FileType.file) {
      if (random(2) === 0) {
        const size = random(200_000);
        const a = await c.engine.setattr(c.op(), root, old.ino, { size });
        old.length = size;
        assert.equal(a.length, size, context);
      } else {
        const pos = random(100_000);
        const len = 1 + random(50_000);
        const w = await c.write(old.ino, pos, len);
        old.length = Math.max(old.length, pos + len);
        assert.equal(w.attr.length, old.length, context);
      }
    }
  }

  // The whole tree, statistics, and the counters.
  let space = 0;
  let inodes = 0;
  const counted = new Set<Node>();
  const align = (n: Node) => (n.type === FileType.file && n.length > 0 ? Math.ceil(n.length / 4096) * 4096 : 4096);
  async function compare(d: Node): Promise<void> {
    const a = await c.getattr(d.ino);
    assert.deepEqual([a.nlink, a.mode, a.parent], [d.nlink, d.mode, d.parent!.ino], `directory ${d.ino}`);
    const listed = (await c.list(d.ino)).map(e => Buffer.from(e.name).toString());
    assert.deepEqual(listed.sort(), [...d.entries!.keys()].sort(), `entries of ${d.ino}`);
    const stat = { length: 0, space: 0, inodes: 0 };
    for (const [n, child] of d.entries!) {
      const e = await c.lookup(d.ino, n);
      assert.deepEqual(
        [e.ino, e.attr.type, e.attr.mode, e.attr.nlink, e.attr.length],
        [child.ino, child.type, child.mode, child.nlink, child.length],
        `${d.ino}/${n}`,
      );
      stat.inodes++;
      stat.space += align(child);
      if (child.type === FileType.file) stat.length += child.length;
      if (!counted.has(child)) {
        counted.add(child);
        inodes++;
        space += align(child);
      }
      if (child.entries !== undefined) await compare(child);
    }
    assert.deepEqual(await c.engine.dirStat(d.ino), stat, `statistics of ${d.ino}`);
  }
  await compare(top);
  await c.engine.flush();
  await compareStats(top);
  async function compareStats(d: Node): Promise<void> {
    const stat = await c.engine.dirStat(d.ino);
    assert.equal(stat.inodes, d.entries!.size, `flushed statistics of ${d.ino}`);
    for (const child of d.entries!.values()) if (child.entries !== undefined) await compareStats(child);
  }
  if (!trash) {
    await c.engine.heartbeat();
    const s = await c.engine.statfs(ROOT);
    assert.equal(s.usedInodes, inodes, 'totalInodes');
    assert.equal(s.totalSpace - s.availSpace, space, 'usedSpace');
  } else assert.ok((await c.list(2 ** 52 + 0x10000000)).every(e => isTrash(e.ino)));
}
