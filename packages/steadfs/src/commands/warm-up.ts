/**
 * Makes a service warm before somebody works with it. A fresh one compiles while it serves: its first few thousand requests cost up to twice what later ones cost. So in
 * the first quiet moment after the start the requests of small files' and directories' lives are played (rehearsal.ts of the fuse package) through a real session,
 * file system, data path and SQLite engine, over a volume in memory that is thrown away: database files in /dev/shm without names, objects in the process's own memory.
 * Nothing of the real mount is touched. Mounts of other engines play on SQLite, too: what lies above the engine is the greater part of what is compiled, and no request
 * goes to a server that others use. The engine of PostgreSQL and MySQL is played alone afterwards, on a database that agrees to everything (meta/sql/play.ts).
 *
 * What V8 learns belongs to the code, so the real mount's objects have it too. Two things matter for that:
 * - Two mounts are played, a short one first. Calls of closures that have only been seen of one mount are compiled for just these, and thrown away at the real mount's first
 *   call (46 functions lost their code at once; with two mounts 15, for other reasons).
 * - Functions are compiled (by Maglev) after 100 calls instead of 400, and wait for 100 instead of 500 after they have seen something new, from here to the end of the
 *   process: so 3,000 requests suffice. It helps a service that was not warmed up, too. (V8's flags of Node 24 and 26; others do not know them and go without.)
 *
 * Measured with played requests alone, CPU of 275 of them in a service's first 2,750, the next, and after 25,000: 22.0, 14.8, 12.3 ms as it was; after a warm-up 14.7, 14.0, 12.3;
 * with the two flags 13.2, 12.7, 11.6. Neither compiling everything at once (--always-sparkplug), nor feedback from the first call on, nor a larger young generation made a
 * difference of 3 %. bench/RESULTS.md has what programs see.
 *
 * What it costs: 0.4 s of CPU once, and 5 MiB of memory that stays. Real requests are served between any two played ones, and some of them end the warm-up: they are the better one. It
 * begins only when nothing was asked for half a second and half a processor was idle, and never where so many mounts are that memory counts more (MANY_MOUNTS). When it is over and nobody
 * asks, garbage is collected (20 ms).
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { OP } from '@steadfs/fuse/abi';
import { EIO } from '@steadfs/fuse/errno';
import { faultPoint } from '@steadfs/fuse/fault';
import { type Field, type PlayedKernel, playKernel } from '@steadfs/fuse/rehearsal';
import { trim } from '@steadfs/fuse/sys';
import type { Format } from '../format/volume.ts';
import type { SqlKind } from '../meta/sql/connection.ts';
import { LEVELS, type Log } from '../observe/log.ts';
import { messageOf } from './failure.ts';
import type { ServiceOptions } from './mount-flags.ts';
import { type ThrowAway, throwAwayMount } from './rehearsal.ts';

/** Names of files in memory. */
const MEMORY_FOLDER = '/dev/shm';
/** Between two looks whether the mount is quiet; up to twice as long, so that mounts that were started together do not begin together. */
const LOOK_MS = 500;
/** So much of a processor must have been idle between two looks. */
const FREE = 0.5;
/** Looks after which it is given up. */
const LOOKS = 200;
/** Real requests after which a service is warm by itself, and those during a warm-up that end it. */
const WARM_REQUESTS = 5000;
const SOME_REQUESTS = 8;
/** Of this process, its compiling threads included. */
const CPU_MS = 400;
/** And for the engine alone. */
const ENGINE_CPU_MS = 200;
/** Rounds of the short mount and of the other. */
const ROUNDS = [1, 10];
const FILES = 16;
const BUFFER = 32 << 20;
const MANY_MOUNTS = 32;
/** Thrown between two requests when it is to end. */
const ENOUGH = new Error('enough');

export interface Warmable {
  options: ServiceOptions;
  format: Format;
  log: Log;
  /** Real requests that were read so far; Infinity: stop. */
  requests(): number;
}

/** Waits for a quiet moment and warms up, if this mount is one that gains by it. True when it was done. Never rejects. */
export async function warmUpWhenQuiet(parts: Warmable): Promise<boolean> {
  const { options, log, requests } = parts;
  try {
    compileEarly();
    if (options.mount.readOnly || mounts() > MANY_MOUNTS) return false;
    if (!(await quiet(requests))) return false;
    faultPoint('warm-up.before');
    const started = performance.now();
    const before = requests();
    const played = await warmUp(parts, () => requests() - before < SOME_REQUESTS);
    const took = performance.now() - started;
    if (requests() === before) collectGarbage();
    log.debug(`warmed up with ${played} requests in ${took.toFixed(0)} ms`);
    return true;
  } catch (error) {
    log.debug(`not warmed up: ${messageOf(error)}`);
    return false;
  }
}

/** See above. Not for the start itself: everybody waits for that, and what it runs it runs once. */
function compileEarly(): void {
  const version = Number.parseInt(process.versions.v8, 10);
  if (version !== 13 && version !== 14) return;
  setFlagsFromString('--invocation-count-for-maglev=100');
  setFlagsFromString('--minimum-invocations-after-ic-update=100');
}

/** Mounts of ours that this process can see. */
function mounts(): number {
  return readFileSync('/proc/self/mountinfo', 'latin1').split(' - fuse.steadfs ').length - 1;
}

/** Settles when nothing was asked between two looks, and the machine had time to spare. False: that does not come. */
async function quiet(requests: () => number): Promise<boolean> {
  let before = requests();
  let idle = idleSeconds();
  for (let look = 0; look < LOOKS; look++) {
    const pause = LOOK_MS * (1 + Math.random());
    await new Promise<void>(resolve => setTimeout(resolve, pause).unref());
    const now = requests();
    const idleNow = idleSeconds();
    if (now > WARM_REQUESTS) return false;
    if (now === before && idleNow - idle > (FREE * pause) / 1000) return true;
    before = now;
    idle = idleNow;
  }
  return false;
}

/** Of all processors together since the machine's start: fourth number of /proc/stat, in hundredths. */
function idleSeconds(): number {
  return Number(/^cpu +(?:\d+ ){3}(\d+)/.exec(readFileSync('/proc/stat', 'latin1'))?.[1]) / 100;
}

/** Plays while `going`, at most for {@link CPU_MS} and {@link ENGINE_CPU_MS}. Answers how many requests were answered. */
export async function warmUp(real: Pick<Warmable, 'options' | 'format'>, going: () => boolean): Promise<number> {
  const goesOn = within(CPU_MS, going);
  let requests = 0;
  for (const rounds of ROUNDS) {
    if (!goesOn()) break;
    const { kernel, mount } = await playedMount(real);
    try {
      for (let n = 0; n < rounds && goesOn(); n++) await round(kernel, n, goesOn);
    } catch (error) {
      if (error !== ENOUGH) throw error;
    } finally {
      requests += kernel.requests;
      await kernel.end();
      await mount.discard();
    }
  }
  const kind = /^(postgres|mysql)/.exec(real.options.metaUrl)?.[1];
  if (kind !== undefined && going()) {
    const { playNetworkEngine } = await import('../meta/sql/play.ts');
    const { mutations } = await playNetworkEngine(kind as SqlKind, within(ENGINE_CPU_MS, going));
    requests += mutations;
  }
  return requests;
}

/** `going`, while the process has used less than so much CPU since now. */
function within(cpuMs: number, going: () => boolean): () => boolean {
  const start = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000 < cpuMs && going();
  };
}

const silent = Object.fromEntries(LEVELS.map(level => [level, () => {}])) as unknown as Log;

/** A mount like the real one, with its volume in memory, and the kernel's end of its connection. */
async function playedMount({
  options,
  format,
}: Pick<Warmable, 'options' | 'format'>): Promise<{ kernel: PlayedKernel; mount: ThrowAway }> {
  const folder = mkdtempSync(join(MEMORY_FOLDER, 'steadfs-warm-up-'));
  try {
    const { bucket: _, ...rest } = options;
    const mount = await throwAwayMount(
      { ...rest, metaUrl: `sqlite3://${folder}/meta.db`, bufferSize: BUFFER },
      {
        Name: format.Name,
        UUID: format.UUID,
        Storage: 'mem',
        Tiers: null,
        Bucket: '',
        BlockSize: format.BlockSize,
        Compression: format.Compression ?? '',
        TrashDays: format.TrashDays,
        MetaVersion: 1,
        DirStats: format.DirStats ?? false,
        EnableACL: format.EnableACL,
      },
      silent,
    );
    try {
      return { mount, kernel: await playKernel(mount.capsule, mount.fileSystem) };
    } catch (error) {
      await mount.discard();
      throw error;
    }
  } finally {
    // All files are open by now; from here on a process that is killed leaves nothing.
    rmSync(folder, { recursive: true, force: true });
  }
}

const ROOT = 1;
const ENOENT = 2;
const O_RDWR_CREAT = 0o102;
/** Offset of fuse_open_out in the answer to CREATE, behind fuse_entry_out. */
const CREATED = 128;
/** fuse_setattr_in.valid */
const FATTR_MODE = 1;
const LARGE = new Uint8Array(100 << 10);
const SMALL = new Uint8Array(4 << 10);

/** One directory with some files and directories comes and goes, as shells, archivers and builds do it. */
async function round(kernel: PlayedKernel, n: number, goesOn: () => boolean): Promise<void> {
  const ask = async (opcode: number, nodeid: number, ...fields: Field[]): Promise<void> => {
    if (!goesOn()) throw ENOUGH;
    const errno = await kernel.call(opcode, nodeid, ...fields);
    if (errno !== 0 && !(errno === ENOENT && opcode === OP.LOOKUP))
      throw EIO.because(`opcode ${opcode} was answered with errno ${errno}`);
  };
  const close = async (ino: number, fh: bigint): Promise<void> => {
    await ask(OP.FLUSH, ino, fh, 0n, 1n);
    await ask(OP.RELEASE, ino, fh, 0n, 0n);
  };
  const make = async (parent: number, name: string): Promise<number> => {
    await ask(OP.LOOKUP, parent, name);
    await ask(OP.MKDIR, parent, 0o755, 0o022, name);
    return kernel.u64(0);
  };

  const dir = await make(ROOT, `d${n}`);
  const files: { ino: number; name: string; data: Uint8Array | undefined }[] = [];
  for (let i = 0; i < FILES; i++) {
    const name = `file-${n}.${i}`;
    const data = i % 16 === 0 ? LARGE : i % 8 === 0 ? SMALL : undefined;
    await ask(OP.LOOKUP, dir, name);
    await ask(OP.CREATE, dir, O_RDWR_CREAT, 0o644, 0o022, 0, name);
    const ino = kernel.u64(0);
    const fh = BigInt(kernel.u64(CREATED));
    if (data) await ask(OP.WRITE, ino, fh, 0n, data.length, 0, 0n, 2, 0, data);
    await close(ino, fh);
    files.push({ ino, name, data });
  }
  for (const { ino, name, data } of files) {
    await ask(OP.LOOKUP, dir, name);
    kernel.forget(ino);
    await ask(OP.GETATTR, ino, 0n, 0n);
    await ask(OP.OPEN, ino, 0, 0);
    const fh = BigInt(kernel.u64(0));
    if (data) await ask(OP.READ, ino, fh, 0n, data.length, 0, 0n, 0, 0);
    await close(ino, fh);
    await ask(OP.SETATTR, ino, FATTR_MODE, 0, 0n, 0n, 0n, 0n, 0n, 0n, 0, 0, 0, 0o600, 0, 0, 0, 0);
  }
  for (let i = 0; i < 3; i++) await list(kernel, dir, ask);
  for (const file of files) {
    await ask(OP.LOOKUP, dir, `new-${file.name}`);
    await ask(OP.RENAME2, dir, BigInt(dir), 0, 0, file.name, `new-${file.name}`);
  }
  for (const { ino, name } of files) {
    await ask(OP.UNLINK, dir, `new-${name}`);
    kernel.forget(ino);
  }
  const made: number[] = [];
  for (let i = 0; i < FILES; i++) made.push(await make(dir, `dir-${n}.${i}`));
  for (const [i, ino] of made.entries()) {
    await ask(OP.RMDIR, dir, `dir-${n}.${i}`);
    kernel.forget(ino);
  }
  await ask(OP.RMDIR, ROOT, `d${n}`);
  kernel.forget(dir);
}

/** READDIRPLUS and READDIR in turn, pages of 4 KiB. */
async function list(
  kernel: PlayedKernel,
  dir: number,
  ask: (opcode: number, nodeid: number, ...fields: Field[]) => Promise<void>,
): Promise<void> {
  await ask(OP.OPENDIR, dir, 0, 0);
  const fh = BigInt(kernel.u64(0));
  for (let plus = true, offset = 0; ; plus = !plus) {
    await ask(plus ? OP.READDIRPLUS : OP.READDIR, dir, fh, BigInt(offset), 4096, 0, 0n, 0, 0);
    if (kernel.length === 0) break;
    const looked: number[] = [];
    // Of plus, fuse_entry_out comes before each fuse_dirent: ino u64, offset u64, length of the name u32 @16, name @24, padded to 8.
    for (let at = 0, entry = plus ? CREATED : 0; at < kernel.length; ) {
      if (plus && kernel.u64(at) !== 0) looked.push(kernel.u64(at));
      offset = kernel.u64(at + entry + 8);
      at += entry + ((24 + kernel.u32(at + entry + 16) + 7) & ~7);
    }
    for (const ino of looked) kernel.forget(ino);
  }
  await ask(OP.RELEASEDIR, dir, fh, 0n, 0n);
}

/** What warming up has left behind goes, and memory that is free is given back. */
function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (how: { type: 'major'; flavor: 'last-resort' }) => void;
  setFlagsFromString('--no-expose-gc');
  collect({ type: 'major', flavor: 'last-resort' });
  trim();
}
