import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseMysqlUrl, parsePostgresUrl } from '../../src/meta/sql/url.ts';

test('postgres URLs', () => {
  const a = parsePostgresUrl(
    'postgres://u:p%40ss@db.example:5433/vol?sslmode=disable&search_path=x&table_prefix=t',
    {},
  );
  assert.deepEqual(
    [a.user, a.password, a.host, a.port, a.database, a.sslMode, a.schema, a.tablePrefix],
    ['u', 'p@ss', 'db.example', 5433, 'vol', 'disable', 'x', 'jfs_t_'],
  );
  const socket = parsePostgresUrl('postgres://u:p@/vol?host=/run/pg', {});
  assert.deepEqual([socket.host, socket.database], ['/run/pg', 'vol']);
  assert.equal(parsePostgresUrl('postgres://u@h/d', { META_PASSWORD: 'secret' }).password, 'secret');
  for (const bad of [
    'postgres://h',
    'postgres://h/d?search_path=a,b',
    'postgres://h/d?sslmode=maybe',
    'postgres://u:hidden@h/d?nonsense=1',
  ]) {
    assert.throws(
      () => parsePostgresUrl(bad, {}),
      (e: Error) => !e.message.includes('hidden'),
      bad,
    );
  }
});

test('mysql URLs', () => {
  const a = parseMysqlUrl('mysql://u:p@x@(db:3307)/vol?max_open_conns=5', {});
  assert.deepEqual(
    [a.user, a.password, a.host, a.port, a.database, a.maxConnections],
    ['u', 'p@x', 'db', 3307, 'vol', 5],
  );
  assert.equal(parseMysqlUrl('mysql://u:p@unix(/run/my.sock)/vol', {}).socketPath, '/run/my.sock');
  assert.equal(parseMysqlUrl('mysql://u@tcp(h)/vol', { META_PASSWORD: 's' }).password, 's');
  assert.equal(parseMysqlUrl('mysql://u:100%@(h)/vol', {}).password, '100%');
  for (const bad of ['mysql://u:hidden@h', 'mysql://u:hidden@(h', 'mysql://u:hidden@(h)/a/b)']) {
    assert.throws(
      () => parseMysqlUrl(bad, {}),
      (e: Error) => !e.message.includes('hidden'),
      bad,
    );
  }
});
