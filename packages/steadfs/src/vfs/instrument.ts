/** Counts and times every call of a file system, and writes the access log. */
import type { Context, FileSystem } from '@steadfs/fuse';
import { Errno } from '@steadfs/fuse/errno';
import type { Metrics } from '../observe/metrics.ts';
import { type AccessLog, shownName } from './accesslog.ts';

/** Methods that are not requests, or have no answer. */
const PLAIN = new Set(['init', 'destroy', 'forget', 'readDone']);

type Call = (...args: unknown[]) => unknown;

/** A file system that does what `fs` does, measured. */
export function instrument(fs: FileSystem, metrics: Metrics, log: AccessLog): FileSystem {
  const out: Record<string, unknown> = {};
  for (const [name, method] of Object.entries(fs)) {
    out[name] =
      typeof method !== 'function' || PLAIN.has(name) ? method : measured(name, method.bind(fs) as Call, metrics, log);
  }
  return out as unknown as FileSystem;
}

function measured(name: string, call: Call, metrics: Metrics, log: AccessLog): Call {
  const note = (start: number, args: unknown[] | undefined, result: unknown, error: unknown) => {
    const seconds = (performance.now() - start) / 1000;
    metrics.fuseOps.inc(1, name);
    metrics.fuseOpsSeconds.inc(seconds, name);
    metrics.fuseOpsHistogram.observe(seconds);
    if (error !== undefined && (name === 'read' || name === 'write')) metrics.fuseErrors.inc(1, codeOf(error));
    if (args !== undefined) {
      const what = `${name} (${args.slice(1).map(shown).join(',')})`;
      log.add(
        args[0] as Context,
        what,
        error === undefined ? shownResult(result) : '',
        error === undefined ? undefined : messageOf(error),
        seconds,
      );
    }
  };
  return (a, b, c, d, e, f, g, h, i) => {
    const start = performance.now();
    // Arguments are views that may be gone at the end.
    const args = log.active ? [a, b, c, d, e, f, g, h, i].filter(v => v !== undefined).map(frozen) : undefined;
    let result: unknown;
    try {
      result = call(a, b, c, d, e, f, g, h, i);
    } catch (error) {
      note(start, args, undefined, error);
      throw error;
    }
    // An error may be answered instead of thrown.
    if (!(result instanceof Promise)) {
      note(start, args, result, result instanceof Errno ? result : undefined);
      return result;
    }
    return result.then(
      value => {
        note(start, args, value, value instanceof Errno ? value : undefined);
        return value;
      },
      error => {
        note(start, args, undefined, error);
        throw error;
      },
    );
  };
}

function codeOf(error: unknown): string {
  return error instanceof Errno ? error.code : 'EIO';
}

function messageOf(error: unknown): string {
  return error instanceof Errno ? error.message : 'input/output error';
}

function frozen(value: unknown): unknown {
  return value instanceof Uint8Array && value.length <= 255
    ? shownName(value)
    : value instanceof Uint8Array
      ? `[${value.length}]`
      : value;
}

function shown(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value);
  const parts: string[] = [];
  for (const [k, v] of Object.entries(value)) {
    if (k === 'data') parts.push(`length:${(v as { bytes: Uint8Array }).bytes.length}`);
    else if (typeof v !== 'object' && typeof v !== 'function' && v !== undefined) parts.push(`${k}:${String(v)}`);
  }
  return parts.join(',');
}

function shownResult(value: unknown): string {
  if (typeof value === 'number') return `(${value}) `;
  if (value instanceof Uint8Array) return `(${value.length}) `;
  if (typeof value !== 'object' || value === null) return '';
  const v = value as { nodeid?: number; fh?: number; attr?: { ino: number | bigint; size: number } };
  const parts: string[] = [];
  if (v.attr !== undefined) parts.push(`${v.attr.ino},size:${v.attr.size}`);
  if (v.fh !== undefined) parts.push(`fh:${v.fh}`);
  return parts.length > 0 ? `(${parts.join(',')}) ` : '';
}
