/** Names in the trash (spec/volume.md §9). */
import { type Ino, inoToString } from './ino.ts';

const NAME_MAX = 255;

/** The last name that was asked for; making one costs 10 µs, and every removal asks. */
let last = { hour: Number.NaN, name: '' };

/** The hourly folder of a moment: UTC `YYYY-MM-DD-HH`. */
export function trashFolderName(unixSeconds: number): string {
  const hour = Math.floor(unixSeconds / 3600);
  if (hour !== last.hour)
    last = { hour, name: new Date(hour * 3_600_000).toISOString().slice(0, 13).replace('T', '-') };
  return last.name;
}

/** Unix seconds at which the hour of a folder begins; undefined for other names. */
export function trashFolderTime(name: string): number | undefined {
  const m = /^(\d{4}-\d\d-\d\d)-(\d\d)$/.exec(name);
  if (m === null) return undefined;
  const t = Date.parse(`${m[1]}T${m[2]}:00:00Z`);
  return Number.isNaN(t) ? undefined : t / 1000;
}

/** `{parent}-{inode}-{name}`, cut to 255 bytes. */
export function trashEntryName(parent: Ino, ino: Ino, name: Uint8Array): Buffer {
  const whole = Buffer.concat([Buffer.from(`${inoToString(parent)}-${inoToString(ino)}-`, 'ascii'), name]);
  return whole.length > NAME_MAX ? whole.subarray(0, NAME_MAX) : whole;
}

/** The parts of a trash entry's name; undefined when it has another form. The inodes are decimal text. */
export function parseTrashEntryName(name: Uint8Array): { parent: string; ino: string; name: Buffer } | undefined {
  const b = Buffer.from(name.buffer, name.byteOffset, name.byteLength);
  const m = /^(\d+)-(\d+)-/.exec(b.subarray(0, 48).toString('latin1'));
  if (m === null) return undefined;
  return { parent: m[1]!, ino: m[2]!, name: b.subarray(m[0].length) };
}
