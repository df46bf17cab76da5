/** Log lines before and after pino is loaded, at every way a process ends; the texts of `.stats` and /metrics. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { statsText } from '../../src/observe/exposition.ts';
import { startLog } from '../../src/observe/log.ts';
import { Metrics } from '../../src/observe/metrics.ts';
import { serveMetrics } from '../../src/observe/metrics-server.ts';

const folder = mkdtempSync(join(tmpdir(), 'steadfs-observe-'));
after(() => rmSync(folder, { recursive: true }));
const LINE = /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d\.\d{6} steadfs\[\d+\] <(INFO|WARNING)>: /;

/** Runs a script that has `log`; answers its lines without their beginnings. */
function logged(script: string, status: number): string[] {
  const file = join(folder, `${Math.random()}.log`);
  const module = JSON.stringify(join(import.meta.dirname, '../../src/observe/log.ts'));
  const text = `const { startLog } = await import(${module}); const log = startLog({ level: 'info', file: ${JSON.stringify(file)}, startUpMs: 200 });
    const sleep = ms => new Promise(wake => setTimeout(wake, ms)); ${script}`;
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', text], { encoding: 'utf8', timeout: 20_000 });
  if (status >= 0) assert.equal(run.status, status, run.stderr);
  const lines = readFileSync(file, 'utf8').trimEnd().split('\n');
  for (const line of lines) assert.match(line, LINE);
  return lines.map(line => line.replace(LINE, ''));
}

test('lines before pino is loaded are written at the end, however it comes', () => {
  assert.deepEqual(logged(`log.info('one'); log.debug('no'); log.info({ n: 1n }, 'two')`, 0), ['one', 'two {"n":"1"}']);
  assert.deepEqual(logged(`log.info('one'); process.exit(3)`, 3), ['one']);
  assert.deepEqual(logged(`log.info('one'); throw new Error('x')`, 1), ['one']);
});

test('pino goes on with the same lines, which a kill does not lose', () => {
  const lines = logged(
    `log.info('one'); await sleep(1500); log.debug('no'); log.info('two'); log.info({ n: 1n, s: 'x' }, '100 %s');
    process.kill(process.pid, 'SIGKILL'); await sleep(1000)`,
    -1,
  );
  assert.deepEqual(lines, ['one', 'two', '100 %s {"n":"1","s":"x"}']);
});

test('errors are shown with their causes, and a rotated file is opened again', async () => {
  const file = join(folder, 'rotated');
  const log = startLog({ level: 'info', file });
  log.warn({ err: new Error('outer', { cause: new Error('inner') }) }, 'early');
  await sleep(1500);
  log.warn({ err: new Error('outer', { cause: new Error('inner') }) }, 'late');
  renameSync(file, `${file}.1`);
  log.reopen();
  log.info('new file');
  const first = readFileSync(`${file}.1`, 'utf8');
  assert.equal(
    first.match(/<WARNING>: (early|late)\nError: outer\n {4}at [\s\S]*?\ncaused by Error: inner\n {4}at /g)?.length,
    2,
  );
  assert.match(readFileSync(file, 'utf8'), /<INFO>: new file\n$/);
});

test('.stats and /metrics show the counted numbers', async () => {
  const metrics = new Metrics();
  let open: number | undefined = 2;
  metrics.gauge('fuse_open_handlers', 'Inodes with open handles', () => open);
  metrics.fuseOps.inc(2, 'read');
  metrics.readSize.observe(4096);
  metrics.readSize.observe(1e9);
  metrics.objectRequests.observe(0.5, 'GET');
  const stats = await statsText(metrics);
  for (const line of [
    'juicefs_fuse_ops_total_read 2',
    'juicefs_fuse_read_size_bytes_total 2',
    'juicefs_fuse_read_size_bytes_sum 1000004096',
    'juicefs_object_request_durations_histogram_seconds_GET_total 1',
    'juicefs_object_request_errors 0',
    'juicefs_fuse_open_handlers 2',
  ])
    assert.ok(stats.split('\n').includes(line), `${line} in\n${stats}`);

  open = undefined;
  metrics.fuseOps.inc(1, 'read');
  const { server, address } = await serveMetrics(metrics, { mp: '/a"b' }, '127.0.0.1:0', true);
  const ask = async (path: string): Promise<string> => {
    const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
    socket.end(`GET ${path} HTTP/1.1\r\n\r\n`);
    let text = '';
    for await (const part of socket) text += String(part);
    return text;
  };
  const text = await ask('/metrics');
  for (const part of [
    'HTTP/1.1 200 OK\r\n',
    '# TYPE juicefs_fuse_ops_total counter\njuicefs_fuse_ops_total{method="read",mp="/a\\"b"} 3\n',
    'juicefs_fuse_read_size_bytes_bucket{le="4096",mp="/a\\"b"} 1\n',
    'juicefs_fuse_read_size_bytes_bucket{le="+Inf",mp="/a\\"b"} 2\n',
    'juicefs_fuse_read_size_bytes_count{mp="/a\\"b"} 2\n',
  ])
    assert.ok(text.includes(part), `${part} in\n${text}`);
  assert.ok(!text.includes('fuse_open_handlers{'));
  assert.match(await ask('/'), /^HTTP\/1.1 404 /);
  server.close();
});
