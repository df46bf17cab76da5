/**
 * `.accesslog`: one line for each operation, for every reader its own queue (spec/volume.md §13.2). Nothing is formatted while nobody reads.
 */
import type { Context } from '@steadfs/fuse';

const QUEUE_LINES = 10_240;
/** A read that finds nothing waits this long, ms. */
const WAIT = 1000;

interface Reader {
  lines: string[];
  /** Rest of a line that was longer than the read. */
  rest: Buffer;
  wake: (() => void) | undefined;
}

export class AccessLog {
  readonly #readers = new Map<number, Reader>();

  get active(): boolean {
    return this.#readers.size > 0;
  }

  open(fh: number): void {
    if (!this.#readers.has(fh)) this.#readers.set(fh, { lines: [], rest: Buffer.alloc(0), wake: undefined });
  }

  close(fh: number): void {
    this.#readers.get(fh)?.wake?.();
    this.#readers.delete(fh);
  }

  /** `seconds` is what the operation took; `errno` 0 for success, with the text of the error else. */
  add(ctx: Context, what: string, result: string, error: string | undefined, seconds: number): void {
    const line = `${timestamp(performance.timeOrigin + performance.now())} [uid:${ctx.uid},gid:${ctx.gid},pid:${ctx.pid}] ${what}: ${result}${error ?? 'OK'} <${seconds.toFixed(6)}>\n`;
    for (const reader of this.#readers.values()) {
      if (reader.lines.length < QUEUE_LINES) reader.lines.push(line);
      reader.wake?.();
    }
  }

  /** Lines that are there; `#\n` when none comes for a second. Whole lines where they fit. */
  async read(fh: number, size: number, ctx: Pick<Context, 'interrupt' | 'park' | 'endless'>): Promise<Uint8Array> {
    this.open(fh);
    const reader = this.#readers.get(fh)!;
    if (reader.lines.length === 0 && reader.rest.length === 0) {
      ctx.endless = true;
      ctx.park();
      await new Promise<void>(resolve => {
        const timer = setTimeout(resolve, WAIT);
        const done = () => {
          clearTimeout(timer);
          resolve();
        };
        reader.wake = done;
        void ctx.interrupt.promise.then(done);
      });
      reader.wake = undefined;
    }
    if (reader.lines.length === 0 && reader.rest.length === 0) return Buffer.from('#\n');
    let out = reader.rest;
    let taken = 0;
    const parts = [out];
    let length = out.length;
    while (length < size && taken < reader.lines.length) {
      const line = Buffer.from(reader.lines[taken++]!);
      parts.push(line);
      length += line.length;
    }
    reader.lines.splice(0, taken);
    out = Buffer.concat(parts);
    reader.rest = out.subarray(size);
    return out.subarray(0, size);
  }
}

/** `YYYY.MM.DD hh:mm:ss.uuuuuu`, local time, of milliseconds since 1970. */
export function timestamp(ms: number): string {
  const d = new Date(Math.floor(ms));
  const two = (n: number) => String(n).padStart(2, '0');
  const micros = String(Math.floor((ms % 1000) * 1000)).padStart(6, '0');
  return `${d.getFullYear()}.${two(d.getMonth() + 1)}.${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${micros}`;
}

/** A name as it stands in the log: as it is when it holds nothing odd, else quoted. */
export function shownName(name: Uint8Array): string {
  const text = Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('utf8');
  return /^[^\p{Cc}`\ufffd]*$/u.test(text) ? text : JSON.stringify(text);
}
