/**
 * How a mount is started, replaced, watched and ended: the types of service.ts, which commands call.
 *
 *     startMount(…)    a fresh mount: opens /dev/fuse, makes the capsule, mounts, starts keeper and service, waits until it is usable
 *     replaceMount(…)  another version or other options on a live mount: the smooth upgrade
 *     runService(…)    what the service process does: adopts the capsule and serves. Fresh mount, crash restart and upgrade are this one call
 *     mountState(…)    who serves a mount and how it is, without touching the mount
 *     endMount(…)      unmounts
 *
 * Processes of one mount: the keeper (a POSIX shell that holds every fd, starts the service again when it dies) and the service. Their fds have fixed numbers,
 * see {@link import('./launch.ts')}.
 */
import type { OpenCapsule } from './capsule.ts';
import type { Ended } from './launch.ts';

/** Options of mount(2); what the kernel fixes for the life of the mount. */
export interface MountOptions {
  /** First column of mountinfo's right half, e.g. `Steadfs:vol`. */
  source: string;
  /** The mount's type is `fuse.SUBTYPE`. */
  subtype: string;
  allowOther?: boolean;
  /** The kernel checks permission bits. */
  defaultPermissions?: boolean;
  readOnly?: boolean;
  /** Largest READ in bytes; 0 or absent: the kernel's limit. */
  maxRead?: number;
  /** Generic flags as mount(8) spells them: nosuid, suid, nodev, dev, noexec, exec, sync, dirsync, noatime, nodiratime, relatime, strictatime. nosuid and nodev hold unless root says suid, dev. */
  flags?: readonly string[];
}

/** What a service is started with: a sealed memfd that keeper and service hold, so neither argv nor environment shows it. */
export interface Launch {
  /** Absolute, as in mountinfo. */
  mountPoint: string;
  /** st_dev of the mount as `major:minor`: the connection is minor in fusectl. */
  device: string;
  mount: MountOptions;
  /** Version of the program that `command` starts. */
  version: string;
  /** The service's argv: interpreter, bundle, `service`, mount point. Nothing secret. */
  command: readonly string[];
  /** Anything JSON can hold; for the file system only. Secrets are fine here. */
  options: unknown;
  arenaSize: number;
  /** Private directory of the mount (control socket, keeper's pid); made again when it vanishes. */
  directory: string;
  /** File that stdout and stderr are appended to; absent: those of the starter in the foreground, else /dev/null. */
  log?: string;
  /** systemd keeps the fds and starts the service again; there is no keeper. */
  systemd?: boolean;
  /** Milliseconds since 1970. */
  created: number;
}

export interface StartSettings {
  /** Must exist; symbolic links are resolved by the caller (realpath). */
  mountPoint: string;
  mount: MountOptions;
  /** Bytes of the arena (dirty data, block cache, landing area): address space until used. */
  arenaSize: number;
  version: string;
  command: readonly string[];
  options: unknown;
  log?: string;
  /**
   * This process becomes the keeper by execve(2) once the mount is made (systemd: the service): the promise never settles then. Standard streams are
   * passed on. SIGTERM and SIGINT to the keeper go to the service, which unmounts.
   */
  foreground?: boolean;
  /** Under systemd (NOTIFY_SOCKET): adopts the fds of the fd store when there are any, else mounts. Implies foreground. */
  systemd?: boolean;
  /** Milliseconds until it must be usable (default 60,000). */
  timeout?: number;
}

export interface Started {
  device: string;
  keeper: number;
  service: number;
}

/** Settings of an upgrade; what is absent cannot change on a live mount. */
export interface ReplaceSettings {
  mountPoint: string;
  /** What the launch record says of the mount from now on: flags that the caller has changed or is about to ({@link remountFuse}). The old ones when absent. */
  mount?: MountOptions;
  arenaSize: number;
  version: string;
  command: readonly string[];
  options: unknown;
  log?: string;
  /** Milliseconds for the new service to get ready for the commit (default 60,000). */
  timeout?: number;
}

export interface Takeover {
  /** Milliseconds since 1970. */
  when: number;
  /** mount: the first service; upgrade: replaceMount; crash: the service before died; systemd: started from the fd store. */
  why: 'mount' | 'upgrade' | 'crash' | 'systemd';
  /** Version that served before. */
  from?: string;
  to: string;
  /** Milliseconds until the new process serves: from the moment the old one is asked to stop reading (upgrade), else from the start of the new process. */
  pause: number;
  /** What `serving()` was told: counts by name (open files, requests answered anew, …). */
  carriedOver: Record<string, number>;
}

export interface Replaced extends Started {
  takeover: Takeover;
}

/** Who serves a mount. Read from mountinfo, /proc and the capsule; never from the mount itself. */
export interface MountState {
  mountPoint: string;
  device: string;
  source: string;
  type: string;
  /**
   * serving; starting: a service is getting ready; waiting: there is a keeper, and no service can be started (see message); dead: nobody holds the
   * connection, callers get ENOTCONN; unknown: another user's, or not one of ours.
   */
  state: 'serving' | 'starting' | 'waiting' | 'dead' | 'unknown';
  message?: string;
  /** Since when it is `waiting`, milliseconds since 1970. */
  since?: number;
  service?: { pid: number; version: string };
  /** Absent under systemd. */
  keeper?: { pid: number };
  /** The last 32, oldest first. */
  takeovers: Takeover[];
  launch?: Launch;
  /** Requests that wait for an answer (fusectl), when it can be read. */
  waiting?: number;
  /** What the service says keeps requests waiting; absent when nothing does. */
  troubles?: Trouble[];
}

export interface Trouble {
  what: string;
  /** Milliseconds since 1970. */
  since: number;
  message: string;
}

/** Before the commit: nothing may be changed yet, an old service may still be serving. */
export interface Preparation {
  launch: Launch;
  why: Takeover['why'];
  /** A blob of the capsule as the old service has it. */
  peek(name: string): Uint8Array | undefined;
}

/** The capsule is ours and locked, the old process is dead. */
export interface Start {
  /** The connection, non-blocking. */
  fd: number;
  capsule: OpenCapsule;
  launch: Launch;
  why: Takeover['why'];
  /** How the service before has ended, when a keeper has seen it: to be passed on to `serve()` of session.ts, which counts crashes. */
  before: Ended | undefined;
  /** Says that requests are being answered: ends the pause, tells starter and systemd. */
  serving(carriedOver?: Record<string, number>): void;
  /** What keeps requests waiting at the moment, for {@link MountState}; at most the first eight are kept. */
  troubled(list: readonly Trouble[]): void;
}

/** What company.ts must know of a file system that is not there yet. */
export interface Meanwhile {
  /** Claims the runs of the arena that its records name. */
  claim(): void;
  /** The capsule has acknowledged data, which is waited for also when the mount has ended. */
  dirty(): boolean;
  /** As in FileSystem. */
  forget(nodeid: number, nlookup: number): void;
  /** As in Session.limit. */
  limit: number | undefined;
}

export interface ServiceSettings<Warm> {
  version: string;
  /**
   * All sections (records and blobs) that this build knows, with the greatest version it reads. Those of @steadfs/fuse's own are added. When given, a take-over is refused before
   * anything happens if the capsule has others. */
  sections?: readonly { name: string; version: number }[];
  /** Whatever is slow and can fail: connects the engine, checks the store. A rejection ends this process (but see `meanwhile`); in an upgrade the old service goes on, and its message is the reason that replaceMount() gives. */
  prepare(preparation: Preparation): Promise<Warm>;
  /**
   * When given, a restarted service whose `prepare` takes long or fails keeps its callers company (company.ts) and tries again, instead of ending at once. The capsule is not the one
   * that `serve` gets.
   */
  meanwhile?(capsule: OpenCapsule, launch: Launch): Meanwhile;
  /** Serves until the mount has ended; that may be so already, and what the capsule holds is to be stored. A rejection is a crash: the keeper starts another service. */
  serve(start: Start, warm: Warm): Promise<void>;
  /** A successor is ready and about to kill this process: stop reading, finish what takes no time. It is killed after 10 ms at the latest; or, if the successor fails, `resume` is called. */
  yielding?(): Promise<void> | void;
  resume?(): void;
  /** Messages of the machinery (keeper replaced, take-over refused, …); default: stderr, without debug. */
  log?(level: 'debug' | 'info' | 'warn' | 'error', message: string): void;
}

export interface EndSettings {
  /** Detach now, end when the last user is gone. */
  lazy?: boolean;
  /** Abort the connection: waiting callers get ECONNABORTED. */
  force?: boolean;
  /** Milliseconds to wait for the end of service and keeper after unmounting (default 30,000). */
  timeout?: number;
}
