/** Metadata engines by URL scheme. One line per engine. */
import { EINVAL } from '@steadfs/fuse/errno';
import type { EngineDriver, EngineOptions, MetaEngine } from './engine.ts';
import { sqliteDriver } from './sql/sqlite.ts';

/** A driver whose code (and database client) is loaded when it is used first. */
function lazy(schemes: readonly string[], load: () => Promise<EngineDriver>): EngineDriver {
  return { schemes, open: async (url, options) => await (await load()).open(url, options) };
}

const DRIVERS: readonly EngineDriver[] = [
  sqliteDriver,
  lazy(['redis', 'rediss', 'unix'], async () => (await import('./redis/engine.ts')).redisDriver),
  lazy(['postgres', 'postgresql'], async () => (await import('./sql/network.ts')).postgresDriver),
  lazy(['mysql'], async () => (await import('./sql/network.ts')).mysqlDriver),
];

/** Schemes that an engine exists for. */
function engineSchemes(): string[] {
  return DRIVERS.flatMap(d => d.schemes);
}

/**
 * Opens the engine for a metadata URL (nothing is created). Rejects with EINVAL for an unknown scheme or a malformed URL; the message never
 * holds the URL, which may contain a password.
 */
export async function openEngine(url: string, options: EngineOptions): Promise<MetaEngine> {
  const m = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(url);
  if (m === null) {
    throw EINVAL.because(
      `the metadata address has no scheme; it looks like sqlite3:///path/to/file.db (known: ${engineSchemes().join(', ')})`,
    );
  }
  const scheme = m[1]!.toLowerCase();
  const driver = DRIVERS.find(d => d.schemes.includes(scheme));
  if (driver === undefined)
    throw EINVAL.because(`no metadata engine for ${scheme}:// (known: ${engineSchemes().join(', ')})`);
  return await driver.open(url, options);
}
