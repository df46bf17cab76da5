/** `steadfs config META-URL`: prints a volume's settings, or changes those that are given. */

import { resolve } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { ROOT } from '../format/ino.ts';
import { compareVersions, type Format, parseVersion } from '../format/volume.ts';
import type { MetaEngine } from '../meta/engine.ts';
import { CLIENT_VERSION } from '../version.ts';
import type { Command, Flags } from './command.ts';
import { Failure, messageOf } from './failure.ts';
import { testStore } from './format.ts';
import { shortSize } from './units.ts';
import { goJson, loadVolume, openVolumeStore, shownFormat, withEngine } from './volume.ts';

export const command: Command = {
  name: 'config',
  args: '<META-URL>',
  summary: "show or change a volume's settings",
  flags: [
    { name: 'bucket', type: 'string', help: 'where objects are kept' },
    { name: 'access-key', type: 'string', help: 'access key of the storage' },
    { name: 'secret-key', type: 'string', help: 'secret key of the storage' },
    { name: 'session-token', type: 'string', help: 'session token of the storage' },
    { name: 'capacity', type: 'size', unit: 'G', help: 'limit of used space, 0 = none' },
    { name: 'inodes', type: 'int', help: 'limit of the number of inodes, 0 = none' },
    { name: 'trash-days', type: 'int', help: 'days that removed files are kept, 0 = not at all' },
    { name: 'min-client-version', type: 'string', help: 'oldest client that may use the volume' },
    { name: 'max-client-version', type: 'string', help: 'newest client that may use the volume' },
    { name: 'dir-stats', type: 'bool', help: 'keep usage statistics of directories' },
    { name: 'user-group-quota', type: 'bool', help: 'keep usage of users and groups' },
    { name: 'changelog', type: 'bool', help: 'keep a log of changes' },
    { name: 'changelog-max-age', type: 'duration', help: 'age at which the log of changes is cut (default 2h)' },
    { name: 'changelog-max-lines', type: 'int', help: 'length at which the log of changes is cut, 0 = none' },
    { name: 'enable-acl', type: 'bool', help: 'POSIX ACLs; cannot be switched off again' },
    { name: 'yes', aliases: ['y'], type: 'bool', help: 'do not ask' },
    { name: 'force', type: 'bool', help: 'skip checks' },
  ],
  async run({ args, flags }) {
    return withEngine(args[0]!, async engine => {
      const stored = await loadVolume(engine);
      const { format, lines, warnings } = await change(engine, stored, flags);
      if (lines.length === 0) {
        console.log(goJson(shownFormat(stored)));
        return undefined;
      }
      if (warnings.length > 0 && !flags.bool('force') && !flags.bool('yes')) {
        for (const warning of warnings) process.stderr.write(`WARNING: ${warning}\n`);
        if (!(await confirm())) throw new Failure('nothing was changed');
      }
      try {
        await engine.init(format, flags.bool('force'));
      } catch (error) {
        throw new Failure(`cannot store the settings in ${engine.name}: ${messageOf(error)}`);
      }
      for (const line of lines.sort((a, b) => (a.trim() < b.trim() ? -1 : 1))) console.log(line);
      return undefined;
    });
  },
};

async function confirm(): Promise<boolean> {
  if (!process.stdin.isTTY) throw new Failure('nobody can be asked whether to proceed: give --yes');
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await prompt.question('Proceed anyway? [y/N] ')).trim());
  } finally {
    prompt.close();
  }
}

/** The settings wanted, a line for each change, and what speaks against it. */
async function change(
  engine: MetaEngine,
  stored: Format,
  flags: Flags,
): Promise<{ format: Format; lines: string[]; warnings: string[] }> {
  const format: Format = { ...stored };
  const lines: string[] = [];
  const warnings: string[] = [];
  const set = <K extends keyof Format>(
    flag: string,
    field: K,
    value: Format[K],
    show: (v: Format[K]) => string = String,
  ) => {
    const [old, now] = [show(stored[field]), show(value)];
    if (stored[field] === value || old === now) return;
    lines.push(`${flag.padStart(10)}: ${old} -> ${now}`);
    format[field] = value;
  };
  const natural = (flag: string): number => {
    const value = flags.number(flag)!;
    if (value < 0) throw new Failure(`--${flag} must not be negative`);
    return value;
  };

  if (flags.given('bucket')) {
    const bucket = flags.string('bucket')!;
    set('bucket', 'Bucket', stored.Storage === 'file' ? `${resolve(bucket).replace(/\/$/, '')}/` : bucket);
  }
  if (flags.given('access-key')) set('access-key', 'AccessKey', flags.string('access-key')!, v => v ?? '');
  for (const [flag, field] of [
    ['secret-key', 'SecretKey'],
    ['session-token', 'SessionToken'],
  ] as const) {
    if (!flags.given(flag) || flags.string(flag) === stored[field]) continue;
    format[field] = flags.string(flag)!;
    lines.push(`${flag.padStart(10)}: updated`);
  }
  if (flags.given('capacity')) set('capacity', 'Capacity', natural('capacity'), v => shortSize(v ?? 0));
  if (flags.given('inodes')) set('inodes', 'Inodes', natural('inodes'), v => (v ?? 0).toLocaleString('en-US'));
  if (flags.given('trash-days')) set('trash-days', 'TrashDays', natural('trash-days'));
  if (flags.given('dir-stats')) set('dir-stats', 'DirStats', flags.bool('dir-stats'), v => String(v ?? false));
  if (flags.given('user-group-quota'))
    set('user-group-quota', 'UserGroupQuota', flags.bool('user-group-quota'), v => String(v ?? false));
  if (flags.given('changelog')) {
    set('changelog', 'ChangeLog', flags.bool('changelog'), v => String(v ?? false));
    if (format.ChangeLog && !format.ChangeLogMaxAge) format.ChangeLogMaxAge = 7200;
  }
  if (flags.given('changelog-max-age'))
    set('changelog-max-age', 'ChangeLogMaxAge', natural('changelog-max-age'), v => `${v ?? 0}s`);
  if (flags.given('changelog-max-lines'))
    set('changelog-max-lines', 'ChangeLogMaxLines', natural('changelog-max-lines'), v => String(v ?? 0));
  if (flags.given('enable-acl')) {
    if (stored.EnableACL && !flags.bool('enable-acl')) throw new Failure('ACLs cannot be switched off again');
    set('enable-acl', 'EnableACL', flags.bool('enable-acl'));
    if (format.EnableACL && compareVersions(stored.MinClientVersion || '0', '1.2.0-A') < 0)
      set('min-client-version', 'MinClientVersion', '1.2.0-A', v => v ?? '');
  }
  for (const [flag, field] of [
    ['min-client-version', 'MinClientVersion'],
    ['max-client-version', 'MaxClientVersion'],
  ] as const) {
    if (!flags.given(flag)) continue;
    const version = flags.string(flag)!;
    if (!parseVersion(version)) throw new Failure(`--${flag}: "${version}" is no version`);
    if (field === 'MinClientVersion' && compareVersions(version, format.MinClientVersion || '0') < 0)
      throw new Failure(`--${flag}: cannot lower ${format.MinClientVersion} to ${version}`);
    const excluded =
      field === 'MinClientVersion'
        ? compareVersions(CLIENT_VERSION, version) < 0
        : compareVersions(CLIENT_VERSION, version) > 0;
    if (excluded) warnings.push(`this client counts as ${CLIENT_VERSION} and could not use the volume any more`);
    set(flag, field, version, v => v ?? '');
  }

  if (lines.length > 0 && !flags.bool('force')) {
    if (format.Bucket !== stored.Bucket || lines.some(l => /^\s*(access-key|secret-key|session-token):/.test(l))) {
      const store = await openVolumeStore(format);
      try {
        await testStore(store, format.Name);
      } finally {
        await store.close();
      }
    }
    if (format.TrashDays < stored.TrashDays)
      warnings.push(`what was removed more than ${format.TrashDays} days ago will be gone from the trash`);
    if (format.Capacity || format.Inodes) {
      const usage = await engine.statfs(ROOT);
      if (format.Capacity && usage.totalSpace - usage.availSpace > format.Capacity)
        warnings.push(`${usage.totalSpace - usage.availSpace} bytes are used already`);
      if (format.Inodes && usage.usedInodes > format.Inodes)
        warnings.push(`${usage.usedInodes} inodes are used already`);
    }
  }
  return { format, lines, warnings };
}
