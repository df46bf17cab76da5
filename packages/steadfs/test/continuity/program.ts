/** One program of the storm as a process: kind, directory, shared directory, instance, seed. Reports over IPC, obeys `stop` and `verify`. */
import { mkdirSync } from 'node:fs';
import { PROGRAMS, type Setting } from './programs.ts';

const [kind = '', dir = '', shared = '', instance = '0', seed = '1'] = process.argv.slice(2);
let calls = 0;
let told = 0;
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
  slow(begin, length) {
    process.send?.({ kind: 'slow', program: kind, begin, length });
  },
};
mkdirSync(dir, { recursive: true });
const program = PROGRAMS[kind]!.make(setting);
let stopped = false;
process.on('message', (word: string) => {
  if (word === 'stop') stopped = true;
  else {
    program.verify();
    process.send?.({ kind: 'done', program: kind, calls }, () => process.exit(0));
  }
});
process.on('disconnect', () => process.exit(1));
process.send?.({ kind: 'ready' });
let beat = Date.now();
while (!stopped) {
  program.step();
  if (Date.now() - beat > 500) {
    beat = Date.now();
    process.send?.({ kind: 'beat', calls });
  }
  await new Promise(wake => setTimeout(wake, program.rest));
}
process.send?.({ kind: 'stopped' });
