/** fsx: random operations on one file, each read compared with what must be there. */
import { join } from 'node:path';
import { type Context, execute, find, type Suite, skip, type Verdict } from './harness.ts';

const MODES: Record<string, string[]> = {
  buffered: ['-R', '-W'],
  mmap: [],
  aio: ['-A', '-R', '-W'],
  io_uring: ['-U', '-R', '-W'],
  direct: ['-Z', '-R', '-W', '-r', '4096', '-w', '4096', '-t', '4096'],
  // Files of several blocks and chunks, with operations over their borders.
  large: ['-l', String(80 << 20), '-o', String(6 << 20)],
};

async function run(context: Context): Promise<Verdict[]> {
  const fsx = find(context, 'xfstests/ltp/fsx', 'fsx');
  if (!fsx) return skip('fsx', 'fsx is missing');
  const verdicts: Verdict[] = [];
  for (const [mode, flags] of Object.entries(MODES)) {
    const operations = mode === 'large' ? (context.full ? 2000 : 200) : context.full ? 20_000 : 2000;
    const args = [
      '-q',
      ...flags,
      '-N',
      String(operations),
      '-S',
      String(context.seed),
      '-P',
      context.scratch,
      join(context.dir, `fsx-${mode}`),
    ];
    const outcome = await execute(fsx, args, { timeout: 600_000 });
    const name = `fsx ${mode}, ${operations} operations`;
    if (
      /not supported|invalid option|not compiled/i.test(outcome.output) &&
      outcome.code !== 0 &&
      !/READ BAD|Size error/.test(outcome.output)
    ) {
      verdicts.push({ name, skipped: outcome.output.split('\n')[0]! });
      continue;
    }
    const off = [...outcome.output.matchAll(/(\w+(?: \w+)*) not supported|disabling (.*)/gi)].map(m => m[1] ?? m[2]);
    const note = [...new Set(off)].join(', ');
    if (outcome.timedOut) verdicts.push({ name, failure: 'did not end in 600 s' });
    else if (outcome.code !== 0)
      verdicts.push({ name, failure: `exit ${outcome.code}: ${args.join(' ')}\n${outcome.output.slice(0, 1500)}` });
    else verdicts.push(note ? { name, note: `without: ${note}` } : { name });
  }
  return verdicts;
}

export const suite: Suite = { summary: 'fsx: buffered, mapped, AIO, io_uring, O_DIRECT, and large', run };
