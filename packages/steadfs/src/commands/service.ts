/**
 * The process that serves a mount; started by the keeper or by systemd, never by users. Everything it needs to know is in the capsule's
 * launch record. A fresh mount, a restart after a crash and an upgrade are the same act: engine and store are opened (an old service may still
 * serve meanwhile), then the capsule is adopted, then requests are answered.
 */
import { hostname } from 'node:os';
import { INIT } from '@steadfs/fuse/abi';
import { faultPoint } from '@steadfs/fuse/fault';
import { endWhenHung } from '@steadfs/fuse/hang';
import { DEFAULT_FLAGS, DUTY_FLAGS } from '@steadfs/fuse/init';
import { unmountDevice } from '@steadfs/fuse/mount';
import { phase } from '@steadfs/fuse/phases';
import { runService } from '@steadfs/fuse/service';
import { type Session, serve } from '@steadfs/fuse/session';
import { leave } from '@steadfs/fuse/sys';
import { claimExtents, DATA_SECTIONS, hasExtents } from '../data/journal.ts';
import type { Format } from '../format/volume.ts';
import { type LogHandle, startLog } from '../observe/log.ts';
import type { Metrics } from '../observe/metrics.ts';
import { releasesWhenIdle } from '../observe/resident.ts';
import { decodeTroubles, keepTroubles, SAME_MS, TROUBLES_BYTES, TROUBLES_HINT } from '../observe/troubles.ts';
import { CLIENT_VERSION, VERSION } from '../version.ts';
import { Inodes } from '../vfs/inodes.ts';
import { ownPeriod } from '../vfs/upkeep.ts';
import { VFS_SECTIONS } from '../vfs/vfs.ts';
import { assemble, prepare, type Warm } from './assembly.ts';
import { messageOf } from './failure.ts';
import type { ServiceOptions } from './mount-flags.ts';
import { rehearse } from './rehearsal.ts';

/** How often (ms) it is looked in a service's first minute whether it can be made smaller: V8 collects garbage again and again meanwhile because nothing happens. */
const LOOK_MS = 3000;
const FIRST_MS = 60_000;
/** Connections to store and database have this long to be closed, ms. */
const CLOSE_MS = 5000;
/** The log's library is loaded this long after the first line: behind the first answers, and before the start-up's memory is given back. */
const START_UP_MS = 1000;

/** `service MOUNTPOINT`. With `--warm` it rehearses and ends. */
export async function serveMount(argv: readonly string[]): Promise<void> {
  if (argv.includes('--warm')) return rehearse();
  phase('modules');
  // Until the launch record is read: to stderr, which the keeper has opened.
  let log: LogHandle = startLog({ level: 'info', startUpMs: START_UP_MS });
  let session: Session | undefined;
  /** The mount has ended, or another process is about to serve it. */
  let leaving = false;
  let attempts = 0;
  await runService<Warm>({
    version: VERSION,
    sections: [...VFS_SECTIONS, ...DATA_SECTIONS],
    log: (level, message) => log[level](message),
    async prepare({ launch, why, peek }) {
      const options = launch.options as ServiceOptions;
      if (attempts++ === 0) {
        Object.assign(process.env, options.environment);
        endWhenHung(options.hangLimit ?? 0);
        log.flush();
        log = logOf(options);
        process.on('SIGHUP', () => log.reopen());
      }
      if (why === 'upgrade')
        await rehearse().catch((error: unknown) => log.debug(`nothing was rehearsed: ${messageOf(error)}`));
      return prepare(options, log, launch, decodeTroubles(peek(TROUBLES_HINT)));
    },
    meanwhile(capsule, { options }) {
      const inodes = new Inodes(capsule);
      return {
        claim: () => claimExtents(capsule),
        dirty: () => hasExtents(capsule),
        forget: nodeid => inodes.forget(nodeid),
        limit: (options as ServiceOptions).waitTimeoutMs || undefined,
      };
    },
    async serve(start, warm) {
      const { capsule, launch } = start;
      const parts = await assemble(warm, capsule, launch.mountPoint, log);
      const { vfs, upkeep, metrics, fileSystem, own } = parts;
      const { options, engine, store, format, events } = warm;
      const unmountFor = (reason: string) => {
        log.error(`${reason}: unmounting ${launch.mountPoint}`);
        unmountDevice(launch, { lazy: true }).catch((error: unknown) =>
          log.error(`unmounting failed: ${messageOf(error)}`),
        );
      };
      const limit = options.waitTimeoutMs || undefined;
      const kept = capsule.hint(TROUBLES_HINT, TROUBLES_BYTES);
      warm.show.troubles = list => {
        start.troubled(list);
        if (list.length > 0 || performance.now() > SAME_MS) keepTroubles(kept, list);
        session?.limit(list.length > 0 ? limit : undefined);
      };
      warm.show.troubles(warm.troubles.list);
      setTimeout(() => keepTroubles(kept, warm.troubles.list), SAME_MS + 1).unref();
      events.volumeLost = unmountFor;
      events.sessionLost = reason => {
        log.error(`the session is lost: ${reason}. What is written now fails`);
        // Who took it over serves; it is not to be taken back.
        if (/taken over/.test(reason)) return;
        engine.heartbeat().then(
          () => log.warn('the session had expired, and nobody has cleaned it up: it goes on'),
          () => {
            log.error('starting anew, with a new session');
            log.flush();
            leave(1);
          },
        );
      };
      events.changed = vfs.events.changed;
      events.formatChanged = changed => {
        for (const name of Object.keys(format) as (keyof Format)[]) if (!(name in changed)) delete format[name];
        Object.assign(format, changed);
        void store.follow(changed);
        vfs.events.formatChanged(format);
        log.info('the settings of the volume changed');
      };

      faultPoint('adopt.assembled');
      phase('file system');
      const carried = await vfs.start();
      phase('handles and data');
      faultPoint('adopt.started');
      session = serve({
        fd: start.fd,
        capsule,
        fileSystem,
        before: start.before,
        init: {
          maxWrite: options.maxFuseIo,
          flags:
            DEFAULT_FLAGS |
            DUTY_FLAGS |
            (format.EnableACL ? INIT.POSIX_ACL : 0n) |
            (options.asyncDio ? INIT.ASYNC_DIO : 0n),
        },
        log: (level, message, cause) => (cause ? log[level]({ err: cause }, message) : log[level](message)),
      });
      await session.start();
      phase('requests');
      own.settled();
      const { answered, repeated, parked } = session.stats.adopted;
      start.serving({
        ...carried,
        'stored replies': answered,
        'repeated requests': repeated,
        'waiting requests': parked,
      });
      if (!session.locked) log.debug('the request memory could not be locked (RLIMIT_MEMLOCK)');

      upkeep.start();
      await startMetrics(options, metrics, launch.mountPoint, format.Name, log);
      const { device } = session.stats;
      const small = (work: () => Promise<void>) => (): void => {
        work().catch((error: unknown) => log.debug(`memory of the start-up was not given back: ${messageOf(error)}`));
      };
      const release = small(releasesWhenIdle(() => device.read));
      const first = setInterval(release, LOOK_MS).unref();
      setTimeout(() => clearInterval(first), FIRST_MS).unref();
      setInterval(release, ownPeriod(options.mount.heartbeat)).unref();
      const { warmUpWhenQuiet } = await import('./warm-up.ts');
      void session.done.then(() => {
        leaving = true;
      });
      void warmUpWhenQuiet({
        options,
        format,
        log,
        requests: () => (leaving ? Number.POSITIVE_INFINITY : device.read),
      });
      await session.done;
      // What these still wait for goes with the process.
      const closed = store.close().then(() => engine.close());
      await Promise.race([closed, new Promise(go => setTimeout(go, CLOSE_MS))]);
    },
    yielding() {
      leaving = true;
      session?.stopReading();
    },
    resume() {
      leaving = false;
      session?.resumeReading();
    },
  });
}

/** A mount does without its log rather than not at all: a service that is started after a crash must not need the log's folder. */
function logOf({ logLevel, logFile }: ServiceOptions): LogHandle {
  const settings = { level: logLevel, startUpMs: START_UP_MS };
  try {
    return startLog({ ...settings, ...(logFile ? { file: logFile } : {}) });
  } catch (error) {
    const log = startLog(settings);
    log.warn(`the log cannot be opened, standard error takes its place: ${messageOf(error)}`);
    return log;
  }
}

/** A mount does without metrics rather than not at all. */
async function startMetrics(
  options: ServiceOptions,
  metrics: Metrics,
  mountPoint: string,
  volume: string,
  log: LogHandle,
): Promise<void> {
  if (options.metrics === '') return;
  try {
    const { serveMetrics } = await import('../observe/metrics-server.ts');
    const labels = { mp: mountPoint, vol_name: volume, juicefs_version: CLIENT_VERSION, instance: hostname() };
    const { address } = await serveMetrics(metrics, labels, options.metrics, options.metricsExplicit);
    log.info(`metrics at http://${address}/metrics`);
  } catch (error) {
    log.warn(`no metrics: ${messageOf(error)}`);
  }
}
