/** How a command ends when it does not do what was asked: one message, one exit code (README, "Exit codes"). */

export const ExitCode = {
  ok: 0,
  /** Wrong usage, refused input, or whatever else failed: the message says what. */
  failed: 1,
  /** The service ended for good: unmount, do not start it again. */
  ended: 11,
} as const;

export class Failure extends Error {
  readonly exitCode: number;
  /** Show the command's usage after the message. */
  readonly usage: boolean;

  constructor(message: string, options: { exitCode?: number; usage?: boolean; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'Failure';
    this.exitCode = options.exitCode ?? ExitCode.failed;
    this.usage = options.usage ?? false;
  }
}

/** What a message shows of a thrown value: its own text, and those of its causes that add something. */
export function messageOf(error: unknown): string {
  const parts: string[] = [];
  for (let e = error; e !== undefined && parts.length < 5; e = e instanceof Error ? e.cause : undefined) {
    // An Errno with a context begins with its code, which says nothing more to people.
    const text = e instanceof Error ? (e.message || e.name).replace(/^E[A-Z0-9]+: (?=.)/, '') : String(e);
    if (!parts.some(p => p.includes(text))) parts.push(text);
  }
  return parts.join(': ');
}
