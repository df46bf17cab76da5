/** Names and attributes on SQLite as a mount asks for them: at once, from memory or by one statement. */
import { ENAMETOOLONG, ENOENT, ENOTDIR, Errno } from '@steadfs/fuse/errno';
import { type Attr, FileType } from '../../format/attr.ts';
import { type Ino, isTrash } from '../../format/ino.ts';
import { pagedDirStream } from '../dir-pages.ts';
import type { Cred, Entry, MaybePromise, MetaEngine, Name } from '../engine.ts';
import { checkAccess, linksAreListed, linksInTrash, NAME_MAX, shown, X } from '../ops/access.ts';
import { runSync } from '../ops/tx.ts';
import type { SqliteCore } from './sqlite-core.ts';

export function reading(core: SqliteCore) {
  /** A copy with the shown link count. */
  const copyOf = (ino: Ino, attr: Attr): Attr =>
    shown({ ...attr }, linksAreListed(attr) ? linksInTrash(core.tx.readLinks(ino)) : 0);

  function findNow(cred: Cred, parent: Ino, name: Name): Entry | undefined {
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
    if (cred.checkPermission) {
      const dir = core.tx.readNode(parent);
      if (dir === undefined) throw ENOENT;
      if (dir.type !== FileType.directory) throw ENOTDIR;
      runSync(checkAccess(core.tx, cred, dir, X));
    }
    const ino = core.tx.lookup(parent, name);
    if (ino === 0) {
      if ((core.tx.readNode(parent)?.type ?? FileType.directory) !== FileType.directory) throw ENOTDIR;
      return undefined;
    }
    return { ino, attr: copyOf(ino, core.tx.cachedNode(ino)!) };
  }

  function find(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry | undefined> {
    if (!core.grouping) {
      try {
        core.validate();
        return findNow(cred, parent, name);
      } catch (e) {
        if (e instanceof Errno) throw e;
        // An error of the database: read() meets it again, and waits where that helps.
      }
    }
    return core.read(() => findNow(cred, parent, name));
  }

  function lookup(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry> {
    const found = find(cred, parent, name);
    return found instanceof Promise ? found.then(present) : present(found);
  }

  function getattrNow(ino: Ino): Attr {
    const attr = core.tx.readNode(ino);
    if (attr === undefined) throw ENOENT;
    return copyOf(ino, attr);
  }

  function getattr(ino: Ino): MaybePromise<Attr> {
    if (!core.grouping) {
      try {
        core.validate();
        return getattrNow(ino);
      } catch (e) {
        if (e instanceof Errno) throw e;
        // As in find().
      }
    }
    return core.read(() => getattrNow(ino));
  }

  function dirStream(ino: Ino, state: Parameters<MetaEngine['dirStream']>[1]): ReturnType<MetaEngine['dirStream']> {
    return pagedDirStream(
      {
        page: (after, upto, limit) => core.read(() => core.tx.listPage(ino, after, upto, limit)),
        attributes: entries =>
          core.read(() => {
            const fetched = core.tx.fetchNodes(entries.map(e => e.ino));
            for (const e of entries) {
              const fresh = fetched.get(e.ino);
              // One link outside the trash: nothing to adjust, and nobody else has the object.
              if (fresh !== undefined && fresh.parent !== 0 && !isTrash(fresh.parent)) e.attr = fresh;
              else {
                const attr = fresh ?? core.tx.readNode(e.ino);
                if (attr !== undefined) e.attr = copyOf(e.ino, attr);
              }
            }
          }),
      },
      state,
    );
  }

  return { find, lookup, getattr, dirStream };
}

function present(found: Entry | undefined): Entry {
  if (found === undefined) throw ENOENT;
  return found;
}
