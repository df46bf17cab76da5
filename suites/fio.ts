/** fio writes with crc32c in every block and reads all of it back, by four ways of doing I/O. */
import { byCode, type Context, execute, onPath, type Suite, skip, type Verdict } from './harness.ts';

const JOBS: Record<string, string[]> = {
  psync: ['--ioengine=psync', '--fsync=32', '--bsrange=4k-128k'],
  mmap: ['--ioengine=mmap', '--bs=4k'],
  libaio: ['--ioengine=libaio', '--direct=1', '--iodepth=16', '--bsrange=4k-128k', '--bs_unaligned=0'],
  io_uring: ['--ioengine=io_uring', '--iodepth=16', '--bsrange=4k-128k'],
  'psync, 1 MiB': ['--ioengine=psync', '--bs=1m', '--end_fsync=1'],
};

async function run(context: Context): Promise<Verdict[]> {
  const fio = onPath('fio');
  if (!fio) return skip('fio', 'fio is missing');
  const verdicts: Verdict[] = [];
  for (const [name, flags] of Object.entries(JOBS)) {
    const size = context.full ? '256m' : '32m';
    const common = [
      '--name=verify',
      `--directory=${context.dir}`,
      '--rw=randwrite',
      `--size=${size}`,
      '--numjobs=2',
      '--verify=crc32c',
    ];
    const how = [
      '--do_verify=1',
      '--verify_fatal=1',
      '--verify_dump=0',
      `--randseed=${context.seed}`,
      '--group_reporting',
      '--unlink=1',
    ];
    const outcome = await execute(fio, [...common, ...how, ...flags], { cwd: context.scratch, timeout: 300_000 });
    const bandwidth = /WRITE: bw=(\S+)/.exec(outcome.output)?.[1];
    if (/engine .* not (loadable|found)|io_uring.*(not supported|Function not implemented)/i.test(outcome.output))
      verdicts.push({ name: `fio ${name}`, skipped: 'this fio or kernel does not have the engine' });
    else verdicts.push(byCode(`fio ${name}`, outcome, bandwidth && `written at ${bandwidth}`));
  }
  return verdicts;
}

export const suite: Suite = { summary: 'fio with crc32c verification: psync, mmap, libaio, io_uring', run };
