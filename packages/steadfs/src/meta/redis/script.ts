/**
 * Scripts as they are sent: Lua source put together from its parts, by its SHA-1, and the packed context that every mutation begins with. Scripts are
 * content-addressed, so versions of ours coexist on one server.
 */
import { createHash } from 'node:crypto';
import type { Format } from '../../format/volume.ts';
import type { Cred, Op, TimeSet } from '../engine.ts';
import * as admin from './lua/admin.ts';
import * as attrs from './lua/attrs.ts';
import * as base from './lua/base.ts';
import * as data from './lua/data.ts';
import * as locks from './lua/locks.ts';
import * as names from './lua/names.ts';

export interface Script {
  readonly source: string;
  readonly sha: string;
}

/** What stays a local of the script; every other name of a unit becomes a field of one table. */
const LOCALS = new Set(['P', 'call', 'spack', 'sunpack', 'band']);
/**
 * Functions that ordinary calls do not need (links, limits, ACLs, trash, lengths): their closures are made when one of them is called for the first time. A wrong list
 * only costs time.
 */
const RARE =
  'big esc ingroup allows aclok acl aclmode aclfind aclput nosuid afterwrite over sustained paradd hole linksof linkdirs grow account steps cover checkopen opentrunc folder dangling notbelow subset';
/** And those of a rename that replaces nothing. */
const REPLACING = 'copy place planlink hasdata destroy unlinked dirremoved';
const TOKEN = /'(?:\\.|[^'\\])*'|(?:(?<!\.)[.:])?\b[A-Za-z_]\w*/g;

/**
 * Makes a script cheap to start: leaves out what nothing refers to, and keeps the rest in a table `M`. Redis runs the whole text for each call;
 * as locals, each of some 50 functions would search for its upvalues in the list of all captured locals (measured: 50 µs of 64). Units are
 * the statements at the beginning of a line: `local function x`, `local x,y=…`; other statements are always kept. Throws when a name of a
 * unit is used for a variable inside of one. `rare`: functions that the table gets together when one of them is missed (2 µs of 45 for most calls); undefined: no table,
 * it only leaves out.
 */
function compact(source: string, rare: ReadonlySet<string> | undefined): string {
  const units: { text: string; names: string[] }[] = [];
  for (const line of source.split('\n')) {
    const m = /^local (?:function (\w+)|([\w,]+)=)/.exec(line);
    if (m !== null) units.push({ text: line, names: (m[1] ?? m[2])!.split(',') });
    else if (units.length === 0 || (/^\w/.test(line) && line !== 'end')) units.push({ text: line, names: [] });
    else units.at(-1)!.text += `\n${line}`;
  }
  const wanted = new Set<string>();
  const kept: typeof units = [];
  // A unit can only be used by what comes after it.
  for (const u of units.toReversed()) {
    if (u.names.length > 0 && !u.names.some(n => wanted.has(n))) continue;
    for (const word of u.text.matchAll(TOKEN)) wanted.add(word[0]);
    kept.unshift(u);
  }
  if (rare === undefined) return kept.map(u => u.text).join('\n');
  const fields = new Set(kept.flatMap(u => u.names).filter(n => !LOCALS.has(n)));
  const late: string[] = [];
  const locals: string[] = [];
  const out: string[] = [];
  for (const { text, names } of kept) {
    for (const m of text
      .replace(/^local (?!function)/, '')
      .matchAll(/\blocal (?!function)([\w, ]+)|function[ \w]*\(([\w, ]*)\)|\bfor ([\w, ]+?) ?(?:in |=)/g))
      for (const n of (m[1] ?? m[2] ?? m[3])!.split(','))
        if (fields.has(n.trim())) throw new Error(`Lua: ${n.trim()} hides a unit's name in ${names.join()}`);
    const rest = text.replace(/^local function (\w+)/, '$1=function').replace(/^local /, '');
    const moved = names.length === 0 || fields.has(names[0]!);
    const where = !moved ? locals : rare.has(names[0]!) ? late : out;
    where.push((moved ? rest : text).replace(TOKEN, t => (fields.has(t) ? `M.${t}` : t)));
  }
  const early = [...fields].filter(n => !rare.has(n)).map(n => `${n}=0`);
  const missed = `setmetatable(M,{__index=function(_,name)\n${late.join('\n')}\nreturn rawget(M,name)\nend})`;
  return [`local M={${early.join(',')}}`, ...locals, missed, ...out].join('\n');
}

/** Put together when it is first called: all of them take 50 ms, for which everybody would wait after a crash. */
function script(prefix: string, rare: string | undefined, ...parts: string[]): Script {
  let made: { source: string; sha: string } | undefined;
  const make = (): { source: string; sha: string } => {
    if (made !== undefined) return made;
    const whole = [`local P='${prefix}'`, ...parts].join('\n').replace(/^\s*--.*\n/gm, '');
    const source = compact(whole, rare === undefined ? undefined : new Set(rare.split(' ')))
      .replace(/^[ \t]+/gm, '')
      .replace(/\n{2,}/g, '\n');
    made = { source, sha: createHash('sha1').update(source).digest('hex') };
    return made;
  };
  return {
    get source() {
      return make().source;
    },
    get sha() {
      return make().sha;
    },
  };
}

/** All scripts for a key prefix ("" or "{db}"). */
export function scripts(prefix: string) {
  const { numbers, context, finish, access, usage, dirs, lengths, opening, removal } = base;
  const mutation = (body: string, ...parts: string[]): Script =>
    script(prefix, RARE, numbers, context, ...parts, body, finish);
  const plain = (body: string): Script => script(prefix, undefined, numbers, body);
  return {
    make: mutation(names.make, access, usage, dirs, lengths, opening),
    link: mutation(names.link, access, usage, dirs),
    unlink: mutation(names.unlink, access, usage, dirs, removal),
    rmdir: mutation(names.rmdir, access, usage, dirs, removal),
    rename: script(
      prefix,
      `${RARE} ${REPLACING}`,
      numbers,
      context,
      access,
      usage,
      dirs,
      removal,
      names.rename,
      finish,
    ),
    open: mutation(attrs.open, access, usage, lengths, opening),
    setattr: mutation(attrs.setattr, access, usage, lengths),
    coverStep: mutation(attrs.coverStep),
    fallocate: mutation(attrs.fallocate, access, usage, lengths),
    setxattr: mutation(attrs.setxattr, access),
    removexattr: mutation(attrs.removexattr, access),
    setAcl: mutation(attrs.setAcl, access),
    touchAtime: mutation(attrs.touchAtime),
    write: mutation(data.write, access, usage, lengths),
    copyRange: mutation(data.copyRange, access, usage, lengths),
    compact: mutation(data.compact),
    release: mutation(data.release, access, usage, dirs, removal),
    deleteChunks: mutation(data.deleteChunks),
    expireDelayed: mutation(data.expireDelayed),
    forgetSlices: mutation(data.forgetSlices),
    clone: mutation(data.clone, access, usage, dirs),
    attach: mutation(data.attach, access, usage, dirs),
    nothing: mutation("local function body() return '' end"),
    flock: mutation(locks.flock),
    setlk: mutation(locks.setlk),
    init: plain(admin.init),
    newSession: plain(admin.newSession),
    adoptSession: plain(admin.adoptSession),
    heartbeat: plain(admin.heartbeat),
    dropLocks: plain(admin.dropLocks),
    dropSession: plain(admin.dropSession),
    claimDuty: plain(admin.claimDuty),
    addCounter: plain(admin.addCounter),
    lookup: plain(admin.lookup),
    getattr: plain(admin.getattr),
    existingChunks: plain(admin.existingChunks),
    setDirStat: plain(admin.setDirStat),
    setQuota: plain(admin.setQuota),
  };
}
export type Scripts = ReturnType<typeof scripts>;

export interface ContextFacts {
  /** Incarnation and epoch, 20 bytes; all zero without a session. */
  head: Uint8Array;
  session: boolean;
  /** Store an op record. */
  record: boolean;
  tracking: boolean;
  skipDirMtime: number;
  format: Format;
}

/** i64 seconds and u32 nanoseconds, big-endian, 12 bytes. */
export function packTime(t: TimeSet, b = Buffer.allocUnsafe(12), at = 0): Buffer {
  b.writeInt32BE(Math.floor(t.sec / 0x100000000), at);
  b.writeUInt32BE(((t.sec % 0x100000000) + 0x100000000) % 0x100000000, at + 4);
  b.writeUInt32BE(t.nsec, at + 8);
  return b;
}

/**
 * The context, big-endian: header 20, seq u64, now 12, flags u16 (1 directory statistics, 2 user and group quotas, 4 ACL, 8 change log, 16 session,
 * 32 trash, 64 record, 128 tracking), skip-dir-mtime, capacity and inodes f64, uid u32, gid u32, check u8, number of groups u16, groups u32.
 */
export function packContext(
  facts: ContextFacts,
  op: Op | undefined,
  now: TimeSet,
  cred: Cred | undefined,
  allGroups: boolean,
): Buffer {
  const groups = cred !== undefined && (allGroups || (cred.checkPermission && cred.uid !== 0)) ? cred.groups() : [];
  const b = Buffer.allocUnsafe(77 + groups.length * 4);
  const f = facts.format;
  b.set(facts.head, 0);
  b.writeUInt32BE(op === undefined ? 0 : Math.floor(op.seq / 0x100000000), 20);
  b.writeUInt32BE(op === undefined ? 0 : op.seq % 0x100000000, 24);
  packTime(now, b, 28);
  const flags =
    (f.DirStats ? 1 : 0) |
    (f.UserGroupQuota ? 2 : 0) |
    (f.EnableACL ? 4 : 0) |
    (f.ChangeLog ? 8 : 0) |
    (facts.session ? 16 : 0) |
    (f.TrashDays > 0 ? 32 : 0) |
    (facts.record && op !== undefined ? 64 : 0) |
    (facts.tracking ? 128 : 0);
  b.writeUInt16BE(flags, 40);
  b.writeDoubleBE(facts.skipDirMtime, 42);
  b.writeDoubleBE(f.Capacity ?? 0, 50);
  b.writeDoubleBE(f.Inodes ?? 0, 58);
  b.writeUInt32BE(cred?.uid ?? 0, 66);
  b.writeUInt32BE(cred?.gid ?? 0, 70);
  b.writeUInt8(cred?.checkPermission ? 1 : 0, 74);
  b.writeUInt16BE(groups.length, 75);
  groups.forEach((g, i) => {
    b.writeUInt32BE(g, 77 + i * 4);
  });
  return b;
}
