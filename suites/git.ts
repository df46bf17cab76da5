/** git on a repository made here: clone, commits, checkout, repack and gc, fsck after each, and a clean status at the end. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Context, execute, onPath, type Suite, skip, tail, type Verdict } from './harness.ts';

const IDENTITY = {
  GIT_AUTHOR_NAME: 'a',
  GIT_AUTHOR_EMAIL: 'a@example.org',
  GIT_COMMITTER_NAME: 'a',
  GIT_COMMITTER_EMAIL: 'a@example.org',
  GIT_CONFIG_GLOBAL: '/dev/null',
  GIT_CONFIG_SYSTEM: '/dev/null',
};

/** A bare-bones history: `commits` commits over `files` text files, deterministic. */
async function makeRepository(path: string, files: number, commits: number): Promise<string | undefined> {
  mkdirSync(path, { recursive: true });
  const git = async (...args: string[]): Promise<string | undefined> => {
    const outcome = await execute('git', ['-C', path, ...args], { env: IDENTITY });
    return outcome.code === 0 ? undefined : `git ${args.join(' ')}: ${tail(outcome.output)}`;
  };
  let failure = await git('init', '-q', '-b', 'main');
  for (let commit = 0; commit < commits && !failure; commit++) {
    for (let i = commit === 0 ? 0 : commit % 7; i < files; i += commit === 0 ? 1 : 7) {
      const folder = join(path, `folder${i % 40}`, `deep${i % 5}`);
      mkdirSync(folder, { recursive: true });
      writeFileSync(join(folder, `file${i}.txt`), `line ${i}\n`.repeat(((i * 7919 + commit) % 400) + 1) + commit);
    }
    failure = (await git('add', '-A')) ?? (await git('commit', '-q', '-m', `commit ${commit}`));
  }
  return failure;
}

async function run(context: Context): Promise<Verdict[]> {
  if (!onPath('git')) return skip('git', 'git is missing');
  const source = join(context.scratch, 'source');
  const made = await makeRepository(source, context.full ? 4000 : 400, context.full ? 20 : 5);
  if (made) return [{ name: 'git', failure: `the source could not be made: ${made}` }];
  const clone = join(context.dir, 'clone');
  const steps: [string, string[]][] = [
    ['clone', ['clone', '-q', '--no-local', source, clone]],
    ['fsck', ['-C', clone, 'fsck', '--full', '--strict']],
    ['checkout of the first commit', ['-C', clone, 'checkout', '-q', 'HEAD~3']],
    ['checkout back', ['-C', clone, 'checkout', '-q', 'main']],
    ['gc', ['-C', clone, 'gc', '-q', '--aggressive', '--prune=now']],
    ['fsck after gc', ['-C', clone, 'fsck', '--full', '--strict']],
    ['branch, merge', ['-C', clone, 'merge', '-q', '--no-ff', '-m', 'merge', 'HEAD~1']],
    ['worktree', ['-C', clone, 'worktree', 'add', '-q', join(context.dir, 'worktree'), 'HEAD~2']],
    ['local clone with hard links', ['clone', '-q', clone, join(context.dir, 'linked')]],
    ['clean status', ['-C', clone, 'status', '--porcelain']],
    ['same tree', ['-C', clone, 'diff', '--exit-code', 'origin/main', 'main']],
  ];
  const verdicts: Verdict[] = [];
  for (const [name, args] of steps) {
    const outcome = await execute('git', args, { env: IDENTITY, timeout: 300_000 });
    const dirty = name === 'clean status' && outcome.output !== '';
    if (outcome.code !== 0 || dirty)
      verdicts.push({ name: `git ${name}`, failure: `exit ${outcome.code}\n${tail(outcome.output)}` });
    else verdicts.push({ name: `git ${name}` });
  }
  return verdicts;
}

export const suite: Suite = { summary: 'git: clone, fsck, checkout, gc, worktree', run };
