/** `steadfs umount MOUNTPOINT`: ends a mount; everything acknowledged is in the store when the service has ended. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { endMount, mountState } from '@steadfs/fuse/service';
import type { Command } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { resolveMountPoint } from './mount.ts';

/** Without --flush the command waits this long for the service to end. */
const PATIENCE_MS = 30_000;
const DAY_MS = 86_400_000;

export const command: Command = {
  name: 'umount',
  args: '<MOUNTPOINT>',
  summary: 'unmount',
  flags: [
    {
      name: 'force',
      aliases: ['f'],
      type: 'bool',
      help: 'also when files are open: the mount goes now, its users get errors',
    },
    { name: 'flush', type: 'bool', help: 'wait until all acknowledged data is in the store' },
  ],
  async run({ args, flags }) {
    const mountPoint = resolveMountPoint(args[0]!);
    const state = await mountState(mountPoint);
    if (!state) throw new Failure(`nothing is mounted at ${mountPoint}`);
    if (state.type !== 'fuse.steadfs')
      throw new Failure(`${mountPoint} is not a Steadfs mount: ${state.source} (${state.type})`);
    try {
      await endMount(mountPoint, {
        // A dead or waiting mount has nobody to answer: it can only be detached.
        lazy: flags.bool('force') || state.state === 'dead',
        timeout: flags.bool('flush') ? DAY_MS : PATIENCE_MS,
      });
    } catch (error) {
      const users = usersOf(mountPoint, state.device);
      if ((error as { code?: string }).code === 'EBUSY' || users.length > 0) {
        const who =
          users.length === 0
            ? ''
            : `: used by ${users
                .slice(0, 10)
                .map(u => `${u.name} (${u.pid}: ${u.what})`)
                .join(', ')}${users.length > 10 ? ` and ${users.length - 10} more` : ''}`;
        throw new Failure(`${mountPoint} is busy${who}; --force unmounts all the same`);
      }
      throw new Failure(`${mountPoint} cannot be unmounted: ${messageOf(error)}`);
    }
    return undefined;
  },
};

interface User {
  pid: number;
  name: string;
  /** cwd, root, exe, fd 3, mapped file */
  what: string;
}

/**
 * Processes that hold something on the mount, as far as /proc shows them to us. Only links and tables of /proc are read, never the mount.
 * `device` is major:minor.
 */
export function usersOf(mountPoint: string, device: string): User[] {
  const users: User[] = [];
  const inside = (target: string) =>
    target === mountPoint || target.startsWith(mountPoint === '/' ? '/' : `${mountPoint}/`);
  const [major, minor] = device.split(':').map(Number) as [number, number];
  const mapped = ` ${major.toString(16).padStart(2, '0')}:${minor.toString(16).padStart(2, '0')} `;
  for (const pid of readdirSync('/proc').filter(n => /^\d+$/.test(n))) {
    const link = (name: string): string | undefined => {
      try {
        return readlinkSync(`/proc/${pid}/${name}`);
      } catch {
        // Ended, or another user's.
        return undefined;
      }
    };
    let what = ['cwd', 'root', 'exe'].find(name => inside(link(name) ?? ''));
    try {
      what ??= readdirSync(`/proc/${pid}/fd`)
        .map(fd => `fd/${fd}`)
        .find(fd => inside(link(fd) ?? ''))
        ?.replace('/', ' ');
      if (!what && readFileSync(`/proc/${pid}/maps`, 'latin1').includes(mapped)) what = 'mapped file';
      if (what) users.push({ pid: Number(pid), name: readFileSync(`/proc/${pid}/comm`, 'utf8').trim(), what });
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? '';
      if (!['ENOENT', 'EACCES', 'ESRCH', 'EPERM'].includes(code)) throw error;
    }
  }
  return users;
}
