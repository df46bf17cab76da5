/** `steadfs summary PATH`: usage of a directory tree. */
import { resolve } from 'node:path';
import type { Command } from './command.ts';
import { Control, control, controlFolder, errnoText, inodeOf, payload } from './control.ts';
import { Failure } from './failure.ts';
import { table } from './table.ts';
import { shortSize } from './units.ts';

/** Answer to command 1007. */
interface Tree {
  Path: string;
  Type: number;
  Size: number;
  Files: number;
  Dirs: number;
  Children?: Tree[] | null;
}

const DIRECTORY = 2;

export const command: Command = {
  name: 'summary',
  args: '<PATH>',
  summary: 'show the usage of a directory tree',
  flags: [
    { name: 'depth', aliases: ['d'], type: 'int', default: '2', help: 'levels shown, at most 10' },
    {
      name: 'entries',
      aliases: ['e'],
      type: 'int',
      default: '10',
      help: 'largest entries shown of a directory, at most 100',
    },
    { name: 'strict', type: 'bool', help: 'count every file instead of trusting the directory statistics' },
    { name: 'csv', type: 'bool', help: 'print comma-separated values' },
  ],
  async run({ args, flags }) {
    const [depth, entries] = [Math.min(flags.number('depth')!, 10), Math.min(flags.number('entries')!, 100)];
    if (depth < 0 || entries < 0) throw new Failure('--depth and --entries must not be negative');
    const path = resolve(args[0]!);
    const body = payload([inodeOf(path), 64], [depth, 8], [entries, 8], [flags.bool('strict') ? 1 : 0, 8]);
    const reply = await control(controlFolder(path), Control.summary, body);
    const answer = reply.json as { Errno: number; Tree: Tree } | undefined;
    const errno = answer ? answer.Errno : (reply.errno ?? 5);
    if (errno !== 0) throw new Failure(`${args[0]}: ${errnoText(errno)}`);
    const rows: string[][] = [];
    const top = answer!.Tree.Path;
    const below = top.endsWith('/') ? top : `${top}/`;
    const add = (tree: Tree, name: string) => {
      const shown = tree.Type === DIRECTORY && !name.endsWith('/') ? `${name}/` : name;
      rows.push([
        shown,
        flags.bool('csv') ? String(tree.Size) : shortSize(tree.Size),
        String(tree.Dirs),
        String(tree.Files),
      ]);
      for (const child of tree.Children ?? [])
        add(child, child.Path.startsWith(below) ? child.Path.slice(below.length) : child.Path);
    };
    add(answer!.Tree, top);
    const header = ['PATH', 'SIZE', 'DIRS', 'FILES'];
    if (flags.bool('csv')) for (const row of [header, ...rows]) console.log(row.join(','));
    else console.log(table(header, rows, 0));
    return undefined;
  },
};
