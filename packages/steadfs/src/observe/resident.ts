/** Keeps an idle mount small. */
import { readFile } from 'node:fs/promises';
import { madvise } from '@steadfs/fuse/sys';

const MADV_DONTNEED = 4;
const SMALLEST = 256 * 1024;

interface Mapping {
  address: number;
  length: number;
  file: string;
}

/** Mappings of program files that were only read (code, constants), from the text of /proc/PID/smaps. */
export function cleanMappings(smaps: string): Mapping[] {
  const found: Mapping[] = [];
  let current: Mapping | undefined;
  for (const line of smaps.split('\n')) {
    const head =
      /^([0-9a-f]+)-([0-9a-f]+) r-[x-]p [0-9a-f]+ (?!00:00)\S+ \d+ +(\/(?!memfd|dev).*?)( \(deleted\))?$/.exec(line);
    if (head) {
      const address = Number.parseInt(head[1]!, 16);
      current = { address, length: Number.parseInt(head[2]!, 16) - address, file: head[3]! };
    } else if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) current = undefined;
    // A page that was written (relocations) is anonymous, and would be lost.
    else if (current && line.startsWith('Anonymous:') && / 0 kB$/.test(line) && current.length >= SMALLEST)
      found.push(current);
  }
  return found;
}

/** Bytes of mapped files that a service which does nothing may keep in its page table; V8's late collections of garbage bring in as much again. */
const LITTLE = 6 << 20;

/** Of Node's own program file, which stay where they are; a library's may go, and something else come to its place. */
let program: readonly Mapping[] | undefined;

/**
 * Gives back the pages of program files that starting up has touched (30 of 43 MB are never needed again), later those of Node's own alone: reading the list of mappings leaves 2 MB
 * of garbage behind. What is needed comes back from the page cache, 16 pages a fault, without a disk.
 */
async function releaseCode(): Promise<void> {
  const clean = program ?? cleanMappings(await readFile('/proc/self/smaps', 'latin1'));
  for (const { address, length } of clean) madvise(address, length, MADV_DONTNEED);
  program = clean.filter(mapping => mapping.file === process.execPath);
}

/**
 * The same, to be called now and then: when nothing was asked since the last call (`requests` is as it was), and it is worth it. The longer nothing is asked the less often it
 * looks, at every `seldom`-th call in the end: looking brings in pages itself, and is most of what an idle mount does.
 */
export function releasesWhenIdle(requests: () => number, seldom = 1): () => Promise<void> {
  let before = -1;
  let pause = 1;
  let calls = 0;
  return async () => {
    const now = requests();
    if (now !== before) {
      before = now;
      pause = 1;
      calls = 0;
      return;
    }
    if (++calls < pause) return;
    calls = 0;
    pause = Math.min(seldom, pause * 2);
    const status = await readFile('/proc/self/status', 'latin1');
    if (Number(/^RssFile:\s+(\d+)/m.exec(status)?.[1]) * 1024 > LITTLE) await releaseCode();
  };
}
