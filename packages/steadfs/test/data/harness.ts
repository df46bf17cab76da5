/** A volume on SQLite and a store, and data paths on one capsule, one after the other as processes would be. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Capsule, WriteData } from '@steadfs/fuse';
import { type CapsuleFds, createCapsule, openCapsule } from '@steadfs/fuse/capsule';
import { createFileData, type FileDataOptions } from '../../src/data/create.ts';
import type { FileData, Waiting } from '../../src/data/file-data.ts';
import type { Attr } from '../../src/format/attr.ts';
import { type Ino, ROOT } from '../../src/format/ino.ts';
import type { Format } from '../../src/format/volume.ts';
import type { MetaEngine } from '../../src/meta/engine.ts';
import { openEngine } from '../../src/meta/registry.ts';
import { createFileStore } from '../../src/object/file.ts';
import type { ObjectStore } from '../../src/object/store.ts';
import { Client, defaultOptions, type EngineUnderTest, session, testFormat } from '../meta/contract.ts';

export const MIB = 1024 * 1024;

export const patient: Waiting = {
  interrupt: { fired: false, promise: new Promise<void>(() => {}), callerIsDying: () => false },
  park: () => {},
};

/** Bytes of a WRITE request, in pages of the arena that may be taken. */
export function writeData(capsule: Capsule, bytes: Uint8Array): WriteData {
  return {
    bytes,
    take() {
      const at = capsule.arena.alloc(bytes.length);
      if (at !== undefined) capsule.arena.bytes.set(bytes, at);
      return at;
    },
  };
}

export interface Volume {
  dir: string;
  engine: MetaEngine;
  client: Client;
  store: ObjectStore;
  fds: CapsuleFds;
  format: Format;
  /** A data path as a new process would make it; call recover() of it. */
  start(options?: Partial<FileDataOptions>): { data: FileData; capsule: Capsule };
  newFile(name: string): Promise<Ino>;
  attr(ino: Ino): Promise<Attr>;
  dispose(): Promise<void>;
}

export interface VolumeOptions {
  /** KiB */
  blockSize?: number;
  arena?: number;
  wrap?(store: ObjectStore): ObjectStore;
  format?: Partial<Format>;
}

export async function makeVolume(options: VolumeOptions = {}): Promise<Volume> {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'steadfs-data-'));
  const db: EngineUnderTest = {
    open: changes => openEngine(`sqlite3://${dir}/meta.db`, { ...defaultOptions, ...changes }),
    destroy: async () => {},
  };
  const engine = await db.open();
  const format = testFormat({
    Name: 'vol',
    BlockSize: options.blockSize ?? 4096,
    Bucket: `${dir}/store/`,
    ...options.format,
  });
  await engine.init(format, false);
  await engine.load();
  await engine.newSession(session);
  const client = new Client(engine, db);
  const plain = createFileStore({ root: format.Bucket });
  await plain.create();
  const store = options.wrap?.(plain) ?? plain;
  const fds = createCapsule({ arenaSize: options.arena ?? 400 * MIB });
  return {
    dir,
    engine,
    client,
    store,
    fds,
    format,
    start(changes = {}) {
      const capsule = openCapsule(fds);
      return { capsule, data: createFileData({ meta: engine, store, capsule, format, ...changes }) };
    },
    newFile: async name => (await client.create(ROOT, name)).ino,
    attr: ino => client.getattr(ino),
    async dispose() {
      await engine.close();
      fs.closeSync(fds.capsule);
      fs.closeSync(fds.arena);
      fs.rmSync(dir, { recursive: true });
    },
  };
}

/** The pieces of an answer as one buffer; gives them back. */
export function take(data: FileData, out: Uint8Array | readonly Uint8Array[]): Buffer {
  const bytes = out instanceof Uint8Array ? Buffer.from(out) : Buffer.concat(out);
  data.releaseRead(out);
  return bytes;
}
