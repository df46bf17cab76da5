/**
 * The process that serves a mount; started by the keeper or by systemd, never by users. Everything it needs to know is in the capsule's
 * launch record. A fresh mount, a restart after a crash and an upgrade are the same act: engine and store are opened (an old service may still
 * serve meanwhile), then the capsule is adopted, then requests are answered.
 */
import { randomUUID } from 'node:crypto';
import { fstatSync, mkdtempSync, rmSync } from 'node:fs';
import { hostname, networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Capsule, Context, FileSystem, Launch } from '@steadfs/fuse';
import { INIT } from '@steadfs/fuse/abi';
import { EIO } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { endWhenHung } from '@steadfs/fuse/hang';
import { DEFAULT_FLAGS } from '@steadfs/fuse/init';
import { unmountDevice } from '@steadfs/fuse/mount';
import { phase } from '@steadfs/fuse/phases';
import { rehearseSession } from '@steadfs/fuse/rehearsal';
import { runService } from '@steadfs/fuse/service';
import { type Session, serve } from '@steadfs/fuse/session';
import { close, punchHole } from '@steadfs/fuse/sys';
import { createFileData } from '../data/create.ts';
import type { FileData } from '../data/file-data.ts';
import { DATA_SECTIONS } from '../data/journal.ts';
import { type Format, versionGate } from '../format/volume.ts';
import type { EngineEvents, MetaEngine, SessionInfo } from '../meta/engine.ts';
import { openEngine } from '../meta/registry.ts';
import { createFollowingStore, type FollowingStore } from '../object/following.ts';
import { type LogHandle, startLog } from '../observe/log.ts';
import { meteredStore } from '../observe/metered-store.ts';
import { addProcessGauges, Metrics } from '../observe/metrics.ts';
import { releaseCode } from '../observe/resident.ts';
import { createTroubles, type Trouble, type Troubles } from '../observe/troubles.ts';
import { CLIENT_VERSION, VERSION } from '../version.ts';
import { Counters } from '../vfs/counters.ts';
import { type OwnSession, openSession } from '../vfs/session.ts';
import { createUpkeep, type Upkeep } from '../vfs/upkeep.ts';
import { createVfs, VFS_SECTIONS, type Vfs } from '../vfs/vfs.ts';
import { Failure, messageOf } from './failure.ts';
import { withoutSecrets } from './mask.ts';
import type { ServiceOptions } from './mount-flags.ts';
import { commandEngineOptions, openVolumeStore } from './volume.ts';

/** After this long a service has touched what it needs to start. */
const SETTLED_MS = 5000;
/** The log's library is loaded this long after the first line: behind the first answers, and before the start-up's memory is given back. */
const START_UP_MS = 1000;

interface Warm {
  options: ServiceOptions;
  engine: MetaEngine;
  store: FollowingStore;
  format: Format;
  /** What the engine tells; the handlers that need the file system are put in when there is one. */
  events: EngineEvents;
  info: SessionInfo;
  troubles: Troubles;
  /** Where troubles are shown, once there is a mount to show them of. */
  show: { troubles(list: readonly Trouble[]): void };
}

interface Assembled {
  vfs: Vfs;
  upkeep: Upkeep;
  metrics: Metrics;
  fileSystem: FileSystem;
  own: OwnSession;
}

/** `service MOUNTPOINT`. With `--warm` it rehearses and ends. */
export async function serveMount(argv: readonly string[]): Promise<void> {
  if (argv.includes('--warm')) return rehearse();
  phase('modules');
  // Until the launch record is read: to stderr, which the keeper has opened.
  let log: LogHandle = startLog({ level: 'info', startUpMs: START_UP_MS });
  let session: Session | undefined;
  await runService<Warm>({
    version: VERSION,
    sections: [...VFS_SECTIONS, ...DATA_SECTIONS],
    log: (level, message) => log[level](message),
    async prepare({ launch, why }) {
      const options = launch.options as ServiceOptions;
      Object.assign(process.env, options.environment);
      endWhenHung(options.hangLimit ?? 0);
      log.flush();
      log = logOf(options);
      process.on('SIGHUP', () => log.reopen());
      if (why === 'upgrade')
        await rehearse().catch((error: unknown) => log.debug(`nothing was rehearsed: ${messageOf(error)}`));
      return prepare(options, log, launch);
    },
    async serve(start, warm) {
      const { capsule, launch } = start;
      const parts = await assemble(warm, capsule, launch.mountPoint, log);
      const { vfs, upkeep, metrics, fileSystem, own } = parts;
      const { options, engine, store, format, events } = warm;
      const leave = (reason: string) => {
        log.error(`${reason}: unmounting ${launch.mountPoint}`);
        unmountDevice(launch, { lazy: true }).catch((error: unknown) =>
          log.error(`unmounting failed: ${messageOf(error)}`),
        );
      };
      const limit = options.waitTimeoutMs || undefined;
      warm.show.troubles = list => {
        start.troubled(list);
        session?.limit(list.length > 0 ? limit : undefined);
      };
      warm.show.troubles(warm.troubles.list);
      events.volumeLost = leave;
      events.sessionLost = reason => {
        log.error(`the session is lost: ${reason}. What is written now fails`);
        // Who took it over serves; it is not to be taken back.
        if (/taken over/.test(reason)) return;
        engine.heartbeat().then(
          () => log.warn('the session had expired, and nobody has cleaned it up: it goes on'),
          () => {
            log.error('starting anew, with a new session');
            log.flush();
            process.exit(1);
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
          flags: DEFAULT_FLAGS | (format.EnableACL ? INIT.POSIX_ACL : 0n) | (options.asyncDio ? INIT.ASYNC_DIO : 0n),
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
      setTimeout(() => {
        releaseCode().catch((error: unknown) =>
          log.debug(`memory of the start-up was not given back: ${messageOf(error)}`),
        );
      }, SETTLED_MS).unref();
      await session.done;
      await store.close();
      await engine.close();
    },
    yielding: () => session?.stopReading(),
    resume: () => session?.resumeReading(),
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

/** Data path, file system and upkeep over an opened volume and an adopted capsule. */
async function assemble(warm: Warm, capsule: Capsule, mountPoint: string, log: LogHandle): Promise<Assembled> {
  const { options, engine, store, format, info } = warm;
  const metrics = new Metrics();
  addProcessGauges(metrics);
  phase('metrics');
  const own = await openSession(engine, capsule, info, message => log.error(message));
  const lost = own.lost === 'now';
  phase('session');
  const data = createFileData({
    meta: engine,
    store: meteredStore(store, metrics),
    capsule,
    format,
    readOnly: options.mount.readOnly,
    bufferSize: options.bufferSize,
    maxUploads: options.maxUploads,
    maxDownloads: options.maxDownloads,
    maxReadahead: options.maxReadahead,
    prefetch: options.prefetch,
    ioRetries: options.ioRetries,
    getTimeout: options.getTimeoutMs,
    putTimeout: options.putTimeoutMs,
    uploadLimit: bytesPerSecond(options.uploadLimit || format.UploadLimit || 0),
    downloadLimit: bytesPerSecond(options.downloadLimit || format.DownloadLimit || 0),
    maxDeletes: options.maxDeletes,
    warn: message => log.warn(message),
    trouble: warm.troubles.set,
    outcomesUnknown: lost,
  });
  addDataGauges(metrics, data);
  const counters = new Counters(capsule);
  const upkeep = createUpkeep({
    engine,
    data,
    log,
    format: () => format,
    jobOp: slot => counters.jobOp(slot),
    heartbeat: options.mount.heartbeat,
    noJobs: options.noBgjob || options.mount.readOnly,
    deleteObjects: options.maxDeletes > 0,
  });
  const vfs = await createVfs({
    engine,
    data,
    capsule,
    format,
    options: options.mount,
    session: own.identity,
    lost: own.lost,
    metrics,
    log,
    version: CLIENT_VERSION,
    mountPoint: mountPoint,
    deleted: upkeep.deleted,
  });
  const all: FileSystem = lost ? withoutReplays(vfs.fileSystem) : vfs.fileSystem;
  return {
    vfs,
    upkeep,
    metrics,
    own,
    fileSystem: {
      ...all,
      async destroy() {
        await upkeep.stop();
        await all.destroy?.();
      },
    },
  };
}

/** Opens the database and the store, and looks whether they are still the volume that was mounted. Changes nothing. */
async function prepare(
  options: ServiceOptions,
  log: LogHandle,
  { mountPoint, created }: Pick<Launch, 'mountPoint' | 'created'>,
): Promise<Warm> {
  const events: EngineEvents = {
    sessionLost: reason => log.error(reason),
    formatChanged() {},
    volumeLost: reason => log.error(reason),
    changed() {},
    trouble: message => troubles.set('database', message && withoutSecrets(message, options.metaUrl)),
  };
  const show: Warm['show'] = { troubles() {} };
  const troubles = createTroubles(log, list => show.troubles(list));
  const { mount } = options;
  let engine: MetaEngine;
  try {
    engine = await openEngine(options.metaUrl, {
      readOnly: mount.readOnly,
      skipDirMtime: options.skipDirMtimeMs,
      // Announcements take milliseconds, and a client without them is noticed within a second: nothing for those who want no caching.
      cachesByPush: mount.attrCache > 0 && mount.entryCache > 0 && mount.dirEntryCache > 0,
      heartbeat: mount.heartbeat,
      atimeMode: mount.atimeMode,
      retries: options.ioRetries,
      events,
    });
  } catch (error) {
    throw new Failure(`cannot open the database: ${withoutSecrets(messageOf(error), options.metaUrl)}`);
  }
  phase('engine');
  const format = await engine.load();
  phase('format');
  if (!format) throw new Failure(`${engine.name} holds no volume any more`);
  const gate = versionGate(format, CLIENT_VERSION);
  if (gate) throw new Failure(gate);
  if (format.UUID !== options.volume.uuid)
    throw new Failure(`${engine.name} holds another volume now (${format.Name}, ${format.UUID})`);
  if (options.bucket) format.Bucket = options.bucket;
  // A bucket of the mount's own is not the volume's.
  const shown = (f: Format): Format => (options.bucket ? { ...f, Bucket: options.bucket } : f);
  const store = await createFollowingStore({
    format,
    open: f => openVolumeStore(shown(f)),
    async reload() {
      const now = await engine.load();
      return now?.UUID === format.UUID ? now : undefined;
    },
    log: (level, message) => log[level](message),
  });
  return { options, engine, store, format, events, troubles, show, info: sessionInfo(mountPoint, created) };
}

const READING = new Set([
  'lookup',
  'getattr',
  'statx',
  'readlink',
  'read',
  'readdir',
  'statfs',
  'access',
  'getxattr',
  'listxattr',
  'getlk',
  'lseek',
  'poll',
  'opendir',
  'releasedir',
  'fsync',
  'fsyncdir',
  'flush',
  'syncfs',
  'release',
  'write',
]);

/** Answers EIO to repeated requests whose outcome is unknown. Reads, and writes (whose data is in the capsule), are carried out. */
function withoutReplays(fs: FileSystem): FileSystem {
  const out: Record<string, unknown> = { ...fs };
  for (const [name, method] of Object.entries(fs)) {
    if (typeof method !== 'function' || READING.has(name) || ['init', 'destroy', 'forget'].includes(name)) continue;
    out[name] = (ctx: Context, ...rest: unknown[]) => {
      if (ctx.replay) throw EIO.because(`${name}: the session was lost, and with it whether this request took effect`);
      return (method as (...args: unknown[]) => unknown)(ctx, ...rest);
    };
  }
  return out as unknown as FileSystem;
}

function sessionInfo(mountPoint: string, mountedMs: number): SessionInfo {
  const addresses = Object.values(networkInterfaces())
    .flatMap(list => list ?? [])
    .filter(a => !a.internal && a.family === 'IPv4')
    .map(a => a.address);
  return {
    version: CLIENT_VERSION,
    hostName: hostname(),
    ...(addresses.length > 0 ? { ipAddrs: addresses } : {}),
    mountPoint,
    mountTime: new Date(mountedMs).toISOString(),
    processId: process.pid,
  };
}

/** From Mbps. */
function bytesPerSecond(mbps: number): number {
  return (mbps * 1e6) / 8;
}

function addDataGauges(metrics: Metrics, data: FileData): void {
  metrics.gauge('used_buffer_size_bytes', 'Memory of dirty data and cached blocks', () => {
    const { dirty, cached } = data.stats();
    return dirty + cached;
  });
  metrics.gauge('store_cache_size_bytes', 'Memory of cached blocks', () => data.stats().cached);
  metrics.gauge('object_request_uploading', 'Uploads under way', () => data.stats().uploading);
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

/**
 * Does once what every start of a service does, on a volume of its own in a temporary folder, and ends: Node's compile cache then holds the functions that run
 * between the death of one service and the first answer of the next; without that a third of the pause is compiling. Before an upgrade, in the new process itself: its
 * code is loaded and warm then.
 */
async function rehearse(): Promise<void> {
  const { mountFlags, planMount } = await import('./mount-flags.ts');
  const { Flags } = await import('./command.ts');
  const { createCapsule, openCapsule } = await import('@steadfs/fuse/capsule');
  const folder = mkdtempSync(join(tmpdir(), 'steadfs-rehearsal-'));
  try {
    const metaUrl = `sqlite3://${folder}/meta.db`;
    const format: Format = {
      Name: 'rehearsal',
      UUID: randomUUID(),
      Storage: 'file',
      Tiers: null,
      Bucket: `${folder}/objects/`,
      BlockSize: 4096,
      TrashDays: 0,
      MetaVersion: 1,
      DirStats: true,
      EnableACL: false,
    };
    const flags = new Flags(mountFlags, new Map([['buffer-size', '32M']]));
    const options: ServiceOptions = {
      ...planMount(flags, 'fatal').options,
      metaUrl,
      volume: { name: format.Name, uuid: format.UUID },
    };
    const log = startLog({ level: 'fatal' });
    const maker = await openEngine(metaUrl, { ...commandEngineOptions });
    await maker.init(format, false);
    await maker.close();

    const warm = await prepare(options, log, { mountPoint: folder, created: Date.now() });
    await warm.store.create();
    const fds = createCapsule({ arenaSize: options.bufferSize });
    const capsule = openCapsule(fds);
    const { vfs, fileSystem } = await assemble(warm, capsule, folder, log);
    await vfs.start();
    await exercise(fileSystem);
    await rehearseSession(capsule, fileSystem, 'f');
    await warm.store.close();
    await warm.engine.close();
    // The mappings stay, as views of them may be alive; their memory does not.
    for (const fd of Object.values(fds) as number[]) {
      punchHole(fd, 0, fstatSync(fd).size);
      close(fd);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The requests of a small file's life; leaves a directory `f`. */
async function exercise(fs: FileSystem): Promise<void> {
  let seq = 0;
  const context = (): Context => {
    const op = { kind: 0, slot: 0, seq: ++seq };
    return {
      unique: BigInt(seq),
      opcode: 0,
      uid: 0,
      gid: 0,
      pid: process.pid,
      op,
      replay: false,
      interrupt: { fired: false, promise: new Promise(() => {}), callerIsDying: () => false },
      park() {},
      unpark: async () => op,
    };
  };
  const bytes = Buffer.alloc(4096);
  const name = Buffer.from('f');
  const file = await fs.create!(context(), 1, name, 0o644, 0o022, 0o102, false);
  const { nodeid, fh } = file;
  await fs.write!(context(), nodeid, {
    fh,
    offset: 0,
    flags: 2,
    fromCache: false,
    killSuidgid: false,
    data: { bytes, take: () => undefined },
  });
  await fs.flush!(context(), nodeid, fh, 0n);
  await fs.read!(context(), nodeid, { fh, offset: 0, size: 4096, flags: 2 });
  await fs.getattr(context(), nodeid, fh);
  await fs.lookup(context(), 1, name);
  await fs.release!(context(), nodeid, fh, 2, 0n, false);
  const dir = await fs.opendir!(context(), 1, 0);
  await fs.readdir!(context(), 1, dir.fh, 0, { plus: true, add: () => true });
  await fs.releasedir!(context(), 1, dir.fh);
  await fs.unlink!(context(), 1, name);
  await fs.mkdir!(context(), 1, name, 0o755, 0o022);
}
