/**
 * Holds objects back: `{hold: path}` takes a write lease on the file, so that whoever opens it waits, for the milliseconds of the first argument and no
 * longer; `{free: true}` lets go. Answers `held`, `busy` (somebody has it open), `free`.
 */
import * as c from '../support/libc.ts';

const length = Number(process.argv[2]);
let fd = -1;
function free(): void {
  if (fd < 0) return;
  c.lease(fd, c.F_UNLCK);
  c.close(fd);
  fd = -1;
}
// The kernel's word that somebody waits (fcntl(2), "Leases").
process.on('SIGIO', () => {
  const held = fd;
  setTimeout(() => {
    if (fd === held) free();
  }, length);
});
process.on('message', (question: { hold: string } | { free: true }) => {
  free();
  if ('free' in question) {
    process.send?.('free');
    return;
  }
  fd = c.open(question.hold, c.O.RDONLY);
  const held = fd >= 0 && c.lease(fd, c.F_WRLCK) === 0;
  if (!held && fd >= 0) {
    c.close(fd);
    fd = -1;
  }
  process.send?.(held ? 'held' : 'busy');
});
process.on('disconnect', () => process.exit(0));
