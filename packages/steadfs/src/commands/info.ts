/** `steadfs info PATH|INODE...`: what a mount knows of files and directories. */
import { resolve } from 'node:path';
import type { Command } from './command.ts';
import { Control, control, controlFolder, inodeOf, payload } from './control.ts';
import { Failure } from './failure.ts';
import { table } from './table.ts';
import { showSize } from './units.ts';

/** Answer to command 1005; fields as the Go client names them. */
interface InfoResponse {
  Ino: number;
  Failed: boolean;
  Reason: string;
  Summary: { Length: number; Size: number; Files: number; Dirs: number };
  Paths: string[] | null;
  Chunks: { ChunkIndex: number; Id: number; Size: number; Off: number; Len: number }[] | null;
  Objects: { ChunkIndex: number; Key: string; Size: number; Off: number; Len: number }[] | null;
  PLocks:
    | { Sid: number; Owner: number | bigint; Type: number; Pid: number; Start: number; End: number | bigint }[]
    | null;
  FLocks: { Sid: number; Owner: number | bigint; Type: string }[] | null;
  Tier?: { ID: number; StorageClass: string; Tag: string };
  RestoreStatus?: string;
}

export const command: Command = {
  name: 'info',
  args: '<PATH|INODE...>',
  summary: 'show inode, size and objects of files and directories',
  flags: [
    {
      name: 'inode',
      aliases: ['i'],
      type: 'bool',
      help: 'the arguments are inode numbers of the mount that holds the working directory',
    },
    { name: 'recursive', aliases: ['r'], type: 'bool', help: 'sum up the whole tree' },
    { name: 'strict', type: 'bool', help: 'count every file instead of trusting the directory statistics' },
    { name: 'raw', type: 'bool', help: 'show slices instead of objects' },
  ],
  async run({ args, flags }) {
    for (const arg of args) {
      if (flags.bool('inode') && !/^[1-9]\d*$/.test(arg)) throw new Failure(`"${arg}" is no inode number`);
      const ino = flags.bool('inode') ? BigInt(arg) : inodeOf(resolve(arg));
      const folder = flags.bool('inode') ? process.cwd() : controlFolder(arg);
      const bit = (name: string) => [flags.bool(name) ? 1 : 0, 8] as const;
      const reply = await control(
        folder,
        Control.infoV2,
        payload([ino, 64], bit('recursive'), bit('raw'), bit('strict')),
      );
      if (reply.errno !== undefined || !reply.json)
        throw new Failure(`${arg}: the mount does not understand the question (errno ${reply.errno})`);
      const info = reply.json as InfoResponse;
      if (info.Failed) throw new Failure(`${arg}: ${info.Reason}`);
      console.log(showInfo(arg, info, flags.bool('raw')));
    }
    return undefined;
  },
};

/** The text of the command for one path. */
export function showInfo(path: string, info: InfoResponse, raw: boolean): string {
  const paths = info.Paths ?? [];
  const lines = [
    `${path} :`,
    `  inode: ${info.Ino}`,
    `  files: ${info.Summary.Files}`,
    `   dirs: ${info.Summary.Dirs}`,
    ` length: ${showSize(info.Summary.Length)}`,
    `   size: ${showSize(info.Summary.Size)}`,
  ];
  if (paths.length === 1) lines.push(`   path: ${paths[0]}`);
  else if (paths.length > 1) lines.push('  paths:', ...paths.map(p => `\t${p}`));
  if (info.Tier !== undefined) lines.push(`   tier: ${info.Tier.ID}->${info.Tier.StorageClass}`);
  if (info.RestoreStatus) lines.push(`restore: ${info.RestoreStatus}`);
  if (raw && info.Chunks?.length) {
    lines.push(' chunks:');
    lines.push(
      table(
        ['chunkIndex', 'sliceId', 'size', 'offset', 'length'],
        info.Chunks.map(c => [c.ChunkIndex, c.Id, c.Size, c.Off, c.Len].map(String)),
      ),
    );
  }
  if (!raw && info.Objects?.length) {
    lines.push(' objects:');
    let position = 0;
    lines.push(
      table(
        ['chunkIndex', 'objectName', 'size', 'offset', 'length', 'pos'],
        info.Objects.map(o => {
          const row = [String(o.ChunkIndex), o.Key, ...[o.Size, o.Off, o.Len, position].map(String)];
          position += o.Len;
          return row;
        }),
        1,
      ),
    );
  }
  if (info.FLocks?.length)
    lines.push(
      ' flocks:',
      table(
        ['Sid', 'Owner', 'Type'],
        info.FLocks.map(l => [l.Sid, l.Owner, l.Type].map(String)),
      ),
    );
  if (info.PLocks?.length)
    lines.push(
      ' plocks:',
      table(
        ['Sid', 'Owner', 'Type', 'Pid', 'Start', 'End'],
        info.PLocks.map(l => [l.Sid, l.Owner, l.Type === 0 ? 'R' : 'W', l.Pid, l.Start, l.End].map(String)),
      ),
    );
  return lines.join('\n');
}
