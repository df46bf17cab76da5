/** The write-ahead log of a database: making it durable off the loop, and moving it into the database from a worker. */
import fs from 'node:fs';
import { dirname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { EIO } from '@steadfs/fuse/errno';

/**
 * So much that is in the log only is worth a checkpoint; from RESTART_BYTES on writers are made to wait a moment, so that the log starts again from its beginning. Small, because the
 * next service after kill -9 reads the whole log before it answers anybody: 0.5 ms a MiB.
 */
const CHECKPOINT_BYTES = 16 << 20;
const RESTART_BYTES = 32 << 20;
/** A worker (9 MiB, 20 ms of another core to start) stays for so long after its last checkpoint, ms. */
const LINGER_MS = 2000;

/**
 * Runs in a worker; one message a checkpoint. Passes of PASSIVE hold nobody up; RESTART comes only when the log has grown far, after a pass that left it little to do.
 */
const CHECKPOINTER = `
const { workerData: { path, restartBytes, linger }, parentPort } = require('node:worker_threads');
const { DatabaseSync } = require('node:sqlite');
const fs = require('node:fs');
const db = new DatabaseSync(path, { timeout: 50 });
db.exec('PRAGMA synchronous=NORMAL');
const passive = db.prepare('PRAGMA wal_checkpoint(PASSIVE)');
const restart = db.prepare('PRAGMA wal_checkpoint(RESTART)');
let idle;
function end() {
  db.close();
  parentPort.close();
}
parentPort.on('message', what => {
  clearTimeout(idle);
  if (what === 'end') return end();
  passive.get();
  if (fs.statSync(path + '-wal').size > restartBytes) {
    passive.get();
    restart.get();
  }
  parentPort.postMessage('done');
  idle = setTimeout(end, linger);
});
`;

export interface WriteAheadLog {
  /** Everything committed before the call is durable when it settles; callers share one fdatasync. `version` changes with every commit. */
  sync(version: number): Promise<void>;
  /** Starts a checkpoint when it is due. `backlog`: bytes in the log only; when unknown, the size of the file (which never shrinks) stands for it. */
  check(backlog: number | undefined): void;
  close(): Promise<void>;
}

interface Checkpointer {
  worker: Worker;
  /** One is under way. */
  busy: boolean;
  ended: Promise<void>;
}

export function writeAheadLog(path: string, onError: (message: string) => void): WriteAheadLog {
  const walPath = `${path}-wal`;
  let fd: number | undefined;
  let running: Promise<void> | undefined;
  /** That the one under way began with. */
  let begun = -1;
  /** That the last one ended with. */
  let durable = -1;
  /** Of the last who waits for the one after it. */
  let latest = -1;
  let next: Promise<void> | undefined;
  let checkpointer: Checkpointer | undefined;
  let closed = false;

  async function syncNow(): Promise<void> {
    try {
      if (fd === undefined) {
        fd = await new Promise<number>((resolve, reject) =>
          fs.open(walPath, 'r', (e, n) => (e ? reject(e) : resolve(n))),
        );
        // The log's own name has to last too.
        const dir = await fs.promises.open(dirname(path), 'r');
        try {
          await dir.sync();
        } finally {
          await dir.close();
        }
      }
      const log = fd;
      await new Promise<void>((resolve, reject) => fs.fdatasync(log, e => (e ? reject(e) : resolve())));
    } catch (e) {
      // No log: nothing was written since the database was opened.
      if ((e as NodeJS.ErrnoException).code !== 'ENOENT')
        throw EIO.because('the database log cannot be made durable', e);
    }
  }

  function start(): Checkpointer {
    const w = new Worker(CHECKPOINTER, {
      eval: true,
      workerData: { path, restartBytes: RESTART_BYTES, linger: LINGER_MS },
    });
    const ended = new Promise<void>(resolve => w.on('exit', () => resolve()));
    const started: Checkpointer = { worker: w, busy: false, ended };
    w.on('message', () => {
      started.busy = false;
    });
    w.on('error', (e: unknown) =>
      onError(`checkpoint of the metadata database: ${e instanceof Error ? e.message : String(e)}`),
    );
    w.on('exit', () => {
      if (checkpointer === started) checkpointer = undefined;
    });
    return started;
  }

  function checkpoint(): void {
    if (checkpointer?.busy || closed) return;
    checkpointer ??= start();
    checkpointer.busy = true;
    checkpointer.worker.postMessage('checkpoint');
  }

  return {
    sync(version) {
      if (running !== undefined && begun === version) return running;
      if (running === undefined) {
        if (durable === version) return Promise.resolve();
        begun = version;
        running = syncNow()
          .then(() => {
            durable = begun;
          })
          .finally(() => {
            running = undefined;
          });
        return running;
      }
      // The one under way began before the caller's commit: all who come now share the one after it.
      latest = version;
      next ??= running
        // Its own caller is told.
        .catch(() => undefined)
        .then(() => {
          next = undefined;
          return this.sync(latest);
        });
      return next;
    },
    check(backlog) {
      if (checkpointer?.busy || closed) return;
      if (backlog !== undefined) {
        if (backlog >= CHECKPOINT_BYTES) checkpoint();
        return;
      }
      fs.stat(walPath, (e, st) => {
        if (e === null && st.size >= CHECKPOINT_BYTES) checkpoint();
      });
    },
    async close() {
      closed = true;
      checkpointer?.worker.postMessage('end');
      await Promise.all([running?.catch(() => undefined), checkpointer?.ended]);
      if (fd !== undefined) fs.closeSync(fd);
      fd = undefined;
    },
  };
}
