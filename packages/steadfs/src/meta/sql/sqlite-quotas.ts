/** Quotas on SQLite. Their usage is kept by sqlite-usage.ts. */
import type { Quota } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import { treeUsage } from '../ops/quota.ts';
import type { Body } from '../ops/tx.ts';
import type { SqliteCore } from './sqlite-core.ts';
import { inoParam, type SqliteTx } from './sqlite-tx.ts';

type QuotaKind = 'dir' | 'user' | 'group';

export function quotas(core: SqliteCore) {
  const { volume } = core;

  function quotaMap(kind: QuotaKind): Map<number, Quota> {
    const q = volume.quotas;
    return kind === 'dir' ? q.dirs : kind === 'user' ? q.users : q.groups;
  }

  async function getQuota(kind: QuotaKind, key: number): Promise<Quota | undefined> {
    return await core.read(() => {
      core.usage.load();
      const q = quotaMap(kind).get(key);
      return q === undefined ? undefined : { ...q };
    });
  }

  async function listQuotas(): Promise<{ kind: QuotaKind; key: number; quota: Quota }[]> {
    return await core.read(() => {
      core.usage.load();
      return (['dir', 'user', 'group'] as const).flatMap(kind =>
        [...quotaMap(kind)].map(([key, q]) => ({ kind, key, quota: { ...q } })),
      );
    });
  }

  async function setQuota(
    kind: QuotaKind,
    key: number,
    set: { maxSpace?: number; maxInodes?: number; usedSpace?: number; usedInodes?: number },
  ): Promise<void> {
    await core.transact(function* (tx): Body<void> {
      // What records hold is counted first: the row's usage then stands for everything up to now.
      core.usage.flush();
      core.usage.load();
      const old = quotaMap(kind).get(key);
      const used = old !== undefined || kind !== 'dir' ? undefined : yield* treeUsage(tx, key);
      const q: Quota = {
        maxSpace: set.maxSpace ?? old?.maxSpace ?? -1,
        maxInodes: set.maxInodes ?? old?.maxInodes ?? -1,
        usedSpace: set.usedSpace ?? old?.usedSpace ?? used?.space ?? 0,
        usedInodes: set.usedInodes ?? old?.usedInodes ?? used?.inodes ?? 0,
      };
      (tx as SqliteTx).writes++;
      const values = [q.maxSpace, q.maxInodes, q.usedSpace, q.usedInodes];
      const columns = 'max_space,max_inodes,used_space,used_inodes';
      if (kind === 'dir')
        core.st.exec(`INSERT OR REPLACE INTO $dir_quota(inode,${columns}) VALUES(?,?,?,?,?)`, inoParam(key), ...values);
      else {
        const sql = `INSERT OR REPLACE INTO $user_group_quota(qtype,qkey,${columns}) VALUES(?,?,?,?,?,?)`;
        core.st.exec(sql, kind === 'user' ? 1 : 2, key, ...values);
      }
      yield* logChange(tx, 'SETQUOTA', () => [
        kind === 'dir' ? 0 : kind === 'user' ? 1 : 2,
        key,
        q.maxSpace,
        q.maxInodes,
      ]);
      core.usage.load();
    });
  }

  async function deleteQuota(kind: QuotaKind, key: number): Promise<void> {
    await core.transact(function* (tx): Body<void> {
      (tx as SqliteTx).writes++;
      if (kind === 'dir') core.st.exec('DELETE FROM $dir_quota WHERE inode=?', inoParam(key));
      else {
        const sql = 'UPDATE $user_group_quota SET max_space=-1,max_inodes=-1 WHERE qtype=? AND qkey=?';
        core.st.exec(sql, kind === 'user' ? 1 : 2, key);
      }
      yield* logChange(tx, 'DELQUOTA', () => [kind === 'dir' ? 0 : kind === 'user' ? 1 : 2, key]);
      core.usage.load();
    });
  }

  return { getQuota, listQuotas, setQuota, deleteQuota };
}
