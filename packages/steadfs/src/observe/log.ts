/**
 * Log lines for people: `2026/11/21 07:39:53.298308 steadfs[9533] <INFO>: message {"more":1}`, and the stack of an error below.
 * (pino was measured: 20 ms of start-up, which a crash would add to its pause, and 8 MB resident.)
 */
import { appendFileSync, closeSync, existsSync, mkdirSync, openSync, write, writeSync } from 'node:fs';
import { dirname } from 'node:path';

export const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const;
export type Level = (typeof LEVELS)[number];

/** `log.warn('text')`, `log.warn({ err: error, inode: 7 }, 'text')` */
type Write = (first: string | Record<string, unknown>, message?: string) => void;

export type Log = Record<Level, Write>;

export interface LogOptions {
  level: string;
  color?: boolean;
  /** Appended to; stderr when absent. */
  file?: string;
  /** Lines are written off the event loop, in order: a full disk or a stopped terminal must not stop a mount. */
  async?: boolean;
}

export interface LogHandle extends Log {
  /** Opens the file again by name (after it was rotated). */
  reopen(): void;
  /** What was logged is in the file. */
  flush(): void;
}

const NAMES: Record<Level, string> = {
  trace: 'TRACE',
  debug: 'DEBUG',
  info: 'INFO',
  warn: 'WARNING',
  error: 'ERROR',
  fatal: 'FATAL',
};
const COLORS: Record<Level, number> = { trace: 90, debug: 90, info: 34, warn: 33, error: 31, fatal: 31 };
/** Lines that wait for a slow disk; further ones are counted and dropped. */
const MOST_WAITING = 10_000;

/** One line, with its newline. `time` in ms since 1970, fractions count. */
export function formatLine(
  level: Level,
  fields: Record<string, unknown>,
  message: string,
  time: number,
  color: boolean,
): string {
  const { err, ...rest } = fields;
  const d = new Date(Math.floor(time));
  const two = (n: number) => String(n).padStart(2, '0');
  const fraction = String(Math.floor((time % 1000) * 1000)).padStart(6, '0');
  const when = `${d.getFullYear()}/${two(d.getMonth() + 1)}/${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${fraction}`;
  const name = color ? `\u001b[${COLORS[level]}m<${NAMES[level]}>\u001b[0m` : `<${NAMES[level]}>`;
  const more =
    Object.keys(rest).length > 0
      ? ` ${JSON.stringify(rest, (_, v: unknown) => (typeof v === 'bigint' ? v.toString() : v))}`
      : '';
  return `${when} steadfs[${process.pid}] ${name}: ${message}${more}${err === undefined ? '' : `\n${errorText(err)}`}\n`;
}

/** The stack of an error and of its causes. */
function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const own = error.stack ?? error.message;
  return error.cause === undefined ? own : `${own}\ncaused by ${errorText(error.cause)}`;
}

/** mkdir -p. (Node's own never ends where mkdir answers ENOENT below a folder that exists, as in /proc.) */
export function makeFolder(path: string): void {
  if (existsSync(path)) return;
  makeFolder(dirname(path));
  mkdirSync(path);
}

/** Starts logging. A file's folder is made when it is missing; throws when the file cannot be opened. */
export function startLog(options: LogOptions): LogHandle {
  if (options.file) makeFolder(dirname(options.file));
  const open = () => (options.file ? openSync(options.file, 'a', 0o644) : 2);
  let fd = open();
  const least = Math.max(0, LEVELS.indexOf(options.level as Level));
  let waiting: string[] = [];
  let dropped = 0;
  let busy = false;

  const pump = (): void => {
    if (busy || waiting.length === 0) return;
    busy = true;
    const data = Buffer.from(waiting.join(''));
    waiting = [];
    write(fd, data, 0, data.length, null, () => {
      // A disk that is full or a terminal that is gone cannot be told to anybody; the next line is tried again.
      busy = false;
      if (dropped > 0) {
        waiting.push(line('warn', {}, `${dropped} log lines were dropped`));
        dropped = 0;
      }
      pump();
    });
  };
  const line = (level: Level, fields: Record<string, unknown>, message: string) =>
    formatLine(level, fields, message, performance.timeOrigin + performance.now(), options.color ?? false);
  const put = (text: string): void => {
    if (!options.async) {
      if (options.file) appendFileSync(fd, text);
      else writeSync(fd, text);
    } else if (waiting.length >= MOST_WAITING) dropped++;
    else {
      waiting.push(text);
      pump();
    }
  };
  const at = (level: Level): Write =>
    LEVELS.indexOf(level) < least
      ? () => {}
      : (first, message) => put(typeof first === 'string' ? line(level, {}, first) : line(level, first, message ?? ''));

  return {
    trace: at('trace'),
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    fatal: at('fatal'),
    reopen() {
      if (!options.file) return;
      const old = fd;
      fd = open();
      // A write that is under way ends on the old one first.
      setTimeout(() => closeSync(old), 1000).unref();
    },
    flush() {
      const text = waiting.join('');
      waiting = [];
      if (text === '') return;
      try {
        writeSync(fd, text);
      } catch {
        // At the very end: there is nobody left to tell.
      }
    },
  };
}
