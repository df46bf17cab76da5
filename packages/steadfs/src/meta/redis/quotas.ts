/** Usage and limits: the volume's, those of directories, users and groups. */
import { ENOENT } from '@steadfs/fuse/errno';
import { FileType } from '../../format/attr.ts';
import { type Ino, inoFromBigint, inoToString, isTrash, ROOT } from '../../format/ino.ts';
import type { MetaEngine, Quota, StatfsResult } from '../engine.ts';
import { spaceOf } from '../ops/quota.ts';
import type { Core } from './core.ts';
import { asBuffer, asList, asNumber } from './forms.ts';
import type { Reading } from './reading.ts';
import type { Reply } from './resp.ts';

type QuotaKind = 'dir' | 'user' | 'group';

export type Quotas = ReturnType<typeof quotas>;

export function quotas(core: Core, reading: Reading) {
  const { S, ask, dKey, hashFields, iKey, key, need, run, options } = core;
  const { childAttrs, getattr } = reading;

  const quotaField = (kind: QuotaKind, k: number): string => (kind === 'dir' ? inoToString(k) : String(k));

  function decodeQuota(limits: Buffer, space: Reply | undefined, inos: Reply | undefined): Quota {
    return {
      maxSpace: Number(limits.readBigInt64BE(0)),
      maxInodes: Number(limits.readBigInt64BE(8)),
      usedSpace: asNumber(space),
      usedInodes: asNumber(inos),
    };
  }

  async function getQuota(kind: QuotaKind, k: number): Promise<Quota | undefined> {
    const field = quotaField(kind, k);
    const q = key(`${kind}Quota`);
    const [limits, space, inos] = await Promise.all([
      ask('HGET', q, field),
      ask('HGET', `${q}UsedSpace`, field),
      ask('HGET', `${q}UsedInodes`, field),
    ]);
    return limits === null ? undefined : decodeQuota(asBuffer(limits), space, inos);
  }

  async function treeUsage(root: Ino): Promise<{ space: number; inodes: number }> {
    const q = await getQuota('dir', root);
    if (q !== undefined) return { space: q.usedSpace, inodes: q.usedInodes };
    const sum = { space: 0, inodes: 0 };
    const todo = [root];
    for (let dir = todo.pop(); dir !== undefined; dir = todo.pop()) {
      const children = await childAttrs(dir);
      for (const c of children) {
        sum.space += spaceOf(c.attr);
        sum.inodes++;
        if (c.attr.type === FileType.directory) todo.push(c.ino);
      }
    }
    return sum;
  }

  /** The directory and its ancestors with a quota, the innermost first. */
  async function quotasAbove(dir: Ino): Promise<Quota[]> {
    const out: Quota[] = [];
    if (!need().DirStats || (await ask('EXISTS', key('dirQuota'))) === 0) return out;
    for (let at = dir, depth = 0; depth < 100_000; depth++) {
      const q = await getQuota('dir', at);
      if (q !== undefined) out.push(q);
      if (at === ROOT || at === 0 || isTrash(at)) break;
      at = (await getattr(at)).parent;
    }
    return out;
  }

  const methods: Pick<MetaEngine, 'statfs' | 'dirStat' | 'getQuota' | 'setQuota' | 'deleteQuota' | 'listQuotas'> = {
    async statfs(root): Promise<StatfsResult> {
      const f = need();
      const [values, quotas] = await Promise.all([
        ask('MGET', key('usedSpace'), key('totalInodes')),
        quotasAbove(root),
      ]);
      let usedSpace = Math.max(0, asNumber(asList(values)[0]));
      let usedInodes = Math.max(0, asNumber(asList(values)[1]));
      let total = f.Capacity ?? 0;
      if (total === 0) for (total = 2 ** 50; total * 8 < usedSpace * 10; ) total *= 2;
      let availSpace = Math.max(0, total - usedSpace);
      let availInodes = f.Inodes ? Math.max(0, f.Inodes - usedInodes) : 10 << 20;
      if (!f.Inodes) while (usedInodes > availInodes * 4) availInodes *= 2;
      for (const q of quotas) {
        if (q.maxSpace > 0) availSpace = Math.min(availSpace, Math.max(0, q.maxSpace - q.usedSpace));
        if (q.maxInodes > 0) availInodes = Math.min(availInodes, Math.max(0, q.maxInodes - q.usedInodes));
      }
      const inner = quotas[0];
      if (inner !== undefined) {
        usedSpace = inner.usedSpace;
        usedInodes = inner.usedInodes;
        total = usedSpace + availSpace;
      }
      return { totalSpace: total, availSpace, usedInodes, availInodes };
    },
    async dirStat(ino) {
      const field = inoToString(ino);
      const [length, space, count] = await Promise.all(
        ['dirDataLength', 'dirUsedSpace', 'dirUsedInodes'].map(h => ask('HGET', key(h), field)),
      );
      if (length !== null && space !== null && count !== null) {
        const stat = { length: asNumber(length), space: asNumber(space), inodes: asNumber(count) };
        if (stat.length >= 0 && stat.space >= 0 && stat.inodes >= 0) return stat;
      }
      const [raw, size] = await Promise.all([ask('GET', iKey(ino)), ask('HLEN', dKey(ino))]);
      if (raw === null) throw ENOENT;
      const stat = { length: 0, space: 0, inodes: 0 };
      for (const { attr } of await childAttrs(ino)) {
        if (attr.type === FileType.file) stat.length += attr.length;
        stat.space += spaceOf(attr);
        stat.inodes++;
      }
      if (need().DirStats && !options.readOnly && count === null)
        await run(
          S.setDirStat,
          [iKey(ino), dKey(ino)],
          [field, stat.length, stat.space, stat.inodes, asBuffer(raw), asNumber(size)],
        );
      return stat;
    },
    getQuota,
    async setQuota(kind, k, q) {
      const first =
        kind === 'dir' &&
        (q.usedSpace === undefined || q.usedInodes === undefined) &&
        (await getQuota(kind, k)) === undefined;
      const used = first ? await treeUsage(k) : undefined;
      const n = (v: number | undefined): string => (v === undefined ? '' : String(v));
      await run(
        S.setQuota,
        [key(`${kind}Quota`)],
        [
          kind,
          quotaField(kind, k),
          n(q.maxSpace),
          n(q.maxInodes),
          n(q.usedSpace ?? used?.space),
          n(q.usedInodes ?? used?.inodes),
        ],
      );
    },
    async deleteQuota(kind, k) {
      const field = quotaField(kind, k);
      const q = key(`${kind}Quota`);
      if (kind === 'dir') await Promise.all([q, `${q}UsedSpace`, `${q}UsedInodes`].map(h => ask('HDEL', h, field)));
      else await ask('HSET', q, field, Buffer.alloc(16, 0xff));
    },
    async listQuotas() {
      const out: { kind: QuotaKind; key: number; quota: Quota }[] = [];
      for (const kind of ['dir', 'user', 'group'] as const) {
        for await (const [field, limits] of hashFields(`${kind}Quota`)) {
          const k = inoFromBigint(BigInt(field.toString()));
          const used = await Promise.all(
            ['UsedSpace', 'UsedInodes'].map(s => ask('HGET', key(`${kind}Quota${s}`), field)),
          );
          out.push({ kind, key: k, quota: decodeQuota(limits, used[0], used[1]) });
        }
      }
      return out;
    },
  };
  return { methods, treeUsage };
}
