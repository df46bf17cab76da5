/** Mounts that are played through without a kernel, on volumes of their own. */
import { randomUUID } from 'node:crypto';
import { fstatSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Capsule, Context, FileSystem } from '@steadfs/fuse';
import { rehearseSession } from '@steadfs/fuse/rehearsal';
import { close, punchHole } from '@steadfs/fuse/sys';
import type { Format } from '../format/volume.ts';
import { openEngine } from '../meta/registry.ts';
import { type Log, startLog } from '../observe/log.ts';
import { assemble, prepare } from './assembly.ts';
import type { ServiceOptions } from './mount-flags.ts';
import { commandEngineOptions } from './volume.ts';

export interface ThrowAway {
  capsule: Capsule;
  fileSystem: FileSystem;
  /** After the file system's `destroy`. */
  discard(): Promise<void>;
}

/** Makes a volume with these settings in the database of `options`, and all of a mount of it but the session. The loop has turns in between. */
export async function throwAwayMount(options: ServiceOptions, format: Format, log: Log): Promise<ThrowAway> {
  const { createCapsule, openCapsule } = await import('@steadfs/fuse/capsule');
  const maker = await openEngine(options.metaUrl, { ...commandEngineOptions });
  await maker.init(format, false);
  await maker.close();
  await turn();
  const warm = await prepare(options, log, { mountPoint: '', created: Date.now() });
  await warm.store.create();
  await turn();
  const fds = createCapsule({ arenaSize: options.bufferSize });
  const capsule = openCapsule(fds);
  await turn();
  const { vfs, fileSystem } = await assemble(warm, capsule, '', log);
  await vfs.start();
  await turn();
  return {
    capsule,
    fileSystem,
    async discard() {
      await warm.store.close();
      await warm.engine.close();
      // The mappings stay, as views of them may be alive; their memory does not.
      for (const fd of Object.values(fds) as number[]) {
        punchHole(fd, 0, fstatSync(fd).size);
        close(fd);
      }
    },
  };
}

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve));

/**
 * Does once what every start of a service does, on a volume of its own in a temporary folder, and ends: Node's compile cache then holds the functions that run
 * between the death of one service and the first answer of the next; without that a third of the pause is compiling. Before an upgrade, in the new process itself: its
 * code is loaded and warm then.
 */
export async function rehearse(): Promise<void> {
  const { mountFlags, planMount } = await import('./mount-flags.ts');
  const { Flags } = await import('./command.ts');
  const folder = mkdtempSync(join(tmpdir(), 'steadfs-rehearsal-'));
  try {
    const format: Format = {
      Name: 'rehearsal',
      UUID: randomUUID(),
      Storage: 'file',
      Tiers: null,
      Bucket: `${folder}/objects/`,
      BlockSize: 4096,
      TrashDays: 0,
      MetaVersion: 1,
      DirStats: true,
      EnableACL: false,
    };
    const flags = new Flags(mountFlags, new Map([['buffer-size', '32M']]));
    const options: ServiceOptions = {
      ...planMount(flags, 'fatal').options,
      metaUrl: `sqlite3://${folder}/meta.db`,
      volume: { name: format.Name, uuid: format.UUID },
    };
    const { capsule, fileSystem, discard } = await throwAwayMount(options, format, startLog({ level: 'fatal' }));
    await exercise(fileSystem);
    await rehearseSession(capsule, fileSystem, 'f');
    await discard();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The requests of a small file's life; leaves a directory `f`. */
async function exercise(fs: FileSystem): Promise<void> {
  let seq = 0;
  const context = (): Context => {
    const op = { kind: 0, slot: 0, seq: ++seq };
    return {
      unique: BigInt(seq),
      opcode: 0,
      uid: 0,
      gid: 0,
      pid: process.pid,
      op,
      replay: false,
      interrupt: { fired: false, promise: new Promise(() => {}), callerIsDying: () => false },
      park() {},
      unpark: async () => op,
    };
  };
  const bytes = Buffer.alloc(4096);
  const name = Buffer.from('f');
  const file = await fs.create!(context(), 1, name, 0o644, 0o022, 0o102, false);
  const { nodeid, fh } = file;
  await fs.write!(context(), nodeid, {
    fh,
    offset: 0,
    flags: 2,
    fromCache: false,
    killSuidgid: false,
    data: { bytes, take: () => undefined },
  });
  await fs.flush!(context(), nodeid, fh, 0n);
  await fs.read!(context(), nodeid, { fh, offset: 0, size: 4096, flags: 2 });
  await fs.getattr(context(), nodeid, fh);
  await fs.lookup(context(), 1, name);
  await fs.release!(context(), nodeid, fh, 2, 0n, false);
  const dir = await fs.opendir!(context(), 1, 0);
  await fs.readdir!(context(), 1, dir.fh, 0, { plus: true, add: () => true });
  await fs.releasedir!(context(), 1, dir.fh);
  await fs.unlink!(context(), 1, name);
  await fs.mkdir!(context(), 1, name, 0o755, 0o022);
}
