import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Nearness } from '../src/nearness.ts';
import { currentProcessor, moveToProcessor } from '../src/sys.ts';

/** The main thread's list of processors as the kernel shows it. */
const allowed = (): string => /^Cpus_allowed_list:\s+(\S+)/m.exec(readFileSync('/proc/self/status', 'latin1'))![1]!;
/** Single processors of it. */
function processors(): number[] {
  return allowed()
    .split(',')
    .flatMap(range => {
      const [from, to = from] = range.split('-').map(Number) as [number, number?];
      return Array.from({ length: to! - from + 1 }, (_, i) => from + i);
    });
}

test('a move leaves what the thread may run on as it was', () => {
  const before = allowed();
  for (const processor of processors()) {
    // The scheduler may move it on at once: not every time.
    let there = false;
    for (let i = 0; i < 1000 && !there; i++) {
      assert.ok(moveToProcessor(processor));
      there = currentProcessor() === processor;
    }
    assert.ok(there, `never on processor ${processor}`);
  }
  assert.equal(moveToProcessor(8191), false);
  assert.equal(moveToProcessor(1 << 20), false);
  assert.equal(allowed(), before);
});

test('the loop comes to the processor of its only caller, and to nobody else', async t => {
  const caller = spawn('sleep', ['60']);
  try {
    await once(caller, 'spawn');
    const processorOf = (): number =>
      Number(readFileSync(`/proc/${caller.pid}/stat`, 'latin1').split(') ')[1]!.split(' ')[36]);
    const other = processors().find(p => p !== processorOf());
    if (other === undefined) {
      t.skip('one processor');
      return;
    }
    let came = false;
    for (let i = 0; i < 1000 && !came; i++) {
      moveToProcessor(other);
      const nearness = new Nearness();
      for (let n = 0; n < 32; n++) nearness.called(caller.pid!);
      assert.equal(nearness.together, false);
      nearness.called(0);
      nearness.called(caller.pid!);
      assert.equal(nearness.together, true);
      came = currentProcessor() === processorOf();
      nearness.called(process.pid);
      assert.equal(nearness.together, false);
    }
    assert.ok(came);
    const two = new Nearness();
    for (let n = 0; n < 1000; n++) two.called(n % 2 ? caller.pid! : process.pid);
    assert.equal(two.together, false);
    const gone = new Nearness();
    for (let n = 0; n < 100_000; n++) gone.called(2 ** 30);
    assert.equal(gone.together, false);
  } finally {
    caller.kill('SIGKILL');
  }
});
