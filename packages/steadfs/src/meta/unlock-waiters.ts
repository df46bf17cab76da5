/** Who waits in this process for a lock of an inode to be given up. */
import type { Ino } from '../format/ino.ts';

export class UnlockWaiters {
  readonly #waiting = new Map<Ino, Set<() => void>>();

  /** Settles with the next wake() of the inode, after `timeoutMs` at the latest. */
  wait(ino: Ino, timeoutMs: number): Promise<void> {
    return new Promise(resolve => {
      const set = this.#waiting.get(ino) ?? new Set();
      this.#waiting.set(ino, set);
      const done = (): void => {
        clearTimeout(timer);
        set.delete(done);
        if (set.size === 0 && this.#waiting.get(ino) === set) this.#waiting.delete(ino);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      set.add(done);
    });
  }

  wake(ino: Ino): void {
    for (const done of [...(this.#waiting.get(ino) ?? [])]) done();
  }
}
