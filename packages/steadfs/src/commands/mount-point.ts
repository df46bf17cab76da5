/** Mount points as users write them. */
import { lstatSync, readlinkSync, realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { findMount } from '@steadfs/fuse/mount';
import { Failure, messageOf } from './failure.ts';

/**
 * Absolute, without symbolic links. The last part is only looked at when nothing is mounted there: a dead or hanging mount must not be
 * touched.
 */
export function resolveMountPoint(path: string): string {
  const absolute = resolve(path);
  let parent: string;
  try {
    parent = realpathSync(dirname(absolute));
  } catch (error) {
    throw new Failure(`mount point ${path}: ${messageOf(error)}`);
  }
  const point = absolute === '/' ? '/' : join(parent, basename(absolute));
  if (findMount(point) || !lstatSync(point, { throwIfNoEntry: false })?.isSymbolicLink()) return point;
  return resolveMountPoint(resolve(parent, readlinkSync(point)));
}
