/** Who asks: the identity of a request, as the engine wants it. */
import { readFileSync } from 'node:fs';
import type { Cred } from '../meta/engine.ts';
import type { MountOptions } from './mount-options.ts';

/** Supplementary groups from /proc/PID/status; none when the process is gone or out of sight. */
function groupsOf(pid: number): number[] {
  if (pid <= 0) return [];
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/status`, 'latin1');
  } catch {
    return [];
  }
  const line = /^Groups:\s*(.*)$/m.exec(text);
  return line === null ? [] : line[1]!.trim().split(/\s+/).filter(Boolean).map(Number);
}

export class RequestCred implements Cred {
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  readonly checkPermission: boolean;
  #groups: readonly number[] | undefined;

  constructor(uid: number, gid: number, pid: number, checkPermission: boolean, groups?: readonly number[]) {
    this.uid = uid;
    this.gid = gid;
    this.pid = pid;
    this.checkPermission = checkPermission;
    this.#groups = groups;
  }

  groups(): readonly number[] {
    this.#groups ??= [this.gid, ...groupsOf(this.pid).filter(g => g !== this.gid)];
    return this.#groups;
  }
}

/** The identity that counts, squashed as the mount wants it. A squashed caller has no other groups. */
export function credOf(
  o: MountOptions,
  uid: number,
  gid: number,
  pid: number,
  check = !o.defaultPermissions,
): RequestCred {
  const squash = o.allSquash ?? (uid === 0 ? o.rootSquash : undefined);
  return squash === undefined
    ? new RequestCred(uid, gid, pid, check)
    : new RequestCred(squash.uid, squash.gid, pid, true, [squash.gid]);
}
