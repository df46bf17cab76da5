/**
 * The tables of a volume in SQL (spec/meta-sql.md §2) for the three dialects, and our own, whose names the other client never meets.
 * Letters of column types as in the spec: i 32 bits, l 64 bits, S/s row number (64/32 bits), v varchar(255), t text,
 * b(n) short bytes, B bytes. All integers are signed. `?` after the letter: nullable, `=x`: default.
 */

export type Dialect = 'sqlite' | 'postgres' | 'mysql';

interface Table {
  name: string;
  columns: readonly string[];
  /** Of several columns; one of a single column is marked by `*` after its name. */
  primary?: readonly string[];
  unique?: { name: string; columns: readonly string[] };
  index?: { name: string; columns: readonly string[] };
}

/** In the order of creation. */
export const TABLES: readonly Table[] = [
  { name: 'setting', columns: ['name* v', 'value t'] },
  { name: 'counter', columns: ['name* v', 'value l'] },
  {
    name: 'edge',
    columns: ['id S', 'parent l', 'name b255', 'inode l', 'type i'],
    unique: { name: 'edge', columns: ['parent', 'name'] },
    index: { name: 'inode', columns: ['inode'] },
  },
  {
    name: 'node',
    columns: [
      'inode* l',
      'type i',
      'flags i',
      'mode i',
      'uid i',
      'gid i',
      'atime l',
      'mtime l',
      'ctime l',
      'atimensec i=0',
      'mtimensec i=0',
      'ctimensec i=0',
      'nlink i',
      'length l',
      'rdev i?',
      'parent l?',
      'access_acl_id i?',
      'default_acl_id i?',
      'tier_id i?',
    ],
  },
  { name: 'symlink', columns: ['inode* l', 'target b4096'] },
  {
    name: 'xattr',
    columns: ['id S', 'inode l', 'name v', 'value B'],
    unique: { name: 'name', columns: ['inode', 'name'] },
  },
  {
    name: 'chunk',
    columns: ['id S', 'inode l', 'indx i', 'slices B'],
    unique: { name: 'chunk', columns: ['inode', 'indx'] },
  },
  { name: 'chunk_ref', columns: ['chunkid* l', 'size i', 'refs i'], index: { name: 'refs', columns: ['refs'] } },
  { name: 'delslices', columns: ['chunkid* l', 'deleted l', 'slices B'] },
  { name: 'session2', columns: ['sid* l', 'expire l', 'info B?'] },
  {
    name: 'sustained',
    columns: ['id S', 'sid l', 'inode l'],
    unique: { name: 'sustained', columns: ['sid', 'inode'] },
  },
  { name: 'delfile', columns: ['inode* l', 'length l', 'expire l'] },
  {
    name: 'flock',
    columns: ['id S', 'inode l', 'sid l', 'owner l', 'ltype i'],
    unique: { name: 'flock', columns: ['inode', 'sid', 'owner'] },
  },
  {
    name: 'plock',
    columns: ['id S', 'inode l', 'sid l', 'owner l', 'records B'],
    unique: { name: 'plock', columns: ['inode', 'sid', 'owner'] },
  },
  { name: 'dir_quota', columns: ['inode* l', 'max_space l', 'max_inodes l', 'used_space l', 'used_inodes l'] },
  {
    name: 'user_group_quota',
    columns: ['qtype i', 'qkey l', 'max_space l', 'max_inodes l', 'used_space l', 'used_inodes l'],
    primary: ['qtype', 'qkey'],
  },
  { name: 'dir_stats', columns: ['inode* l', 'data_length l', 'used_space l', 'used_inodes l'] },
  { name: 'detached_node', columns: ['inode* l', 'added l'] },
  {
    name: 'acl',
    columns: ['id s', 'owner i?', 'group i?', 'mask i?', 'other i?', 'named_users B?', 'named_groups B?'],
  },
  { name: 'delegation_token', columns: ['id s', 'token B?'] },
  { name: 'change_log', columns: ['id S', 'entry t'] },
];

const QUOTE: Record<Dialect, string> = { sqlite: '`', postgres: '"', mysql: '`' };

function columnType(dialect: Dialect, letter: string): string {
  const length = /^b(\d+)$/.exec(letter)?.[1];
  const types: Record<Dialect, Record<string, string>> = {
    sqlite: { i: 'INTEGER', l: 'INTEGER', v: 'TEXT', t: 'TEXT', B: 'BLOB' },
    postgres: { i: 'integer', l: 'bigint', v: 'varchar(255)', t: 'text', B: 'bytea' },
    mysql: { i: 'int', l: 'bigint', v: 'varchar(255)', t: 'text', B: 'blob' },
  };
  if (length !== undefined)
    return dialect === 'sqlite' ? 'BLOB' : dialect === 'postgres' ? 'bytea' : `varbinary(${length})`;
  const type = types[dialect][letter];
  if (type === undefined) throw new Error(`no column type ${letter}`);
  return type;
}

function columnDefinition(dialect: Dialect, column: string): string {
  const match = /^(\w+)(\*?) (\w+?)(\??)(?:=(\w+))?$/.exec(column);
  if (match === null) throw new Error(`malformed column ${column}`);
  const [, name, key, letter, nullable, preset] = match as unknown as [
    string,
    string,
    string,
    string,
    string,
    string | undefined,
  ];
  const quoted = `${QUOTE[dialect]}${name}${QUOTE[dialect]}`;
  if (letter === 'S' || letter === 's') {
    if (dialect === 'sqlite') return `${quoted} INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL`;
    if (dialect === 'postgres') return `${quoted} ${letter === 'S' ? 'BIGSERIAL' : 'SERIAL'} PRIMARY KEY NOT NULL`;
    return `${quoted} ${letter === 'S' ? 'bigint' : 'int'} PRIMARY KEY AUTO_INCREMENT NOT NULL`;
  }
  return [
    quoted,
    columnType(dialect, letter),
    key && 'PRIMARY KEY',
    preset !== undefined && `DEFAULT ${preset}`,
    nullable ? 'NULL' : 'NOT NULL',
  ]
    .filter(Boolean)
    .join(' ');
}

/** Statements that create what is missing. `prefix`: `jfs_` or `jfs_{table_prefix}_`; index names carry the full table name. */
export function schemaStatements(dialect: Dialect, prefix: string): string[] {
  const q = QUOTE[dialect];
  const out: string[] = [];
  for (const table of TABLES) {
    const full = `${prefix}${table.name}`;
    const parts = table.columns.map(c => columnDefinition(dialect, c));
    if (table.primary) parts.push(`PRIMARY KEY ( ${table.primary.map(c => `${q}${c}${q}`).join(',')} )`);
    const indexes: string[] = [];
    for (const [kind, index] of [
      ['UQE', table.unique],
      ['IDX', table.index],
    ] as const) {
      if (index === undefined) continue;
      const name = `${kind}_${full}_${index.name}`;
      const columns = index.columns.map(c => `${q}${c}${q}`).join(',');
      // MySQL has no CREATE INDEX IF NOT EXISTS.
      if (dialect === 'mysql') parts.push(`${kind === 'UQE' ? 'UNIQUE ' : ''}INDEX ${q}${name}${q} (${columns})`);
      else
        indexes.push(
          `CREATE ${kind === 'UQE' ? 'UNIQUE ' : ''}INDEX IF NOT EXISTS ${q}${name}${q} ON ${q}${full}${q} (${columns})`,
        );
    }
    out.push(`CREATE TABLE IF NOT EXISTS ${q}${full}${q} (${parts.join(', ')})`, ...indexes);
  }
  return out;
}

/** `steadfs_`, or `steadfs_NAME_` beside a volume whose tables begin with jfs_NAME_. */
export function ownPrefix(prefix: string): string {
  return prefix.replace(/^jfs_/, 'steadfs_');
}

/** Columns of `node` that databases made by older versions may lack, as definitions to add. */
export function lateColumns(): { name: string; definition: string }[] {
  const node = TABLES.find(t => t.name === 'node');
  return (node?.columns ?? [])
    .filter(c => /[?=]/.test(c))
    .map(c => ({ name: c.split(' ')[0]!, definition: columnDefinition('sqlite', c) }));
}

/**
 * Our own tables, ignored by other clients. steadfs_session: header of a session (engine.ts, adoptSession). steadfs_op: op records, one row per
 * (session, kind, slot), overwritten in place; `acct` holds changes of usage that are not yet in the volume's tables.
 */
export function ownStatements(dialect: Dialect, prefix: string): string[] {
  const own = ownPrefix(prefix);
  const [text, bytes, long] = {
    sqlite: ['TEXT', 'BLOB', 'INTEGER'],
    postgres: ['text', 'bytea', 'bigint'],
    mysql: ['varchar(64)', 'blob', 'bigint'],
  }[dialect] as [string, string, string];
  // Rows are overwritten again and again: room for the new versions on their page keeps the index untouched.
  const storage = dialect === 'postgres' ? ' WITH (fillfactor = 50)' : dialect === 'sqlite' ? ' WITHOUT ROWID' : '';
  return [
    `CREATE TABLE IF NOT EXISTS ${own}session (sid ${long} PRIMARY KEY NOT NULL, incarnation ${text} NOT NULL, volume ${text} NOT NULL, epoch ${long} NOT NULL)`,
    `CREATE TABLE IF NOT EXISTS ${own}op (sid ${long} NOT NULL, kind ${long} NOT NULL, slot ${long} NOT NULL, seq ${long} NOT NULL, result ${bytes} NULL, acct ${bytes} NULL, PRIMARY KEY (sid, kind, slot))${storage}`,
  ];
}
