/** Rows as this process last saw them, by which operations are planned (optimistic-tx.ts). */
import type { AclRule } from '../../format/acl.ts';
import type { Attr } from '../../format/attr.ts';
import type { Ino } from '../../format/ino.ts';
import type { Dentry, Name } from '../engine.ts';

/** Rows as last seen, by which operations are planned. Bounded; never trusted. */
export class SeenRows {
  readonly #nodes = new Map<Ino, Readonly<Attr> | undefined>();
  readonly #edges = new Map<string, Readonly<Dentry> | undefined>();
  /** Entries of an inode with several links (parent → number), and the row that stood beside them. */
  readonly #links = new Map<Ino, { links: ReadonlyMap<Ino, number>; attr: Readonly<Attr> }>();
  readonly #xattrs = new Map<string, Uint8Array | undefined>();
  /** Rules never change and never go: by id, and the id by content. */
  readonly #acls = new Map<number, AclRule>();
  readonly #aclIds = new Map<string, number>();
  readonly #max: number;

  constructor(max = 50_000) {
    this.#max = max;
  }

  static key(parent: Ino, name: Name): string {
    return `${parent}/${Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString('latin1')}`;
  }

  /** `known: false` when nothing was seen. */
  node(ino: Ino): { known: boolean; value: Readonly<Attr> | undefined } {
    return { known: this.#nodes.has(ino), value: this.#nodes.get(ino) };
  }
  edge(key: string): { known: boolean; value: Readonly<Dentry> | undefined } {
    return { known: this.#edges.has(key), value: this.#edges.get(key) };
  }
  sawNode(ino: Ino, attr: Readonly<Attr> | undefined): void {
    if (this.#nodes.size >= this.#max) this.#nodes.clear();
    this.#nodes.set(ino, attr);
  }
  sawEdge(key: string, dentry: Readonly<Dentry> | undefined): void {
    if (this.#edges.size >= this.#max) this.#edges.clear();
    this.#edges.set(key, dentry);
  }
  forgetNode(ino: Ino): void {
    this.#nodes.delete(ino);
  }
  forgetEdge(key: string): void {
    this.#edges.delete(key);
  }
  /** For the row `attr`: whoever changes the entries changes the row's ctime. */
  links(ino: Ino, attr: Readonly<Attr>): ReadonlyMap<Ino, number> | undefined {
    const seen = this.#links.get(ino);
    const same =
      seen !== undefined &&
      seen.attr.ctime === attr.ctime &&
      seen.attr.ctimensec === attr.ctimensec &&
      seen.attr.nlink === attr.nlink;
    return same ? seen.links : undefined;
  }
  sawLinks(ino: Ino, links: ReadonlyMap<Ino, number>, attr: Readonly<Attr>): void {
    if (this.#links.size >= this.#max) this.#links.clear();
    this.#links.set(ino, { links, attr });
  }
  forgetLinks(ino: Ino): void {
    this.#links.delete(ino);
  }
  xattr(key: string): { known: boolean; value: Uint8Array | undefined } {
    return { known: this.#xattrs.has(key), value: this.#xattrs.get(key) };
  }
  sawXattr(key: string, value: Uint8Array | undefined): void {
    if (this.#xattrs.size >= this.#max / 10) this.#xattrs.clear();
    this.#xattrs.set(key, value);
  }
  forgetXattr(key: string): void {
    this.#xattrs.delete(key);
  }
  acl(id: number): AclRule | undefined {
    return this.#acls.get(id);
  }
  aclId(rule: AclRule): number | undefined {
    return this.#aclIds.get(JSON.stringify(rule));
  }
  sawAcl(id: number, rule: AclRule): void {
    if (this.#acls.size >= this.#max / 10) {
      this.#acls.clear();
      this.#aclIds.clear();
    }
    this.#acls.set(id, rule);
    this.#aclIds.set(JSON.stringify(rule), id);
  }
  clear(): void {
    this.#nodes.clear();
    this.#edges.clear();
    this.#links.clear();
    this.#xattrs.clear();
    this.#acls.clear();
    this.#aclIds.clear();
  }
}
