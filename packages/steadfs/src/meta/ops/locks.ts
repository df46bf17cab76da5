/** flock and fcntl locks (spec/volume.md §8). */
import { EAGAIN, EINVAL, ENOENT } from '@steadfs/fuse/errno';
import type { Ino } from '../../format/ino.ts';
import { findConflict, LockType, updateLocks } from '../../format/locks.ts';
import type { PosixLock } from '../engine.ts';
import { inoArg, logChange } from './changelog.ts';
import type { Body, PlockRow, Tx } from './tx.ts';

export function* flock(tx: Tx, ino: Ino, owner: bigint, type: 'R' | 'W' | 'U'): Body<void> {
  if (type !== 'U' && (yield* tx.nodeForUpdate(ino)) === undefined) throw ENOENT;
  if (type === 'U') yield* tx.deleteFlock(ino, owner);
  else {
    for (const row of yield* tx.flocks(ino)) {
      const own = row.sid === tx.volume.sid && row.owner === owner;
      if (!own && (type === 'W' || row.type === 'W')) throw EAGAIN;
    }
    yield* tx.setFlock(ino, owner, type);
  }
  yield* logChange(tx, 'FLOCK', () => [inoArg(ino), owner, type]);
}

/** Rows of owners that hold a lock in conflict with this one. */
function* conflicts(tx: Tx, ino: Ino, owner: bigint, lock: PosixLock): Body<{ row: PlockRow; record: PosixLock }[]> {
  const out: { row: PlockRow; record: PosixLock }[] = [];
  for (const row of yield* tx.plocks(ino)) {
    if (row.sid === tx.volume.sid && row.owner === owner) continue;
    const record = findConflict(row.records, lock);
    if (record !== undefined) out.push({ row, record });
  }
  return out;
}

export function* getlk(tx: Tx, ino: Ino, owner: bigint, lock: PosixLock): Body<PosixLock> {
  const [first] = yield* conflicts(tx, ino, owner, lock);
  if (first === undefined) return { ...lock, type: LockType.unlock, pid: 0 };
  return { ...first.record, pid: first.row.sid === tx.volume.sid ? first.record.pid : 0 };
}

export function* lockHolders(tx: Tx, ino: Ino, owner: bigint, lock: PosixLock): Body<{ sid: number; owner: bigint }[]> {
  return (yield* conflicts(tx, ino, owner, lock)).map(c => ({ sid: c.row.sid, owner: c.row.owner }));
}

export function* setlk(tx: Tx, ino: Ino, owner: bigint, lock: PosixLock): Body<void> {
  if (lock.end < lock.start || lock.type < 0 || lock.type > 2) throw EINVAL;
  if (lock.type !== LockType.unlock) {
    if ((yield* tx.nodeForUpdate(ino)) === undefined) throw ENOENT;
    if ((yield* conflicts(tx, ino, owner, lock)).length > 0) throw EAGAIN;
  }
  const rows = yield* tx.plocks(ino);
  const own = rows.find(r => r.sid === tx.volume.sid && r.owner === owner);
  if (own === undefined && lock.type === LockType.unlock) return;
  yield* tx.setPlock(ino, owner, updateLocks(own?.records ?? [], lock));
  yield* logChange(tx, 'SETLK', () => [inoArg(ino), owner, 'RWU'[lock.type]!, lock.start, lock.end, lock.pid]);
}
