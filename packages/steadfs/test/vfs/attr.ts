import { type Attr, FileType } from '../../src/format/attr.ts';

export function anAttr(set: Partial<Attr> = {}): Attr {
  return {
    flags: 0,
    type: FileType.file,
    mode: 0o644,
    uid: 0,
    gid: 0,
    atime: 0,
    atimensec: 0,
    mtime: 0,
    mtimensec: 0,
    ctime: 0,
    ctimensec: 0,
    nlink: 1,
    length: 0,
    rdev: 0,
    parent: 1,
    accessAcl: 0,
    defaultAcl: 0,
    tier: 0,
    ...set,
  };
}
