/**
 * Talks to a mount through its `.control` file (spec: volume format §13.1): a message is written, progress and result are read back on
 * the same descriptor.
 */
import { closeSync, constants, openSync, readSync, statSync, writeSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getSystemErrorMap } from 'node:util';
import { Failure, messageOf } from './failure.ts';

export const Control = { rmr: 1002, infoV2: 1005, clone: 1006, summary: 1007, compact: 1008 } as const;

const PROGRESS = 0xfe;
const DATA = 0xff;

/** Result of a command: its JSON, or the errno of one that answers with a byte. */
export interface ControlReply {
  json?: unknown;
  errno?: number;
  /** The last running totals. */
  progress: [bigint, bigint];
}

/** The inode as the mount shows it; Failure when the path is not there or not on Steadfs. */
export function inodeOf(path: string): bigint {
  try {
    return statSync(path, { bigint: true }).ino;
  } catch (error) {
    throw new Failure(`${path}: ${messageOf(error)}`);
  }
}

/** Builds a payload: numbers with their width in bits, bytes as they are. */
export function payload(...fields: (readonly [value: number | bigint, bits: 8 | 16 | 32 | 64] | Uint8Array)[]): Buffer {
  return Buffer.concat(
    fields.map(field => {
      if (field instanceof Uint8Array) return field;
      const out = Buffer.alloc(field[1] / 8);
      if (field[1] === 64) out.writeBigUInt64BE(BigInt(field[0]));
      else out.writeUIntBE(Number(field[0]), 0, out.length);
      return out;
    }),
  );
}

/** Opens the control file of the mount that holds `directory`. */
function openControl(directory: string): number {
  for (const name of ['.control', '.jfs.control'])
    try {
      return openSync(`${directory}/${name}`, constants.O_RDWR);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== 'ENOENT') throw new Failure(`${directory}/${name}: ${messageOf(error)}`);
    }
  throw new Failure(`${directory} is not on a Steadfs mount`);
}

/** Sends one command, and waits for its result. `path` lies on the mount (or is about to). */
export async function control(
  directory: string,
  command: number,
  body: Buffer,
  progress?: (a: bigint, b: bigint) => void,
): Promise<ControlReply> {
  const fd = openControl(directory);
  try {
    const message = payload([command, 32], [body.length, 32], body);
    writeSync(fd, message);
    let position = message.length;
    let pending: Buffer = Buffer.alloc(0);
    const reply: ControlReply = { progress: [0n, 0n] };
    const chunk = Buffer.alloc(128 * 1024);
    for (let wait = 1; ; ) {
      const n = readSync(fd, chunk, 0, chunk.length, position);
      if (n === 0) {
        await sleep(wait);
        wait = Math.min(wait * 2, 100);
        continue;
      }
      wait = 1;
      position += n;
      pending = Buffer.concat([pending, chunk.subarray(0, n)]);
      while (pending.length > 0) {
        const kind = pending[0]!;
        if (kind === PROGRESS) {
          if (pending.length < 17) break;
          reply.progress = [pending.readBigUInt64BE(1), pending.readBigUInt64BE(9)];
          progress?.(...reply.progress);
          pending = pending.subarray(17);
        } else if (kind === DATA) {
          if (pending.length < 5 || pending.length < 5 + pending.readUInt32BE(1)) break;
          reply.json = JSON.parse(pending.toString('utf8', 5, 5 + pending.readUInt32BE(1)));
          return reply;
        } else {
          reply.errno = kind;
          return reply;
        }
      }
    }
  } finally {
    closeSync(fd);
  }
}

/** "no such file or directory" for 2. */
export function errnoText(errno: number): string {
  return getSystemErrorMap().get(-errno)?.[1] ?? `errno ${errno}`;
}

export function failOn(path: string, reply: ControlReply): void {
  if (reply.errno) throw new Failure(`${path}: ${errnoText(reply.errno)}`);
}

/** Folder whose control file serves the path: itself when it is one, else its parent. */
export function controlFolder(path: string): string {
  const absolute = resolve(path);
  return statSync(absolute, { throwIfNoEntry: false })?.isDirectory() ? absolute : dirname(absolute);
}
