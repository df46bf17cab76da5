/** The tables of a volume on SQLite, exactly as the format has them (spec/meta-sql.md §2): names, order, types, indexes. */

type Column = readonly [name: string, type: string];

interface Table {
  name: string;
  columns: readonly Column[];
  /** A table constraint, where the key is not on one column. */
  constraint?: string;
  indexes?: readonly { kind: 'UQE' | 'IDX'; name: string; columns: readonly string[] }[];
}

const I = 'INTEGER NOT NULL';
const ID = 'INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL';
const KEY = 'INTEGER PRIMARY KEY NOT NULL';
const NULLABLE = 'INTEGER NULL';
const ZERO = 'INTEGER DEFAULT 0 NOT NULL';

const TABLES: readonly Table[] = [
  {
    name: 'setting',
    columns: [
      ['name', 'TEXT PRIMARY KEY NOT NULL'],
      ['value', 'TEXT NOT NULL'],
    ],
  },
  {
    name: 'counter',
    columns: [
      ['name', 'TEXT PRIMARY KEY NOT NULL'],
      ['value', I],
    ],
  },
  {
    name: 'edge',
    columns: [
      ['id', ID],
      ['parent', I],
      ['name', 'BLOB NOT NULL'],
      ['inode', I],
      ['type', I],
    ],
    indexes: [
      { kind: 'UQE', name: 'edge', columns: ['parent', 'name'] },
      { kind: 'IDX', name: 'inode', columns: ['inode'] },
    ],
  },
  {
    name: 'node',
    columns: [
      ['inode', KEY],
      ['type', I],
      ['flags', I],
      ['mode', I],
      ['uid', I],
      ['gid', I],
      ['atime', I],
      ['mtime', I],
      ['ctime', I],
      ['atimensec', ZERO],
      ['mtimensec', ZERO],
      ['ctimensec', ZERO],
      ['nlink', I],
      ['length', I],
      ['rdev', NULLABLE],
      ['parent', NULLABLE],
      ['access_acl_id', NULLABLE],
      ['default_acl_id', NULLABLE],
      ['tier_id', NULLABLE],
    ],
  },
  {
    name: 'symlink',
    columns: [
      ['inode', KEY],
      ['target', 'BLOB NOT NULL'],
    ],
  },
  {
    name: 'xattr',
    columns: [
      ['id', ID],
      ['inode', I],
      ['name', 'TEXT NOT NULL'],
      ['value', 'BLOB NOT NULL'],
    ],
    indexes: [{ kind: 'UQE', name: 'name', columns: ['inode', 'name'] }],
  },
  {
    name: 'chunk',
    columns: [
      ['id', ID],
      ['inode', I],
      ['indx', I],
      ['slices', 'BLOB NOT NULL'],
    ],
    indexes: [{ kind: 'UQE', name: 'chunk', columns: ['inode', 'indx'] }],
  },
  {
    name: 'chunk_ref',
    columns: [
      ['chunkid', KEY],
      ['size', I],
      ['refs', I],
    ],
    indexes: [{ kind: 'IDX', name: 'refs', columns: ['refs'] }],
  },
  {
    name: 'delslices',
    columns: [
      ['chunkid', KEY],
      ['deleted', I],
      ['slices', 'BLOB NOT NULL'],
    ],
  },
  {
    name: 'session2',
    columns: [
      ['sid', KEY],
      ['expire', I],
      ['info', 'BLOB NULL'],
    ],
  },
  {
    name: 'sustained',
    columns: [
      ['id', ID],
      ['sid', I],
      ['inode', I],
    ],
    indexes: [{ kind: 'UQE', name: 'sustained', columns: ['sid', 'inode'] }],
  },
  {
    name: 'delfile',
    columns: [
      ['inode', KEY],
      ['length', I],
      ['expire', I],
    ],
  },
  {
    name: 'flock',
    columns: [
      ['id', ID],
      ['inode', I],
      ['sid', I],
      ['owner', I],
      ['ltype', I],
    ],
    indexes: [{ kind: 'UQE', name: 'flock', columns: ['inode', 'sid', 'owner'] }],
  },
  {
    name: 'plock',
    columns: [
      ['id', ID],
      ['inode', I],
      ['sid', I],
      ['owner', I],
      ['records', 'BLOB NOT NULL'],
    ],
    indexes: [{ kind: 'UQE', name: 'plock', columns: ['inode', 'sid', 'owner'] }],
  },
  {
    name: 'dir_quota',
    columns: [
      ['inode', KEY],
      ['max_space', I],
      ['max_inodes', I],
      ['used_space', I],
      ['used_inodes', I],
    ],
  },
  {
    name: 'user_group_quota',
    columns: [
      ['qtype', I],
      ['qkey', I],
      ['max_space', I],
      ['max_inodes', I],
      ['used_space', I],
      ['used_inodes', I],
    ],
    constraint: 'PRIMARY KEY ( `qtype`,`qkey` )',
  },
  {
    name: 'dir_stats',
    columns: [
      ['inode', KEY],
      ['data_length', I],
      ['used_space', I],
      ['used_inodes', I],
    ],
  },
  {
    name: 'detached_node',
    columns: [
      ['inode', KEY],
      ['added', I],
    ],
  },
  {
    name: 'acl',
    columns: [
      ['id', ID],
      ['owner', NULLABLE],
      ['group', NULLABLE],
      ['mask', NULLABLE],
      ['other', NULLABLE],
      ['named_users', 'BLOB NULL'],
      ['named_groups', 'BLOB NULL'],
    ],
  },
  {
    name: 'delegation_token',
    columns: [
      ['id', ID],
      ['token', 'BLOB NULL'],
    ],
  },
  {
    name: 'change_log',
    columns: [
      ['id', ID],
      ['entry', 'TEXT NOT NULL'],
    ],
  },
];

/** Statements that make what is missing of the volume's tables, in creation order. */
export function volumeSchema(prefix: string): string[] {
  const out: string[] = [];
  for (const t of TABLES) {
    const parts = t.columns.map(([name, type]) => `\`${name}\` ${type}`);
    if (t.constraint !== undefined) parts.push(t.constraint);
    out.push(`CREATE TABLE IF NOT EXISTS \`${prefix}${t.name}\` (${parts.join(', ')})`);
    for (const i of t.indexes ?? []) {
      const unique = i.kind === 'UQE' ? 'UNIQUE ' : '';
      const columns = i.columns.map(c => `\`${c}\``).join(',');
      out.push(
        `CREATE ${unique}INDEX IF NOT EXISTS \`${i.kind}_${prefix}${t.name}_${i.name}\` ON \`${prefix}${t.name}\` (${columns})`,
      );
    }
  }
  return out;
}

/** Columns that databases made by older versions may lack, as [table, column, type]. */
export function lateColumns(prefix: string): [table: string, column: string, type: string][] {
  const node = TABLES.find(t => t.name === 'node')!;
  return node.columns
    .filter(([, type]) => type === NULLABLE || type === ZERO)
    .map(([name, type]) => [`${prefix}node`, name, type]);
}

export function tableNames(prefix: string): string[] {
  return TABLES.map(t => prefix + t.name);
}

/**
 * Our own tables, ignored by other clients. steadfs_session: header of a session, see engine.ts adoptSession. steadfs_op: op records, one row
 * per (session, kind, slot), overwritten in place; `acct` holds changes of usage that are not yet in the volume's tables.
 */
export function ownSchema(prefix: string): string[] {
  const p = ownPrefix(prefix);
  return [
    `CREATE TABLE IF NOT EXISTS ${p}session (sid INTEGER PRIMARY KEY NOT NULL, incarnation TEXT NOT NULL, volume TEXT NOT NULL, epoch INTEGER NOT NULL)`,
    `CREATE TABLE IF NOT EXISTS ${p}op (sid INTEGER NOT NULL, kind INTEGER NOT NULL, slot INTEGER NOT NULL, seq INTEGER NOT NULL, result BLOB, acct BLOB, PRIMARY KEY (sid, kind, slot)) WITHOUT ROWID`,
  ];
}

/** `steadfs_`, or `steadfs_NAME_` beside a volume whose tables begin with jfs_NAME_. */
export function ownPrefix(prefix: string): string {
  return prefix.replace(/^jfs_/, 'steadfs_');
}
