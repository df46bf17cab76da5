/** Work on whole trees: what `.control` offers, over MetaEngine. */
import { setTimeout as sleep } from 'node:timers/promises';
import {
  EACCES,
  EEXIST,
  EINTR,
  EINVAL,
  EIO,
  ENOENT,
  ENOTDIR,
  ENOTEMPTY,
  EPERM,
  EROFS,
  Errno,
} from '@steadfs/fuse/errno';
import { type Attr, FileType } from '../format/attr.ts';
import { type Ino, inoToBigint, isTrash, ROOT } from '../format/ino.ts';
import { buildSlices, CHUNK_SIZE } from '../format/slice.ts';
import type { Cred, DirEntry, Name, Op, Removed } from '../meta/engine.ts';
import type { JobContext, RunJob } from './control.ts';
import { dataItem, errnoItem, type Request } from './control-protocol.ts';
import type { Core } from './core.ts';
import { memoryState } from './dirstreams.ts';

const PAGE = 1024;
const LANES = 32;
const R = 4;
const W = 2;
const X = 1;

/** Stops a job whose descriptor was closed. */
function alive(ctx: JobContext): void {
  if (ctx.signal.aborted) throw EINTR;
}

/** Entries of a directory, page by page, as they are now. */
async function* listing(core: Core, dir: Ino, plus: boolean): AsyncGenerator<DirEntry[]> {
  const stream = core.engine.dirStream(dir, memoryState());
  try {
    for (let cookie = 0; ; ) {
      const page = await stream.read(cookie, PAGE, plus);
      if (page.length === 0) return;
      cookie = page.at(-1)!.cookie;
      yield page.map(e => ({ ...e, name: Uint8Array.from(e.name) }));
    }
  } finally {
    stream.close();
  }
}

/** Runs `work` for every item, at most `lanes` at once; the number of the lane is given along. The first error stops it. */
async function spread<T>(
  items: readonly T[],
  lanes: number,
  work: (item: T, lane: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  const lane = async (n: number) => {
    try {
      while (next < items.length) await work(items[next++]!, n);
    } catch (error) {
      next = items.length;
      throw error;
    }
  };
  // All come to their end: a lane's op slots may be given to another job then.
  const ends = await Promise.allSettled(Array.from({ length: Math.min(lanes, items.length) }, (_, n) => lane(n)));
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

async function mayRead(core: Core, cred: Cred, ino: Ino, mask: number): Promise<void> {
  if (cred.uid !== 0) await core.engine.access(cred, ino, mask);
}

// ── rmr ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

async function removeTree(core: Core, ctx: JobContext, request: Request & { command: 'rmr' }): Promise<void> {
  if (core.options.readOnly) throw EROFS;
  if (request.skipTrash && ctx.cred.uid !== 0) throw EPERM;
  const parent = core.ino(request.parent);
  const { engine, inodes } = core;
  const lanes = Math.max(1, Math.min(LANES, request.threads));
  let count = 0;

  const gone = async (lane: number, work: (op: Op) => Promise<Removed>): Promise<void> => {
    try {
      const op = ctx.op(lane);
      await core.gone(await work(op), op);
      ctx.progress(++count, 0);
    } catch (error) {
      // Somebody else, or the process before, was faster.
      if (error !== ENOENT) throw error;
    }
  };

  const removeDir = async (dir: Ino, parentIno: Ino, name: Name): Promise<void> => {
    await mayRead(core, ctx.cred, dir, R | X);
    for (let tries = 0; ; tries++) {
      const directories: DirEntry[] = [];
      for await (const page of listing(core, dir, false)) {
        alive(ctx);
        const files = page.filter(e => e.type !== FileType.directory);
        directories.push(...page.filter(e => e.type === FileType.directory));
        await spread(files, lanes, async (e, lane) => {
          alive(ctx);
          await gone(lane, op => engine.unlink(op, ctx.cred, dir, e.name, inodes.isOpen, request.skipTrash));
        });
      }
      for (const d of directories) await removeDir(d.ino, dir, d.name);
      alive(ctx);
      try {
        await gone(0, op => engine.rmdir(op, ctx.cred, parentIno, name, request.skipTrash));
        return;
      } catch (error) {
        // Entries that came while we were at it.
        if (error !== ENOTEMPTY || tries >= 10) throw error;
      }
    }
  };

  let found: { ino: Ino; attr: Attr };
  try {
    found = await engine.lookup(ctx.cred, parent, request.name);
  } catch (error) {
    if (error === ENOENT && ctx.resumed) return;
    throw error;
  }
  if (found.attr.type === FileType.directory) await removeDir(found.ino, parent, request.name);
  else await gone(0, op => engine.unlink(op, ctx.cred, parent, request.name, inodes.isOpen, request.skipTrash));
  await core.notify?.invalEntry(core.node(parent), request.name).catch(() => undefined);
}

// ── clone ───────────────────────────────────────────────────────────────────────────────────────────────────────────

async function cloneTree(core: Core, ctx: JobContext, request: Request & { command: 'clone' }): Promise<void> {
  if (core.options.readOnly) throw EROFS;
  const { engine, data } = core;
  const source = core.ino(request.source);
  const parent = core.ino(request.parent);
  const { cred } = ctx;
  const options = { preserve: request.preserve, umask: request.umask };
  if (core.internals.find(parent, request.name) !== undefined) throw EEXIST;
  const attr = await engine.getattr(source);
  await mayRead(core, cred, parent, W | X);
  let done = 0;
  let total = 1;
  const step = () => ctx.progress(++done, total);

  const ready = async (ino: Ino, type: FileType): Promise<void> => {
    alive(ctx);
    await mayRead(core, cred, ino, type === FileType.directory ? R | X : type === FileType.file ? R : 0);
    if (type === FileType.file && data.pending(ino) !== undefined) await data.flush(ino);
  };

  await ready(source, attr.type);
  if (attr.type !== FileType.directory) {
    await engine.cloneNode(ctx.firstOp(), cred, source, parent, request.name, options);
    core.touched();
    step();
    return;
  }
  if (!ctx.resumed) {
    const exists = await Promise.resolve()
      .then(() => engine.lookup(cred, parent, request.name))
      .catch((e: unknown) => {
        if (e !== ENOENT) throw e;
      });
    if (exists !== undefined) throw EEXIST;
  }
  const root = (await engine.cloneNode(ctx.firstOp(), cred, source, parent, undefined, options)).ino;
  step();

  const copyChildren = async (from: Ino, to: Ino): Promise<void> => {
    for await (const page of listing(core, from, false)) {
      total += page.length;
      const directories: [Ino, Ino][] = [];
      await spread(page, Math.max(1, Math.min(LANES, request.threads)), async (e, lane) => {
        try {
          await ready(e.ino, e.type);
          const made = await engine.cloneNode(ctx.op(lane), cred, e.ino, to, e.name, options);
          if (e.type === FileType.directory) directories.push([e.ino, made.ino]);
        } catch (error) {
          if (error === EEXIST && ctx.resumed) {
            // Made by the process before.
            if (e.type === FileType.directory) directories.push([e.ino, (await engine.lookup(cred, to, e.name)).ino]);
          } else if (error !== ENOENT) throw error;
        }
        step();
      });
      for (const [a, b] of directories) await copyChildren(a, b);
    }
  };
  await copyChildren(source, root);
  alive(ctx);
  try {
    await engine.attachClone(ctx.op(0), cred, root, parent, request.name);
  } catch (error) {
    const there = ctx.resumed && error === EEXIST ? await engine.lookup(cred, parent, request.name) : undefined;
    if (there?.ino !== root) throw error;
  }
  core.touched();
}

// ── info and summary ────────────────────────────────────────────────────────────────────────────────────────────────

interface Totals {
  length: number;
  size: number;
  files: number;
  dirs: number;
}

function align4K(length: number): number {
  return length === 0 ? 4096 : Math.ceil(length / 4096) * 4096;
}

function addNode(t: Totals, attr: Attr): void {
  if (attr.type === FileType.directory) t.dirs++;
  else t.files++;
  t.length += attr.type === FileType.file ? attr.length : 0;
  t.size += attr.type === FileType.file ? align4K(attr.length) : 4096;
}

/** Usage of everything below a directory. Without `strict` files are taken from the directory's statistics. */
async function addTree(
  core: Core,
  ctx: JobContext,
  dir: Ino,
  recursive: boolean,
  strict: boolean,
  t: Totals,
): Promise<void> {
  alive(ctx);
  await mayRead(core, ctx.cred, dir, R | X);
  const fast = !strict && core.format.DirStats === true;
  let dirs = 0;
  const children: Ino[] = [];
  for await (const page of listing(core, dir, !fast)) {
    for (const e of page) {
      if (e.type === FileType.directory) {
        dirs++;
        children.push(e.ino);
      }
      if (!fast && e.attr !== undefined) addNode(t, e.attr);
    }
  }
  if (fast) {
    const s = await core.engine.dirStat(dir);
    t.length += s.length;
    t.size += s.space;
    t.dirs += dirs;
    t.files += Math.max(0, s.inodes - dirs);
  }
  ctx.progress(t.files + t.dirs, t.size);
  if (recursive) for (const child of children) await addTree(core, ctx, child, true, strict, t);
}

/** Paths of the inode below the mount's root, or what is known of them. */
async function pathsOf(core: Core, ino: Ino): Promise<string[]> {
  if (ino === core.root) return ['/'];
  const { engine } = core;
  const nameIn = async (dir: Ino, child: Ino): Promise<string[]> => {
    const names: string[] = [];
    for await (const page of listing(core, dir, false)) {
      for (const e of page) if (e.ino === child) names.push(Buffer.from(e.name).toString('utf8'));
    }
    return names;
  };
  const dirPath = async (dir: Ino): Promise<string | undefined> => {
    const parts: string[] = [];
    for (let at = dir; at !== core.root; ) {
      if (at === ROOT || at === 0 || isTrash(at)) return undefined;
      const { parent } = await engine.getattr(at);
      const [name] = await nameIn(parent, at);
      if (name === undefined) return undefined;
      parts.unshift(name);
      at = parent;
    }
    return `/${parts.join('/')}`;
  };
  const out: string[] = [];
  const parents = await engine.parents(ino);
  for (const parent of parents.keys()) {
    const path = await dirPath(parent);
    if (path === undefined) continue;
    for (const name of await nameIn(parent, ino)) out.push(path === '/' ? `/${name}` : `${path}/${name}`);
  }
  return out;
}

/** Object keys, as spec/volume.md §5 has them without hash prefix. */
function blockKey(core: Core, id: number, index: number, size: number): string {
  const bucket = core.format.HashPrefix
    ? (id % 256).toString(16).toUpperCase().padStart(2, '0')
    : String(Math.floor(id / 1_000_000));
  const second = Math.floor(id / (core.format.HashPrefix ? 1_000_000 : 1000));
  return `${core.format.Name}/chunks/${bucket}/${second}/${id}_${index}_${size}`;
}

async function info(core: Core, ctx: JobContext, request: Request & { command: 'info' }): Promise<Buffer> {
  const ino = core.ino(request.ino);
  const out: Record<string, unknown> = { Ino: json64(inoToBigint(request.ino)), Failed: false, Reason: '' };
  const t: Totals = { length: 0, size: 0, files: 0, dirs: 0 };
  try {
    const attr = core.internals.attr(ino) ?? (await core.engine.getattr(ino));
    const pending = core.data.pending(ino);
    if (pending !== undefined) await core.data.flush(ino);
    addNode(t, attr);
    if (attr.type === FileType.directory) await addTree(core, ctx, ino, request.recursive, request.strict, t);
    out.Paths = core.isInternal(ino) ? [] : await pathsOf(core, ino);
    const tier = core.format.Tiers?.[String(attr.tier)];
    out.Tier = { ID: attr.tier, StorageClass: tier?.StorageClass ?? '', Tag: tier?.Tag ?? '' };
    out.RestoreStatus = '';
    if (attr.type === FileType.file && !core.isInternal(ino)) {
      const fresh = await core.engine.getattr(ino);
      if (request.raw) out.Chunks = await chunksOf(core, ino, fresh.length);
      else out.Objects = await objectsOf(core, ino, fresh.length);
      const locks = await locksOf(core, ino);
      out.FLocks = locks.flocks;
      out.PLocks = locks.plocks;
    }
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    out.Failed = true;
    out.Reason = error.message;
  }
  out.Summary = { Length: t.length, Size: t.size, Files: t.files, Dirs: t.dirs };
  return dataItem(stringify(out));
}

/** Numbers beyond 2^53 as JSON numbers: marked strings that {@link stringify} strips. */
function json64(n: bigint): number | string {
  return n <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(n) : `#${n}#`;
}

function stringify(value: unknown): string {
  return JSON.stringify(value).replace(/"#(\d+)#"/g, '$1');
}

interface ChunkPiece {
  ChunkIndex: number;
  Id: number;
  Size: number;
  Off: number;
  Len: number;
}

/** Pieces of every chunk that has records, with holes in between. */
async function chunksOf(core: Core, ino: Ino, length: number): Promise<ChunkPiece[]> {
  const out: ChunkPiece[] = [];
  const last = Math.max(0, Math.ceil(length / CHUNK_SIZE) - 1);
  for (let from = 0; from <= last; ) {
    const indexes = await core.engine.listChunks(ino, from, last, 1000);
    if (indexes.length === 0) break;
    for (const index of indexes) {
      const end = Math.min(CHUNK_SIZE, length - index * CHUNK_SIZE);
      for (const p of buildSlices(await core.engine.readChunk(ino, index))) {
        if (p.pos >= end) break;
        out.push({ ChunkIndex: index, Id: p.id, Size: p.size, Off: p.off, Len: Math.min(p.len, end - p.pos) });
      }
    }
    from = indexes.at(-1)! + 1;
  }
  return out;
}

async function objectsOf(core: Core, ino: Ino, length: number): Promise<object[]> {
  const block = core.format.BlockSize * 1024;
  const out: object[] = [];
  for (const p of await chunksOf(core, ino, length)) {
    if (p.Id === 0) {
      out.push({ ChunkIndex: p.ChunkIndex, Key: '', Size: p.Len, Off: 0, Len: p.Len });
      continue;
    }
    for (let at = p.Off; at < p.Off + p.Len; ) {
      const index = Math.floor(at / block);
      const size = Math.min(block, p.Size - index * block);
      const off = at - index * block;
      const len = Math.min(size - off, p.Off + p.Len - at);
      out.push({ ChunkIndex: p.ChunkIndex, Key: blockKey(core, p.Id, index, size), Size: size, Off: off, Len: len });
      at += len;
    }
  }
  return out;
}

async function locksOf(core: Core, ino: Ino): Promise<{ flocks: object[]; plocks: object[] }> {
  const flocks: object[] = [];
  const plocks: object[] = [];
  for (const s of await core.engine.listSessions(true)) {
    for (const f of s.flocks ?? [])
      if (f.ino === ino) flocks.push({ Sid: s.sid, Owner: json64(f.owner), Type: f.type });
    for (const p of s.plocks ?? []) {
      if (p.ino !== ino) continue;
      for (const l of p.records) {
        plocks.push({
          Sid: s.sid,
          Owner: json64(p.owner),
          // fcntl's number here, a letter above: so the Go client's command wants it.
          Type: l.type,
          Pid: l.pid,
          Start: json64(l.start),
          End: json64(l.end),
        });
      }
    }
  }
  return { flocks, plocks };
}

interface Tree {
  Inode: number | string;
  Path: string;
  Type: number;
  Size: number;
  Files: number;
  Dirs: number;
  Children: Tree[] | null;
}

async function summary(core: Core, ctx: JobContext, request: Request & { command: 'summary' }): Promise<Buffer> {
  const entries = Math.min(100, request.entries);
  const seen: Totals = { length: 0, size: 0, files: 0, dirs: 0 };
  const usage = async (ino: Ino, attr: Attr, path: string, depth: number): Promise<Tree> => {
    const tree: Tree = {
      Inode: json64(inoToBigint(core.node(ino))),
      Path: path,
      Type: attr.type,
      Size: attr.type === FileType.file ? align4K(attr.length) : 4096,
      Files: attr.type === FileType.directory ? 0 : 1,
      Dirs: attr.type === FileType.directory ? 1 : 0,
      Children: null,
    };
    seen.files += tree.Files;
    seen.dirs += tree.Dirs;
    seen.size += tree.Size;
    ctx.progress(seen.files + seen.dirs, seen.size);
    if (attr.type !== FileType.directory) return tree;
    alive(ctx);
    await mayRead(core, ctx.cred, ino, R | X);
    if (depth === 0) {
      const t: Totals = { length: 0, size: 0, files: 0, dirs: 0 };
      await addTree(core, ctx, ino, true, request.strict, t);
      tree.Size += t.size;
      tree.Files += t.files;
      tree.Dirs += t.dirs;
      return tree;
    }
    const children: Tree[] = [];
    for await (const page of listing(core, ino, true)) {
      for (const e of page) {
        if (e.attr === undefined) continue;
        const name = Buffer.from(e.name).toString('utf8');
        const child = await usage(e.ino, e.attr, path === '' ? name : `${path}/${name}`, depth - 1);
        tree.Size += child.Size;
        tree.Files += child.Files;
        tree.Dirs += child.Dirs;
        children.push(child);
      }
    }
    children.sort((a, b) => b.Size - a.Size || (a.Path < b.Path ? -1 : 1));
    const shown = children.slice(0, entries);
    const rest = children.slice(entries);
    if (rest.length > 0) {
      const sum = (key: 'Size' | 'Files' | 'Dirs') => rest.reduce((n, c) => n + c[key], 0);
      shown.push({
        Inode: 0,
        Path: path === '' ? '...' : `${path}/...`,
        Type: FileType.file,
        Size: sum('Size'),
        Files: sum('Files'),
        Dirs: sum('Dirs'),
        Children: null,
      });
    }
    tree.Children = shown;
    return tree;
  };
  try {
    const ino = core.ino(request.ino);
    const attr = await core.engine.getattr(ino);
    // Paths are those below the folder that was asked for.
    const tree = await usage(ino, attr, '', Math.min(10, request.depth));
    return dataItem(stringify({ Errno: 0, Tree: tree }));
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    return dataItem(stringify({ Errno: error.errno, Tree: null }));
  }
}

// ── compact ─────────────────────────────────────────────────────────────────────────────────────────────────────────

async function compactTree(core: Core, ctx: JobContext, request: Request & { command: 'compact' }): Promise<void> {
  if (core.options.readOnly) throw EROFS;
  let chunks = 0;
  let merged = 0;
  const file = async (ino: Ino, length: number): Promise<void> => {
    await mayRead(core, ctx.cred, ino, W);
    const last = Math.max(0, Math.ceil(length / CHUNK_SIZE) - 1);
    for (let from = 0; from <= last; ) {
      const indexes = await core.engine.listChunks(ino, from, last, 1000);
      if (indexes.length === 0) return;
      for (const index of indexes) {
        alive(ctx);
        if (await core.data.compact(ino, index)) merged++;
        ctx.progress(++chunks, merged);
      }
      from = indexes.at(-1)! + 1;
      await sleep(0);
    }
  };
  const tree = async (dir: Ino): Promise<void> => {
    await mayRead(core, ctx.cred, dir, R | X);
    const directories: Ino[] = [];
    for await (const page of listing(core, dir, true)) {
      alive(ctx);
      const files = page.filter(e => e.type === FileType.file && e.attr !== undefined);
      for (const e of page) if (e.type === FileType.directory) directories.push(e.ino);
      await spread(files, Math.max(1, Math.min(LANES, request.threads)), e => file(e.ino, e.attr!.length));
    }
    for (const d of directories) await tree(d);
  };
  const ino = core.ino(request.ino);
  const attr = await core.engine.getattr(ino);
  if (attr.type === FileType.directory) await tree(ino);
  else if (attr.type === FileType.file) await file(ino, attr.length);
  else throw EINVAL;
}

export function runJobs(core: Core): RunJob {
  return async (request, ctx) => {
    try {
      switch (request.command) {
        case 'rmr':
          await removeTree(core, ctx, request);
          return errnoItem(0);
        case 'clone':
          await cloneTree(core, ctx, request);
          return errnoItem(0);
        case 'compact':
          await compactTree(core, ctx, request);
          return errnoItem(0);
        case 'info':
          return await info(core, ctx, request);
        case 'summary':
          return await summary(core, ctx, request);
      }
    } catch (error) {
      if (error instanceof Errno && [EACCES, ENOENT, ENOTDIR, EPERM, EEXIST, EINTR].includes(error)) throw error;
      core.log.warn({ err: error as Error, command: request.command }, 'a command of .control failed');
      throw error instanceof Errno ? error : EIO.because(request.command, error);
    }
  };
}
