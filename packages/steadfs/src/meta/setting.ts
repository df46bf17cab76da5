/** The setting record of a volume, as every engine reads, writes and watches it. */
import { EINVAL } from '@steadfs/fuse/errno';
import { changedImmutable, decryptSecrets, type Format, MAX_META_VERSION, parseFormat } from '../format/volume.ts';
import type { EngineOptions } from './engine.ts';

/** Counters of a new volume; nextInode and nextChunk are the next free numbers. */
export const FIRST_COUNTERS = {
  nextInode: 2,
  nextChunk: 1,
  nextSession: 0,
  usedSpace: 0,
  totalInodes: 0,
  nextCleanupSlices: 0,
} as const;

/** What a record says. Throws EINVAL, with `where` it was found, when it is none, or one of a newer client. */
export function formatOfSetting(text: string, where: string): Format {
  try {
    const stored = parseFormat(text);
    const version = stored.MetaVersion ?? 0;
    if (version > MAX_META_VERSION)
      throw new Error(`metadata version ${version} is newer than ${MAX_META_VERSION}, which this version knows`);
    return decryptSecrets(stored);
  } catch (e) {
    throw EINVAL.because(`the volume's setting record in ${where}: ${(e as Error).message}`, e);
  }
}

/** The settings that `init` stores over those of an existing volume. Throws EINVAL when that cannot be, unless forced. */
export function settingsOver(old: Format, wanted: Format, force: boolean): Format {
  const changed = changedImmutable(old, wanted);
  if (changed !== undefined && !force) throw EINVAL.because(`the volume's ${changed} cannot be changed`);
  return { ...wanted, UUID: old.UUID };
}

/** A heartbeat's look at the record: tells the mount when the volume is lost, or what `take` makes of a changed record. */
export function watchSetting(
  text: string | undefined,
  known: { text: string; uuid: string },
  events: EngineOptions['events'],
  take: (text: string) => Format,
): void {
  if (text === undefined) events.volumeLost('the volume is gone');
  else if (text !== known.text) {
    let stored: Format;
    try {
      stored = parseFormat(text);
    } catch (e) {
      events.volumeLost((e as Error).message);
      return;
    }
    const version = stored.MetaVersion ?? 0;
    if (stored.UUID !== known.uuid) events.volumeLost('the database holds another volume now');
    else if (version > MAX_META_VERSION) events.volumeLost(`metadata version ${version}`);
    else events.formatChanged(take(text));
  }
}
