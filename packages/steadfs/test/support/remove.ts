import { spawnSync } from 'node:child_process';

/**
 * Removes a tree by rm in a process of its own, which may hang on a mount without hanging us. Immutable and append-only flags that a test
 * left are cleared first when they stand in the way. Says what it could not remove.
 */
export function removeTree(path: string): string | undefined {
  const options = { encoding: 'utf8', timeout: 120_000, killSignal: 'SIGKILL' } as const;
  let r = spawnSync('rm', ['-rf', path], options);
  if (r.status === 1 && /Operation not permitted/.test(r.stderr)) {
    spawnSync('chattr', ['-R', '-f', '-i', '-a', path], options);
    r = spawnSync('rm', ['-rf', path], options);
  }
  return r.status === 0 ? undefined : `rm -rf ${path}: ${r.stderr || r.signal}`;
}
