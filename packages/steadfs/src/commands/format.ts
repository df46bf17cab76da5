/** `steadfs format META-URL NAME`: makes a volume, or changes the settings of the one that is there (spec: volume format §1.4). */
import { randomBytes, randomUUID } from 'node:crypto';
import { resolve } from 'node:path';
import { COMPRESSIONS } from '../data/codec.ts';
import { changedImmutable, type Format, fixBlockSize, isValidName, versionGate } from '../format/volume.ts';
import { storeKinds } from '../object/registry.ts';
import { type ObjectStore, StoreError } from '../object/store.ts';
import { startLog } from '../observe/log.ts';
import { CLIENT_VERSION } from '../version.ts';
import type { Command, Flags } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { connect, defaultBucket, goJson, openVolumeStore, shownFormat, unsupported } from './volume.ts';

export const command: Command = {
  name: 'format',
  args: '<META-URL> <NAME>',
  summary: 'make a volume',
  details: `META-URL says where names and attributes are kept, --storage and --bucket where the data is.

  steadfs format sqlite3:///var/lib/v.db myvolume --bucket /var/lib/myvolume
  steadfs format redis://HOST:6379/0 myvolume --storage s3 --bucket URL
  steadfs format postgres://USER@HOST/DB myvolume ...
  steadfs format 'mysql://USER@(HOST:3306)/DB' myvolume ...

A password is best given as META_PASSWORD in the environment.`,
  flags: [
    { name: 'storage', type: 'string', default: 'file', help: 'type of the object storage' },
    { name: 'bucket', type: 'string', help: `where objects are kept (default ${defaultBucket})` },
    { name: 'access-key', type: 'string', help: 'access key of the storage (or env ACCESS_KEY)' },
    { name: 'secret-key', type: 'string', help: 'secret key of the storage (or env SECRET_KEY)' },
    { name: 'session-token', type: 'string', help: 'session token of the storage (or env SESSION_TOKEN)' },
    { name: 'block-size', type: 'size', unit: 'K', default: '4M', help: 'size of blocks, 64K to 16M' },
    {
      name: 'compress',
      type: 'string',
      default: 'none',
      help: `how blocks are compressed: ${COMPRESSIONS.join(', ')}`,
    },
    {
      name: 'shards',
      type: 'int',
      default: '0',
      help: 'spread objects over this many buckets; %d in --bucket is their number',
    },
    { name: 'hash-prefix', type: 'bool', help: 'object names begin with a hash, for stores that spread by name' },
    { name: 'capacity', type: 'size', unit: 'G', default: '0', help: 'limit of used space, 0 = none' },
    { name: 'inodes', type: 'int', default: '0', help: 'limit of the number of inodes, 0 = none' },
    { name: 'trash-days', type: 'int', default: '1', help: 'days that removed files are kept, 0 = not at all' },
    { name: 'enable-acl', type: 'bool', help: 'POSIX ACLs; cannot be switched off again' },
    { name: 'force', type: 'bool', help: 'overwrite settings that are fixed for a volume' },
    { name: 'no-update', type: 'bool', help: 'leave the settings of a volume that exists as they are' },
  ],
  async run({ args, flags, global }) {
    const [url, name] = args as [string, string];
    const log = startLog({ level: global.logLevel, color: global.color });
    if (!isValidName(name))
      throw new Failure(
        `"${name}" is no volume name: 3 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends`,
      );
    const engine = await connect(url);
    try {
      const stored = await engine.load().catch((error: unknown) => {
        throw new Failure(`cannot load the settings in ${engine.name}: ${messageOf(error)}`);
      });
      if (stored) {
        const gate = versionGate(stored, CLIENT_VERSION);
        if (gate) throw new Failure(gate);
        if (flags.bool('no-update')) {
          log.info(`Volume ${stored.Name} exists already in ${engine.name}: left as it is`);
          return undefined;
        }
      }
      const format = stored ? changed(stored, name, flags) : created(name, flags);
      const immutable = stored && !flags.bool('force') ? changedImmutable(stored, format) : undefined;
      if (immutable)
        throw new Failure(
          `volume ${stored!.Name} exists in ${engine.name} and its ${immutable} (${String(stored![immutable])}) cannot become ${String(format[immutable])}`,
        );
      const reason = unsupported(format);
      if (reason) throw new Failure(reason);
      if (flags.given('block-size') && blockSize(flags) !== flags.number('block-size')! / 1024)
        log.warn(`--block-size: blocks are of ${blockSize(flags)}K, a power of two from 64K to 16M`);

      const store = await openVolumeStore(format);
      const uuidKey = `${format.Name}/juicefs_uuid`;
      try {
        if (!process.env.JFS_NO_CHECK_OBJECT_STORAGE) {
          await store.create().catch((error: unknown) => {
            throw new Failure(`cannot make ${store}: ${messageOf(error)}`);
          });
          await testStore(store, format.Name);
          if (!stored) await checkEmpty(store, format.Name);
        }
        if (!stored)
          await store.put(uuidKey, [Buffer.from(format.UUID)]).catch((error: unknown) => {
            log.warn(`cannot store the volume's UUID in ${store}: ${messageOf(error)}`);
          });
        try {
          await engine.init(format, flags.bool('force'));
        } catch (error) {
          if (!stored) await store.delete(uuidKey);
          throw new Failure(`cannot store the settings in ${engine.name}: ${messageOf(error)}`);
        }
        log.info(`Data uses ${store}`);
      } finally {
        await store.close();
      }
      log.info(`Volume is formatted as ${goJson(shownFormat(format))}`);
      return undefined;
    } finally {
      await engine.close();
    }
  },
};

function credentials(flags: Flags): Partial<Format> {
  const one = (flag: string, variable: string) => flags.string(flag) ?? process.env[variable];
  const [AccessKey, SecretKey, SessionToken] = [
    one('access-key', 'ACCESS_KEY'),
    one('secret-key', 'SECRET_KEY'),
    one('session-token', 'SESSION_TOKEN'),
  ];
  return {
    ...(AccessKey ? { AccessKey } : {}),
    ...(SecretKey ? { SecretKey } : {}),
    ...(SessionToken ? { SessionToken } : {}),
  };
}

/** `file` wants an absolute folder with a slash at the end. */
function bucketOf(storage: string, bucket: string | undefined): string {
  if (storage !== 'file') {
    if (!bucket && storage !== 'mem') throw new Failure(`--storage ${storage} needs a --bucket`);
    return bucket ?? '';
  }
  const folder = resolve(bucket ?? defaultBucket);
  return folder.endsWith('/') ? folder : `${folder}/`;
}

function checkStorage(storage: string): string {
  if (!storeKinds().includes(storage))
    throw new Failure(`--storage: there is no storage of type "${storage}" (there are ${storeKinds().join(', ')})`);
  return storage;
}

function count(flags: Flags, name: string): number {
  const value = flags.number(name) ?? 0;
  if (value < 0) throw new Failure(`--${name} must not be negative`);
  return value;
}

function compression(flags: Flags): string {
  const value = flags.string('compress')!.toLowerCase();
  if (!COMPRESSIONS.includes(value))
    throw new Failure(`--compress: there is no compression "${value}" (there are ${COMPRESSIONS.join(', ')})`);
  return value;
}

const blockSize = (flags: Flags): number => fixBlockSize(flags.number('block-size')! / 1024);

function shards(flags: Flags): number {
  const value = count(flags, 'shards');
  if (value > 256) throw new Failure('--shards must be at most 256');
  return value;
}

function created(name: string, flags: Flags): Format {
  const storage = checkStorage(flags.string('storage')!.toLowerCase());
  return {
    Name: name,
    UUID: randomUUID(),
    Storage: storage,
    Tiers: { '0': { ID: 0, StorageClass: '', Tag: '' } },
    Bucket: bucketOf(storage, flags.string('bucket')),
    ...credentials(flags),
    BlockSize: blockSize(flags),
    Compression: compression(flags),
    Shards: shards(flags),
    HashPrefix: flags.bool('hash-prefix'),
    Capacity: count(flags, 'capacity'),
    Inodes: count(flags, 'inodes'),
    EncryptAlgo: 'aes256gcm-rsa',
    TrashDays: count(flags, 'trash-days'),
    MetaVersion: 1,
    MinClientVersion: flags.bool('enable-acl') ? '1.2.0-A' : '1.1.0-A',
    DirStats: true,
    EnableACL: flags.bool('enable-acl'),
  };
}

/** The stored settings with what was given on the command line. */
function changed(stored: Format, name: string, flags: Flags): Format {
  const format: Format = { ...stored, ...credentials(flags), Name: name };
  if (flags.given('storage')) format.Storage = checkStorage(flags.string('storage')!.toLowerCase());
  if (flags.given('bucket') || flags.given('storage')) format.Bucket = bucketOf(format.Storage, flags.string('bucket'));
  if (flags.given('block-size')) format.BlockSize = blockSize(flags);
  if (flags.given('compress')) format.Compression = compression(flags);
  if (flags.given('shards')) format.Shards = shards(flags);
  if (flags.given('capacity')) format.Capacity = count(flags, 'capacity');
  if (flags.given('inodes')) format.Inodes = count(flags, 'inodes');
  if (flags.given('trash-days')) format.TrashDays = count(flags, 'trash-days');
  if (flags.given('enable-acl')) {
    if (stored.EnableACL && !flags.bool('enable-acl')) throw new Failure('ACLs cannot be switched off again');
    format.EnableACL = flags.bool('enable-acl');
  }
  return format;
}

/** Writes, reads and removes an object, as three tries allow. */
export async function testStore(store: ObjectStore, name: string): Promise<void> {
  const letters = 'abcdefghijklmnopqrstuvwxyz0123456789';
  const key = `${name}/testing/${Array.from(randomBytes(10), b => letters[b % letters.length]).join('')}`;
  const data = randomBytes(100);
  let last: unknown;
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      await store.put(key, [data]);
      const back = await store.read(key, 1000);
      if (!back.equals(data))
        throw new Error(`an object of ${data.length} bytes came back different (${back.length} bytes)`);
      await store.delete(key);
      return;
    } catch (error) {
      last = error;
      if (error instanceof StoreError && !error.retry) break;
    }
  }
  throw new Failure(`storage ${store} cannot be used: ${messageOf(last)}`);
}

/** A new volume's folder must not hold anybody's data. */
async function checkEmpty(store: ObjectStore, name: string): Promise<void> {
  let after = '';
  for (;;) {
    const { objects, more } = await store.list(`${name}/`, after, 1000).catch((error: unknown) => {
      throw new Failure(`cannot list ${store}: ${messageOf(error)}`);
    });
    const other = objects.find(o => o.size > 0 && !o.key.startsWith(`${name}/testing/`) && o.key !== `${name}/testing`);
    if (other)
      throw new Failure(
        `storage ${store} is not empty: it holds ${other.key}, of another volume perhaps. Choose another --bucket or another name, or empty it`,
      );
    if (!more || objects.length === 0) return;
    after = objects.at(-1)!.key;
  }
}
