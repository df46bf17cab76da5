/** pjdfstest (C and shell, TAP): every .t file, several at once, counted case by case. */
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Context, execute, find, isRoot, removeTree, type Suite, skip, type Verdict } from './harness.ts';

/** Cases of one file's TAP output: what was planned and did not come counts as failed. */
function judgeTap(output: string): { passed: number; failures: string[]; skipped: number } {
  const plan = /^1\.\.(\d+)/m.exec(output);
  let passed = 0;
  let skipped = 0;
  let seen = 0;
  const failures: string[] = [];
  for (const line of output.split('\n')) {
    const found = /^(not )?ok\b\s*(\d*)(.*)$/.exec(line);
    if (!found) continue;
    seen++;
    if (/#\s*SKIP/i.test(found[3]!)) skipped++;
    else if (found[1] && !/#\s*TODO/i.test(found[3]!)) failures.push(line);
    else passed++;
  }
  if (!plan) failures.push('no plan');
  else for (let i = seen; i < Number(plan[1]); i++) failures.push(`case ${i + 1} of ${plan[1]} did not come`);
  return { passed, failures, skipped };
}

async function run(context: Context): Promise<Verdict[]> {
  const binary = find(context, 'pjdfstest/pjdfstest', 'pjdfstest');
  if (!binary) return skip('pjdfstest', 'pjdfstest is missing');
  if (!isRoot()) return skip('pjdfstest', 'it needs root');
  const tests = join(binary, '../tests');
  const files = readdirSync(tests, { withFileTypes: true })
    .filter(e => e.isDirectory())
    .flatMap(e => readdirSync(join(tests, e.name)).map(f => `${e.name}/${f}`))
    .filter(f => f.endsWith('.t'))
    .sort()
    .filter((f, i) =>
      context.tests.length > 0 ? context.tests.some(t => f.startsWith(t)) : context.full || i % 5 === context.seed % 5,
    );
  const verdicts: Verdict[] = [];
  const queue = [...files];
  const worker = async (): Promise<void> => {
    for (let file = queue.shift(); file; file = queue.shift()) {
      const cwd = join(context.dir, file.replace('/', '-'));
      mkdirSync(cwd);
      const outcome = await execute('/bin/sh', [join(tests, file)], { cwd, timeout: context.full ? 900_000 : 300_000 });
      const { passed, failures, skipped } = judgeTap(outcome.output);
      for (let i = 0; i < passed; i++) verdicts.push({ name: file });
      for (let i = 0; i < skipped; i++) verdicts.push({ name: file, skipped: 'says so itself' });
      for (const failure of failures) verdicts.push({ name: file, failure });
      const left = removeTree(cwd);
      if (left) verdicts.push({ name: file, failure: left });
    }
  };
  await Promise.all(Array.from({ length: 4 }, worker));
  return verdicts;
}

export const suite: Suite = { summary: 'POSIX rules of every call, case by case (C pjdfstest)', run };
