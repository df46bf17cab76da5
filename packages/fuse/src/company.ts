/**
 * Company for callers while no service can serve them: the database that a restarted service needs does not answer. Requests are read into the capsule as always, and none
 * is carried out; but a caller that is being killed is let go (the kernel keeps it until its request is answered, also in the close(2)s of its end), and one whose time is
 * up gets EIO. The service that comes at last finds all others in the slots and in the parked table, as after a death.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { OpenCapsule } from './capsule.ts';
import { EINTR, EIO, type Errno } from './errno.ts';
import type { Ended } from './launch.ts';
import { LOOK_MS } from './request.ts';
import type { Meanwhile } from './service-types.ts';
import { type Log, serve } from './session.ts';
import type { Context, FileSystem } from './types.ts';

export interface Company {
  /** Before the capsule is opened for a service. */
  end(): void;
}

/** `capsule`: opened for this alone, since what is claimed in its arena is not known to the service that comes. The connection must have been initialised. */
export async function keepCompany(
  fd: number,
  capsule: OpenCapsule,
  { claim, forget, limit }: Meanwhile,
  before: Ended | undefined,
  log: Log,
): Promise<Company> {
  const never = (): Promise<never> => new Promise(() => {});
  const own: FileSystem & Record<string, unknown> = {
    lookup: never,
    getattr: never,
    init() {},
    destroy() {},
    readDone() {},
    forget,
    // The session does not end a WRITE in the place of its call.
    async write({ interrupt }) {
      await interrupt.promise;
      while (!interrupt.expired && !interrupt.callerIsDying()) await sleep(LOOK_MS);
      throw endOf(interrupt);
    },
  };
  claim();
  const session = serve({
    fd,
    capsule,
    fileSystem: new Proxy(own, { get: (target, name) => target[name as string] ?? never }),
    before,
    log,
    company: true,
  });
  await session.start();
  session.limit(limit);
  return { end: () => session.leave() };
}

function endOf({ expired }: Context['interrupt']): Errno {
  return expired ? EIO.because('the request has waited too long') : EINTR;
}
