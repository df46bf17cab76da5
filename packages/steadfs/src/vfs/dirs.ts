/** Requests about open directories. */
import type { Context, EntryOut, FileSystem, OpenOut } from '@steadfs/fuse';
import { EBADF, ENOENT } from '@steadfs/fuse/errno';
import { FileType } from '../format/attr.ts';
import { type Ino, inoForStat, ROOT } from '../format/ino.ts';
import { FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE } from './abi.ts';
import { sameVersion, versionOf } from './attrs.ts';
import type { Core } from './core.ts';
import { credOf } from './cred.ts';
import { ENGINE_COOKIES, type ListingContext, list, newCursor, type OwnEntry, streamState } from './dirstreams.ts';
import { type Handle, HandleKind } from './handles.ts';
import { type MaybePromise, recover, then } from './maybe.ts';

type DirMethods = Pick<FileSystem, 'opendir' | 'readdir' | 'releasedir' | 'fsyncdir'>;

const DOT = Buffer.from('.');
const DOTS = Buffer.from('..');

export function dirMethods(core: Core): DirMethods {
  const { engine, handles, inodes, items } = core;

  const listing: ListingContext = {
    changes: () => core.changes,
    removals: () => core.removals,
    plusEntry(ino, attr) {
      if (attr.type === FileType.file) {
        const inode = inodes.get(ino);
        // A file that is being written has another length and mtime by now.
        if (inode !== undefined && (inode.writers > 0 || core.data.pending(ino) !== undefined)) return undefined;
      }
      return core.entryOut(ino, attr);
    },
    freshEntry: ino =>
      recover<EntryOut | undefined>(
        () => then(engine.getattr(ino), attr => core.freshEntry({ ino, attr })),
        error => {
          if (error !== ENOENT) throw error;
          return undefined;
        },
      ),
  };

  /** ".", ".." and, in the root, our own files. */
  function ownEntries(dir: Ino, parent: Ino): OwnEntry[] {
    const own: OwnEntry[] = [
      { name: DOT, ino: core.statIno(dir), type: FileType.directory },
      { name: DOTS, ino: core.statIno(parent), type: FileType.directory },
    ];
    if (dir !== core.root) return own;
    for (const l of core.internals.listed) {
      own.push({ name: l.name, ino: inoForStat(l.ino), type: l.type, entry: core.internalEntry(l.ino) });
    }
    return own;
  }

  function dirOf(fh: number): Handle {
    const handle = handles.get(fh);
    if (handle === undefined || handle.kind !== HandleKind.directory) throw EBADF;
    return handle;
  }

  function opened(ctx: Context, ino: Ino, flags: number): OpenOut {
    const handle =
      handles.madeBy(ctx.op, ctx.replay) ?? handles.open(HandleKind.directory, ino, flags, ctx.op, ctx.uid, ctx.gid);
    return { fh: handle.fh, flags: 0 };
  }

  return {
    opendir(ctx, nodeid, flags) {
      const ino = core.ino(nodeid);
      const allowed = core.options.defaultPermissions
        ? undefined
        : engine.access(credOf(core.options, ctx.uid, ctx.gid, ctx.pid, true), ino, 4);
      if (!core.options.readdirCache) return then(allowed, () => opened(ctx, ino, flags));
      return then(allowed, () =>
        then(engine.getattr(ino), attr => {
          const seen = inodes.seenOf(ino);
          const same = seen !== undefined && sameVersion(seen, attr);
          if (!same) inodes.setSeen(ino, versionOf(attr));
          return { ...opened(ctx, ino, flags), flags: FOPEN_CACHE_DIR | (same ? FOPEN_KEEP_CACHE : 0) };
        }),
      );
    },

    readdir(_ctx, _nodeid, fh, offset, sink): MaybePromise<void> {
      const handle = dirOf(fh);
      const dir = handle.ino;
      handle.cursor ??= newCursor(engine.dirStream(dir, streamState(items, fh)));
      const { cursor } = handle;
      if (offset >= ENGINE_COOKIES) return list(cursor, offset, [], sink, listing);
      if (core.options.atimeMode !== 'noatime' && !core.options.readOnly) void engine.touchAtime(dir);
      if (dir === core.root) return list(cursor, offset, ownEntries(dir, ROOT), sink, listing);
      const parent = recover(
        () => then(engine.getattr(dir), a => a.parent || ROOT),
        error => {
          if (error !== ENOENT) throw error;
          return undefined;
        },
      );
      // A directory that was removed while it is open lists nothing.
      return then(parent, p => (p === undefined ? undefined : list(cursor, offset, ownEntries(dir, p), sink, listing)));
    },

    releasedir(_ctx, _nodeid, fh) {
      const handle = handles.get(fh);
      if (handle === undefined) return;
      handle.cursor?.stream.close();
      items.clear(fh);
      handles.close(handle);
    },

    fsyncdir: () => engine.sync(),
  };
}
