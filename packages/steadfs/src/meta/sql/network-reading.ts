/** Names and attributes on PostgreSQL and MySQL as a mount asks for them: from memory where announcements keep it right, else by one statement. */
import { ENOENT, ENOTDIR } from '@steadfs/fuse/errno';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, inoToBigint, isTrash, TRASH } from '../../format/ino.ts';
import { pagedDirStream } from '../dir-pages.ts';
import type { Cred, Dentry, DirEntry, Entry, MetaEngine, Name } from '../engine.ts';
import { NAME_MAX } from '../ops/access.ts';
import { COMPLETE_LIMIT } from '../redis/cache.ts';
import type { SqlRow } from './connection.ts';
import { nameKey } from './network-announce.ts';
import type { NetworkCore } from './network-core.ts';
import { NODE_COLUMNS, nodeFromRow, toBytes, toIno, toNumber } from './network-tx.ts';
import { SeenRows } from './seen-rows.ts';

const NODE_COLUMN_COUNT = NODE_COLUMNS.split(', ').length;

/** `generic`: the general way of ops/, for callers whose permissions are checked here. */
export function reading(core: NetworkCore, generic: Pick<MetaEngine, 'lookup'>) {
  const { announcer, kind, persist, pool, prefix, seen } = core;
  const { cache, fetching, trusted } = announcer;

  /** Attributes of `n` for readers, and how many of its links are in the trash (only looked for where there can be several). */
  const shownColumns = `${NODE_COLUMNS.split(', ')
    .map(c => `n.${c}`)
    .join(
      ', ',
    )}, CASE WHEN n.type <> ${FileType.directory} AND coalesce(n.parent, 0) = 0 THEN (SELECT count(*) FROM ${prefix}edge h WHERE h.inode = n.inode AND h.parent >= ${inoToBigint(TRASH)}) ELSE 0 END`;

  /** ops/access.ts present, on a row of {@link shownColumns} from `at`. */
  function shownFromRow(ino: Ino, row: SqlRow, at: number): Attr {
    const attr = nodeFromRow(row, at);
    seen.sawNode(ino, { ...attr });
    if (attr.type === FileType.directory || attr.nlink === 0) return attr;
    const trashed = isTrash(attr.parent) ? 1 : toNumber(row[at + NODE_COLUMN_COUNT]);
    attr.nlink = Math.max(0, attr.nlink - trashed);
    return attr;
  }

  /** One statement; the checks of the general way only when it finds nothing or permissions are checked here. */
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
    const sql = `SELECT p.type, e.inode, ${shownColumns} FROM ${prefix}node p LEFT JOIN ${prefix}edge e ON e.parent = p.inode AND e.name = ? LEFT JOIN ${prefix}node n ON n.inode = e.inode WHERE p.inode = ?`;
    return await persist(async c => {
      const row = (await c.all(sql, [name, inoToBigint(parent)]))[0];
      if (row === undefined) throw ENOENT;
      if (toNumber(row[0]) !== FileType.directory) throw ENOTDIR;
      const key = SeenRows.key(parent, name);
      // An entry without its inode counts as none (spec/meta-sql.md §5).
      if (row[1] === null || row[2] === null) {
        seen.sawEdge(key, undefined);
        if (keep(parent)) {
          cache.setName(parent, text, null);
          if (cache.wanted(parent)) void loadDir(parent);
        }
        throw ENOENT;
      }
      const ino = toIno(row[1]);
      const attr = shownFromRow(ino, row, 2);
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
      const rows = await c.all(`SELECT ${shownColumns} FROM ${prefix}node n WHERE n.inode = ?`, [inoToBigint(ino)]);
      if (rows[0] === undefined) throw ENOENT;
      const attr = shownFromRow(ino, rows[0], 0);
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
            const columns = `n.inode, ${shownColumns}`;
            for (let at = 0; at < entries.length; at += 1000) {
              const part = entries.slice(at, at + 1000).map(e => inoToBigint(e.ino));
              const rows =
                kind === 'postgres'
                  ? await c.all(`SELECT ${columns} FROM ${prefix}node n WHERE n.inode = ANY(?::bigint[])`, [
                      `{${part.join(',')}}`,
                    ])
                  : await c.all(
                      `SELECT ${columns} FROM ${prefix}node n WHERE n.inode IN (${part.map(() => '?').join(',')})`,
                      part,
                    );
              for (const r of rows) attrs.set(toIno(r[0]), shownFromRow(toIno(r[0]), r, 1));
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
