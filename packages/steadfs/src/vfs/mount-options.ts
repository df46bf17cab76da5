/**
 * The options of one mount as the file system uses them. They are kept as JSON in the capsule, so that every process that serves the mount
 * has the same; an upgrade stores a changed copy.
 */

export interface MountOptions {
  /** Path inside the volume that is the mount's root, without leading slash; '' is the volume's root. */
  subdir: string;
  readOnly: boolean;
  /** Seconds. */
  attrCache: number;
  entryCache: number;
  dirEntryCache: number;
  negativeEntryCache: number;
  readdirCache: boolean;
  /** Seconds; 0: every open asks the database. */
  openCache: number;
  hideInternal: boolean;
  /** `.jfs.control` instead of `.control`. */
  prefixInternal: boolean;
  enableXattr: boolean;
  /** security.capability */
  enableCap: boolean;
  /** security.selinux */
  enableSelinux: boolean;
  enableIoctl: boolean;
  atimeMode: 'noatime' | 'relatime' | 'strictatime';
  /** The kernel checks permissions (default_permissions); false: we do. */
  defaultPermissions: boolean;
  /** Replaces the application's umask. */
  umask?: number;
  rootSquash?: Squash;
  allSquash?: Squash;
  /** Seconds. */
  heartbeat: number;
  /** Unix milliseconds of the mount: times of internal files. */
  mountedAt: number;
  /** Owner of internal files: who mounted. */
  uid: number;
  gid: number;
}

export interface Squash {
  uid: number;
  gid: number;
}

export const defaultMountOptions: MountOptions = {
  subdir: '',
  readOnly: false,
  attrCache: 1,
  entryCache: 1,
  dirEntryCache: 1,
  negativeEntryCache: 0,
  readdirCache: false,
  openCache: 0,
  hideInternal: false,
  prefixInternal: false,
  enableXattr: false,
  enableCap: false,
  enableSelinux: false,
  enableIoctl: false,
  atimeMode: 'noatime',
  defaultPermissions: true,
  heartbeat: 12,
  mountedAt: 0,
  uid: 0,
  gid: 0,
};

/**
 * What a live mount cannot change: open files and kernel caches stand on it, or mount(2) and INIT fixed it. `mountedAt`, `uid` and `gid`
 * are what they were at the mount and are carried over in silence.
 */
const FIXED_OPTIONS = ['subdir', 'defaultPermissions', 'prefixInternal'] as const;

/** The first option that differs and cannot take effect on a live mount; undefined when the change is possible. */
export function fixedOption(live: MountOptions, wanted: MountOptions): (typeof FIXED_OPTIONS)[number] | undefined {
  return FIXED_OPTIONS.find(name => live[name] !== wanted[name]);
}

/**
 * Options for a live mount: those wanted, with what belongs to the mount itself kept. A service that could write goes on so when the mount becomes
 * read-only: it still has data to store, and the kernel lets nothing new through.
 */
export function carryOver(live: MountOptions, wanted: MountOptions): MountOptions {
  const { mountedAt, uid, gid } = live;
  return { ...wanted, readOnly: live.readOnly && wanted.readOnly, mountedAt, uid, gid };
}

/** `uid:gid` of --root-squash and --all-squash; an empty part is nobody or nogroup, and so is 0. Throws RangeError for anything else. */
export function parseSquash(text: string): Squash {
  const m = /^(\d*)(?::(\d*))?$/.exec(text);
  if (m === null) throw new RangeError(`"${text}" is not uid:gid`);
  const id = (part: string | undefined) => {
    const n = part ? Number(part) : 0;
    if (n > 0xfffffffe) throw new RangeError(`"${text}" is not uid:gid`);
    return n === 0 ? NOBODY : n;
  };
  return { uid: id(m[1]), gid: id(m[2]) };
}

/** nobody and nogroup of Linux distributions. */
const NOBODY = 65534;

/** Parses stored options; those that an older version did not store have their defaults. */
export function parseMountOptions(text: string): MountOptions {
  const raw: unknown = JSON.parse(text);
  if (typeof raw !== 'object' || raw === null) throw new SyntaxError('the mount options are no object');
  const out: Record<string, unknown> = { ...defaultMountOptions };
  for (const [name, value] of Object.entries(raw)) {
    if (name in defaultMountOptions && typeof value !== typeof out[name])
      throw new SyntaxError(`mount option ${name} is no ${typeof out[name]}`);
    out[name] = value;
  }
  return out as unknown as MountOptions;
}
