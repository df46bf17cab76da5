/** The system calls of the file store: one object written or read, on the loop or in libuv's pool. */
import fs from 'node:fs';
import { ioVecs, preadv2, RWF_NOWAIT } from '@steadfs/fuse/sys';
import koffi from 'koffi';

/** IOV_MAX */
const IOV_MAX = 1024;
/** What addresses, lengths and offsets of direct writing are multiples of on every disk that we know. */
const ALIGNMENT = 4096;
const { O_CREAT, O_DIRECT, O_EXCL, O_WRONLY } = fs.constants;
const EINVAL = -22;
const EOPNOTSUPP = -95;

/** Writes a new file; it is removed when it cannot be written whole. */
export function writeNow(path: string, pieces: readonly Uint8Array[]): void {
  const fd = fs.openSync(path, 'wx', 0o666);
  try {
    try {
      writeAll(fd, pieces);
    } finally {
      fs.closeSync(fd);
    }
  } catch (error) {
    fs.rmSync(path, { force: true });
    throw error;
  }
}

export function writeAll(fd: number, pieces: readonly Uint8Array[]): void {
  for (let at = 0; at < pieces.length; at += IOV_MAX) {
    let part: readonly Uint8Array[] = pieces.slice(at, at + IOV_MAX);
    while (part.length > 0) part = rest(part, fs.writevSync(fd, part));
  }
}

/** The same in the pool; with `direct` past the page cache. Close is waited for: network file systems tell a full disk there. */
export function writeInPool(path: string, pieces: readonly Uint8Array[], direct: boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const flags = O_WRONLY | O_CREAT | O_EXCL | (direct ? O_DIRECT : 0);
    fs.open(path, flags, 0o666, (error, fd) => {
      if (error) {
        // Where direct writing is unknown open(2) says so after the file was made.
        if (direct && error.code === 'EINVAL') fs.rm(path, { force: true }, () => reject(error));
        else reject(error);
        return;
      }
      const end = (failure: Error | null): void =>
        fs.close(fd, closing => {
          const why = failure ?? closing;
          if (!why) resolve();
          else fs.rm(path, { force: true }, () => reject(why));
        });
      let at = 0;
      let part: readonly Uint8Array[] = [];
      const more = (): void => {
        if (part.length === 0) {
          if (at >= pieces.length) {
            end(null);
            return;
          }
          part = pieces.slice(at, at + IOV_MAX);
          at += IOV_MAX;
        }
        fs.writev(fd, part, (failure, written) => {
          if (failure) {
            end(failure);
            return;
          }
          part = rest(part, written);
          more();
        });
      };
      more();
    });
  });
}

/** True when the pieces may be written directly. */
export function isAligned(pieces: readonly Uint8Array[]): boolean {
  return pieces.every(
    piece => piece.length % ALIGNMENT === 0 && Number(koffi.address(piece) & BigInt(ALIGNMENT - 1)) === 0,
  );
}

/** What is left of the pieces after `written` bytes. */
function rest(pieces: readonly Uint8Array[], written: number): Uint8Array[] {
  let i = 0;
  while (i < pieces.length && written >= pieces[i]!.length) written -= pieces[i++]!.length;
  if (i === pieces.length) return [];
  return [pieces[i]!.subarray(written), ...pieces.slice(i + 1)];
}

const vecs = ioVecs(1);

/** What of [offset, offset + target.length) the page cache has from its beginning on, without waiting: bytes read, at the end of the file too; -1 when it cannot be told. */
export function readCached(fd: number, offset: number, target: Uint8Array): number {
  vecs.set(0, Number(koffi.address(target)), target.length);
  const n = preadv2(fd, vecs.address, 1, offset, RWF_NOWAIT);
  if (n >= 0) return n;
  // EAGAIN, or an error that the one who waits will be told.
  return n === EOPNOTSUPP || n === EINVAL ? -1 : 0;
}

/** Reads until the target is full or the file ends. */
export function readNow(fd: number, offset: number, target: Uint8Array): number {
  let done = 0;
  while (done < target.length) {
    const n = fs.readSync(fd, target, done, target.length - done, offset + done);
    if (n === 0) break;
    done += n;
  }
  return done;
}

/** The same in the pool; the first `done` bytes are there already. */
export function readInPool(fd: number, offset: number, target: Uint8Array, done = 0): Promise<number> {
  return new Promise((resolve, reject) => {
    const more = (): void =>
      fs.read(fd, target, done, target.length - done, offset + done, (failure, n) => {
        if (failure) {
          reject(failure);
          return;
        }
        done += n;
        if (n === 0 || done === target.length) resolve(done);
        else more();
      });
    more();
  });
}

/** Files kept open for the next read: an object never changes, and opening one costs as much as reading it. */
export interface OpenFiles {
  /** An open file that is kept. `give` it back. */
  take(path: string): OpenFile | undefined;
  /** One that was opened now. */
  add(path: string, fd: number): OpenFile;
  give(file: OpenFile): void;
  /** The object is deleted: its space must come free. */
  forget(path: string): void;
  close(): void;
}

export interface OpenFile {
  readonly fd: number;
  readonly path: string;
  users: number;
  used: number;
}

export function createOpenFiles(max: number, idleMs: number): OpenFiles {
  const files = new Map<string, OpenFile>();
  let timer: NodeJS.Timeout | undefined;

  function letGo(file: OpenFile): void {
    files.delete(file.path);
    if (file.users === 0) fs.closeSync(file.fd);
  }

  function sweep(): void {
    timer = undefined;
    const old = performance.now() - idleMs;
    for (const file of files.values()) if (file.users === 0 && file.used < old) letGo(file);
    if (files.size > 0) arm();
  }
  function arm(): void {
    timer ??= setTimeout(sweep, idleMs);
    timer.unref();
  }

  return {
    take(path) {
      const file = files.get(path);
      if (file === undefined) return undefined;
      file.users++;
      files.delete(path);
      files.set(path, file);
      return file;
    },
    add(path, fd) {
      const file = { fd, path, users: 1, used: 0 };
      // Two who opened it at once: one of them is closed after its read.
      if (!files.has(path)) files.set(path, file);
      for (const old of files.values()) {
        if (files.size <= max) break;
        if (old.users === 0) letGo(old);
      }
      arm();
      return file;
    },
    give(file) {
      file.used = performance.now();
      if (--file.users === 0 && files.get(file.path) !== file) fs.closeSync(file.fd);
    },
    forget(path) {
      const file = files.get(path);
      if (file !== undefined) letGo(file);
    },
    close() {
      clearTimeout(timer);
      timer = undefined;
      for (const file of files.values()) letGo(file);
    },
  };
}
