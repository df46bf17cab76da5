/** A store or an engine that fails: since when and how, and how long to wait before the next try. */

/** ms */
export const RETRY_FIRST = 25;
export const RETRY_MAX = 10_000;

export const text = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export interface Trouble {
  readonly now: { since: number; message: string } | undefined;
  failing(message: string): void;
  recovered(): void;
}

/** `tell` hears what is waited for, undefined: nothing any more. */
export function createTrouble(tell: (message: string | undefined) => void): Trouble {
  let trouble: { since: number; message: string } | undefined;
  return {
    get now() {
      return trouble;
    },
    failing(message) {
      if (trouble === undefined) trouble = { since: Date.now(), message };
      else trouble.message = message;
      tell(message);
    },
    recovered() {
      if (trouble === undefined) return;
      trouble = undefined;
      tell(undefined);
    },
  };
}
