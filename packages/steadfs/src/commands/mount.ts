/** `steadfs mount META-URL MOUNTPOINT`: a fresh mount, or a smooth upgrade of the one that is there. */
import { accessSync, closeSync, constants, existsSync, openSync, readdirSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { EBUSY, Errno } from '@steadfs/fuse/errno';
import { findMount, remountFuse } from '@steadfs/fuse/mount';
import { endMount, mountState, replaceMount, startMount } from '@steadfs/fuse/service';
import type { MountOptions as KernelMountOptions, MountState } from '@steadfs/fuse/service-types';
import { makeFolder } from '../observe/log.ts';
import { installRuntime } from '../runtime.ts';
import { carryOver, fixedOption } from '../vfs/mount-options.ts';
import type { Command } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { testStore } from './format.ts';
import { maskUrl } from './mask.ts';
import { mountFlags, planMount, type ServiceOptions } from './mount-flags.ts';
import { fstabLine, updateFstab } from './mount-helper.ts';
import { resolveMountPoint } from './mount-point.ts';
import { absoluteUrl, connect, loadVolume, localPaths, openVolumeStore } from './volume.ts';

export const command: Command = {
  name: 'mount',
  args: '<META-URL> <MOUNTPOINT>',
  summary: 'mount a volume; on a live mount: smooth upgrade',
  details: `Without -d the command stays and serves until it is unmounted or gets SIGTERM or SIGINT.
On a mount point where the same volume is mounted already, this version and these options take over; programs on it notice nothing.`,
  flags: mountFlags,
  async run({ args, flags, global }) {
    const metaUrl = absoluteUrl(args[0]!);
    const plan = planMount(flags, global.logLevel);
    const background = flags.bool('background');
    const underSystemd = !background && process.env.NOTIFY_SOCKET !== undefined;

    const mountPoint = resolveMountPoint(args[1]!);
    const before = await mountState(mountPoint);
    const live = before && !flags.bool('over-mount') && !underSystemd ? await judge(before) : undefined;

    // Everything that can be wrong is found out here, where the message reaches the user, and before anything is mounted.
    const engine = await connect(metaUrl, { readOnly: true });
    let format: Awaited<ReturnType<typeof loadVolume>>;
    try {
      format = await loadVolume(engine);
    } finally {
      await engine.close();
    }
    if (plan.options.bucket) format.Bucket = plan.options.bucket;
    const store = await openVolumeStore(format);
    try {
      if (flags.bool('check-storage')) await testStore(store, format.Name);
    } finally {
      await store.close();
    }
    for (const [what, path] of [
      ...localPaths(metaUrl, format),
      ...(plan.options.logFile ? [['the log', plan.options.logFile]] : []),
    ] as [string, string][])
      if (isBelow(mountPoint, path))
        throw new Failure(
          `${what} (${path}) lies below the mount point ${mountPoint}: the mount would wait for itself`,
        );

    plan.kernel.source = `Steadfs:${format.Name}`;
    const options: ServiceOptions = { ...plan.options, metaUrl, volume: { name: format.Name, uuid: format.UUID } };
    if (plan.remount && !live) throw new Failure(`-o remount: no volume is mounted at ${mountPoint}`);
    if (live && live.source !== plan.kernel.source)
      throw new Failure(
        `${mountPoint} is busy: ${live.source} is mounted there (unmount it, or mount over it with --over-mount)`,
      );
    if (!live && !underSystemd) checkFolder(mountPoint, plan.nonempty || before !== undefined);
    if (plan.options.logFile) checkLog(plan.options.logFile);
    if (flags.bool('update-fstab')) {
      if (maskUrl(metaUrl) !== metaUrl)
        throw new Failure('--update-fstab: everybody may read /etc/fstab, and the META-URL holds a password');
      updateFstab(fstabLine(metaUrl, mountPoint, flags.all), resolve(dirname(process.argv[1]!), '../bin/steadfs'));
    }
    const runtime = installRuntime();
    const settings = {
      mountPoint,
      version: runtime.version,
      command: [...runtime.command, 'service', mountPoint],
      options,
      arenaSize: options.bufferSize,
      ...(plan.options.logFile ? { log: plan.options.logFile } : {}),
    };

    const patience = process.env.JFS_MOUNT_TIMEOUT ? { timeout: Number(process.env.JFS_MOUNT_TIMEOUT) * 1000 } : {};
    if (live) {
      const before = carryOptions(live, plan.kernel, options);
      if (plan.kernel.readOnly) changeFlags(mountPoint, before, plan.kernel);
      const replaced = await replaceMount({ ...settings, mount: plan.kernel, ...patience }).catch((error: unknown) => {
        if (plan.kernel.readOnly) changeFlags(mountPoint, plan.kernel, before);
        throw new Failure(`${mountPoint} goes on as it was, the upgrade was given up: ${messageOf(error)}`);
      });
      // Only now is there a process that may write.
      if (!plan.kernel.readOnly) changeFlags(mountPoint, before, plan.kernel);
      const { from, to, pause, carriedOver } = replaced.takeover;
      const carried = Object.entries(carriedOver)
        .filter(([, n]) => n > 0)
        .map(([what, n]) => `${n} ${what}`)
        .join(', ');
      console.log(
        `OK, ${format.Name} at ${mountPoint} was upgraded from ${from ?? 'an unknown version'} to ${to}; pause ${pause.toFixed(1)} ms${carried ? `; carried over: ${carried}` : ''}`,
      );
      return undefined;
    }
    try {
      await startMount({
        ...settings,
        mount: plan.kernel,
        foreground: !background && !underSystemd,
        ...(underSystemd ? { systemd: true } : {}),
        ...patience,
      });
    } catch (error) {
      const see = plan.options.logFile ? ` (more may be in ${plan.options.logFile})` : '';
      throw new Failure(`${maskUrl(metaUrl)} could not be mounted at ${mountPoint}: ${messageOf(error)}${see}`);
    }
    console.log(`OK, ${format.Name} is ready at ${mountPoint}`);
    return undefined;
  },
};

/** What is mounted there already: the mount to be replaced, undefined when it was dead and is gone now. Throws Failure when it is in the way. */
async function judge(state: MountState): Promise<MountState | undefined> {
  if (state.type !== 'fuse.steadfs')
    throw new Failure(
      `${state.mountPoint} is busy: ${state.source} (${state.type}) is mounted there (unmount it, or mount over it with --over-mount)`,
    );
  if (state.state === 'unknown')
    throw new Failure(
      `${state.mountPoint} is busy: ${state.source} is mounted there${state.message ? `, and ${state.message}` : ''}`,
    );
  if (state.state !== 'dead') return state;
  await endMount(state.mountPoint, { lazy: true }).catch((error: unknown) => {
    throw new Failure(
      `${state.mountPoint} is a dead mount of ${state.source}, and cannot be removed: ${messageOf(error)}`,
    );
  });
  process.stderr.write(`WARNING: removed a dead mount of ${state.source} from ${state.mountPoint}\n`);
  return undefined;
}

function checkFolder(path: string, nonempty: boolean): void {
  let entries: string[];
  try {
    if (!statSync(path).isDirectory()) throw new Failure(`mount point ${path} is not a directory`);
    accessSync(path, constants.R_OK | constants.X_OK);
    entries = nonempty ? [] : readdirSync(path);
  } catch (error) {
    if (error instanceof Failure) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT') throw new Failure(`mount point ${path} does not exist; make it with mkdir`);
    throw new Failure(`mount point ${path}: ${messageOf(error)}`);
  }
  if (entries.length > 0)
    throw new Failure(
      `mount point ${path} is not empty: it holds ${entries[0]}${entries.length > 1 ? ` and ${entries.length - 1} more` : ''} (-o nonempty mounts over it)`,
    );
}

function checkLog(path: string): void {
  try {
    makeFolder(dirname(path));
    closeSync(openSync(path, 'a', 0o644));
  } catch (error) {
    throw new Failure(`cannot write the log ${path}: ${messageOf(error)}`);
  }
}

/** True when `path`, or what of it exists, is `folder` or below it. */
function isBelow(folder: string, path: string): boolean {
  let existing = resolve(path);
  let rest = '';
  const inside = (p: string) => p === folder || p.startsWith(folder === '/' ? '/' : `${folder}/`);
  if (inside(existing)) return true;
  while (!existsSync(existing)) {
    rest = join(basename(existing), rest);
    existing = dirname(existing);
  }
  return inside(join(realpathSync(existing), rest));
}

/** ro, rw, nosuid and the other flags of a live mount. */
function changeFlags(mountPoint: string, before: KernelMountOptions, now: KernelMountOptions): void {
  if (flagsOf(before) === flagsOf(now)) return;
  try {
    remountFuse(mountPoint, now);
  } catch (error) {
    const why = error instanceof Errno && error.errno === EBUSY.errno ? 'files are open for writing' : messageOf(error);
    throw new Failure(`${mountPoint} cannot be remounted ${now.readOnly ? 'read-only' : 'with these options'}: ${why}`);
  }
}

const flagsOf = (kernel: KernelMountOptions): string => [...(kernel.flags ?? []), kernel.readOnly ? 'ro' : 'rw'].join();

/** Refuses what a live mount cannot change, and keeps what belongs to it. Answers the mount's options until now. */
function carryOptions(live: MountState, kernel: KernelMountOptions, options: ServiceOptions): KernelMountOptions {
  const launch = live.launch;
  if (!launch)
    throw new Failure(`${live.mountPoint} cannot be upgraded: ${live.message ?? 'its options cannot be read'}`);
  const old = launch.options as ServiceOptions;
  const refuse = (what: string) => {
    throw new Failure(
      `${what} cannot change on a live mount: unmount ${live.mountPoint} first, or mount over it with --over-mount`,
    );
  };
  if (old.volume.uuid !== options.volume.uuid) refuse('the volume');
  const fixed = fixedOption(old.mount, options.mount);
  if (fixed) refuse(`--${fixed.replace(/[A-Z]/g, c => `-${c.toLowerCase()}`)}`);
  if (old.maxFuseIo !== options.maxFuseIo) refuse('--max-fuse-io');
  if (old.asyncDio !== options.asyncDio) refuse('-o async_dio');
  if ((launch.mount.allowOther ?? false) !== (kernel.allowOther ?? false)) refuse('-o allow_other');
  if ((launch.mount.defaultPermissions ?? false) !== (kernel.defaultPermissions ?? false))
    refuse('-o default_permissions');
  // mount(8) may have changed this without us (-i).
  const before = { ...launch.mount, readOnly: findMount(live.mountPoint)?.superOptions.includes('ro') === true };
  if (flagsOf(before) !== flagsOf(kernel) && process.getuid!() !== 0) refuse(`-o ${flagsOf(kernel)}`);
  options.mount = carryOver(old.mount, options.mount);
  return before;
}
