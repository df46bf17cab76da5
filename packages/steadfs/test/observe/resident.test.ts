import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cleanMappings, releasesWhenIdle } from '../../src/observe/resident.ts';

test('clean mappings: large, read only, of files that are not devices or memory', () => {
  const smaps = `400000-82e000 r--p 00000000 fe:00 123                   /opt/node (deleted)
Rss:                4280 kB
Anonymous:             0 kB
82e000-3489000 r-xp 0042e000 fe:00 123                   /opt/a b/node
Anonymous:             0 kB
3489000-72a7000 r--p 03089000 fe:00 123                   /opt/written
Anonymous:             4 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 9           /lib/small.so
Anonymous:             0 kB
7f1000000000-7f1010000000 r--p 00000000 00:01 9           /memfd:steadfs-arena (deleted)
Anonymous:             0 kB
7f2000000000-7f2010000000 rw-p 00000000 fe:00 9           /lib/data.so
Anonymous:             0 kB
7f3000000000-7f3010000000 rw-p 00000000 00:00 0
Anonymous:             0 kB
`;
  assert.deepEqual(cleanMappings(smaps), [
    { address: 0x400000, length: 0x42e000, offset: 0, file: '/opt/node' },
    { address: 0x82e000, length: 0x2c5b000, offset: 0x42e000, file: '/opt/a b/node' },
  ]);
});

test('pages of the program go while nothing is asked, again and again', async () => {
  const resident = (): number => Number(/^RssFile:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))![1]);
  let requests = 0;
  const release = releasesWhenIdle(() => requests);
  const before = resident();
  await release();
  requests++;
  await release();
  assert.ok(resident() > before * 0.8, 'nothing goes while there is work');
  for (let i = 0; i < 3; i++) {
    await release();
    assert.ok(resident() < before * 0.8, `${before} → ${resident()} kB`);
  }
});
