/** Sessions on SQLite: ours, and those of clients that are gone. */
import { randomBytes } from 'node:crypto';
import { ESTALE } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import type { Ino } from '../../format/ino.ts';
import { unixNow } from '../clock.ts';
import type { SessionDetail, SessionIdentity, SessionInfo } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import { dropSustained } from '../ops/sessions.ts';
import { type Body, runSync, type Tx } from '../ops/tx.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import { addDelta, type Delta, decodeDeltas } from '../usage.ts';
import { lateColumns, ownPrefix, ownStatements, schemaStatements } from './schema.ts';
import { EXPIRE_AHEAD, type SqliteCore } from './sqlite-core.ts';
import { patiently } from './sqlite-file.ts';
import { inoColumn, type SqliteTx } from './sqlite-tx.ts';

/** The `session` table of old clients has the time of the last heartbeat; they count as gone after so many seconds (spec of the format). */
const OLD_SESSION_AGE = 300;

/** `look`: sees at each heartbeat whether the volume's settings have changed. */
export function sessions(core: SqliteCore, look: () => void) {
  const { prefix, volume } = core;

  /** Adds what databases made by older clients lack, and our own tables. */
  function ensureSchema(): void {
    for (const sql of schemaStatements('sqlite', prefix)) core.db.exec(sql);
    const table = `\`${prefix}node\``;
    const have = new Set((core.db.prepare(`PRAGMA table_info(${table})`).all() as { name: string }[]).map(r => r.name));
    for (const { name, definition } of lateColumns()) {
      if (!have.has(name)) core.db.exec(`ALTER TABLE ${table} ADD COLUMN ${definition}`);
    }
    for (const sql of ownStatements('sqlite', prefix)) core.db.exec(sql);
  }

  async function newSession(info: SessionInfo): Promise<SessionIdentity> {
    if (core.options.readOnly) {
      await core.watch();
      return { sid: 0, incarnation: '', epoch: 0 };
    }
    await core.idle();
    const incarnation = randomBytes(16).toString('hex');
    const expire = unixNow() + EXPIRE_AHEAD;
    const sid = await patiently(() =>
      core.exclusive(() => {
        ensureSchema();
        let id: number;
        do id = core.tx.bump('nextSession', 1);
        while (core.st.one('SELECT 1 FROM $session2 WHERE sid=?', id) !== undefined);
        // Rows of an older session with this number (the counter came back by a restore) must not be taken for ours.
        dropOwn(id);
        core.st.exec('INSERT INTO $session2(sid,expire,info) VALUES(?,?,?)', id, expire, serialiseSessionInfo(info));
        const sql = 'INSERT INTO @session(sid,incarnation,volume,epoch) VALUES(?,?,?,1)';
        core.st.exec(sql, id, incarnation, volume.format.UUID);
        if (volume.format.ChangeLog) runSync(logSession(id, expire, info));
        return id;
      }),
    );
    core.begin({ sid, incarnation, epoch: 1 }, expire);
    await core.watch();
    return { sid, incarnation, epoch: 1 };
  }

  function* logSession(sid: number, expire: number, info: SessionInfo): Body<void> {
    yield* logChange(core.tx, 'NEWSESSION', () => [sid, expire, serialiseSessionInfo(info)]);
  }

  async function adoptSession(identity: SessionIdentity, info: SessionInfo): Promise<SessionIdentity> {
    if (core.options.readOnly || identity.sid === 0) return identity;
    await core.idle();
    const expire = unixNow() + EXPIRE_AHEAD;
    const { sid } = identity;
    const epoch = await patiently(() =>
      core.exclusive(() => {
        for (const sql of ownStatements('sqlite', prefix)) core.db.exec(sql);
        const row = core.st.one('SELECT incarnation,volume,epoch FROM @session WHERE sid=?', sid);
        if (row === undefined) throw ESTALE.because(`session ${sid} has no record`);
        if (row[0] !== identity.incarnation || row[1] !== volume.format.UUID)
          throw ESTALE.because(`session ${sid} belongs to another mount`);
        if ((row[2] as number) < identity.epoch)
          throw ESTALE.because(`session ${sid} comes from an older state of the database`);
        const epoch = (row[2] as number) + 1;
        core.st.exec('UPDATE @session SET epoch=? WHERE sid=?', epoch, sid);
        faultPoint('session.before-epoch');
        if (
          core.st.run('UPDATE $session2 SET expire=?,info=? WHERE sid=?', expire, serialiseSessionInfo(info), sid) === 0
        ) {
          throw ESTALE.because(`session ${sid} was cleaned by another client`);
        }
        return epoch;
      }),
    );
    faultPoint('session.adopted');
    core.begin({ ...identity, epoch }, expire);
    await core.watch();
    core.scheduleFlush();
    return { ...identity, epoch };
  }

  async function heartbeat(): Promise<void> {
    if (volume.sid !== 0 && !core.options.readOnly) await core.renewSession();
    await core.read(() => {
      look();
      core.usage.load();
    });
  }

  async function closeSession(): Promise<void> {
    const { sid } = volume;
    if (sid === 0) return;
    try {
      await core.flush();
      await cleanSession(sid);
    } catch (e) {
      // Gone or taken over: it is not ours to remove.
      if (!core.lost) throw e;
    }
    core.endSession();
  }

  async function listSessions(detail: boolean): Promise<SessionDetail[]> {
    return await core.read(() => {
      if (!core.hasTable(`${prefix}session2`)) return [];
      const { st } = core;
      return st.all('SELECT sid,expire,info FROM $session2 ORDER BY sid').map(row => {
        const sid = row[0] as number;
        const info = parseSessionInfo(row[2] as Uint8Array | null);
        const out: SessionDetail = { ...info, sid, expire: row[1] as number };
        if (!detail) return out;
        out.sustained = runSync(
          (function* (tx: Tx): Body<Ino[]> {
            return yield* tx.sustainedOf(sid);
          })(core.tx),
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
            })(core.tx),
          );
          return { ino, owner, records: rows.find(p => p.sid === sid && p.owner === owner)?.records ?? [] };
        });
        return out;
      });
    });
  }

  async function staleSessions(limit: number): Promise<number[]> {
    return await core.read(() => {
      const sids = core.st
        .all('SELECT sid FROM $session2 WHERE expire<? LIMIT ?', unixNow(), limit)
        .map(r => r[0] as number);
      if (core.hasTable(`${prefix}session`)) {
        for (const r of core.st.all(
          'SELECT sid FROM $session WHERE heartbeat<? LIMIT ?',
          unixNow() - OLD_SESSION_AGE,
          limit,
        )) {
          sids.push(r[0] as number);
        }
      }
      // Sessions of ours that another client cleaned leave their own rows, with usage that was never counted.
      if (ownTables()) {
        const sql = 'SELECT sid FROM @session WHERE sid NOT IN (SELECT sid FROM $session2) LIMIT ?';
        for (const r of core.st.all(sql, limit)) if (!sids.includes(r[0] as number)) sids.push(r[0] as number);
      }
      return sids.slice(0, limit);
    });
  }

  /** False: no client of ours has had a session here. */
  const ownTables = (): boolean => core.hasTable(`${ownPrefix(prefix)}op`);

  function dropOwn(sid: number): void {
    core.st.exec('DELETE FROM @op WHERE sid=?', sid);
    core.st.exec('DELETE FROM @session WHERE sid=?', sid);
  }

  async function cleanSession(sid: number): Promise<void> {
    await core.transact(function* (tx): Body<void> {
      const { st } = tx as SqliteTx;
      (tx as SqliteTx).writes++;
      for (const table of ['flock', 'plock']) {
        for (const r of st.all(`SELECT ${inoColumn('inode')} FROM $${table} WHERE sid=?`, sid))
          (tx as SqliteTx).unlocked.add(r[0] as number);
        st.exec(`DELETE FROM $${table} WHERE sid=?`, sid);
      }
      yield* dropSustained(tx, sid);
      if (ownTables()) {
        const sum: Delta[] = [];
        for (const r of st.all('SELECT acct FROM @op WHERE sid=? AND acct IS NOT NULL', sid)) {
          for (const d of decodeDeltas(r[0] as Uint8Array)) addDelta(sum, d);
        }
        core.usage.apply(sum);
        dropOwn(sid);
      }
      st.exec('DELETE FROM $session2 WHERE sid=?', sid);
      if (core.hasTable(`${prefix}session`)) st.exec('DELETE FROM $session WHERE sid=?', sid);
      yield* logChange(tx, 'CLEANSESSION', () => [sid]);
    });
  }

  return { newSession, adoptSession, heartbeat, closeSession, listSessions, staleSessions, cleanSession };
}
