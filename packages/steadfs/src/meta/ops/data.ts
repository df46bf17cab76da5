/** Operations on file data: slice commits, sharing, compaction, deletion (spec/volume.md §4, meta-redis.md §4.12-4.15). */
import { EFBIG, EINVAL, ENOENT, EPERM } from '@steadfs/fuse/errno';
import { type Attr, FileType, Flag } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import { buildSlices, CHUNK_SIZE, clipPieces, type Slice } from '../../format/slice.ts';
import type { Cred, DeadSlice, TimeSet, WriteResult } from '../engine.ts';
import { checkAccess, present, W, withoutSuidgid } from './access.ts';
import { MAX_LENGTH } from './attrs.ts';
import { inoArg, logChange } from './changelog.ts';
import { destroyNode } from './names.ts';
import { accountLength } from './quota.ts';
import type { Body, Tx } from './tx.ts';

/** Records that one copy_file_range or one deletion step touches at most. */
const RECORDS_PER_STEP = 2000;
const CHUNKS_PER_COPY = 64;
const CHUNKS_PER_DELETE = 100;
/** Entries of the delayed list (each has up to 1000 slices) that one step reads at most. */
const DELAYED_PER_STEP = 50;

export function* write(
  tx: Tx,
  ino: Ino,
  index: number,
  records: readonly Slice[],
  end: number,
  mtime: TimeSet,
  ctime: TimeSet,
  killSuidgid: boolean,
): Body<WriteResult> {
  if (end > MAX_LENGTH) throw EFBIG;
  if (records.some(r => r.pos + r.len > CHUNK_SIZE || r.len <= 0)) throw EINVAL;
  const cur = yield* tx.nodeForUpdate(ino);
  if (cur === undefined) throw ENOENT;
  if (cur.type !== FileType.file) throw EPERM;
  const next: Attr = { ...cur, length: Math.max(cur.length, end) };
  yield* accountLength(tx, ino, cur, next.length);
  const count = yield* tx.appendChunk(ino, index, records);
  const slices = new Map<number, { size: number; refs: number }>();
  for (const r of records) {
    if (r.id === 0) continue;
    const s = slices.get(r.id);
    if (s === undefined) slices.set(r.id, { size: r.size, refs: 1 });
    else s.refs++;
  }
  for (const [id, s] of slices) yield* tx.addSlice(id, s.size, s.refs);
  if (killSuidgid) next.mode = withoutSuidgid(cur.mode);
  next.mtime = mtime.sec;
  next.mtimensec = mtime.nsec;
  // ctime is that of the write, which programs have seen since, not the commit's. That of a later chmod stays.
  if (ctime.sec > cur.ctime || (ctime.sec === cur.ctime && ctime.nsec > cur.ctimensec)) {
    next.ctime = ctime.sec;
    next.ctimensec = ctime.nsec;
  }
  yield* tx.updateNode(ino, next);
  if (tx.volume.format.ChangeLog) {
    for (const r of records) {
      yield* logChange(tx, 'WRITE', () => [inoArg(ino), index, r.pos, r.id, r.len, mtime.sec, mtime.nsec], count);
    }
  }
  return { attr: yield* present(tx, ino, next), records: count };
}

export function* copyFileRange(
  tx: Tx,
  cred: Cred,
  ino: Ino,
  offset: number,
  out: Ino,
  outOffset: number,
  length: number,
): Body<{ copied: number; attr: Attr }> {
  const source = yield* tx.nodeForUpdate(ino);
  const target = ino === out ? source : yield* tx.nodeForUpdate(out);
  if (source === undefined || target === undefined) throw ENOENT;
  if (source.type !== FileType.file || target.type !== FileType.file) throw EINVAL;
  if ((target.flags & (Flag.immutable | Flag.append)) !== 0) throw EPERM;
  yield* checkAccess(tx, cred, target, W);
  if (ino === out && offset < outOffset + length && outOffset < offset + length) throw EINVAL;
  if (offset >= source.length || length <= 0) return { copied: 0, attr: yield* present(tx, out, target) };
  if (outOffset + Math.min(length, source.length - offset) > MAX_LENGTH) throw EFBIG;

  // Whole source chunks, as many as fit one transaction; a shorter copy is a right answer.
  let left = Math.min(length, source.length - offset);
  let copied = 0;
  let records = 0;
  const appends: [index: number, records: Slice[]][] = [];
  for (let n = 0; left > 0 && n < CHUNKS_PER_COPY && records < RECORDS_PER_STEP; n++) {
    const at = offset + copied;
    const index = Math.floor(at / CHUNK_SIZE);
    const from = at - index * CHUNK_SIZE;
    const to = Math.min(CHUNK_SIZE, from + left);
    for (const piece of clipPieces(buildSlices(yield* tx.chunk(ino, index)), from, to)) {
      records++;
      let target = outOffset + copied + piece.pos - from;
      // A piece may cross a chunk boundary of the destination.
      for (let done = 0; done < piece.len; ) {
        const outIndex = Math.floor(target / CHUNK_SIZE);
        const pos = target - outIndex * CHUNK_SIZE;
        const len = Math.min(piece.len - done, CHUNK_SIZE - pos);
        const record = { pos, id: piece.id, size: piece.size, off: piece.id === 0 ? 0 : piece.off + done, len };
        const last = appends.at(-1);
        if (last !== undefined && last[0] === outIndex) last[1].push(record);
        else appends.push([outIndex, [record]]);
        done += len;
        target += len;
      }
    }
    copied += to - from;
    left -= to - from;
  }
  const next: Attr = { ...target, length: Math.max(target.length, outOffset + copied) };
  yield* accountLength(tx, out, target, next.length);
  for (const [index, list] of appends) {
    yield* tx.appendChunk(out, index, list);
    for (const r of list) if (r.id !== 0) yield* tx.addRefs(r.id, r.size, 1);
  }
  if (cred.uid !== 0) next.mode = withoutSuidgid(target.mode);
  next.mtime = next.ctime = tx.now.sec;
  next.mtimensec = next.ctimensec = tx.now.nsec;
  yield* tx.updateNode(out, next);
  yield* logChange(tx, 'COPYFILERANGE', () => [inoArg(ino), offset, inoArg(out), outOffset, copied], next.length);
  return { copied, attr: yield* present(tx, out, next) };
}

function equalSlice(a: Slice | undefined, b: Slice): boolean {
  return a !== undefined && a.pos === b.pos && a.id === b.id && a.size === b.size && a.off === b.off && a.len === b.len;
}

export function* compact(
  tx: Tx,
  ino: Ino,
  index: number,
  original: readonly Slice[],
  skipped: number,
  replacement: Slice,
): Body<boolean> {
  const now = yield* tx.chunk(ino, index);
  if (original.length === 0 || original.length > now.length || !original.every((r, i) => equalSlice(now[i], r))) {
    // The data was written for nothing: a slice without references is deleted by the hourly job.
    if (replacement.id !== 0) yield* tx.addSlice(replacement.id, replacement.size, 0);
    return false;
  }
  const old = original.slice(skipped).filter(r => r.id !== 0);
  yield* tx.replaceChunk(ino, index, [...original.slice(0, skipped), replacement, ...now.slice(original.length)]);
  if (replacement.id !== 0) yield* tx.addSlice(replacement.id, replacement.size, 1);
  if (tx.volume.format.TrashDays > 0 && replacement.id !== 0) {
    if (old.length > 0)
      yield* tx.insertDelayed(
        replacement.id,
        old.map(({ id, size }) => ({ id, size })),
      );
  } else for (const r of old) yield* tx.addRefs(r.id, r.size, -1);
  yield* logChange(tx, 'COMPACTCHUNK', () => [
    inoArg(ino),
    index,
    skipped,
    original.length,
    replacement.pos,
    replacement.id,
    replacement.size,
  ]);
  return true;
}

/** The last handle of a removed file was closed: the sustained inode goes. Answers the length of data left to delete. */
export function* release(tx: Tx, sid: number, ino: Ino): Body<number | undefined> {
  const attr = yield* tx.nodeForUpdate(ino);
  yield* tx.deleteSustained(sid, ino);
  // A file that got a name again (linkat of an O_TMPFILE) lives on; so does one that another session holds.
  if (attr === undefined || attr.nlink > 0 || (yield* tx.isSustained(ino))) return undefined;
  const data = yield* destroyNode(tx, ino, attr);
  yield* logChange(tx, 'DELSUSTAINED', () => [sid, inoArg(ino)]);
  return data ? attr.length : undefined;
}

/** Drops one reference of each record; answers the slices that have none left. */
function* dereference(tx: Tx, records: Iterable<DeadSlice>): Body<DeadSlice[]> {
  const dead: DeadSlice[] = [];
  for (const { id, size } of records) {
    if (id !== 0 && (yield* tx.addRefs(id, size, -1)) <= 0) dead.push({ id, size });
  }
  return dead;
}

export function* deleteFileData(tx: Tx, ino: Ino, length: number): Body<{ dead: DeadSlice[]; done: boolean }> {
  const dead: DeadSlice[] = [];
  const indexes: number[] = yield* tx.chunkIndexes(ino, 0, 0xffffffff, CHUNKS_PER_DELETE + 1);
  let records = 0;
  let taken = 0;
  for (const index of indexes.slice(0, CHUNKS_PER_DELETE)) {
    if (records > RECORDS_PER_STEP) break;
    const list = yield* tx.chunk(ino, index);
    records += list.length;
    taken++;
    dead.push(...(yield* dereference(tx, list)));
    yield* tx.replaceChunk(ino, index, []);
    yield* logChange(tx, 'DELCHUNK', () => [inoArg(ino), index]);
  }
  const finished = taken === indexes.length;
  if (finished) yield* tx.deleteDelfile(ino, length);
  return { dead, done: finished };
}

export function* expireDelayedSlices(
  tx: Tx,
  before: number,
  limit: number,
): Body<{ dead: DeadSlice[]; more: boolean }> {
  const dead: DeadSlice[] = [];
  const page = Math.min(limit, DELAYED_PER_STEP);
  const rows = yield* tx.delayedBefore(before, page);
  let slicesTaken = 0;
  let taken = 0;
  for (const { key, slices } of rows) {
    if (slicesTaken > RECORDS_PER_STEP) break;
    dead.push(...(yield* dereference(tx, slices)));
    yield* tx.deleteDelayed(key);
    slicesTaken += slices.length;
    taken++;
    yield* logChange(tx, 'CLEANUP_DELAYED_SLICES', () => [key, before]);
  }
  return { dead, more: taken < rows.length || rows.length === page };
}
