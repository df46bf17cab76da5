/** Keeps an idle mount small. */
import { readFile } from 'node:fs/promises';
import { madvise } from '@steadfs/fuse/sys';

const MADV_DONTNEED = 4;
const SMALLEST = 256 * 1024;

/** Mappings of program files that were only read (code, constants), from the text of /proc/PID/smaps. */
function cleanMappings(smaps: string): { address: number; length: number }[] {
  const found: { address: number; length: number }[] = [];
  let current: { address: number; length: number } | undefined;
  for (const line of smaps.split('\n')) {
    const head = /^([0-9a-f]+)-([0-9a-f]+) r-[x-]p [0-9a-f]+ (?!00:00)\S+ \d+ +\/(?!memfd|dev)/.exec(line);
    if (head) {
      const address = Number.parseInt(head[1]!, 16);
      current = { address, length: Number.parseInt(head[2]!, 16) - address };
    } else if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) current = undefined;
    // A page that was written (relocations) is anonymous, and would be lost.
    else if (current && line.startsWith('Anonymous:') && / 0 kB$/.test(line) && current.length >= SMALLEST)
      found.push(current);
  }
  return found;
}

/** Bytes of mapped files that a service which does nothing may keep in its page table; V8's late collections of garbage bring in as much again. */
const LITTLE = 6 << 20;

/**
 * Gives back the pages of Node's own program file that starting up has touched (30 of 43 MB are never needed again). What is needed comes back from the
 * page cache, 16 pages a fault, without a disk.
 */
export async function releaseCode(): Promise<void> {
  for (const { address, length } of cleanMappings(await readFile('/proc/self/smaps', 'latin1')))
    madvise(address, length, MADV_DONTNEED);
}

/**
 * The same, to be called now and then: when nothing was asked since the last call (`requests` is as it was), and it is worth it. The longer nothing is asked the less often it
 * looks, at every `seldom`-th call in the end: looking brings in pages itself (it makes garbage that V8 collects), and is most of what an idle mount does.
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
