/**
 * The end of a process whose event loop computes on and on, a loop without end for one: the kernel counts the CPU time of the main thread and sends SIGVTALRM, whose
 * default action ends the process, when it has used `seconds` without turning its loop. Then all goes as for kill -9, and the keeper tells the next service of a crash
 * (launch.ts, diedOfItself), so that a request that does it every time is found.
 *
 * CPU time, since a process that is stopped, traced, starved or swapped out uses none and must not be ended. A thread that hangs in a system call uses none either: that
 * only systemd's watchdog notices, and a successor would mostly hang there, too.
 */
import * as sys from './sys.ts';

/** Called on the main thread, once; 0: nothing is watched. */
export function endWhenHung(seconds: number): void {
  if (seconds <= 0) return;
  const timer = sys.threadTimerCreate(sys.SIGVTALRM);
  const set = (): void => sys.threadTimerSet(timer, seconds);
  set();
  // Within half of that time on the clock no thread can use all of it.
  setInterval(set, seconds * 500).unref();
}
