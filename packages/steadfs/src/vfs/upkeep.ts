/**
 * Work that nobody waits for: data of files that this mount removed is deleted, and the jobs of the volume (meta/jobs.ts) have their turn. Those are done by
 * whichever client claims the duty; `--no-bgjob` leaves them to others, but not what this mount removed itself.
 */
import type { FileData } from '../data/file-data.ts';
import type { Ino } from '../format/ino.ts';
import type { Format } from '../format/volume.ts';
import type { MetaEngine, Op } from '../meta/engine.ts';
import { cleanStaleSessions, deleteFile, hourlyJobs, JOB_LANES, type JobContext } from '../meta/jobs.ts';
import type { Log } from '../observe/log.ts';

/** Removed files whose data is deleted at the same time. */
const CONCURRENT = 10;

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

/**
 * Every mount has a period of its own, up to an eighth shorter than what is asked for: a thousand mounts that were started together (or whose database came back) do not renew
 * their sessions together for ever. One number a process, so that its own work comes in one wake-up.
 */
const OWN_PACE = 1 - Math.random() / 8;

/** Milliseconds between two rounds of work that is due every so many seconds. */
export function ownPeriod(seconds: number): number {
  return Math.round(seconds * 1000 * OWN_PACE);
}

/** Heartbeats in which everybody who was away with us, and lives, has renewed his session. */
const GRACE = 5;

/**
 * Whether the sessions of others may be judged by their expiry. Not for a while after this process was away or the wall clock went forward (a suspended machine, a paused
 * virtual one, a clock that is set): the other mounts of the host were away too, their sessions look expired, and they are about to renew them. To be asked once in each period.
 */
function sessionJudge(periodMs: number): () => boolean {
  let last = Date.now();
  let from = 0;
  return () => {
    const now = Date.now();
    if (now < last) from = Math.min(from, now);
    else if (now - last > 2 * periodMs) from = now + GRACE * periodMs;
    last = now;
    return now >= from;
  };
}

/** Slots of Op for background work; below are those of `.control` jobs. The hourly jobs' lanes come first, then one for each removed file under way. */
const FIRST_SLOT = 1 << 16;

export function createUpkeep(parts: UpkeepParts): Upkeep {
  const { engine, data, log } = parts;
  const queue: { ino: Ino; length: number }[] = [];
  const queued = new Set<Ino>();
  const running = new Set<Promise<void>>();
  const lanes = Array.from({ length: CONCURRENT }, (_, i) => JOB_LANES + i);
  let stopped = false;
  const timers: NodeJS.Timeout[] = [];

  const context: JobContext = {
    engine,
    trashDays: () => parts.format().TrashDays,
    op: lane => parts.jobOp(FIRST_SLOT + lane),
    deletesObjects: parts.deleteObjects,
    deleteSlices: slices => data.deleteSlices(slices),
    stopping: () => stopped,
    log: message => log.info(message),
  };

  const track = (work: Promise<void>, what: string) => {
    const settled = work.catch((error: unknown) =>
      log.warn({ err: error as Error }, `${what} failed, and will be tried again`),
    );
    running.add(settled);
    settled.finally(() => running.delete(settled));
  };

  function pump(): void {
    while (lanes.length > 0 && queue.length > 0 && !stopped) {
      const { ino, length } = queue.shift()!;
      const lane = lanes.pop()!;
      track(
        deleteFile(context, lane, ino, length).finally(() => {
          lanes.push(lane);
          queued.delete(ino);
          pump();
        }),
        `deleting the data of removed inode ${ino}`,
      );
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
    }, ownPeriod(seconds));
    timer.unref();
    timers.push(timer);
  };

  return {
    start() {
      if (parts.noJobs) return;
      const mayJudge = sessionJudge(parts.heartbeat * 1000);
      every(
        parts.heartbeat,
        async () => {
          if (mayJudge()) await cleanStaleSessions(context, parts.heartbeat);
        },
        'cleaning up sessions',
      );
      // The duties decide whether an hour is over; asking often means that a mount of minutes does its share too.
      every(Math.max(60, parts.heartbeat), () => hourlyJobs(context), 'a job of the volume');
    },
    deleted(ino, length) {
      if (stopped || queued.has(ino)) return;
      queued.add(ino);
      queue.push({ ino, length });
      pump();
    },
    async stop() {
      stopped = true;
      for (const timer of timers) clearInterval(timer);
      await Promise.all(running);
    },
  };
}
