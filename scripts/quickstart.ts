/** `npm start`: a volume in the user's own folder (SQLite and a local directory), mounted and ready to use. Can be repeated. */
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { makeBundle } from './build.ts';

const launcher = resolve(import.meta.dirname, '../packages/steadfs/bin/steadfs');
const folder = process.env.STEADFS_QUICKSTART ?? join(homedir(), '.steadfs', 'quickstart');
const mountPoint = process.env.STEADFS_QUICKSTART_MOUNT ?? join(homedir(), 'steadfs');
const url = `sqlite3://${folder}/quickstart.db`;

function steadfs(...args: string[]): void {
  const { status, error } = spawnSync(launcher, args, { stdio: 'inherit' });
  if (status === 0) return;
  if (error) console.error(`ERROR: cannot start ${launcher}: ${error.message}`);
  process.exit(status ?? 1);
}

await makeBundle();
mkdirSync(folder, { recursive: true });
mkdirSync(mountPoint, { recursive: true });
steadfs('--quiet', 'format', url, 'quickstart', '--bucket', join(folder, 'objects'), '--no-update');
steadfs('mount', '-d', url, mountPoint);
console.log(`
Steadfs is mounted at ${mountPoint}: use it like any folder.
  status   npx steadfs status ${url}
  unmount  npx steadfs umount ${mountPoint}
The volume is in ${folder}; mount it again with npm start.`);
