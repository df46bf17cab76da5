/** PostgreSQL: pgbench, immediate stops in the middle, recovery, and then what must hold: sums, amcheck, data checksums. */
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { freePort, userIds } from '../packages/steadfs/test/servers/process.ts';
import { type Context, execute, isRoot, type Outcome, type Suite, skip, tail, type Verdict } from './harness.ts';

function binaries(): string | undefined {
  const base = '/usr/lib/postgresql';
  if (!existsSync(base)) return undefined;
  return readdirSync(base)
    .sort((a, b) => Number(b) - Number(a))
    .map(version => join(base, version, 'bin'))
    .find(folder => existsSync(join(folder, 'pgbench')) && existsSync(join(folder, 'initdb')));
}

async function run(context: Context): Promise<Verdict[]> {
  const bin = binaries();
  const user = userIds('postgres');
  if (!bin || !user) return skip('postgres', 'PostgreSQL with pgbench is missing');
  if (!isRoot()) return skip('postgres', 'it needs root, to become the user postgres');
  const data = join(context.dir, 'data');
  const sockets = join(context.scratch, 'sockets');
  for (const folder of [data, sockets]) {
    mkdirSync(folder);
    chownSync(folder, user.uid, user.gid);
    chmodSync(folder, 0o700);
  }
  const port = String(await freePort());
  const call = (program: string, ...args: string[]): Promise<Outcome> =>
    execute(join(bin, program), args, {
      uid: user.uid,
      gid: user.gid,
      cwd: '/',
      timeout: 120_000,
      env: { PGHOST: sockets, PGPORT: port, PGUSER: 'postgres', HOME: '/' },
    });
  const start = (): Promise<Outcome> =>
    call(
      'pg_ctl',
      '-D',
      data,
      '-w',
      '-t',
      '60',
      '-l',
      join(sockets, 'log'),
      '-o',
      `-p ${port} -k ${sockets} -h '' -c max_wal_size=64MB -c checkpoint_timeout=30s`,
      'start',
    );
  const verdicts: Verdict[] = [];
  const step = async (
    name: string,
    work: Promise<Outcome>,
    accept = (o: Outcome) => o.code === 0,
  ): Promise<boolean> => {
    const outcome = await work;
    const good = accept(outcome);
    verdicts.push(
      good
        ? { name: `postgres ${name}` }
        : {
            name: `postgres ${name}`,
            failure: `exit ${outcome.code}${outcome.timedOut ? ', timed out' : ''}\n${tail(outcome.output)}`,
          },
    );
    return good;
  };
  try {
    if (!(await step('initdb', call('initdb', '-D', data, '-A', 'trust', '-U', 'postgres', '--data-checksums'))))
      return verdicts;
    if (!(await step('start', start()))) return verdicts;
    if (!(await step('pgbench -i', call('pgbench', '-q', '-i', '-s', context.full ? '10' : '1', 'postgres'))))
      return verdicts;
    for (let round = 0; round < (context.full ? 3 : 1); round++) {
      const load = call('pgbench', '-n', '-c', '4', '-T', '60', 'postgres');
      await new Promise(wake => setTimeout(wake, context.full ? 8000 : 3000));
      await step('immediate stop under load', call('pg_ctl', '-D', data, '-m', 'immediate', '-w', 'stop'));
      await load;
      if (!(await step('recovery', start()))) return verdicts;
    }
    const sums = `SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce((SELECT sum(delta) FROM pgbench_history), 0)
      AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)
      AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
      AND (SELECT count(*) FROM pgbench_history) > 0`;
    await step(
      'sums of all tables agree',
      call('psql', '-At', '-c', sums, 'postgres'),
      o => o.code === 0 && o.output.trim() === 't',
    );
    await step('vacuum full', call('psql', '-c', 'VACUUM FULL', 'postgres'));
    const amcheck = await call('psql', '-c', 'CREATE EXTENSION amcheck', 'postgres');
    if (amcheck.code === 0) await step('amcheck', call('pg_amcheck', '--all', '--heapallindexed'));
    else verdicts.push({ name: 'postgres amcheck', skipped: 'the extension is missing' });
    await step('clean stop', call('pg_ctl', '-D', data, '-m', 'fast', '-w', 'stop'));
    await step('checksums', call('pg_checksums', '--check', '-D', data));
  } finally {
    if (existsSync(join(data, 'postmaster.pid'))) await call('pg_ctl', '-D', data, '-m', 'immediate', '-w', 'stop');
  }
  return verdicts;
}

export const suite: Suite = { summary: 'PostgreSQL: pgbench, immediate stops, recovery, amcheck, checksums', run };
