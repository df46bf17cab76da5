/** Sessions on PostgreSQL and MySQL: ours, and those of clients that are gone. */
import { randomBytes } from 'node:crypto';
import { ESTALE } from '@steadfs/fuse/errno';
import { decodeLocks } from '../../format/locks.ts';
import { unixNow } from '../clock.ts';
import type { SessionDetail, SessionIdentity, SessionInfo } from '../engine.ts';
import { logChange } from '../ops/changelog.ts';
import { dropSustained } from '../ops/sessions.ts';
import { runAsync } from '../ops/tx.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import type { SqlRow } from './connection.ts';
import { type NetworkCore, step } from './network-core.ts';
import { toBytes, toIno, toNumber } from './network-tx.ts';
import type { NetworkUsage } from './network-usage.ts';
import type { volumeRecord } from './network-volume.ts';

/** A session counts as alive for this long after its last heartbeat, seconds. */
const EXPIRE_AHEAD = 600;

export function sessions(core: NetworkCore, usage: NetworkUsage, volumes: ReturnType<typeof volumeRecord>) {
  const { announcer, checkSession, hasTable, kind, options, own, persist, prefix, seen, state, transaction, volume } =
    core;
  const { applyUsage, flushOf, loadQuotas, records, scheduleFlush } = usage;

  function begin(id: SessionIdentity): SessionIdentity {
    state.identity = id;
    volume.sid = id.sid;
    state.lost = undefined;
    records.clear();
    seen.clear();
    announcer.begin();
    return id;
  }

  const pushes = kind === 'postgres';

  async function newSession(info: SessionInfo): Promise<SessionIdentity> {
    if (options.readOnly) return { sid: 0, incarnation: '', epoch: 0 };
    await volumes.createTables();
    const incarnation = randomBytes(16).toString('hex');
    const sid = await transaction(async (tx, c) => {
      let id: number;
      do id = await runAsync(step(tx.addCounter('nextSession', 1)));
      while ((await c.all(`SELECT 1 FROM ${prefix}session2 WHERE sid = ?`, [id])).length > 0);
      // Rows of an older session with this number (the counter came back by a restore) must not be taken for ours.
      for (const table of ['op', 'session']) await c.run(`DELETE FROM ${own}${table} WHERE sid = ?`, [id]);
      const expire = tx.now.sec + EXPIRE_AHEAD;
      await c.run(`INSERT INTO ${prefix}session2 (sid, expire, info) VALUES (?, ?, ?)`, [
        id,
        expire,
        serialiseSessionInfo({ ...info, pushes }),
      ]);
      await c.run(`INSERT INTO ${own}session (sid, incarnation, volume, epoch) VALUES (?, ?, ?, 1)`, [
        id,
        incarnation,
        volume.format.UUID,
      ]);
      if (volume.format.ChangeLog)
        await runAsync(logChange(tx, 'NEWSESSION', () => [id, expire, serialiseSessionInfo({ ...info, pushes })]));
      return id;
    });
    await loadQuotas();
    return begin({ sid, incarnation, epoch: 1 });
  }

  async function adoptSession(old: SessionIdentity, info: SessionInfo): Promise<SessionIdentity> {
    if (options.readOnly || old.sid === 0) return old;
    const epoch = await transaction(async (tx, c) => {
      const rows = (await hasTable(c, `${own}session`))
        ? await c.all(`SELECT incarnation, volume, epoch FROM ${own}session WHERE sid = ? FOR UPDATE`, [old.sid])
        : [];
      const row = rows[0];
      if (row === undefined) throw ESTALE.because(`session ${old.sid} has no record`);
      if (row[0] !== old.incarnation || row[1] !== volume.format.UUID)
        throw ESTALE.because(`session ${old.sid} belongs to another mount`);
      if (toNumber(row[2]) < old.epoch)
        throw ESTALE.because(`session ${old.sid} comes from an older state of the database`);
      const next = toNumber(row[2]) + 1;
      await c.run(`UPDATE ${own}session SET epoch = ? WHERE sid = ?`, [next, old.sid]);
      const changed = await c.run(`UPDATE ${prefix}session2 SET expire = ?, info = ? WHERE sid = ?`, [
        tx.now.sec + EXPIRE_AHEAD,
        serialiseSessionInfo({ ...info, pushes }),
        old.sid,
      ]);
      if (changed === 0) throw ESTALE.because(`session ${old.sid} was cleaned by another client`);
      return next;
    });
    await loadQuotas();
    const taken = begin({ ...old, epoch });
    // The process before may have died between a commit and its announcement.
    announcer.everything();
    scheduleFlush();
    return taken;
  }

  async function heartbeat(): Promise<void> {
    if (volume.sid !== 0 && !options.readOnly && state.lost === undefined) {
      await transaction(async (tx, c) => {
        await checkSession(tx, c);
        await c.run(`UPDATE ${prefix}session2 SET expire = ? WHERE sid = ?`, [tx.now.sec + EXPIRE_AHEAD, volume.sid]);
      });
    }
    await volumes.look();
    await loadQuotas();
  }

  async function cleanSession(sid: number): Promise<void> {
    await transaction(async (tx, c) => {
      for (const table of ['flock', 'plock']) await c.run(`DELETE FROM ${prefix}${table} WHERE sid = ?`, [sid]);
      await runAsync(dropSustained(tx, sid));
      await applyUsage(tx, c, tx.deltas);
      if (await hasTable(c, `${own}op`)) {
        await flushOf(sid, tx, c);
        for (const table of ['op', 'session']) await c.run(`DELETE FROM ${own}${table} WHERE sid = ?`, [sid]);
      }
      await c.run(`DELETE FROM ${prefix}session2 WHERE sid = ?`, [sid]);
    });
    if (sid !== volume.sid) announcer.everything();
  }

  async function listSessions(detail: boolean): Promise<SessionDetail[]> {
    return await persist(async c => {
      const out: SessionDetail[] = [];
      if (!(await hasTable(c, `${prefix}session2`))) return out;
      for (const row of await c.all(`SELECT sid, expire, info FROM ${prefix}session2 ORDER BY sid`, [])) {
        const session: SessionDetail = {
          ...parseSessionInfo(toBytes(row[2])),
          sid: toNumber(row[0]),
          expire: toNumber(row[1]),
        };
        out.push(session);
        if (!detail) continue;
        const of = (columns: string, table: string): Promise<SqlRow[]> =>
          c.all(`SELECT ${columns} FROM ${prefix}${table} WHERE sid = ?`, [session.sid]);
        const owner = (v: unknown): bigint => BigInt.asUintN(64, BigInt(v as bigint | number | string));
        session.sustained = (await of('inode', 'sustained')).map(r => toIno(r[0]));
        session.flocks = (await of('inode, owner, ltype', 'flock')).map(r => ({
          ino: toIno(r[0]),
          owner: owner(r[1]),
          type: toNumber(r[2]) === 87 ? 'W' : 'R',
        }));
        session.plocks = (await of('inode, owner, records', 'plock')).map(r => ({
          ino: toIno(r[0]),
          owner: owner(r[1]),
          records: decodeLocks(toBytes(r[2])),
        }));
      }
      return out;
    });
  }

  async function staleSessions(limit: number): Promise<number[]> {
    return await persist(async c => {
      const sids = (
        await c.all(`SELECT sid FROM ${prefix}session2 WHERE expire < ? LIMIT ${Math.floor(limit)}`, [unixNow()])
      ).map(r => toNumber(r[0]));
      // Sessions of ours that another client cleaned leave their own rows, with usage that was never counted.
      if (await hasTable(c, `${own}session`)) {
        const rows = await c.all(
          `SELECT sid FROM ${own}session WHERE sid NOT IN (SELECT sid FROM ${prefix}session2) LIMIT ${Math.floor(limit)}`,
          [],
        );
        for (const r of rows) if (!sids.includes(toNumber(r[0]))) sids.push(toNumber(r[0]));
      }
      return sids.slice(0, limit);
    });
  }

  async function closeSession() {
    const { sid } = volume;
    if (sid === 0) return;
    // A session that was taken over is not ours to end.
    const ours = await persist(c =>
      c.all(`SELECT 1 FROM ${own}session WHERE sid = ? AND incarnation = ? AND epoch = ?`, [
        sid,
        state.identity?.incarnation ?? '',
        state.identity?.epoch ?? 0,
      ]),
    );
    if (ours.length > 0) await cleanSession(sid);
    volume.sid = 0;
    state.identity = undefined;
  }

  return { newSession, adoptSession, heartbeat, closeSession, cleanSession, listSessions, staleSessions };
}
