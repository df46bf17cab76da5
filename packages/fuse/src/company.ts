/**
 * Company for callers while no service can serve them: the database that a restarted service needs does not answer. Requests are read into the capsule as always, and none
 * is carried out; but a caller that is being killed is let go (the kernel keeps it until its request is answered, also in the close(2)s of its end), and one whose time is
 * up gets EIO. The service that comes at last finds all others in the slots and in the parked table, as after a death.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type OpenCapsule, openCapsule, peekBlob } from './capsule.ts';
import { EINTR, EIO, type Errno } from './errno.ts';
import { INIT_BLOB } from './init.ts';
import { type Ended, ended, FD_ARENA, FD_CAPSULE, FD_FUSE, FD_STATE, waitingSince, writeState } from './launch.ts';
import { LOOK_MS } from './request.ts';
import type { Launch, Meanwhile, ServiceSettings } from './service-types.ts';
import { type Log, serve } from './session.ts';
import type { Notifications } from './systemd.ts';
import type { Context, FileSystem } from './types.ts';

interface Company {
  /** Before the capsule is opened for a service. */
  end(): void;
}

/** `capsule`: opened for this alone, since what is claimed in its arena is not known to the service that comes. The connection must have been initialised. */
async function keepCompany(
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

/** A service that is not ready after this long keeps its callers company, ms. */
const COMPANY_MS = 1000;
/** Between two attempts to get ready, ms; the last one for all others. */
const PAUSES = [100, 200, 500, 1000, 2000, 5000];

/** What `prepare` answers at last. Without `meanwhile`, and when the mount has ended with all data stored, a failure is the end. */
export async function patiently<Warm>(
  prepare: () => Promise<Warm>,
  meanwhile: ServiceSettings<Warm>['meanwhile'],
  launch: Launch,
  predecessor: Ended | undefined,
  log: Log,
  notify: Notifications | undefined,
): Promise<Warm> {
  const since = JSON.stringify({ since: waitingSince() });
  let capsule: OpenCapsule | undefined;
  let known: Meanwhile | undefined;
  const look = (): [OpenCapsule, Meanwhile] => {
    const fds = { capsule: FD_CAPSULE, arena: FD_ARENA };
    capsule ??= openCapsule(fds, { arenaSize: launch.arenaSize, beforehand: true });
    known ??= meanwhile!(capsule, launch);
    return [capsule, known];
  };
  let company: Promise<Company | undefined> | undefined;
  const begin = (reason: string): void => {
    writeState(FD_STATE, `waiting: ${reason}`, since);
    notify?.status(reason);
    // Who has not answered INIT has only callers that may go.
    if (company || ended(FD_FUSE) || !peekBlob(FD_CAPSULE, INIT_BLOB)) return;
    company = keepCompany(FD_FUSE, ...look(), predecessor, log).catch((error: unknown) => {
      log('error', `callers that wait cannot be looked after: ${messageOf(error)}`);
      return undefined;
    });
  };
  const timer = meanwhile && setTimeout(begin, COMPANY_MS, 'what the service needs does not answer');
  let told = '';
  try {
    for (let attempt = 0; ; attempt++)
      try {
        return await prepare();
      } catch (error) {
        if (!meanwhile || (ended(FD_FUSE) && !look()[1].dirty())) throw error;
        const reason = messageOf(error);
        if (reason !== told) log('error', reason);
        told = reason;
        clearTimeout(timer);
        begin(reason);
        await sleep(PAUSES[Math.min(attempt, PAUSES.length - 1)]);
      }
  } finally {
    clearTimeout(timer);
    (await company)?.end();
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
