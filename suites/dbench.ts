/** dbench (an SMB file server's mix) and bonnie++ (large files, then many small ones). */
import { byCode, type Context, execute, isRoot, onPath, type Suite, skip, tail, type Verdict } from './harness.ts';

async function dbench(context: Context): Promise<Verdict[]> {
  const program = onPath('dbench');
  if (!program) return skip('dbench', 'dbench is missing');
  const seconds = context.full ? 30 : 5;
  const outcome = await execute(program, ['-t', String(seconds), '-D', context.dir, '4'], {
    timeout: seconds * 1000 + 120_000,
  });
  const errors = outcome.output.split('\n').filter(line => /^\[\d+\]|failed|ERROR/i.test(line));
  if (errors.length > 0) return [{ name: 'dbench', failure: errors.slice(0, 8).join('\n') }];
  const rate = /Throughput (\S+) MB\/sec/.exec(outcome.output)?.[1];
  if (outcome.code === 0 && !rate) return [{ name: 'dbench', failure: `no throughput\n${tail(outcome.output)}` }];
  return [byCode('dbench', outcome, `${rate} MB/s`)];
}

async function bonnie(context: Context): Promise<Verdict[]> {
  const program = onPath('bonnie++');
  if (!program) return skip('bonnie++', 'bonnie++ is missing');
  const [megabytes, ram, files] = context.full ? ['1024', '512', '16'] : ['64', '32', '1'];
  const args = [
    '-d',
    context.dir,
    '-s',
    megabytes!,
    '-r',
    ram!,
    '-n',
    files!,
    '-f',
    '-q',
    ...(isRoot() ? ['-u', 'root'] : []),
  ];
  return [byCode('bonnie++', await execute(program, args, { cwd: context.scratch, timeout: 600_000 }))];
}

export const suite: Suite = { summary: "dbench: an SMB file server's mix", run: dbench };
export const bonnieSuite: Suite = { summary: 'bonnie++: large files, then many small ones', run: bonnie };
