/** What most commands begin with: the engine of a META-URL, its volume, the store of its data. */
import { homedir } from 'node:os';
import { resolve } from 'node:path';
import { codecOf } from '../data/codec.ts';
import { type Format, removeSecrets, serialiseFormat, versionGate } from '../format/volume.ts';
import type { EngineEvents, EngineOptions, MetaEngine } from '../meta/engine.ts';
import { openEngine } from '../meta/registry.ts';
import { openStore, storeKinds } from '../object/registry.ts';
import type { ObjectStore } from '../object/store.ts';
import { CLIENT_VERSION } from '../version.ts';
import { Failure, messageOf } from './failure.ts';
import { maskUrl, withoutSecrets } from './mask.ts';

export const isRoot = process.getuid?.() === 0;

/** `/var/steadfs`, or below the user's home. */
export const defaultBucket = isRoot ? '/var/steadfs' : `${homedir()}/.steadfs/local`;
export const defaultLog = isRoot ? '/var/log/steadfs.log' : `${homedir()}/.steadfs/steadfs.log`;

/** Engine events of a command that only looks: nothing pushes to it. */
const quietEvents: EngineEvents = {
  sessionLost() {},
  formatChanged() {},
  volumeLost() {},
  changed() {},
  trouble() {},
};

export const commandEngineOptions: EngineOptions = {
  readOnly: false,
  skipDirMtime: 100,
  heartbeat: 12,
  atimeMode: 'noatime',
  retries: 10,
  events: quietEvents,
};

/** A message about `subject` behind a sentence that has named it. */
function reasonOf(message: string, subject: string): string {
  return message.replaceAll(`${subject} cannot be used: `, '').replaceAll(`${subject}: `, '');
}

/** Opens the database. Failure says which one, without its password. */
export async function connect(url: string, options: Partial<EngineOptions> = {}): Promise<MetaEngine> {
  if (!/^[a-z0-9]+:\/\//i.test(url))
    throw new Failure(
      `"${maskUrl(url)}" is no metadata URL: it must begin with a scheme, as in sqlite3:///var/lib/myvolume.db`,
    );
  try {
    return await openEngine(url, { ...commandEngineOptions, ...options });
  } catch (error) {
    const shown = maskUrl(url);
    throw new Failure(`cannot open ${shown}: ${reasonOf(withoutSecrets(messageOf(error), url), shown)}`);
  }
}

/** The volume's settings, gates checked. */
export async function loadVolume(engine: MetaEngine): Promise<Format> {
  let format: Format | undefined;
  try {
    format = await engine.load();
  } catch (error) {
    throw new Failure(`cannot load the volume in ${engine.name}: ${reasonOf(messageOf(error), engine.name)}`);
  }
  if (!format) throw new Failure(`${engine.name} holds no volume; make one with steadfs format`);
  const gate = versionGate(format, CLIENT_VERSION);
  if (gate) throw new Failure(gate);
  return format;
}

/** Why this version cannot read and write the data of the volume; undefined when it can. */
export function unsupported(format: Format): string | undefined {
  const needs: string[] = [];
  if (codecOf(format.Compression) === undefined) needs.push(`compression (${format.Compression})`);
  if (format.EncryptKey) needs.push('encryption of its data');
  const tiers = Object.values(format.Tiers ?? {}).filter(t => t.ID !== 0 || t.StorageClass || t.Tag);
  if (tiers.length > 0 || format.StorageClass) needs.push('storage classes (tiers)');
  if (!storeKinds().includes(format.Storage.toLowerCase())) needs.push(`storage of type "${format.Storage}"`);
  return needs.length === 0 ? undefined : `volume ${format.Name} needs what is not built yet: ${needs.join(', ')}`;
}

/** The volume's store, checked for what is not built yet. Keys begin with the volume's name and a slash. */
export async function openVolumeStore(format: Format): Promise<ObjectStore> {
  const reason = unsupported(format);
  if (reason) throw new Failure(reason);
  try {
    return await openStore(format);
  } catch (error) {
    throw new Failure(`cannot open the storage of volume ${format.Name}: ${messageOf(error)}`);
  }
}

/** Runs `work` with an open engine, and closes it whatever happens. */
export async function withEngine<T>(
  url: string,
  work: (engine: MetaEngine) => Promise<T>,
  options: Partial<EngineOptions> = {},
): Promise<T> {
  const engine = await connect(url, options);
  try {
    return await work(engine);
  } finally {
    await engine.close();
  }
}

/** JSON as Go's encoder prints it: <, > and & escaped; bigints as numbers. */
export function goJson(value: unknown, indent: number | string = 2): string {
  const raw = (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON;
  return JSON.stringify(value, (_, v: unknown) => (typeof v === 'bigint' ? raw(v.toString()) : v), indent).replace(
    /[<>&\u2028\u2029]/g,
    c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** The settings as `status` and `config` show them: in stored order, empty fields left out, secrets as "removed". */
export function shownFormat(format: Format): unknown {
  return JSON.parse(serialiseFormat(removeSecrets(format)));
}

/** The META-URL with its file path made absolute: the service runs in another folder. */
export function absoluteUrl(url: string): string {
  const match = /^(sqlite3:\/\/)([^?]*)(.*)$/s.exec(url);
  return match?.[2] ? `${match[1]}${resolve(match[2])}${match[3]}` : url;
}

/** Local files and folders that a volume uses, named for people. */
export function localPaths(url: string, format: Format): [what: string, path: string][] {
  const paths: [string, string][] = [];
  const database = /^sqlite3:\/\/([^?]*)/.exec(url)?.[1];
  if (database) paths.push(['the database', database]);
  if (format.Storage === 'file') paths.push(['the storage', format.Bucket]);
  return paths;
}
