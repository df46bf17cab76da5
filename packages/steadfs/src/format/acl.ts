/** POSIX ACL rules (spec/volume.md §14). 0xFFFF = absent. */
export interface AclRule {
  owner: number;
  group: number;
  mask: number;
  other: number;
  users: readonly { id: number; perm: number }[];
  groups: readonly { id: number; perm: number }[];
}
