/** Values of flags and the shape of command lines, without a volume. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normalize, run } from '../../src/cli.ts';
import { type Flag, Flags } from '../../src/commands/command.ts';
import { maskUrl } from '../../src/commands/mask.ts';
import { parseBandwidth, parseDuration, parseSize, showSize } from '../../src/commands/units.ts';

test('sizes take one-letter binary suffixes and the unit of their flag', () => {
  assert.equal(parseSize('4M', 'K', 'x'), 4 << 20);
  assert.equal(parseSize('4', 'K', 'x'), 4096);
  assert.equal(parseSize('1.5g', 'M', 'x'), 1.5 * 2 ** 30);
  assert.equal(parseSize('100B', 'M', 'x'), 100);
  for (const bad of ['4MiB', '4MB', '', 'M', '-1', '1e3', ' 4'])
    assert.throws(() => parseSize(bad, 'M', 'x'), /--x: .* is not a size/, bad);
});

test('durations are seconds or Go durations, with days in front', () => {
  assert.equal(parseDuration('12', 'x'), 12);
  assert.equal(parseDuration('0.5', 'x'), 0.5);
  assert.equal(parseDuration('1h30m', 'x'), 5400);
  assert.equal(parseDuration('300ms', 'x'), 0.3);
  assert.equal(parseDuration('2d12h', 'x'), 2.5 * 86400);
  assert.equal(parseDuration('1d', 'x'), 86400);
  assert.equal(parseDuration('-1s', 'x'), -1);
  for (const bad of ['', 'h', '1x', '1h 2m', 'd'])
    assert.throws(() => parseDuration(bad, 'x'), /is not a duration/, bad);
});

test('bandwidths are Mbps', () => {
  assert.equal(parseBandwidth('100', 'x'), 100);
  assert.equal(parseBandwidth('2G', 'x'), 2000);
  assert.throws(() => parseBandwidth('1K', 'x'));
});

test('sizes are shown as the Go client shows them', () => {
  assert.equal(showSize(1572864), '1.50 MiB (1572864 Bytes)');
  assert.equal(showSize(0), '0 Bytes');
});

const FLAGS: Flag[] = [
  { name: 'bucket', type: 'string', help: '' },
  { name: 'background', aliases: ['d'], type: 'bool', help: '' },
  { name: 'buffer-size', type: 'size', unit: 'M', default: '300M', help: '' },
  { name: 'no-bgjob', type: 'bool', help: '' },
];

test('flags may stand anywhere, with one dash or two, with = or without', () => {
  assert.deepEqual(normalize(['URL', '-bucket', 'b', 'MP', '-d', '--buffer-size=1G'], FLAGS).args, [
    '--bucket=b',
    '--background',
    '--buffer-size=1G',
    '--',
    'URL',
    'MP',
  ]);
  assert.deepEqual(normalize(['--d=true', '--', '-x'], FLAGS).args, ['--background', '--', '-x']);
  const line = normalize(['-d=false', 'a'], FLAGS);
  assert.deepEqual([line.args, [...line.denied]], [['--', 'a'], ['background']]);
  assert.throws(() => normalize(['--bucket'], FLAGS), /--bucket needs a value/);
  assert.throws(() => normalize(['-d=maybe'], FLAGS), /neither true nor false/);
});

test('Flags gives defaults, and refuses a bad value at once', () => {
  const flags = new Flags(FLAGS, new Map([['bucket', 'b']]));
  assert.equal(flags.number('buffer-size'), 300 * 2 ** 20);
  assert.equal(flags.string('bucket'), 'b');
  assert.equal(flags.given('background'), false);
  assert.throws(() => new Flags(FLAGS, new Map([['buffer-size', 'lots']])), /--buffer-size/);
});

test('passwords in URLs are masked', () => {
  assert.equal(maskUrl('redis://:secret@host/1'), 'redis://:****@host/1');
  assert.equal(maskUrl('mysql://user:p@ss:w0rd@(host:1)/db'), 'mysql://user:****@(host:1)/db');
  assert.equal(maskUrl('sqlite3:///a/b.db'), 'sqlite3:///a/b.db');
  assert.equal(maskUrl('postgres://u@h/db?password=x&sslmode=off'), 'postgres://u@h/db?password=****&sslmode=off');
});

test('an unknown command is a failure with a hint', async () => {
  await assert.rejects(run(['frobnicate']), /there is no command "frobnicate"; try steadfs --help/);
  await assert.rejects(run(['toString']), /there is no command/);
});
