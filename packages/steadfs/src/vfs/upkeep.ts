/**
 * Work that nobody waits for (spec: volume format §4.3, §7.1): data of removed files and dead slices is deleted, sessions that ended without
 * saying so are cleaned up, the trash is emptied. Jobs of the whole volume are done by whichever client claims the duty; `--no-bgjob` leaves them
 * to others, but not what this mount removed itself.
 */
import type { FileData } from '../data/file-data.ts';
import { type Ino, TRASH } from '../format/ino.ts';
import type { Format } from '../format/volume.ts';
import type { Cred, DirStreamState, MetaEngine, Op } from '../meta/engine.ts';
import type { Log } from '../observe/log.ts';

const HOUR = 3600;
/** Removed files whose data is deleted at the same time. */
const CONCURRENT = 10;
/** Items of one question to the database. */
const BATCH = 1000;
/** A job of the volume stops after this long and goes on in an hour. */
const LONGEST_MS = 50 * 60_000;
/** Removed files are left to the client that removed them for this long. */
const GRACE = HOUR;

export interface UpkeepParts {
  engine: MetaEngine;
  data: FileData;
  log: Log;
  format(): Format;
  /** A new operation identity; only one of a slot may be under way. */
  jobOp(slot: number): Op;
  /** Seconds. */
  heartbeat: number;
  /** --no-bgjob, --read-only */
  noJobs: boolean;
  /** --max-deletes 0: objects are not deleted by this client. */
  deleteObjects: boolean;
}

export interface Upkeep {
  start(): void;
  /** A removed file's data can be deleted now. */
  deleted(ino: Ino, length: number): void;
  /** No new work; settles when what is under way has ended. */
  stop(): Promise<void>;
}

/** Slots of Op for background work; below are those of `.control` jobs. */
const FIRST_SLOT = 1 << 16;

const root: Cred = { uid: 0, gid: 0, pid: 0, groups: () => [0], checkPermission: false };

export function createUpkeep(parts: UpkeepParts): Upkeep {
  const { engine, data, log } = parts;
  const queue: { ino: Ino; length: number }[] = [];
  const queued = new Set<Ino>();
  const running = new Set<Promise<void>>();
  const slots = Array.from({ length: CONCURRENT + 2 }, (_, i) => FIRST_SLOT + i);
  let workers = 0;
  let stopped = false;
  const timers: NodeJS.Timeout[] = [];

  const track = (work: Promise<void>, what: string) => {
    const settled = work.catch((error: unknown) =>
      log.warn({ err: error as Error }, `${what} failed, and will be tried again`),
    );
    running.add(settled);
    settled.finally(() => running.delete(settled));
  };

  async function withSlot<T>(work: (op: () => Op) => Promise<T>): Promise<T> {
    const slot = slots.pop();
    if (slot === undefined) throw new Error('no slot for background work');
    try {
      return await work(() => parts.jobOp(slot));
    } finally {
      slots.push(slot);
    }
  }

  async function deleteFile(ino: Ino, length: number): Promise<void> {
    await withSlot(async op => {
      for (;;) {
        const { dead, done } = await engine.deleteFileData(op(), ino, length);
        if (dead.length > 0 && parts.deleteObjects) await data.deleteSlices(dead);
        if (done || stopped) return;
      }
    });
  }

  function pump(): void {
    while (workers < CONCURRENT && queue.length > 0 && !stopped) {
      const { ino, length } = queue.shift()!;
      workers++;
      track(
        deleteFile(ino, length).finally(() => {
          workers--;
          queued.delete(ino);
          pump();
        }),
        `deleting the data of removed inode ${ino}`,
      );
    }
  }

  function deleted(ino: Ino, length: number): void {
    if (stopped || queued.has(ino)) return;
    queued.add(ino);
    queue.push({ ino, length });
    pump();
  }

  async function cleanSessions(): Promise<void> {
    if (!(await engine.claimDuty('lastCleanupSessions', parts.heartbeat))) return;
    for (const sid of await engine.staleSessions(BATCH)) {
      if (stopped) return;
      log.info(`cleaning up session ${sid}, which ended without saying so`);
      await engine.cleanSession(sid);
    }
  }

  async function cleanDeletedFiles(): Promise<void> {
    if (!(await engine.claimDuty('lastCleanupFiles', HOUR))) return;
    const end = Date.now() + LONGEST_MS;
    const before = Date.now() / 1000 - GRACE;
    for (;;) {
      const files = await engine.deletedFiles(before, BATCH);
      for (const { ino, length } of files) {
        if (stopped || Date.now() > end) return;
        if (!queued.has(ino)) await deleteFile(ino, length);
      }
      if (files.length < BATCH) return;
    }
  }

  async function cleanSlices(): Promise<void> {
    if (!parts.deleteObjects || !(await engine.claimDuty('nextCleanupSlices', HOUR))) return;
    const end = Date.now() + LONGEST_MS;
    while (!stopped && Date.now() < end) {
      const dead = await engine.deadSlices(BATCH);
      if (dead.length > 0) await data.deleteSlices(dead);
      if (dead.length < BATCH) return;
    }
  }

  /** Empties hourly folders that are older than the trash days, and lets go of overwritten data of that age. */
  async function cleanTrash(): Promise<void> {
    if (!(await engine.claimDuty('lastCleanupTrash', HOUR))) return;
    const end = Date.now() + LONGEST_MS;
    const days = parts.format().TrashDays;
    const before = Date.now() - (24 * days + 2) * HOUR * 1000;
    const go = () => !stopped && Date.now() < end;
    await withSlot(async op => {
      for (const folder of await listing(TRASH)) {
        if (!go()) return;
        const hour = /^(\d{4}-\d{2}-\d{2})-(\d{2})$/.exec(folder.name.toString());
        if (!hour || Date.parse(`${hour[1]}T${hour[2]}:00:00Z`) >= before) continue;
        await removeTree(op, folder.ino, go);
        if (go()) await engine.rmdir(op(), root, TRASH, folder.name, true);
      }
      for (;;) {
        const { dead, more } = await engine.expireDelayedSlices(op(), Date.now() / 1000 - days * 24 * HOUR, BATCH);
        if (dead.length > 0 && parts.deleteObjects) await data.deleteSlices(dead);
        if (!more || !go()) return;
      }
    });
  }

  async function listing(ino: Ino): Promise<{ name: Buffer; ino: Ino; directory: boolean }[]> {
    const items: Uint8Array[] = [];
    const state: DirStreamState = { load: () => items, append: item => items.push(item), clear: () => items.splice(0) };
    const stream = engine.dirStream(ino, state);
    const out: { name: Buffer; ino: Ino; directory: boolean }[] = [];
    try {
      for (let cookie = 0; ; ) {
        const entries = await stream.read(cookie, BATCH, false);
        if (entries.length === 0) return out;
        for (const e of entries) out.push({ name: Buffer.from(e.name), ino: e.ino, directory: e.type === 2 });
        cookie = entries.at(-1)!.cookie;
      }
    } finally {
      stream.close();
    }
  }

  async function removeTree(op: () => Op, ino: Ino, go: () => boolean): Promise<void> {
    for (const entry of await listing(ino)) {
      if (!go()) return;
      if (entry.directory) {
        await removeTree(op, entry.ino, go);
        if (!go()) return;
        await engine.rmdir(op(), root, ino, entry.name, true);
      } else {
        const removed = await engine.unlink(op(), root, ino, entry.name, () => false, true);
        if (removed.state === 'deleted') await deleteFile(removed.ino, removed.attr.length);
      }
    }
  }

  const every = (seconds: number, work: () => Promise<void>, what: string) => {
    let busy = false;
    const timer = setInterval(() => {
      if (busy || stopped) return;
      busy = true;
      track(
        work().finally(() => {
          busy = false;
        }),
        what,
      );
    }, seconds * 1000);
    timer.unref();
    timers.push(timer);
  };

  return {
    start() {
      if (parts.noJobs) return;
      every(parts.heartbeat, cleanSessions, 'cleaning up sessions');
      // The duty decides whether an hour is over; asking often means that a mount of minutes does its share too.
      every(Math.max(60, parts.heartbeat), cleanDeletedFiles, 'deleting data of removed files');
      every(Math.max(60, parts.heartbeat), cleanSlices, 'deleting dead slices');
      every(Math.max(60, parts.heartbeat), cleanTrash, 'emptying the trash');
    },
    deleted,
    async stop() {
      stopped = true;
      for (const timer of timers) clearInterval(timer);
      await Promise.all(running);
    },
  };
}
