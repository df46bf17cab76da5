/** The part of the log that pino does. Loaded by log.ts when the start is over. */
import { destination, type Logger, pino } from 'pino';
import { errorText, formatLine, type Level, type LogOptions } from './log.ts';

export interface PinoLog {
  logger: Logger;
  reopen(): void;
}

/** Bytes that wait for a disk that is full or a pipe that is; further lines are counted and dropped. */
const MOST_WAITING = 1 << 21;

/** pino's record as a line for people. */
function lineOf(record: string, color: boolean): string {
  const { level, time, msg, ...fields } = JSON.parse(record) as {
    level: Level;
    time: number;
    msg?: string;
    [field: string]: unknown;
  };
  return formatLine(level, fields, msg ?? '', time, color);
}

/** Opens the destination, writes `early` lines to it, and logs to it from then on. Throws when the file cannot be opened. */
export function openPino(options: LogOptions, early: string): PinoLog {
  // Synchronous: what was logged is written when the process is killed. A busy pipe (EAGAIN) is not waited for.
  const out = destination({
    dest: options.file ?? 2,
    append: true,
    mode: 0o644,
    sync: true,
    maxLength: MOST_WAITING,
    retryEAGAIN: () => false,
  });
  let dropped = 0;
  out.on('error', () => {
    // A disk that is full cannot be told to anybody; the next line tries again.
  });
  const logger = pino(
    {
      level: options.level,
      base: null,
      // Microseconds: the order of lines of several processes matters.
      timestamp: () => `,"time":${performance.timeOrigin + performance.now()}`,
      formatters: {
        level: label => ({ level: label }),
        log: fields =>
          Object.fromEntries(Object.entries(fields).map(([k, v]) => [k, typeof v === 'bigint' ? v.toString() : v])),
      },
      serializers: { err: errorText },
    },
    { write: (record: string) => void out.write(lineOf(record, options.color ?? false)) },
  );
  out.on('drop', () => dropped++);
  out.on('drain', () => {
    if (dropped === 0) return;
    const lines = dropped;
    dropped = 0;
    logger.warn(`${lines} log lines were dropped`);
  });
  if (early !== '') out.write(early);
  return {
    logger,
    reopen() {
      try {
        out.reopen();
      } catch (error) {
        logger.warn({ err: error }, 'the log file cannot be opened again');
      }
    },
  };
}
