/** `steadfs status META-URL`: settings, sessions and usage as the Go client prints them; of a mount point: who serves it. */
import { mountState } from '@steadfs/fuse/service';
import type { MountState } from '@steadfs/fuse/service-types';
import { inoForStat, ROOT } from '../format/ino.ts';
import type { SessionDetail, StatfsResult } from '../meta/engine.ts';
import { type RemovedData, removedData } from '../meta/statistics.ts';
import type { Command } from './command.ts';
import { Failure } from './failure.ts';
import { resolveMountPoint } from './mount-point.ts';
import { goJson, loadVolume, shownFormat, withEngine } from './volume.ts';

export const command: Command = {
  name: 'status',
  args: '<META-URL|MOUNTPOINT>',
  summary: 'show a volume, its sessions and its usage, or who serves a mount',
  flags: [
    { name: 'session', aliases: ['s'], type: 'int', help: 'show this session, with its locks and open removed files' },
    { name: 'more', aliases: ['m'], type: 'bool', help: 'count what the trash keeps and what is still to be deleted' },
  ],
  async run({ args, flags }) {
    if (!args[0]!.includes('://')) {
      const mountPoint = resolveMountPoint(args[0]!);
      const state = await mountState(mountPoint);
      if (state?.type !== 'fuse.steadfs')
        throw new Failure(
          state
            ? `${mountPoint} is not a Steadfs mount: ${state.source} (${state.type})`
            : `nothing is mounted at ${mountPoint}`,
        );
      console.log(goJson({ mount: shownMount(state) }));
      return undefined;
    }
    return withEngine(
      args[0]!,
      async engine => {
        const format = await loadVolume(engine);
        const sid = flags.number('session') ?? 0;
        if (sid > 0) {
          const session = (await engine.listSessions(true)).find(s => s.sid === sid);
          if (!session) throw new Failure(`volume ${format.Name} has no session ${sid}`);
          console.log(goJson(shownSession(session)));
          return undefined;
        }
        const sessions = await engine.listSessions(false);
        const usage = await engine.statfs(ROOT);
        const removed = flags.bool('more') ? shownRemoved(await removedData(engine)) : {};
        console.log(
          goJson({
            Setting: shownFormat(format),
            Sessions: sessions.map(shownSession),
            Stat: { ...shownUsage(usage), ...removed },
          }),
        );
        return undefined;
      },
      { readOnly: true },
    );
  },
};

/** A mount without what is secret (its options hold the META-URL). */
function shownMount({ launch, since, ...state }: MountState): Record<string, unknown> {
  return {
    ...state,
    ...(since ? { since: new Date(since).toISOString() } : {}),
    ...(launch ? { created: new Date(launch.created).toISOString(), log: launch.log } : {}),
    ...(state.troubles
      ? { troubles: state.troubles.map(t => ({ ...t, since: new Date(t.since).toISOString() })) }
      : {}),
    takeovers: state.takeovers.map(t => ({ ...t, when: new Date(t.when).toISOString() })),
  };
}

/** Session as the Go client names its fields; times in UTC with whole seconds. */
function shownSession(s: SessionDetail): Record<string, unknown> {
  return {
    Sid: s.sid,
    Expire: new Date(s.expire * 1000).toISOString().replace('.000Z', 'Z'),
    Version: s.version,
    HostName: s.hostName,
    ...(s.ipAddrs?.length ? { IPAddrs: s.ipAddrs } : {}),
    MountPoint: s.mountPoint,
    MountTime: s.mountTime,
    ProcessID: s.processId,
    ...(s.sustained?.length ? { Sustained: s.sustained.map(inoForStat) } : {}),
    ...(s.flocks?.length
      ? { Flocks: s.flocks.map(l => ({ Inode: inoForStat(l.ino), Owner: BigInt.asUintN(64, l.owner), Ltype: l.type })) }
      : {}),
    ...(s.plocks?.length
      ? {
          Plocks: s.plocks.map(l => ({
            Inode: inoForStat(l.ino),
            Owner: BigInt.asUintN(64, l.owner),
            Records: l.records.map(r => ({ Type: r.type, Pid: r.pid, Start: r.start, End: r.end })),
          })),
        }
      : {}),
  };
}

function shownUsage(usage: StatfsResult): Record<string, number> {
  return {
    UsedSpace: usage.totalSpace - usage.availSpace,
    AvailableSpace: usage.availSpace,
    UsedInodes: usage.usedInodes,
    AvailableInodes: usage.availInodes,
  };
}

/** Counts of zero are left out, as the Go client does. */
function shownRemoved(data: RemovedData): Record<string, number> {
  const { trashFiles, pendingFiles, trashSlices, pendingSlices } = data;
  const shown = {
    TrashFileCount: trashFiles.count,
    TrashFileSize: trashFiles.bytes,
    PendingDeletedFileCount: pendingFiles.count,
    PendingDeletedFileSize: pendingFiles.bytes,
    TrashSliceCount: trashSlices.count,
    TrashSliceSize: trashSlices.bytes,
    PendingDeletedSliceCount: pendingSlices.count,
    PendingDeletedSliceSize: pendingSlices.bytes,
  };
  return Object.fromEntries(Object.entries(shown).filter(([, n]) => n !== 0));
}
