// timeout: 240
/** A call that crashes the service each time: EIO at the third crash, everybody else goes on. Needs the bundle with fault points. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { abortMount, missing, openVolume } from '../support/volume.ts';
import { faultBundle, until } from './faults.ts';

const lack = missing('steadfs') ?? (process.getuid?.() === 0 ? undefined : 'needs root');
const run = promisify(execFile);
const sh = (script: string) => run('sh', ['-c', script], { cwd: '/', timeout: 120_000, killSignal: 'SIGKILL' });

/** Aborts before the file system is called, and after it has carried the request out: then it took effect. */
for (const [point, done] of [
  ['request.before-run', false],
  ['request.carried-out', true],
] as const)
  test(`a call that crashes the service each time (${point}) gets EIO`, { skip: lack ?? false }, async () => {
    const base = mkdtempSync(join(tmpdir(), 'steadfs-poison-'));
    const { arm, left } = await faultBundle(base);
    const volume = openVolume({ base });
    let bad = true;
    try {
      const { dir } = volume;
      await sh(`mkdir ${dir}/there; echo text >${dir}/file`);
      arm(...Array.from({ length: 3 }, () => `abort ${point}:MKDIR`));
      const others = sh(
        `i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i >${dir}/there/$i && rm ${dir}/there/$i; done`,
      );
      await assert.rejects(sh(`mkdir ${dir}/there/poison`), /Input\/output error/);
      assert.equal(left(), '', 'it has crashed three times');
      await others;
      assert.equal((await sh(`ls ${dir}/there; cat ${dir}/file`)).stdout, done ? 'poison\ntext\n' : 'text\n');
      await sh(`mkdir ${dir}/there/good`);
      // Lines are written a moment later.
      const said = () =>
        readFileSync(join(base, 'log'), 'utf8')
          .split('\n')
          .filter(line => line.includes('has crashed the service'));
      const lines = await until('logged', () => (said().length > 0 ? said() : undefined));
      assert.equal(lines.length, 1, lines.join('\n'));
      assert.match(lines[0]!, /MKDIR of inode \d+ .*crashed the service 3 times: answered EIO/);
      bad = false;
    } finally {
      if (bad) abortMount(volume.dir);
      volume.close();
      rmSync(base, { recursive: true, force: true });
    }
  });
