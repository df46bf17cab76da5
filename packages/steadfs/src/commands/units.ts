/** Sizes, durations and other values of flags, as the Go client takes them (spec: command line §1). */
import { Failure } from './failure.ts';

const BINARY = 'BKMGTPE';

/**
 * Bytes. A decimal number with an optional one-letter binary suffix; a bare number counts in `unit`. `MiB`-style suffixes are
 * refused.
 */
export function parseSize(text: string, unit: string, flag: string): number {
  const match = /^(\d+(?:\.\d*)?|\.\d+)([BbKkMmGgTtPpEe]?)$/.exec(text);
  if (!match) throw new Failure(`--${flag}: "${text}" is not a size (a number with B, K, M, G, T, P or E)`);
  const power = BINARY.indexOf((match[2] || unit).toUpperCase());
  return Math.floor(Number(match[1]) * 1024 ** power);
}

const GO_UNITS: Record<string, number> = { ns: 1e-9, us: 1e-6, µs: 1e-6, μs: 1e-6, ms: 1e-3, s: 1, m: 60, h: 3600 };

/** Seconds. A plain number, or a Go duration (`1h30m`, `300ms`) that may begin with days (`2d12h`). */
export function parseDuration(text: string, flag: string): number {
  if (/^[+-]?(\d+(\.\d*)?|\.\d+)$/.test(text)) return Number(text);
  const match = /^([+-]?)(?:(\d+)d)?((?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))*)$/.exec(text);
  if (!match || (!match[2] && !match[3]))
    throw new Failure(`--${flag}: "${text}" is not a duration (seconds, or like 1h30m, 300ms, 2d)`);
  let seconds = Number(match[2] ?? 0) * 86400;
  for (const part of (match[3] ?? '').matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g))
    seconds += Number(part[1]) * GO_UNITS[part[2]!]!;
  return match[1] === '-' ? -seconds : seconds;
}

export function parseInteger(text: string, flag: string): number {
  if (!/^[+-]?\d+$/.test(text) || !Number.isSafeInteger(Number(text)))
    throw new Failure(`--${flag}: "${text}" is not an integer`);
  return Number(text);
}

/** Mbps. M ×1, G ×1e3, T ×1e6, P ×1e9. */
export function parseBandwidth(text: string, flag: string): number {
  const match = /^(\d+(?:\.\d*)?)([MGTP]?)$/i.exec(text);
  if (!match) throw new Failure(`--${flag}: "${text}" is not a bandwidth (Mbps, with M, G, T or P)`);
  return Math.floor(Number(match[1]) * 1000 ** Math.max(0, 'MGTP'.indexOf((match[2] || 'M').toUpperCase())));
}

/** "1.50 MiB (1572864 Bytes)": the form that `info` prints. */
export function showSize(bytes: number): string {
  if (bytes < 1024) return `${bytes} Bytes`;
  let value = bytes;
  let power = 0;
  while (value >= 1024 && power < BINARY.length - 1) {
    value /= 1024;
    power++;
  }
  return `${value.toFixed(2)} ${BINARY[power]}iB (${bytes} Bytes)`;
}

/** "9.0 MiB", "18 MiB", "0 B": the short form of tables and settings. */
export function shortSize(bytes: number): string {
  if (bytes < 10) return `${bytes} B`;
  const power = Math.min(Math.floor(Math.log(bytes) / Math.log(1024) + 1e-12), BINARY.length - 1);
  const value = Math.floor((bytes / 1024 ** power) * 10 + 0.5) / 10;
  return `${value < 10 && power > 0 ? value.toFixed(1) : value.toFixed(0)} ${power === 0 ? 'B' : `${BINARY[power]}iB`}`;
}
