/** Keeps an idle mount small. */
import { readFile } from 'node:fs/promises';
import { madvise } from '@steadfs/fuse/sys';

const MADV_DONTNEED = 4;
const SMALLEST = 256 * 1024;

export interface Mapping {
  address: number;
  length: number;
  /** Where in the file it begins. */
  offset: number;
  file: string;
}

/** Mappings of program files that were only read (code, constants), from the text of /proc/PID/smaps. */
export function cleanMappings(smaps: string): Mapping[] {
  const found: Mapping[] = [];
  let current: Mapping | undefined;
  for (const line of smaps.split('\n')) {
    const head =
      /^([0-9a-f]+)-([0-9a-f]+) r-[x-]p ([0-9a-f]+) (?!00:00)\S+ \d+ +(\/(?!memfd|dev).*?)( \(deleted\))?$/.exec(line);
    if (head) {
      const [address, end, offset] = [1, 2, 3].map(i => Number.parseInt(head[i]!, 16)) as [number, number, number];
      current = { address, length: end - address, offset, file: head[4]! };
    } else if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) current = undefined;
    // A page that was written (relocations) is anonymous, and would be lost.
    else if (current && line.startsWith('Anonymous:') && / 0 kB$/.test(line) && current.length >= SMALLEST)
      found.push(current);
  }
  return found;
}

/** Those of Node's own program, which stay where they are while the process lives. (V8 maps its builtins a second time, for each isolate, and that goes with a worker.) */
export function programMappings(clean: readonly Mapping[], program: string): Mapping[] {
  const base = clean.find(m => m.file === program && m.offset === 0)?.address;
  return clean.filter(m => m.file === program && m.address - m.offset === base);
}

/**
 * Gives back the pages of program files that starting up has touched (30 of 43 MB are never needed again). What is needed comes back from the page cache, 16 pages a
 * fault, without a disk. To be called now and then: it does so when nothing was asked since the last call (`requests` is as it was), after the first time for
 * Node's own program alone, without reading the list of mappings (2 MB of garbage) and without waking a thread, since this is most of what an idle mount does.
 */
export function releasesWhenIdle(requests: () => number): () => Promise<void> {
  let before = -1;
  let program: readonly Mapping[] | undefined;
  return async () => {
    const now = requests();
    const idle = now === before;
    before = now;
    if (!idle) return;
    const clean = program ?? cleanMappings(await readFile('/proc/self/smaps', 'latin1'));
    for (const { address, length } of clean) madvise(address, length, MADV_DONTNEED);
    program ??= programMappings(clean, process.execPath);
  };
}
