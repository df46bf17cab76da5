/**
 * Public suites against a directory or a fresh volume, one command for each:
 *
 *   node suites/run.ts NAME… | all  --dir DIR             on any directory
 *   node suites/run.ts NAME… | all  --mount [--full]      on a fresh Steadfs volume (--client juicefs: the Go client's, from PATH)
 *     --engine redis | postgres | mariadb                 with its metadata on a server started for the run (sqlite otherwise)
 *
 * --suites DIR (repeatable, or $STEADFS_SUITES with colons) names folders that hold what is not on PATH: pjdfstest/pjdfstest,
 * xfstests/ltp/fsx, xfstests/check, ior/src/mdtest. What is missing is skipped with a word. Ends with 1 when something failed.
 */
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ENGINES, isEngineName, startEngine } from '../packages/steadfs/test/servers/engines.ts';
import { abortMount, type Client, missing, openVolume, type Volume } from '../packages/steadfs/test/support/volume.ts';
import * as dbench from './dbench.ts';
import * as fio from './fio.ts';
import * as fsx from './fsx.ts';
import * as git from './git.ts';
import { type Context, removeTree, type Suite, type Verdict } from './harness.ts';
import * as mdtest from './mdtest.ts';
import * as pjdfstest from './pjdfstest.ts';
import * as postgres from './postgres.ts';
import * as sqlite from './sqlite.ts';
import * as stressNg from './stress-ng.ts';
import * as xfstests from './xfstests.ts';

const SUITES: Record<string, Suite> = {
  pjdfstest: pjdfstest.suite,
  fsx: fsx.suite,
  fio: fio.suite,
  git: git.suite,
  sqlite: sqlite.suite,
  postgres: postgres.suite,
  dbench: dbench.suite,
  bonnie: dbench.bonnieSuite,
  mdtest: mdtest.suite,
  fsstress: mdtest.fsstressSuite,
  'stress-ng': stressNg.suite,
  xfstests: xfstests.suite,
};

function usage(): string {
  const list = Object.entries(SUITES).map(([name, suite]) => `  ${name.padEnd(12)}${suite.summary}`);
  return `node suites/run.ts NAME… | all  --dir DIR | --mount [--client juicefs] [--engine ${ENGINES.join('|')}] [--format=FLAGS] [--options=FLAGS]
  [--full] [--seed N] [--tests 'NAME …'] [--suites DIR] [--verbose] [--keep]\n\n${list.join('\n')}`;
}

/** Prints the failures of one suite (cases of one name folded) and its line of counts. */
function report(name: string, verdicts: Verdict[], seconds: number, verbose: boolean): number {
  const failed = verdicts.filter(v => v.failure !== undefined);
  const skipped = verdicts.filter(v => v.skipped !== undefined);
  for (const v of verdicts) {
    if (v.failure !== undefined) console.log(`FAILED  ${v.name}: ${v.failure.replaceAll('\n', '\n          ')}`);
    else if (v.note !== undefined) console.log(`passed  ${v.name}: ${v.note}`);
    else if (v.skipped !== undefined && v.skipped !== 'says so itself') console.log(`skipped ${v.name}: ${v.skipped}`);
    else if (verbose && v.skipped === undefined) console.log(`passed  ${v.name}`);
  }
  const passed = verdicts.length - failed.length - skipped.length;
  console.log(
    `${name}: ${passed} passed, ${failed.length} failed, ${skipped.length} skipped (${seconds.toFixed(1)} s)`,
  );
  return failed.length;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      dir: { type: 'string' },
      mount: { type: 'boolean' },
      client: { type: 'string', default: 'steadfs' },
      engine: { type: 'string', default: 'sqlite' },
      format: { type: 'string', default: '--trash-days 0' },
      options: { type: 'string', default: '--enable-xattr' },
      full: { type: 'boolean', default: false },
      seed: { type: 'string' },
      tests: { type: 'string', default: '' },
      suites: { type: 'string', multiple: true, default: [] },
      verbose: { type: 'boolean', default: false },
      keep: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(usage());
    return 0;
  }
  const names = positionals.includes('all') ? Object.keys(SUITES) : positionals;
  const unknown = names.find(name => !Object.hasOwn(SUITES, name));
  if (names.length === 0 || unknown !== undefined || !values.dir === !values.mount) {
    console.error(unknown === undefined ? usage() : `no suite "${unknown}"\n\n${usage()}`);
    return 2;
  }
  const client = values.client as Client;
  const lack = values.mount ? missing(client) : undefined;
  if (lack) {
    console.log(`${names.join(', ')}: 0 passed, 0 failed, ${names.length} skipped: ${lack}`);
    return 0;
  }
  if (!isEngineName(values.engine)) {
    console.error(`no engine "${values.engine}" (there are ${ENGINES.join(', ')})`);
    return 2;
  }
  const server = values.mount ? await startEngine(values.engine) : undefined;
  if (server && 'missing' in server) {
    console.log(`${names.join(', ')}: 0 passed, 0 failed, ${names.length} skipped: ${server.missing}`);
    return 0;
  }
  const seed = Number(values.seed ?? Math.floor(Math.random() * 1e6) + 1);
  console.log(
    `seed ${seed}, ${values.full ? 'full' : 'short'}, ${values.dir ?? `a fresh ${client} volume on ${values.engine} for each`}`,
  );
  const words = (text: string): string[] => text.split(' ').filter(w => w !== '');
  let failures = 0;
  for (const name of names) {
    const scratch = mkdtempSync(join(tmpdir(), 'suite-'));
    chmodSync(scratch, 0o755);
    const volumes: Volume[] = [];
    const open = async (label?: string): Promise<Volume> => {
      const opened = openVolume({
        client,
        format: words(values.format),
        mount: words(values.options),
        meta: await server!.fresh(),
        ...(label === undefined ? {} : { name: label }),
      });
      volumes.push(opened);
      return opened;
    };
    const started = Date.now();
    let verdicts: Verdict[] = [];
    try {
      const volume = server && (await open());
      const dir = join(volume?.dir ?? values.dir!, `suite-${name}-${process.pid}`);
      mkdirSync(dir);
      const folders = [...values.suites, ...(process.env.STEADFS_SUITES ?? '').split(':').filter(f => f !== '')];
      const context: Context = {
        dir,
        scratch,
        full: values.full,
        seed,
        folders,
        tests: words(values.tests),
        ...(server && client === 'steadfs' ? { volume: open } : {}),
      };
      verdicts = await SUITES[name]!.run(context);
      if (verdicts.some(v => v.failure?.includes('did not end')) && volume) abortMount(volume.dir);
      else if (!values.keep) {
        const left = removeTree(dir);
        if (left) verdicts.push({ name: 'removal afterwards', failure: left });
      }
    } catch (error) {
      verdicts.push({ name, failure: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    } finally {
      for (const volume of volumes) {
        const fault = volume.close({ keep: values.keep });
        if (fault) verdicts.push({ name: 'umount', failure: fault });
      }
      if (!values.keep) rmSync(scratch, { recursive: true, force: true });
    }
    failures += report(name, verdicts, (Date.now() - started) / 1000, values.verbose);
  }
  await server?.stop();
  return failures > 0 ? 1 : 0;
}

process.exitCode = await main();
