/** stress-ng's filesystem class. It ends with 0 even when a stressor printed "fail:", so the output decides. */
import { type Context, execute, onPath, type Suite, skip, tail, type Verdict } from './harness.ts';

// These test the host (sync of every mount, binder, bind mounts, /proc), not the file system below --temp-path.
const EXCLUDED = ['io', 'binderfs', 'bind-mount', 'procfs', 'ioprio'];

async function run(context: Context): Promise<Verdict[]> {
  const stress = onPath('stress-ng');
  if (!stress) return skip('stress-ng', 'stress-ng is missing');
  const listed = await execute(stress, ['--class', 'filesystem?'], { timeout: 10_000 });
  const names = (/stressors: (.*)/.exec(listed.output)?.[1] ?? '')
    .split(' ')
    .filter(n => n !== '' && !EXCLUDED.includes(n));
  if (names.length === 0) return [{ name: 'stress-ng', failure: `no stressors: ${tail(listed.output)}` }];
  const verdicts: Verdict[] = [];
  for (const stressor of names) {
    const args = [
      `--${stressor}`,
      '2',
      '--timeout',
      context.full ? '5' : '1',
      '--verify',
      '--temp-path',
      context.dir,
      '--seed',
      String(context.seed),
    ];
    const outcome = await execute(stress, args, { cwd: context.scratch, timeout: 90_000 });
    const name = `stress-ng ${stressor}`;
    const failures = outcome.output
      .split('\n')
      .filter(
        line => /\bfail:|unsuccessful|corrupt|terminated on signal/i.test(line) && !/^.*successful run/.test(line),
      );
    const refused = /skipping stressor|not implemented|skipped/.exec(outcome.output);
    if (outcome.timedOut) verdicts.push({ name, failure: `did not end in 90 s\n${tail(outcome.output)}` });
    else if (failures.length > 0) verdicts.push({ name, failure: failures.slice(0, 6).join('\n') });
    else if (
      outcome.code === 4 ||
      (refused && outcome.code === 0 && !/bogo ops/.test(outcome.output) && outcome.code !== 0)
    )
      verdicts.push({ name, skipped: 'not supported here' });
    else if (outcome.code === 3) verdicts.push({ name, skipped: `no resources: ${tail(outcome.output, 2)}` });
    else if (outcome.code !== 0) verdicts.push({ name, failure: `exit ${outcome.code}\n${tail(outcome.output)}` });
    else verdicts.push({ name });
  }
  return verdicts;
}

export const suite: Suite = { summary: "stress-ng's filesystem class with --verify", run };
