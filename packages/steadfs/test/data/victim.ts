/**
 * A process that writes to files by a data path on a given capsule, and kills itself at a chosen instant: before the n-th store into the capsule's records, or
 * call of the engine's write or of the store. Run by deaths.test.ts:
 *
 *     node victim.ts DIR SEED STEPS N      fd 3: a byte for each operation that was acknowledged, then the count of instants; fd 4, 5: capsule and arena
 */
import fs from 'node:fs';
import type { Capsule, Records } from '@steadfs/fuse';
import { openCapsule } from '@steadfs/fuse/capsule';
import { createFileData } from '../../src/data/create.ts';
import type { FileData } from '../../src/data/file-data.ts';
import type { Ino } from '../../src/format/ino.ts';
import { CHUNK_SIZE } from '../../src/format/slice.ts';
import type { MetaEngine, SessionIdentity } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { openStore } from '../../src/object/registry.ts';
import { defaultOptions, session } from '../meta/contract.ts';
import { seeded } from '../support/random.ts';
import { MIB, patient, writeData } from './harness.ts';

export type Step =
  | { file: number; offset: number; length: number; fill: number }
  | { file: number; flush: 'flush' | 'sync' };

export const FILES = 2;
/** Files end here: a chunk border lies within. */
export const FILE_MAX = CHUNK_SIZE + MIB;

/** What the victim does, known to both sides. */
export function stepsOf(seed: number, count: number): Step[] {
  const random = seeded(seed);
  const steps: Step[] = [];
  let fill = 1;
  while (steps.length < count) {
    const file = random.below(FILES);
    const n = random.below(10);
    if (n < 3) {
      let offset = random.pick([0, CHUNK_SIZE - 200_000, random.below(MIB), random.below(8) * 65536]);
      const length = random.pick([65536, 131072, 30_000]);
      for (let i = 1 + random.below(6); i > 0; i--) {
        steps.push({ file, offset, length, fill: fill++ });
        offset += length;
      }
    } else if (n < 7) {
      for (let i = random.below(8); i > 0; i--)
        steps.push({ file, offset: random.below(200) * 8192, length: random.pick([8192, 100, 5000]), fill: fill++ });
    } else if (n < 9) steps.push({ file, flush: random.chance(50) ? 'flush' : 'sync' });
    else
      steps.push({ file, offset: random.below(FILE_MAX - 200_000), length: 1 + random.below(200_000), fill: fill++ });
  }
  return steps.slice(0, count);
}

/** The bytes of a write: no two are alike. */
export function bytesOf(step: { length: number; fill: number }): Buffer {
  const b = Buffer.alloc(step.length);
  for (let i = 0; i + 4 <= b.length; i += 4) b.writeUInt32LE((step.fill * 2654435761 + i) >>> 0, i);
  return b;
}

export async function perform(
  step: Step,
  inos: readonly Ino[],
  engine: MetaEngine,
  data: FileData,
  capsule: Capsule,
): Promise<void> {
  const ino = inos[step.file]!;
  if ('flush' in step) await data[step.flush](ino);
  else await data.write(ino, step.offset, writeData(capsule, bytesOf(step)), await engine.getattr(ino), false, patient);
}

/** Calls `instant` before every change of a record. */
function watched(records: Records, instant: () => void): Records {
  const before = <A extends unknown[], T>(f: (...args: A) => T) => {
    return (...args: A): T => {
      instant();
      return f(...args);
    };
  };
  const cells = new Proxy(records.cells, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      const method = value.bind(target) as (...args: unknown[]) => unknown;
      return String(name).startsWith('set') ? before(method) : method;
    },
  });
  return {
    name: records.name,
    version: records.version,
    recordSize: records.recordSize,
    capacity: records.capacity,
    view: records.view,
    bytes: records.bytes,
    cells,
    offsetOf: i => records.offsetOf(i),
    alloc: () => records.alloc(),
    state: i => records.state(i),
    setState: before((i: number, state: number) => records.setState(i, state)),
    free: before((i: number) => records.free(i)),
    live: () => records.live(),
  };
}

export interface Plan {
  identity: SessionIdentity;
  inos: Ino[];
}

async function main(): Promise<void> {
  const [dir, seed, count, last] = process.argv.slice(2) as [string, string, string, string];
  const plan = JSON.parse(fs.readFileSync(`${dir}/plan.json`, 'utf8')) as Plan;
  const engine = await openEngine(`sqlite3://${dir}/meta.db`, defaultOptions);
  const format = (await engine.load())!;
  await engine.adoptSession(plan.identity, session);
  const store = await openStore(format);
  const capsule = openCapsule({ capsule: 4, arena: 5 });
  let instants = 0;
  const instant = (): void => {
    if (++instants === Number(last)) process.kill(process.pid, 'SIGKILL');
  };
  const data = createFileData({
    meta: Object.assign(Object.create(engine) as MetaEngine, {
      async write(...args: Parameters<MetaEngine['write']>) {
        instant();
        const result = await engine.write(...args);
        instant();
        return result;
      },
    }),
    store: {
      ...store,
      async put(key, pieces, options) {
        instant();
        await store.put(key, pieces, options);
        instant();
      },
    },
    capsule: { ...capsule, records: spec => watched(capsule.records(spec), instant) },
    format,
    bufferSize: 32 * MIB,
  });
  await data.recover();
  for (const step of stepsOf(Number(seed), Number(count))) {
    await perform(step, plan.inos, engine, data, capsule);
    fs.writeSync(3, '.');
  }
  await data.flushAll();
  fs.writeSync(3, String(instants));
  process.exit(0);
}

if (process.argv[1]?.endsWith('victim.ts')) await main();
