/**
 * Starting, replacing, serving, watching and ending a mount: the functions that commands call. Types and what they promise: service-types.ts; who holds what and
 * restarts whom: keeper.ts; the take-over: handover.ts.
 *
 * The service's one way to start, {@link runService}: take the capsule's lock (an upgrade: get warm first, then end the old service, then take it), open the capsule, serve.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, fstatSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  CapsuleError,
  createCapsule,
  incompatible,
  inspectCapsule,
  lockCapsule,
  type MappedCapsule,
  mapCapsule,
  openCapsule,
  peekBlob,
} from './capsule.ts';
import { patiently } from './company.ts';
import { EACCES, EBUSY, ECANCELED, ECONNREFUSED, EINVAL, EIO, ENOENT, ENOTCONN, Errno, ETIMEDOUT } from './errno.ts';
import { faultPoint } from './fault.ts';
import {
  type Control,
  type ControlServer,
  connectControl,
  fdsOfProcess,
  killAndWait,
  serveControl,
  takeOver,
} from './handover.ts';
import {
  becomeKeeper,
  becomeProgram,
  heldPairs,
  type KeeperWatch,
  passedEnvironment,
  setOomScore,
  startKeeper,
  watchKeeper,
} from './keeper.ts';
import {
  checkedDirectory,
  createLaunch,
  createState,
  type Ended,
  EXIT_ENDED,
  EXIT_LOCKED,
  EXIT_REFUSED,
  ended,
  FD_ARENA,
  FD_CAPSULE,
  FD_FUSE,
  FD_LAUNCH,
  FD_REPORT,
  FD_STATE,
  HELD,
  type HeldFds,
  holdsCapsule,
  type Report,
  readEnded,
  readLaunch,
  readState,
  runtimeDirectory,
  waitingSince,
  writeState,
} from './launch.ts';
import {
  findMount,
  isFuse,
  type MountInfo,
  type MountUser,
  mountedElsewhere,
  mountFuse,
  probe,
  unmount,
  unmountDevice,
  waitingRequests,
} from './mount.ts';
import { phase, phases } from './phases.ts';
import type {
  EndSettings,
  Launch,
  MountState,
  Replaced,
  ReplaceSettings,
  ServiceSettings,
  Started,
  StartSettings,
  Takeover,
  Trouble,
} from './service-types.ts';
import { CONNECTION_SECTIONS } from './slots.ts';
import * as sys from './sys.ts';
import { isRestart, listenFds, notifications, type StoredFds, storedMount } from './systemd.ts';

/** QUIT still ends a process with its core, and those that tell of a fault do. */
const IGNORED = ['SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGIO', 'SIGPWR', 'SIGSTKFLT'] as const;

/** JSON in the capsule: who serves, and the last take-overs. */
const PROCESS_BLOB = 'fuse.process';
const PROCESS_BLOB_MAX = 32_768;
const KEPT_TAKEOVERS = 32;
/** A process that yields to its successor is killed after this at the latest, ms. */
const YIELD_MS = 10;

interface ProcessRecord {
  pid: number;
  keeper: number;
  version: string;
  takeovers: Takeover[];
}

function readProcessRecord(bytes: Uint8Array | undefined): ProcessRecord | undefined {
  return bytes && (JSON.parse(Buffer.from(bytes).toString()) as ProcessRecord);
}

function now(): number {
  return performance.timeOrigin + performance.now();
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

// --- Starting ---------------------------------------------------------------------------------------------------------

/** See {@link StartSettings}. Throws Errno or Error with the reason; then nothing is left mounted. */
export async function startMount(settings: StartSettings): Promise<Started> {
  if (settings.systemd) return startUnderSystemd(settings);
  const { fds, launch } = await makeMount(settings);
  const starter = listenForReports();
  let keeper: ReturnType<typeof startKeeper> | undefined;
  try {
    if (settings.foreground) becomeKeeper(launch, fds);
    keeper = startKeeper({ launch, fds, mode: 'mount', report: starter.writeEnd });
    const served = await starter.served(settings.timeout ?? 60_000, keeper);
    keeper.unref();
    return { device: launch.device, keeper: keeper.pid, service: served.service };
  } catch (error) {
    keeper?.kill('SIGKILL');
    if (starter.service) killAndWait(starter.service, 1000);
    await takeBack(launch);
    rmSync(launch.directory, { recursive: true, force: true });
    throw error;
  } finally {
    starter.close();
    closeHeld(fds);
  }
}

/** Unmounts a fresh mount that nobody ever served. */
async function takeBack({ mountPoint, device }: Pick<Launch, 'mountPoint' | 'device'>): Promise<void> {
  if (findMount(mountPoint)?.device !== device) return;
  await unmount(mountPoint, { force: true }).catch(() => {
    // The reason of the failure matters more; a mount that is left over shows as dead.
  });
}

/** /dev/fuse, capsule, mount, launch record, state. */
async function makeMount(settings: StartSettings): Promise<{ fds: HeldFds; launch: Launch }> {
  const { mountPoint, mount, version, command, options, arenaSize, log, systemd } = settings;
  const { fd: fuse, device } = await mountFuse(mountPoint, mount);
  const fds: Partial<HeldFds> = { fuse };
  try {
    const launch: Launch = {
      mountPoint,
      device,
      mount,
      version,
      command,
      options,
      arenaSize,
      directory: runtimeDirectory(device),
      created: Date.now(),
      ...(log !== undefined && { log }),
      ...(systemd && { systemd }),
    };
    Object.assign(fds, createCapsule({ arenaSize }));
    fds.launch = createLaunch(launch);
    fds.state = createState();
    return { fds: fds as HeldFds, launch };
  } catch (error) {
    await takeBack({ mountPoint, device });
    closeHeld(fds);
    throw error;
  }
}

function closeHeld(fds: Partial<HeldFds>): void {
  for (const fd of Object.values(fds)) if (fd !== undefined) sys.close(fd);
}

/**
 * Unmounted while no service ran: one adopts what programs wrote and ends. Until it has, the fds stay in the store: whoever is started next tries again. Throws EIO when
 * it ends otherwise than with 0.
 */
async function bringHome(stored: StoredFds, settings: StartSettings): Promise<void> {
  const before = stored.launch === undefined ? undefined : readLaunch(stored.launch);
  const { mountPoint, mount, version, command, options, arenaSize, log } = settings;
  const device = before?.device ?? '0:0';
  const launch: Launch = {
    ...(before ?? { mountPoint, device, mount, options, arenaSize, created: Date.now() }),
    version,
    command,
    directory: runtimeDirectory(device),
    ...(log !== undefined && { log }),
  };
  delete launch.systemd;
  const fds: HeldFds = { ...stored, launch: createLaunch(launch), state: createState() };
  const notify = notifications();
  const extend = () => notify?.extendTimeout(60_000);
  extend();
  const timer = setInterval(extend, 20_000);
  try {
    const { NOTIFY_SOCKET: _, ...env } = passedEnvironment();
    // This process stands for the keeper.
    const child = spawn(command[0]!, command.slice(1), {
      stdio: ['ignore', 'inherit', 'inherit', fds.fuse, fds.capsule, fds.arena, fds.launch, fds.state],
      env: { ...env, STEADFS_START: 'crash', STEADFS_KEEPER: String(process.pid) },
    });
    const [code, signal] = await once(child, 'exit');
    if (code !== EXIT_ENDED)
      throw EIO.because(`what was written to the mount that has ended could not be stored (${code ?? signal})`);
  } finally {
    clearInterval(timer);
    notify?.close();
    sys.close(fds.launch);
    sys.close(fds.state);
  }
}

/** The unit's main process: adopts what the fd store kept or mounts, then becomes the service. */
async function startUnderSystemd(settings: StartSettings): Promise<never> {
  const passed = listenFds();
  let stored = storedMount(passed);
  if (stored && ended(stored.fuse)) {
    await bringHome(stored, settings);
    notifications()?.remove();
    closeHeld(stored);
    stored = undefined;
  }
  let launch: Launch;
  let fds: HeldFds;
  if (stored) {
    const { mountPoint, mount, version, command, options, arenaSize, log } = settings;
    const before = stored.launch === undefined ? undefined : readLaunch(stored.launch);
    if (before && before.mountPoint !== mountPoint)
      throw EINVAL.because(`the fd store holds a mount of ${before.mountPoint}, not of ${mountPoint}`);
    const device = before?.device ?? findMount(mountPoint)?.device;
    if (device === undefined)
      throw EINVAL.because(`the fd store holds a mount, and nothing is mounted at ${mountPoint}`);
    launch = {
      mountPoint,
      device,
      mount: before?.mount ?? mount,
      version,
      command,
      options,
      arenaSize,
      directory: runtimeDirectory(device),
      systemd: true,
      created: Date.now(),
      ...(log !== undefined && { log }),
    };
    fds = { ...stored, launch: createLaunch(launch), state: createState() };
  } else ({ launch, fds } = await makeMount(settings));
  const env = { ...passedEnvironment(), STEADFS_START: stored ? 'systemd' : 'mount', STEADFS_KEEPER: '0' };
  becomeProgram(launch.command[0]!, launch.command, env, [
    ...heldPairs(fds),
    [sys.open('/dev/null', sys.O_RDWR), FD_REPORT],
  ]);
}

type KeeperEnd = Pick<ReturnType<typeof startKeeper>, 'exitCode' | 'signalCode'>;

/** How the service ended: its keeper passes the code on. */
function endOf({ exitCode, signalCode }: KeeperEnd): string {
  if (signalCode !== null) return ` (its keeper was killed by ${signalCode})`;
  if (exitCode === null) return '';
  const signal = Object.entries(constants.signals).find(([, n]) => n === exitCode - 128)?.[0];
  return signal ? ` (killed by ${signal})` : ` (exit code ${exitCode})`;
}

/** The starter's end of the report pipe. */
function listenForReports() {
  const [readEnd, writeEnd] = sys.pipe();
  sys.setNonblock(readEnd);
  const memory = sys.allocate(65_536);
  let text = '';
  let wake: () => void = () => {};
  let ended = false;
  const reports: Report[] = [];
  const watch = sys.watchReadable(readEnd, () => {
    for (;;) {
      const n = sys.read(readEnd, memory.address, memory.length);
      if (n < 0) break;
      if (n === 0) {
        ended = true;
        watch.close();
        break;
      }
      text += Buffer.from(memory.bytes.subarray(0, n)).toString();
    }
    const lines = text.split('\n');
    text = lines.pop()!;
    for (const line of lines) reports.push(JSON.parse(line) as Report);
    wake();
  });
  const result = {
    writeEnd,
    service: 0,
    committing: false,
    /** The report `serving`; throws the reason when the service gives up or ends before, ETIMEDOUT after `timeout` ms. */
    async served(timeout: number, keeper: KeeperEnd): Promise<Report & { event: 'serving' }> {
      sys.close(writeEnd);
      result.writeEnd = -1;
      const until = performance.now() + timeout;
      for (;;) {
        for (let r = reports.shift(); r; r = reports.shift()) {
          if (r.event === 'started') result.service = r.service;
          else if (r.event === 'committing') result.committing = true;
          else if (r.event === 'failed') throw new Error(r.message);
          else return r;
        }
        if (ended) {
          // Its keeper tells how, and ends too; behind the commit point it starts another one instead.
          await keeperGone(keeper, result.committing ? 50 : 3000);
          throw EIO.because(`the service ended before it served${endOf(keeper)}`);
        }
        const left = until - performance.now();
        if (left <= 0) throw ETIMEDOUT.because(`the service is not ready after ${Math.round(timeout / 1000)} s`);
        await new Promise<void>(resolve => {
          const timer = setTimeout(resolve, left);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      }
    },
    close(): void {
      watch.close();
      sys.close(readEnd);
      if (result.writeEnd >= 0) sys.close(result.writeEnd);
      sys.unmap(memory);
    },
  };
  return result;
}

// --- Replacing --------------------------------------------------------------------------------------------------------

/** See {@link ReplaceSettings}. Throws the reason when the old service goes on serving. */
export async function replaceMount(settings: ReplaceSettings): Promise<Replaced> {
  const { mountPoint, version, command, options, arenaSize, log } = settings;
  const state = await mountState(mountPoint);
  if (!state) throw EINVAL.because(`nothing is mounted at ${mountPoint}`);
  const old = state.launch;
  if (!old)
    throw (state.state === 'dead' ? ENOTCONN : EACCES).because(state.message ?? `${mountPoint} is not ours to replace`);
  if (old.systemd)
    throw EBUSY.because(`${mountPoint} is kept by systemd: change the unit and restart it with systemctl`);
  const { uid } = statSync(`/proc/${state.service?.pid ?? state.keeper?.pid}`);
  if (uid !== sys.geteuid()) throw EACCES.because(`${mountPoint} is served by user ${uid}: that user can replace it`);
  const fds = await fdsOf(state, old);
  const { mount = old.mount } = settings;
  const launch: Launch = { ...old, mount, version, command, options, arenaSize, created: Date.now() };
  if (log === undefined) delete launch.log;
  else launch.log = log;
  faultPoint('command.has-fds');
  const ours: HeldFds = { ...fds, launch: createLaunch(launch), state: createState() };
  sys.close(fds.launch);
  sys.close(fds.state);
  const starter = listenForReports();
  try {
    const keeper = startKeeper({ launch, fds: ours, mode: 'upgrade', report: starter.writeEnd });
    faultPoint('command.keeper-started');
    try {
      const { service, takeover } = await starter.served(settings.timeout ?? 60_000, keeper);
      faultPoint('command.served');
      keeper.unref();
      return { device: launch.device, keeper: keeper.pid, service, takeover };
    } catch (error) {
      // The keeper of a service that is killed before its commit point goes too; after that point it starts another one, and that is right as well.
      if (starter.service) killAndWait(starter.service, 5000);
      else keeper.kill('SIGKILL');
      await keeperGone(keeper, 1000);
      if (keeper.exitCode !== null || keeper.signalCode !== null) throw error;
      keeper.unref();
      return await servedAfterAll(mountPoint, launch, keeper, error);
    }
  } finally {
    starter.close();
    closeHeld(ours);
  }
}

async function keeperGone(keeper: KeeperEnd, timeout: number): Promise<void> {
  const until = performance.now() + timeout;
  while (keeper.exitCode === null && keeper.signalCode === null && performance.now() < until) await sleep(5);
}

/** The new service died behind the commit point: its keeper starts another; or finds that the old service was not dead yet, and goes. */
async function servedAfterAll(
  mountPoint: string,
  launch: Launch,
  keeper: ReturnType<typeof startKeeper>,
  cause: unknown,
): Promise<Replaced> {
  const until = performance.now() + 30_000;
  while (performance.now() < until) {
    if (keeper.exitCode !== null || keeper.signalCode !== null) throw cause;
    const state = await mountState(mountPoint);
    const takeover = state?.takeovers.at(-1);
    if (state?.state === 'serving' && state.service && takeover && takeover.when >= launch.created)
      return { device: launch.device, keeper: keeper.pid, service: state.service.pid, takeover };
    await sleep(100);
  }
  throw EIO.because('the new service died behind the commit point, and no other one serves yet', cause);
}

/** From the service by its socket; when it does not answer, from the keeper (or the service) by pidfd. */
async function fdsOf(state: MountState, launch: Launch): Promise<HeldFds> {
  try {
    // One that waits for its database has no socket.
    const control = await connectToService(launch, state.state === 'waiting' ? undefined : state.service?.pid);
    control.close();
    return control.fds!;
  } catch (error) {
    for (const holder of [state.keeper?.pid, state.service?.pid])
      if (holder)
        try {
          return fdsOfProcess(holder);
        } catch {
          // Yama may forbid it; the reason of the first way says more.
        }
    throw error;
  }
}

/** After this long a service has made its socket anew, ms. */
const LISTEN_MS = 2000;

async function connectToService({ directory }: Launch, service: number | undefined): Promise<Control> {
  const until = performance.now() + LISTEN_MS;
  for (let asked = false; ; asked = true)
    try {
      return await connectControl(directory, 'take');
    } catch (error) {
      const none = error instanceof Errno && (error.errno === ENOENT.errno || error.errno === ECONNREFUSED.errno);
      if (!none || service === undefined || performance.now() > until) throw error;
      // A cleaner of /tmp has removed the socket, or a log-out /run/user/UID.
      if (!asked) sys.kill(service, sys.SIGHUP);
      await sleep(20);
    }
}

// --- Serving ----------------------------------------------------------------------------------------------------------

/** The reason of an exit, with the code for the keeper. */
class Exit extends Error {
  readonly code: number;
  constructor(code: number, text: string) {
    super(text);
    this.code = code;
  }
}

/**
 * The service process, started by a keeper or by systemd with the fds of launch.ts. Exits by itself: 0 when the mount has ended. See {@link ServiceSettings}.
 */
export async function runService<Warm>(settings: ServiceSettings<Warm>): Promise<never> {
  const log = settings.log ?? ((level, text) => level !== 'debug' && console.error(`${level}: ${text}`));
  const mode = process.env.STEADFS_START ?? 'crash';
  const first = mode === 'mount' || mode === 'upgrade';
  const fds = [FD_FUSE, FD_CAPSULE, FD_ARENA, FD_LAUNCH, FD_STATE];
  // Without a keeper they are closed, or Node's own, of which reading would never end.
  if (!fds.every(sys.isOpen) || !fstatSync(FD_LAUNCH).isFile()) {
    process.stderr.write('ERROR: this command is started by a keeper, not by people\n');
    process.exit(1);
  }
  // Before anything can be spawned: a copy that leaks keeps a dead mount alive.
  for (const fd of fds) sys.setCloexec(fd);
  if (first) sys.setCloexec(FD_REPORT);
  delete process.env.STEADFS_START;
  const before = readEnded(process.env.STEADFS_ENDED);
  delete process.env.STEADFS_ENDED;
  const report = (r: Report): void => {
    if (!first) return;
    const line = Buffer.from(`${JSON.stringify(r)}\n`);
    const memory = sys.allocate(line.length);
    memory.bytes.set(line);
    // EPIPE: the starter is gone, and it does not matter.
    sys.write(FD_REPORT, memory.address, line.length);
    sys.unmap(memory);
  };
  const progress = { served: false, committed: false };
  // Node's own way out waits for the threads of its pool, and everybody on the mount with it.
  process.on('uncaughtException', error => {
    console.error(error);
    sys.leave(1);
  });
  try {
    report({ event: 'started', service: process.pid });
    faultPoint('adopt.begun', mode);
    await adoptAndServe(settings, mode, before, log, report, progress);
    writeState(FD_STATE, 'ended');
    sys.leave(EXIT_ENDED);
  } catch (error) {
    const reason = message(error);
    const code = error instanceof Exit ? error.code : 1;
    if (code !== EXIT_ENDED && code !== EXIT_LOCKED) {
      log('error', code === 1 && error instanceof Error ? (error.stack ?? reason) : reason);
      // The keeper of a first service ends with it, unless there is nobody else any more.
      const alone = !first || progress.served || progress.committed;
      if (alone) writeState(FD_STATE, `waiting: ${reason}`, JSON.stringify({ since: waitingSince() }));
      else writeState(FD_STATE, `refused: ${reason}`);
    } else {
      if (code === EXIT_ENDED) writeState(FD_STATE, 'ended');
      log('info', reason);
    }
    // In the foreground (and under systemd) the starter has become this process's keeper or this process.
    if (mode === 'mount' && !progress.served && code !== EXIT_LOCKED && code !== EXIT_ENDED)
      await takeBack(readLaunch(FD_LAUNCH));
    report({ event: 'failed', message: reason });
    sys.leave(code);
  }
}

async function adoptAndServe<Warm>(
  settings: ServiceSettings<Warm>,
  mode: string,
  predecessor: Ended | undefined,
  log: NonNullable<ServiceSettings<Warm>['log']>,
  report: (r: Report) => void,
  progress: { served: boolean; committed: boolean },
): Promise<void> {
  const launch = readLaunch(FD_LAUNCH);
  const bornAt = performance.timeOrigin;
  phase('launch record');
  let keeperPid = Number(process.env.STEADFS_KEEPER ?? 0);
  const notify = launch.systemd ? notifications() : undefined;
  // A thread that reclaims memory must not wait for our own mount; inherited by threads that are made from now on. Needs CAP_SYS_RESOURCE.
  sys.prctl(sys.PR_SET_IO_FLUSHER, 1);
  setOomScore(process.pid, -900);

  const lock = (): void => {
    try {
      lockCapsule(FD_CAPSULE, 300);
    } catch (error) {
      if (error instanceof CapsuleError && error.fault === 'locked') throw new Exit(EXIT_LOCKED, error.message);
      throw error;
    }
  };
  const upgrade = mode === 'upgrade';
  if (!upgrade) lock();
  phase('lock');
  faultPoint('adopt.locked', mode);
  let adopted = !upgrade;

  // --- Signals: TERM and INT unmount, once this process may.
  let terminated = 0;
  const onSignal = async (): Promise<void> => {
    terminated++;
    if (!adopted) {
      report({ event: 'failed', message: 'ended by a signal' });
      sys.leave(EXIT_REFUSED);
    }
    if (notify && (await isRestart())) {
      log('info', 'restart: the mount stays, the next service adopts it');
      await bounded(settings.yielding?.(), YIELD_MS);
      sys.leave(EXIT_ENDED);
    }
    notify?.stopping();
    log('info', terminated > 1 ? 'second signal: the connection is aborted' : 'unmounting');
    await unmountDevice(launch, terminated > 1 ? { force: true } : { lazy: true });
  };
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () =>
      onSignal().catch((error: unknown) => log('error', `unmounting failed: ${message(error)}`)),
    );
  // A terminal that closes is no reason to end; a command that does not find the control socket asks for it.
  let listenAgain = (): void => {};
  process.on('SIGHUP', () => listenAgain());
  // Nobody has a reason to send these, and their default is the end of the process (of SIGUSR1 in Node a debugger that every local user can reach).
  for (const signal of IGNORED) process.on(signal, () => log('warn', `${signal} has no meaning here: ignored`));

  // --- Prepare
  const capsuleFds = { capsule: FD_CAPSULE, arena: FD_ARENA };
  const sizes = { arenaSize: launch.arenaSize };
  let before: ProcessRecord | undefined;
  let mapped: MappedCapsule;
  try {
    faultPoint('adopt.before-map', mode);
    mapped = mapCapsule(capsuleFds, sizes);
    phase('map');
    if (upgrade) rehearse();
    faultPoint('adopt.mapped', mode);
    const { sections } = inspectCapsule(FD_CAPSULE);
    const known = settings.sections && [
      ...settings.sections,
      ...CONNECTION_SECTIONS,
      { name: PROCESS_BLOB, version: 1 },
    ];
    const reason = known && incompatible(sections, known);
    if (reason) throw new CapsuleError('newer', reason);
    before = readProcessRecord(peekBlob(FD_CAPSULE, PROCESS_BLOB));
    phase('directory');
  } catch (error) {
    if (error instanceof CapsuleError)
      throw new Exit(EXIT_REFUSED, `version ${settings.version} cannot adopt the mount: ${error.message}`);
    throw error;
  }
  const fresh = before === undefined || before.takeovers.length === 0;
  // Unmounted while no service ran, or the one before died over it: what programs wrote is in the capsule, and is brought home.
  if (ended(FD_FUSE) && (upgrade || fresh)) throw new Exit(EXIT_ENDED, 'the mount has ended');
  const why: Takeover['why'] = upgrade ? 'upgrade' : fresh ? 'mount' : mode === 'systemd' ? 'systemd' : 'crash';
  notify?.store(HELD);
  faultPoint('adopt.before-prepare', mode);
  const prepare = (): Promise<Warm> => settings.prepare({ launch, why, peek: name => peekBlob(FD_CAPSULE, name) });
  const extend = notify && setInterval(() => notify.extendTimeout(20_000), 10_000);
  extend?.unref();
  let warm: Warm;
  try {
    if (why === 'crash' || why === 'systemd')
      warm = await patiently(prepare, settings.meanwhile, launch, predecessor, log, notify);
    else
      warm = await prepare().catch((error: unknown) => {
        throw new Exit(EXIT_REFUSED, message(error));
      });
  } finally {
    clearInterval(extend);
  }

  phase('prepare');

  // --- Commit
  let pauseFrom = bornAt;
  faultPoint('adopt.prepared', mode);
  if (upgrade) {
    // Gone, or it does not answer: nobody is asked to yield then, and the mount is taken.
    const old = await connectControl(launch.directory, 'state', 500).catch(() => undefined);
    if (ended(FD_FUSE)) throw new Exit(EXIT_REFUSED, 'the mount has ended meanwhile');
    pauseFrom = now();
    faultPoint('upgrade.before-yield');
    if (old) await old.yield(YIELD_MS * 5);
    phase('yield');
    faultPoint('upgrade.yielded');
    writeState(FD_STATE, 'committed');
    faultPoint('upgrade.committed');
    report({ event: 'committing' });
    faultPoint('upgrade.before-kill');
    takeOver(FD_CAPSULE, old?.info.keeper ?? before?.keeper ?? 0);
    progress.committed = true;
    faultPoint('upgrade.old-dead');
    closeQuietly(old);
    adopted = true;
    phase('take over');
  }

  // --- Adopt
  const capsule = openCapsule(capsuleFds, sizes, mapped);
  const blob = capsule.blob(PROCESS_BLOB, PROCESS_BLOB_MAX);
  const record: ProcessRecord = readProcessRecord(blob.get()) ?? { pid: 0, keeper: 0, version: '', takeovers: [] };
  const from = record.version;
  record.pid = process.pid;
  record.keeper = keeperPid;
  record.version = settings.version;
  const save = (): void => blob.set(Buffer.from(JSON.stringify(record)));
  save();
  phase('open');
  faultPoint('adopt.recorded', mode);

  let watch: KeeperWatch | undefined;
  let control: ControlServer | undefined;
  const listen = (): void => {
    try {
      control = serveControl(checkedDirectory(launch.directory), {
        info: () => ({
          pid: process.pid,
          version: settings.version,
          keeper: keeperPid,
          launch,
          takeovers: record.takeovers,
        }),
        fds: HELD,
        async yielding() {
          watch?.suspend();
          faultPoint('yield.asked');
          await bounded(settings.yielding?.(), YIELD_MS);
          faultPoint('yield.done');
        },
        resume() {
          log('warn', 'the take-over was given up: going on');
          watch?.resume();
          settings.resume?.();
        },
        log,
      });
    } catch (error) {
      log('error', `no control socket, so no smooth upgrade: ${message(error)}`);
    }
  };
  listenAgain = () => {
    if (!progress.served || existsSync(join(launch.directory, 'control'))) return;
    control?.close();
    listen();
  };
  /** The watch over the keeper and the control socket wait until requests are answered: they are no part of the pause. */
  const settle = (): void => {
    if (watch || control) return;
    if (!notify)
      watch = watchKeeper(
        keeperPid,
        launch,
        HELD,
        (pid, replaced) => {
          if (replaced) log('warn', `keeper ${keeperPid || '?'} is gone, ${pid} is the new one`);
          keeperPid = pid;
          record.keeper = pid;
          save();
        },
        log,
      );
    listen();
  };

  let troubles = '';
  const serving = (carriedOver: Record<string, number> = {}): void => {
    if (progress.served) return;
    progress.served = true;
    const takeover: Takeover = {
      when: Date.now(),
      why,
      to: settings.version,
      pause: Math.round((now() - pauseFrom) * 100) / 100,
      carriedOver,
    };
    if (from) takeover.from = from;
    record.takeovers = [...record.takeovers, takeover].slice(-KEPT_TAKEOVERS);
    save();
    faultPoint('adopt.before-serving', mode);
    writeState(FD_STATE, 'serving', troubles);
    phase('serving');
    faultPoint('adopt.serving', mode);
    setImmediate(() => {
      settle();
      faultPoint('adopt.settled', mode);
      report({ event: 'serving', service: process.pid, keeper: keeperPid, takeover });
      notify?.ready(`${launch.mount.source} at ${launch.mountPoint}`);
      log(
        'info',
        `${launch.mountPoint}: ${why}, version ${settings.version}${from && from !== settings.version ? ` after ${from}` : ''}, pause ${takeover.pause} ms`,
      );
      log('debug', `start, ms: ${phases(pauseFrom - performance.timeOrigin)}`);
    });
  };
  const troubled = (list: readonly Trouble[]): void => {
    troubles = JSON.stringify(list.slice(0, 8).map(t => ({ ...t, message: t.message.slice(0, 300) })));
    if (progress.served) writeState(FD_STATE, 'serving', troubles);
  };
  const late = setTimeout(settle, 1000);
  late.unref();
  await settings.serve({ fd: FD_FUSE, capsule, launch, why, before: predecessor, serving, troubled }, warm);
  faultPoint('end.served');

  // --- The mount has ended
  watch?.stop();
  control?.close();
  clearTimeout(late);
  notify?.stopping();
  notify?.remove();
  notify?.close();
  rmSync(launch.directory, { recursive: true, force: true });
  log('info', `${launch.mountPoint}: unmounted`);
}

/** Runs what comes between the commit and the first answer once on a capsule of its own, so that it is compiled by then. */
function rehearse(): void {
  const fds = createCapsule({ arenaSize: 1 << 20 });
  const mapped = mapCapsule(fds);
  const capsule = openCapsule(fds, {}, mapped);
  const blob = capsule.blob(PROCESS_BLOB, 4096);
  blob.set(new Uint8Array(64));
  blob.get();
  const records = capsule.records({ name: 'records', version: 1, recordSize: 64, capacity: 64 });
  records.free(records.alloc()!);
  for (const _ of records.live());
  capsule.arena.free(capsule.arena.alloc(8192)!, 8192);
  sys.close(fds.capsule);
  sys.close(fds.arena);
}

function closeQuietly(control: Control | undefined): void {
  try {
    control?.close();
  } catch {
    // Its peer was killed a moment ago.
  }
}

/** Waits for a promise, but not longer than `ms`. */
async function bounded(promise: Promise<void> | void, ms: number): Promise<void> {
  if (!promise) return;
  const timer = sleep(ms);
  await Promise.race([promise, timer]);
}

// --- Watching ---------------------------------------------------------------------------------------------------------

/** A process that holds a mount's capsule. */
interface Holder {
  pid: number;
  uid: number;
  launch: Launch;
  keeper: boolean;
}

/** Who holds the mount's capsule. Command lines show the mount point, so few launch records are read, unless the mount was moved or is a bind mount of ours. */
function holders(mount: MountInfo): Holder[] {
  const named = holdersAmong(mount, argv => argv.includes(mount.mountPoint));
  return named.length > 0 ? named : holdersAmong(mount, () => true);
}

function holdersAmong({ device, superOptions }: MountInfo, isIt: (argv: readonly string[]) => boolean): Holder[] {
  const owner = Number(superOptions.find(o => o.startsWith('user_id='))?.slice(8) ?? 0);
  const result: Holder[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const argv = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0');
      if (!isIt(argv) || !holdsCapsule(Number(name))) continue;
      // Anybody can have a process that looks like one: only root's and the mount's owner's are believed.
      const { uid } = statSync(`/proc/${name}`);
      if (uid !== 0 && uid !== owner) continue;
      const launch = JSON.parse(readFileSync(`/proc/${name}/fd/${FD_LAUNCH}`, 'utf8')) as Launch;
      if (launch.device === device) result.push({ pid: Number(name), uid, launch, keeper: argv[1] === '-s' });
    } catch {
      // Gone meanwhile, or another user's.
    }
  }
  return result;
}

/** The process that has the lock, and the process record, by way of the first of these processes that is still there. */
function lookIntoCapsule(pids: readonly number[]): [number | undefined, ProcessRecord | undefined] {
  // In the service itself another fd of the capsule must not even be closed: its lock would go.
  if (pids.includes(process.pid)) return [process.pid, readProcessRecord(peekBlob(FD_CAPSULE, PROCESS_BLOB))];
  let failure: unknown = new Error('no process holds the capsule');
  for (const pid of pids) {
    let fd: number;
    try {
      fd = sys.open(`/proc/${pid}/fd/${FD_CAPSULE}`, sys.O_RDWR);
    } catch (error) {
      failure = error;
      continue;
    }
    try {
      return [sys.lockHolder(fd), readProcessRecord(peekBlob(fd, PROCESS_BLOB))];
    } finally {
      sys.close(fd);
    }
  }
  throw failure;
}

/** See {@link MountState}; undefined when nothing is mounted there. */
export async function mountState(mountPoint: string): Promise<MountState | undefined> {
  const mount = findMount(mountPoint);
  if (!mount) return undefined;
  const { device, source, type } = mount;
  const state: MountState = { mountPoint, device, source, type, state: 'unknown', takeovers: [] };
  if (!isFuse(mount)) return state;
  const waiting = waitingRequests(device);
  if (waiting !== undefined) state.waiting = waiting;
  let found = holders(mount);
  if (found.length === 0) {
    const owner = mount.superOptions.find(o => o.startsWith('user_id='))?.slice(8);
    if (sys.geteuid() !== 0 && owner !== String(sys.geteuid()))
      return { ...state, message: `the mount belongs to user ${owner}` };
    // Nobody of ours holds it. A child asks whether anybody answers.
    if ((await probe(mountPoint)) === 'dead')
      return { ...state, state: 'dead', message: 'no process holds the connection' };
    return { ...state, message: 'its server is none of ours' };
  }
  let serving: number | undefined;
  let record: ProcessRecord | undefined;
  for (let tries = 0; ; tries++) {
    try {
      [serving, record] = lookIntoCapsule(found.map(f => f.pid));
      break;
    } catch (error) {
      // They may have died between two looks, their successors are there already.
      if (tries === 20) {
        state.message = message(error);
        break;
      }
      await sleep(2);
      found = holders(mount);
    }
  }
  state.takeovers = record?.takeovers ?? [];
  const service = found.find(f => f.pid === serving);
  const keepers = found.filter(f => f.keeper);
  // During an upgrade there are two; the one that the service names counts.
  const keeper = keepers.find(k => k.pid === record?.keeper) ?? keepers[0];
  const source_ = service ?? keeper ?? found[0];
  if (!source_) return state;
  state.launch = source_.launch;
  if (service) state.service = { pid: service.pid, version: service.launch.version };
  if (keeper && !source_.launch.systemd) state.keeper = { pid: keeper.pid };
  try {
    const { line, details } = readState(`/proc/${source_.pid}/fd/${FD_STATE}`);
    const troubles = service && details.startsWith('[') ? (JSON.parse(details) as Trouble[]) : [];
    if (troubles.length > 0) state.troubles = troubles;
    if (line.startsWith('waiting')) {
      state.state = 'waiting';
      state.message = line.slice('waiting: '.length);
      if (details.startsWith('{')) state.since = (JSON.parse(details) as { since: number }).since;
    } else state.state = line.startsWith('serving') && service ? 'serving' : 'starting';
  } catch {
    state.state = 'starting'; // it ended between two looks
  }
  return state;
}

// --- Ending -----------------------------------------------------------------------------------------------------------

/** How often it is looked who else keeps the mount, ms, and how long other mount namespaces (many live for a moment only) are waited for. */
const LOOK_MS = 1000;
const OTHERS_MS = 10_000;

/**
 * See {@link EndSettings}. Answers who else keeps the mount (a bind mount, another mount namespace): its processes go on then. Throws EBUSY when files are open, ECANCELED
 * when the processes have not ended in time (they go on with what they have to do).
 */
export async function endMount(mountPoint: string, settings: EndSettings = {}): Promise<MountUser | undefined> {
  const mount = findMount(mountPoint);
  if (!mount) throw EINVAL.because(`nothing is mounted at ${mountPoint}`);
  const pidfds = holders(mount).flatMap(h => {
    try {
      return [sys.pidfdOpen(h.pid)];
    } catch {
      return []; // gone
    }
  });
  try {
    await unmount(mountPoint, { lazy: settings.lazy ?? false, force: settings.force ?? false });
    const until = performance.now() + (settings.timeout ?? 30_000);
    const patience = performance.now() + OTHERS_MS;
    let look = performance.now() + LOOK_MS;
    for (const pidfd of pidfds)
      while ((sys.poll(pidfd, sys.POLLIN, 0) & sys.POLLIN) === 0) {
        // Lazily unmounted trees may be in use for long; their service goes on.
        if (settings.lazy) return undefined;
        if (performance.now() > look) {
          look = performance.now() + LOOK_MS;
          const [other] = mountedElsewhere(mount.device);
          if (other && (other.pid === process.pid || performance.now() > patience)) return other;
        }
        if (performance.now() > until)
          throw ECANCELED.because(`unmounted, but the service has not ended after ${settings.timeout ?? 30_000} ms`);
        await sleep(5);
      }
    return undefined;
  } finally {
    for (const fd of pidfds) sys.close(fd);
  }
}
