/** Sessions: ours, and those of clients that are gone. */
import { randomBytes } from 'node:crypto';
import { ESTALE } from '@steadfs/fuse/errno';
import { type Ino, inoFromBigint } from '../../format/ino.ts';
import { decodeLocks } from '../../format/locks.ts';
import { decryptSecrets, type Format, MAX_META_VERSION, parseFormat } from '../../format/volume.ts';
import { unixNow } from '../clock.ts';
import type { MetaEngine, Op, SessionDetail, SessionIdentity } from '../engine.ts';
import { parseSessionInfo, serialiseSessionInfo } from '../session-info.ts';
import type { Core } from './core.ts';
import { asBuffer, asList, asNumber, ino8, u32 } from './forms.ts';
import type { Locks } from './locks.ts';
import type { Reply } from './resp.ts';

/** Session expiry is written this far ahead, seconds (a restart of the service must fit in). */
const SESSION_TTL = 600;

export function sessions(core: Core, locks: Locks) {
  const { S, ask, cache, iKey, key, link, logStamp, mutate, need, prefix, run, sessionLost, state, options } = core;
  const { lockRows } = locks;

  const ttl = (): number => Math.max(SESSION_TTL, options.heartbeat * 5);

  function setSession(identity: SessionIdentity, info: Buffer): void {
    const head = Buffer.concat([Buffer.from(identity.incarnation, 'hex'), u32(identity.epoch)]);
    state.session = { identity, info, head };
    link.patient = true;
    state.lost = undefined;
  }

  async function cleanSession(sid: number): Promise<void> {
    for (const k of asList(await ask('SMEMBERS', key(`locked${sid}`))))
      await run(S.dropLocks, [asBuffer(k)], [sid, asBuffer(k)]);
    for (;;) {
      const inos = asList(await ask('SRANDMEMBER', key(`session${sid}`), '1000'));
      if (inos.length === 0) break;
      for (const i of inos) await releaseOf(undefined, inoFromBigint(BigInt(asBuffer(i).toString())), sid);
    }
    await run(S.dropSession, [key('allSessions')], [sid, logStamp(), prefix === '' ? '1' : '']);
  }

  function releaseOf(op: Op | undefined, ino: Ino, sid: number): Promise<number | undefined> {
    return mutate(S.release, op, { keys: [iKey(ino)], args: [ino8(ino), sid], unrecorded: op === undefined }, main => {
      cache.dropAttr(ino);
      return main.length === 0 ? undefined : main.readDoubleBE(0);
    });
  }

  async function listSessions(detail: boolean): Promise<SessionDetail[]> {
    const scores = asList(await ask('ZRANGE', key('allSessions'), '0', '-1', 'WITHSCORES')).flat();
    const out: SessionDetail[] = [];
    for (let i = 0; i < scores.length; i += 2) {
      const sid = asNumber(scores[i] as Reply);
      const info = await ask('HGET', key('sessionInfos'), String(sid));
      const s: SessionDetail = {
        ...parseSessionInfo(info === null ? null : asBuffer(info)),
        sid,
        expire: asNumber(scores[i + 1] as Reply),
      };
      if (detail) {
        s.sustained = asList(await ask('SMEMBERS', key(`session${sid}`))).map(v =>
          inoFromBigint(BigInt(asBuffer(v).toString())),
        );
        s.flocks = [];
        s.plocks = [];
        for (const k of asList(await ask('SMEMBERS', key(`locked${sid}`)))) {
          const name = asBuffer(k).toString().slice(prefix.length);
          const m = /^lock([fp])(\d+)$/.exec(name);
          if (m === null) continue;
          const ino = inoFromBigint(BigInt(m[2]!));
          for (const { sid: holder, owner, value } of await lockRows(m[1] as 'f' | 'p', ino)) {
            if (holder !== sid) continue;
            if (m[1] === 'f') s.flocks.push({ ino, owner, type: value.toString() === 'W' ? 'W' : 'R' });
            else s.plocks.push({ ino, owner, records: decodeLocks(value) });
          }
        }
      }
      out.push(s);
    }
    return out;
  }

  const methods: Pick<
    MetaEngine,
    | 'newSession'
    | 'adoptSession'
    | 'heartbeat'
    | 'closeSession'
    | 'listSessions'
    | 'staleSessions'
    | 'cleanSession'
    | 'release'
    | 'claimDuty'
  > = {
    async newSession(info) {
      need();
      const incarnation = randomBytes(16);
      const text = serialiseSessionInfo(info);
      const sid = asNumber(await run(S.newSession, [key('allSessions')], [text, incarnation, ttl(), logStamp()]));
      const identity = { sid, incarnation: incarnation.toString('hex'), epoch: 1 };
      setSession(identity, text);
      return identity;
    },
    async adoptSession(identity, info) {
      need();
      const text = serialiseSessionInfo(info);
      const r = await run(
        S.adoptSession,
        [key('allSessions')],
        [identity.sid, Buffer.from(identity.incarnation, 'hex'), identity.epoch, text, ttl()],
      );
      if (typeof r !== 'number') throw ESTALE.because(`session ${identity.sid}: ${asBuffer(r).toString()}`);
      const adopted = { ...identity, epoch: r };
      setSession(adopted, text);
      return adopted;
    },
    async heartbeat() {
      if (state.session !== undefined) {
        const why = asBuffer(
          await run(
            S.heartbeat,
            [key('allSessions')],
            [state.session.identity.sid, state.session.head, ttl(), state.session.info],
          ),
        );
        if (why.length > 0) throw sessionLost(why.toString());
      }
      const r = await ask('GET', key('setting'));
      if (r === null) {
        options.events.volumeLost('the volume is not there any more');
        return;
      }
      const text = asBuffer(r).toString();
      if (text === state.settingText) return;
      const before = need();
      let changed: Format;
      try {
        changed = decryptSecrets(parseFormat(text));
      } catch (e) {
        options.events.volumeLost(e instanceof Error ? e.message : String(e));
        return;
      }
      if (changed.UUID !== before.UUID) options.events.volumeLost('another volume is in its place');
      else if ((changed.MetaVersion ?? 0) > MAX_META_VERSION)
        options.events.volumeLost('the volume has a newer layout');
      else {
        state.settingText = text;
        state.format = changed;
        options.events.formatChanged(changed);
      }
    },
    async closeSession() {
      if (state.session === undefined) return;
      const { sid } = state.session.identity;
      state.session = undefined;
      if (state.lost === undefined) await cleanSession(sid);
    },
    listSessions,
    async staleSessions(limit) {
      const t = String(unixNow());
      const out = asList(await ask('ZRANGEBYSCORE', key('allSessions'), '-inf', t, 'LIMIT', '0', String(limit))).map(
        asNumber,
      );
      if (prefix === '' && out.length < limit) {
        const legacy = await ask(
          'ZRANGEBYSCORE',
          'sessions',
          '-inf',
          String(unixNow() - 300),
          'LIMIT',
          '0',
          String(limit),
        );
        out.push(...asList(legacy).map(asNumber));
      }
      return out.filter(sid => sid !== state.session?.identity.sid);
    },
    cleanSession,
    release: (op, ino) => releaseOf(op, ino, state.session?.identity.sid ?? 0),
    async claimDuty(name, period) {
      return (
        asNumber(await run(S.claimDuty, [key(name)], [name, period, logStamp(), state.session?.identity.sid ?? 0])) ===
        1
      );
    },
  };
  return { methods };
}
