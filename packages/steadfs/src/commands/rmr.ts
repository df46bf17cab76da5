/** `steadfs rmr PATH...`: removes trees inside the service. */
import { lstatSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import type { Command } from './command.ts';
import { Control, control, failOn, inodeOf, payload } from './control.ts';
import { Failure, messageOf } from './failure.ts';

export const command: Command = {
  name: 'rmr',
  args: '<PATH...>',
  summary: 'remove trees',
  flags: [
    { name: 'skip-trash', type: 'bool', help: 'delete at once (root only)' },
    { name: 'threads', aliases: ['p'], type: 'int', default: '50', help: 'concurrent removals, at most 255' },
  ],
  async run({ args, flags }) {
    if (flags.bool('skip-trash') && process.getuid?.() !== 0) throw new Failure('--skip-trash is for root only');
    const threads = flags.number('threads')!;
    if (threads < 1 || threads > 255) throw new Failure('--threads must be between 1 and 255');
    for (const path of args) {
      const absolute = resolve(path);
      const [parent, name] = [dirname(absolute), Buffer.from(basename(absolute))];
      if (name.length === 0 || name.length > 255) throw new Failure(`${path} cannot be removed`);
      try {
        lstatSync(absolute);
      } catch (error) {
        throw new Failure(`${path}: ${messageOf(error)}`);
      }
      const body = payload(
        [inodeOf(parent), 64],
        [name.length, 8],
        name,
        [flags.bool('skip-trash') ? 1 : 0, 8],
        [threads, 8],
      );
      failOn(path, await control(parent, Control.rmr, body));
    }
    return undefined;
  },
};
