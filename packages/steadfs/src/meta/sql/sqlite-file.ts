/** The database file of a volume on SQLite: opening it, what its errors mean, waiting while another process has it locked. */
import fs from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { getSystemErrorMap } from 'node:util';
import { EINVAL, EIO, ENOSPC, EROFS, Errno } from '@steadfs/fuse/errno';

/** Result codes of SQLite (sqlite3.h), low byte. */
const SQLITE = { busy: 5, locked: 6, readonly: 8, full: 13, notadb: 26 } as const;
/** A busy database is asked again for this long, milliseconds. */
const PATIENCE = 30_000;

function resultCode(e: unknown): number | undefined {
  const code = e instanceof Error ? (e as { errcode?: unknown }).errcode : undefined;
  return typeof code === 'number' ? code & 0xff : undefined;
}

/** Another connection has the lock that is needed. */
export function isBusy(e: unknown): boolean {
  const code = resultCode(e);
  return code === SQLITE.busy || code === SQLITE.locked;
}

/** What the caller is told of an error in the database. */
export function toErrno(e: unknown): Errno {
  if (e instanceof Errno) return e;
  switch (resultCode(e)) {
    case SQLITE.full:
      return ENOSPC.because('the metadata database has no space left', e);
    case SQLITE.readonly:
      return EROFS.because('the metadata database is read-only', e);
    default:
      return EIO.because(`metadata database: ${e instanceof Error ? e.message : String(e)}`, e);
  }
}

/** Runs something at once, and again from a timer while the database is busy (for 30 s). */
export async function patiently<T>(what: () => T): Promise<T> {
  const start = Date.now();
  for (let wait = 1; ; wait = Math.min(wait * 2, 100)) {
    try {
      return what();
    } catch (e) {
      if (!isBusy(e) || Date.now() - start > PATIENCE) throw e;
    }
    await new Promise(resolve => setTimeout(resolve, wait * (0.5 + Math.random())));
  }
}

/** What the system says of a file that SQLite cannot open. */
function whyNot(path: string): string | undefined {
  try {
    fs.accessSync(fs.existsSync(path) ? path : dirname(path), fs.constants.R_OK | fs.constants.W_OK);
    return undefined;
  } catch (e) {
    return getSystemErrorMap().get((e as NodeJS.ErrnoException).errno ?? 0)?.[1];
  }
}

/** A connection to an existing file, or to a new one with `create`; undefined where there is none. Throws EINVAL for a file that is no database. */
export async function openFile(path: string, create: boolean): Promise<DatabaseSync | undefined> {
  if (!create && !fs.existsSync(path)) return undefined;
  let db: DatabaseSync;
  try {
    db = new DatabaseSync(path, { timeout: 0, allowExtension: false, enableForeignKeyConstraints: false });
  } catch (e) {
    throw EIO.because(`the metadata database ${path} cannot be opened: ${whyNot(path) ?? (e as Error).message}`);
  }
  try {
    await patiently(() => {
      // Counts only for a new file. A transaction here touches a row or two in each of half a dozen pages: half the page, half the log.
      db.exec('PRAGMA page_size=2048');
      db.exec('PRAGMA journal_mode=WAL');
      db.exec(
        'PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY',
      );
      // A log that begins anew is cut off: frames are no whole blocks, so writing over old ones that are not in memory any more would read each block
      // from the disk first (200 µs a transaction).
      db.exec('PRAGMA journal_size_limit=0');
    });
  } catch (e) {
    db.close();
    if (resultCode(e) === SQLITE.notadb) throw EINVAL.because(`${path} is not an SQLite database`, e);
    throw toErrno(e);
  }
  return db;
}
