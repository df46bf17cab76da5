/**
 * SQLite with several writers in every journal mode: transfers between accounts, so that the sum never changes; each writer's commits
 * are counted in the database and outside, and integrity_check has the last word. Called with arguments it is one writer.
 */
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type Context, execute, type Suite, tail, type Verdict } from './harness.ts';

const ACCOUNTS = 500;

function writer(file: string, id: number, milliseconds: number, mode: string): number {
  const db = new DatabaseSync(file);
  db.exec(`PRAGMA busy_timeout=60000; PRAGMA journal_mode=${mode}; PRAGMA synchronous=NORMAL`);
  const move = db.prepare('UPDATE account SET balance = balance + ? WHERE id = ?');
  const log = db.prepare('INSERT INTO log (writer, payload) VALUES (?, ?)');
  const sum = db.prepare('SELECT sum(balance) AS total FROM account');
  let random = id * 7919 + 1;
  const next = (n: number): number => {
    random = (Math.imul(random, 1103515245) + 12345) >>> 0;
    return (random >>> 8) % n;
  };
  const end = Date.now() + milliseconds;
  let commits = 0;
  while (Date.now() < end) {
    db.exec('BEGIN IMMEDIATE');
    const amount = next(100);
    move.run(-amount, next(ACCOUNTS));
    move.run(amount, next(ACCOUNTS));
    log.run(id, Buffer.alloc(next(3000), 120));
    // Without a journal there is no way back: only the other modes roll back.
    if (mode !== 'off' && next(10) === 0) {
      db.exec('ROLLBACK');
      continue;
    }
    db.exec('COMMIT');
    commits++;
    if (commits % 20 === 0 && sum.get()?.total !== ACCOUNTS * 1000) throw new Error(`the sum is ${sum.get()?.total}`);
  }
  db.close();
  return commits;
}

async function run(context: Context): Promise<Verdict[]> {
  const verdicts: Verdict[] = [];
  for (const mode of ['delete', 'truncate', 'persist', 'memory', 'off', 'wal']) {
    const file = join(context.dir, `${mode}.db`);
    const name = `sqlite ${mode}`;
    try {
      const db = new DatabaseSync(file);
      db.exec(`PRAGMA journal_mode=${mode}; CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER);
        CREATE TABLE log (id INTEGER PRIMARY KEY, writer INTEGER, payload BLOB); CREATE INDEX by_writer ON log (writer)`);
      db.exec('BEGIN');
      const add = db.prepare('INSERT INTO account VALUES (?, 1000)');
      for (let i = 0; i < ACCOUNTS; i++) add.run(i);
      db.exec('COMMIT');
      db.close();
    } catch (error) {
      verdicts.push({ name, failure: String(error) });
      continue;
    }
    const milliseconds = context.full ? 8000 : 1500;
    const outcomes = await Promise.all(
      [1, 2, 3, 4].map(id =>
        execute(
          process.execPath,
          ['--disable-warning=ExperimentalWarning', import.meta.filename, file, String(id), String(milliseconds), mode],
          {
            timeout: milliseconds + 90_000,
          },
        ),
      ),
    );
    const bad = outcomes.find(o => o.code !== 0);
    if (bad) {
      verdicts.push({ name, failure: bad.timedOut ? 'a writer did not end' : tail(bad.output) });
      continue;
    }
    const counted = outcomes.map(o => Number(o.output.trim()));
    const db = new DatabaseSync(file);
    const integrity = db
      .prepare('PRAGMA integrity_check')
      .all()
      .map(row => Object.values(row)[0])
      .join('; ');
    const total = db.prepare('SELECT sum(balance) AS total FROM account').get()?.total;
    const rows = db.prepare('SELECT writer, count(*) AS n FROM log GROUP BY writer ORDER BY writer').all();
    db.close();
    const wrong = counted.find((n, i) => n !== Number(rows.find(row => row.writer === i + 1)?.n ?? 0)) !== undefined;
    if (integrity !== 'ok') verdicts.push({ name, failure: `integrity_check: ${integrity.slice(0, 500)}` });
    else if (total !== ACCOUNTS * 1000) verdicts.push({ name, failure: `the sum is ${total}` });
    else if (wrong) verdicts.push({ name, failure: `committed ${counted}, found ${JSON.stringify(rows)}` });
    else verdicts.push({ name, note: `${counted.reduce((a, b) => a + b, 0)} transactions of 4 writers` });
  }
  return verdicts;
}

export const suite: Suite = { summary: 'SQLite: four writers in each journal mode, integrity_check', run };

if (import.meta.main) {
  const [file, id, milliseconds, mode] = process.argv.slice(2);
  console.log(writer(file!, Number(id), Number(milliseconds), mode!));
}
