/**
 * The program that keeper and service of a mount run: a private copy of the bundle, named after its contents. The installed files may be
 * replaced at any time; a service that is started again after a crash must be the version that served last (an upgrade of the mount renews it).
 *
 *     BASE/VERSION-HASH/   steadfs.mjs, chunks and workers, native binaries
 *     BASE/node-VERSION-…/ node: a hard link, so it costs nothing and outlives `npm ci`, an update or the end of the installation
 *
 * BASE is /var/lib/steadfs/runtime, for users ~/.steadfs/runtime, or $STEADFS_RUNTIME_DIR.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';

/**
 * Flags of Node for commands and services. V8 counts the views of capsule and arena (hundreds of MiB that are no garbage) as its own memory, and would mark
 * the whole heap three or four times while a service starts (20 ms); with the second flag they count only where a collection is due. (Known to V8 14, that is Node 26, which stops at flags that it does not know.)
 */
const NODE_FLAGS = [
  '--disable-warning=ExperimentalWarning',
  ...(Number.parseInt(process.versions.v8, 10) >= 14 ? ['--external-memory-accounted-in-global-limit'] : []),
];

/** Copies that no process uses are removed after this long. */
const KEEP_MS = 7 * 86_400_000;

export interface Runtime {
  version: string;
  /** argv of a command of this runtime, without the command's own arguments. */
  command: readonly string[];
}

function baseFolder(): string {
  if (process.env.STEADFS_RUNTIME_DIR) return resolve(process.env.STEADFS_RUNTIME_DIR);
  return process.getuid?.() === 0 ? '/var/lib/steadfs/runtime' : join(homedir(), '.steadfs/runtime');
}

/** The folder of the bundle: our own when we run from one; from source the package's dist, made afresh. */
function bundleFolder(): string {
  const here = import.meta.dirname;
  if (existsSync(join(here, 'steadfs.mjs'))) return here;
  const script = resolve(here, '../../../scripts/build.ts');
  const { status, stderr, error } = spawnSync(process.execPath, [script], { encoding: 'utf8', timeout: 120_000 });
  if (status !== 0) throw new Error(`the bundle cannot be made (npm run build): ${error?.message ?? stderr.trim()}`);
  return resolve(here, '../dist');
}

/** Native binaries for this machine by their name beside the bundle, by way of the installed packages. */
function nativeBinaries(from: string): Record<string, string> {
  const require = createRequire(join(from, 'steadfs.mjs'));
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  const glibc = Boolean(report.header?.glibcVersionRuntime);
  const find: Record<string, () => string> = {
    'koffi.node': () => {
      const koffi = createRequire(require.resolve('koffi'));
      const folder = dirname(koffi.resolve(`@koromix/koffi-linux-${process.arch}`));
      return join(folder, `${glibc ? 'linux' : 'musl'}_${process.arch}`, 'koffi.node');
    },
    'crc32.node': () =>
      createRequire(require.resolve('@node-rs/crc32')).resolve(
        `@node-rs/crc32-linux-${process.arch}-${glibc ? 'gnu' : 'musl'}`,
      ),
    'lz4.node': () =>
      createRequire(require.resolve('lz4-napi')).resolve(
        `@antoniomuso/lz4-napi-linux-${process.arch}-${glibc ? 'gnu' : 'musl'}`,
      ),
  };
  return Object.fromEntries(
    Object.entries(find).map(([name, resolveBinary]) => {
      const beside = join(from, name);
      return [name, existsSync(beside) ? beside : resolveBinary()];
    }),
  );
}

/** Makes the copy when it is not there yet, and answers how to run it. Throws when it cannot be written. */
export function installRuntime(): Runtime {
  const from = bundleFolder();
  const manifest = JSON.parse(readFileSync(join(from, 'bundle.json'), 'utf8')) as { version: string; files: string[] };
  const base = baseFolder();
  const binaries = nativeBinaries(from);
  const hash = createHash('sha256');
  for (const file of [...manifest.files.map(f => join(from, f)), ...Object.values(binaries)])
    hash.update(readFileSync(file)).update('\0');
  const folder = join(base, `${manifest.version}-${hash.digest('hex').slice(0, 16)}`);
  const copies: [string, string][] = [
    ...manifest.files.map((f): [string, string] => [join(from, f), join(folder, f)]),
    ...Object.entries(binaries).map(([name, path]): [string, string] => [path, join(folder, name)]),
  ];
  let made = false;
  if (from !== folder && !isWhole(copies)) {
    // Cut off by a crash of the machine: nobody can run from it.
    rmSync(folder, { recursive: true, force: true });
    makeAtOnce(folder, temporary => {
      for (const [path, copy] of copies) copyFileSync(path, join(temporary, basename(copy)));
    });
    made = true;
  } else markUsed(folder);
  const command = [keepNode(base), ...NODE_FLAGS, join(folder, 'steadfs.mjs')] as const;
  if (made) {
    // A service that is started after a crash finds its code compiled.
    spawnSync(command[0], [...command.slice(1), 'service', '--warm'], { timeout: 30_000 });
    removeOld(base, folder);
  }
  return { version: manifest.version, command };
}

function isWhole(copies: readonly [string, string][]): boolean {
  return copies.every(
    ([path, copy]) =>
      statSync(copy, { throwIfNoEntry: false })?.size === statSync(path, { throwIfNoEntry: false })?.size,
  );
}

/** Fills a temporary folder and gives it its name. Throws when neither we nor somebody else made it. */
function makeAtOnce(folder: string, fill: (temporary: string) => void): void {
  mkdirSync(dirname(folder), { recursive: true, mode: 0o755 });
  const temporary = mkdtempSync(join(dirname(folder), '.new-'));
  try {
    fill(temporary);
    renameSync(temporary, folder);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    // Another mount may have made it meanwhile.
    if (!existsSync(folder)) throw error;
  }
}

function markUsed(folder: string): void {
  try {
    const now = new Date();
    utimesSync(folder, now, now);
  } catch {
    // EROFS, EPERM: whoever made it cares for it.
  }
}

/** Node under a name that stays: the installed one may be away when a service crashes. Where that cannot be had, the installed one. */
function keepNode(base: string): string {
  const node = process.execPath;
  if (dirname(dirname(node)) === base) return node;
  // A distribution's may need libraries of the same package, which go with it.
  if ((process.config.variables as { node_shared?: boolean }).node_shared) return node;
  try {
    const { ino, size, mtimeMs } = statSync(node);
    const folder = join(
      base,
      `node-${process.versions.node}-${[ino, size, Math.floor(mtimeMs)].map(n => n.toString(36)).join('-')}`,
    );
    const kept = join(folder, 'node');
    if (statSync(kept, { throwIfNoEntry: false })?.size !== size)
      makeAtOnce(folder, temporary => linkSync(node, join(temporary, 'node')));
    else markUsed(folder);
    return kept;
  } catch {
    // EXDEV: another file system; EPERM: a user and root's file.
    return node;
  }
}

/** Removes copies that were not asked for lately and that no command line in /proc names. */
function removeOld(base: string, current: string): void {
  const old = readdirSync(base)
    .map(name => join(base, name))
    .filter(path => path !== current && Date.now() - statSync(path).mtimeMs > KEEP_MS);
  if (old.length === 0) return;
  const lines = readdirSync('/proc')
    .filter(name => /^\d+$/.test(name))
    .map(pid => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      } catch {
        // It ended meanwhile.
        return '';
      }
    });
  for (const path of old) if (!lines.some(line => line.includes(path))) rmSync(path, { recursive: true, force: true });
}
