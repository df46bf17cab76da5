/**
 * Files without a name (O_TMPFILE) that stand ready for the next small objects: made in libuv's pool while small objects follow one another, so that the loop neither
 * waits for an inode (20 µs; up to 500 on ext4 without a journal, which looks at every inode of the group that was deleted in the last minutes) nor leaves a half-written
 * file behind when it dies.
 */
import fs from 'node:fs';
import { linkOpenFile } from '@steadfs/fuse/sys';
import { writeAll } from './file-io.ts';

/** __O_TMPFILE is the same on x86-64 and arm64, O_DIRECTORY is not. */
const UNNAMED = 0o20000000 | fs.constants.O_DIRECTORY | fs.constants.O_WRONLY;
/** Kept at most. */
const MOST = 8;
/** Objects that come within this time (ms) of each other make a row; spares without use are given up after IDLE. */
const ROW = 20;
const IDLE = 1000;

export interface Spares {
  /** Stores an object as a file of this name in a spare; false: it is not there, and has to be stored the usual way, which also says why. */
  put(path: string, pieces: readonly Uint8Array[]): boolean;
  close(): void;
}

/** `written` is called between the last byte and the name. */
export function createSpares(written: () => void): Spares {
  const files: number[] = [];
  let opening = false;
  let row = 0;
  let last = Number.NEGATIVE_INFINITY;
  let possible = true;
  let timer: NodeJS.Timeout | undefined;

  /** As many as the row is long, one after the other (the pool has other work), begun when half of them are gone. */
  function refill(directory: string): void {
    if (opening || files.length > Math.min(MOST, row) / 2) return;
    const more = (): void => {
      if (files.length >= Math.min(MOST, row)) return;
      opening = true;
      fs.open(directory, UNNAMED, 0o666, (error, fd) => {
        opening = false;
        // A directory that is gone says nothing of the file system.
        if (error) possible &&= error.code === 'ENOENT';
        else if (possible) {
          files.push(fd);
          more();
        } else fs.closeSync(fd);
      });
    };
    more();
    arm();
  }

  function arm(): void {
    timer ??= setTimeout(() => {
      timer = undefined;
      if (performance.now() - last < IDLE) arm();
      else giveUp();
    }, IDLE);
    timer.unref();
  }

  function giveUp(): void {
    for (const fd of files.splice(0)) fs.closeSync(fd);
  }

  return {
    put(path, pieces) {
      if (!possible) return false;
      const now = performance.now();
      row = now - last < ROW ? row + 1 : 0;
      last = now;
      const fd = files.pop();
      refill(path.slice(0, path.lastIndexOf('/')));
      if (fd === undefined) return false;
      try {
        writeAll(fd, pieces);
        written();
        return linkOpenFile(fd, path) === 0;
      } catch {
        return false;
      } finally {
        fs.closeSync(fd);
      }
    },
    close() {
      possible = false;
      clearTimeout(timer);
      giveUp();
    },
  };
}
