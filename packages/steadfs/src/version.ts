/** Our version, and the one that counts as a client of the volume format. */
import { readFileSync } from 'node:fs';
import { clientVersion } from './format/volume.ts';

/** Put in by scripts/build.ts; not there when the sources run. */
declare const STEADFS_BUILD_VERSION: string | undefined;

function fromPackage(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return (manifest as { version: string }).version;
}

/** X.Y.Z of package.json. */
export const VERSION: string = typeof STEADFS_BUILD_VERSION === 'string' ? STEADFS_BUILD_VERSION : fromPackage();

/** What a session publishes and what version gates see: build metadata after `+` is ignored in comparisons. */
export const CLIENT_VERSION = clientVersion(VERSION);
