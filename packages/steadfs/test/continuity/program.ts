/**
 * One program of the storm as a process: kind, directory, shared directory, instance, seed, objects, `full`. Reports over IPC, begins at `go` (when all are
 * prepared), obeys `stop` and `verify`.
 */
import { mkdirSync } from 'node:fs';
import type { Setting } from './checked.ts';
import { PROGRAMS } from './programs.ts';

const [kind = '', dir = '', shared = '', instance = '0', seed = '1', objects = '', size = ''] = process.argv.slice(2);
let calls = 0;
let told = 0;
const deeds: Record<string, number> = {};
const setting: Setting = {
  dir,
  shared,
  instance: Number(instance),
  seed: Number(seed),
  fault(what, text) {
    // A broken mount fails every call: the first ones tell the story.
    if (++told <= 20) process.send?.({ kind: 'fault', what, text: `${kind} ${instance}: ${text}` });
    else process.send?.({ kind: 'fault', what, text: '' });
  },
  count(n = 1) {
    calls += n;
  },
  did(what, n = 1) {
    deeds[what] = (deeds[what] ?? 0) + n;
  },
  objects,
  full: size === 'full',
  slow(begin, length) {
    process.send?.({ kind: 'slow', program: kind, begin, length });
  },
};
mkdirSync(dir, { recursive: true });
const program = PROGRAMS[kind]!.make(setting);
let stopped = false;
const { promise: begun, resolve: go } = Promise.withResolvers<void>();
process.on('message', async (word: string) => {
  if (word === 'go') go();
  else if (word === 'stop') stopped = true;
  else {
    await program.verify();
    process.send?.({ kind: 'done', program: kind, calls, deeds }, () => process.exit(0));
  }
});
process.on('disconnect', () => process.exit(1));
process.send?.({ kind: 'ready' });
await begun;
let beat = Date.now();
while (!stopped) {
  await program.step();
  if (Date.now() - beat > 500) {
    beat = Date.now();
    process.send?.({ kind: 'beat', calls });
  }
  await new Promise(wake => setTimeout(wake, program.rest));
}
process.send?.({ kind: 'stopped' });
