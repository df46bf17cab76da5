/** Changes of directories. */
import { EINVAL, ENAMETOOLONG, errnoOf } from '@steadfs/fuse/errno';
import { FileType } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import { CHUNK_SIZE } from '../../format/slice.ts';
import { trashFolderName } from '../../format/trash.ts';
import { unixNow } from '../clock.ts';
import type { CreateResult, Cred, MakeNode, MetaEngine, Name, Op, RenameResult } from '../engine.ts';
import { checkNewName, NAME_MAX } from '../ops/access.ts';
import { type Core, EMPTY, Question } from './core.ts';
import type { Data } from './data.ts';
import { asBuffer, ino8, latin, readEntry, readIno, u32 } from './forms.ts';
import type { Numbers } from './numbers.ts';
import type { Quotas } from './quotas.ts';

const O_TRUNC = 0o1000;

interface MakeCall {
  kind: 0 | 1 | 2;
  type: FileType;
  mode: number;
  umask: number;
  rdev: number;
  flags: number;
  target?: Uint8Array | undefined;
}

export function names(core: Core, numbers: Numbers, quotas: Quotas, data: Data) {
  const {
    S,
    ask,
    cache,
    dKey,
    fresh,
    iKey,
    keepAttr,
    keepExtra,
    keepName,
    link,
    mutate,
    state,
    takeEntry,
    takeRemoved,
  } = core;
  const { newInode } = numbers;
  const { treeUsage } = quotas;
  const { covering, existing } = data;

  async function make(op: Op, cred: Cred, parent: Ino, name: Name, m: MakeCall): Promise<CreateResult> {
    for (;;) {
      try {
        return await makeAs(await newInode(), op, cred, parent, name, m);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'I') throw e;
      }
    }
  }

  async function makeAs(ino: Ino, op: Op, cred: Cred, parent: Ino, name: Name, m: MakeCall): Promise<CreateResult> {
    const text = latin(name);
    const b = Buffer.allocUnsafe(14);
    b.writeUInt8(m.type, 0);
    b.writeUInt16BE(m.mode & 0o7777, 1);
    b.writeUInt16BE(m.umask & 0o7777, 3);
    b.writeUInt32BE(m.rdev >>> 0, 5);
    b.writeUInt32BE(m.flags >>> 0, 9);
    b.writeUInt8(m.kind, 13);
    const dir = m.type === FileType.directory;
    const keys = [dKey(parent), iKey(parent), iKey(ino), ...(dir ? [dKey(ino)] : [])];
    const known = m.kind === 1 ? (cache.name(parent, text)?.ino ?? undefined) : undefined;
    if (known !== undefined) keys.push(iKey(known));
    const attempt = (done: Uint8Array): Promise<CreateResult> =>
      mutate(
        S.make,
        op,
        {
          keys,
          args: [ino8(parent), name, b, ino8(ino), m.target ?? EMPTY, done],
          cred,
          groups: (m.flags & O_TRUNC) !== 0,
        },
        (main, isFresh, extra) => {
          const created = main[0] === 1;
          const { entry } = readEntry(main, 1);
          keepAttr(entry, isFresh, entry.ino === ino || entry.ino === known);
          if (m.kind !== 2) keepName(parent, text, { ino: entry.ino, type: entry.attr.type }, isFresh);
          if (created && dir && isFresh && link.tracking && entry.ino === ino) cache.setList(ino, new Map());
          keepExtra(extra);
          return { ...entry, created };
        },
      );
    if ((m.flags & O_TRUNC) === 0) return await attempt(EMPTY);
    return await covering(op, await existingIno(parent, name, text), 0, attempt);
  }

  /** For truncations of huge files by create(2) only. */
  async function existingIno(parent: Ino, name: Name, text: string): Promise<Ino | undefined> {
    const known = fresh() ? cache.name(parent, text) : undefined;
    if (known !== undefined) return known?.ino;
    const v = await ask('HGET', dKey(parent), name);
    return v === null ? undefined : readIno(asBuffer(v), 1);
  }

  /** Runs a removal that may ask whether the inode is open. */
  async function removing<T>(
    hint: Ino | undefined,
    isOpen: (ino: Ino) => boolean,
    go: (expected: Uint8Array, open: string, hint: Ino | undefined) => Promise<T>,
  ): Promise<T> {
    for (;;) {
      try {
        return await go(hint === undefined ? EMPTY : ino8(hint), hint !== undefined && isOpen(hint) ? '1' : '0', hint);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'O') throw e;
        hint = readIno(e.value, 0);
      }
    }
  }

  function hintOf(parent: Ino, name: string): Ino | undefined {
    return cache.name(parent, name)?.ino;
  }

  async function rename(
    op: Op,
    cred: Cred,
    parent: Ino,
    name: Name,
    newParent: Ino,
    newName: Name,
    flags: number,
    isOpen: (ino: Ino) => boolean,
  ): Promise<RenameResult> {
    const exchange = (flags & 2) !== 0;
    if ((flags & ~35) !== 0 || (exchange && flags !== 2) || ((flags & 32) !== 0 && (flags & 1) === 0)) throw EINVAL;
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
    checkNewName(newName);
    const from = latin(name);
    const to = latin(newName);
    const moving = hintOf(parent, from);
    let usage: Uint8Array = EMPTY;
    for (;;) {
      try {
        return await removing(hintOf(newParent, to), isOpen, (expected, open, hint) => {
          const keys = [dKey(parent), iKey(parent), dKey(newParent), iKey(newParent)];
          for (const h of [moving, hint]) if (h !== undefined) keys.push(iKey(h));
          const args = [
            ino8(parent),
            name,
            ino8(newParent),
            newName,
            u32(flags),
            expected,
            open,
            trashFolderName(unixNow()),
            usage,
          ];
          return mutate(S.rename, op, { keys, args, cred }, (main, isFresh, extra) => {
            const result: RenameResult = {};
            const bits = main[0]!;
            let at = 1;
            const part = (bit: number): number | undefined => {
              if ((bits & bit) === 0) return undefined;
              const start = at + 2;
              at = start + main.readUInt16BE(at);
              return start;
            };
            const moved = part(1);
            const replaced = part(2);
            const exchanged = part(4);
            if (moved !== undefined) {
              result.moved = readEntry(main, moved).entry;
              keepAttr(result.moved, isFresh, result.moved.ino === moving || result.moved.ino === hint);
              keepName(parent, from, null, isFresh);
              keepName(newParent, to, { ino: result.moved.ino, type: result.moved.attr.type }, isFresh);
            }
            if (replaced !== undefined) result.replaced = takeRemoved(main, replaced, hint, isFresh).removed;
            if (exchanged !== undefined) {
              result.exchanged = readEntry(main, exchanged).entry;
              keepAttr(result.exchanged, isFresh, result.exchanged.ino === hint);
              keepName(parent, from, { ino: result.exchanged.ino, type: result.exchanged.attr.type }, isFresh);
            }
            keepExtra(extra);
            return result;
          });
        });
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'U') throw e;
        usage = await bothUsages(e.value);
      }
    }
  }

  /** Usage below the trees that a rename moves between quotas: inode 8, space f64, inodes f64, twice. */
  async function bothUsages(inos: Buffer): Promise<Buffer> {
    const b = Buffer.alloc(48);
    for (let i = 0; i < 2; i++) {
      inos.copy(b, i * 24, i * 8, i * 8 + 8);
      const ino = readIno(inos, i * 8);
      if (ino === 0) continue;
      const u = await treeUsage(ino);
      b.writeDoubleBE(u.space, i * 24 + 8);
      b.writeDoubleBE(u.inodes, i * 24 + 16);
    }
    return b;
  }

  const methods: Pick<
    MetaEngine,
    'mknod' | 'create' | 'tmpfile' | 'link' | 'unlink' | 'rmdir' | 'rename' | 'cloneNode' | 'attachClone'
  > = {
    async mknod(op, cred, parent, name, node: MakeNode) {
      if (node.type < 1 || node.type > 7) throw EINVAL;
      checkNewName(name);
      const { target } = node;
      if (node.type === FileType.symlink && (target === undefined || target.length === 0 || target.length > 4096))
        throw EINVAL;
      const { type, mode, umask, rdev } = node;
      const { ino, attr } = await make(op, cred, parent, name, { kind: 0, type, mode, umask, rdev, flags: 0, target });
      return { ino, attr };
    },
    async create(op, cred, parent, name, mode, umask, flags) {
      checkNewName(name);
      return await make(op, cred, parent, name, { kind: 1, type: FileType.file, mode, umask, rdev: 0, flags });
    },
    async tmpfile(op, cred, parent, mode, umask) {
      if (state.session === undefined) throw errnoOf(95);
      const { ino, attr } = await make(op, cred, parent, EMPTY, {
        kind: 2,
        type: FileType.file,
        mode,
        umask,
        rdev: 0,
        flags: 0,
      });
      return { ino, attr };
    },
    async link(op, cred, ino, parent, name) {
      checkNewName(name);
      const text = latin(name);
      return await mutate(
        S.link,
        op,
        { keys: [dKey(parent), iKey(parent), iKey(ino)], args: [ino8(ino), ino8(parent), name], cred },
        (main, isFresh, extra) => {
          const entry = takeEntry(true)(main, isFresh, extra);
          keepName(parent, text, { ino: entry.ino, type: entry.attr.type }, isFresh);
          return entry;
        },
      );
    },
    async unlink(op, cred, parent, name, isOpen, skipTrash = false) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      const text = latin(name);
      const hour = trashFolderName(unixNow());
      return await removing(hintOf(parent, text), isOpen, (expected, open, hint) => {
        const keys = [dKey(parent), iKey(parent), ...(hint === undefined ? [] : [iKey(hint)])];
        const args = [ino8(parent), name, expected, open, skipTrash ? '1' : '', hour];
        return mutate(S.unlink, op, { keys, args, cred }, (main, isFresh, extra) => {
          const { removed } = takeRemoved(main, 0, hint, isFresh);
          keepName(parent, text, null, isFresh);
          keepExtra(extra);
          return removed;
        });
      });
    },
    async rmdir(op, cred, parent, name, skipTrash = false) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      const text = latin(name);
      if (text === '.') throw EINVAL;
      if (text === '..') throw errnoOf(39);
      const args = [ino8(parent), name, skipTrash ? '1' : '', trashFolderName(unixNow())];
      return await mutate(S.rmdir, op, { keys: [dKey(parent), iKey(parent)], args, cred }, (main, isFresh, extra) => {
        const { removed } = takeRemoved(main, 0, undefined, isFresh);
        keepName(parent, text, null, isFresh);
        keepExtra(extra);
        return removed;
      });
    },
    rename,
    async cloneNode(op, cred, source, parent, name, { preserve, umask }) {
      if (name !== undefined) checkNewName(name);
      let ino = await newInode();
      let chunks: Uint8Array = EMPTY;
      for (;;) {
        try {
          const keys = [iKey(source), iKey(ino), ...(name === undefined ? [] : [dKey(parent), iKey(parent)])];
          const args = [ino8(source), ino8(ino), ino8(parent), name ?? EMPTY, preserve ? 'p' : '', umask, chunks];
          return await mutate(S.clone, op, { keys, args, cred }, (main, isFresh, extra) => {
            const entry = takeEntry(true)(main, isFresh, extra);
            if (name !== undefined) keepName(parent, latin(name), { ino: entry.ino, type: entry.attr.type }, isFresh);
            return entry;
          });
        } catch (e) {
          if (!(e instanceof Question)) throw e;
          if (e.kind === 'I') {
            ino = await newInode();
            continue;
          }
          const length = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
          const indexes = await existing(source, 0, Math.ceil(length / CHUNK_SIZE) - 1, Number.MAX_SAFE_INTEGER);
          chunks = Buffer.concat([Uint8Array.of(1), ...indexes.map(i => u32(i))]);
        }
      }
    },
    async attachClone(op, cred, detached, parent, name) {
      checkNewName(name);
      const keys = [dKey(parent), iKey(parent), iKey(detached)];
      return await mutate(
        S.attach,
        op,
        { keys, args: [ino8(detached), ino8(parent), name], cred },
        (main, isFresh, extra) => {
          const entry = takeEntry(true)(main, isFresh, extra);
          keepName(parent, latin(name), { ino: entry.ino, type: entry.attr.type }, isFresh);
          return entry;
        },
      );
    },
  };
  return { methods };
}
