/**
 * The server of examples/memory.ts over fds 3, 4, 5, which kills itself (SIGKILL) at a state word: `node faulty.ts N` dies at the Nth
 * place, counting one before and one after each store of a state. So every step of a request is hit: landed but not taken, taken but
 * not cleared, carried out but not applied, applied but not written, written but not freed.
 */
import { MemoryFs } from '../examples/memory.ts';
import { type Capsule, lockCapsule, openCapsule, type Records, serve } from '../src/index.ts';

let left = Number(process.argv[2]);
function place(): void {
  if (--left === 0) process.kill(process.pid, 'SIGKILL');
}
function mined(records: Records): Records {
  return {
    ...records,
    setState(index, state) {
      place();
      records.setState(index, state);
      place();
    },
    free(index) {
      place();
      records.free(index);
      place();
    },
  };
}

const fds = { capsule: 4, arena: 5 };
lockCapsule(fds.capsule, 1000);
const open = openCapsule(fds);
const capsule: Capsule = {
  fresh: open.fresh,
  arena: open.arena,
  blob: open.blob,
  hint: open.hint,
  records: spec => mined(open.records(spec)),
};
const session = serve({ fd: 3, capsule, fileSystem: new MemoryFs(capsule) });
await session.start();
console.log(`serving ${JSON.stringify(session.stats.adopted)}`);
await session.done;
