/**
 * Log lines for people, by pino: `2026/11/21 07:39:53.298308 steadfs[9533] <INFO>: message {"more":1}`. Writing never blocks the
 * loop when it goes to a file.
 */
import { existsSync, mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { destination, type Logger, pino } from 'pino';

export type Log = Logger;

export interface LogOptions {
  level: string;
  color?: boolean;
  /** Appended to; stderr when absent. */
  file?: string;
}

const NAMES: Record<number, string> = { 10: 'TRACE', 20: 'DEBUG', 30: 'INFO', 40: 'WARNING', 50: 'ERROR', 60: 'FATAL' };
const COLORS: Record<number, string> = { 10: '90', 20: '90', 30: '34', 40: '33', 50: '31', 60: '31' };

/** One JSON record of pino as a line for people. */
export function formatRecord(json: string, color: boolean): string {
  const {
    level,
    time,
    pid,
    msg,
    err,
    hostname: _,
    ...rest
  } = JSON.parse(json) as Record<string, unknown> & {
    level: number;
    time: number;
  };
  const d = new Date(Math.floor(time));
  const two = (n: number) => String(n).padStart(2, '0');
  const fraction = String(Math.floor((time % 1000) * 1000)).padStart(6, '0');
  const when = `${d.getFullYear()}/${two(d.getMonth() + 1)}/${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${fraction}`;
  const name = NAMES[level] ?? String(level);
  const shown = color ? `\u001b[${COLORS[level] ?? '0'}m<${name}>\u001b[0m` : `<${name}>`;
  const more = Object.keys(rest).length > 0 ? ` ${JSON.stringify(rest)}` : '';
  const e = err as { message?: string; stack?: string } | undefined;
  const trace = e ? `\n${e.stack ?? e.message}` : '';
  return `${when} steadfs[${String(pid)}] ${shown}: ${String(msg ?? '')}${more}${trace}\n`;
}

export interface LogHandle extends Log {
  /** Opens the file again by name (after it was rotated). */
  reopen(): void;
  /** What was logged is in the file. */
  flushLog(): void;
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
  const out = destination(options.file ? { dest: options.file, sync: false, append: true } : { fd: 2, sync: true });
  const stream = { write: (json: string) => out.write(formatRecord(json, options.color ?? false)) };
  const log = pino(
    {
      level: options.level,
      // Microseconds: the order of lines of several processes matters.
      timestamp: () => `,"time":${performance.timeOrigin + performance.now()}`,
    },
    stream,
  );
  return Object.assign(log, {
    reopen: () => {
      if (options.file) out.reopen();
    },
    flushLog: () => {
      if (options.file) out.flushSync();
    },
  });
}
