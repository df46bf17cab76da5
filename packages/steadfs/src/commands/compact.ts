/** `steadfs compact PATH...`: merges the slices of files below the paths. */
import { resolve } from 'node:path';
import type { Command } from './command.ts';
import { Control, control, controlFolder, failOn, inodeOf, payload } from './control.ts';
import { Failure } from './failure.ts';

export const command: Command = {
  name: 'compact',
  args: '<PATH...>',
  summary: 'merge the slices of files',
  flags: [{ name: 'threads', aliases: ['p'], type: 'int', default: '10', help: 'concurrent compactions' }],
  async run({ args, flags }) {
    const threads = flags.number('threads')!;
    if (threads < 1 || threads > 65535) throw new Failure('--threads must be between 1 and 65535');
    for (const path of args)
      failOn(
        path,
        await control(controlFolder(path), Control.compact, payload([inodeOf(resolve(path)), 64], [threads, 16])),
      );
    return undefined;
  },
};
