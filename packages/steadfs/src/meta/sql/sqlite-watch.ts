/**
 * Notices commits of other connections without a statement: the count of transactions in the header of the WAL index, which all
 * processes on a database share as its `-shm` file (https://www.sqlite.org/walformat.html §2.1, iChange). `PRAGMA data_version`
 * tells the same for 2.5 µs; this costs a load.
 */
import fs from 'node:fs';

export interface CommitWatch {
  /** Transactions committed in the write-ahead log so far, by anybody (32 bits, wraps). */
  count(): number;
  /** Frames (pages) of the log that no checkpoint has moved into the database yet: mxFrame - nBackfill. */
  backlog(): number;
  close(): void;
}

const HEADER_VERSION = 3007000;

/**
 * Watches an open WAL database. Undefined where the index cannot be mapped or has a form that is not known.
 * The fd stays open until close(), which must come after the database's connections are closed: closing any fd of the file drops the locks that
 * SQLite holds on it.
 */
export async function watchCommits(path: string): Promise<CommitWatch | undefined> {
  let fd: number | undefined;
  try {
    const { mapFd } = await import('@steadfs/fuse/sys');
    fd = fs.openSync(`${path}-shm`, 'r');
    const map = mapFd(fd, 0, 4096, false);
    const words = new Uint32Array(map.view.buffer, 0, 25);
    if (words[0] === HEADER_VERSION) {
      const open = fd;
      return { count: () => words[2]!, backlog: () => words[4]! - words[24]!, close: () => fs.closeSync(open) };
    }
  } catch {
    // No mapping on this system: the caller has another way.
  }
  // The fd is left open on purpose, see above.
  return undefined;
}
