import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { openEngine } from '../../src/meta/registry.ts';
import { contractSuite, defaultOptions } from './contract.ts';

contractSuite('sqlite3', async () => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'steadfs-meta-'));
  return {
    open: options => openEngine(`sqlite3://${dir}/meta.db`, { ...defaultOptions, ...options }),
    destroy: async () => fs.rmSync(dir, { recursive: true }),
  };
});
