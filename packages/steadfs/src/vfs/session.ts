/** The mount's session in the database, which outlives its processes: opened once, taken over by each of them. */
import type { Capsule } from '@steadfs/fuse';
import type { MetaEngine, SessionIdentity, SessionInfo } from '../meta/engine.ts';

export const SESSION_BLOB = 'vfs.session';

/**
 * Registers the session of a fresh mount, or takes over the one that the capsule names (its epoch is raised before anything else can happen, so that
 * a process before this one that is still alive somewhere can change nothing any more). Rejects with ESTALE when it is gone.
 */
export async function openSession(engine: MetaEngine, capsule: Capsule, info: SessionInfo): Promise<SessionIdentity> {
  const blob = capsule.blob(SESSION_BLOB, 1024);
  const stored = blob.get();
  const identity =
    stored === undefined
      ? await engine.newSession(info)
      : await engine.adoptSession(JSON.parse(Buffer.from(stored).toString()) as SessionIdentity, info);
  blob.set(Buffer.from(JSON.stringify(identity)));
  return identity;
}
