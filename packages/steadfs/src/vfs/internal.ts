/** The files that are not in the volume: `.accesslog`, `.control`, `.stats`, `.config`, and the way to `.trash` (spec/volume.md §2). */
import { type Attr, FileType } from '../format/attr.ts';
import { ACCESSLOG_INO, CONFIG_INO, CONTROL_INO, type Ino, ROOT, STATS_INO, TRASH } from '../format/ino.ts';
import type { Name } from '../meta/engine.ts';
import type { MountOptions } from './mount-options.ts';

interface InternalFile {
  ino: Ino;
  /** Without the leading dot or `.jfs.`. */
  name: string;
  mode: number;
}

const FILES: readonly InternalFile[] = [
  { ino: ACCESSLOG_INO, name: 'accesslog', mode: 0o400 },
  { ino: CONTROL_INO, name: 'control', mode: 0o666 },
  { ino: STATS_INO, name: 'stats', mode: 0o444 },
  { ino: CONFIG_INO, name: 'config', mode: 0o400 },
];

export interface Internals {
  /** Inode of a special name in a directory; undefined for an ordinary one. */
  find(parent: Ino, name: Name): Ino | undefined;
  /** Attributes of an internal file or of .trash; undefined for inodes of the volume. */
  attr(ino: Ino): Attr | undefined;
  /** Names that a listing of the root shows. */
  readonly listed: readonly { name: Name; ino: Ino; type: FileType }[];
}

const DOT = 46;

/** `root` is the inode that the mount's root maps to: below --subdir there is no trash. */
export function internals(o: MountOptions, root: Ino): Internals {
  const prefix = o.prefixInternal ? '.jfs.' : '.';
  const time = Math.floor(o.mountedAt / 1000);
  const nsec = Math.floor((o.mountedAt % 1000) * 1e6);
  const make = (type: FileType, mode: number, nlink: number, uid: number, gid: number): Attr => ({
    flags: 0,
    type,
    mode,
    uid,
    gid,
    atime: time,
    atimensec: nsec,
    mtime: time,
    mtimensec: nsec,
    ctime: time,
    ctimensec: nsec,
    nlink,
    length: 0,
    rdev: 0,
    parent: root,
    accessAcl: 0,
    defaultAcl: 0,
    tier: 0,
  });
  const attrs = new Map<Ino, Attr>(FILES.map(f => [f.ino, make(FileType.file, f.mode, 1, o.uid, o.gid)]));
  const names = new Map<string, Ino>(FILES.map(f => [prefix + f.name, f.ino]));
  if (root === ROOT) {
    names.set(`${prefix}trash`, TRASH);
    attrs.set(TRASH, make(FileType.directory, 0o555, 2, 0, 0));
  }
  const control = `${prefix}control`;
  const longest = Math.max(...[...names.keys()].map(n => n.length));
  const listed = [...names]
    .filter(([, ino]) => ino !== CONTROL_INO && !o.hideInternal)
    .map(([name, ino]) => ({ name: Buffer.from(name), ino, type: attrs.get(ino)!.type }));
  return {
    find(parent, name) {
      if (name[0] !== DOT || name.length < 6 || name.length > longest) return undefined;
      const text = Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1');
      const ino = names.get(text);
      return ino !== undefined && (parent === root || text === control) ? ino : undefined;
    },
    attr: ino => attrs.get(ino),
    listed,
  };
}
