/**
 * The SQLite engine. Everything runs synchronously on the caller's loop: reads at once, mutations in one transaction per turn of the event
 * loop (BEGIN IMMEDIATE at the first, COMMIT in a microtask after it). Nothing ever waits for a lock inside a call: a busy database is
 * tried again from a timer.
 */
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { resolve as resolvePath } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { EINTR, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EROFS, Errno, ESTALE } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { type Attr, emptyDirectory, FileType } from '../../format/attr.ts';
import { type Ino, isTrash, ROOT, TRASH } from '../../format/ino.ts';
import {
  changedImmutable,
  decryptSecrets,
  encryptSecrets,
  type Format,
  MAX_META_VERSION,
  parseFormat,
  serialiseFormat,
} from '../../format/volume.ts';
import { now, unixNow } from '../clock.ts';
import { pagedDirStream } from '../dir-pages.ts';
import type {
  Cred,
  EngineDriver,
  EngineOptions,
  Entry,
  MaybePromise,
  MetaEngine,
  Name,
  Op,
  Quota,
  SessionDetail,
  SessionIdentity,
  SessionInfo,
  StatfsResult,
} from '../engine.ts';
import { checkAccess, NAME_MAX, X } from '../ops/access.ts';
import { logChange } from '../ops/changelog.ts';
import { noQuotas, treeUsage } from '../ops/quota.ts';
import type { Codec } from '../ops/record.ts';
import { countChildren, dropSustained } from '../ops/sessions.ts';
import { type Body, runSync, type Tx, type TxDriver, Usage, type Volume } from '../ops/tx.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import { txOperations } from '../tx-engine.ts';
import { addDelta, type Delta, decodeDeltas, encodeDeltas } from '../usage.ts';
import { lateColumns, ownPrefix, ownStatements, schemaStatements, TABLES } from './schema.ts';
import { inoColumn, inoParam, type Row, SqliteTx, Statements } from './sqlite-tx.ts';
import { type WriteAheadLog, writeAheadLog } from './sqlite-wal.ts';
import { type CommitWatch, watchCommits } from './sqlite-watch.ts';

/** Result codes of SQLite (sqlite3.h), low byte. */
const SQLITE = { busy: 5, locked: 6, readonly: 8, ioerr: 10, full: 13, cantopen: 14, notadb: 26 } as const;

/** A session counts as alive for this long after its last heartbeat, seconds. */
const EXPIRE_AHEAD = 600;
/** Changes of usage that an op record holds at most before they are written to the volume's tables. */
const DELTAS_PER_RECORD = 12;
const FLUSH_MS = 1000;
/** Operations of one transaction at most. */
const GROUP_MAX = 512;
const SLICE_BATCH = 4096;
/** A busy database is reported after this long, milliseconds. */
const TROUBLE_AFTER = 10_000;

interface Job {
  op: Op | undefined;
  codec: Codec<unknown> | undefined;
  body: (tx: Tx) => Body<unknown>;
  resolve: (value: unknown) => void;
  reject: (reason: unknown) => void;
  value?: unknown;
  error?: unknown;
}

/** What is known of an op record. */
interface OpRecord {
  seq: number;
  exists: boolean;
  /** Changes of usage not yet in the volume's tables. */
  deltas: Delta[];
}

function resultCode(e: unknown): number | undefined {
  const code = e instanceof Error ? (e as { errcode?: unknown }).errcode : undefined;
  return typeof code === 'number' ? code & 0xff : undefined;
}

function isBusy(e: unknown): boolean {
  const code = resultCode(e);
  return code === SQLITE.busy || code === SQLITE.locked;
}

function toErrno(e: unknown): Errno {
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

const SETTING = "SELECT value FROM $setting WHERE name='format'";

export class SqliteEngine {
  readonly name: string;
  readonly path: string;
  readonly options: EngineOptions;
  readonly prefix: string;
  readonly volume: Volume;
  #db: DatabaseSync | undefined;
  #tx!: SqliteTx;
  #st!: Statements;
  #wal: WriteAheadLog | undefined;
  #watch: CommitWatch | undefined;
  /** Bytes; 0 = not asked yet. */
  #pageSize = 0;
  /** The watch's count up to which no foreign commit is unknown; -1: not known. */
  #seen = -1;
  /** The open group has changed something: its commit counts. */
  #dirty = false;
  #dataVersion = -1;
  #identity: SessionIdentity | undefined;
  #expire = 0;
  #sessionChecked = false;
  #lost: string | undefined;
  #records = new Map<number, OpRecord>();
  /** All records that hold usage are in the map. */
  #recordsKnown = false;
  #quotasStale = true;
  #quotasLoaded = 0;
  /** The open group: operations that have run in the open transaction. */
  #group: Job[] | undefined;
  #afterCommit: Promise<void> | undefined;
  #settleCommit: (() => void) | undefined;
  /** Operations that wait because the database is busy. */
  #waiting: Job[] = [];
  #waitingSince = 0;
  #attempts = 0;
  #troubled = false;
  #retryTimer: NodeJS.Timeout | undefined;
  #flushTimer: NodeJS.Timeout | undefined;
  #commits = 0;
  #sliceNext = 0;
  #sliceEnd = 0;
  #waiters = new Map<Ino, Set<() => void>>();
  #settingText = '';

  constructor(path: string, prefix: string, options: EngineOptions) {
    this.path = path;
    this.prefix = prefix;
    this.name = `sqlite3 ${path}`;
    this.options = options;
    this.volume = {
      format: {
        Name: '',
        UUID: '',
        Storage: '',
        Tiers: null,
        Bucket: '',
        BlockSize: 4096,
        TrashDays: 0,
        EnableACL: false,
      },
      sid: 0,
      skipDirMtime: options.skipDirMtime,
      atimeMode: options.atimeMode,
      quotas: noQuotas(),
    };
  }

  // ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** Opens an existing file, or makes one with `create`. False: there is none. */
  async connect(create: boolean): Promise<boolean> {
    if (this.#db !== undefined) return true;
    if (!create && !fs.existsSync(this.path)) return false;
    let db: DatabaseSync;
    try {
      db = new DatabaseSync(this.path, { timeout: 0, allowExtension: false, enableForeignKeyConstraints: false });
    } catch (e) {
      throw EIO.because(`the metadata database ${this.path} cannot be opened: ${(e as Error).message}`, e);
    }
    try {
      await this.#patiently(() => {
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
      if (resultCode(e) === SQLITE.notadb) throw EINVAL.because(`${this.path} is not an SQLite database`, e);
      throw toErrno(e);
    }
    this.#db = db;
    this.#st = new Statements(db, this.prefix);
    this.#tx = new SqliteTx(this.#st, this.volume);
    this.#wal = writeAheadLog(this.path, message => this.options.events.trouble(message));
    return true;
  }

  #checkLog(): void {
    this.#pageSize ||= (this.#st.get('PRAGMA page_size').get() as unknown as number[])[0]!;
    const frames = this.#watch?.backlog();
    this.#wal?.check(frames === undefined ? undefined : frames * this.#pageSize);
  }

  /** Runs something at once, and again from a timer while the database is busy (for 30 s). */
  async #patiently<T>(what: () => T): Promise<T> {
    const start = Date.now();
    for (let wait = 1; ; wait = Math.min(wait * 2, 100)) {
      try {
        return what();
      } catch (e) {
        if (!isBusy(e) || Date.now() - start > 30_000) throw e;
      }
      await new Promise(resolve => setTimeout(resolve, wait * (0.5 + Math.random())));
    }
  }

  #hasTable(name: string): boolean {
    return this.#st.one("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", this.prefix + name) !== undefined;
  }

  async load(): Promise<Format | undefined> {
    if (!(await this.connect(false))) return undefined;
    return await this.#patiently(() => {
      if (!this.#hasTable('setting')) {
        const foreign = this.#st.one(
          "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'steadfs_%' AND name NOT LIKE 'jfs_%'",
        );
        if (foreign !== undefined) throw EINVAL.because(`${this.path} holds other data (table ${String(foreign[0])})`);
        return undefined;
      }
      const text = this.#st.one(SETTING)?.[0];
      if (typeof text !== 'string') return undefined;
      return this.#takeSetting(text);
    });
  }

  #takeSetting(text: string): Format {
    let format: Format;
    try {
      const stored = parseFormat(text);
      if ((stored.MetaVersion ?? 0) > MAX_META_VERSION) {
        throw new Error(
          `metadata version ${stored.MetaVersion} is newer than ${MAX_META_VERSION}, which this version knows`,
        );
      }
      format = decryptSecrets(stored);
    } catch (e) {
      throw EINVAL.because(`the volume's setting record in ${this.path}: ${(e as Error).message}`, e);
    }
    this.#settingText = text;
    this.volume.format = format;
    return { ...format };
  }

  async init(format: Format, force: boolean): Promise<void> {
    await this.connect(true);
    await this.load();
    await this.#patiently(() => {
      this.#exclusive(() => {
        const text = this.#hasTable('setting') ? this.#st.one(SETTING)?.[0] : undefined;
        for (const sql of schemaStatements('sqlite', this.prefix)) this.#db!.exec(sql);
        let wanted = format;
        if (typeof text === 'string') {
          const old = decryptSecrets(parseFormat(text));
          const changed = changedImmutable(old, format);
          if (changed !== undefined && !force) throw EINVAL.because(`the volume's ${changed} cannot be changed`);
          wanted = { ...format, UUID: old.UUID };
          if (!old.DirStats && wanted.DirStats) this.#st.exec('DELETE FROM $dir_stats');
          if (!old.UserGroupQuota && wanted.UserGroupQuota) this.#st.exec('DELETE FROM $user_group_quota');
        }
        const stored = serialiseFormat(encryptSecrets(wanted));
        const t = now();
        const attr = (mode: number): Attr => emptyDirectory(mode, ROOT, t.sec, t.nsec);
        if (wanted.TrashDays > 0 && this.#tx.readNode(TRASH) === undefined) this.#tx.insertNode(TRASH, attr(0o555));
        this.#st.exec(
          "INSERT INTO $setting(name,value) VALUES('format',?) ON CONFLICT(name) DO UPDATE SET value=excluded.value",
          stored,
        );
        if (text === undefined) {
          this.#tx.insertNode(ROOT, attr(0o777));
          const counters = {
            nextInode: 2,
            nextChunk: 1,
            nextSession: 0,
            usedSpace: 0,
            totalInodes: 0,
            nextCleanupSlices: 0,
          };
          for (const [name, value] of Object.entries(counters))
            this.#st.exec('INSERT OR IGNORE INTO $counter(name,value) VALUES(?,?)', name, value);
        }
      });
      this.#takeSetting(String(this.#st.one(SETTING)![0]));
    });
    await this.durable();
  }

  /** A transaction of its own, outside the groups (which must be empty). */
  #exclusive<T>(what: () => T): T {
    const db = this.#db!;
    if (this.#group !== undefined) this.#commit();
    db.exec('BEGIN IMMEDIATE');
    try {
      this.#tx.begin();
      this.#validate();
      const value = what();
      this.#seen = -1;
      db.exec('COMMIT');
      this.#commits++;
      return value;
    } catch (e) {
      this.#rollback();
      throw e;
    }
  }

  async reset(): Promise<void> {
    if (!(await this.connect(false))) return;
    await this.#idle();
    const own = ownPrefix(this.prefix);
    await this.#patiently(() =>
      this.#exclusive(() => {
        for (const name of [
          ...TABLES.map(t => this.prefix + t.name),
          `${this.prefix}session`,
          `${own}session`,
          `${own}op`,
        ]) {
          this.#db!.exec(`DROP TABLE IF EXISTS \`${name}\``);
        }
      }),
    );
    this.#tx.rolledBack();
  }

  async close(): Promise<void> {
    await this.#idle();
    clearTimeout(this.#flushTimer);
    clearTimeout(this.#retryTimer);
    await this.#wal?.close();
    this.#db?.close();
    this.#db = undefined;
    this.#watch?.close();
    this.#watch = undefined;
  }

  async #idle(): Promise<void> {
    while (this.#afterCommit !== undefined || this.#waiting.length > 0) {
      await (this.#afterCommit ?? new Promise(resolve => setTimeout(resolve, 1)));
    }
  }

  // ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Drops the caches when another connection has written since. */
  #validate(): void {
    if (this.#watch !== undefined) {
      const count = this.#watch.count();
      if (count === this.#seen) return;
      this.#seen = count;
    } else {
      const version = (this.#st.get('PRAGMA data_version').get() as unknown as number[])[0]!;
      if (version === this.#dataVersion) return;
      this.#dataVersion = version;
    }
    this.#tx.dropCaches();
    this.#sessionChecked = false;
    this.#quotasStale = true;
  }

  /** A read: now, or after the commit of what has been written in this turn. */
  read<T>(what: () => T): MaybePromise<T> {
    if (this.#group !== undefined) return this.#afterCommit!.then(() => this.read(what));
    try {
      this.#validate();
      return what();
    } catch (e) {
      if (!isBusy(e)) throw toErrno(e);
      return this.#patiently(() => {
        this.#validate();
        return what();
      }).catch(error => {
        throw toErrno(error);
      });
    }
  }

  readBody<T>(body: (tx: Tx) => Body<T>): MaybePromise<T> {
    return this.read(() => {
      this.#tx.begin();
      return runSync(body(this.#tx));
    });
  }

  /** A copy with the shown link count (ops/access.ts, present). */
  #present(ino: Ino, attr: Attr): Attr {
    const out = { ...attr };
    if (attr.type === FileType.directory || attr.nlink === 0) return out;
    if (attr.parent !== 0) {
      if (isTrash(attr.parent)) out.nlink = Math.max(0, attr.nlink - 1);
      return out;
    }
    let trashed = 0;
    for (const [parent, count] of this.#tx.readLinks(ino)) if (isTrash(parent)) trashed += count;
    out.nlink = Math.max(0, attr.nlink - trashed);
    return out;
  }

  #find(cred: Cred, parent: Ino, name: Name): Entry | undefined {
    if (name.length > NAME_MAX) throw ENAMETOOLONG;
    if (cred.checkPermission) {
      const dir = this.#tx.readNode(parent);
      if (dir === undefined) throw ENOENT;
      if (dir.type !== FileType.directory) throw ENOTDIR;
      runSync(checkAccess(this.#tx, cred, dir, X));
    }
    const ino = this.#tx.lookup(parent, name);
    if (ino === 0) {
      if ((this.#tx.readNode(parent)?.type ?? FileType.directory) !== FileType.directory) throw ENOTDIR;
      return undefined;
    }
    return { ino, attr: this.#present(ino, this.#tx.cachedNode(ino)!) };
  }

  find(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry | undefined> {
    if (this.#group === undefined) {
      try {
        this.#validate();
        return this.#find(cred, parent, name);
      } catch (e) {
        if (e instanceof Errno) throw e;
      }
    }
    return this.read(() => this.#find(cred, parent, name));
  }

  lookup(cred: Cred, parent: Ino, name: Name): MaybePromise<Entry> {
    const found = this.find(cred, parent, name);
    return found instanceof Promise ? found.then(present) : present(found);
  }

  #getattr(ino: Ino): Attr {
    const attr = this.#tx.readNode(ino);
    if (attr === undefined) throw ENOENT;
    return this.#present(ino, attr);
  }

  getattr(ino: Ino): MaybePromise<Attr> {
    if (this.#group === undefined) {
      try {
        this.#validate();
        return this.#getattr(ino);
      } catch (e) {
        if (e instanceof Errno) throw e;
      }
    }
    return this.read(() => this.#getattr(ino));
  }

  dirStream(ino: Ino, state: Parameters<MetaEngine['dirStream']>[1]): ReturnType<MetaEngine['dirStream']> {
    return pagedDirStream(
      {
        page: (after, upto, limit) => this.read(() => this.#tx.listPage(ino, after, upto, limit)),
        attributes: entries =>
          this.read(() => {
            const fetched = this.#tx.fetchNodes(entries.map(e => e.ino));
            for (const e of entries) {
              const fresh = fetched.get(e.ino);
              // One link outside the trash: nothing to adjust, and nobody else has the object.
              if (fresh !== undefined && fresh.parent !== 0 && !isTrash(fresh.parent)) e.attr = fresh;
              else {
                const attr = fresh ?? this.#tx.readNode(e.ino);
                if (attr !== undefined) e.attr = this.#present(e.ino, attr);
              }
            }
          }),
      },
      state,
    );
  }

  // ── mutations ─────────────────────────────────────────────────────────────────────────────────────────────────────

  mutate<T>(op: Op | undefined, codec: Codec<T> | undefined, body: (tx: Tx) => Body<T>): Promise<T> {
    if (this.options.readOnly) return Promise.reject(EROFS);
    return new Promise<T>((resolve, reject) => {
      this.#enqueue({
        op: this.volume.sid === 0 ? undefined : op,
        codec: codec as Codec<unknown> | undefined,
        body,
        resolve: resolve as (value: unknown) => void,
        reject,
      });
    });
  }

  #enqueue(job: Job): void {
    if (this.#waiting.length > 0 || !this.#open()) this.#wait(job);
    else this.#execute(job);
  }

  /** Opens a group's transaction. False: the database is busy. */
  #open(): boolean {
    if (this.#group !== undefined) return true;
    try {
      this.#st.get('BEGIN IMMEDIATE').get();
    } catch (e) {
      if (isBusy(e)) return false;
      // The operation that comes next meets the same error and reports it.
    }
    faultPoint('meta.begun');
    this.#group = [];
    this.#dirty = false;
    this.#afterCommit = new Promise(resolve => {
      this.#settleCommit = resolve;
    });
    queueMicrotask(() => this.#commit());
    return true;
  }

  #wait(job: Job): void {
    if (this.#waiting.push(job) === 1) {
      this.#waitingSince = Date.now();
      this.#attempts = 0;
    }
    this.#scheduleRetry();
  }

  #scheduleRetry(): void {
    if (this.#retryTimer !== undefined) return;
    const delay = Math.min(20, 1 + this.#attempts++) * (0.5 + Math.random());
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = undefined;
      if (this.#waiting.length === 0) return;
      if (!this.#open()) {
        if (!this.#troubled && Date.now() - this.#waitingSince > TROUBLE_AFTER) {
          this.#troubled = true;
          this.options.events.trouble('the metadata database is locked by another process');
        }
        this.#scheduleRetry();
        return;
      }
      const jobs = this.#waiting;
      this.#waiting = [];
      for (const job of jobs) {
        if (job.op?.over) job.reject(EINTR);
        else this.#execute(job);
      }
    }, delay);
  }

  #execute(job: Job): void {
    if (this.#group === undefined) {
      // The group was rolled back or was full and committed while we came here.
      this.#enqueue(job);
      return;
    }
    const tx = this.#tx;
    tx.begin();
    const before = job.op === undefined ? this.#totalChanges() : 0;
    try {
      if (!this.#db!.isTransaction) throw EIO.because('the metadata database does not begin a transaction');
      if (this.#group.length === 0) {
        // Under the write lock: what was read before and is still valid stays so until the commit.
        this.#validate();
        if (this.#quotasStale && Date.now() - this.#quotasLoaded > 1000) this.#loadQuotas();
      }
      if (job.op !== undefined) this.#checkSession();
      job.value = this.#runJob(job);
      faultPoint('meta.ran', job);
    } catch (e) {
      if (!(e instanceof Errno) || tx.writes > 0) {
        this.#abort(job, e);
        return;
      }
      job.error = e;
    }
    // An operation that wrote has written its record, a change for certain; what has no record may have matched no row.
    this.#dirty ||= tx.writes > 0 && (job.op !== undefined || this.#totalChanges() > before);
    this.#group.push(job);
    if (this.#group.length >= GROUP_MAX) this.#commit();
  }

  #totalChanges(): number {
    return (this.#st.get('SELECT total_changes()').get() as unknown as number[])[0]!;
  }

  /** The op record's rules (engine.ts), the body, the record. */
  #runJob(job: Job): unknown {
    const { op } = job;
    const tx = this.#tx;
    if (op === undefined) {
      const value = runSync(job.body(tx));
      if (tx.deltas.length > 0) {
        for (const d of tx.deltas) this.#count(d);
        this.#applyUsage(tx.deltas);
      }
      return value;
    }
    const record = this.#record(op);
    if (record.seq >= op.seq) {
      if (record.seq > op.seq) throw EIO.because(`operation ${op.kind}/${op.slot}/${op.seq} comes after ${record.seq}`);
      const row = this.#st.one(
        'SELECT result FROM @op WHERE sid=? AND kind=? AND slot=?',
        this.volume.sid,
        op.kind,
        op.slot,
      );
      return job.codec!.decode((row?.[0] as Uint8Array | null) ?? new Uint8Array(0));
    }
    const value = runSync(job.body(tx));
    faultPoint('meta.before-record', job);
    const result = job.codec!.encode(value);
    let acct: Uint8Array | null = null;
    if (tx.deltas.length > 0 || record.deltas.length > 0) {
      for (const d of tx.deltas) {
        addDelta(record.deltas, d);
        this.#count(d);
      }
      if (record.deltas.length > DELTAS_PER_RECORD) this.#flushUsage();
      else {
        acct = encodeDeltas(record.deltas);
        this.#scheduleFlush();
      }
    }
    tx.writes++;
    if (record.exists) {
      this.#st.exec(
        'UPDATE @op SET seq=?,result=?,acct=? WHERE sid=? AND kind=? AND slot=?',
        op.seq,
        result,
        acct,
        this.volume.sid,
        op.kind,
        op.slot,
      );
    } else {
      this.#st.exec(
        'INSERT INTO @op(seq,result,acct,sid,kind,slot) VALUES(?,?,?,?,?,?)',
        op.seq,
        result,
        acct,
        this.volume.sid,
        op.kind,
        op.slot,
      );
      record.exists = true;
    }
    record.seq = op.seq;
    return value;
  }

  #own(table: string): string {
    return ownPrefix(this.prefix) + table;
  }

  #forgetRecords(): void {
    this.#records.clear();
    this.#recordsKnown = false;
  }

  /** Every record of this session that holds usage. */
  #knowRecords(): Map<number, OpRecord> {
    if (!this.#recordsKnown && this.volume.sid !== 0) {
      for (const row of this.#st.all('SELECT kind,slot FROM @op WHERE sid=? AND acct IS NOT NULL', this.volume.sid)) {
        this.#record({ kind: row[0] as number, slot: row[1] as number, seq: 0 });
      }
    }
    this.#recordsKnown = true;
    return this.#records;
  }

  #record(op: Op): OpRecord {
    const key = op.kind * 2 ** 40 + op.slot;
    let record = this.#records.get(key);
    if (record === undefined) {
      const row = this.#st.one(
        'SELECT seq,acct FROM @op WHERE sid=? AND kind=? AND slot=?',
        this.volume.sid,
        op.kind,
        op.slot,
      );
      record =
        row === undefined
          ? { seq: -1, exists: false, deltas: [] }
          : { seq: row[0] as number, exists: true, deltas: row[1] === null ? [] : decodeDeltas(row[1] as Uint8Array) };
      this.#records.set(key, record);
    }
    return record;
  }

  /** Under the write lock. Throws EIO when the session is gone or taken over. One that expired while the machine slept goes on: nobody has cleaned it. */
  #checkSession(): void {
    if (this.#lost === undefined && !this.#sessionChecked) {
      const sql = 'SELECT s.incarnation,s.epoch,j.expire FROM @session s JOIN $session2 j ON j.sid=s.sid WHERE s.sid=?';
      const row = this.#st.one(sql, this.volume.sid);
      if (row === undefined) this.#lose('its record is gone');
      else if (row[0] !== this.#identity!.incarnation || row[1] !== this.#identity!.epoch)
        this.#lose('it was taken over');
      else this.#expire = row[2] as number;
      this.#sessionChecked = this.#lost === undefined;
    }
    if (this.#lost === undefined && this.#tx.now.sec > this.#expire) {
      this.#expire = this.#tx.now.sec + EXPIRE_AHEAD;
      this.#st.run('UPDATE $session2 SET expire=? WHERE sid=?', this.#expire, this.volume.sid);
      this.#dirty = true;
    }
    if (this.#lost !== undefined) throw EIO.because(`session ${this.volume.sid} lost: ${this.#lost}`);
  }

  #lose(reason: string): void {
    this.#lost = reason;
    queueMicrotask(() => this.options.events.sessionLost(reason));
  }

  /** An operation failed in the middle: nothing of the group stands; the others run again, on their own. */
  #abort(failed: Job, error: unknown): void {
    const jobs = this.#group!;
    this.#rollback();
    this.#group = undefined;
    this.#settle();
    if (isBusy(error)) jobs.push(failed);
    else failed.reject(toErrno(error));
    for (const job of jobs) {
      delete job.value;
      delete job.error;
      this.#wait(job);
    }
  }

  #rollback(): void {
    if (this.#db!.isTransaction) {
      try {
        this.#db!.exec('ROLLBACK');
      } catch (e) {
        this.options.events.trouble(`rollback in the metadata database: ${(e as Error).message}`);
      }
    }
    this.#tx.rolledBack();
    this.#forgetRecords();
    this.#quotasStale = true;
    this.#quotasLoaded = 0;
    this.#sessionChecked = false;
    this.#dataVersion = -1;
    this.#seen = -1;
  }

  #settle(): void {
    const settle = this.#settleCommit;
    this.#settleCommit = undefined;
    this.#afterCommit = undefined;
    settle?.();
  }

  #commit(): void {
    const jobs = this.#group;
    if (jobs === undefined) return;
    let failure: Errno | undefined;
    try {
      faultPoint('meta.before-commit');
      this.#st.get('COMMIT').get();
      faultPoint('meta.committed');
      // While we held the write lock nobody else could commit: one more is ours. If another came right after it, the count is
      // ahead and the next look finds it.
      if (this.#dirty && this.#seen >= 0) this.#seen = (this.#seen + 1) >>> 0;
    } catch (e) {
      failure = toErrno(e);
      this.#rollback();
    }
    this.#group = undefined;
    for (const job of jobs) {
      if (failure !== undefined) job.reject(failure);
      else if (job.error !== undefined) job.reject(job.error);
      else job.resolve(job.value);
    }
    faultPoint('meta.settled');
    this.#settle();
    if (failure === undefined) {
      if (this.#troubled) {
        this.#troubled = false;
        this.options.events.trouble(undefined);
      }
      if (this.#tx.unlocked.size > 0) this.#wakeLocks();
      if ((++this.#commits & 255) === 0) this.#checkLog();
    }
  }

  /** TxDriver */
  transact<T>(body: (tx: Tx) => Body<T>): Promise<T> {
    return this.mutate(undefined, undefined, body);
  }

  // ── usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Keeps the numbers in memory, by which limits are checked. */
  #count(d: Delta): void {
    const q = this.volume.quotas;
    if (d.kind === Usage.volume) {
      q.usedSpace += d.space;
      q.usedInodes += d.inodes;
    }
    const map =
      d.kind === Usage.dirQuota
        ? q.dirs
        : d.kind === Usage.user
          ? q.users
          : d.kind === Usage.group
            ? q.groups
            : undefined;
    if (map === undefined) return;
    let quota = map.get(d.key);
    if (quota === undefined) {
      // Users and groups are counted from their first file on, without limits.
      if (d.kind === Usage.dirQuota) return;
      quota = { maxSpace: -1, maxInodes: -1, usedSpace: 0, usedInodes: 0 };
      map.set(d.key, quota);
    }
    quota.usedSpace += d.space;
    quota.usedInodes += d.inodes;
  }

  /** Stored limits and usage, and what our records hold beside them. */
  #loadQuotas(): void {
    const q = this.volume.quotas;
    const counters = new Map(
      this.#st.all("SELECT name,value FROM $counter WHERE name IN ('usedSpace','totalInodes')").map(r => [r[0], r[1]]),
    );
    q.usedSpace = Number(counters.get('usedSpace') ?? 0);
    q.usedInodes = Number(counters.get('totalInodes') ?? 0);
    const columns = 'max_space,max_inodes,used_space,used_inodes';
    const quota = (r: Row, at: number): Quota => {
      const [maxSpace, maxInodes, usedSpace, usedInodes] = r.slice(at) as number[];
      return { maxSpace: maxSpace!, maxInodes: maxInodes!, usedSpace: usedSpace!, usedInodes: usedInodes! };
    };
    q.dirs = new Map();
    q.users = new Map();
    q.groups = new Map();
    if (this.volume.format.DirStats) {
      for (const r of this.#st.all(`SELECT ${inoColumn('inode')},${columns} FROM $dir_quota`))
        q.dirs.set(r[0] as number, quota(r, 1));
    }
    if (this.volume.format.UserGroupQuota) {
      for (const r of this.#st.all(`SELECT qtype,qkey,${columns} FROM $user_group_quota`)) {
        (r[0] === 1 ? q.users : q.groups).set(r[1] as number, quota(r, 2));
      }
    }
    if (this.volume.sid !== 0) {
      for (const r of this.#st.all('SELECT acct FROM @op WHERE sid=? AND acct IS NOT NULL', this.volume.sid)) {
        for (const d of decodeDeltas(r[0] as Uint8Array)) this.#count(d);
      }
    }
    this.#quotasStale = false;
    this.#quotasLoaded = Date.now();
  }

  #scheduleFlush(): void {
    if (this.#flushTimer !== undefined) return;
    this.#flushTimer = setTimeout(() => {
      this.#flushTimer = undefined;
      this.flush().catch(e => this.options.events.trouble(`flush of usage: ${(e as Error).message}`));
      this.#checkLog();
    }, FLUSH_MS);
    this.#flushTimer.unref();
  }

  /** Moves what all records of this session hold into the volume's tables, inside the open transaction. */
  #flushUsage(): void {
    const sum: Delta[] = [];
    let pending = false;
    for (const record of this.#knowRecords().values()) {
      for (const d of record.deltas) addDelta(sum, d);
      pending ||= record.deltas.length > 0;
      record.deltas = [];
    }
    if (!pending) return;
    this.#applyUsage(sum);
    faultPoint('meta.usage-applied');
    this.#st.exec('UPDATE @op SET acct=NULL WHERE sid=? AND acct IS NOT NULL', this.volume.sid);
  }

  #applyUsage(list: readonly Delta[]): void {
    const tx = this.#tx;
    for (const d of list) {
      tx.writes++;
      if (d.kind === Usage.volume) {
        if (d.space !== 0) tx.bump('usedSpace', d.space);
        if (d.inodes !== 0) tx.bump('totalInodes', d.inodes);
      } else if (d.kind === Usage.dirStat) {
        const sql =
          'UPDATE $dir_stats SET data_length=data_length+?,used_space=used_space+?,used_inodes=used_inodes+? WHERE inode=?';
        if (this.#st.run(sql, d.length, d.space, d.inodes, inoParam(d.key)) > 0) continue;
        // No row: counted anew, with everything that has happened. A directory that is gone needs none.
        if (tx.readNode(d.key)?.type !== FileType.directory) continue;
        const s = runSync(countChildren(tx, d.key));
        // What records still hold of it will come with a flush.
        for (const record of this.#knowRecords().values()) {
          for (const p of record.deltas) {
            if (p.kind !== Usage.dirStat || p.key !== d.key) continue;
            s.length -= p.length;
            s.space -= p.space;
            s.inodes -= p.inodes;
          }
        }
        tx.insertDirStat(d.key, s.length, s.space, s.inodes);
      } else if (d.kind === Usage.dirQuota) {
        this.#st.exec(
          'UPDATE $dir_quota SET used_space=used_space+?,used_inodes=used_inodes+? WHERE inode=?',
          d.space,
          d.inodes,
          inoParam(d.key),
        );
      } else {
        const sql =
          'INSERT INTO $user_group_quota(qtype,qkey,max_space,max_inodes,used_space,used_inodes) VALUES(?,?,-1,-1,?,?) ON CONFLICT(qtype,qkey) DO UPDATE SET used_space=used_space+excluded.used_space,used_inodes=used_inodes+excluded.used_inodes';
        this.#st.exec(sql, d.kind === Usage.user ? 1 : 2, d.key, d.space, d.inodes);
      }
    }
  }

  async flush(): Promise<void> {
    if (this.volume.sid === 0 || this.options.readOnly) return;
    const self = this;
    await this.transact(function* () {
      // A process whose session was taken over must not write its view of the records.
      self.#checkSession();
      self.#flushUsage();
    });
  }

  // ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Adds what databases made by older clients lack, and our own tables. */
  #ensureSchema(): void {
    for (const sql of schemaStatements('sqlite', this.prefix)) this.#db!.exec(sql);
    const table = `\`${this.prefix}node\``;
    const have = new Set(
      (this.#db!.prepare(`PRAGMA table_info(${table})`).all() as { name: string }[]).map(r => r.name),
    );
    for (const { name, definition } of lateColumns()) {
      if (!have.has(name)) this.#db!.exec(`ALTER TABLE ${table} ADD COLUMN ${definition}`);
    }
    for (const sql of ownStatements('sqlite', this.prefix)) this.#db!.exec(sql);
  }

  async newSession(info: SessionInfo): Promise<SessionIdentity> {
    if (this.options.readOnly) {
      this.#watch ??= await watchCommits(this.path);
      return { sid: 0, incarnation: '', epoch: 0 };
    }
    await this.#idle();
    const incarnation = randomBytes(16).toString('hex');
    const expire = unixNow() + EXPIRE_AHEAD;
    const sid = await this.#patiently(() =>
      this.#exclusive(() => {
        this.#ensureSchema();
        let id: number;
        do id = this.#tx.bump('nextSession', 1);
        while (this.#st.one('SELECT 1 FROM $session2 WHERE sid=?', id) !== undefined);
        // Rows of an older session with this number (the counter came back by a restore) must not be taken for ours.
        this.#dropOwn(id);
        this.#st.exec('INSERT INTO $session2(sid,expire,info) VALUES(?,?,?)', id, expire, serialiseSessionInfo(info));
        const sql = 'INSERT INTO @session(sid,incarnation,volume,epoch) VALUES(?,?,?,1)';
        this.#st.exec(sql, id, incarnation, this.volume.format.UUID);
        if (this.volume.format.ChangeLog) runSync(this.#logSession(id, expire, info));
        return id;
      }),
    );
    this.#begin({ sid, incarnation, epoch: 1 }, expire);
    this.#watch ??= await watchCommits(this.path);
    return { sid, incarnation, epoch: 1 };
  }

  *#logSession(sid: number, expire: number, info: SessionInfo): Body<void> {
    yield* logChange(this.#tx, 'NEWSESSION', () => [sid, expire, serialiseSessionInfo(info)]);
  }

  #begin(identity: SessionIdentity, expire: number): void {
    this.#identity = identity;
    this.volume.sid = identity.sid;
    this.#expire = expire;
    this.#lost = undefined;
    this.#sessionChecked = false;
    this.#forgetRecords();
    this.#quotasStale = true;
    this.#quotasLoaded = 0;
  }

  async adoptSession(identity: SessionIdentity, info: SessionInfo): Promise<SessionIdentity> {
    if (this.options.readOnly || identity.sid === 0) return identity;
    await this.#idle();
    const expire = unixNow() + EXPIRE_AHEAD;
    const { sid } = identity;
    const epoch = await this.#patiently(() =>
      this.#exclusive(() => {
        for (const sql of ownStatements('sqlite', this.prefix)) this.#db!.exec(sql);
        const row = this.#st.one('SELECT incarnation,volume,epoch FROM @session WHERE sid=?', sid);
        if (row === undefined) throw ESTALE.because(`session ${sid} has no record`);
        if (row[0] !== identity.incarnation || row[1] !== this.volume.format.UUID)
          throw ESTALE.because(`session ${sid} belongs to another mount`);
        if ((row[2] as number) < identity.epoch)
          throw ESTALE.because(`session ${sid} comes from an older state of the database`);
        const epoch = (row[2] as number) + 1;
        this.#st.exec('UPDATE @session SET epoch=? WHERE sid=?', epoch, sid);
        faultPoint('session.before-epoch');
        if (
          this.#st.run('UPDATE $session2 SET expire=?,info=? WHERE sid=?', expire, serialiseSessionInfo(info), sid) ===
          0
        ) {
          throw ESTALE.because(`session ${sid} was cleaned by another client`);
        }
        return epoch;
      }),
    );
    faultPoint('session.adopted');
    this.#begin({ ...identity, epoch }, expire);
    this.#watch ??= await watchCommits(this.path);
    this.#scheduleFlush();
    return { ...identity, epoch };
  }

  async heartbeat(): Promise<void> {
    const self = this;
    if (this.volume.sid !== 0 && !this.options.readOnly) {
      const expire = unixNow() + EXPIRE_AHEAD;
      const alive = await this.transact(function* (tx): Body<boolean> {
        self.#sessionChecked = false;
        self.#checkSession();
        (tx as SqliteTx).writes++;
        return self.#st.run('UPDATE $session2 SET expire=? WHERE sid=?', expire, self.volume.sid) > 0;
      });
      if (alive) this.#expire = expire;
      this.#sessionChecked = false;
    }
    await this.read(() => {
      const text = this.#hasTable('setting') ? this.#st.one(SETTING)?.[0] : undefined;
      if (typeof text !== 'string') this.options.events.volumeLost('the volume is gone');
      else if (text !== this.#settingText) {
        const { UUID } = this.volume.format;
        const stored = parseFormat(text);
        if (stored.UUID !== UUID) this.options.events.volumeLost('the database holds another volume now');
        else if ((stored.MetaVersion ?? 0) > MAX_META_VERSION)
          this.options.events.volumeLost(`metadata version ${stored.MetaVersion}`);
        else this.options.events.formatChanged(this.#takeSetting(text));
      }
      this.#loadQuotas();
    });
  }

  async closeSession(): Promise<void> {
    const { sid } = this.volume;
    if (sid === 0) return;
    try {
      await this.flush();
      await this.cleanSession(sid);
    } catch (e) {
      // Gone or taken over: it is not ours to remove.
      if (this.#lost === undefined) throw e;
    }
    this.volume.sid = 0;
    this.#identity = undefined;
    this.#forgetRecords();
    clearTimeout(this.#flushTimer);
    this.#flushTimer = undefined;
  }

  async listSessions(detail: boolean): Promise<SessionDetail[]> {
    return await this.read(() => {
      if (!this.#hasTable('session2')) return [];
      const st = this.#st;
      return st.all('SELECT sid,expire,info FROM $session2 ORDER BY sid').map(row => {
        const sid = row[0] as number;
        const info = parseSessionInfo(row[2] as Uint8Array | null);
        const out: SessionDetail = { ...info, sid, expire: row[1] as number };
        if (!detail) return out;
        out.sustained = runSync(
          (function* (tx: Tx): Body<Ino[]> {
            return yield* tx.sustainedOf(sid);
          })(this.#tx),
        );
        const flocks = st
          .get(`SELECT ${inoColumn('inode')},owner,ltype FROM $flock WHERE sid=?`, true)
          .all(sid) as unknown as bigint[][];
        out.flocks = flocks.map(r => ({
          ino: Number(r[0]),
          owner: BigInt.asUintN(64, r[1]!),
          type: r[2] === 87n ? 'W' : 'R',
        }));
        const plocks = st
          .get(`SELECT ${inoColumn('inode')},owner FROM $plock WHERE sid=?`, true)
          .all(sid) as unknown as bigint[][];
        out.plocks = plocks.map(r => {
          const owner = BigInt.asUintN(64, r[1]!);
          const ino = Number(r[0]);
          const rows = runSync(
            (function* (tx: Tx) {
              return yield* tx.plocks(ino);
            })(this.#tx),
          );
          return { ino, owner, records: rows.find(p => p.sid === sid && p.owner === owner)?.records ?? [] };
        });
        return out;
      });
    });
  }

  async staleSessions(limit: number): Promise<number[]> {
    return await this.read(() => {
      const sids = this.#st
        .all('SELECT sid FROM $session2 WHERE expire<? LIMIT ?', unixNow(), limit)
        .map(r => r[0] as number);
      if (this.#hasTable('session')) {
        for (const r of this.#st.all('SELECT sid FROM $session WHERE heartbeat<? LIMIT ?', unixNow() - 300, limit)) {
          sids.push(r[0] as number);
        }
      }
      // Sessions of ours that another client cleaned leave their own rows, with usage that was never counted.
      if (this.#ownTables()) {
        const sql = 'SELECT sid FROM @session WHERE sid NOT IN (SELECT sid FROM $session2) LIMIT ?';
        for (const r of this.#st.all(sql, limit)) if (!sids.includes(r[0] as number)) sids.push(r[0] as number);
      }
      return sids.slice(0, limit);
    });
  }

  #ownTables(): boolean {
    return this.#st.one("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", this.#own('op')) !== undefined;
  }

  #dropOwn(sid: number): void {
    this.#st.exec('DELETE FROM @op WHERE sid=?', sid);
    this.#st.exec('DELETE FROM @session WHERE sid=?', sid);
  }

  async cleanSession(sid: number): Promise<void> {
    const self = this;
    await this.transact(function* (tx): Body<void> {
      const { st } = tx as SqliteTx;
      (tx as SqliteTx).writes++;
      for (const table of ['flock', 'plock']) {
        for (const r of st.all(`SELECT ${inoColumn('inode')} FROM $${table} WHERE sid=?`, sid))
          (tx as SqliteTx).unlocked.add(r[0] as number);
        st.exec(`DELETE FROM $${table} WHERE sid=?`, sid);
      }
      yield* dropSustained(tx, sid);
      if (self.#ownTables()) {
        const sum: Delta[] = [];
        for (const r of st.all('SELECT acct FROM @op WHERE sid=? AND acct IS NOT NULL', sid)) {
          for (const d of decodeDeltas(r[0] as Uint8Array)) addDelta(sum, d);
        }
        self.#applyUsage(sum);
        self.#dropOwn(sid);
      }
      st.exec('DELETE FROM $session2 WHERE sid=?', sid);
      if (self.#hasTable('session')) st.exec('DELETE FROM $session WHERE sid=?', sid);
      yield* logChange(tx, 'CLEANSESSION', () => [sid]);
    });
  }

  // ── durability ────────────────────────────────────────────────────────────────────────────────────────────────────

  async durable(): Promise<void> {
    await this.#afterCommit;
    await this.#wal?.sync(this.#commits);
  }

  async sync(): Promise<void> {
    await this.#afterCommit;
    // What is queued behind a busy database was asked for before this: the queue is in order.
    if (this.#waiting.length > 0) await this.transact(nothingToDo);
    await this.#wal?.sync(this.#commits);
  }

  // ── counters, locks, quotas ───────────────────────────────────────────────────────────────────────────────────────

  newSliceIds(count: number): MaybePromise<number> {
    if (this.#sliceNext + count <= this.#sliceEnd) {
      this.#sliceNext += count;
      return this.#sliceNext - count;
    }
    const batch = Math.max(SLICE_BATCH, count);
    return this.transact(function* (tx): Body<number> {
      yield* logChange(tx, 'INCR_COUNTER', () => ['nextChunk', batch]);
      return yield* tx.addCounter('nextChunk', batch);
    }).then(end => {
      // Another call may have fetched a batch meanwhile; the rest of the smaller one is wasted.
      faultPoint('meta.slice-ids');
      const first = end - batch;
      this.#sliceNext = first + count;
      this.#sliceEnd = end;
      return first;
    });
  }

  waitForUnlock(ino: Ino, timeoutMs: number): Promise<void> {
    return new Promise(resolve => {
      let set = this.#waiters.get(ino);
      if (set === undefined) {
        set = new Set();
        this.#waiters.set(ino, set);
      }
      const waiters = set;
      const wake = () => {
        clearTimeout(timer);
        waiters.delete(wake);
        if (waiters.size === 0 && this.#waiters.get(ino) === waiters) this.#waiters.delete(ino);
        resolve();
      };
      const timer = setTimeout(wake, timeoutMs);
      set.add(wake);
    });
  }

  #wakeLocks(): void {
    for (const ino of this.#tx.unlocked) for (const wake of [...(this.#waiters.get(ino) ?? [])]) wake();
    this.#tx.unlocked.clear();
  }

  #quotaMap(kind: 'dir' | 'user' | 'group'): Map<number, Quota> {
    const q = this.volume.quotas;
    return kind === 'dir' ? q.dirs : kind === 'user' ? q.users : q.groups;
  }

  async getQuota(kind: 'dir' | 'user' | 'group', key: number): Promise<Quota | undefined> {
    return await this.read(() => {
      this.#loadQuotas();
      const q = this.#quotaMap(kind).get(key);
      return q === undefined ? undefined : { ...q };
    });
  }

  async listQuotas(): Promise<{ kind: 'dir' | 'user' | 'group'; key: number; quota: Quota }[]> {
    return await this.read(() => {
      this.#loadQuotas();
      return (['dir', 'user', 'group'] as const).flatMap(kind =>
        [...this.#quotaMap(kind)].map(([key, q]) => ({ kind, key, quota: { ...q } })),
      );
    });
  }

  async setQuota(
    kind: 'dir' | 'user' | 'group',
    key: number,
    set: { maxSpace?: number; maxInodes?: number; usedSpace?: number; usedInodes?: number },
  ): Promise<void> {
    const self = this;
    await this.transact(function* (tx): Body<void> {
      // What records hold is counted first: the row's usage then stands for everything up to now.
      self.#flushUsage();
      self.#loadQuotas();
      const old = self.#quotaMap(kind).get(key);
      const used = old !== undefined || kind !== 'dir' ? undefined : yield* treeUsage(tx, key);
      const q: Quota = {
        maxSpace: set.maxSpace ?? old?.maxSpace ?? -1,
        maxInodes: set.maxInodes ?? old?.maxInodes ?? -1,
        usedSpace: set.usedSpace ?? old?.usedSpace ?? used?.space ?? 0,
        usedInodes: set.usedInodes ?? old?.usedInodes ?? used?.inodes ?? 0,
      };
      (tx as SqliteTx).writes++;
      const values = [q.maxSpace, q.maxInodes, q.usedSpace, q.usedInodes];
      const columns = 'max_space,max_inodes,used_space,used_inodes';
      if (kind === 'dir')
        self.#st.exec(
          `INSERT OR REPLACE INTO $dir_quota(inode,${columns}) VALUES(?,?,?,?,?)`,
          inoParam(key),
          ...values,
        );
      else {
        const sql = `INSERT OR REPLACE INTO $user_group_quota(qtype,qkey,${columns}) VALUES(?,?,?,?,?,?)`;
        self.#st.exec(sql, kind === 'user' ? 1 : 2, key, ...values);
      }
      yield* logChange(tx, 'SETQUOTA', () => [
        kind === 'dir' ? 0 : kind === 'user' ? 1 : 2,
        key,
        q.maxSpace,
        q.maxInodes,
      ]);
      self.#loadQuotas();
    });
  }

  async deleteQuota(kind: 'dir' | 'user' | 'group', key: number): Promise<void> {
    const self = this;
    await this.transact(function* (tx): Body<void> {
      (tx as SqliteTx).writes++;
      if (kind === 'dir') self.#st.exec('DELETE FROM $dir_quota WHERE inode=?', inoParam(key));
      else {
        const sql = 'UPDATE $user_group_quota SET max_space=-1,max_inodes=-1 WHERE qtype=? AND qkey=?';
        self.#st.exec(sql, kind === 'user' ? 1 : 2, key);
      }
      yield* logChange(tx, 'DELQUOTA', () => [kind === 'dir' ? 0 : kind === 'user' ? 1 : 2, key]);
      self.#loadQuotas();
    });
  }

  statfs(ino: Ino, generic: (ino: Ino) => MaybePromise<StatfsResult>): MaybePromise<StatfsResult> {
    if (this.#quotasStale && this.#group === undefined) this.read(() => this.#loadQuotas());
    return generic(ino);
  }

  /** Statistics with what is not yet in their table. */
  dirStat(ino: Ino): MaybePromise<{ length: number; space: number; inodes: number }> {
    return this.read(() => {
      const stored = runSync(first(this.#tx.dirStat(ino)));
      if (stored === undefined) {
        if (this.#tx.readNode(ino) === undefined) throw ENOENT;
        return runSync(countChildren(this.#tx, ino));
      }
      for (const record of this.#knowRecords().values()) {
        for (const d of record.deltas) {
          if (d.kind !== Usage.dirStat || d.key !== ino) continue;
          stored.length += d.length;
          stored.space += d.space;
          stored.inodes += d.inodes;
        }
      }
      return stored.length < 0 || stored.space < 0 || stored.inodes < 0
        ? runSync(countChildren(this.#tx, ino))
        : stored;
    });
  }
}

function* nothingToDo(): Body<void> {}

function present(found: Entry | undefined): Entry {
  if (found === undefined) throw ENOENT;
  return found;
}

function* first<T>(step: Iterable<Promise<unknown>, T, unknown>): Body<T> {
  return yield* step;
}

/** The MetaEngine around it. */
export function sqliteEngine(path: string, prefix: string, options: EngineOptions): MetaEngine {
  const e = new SqliteEngine(path, prefix, options);
  const driver: TxDriver = {
    mutate: (op, codec, body) => e.mutate(op, codec, body),
    transact: body => e.transact(body),
    read: body => e.readBody(body),
  };
  const ops = txOperations(driver, e.volume);
  return {
    ...ops,
    name: e.name,
    load: () => e.load(),
    init: (format, force) => e.init(format, force),
    reset: () => e.reset(),
    close: () => e.close(),
    newSession: info => e.newSession(info),
    adoptSession: (identity, info) => e.adoptSession(identity, info),
    heartbeat: () => e.heartbeat(),
    closeSession: () => e.closeSession(),
    listSessions: detail => e.listSessions(detail),
    staleSessions: limit => e.staleSessions(limit),
    cleanSession: sid => e.cleanSession(sid),
    flush: () => e.flush(),
    sync: () => e.sync(),
    durable: () => e.durable(),
    lookup: (cred, parent, name) => e.lookup(cred, parent, name),
    find: (cred, parent, name) => e.find(cred, parent, name),
    getattr: ino => e.getattr(ino),
    dirStream: (ino, state) => e.dirStream(ino, state),
    dirStat: ino => e.dirStat(ino),
    statfs: root => e.statfs(root, ops.statfs),
    touchAtime: ino => (options.readOnly ? undefined : ops.touchAtime(ino)),
    newSliceIds: count => e.newSliceIds(count),
    waitForUnlock: (ino, timeoutMs) => e.waitForUnlock(ino, timeoutMs),
    getQuota: (kind, key) => e.getQuota(kind, key),
    setQuota: (kind, key, quota) => e.setQuota(kind, key, quota),
    deleteQuota: (kind, key) => e.deleteQuota(kind, key),
    listQuotas: () => e.listQuotas(),
  };
}

/** Parameters of the Go client's URL form that mean nothing here. */
const FOREIGN_PARAMS = [
  'cache',
  '_journal',
  '_journal_mode',
  '_timeout',
  '_busy_timeout',
  'max_open_conns',
  'max_idle_conns',
  'max_idle_time',
  'max_life_time',
];

/** sqlite3://PATH[?table_prefix=NAME] */
export const sqliteDriver: EngineDriver = {
  schemes: ['sqlite3'],
  async open(url, options) {
    const rest = url.slice('sqlite3://'.length);
    const question = rest.indexOf('?');
    const path = question < 0 ? rest : rest.slice(0, question);
    const params = new URLSearchParams(question < 0 ? '' : rest.slice(question + 1));
    if (path === '' || path.endsWith('/') || path.includes('\0'))
      throw EINVAL.because('sqlite3:// needs the path of a database file');
    for (const k of params.keys()) {
      if (k !== 'table_prefix' && !FOREIGN_PARAMS.includes(k))
        throw EINVAL.because(`sqlite3:// has no parameter "${k}"`);
    }
    const prefix = params.get('table_prefix') ?? '';
    if (!/^[A-Za-z0-9_]*$/.test(prefix)) throw EINVAL.because('table_prefix may only have letters, digits and _');
    const engine = sqliteEngine(resolvePath(path), prefix === '' ? 'jfs_' : `jfs_${prefix}_`, options);
    return engine;
  },
};
