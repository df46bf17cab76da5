/** Consistency of a whole volume on Redis, read key by key: entries and inodes, link counts, parents maps, counters, statistics, references. */
import { decodeAttr, FileType } from '../../src/format/attr.ts';
import type { Ino } from '../../src/format/ino.ts';
import { decodeSlices } from '../../src/format/slice.ts';
import type { Reply } from '../../src/meta/redis/resp.ts';

import { type Client, name, root } from './contract.ts';

export type Ask = (...args: (string | Buffer)[]) => Promise<Reply>;

const text = (r: Reply): string => (Buffer.isBuffer(r) ? r.toString('latin1') : String(r));
const space = (length: number): number => (length === 0 ? 4096 : Math.ceil(length / 4096) * 4096);

async function hash(ask: Ask, key: string): Promise<Map<string, Buffer>> {
  const flat = (await ask('HGETALL', key)) as Buffer[];
  const out = new Map<string, Buffer>();
  for (let i = 0; i < flat.length; i += 2) out.set(text(flat[i]!), flat[i + 1]!);
  return out;
}

/** What is wrong, in words; [] for a sound volume that nobody uses now. `sliceRefs`: reference counts are compared as well. */
export async function checkVolume(ask: Ask, options: { dirStats: boolean; sliceRefs: boolean }): Promise<string[]> {
  const wrong: string[] = [];
  const keys = ((await ask('KEYS', '*')) as Buffer[]).map(text);
  const inodes = new Map<string, ReturnType<typeof decodeAttr>>();
  for (const k of keys) if (/^i\d+$/.test(k)) inodes.set(k.slice(1), decodeAttr((await ask('GET', k)) as Buffer));
  /** inode → directories that have it. */
  const links = new Map<string, string[]>();
  const children = new Map<string, string[]>();
  for (const k of keys) {
    if (!/^d\d+$/.test(k)) continue;
    const dir = k.slice(1);
    if (!inodes.has(dir)) wrong.push(`entries of missing directory ${dir}`);
    for (const [n, v] of await hash(ask, k)) {
      const ino = v.readBigUInt64BE(1).toString();
      const attr = inodes.get(ino);
      if (attr === undefined) wrong.push(`entry ${dir}/${n} without inode ${ino}`);
      else if (attr.type !== v[0]) wrong.push(`entry ${dir}/${n} has type ${v[0]}, its inode ${attr.type}`);
      links.set(ino, [...(links.get(ino) ?? []), dir]);
      children.set(dir, [...(children.get(dir) ?? []), ino]);
    }
  }
  let used = 0;
  let count = 0;
  const trash = '9223372032828243968';
  for (const [ino, a] of inodes) {
    const from = links.get(ino) ?? [];
    const dirs = (children.get(ino) ?? []).filter(c => inodes.get(c)?.type === FileType.directory).length;
    if (ino !== '1' && ino !== trash) {
      used += a.type === FileType.file ? space(a.length) : 4096;
      count++;
      const held = (
        await Promise.all(keys.filter(k => /^session\d+$/.test(k)).map(k => ask('SISMEMBER', k, ino)))
      ).includes(1);
      if (from.length === 0 && !held) wrong.push(`inode ${ino} has no entry`);
      if (a.type === FileType.directory) {
        const hourly = from[0] === trash;
        if (from.length > 1) wrong.push(`directory ${ino} has ${from.length} entries`);
        if (!hourly && a.nlink !== 2 + dirs) wrong.push(`directory ${ino}: nlink ${a.nlink}, ${dirs} sub-directories`);
      } else if (a.nlink !== from.length) wrong.push(`inode ${ino}: nlink ${a.nlink}, ${from.length} entries`);
      if (a.parent === 0) {
        const map = await hash(ask, `p${ino}`);
        for (const dir of new Set([...from, ...map.keys()])) {
          const n = from.filter(x => x === dir).length;
          if (Number(map.get(dir)?.toString() ?? 0) !== n)
            wrong.push(`inode ${ino}: parents map says ${map.get(dir)} of ${dir}, there are ${n}`);
        }
      }
    }
    if (a.type === FileType.directory && options.dirStats && ino !== trash) {
      const [length, size, n] = await Promise.all(
        ['dirDataLength', 'dirUsedSpace', 'dirUsedInodes'].map(async h =>
          Number(text((await ask('HGET', h, ino)) ?? Buffer.from('NaN'))),
        ),
      );
      if (!Number.isNaN(n)) {
        const kids = (children.get(ino) ?? []).map(c => inodes.get(c)!);
        const want = [
          kids.reduce((s, c) => s + (c.type === FileType.file ? c.length : 0), 0),
          kids.reduce((s, c) => s + (c.type === FileType.file ? space(c.length) : 4096), 0),
          kids.length,
        ];
        if (want.join() !== [length, size, n].join())
          wrong.push(`statistics of ${ino}: ${[length, size, n]} instead of ${want}`);
      }
    }
  }
  const storedUsed = Number(text((await ask('GET', 'usedSpace')) ?? Buffer.from('0')));
  const storedCount = Number(text((await ask('GET', 'totalInodes')) ?? Buffer.from('0')));
  if (storedUsed !== used) wrong.push(`usedSpace ${storedUsed} instead of ${used}`);
  if (storedCount !== count) wrong.push(`totalInodes ${storedCount} instead of ${count}`);
  if (options.sliceRefs) {
    const refs = new Map<string, number>();
    const add = (id: number, size: number): void => {
      if (id !== 0) refs.set(`k${id}_${size}`, (refs.get(`k${id}_${size}`) ?? 0) + 1);
    };
    for (const k of keys) {
      if (!/^c\d+_\d+$/.test(k)) continue;
      for (const r of (await ask('LRANGE', k, '0', '-1')) as Buffer[])
        for (const s of decodeSlices(r)) add(s.id, s.size);
    }
    for (const v of (await hash(ask, 'delSlices')).values())
      for (let at = 0; at < v.length; at += 12) add(Number(v.readBigUInt64BE(at)), v.readUInt32BE(at + 8));
    const stored = await hash(ask, 'sliceRef');
    for (const [k, n] of refs)
      if (Number(stored.get(k)?.toString() ?? 0) !== n - 1) wrong.push(`${k}: sliceRef ${stored.get(k)}, ${n} records`);
    for (const [k, v] of stored)
      if (!refs.has(k) && Number(v.toString()) >= 0) wrong.push(`${k}: sliceRef ${v}, no records`);
  }
  return wrong;
}

/**
 * Random operations on 30 names of a directory for `ms`; answers how many succeeded. Errors that a race explains are expected, others thrown.
 */
export async function randomOperations(
  c: Client,
  slot: number,
  d: Ino,
  seed: number,
  ms: number,
  writes = true,
): Promise<number> {
  let state = seed + slot * 7919;
  const random = (n: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % n;
  };
  let done = 0;
  const closed = (): boolean => false;
  for (const end = Date.now() + ms; Date.now() < end; ) {
    const [x, y] = [`n${random(30)}`, `n${random(30)}`];
    const op = c.op(slot);
    const e = c.engine;
    try {
      switch (random(writes ? 9 : 8)) {
        case 0:
          await e.create(op, root, d, name(x), 0o644, 0, random(2) === 0 ? 2 : 0o1002);
          break;
        case 1:
          await e.unlink(op, root, d, name(x), closed, random(2) === 0);
          break;
        case 2:
          await e.rename(op, root, d, name(x), d, name(y), random(3) === 0 ? 2 : 0, closed);
          break;
        case 3:
          await e.link(op, root, (await c.lookup(d, x)).ino, d, name(y));
          break;
        case 4:
          await e.mknod(op, root, d, name(x), { type: 2, mode: 0o755, umask: 0, rdev: 0 });
          break;
        case 5:
          await e.rmdir(op, root, d, name(x), random(2) === 0);
          break;
        case 6:
          await e.setattr(op, root, (await c.lookup(d, x)).ino, { size: random(9000) });
          break;
        case 7:
          await e.rename(op, root, d, name(x), (await c.lookup(d, y)).ino, name(x), 0, closed);
          break;
        default: {
          const { ino } = await c.lookup(d, x);
          const id = await e.newSliceIds(1);
          const len = 1 + random(9000);
          await e.write(
            op,
            ino,
            0,
            [{ pos: 0, id, size: len, off: 0, len }],
            len,
            { sec: 1, nsec: 0 },
            { sec: 1, nsec: 0 },
            false,
          );
        }
      }
      done++;
    } catch (error) {
      const code = (error as { code?: string }).code ?? '';
      if (!['ENOENT', 'EEXIST', 'ENOTDIR', 'EISDIR', 'ENOTEMPTY', 'EPERM', 'EINVAL'].includes(code)) throw error;
    }
    if (random(20) === 0) await new Promise(setImmediate);
  }
  return done;
}
