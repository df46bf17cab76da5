/**
 * A directory as object store: the object of a key is the file root + key. An object is written to `.jfs.<name>.tmp.<random>` beside its place and then renamed,
 * so that it is there whole or not at all; put does not wait for the disk, {@link ObjectStore.sync} does. Other clients of the volume use the same layout.
 *
 * Where the calls run: a small object takes 20-120 µs of system calls when the page cache is at hand, and a hop to libuv's pool costs 30-50 µs per call. So small
 * puts and gets run on the loop while they are measured to be fast ({@link createPace}), everything else in the pool. Large blocks are written directly from where they
 * lie while the disk is fast ({@link createDirect}).
 */
import fs from 'node:fs';
import fsp from 'node:fs/promises';
import { dirname } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import { faultPoint } from '@steadfs/fuse/fault';
import { createOpenFiles, isAligned, readCached, readInPool, readNow, writeInPool, writeNow } from './file-io.ts';
import { createDirect, createPace, dirtyPages } from './file-pace.ts';
import { createSpares } from './file-spares.ts';
import { type ObjectInfo, type ObjectStore, StoreError, type StoreErrorKind } from './store.ts';

/** Largest object that may be written, and largest range that may be read, on the loop. */
const SMALL = 256 * 1024;
/** From this size on objects are written directly where that is possible. */
const LARGE = 1024 * 1024;
/** Types in statfs(2): ext4 (and ext2, ext3, which it serves), XFS. */
const NAMES_GO_ALONG: ReadonlySet<number> = new Set([0xef53, 0x58465342]);
/** Files open for reading that are kept, and for how long (ms) without use. */
const OPEN_MAX = 256;
const OPEN_IDLE = 2000;
/** More objects than this are made durable by one syncfs(2), if there is not much else to be written (pages). */
const MANY = 12;
const LITTLE = 16 * 1024;
const TEMPORARY = /^\.jfs\..*\.tmp\.[0-9a-z]+$/;

const KINDS: Record<string, StoreErrorKind> = {
  ENOENT: 'not-found',
  EACCES: 'denied',
  EPERM: 'denied',
  EROFS: 'denied',
  ENOSPC: 'no-space',
  EDQUOT: 'no-space',
  EFBIG: 'too-large',
  ENAMETOOLONG: 'invalid',
  EINVAL: 'invalid',
  ENOTDIR: 'invalid',
  EISDIR: 'invalid',
  ELOOP: 'invalid',
  ETIMEDOUT: 'timeout',
};

/** mkdir -p. Node's own tries for ever where a folder cannot be made and the answer is ENOENT (/proc, automounters). */
async function makeFolders(path: string): Promise<void> {
  try {
    await fsp.mkdir(path, 0o777);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST' && fs.statSync(path).isDirectory()) return;
    const parent = dirname(path);
    if (code !== 'ENOENT' || fs.existsSync(parent)) throw error;
    await makeFolders(parent);
    await fsp.mkdir(path, 0o777).catch((again: NodeJS.ErrnoException) => {
      if (again.code !== 'EEXIST') throw again;
    });
  }
}

export interface FileStoreOptions {
  /** An absolute path; a slash at the end is added where missing. */
  root: string;
  /** False: nothing runs on the loop. */
  onLoop?: boolean;
}

export function createFileStore(options: FileStoreOptions): ObjectStore {
  const root = options.root.endsWith('/') ? options.root : `${options.root}/`;
  if (!root.startsWith('/')) throw new StoreError('invalid', `the directory ${options.root} is no absolute path`);
  const name = `file://${root}`;
  const onLoop = options.onLoop ?? true;
  const puts = createPace(true);
  const gets = createPace(false);
  const opens = createPace(false);
  const direct = createDirect();
  const openFiles = createOpenFiles(OPEN_MAX, OPEN_IDLE);
  const spares = createSpares(() => faultPoint('object.written'));
  let alongside: boolean | undefined;
  /** The file system can tell what its page cache has. */
  let tells = true;
  /** Directories ("vol/chunks/0/") whose own name is on the disk. */
  const durableNames = new Set<string>();
  /** Temporary names: no other process's, and each once. (Without node:crypto, which takes 15 ms to load: a service that starts after a crash has no time for it.) */
  const ours = Math.random().toString(36).slice(2, 12);
  let temporaries = 0;

  function fail(action: string, key: string, error: unknown): StoreError {
    if (error instanceof StoreError) return error;
    const e = error as NodeJS.ErrnoException;
    const text = e.errno === undefined ? e.message : (getSystemErrorMap().get(e.errno)?.[1] ?? e.message);
    return new StoreError(KINDS[e.code ?? ''] ?? 'io', `${action} ${name}${key}: ${text}`, error);
  }

  /** The file of a key. Refuses what is outside of the root or no object name. */
  function pathOf(key: string): string {
    if (
      key === '' ||
      key.startsWith('/') ||
      key.endsWith('/') ||
      key.includes('\0') ||
      key.includes('//') ||
      (key.includes('.') && key.split('/').some(part => part === '..' || part === '.'))
    )
      throw new StoreError('invalid', `${JSON.stringify(key)} is no name of an object in ${name}`);
    return root + key;
  }

  /** Makes the directories of a key below the root; the root itself is never made here (its disk may not be mounted). */
  async function makeDirectories(key: string): Promise<void> {
    if (!fs.existsSync(root)) throw new StoreError('io', `the directory ${root} of the store is missing`);
    for (let at = key.indexOf('/'); at >= 0; at = key.indexOf('/', at + 1)) {
      try {
        await fsp.mkdir(root + key.slice(0, at), 0o777);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
    }
  }

  function temporaryOf(path: string): string {
    const slash = path.lastIndexOf('/') + 1;
    // A name may have 255 bytes: a long one is cut.
    return `${path.slice(0, slash)}.jfs.${path.slice(slash, slash + 64)}.tmp.${ours}${(temporaries++).toString(36)}`;
  }

  /**
   * fsync(2) of a file makes its name durable too. ext4 commits the transaction of the file's last change, which the rename is (without a journal it writes the directory of
   * a new name itself: ext4_sync_parent()); XFS forces its log up to it. POSIX does not promise that, so others get an fsync of the directory.
   */
  function namesGoAlong(): boolean {
    alongside ??= NAMES_GO_ALONG.has(fs.statfsSync(root).type);
    return alongside;
  }

  function putOnLoop(path: string, pieces: readonly Uint8Array[]): void {
    // It does not replace: an object that is there already is written again below.
    if (spares.put(path, pieces)) {
      faultPoint('object.stored');
      return;
    }
    const temporary = temporaryOf(path);
    writeNow(temporary, pieces);
    try {
      faultPoint('object.written');
      fs.renameSync(temporary, path);
      faultPoint('object.stored');
    } catch (error) {
      fs.rmSync(temporary, { force: true });
      throw error;
    }
  }

  async function putInPool(path: string, pieces: readonly Uint8Array[], size: number): Promise<void> {
    const temporary = temporaryOf(path);
    if (size < LARGE) await writeInPool(temporary, pieces, false);
    else await writeLarge(temporary, pieces, size);
    faultPoint('object.written');
    try {
      await new Promise<void>((resolve, reject) =>
        fs.rename(temporary, path, error => (error ? reject(error) : resolve())),
      );
    } catch (error) {
      await fsp.rm(temporary, { force: true });
      throw error;
    }
  }

  async function writeLarge(path: string, pieces: readonly Uint8Array[], size: number): Promise<void> {
    const past = direct.next() && isAligned(pieces);
    direct.began(past);
    try {
      await writeInPool(path, pieces, past);
    } catch (error) {
      if (!past || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      direct.never();
      await writeInPool(path, pieces, false);
    } finally {
      direct.ended(past, size);
    }
  }

  async function get(key: string, offset: number, target: Uint8Array): Promise<number> {
    const path = pathOf(key);
    if (target.length === 0) return 0;
    const quick = onLoop && target.length <= SMALL;
    let file = openFiles.take(path);
    if (file === undefined) {
      const fd =
        (quick && opens.allowed(0) ? opens.run(0, () => openOnLoop(path)) : undefined) ?? (await openInPool(path));
      file = openFiles.add(path, fd);
    }
    const { fd } = file;
    try {
      let done = 0;
      if (quick && tells) {
        done = readCached(fd, offset, target);
        if (done === target.length) return done;
        tells = done >= 0;
        done = Math.max(0, done);
      } else if (quick && gets.allowed(target.length))
        return gets.run(target.length, () => readNow(fd, offset, target));
      return await readInPool(fd, offset, target, done);
    } finally {
      openFiles.give(file);
    }
  }

  return {
    toString: () => name,
    limits: { rangeGet: true },

    async create() {
      try {
        await makeFolders(root);
        await fsp.access(root, fs.constants.R_OK | fs.constants.W_OK | fs.constants.X_OK);
      } catch (error) {
        throw fail('create', '', error);
      }
    },

    async put(key, pieces) {
      try {
        const path = pathOf(key);
        let size = 0;
        for (const piece of pieces) size += piece.length;
        for (let attempt = 0; ; attempt++) {
          try {
            if (!onLoop || size > SMALL || !puts.allowed(size)) return await putInPool(path, pieces, size);
            puts.run(size, () => putOnLoop(path, pieces));
            return;
          } catch (error) {
            if (attempt > 0 || (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
            await makeDirectories(key);
          }
        }
      } catch (error) {
        throw fail('put', key, error);
      }
    },

    putNow(key, pieces, size) {
      if (!onLoop || size > SMALL || !puts.allowed(size)) return false;
      try {
        const path = pathOf(key);
        puts.run(size, () => putOnLoop(path, pieces));
        return true;
      } catch {
        // `put` says why, or makes the directories.
        return false;
      }
    },

    async get(key, offset, target) {
      try {
        return await get(key, offset, target);
      } catch (error) {
        throw fail('get', key, error);
      }
    },

    getNow(key, offset, target) {
      if (!tells || !onLoop || target.length > SMALL) return undefined;
      try {
        const path = pathOf(key);
        let file = openFiles.take(path);
        if (file === undefined) {
          const fd = opens.allowed(0) ? opens.run(0, () => openOnLoop(path)) : undefined;
          if (fd === undefined) return undefined;
          file = openFiles.add(path, fd);
        }
        try {
          const n = readCached(file.fd, offset, target);
          tells = n >= 0;
          return n === target.length ? n : undefined;
        } finally {
          openFiles.give(file);
        }
      } catch {
        // `get` says why.
        return undefined;
      }
    },

    async read(key, max) {
      try {
        const file = await fsp.open(pathOf(key), 'r');
        try {
          const { size } = await file.stat();
          if (size > max)
            throw new StoreError('too-large', `${name}${key} has ${size} bytes, at most ${max} were expected`);
          return await file.readFile();
        } finally {
          await file.close();
        }
      } catch (error) {
        throw fail('read', key, error);
      }
    },

    async head(key) {
      try {
        const stat = await fsp.stat(pathOf(key));
        if (!stat.isFile()) throw new StoreError('not-found', `head ${name}${key}: not an object`);
        return { key, size: stat.size, mtime: stat.mtimeMs / 1000 };
      } catch (error) {
        throw fail('head', key, error);
      }
    },

    async delete(key) {
      try {
        const path = pathOf(key);
        openFiles.forget(path);
        faultPoint('object.before-delete');
        await fsp.unlink(path);
        faultPoint('object.deleted');
      } catch (error) {
        const e = fail('delete', key, error);
        if (e.kind !== 'not-found') throw e;
      }
    },

    async list(prefix, after, limit) {
      const objects: ObjectInfo[] = [];
      // Where the prefix names a directory, only that one is walked.
      const base = prefix.slice(0, prefix.lastIndexOf('/') + 1);
      if (base !== '') pathOf(base.slice(0, -1));
      try {
        for await (const object of walk(root, base, prefix, after)) {
          if (objects.length === limit) return { objects, more: true };
          objects.push(object);
        }
        return { objects, more: false };
      } catch (error) {
        throw fail('list', prefix, error);
      }
    },

    async sync(keys) {
      const paths = keys.map(pathOf);
      const directories = new Set<string>();
      const named: string[] = [];
      for (const key of keys) {
        // The directory of the object, and the parents of those whose own name is not known to be on the disk.
        let directory = key.slice(0, key.lastIndexOf('/') + 1);
        if (!namesGoAlong() || !durableNames.has(directory)) directories.add(root + directory);
        while (directory !== '' && !durableNames.has(directory)) {
          named.push(directory);
          directory = directory.slice(0, directory.lastIndexOf('/', directory.length - 2) + 1);
          directories.add(root + directory);
        }
      }
      try {
        // What was written directly is on the disk already: one commit of the journal is left, if nobody else's data goes with it.
        if (keys.length > MANY && (dirtyPages()?.dirty ?? LITTLE) < LITTLE) await syncFileSystem(root);
        else {
          // An object that was deleted meanwhile needs no disk.
          await eachOf([...paths, ...directories], async path => {
            await fsync(path).catch((error: NodeJS.ErrnoException) => {
              if (error.code !== 'ENOENT') throw error;
            });
          });
        }
        if (durableNames.size > 10_000) durableNames.clear();
        for (const directory of named) durableNames.add(directory);
      } catch (error) {
        throw fail('sync', keys.length === 1 ? keys[0]! : '', error);
      }
    },

    async syncAll() {
      try {
        await syncFileSystem(root);
      } catch (error) {
        throw fail('sync', '', error);
      }
    },

    async close() {
      openFiles.close();
      spares.close();
    },
  };
}

/** Undefined when the open would wait: somebody (an NFS or SMB server, a backup) holds a lease on the file (fcntl(2), F_SETLEASE). */
function openOnLoop(path: string): number | undefined {
  try {
    return fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined;
    throw error;
  }
}

function openInPool(path: string): Promise<number> {
  return new Promise((resolve, reject) => fs.open(path, 'r', (error, fd) => (error ? reject(error) : resolve(fd))));
}

function fsync(path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let fd: number;
    try {
      fd = fs.openSync(path, 'r');
    } catch (error) {
      reject(error);
      return;
    }
    fs.fsync(fd, error => {
      fs.closeSync(fd);
      if (error) reject(error);
      else resolve();
    });
  });
}

/** syncfs(2) of the file system that holds `path`, in libuv's pool. */
async function syncFileSystem(path: string): Promise<void> {
  const { default: koffi } = await import('koffi');
  const syncfs = koffi.load('libc.so.6').func('syncfs', 'int', ['int']);
  const fd = fs.openSync(path, 'r');
  try {
    await new Promise<void>((resolve, reject) =>
      syncfs.async(fd, (error: unknown, result: number) => {
        if (error) reject(error);
        else if (result < 0) reject(new Error('syncfs failed'));
        else resolve();
      }),
    );
  } finally {
    fs.closeSync(fd);
  }
}

/** At most three at a time: more would occupy all of libuv's pool. */
async function eachOf<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) await work(items[next++]!);
  };
  await Promise.all(Array.from({ length: Math.min(3, items.length) }, worker));
}

/** The objects below the directory `base` ("" or with a slash at the end) whose keys begin with `prefix` and come after `after`, in byte order. */
async function* walk(root: string, base: string, prefix: string, after: string): AsyncGenerator<ObjectInfo> {
  let entries: fs.Dirent[];
  try {
    entries = await fsp.readdir(root + base, { withFileTypes: true });
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // Removed meanwhile, or a prefix below a file. A root that is missing is an error.
    if ((code === 'ENOENT' && base !== '') || code === 'ENOTDIR') return;
    throw error;
  }
  const afterBytes = Buffer.from(after);
  const found: { bytes: Buffer; key: string; folder: boolean }[] = [];
  for (const entry of entries) {
    let folder = entry.isDirectory();
    if (entry.isSymbolicLink()) {
      const stat = await fsp.stat(root + base + entry.name).catch(() => undefined);
      if (stat === undefined) continue;
      folder = stat.isDirectory();
    } else if (!folder && !entry.isFile()) continue;
    if (!folder && TEMPORARY.test(entry.name)) continue;
    const key = base + entry.name + (folder ? '/' : '');
    if (folder ? !(key.startsWith(prefix) || prefix.startsWith(key)) : !key.startsWith(prefix)) continue;
    const bytes = Buffer.from(key);
    // A folder counts until all its keys are before `after`.
    const order = Buffer.compare(bytes, folder ? afterBytes.subarray(0, bytes.length) : afterBytes);
    if (folder ? order < 0 : order <= 0) continue;
    found.push({ bytes, key, folder });
  }
  found.sort((a, b) => Buffer.compare(a.bytes, b.bytes));
  for (const { key, folder } of found) {
    if (folder) {
      yield* walk(root, key, prefix, after);
      continue;
    }
    try {
      const stat = await fsp.stat(root + key);
      yield { key, size: stat.size, mtime: stat.mtimeMs / 1000 };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}
