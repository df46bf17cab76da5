/** The command line: Go-style arguments (flags anywhere, `-flag` and `--flag` alike, `--bool=false`) over commander. */
import { Command as Commander, CommanderError, Option } from 'commander';
import { type Command, type Flag, Flags, type GlobalOptions } from './commands/command.ts';
import { ExitCode, Failure, messageOf } from './commands/failure.ts';
import { maskUrl } from './commands/mask.ts';
import { VERSION } from './version.ts';

interface Entry {
  summary: string;
  load(): Promise<{ command: Command }>;
}

/** Modules are loaded when their command is called: `version` must not pay for `mount`. */
const COMMANDS: Record<string, Entry> = {
  format: { summary: 'make a volume', load: () => import('./commands/format.ts') },
  config: { summary: "show or change a volume's settings", load: () => import('./commands/config.ts') },
  status: { summary: 'show a volume, its sessions and its usage', load: () => import('./commands/status.ts') },
  mount: { summary: 'mount a volume; on a live mount: smooth upgrade', load: () => import('./commands/mount.ts') },
  umount: { summary: 'unmount', load: () => import('./commands/umount.ts') },
  info: { summary: 'show inode, size and objects of files and directories', load: () => import('./commands/info.ts') },
  summary: { summary: 'show the usage of a directory tree', load: () => import('./commands/summary.ts') },
  clone: { summary: 'copy a file or tree without copying data', load: () => import('./commands/clone.ts') },
  rmr: { summary: 'remove trees', load: () => import('./commands/rmr.ts') },
  compact: { summary: 'merge the slices of files', load: () => import('./commands/compact.ts') },
  version: { summary: 'print the version', load: () => import('./commands/version.ts') },
};

const GLOBAL_FLAGS: readonly Flag[] = [
  { name: 'verbose', aliases: ['debug', 'v'], type: 'bool', help: 'log debug messages' },
  { name: 'quiet', aliases: ['q'], type: 'bool', help: 'log only warnings and errors' },
  { name: 'trace', type: 'bool', help: 'log everything' },
  {
    name: 'log-level',
    type: 'string',
    hidden: true,
    help: 'trace, debug, info, warn, error, fatal; overrides the three above',
  },
  { name: 'no-color', type: 'bool', help: 'plain output' },
];

const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'];

/**
 * Rewrites arguments into the form commander reads: canonical `--name` and `--name=value` first, then `--` and the others. What is not
 * known is left for commander to complain about. `denied` are the bool flags given as `--name=false`.
 */
export function normalize(args: readonly string[], flags: readonly Flag[]): { args: string[]; denied: Set<string> } {
  const known = new Map<string, Flag>();
  for (const f of flags) for (const name of [f.name, ...(f.aliases ?? [])]) known.set(name, f);
  const denied = new Set<string>();
  const options: string[] = [];
  const operands: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (arg === '--') {
      operands.push(...args.slice(i + 1));
      break;
    }
    if (!arg.startsWith('-') || arg === '-') {
      operands.push(arg);
      continue;
    }
    const [, dashes, name, value] = /^(--?)([^=]*)(?:=(.*))?$/s.exec(arg) ?? [];
    const flag = known.get(name ?? '');
    if (!flag) {
      options.push(dashes === '-' && name!.length > 1 ? `-${arg}` : arg);
    } else if (flag.type === 'bool') {
      if (value === undefined || /^(true|t|1)$/i.test(value)) options.push(`--${flag.name}`);
      else if (/^(false|f|0)$/i.test(value)) denied.add(flag.name);
      else throw new Failure(`--${flag.name}: "${value}" is neither true nor false`);
    } else {
      const given = value ?? args[++i];
      if (given === undefined) throw new Failure(`--${flag.name} needs a value`, { usage: true });
      options.push(`--${flag.name}=${given}`);
    }
  }
  return { args: [...options, '--', ...operands], denied };
}

/** `<A> <B>` takes two, `<A> [B]` one or two, `<A...>` one or more. */
function checkCount(args: readonly string[], wanted: string): void {
  const words = wanted.split(' ').filter(w => w !== '');
  const least = words.filter(w => w.startsWith('<')).length;
  const plural = (n: number) => `${n} argument${n === 1 ? '' : 's'}`;
  if (args.length < least) throw new Failure(`This command requires at least ${plural(least)}`, { usage: true });
  if (args.length > words.length && !wanted.includes('...'))
    throw new Failure(`This command takes at most ${plural(words.length)}: ${args[words.length]} is too many`, {
      usage: true,
    });
}

/** Index of the command's name: the first argument that is no global flag or its value. */
function commandIndex(args: readonly string[]): number {
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (!arg.startsWith('-')) return i;
    const flag = GLOBAL_FLAGS.find(f => `-${f.name}` === arg || `--${f.name}` === arg);
    if (flag && flag.type !== 'bool') i++;
  }
  return -1;
}

function flagLine(flag: Flag): string {
  const short = flag.aliases?.find(a => a.length === 1);
  const value = flag.type === 'bool' ? '' : flag.type === 'list' ? ' <value>' : ` <${flag.type}>`;
  return `${short ? `-${short}, ` : ''}--${flag.name}${value}`;
}

function addFlags(commander: Commander, flags: readonly Flag[]): void {
  for (const flag of flags) {
    const option = new Option(
      flagLine(flag),
      flag.default === undefined ? flag.help : `${flag.help} (default ${flag.default})`,
    );
    if (flag.type === 'list') option.argParser<string[]>((value, previous) => [...(previous ?? []), value]);
    if (flag.hidden) option.hideHelp();
    commander.addOption(option);
  }
}

function attributeName(flag: Flag): string {
  return new Option(flagLine(flag)).attributeName();
}

/** `ERROR: …` in place of commander's `error: …`, quotes as they are, and no process.exit. */
function configure(commander: Commander): Commander {
  return commander
    .exitOverride()
    .configureHelp({ optionTerm: option => option.flags.replace(/^--(\w) /, '-$1 ') })
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'ERROR: ')) })
    .helpCommand(false);
}

function overview(): Commander {
  const program = configure(new Commander('steadfs'))
    .usage('[global flags] COMMAND [flags] ARGS')
    .description('A distributed POSIX file system for Linux whose mount never goes away.')
    .addHelpText('after', '\nsteadfs COMMAND --help lists the flags of a command.')
    .option('-V, --version', 'print the version');
  addFlags(program, GLOBAL_FLAGS);
  for (const [name, entry] of Object.entries(COMMANDS))
    program.addCommand(new Commander(name).description(entry.summary).helpOption(false));
  return program;
}

function globalOptions(values: Record<string, unknown>): GlobalOptions {
  const wanted = typeof values.logLevel === 'string' ? values.logLevel.toLowerCase() : undefined;
  if (wanted !== undefined && !LEVELS.includes(wanted))
    throw new Failure(`--log-level: "${wanted}" is none of ${LEVELS.join(', ')}`);
  const logLevel = wanted ?? (values.trace ? 'trace' : values.verbose ? 'debug' : values.quiet ? 'warn' : 'info');
  return { logLevel, color: values.color !== false && process.stderr.isTTY === true };
}

/** Runs one command line (without interpreter and script). Answers the exit code. */
export async function run(argv: readonly string[]): Promise<number> {
  if (argv[0] === 'mount-helper') {
    const { helperArguments } = await import('./commands/mount-helper.ts');
    const { mountFlags } = await import('./commands/mount-flags.ts');
    const words = helperArguments(argv.slice(1), mountFlags);
    return words === undefined ? ExitCode.ok : await run(words);
  }
  const at = commandIndex(argv);
  if (argv.slice(0, at < 0 ? undefined : at).some(a => /^--?(V|version)$/.test(a))) {
    console.log(`steadfs version ${VERSION}`);
    return ExitCode.ok;
  }
  const name = at < 0 ? undefined : argv[at]!;
  if (name === undefined || name === 'help') {
    if (at < 0 && argv.some(a => a.startsWith('-') && !/^--?(h|help)$/.test(a)))
      throw new Failure(`no command after ${argv.join(' ')}; try steadfs --help`);
    overview().outputHelp();
    return ExitCode.ok;
  }
  const entry = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!entry) throw new Failure(`there is no command "${name}"; try steadfs --help`);
  const { command } = await entry.load();

  const flags = [...command.flags, ...GLOBAL_FLAGS];
  const commander = configure(new Commander(`steadfs ${name}`))
    .description(command.details ? `${command.summary}\n\n${command.details}` : command.summary)
    .usage(`[flags] ${command.args}`)
    .argument('[args...]');
  addFlags(commander, flags);
  const values = new Map<string, string | boolean | string[]>();
  let code: number | undefined;
  commander.action(async (...given: unknown[]) => {
    const args = given[0] as string[];
    checkCount(args, command.args);
    const options = commander.opts();
    for (const flag of command.flags) {
      const value: unknown = options[attributeName(flag)];
      if (commander.getOptionValueSource(attributeName(flag)) !== 'cli') continue;
      // commander makes `x: false` of --no-x.
      values.set(flag.name, flag.type === 'bool' ? true : (value as string | string[]));
    }
    code = await command.run({ args, flags: new Flags(command.flags, values), global: globalOptions(options) });
  });
  try {
    const line = normalize([...argv.slice(0, at), ...argv.slice(at + 1)], flags);
    for (const flag of line.denied) values.set(flag, false);
    await commander.parseAsync(line.args, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.code === 'commander.helpDisplayed' || error.code === 'commander.help') return ExitCode.ok;
      return ExitCode.failed;
    }
    if (error instanceof Failure && error.usage) {
      process.stderr.write(`ERROR: ${error.message}\n\nUSAGE:\n   steadfs ${name} [flags] ${command.args}\n`);
      return error.exitCode;
    }
    throw error;
  }
  return code ?? ExitCode.ok;
}

/** Flags whose values must not be seen in the process list. */
const SECRET_FLAGS = /^--?(access-key|secret-key|session-token)$/;

/** The command line as the process list shows it: passwords in URLs and values of secret flags are masked. */
export function maskArguments(argv: readonly string[]): string[] {
  return argv.map((arg, i) => {
    if (i > 0 && SECRET_FLAGS.test(argv[i - 1]!)) return '****';
    const [, flag] = /^(--?[^=]+)=/.exec(arg) ?? [];
    return flag && SECRET_FLAGS.test(flag) ? `${flag}=****` : maskUrl(arg);
  });
}

/** run(), its failures printed, its exit code set. */
export async function main(argv: readonly string[]): Promise<void> {
  const masked = maskArguments(argv);
  if (masked.some((arg, i) => arg !== argv[i])) process.title = ['steadfs', ...masked].join(' ');
  try {
    process.exitCode = await run(argv);
  } catch (error) {
    const failure = error instanceof Failure ? error : undefined;
    process.stderr.write(`ERROR: ${messageOf(error)}\n`);
    if (!failure && process.env.STEADFS_DEBUG) console.error(error);
    process.exitCode = failure?.exitCode ?? ExitCode.failed;
  }
}
