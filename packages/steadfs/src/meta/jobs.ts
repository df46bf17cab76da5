/**
 * The jobs that clients do for the volume (spec/volume.md §7.1), over any MetaEngine: stale sessions, files and slices that are to be
 * deleted, trash and delayed slices that have expired. The engine's counters see to it that one client does each.
 */
import { ENOENT, ENOTEMPTY, Errno } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { FileType } from '../format/attr.ts';
import { type Ino, TRASH } from '../format/ino.ts';
import { trashFolderTime } from '../format/trash.ts';
import { unixNow } from './clock.ts';
import type { Cred, DeadSlice, DirEntry, MetaEngine, Op } from './engine.ts';

export interface JobContext {
  engine: MetaEngine;
  /** Format.TrashDays of now. */
  trashDays(): number;
  /** A new Op of kind job in one of the {@link JOB_LANES} lanes; a lane has one under way at most. Slots and seq are the caller's (the capsule's) to give. */
  op(lane: number): Op;
  /** False: objects are left to other clients. */
  readonly deletesObjects: boolean;
  /**
   * Deletes the objects of slices that nothing refers to, when the metadata that forgot them is durable, and their rows (FileData.deleteSlices). Answers how many are
   * gone; the others are tried again another time.
   */
  deleteSlices(slices: readonly DeadSlice[]): Promise<number>;
  /** True when the mount is about to end: jobs stop between two steps. */
  stopping(): boolean;
  log(message: string): void;
}

const HOUR = 3600;
/** A job ends after this long and goes on an hour later, seconds. */
const BUDGET = 50 * 60;
const DELFILES_MAX = 600_000;
const PAGE = 1000;
/** Entries of the trash removed at the same time. */
export const JOB_LANES = 8;

const superuser: Cred = { uid: 0, gid: 0, pid: 0, groups: () => [0], checkPermission: false };

function budget(context: JobContext): () => boolean {
  const end = unixNow() + BUDGET;
  return () => context.stopping() || unixNow() > end;
}

/** After each heartbeat: sessions whose expiry is past lose their locks and sustained files. `heartbeat` in seconds. */
export async function cleanStaleSessions(context: JobContext, heartbeat: number): Promise<void> {
  const { engine } = context;
  if (!(await engine.claimDuty('lastCleanupSessions', heartbeat))) return;
  for (const sid of await engine.staleSessions(PAGE)) {
    if (context.stopping()) return;
    context.log(`session ${sid} has expired and is cleaned up`);
    await engine.cleanSession(sid);
  }
}

async function deleteDead(context: JobContext, dead: readonly DeadSlice[]): Promise<number> {
  return dead.length === 0 || !context.deletesObjects ? 0 : await context.deleteSlices(dead);
}

/** Deletes the data of one removed file. */
export async function deleteFile(context: JobContext, lane: number, ino: Ino, length: number): Promise<void> {
  for (let done = false; !done && !context.stopping(); ) {
    faultPoint('removal.before-step');
    const step = await context.engine.deleteFileData(context.op(lane), ino, length);
    faultPoint('removal.step');
    done = step.done;
    await deleteDead(context, step.dead);
    faultPoint('removal.objects-deleted');
  }
}

/** Hourly: files removed more than an hour ago whose data is still there. */
async function cleanDeletedFiles(context: JobContext): Promise<void> {
  const { engine } = context;
  if (!(await engine.claimDuty('lastCleanupFiles', HOUR))) return;
  const over = budget(context);
  const before = unixNow() - HOUR;
  for (let n = 0; n < DELFILES_MAX && !over(); ) {
    const files = await engine.deletedFiles(before, PAGE);
    if (files.length === 0) return;
    for (const f of files) {
      if (over()) return;
      await deleteFile(context, 0, f.ino, f.length);
    }
    n += files.length;
  }
}

/** Hourly: slices without references. */
async function cleanDeadSlices(context: JobContext): Promise<void> {
  const { engine } = context;
  if (!context.deletesObjects || !(await engine.claimDuty('nextCleanupSlices', HOUR))) return;
  const over = budget(context);
  while (!over()) {
    const dead = await engine.deadSlices(PAGE);
    // Nothing more, or nothing that can be deleted now.
    if ((await deleteDead(context, dead)) === 0 || dead.length < PAGE) return;
  }
}

/** All entries of a directory, a page at a time; with `plus`, their attributes too. */
export async function* entries(engine: MetaEngine, ino: Ino, plus = false): AsyncGenerator<DirEntry[]> {
  const items: Uint8Array[] = [];
  const stream = engine.dirStream(ino, {
    load: () => items,
    append: item => {
      items.push(item);
    },
    clear: () => {
      items.length = 0;
    },
  });
  try {
    for (let cookie = 0; ; ) {
      const page = await stream.read(cookie, PAGE, plus);
      if (page.length === 0) return;
      yield page;
      cookie = page.at(-1)!.cookie;
    }
  } finally {
    stream.close();
  }
}

async function unlessGone(what: Promise<unknown>): Promise<boolean> {
  try {
    await what;
    return true;
  } catch (e) {
    if (e instanceof Errno && (e.errno === ENOENT.errno || e.errno === ENOTEMPTY.errno)) return false;
    throw e;
  }
}

/** Hourly: trash folders older than TrashDays (and two hours) with what is in them, and delayed slices older than TrashDays. */
async function cleanTrash(context: JobContext): Promise<void> {
  const { engine } = context;
  if (!(await engine.claimDuty('lastCleanupTrash', HOUR))) return;
  const over = budget(context);
  const days = context.trashDays();
  try {
    await engine.getattr(TRASH);
    await expireTrash(context, unixNow() - (24 * days + 2) * HOUR, over);
  } catch (e) {
    // A volume that never had trash.
    if (!(e instanceof Errno) || e.errno !== ENOENT.errno) throw e;
  }
  await expireDelayed(context, unixNow() - 24 * days * HOUR, over);
}

/** Empties the hourly folders whose hour began before `before`. */
export async function expireTrash(context: JobContext, before: number, over: () => boolean): Promise<void> {
  const { engine } = context;
  for await (const folders of entries(engine, TRASH)) {
    for (const folder of folders) {
      const time = trashFolderTime(Buffer.from(folder.name).toString('latin1'));
      if (time === undefined || time >= before) continue;
      for await (const page of entries(engine, folder.ino)) {
        let next = 0;
        const work = async (lane: number) => {
          while (next < page.length && !over()) await removeTrashed(context, lane, folder.ino, page[next++]!);
        };
        // All come to their end before a lane is used again.
        const ends = await Promise.allSettled(Array.from({ length: JOB_LANES }, (_, lane) => work(lane)));
        for (const end of ends) if (end.status === 'rejected') throw end.reason;
        if (over()) return;
      }
      await unlessGone(engine.rmdir(context.op(0), superuser, TRASH, folder.name, true));
    }
  }
}

async function removeTrashed(context: JobContext, lane: number, folder: Ino, e: DirEntry): Promise<void> {
  const { engine } = context;
  if (e.type === FileType.directory) {
    await unlessGone(engine.rmdir(context.op(lane), superuser, folder, e.name, true));
    return;
  }
  try {
    const removed = await engine.unlink(context.op(lane), superuser, folder, e.name, () => false, true);
    if (removed.state === 'deleted') await deleteFile(context, lane, removed.ino, removed.attr.length);
  } catch (error) {
    if (!(error instanceof Errno) || error.errno !== ENOENT.errno) throw error;
  }
}

/** Dereferences delayed slices that were put off before `before`, and deletes those that are dead then. */
export async function expireDelayed(context: JobContext, before: number, over: () => boolean): Promise<void> {
  while (!over()) {
    const step = await context.engine.expireDelayedSlices(context.op(0), before, 100);
    await deleteDead(context, step.dead);
    if (!step.more) return;
  }
}

/** The hourly jobs one after the other; an error in one does not keep the others from their turn. */
export async function hourlyJobs(context: JobContext): Promise<void> {
  for (const job of [cleanDeletedFiles, cleanDeadSlices, cleanTrash]) {
    if (context.stopping()) return;
    try {
      await job(context);
    } catch (e) {
      context.log(`${job.name}: ${e instanceof Error ? e.message : String(e)}`);
    }
  }
}
