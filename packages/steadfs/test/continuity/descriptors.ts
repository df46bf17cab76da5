/**
 * Holds descriptors for a test: a line of JSON on stdin is one call, its result a line on stdout (a number, a name of an errno, or the bytes read as text).
 *
 *     ["open", NAME, PATH, FLAGS]  ["write"|"read", NAME, TEXT|LENGTH, AT]  ["flock", NAME, HOW]  ["lock", NAME, TYPE]  ["fsync"|"close", NAME]  ["unlink", PATH]
 */
import { createInterface } from 'node:readline';
import * as c from '../support/libc.ts';

type Call = [what: string, name: string, a?: string | number, b?: number];
const fds = new Map<string, number>();

function run([what, name, a, b]: Call): number | string {
  const fd = fds.get(name) ?? -1;
  switch (what) {
    case 'open': {
      const opened = c.open(String(a), b ?? 0);
      if (opened >= 0) fds.set(name, opened);
      return Math.min(opened, 0);
    }
    case 'write': {
      const bytes = Buffer.from(String(a));
      return c.pwrite(fd, bytes, bytes.length, b ?? 0);
    }
    case 'read': {
      const bytes = Buffer.alloc(Number(a));
      const n = c.pread(fd, bytes, bytes.length, b ?? 0);
      return n < 0 ? n : bytes.toString('latin1', 0, n);
    }
    case 'flock':
      return c.flock(fd, Number(a));
    case 'lock': {
      const r = c.fcntlLock(fd, c.F.SETLK, { type: Number(a), start: 0, length: 0 });
      return typeof r === 'number' ? r : 0;
    }
    case 'fsync':
      return c.fsync(fd);
    case 'close':
      fds.delete(name);
      return c.close(fd);
    case 'unlink':
      return c.unlink(name);
    default:
      throw new Error(`no call ${what}`);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const r = run(JSON.parse(line) as Call);
  console.log(typeof r === 'number' ? c.resultName(r) : r);
}
