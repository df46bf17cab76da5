/** Quotas on PostgreSQL and MySQL. Their usage is kept by network-usage.ts. */
import { inoToBigint } from '../../format/ino.ts';
import type { MetaEngine } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import { treeUsage } from '../ops/quota.ts';
import { runAsync } from '../ops/tx.ts';
import type { NetworkCore } from './network-core.ts';
import { toNumber } from './network-tx.ts';
import type { NetworkUsage } from './network-usage.ts';

type QuotaKind = 'dir' | 'user' | 'group';

export function quotas(
  core: NetworkCore,
  usage: NetworkUsage,
): Pick<MetaEngine, 'getQuota' | 'setQuota' | 'deleteQuota' | 'listQuotas'> {
  const { persist, prefix, transaction, volume } = core;
  const { flush, loadQuotas } = usage;

  const quotaTable = (k: QuotaKind): string => (k === 'dir' ? 'dir_quota' : 'user_group_quota');
  const quotaWhere = (k: QuotaKind): string =>
    k === 'dir' ? 'inode = ?' : `qtype = ${k === 'user' ? 1 : 2} AND qkey = ?`;

  return {
    async getQuota(k, key) {
      const rows = await persist(c =>
        c.all(
          `SELECT max_space, max_inodes, used_space, used_inodes FROM ${prefix}${quotaTable(k)} WHERE ${quotaWhere(k)}`,
          [k === 'dir' ? inoToBigint(key) : key],
        ),
      );
      const r = rows[0];
      return (
        r && {
          maxSpace: toNumber(r[0]),
          maxInodes: toNumber(r[1]),
          usedSpace: toNumber(r[2]),
          usedInodes: toNumber(r[3]),
        }
      );
    },
    async setQuota(k, key, quota) {
      const value = k === 'dir' ? inoToBigint(key) : key;
      const table = prefix + quotaTable(k);
      // What records hold is counted first: the row's usage then stands for everything up to now.
      await flush();
      await transaction(async (tx, c) => {
        const columns = 'max_space, max_inodes, used_space, used_inodes';
        const [old] = await c.all(`SELECT ${columns} FROM ${table} WHERE ${quotaWhere(k)} FOR UPDATE`, [value]);
        const tree = old === undefined && k === 'dir' ? await runAsync(treeUsage(tx, key)) : { space: 0, inodes: 0 };
        const before = old ?? [-1, -1, tree.space, tree.inodes];
        const values = [quota.maxSpace, quota.maxInodes, quota.usedSpace, quota.usedInodes].map(
          (v, i) => v ?? toNumber(before[i]),
        );
        if (old !== undefined) {
          const sets = columns.split(', ').map(name => `${name} = ?`);
          await c.run(`UPDATE ${table} SET ${sets.join(', ')} WHERE ${quotaWhere(k)}`, [...values, value]);
        } else if (k === 'dir')
          await c.run(`INSERT INTO ${table} (${columns}, inode) VALUES (?, ?, ?, ?, ?)`, [...values, value]);
        else
          await c.run(`INSERT INTO ${table} (${columns}, qkey, qtype) VALUES (?, ?, ?, ?, ?, ?)`, [
            ...values,
            key,
            k === 'user' ? 1 : 2,
          ]);
        const type = k === 'dir' ? 0 : k === 'user' ? 1 : 2;
        await runAsync(logChange(tx, 'SETQUOTA', () => [type, key, values[0]!, values[1]!]));
      });
      await loadQuotas();
    },
    async deleteQuota(k, key) {
      await transaction(async (_tx, c) => {
        if (k === 'dir') await c.run(`DELETE FROM ${prefix}dir_quota WHERE inode = ?`, [inoToBigint(key)]);
        else
          await c.run(`UPDATE ${prefix}user_group_quota SET max_space = -1, max_inodes = -1 WHERE ${quotaWhere(k)}`, [
            key,
          ]);
      });
      await loadQuotas();
    },
    async listQuotas() {
      await flush();
      await loadQuotas();
      const { dirs, users, groups } = volume.quotas;
      return [
        ...[...dirs].map(([key, quota]) => ({ kind: 'dir' as const, key, quota })),
        ...[...users].map(([key, quota]) => ({ kind: 'user' as const, key, quota })),
        ...[...groups].map(([key, quota]) => ({ kind: 'group' as const, key, quota })),
      ];
    },
  };
}
