/** The volume's record and tables on PostgreSQL and MySQL: made, read, watched, dropped. */
import { EIO } from '@steadfs/fuse/errno';
import { type Attr, emptyDirectory } from '../../format/attr.ts';
import { ROOT, TRASH } from '../../format/ino.ts';
import { decryptSecrets, encryptSecrets, type Format, parseFormat, serialiseFormat } from '../../format/volume.ts';
import { runAsync } from '../ops/tx.ts';
import { FIRST_COUNTERS, formatOfSetting, settingsOver, watchSetting } from '../setting.ts';
import type { SqlConnection } from './connection.ts';
import type { Plans } from './mysql-plan.ts';
import { type NetworkCore, step } from './network-core.ts';
import { ownStatements, schemaStatements, TABLES } from './schema.ts';

export function volumeRecord(core: NetworkCore, plans: Plans | undefined) {
  const { hasTable, kind, options, own, persist, pool, prefix, transaction, volume } = core;
  let settingText = '';

  function take(text: string): Format {
    volume.format = formatOfSetting(text, pool.display);
    settingText = text;
    return { ...volume.format };
  }

  /** A heartbeat's look at the record. */
  async function look(): Promise<void> {
    watchSetting(await persist(readSetting), { text: settingText, uuid: volume.format.UUID }, options.events, take);
  }

  async function readSetting(c: SqlConnection): Promise<string | undefined> {
    if (!(await hasTable(c, `${prefix}setting`))) return undefined;
    const rows = await c.all(`SELECT value FROM ${prefix}setting WHERE name = 'format'`, []);
    return rows[0] === undefined ? undefined : String(rows[0][0]);
  }

  /** The first contact: a server that cannot be reached is an error at once, not an outage to sit out. */
  async function load(): Promise<Format | undefined> {
    let text: string | undefined;
    try {
      text = await pool.use(readSetting);
    } catch (e) {
      throw EIO.because(`${pool.display} cannot be used: ${e instanceof Error ? e.message : String(e)}`, e);
    }
    return text === undefined ? undefined : take(text);
  }

  async function createTables(): Promise<void> {
    await persist(async c => {
      for (const sql of [...schemaStatements(kind, prefix), ...ownStatements(kind, prefix)]) await c.run(sql, []);
    });
  }

  async function init(format: Format, force: boolean): Promise<void> {
    await createTables();
    await transaction(async (tx, c) => {
      const text = await readSetting(c);
      let wanted = format;
      if (text !== undefined) {
        const old = decryptSecrets(parseFormat(text));
        wanted = settingsOver(old, format, force);
        if (!old.DirStats && wanted.DirStats) await c.run(`DELETE FROM ${prefix}dir_stats`, []);
        if (!old.UserGroupQuota && wanted.UserGroupQuota) await c.run(`DELETE FROM ${prefix}user_group_quota`, []);
      }
      const { sec, nsec } = tx.now;
      const attr = (mode: number): Attr => emptyDirectory(mode, ROOT, sec, nsec);
      if (wanted.TrashDays > 0 && (await runAsync(step(tx.node(TRASH)))) === undefined)
        await runAsync(step(tx.insertNode(TRASH, attr(0o555))));
      const stored = serialiseFormat(encryptSecrets(wanted));
      if (text === undefined) {
        await c.run(`INSERT INTO ${prefix}setting (name, value) VALUES ('format', ?)`, [stored]);
        await runAsync(step(tx.insertNode(ROOT, attr(0o777))));
        for (const [name, value] of Object.entries(FIRST_COUNTERS))
          await c.run(`INSERT INTO ${prefix}counter (name, value) VALUES (?, ?)`, [name, value]);
      } else await c.run(`UPDATE ${prefix}setting SET value = ? WHERE name = 'format'`, [stored]);
    });
    await load();
  }

  async function reset(): Promise<void> {
    await persist(async c => {
      for (const name of [...TABLES.map(t => prefix + t.name), `${prefix}session`, `${own}session`, `${own}op`])
        await c.run(`DROP TABLE IF EXISTS ${name}`, []);
      await plans?.drop(c);
    });
  }

  return { load, init, reset, createTables, look };
}
