/** Names and attributes on PostgreSQL and MySQL as a mount asks for them: from memory where announcements keep it right, else by one statement. */
import { ENOENT, ENOTDIR } from '@steadfs/fuse/errno';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint, TRASH } from '../../format/ino.ts';
import { COMPLETE_LIMIT } from '../cache.ts';
import { pagedDirStream } from '../dir-pages.ts';
import type { Cred, Dentry, DirEntry, Entry, MetaEngine, Name } from '../engine.ts';
import { linksAreListed, NAME_MAX, shown } from '../ops/access.ts';
import type { SqlConnection, SqlRow } from './connection.ts';
import { nameKey } from './network-announce.ts';
import type { NetworkCore } from './network-core.ts';
import { NODE_COLUMNS, nodeFromRow, toBytes, toIno, toNumber } from './network-tx.ts';
import { SeenRows } from './seen-rows.ts';

const NODE_COLUMN_COUNT = NODE_COLUMNS.split(', ').length;

/** `generic`: the general way of ops/, for callers whose permissions are checked here. */
export function reading(core: NetworkCore, generic: Pick<MetaEngine, 'lookup'>) {
  const { announcer, kind, persist, pool, prefix, seen } = core;
  const { cache, fetching, trusted } = announcer;

  const columns = NODE_COLUMNS.split(', ')
    .map(c => `n.${c}`)
    .join(', ');

  /** ops/access.ts present, on a row of `columns` from `at`; undefined: it takes a look at the links as well. */
  function shownAlone(ino: Ino, row: SqlRow, at: number): Attr | undefined {
    const attr = nodeFromRow(row, at);
    seen.sawNode(ino, { ...attr });
    return linksAreListed(attr) ? undefined : shown(attr, 0);
  }

  /**
   * Attributes for readers and, where an inode can have several links, how many of them are in the trash. Not part of the statement for one inode: even where
   * nothing is counted it costs PostgreSQL 8 µs and MariaDB, which plans each time, 57 of 134.
   */
  const linkedColumns = `${columns}, CASE WHEN n.type <> ${FileType.directory} AND coalesce(n.parent, 0) = 0 THEN (SELECT count(*) FROM ${prefix}edge h WHERE h.inode = n.inode AND h.parent >= ${inoToBigint(TRASH)}) ELSE 0 END`;

  /** The same on a row of `linkedColumns`. */
  function shownLinked(ino: Ino, row: SqlRow, at: number): Attr {
    return shownAlone(ino, row, at) ?? shown(nodeFromRow(row, at), toNumber(row[at + NODE_COLUMN_COUNT]));
  }

  /** Whether it had several links when it was seen last. */
  function linked(ino: Ino): boolean {
    const { value } = seen.node(ino);
    return value !== undefined && value.parent === 0 && value.type !== FileType.directory;
  }

  /** One statement, two where links were made elsewhere since it was seen last. */
  async function attrOf(c: SqlConnection, ino: Ino): Promise<Attr> {
    if (linked(ino)) return await linkedAttr(c, ino);
    const [row] = await c.all(`SELECT ${columns} FROM ${prefix}node n WHERE n.inode = ?`, [inoToBigint(ino)]);
    if (row === undefined) throw ENOENT;
    return shownAlone(ino, row, 0) ?? (await linkedAttr(c, ino));
  }

  async function linkedAttr(c: SqlConnection, ino: Ino): Promise<Attr> {
    const [row] = await c.all(`SELECT ${linkedColumns} FROM ${prefix}node n WHERE n.inode = ?`, [inoToBigint(ino)]);
    if (row === undefined) throw ENOENT;
    return shownLinked(ino, row, 0);
  }

  /** As attrOf; and a look at the directory when it was not seen and the name is absent. The checks of the general way only when permissions are checked here. */
  async function lookup(cred: Cred, parent: Ino, name: Name): Promise<Entry> {
    if (cred.checkPermission || name.length > NAME_MAX) return await generic.lookup(cred, parent, name);
    const text = nameKey(name);
    if (trusted()) {
      const known = cache.name(parent, text);
      if (known === null) throw ENOENT;
      const attr = known === undefined ? undefined : cache.attr(known.ino);
      if (known !== undefined && attr !== undefined) return { ino: known.ino, attr: { ...attr } };
    }
    const keep = fetching();
    const key = SeenRows.key(parent, name);
    const before = seen.edge(key).value;
    const all = before !== undefined && linked(before.ino);
    const sql = `SELECT e.inode, ${all ? linkedColumns : columns} FROM ${prefix}edge e JOIN ${prefix}node n ON n.inode = e.inode WHERE e.parent = ? AND e.name = ?`;
    return await persist(async c => {
      const [row] = await c.all(sql, [inoToBigint(parent), name]);
      // An entry without its inode counts as none (spec/meta-sql.md §5).
      if (row === undefined) {
        const dir = seen.node(parent).value ?? (await attrOf(c, parent));
        if (dir.type !== FileType.directory) throw ENOTDIR;
        seen.sawEdge(key, undefined);
        if (keep(parent)) {
          cache.setName(parent, text, null);
          if (cache.wanted(parent)) void loadDir(parent);
        }
        throw ENOENT;
      }
      const ino = toIno(row[0]);
      const attr = all ? shownLinked(ino, row, 1) : (shownAlone(ino, row, 1) ?? (await linkedAttr(c, ino)));
      seen.sawEdge(key, { ino, type: attr.type });
      if (keep(parent)) cache.setName(parent, text, { ino, type: attr.type });
      if (keep(ino)) cache.setAttr(ino, { ...attr });
      return { ino, attr };
    });
  }

  /** All names of a directory that is often asked for names that it does not have. */
  async function loadDir(dir: Ino): Promise<void> {
    const keep = fetching();
    const sql = `SELECT name, inode, type FROM ${prefix}edge WHERE parent = ? LIMIT ${COMPLETE_LIMIT + 1}`;
    // Only a cache: the next lookup meets the same error.
    const rows = await pool.use(c => c.all(sql, [inoToBigint(dir)])).catch(() => undefined);
    if (rows === undefined || rows.length > COMPLETE_LIMIT || !keep(dir)) return;
    const names = new Map<string, Dentry | null>();
    for (const r of rows) names.set(nameKey(toBytes(r[0])), { ino: toIno(r[1]), type: toNumber(r[2]) as FileType });
    cache.setList(dir, names);
  }

  async function getattr(ino: Ino): Promise<Attr> {
    const known = trusted() ? cache.attr(ino) : undefined;
    if (known !== undefined) return { ...known };
    const keep = fetching();
    return await persist(async c => {
      const attr = await attrOf(c, ino);
      if (keep(ino)) cache.setAttr(ino, { ...attr });
      return attr;
    });
  }

  const dirStream: MetaEngine['dirStream'] = (ino, state) =>
    pagedDirStream(
      {
        page: (after, upto, limit) =>
          persist(async c => {
            const bound = upto === undefined ? '' : ' AND name <= ?';
            const sql = `SELECT name, inode, type FROM ${prefix}edge WHERE parent = ? AND name > ?${bound} ORDER BY name LIMIT ${Math.floor(limit)}`;
            const rows = await c.all(sql, [
              inoToBigint(ino),
              after ?? Buffer.alloc(0),
              ...(upto === undefined ? [] : [upto]),
            ]);
            return rows.map(r => ({
              name: toBytes(r[0]),
              ino: toIno(r[1]),
              type: toNumber(r[2]) as FileType,
              cookie: 0,
            }));
          }),
        attributes: (entries: DirEntry[]) =>
          persist(async c => {
            const attrs = new Map<Ino, Attr>();
            const wanted = `n.inode, ${linkedColumns}`;
            for (let at = 0; at < entries.length; at += 1000) {
              const part = entries.slice(at, at + 1000).map(e => inoToBigint(e.ino));
              const rows =
                kind === 'postgres'
                  ? await c.all(`SELECT ${wanted} FROM ${prefix}node n WHERE n.inode = ANY(?::bigint[])`, [
                      `{${part.join(',')}}`,
                    ])
                  : await c.all(
                      `SELECT ${wanted} FROM ${prefix}node n WHERE n.inode IN (${part.map(() => '?').join(',')})`,
                      part,
                    );
              for (const r of rows) attrs.set(toIno(r[0]), shownLinked(toIno(r[0]), r, 1));
            }
            for (const e of entries) {
              const attr = attrs.get(e.ino);
              // One attribute object each: a directory may have several entries of an inode.
              if (attr !== undefined) e.attr = { ...attr };
            }
          }),
      },
      state,
    );

  return { lookup, getattr, dirStream };
}
