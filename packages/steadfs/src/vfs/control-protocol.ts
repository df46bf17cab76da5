/** Messages of `.control` (spec/volume.md §13.1), all numbers big-endian: what is written, and the stream that is read back. */
import { type Ino, inoFromHalves } from '../format/ino.ts';

export const Command = { rmr: 1002, legacyInfo: 1003, info: 1005, clone: 1006, summary: 1007, compact: 1008 } as const;

export type Request =
  | { command: 'rmr'; parent: Ino; name: Buffer; skipTrash: boolean; threads: number }
  | { command: 'info'; ino: Ino; recursive: boolean; raw: boolean; strict: boolean }
  | {
      command: 'clone';
      source: Ino;
      sourceParent: Ino;
      parent: Ino;
      name: Buffer;
      umask: number;
      preserve: boolean;
      threads: number;
    }
  | { command: 'summary'; ino: Ino; depth: number; entries: number; strict: boolean }
  | { command: 'compact'; ino: Ino; threads: number };

/** Larger ones are refused: no command of ours needs more than two names. */
export const MAX_MESSAGE = 64 * 1024;

/** Bytes of the whole message that begins here; undefined while its head is not complete. */
export function messageLength(b: Uint8Array): number | undefined {
  if (b.length < 8) return undefined;
  return 8 + new DataView(b.buffer, b.byteOffset, b.byteLength).getUint32(4);
}

class Reader {
  readonly #b: Buffer;
  #at = 8;

  constructor(b: Buffer) {
    this.#b = b;
  }

  get left(): number {
    return this.#b.length - this.#at;
  }

  /** Throws RangeError at the end of the message. */
  u8(): number {
    return this.#b.readUInt8(this.#at++);
  }

  u16(): number {
    this.#at += 2;
    return this.#b.readUInt16BE(this.#at - 2);
  }

  ino(): Ino {
    this.#at += 8;
    return inoFromHalves(this.#b.readUInt32BE(this.#at - 8), this.#b.readUInt32BE(this.#at - 4));
  }

  name(): Buffer {
    const length = this.u8();
    if (length === 0 || this.left < length) throw new RangeError('a message without its name');
    this.#at += length;
    return this.#b.subarray(this.#at - length, this.#at);
  }

  /** What follows the mandatory fields may be missing. */
  optional(read: () => number, otherwise: number): number {
    return this.left > 0 ? read() : otherwise;
  }
}

/** Undefined for a command that is not known, and for one with missing fields: both are answered EINVAL. */
export function parseRequest(message: Buffer): Request | undefined {
  const r = new Reader(message);
  try {
    switch (message.readUInt32BE(0)) {
      case Command.rmr: {
        const [parent, name] = [r.ino(), r.name()];
        return {
          command: 'rmr',
          parent,
          name,
          skipTrash: r.optional(() => r.u8(), 0) === 1,
          threads: r.optional(() => r.u8(), 50),
        };
      }
      case Command.info: {
        const ino = r.ino();
        const flag = () => r.optional(() => r.u8(), 0) === 1;
        return { command: 'info', ino, recursive: flag(), raw: flag(), strict: flag() };
      }
      case Command.clone: {
        const [source, sourceParent, parent, name] = [r.ino(), r.ino(), r.ino(), r.name()];
        const [umask, mode] = [r.u16(), r.u8()];
        return {
          command: 'clone',
          source,
          sourceParent,
          parent,
          name,
          umask,
          preserve: (mode & 2) !== 0,
          threads: r.optional(() => r.u8(), 4),
        };
      }
      case Command.summary: {
        const ino = r.ino();
        const [depth, entries] = [r.optional(() => r.u8(), 2), r.optional(() => r.u8(), 10)];
        return { command: 'summary', ino, depth, entries, strict: r.optional(() => r.u8(), 0) === 1 };
      }
      case Command.compact:
        return { command: 'compact', ino: r.ino(), threads: r.left >= 2 ? r.u16() : 10 };
      default:
        return undefined;
    }
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

const PROGRESS_BYTES = 17;

/** Running totals. */
export function progressItem(a: number, b: number): Buffer {
  const out = Buffer.alloc(PROGRESS_BYTES);
  out[0] = 0xfe;
  out.writeBigUInt64BE(BigInt(a), 1);
  out.writeBigUInt64BE(BigInt(b), 9);
  return out;
}

export function dataItem(text: string): Buffer {
  const body = Buffer.from(text);
  const out = Buffer.alloc(5 + body.length);
  out[0] = 0xff;
  out.writeUInt32BE(body.length, 1);
  body.copy(out, 5);
  return out;
}

/** The last item of a command that answers with a byte: low 8 bits of the errno, 0 for success. */
export function errnoItem(errno: number): Buffer {
  return Buffer.of(errno & 0xff);
}
