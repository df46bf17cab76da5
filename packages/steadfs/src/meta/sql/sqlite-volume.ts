/** The volume's record and tables on SQLite: made, read, watched, dropped. */
import { EINVAL } from '@steadfs/fuse/errno';
import { type Attr, emptyDirectory } from '../../format/attr.ts';
import { ROOT, TRASH } from '../../format/ino.ts';
import { decryptSecrets, encryptSecrets, type Format, parseFormat, serialiseFormat } from '../../format/volume.ts';
import { now } from '../clock.ts';
import { FIRST_COUNTERS, formatOfSetting, settingsOver, watchSetting } from '../setting.ts';
import { ownPrefix, schemaStatements, TABLES } from './schema.ts';
import type { SqliteCore } from './sqlite-core.ts';
import { patiently } from './sqlite-file.ts';

const SETTING = "SELECT value FROM $setting WHERE name='format'";

export function volumeRecord(core: SqliteCore) {
  const { path, prefix, volume } = core;
  let settingText = '';

  async function load(): Promise<Format | undefined> {
    if (!(await core.connect(false))) return undefined;
    return await patiently(() => {
      if (!core.hasTable(`${prefix}setting`)) {
        const foreign = core.st.one(
          "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'steadfs_%' AND name NOT LIKE 'jfs_%'",
        );
        if (foreign !== undefined) throw EINVAL.because(`${path} holds other data (table ${String(foreign[0])})`);
        return undefined;
      }
      const text = core.st.one(SETTING)?.[0];
      if (typeof text !== 'string') return undefined;
      return take(text);
    });
  }

  function take(text: string): Format {
    volume.format = formatOfSetting(text, path);
    settingText = text;
    return { ...volume.format };
  }

  /** Undefined: there is no volume. */
  const setting = (): string | undefined => {
    const text = core.hasTable(`${prefix}setting`) ? core.st.one(SETTING)?.[0] : undefined;
    return typeof text === 'string' ? text : undefined;
  };

  /** A heartbeat's look at the record. */
  function look(): void {
    watchSetting(setting(), { text: settingText, uuid: volume.format.UUID }, core.options.events, take);
  }

  async function init(format: Format, force: boolean): Promise<void> {
    await core.connect(true);
    await load();
    await patiently(() => {
      core.exclusive(() => {
        const text = setting();
        for (const sql of schemaStatements('sqlite', prefix)) core.db.exec(sql);
        let wanted = format;
        if (text !== undefined) {
          const old = decryptSecrets(parseFormat(text));
          wanted = settingsOver(old, format, force);
          if (!old.DirStats && wanted.DirStats) core.st.exec('DELETE FROM $dir_stats');
          if (!old.UserGroupQuota && wanted.UserGroupQuota) core.st.exec('DELETE FROM $user_group_quota');
        }
        const stored = serialiseFormat(encryptSecrets(wanted));
        const t = now();
        const attr = (mode: number): Attr => emptyDirectory(mode, ROOT, t.sec, t.nsec);
        if (wanted.TrashDays > 0 && core.tx.readNode(TRASH) === undefined) core.tx.insertNode(TRASH, attr(0o555));
        core.st.exec(
          "INSERT INTO $setting(name,value) VALUES('format',?) ON CONFLICT(name) DO UPDATE SET value=excluded.value",
          stored,
        );
        if (text === undefined) {
          core.tx.insertNode(ROOT, attr(0o777));
          for (const [name, value] of Object.entries(FIRST_COUNTERS))
            core.st.exec('INSERT OR IGNORE INTO $counter(name,value) VALUES(?,?)', name, value);
        }
      });
      take(String(core.st.one(SETTING)![0]));
    });
    await core.durable();
  }

  async function reset(): Promise<void> {
    if (!(await core.connect(false))) return;
    await core.idle();
    const own = ownPrefix(prefix);
    await patiently(() =>
      core.exclusive(() => {
        for (const name of [...TABLES.map(t => prefix + t.name), `${prefix}session`, `${own}session`, `${own}op`]) {
          core.db.exec(`DROP TABLE IF EXISTS \`${name}\``);
        }
      }),
    );
    core.tx.rolledBack();
  }

  return { load, init, reset, look };
}
