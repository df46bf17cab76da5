/** Random mutations of a tree beside a model of it: every result, the attributes after it, contents and listings. */
import * as c from '../support/libc.ts';
import { seeded } from '../support/random.ts';
import { firstDifference, opener, type Program, type Setting, stamp } from './checked.ts';

interface Node {
  kind: 'dir' | 'file' | 'link' | 'fifo';
  mode: number;
  uid: number;
  gid: number;
  /** ns; known after utimens, until the next write. */
  mtime: bigint | undefined;
  children: Map<string, Node>;
  links: number;
  content: Buffer;
  target: string;
  xattrs: Map<string, string>;
}
const node = (kind: Node['kind'], mode: number, target = ''): Node => ({
  kind,
  mode,
  uid: 0,
  gid: 0,
  mtime: undefined,
  children: new Map(),
  links: 1,
  content: Buffer.alloc(0),
  target,
  xattrs: new Map(),
});
const E = { PERM: -1, NOENT: -2, EXIST: -17, NOTDIR: -20, ISDIR: -21, NOTEMPTY: -39, NODATA: -61 } as const;
const S_IFMT = { dir: 0o040000, file: 0o100000, link: 0o120000, fifo: 0o010000 } as const;
const XATTR = { CREATE: 1, REPLACE: 2 } as const;
const KINDS = 22;

/** Contents of at most this many bytes, so that models stay small. */
const MOST = 100_000;

function resized(content: Buffer, size: number): Buffer {
  if (size <= content.length) return Buffer.from(content.subarray(0, size));
  return Buffer.concat([content, Buffer.alloc(size - content.length)]);
}

/** As written by `bytes` at `at`; what is beyond the end before that is zeros. */
function written(content: Buffer, bytes: Buffer, at: number): Buffer {
  const result = resized(content, Math.max(content.length, at + bytes.length));
  bytes.copy(result, at);
  return result;
}

export function mutations(setting: Setting): Program {
  const { dir, fault, count } = setting;
  const random = seeded(setting.seed);
  const { must, expect } = opener(setting);
  const root = node('dir', 0o755);
  c.umask(0);
  let salt = 0;
  /** A call that changes something, or would if it could. */
  const mutate = (what: string, result: number, wanted: number): void => {
    setting.did(wanted < 0 ? 'refused mutations' : 'mutations');
    expect(what, result, wanted);
  };
  const folders = (from: Node, path: string, depth: number): [Node, string][] => [
    [from, path],
    ...(depth > 0
      ? [...from.children]
          .filter(([, n]) => n.kind === 'dir')
          .flatMap(([name, n]) => folders(n, `${path}/${name}`, depth - 1))
      : []),
  ];
  const words = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'];
  const linksOf = (n: Node): number =>
    n.kind === 'dir' ? 2 + [...n.children.values()].filter(child => child.kind === 'dir').length : n.links;
  const sizeOf = (n: Node): string =>
    n.kind === 'file' ? `${n.content.length} bytes` : n.kind === 'link' ? `${n.target.length} bytes` : '';
  const check = (what: string, path: string, want: Node | undefined): void => {
    const s = c.lstat(path, c.AT.STATX_FORCE_SYNC);
    count();
    if (typeof s === 'number') {
      if (want || s !== E.NOENT)
        fault(s === E.NOENT ? 'wrong' : 'failed', `${what}, then lstat ${path}: ${c.resultName(s)}`);
      return;
    }
    if (!want) {
      fault('wrong', `${what}, then ${path} is there`);
      return;
    }
    const mode = (m: number): string => (want.kind === 'link' ? '' : (m & 0o7777).toString(8));
    const size = want.kind === 'file' || want.kind === 'link' ? `${s.size} bytes` : '';
    const shown = `${(s.mode & 0o170000).toString(8)} ${mode(s.mode)} ${s.uid}:${s.gid} ${s.nlink} links ${size}`;
    const wanted = `${S_IFMT[want.kind].toString(8)} ${mode(want.mode)} ${want.uid}:${want.gid} ${linksOf(want)} links ${sizeOf(want)}`;
    if (shown !== wanted) fault('wrong', `${what}, then ${path} is ${shown} in place of ${wanted}`);
    if (want.mtime !== undefined && s.mtime !== want.mtime)
      fault('wrong', `${what}, then ${path} has mtime ${s.mtime} in place of ${want.mtime}`);
  };
  const holds = (outer: Node, inner: Node): boolean =>
    outer === inner || [...outer.children.values()].some(n => n.kind === 'dir' && holds(n, inner));
  const list = (folder: Node, path: string): void => {
    const fd = must(`open ${path}`, c.open(path, c.O.RDONLY | c.O.DIRECTORY));
    if (fd < 0) return;
    const found: string[] = [];
    for (;;) {
      const some = c.getdents(fd);
      count();
      if (typeof some === 'number') {
        fault('failed', `readdir ${path}: ${c.resultName(some)}`);
        break;
      }
      if (some.length === 0) break;
      found.push(...some.map(e => e.name.toString()).filter(n => n !== '.' && n !== '..'));
    }
    c.close(fd);
    const wanted = [...folder.children.keys()].sort().join();
    if (found.sort().join() !== wanted) fault('wrong', `${path} lists ${found} in place of ${wanted}`);
  };
  /** Contents, target, extended attributes. */
  const look = (what: string, path: string, want: Node): void => {
    if (want.kind === 'file') {
      const fd = must(`open ${path}`, c.open(path, c.O.RDONLY));
      if (fd < 0) return;
      const b = Buffer.alloc(want.content.length + 1);
      const n = c.pread(fd, b, b.length, 0);
      expect(`${what}, then pread ${path}`, n, want.content.length);
      const bad = firstDifference(b.subarray(0, Math.max(n, 0)), want.content);
      if (n === want.content.length && bad >= 0) fault('wrong', `${what}, then ${path} has a wrong byte at ${bad}`);
      c.close(fd);
    } else if (want.kind === 'link') {
      const target = c.readlink(path);
      count();
      const text = typeof target === 'number' ? c.resultName(target) : Buffer.from(target).toString();
      if (text !== want.target) fault('wrong', `${what}, then readlink ${path}: ${text} in place of ${want.target}`);
    }
    if (want.kind !== 'file' && want.kind !== 'dir') return;
    const attributes = c.listxattr(path);
    count();
    const shown = typeof attributes === 'number' ? c.resultName(attributes) : attributes.join();
    if (shown !== [...want.xattrs.keys()].sort().join())
      fault('wrong', `${what}, then ${path} has attributes ${shown} in place of ${[...want.xattrs.keys()]}`);
    for (const [name, value] of want.xattrs) {
      const v = c.getxattr(path, name);
      count();
      const text = typeof v === 'number' ? c.resultName(v) : Buffer.from(v).toString();
      if (text !== value) fault('wrong', `${what}, then ${name} of ${path} is ${text} in place of ${value}`);
    }
  };
  function rename([from, fromPath]: [Node, string], [to, toPath]: [Node, string], a: string, b: string): void {
    const flags = random.pick([0, 0, 0, c.RENAME.NOREPLACE, c.RENAME.EXCHANGE]);
    const source = from.children.get(a);
    const target = to.children.get(b);
    // Moves into themselves have errors of their own; the differential test has them.
    if ((source && holds(source, to)) || (target && holds(target, from))) return;
    let want = 0;
    if (!source) want = E.NOENT;
    else if (flags === c.RENAME.NOREPLACE && target) want = E.EXIST;
    else if (flags === c.RENAME.EXCHANGE && !target) want = E.NOENT;
    else if (target && flags === 0 && source !== target) {
      if (target.kind === 'dir' && source.kind !== 'dir') want = E.ISDIR;
      else if (target.kind !== 'dir' && source.kind === 'dir') want = E.NOTDIR;
      else if (target.children.size > 0) want = E.NOTEMPTY;
    }
    const what = `rename ${fromPath}/${a} ${toPath}/${b} ${flags}`;
    mutate(what, c.rename(`${fromPath}/${a}`, `${toPath}/${b}`, flags), want);
    if (want === 0 && source && source !== target) {
      if (flags === c.RENAME.EXCHANGE) from.children.set(a, target!);
      else {
        from.children.delete(a);
        if (target) target.links--;
      }
      to.children.set(b, source);
    }
    check(what, `${fromPath}/${a}`, from.children.get(a));
    check(what, `${toPath}/${b}`, to.children.get(b));
    check(what, fromPath, from);
    check(what, toPath, to);
  }
  /** A write by a descriptor of its own, opened with these flags, at this place (-1: the end, by O_APPEND). */
  function write(what: string, path: string, file: Node, flags: number, at: number): void {
    const bytes = stamp(Buffer.alloc(1 + random.below(9000)), ++salt, 0);
    const fd = must(`open ${path}`, c.open(path, c.O.WRONLY | flags));
    if (fd < 0) return;
    if (flags & c.O.TRUNC) {
      setting.did('mutations');
      file.content = Buffer.alloc(0);
    }
    mutate(what, at < 0 ? c.write(fd, bytes, bytes.length) : c.pwrite(fd, bytes, bytes.length, at), bytes.length);
    file.content = written(file.content, bytes, at < 0 ? file.content.length : at);
    file.mtime = undefined;
    expect(`close ${path}`, c.close(fd), 0);
  }
  let steps = 0;
  return {
    rest: 1,
    step() {
      const all = folders(root, dir, 2);
      const place = random.pick(all);
      const [folder, path] = place;
      const name = random.pick(words);
      const full = `${path}/${name}`;
      const there = folder.children.get(name);
      let what = '';
      switch (random.below(KINDS)) {
        case 0:
        case 1:
        case 2: {
          what = `create ${full}`;
          const mode = random.pick([0o640, 0o600, 0o755]);
          const fd = c.open(full, c.O.CREAT | c.O.EXCL | c.O.WRONLY, mode);
          mutate(what, Math.min(fd, 0), there ? E.EXIST : 0);
          if (fd >= 0) {
            const made = node('file', mode);
            if (random.chance(30)) {
              made.content = stamp(Buffer.alloc(100), ++salt, 0);
              mutate(`write ${full}`, c.write(fd, made.content, 100), 100);
            }
            expect(`close ${full}`, c.close(fd), 0);
            if (!there) folder.children.set(name, made);
          }
          break;
        }
        case 3:
        case 4: {
          what = `mkdir ${full}`;
          mutate(what, c.mkdir(full, 0o755), there ? E.EXIST : 0);
          if (!there) folder.children.set(name, node('dir', 0o755));
          break;
        }
        case 5:
        case 6: {
          what = `unlink ${full}`;
          mutate(what, c.unlink(full), !there ? E.NOENT : there.kind === 'dir' ? E.ISDIR : 0);
          if (there && there.kind !== 'dir') {
            folder.children.delete(name);
            there.links--;
          }
          break;
        }
        case 7: {
          what = `rmdir ${full}`;
          mutate(
            what,
            c.rmdir(full),
            !there ? E.NOENT : there.kind !== 'dir' ? E.NOTDIR : there.children.size > 0 ? E.NOTEMPTY : 0,
          );
          if (there?.kind === 'dir' && there.children.size === 0) folder.children.delete(name);
          break;
        }
        case 8:
        case 9:
        case 10:
          rename(place, random.pick(all), name, random.pick(words));
          break;
        case 11: {
          const [other, otherPath] = random.pick(all);
          const to = random.pick(words);
          what = `link ${full} ${otherPath}/${to}`;
          const target = other.children.get(to);
          if (there?.kind === 'dir') break;
          mutate(what, c.link(full, `${otherPath}/${to}`), !there ? E.NOENT : target ? E.EXIST : 0);
          if (there && !target) {
            other.children.set(to, there);
            there.links++;
          }
          break;
        }
        case 12: {
          what = `symlink ${full}`;
          mutate(what, c.symlink(`to-${name}`, full), there ? E.EXIST : 0);
          if (!there) folder.children.set(name, node('link', 0o777, `to-${name}`));
          break;
        }
        case 13: {
          what = `mknod ${full}`;
          mutate(what, c.mknod(full, S_IFMT.fifo | 0o620, 0), there ? E.EXIST : 0);
          if (!there) folder.children.set(name, node('fifo', 0o620));
          break;
        }
        case 14: {
          if (there?.kind === 'link') break;
          const mode = random.pick([0o600, 0o755, 0o644, 0o711]);
          what = `chmod ${full}`;
          mutate(what, c.chmod(full, mode), there ? 0 : E.NOENT);
          if (there) there.mode = mode;
          break;
        }
        case 15: {
          what = `chown ${full}`;
          const [uid, gid] = [random.below(5), random.below(5)];
          mutate(what, c.lchown(full, uid, gid), there ? 0 : E.NOENT);
          if (there) Object.assign(there, { uid, gid });
          break;
        }
        case 16: {
          what = `truncate ${full}`;
          if (there?.kind !== 'file') break;
          there.content = resized(there.content, random.below(MOST));
          there.mtime = undefined;
          mutate(what, c.truncate(full, there.content.length), 0);
          break;
        }
        case 17: {
          if (there?.kind !== 'file') break;
          const flags = random.pick([0, c.O.APPEND, c.O.APPEND, c.O.TRUNC]);
          const at = flags === 0 ? random.below(MOST) : -1;
          what = `write ${full} ${flags} at ${at}`;
          if (there.content.length < MOST) write(what, full, there, flags, at);
          break;
        }
        case 18: {
          if (there?.kind !== 'file' && there?.kind !== 'dir') break;
          const attribute = `user.${random.pick(['x', 'y', 'z'])}`;
          const flags = random.pick([0, XATTR.CREATE, XATTR.REPLACE]);
          const value = `value ${++salt}`;
          what = `setxattr ${full} ${attribute} ${flags}`;
          const old = there.xattrs.has(attribute);
          const want = flags === XATTR.CREATE && old ? E.EXIST : flags === XATTR.REPLACE && !old ? E.NODATA : 0;
          mutate(what, c.setxattr(full, attribute, Buffer.from(value), flags), want);
          if (want === 0) there.xattrs.set(attribute, value);
          break;
        }
        case 19: {
          if (there?.kind !== 'file' && there?.kind !== 'dir') break;
          const attribute = `user.${random.pick(['x', 'y', 'z'])}`;
          what = `removexattr ${full} ${attribute}`;
          mutate(what, c.removexattr(full, attribute), there.xattrs.delete(attribute) ? 0 : E.NODATA);
          break;
        }
        case 20: {
          if (there?.kind !== 'file') break;
          const [seconds, ns] = [1_000_000_000 + random.below(1e8), random.below(1e9)];
          what = `utimens ${full}`;
          mutate(what, c.utimens(full, [seconds, 5], [seconds, ns]), 0);
          there.mtime = BigInt(seconds) * 1_000_000_000n + BigInt(ns);
          break;
        }
        case 21: {
          const [other, otherPath] = random.pick(all);
          const [from, source] = [...other.children].find(([, n]) => n.kind === 'file' && n !== there) ?? [];
          if (there?.kind !== 'file' || !source) break;
          const length = random.below(source.content.length + 1);
          const at = random.below(MOST / 2);
          what = `copy_file_range ${otherPath}/${from} ${full} ${length} at ${at}`;
          const a = must(`open ${otherPath}/${from}`, c.open(`${otherPath}/${from}`, c.O.RDONLY));
          const b = must(`open ${full}`, c.open(full, c.O.WRONLY));
          mutate(what, c.copyFileRange(a, 0, b, at, length), length);
          if (length > 0) {
            there.content = written(there.content, source.content.subarray(0, length), at);
            there.mtime = undefined;
          }
          c.close(a);
          c.close(b);
          break;
        }
      }
      const now = folder.children.get(name);
      if (what !== '') check(what, full, now);
      if (what !== '' && now && random.chance(20)) look(what, full, now);
      if (++steps % 100 === 0) for (const [each, eachPath] of folders(root, dir, 2)) list(each, eachPath);
    },
    verify() {
      const visit = (each: Node, path: string): void => {
        check('at the end', path, each);
        look('at the end', path, each);
        if (each.kind !== 'dir') return;
        list(each, path);
        for (const [name, child] of each.children) visit(child, `${path}/${name}`);
      };
      for (const [name, child] of root.children) visit(child, `${dir}/${name}`);
      list(root, dir);
    },
  };
}

/** A storm of mkdir, create, rename, unlink and rmdir in one directory that the instances share, almost without a rest. */
export function names(setting: Setting): Program {
  const { shared, instance, fault, count } = setting;
  const { must, expect } = opener(setting);
  let i = 0;
  return {
    rest: 10,
    step() {
      const own = `${shared}/names-${instance}-`;
      const d = `${own}d${++i}`;
      expect(`mkdir ${d}`, c.mkdir(d, 0o755), 0);
      expect(`mkdir ${d} again`, c.mkdir(d, 0o755), E.EXIST);
      for (const name of ['a', 'b']) {
        const fd = must(`create ${d}/${name}`, c.open(`${d}/${name}`, c.O.CREAT | c.O.EXCL | c.O.WRONLY, 0o600));
        if (fd >= 0) expect(`close ${d}/${name}`, c.close(fd), 0);
      }
      expect(`rename ${d}`, c.rename(d, `${d}-moved`), 0);
      expect(`rename ${d} again`, c.rename(d, `${d}-moved`), E.NOENT);
      expect(`rename ${d}-moved/a over b`, c.rename(`${d}-moved/a`, `${d}-moved/b`), 0);
      expect(`rmdir ${d}-moved with a file`, c.rmdir(`${d}-moved`), E.NOTEMPTY);
      expect(`rename ${d}-moved/b out`, c.rename(`${d}-moved/b`, `${own}file`), 0);
      expect(`rmdir ${d}-moved`, c.rmdir(`${d}-moved`), 0);
      expect(`rmdir ${d}-moved again`, c.rmdir(`${d}-moved`), E.NOENT);
      expect(`unlink ${own}file`, c.unlink(`${own}file`), 0);
      expect(`unlink ${own}file again`, c.unlink(`${own}file`), E.NOENT);
      setting.did('names', 13);
    },
    verify() {
      const fd = must(`open ${shared}`, c.open(shared, c.O.RDONLY | c.O.DIRECTORY));
      for (;;) {
        const some = c.getdents(fd);
        count();
        if (typeof some === 'number') fault('failed', `readdir ${shared}: ${c.resultName(some)}`);
        if (typeof some === 'number' || some.length === 0) break;
        for (const e of some)
          if (e.name.toString().startsWith(`names-${instance}-`))
            fault('wrong', `${e.name} is left of the storm of names`);
      }
      c.close(fd);
    },
  };
}
