/** The parts of a service put together: what is opened before a capsule is adopted ({@link prepare}), and what serves it ({@link assemble}). */
import { hostname, networkInterfaces } from 'node:os';
import type { Capsule, Context, FileSystem, Launch } from '@steadfs/fuse';
import { EIO } from '@steadfs/fuse/errno';
import { phase } from '@steadfs/fuse/phases';
import { createFileData } from '../data/create.ts';
import type { FileData } from '../data/file-data.ts';
import { type Format, versionGate } from '../format/volume.ts';
import type { EngineEvents, MetaEngine, SessionInfo } from '../meta/engine.ts';
import { openEngine } from '../meta/registry.ts';
import { createFollowingStore, type FollowingStore } from '../object/following.ts';
import type { Log } from '../observe/log.ts';
import { meteredStore } from '../observe/metered-store.ts';
import { addProcessGauges, Metrics } from '../observe/metrics.ts';
import { createTroubles, type Since, type Trouble, type Troubles } from '../observe/troubles.ts';
import { CLIENT_VERSION } from '../version.ts';
import { Counters } from '../vfs/counters.ts';
import { type OwnSession, openSession } from '../vfs/session.ts';
import { createUpkeep, type Upkeep } from '../vfs/upkeep.ts';
import { createVfs, type Vfs } from '../vfs/vfs.ts';
import { Failure, messageOf } from './failure.ts';
import { withoutSecrets } from './mask.ts';
import type { ServiceOptions } from './mount-flags.ts';
import { openVolumeStore } from './volume.ts';

export interface Warm {
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

export interface Assembled {
  vfs: Vfs;
  upkeep: Upkeep;
  metrics: Metrics;
  fileSystem: FileSystem;
  own: OwnSession;
}

/** Data path, file system and upkeep over an opened volume and an adopted capsule. */
export async function assemble(warm: Warm, capsule: Capsule, mountPoint: string, log: Log): Promise<Assembled> {
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
        const end = async (): Promise<void> => {
          await upkeep.stop();
          await all.destroy?.();
        };
        if (!(await whileAnswered(end(), warm.troubles, () => data.stats().dirty === 0)))
          log.error(`the database does not answer: session ${own.identity.sid} is left to expire`);
      },
    },
  };
}

/** The end of a mount waits for a database that does not answer for this long, ms. */
const END_MS = 10_000;

/** Waits for `work`. False when it is given up: the database has not answered for {@link END_MS}, and `may` allows it. */
async function whileAnswered(work: Promise<void>, troubles: Troubles, may: () => boolean): Promise<boolean> {
  const start = Date.now();
  let timer: NodeJS.Timeout | undefined;
  const given = new Promise<boolean>(giveUp => {
    timer = setInterval(() => {
      const since = troubles.list.find(t => t.what === 'database')?.since ?? Number.POSITIVE_INFINITY;
      if (Date.now() - Math.max(since, start) > END_MS && may()) giveUp(false);
    }, 500);
  });
  try {
    return await Promise.race([work.then(() => true), given]);
  } finally {
    clearInterval(timer);
  }
}

/** Opens the database and the store, and looks whether they are still the volume that was mounted. Changes nothing. */
export async function prepare(
  options: ServiceOptions,
  log: Log,
  { mountPoint, created }: Pick<Launch, 'mountPoint' | 'created'>,
  before: readonly Since[] = [],
): Promise<Warm> {
  const events: EngineEvents = {
    sessionLost: reason => log.error(reason),
    formatChanged() {},
    volumeLost: reason => log.error(reason),
    changed() {},
    trouble: message => troubles.set('database', message && withoutSecrets(message, options.metaUrl)),
  };
  const show: Warm['show'] = { troubles() {} };
  const troubles = createTroubles(log, list => show.troubles(list), before);
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
  try {
    const { format, store } = await volumeOf(engine, options, log);
    return { options, engine, store, format, events, troubles, show, info: sessionInfo(mountPoint, created) };
  } catch (error) {
    // It may be tried again in this process.
    void engine.close().catch((e: unknown) => log.debug(`closing the database: ${messageOf(e)}`));
    throw error;
  }
}

/** Settings and store of the volume that was mounted; throws when it is not that one any more, or needs a newer client. */
async function volumeOf(
  engine: MetaEngine,
  options: ServiceOptions,
  log: Log,
): Promise<{ format: Format; store: FollowingStore }> {
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
  return { format, store };
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
