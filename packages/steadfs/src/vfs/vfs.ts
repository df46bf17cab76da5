/**
 * The file system: POSIX over a MetaEngine and a FileData, as @steadfs/fuse wants it. What a program could miss after a restart is in the capsule:
 *
 *     vfs.counters     numbers that never come twice (counters.ts)
 *     vfs.handles      open files and directories (handles.ts)
 *     vfs.items        what directory streams and control files remember (items.ts)
 *     vfs.removed      last attributes of inodes that are gone and still held (inodes.ts)
 *     vfs.lockowners   who may hold locks through which handle (locks.ts)
 *     vfs.jobs         work of `.control` that is under way (control.ts)
 *     vfs.session      the session in the database (session.ts)
 *     vfs.troubles     what keeps requests waiting, and since when (observe/troubles.ts)
 */
import type { Capsule, Connection, FileSystem, Notifier } from '@steadfs/fuse';
import { ENOENT, ENOTDIR } from '@steadfs/fuse/errno';
import type { FileData } from '../data/file-data.ts';
import { FileType } from '../format/attr.ts';
import { CONTROL_INO, type Ino, ROOT } from '../format/ino.ts';
import { type Format, removeSecrets } from '../format/volume.ts';
import type { EngineEvents, MetaEngine, SessionIdentity } from '../meta/engine.ts';
import type { Log } from '../observe/log.ts';
import type { Metrics } from '../observe/metrics.ts';
import { AccessLog } from './accesslog.ts';
import { ControlFiles } from './control.ts';
import { Core, writes } from './core.ts';
import { Counters } from './counters.ts';
import { credOf } from './cred.ts';
import { dirMethods } from './dirs.ts';
import { HandleKind, Handles } from './handles.ts';
import { Inodes } from './inodes.ts';
import { instrument } from './instrument.ts';
import { internals } from './internal.ts';
import { ioMethods } from './io.ts';
import { Items } from './items.ts';
import { Locks } from './locks.ts';
import type { MountOptions } from './mount-options.ts';
import { nameMethods } from './names.ts';
import { runJobs } from './treeops.ts';
import { ownPeriod } from './upkeep.ts';
import { xattrMethods } from './xattrs.ts';

/** Sections of ours, with the newest layout that is read: a capsule with others is refused. */
export const VFS_SECTIONS: readonly { name: string; version: number }[] = [
  { name: 'vfs.counters', version: 1 },
  { name: 'vfs.handles', version: 1 },
  { name: 'vfs.items', version: 1 },
  { name: 'vfs.removed', version: 1 },
  { name: 'vfs.lockowners', version: 1 },
  { name: 'vfs.jobs', version: 1 },
  { name: 'vfs.session', version: 1 },
  { name: 'vfs.troubles', version: 1 },
];

export interface VfsParts {
  engine: MetaEngine;
  data: FileData;
  capsule: Capsule;
  format: Format;
  options: MountOptions;
  session: SessionIdentity;
  /** See session.ts. */
  lost?: 'now' | 'before' | undefined;
  metrics: Metrics;
  log: Log;
  /** For `.config`. */
  version: string;
  mountPoint: string;
  /** Data of a removed file can be deleted now (its delfile row is there). */
  deleted?(ino: Ino, length: number): void;
}

export interface Vfs {
  /** For Session. Its `destroy` flushes everything and closes the session. */
  readonly fileSystem: FileSystem;
  /**
   * Before the first request, the session being ours: carries over what a process before left (dirty data, handles, locks, jobs).
   * Answers counts for `status`.
   */
  start(): Promise<Record<string, number>>;
  /** What the engine tells goes here. */
  readonly events: Pick<EngineEvents, 'changed' | 'formatChanged'>;
  /** Options that changed on a live mount. */
  reconfigure(options: MountOptions): void;
}

/** Resolves --subdir, making what is missing of it. Rejects with ENOTDIR, or ENOENT on a read-only mount. */
async function resolveRoot(engine: MetaEngine, options: MountOptions, counters: Counters): Promise<Ino> {
  let at: Ino = ROOT;
  const cred = credOf(options, options.uid, options.gid, 0);
  for (const part of options.subdir.split('/').filter(p => p !== '' && p !== '.')) {
    const name = Buffer.from(part);
    let found: Ino;
    try {
      const e = await engine.lookup(cred, at, name);
      if (e.attr.type !== FileType.directory) throw ENOTDIR.because(`--subdir: ${part} is no directory`);
      found = e.ino;
    } catch (error) {
      if (error !== ENOENT || options.readOnly) throw error;
      const node = { type: FileType.directory, mode: 0o777, umask: 0o022, rdev: 0 };
      found = (await engine.mknod(counters.jobOp(0), cred, at, name, node)).ino;
    }
    at = found;
  }
  return at;
}

/** Makes the file system of one mount. The session must have been opened (session.ts). */
export async function createVfs(parts: VfsParts): Promise<Vfs> {
  const { engine, data, capsule, metrics, log } = parts;
  const counters = new Counters(capsule);
  const root = await resolveRoot(engine, parts.options, counters);
  const handles = new Handles(capsule, counters);
  const items = new Items(capsule);
  const inodes = new Inodes(capsule);
  const accessLog = new AccessLog();
  const core: Core = new Core({
    engine,
    data,
    format: parts.format,
    options: parts.options,
    root,
    handles,
    inodes,
    items,
    locks: new Locks(
      engine,
      capsule,
      fh => handles.inoOf(fh),
      () => counters.nextSeq(),
    ),
    counters,
    internals: internals(parts.options, root),
    accessLog,
    log,
    deleted: parts.deleted ?? (() => undefined),
    statsText: async () => (await import('../observe/exposition.ts')).statsText(metrics),
    configText: () => configText(parts, core),
  });
  core.control = new ControlFiles(capsule, items, counters, runJobs(core));
  metrics.gauge('fuse_open_handlers', 'Inodes with open handles', () => inodes.openCount);
  let heartbeat: NodeJS.Timeout | undefined;

  const methods: FileSystem = {
    ...nameMethods(core),
    ...ioMethods(core),
    ...dirMethods(core),
    ...xattrMethods(core),
    forget(nodeid) {
      const ino = core.ino(nodeid);
      inodes.forget(ino);
      if (!inodes.isOpen(ino)) data.forgotten(ino);
    },
    getlk: (_ctx, nodeid, lock) => core.locks.getlk(core.ino(nodeid), lock),
    setlk: (ctx, nodeid, lock, wait) => core.locks.setlk(ctx, core.ino(nodeid), lock, wait),
    init(_connection: Connection, notify: Notifier) {
      core.notify = notify;
    },
    async destroy() {
      clearInterval(heartbeat);
      core.stop();
      // What cannot be stored is no reason to keep locks and removed files for as long as a session lives.
      try {
        await data.flushAll();
      } finally {
        await data.shutdown();
        await engine.closeSession();
      }
    },
  };

  return {
    fileSystem: instrument(methods, metrics, accessLog),

    async start() {
      const control: number[] = [];
      const files = new Set<Ino>();
      handles.attach = handle => {
        if (handle.kind === HandleKind.file) handle.inode = inodes.get(handle.ino);
      };
      handles.eachAdopted((kind, ino, flags, fh) => {
        if (kind === HandleKind.file) {
          inodes.adopt(ino, writes(flags));
          if (parts.lost !== undefined) files.add(ino);
        } else if (kind === HandleKind.internal && ino === CONTROL_INO) control.push(fh);
      });
      for (const owner of [...items.owners()]) if (handles.inoOf(owner) === undefined) items.clear(owner);
      if (handles.damaged > 0) log.error(`${handles.damaged} handles of the capsule are damaged and closed`);
      await data.recover(parts.lost === 'now' ? core.locks.lostInodes() : undefined);
      if (parts.lost !== undefined) await core.findStale(files);
      core.control.resume(control);
      const adoptLocks = () => core.locks.adopt(500) && setImmediate(adoptLocks);
      setImmediate(adoptLocks);
      heartbeat = setInterval(() => {
        engine.heartbeat().catch(e => log.warn({ err: e as Error }, 'the heartbeat failed'));
      }, ownPeriod(parts.options.heartbeat));
      heartbeat.unref();
      core.watchForFreezes();
      return { handles: handles.size, jobs: core.control.running };
    },

    events: {
      formatChanged(format) {
        core.format = format;
      },
      changed(ino, what) {
        if (what === 'entries') {
          core.removals++;
          return;
        }
        core.changes++;
        if (what === 'data') data.invalidate(ino);
      },
    },

    reconfigure(options) {
      core.options = options;
    },
  };
}

/** `.config`: the mount's options, and the volume's settings without secrets. */
function configText(parts: VfsParts, core: Core): string {
  const config = {
    Meta: { Sid: parts.session.sid, ReadOnly: core.options.readOnly, Heartbeat: core.options.heartbeat * 1e9 },
    Format: removeSecrets(core.format),
    Version: parts.version,
    AttrTimeout: core.options.attrCache * 1e9,
    EntryTimeout: core.options.entryCache * 1e9,
    DirEntryTimeout: core.options.dirEntryCache * 1e9,
    HideInternal: core.options.hideInternal,
    Pid: process.pid,
    PPid: process.ppid,
    Mountpoint: parts.mountPoint,
    Subdir: core.options.subdir,
  };
  return JSON.stringify(config, undefined, ' ');
}
