/**
 * What every part of the SQLite engine stands on: the connection, reads, and mutations in groups. Everything runs synchronously on the caller's loop: reads at
 * once, mutations in one transaction per turn of the event loop (BEGIN IMMEDIATE at the first, COMMIT in a microtask after it). Nothing ever waits for a lock
 * inside a call: a busy database is tried again from a timer.
 */
import type { DatabaseSync } from 'node:sqlite';
import { EINTR, EIO, EROFS, Errno } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { unixNow } from '../clock.ts';
import type { EngineOptions, MaybePromise, Op, SessionIdentity } from '../engine.ts';
import type { Codec } from '../ops/record.ts';
import { type Body, runSync, type Tx, type Volume } from '../ops/tx.ts';
import { emptyVolume } from '../tx-engine.ts';
import { UnlockWaiters } from '../unlock-waiters.ts';
import { addDelta, encodeDeltas } from '../usage.ts';
import { isBusy, openFile, patiently, toErrno } from './sqlite-file.ts';
import { SqliteTx, Statements } from './sqlite-tx.ts';
import { SqliteUsage } from './sqlite-usage.ts';
import { type WriteAheadLog, writeAheadLog } from './sqlite-wal.ts';
import { type CommitWatch, watchCommits } from './sqlite-watch.ts';

/** A session counts as alive for this long after its last heartbeat, seconds. */
export const EXPIRE_AHEAD = 600;
/** Changes of usage that an op record holds at most before they are written to the volume's tables. */
const DELTAS_PER_RECORD = 12;
const FLUSH_MS = 1000;
/** Operations of one transaction at most. */
const GROUP_MAX = 512;
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

export class SqliteCore {
  readonly path: string;
  readonly options: EngineOptions;
  readonly prefix: string;
  readonly volume: Volume;
  /** Locks that somebody waits for. */
  readonly waiters = new UnlockWaiters();
  /** These four are there once connect() has answered true. */
  db!: DatabaseSync;
  st!: Statements;
  tx!: SqliteTx;
  usage!: SqliteUsage;
  #connected = false;
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
  /** Why the session is lost. */
  #lost: string | undefined;
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

  constructor(path: string, prefix: string, options: EngineOptions) {
    this.path = path;
    this.prefix = prefix;
    this.options = options;
    this.volume = emptyVolume(options);
  }

  /** Opens an existing file, or makes one with `create`. False: there is none. */
  async connect(create: boolean): Promise<boolean> {
    if (this.#connected) return true;
    const db = await openFile(this.path, create);
    if (db === undefined) return false;
    this.db = db;
    this.st = new Statements(db, this.prefix);
    this.tx = new SqliteTx(this.st, this.volume);
    this.usage = new SqliteUsage(this.st, this.tx, this.volume);
    this.#wal = writeAheadLog(this.path, message => this.options.events.trouble(message));
    this.#connected = true;
    return true;
  }

  hasTable(name: string): boolean {
    return this.st.one("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?", name) !== undefined;
  }

  /** From here on commits of others are noticed without a statement. */
  async watch(): Promise<void> {
    this.#watch ??= await watchCommits(this.path);
  }

  #checkLog(): void {
    this.#pageSize ||= (this.st.get('PRAGMA page_size').get() as unknown as number[])[0]!;
    const frames = this.#watch?.backlog();
    this.#wal?.check(frames === undefined ? undefined : frames * this.#pageSize);
  }

  /** A transaction of its own, outside the groups (which must be empty). */
  exclusive<T>(what: () => T): T {
    const db = this.db;
    if (this.#group !== undefined) this.#commit();
    db.exec('BEGIN IMMEDIATE');
    try {
      this.tx.begin();
      this.validate();
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

  async close(): Promise<void> {
    await this.idle();
    clearTimeout(this.#flushTimer);
    clearTimeout(this.#retryTimer);
    await this.#wal?.close();
    if (this.#connected) this.db.close();
    this.#connected = false;
    this.#watch?.close();
    this.#watch = undefined;
  }

  async idle(): Promise<void> {
    while (this.#afterCommit !== undefined || this.#waiting.length > 0) {
      await (this.#afterCommit ?? new Promise(resolve => setTimeout(resolve, 1)));
    }
  }

  // ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /** What was written in this turn is not committed yet: reads wait (read()). */
  get grouping(): boolean {
    return this.#group !== undefined;
  }

  /** Drops the caches when another connection has written since. */
  validate(): void {
    if (this.#watch !== undefined) {
      const count = this.#watch.count();
      if (count === this.#seen) return;
      this.#seen = count;
    } else {
      const version = (this.st.get('PRAGMA data_version').get() as unknown as number[])[0]!;
      if (version === this.#dataVersion) return;
      this.#dataVersion = version;
    }
    this.tx.dropCaches();
    this.#sessionChecked = false;
    this.usage.outdate();
  }

  /** A read: now, or after the commit of what has been written in this turn. */
  read<T>(what: () => T): MaybePromise<T> {
    if (this.#group !== undefined) return this.#afterCommit!.then(() => this.read(what));
    try {
      this.validate();
      return what();
    } catch (e) {
      if (!isBusy(e)) throw toErrno(e);
      return patiently(() => {
        this.validate();
        return what();
      }).catch(error => {
        throw toErrno(error);
      });
    }
  }

  readBody<T>(body: (tx: Tx) => Body<T>): MaybePromise<T> {
    return this.read(() => {
      this.tx.begin();
      return runSync(body(this.tx));
    });
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

  /** A mutation without an op record: repeatable, or of no session. */
  transact<T>(body: (tx: Tx) => Body<T>): Promise<T> {
    return this.mutate(undefined, undefined, body);
  }

  #enqueue(job: Job): void {
    if (this.#waiting.length > 0 || !this.#open()) this.#wait(job);
    else this.#execute(job);
  }

  /** Opens a group's transaction. False: the database is busy. */
  #open(): boolean {
    if (this.#group !== undefined) return true;
    try {
      this.st.get('BEGIN IMMEDIATE').get();
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
    const tx = this.tx;
    tx.begin();
    const before = job.op === undefined ? this.#totalChanges() : 0;
    try {
      if (!this.db.isTransaction) throw EIO.because('the metadata database does not begin a transaction');
      if (this.#group.length === 0) {
        // Under the write lock: what was read before and is still valid stays so until the commit.
        this.validate();
        this.usage.refresh();
      }
      if (job.op !== undefined) this.checkSession();
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
    return (this.st.get('SELECT total_changes()').get() as unknown as number[])[0]!;
  }

  /** The op record's rules (engine.ts), the body, the record. */
  #runJob(job: Job): unknown {
    const { op } = job;
    const tx = this.tx;
    if (op === undefined) {
      const value = runSync(job.body(tx));
      if (tx.deltas.length > 0) {
        for (const d of tx.deltas) this.usage.count(d);
        this.usage.apply(tx.deltas);
      }
      return value;
    }
    const record = this.usage.record(op);
    if (record.seq >= op.seq) {
      if (record.seq > op.seq) throw EIO.because(`operation ${op.kind}/${op.slot}/${op.seq} comes after ${record.seq}`);
      const row = this.st.one(
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
        this.usage.count(d);
      }
      if (record.deltas.length > DELTAS_PER_RECORD) this.usage.flush();
      else {
        acct = encodeDeltas(record.deltas);
        this.scheduleFlush();
      }
    }
    tx.writes++;
    if (record.exists) {
      this.st.exec(
        'UPDATE @op SET seq=?,result=?,acct=? WHERE sid=? AND kind=? AND slot=?',
        op.seq,
        result,
        acct,
        this.volume.sid,
        op.kind,
        op.slot,
      );
    } else {
      this.st.exec(
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
    if (this.db.isTransaction) {
      try {
        this.db.exec('ROLLBACK');
      } catch (e) {
        this.options.events.trouble(`rollback in the metadata database: ${(e as Error).message}`);
      }
    }
    this.tx.rolledBack();
    this.usage.forget();
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
      this.st.get('COMMIT').get();
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
      for (const ino of this.tx.unlocked) this.waiters.wake(ino);
      this.tx.unlocked.clear();
      if ((++this.#commits & 255) === 0) this.#checkLog();
    }
  }

  // ── the session ───────────────────────────────────────────────────────────────────────────────────────────────────

  get lost(): boolean {
    return this.#lost !== undefined;
  }

  begin(identity: SessionIdentity, expire: number): void {
    this.#identity = identity;
    this.volume.sid = identity.sid;
    this.#expire = expire;
    this.#lost = undefined;
    this.#sessionChecked = false;
    this.usage.forget();
  }

  /** Under the write lock. Throws EIO when the session is gone or taken over. One that expired while the machine slept goes on: nobody has cleaned it. */
  checkSession(): void {
    if (this.#lost === undefined && !this.#sessionChecked) {
      const sql = 'SELECT s.incarnation,s.epoch,j.expire FROM @session s JOIN $session2 j ON j.sid=s.sid WHERE s.sid=?';
      const row = this.st.one(sql, this.volume.sid);
      if (row === undefined) this.#lose('its record is gone');
      else if (row[0] !== this.#identity!.incarnation || row[1] !== this.#identity!.epoch)
        this.#lose('it was taken over');
      else this.#expire = row[2] as number;
      this.#sessionChecked = this.#lost === undefined;
    }
    if (this.#lost === undefined && this.tx.now.sec > this.#expire) {
      this.#expire = this.tx.now.sec + EXPIRE_AHEAD;
      this.st.run('UPDATE $session2 SET expire=? WHERE sid=?', this.#expire, this.volume.sid);
      this.#dirty = true;
    }
    if (this.#lost !== undefined) throw EIO.because(`session ${this.volume.sid} lost: ${this.#lost}`);
  }

  async renewSession(): Promise<void> {
    const self = this;
    const expire = unixNow() + EXPIRE_AHEAD;
    const alive = await this.transact(function* (tx): Body<boolean> {
      self.#sessionChecked = false;
      self.checkSession();
      (tx as SqliteTx).writes++;
      return self.st.run('UPDATE $session2 SET expire=? WHERE sid=?', expire, self.volume.sid) > 0;
    });
    if (alive) this.#expire = expire;
    this.#sessionChecked = false;
  }

  endSession(): void {
    this.volume.sid = 0;
    this.#identity = undefined;
    this.usage.forget();
    clearTimeout(this.#flushTimer);
    this.#flushTimer = undefined;
  }

  #lose(reason: string): void {
    this.#lost = reason;
    queueMicrotask(() => this.options.events.sessionLost(reason));
  }

  scheduleFlush(): void {
    if (this.#flushTimer !== undefined) return;
    this.#flushTimer = setTimeout(() => {
      this.#flushTimer = undefined;
      this.flush().catch(e => this.options.events.trouble(`flush of usage: ${(e as Error).message}`));
      this.#checkLog();
    }, FLUSH_MS);
    this.#flushTimer.unref();
  }

  async flush(): Promise<void> {
    if (this.volume.sid === 0 || this.options.readOnly) return;
    const self = this;
    await this.transact(function* () {
      // A process whose session was taken over must not write its view of the records.
      self.checkSession();
      self.usage.flush();
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
}

function* nothingToDo(): Body<void> {}
