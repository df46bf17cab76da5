/**
 * What mount(8) calls for `mount -t steadfs` and for lines of /etc/fstab (`/sbin/mount.steadfs SOURCE MOUNTPOINT [-sfnv] [-N ns] [-o list] [-t type]`,
 * mount(8) "External helpers"), as a command line of `steadfs mount`; and the line of /etc/fstab that brings a mount back after a boot.
 */
import { closeSync, fsyncSync, lstatSync, openSync, readFileSync, renameSync, symlinkSync, writeSync } from 'node:fs';
import type { Flag } from './command.ts';
import { Failure, messageOf } from './failure.ts';

/** Options that are for mount(8) or the boot, not for the file system. */
const FOR_OTHERS = /^(_netdev|nofail|defaults|background|auto|noauto|user|nouser|users|x-.*|comment=.*)$/;
/** As the Go client's helper has them (spec/cli.md §5). */
const OLD_NAMES: Record<string, string> = {
  attrcacheto: 'attr-cache',
  entrycacheto: 'entry-cache',
  direntrycacheto: 'dir-entry-cache',
};

/**
 * Arguments for `steadfs`: `-o` words that are flags of mount become flags, the others stay in -o. Undefined: nothing is to be done (-f). Throws Failure for a flag without its value.
 */
export function helperArguments(args: readonly string[], flags: readonly Flag[]): string[] | undefined {
  const byName = new Map(flags.flatMap(f => [f.name, ...(f.aliases ?? [])].map(name => [name, f] as const)));
  const operands: string[] = [];
  const given: string[] = [];
  const rest: string[] = [];
  let fake = false;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (arg === '-o') {
      for (const word of (args[++i] ?? '').split(',').filter(w => w !== '')) {
        if (FOR_OTHERS.test(word)) continue;
        const [name = '', ...value] = word.split('=');
        const flag = byName.get(OLD_NAMES[name] ?? name);
        if (!flag || flag.name === 'o') rest.push(word);
        else if (flag.type === 'bool') given.push(`--${flag.name}${value.length > 0 ? `=${value.join('=')}` : ''}`);
        else if (value.length === 0) throw new Failure(`-o ${word} needs a value`);
        else given.push(`--${flag.name}=${value.join('=')}`);
      }
    } else if (arg === '-t' || arg === '-N') i++;
    else if (/^-[sfnvrw]+$/.test(arg)) {
      fake ||= arg.includes('f');
      if (arg.includes('r')) rest.push('ro');
    } else operands.push(arg);
  }
  if (operands.length !== 2)
    throw new Failure(`mount.steadfs takes META-URL and MOUNTPOINT, not ${operands.length} words`);
  if (fake) return undefined;
  return ['mount', '-d', ...given, ...(rest.length > 0 ? ['-o', rest.join(',')] : []), ...operands];
}

/** A word of /etc/fstab: blanks, tabs, backslashes and line ends as octal (fstab(5)). */
function word(text: string): string {
  return text.replace(/[\s\\]/g, c => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`);
}

/** The line for a mount; `flags` are those of its command line, in the order of their names. */
export function fstabLine(
  metaUrl: string,
  mountPoint: string,
  flags: ReadonlyMap<string, string | boolean | string[]>,
): string {
  const options = [...flags]
    .filter(
      ([name, value]) =>
        value !== false && !['background', 'foreground', 'update-fstab', 'o', 'over-mount'].includes(name),
    )
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => (value === true ? name : `${name}=${String(value)}`));
  const list = flags.get('o');
  if (Array.isArray(list)) options.push(...list.flatMap(l => l.split(',')).filter(o => o !== ''));
  const comma = options.find(o => o.includes(','));
  if (comma !== undefined) throw new Failure(`--update-fstab: ${comma} cannot be written to /etc/fstab`);
  return `${word(metaUrl)}  ${word(mountPoint)}  steadfs  ${['_netdev', 'nofail', ...options.map(word)].join(',')}  0 0`;
}

/** The table with the line in it, in the place of an older one of the same source, mount point and type; undefined when it is there already. */
export function withLine(table: string, line: string): string | undefined {
  const [source, point, type] = line.split(/\s+/);
  const lines = table.split('\n');
  const at = lines.findIndex(l => {
    const f = l.trim().split(/\s+/);
    return f[0] === source && f[1] === point && f[2] === type;
  });
  if (at >= 0 && lines[at] === line) return undefined;
  if (at >= 0) lines[at] = line;
  else {
    if (lines.at(-1) === '') lines.pop();
    lines.push(line, '');
  }
  return lines.join('\n');
}

/** Writes the line, and makes mount(8)'s helper a link to this program. Throws Failure; the table is replaced in one step or not at all. */
export function updateFstab(line: string, program: string, fstab = '/etc/fstab', helper = '/sbin/mount.steadfs'): void {
  try {
    const table = withLine(readFileSync(fstab, 'utf8'), line);
    if (table !== undefined) {
      const fd = openSync(`${fstab}.steadfs`, 'w', lstatSync(fstab).mode & 0o777);
      try {
        writeSync(fd, table);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(`${fstab}.steadfs`, fstab);
    }
    symlinkSync(program, helper);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST' && (error as NodeJS.ErrnoException).syscall === 'symlink')
      return;
    throw new Failure(`--update-fstab: ${messageOf(error)}`);
  }
}
