/** The volume setting record (spec/volume.md §1): its fields in the order in which they are stored. */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';

export interface Tier {
  ID: number;
  StorageClass: string;
  Tag: string;
}

/** JSON names as stored, so that the record and this object are the same thing. Secrets are plain text here, encrypted only in the database. */
export interface Format {
  Name: string;
  UUID: string;
  Storage: string;
  StorageClass?: string;
  Tiers: Record<string, Tier> | null;
  Bucket: string;
  AccessKey?: string;
  SecretKey?: string;
  SessionToken?: string;
  /** KiB */
  BlockSize: number;
  Compression?: string;
  Shards?: number;
  HashPrefix?: boolean;
  Capacity?: number;
  Inodes?: number;
  EncryptKey?: string;
  EncryptAlgo?: string;
  KeyEncrypted?: boolean;
  UploadLimit?: number;
  DownloadLimit?: number;
  TrashDays: number;
  MetaVersion?: number;
  MinClientVersion?: string;
  MaxClientVersion?: string;
  DirStats?: boolean;
  UserGroupQuota?: boolean;
  EnableACL: boolean;
  RangerRestUrl?: string;
  RangerService?: string;
  ChangeLog?: boolean;
  ChangeLogMaxAge?: number;
  ChangeLogMaxLines?: number;
  KerbConf?: string;
}

/** Highest layout version that is understood. */
export const MAX_META_VERSION = 1;

type FieldKind = 'string' | 'int' | 'bool' | 'tiers';

/** Fields in stored order; `always`: written even when empty (spec/volume.md §1). */
const FIELDS: readonly (readonly [name: keyof Format, kind: FieldKind, always: boolean])[] = [
  ['Name', 'string', true],
  ['UUID', 'string', true],
  ['Storage', 'string', true],
  ['StorageClass', 'string', false],
  ['Tiers', 'tiers', true],
  ['Bucket', 'string', true],
  ['AccessKey', 'string', false],
  ['SecretKey', 'string', false],
  ['SessionToken', 'string', false],
  ['BlockSize', 'int', true],
  ['Compression', 'string', false],
  ['Shards', 'int', false],
  ['HashPrefix', 'bool', false],
  ['Capacity', 'int', false],
  ['Inodes', 'int', false],
  ['EncryptKey', 'string', false],
  ['EncryptAlgo', 'string', false],
  ['KeyEncrypted', 'bool', false],
  ['UploadLimit', 'int', false],
  ['DownloadLimit', 'int', false],
  ['TrashDays', 'int', true],
  ['MetaVersion', 'int', false],
  ['MinClientVersion', 'string', false],
  ['MaxClientVersion', 'string', false],
  ['DirStats', 'bool', false],
  ['UserGroupQuota', 'bool', false],
  ['EnableACL', 'bool', true],
  ['RangerRestUrl', 'string', false],
  ['RangerService', 'string', false],
  ['ChangeLog', 'bool', false],
  ['ChangeLogMaxAge', 'int', false],
  ['ChangeLogMaxLines', 'int', false],
  ['KerbConf', 'string', false],
];

/** Go's encoding of a string: JSON with <, >, & and the two line separators escaped. */
function goString(s: string): string {
  return JSON.stringify(s).replace(/[<>&\u2028\u2029]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function goTiers(tiers: Record<string, Tier> | null): string {
  if (tiers === null) return 'null';
  const items = Object.keys(tiers)
    .sort()
    .map(k => {
      const t = tiers[k]!;
      return `${goString(k)}: {\n"ID": ${t.ID},\n"StorageClass": ${goString(t.StorageClass)},\n"Tag": ${goString(t.Tag)}\n}`;
    });
  return items.length === 0 ? '{}' : `{\n${items.join(',\n')}\n}`;
}

/** The record as Go's json.MarshalIndent(x, "", "") writes it: one field a line, no indentation, no trailing newline. */
export function serialiseFormat(format: Format): string {
  const lines: string[] = [];
  for (const [name, kind, always] of FIELDS) {
    const value = format[name];
    if (kind === 'tiers') lines.push(`"Tiers": ${goTiers(format.Tiers ?? null)}`);
    else if (value || always)
      lines.push(
        `"${name}": ${kind === 'string' ? goString(String(value ?? '')) : String(value ?? (kind === 'bool' ? false : 0))}`,
      );
  }
  return `{\n${lines.join(',\n')}\n}`;
}

/**
 * Parses the record (any white space). Secrets stay as stored; see {@link decryptSecrets}. Unknown keys are dropped, as the Go client does.
 * Throws SyntaxError for anything that is not a setting record.
 */
export function parseFormat(text: string): Format {
  const raw: unknown = JSON.parse(text);
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw))
    throw new SyntaxError('the setting record is no object');
  const source = raw as Record<string, unknown>;
  const out: Record<string, unknown> = {};
  for (const [name, kind, always] of FIELDS) {
    const value = source[name];
    if (value === undefined || value === null) {
      if (kind === 'tiers') out[name] = null;
      else if (always) out[name] = kind === 'string' ? '' : kind === 'bool' ? false : 0;
      continue;
    }
    const right =
      kind === 'tiers'
        ? typeof value === 'object'
        : typeof value === (kind === 'int' ? 'number' : kind === 'bool' ? 'boolean' : 'string');
    if (!right) throw new SyntaxError(`the setting record's field ${name} is no ${kind}`);
    out[name] = value;
  }
  const format = out as unknown as Format;
  if (format.Name === '' || format.UUID === '') throw new SyntaxError('the setting record has no name or UUID');
  if (format.Tiers === null || Object.keys(format.Tiers).length === 0) {
    format.Tiers = { '0': { ID: 0, StorageClass: format.StorageClass ?? '', Tag: '' } };
  }
  return format;
}

const SECRETS = ['SecretKey', 'SessionToken', 'EncryptKey'] as const;

function secretKey(format: Format): Buffer {
  if (format.EncryptAlgo === 'sm4gcm') throw new Error('secrets encrypted with sm4gcm are not supported');
  return createHash('md5').update(format.UUID, 'ascii').digest();
}

/** A copy with the secrets encrypted for storage (AES-128-GCM under MD5 of the UUID, spec/volume.md §1.1). Idempotent. */
export function encryptSecrets(format: Format): Format {
  const out = { ...format };
  if (format.KeyEncrypted || SECRETS.every(k => !format[k])) return out;
  const key = secretKey(format);
  for (const name of SECRETS) {
    const plain = format[name];
    if (!plain) continue;
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-128-gcm', key, nonce);
    out[name] = Buffer.concat([nonce, cipher.update(plain, 'utf8'), cipher.final(), cipher.getAuthTag()]).toString(
      'base64',
    );
  }
  out.KeyEncrypted = true;
  return out;
}

/** A copy with plain secrets. Throws an Error when one was removed or does not decrypt; it names the field, never the value. */
export function decryptSecrets(format: Format): Format {
  const out = { ...format };
  if (!format.KeyEncrypted) return out;
  const key = secretKey(format);
  for (const name of SECRETS) {
    const stored = format[name];
    if (!stored) continue;
    if (stored === 'removed') throw new Error(`${name} was removed from the setting record`);
    const b = Buffer.from(stored, 'base64');
    if (b.length < 28) throw new Error(`${name} in the setting record cannot be decrypted`);
    try {
      const cipher = createDecipheriv('aes-128-gcm', key, b.subarray(0, 12));
      cipher.setAuthTag(b.subarray(b.length - 16));
      out[name] = Buffer.concat([cipher.update(b.subarray(12, b.length - 16)), cipher.final()]).toString('utf8');
    } catch {
      throw new Error(`${name} in the setting record cannot be decrypted`);
    }
  }
  out.KeyEncrypted = false;
  return out;
}

/** For display: non-empty secrets become "removed". */
export function removeSecrets(format: Format): Format {
  const out = { ...format };
  for (const name of SECRETS) if (out[name]) out[name] = 'removed';
  return out;
}

interface Version {
  parts: [number, number, number];
  pre: string;
}

/** Undefined for text that is no version. */
export function parseVersion(text: string): Version | undefined {
  const [head = ''] = text.split('+', 1);
  const dash = head.indexOf('-');
  const pre = dash < 0 ? '' : head.slice(dash + 1);
  const numbers = (dash < 0 ? head : head.slice(0, dash)).split('.');
  if (numbers.length > 3 || numbers.some(n => !/^\d+$/.test(n))) return undefined;
  return { parts: [Number(numbers[0]), Number(numbers[1] ?? 0), Number(numbers[2] ?? 0)], pre };
}

/** Negative, 0 or positive (spec/volume.md §1.2). Throws RangeError for text that is no version. */
export function compareVersions(a: string, b: string): number {
  const va = parseVersion(a);
  const vb = parseVersion(b);
  if (va === undefined || vb === undefined) throw new RangeError(`"${va === undefined ? a : b}" is no version`);
  for (let i = 0; i < 3; i++) if (va.parts[i] !== vb.parts[i]) return va.parts[i]! - vb.parts[i]!;
  if (va.pre === vb.pre) return 0;
  if (va.pre === '') return 1;
  if (vb.pre === '') return -1;
  return Buffer.compare(Buffer.from(va.pre), Buffer.from(vb.pre));
}

/** What version gates compare with, and what a session publishes. */
export function clientVersion(own: string): string {
  return `1.4.1+steadfs.${own}`;
}

/** The reason why a client of this version may not use the volume; undefined when it may. */
export function versionGate(format: Format, client: string): string | undefined {
  if ((format.MetaVersion ?? 0) > MAX_META_VERSION) {
    return `the volume has metadata version ${format.MetaVersion}, this client knows up to ${MAX_META_VERSION}`;
  }
  if (format.MinClientVersion && compareVersions(client, format.MinClientVersion) < 0) {
    return `the volume needs a client of version ${format.MinClientVersion} or newer, this one counts as ${client}`;
  }
  if (format.MaxClientVersion && compareVersions(client, format.MaxClientVersion) > 0) {
    return `the volume allows clients up to version ${format.MaxClientVersion}, this one counts as ${client}`;
  }
  return undefined;
}

/** 3..63 characters: lower-case letters, digits and hyphens, none of these at an end. */
export function isValidName(name: string): boolean {
  return /^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/.test(name);
}

/** KiB: down to a power of two, then into 64..16384 (3000 → 2048, 10 → 64). */
export function fixBlockSize(kib: number): number {
  const power = kib < 1 ? 0 : 2 ** Math.floor(Math.log2(kib));
  return Math.min(16384, Math.max(64, power));
}

const IMMUTABLE = ['Name', 'BlockSize', 'Compression', 'Shards', 'HashPrefix', 'MetaVersion'] as const;

/** The first field that may not differ and does; undefined when the change is allowed. Absent equals zero, "" equals "none" (compression). */
export function changedImmutable(stored: Format, wanted: Format): keyof Format | undefined {
  const norm = (f: Format, k: (typeof IMMUTABLE)[number]) =>
    k === 'Compression' ? (f[k] || 'none').toLowerCase() : f[k] || 0;
  return IMMUTABLE.find(k => norm(stored, k) !== norm(wanted, k));
}
