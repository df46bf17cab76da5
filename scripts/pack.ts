/**
 * Makes the npm packages: what `npm publish` would be given.
 *
 *   npm run pack [-- --out FOLDER]        default: the folder build/ of the repository
 *
 * steadfs-fuse-X.Y.Z.tgz is @steadfs/fuse as JavaScript with type declarations, and its examples; steadfs-X.Y.Z.tgz is the launcher and the bundle, which holds all
 * libraries but the native ones. Both are put together in folders of their own, so the working tree (whose `exports` name the TypeScript sources) stays as it is; each package's
 * own `prepack` refuses a direct `npm pack`. Prints the paths of the two.
 */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire, stripTypeScriptTypes } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { makeBundle } from './build.ts';

const ROOT = resolve(import.meta.dirname, '..');
const FUSE = join(ROOT, 'packages/fuse');
const STEADFS = join(ROOT, 'packages/steadfs');
/** Beside these, everything that steadfs depends on is in its bundle. */
const NATIVE = ['koffi', '@node-rs/crc32', 'lz4-napi'];

interface Manifest {
  name: string;
  version: string;
  dependencies: Record<string, string>;
  [field: string]: unknown;
}

function run(program: string, args: string[], cwd = ROOT): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

function manifestOf(folder: string): Manifest {
  const {
    scripts: _,
    devDependencies: __,
    ...manifest
  } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Manifest;
  return manifest;
}

function writeManifest(folder: string, manifest: Manifest): void {
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
}

function copy(from: string, to: string, names: readonly string[]): void {
  for (const name of names) cpSync(join(from, name), join(to, name), { recursive: true });
}

/** @steadfs/fuse as others get it. */
function stageFuse(to: string): void {
  run(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', FUSE, '--outDir', join(to, 'dist')]);
  copy(FUSE, to, ['README.md', 'LICENSE', 'examples']);
  // As programs of others would be written, and without types too: Node does not strip them below node_modules.
  for (const name of readdirSync(join(to, 'examples')).filter(n => n.endsWith('.ts'))) {
    const text = readFileSync(join(to, 'examples', name), 'utf8')
      .replaceAll("'../src/index.ts'", "'@steadfs/fuse'")
      .replace(/'\.\.\/src\/([\w-]+)\.ts'/g, "'@steadfs/fuse/$1'");
    writeFileSync(join(to, 'examples', name), text);
    writeFileSync(join(to, 'examples', name.replace(/ts$/, 'js')), stripTypeScriptTypes(text));
  }
  const target = (name: string) => ({ types: `./dist/${name}.d.ts`, default: `./dist/${name}.js` });
  writeManifest(to, {
    ...manifestOf(FUSE),
    exports: { '.': target('index'), './package.json': './package.json', './*': target('*') },
    types: './dist/index.d.ts',
    files: ['dist', 'examples'],
  });
}

/** Licences of the libraries in the bundle. */
function licences(manifest: Manifest): string {
  const found = new Map<string, string>();
  const visit = (name: string, from: string): void => {
    const require = createRequire(join(from, 'package.json'));
    const folder = (require.resolve.paths(name) ?? [])
      .map(p => join(p, name))
      .find(p => existsSync(join(p, 'package.json')));
    if (folder === undefined || found.has(folder)) return; // optional, not installed
    const { version, license, dependencies } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as {
      version: string;
      license?: string;
      dependencies?: Record<string, string>;
    };
    const file = readdirSync(folder).find(n => /^licen[cs]e/i.test(n));
    found.set(
      folder,
      `${name} ${version} (${license ?? 'see below'})\n\n${file ? readFileSync(join(folder, file), 'utf8').trim() : ''}`,
    );
    for (const dependency of Object.keys(dependencies ?? {})) visit(dependency, folder);
  };
  for (const name of Object.keys(manifest.dependencies))
    if (!name.startsWith('@steadfs/') && !NATIVE.includes(name)) visit(name, STEADFS);
  const line = `\n\n${'-'.repeat(80)}\n\n`;
  return `The bundle in dist/ holds these libraries.${line}${[...found.values()].sort().join(line)}\n`;
}

/** steadfs as others get it. */
async function stageSteadfs(to: string): Promise<void> {
  await makeBundle({ force: true, clean: true, out: join(to, 'dist') });
  copy(STEADFS, to, ['README.md', 'LICENSE', 'bin', 'systemd']);
  chmodSync(join(to, 'bin/steadfs'), 0o755);
  const manifest = manifestOf(STEADFS);
  writeFileSync(join(to, 'LIBRARIES.txt'), licences(manifest));
  const dependencies = Object.fromEntries(
    Object.entries(manifest.dependencies).filter(([name]) => NATIVE.includes(name)),
  );
  writeManifest(to, {
    ...manifest,
    dependencies,
    files: ['bin', 'dist/*.mjs', 'dist/bundle.json', 'systemd', 'LIBRARIES.txt'],
  });
}

/** Packs both into `out`; answers the paths of the tarballs. */
export async function pack(out: string): Promise<{ fuse: string; steadfs: string }> {
  mkdirSync(out, { recursive: true });
  const stage = mkdtempSync(join(tmpdir(), 'steadfs-pack-'));
  const tarball = (folder: string): string => {
    const [packed] = JSON.parse(
      run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', out], folder),
    ) as [{ filename: string }];
    return join(out, packed.filename);
  };
  try {
    const [fuse, steadfs] = ['fuse', 'steadfs'].map(name => join(stage, name)) as [string, string];
    for (const folder of [fuse, steadfs]) mkdirSync(folder);
    stageFuse(fuse);
    await stageSteadfs(steadfs);
    return { fuse: tarball(fuse), steadfs: tarball(steadfs) };
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { out: { type: 'string', default: join(ROOT, 'build') }, refuse: { type: 'boolean' } },
  });
  if (values.refuse) {
    console.error(
      'The sources are not what is published: npm run pack, in the root of the repository, makes the packages.',
    );
    process.exit(1);
  }
  const { fuse, steadfs } = await pack(resolve(values.out));
  console.log(`${fuse}\n${steadfs}`);
}
