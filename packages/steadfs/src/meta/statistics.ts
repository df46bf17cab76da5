/** What a volume keeps of removed data, as `status --more` of the Go client counts it. */

import { ENOENT, Errno } from '@steadfs/fuse/errno';
import { FileType } from '../format/attr.ts';
import { TRASH } from '../format/ino.ts';
import { trashFolderTime } from '../format/trash.ts';
import type { MetaEngine } from './engine.ts';
import { entries } from './jobs.ts';

export interface Amount {
  count: number;
  bytes: number;
}

export interface RemovedData {
  /** Entries of the hourly folders of the trash (not what is below folders in them); bytes: lengths of the regular files. */
  trashFiles: Amount;
  /** Removed files whose data is still to be deleted. */
  pendingFiles: Amount;
  /** Old slices of compactions, put off by TrashDays. */
  trashSlices: Amount;
  /** Slices without references. */
  pendingSlices: Amount;
}

const ALL = Number.MAX_SAFE_INTEGER;

function total<T>(items: readonly T[], bytes: (item: T) => number): Amount {
  return { count: items.length, bytes: items.reduce((sum, item) => sum + bytes(item), 0) };
}

/** Reads all of it: rows of removed data only, but on Redis the whole hash of reference counts. Changes nothing. */
export async function removedData(engine: MetaEngine): Promise<RemovedData> {
  const trashFiles = { count: 0, bytes: 0 };
  try {
    await engine.getattr(TRASH);
    for await (const folders of entries(engine, TRASH))
      for (const folder of folders) {
        if (trashFolderTime(Buffer.from(folder.name).toString('latin1')) === undefined) continue;
        for await (const page of entries(engine, folder.ino, true))
          for (const { type, attr } of page) {
            trashFiles.count++;
            if (type === FileType.file && attr) trashFiles.bytes += attr.length;
          }
      }
  } catch (error) {
    // A volume that never had trash; a folder that was emptied meanwhile.
    if (!(error instanceof Errno) || error.errno !== ENOENT.errno) throw error;
  }
  return {
    trashFiles,
    pendingFiles: total(await engine.deletedFiles(ALL, ALL), f => f.length),
    trashSlices: total(await engine.delayedSlices(), s => s.size),
    pendingSlices: total(await engine.deadSlices(ALL), s => s.size),
  };
}
