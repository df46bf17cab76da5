/**
 * The heartbeat of a service that has a keeper (under systemd WatchdogSec= does this): it sets a timer (timerfd, {@link FD_BEAT}) again and again from its loop, so
 * an expired timer means a loop that has not turned for half of the hang limit. `dd` waits for that in read(2) and costs nothing meanwhile; the shell that
 * started it ({@link WATCH}) tells the keeper, which looks at the service's main thread for another half before it kills it (keeper.ts). Expiry alone proves nothing: the process may be
 * stopped, starved or swapped out.
 */
import { FD_BEAT } from './launch.ts';
import * as sys from './sys.ts';

/** Times that the timer is set within the time that it runs. */
const SETS = 3;

/**
 * `sh -c WATCH NAME SECONDS`, child of the keeper: SIGUSR1 to the keeper when the timer expires and then every SECONDS until it is set again. Ends with the keeper: killed by it, or,
 * when that was killed, as soon as the timer expires.
 */
export const WATCH = `
trap "kill \\$reader; exit" TERM
orphan() { read -r stat </proc/self/stat; set -- \${stat##*) }; [ "$2" != $PPID ]; }
expired() {
  while read -r key value; do [ "$key$value" = "it_value:(0, 0)" ] && return; done </proc/self/fdinfo/${FD_BEAT}
  return 1
}
while :; do
  dd bs=8 count=1 <&${FD_BEAT} >/dev/null 2>&1 &
  reader=$!
  wait $reader || exit
  while expired; do
    orphan && exit
    kill -USR1 $PPID
    sleep $1
  done
done
`;

/** The timer of a keeper with this limit (seconds), running: whoever comes too late to set it is missed. */
export function createBeat(limit: number | undefined): number {
  const timer = sys.timerfdCreate();
  if (limit) sys.timerfdSet(timer, limit * 500);
  return timer;
}

export interface Beating {
  /** The process will be killed, or go on ({@link go}) within `ms`: then the watch over this timer ends, too. */
  leave(ms: number): void;
  go(): void;
  /** A new keeper has a timer of its own, which is ours from now on; whoever watches the one before is let go. */
  follow(timer: number): void;
}

/** Sets the timer at once and then on and on; with limit 0 or absent (seconds) nothing. A debugger that pauses JavaScript needs that: it looks like a hang. */
export function startBeating(limit: number | undefined): Beating {
  if (!limit) return { leave() {}, go() {}, follow: timer => sys.close(timer) };
  let left = false;
  const set = (): void => {
    if (!left) sys.timerfdSet(FD_BEAT, limit * 500);
  };
  set();
  setInterval(set, (limit * 500) / SETS).unref();
  return {
    leave(ms) {
      left = true;
      sys.timerfdSet(FD_BEAT, ms);
    },
    go() {
      left = false;
      set();
    },
    follow(timer) {
      sys.timerfdSet(FD_BEAT, 1);
      sys.dup2(timer, FD_BEAT);
      sys.setCloexec(FD_BEAT);
      sys.close(timer);
      set();
    },
  };
}
