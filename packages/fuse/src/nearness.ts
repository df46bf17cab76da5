/**
 * Where the loop runs. A thread that makes one call after the other sleeps while we work, and we wait while it works: on one processor each goes on when the other pauses, on two each
 * call wakes a sleeping processor (20-25 µs, more than the work of a small request). The scheduler leaves both where they happen to be, so a loop that has a single caller goes to that
 * caller's processor now and then. It is a move, not a tie: the scheduler may part them again, and does when both have work at the same time.
 */
import { readFileSync } from 'node:fs';
import { currentProcessor, moveToProcessor } from './sys.ts';

/** Calls of one thread in a row before the first look, and after a move. */
const FIRST = 32;
/** Between two looks while both are on one processor. */
const NEXT = 256;
/** Moves that did not last double the time to the next one, up to FIRST << this. */
const MOVES_MAX = 12;
/** Field `processor` of /proc/PID/stat, counted from the one behind the name in parentheses. */
const PROCESSOR = 36;

/** The processor that a thread ran on last; undefined when it cannot be told. */
function processorOf(thread: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${thread}/stat`, 'latin1');
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[PROCESSOR]);
  } catch {
    // Gone, or not ours to see.
    return undefined;
  }
}

/** Of the thread that it is made in. */
export class Nearness {
  /** The only caller was on our processor at the last look: whoever waits for it should give way. */
  together = false;
  #caller = 0;
  #left = FIRST;
  #moves = 0;

  /** A thread has called; 0: the kernel on its own. */
  called(thread: number): void {
    if (thread === 0) return;
    if (thread !== this.#caller) {
      this.#caller = thread;
      this.#left = FIRST;
      this.#moves = 0;
      this.together = false;
    } else if (--this.#left <= 0) this.#look(thread);
  }

  #look(thread: number): void {
    const processor = processorOf(thread);
    this.together = processor === currentProcessor();
    if (this.together) {
      this.#moves = 0;
      this.#left = NEXT;
      return;
    }
    this.together = processor !== undefined && this.#moves < MOVES_MAX && moveToProcessor(processor);
    this.#moves = this.together ? this.#moves + 1 : MOVES_MAX;
    this.#left = FIRST << this.#moves;
  }
}
