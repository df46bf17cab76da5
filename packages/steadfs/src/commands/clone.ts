/** `steadfs clone SRC DST`: copies a file or tree; data is shared, not copied. */
import { statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import type { Command } from './command.ts';
import { Control, control, failOn, inodeOf, payload } from './control.ts';
import { Failure } from './failure.ts';

/** Mode bit of the message: owner, mode and times stay. */
const PRESERVE = 2;

export const command: Command = {
  name: 'clone',
  args: '<SRC> <DST>',
  summary: 'copy a file or tree without copying data',
  flags: [
    { name: 'preserve', aliases: ['p'], type: 'bool', help: 'keep owner, mode and times' },
    { name: 'threads', type: 'int', default: '4', help: 'concurrent copies, at most 255' },
  ],
  async run({ args, flags }) {
    const source = resolve(args[0]!);
    let target = resolve(args[1]!);
    if (args[1]!.endsWith('/') || statSync(target, { throwIfNoEntry: false })?.isDirectory())
      target = join(target, basename(source));
    if (statSync(target, { throwIfNoEntry: false })) throw new Failure(`${target} exists already`);
    const threads = flags.number('threads')!;
    if (threads < 1 || threads > 255) throw new Failure('--threads must be between 1 and 255');
    const name = Buffer.from(basename(target));
    const [sourceDevice, targetDevice] = [dirname(source), dirname(target)].map(path => {
      inodeOf(path);
      return statSync(path).dev;
    });
    if (sourceDevice !== targetDevice) throw new Failure(`${source} and ${dirname(target)} are not on one mount`);
    const body = payload(
      [inodeOf(source), 64],
      [inodeOf(dirname(source)), 64],
      [inodeOf(dirname(target)), 64],
      [name.length, 8],
      name,
      [process.umask(), 16],
      [flags.bool('preserve') ? PRESERVE : 0, 8],
      [threads, 8],
    );
    failOn(target, await control(dirname(target), Control.clone, body));
    return undefined;
  },
};
