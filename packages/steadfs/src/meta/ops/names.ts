/** Operations on names: create, mkdir, symlink, link, unlink, rmdir, rename (semantics: spec/meta-redis.md §4, volume.md §9, §15). */
import {
  EEXIST,
  EINVAL,
  EIO,
  EISDIR,
  ENAMETOOLONG,
  ENOENT,
  ENOTDIR,
  ENOTEMPTY,
  ENOTSUP,
  EPERM,
  ESTALE,
} from '@steadfs/fuse/errno';
import { aclInherit } from '../../format/acl.ts';
import { type Attr, emptyDirectory, FileType, Flag } from '../../format/attr.ts';
import { type Ino, isTrash, ROOT, TRASH } from '../../format/ino.ts';
import { trashEntryName, trashFolderName } from '../../format/trash.ts';
import type { CreateResult, Cred, Entry, MakeNode, Name, Removed, RenameResult } from '../engine.ts';
import { checkAccess, checkFixed, checkNewName, checkSticky, inGroup, NAME_MAX, present, W, X } from './access.ts';
import { checkOpen, truncateOnOpen } from './attrs.ts';
import { inoArg, logChange } from './changelog.ts';
import {
  accountEntry,
  accountInode,
  accountTree,
  checkDirQuota,
  checkQuota,
  quotaDirs,
  spaceOf,
  treeUsage,
} from './quota.ts';
import { type Body, type Tx, Usage } from './tx.ts';

const O_EXCL = 0o200;

/** The parent of an operation on a name: exists and is a directory. */
function* parentDir(tx: Tx, ino: Ino): Body<Readonly<Attr>> {
  const p = yield* tx.node(ino);
  if (p === undefined) throw ENOENT;
  if (p.type !== FileType.directory) throw ENOTDIR;
  return p;
}

/** Something will be made in the directory: not in the trash, not immutable, writable. */
function* checkInsert(tx: Tx, cred: Cred, parent: Ino, p: Readonly<Attr>): Body<void> {
  if (isTrash(parent)) throw EPERM;
  if (isTrash(p.parent)) throw ENOENT;
  yield* checkAccess(tx, cred, p, W | X);
  if ((p.flags & Flag.immutable) !== 0) throw EPERM;
}

/** mtime and ctime of a directory are written when they are older than --skip-dir-mtime. */
function timesDue(tx: Tx, p: Readonly<Attr>): boolean {
  const age = (tx.now.sec - p.mtime) * 1000 + (tx.now.nsec - p.mtimensec) / 1e6;
  return age >= tx.volume.skipDirMtime || age < 0;
}

function* touchDir(tx: Tx, ino: Ino, p: Readonly<Attr>, links: number): Body<void> {
  if (isTrash(ino)) return;
  const due = links !== 0 || timesDue(tx, p);
  if (due) yield* tx.adjustDir(ino, links, true);
}

/** Attributes of a new inode: owner, group, mode, inherited flags, tier and ACL. Quota is checked. */
function* newAttr(tx: Tx, cred: Cred, parent: Ino, p: Readonly<Attr>, node: MakeNode): Body<Attr> {
  const dir = node.type === FileType.directory;
  const { sec, nsec } = tx.now;
  const gid = (p.mode & 0o2000) !== 0 ? p.gid : cred.gid;
  yield* checkQuota(tx, cred.uid, gid, 4096, 1, [parent]);
  const attr: Attr = {
    flags: p.flags & Flag.skipTrash,
    type: node.type,
    mode: 0,
    uid: cred.uid,
    gid,
    atime: sec,
    atimensec: nsec,
    mtime: sec,
    mtimensec: nsec,
    ctime: sec,
    ctimensec: nsec,
    nlink: dir ? 2 : 1,
    length: dir ? 4096 : node.type === FileType.symlink ? (node.target?.length ?? 0) : 0,
    rdev: node.type === FileType.blockdev || node.type === FileType.chardev ? node.rdev : 0,
    parent,
    accessAcl: 0,
    defaultAcl: 0,
    tier: p.tier,
  };
  let mode = node.mode & 0o7777;
  const rule = p.defaultAcl !== 0 && node.type !== FileType.symlink ? yield* tx.acl(p.defaultAcl) : undefined;
  if (rule !== undefined) {
    const inherited = aclInherit(rule, mode);
    mode = inherited.mode;
    if (inherited.access !== undefined) attr.accessAcl = yield* tx.aclId(inherited.access);
    if (dir) attr.defaultAcl = p.defaultAcl;
  } else mode &= ~node.umask;
  if ((p.mode & 0o2000) !== 0) {
    if (dir) mode |= 0o2000;
    else if ((mode & 0o2010) === 0o2010 && cred.checkPermission && cred.uid !== 0 && !inGroup(cred, p.gid))
      mode &= ~0o2000;
  }
  attr.mode = node.type === FileType.symlink ? 0o777 : mode;
  return attr;
}

function* insertNew(tx: Tx, parent: Ino, p: Readonly<Attr>, name: Name, attr: Attr, node: MakeNode): Body<Ino> {
  const ino = yield* tx.newInode();
  const dir = attr.type === FileType.directory;
  yield* tx.insertEdge(parent, name, ino, attr.type);
  yield* tx.insertNode(ino, attr);
  yield* touchDir(tx, parent, p, dir ? 1 : 0);
  if (attr.type === FileType.symlink) yield* tx.insertSymlink(ino, node.target!);
  if (dir) yield* tx.insertDirStat(ino, 0, 0, 0);
  accountInode(tx, attr, 1);
  yield* accountEntry(tx, parent, attr, 1);
  yield* logChange(
    tx,
    'CREATE',
    () => [
      inoArg(parent),
      name,
      attr.uid,
      attr.gid,
      attr.type,
      node.mode,
      node.umask,
      node.target ?? '',
      'linux',
      true,
    ],
    inoArg(ino),
  );
  return ino;
}

export function* mknod(tx: Tx, cred: Cred, parent: Ino, name: Name, node: MakeNode): Body<Entry> {
  if (node.type < 1 || node.type > 7) throw EINVAL;
  checkNewName(name);
  if (
    node.type === FileType.symlink &&
    (node.target === undefined || node.target.length === 0 || node.target.length > 4096)
  )
    throw EINVAL;
  const p = yield* parentDir(tx, parent);
  yield* checkAccess(tx, cred, p, X);
  if ((yield* tx.edge(parent, name)) !== undefined) throw EEXIST;
  yield* checkInsert(tx, cred, parent, p);
  const attr = yield* newAttr(tx, cred, parent, p, node);
  const ino = yield* insertNew(tx, parent, p, name, attr, node);
  return { ino, attr };
}

export function* create(
  tx: Tx,
  cred: Cred,
  parent: Ino,
  name: Name,
  mode: number,
  umask: number,
  flags: number,
): Body<CreateResult> {
  checkNewName(name);
  const p = yield* parentDir(tx, parent);
  yield* checkAccess(tx, cred, p, X);
  const found = yield* tx.edge(parent, name);
  if (found !== undefined) {
    if ((flags & O_EXCL) !== 0) throw EEXIST;
    const attr = yield* tx.nodeForUpdate(found.ino);
    if (attr === undefined) throw EIO.because(`the entry for inode ${found.ino} has no inode`);
    if (attr.type === FileType.directory) throw EISDIR;
    // Another client made it since the kernel looked: ESTALE lets the kernel look again and open what is there.
    if (attr.type !== FileType.file) throw ESTALE;
    yield* checkOpen(tx, cred, attr, flags);
    return { ino: found.ino, attr: yield* truncateOnOpen(tx, cred, found.ino, attr, flags), created: false };
  }
  yield* checkInsert(tx, cred, parent, p);
  const node = { type: FileType.file, mode, umask, rdev: 0 };
  const attr = yield* newAttr(tx, cred, parent, p, node);
  const ino = yield* insertNew(tx, parent, p, name, attr, node);
  return { ino, attr, created: true };
}

/** An inode without a name, alive by the session's sustained mark. */
export function* tmpfile(tx: Tx, cred: Cred, parent: Ino, mode: number, umask: number): Body<Entry> {
  if (tx.volume.sid === 0) throw ENOTSUP;
  const p = yield* parentDir(tx, parent);
  yield* checkInsert(tx, cred, parent, p);
  const attr = yield* newAttr(tx, cred, parent, p, { type: FileType.file, mode, umask, rdev: 0 });
  attr.nlink = 0;
  const ino = yield* tx.newInode();
  yield* tx.insertNode(ino, attr);
  yield* tx.insertSustained(tx.volume.sid, ino);
  accountInode(tx, attr, 1);
  if (tx.volume.format.ChangeLog) {
    // The log knows a file without a name only as one that was created and removed.
    const name = Buffer.from(`tmpfile_${inoArg(ino)}`);
    yield* logChange(
      tx,
      'CREATE',
      () => [inoArg(parent), name, attr.uid, attr.gid, 1, mode, umask, '', 'linux', false],
      inoArg(ino),
    );
    yield* logChange(tx, 'UNLINK', () => [inoArg(parent), name, 0, true, false], inoArg(ino));
  }
  return { ino, attr };
}

export function* link(tx: Tx, cred: Cred, ino: Ino, parent: Ino, name: Name): Body<Entry> {
  checkNewName(name);
  const p = yield* parentDir(tx, parent);
  yield* checkAccess(tx, cred, p, X);
  if ((yield* tx.edge(parent, name)) !== undefined) throw EEXIST;
  yield* checkInsert(tx, cred, parent, p);
  const old = yield* tx.nodeForUpdate(ino);
  if (old === undefined) throw ENOENT;
  if (old.type === FileType.directory) throw EPERM;
  checkFixed(old);
  const sustained = old.nlink === 0 && (yield* tx.isSustained(ino));
  if (old.nlink === 0 && !sustained) throw ENOENT;
  yield* checkDirQuota(tx, parent, spaceOf(old), 1);
  const attr: Attr = {
    ...old,
    nlink: old.nlink + 1,
    parent: sustained ? parent : 0,
    ctime: tx.now.sec,
    ctimensec: tx.now.nsec,
  };
  yield* tx.insertEdge(parent, name, ino, old.type);
  yield* tx.updateNode(ino, attr);
  if (sustained) yield* tx.deleteSustained(tx.volume.sid, ino);
  else {
    if (old.parent !== 0) yield* tx.addParent(ino, old.parent, 1);
    yield* tx.addParent(ino, parent, 1);
  }
  yield* touchDir(tx, parent, p, 0);
  yield* accountEntry(tx, parent, attr, 1);
  yield* logChange(tx, 'LINK', () => [inoArg(ino), inoArg(parent), name, true], attr.nlink);
  return { ino, attr: yield* present(tx, ino, attr) };
}

/** The hourly trash folder of now, made when it is missing (harmless when repeated). */
function* trashFolder(tx: Tx): Body<Ino> {
  const name = Buffer.from(trashFolderName(tx.now.sec), 'ascii');
  const found = yield* tx.edge(TRASH, name);
  if (found !== undefined) return found.ino;
  const { sec, nsec } = tx.now;
  const ino = TRASH + (yield* tx.addCounter('nextTrash', 1));
  const attr = emptyDirectory(0o555, TRASH, sec, nsec);
  yield* tx.insertEdge(TRASH, name, ino, FileType.directory);
  yield* tx.insertNode(ino, attr);
  yield* tx.insertDirStat(ino, 0, 0, 0);
  tx.account(Usage.volume, 0, 0, 4096, 1);
  yield* logChange(tx, 'CREATE', () => [inoArg(TRASH), name, 0, 0, 2, 0o555, 0, '', 'linux', false], inoArg(ino));
  return ino;
}

interface TrashPlace {
  folder: Ino;
  name: Buffer;
}

/** Where the entry goes in the trash; undefined when it is really removed (spec/volume.md §9). */
function* trashPlace(
  tx: Tx,
  parent: Ino,
  name: Name,
  ino: Ino,
  attr: Readonly<Attr>,
  skip: boolean,
): Body<TrashPlace | undefined> {
  if (skip || tx.volume.format.TrashDays <= 0 || isTrash(parent) || (attr.flags & Flag.skipTrash) !== 0)
    return undefined;
  const folder = yield* trashFolder(tx);
  const place = { folder, name: trashEntryName(parent, ino, name) };
  return (yield* tx.edge(folder, place.name)) === undefined ? place : undefined;
}

/** Removes or trashes one link of something that is no directory; checks were made. */
function* removeLink(
  tx: Tx,
  parent: Ino,
  name: Name,
  ino: Ino,
  old: Readonly<Attr>,
  place: TrashPlace | undefined,
  isOpen: (ino: Ino) => boolean,
): Body<Removed> {
  const attr: Attr = { ...old, ctime: tx.now.sec, ctimensec: tx.now.nsec };
  yield* accountEntry(tx, parent, old, -1);
  if (place !== undefined) {
    yield* tx.moveEdge(parent, name, place.folder, place.name, ino, old.type);
    if (old.parent !== 0) attr.parent = place.folder;
    else {
      yield* tx.addParent(ino, place.folder, 1);
      yield* tx.addParent(ino, parent, -1);
    }
    yield* tx.updateNode(ino, attr);
    yield* accountEntry(tx, place.folder, old, 1);
    return { ino, attr: yield* present(tx, ino, attr), state: 'trash' };
  }
  attr.nlink = Math.max(0, old.nlink - 1);
  yield* tx.deleteEdge(parent, name, ino);
  if (attr.nlink > 0) {
    if (old.parent === 0) yield* tx.addParent(ino, parent, -1);
    yield* tx.updateNode(ino, attr);
    return { ino, attr: yield* present(tx, ino, attr), state: 'kept' };
  }
  const file = old.type === FileType.file;
  if (file && tx.volume.sid !== 0 && isOpen(ino)) {
    yield* tx.updateNode(ino, attr);
    yield* tx.insertSustained(tx.volume.sid, ino);
    if (old.parent === 0) yield* tx.deleteParents(ino);
    return { ino, attr, state: 'sustained' };
  }
  return { ino, attr, state: (yield* destroyNode(tx, ino, old)) ? 'deleted' : 'gone' };
}

/** The inode goes, with what belongs to it. True: it leaves data behind (a delfile row). */
export function* destroyNode(tx: Tx, ino: Ino, attr: Readonly<Attr>): Body<boolean> {
  const data = attr.type === FileType.file && (yield* tx.chunkIndexes(ino, 0, 0xffffffff, 1)).length > 0;
  if (data) yield* tx.insertDelfile(ino, attr.length);
  yield* tx.deleteNode(ino);
  if (attr.type === FileType.symlink) yield* tx.deleteSymlink(ino);
  yield* tx.deleteXattrs(ino);
  if (attr.parent === 0) yield* tx.deleteParents(ino);
  accountInode(tx, attr, -1);
  return data;
}

function checkRemovable(cred: Cred, parent: Ino, p: Readonly<Attr>): void {
  if (parent === TRASH || (isTrash(parent) && cred.uid !== 0)) throw EPERM;
  checkFixed(p);
}

export function* unlink(
  tx: Tx,
  cred: Cred,
  parent: Ino,
  name: Name,
  isOpen: (ino: Ino) => boolean,
  skipTrash: boolean,
): Body<Removed> {
  if (name.length > NAME_MAX) throw ENAMETOOLONG;
  const p = yield* parentDir(tx, parent);
  yield* checkAccess(tx, cred, p, X);
  const found = yield* tx.edge(parent, name);
  if (found === undefined) throw ENOENT;
  yield* checkAccess(tx, cred, p, W | X);
  checkRemovable(cred, parent, p);
  if (found.type === FileType.directory) throw EISDIR;
  const old = yield* tx.nodeForUpdate(found.ino);
  if (old === undefined) return yield* removeDangling(tx, parent, name, found.ino, found.type);
  checkSticky(cred, p, old);
  checkFixed(old);
  const place = yield* trashPlace(tx, parent, name, found.ino, old, skipTrash);
  const removed = yield* removeLink(tx, parent, name, found.ino, old, place, isOpen);
  yield* touchDir(tx, parent, p, 0);
  yield* logChange(
    tx,
    'UNLINK',
    () => [inoArg(parent), name, place === undefined ? 0 : inoArg(place.folder), removed.state === 'sustained', true],
    inoArg(found.ino),
  );
  return removed;
}

/** An entry whose inode is missing (a damaged volume): only the entry can go. */
function* removeDangling(tx: Tx, parent: Ino, name: Name, ino: Ino, type: FileType): Body<Removed> {
  yield* tx.deleteEdge(parent, name, ino);
  yield* logChange(tx, 'UNLINK', () => [inoArg(parent), name, 0, false, false], inoArg(ino));
  const { sec, nsec } = tx.now;
  const time = { atime: sec, atimensec: nsec, mtime: sec, mtimensec: nsec, ctime: sec, ctimensec: nsec };
  const attr = {
    ...time,
    flags: 0,
    type,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 0,
    length: 0,
    rdev: 0,
    parent,
    accessAcl: 0,
    defaultAcl: 0,
    tier: 0,
  };
  return { ino, attr, state: 'gone' };
}

/** Removes or trashes an empty directory; checks were made. Its quota goes in any case. */
function* removeDir(
  tx: Tx,
  parent: Ino,
  name: Name,
  ino: Ino,
  old: Readonly<Attr>,
  place: TrashPlace | undefined,
): Body<Removed> {
  const attr: Attr = { ...old, ctime: tx.now.sec, ctimensec: tx.now.nsec };
  if (parent !== TRASH) yield* accountEntry(tx, parent, old, -1);
  yield* tx.deleteDirQuota(ino);
  yield* tx.deleteDirStat(ino);
  if (place !== undefined) {
    attr.parent = place.folder;
    yield* tx.moveEdge(parent, name, place.folder, place.name, ino, FileType.directory);
    yield* tx.updateNode(ino, attr);
    yield* accountEntry(tx, place.folder, old, 1);
    return { ino, attr, state: 'trash' };
  }
  yield* tx.deleteEdge(parent, name, ino);
  yield* tx.deleteNode(ino);
  yield* tx.deleteXattrs(ino);
  // Hourly folders are nobody's (see trashFolder).
  if (parent === TRASH) tx.account(Usage.volume, 0, 0, -4096, -1);
  else accountInode(tx, old, -1);
  attr.nlink = 0;
  return { ino, attr, state: 'gone' };
}

export function* rmdir(tx: Tx, cred: Cred, parent: Ino, name: Name, skipTrash: boolean): Body<Removed> {
  if (name.length > NAME_MAX) throw ENAMETOOLONG;
  if (name.length === 1 && name[0] === 46) throw EINVAL;
  if (name.length === 2 && name[0] === 46 && name[1] === 46) throw ENOTEMPTY;
  const p = yield* parentDir(tx, parent);
  yield* checkAccess(tx, cred, p, X);
  const found = yield* tx.edge(parent, name);
  if (found === undefined) throw ENOENT;
  yield* checkAccess(tx, cred, p, W | X);
  if (parent !== TRASH || !skipTrash) checkRemovable(cred, parent, p);
  if (found.type !== FileType.directory) throw ENOTDIR;
  const old = yield* tx.nodeForUpdate(found.ino);
  if (old === undefined) return yield* removeDangling(tx, parent, name, found.ino, found.type);
  checkSticky(cred, p, old);
  checkFixed(old);
  if (yield* tx.hasEntries(found.ino)) throw ENOTEMPTY;
  const place = yield* trashPlace(tx, parent, name, found.ino, old, skipTrash);
  const removed = yield* removeDir(tx, parent, name, found.ino, old, place);
  yield* touchDir(tx, parent, p, -1);
  yield* logChange(
    tx,
    'RMDIR',
    () => [inoArg(parent), name, place === undefined ? 0 : inoArg(place.folder)],
    inoArg(found.ino),
  );
  return removed;
}

const Rename = { noReplace: 1, exchange: 2, restore: 32 } as const;

/** Throws EINVAL when `dir` is `ino` or below it. */
function* checkNotBelow(tx: Tx, dir: Ino, ino: Ino): Body<void> {
  for (let at = dir, depth = 0; depth < 100_000; depth++) {
    if (at === ino) throw EINVAL;
    if (at === ROOT || at === 0 || isTrash(at)) return;
    const attr: Readonly<Attr> | undefined = yield* tx.node(at);
    if (attr === undefined) return;
    at = attr.parent;
  }
}

/** Entries that move between directories with different quotas above them: checks the growth, and accounts the whole tree. */
function* moveUsage(tx: Tx, from: Ino, to: Ino, ino: Ino, attr: Readonly<Attr>): Body<void> {
  if (from === to) return;
  yield* accountEntry(tx, from, attr, -1);
  yield* accountEntry(tx, to, attr, 1);
  if (tx.volume.quotas.dirs.size === 0 || attr.type !== FileType.directory) return;
  const tree = yield* treeUsage(tx, ino);
  yield* accountTree(tx, from, -tree.space, -tree.inodes);
  yield* accountTree(tx, to, tree.space, tree.inodes);
}

function* checkMoveQuota(tx: Tx, from: Ino, to: Ino, ino: Ino, attr: Readonly<Attr>): Body<void> {
  if (from === to || tx.volume.quotas.dirs.size === 0) return;
  const above = yield* quotaDirs(tx, from);
  if ((yield* quotaDirs(tx, to)).every(d => above.includes(d))) return;
  const tree = attr.type === FileType.directory ? yield* treeUsage(tx, ino) : { space: 0, inodes: 0 };
  yield* checkDirQuota(tx, to, spaceOf(attr) + tree.space, 1 + tree.inodes, above);
}

export function* rename(
  tx: Tx,
  cred: Cred,
  parent: Ino,
  name: Name,
  newParent: Ino,
  newName: Name,
  flags: number,
  isOpen: (ino: Ino) => boolean,
): Body<RenameResult> {
  const exchange = (flags & Rename.exchange) !== 0;
  const restore = (flags & Rename.restore) !== 0;
  if ((flags & ~35) !== 0 || (exchange && flags !== Rename.exchange) || (restore && (flags & Rename.noReplace) === 0))
    throw EINVAL;
  if (name.length > NAME_MAX) throw ENAMETOOLONG;
  checkNewName(newName);
  if (isTrash(newParent) || parent === TRASH || (isTrash(parent) && cred.uid !== 0)) throw EPERM;
  const p = yield* parentDir(tx, parent);
  const np = parent === newParent ? p : yield* parentDir(tx, newParent);
  yield* checkAccess(tx, cred, p, X);
  yield* checkAccess(tx, cred, np, X);
  const source = yield* tx.edge(parent, name);
  if (source === undefined) throw ENOENT;
  const target = yield* tx.edge(newParent, newName);
  if (target !== undefined && (flags & Rename.noReplace) !== 0) throw EEXIST;
  if (target === undefined && exchange) throw ENOENT;
  if (!restore && isTrash(np.parent)) throw ENOENT;
  const old = yield* tx.nodeForUpdate(source.ino);
  if (old === undefined) throw ENOENT;
  if (target !== undefined && target.ino === source.ino) return {};
  yield* checkAccess(tx, cred, p, W | X);
  yield* checkAccess(tx, cred, np, W | X);
  checkFixed(p);
  if ((np.flags & Flag.immutable) !== 0) throw EPERM;
  if (target !== undefined) checkFixed(np);
  checkSticky(cred, p, old);
  checkFixed(old);
  const movesDir = old.type === FileType.directory && parent !== newParent;
  if (movesDir) {
    yield* checkAccess(tx, cred, old, W);
    yield* checkNotBelow(tx, newParent, source.ino);
  }
  const replaced = target === undefined ? undefined : yield* tx.nodeForUpdate(target.ino);
  if (target !== undefined) {
    if (replaced !== undefined) {
      checkSticky(cred, np, replaced);
      checkFixed(replaced);
    }
    if (exchange) {
      if (replaced === undefined) throw ENOENT;
      if (target.type === FileType.directory && parent !== newParent) {
        yield* checkAccess(tx, cred, replaced, W);
        yield* checkNotBelow(tx, parent, target.ino);
      }
    } else {
      if (old.type === FileType.directory && target.type !== FileType.directory) throw ENOTDIR;
      if (old.type !== FileType.directory && target.type === FileType.directory) throw EISDIR;
      if (target.type === FileType.directory && (yield* tx.hasEntries(target.ino))) throw ENOTEMPTY;
    }
  }
  yield* checkMoveQuota(tx, parent, newParent, source.ino, old);
  if (exchange) yield* checkMoveQuota(tx, newParent, parent, target!.ino, replaced!);

  // Checks are over; from here on only writes.
  const result: RenameResult = {};
  let links = 0;
  let newLinks = 0;
  let place: TrashPlace | undefined;
  if (movesDir) {
    links--;
    newLinks++;
  }
  yield* moveUsage(tx, parent, newParent, source.ino, old);
  if (exchange) {
    if (target!.type === FileType.directory && parent !== newParent) {
      links++;
      newLinks--;
    }
    yield* moveUsage(tx, newParent, parent, target!.ino, replaced!);
    yield* tx.setEdge(parent, name, target!.ino, target!.type);
    yield* tx.setEdge(newParent, newName, source.ino, source.type);
    result.exchanged = yield* reparent(tx, target!.ino, replaced!, newParent, parent);
  } else if (target !== undefined) {
    if (replaced === undefined) yield* tx.deleteEdge(newParent, newName, target.ino);
    else {
      place = yield* trashPlace(tx, newParent, newName, target.ino, replaced, false);
      if (target.type === FileType.directory) {
        result.replaced = yield* removeDir(tx, newParent, newName, target.ino, replaced, place);
        newLinks--;
      } else result.replaced = yield* removeLink(tx, newParent, newName, target.ino, replaced, place, isOpen);
    }
  }
  if (!exchange) yield* tx.moveEdge(parent, name, newParent, newName, source.ino, source.type);
  result.moved = yield* reparent(tx, source.ino, old, parent, newParent);
  if (parent === newParent) yield* touchDir(tx, parent, p, links + newLinks);
  else {
    yield* touchDir(tx, parent, p, links);
    yield* touchDir(tx, newParent, np, newLinks);
  }
  yield* logChange(
    tx,
    'MOVE',
    () => [
      inoArg(parent),
      name,
      inoArg(newParent),
      newName,
      flags,
      inoArg(target?.ino ?? 0),
      place === undefined ? 0 : inoArg(place.folder),
    ],
    inoArg(source.ino),
  );
  return result;
}

/** The inode belongs to another directory now; its ctime changes in any case. */
function* reparent(tx: Tx, ino: Ino, old: Readonly<Attr>, from: Ino, to: Ino): Body<Entry> {
  const attr: Attr = { ...old, ctime: tx.now.sec, ctimensec: tx.now.nsec };
  if (old.type === FileType.directory || old.parent !== 0) attr.parent = to;
  else if (from !== to) {
    yield* tx.addParent(ino, to, 1);
    yield* tx.addParent(ino, from, -1);
  }
  yield* tx.updateNode(ino, attr);
  return { ino, attr: yield* present(tx, ino, attr) };
}
