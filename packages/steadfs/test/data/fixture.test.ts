/** Files of a volume that the Go client wrote, read by inode: contents as its own mount showed them. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { it } from 'node:test';
import { createCapsule, openCapsule } from '@steadfs/fuse/capsule';
import { createFileData } from '../../src/data/create.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { openStore } from '../../src/object/registry.ts';
import { defaultOptions } from '../meta/contract.ts';
import { MIB, patient, take } from './harness.ts';

const fixture = path.resolve(import.meta.dirname, '../../../../../shared/fixtures/a-sqlite');

it('reads every file of the fixture a-sqlite', {
  skip: !fs.existsSync(fixture) && 'no fixtures beside the repository',
  timeout: 60_000,
}, async () => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'steadfs-fixture-'));
  const engine = await (async () => {
    fs.copyFileSync(`${fixture}/meta.db`, `${dir}/meta.db`);
    execFileSync('tar', ['xzf', `${fixture}/objects.tar.gz`, '-C', dir]);
    return openEngine(`sqlite3://${dir}/meta.db`, { ...defaultOptions, readOnly: true });
  })();
  try {
    const format = (await engine.load())!;
    const store = await openStore({ ...format, Bucket: `${dir}/a-sqlite/` });
    const capsule = openCapsule(createCapsule({ arenaSize: 64 * MIB }));
    const data = createFileData({ meta: engine, store, capsule, format, readOnly: true, bufferSize: 64 * MIB });
    let files = 0;
    for (const line of fs.readFileSync(`${fixture}/expected.jsonl`, 'utf8').trim().split('\n')) {
      const e = JSON.parse(line) as { path: string; type: string; ino: string; size: number; sha256?: string };
      if (e.type !== 'file' || e.sha256 === undefined) continue;
      const ino = Number(e.ino);
      const { length } = await engine.getattr(ino);
      assert.equal(length, e.size, e.path);
      const hash = createHash('sha256');
      for (let at = 0; at < length; at += 128 * 1024)
        hash.update(take(data, await data.read(ino, ino, at, 128 * 1024, length, patient)));
      assert.equal(hash.digest('hex'), e.sha256, e.path);
      data.close(ino, ino);
      files++;
    }
    assert.ok(files > 30, `${files} files`);
    await data.shutdown();
  } finally {
    await engine.close();
    fs.rmSync(dir, { recursive: true });
  }
});
