/** mdtest and IOR with verification, and fsstress followed by a removal of everything it left. */
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { byCode, type Context, execute, find, removeTree, type Suite, skip, type Verdict } from './harness.ts';

async function mdtest(context: Context): Promise<Verdict[]> {
  const verdicts: Verdict[] = [];
  const md = find(context, 'ior/src/mdtest', 'mdtest');
  if (!md) verdicts.push(...skip('mdtest', 'mdtest is missing'));
  else {
    const args = [
      '-d',
      join(context.dir, 'md'),
      '-n',
      context.full ? '2000' : '200',
      '-i',
      '2',
      '-w',
      '3901',
      '-e',
      '3901',
      '-X',
      '-u',
    ];
    verdicts.push(byCode('mdtest -X', await execute(md, args, { timeout: 300_000 })));
  }
  const ior = find(context, 'ior/src/ior', 'ior');
  if (!ior) verdicts.push(...skip('ior', 'ior is missing'));
  else {
    const size = context.full ? '256m' : '32m';
    const args = ['-o', join(context.dir, 'ior'), '-t', '1m', '-b', size, '-w', '-W', '-r', '-R', '-e', '-i', '2'];
    const outcome = await execute(ior, args, { timeout: 300_000 });
    const bad = /WARNING: .*(mismatch|verification|incorrect)/i.exec(outcome.output);
    verdicts.push(bad ? { name: 'ior -W -R', failure: bad[0] } : byCode('ior -W -R', outcome));
  }
  return verdicts;
}

async function fsstress(context: Context): Promise<Verdict[]> {
  const program = find(context, 'xfstests/ltp/fsstress', 'fsstress');
  if (!program) return skip('fsstress', 'fsstress is missing');
  const dir = join(context.dir, 'stress');
  mkdirSync(dir);
  // sync() reaches every mount of the host.
  const args = ['-d', dir, '-p', '4', '-n', context.full ? '5000' : '500', '-s', String(context.seed), '-f', 'sync=0'];
  const outcome = await execute(program, args, { timeout: 600_000 });
  const verdicts = [byCode('fsstress', outcome)];
  const left = removeTree(dir);
  const rest = left === undefined && readdirSync(context.dir).includes('stress') ? 'still listed' : left;
  verdicts.push(rest ? { name: 'rm -rf after fsstress', failure: rest } : { name: 'rm -rf after fsstress' });
  return verdicts;
}

export const suite: Suite = { summary: 'mdtest and IOR with verification', run: mdtest };
export const fsstressSuite: Suite = { summary: 'fsstress, then rm -rf of what it left', run: fsstress };
