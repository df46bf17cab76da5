/** Attributes, names and lists: from the tracked cache, or by one command or read-only script. */
import { EACCES, EINVAL, ENAMETOOLONG, ENODATA, ENOENT, ENOTDIR, errnoOf } from '@steadfs/fuse/errno';
import { type AclRule, decodeAcl } from '../../format/acl.ts';
import { type Attr, decodeAttr, FileType } from '../../format/attr.ts';
import { type Ino, inoFromBigint, inoToString } from '../../format/ino.ts';
import type { Cred, Dentry, Entry, MaybePromise, MetaEngine, Name } from '../engine.ts';
import { allows, NAME_MAX, shown, X } from '../ops/access.ts';
import { type Body, runAsync, type Step, type Tx, wait } from '../ops/tx.ts';
import type { Core } from './core.ts';
import { dirStream, type Listing } from './dir-stream.ts';
import { asBuffer, asList, asNumber, ino8, latin, readEntry, readIno } from './forms.ts';
import type { Reply } from './resp.ts';

export type Reading = ReturnType<typeof reading>;

export function reading(core: Core) {
  const { S, ask, cache, dKey, fresh, iKey, key, link, readTake, rules, runTake, url } = core;

  function fetchAttr(ino: Ino): Promise<Attr> {
    return readTake(['GET', iKey(ino)], r => {
      if (r === null) {
        cache.dropAttr(ino);
        throw ENOENT;
      }
      const attr = decodeAttr(asBuffer(r));
      if (attr.parent === 0 && attr.type !== FileType.directory) return undefined;
      shown(attr, 0);
      if (link.tracking) cache.setAttr(ino, { ...attr });
      return attr;
    }).then(attr => attr ?? fetchLinked(ino));
  }

  /** With the parents map, for files that have or had several links. */
  function fetchLinked(ino: Ino): Promise<Attr> {
    return runTake(S.getattr, [iKey(ino)], [ino8(ino)], r => {
      const b = asBuffer(r);
      if (b.length === 0) throw ENOENT;
      const { entry } = readEntry(b, 0);
      if (link.tracking) cache.setAttr(ino, { ...entry.attr });
      return entry.attr;
    });
  }

  function getattr(ino: Ino): MaybePromise<Attr> {
    // What has been pushed counts before the look.
    const hit = fresh() ? cache.attr(ino) : undefined;
    return hit === undefined ? fetchAttr(ino) : { ...hit };
  }

  async function rule(id: number): Promise<AclRule | undefined> {
    const known = rules.get(id);
    if (known !== undefined) return known;
    const r = await ask('HGET', key('acl'), String(id));
    if (r === null) return undefined;
    const decoded = decodeAcl(asBuffer(r));
    rules.set(id, decoded);
    return decoded;
  }

  /** Checks of ops/ that need no more of a transaction than ACL rules. */
  const ruleSource = { acl: (id: number): Step<AclRule | undefined> => wait(rule(id)) } as unknown as Tx;

  const checked = <T>(body: (tx: Tx) => Body<T>): Promise<T> => runAsync(body(ruleSource));

  function lookupFound(parent: Ino, name: Name, text: string): MaybePromise<Entry> {
    const known = fresh() ? cache.name(parent, text) : undefined;
    if (known !== undefined) {
      if (known === null) throw ENOENT;
      const hit = cache.attr(known.ino);
      if (hit !== undefined) return { ino: known.ino, attr: { ...hit } };
      const { ino } = known;
      return fetchAttr(ino).then(attr => ({ ino, attr }));
    }
    return runTake(S.lookup, [dKey(parent), iKey(parent)], [inoToString(parent), name], r => {
      const b = asBuffer(r);
      if (b.length === 0) {
        if (link.tracking) {
          cache.setName(parent, text, null);
          if (cache.wanted(parent)) void loadDir(parent);
        }
        throw ENOENT;
      }
      if (b[0] === 0x45) throw errnoOf(b[1]!);
      if (b.length < 12) throw ENOENT;
      const { entry } = readEntry(b, 1);
      if (link.tracking) cache.setName(parent, text, { ino: entry.ino, type: b[0] as FileType });
      if (tracksComputed()) cache.setAttr(entry.ino, { ...entry.attr });
      return entry;
    });
  }

  /** From 7.2 on the server remembers what a script reads, whatever it declares. */
  function tracksComputed(): boolean {
    if (!link.tracking) return false;
    const [major = 0, minor = 0] = link.serverVersion.split('.').map(Number);
    return major > 7 || (major === 7 && minor >= 2);
  }

  /** Reads a directory completely if it is small, so that absent names are known. */
  async function loadDir(ino: Ino): Promise<void> {
    try {
      await readTake(['HSCAN', dKey(ino), '0', 'COUNT', '4096'], r => {
        const [cursor, flat] = asList(r);
        if (String(cursor) !== '0' || !link.tracking) return;
        cache.setList(ino, dentries(asList(flat)));
      });
    } catch {
      // Only a cache: the next lookup meets the same error.
    }
  }

  function dentries(flat: Reply[]): Map<string, Dentry | null> {
    const names = new Map<string, Dentry | null>();
    for (let i = 0; i < flat.length; i += 2) {
      const v = asBuffer(flat[i + 1]);
      names.set(asBuffer(flat[i]).toString('latin1'), { type: v[0] as FileType, ino: readIno(v, 1) });
    }
    return names;
  }

  async function lookup(cred: Cred, parent: Ino, name: Name): Promise<Entry> {
    const p = await getattr(parent);
    if (p.type !== FileType.directory) throw ENOTDIR;
    await checked(function* (tx) {
      if (!(yield* allows(tx, cred, p, X))) throw EACCES;
    });
    return await lookupFound(parent, name, latin(name));
  }

  async function childAttrs(dir: Ino): Promise<Entry[]> {
    const names = await scanDir(dir);
    const inos = [...names.values()].map(d => d!.ino);
    return (await attrsOf(inos)).flatMap((attr, i) => (attr === undefined ? [] : [{ ino: inos[i]!, attr }]));
  }

  /** The whole directory; one atomic view when it is small. */
  async function scanDir(dir: Ino): Promise<Map<string, Dentry | null>> {
    const list = fresh() ? cache.list(dir) : undefined;
    if (list !== undefined) return new Map(list);
    const names = new Map<string, Dentry | null>();
    for (let cursor = '0'; ; ) {
      const done = await readTake(['HSCAN', dKey(dir), cursor, 'COUNT', '10000'], r => {
        const [next, flat] = asList(r);
        const part = dentries(asList(flat));
        const first = cursor === '0';
        cursor = String(next);
        if (first && cursor === '0' && link.tracking && part.size <= url.cacheSize / 4)
          cache.setList(dir, new Map(part));
        for (const [n, d] of part) names.set(n, d);
        return cursor === '0';
      });
      if (done) return names;
    }
  }

  /** Attributes now, in the order asked for. */
  async function attrsOf(inos: readonly Ino[]): Promise<(Attr | undefined)[]> {
    const out: (Attr | undefined)[] = new Array(inos.length);
    const missing: number[] = [];
    const trust = fresh();
    inos.forEach((ino, i) => {
      const hit = trust ? cache.attr(ino) : undefined;
      if (hit !== undefined) out[i] = { ...hit };
      else missing.push(i);
    });
    const linked: number[] = [];
    const pages: Promise<void>[] = [];
    for (let p = 0; p < missing.length; p += 1000) {
      const part = missing.slice(p, p + 1000);
      pages.push(
        readTake(['MGET', ...part.map(i => iKey(inos[i]!))], r => {
          asList(r).forEach((v, k) => {
            const i = part[k]!;
            if (v === null) return;
            const attr = decodeAttr(asBuffer(v));
            if (attr.parent === 0 && attr.type !== FileType.directory) {
              linked.push(i);
              return;
            }
            out[i] = shown(attr, 0);
            if (link.tracking) cache.setAttr(inos[i]!, { ...attr });
          });
        }),
      );
    }
    await Promise.all(pages);
    await Promise.all(
      linked.map(async i => {
        out[i] = await fetchLinked(inos[i]!).catch(e => {
          if (e === ENOENT) return undefined;
          throw e;
        });
      }),
    );
    return out;
  }

  const listing: Listing = { scan: scanDir, attrs: attrsOf };

  const methods: Pick<
    MetaEngine,
    'lookup' | 'getattr' | 'access' | 'readlink' | 'dirStream' | 'getxattr' | 'listxattr' | 'getAcl' | 'parents'
  > = {
    lookup(cred, parent, name) {
      if (name.length > NAME_MAX) throw ENAMETOOLONG;
      if (cred.checkPermission) return lookup(cred, parent, name);
      return lookupFound(parent, name, latin(name));
    },
    getattr,
    async access(cred, ino, mask) {
      const attr = await getattr(ino);
      if (!(await checked(tx => allows(tx, cred, attr, mask & 7)))) throw EACCES;
    },
    async readlink(ino) {
      const r = await ask('GET', key(`s${inoToString(ino)}`));
      if (r !== null && asBuffer(r).length > 0) return asBuffer(r);
      await fetchAttr(ino);
      throw EINVAL;
    },
    dirStream: ino => dirStream(listing, ino),
    async getxattr(ino, name) {
      const r = await ask('HGET', key(`x${inoToString(ino)}`), name);
      if (r !== null) return asBuffer(r);
      await getattr(ino);
      throw ENODATA;
    },
    async listxattr(ino) {
      const [names, attr] = await Promise.all([ask('HKEYS', key(`x${inoToString(ino)}`)), getattr(ino)]);
      const out = asList(names).map(asBuffer);
      if (attr.accessAcl !== 0) out.push(Buffer.from('system.posix_acl_access'));
      if (attr.defaultAcl !== 0) out.push(Buffer.from('system.posix_acl_default'));
      return out;
    },
    async getAcl(ino, kind) {
      const attr = await getattr(ino);
      const id = kind === 'access' ? attr.accessAcl : attr.defaultAcl;
      return id === 0 ? undefined : await rule(id);
    },
    async parents(ino) {
      const attr = await getattr(ino);
      if (attr.parent !== 0) return new Map([[attr.parent, 1]]);
      const flat = asList(await ask('HGETALL', key(`p${inoToString(ino)}`)));
      const out = new Map<Ino, number>();
      for (let i = 0; i < flat.length; i += 2) {
        const n = asNumber(flat[i + 1]);
        if (n > 0) out.set(inoFromBigint(BigInt(asBuffer(flat[i]).toString())), n);
      }
      return out;
    },
  };
  return { methods, checked, childAttrs, fetchAttr, getattr };
}
