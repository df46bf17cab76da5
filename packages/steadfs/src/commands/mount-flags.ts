/** Flags of `steadfs mount` (spec: command line §3, §5), and the options that are made of them. */

import { totalmem } from 'node:os';
import { resolve } from 'node:path';
import type { MountOptions as KernelMountOptions } from '@steadfs/fuse/service-types';
import { parseMetricsAddress } from '../observe/metrics-address.ts';
import { defaultMountOptions, type MountOptions, parseSquash } from '../vfs/mount-options.ts';
import type { Flag, Flags } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { defaultLog } from './volume.ts';

export const MIB = 2 ** 20;
const MIN_BUFFER = 32 * MIB;
/** Smallest and largest --max-fuse-io; FUSE's own smallest is a page. */
const MAX_IO = MIB;

export const mountFlags: readonly Flag[] = [
  { name: 'background', aliases: ['d'], type: 'bool', help: 'return when the mount is usable' },
  { name: 'foreground', aliases: ['f'], type: 'bool', hidden: true, help: 'stay in the foreground (the default)' },
  { name: 'log', type: 'string', help: `log of a mount in the background (default ${defaultLog})` },
  {
    name: 'o',
    type: 'list',
    help: 'mount options: allow_other, default_permissions, ro, nonempty, nosuid, nodev, noexec, noatime, sync, dirsync, async_dio',
  },
  {
    name: 'update-fstab',
    type: 'bool',
    help: 'add the mount to /etc/fstab, and make /sbin/mount.steadfs when it is missing',
  },
  { name: 'over-mount', type: 'bool', help: 'mount over what is mounted there instead of replacing it' },
  // what is mounted
  { name: 'bucket', type: 'string', help: "endpoint of the object storage, instead of the volume's own" },
  { name: 'check-storage', type: 'bool', help: 'write, read and remove an object before mounting' },
  { name: 'subdir', type: 'string', help: 'mount this directory of the volume (made when it is missing)' },
  { name: 'read-only', type: 'bool', help: 'allow no changes' },
  // behaviour
  { name: 'enable-xattr', type: 'bool', help: 'extended attributes' },
  { name: 'enable-cap', type: 'bool', help: 'allow security.capability attributes' },
  { name: 'enable-selinux', type: 'bool', help: 'allow security.selinux attributes' },
  { name: 'enable-ioctl', type: 'bool', help: 'chattr and lsattr' },
  { name: 'hide-internal', type: 'bool', help: 'do not list .stats, .config, .accesslog and .trash' },
  { name: 'prefix-internal', type: 'bool', help: 'call internal files .jfs.control and so on' },
  { name: 'umask', type: 'string', help: "octal, instead of the application's" },
  { name: 'root-squash', type: 'string', help: 'UID:GID that root becomes' },
  { name: 'all-squash', type: 'string', help: 'UID:GID that everybody becomes' },
  { name: 'non-default-permission', type: 'bool', hidden: true, help: 'check permissions here, not in the kernel' },
  { name: 'atime-mode', type: 'string', default: 'noatime', help: 'noatime, relatime or strictatime' },
  { name: 'heartbeat', type: 'duration', default: '12s', help: 'period in which the session is renewed' },
  { name: 'no-bgjob', type: 'bool', help: 'no clean-up jobs in this client' },
  {
    name: 'skip-dir-mtime',
    type: 'duration',
    default: '100ms',
    help: "do not write a directory's times again within this time",
  },
  // caches
  { name: 'attr-cache', type: 'duration', default: '1s', help: 'time that the kernel may use attributes' },
  { name: 'entry-cache', type: 'duration', default: '1s', help: 'time that the kernel may use names of files' },
  {
    name: 'dir-entry-cache',
    type: 'duration',
    default: '1s',
    help: 'time that the kernel may use names of directories',
  },
  {
    name: 'negative-entry-cache',
    type: 'duration',
    default: '0s',
    help: 'time that the kernel may remember missing names',
  },
  { name: 'readdir-cache', type: 'bool', help: 'let the kernel keep directory listings' },
  { name: 'open-cache', type: 'duration', default: '0s', help: 'time that attributes of open files are used unasked' },
  // data
  {
    name: 'buffer-size',
    type: 'size',
    unit: 'M',
    default: '300M',
    help: 'memory for dirty data and cached blocks together',
  },
  { name: 'max-uploads', type: 'int', default: '20', help: 'concurrent uploads' },
  { name: 'max-downloads', type: 'int', default: '200', help: 'concurrent downloads' },
  { name: 'max-readahead', type: 'size', unit: 'M', default: '0', help: 'read-ahead of one open file, 0 = 8 blocks' },
  { name: 'prefetch', type: 'int', default: '1', help: 'blocks fetched whole at the same time after reads of parts' },
  { name: 'upload-limit', type: 'bandwidth', default: '0', help: "Mbps, 0 = the volume's limit" },
  { name: 'download-limit', type: 'bandwidth', default: '0', help: "Mbps, 0 = the volume's limit" },
  { name: 'get-timeout', type: 'duration', default: '60s', help: 'time limit of a download' },
  { name: 'put-timeout', type: 'duration', default: '60s', help: 'time limit of an upload' },
  { name: 'max-deletes', type: 'int', default: '10', help: 'concurrent deletions of blocks, 0 = delete none' },
  { name: 'io-retries', type: 'int', default: '10', help: 'retries of metadata commands and uploads' },
  {
    name: 'wait-timeout',
    type: 'duration',
    default: '0s',
    help: 'time after which an operation that waits for a database or store that does not answer fails with EIO, 0 = it waits',
  },
  {
    name: 'hang-limit',
    type: 'duration',
    default: '60s',
    help: 'CPU time after which a service whose event loop does not turn any more is ended and the next one started, 0 = never',
  },
  { name: 'max-fuse-io', type: 'size', unit: 'B', default: '128K', help: 'largest request of the kernel, at most 1M' },
  // metrics
  { name: 'metrics', type: 'string', default: '127.0.0.1:9567', help: 'address of /metrics; "" for none' },
];

/** Everything a service is started with besides the mount itself: kept in the capsule, never in argv or environment. */
export interface ServiceOptions {
  /** META-URL, with its password; paths in it are absolute. */
  metaUrl: string;
  volume: { name: string; uuid: string };
  /** Instead of the volume's. */
  bucket?: string;
  /** Variables of the starter that engines and stores read (passwords among them). */
  environment: Record<string, string>;
  mount: MountOptions;
  noBgjob: boolean;
  skipDirMtimeMs: number;
  bufferSize: number;
  maxUploads: number;
  maxDownloads: number;
  maxReadahead: number;
  prefetch: number;
  /** Mbps, 0 = the volume's. */
  uploadLimit: number;
  downloadLimit: number;
  getTimeoutMs: number;
  putTimeoutMs: number;
  maxDeletes: number;
  ioRetries: number;
  /** 0 or absent (stored by an older version): no limit. */
  waitTimeoutMs?: number;
  /** Seconds of CPU time in one turn of the loop; 0: no limit. */
  hangLimit?: number;
  maxFuseIo: number;
  /** O_DIRECT requests of one call side by side (INIT.ASYNC_DIO); costs the coherence of buffered reads beside them. */
  asyncDio: boolean;
  metrics: string;
  metricsExplicit: boolean;
  logLevel: string;
  logFile?: string;
}

/** Environment variables that go to the service, by name or prefix. */
const ENVIRONMENT =
  /^(META_PASSWORD|META_PASSWORD_FILE|REDIS_PASSWORD|SENTINEL_PASSWORD|SENTINEL_PASSWORD_FOR_OBJ|AWS_.*|MINIO_.*|JFS_.*|STEADFS_.*|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy|SSL_CERT_FILE|NODE_EXTRA_CA_CERTS|TZ|HOME|PGSSL.*)$/;

/** Options that mount(8) and fstab give and that mean nothing here. */
const IGNORED = new Set(['defaults', '_netdev', 'nofail', 'auto', 'noauto', 'users', 'user', 'async', 'nonempty']);
const KERNEL_FLAGS = new Set([
  'nosuid',
  'suid',
  'nodev',
  'dev',
  'noexec',
  'exec',
  'sync',
  'dirsync',
  'noatime',
  'atime',
  'nodiratime',
  'diratime',
  'relatime',
  'strictatime',
]);

export interface MountPlan {
  kernel: KernelMountOptions;
  options: Omit<ServiceOptions, 'metaUrl' | 'volume'>;
  /** -o nonempty */
  nonempty: boolean;
  /** -o remount: there must be a live mount. */
  remount: boolean;
}

function within(flags: Flags, name: string, least: number, most: number): number {
  const value = flags.number(name)!;
  if (!(value >= least && value <= most)) throw new Failure(`--${name} must be between ${least} and ${most}`);
  return value;
}

/** What `parse` makes of a flag's text; its error with the flag's name. */
function parsed<T>(name: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    throw new Failure(`--${name}: ${messageOf(error)}`);
  }
}

function squash(flags: Flags, name: string) {
  const text = flags.string(name);
  return text === undefined ? undefined : parsed(name, text, parseSquash);
}

/** What the flags ask for. Throws Failure for values that make no sense. */
export function planMount(flags: Flags, logLevel: string): MountPlan {
  const day = 86400 * 365;
  const rootSquash = squash(flags, 'root-squash');
  const allSquash = squash(flags, 'all-squash');
  const umask = flags.string('umask');
  if (umask !== undefined && !/^0?[0-7]{1,3}$/.test(umask)) throw new Failure(`--umask: "${umask}" is no octal umask`);
  const atimeMode = flags.string('atime-mode')!;
  if (atimeMode !== 'noatime' && atimeMode !== 'relatime' && atimeMode !== 'strictatime')
    throw new Failure(`--atime-mode: "${atimeMode}" is none of noatime, relatime, strictatime`);

  const root = process.getuid!() === 0;
  let readOnly = flags.bool('read-only');
  let allowOther = root;
  let nonempty = false;
  let asyncDio = false;
  let remount = false;
  const generic: string[] = [];
  for (const option of flags
    .list('o')
    .flatMap(list => list.split(','))
    .filter(o => o !== '')) {
    if (option === 'ro') readOnly = true;
    else if (option === 'allow_other') allowOther = true;
    else if (option === 'default_permissions') continue;
    else if (KERNEL_FLAGS.has(option)) generic.push(option);
    else if (option === 'nonempty') nonempty = true;
    else if (option === 'async_dio') asyncDio = true;
    else if (option === 'remount') remount = true;
    else if (option === 'rw') readOnly = false;
    else if (!IGNORED.has(option) && !/^(x-|comment=)/.test(option)) throw new Failure(`-o ${option}: not supported`);
  }
  const defaultPermissions = !flags.bool('non-default-permission') && !allSquash && !rootSquash;

  const maxFuseIo = within(flags, 'max-fuse-io', 4096, MAX_IO);
  const bufferSize = flags.number('buffer-size')!;
  if (bufferSize < MIN_BUFFER) throw new Failure('--buffer-size must be at least 32M');
  if (bufferSize > totalmem())
    throw new Failure(`--buffer-size must be less than this machine's memory (${Math.floor(totalmem() / 2 ** 20)}M)`);
  const metrics = flags.string('metrics')!;
  if (metrics !== '') parsed('metrics', metrics, parseMetricsAddress);
  const logFile = resolve(flags.string('log') ?? defaultLog);
  const background = flags.bool('background');

  const environment: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env))
    if (value !== undefined && ENVIRONMENT.test(name)) environment[name] = value;

  return {
    nonempty,
    remount,
    kernel: {
      source: '',
      subtype: 'steadfs',
      allowOther,
      defaultPermissions,
      readOnly,
      maxRead: maxFuseIo,
      flags: generic,
    },
    options: {
      ...(flags.given('bucket') ? { bucket: flags.string('bucket')! } : {}),
      environment,
      mount: {
        ...defaultMountOptions,
        subdir: (flags.string('subdir') ?? '').replace(/^\/+|\/+$/g, ''),
        readOnly,
        attrCache: within(flags, 'attr-cache', 0, day),
        entryCache: within(flags, 'entry-cache', 0, day),
        dirEntryCache: within(flags, 'dir-entry-cache', 0, day),
        negativeEntryCache: within(flags, 'negative-entry-cache', 0, day),
        readdirCache: flags.bool('readdir-cache'),
        openCache: within(flags, 'open-cache', 0, day),
        hideInternal: flags.bool('hide-internal'),
        prefixInternal: flags.bool('prefix-internal'),
        enableXattr: flags.bool('enable-xattr'),
        enableCap: flags.bool('enable-cap'),
        enableSelinux: flags.bool('enable-selinux'),
        enableIoctl: flags.bool('enable-ioctl'),
        atimeMode: generic.includes('noatime') ? 'noatime' : atimeMode,
        defaultPermissions,
        ...(umask === undefined ? {} : { umask: Number.parseInt(umask, 8) }),
        ...(rootSquash ? { rootSquash } : {}),
        ...(allSquash ? { allSquash } : {}),
        heartbeat: within(flags, 'heartbeat', 1, 600),
        mountedAt: Date.now(),
        uid: process.getuid!(),
        gid: process.getgid!(),
      },
      noBgjob: flags.bool('no-bgjob'),
      skipDirMtimeMs: within(flags, 'skip-dir-mtime', 0, 3600) * 1000,
      bufferSize,
      maxUploads: within(flags, 'max-uploads', 1, 1000),
      maxDownloads: within(flags, 'max-downloads', 1, 10_000),
      maxReadahead: within(flags, 'max-readahead', 0, 2 ** 40),
      prefetch: within(flags, 'prefetch', 0, 1000),
      uploadLimit: within(flags, 'upload-limit', 0, 1e9),
      downloadLimit: within(flags, 'download-limit', 0, 1e9),
      getTimeoutMs: within(flags, 'get-timeout', 0.001, 86400) * 1000,
      putTimeoutMs: within(flags, 'put-timeout', 0.001, 86400) * 1000,
      maxDeletes: within(flags, 'max-deletes', 0, 1000),
      ioRetries: within(flags, 'io-retries', 0, 1000),
      waitTimeoutMs: within(flags, 'wait-timeout', 0, day) * 1000,
      hangLimit: within(flags, 'hang-limit', 0, day),
      maxFuseIo,
      asyncDio,
      metrics,
      metricsExplicit: flags.given('metrics'),
      logLevel,
      ...(background ? { logFile } : {}),
    },
  };
}
