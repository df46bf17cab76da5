/** `steadfs umount MOUNTPOINT`: ends a mount; everything acknowledged is in the store when the service has ended. */

import { EBUSY, Errno } from '@steadfs/fuse/errno';
import { usersOf } from '@steadfs/fuse/mount';
import { endMount, mountState } from '@steadfs/fuse/service';
import type { Command } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { resolveMountPoint } from './mount-point.ts';

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
    if (state.state === 'unknown' && state.message?.includes('belongs to user'))
      throw new Failure(`${mountPoint} cannot be unmounted: ${state.message}`);
    try {
      const other = await endMount(mountPoint, {
        // A dead or waiting mount has nobody to answer: it can only be detached.
        lazy: flags.bool('force') || state.state === 'dead',
        timeout: flags.bool('flush') ? DAY_MS : PATIENCE_MS,
      });
      if (other) {
        const where = other.pid === process.pid ? '' : ` in the mount namespace of ${other.command} (${other.pid})`;
        const text = `the volume is mounted at ${other.mountPoint}${where} as well: its service goes on`;
        if (flags.bool('flush')) throw new Failure(`${mountPoint} is unmounted, but ${text}`);
        process.stderr.write(`WARNING: ${text}\n`);
      }
    } catch (error) {
      if (error instanceof Failure) throw error;
      if (error instanceof Errno && error.errno === EBUSY.errno) {
        const users = await usersOf(mountPoint);
        const shown = users.slice(0, 10).map(u => `${u.command} (${u.pid})`);
        const who = `${shown.join(', ')}${users.length > 10 ? ` and ${users.length - 10} more` : ''}`;
        throw new Failure(`${mountPoint} is busy${who ? `: used by ${who}` : ''}; --force unmounts all the same`);
      }
      throw new Failure(`${mountPoint} cannot be unmounted: ${messageOf(error)}`);
    }
    return undefined;
  },
};
