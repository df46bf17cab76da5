/** What a command is made of: arguments, flags and the function that carries it out. cli.ts makes a commander command of it. */
import { parseBandwidth, parseDuration, parseInteger, parseSize } from './units.ts';

export interface Flag {
  /** Canonical name, without dashes. */
  name: string;
  /** Other names, one letter or long. */
  aliases?: readonly string[];
  /**
   * How its value is written: bool takes none, size counts bare numbers in `unit`, duration gives seconds, bandwidth Mbps.
   */
  type: 'bool' | 'string' | 'size' | 'duration' | 'int' | 'bandwidth' | 'list';
  unit?: 'B' | 'K' | 'M' | 'G';
  /** As it would be written on the command line; shown in the help and parsed like a given value. */
  default?: string;
  help: string;
  hidden?: boolean;
}

/** Values by flag name; a flag without default that was not given is absent. */
export class Flags {
  readonly #values: ReadonlyMap<string, string | boolean | string[]>;
  readonly #specs: ReadonlyMap<string, Flag>;

  constructor(specs: readonly Flag[], values: ReadonlyMap<string, string | boolean | string[]>) {
    this.#specs = new Map(specs.map(f => [f.name, f]));
    this.#values = values;
    // Every value is looked at once, so that a bad one is refused even when the command would not need it.
    for (const f of specs) if (f.type !== 'bool' && f.type !== 'list' && f.type !== 'string') this.number(f.name);
  }

  #text(name: string): string | undefined {
    const spec = this.#specs.get(name);
    if (!spec) throw new TypeError(`no flag is called ${name}`);
    const value = this.#values.get(name);
    return typeof value === 'string' ? value : spec.default;
  }

  /** True when it stood on the command line. */
  given(name: string): boolean {
    return this.#values.has(name);
  }

  /** What stood on the command line, by canonical name. */
  get all(): ReadonlyMap<string, string | boolean | string[]> {
    return this.#values;
  }

  bool(name: string): boolean {
    return this.#values.get(name) === true;
  }

  string(name: string): string | undefined {
    return this.#text(name);
  }

  list(name: string): string[] {
    const value = this.#values.get(name);
    return Array.isArray(value) ? value : [];
  }

  /** Bytes, seconds, Mbps or a count; undefined when neither given nor defaulted. */
  number(name: string): number | undefined {
    const text = this.#text(name);
    if (text === undefined) return undefined;
    const spec = this.#specs.get(name)!;
    if (spec.type === 'size') return parseSize(text, spec.unit ?? 'B', name);
    if (spec.type === 'duration') return parseDuration(text, name);
    if (spec.type === 'bandwidth') return parseBandwidth(text, name);
    return parseInteger(text, name);
  }
}

export interface GlobalOptions {
  /** trace … fatal */
  logLevel: string;
  color: boolean;
}

export interface Invocation {
  args: string[];
  flags: Flags;
  global: GlobalOptions;
}

export interface Command {
  name: string;
  /** `<META-URL> <NAME>`, `[PATH...]` */
  args: string;
  summary: string;
  /** Longer text and examples for `--help`. */
  details?: string;
  flags: readonly Flag[];
  /** Answers the exit code (undefined: 0). Throws Failure. */
  run(call: Invocation): Promise<number | undefined>;
}
