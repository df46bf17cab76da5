/** The system calls of the differential test as data: concrete, so that a list of them can be replayed and shrunk. Paths are relative. */
export type Operation =
  | { call: 'open'; slot: number; path: string; flags: number; mode: number }
  | { call: 'tmpfile'; slot: number; path: string; mode: number; flags: number }
  /** By AT_EMPTY_PATH (`empty`) or by way of /proc/self/fd. */
  | { call: 'linkSlot'; slot: number; path: string; empty: boolean }
  | { call: 'reopen'; slot: number; from: number; flags: number }
  | { call: 'byHandle'; slot: number; path: string; flags: number }
  | { call: 'close'; slot: number }
  | { call: 'pwrite'; slot: number; at: number; length: number; fill: number }
  | { call: 'write'; slot: number; length: number; fill: number }
  | { call: 'pread'; slot: number; at: number; length: number }
  | { call: 'read'; slot: number; length: number }
  | { call: 'vectored'; slot: number; at: number; length: number; fill: number; flags: number; write: boolean }
  | { call: 'sendfile'; slot: number; at: number; to: number; length: number }
  | { call: 'advise'; slot: number; at: number; length: number; advice: number }
  | { call: 'syncRange'; slot: number; at: number; length: number }
  | { call: 'clone'; slot: number; to: number }
  | { call: 'lseek'; slot: number; at: number; how: number }
  | { call: 'holes'; slot: number }
  | { call: 'ftruncate'; slot: number; length: number }
  | { call: 'truncate'; path: string; length: number }
  | { call: 'fallocate'; slot: number; mode: number; at: number; length: number }
  | { call: 'copy'; slot: number; at: number; to: number; toAt: number; length: number }
  | { call: 'fsync'; slot: number; data: boolean }
  /** `next`: what is done to the same bytes before msync(2). */
  | {
      call: 'mapped';
      slot: number;
      at: number;
      length: number;
      fill: number;
      next: 'sync' | 'read' | 'private' | 'cut' | 'punch' | 'copy';
    }
  | { call: 'fstat'; slot: number }
  /** `empty`: by AT_EMPTY_PATH, which takes O_PATH descriptors too. */
  | { call: 'fchmod'; slot: number; mode: number; empty: boolean }
  | { call: 'fchown'; slot: number; uid: number; gid: number; empty: boolean }
  | { call: 'futimens'; slot: number; atime: [number, number]; mtime: [number, number] }
  | { call: 'fxattr'; slot: number; what: 'set' | 'get' | 'remove'; name: string; length: number }
  /** Relative to an open directory. */
  | { call: 'at'; slot: number; what: 'make' | 'create' | 'unlink' | 'rmdir' | 'open'; name: string }
  | { call: 'lstat'; path: string }
  | { call: 'mkdir'; path: string; mode: number }
  | { call: 'rmdir'; path: string }
  | { call: 'unlink'; path: string }
  | { call: 'rename'; path: string; to: string; flags: number }
  | { call: 'link'; path: string; to: string }
  | { call: 'symlink'; path: string; target: string }
  | { call: 'readlink'; path: string }
  | { call: 'mknod'; path: string; mode: number; dev: number }
  | { call: 'chmod'; path: string; mode: number }
  | { call: 'chown'; path: string; uid: number; gid: number }
  | { call: 'utimens'; path: string; atime: [number, number]; mtime: [number, number] }
  | { call: 'access'; path: string; mode: number }
  | { call: 'setxattr'; path: string; name: string; length: number; flags: number }
  | { call: 'getxattr'; path: string; name: string; size: number }
  | { call: 'listxattr'; path: string }
  | { call: 'removexattr'; path: string; name: string }
  /** Entries of an ACL: tag, permissions, id (include/uapi/linux/posix_acl_xattr.h). */
  | { call: 'setAcl'; path: string; kind: 'access' | 'default'; entries: [number, number, number][] }
  | { call: 'getAcl'; path: string; kind: 'access' | 'default' }
  /** Flags of chattr(1); undefined: look only. */
  | { call: 'inodeFlags'; path: string; set?: number }
  | { call: 'list'; path: string }
  | { call: 'seekdir'; path: string }
  | { call: 'streamStart'; path: string }
  | { call: 'streamEnd' }
  | { call: 'flock'; slot: number; how: number }
  | { call: 'lock'; slot: number; ofd: boolean; type: number; start: number; length: number }
  | { call: 'getlock'; slot: number; ofd: boolean; type: number; start: number; length: number };

export interface Step {
  /** Which process carries it out. */
  actor: number;
  operation: Operation;
}

/** What the actor answers. JSON values only, compared as text. */
export type Result = number | string | { [key: string]: unknown };

/** Attributes as both file systems must show them; null where there is nothing. */
export interface Observed {
  type: number;
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  size: number;
  rdev: string;
  mtime: string;
  ctime: string;
  /** Not compared: says whether it is still the same file. */
  ino: string;
}

export type Request =
  | { kind: 'operation'; operation: Operation }
  | { kind: 'observe'; paths: string[] }
  | { kind: 'tree' }
  | { kind: 'prepare' };

export type Reply = { result: Result } | { observed: (Observed | string)[] } | { tree: Record<string, string> };

/** Paths whose attributes an operation may change: its own and their parents. */
export function touched(operation: Operation): string[] {
  const paths: string[] = [];
  for (const path of ['path' in operation ? operation.path : undefined, 'to' in operation ? operation.to : undefined]) {
    if (typeof path !== 'string') continue;
    paths.push(path);
    const parent = path.slice(0, Math.max(0, path.lastIndexOf('/')));
    if (!paths.includes(parent)) paths.push(parent);
  }
  return paths;
}
