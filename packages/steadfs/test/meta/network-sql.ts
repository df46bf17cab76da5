/** The contract on real PostgreSQL and MariaDB servers; its test files run side by side. */
import { after, it } from 'node:test';
import type { EngineOptions, MetaEngine } from '../../src/meta/engine.ts';
import type { SqlPool } from '../../src/meta/sql/connection.ts';
import { openMysql } from '../../src/meta/sql/mysql-pool.ts';
import { openPostgres } from '../../src/meta/sql/postgres-pool.ts';
import { parseMysqlUrl, parsePostgresUrl } from '../../src/meta/sql/url.ts';
import { startMariadb } from '../servers/mariadb.ts';
import { startPostgres } from '../servers/postgres.ts';
import { contractSuite, defaultOptions } from './contract.ts';

type Opener = (server: string, url: string, options: EngineOptions) => Promise<MetaEngine>;

/** `restricted`: for a user who may not create routines. */
export async function networkContract(label: string, restricted: boolean, open: Opener): Promise<void> {
  // Both are up before the first test begins: the runner does not wait for a file that goes on after its tests.
  for (const [name, server] of [
    ['postgres', await startPostgres(['fsync=off'])],
    ['mariadb', await startMariadb(['innodb-flush-log-at-trx-commit=0'])],
  ] as const) {
    if ('missing' in server) {
      it(name, { skip: server.missing }, () => {});
      continue;
    }
    after(() => server.stop());
    let count = 0;
    contractSuite(name + label, async () => {
      const database = `contract${count++}`;
      const url = await (restricted ? server.restricted(database) : server.database(database));
      return { open: options => open(name, url, { ...defaultOptions, ...options }), destroy: async () => {} };
    });
  }
}

export function poolOf(name: string, url: string): SqlPool {
  return name === 'postgres' ? openPostgres(parsePostgresUrl(url, {})) : openMysql(parseMysqlUrl(url, {}));
}

/** Without plans, as on MySQL where the user may not create routines. */
export function interactive(pool: SqlPool): SqlPool {
  const refuse = (sql: string): void => {
    if (/^(CALL|BEGIN NOT ATOMIC|CREATE PROCEDURE|WITH) /.test(sql))
      throw Object.assign(new Error('refused by the test'), {
        code: '42501',
        errno: sql.startsWith('BEGIN') ? 1064 : 1370,
      });
  };
  return {
    ...pool,
    use: work =>
      pool.use(c =>
        work({
          ...c,
          async all(sql, params) {
            refuse(sql);
            return await c.all(sql, params);
          },
          async run(sql, params) {
            refuse(sql);
            return await c.run(sql, params);
          },
          async script() {
            throw Object.assign(new Error('refused by the test'), { code: '42501' });
          },
        }),
      ),
  };
}
