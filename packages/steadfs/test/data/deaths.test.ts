/**
 * Real deaths at every instant: a process is killed before its n-th store into the capsule; another one on the same memory must find every acknowledged write, carry out the
 * one that was under way again, and commit each slice once.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { describe, it } from 'node:test';
import { openEngine } from '../../src/meta/registry.ts';
import { defaultOptions, session } from '../meta/contract.ts';
import { seeded } from '../support/random.ts';
import { MIB, makeVolume, patient, take, type Volume } from './harness.ts';
import { bytesOf, FILE_MAX, FILES, type Plan, perform, stepsOf } from './victim.ts';

const STEPS = 60;
const script = path.join(import.meta.dirname, 'victim.ts');

async function runVictim(
  v: Volume,
  seed: number,
  instant: number,
): Promise<{ progress: string; signal: string | null }> {
  const child = spawn(process.execPath, [script, v.dir, String(seed), String(STEPS), String(instant)], {
    stdio: ['ignore', 'inherit', 'inherit', 'pipe', v.fds.capsule, v.fds.arena],
  });
  let progress = '';
  const pipe = child.stdio[3] as NodeJS.ReadableStream;
  pipe.on('data', (d: Buffer) => {
    progress += d.toString();
  });
  const signal = await new Promise<string | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (_code, s) => resolve(s));
  });
  return { progress, signal };
}

/** Answers how many instants there are when the victim lived through all. */
async function death(seed: number, instant: number): Promise<number> {
  const v = await makeVolume({ blockSize: 64, arena: 64 * MIB, format: { Storage: 'file' } });
  try {
    const inos: number[] = [];
    for (let i = 0; i < FILES; i++) inos.push(await v.newFile(`f${i}`));
    const identity = await v.engine.newSession(session);
    fs.writeFileSync(`${v.dir}/plan.json`, JSON.stringify({ identity, inos } satisfies Plan));
    await v.engine.flush();
    const { progress, signal } = await runVictim(v, seed, instant);
    const acknowledged = /^\.*/.exec(progress)![0].length;
    if (signal === null) return Number(progress.slice(acknowledged));
    assert.equal(signal, 'SIGKILL');

    const engine = await openEngine(`sqlite3://${v.dir}/meta.db`, defaultOptions);
    try {
      await engine.load();
      // The victim raised the epoch when it adopted the session.
      await engine.adoptSession({ ...identity, epoch: identity.epoch + 1 }, session);
      const steps = stepsOf(seed, STEPS);
      const { data, capsule } = v.start({ meta: engine, bufferSize: 32 * MIB });
      await data.recover();
      // The request slot would hand the write under way to the new process again.
      if (acknowledged < steps.length) await perform(steps[acknowledged]!, inos, engine, data, capsule);
      const models = inos.map(() => ({ bytes: Buffer.alloc(FILE_MAX + MIB), length: 0 }));
      for (const step of steps.slice(0, acknowledged + 1)) {
        if ('flush' in step) continue;
        const m = models[step.file]!;
        bytesOf(step).copy(m.bytes, step.offset);
        m.length = Math.max(m.length, step.offset + step.length);
      }
      const check = async (when: string): Promise<void> => {
        for (const [i, ino] of inos.entries()) {
          const m = models[i]!;
          assert.equal(
            Math.max((await engine.getattr(ino)).length, data.pending(ino)?.length ?? 0),
            m.length,
            `length ${when}`,
          );
          for (let at = 0; at < m.length; at += MIB) {
            const n = Math.min(MIB, m.length - at);
            const got = take(data, await data.read(ino, 1, at, n, m.length, patient));
            assert.ok(got.equals(m.bytes.subarray(at, at + n)), `file ${i} at ${at} ${when}`);
          }
        }
      };
      await check('after the death');
      await data.flushAll();
      await check('after the upload');
      assert.equal(data.stats().dirty, 0);
      for (const ino of inos)
        for (const index of await engine.listChunks(ino, 0, 10, 10)) {
          const records = await engine.readChunk(ino, index);
          const names = records.map(r => `${r.id}/${r.pos}/${r.off}`);
          assert.equal(new Set(names).size, names.length, 'a record twice');
        }
      await data.shutdown();
    } finally {
      await engine.close();
    }
    return -1;
  } finally {
    await v.dispose();
  }
}

describe('kill -9 at every instant of the data path', () => {
  const seed = Number(process.env.SEED ?? randomInt(2 ** 31));
  const wanted = Number(process.env.DEATHS ?? 8);
  it(`${wanted} deaths (seed ${seed}; more with DEATHS=)`, { timeout: wanted * 30_000 + 60_000 }, async t => {
    const total = await death(seed, 0);
    t.diagnostic(`${total} instants`);
    const random = seeded(seed);
    for (let i = 0; i < wanted; i++) {
      const instant = 1 + random.below(total);
      try {
        await death(seed, instant);
      } catch (e) {
        throw new Error(`instant ${instant} of seed ${seed}`, { cause: e });
      }
    }
  });
});
