/**
 * Log lines for people: `2026/11/21 07:39:53.298308 steadfs[9533] <INFO>: message {"more":1}`, and the stack of an error below. They are pino's
 * (log-pino.ts), which costs 10 ms of CPU and 8 MB to load: it is loaded when the process is past its start, so that a crash does not add that to its pause.
 * Lines until then wait in memory; a process that ends before writes them itself.
 */
import { closeSync, existsSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import type { PinoLog } from './log-pino.ts';

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
  /** Milliseconds from the first line until pino is loaded; 0 when absent. A warning or worse does not wait longer than 100. */
  startUpMs?: number;
}

export interface LogHandle extends Log {
  /** Opens the file again by name (after it was rotated). */
  reopen(): void;
  /** Lines that still wait for pino are written, synchronously. Happens at the process's exit by itself. */
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
const WARNING_MS = 100;

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
export function errorText(error: unknown): string {
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
  let pino: PinoLog | undefined;
  /** Lines before pino is there. */
  let early: string[] = [];
  let timer: NodeJS.Timeout | undefined;
  let due = Number.POSITIVE_INFINITY;
  /** pino cannot be loaded: every line is written at once then. */
  let without = false;

  const flush = (): void => {
    clearTimeout(timer);
    due = Number.POSITIVE_INFINITY;
    const text = early.join('');
    early = [];
    if (text === '') return;
    try {
      writeSync(fd, text);
    } catch {
      // A disk that is full or a terminal that is gone cannot be told to anybody.
    }
  };
  const load = async (): Promise<void> => {
    try {
      const { openPino } = await import('./log-pino.ts');
      if (pino) return;
      pino = openPino(options, early.join(''));
      early = [];
      if (options.file) closeSync(fd);
    } catch (error) {
      without = true;
      put('warn', { err: error }, 'logging goes on without its library');
    }
  };
  const schedule = (ms: number): void => {
    const at = performance.now() + ms;
    if (at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(load, ms).unref();
  };
  const put = (level: Level, fields: Record<string, unknown>, message: string): void => {
    if (pino) {
      pino.logger[level](fields, message);
      return;
    }
    const time = performance.timeOrigin + performance.now();
    early.push(formatLine(level, fields, message, time, options.color ?? false));
    const ms = options.startUpMs ?? 0;
    if (without) flush();
    else schedule(LEVELS.indexOf(level) >= LEVELS.indexOf('warn') ? Math.min(ms, WARNING_MS) : ms);
  };
  const at = (level: Level): Write =>
    LEVELS.indexOf(level) < least
      ? () => {}
      : (first, message) => (typeof first === 'string' ? put(level, {}, first) : put(level, first, message ?? ''));

  process.once('exit', flush);
  return {
    trace: at('trace'),
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    fatal: at('fatal'),
    reopen() {
      if (!options.file) return;
      if (pino) return pino.reopen();
      try {
        const old = fd;
        fd = open();
        closeSync(old);
      } catch (error) {
        put('warn', { err: error }, 'the log file cannot be opened again');
      }
    },
    flush,
  };
}
