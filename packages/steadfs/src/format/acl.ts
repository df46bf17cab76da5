/** POSIX ACL rules (spec/volume.md §14), their stored form, the xattr form of the kernel, and what they mean. */

/** A missing entry. */
const ACL_ABSENT = 0xffff;

/** Permissions are rwx bits (0..7). {@link ACL_ABSENT} = absent. */
export interface AclRule {
  owner: number;
  group: number;
  mask: number;
  other: number;
  users: readonly { id: number; perm: number }[];
  groups: readonly { id: number; perm: number }[];
}

type AclEntries = AclRule['users'];

/** 6 bytes an entry, big-endian: id u32, perm u16. The form of the SQL columns named_users and named_groups. */
export function encodeAclEntries(entries: AclEntries): Buffer {
  const b = Buffer.allocUnsafe(entries.length * 6);
  entries.forEach((e, i) => {
    b.writeUInt32BE(e.id, i * 6);
    b.writeUInt16BE(e.perm, i * 6 + 4);
  });
  return b;
}

/** Throws RangeError when the length is no multiple of 6. */
export function decodeAclEntries(b: Uint8Array): { id: number; perm: number }[] {
  if (b.length % 6 !== 0) throw new RangeError(`an ACL entry list of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  return Array.from({ length: b.length / 6 }, (_, i) => ({ id: v.getUint32(i * 6), perm: v.getUint16(i * 6 + 4) }));
}

/** Big-endian: owner, group, mask, other u16, then per list its length u32 and 6-byte entries. */
export function encodeAcl(rule: AclRule): Buffer {
  const users = encodeAclEntries(rule.users);
  const groups = encodeAclEntries(rule.groups);
  const b = Buffer.alloc(16 + users.length + groups.length);
  [rule.owner, rule.group, rule.mask, rule.other].forEach((p, i) => {
    b.writeUInt16BE(p, i * 2);
  });
  b.writeUInt32BE(rule.users.length, 8);
  users.copy(b, 12);
  b.writeUInt32BE(rule.groups.length, 12 + users.length);
  groups.copy(b, 16 + users.length);
  return b;
}

/** Throws RangeError for a record of a wrong length. */
export function decodeAcl(b: Uint8Array): AclRule {
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const usersEnd = 12 + v.getUint32(8) * 6;
  const groupsEnd = usersEnd + 4 + v.getUint32(usersEnd) * 6;
  if (groupsEnd !== b.length) throw new RangeError(`an ACL record of ${b.length} bytes`);
  return {
    owner: v.getUint16(0),
    group: v.getUint16(2),
    mask: v.getUint16(4),
    other: v.getUint16(6),
    users: decodeAclEntries(b.subarray(12, usersEnd)),
    groups: decodeAclEntries(b.subarray(usersEnd + 4, groupsEnd)),
  };
}

const XATTR_VERSION = 2;
const NO_ID = 0xffffffff;
/** Tags of linux/posix_acl_xattr.h, in the order in which entries must stand. */
const Tag = { userObj: 1, user: 2, groupObj: 4, group: 8, mask: 0x10, other: 0x20 } as const;

/** The value of system.posix_acl_access and _default, little-endian (linux/posix_acl_xattr.h). */
export function aclToXattr(rule: AclRule): Buffer {
  const entries: [tag: number, perm: number, id: number][] = [[Tag.userObj, rule.owner, NO_ID]];
  for (const e of rule.users) entries.push([Tag.user, e.perm, e.id]);
  entries.push([Tag.groupObj, rule.group, NO_ID]);
  for (const e of rule.groups) entries.push([Tag.group, e.perm, e.id]);
  if (rule.mask !== ACL_ABSENT) entries.push([Tag.mask, rule.mask, NO_ID]);
  entries.push([Tag.other, rule.other, NO_ID]);
  const b = Buffer.alloc(4 + entries.length * 8);
  b.writeUInt32LE(XATTR_VERSION, 0);
  entries.forEach(([tag, perm, id], i) => {
    b.writeUInt16LE(tag, 4 + i * 8);
    b.writeUInt16LE(perm, 6 + i * 8);
    b.writeUInt32LE(id, 8 + i * 8);
  });
  return b;
}

/**
 * From the xattr value. Undefined for one without entries (which removes the rule). Throws RangeError for anything that the kernel's
 * posix_acl_valid would refuse: wrong version, order, doubled or missing entries, a named entry without mask.
 */
export function aclFromXattr(b: Uint8Array): AclRule | undefined {
  if (b.length < 4 || (b.length - 4) % 8 !== 0) throw new RangeError(`an ACL value of ${b.length} bytes`);
  const v = new DataView(b.buffer, b.byteOffset, b.byteLength);
  if (v.getUint32(0, true) !== XATTR_VERSION) throw new RangeError(`an ACL value of version ${v.getUint32(0, true)}`);
  if (b.length === 4) return undefined;
  let owner = ACL_ABSENT;
  let group = ACL_ABSENT;
  let mask = ACL_ABSENT;
  let other = ACL_ABSENT;
  const users: { id: number; perm: number }[] = [];
  const groups: { id: number; perm: number }[] = [];
  let lastTag = 0;
  for (let at = 4; at < b.length; at += 8) {
    const tag = v.getUint16(at, true);
    const perm = v.getUint16(at + 2, true);
    const id = v.getUint32(at + 4, true);
    const list = tag === Tag.user ? users : tag === Tag.group ? groups : undefined;
    if (perm > 7) throw new RangeError(`ACL permissions ${perm}`);
    if (tag < lastTag || (tag === lastTag && list === undefined)) throw new RangeError('ACL entries out of order');
    if (list !== undefined && (id === NO_ID || (list.at(-1)?.id ?? -1) >= id))
      throw new RangeError('ACL ids out of order');
    lastTag = tag;
    if (list !== undefined) list.push({ id, perm });
    else if (tag === Tag.userObj) owner = perm;
    else if (tag === Tag.groupObj) group = perm;
    else if (tag === Tag.mask) mask = perm;
    else if (tag === Tag.other) other = perm;
    else throw new RangeError(`ACL tag ${tag}`);
  }
  const named = users.length + groups.length > 0;
  if (owner === ACL_ABSENT || group === ACL_ABSENT || other === ACL_ABSENT || (named && mask === ACL_ABSENT)) {
    throw new RangeError('an ACL without its owner, group, other or mask entry');
  }
  return { owner, group, mask, other, users, groups };
}

/** Nothing that mode bits could not say. */
export function isMinimalAcl(rule: AclRule): boolean {
  return rule.users.length === 0 && rule.groups.length === 0 && rule.mask === ACL_ABSENT;
}

/** The nine permission bits that stand for the rule: owner, mask (or group), other. */
export function aclMode(rule: AclRule): number {
  const middle = rule.mask === ACL_ABSENT ? rule.group : rule.mask;
  return ((rule.owner & 7) << 6) | ((middle & 7) << 3) | (rule.other & 7);
}

/** The rule after chmod: owner, other and mask (the group when there is no mask) from the mode. */
export function aclChmod(rule: AclRule, mode: number): AclRule {
  const middle = (mode >> 3) & 7;
  const out = { ...rule, owner: (mode >> 6) & 7, other: mode & 7 };
  if (rule.mask === ACL_ABSENT) out.group = middle;
  else out.mask = middle;
  return out;
}

/** What a child gets from its parent's default rule, for the mode asked for (no umask): a minimal default becomes mode bits alone. */
export function aclInherit(rule: AclRule, mode: number): { access: AclRule | undefined; mode: number } {
  if (isMinimalAcl(rule)) return { access: undefined, mode: mode & (0o7000 | aclMode(rule)) };
  const access = {
    ...rule,
    owner: rule.owner & (mode >> 6) & 7,
    mask: (rule.mask === ACL_ABSENT ? rule.group : rule.mask) & (mode >> 3) & 7,
    other: rule.other & mode & 7,
  };
  return { access, mode: (mode & 0o7000) | aclMode(access) };
}

/** Whether the rule grants all bits of `want` (spec/volume.md §14): owner, named user, groups (any match that grants), other. */
export function aclAllows(
  rule: AclRule,
  ownerUid: number,
  ownerGid: number,
  uid: number,
  gids: readonly number[],
  want: number,
): boolean {
  const mask = rule.mask === ACL_ABSENT ? 7 : rule.mask;
  if (uid === ownerUid) return (rule.owner & want) === want;
  const user = rule.users.find(u => u.id === uid);
  if (user !== undefined) return (user.perm & mask & want) === want;
  let matched = false;
  for (const gid of gids) {
    if (gid === ownerGid) {
      matched = true;
      if ((rule.group & mask & want) === want) return true;
    }
    for (const g of rule.groups) {
      if (g.id !== gid) continue;
      matched = true;
      if ((g.perm & mask & want) === want) return true;
    }
  }
  return !matched && (rule.other & want) === want;
}
