/**
 * Makes dist/steadfs.mjs, what the keeper and the service run: one bundle of our sources and the libraries, big ones (database
 * drivers, S3) in chunks of their own that are loaded when wanted. Nothing is done while the bundle is newer than every source.
 *
 *   node scripts/build.ts [--force] [--clean] [--out FOLDER] [--version X.Y.Z] [--faults]
 *
 * Chunks of older bundles stay for a day (--clean: not), as a running command may still load one. The result replaces the old one file by file, steadfs.mjs last, so that whoever starts meanwhile finds a whole one. bundle.json lists
 * the files that belong to it.
 */
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { build, type Metafile, type Plugin } from 'esbuild';

const ROOT = resolve(import.meta.dirname, '..');
const PACKAGE = join(ROOT, 'packages/steadfs');
const FAULT_POINTS = join(ROOT, 'packages/fuse/src/fault.ts');
const POINTS = join(ROOT, 'packages/fuse/test/faults/points.ts');
const SOURCES = [
  join(PACKAGE, 'src'),
  join(PACKAGE, 'package.json'),
  join(ROOT, 'packages/fuse/src'),
  import.meta.filename,
];

/** Latest modification below the paths, milliseconds; folders count, so a removed file is noticed too. */
function newest(paths: readonly string[]): number {
  let latest = 0;
  for (const path of paths) {
    const stat = statSync(path);
    latest = Math.max(latest, stat.mtimeMs);
    if (stat.isDirectory()) latest = Math.max(latest, newest(readdirSync(path).map(name => join(path, name))));
  }
  return latest;
}

/** Workers: `new URL('./x.ts', import.meta.url)` becomes an entry point of its own, named the same with .mjs. With `faults`, fault points are real. */
function workers(found: Set<string>, faults: boolean): Plugin {
  return {
    name: 'workers',
    setup(plugin) {
      plugin.onLoad({ filter: /packages\/(steadfs|fuse)\/src\/.*\.ts$/ }, ({ path }) => {
        if (faults && path === FAULT_POINTS) {
          return { contents: readFileSync(POINTS, 'utf8'), loader: 'ts', resolveDir: dirname(POINTS) };
        }
        const text = readFileSync(path, 'utf8').replace(
          /new URL\(\s*'(\.[^']*\.ts)',\s*import\.meta\.url\s*\)/g,
          (_, target: string) => {
            found.add(resolve(dirname(path), target));
            return `new URL('./${basename(target, '.ts')}.mjs', import.meta.url)`;
          },
        );
        return { contents: withoutImports(text), loader: 'ts' };
      });
    },
  };
}

/**
 * Native packages find their binary by way of their own place in node_modules. In the bundle it is the binary beside the bundle (a runtime copy,
 * see packages/steadfs/src/runtime.ts), else the installed package.
 */
const NATIVES: Record<string, [binary: string, ...exported: string[]]> = {
  koffi: ['koffi.node'],
  '@node-rs/crc32': ['crc32.node', 'crc32c'],
  'lz4-napi': ['lz4.node', 'compressSync', 'uncompressSync'],
};

const natives: Plugin = {
  name: 'natives',
  setup(plugin) {
    for (const [name, [binary, ...exported]] of Object.entries(NATIVES)) {
      plugin.onResolve({ filter: new RegExp(`^${name}$`) }, () => ({ path: name, namespace: 'native' }));
      plugin.onLoad({ filter: new RegExp(`^${name}$`), namespace: 'native' }, () => ({
        contents: `
          const { existsSync } = process.getBuiltinModule('node:fs');
          const { createRequire } = process.getBuiltinModule('node:module');
          const beside = import.meta.dirname + '/${binary}';
          const native = createRequire(import.meta.url)(existsSync(beside) ? beside : '${name}');
          export default native;
          ${exported.map(e => `export const ${e} = native.${e};`).join('\n')}`,
        loader: 'js',
      }));
    }
  },
};

/** Parts of Node that take 1 to 6 ms each to load and that a service seldom needs before its first answer. */
const LATE = ['node:child_process', 'node:crypto', 'node:fs/promises', 'node:worker_threads', 'node:zlib'];

/**
 * Our own imports of Node's modules become calls of process.getBuiltinModule: an import proper reads every export, and so loads all that Node itself would load
 * when it is used first (streams, WebCrypto, …: 10 ms). Those of {@link LATE} are loaded when one of their functions is called; so nothing else can be imported from
 * them. Imports in the text must look as the formatter leaves them.
 */
function withoutImports(text: string): string {
  return text.replace(/^import (?!type\b)([^;']+) from '(node:[^']+)';$/gm, (_, clause: string, name: string) => {
    const load = `process.getBuiltinModule('${name}')`;
    const late = LATE.includes(name);
    const [, whole, names] = /^(?:\* as )?([\w$]+)?(?:, )?(?:\{([^}]*)\})?$/s.exec(clause.trim()) ?? [];
    const lines: string[] = [];
    if (whole) lines.push(`const ${whole} = ${late ? `new Proxy({}, { get: (_, name) => ${load}[name] })` : load};`);
    for (const part of (names ?? '').split(',').map(n => n.trim())) {
      if (part === '' || part.startsWith('type ')) continue;
      const [from, to = from] = part.split(' as ');
      lines.push(
        late
          ? `const ${to} = function (...args) { const f = ${load}.${from}; return new.target ? Reflect.construct(f, args) : f(...args); };`
          : `const ${to} = ${load}.${from};`,
      );
    }
    if (lines.length === 0) throw new Error(`import ${clause} from '${name}' is not understood`);
    return lines.join(' ');
  });
}

/**
 * Makes one file of all that the service's start loads: of some twenty chunks, loading, linking and reading the compile cache take 8 ms more, and after a crash everybody waits for
 * them. In place of each of these chunks stays one that exports the same from the new file, so that there is one instance of every module.
 */
async function joinStartup(folder: string, { outputs }: Metafile): Promise<void> {
  const byName = new Map(Object.entries(outputs).map(([path, output]) => [basename(path), output]));
  const closure = (name: string, into = new Set<string>()): Set<string> => {
    if (into.has(name)) return into;
    into.add(name);
    for (const { path, kind } of byName.get(name)?.imports ?? [])
      if (kind === 'import-statement' && byName.has(basename(path))) closure(basename(path), into);
    return into;
  };
  const service = [...byName].find(([, { entryPoint }]) => entryPoint?.endsWith('commands/service.ts'))![0];
  const loaded = closure('steadfs.mjs');
  const parts = [...closure(service)].filter(name => !loaded.has(name));
  const exported = (name: string, show: (own: string, common: string) => string, i: number): string =>
    byName
      .get(name)!
      .exports.map(own => show(own, `${own}$${i}`))
      .join(',');
  await build({
    stdin: {
      contents: parts
        .map((name, i) => `export {${exported(name, (a, b) => `${a} as ${b}`, i)}} from './${name}';`)
        .join('\n'),
      resolveDir: folder,
    },
    outfile: join(folder, 'chunk-startup.mjs'),
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    minifySyntax: true,
    minifyWhitespace: true,
    legalComments: 'none',
    logLevel: 'error',
    plugins: [
      {
        name: 'parts',
        setup(plugin) {
          plugin.onResolve({ filter: /^\.\// }, ({ path, kind }) =>
            kind === 'dynamic-import' || loaded.has(basename(path)) ? { path, external: true } : undefined,
          );
        },
      },
    ],
  });
  parts.forEach((name, i) => {
    writeFileSync(
      join(folder, name),
      `export{${exported(name, (a, b) => `${b} as ${a}`, i)}}from"./chunk-startup.mjs";`,
    );
  });
}

/** Gives the chunks names that no other build has: a command that runs while the bundle is made anew goes on with its own. */
function nameByBuild(folder: string): void {
  const names = readdirSync(folder).filter(name => name.endsWith('.mjs'));
  const texts = new Map(names.map(name => [name, readFileSync(join(folder, name), 'utf8')]));
  const hash = createHash('sha256');
  for (const text of texts.values()) hash.update(text);
  const build = hash.digest('hex').slice(0, 8);
  const chunks = names.filter(name => name.startsWith('chunk-'));
  const renamed = (name: string): string => name.replace(/\.mjs$/, `-${build}.mjs`);
  const pattern = new RegExp(chunks.map(name => name.replaceAll('.', '\\.')).join('|'), 'g');
  for (const [name, text] of texts) writeFileSync(join(folder, name), text.replace(pattern, renamed));
  for (const name of chunks) renameSync(join(folder, name), join(folder, renamed(name)));
}

export interface BuildOptions {
  /** Also when the bundle is fresh. */
  force?: boolean | undefined;
  /** Removes chunks of older bundles at once. */
  clean?: boolean | undefined;
  out?: string | undefined;
  /** Instead of package.json's. */
  version?: string | undefined;
  /** With the fault points of tests (packages/fuse/src/fault.ts). */
  faults?: boolean | undefined;
}

/** One build at a time in a folder: two would mix their files. A lock whose process is gone is taken over. */
async function locked<T>(out: string, work: () => Promise<T>): Promise<T> {
  const lock = join(out, '.lock');
  for (let waited = 0; ; waited += 50) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      const holder = readHolder(lock);
      if ((holder !== '' && !existsSync(`/proc/${holder}`)) || waited > 120_000) rmSync(lock, { force: true });
      await new Promise(wake => setTimeout(wake, 50));
    }
  }
  try {
    return await work();
  } finally {
    rmSync(lock, { force: true });
  }
}

function readHolder(lock: string): string {
  try {
    return readFileSync(lock, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    return '';
  }
}

export async function makeBundle(options: BuildOptions = {}): Promise<boolean> {
  const out = resolve(options.out ?? join(PACKAGE, 'dist'));
  mkdirSync(out, { recursive: true });
  return locked(out, () => makeLocked(out, options));
}

async function makeLocked(out: string, options: BuildOptions): Promise<boolean> {
  const entry = join(out, 'steadfs.mjs');
  const sources = options.faults ? [...SOURCES, POINTS] : SOURCES;
  const before = newest(sources);
  if (!options.force && existsSync(entry) && statSync(entry).mtimeMs > before) return false;

  const manifest = JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8')) as { version: string };
  const temporary = mkdtempSync(join(out, '.build-'));
  try {
    const found = new Set<string>();
    let chunks: Metafile | undefined;
    // Workers are known once the first pass has read the sources; they share chunks with the rest in the second.
    for (let known = -1; known < found.size; ) {
      known = found.size;
      ({ metafile: chunks } = await build({
        entryPoints: [
          { in: join(PACKAGE, 'src/main.ts'), out: 'steadfs' },
          ...[...found].sort().map(path => ({ in: path, out: basename(path, '.ts') })),
        ],
        outdir: temporary,
        outExtension: { '.js': '.mjs' },
        chunkNames: 'chunk-[name]-[hash]',
        bundle: true,
        splitting: true,
        format: 'esm',
        platform: 'node',
        target: 'node24',
        minifySyntax: true,
        minifyWhitespace: true,
        keepNames: true,
        sourcemap: false,
        legalComments: 'none',
        logLevel: 'error',
        define: { STEADFS_BUILD_VERSION: JSON.stringify(options.version ?? manifest.version) },
        // Optional parts of libraries that are not installed.
        external: ['pg-native', 'pg-cloudflare', 'cardinal'],
        banner: {
          js: "const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);",
        },
        plugins: [workers(found, options.faults ?? false), natives],
        metafile: true,
      }));
    }
    await joinStartup(temporary, chunks!);
    nameByBuild(temporary);
    const files = readdirSync(temporary).sort((a, b) => Number(a === 'steadfs.mjs') - Number(b === 'steadfs.mjs'));
    const version = options.version ?? manifest.version;
    writeFileSync(join(temporary, 'bundle.json'), `${JSON.stringify({ version, files }, null, 2)}\n`);
    for (const file of [...files.slice(0, -1), 'bundle.json', 'steadfs.mjs'])
      renameSync(join(temporary, file), join(out, file));
    // What changed while it was bundled must look newer than the bundle.
    const stamp = new Date(Math.max(before + 1, Date.now() - 1));
    if (newest(sources) === before) utimesSync(entry, stamp, stamp);
    else utimesSync(entry, new Date(before), new Date(before));
    const now = Date.now();
    for (const file of readdirSync(out))
      if (
        /^chunk-.*\.mjs$/.test(file) &&
        !files.includes(file) &&
        (options.clean || now - statSync(join(out, file)).mtimeMs > 86_400_000)
      )
        rmSync(join(out, file));
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  return true;
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      force: { type: 'boolean' },
      clean: { type: 'boolean' },
      out: { type: 'string' },
      version: { type: 'string' },
      faults: { type: 'boolean' },
    },
  });
  const started = performance.now();
  const made = await makeBundle(values);
  console.log(made ? `bundle made in ${Math.round(performance.now() - started)} ms` : 'bundle is fresh');
}
