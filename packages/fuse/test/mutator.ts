/**
 * A program on a mount: `node mutator.ts DIR SEED MILLISECONDS` does random operations in DIR, one after the other, and compares
 * every result, error and content with a model. Prints the number of operations and exits 0, or says what differs and exits 1.
 */
import fs from 'node:fs';

const [root, seed, time] = [process.argv[2]!, Number(process.argv[3]), Number(process.argv[4])];
let state = seed >>> 0 || 1;
/** xorshift32 */
function random(n: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % n;
}

interface Node {
  content?: Buffer;
  nlink: { n: number };
}
const model = new Map<string, Node>();
const names = [
  'a',
  'b',
  'c',
  'dd',
  'a long name that goes past the first eighty bytes of the request, so that it lands on a page',
];
let operations = 0;

function fail(what: string): never {
  console.log(`operation ${operations} of seed ${seed}: ${what}`);
  process.exit(1);
}
function parent(path: string): string {
  return path.slice(0, path.lastIndexOf('/'));
}
function isDir(path: string): boolean {
  return path === '' || (model.has(path) && model.get(path)!.content === undefined);
}
function children(path: string): string[] {
  return [...model.keys()].filter(p => parent(p) === path);
}
function anyPath(): string {
  const dirs = ['', ...[...model].filter(([p, n]) => !n.content && p.split('/').length < 4).map(([p]) => p)];
  return `${dirs[random(dirs.length)]}/${names[random(names.length)]}`;
}
/** Runs the call and compares its errno with what the model expects. */
function expect(what: string, code: string | undefined, call: () => void): boolean {
  operations++;
  let got: string | undefined;
  try {
    call();
  } catch (error) {
    got = (error as NodeJS.ErrnoException).code;
  }
  if (got !== code) fail(`${what}: ${got ?? 'success'} instead of ${code ?? 'success'}`);
  return code === undefined;
}

function step(): void {
  const path = anyPath();
  const real = root + path;
  const node = model.get(path);
  switch (random(9)) {
    case 0: {
      if (expect(`mkdir ${path}`, node ? 'EEXIST' : undefined, () => fs.mkdirSync(real)))
        model.set(path, { nlink: { n: 2 } });
      return;
    }
    case 1: {
      const content = Buffer.alloc(random(3) === 0 ? random(20000) : random(200), random(256));
      if (node && !node.content) return;
      if (expect(`create ${path}`, node ? 'EEXIST' : undefined, () => fs.writeFileSync(real, content, { flag: 'wx' })))
        model.set(path, { content, nlink: { n: 1 } });
      return;
    }
    case 2: {
      const code = !node ? 'ENOENT' : node.content ? undefined : 'EISDIR';
      if (expect(`unlink ${path}`, code, () => fs.unlinkSync(real))) {
        node!.nlink.n--;
        model.delete(path);
      }
      return;
    }
    case 3: {
      const code = !node ? 'ENOENT' : node.content ? 'ENOTDIR' : children(path).length ? 'ENOTEMPTY' : undefined;
      if (expect(`rmdir ${path}`, code, () => fs.rmdirSync(real))) model.delete(path);
      return;
    }
    case 4: {
      const to = anyPath();
      if (!node?.content || isDir(to)) return;
      const target = model.get(to);
      if (expect(`rename ${path} ${to}`, undefined, () => fs.renameSync(real, root + to))) {
        if (target?.nlink === node.nlink) return; // hard links of one file: nothing happens
        if (target) target.nlink.n--;
        model.delete(path);
        model.set(to, node);
      }
      return;
    }
    case 5: {
      const to = anyPath();
      if (!node?.content) return;
      const code = model.has(to) ? 'EEXIST' : undefined;
      if (expect(`link ${path} ${to}`, code, () => fs.linkSync(real, root + to))) {
        node.nlink.n++;
        model.set(to, node);
      }
      return;
    }
    case 6: {
      if (!node?.content) return;
      const more = Buffer.alloc(1 + random(9000), random(256));
      if (!expect(`append ${path}`, undefined, () => fs.appendFileSync(real, more))) return;
      const content = Buffer.concat([node.content, more]);
      for (const other of model.values()) if (other.nlink === node.nlink) other.content = content;
      return;
    }
    case 7: {
      if (!node?.content) return;
      const size = random(12000);
      if (!expect(`truncate ${path}`, undefined, () => fs.truncateSync(real, size))) return;
      const content = Buffer.alloc(size);
      node.content.copy(content);
      for (const other of model.values()) if (other.nlink === node.nlink) other.content = content;
      return;
    }
    default: {
      const code = node ? undefined : 'ENOENT';
      let stat: fs.Stats | undefined;
      if (!expect(`stat ${path}`, code, () => (stat = fs.statSync(real)))) return;
      if (stat!.isDirectory() !== !node!.content) fail(`stat ${path}: type`);
      if (!node!.content) {
        const want = children(path)
          .map(p => p.slice(path.length + 1))
          .sort();
        const have = fs.readdirSync(real).sort();
        if (want.join() !== have.join()) fail(`readdir ${path}: ${have} instead of ${want}`);
        return;
      }
      if (stat!.nlink !== node!.nlink.n) fail(`stat ${path}: nlink ${stat!.nlink} instead of ${node!.nlink.n}`);
      const have = fs.readFileSync(real);
      if (!have.equals(node!.content!)) fail(`read ${path}: ${have.length} bytes differ from ${node!.content!.length}`);
    }
  }
}

const end = Date.now() + time;
while (Date.now() < end) step();
console.log(operations);
