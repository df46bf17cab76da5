/** Keepers and services of mounts, and what they use. */
import { readdirSync, readFileSync } from 'node:fs';
import { processesWith } from '../packages/steadfs/test/support/volume.ts';

export interface Parts {
  keeper: number[];
  service: number[];
}

/** Keepers and services among the processes with this word in their command line. */
export function parts(word: string): Parts {
  const result: Parts = { keeper: [], service: [] };
  for (const pid of processesWith(word)) {
    const argv = readOf(pid, 'cmdline').split('\0');
    if (argv[1] === '-s') result.keeper.push(pid);
    else if (argv.includes('service')) result.service.push(pid);
  }
  return result;
}

function readOf(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1');
  } catch {
    return ''; // ended meanwhile
  }
}

/** MiB; CPU in ms; context switches. */
export interface Usage {
  resident: number;
  proportional: number;
  own: number;
  cpu: number;
  switches: number;
  fds: number;
  threads: number;
}

export function usage(pids: readonly number[]): Usage {
  const sum: Usage = { resident: 0, proportional: 0, own: 0, cpu: 0, switches: 0, fds: 0, threads: 0 };
  for (const pid of pids) {
    const rollup = readOf(pid, 'smaps_rollup');
    const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(rollup)?.[1] ?? 0) / 1024;
    sum.resident += kib('Rss');
    sum.proportional += kib('Pss');
    sum.own += kib('Private_Clean') + kib('Private_Dirty');
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      // Nanoseconds on a processor, first.
      sum.cpu += Number(readOf(pid, `task/${task}/schedstat`).split(' ')[0]) / 1e6;
      for (const [, n] of readOf(pid, `task/${task}/status`).matchAll(/ctxt_switches:\s+(\d+)/g))
        sum.switches += Number(n);
      sum.threads++;
    }
    sum.fds += readdirSync(`/proc/${pid}/fd`).length;
  }
  return sum;
}
