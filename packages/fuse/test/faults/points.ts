/**
 * What stands in for src/fault.ts in a bundle made with `scripts/build.ts --faults`. The file that $STEADFS_FAULT_FILE names says what is to happen; it is read anew at
 * every point, so it can be armed while a mount is at work:
 *
 *     record               every point that is reached is added to FILE.seen
 *     ACTION NAME [N]      the Nth time (default: the first) that a process comes to point NAME it does ACTION. The line is taken out before, and the next one counts
 *
 * ACTION: kill (SIGKILL), segv (SIGSEGV), abort (SIGABRT), stop (SIGSTOP), hang (the loop does not turn any more), throw, reject-later (an exception nobody catches), exit:CODE.
 * A process counts anew when the first line changes.
 */
import { appendFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { opcodeName } from '../../src/abi.ts';

const file = process.env.STEADFS_FAULT_FILE;
let armed = '';
let left = 0;

function nameOf(name: string, what: unknown): string {
  if (what === undefined) return name;
  if (typeof what !== 'object' || what === null) return `${name}:${String(what)}`;
  const { opcode, op, name: own } = what as { opcode?: number; op?: { kind: number }; name?: string };
  if (opcode !== undefined) return `${name}:${opcodeName[opcode] ?? opcode}`;
  if (own !== undefined) return `${name}:${own}`;
  return `${name}:${op === undefined ? 'none' : op.kind}`;
}

export function faultPoint(name: string, what?: unknown): void {
  if (file === undefined) return;
  // The requests of a warm-up pass points too, and would be counted.
  if (name === 'warm-up.before') throw new Error('faults are to be injected');
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return; // not armed
  }
  const end = text.indexOf('\n');
  const line = end < 0 ? text : text.slice(0, end);
  if (line === '') return;
  const here = nameOf(name, what);
  if (line === 'record') {
    appendFileSync(`${file}.seen`, `${here}\n`);
    return;
  }
  const [action = '', wanted, count = '1'] = line.split(' ');
  if (wanted !== here) return;
  if (armed !== text) {
    armed = text;
    left = Number(count);
  }
  if (--left > 0) return;
  writeFileSync(`${file}.next`, end < 0 ? '' : text.slice(end + 1));
  renameSync(`${file}.next`, file);
  act(action, here);
}

function act(action: string, name: string): void {
  switch (action) {
    case 'kill':
      process.kill(process.pid, 'SIGKILL');
      break;
    case 'segv':
      process.kill(process.pid, 'SIGSEGV');
      break;
    case 'abort':
      process.kill(process.pid, 'SIGABRT');
      break;
    case 'stop':
      process.kill(process.pid, 'SIGSTOP');
      return;
    case 'throw':
      throw new Error(`fault at ${name}`);
    case 'reject-later':
      void Promise.reject(new Error(`fault after ${name}`));
      return;
    case 'hang':
      break;
    default:
      if (action.startsWith('exit:')) process.exit(Number(action.slice(5)));
  }
  // The signal arrives when the call comes back, but a thread of its own may take it: nothing may happen meanwhile.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}
