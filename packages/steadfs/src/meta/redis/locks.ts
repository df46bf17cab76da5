/** flock and POSIX locks, and waiting for them. */
import { EAGAIN, EINVAL } from '@steadfs/fuse/errno';
import { type Ino, inoToString } from '../../format/ino.ts';
import { decodeLocks, encodeLocks, findConflict, LockType } from '../../format/locks.ts';
import type { MetaEngine, PosixLock } from '../engine.ts';
import type { Core } from './core.ts';
import { asBuffer, asList } from './forms.ts';

export type Locks = ReturnType<typeof locks>;

export function locks(core: Core) {
  const { S, ask, key, link, lockChanged, lockWaits, mutate, state } = core;

  const ownerHex = (owner: bigint): string => BigInt.asUintN(64, owner).toString(16).toUpperCase().padStart(16, '0');

  async function lockRows(kind: 'f' | 'p', ino: Ino): Promise<{ sid: number; owner: bigint; value: Buffer }[]> {
    const flat = asList(await ask('HGETALL', key(`lock${kind}${inoToString(ino)}`)));
    const out: { sid: number; owner: bigint; value: Buffer }[] = [];
    for (let i = 0; i < flat.length; i += 2) {
      const m = /^(\d+)_([0-9A-Fa-f]{1,16})$/.exec(asBuffer(flat[i]).toString());
      if (m !== null) out.push({ sid: Number(m[1]), owner: BigInt(`0x${m[2]}`), value: asBuffer(flat[i + 1]) });
    }
    return out;
  }

  async function conflicts(
    ino: Ino,
    owner: bigint,
    lock: PosixLock,
  ): Promise<{ sid: number; owner: bigint; record: PosixLock }[]> {
    const sid = state.session?.identity.sid ?? 0;
    const out: { sid: number; owner: bigint; record: PosixLock }[] = [];
    for (const row of await lockRows('p', ino)) {
      if (row.sid === sid && row.owner === BigInt.asUintN(64, owner)) continue;
      const record = findConflict(decodeLocks(row.value), lock);
      if (record !== undefined) out.push({ sid: row.sid, owner: row.owner, record });
    }
    return out;
  }

  /** A refused lock is remembered, so that a change between the refusal and the wait is not missed. */
  async function lockCall(ino: Ino, go: () => Promise<void>, releases: boolean): Promise<void> {
    try {
      await go();
      if (releases) lockChanged(ino);
    } catch (e) {
      if (e === EAGAIN && !lockWaits.has(ino)) lockWaits.set(ino, { changed: false, wake: new Set() });
      throw e;
    }
  }

  const methods: Pick<MetaEngine, 'flock' | 'getlk' | 'setlk' | 'lockHolders' | 'waitForUnlock'> = {
    flock(op, ino, owner, type) {
      const d = inoToString(ino);
      const args = [d, ownerHex(owner), type, BigInt.asUintN(64, owner).toString()];
      return lockCall(
        ino,
        () => mutate(S.flock, op, { keys: [key(`lockf${d}`)], args }, () => undefined),
        type !== 'W',
      );
    },
    async getlk(ino, owner, lock) {
      const [first] = await conflicts(ino, owner, lock);
      if (first === undefined) return { ...lock, type: LockType.unlock, pid: 0 };
      return { ...first.record, pid: first.sid === (state.session?.identity.sid ?? 0) ? first.record.pid : 0 };
    },
    async setlk(op, ino, owner, lock) {
      if (lock.end < lock.start || lock.type < 0 || lock.type > 2) throw EINVAL;
      const d = inoToString(ino);
      const args = [d, ownerHex(owner), encodeLocks([lock]), BigInt.asUintN(64, owner).toString()];
      await lockCall(
        ino,
        () => mutate(S.setlk, op, { keys: [key(`lockp${d}`)], args }, () => undefined),
        lock.type !== LockType.write,
      );
    },
    async lockHolders(ino, owner, lock) {
      return (await conflicts(ino, owner, lock)).map(({ sid, owner: o }) => ({ sid, owner: o }));
    },
    async waitForUnlock(ino, timeoutMs) {
      const w = lockWaits.get(ino);
      if (w === undefined) return;
      if (!w.changed) {
        // Without pushes this is a poll.
        const ms = link.tracking ? timeoutMs : Math.min(timeoutMs, 10);
        await new Promise<void>(resolve => {
          const wake = (): void => {
            clearTimeout(timer);
            resolve();
          };
          const timer = setTimeout(() => {
            w.wake.delete(wake);
            resolve();
          }, ms);
          w.wake.add(wake);
        });
      }
      if (w.wake.size === 0 && lockWaits.get(ino) === w) lockWaits.delete(ino);
    },
  };
  return { methods, lockRows };
}
