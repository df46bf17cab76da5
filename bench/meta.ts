/**
 * Microseconds per call of a metadata engine, without a mount: node bench/meta.ts URL [N] [TRASHDAYS]. The database must be empty; it is removed
 * at the end.
 */
import { randomUUID } from 'node:crypto';
import type { Cred, Op } from '../packages/steadfs/src/meta/engine.ts';
import { openEngine } from '../packages/steadfs/src/meta/registry.ts';

const [url = '', count = '10000', trash = '0'] = process.argv.slice(2);
const n = Number(count);
const quiet = () => undefined;
const e = await openEngine(url, {
  readOnly: false,
  skipDirMtime: 100,
  heartbeat: 12,
  atimeMode: 'noatime',
  retries: 10,
  events: {
    sessionLost: quiet,
    formatChanged: quiet,
    volumeLost: quiet,
    changed: quiet,
    trouble: m => console.error(m),
  },
});
if ((await e.load()) !== undefined) throw new Error('the database holds a volume');
await e.init(
  {
    Name: 'bench',
    UUID: randomUUID(),
    Storage: 'file',
    Tiers: null,
    Bucket: '/tmp/bench/',
    BlockSize: 4096,
    TrashDays: Number(trash),
    MetaVersion: 1,
    DirStats: true,
    EnableACL: false,
  },
  false,
);
await e.load();
await e.newSession({
  version: '1.4.1+steadfs.0.1.0',
  hostName: 'h',
  mountPoint: '/m',
  mountTime: '2026-11-21T00:00:00Z',
  processId: 1,
});

const cred: Cred = { uid: 0, gid: 0, pid: 1, groups: () => [0], checkPermission: false };
let seq = 0;
const op = (slot = 0): Op => ({ kind: 0, slot, seq: ++seq });
const name = (s: string) => Buffer.from(s);

async function measure(label: string, calls: number, call: (i: number) => unknown): Promise<void> {
  const cpu = process.cpuUsage();
  const start = performance.now();
  for (let i = 0; i < calls; i++) {
    const r = call(i);
    if (r instanceof Promise) await r;
  }
  const us = ((performance.now() - start) * 1000) / calls;
  const used = process.cpuUsage(cpu);
  console.log(
    `${label.padEnd(24)} ${us.toFixed(2).padStart(8)} µs   CPU ${((used.user + used.system) / calls).toFixed(2).padStart(7)} µs`,
  );
}

const dir = (await e.mknod(op(), cred, 1, name('d'), { type: 2, mode: 0o755, umask: 0, rdev: 0 })).ino;
const inos: number[] = [];
await measure('create', n, async i => inos.push((await e.create(op(), cred, dir, name(`f${i}`), 0o644, 0, 0)).ino));
const names = inos.map((_, i) => name(`f${i}`));
await measure('lookup, cached', n, i => e.lookup(cred, dir, names[i]!));
await measure('getattr, cached', n, i => e.getattr(inos[i]!));
await measure('lookup, absent', n, i => {
  try {
    const r = e.lookup(cred, dir, name(`x${i}`));
    return r instanceof Promise ? r.catch(quiet) : r;
  } catch {
    return undefined;
  }
});
for (const plus of [false, true]) {
  const state: Uint8Array[] = [];
  const stream = e.dirStream(dir, {
    load: () => state,
    append: x => {
      state.push(x);
    },
    clear: () => {
      state.length = 0;
    },
  });
  const start = performance.now();
  let total = 0;
  for (let cookie = 0; ; ) {
    const page = await stream.read(cookie, 500, plus);
    if (page.length === 0) break;
    total += page.length;
    cookie = page.at(-1)!.cookie;
  }
  console.log(
    `${plus ? 'readdir with attributes' : 'readdir'} ${Math.round(total / ((performance.now() - start) / 1000))} entries/s`,
  );
}
await measure('setattr', n, i => e.setattr(op(), cred, inos[i]!, { mode: 0o600 }));
await measure('rename', n, i => e.rename(op(), cred, dir, names[i]!, dir, name(`r${i}`), 0, () => false));
await measure('unlink', n, i => e.unlink(op(), cred, dir, name(`r${i}`), () => false));
await measure('mkdir', n, i => e.mknod(op(), cred, dir, name(`d${i}`), { type: 2, mode: 0o755, umask: 0, rdev: 0 }));
await measure('rmdir', n, i => e.rmdir(op(), cred, dir, name(`d${i}`)));
const start = performance.now();
for (let i = 0; i < n; i += 8) {
  await Promise.all(Array.from({ length: 8 }, (_, k) => e.create(op(k), cred, dir, name(`g${i + k}`), 0o644, 0, 0)));
}
console.log(`create, 8 at once        ${(((performance.now() - start) * 1000) / n).toFixed(2).padStart(8)} µs`);
await e.closeSession();
await e.reset();
await e.close();
