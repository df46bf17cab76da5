/**
 * The metadata engine on Redis (spec/meta-redis.md): each mutation is one script with all its checks and the op record, each read one command or one
 * read-only script; attributes and names that the server tracks for us (CLIENT TRACKING, default mode) cost no round trip.
 *
 * Keys of ours begin with `{P}STEADFS`: `STEADFS.s{sid}` (hash: head = incarnation 16 bytes and epoch u32; `{kind}.{slot}` = seq u64 and result),
 * `STEADFS.acl` (rule → id), `STEADFS.chunks` (inode → highest chunk index before it was cut).
 *
 * Tracking forgets a key when we ourselves write it, NOLOOP or not, and inside a script Redis before 7.2 remembers the declared keys only. So
 * scripts declare the keys whose values are cached, and read them once more at their end.
 *
 * The connection and how scripts are called: core.ts. Operations by what they are about: names, attributes, reading, data, locks, sessions, quotas, numbers. Lua: lua/.
 */
import { EINVAL } from '@steadfs/fuse/errno';
import { emptyDirectory, encodeAttr } from '../../format/attr.ts';
import { ROOT } from '../../format/ino.ts';
import {
  changedImmutable,
  decryptSecrets,
  encryptSecrets,
  type Format,
  MAX_META_VERSION,
  parseFormat,
  serialiseFormat,
} from '../../format/volume.ts';
import { unixNow } from '../clock.ts';
import type { EngineDriver, EngineOptions, MetaEngine } from '../engine.ts';
import { attributes } from './attributes.ts';
import { createCore, EMPTY } from './core.ts';
import { data } from './data.ts';
import { asBuffer, asList } from './forms.ts';
import { locks } from './locks.ts';
import { names } from './names.ts';
import { numbers } from './numbers.ts';
import { quotas } from './quotas.ts';
import { reading } from './reading.ts';
import { sessions } from './sessions.ts';
import { parseRedisUrl, type RedisUrl } from './url.ts';

/** Connects; the volume is loaded by `load`. */
async function openRedis(url: RedisUrl, options: EngineOptions): Promise<MetaEngine> {
  const core = await createCore(url, options);
  const { S, ask, cache, key, link, prefix, run, state } = core;
  const ownNumbers = numbers(core);
  const ownReading = reading(core);
  const ownQuotas = quotas(core, ownReading);
  const ownData = data(core, ownReading);
  const ownAttributes = attributes(core, ownReading, ownData);
  const ownNames = names(core, ownNumbers, ownQuotas, ownData);
  const ownLocks = locks(core);
  const ownSessions = sessions(core, ownLocks);

  async function load(): Promise<Format | undefined> {
    const r = await ask('GET', key('setting'));
    if (r === null) return undefined;
    const text = asBuffer(r).toString();
    let stored: Format;
    try {
      stored = parseFormat(text);
    } catch (e) {
      throw EINVAL.because(`${url.display} holds something else than a volume`, e);
    }
    if ((stored.MetaVersion ?? 0) > MAX_META_VERSION)
      throw EINVAL.because(
        `the volume has metadata version ${stored.MetaVersion}, this client knows up to ${MAX_META_VERSION}`,
      );
    state.settingText = text;
    state.format = decryptSecrets(stored);
    return state.format;
  }

  async function init(wanted: Format, force: boolean): Promise<void> {
    const old = await load();
    const next = { ...wanted };
    const drop: string[] = [];
    if (old !== undefined) {
      const field = changedImmutable(old, wanted);
      if (field !== undefined && !force) throw EINVAL.because(`${field} of a volume cannot be changed`);
      next.UUID = old.UUID;
      if (!old.DirStats && next.DirStats) drop.push('dirUsedInodes', 'dirUsedSpace', 'dirDataLength');
      if (!old.UserGroupQuota && next.UserGroupQuota)
        for (const k of ['userQuota', 'groupQuota']) drop.push(k, `${k}UsedSpace`, `${k}UsedInodes`);
    }
    const t = unixNow();
    const dir = (mode: number): Buffer => encodeAttr(emptyDirectory(mode, ROOT, t, 0));
    const text = serialiseFormat(encryptSecrets(next));
    await run(
      S.init,
      [key('setting')],
      [text, old === undefined ? dir(0o777) : EMPTY, next.TrashDays > 0 ? dir(0o555) : EMPTY, ...drop],
    );
    cache.clear();
    await load();
  }

  async function reset(): Promise<void> {
    cache.clear();
    if (prefix === '') {
      await ask('FLUSHDB');
    } else {
      for (let cursor = '0'; ; ) {
        const [next, keys] = asList(await ask('SCAN', cursor, 'MATCH', `${prefix}*`, 'COUNT', '1000'));
        const list = asList(keys).map(asBuffer);
        if (list.length > 0) await ask('UNLINK', ...list);
        cursor = String(next);
        if (cursor === '0') break;
      }
    }
    state.format = undefined;
    state.session = undefined;
  }

  return {
    name: url.display,
    load,
    init,
    reset,
    async close() {
      link.close();
    },
    async flush() {},
    async sync() {},
    async durable() {},
    ...ownNumbers.methods,
    ...ownReading.methods,
    ...ownQuotas.methods,
    ...ownData.methods,
    ...ownAttributes.methods,
    ...ownNames.methods,
    ...ownLocks.methods,
    ...ownSessions.methods,
  };
}

export const redisDriver: EngineDriver = {
  schemes: ['redis', 'rediss', 'unix'],
  async open(text, options) {
    let url: RedisUrl;
    try {
      url = parseRedisUrl(text, process.env);
    } catch (e) {
      throw EINVAL.because(e instanceof Error ? e.message : String(e));
    }
    return await openRedis(url, options);
  },
};
