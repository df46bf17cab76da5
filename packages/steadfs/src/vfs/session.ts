/** The mount's session in the database, which outlives its processes: opened once, taken over by each of them. */
import type { Capsule } from '@steadfs/fuse';
import { Errno, ESTALE } from '@steadfs/fuse/errno';
import type { MetaEngine, SessionIdentity, SessionInfo } from '../meta/engine.ts';
import { loseLocks } from './locks.ts';

const SESSION_BLOB = 'vfs.session';

export interface OwnSession {
  identity: SessionIdentity;
  /**
   * The session before this one was cleaned up by another client (this mount was away, or frozen, for longer than a session lives). 'now': what was under way then has not
   * been dealt with: nobody can tell which requests took effect, and data written under locks must not be stored. 'before': only descriptors that are still open remind of it.
   */
  lost: 'now' | 'before' | undefined;
  /** 'now' becomes 'before'. */
  settled(): void;
}

type Stored = SessionIdentity & { lost?: 'now' | 'before' };

/**
 * Registers the session of a fresh mount, or takes over the one that the capsule names (its epoch is raised before anything else can happen, so that
 * a process before this one that is still alive somewhere can change nothing any more). One that is gone is replaced by a new one, and its locks are marked as lost.
 */
export async function openSession(
  engine: MetaEngine,
  capsule: Capsule,
  info: SessionInfo,
  log: (message: string) => void,
): Promise<OwnSession> {
  const blob = capsule.blob(SESSION_BLOB, 1024);
  const bytes = blob.get();
  const before = bytes && (JSON.parse(Buffer.from(bytes).toString()) as Stored);
  let { lost } = before ?? {};
  let identity: SessionIdentity;
  try {
    // 0: the mount was read-only until now.
    identity = before && before.sid !== 0 ? await engine.adoptSession(before, info) : await engine.newSession(info);
  } catch (error) {
    if (!(error instanceof Errno && error.errno === ESTALE.errno)) throw error;
    // Before the new session is noted: a process that dies between comes by here again.
    const owners = loseLocks(capsule);
    log(
      `the session is gone (${error.message}): ${owners} lock owners lose their locks, removed open files are lost, changes under way fail with EIO`,
    );
    identity = await engine.newSession(info);
    lost = 'now';
  }
  const store = (): void => {
    const { sid, incarnation, epoch } = identity;
    blob.set(Buffer.from(JSON.stringify({ sid, incarnation, epoch, ...(lost && { lost }) } satisfies Stored)));
  };
  store();
  return {
    identity,
    lost,
    settled() {
      if (lost !== 'now') return;
      lost = 'before';
      store();
    },
  };
}
