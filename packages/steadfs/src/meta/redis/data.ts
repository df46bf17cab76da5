/** Chunks and slices: written, listed, covered with holes, compacted, deleted. */
import { EFBIG, EINVAL, EIO } from '@steadfs/fuse/errno';
import { type Ino, inoFromBigint, inoToString } from '../../format/ino.ts';
import { CHUNK_SIZE, decodeSlices, encodeSlices, type Slice } from '../../format/slice.ts';
import type { DeadSlice, MetaEngine, Op, TimeSet, WriteResult } from '../engine.ts';
import { checkFallocate, MAX_LENGTH } from '../ops/attrs.ts';
import { decodeDead } from '../ops/record.ts';
import { type Core, EMPTY, Question } from './core.ts';
import { asBuffer, asList, asNumber, ino8, readEntry, u32, u64 } from './forms.ts';
import type { Reading } from './reading.ts';
import { packTime } from './script.ts';

/** Whole chunks that one script covers with holes, or looks for. */
const CHUNKS_PER_STEP = 1000;
const LOOKS_PER_SCRIPT = 5000;
/** Entries of the delayed list, each of up to 1000 slices, that one call takes. */
const DELAYED_PER_CALL = 50;
/** Beyond this range existing chunks are found by a scan of the key space. */
const SCAN_FROM = 200_000;

export type Data = ReturnType<typeof data>;

export function data(core: Core, reading: Reading) {
  const { S, ask, hashFields, iKey, keepAttr, key, mutate, prefix, readTake, run, takeAttr } = core;
  const { getattr } = reading;

  /** Where deletion of a file's chunks goes on. */
  const deleting = new Map<string, number>();

  /** Indexes of existing chunks, ascending. */
  async function existing(ino: Ino, from: number, to: number, limit: number): Promise<number[]> {
    const out: number[] = [];
    if (to - from >= SCAN_FROM) {
      const head = `${prefix}c${inoToString(ino)}_`;
      for (let cursor = '0'; ; ) {
        const [next, keys] = asList(
          await ask('SCAN', cursor, 'MATCH', `${head.replaceAll(/[[\]*?\\]/g, '\\$&')}*`, 'COUNT', '10000'),
        );
        for (const k of asList(keys)) {
          const index = Number(asBuffer(k).toString('latin1', head.length));
          if (index >= from && index <= to) out.push(index);
        }
        cursor = String(next);
        if (cursor === '0') break;
      }
      return [...new Set(out)].sort((a, b) => a - b).slice(0, limit);
    }
    for (let at = from; at <= to && out.length < limit; at += LOOKS_PER_SCRIPT) {
      const r = asBuffer(
        await run(S.existingChunks, [iKey(ino)], [inoToString(ino), u32(at, Math.min(to, at + LOOKS_PER_SCRIPT - 1))]),
      );
      for (let i = 0; i < r.length; i += 4) out.push(r.readUInt32BE(i));
    }
    return out.slice(0, limit);
  }

  /** The highest chunk index that a file of this length can have, cut ends included. */
  async function lastChunk(ino: Ino, length: number): Promise<number> {
    const high = await ask('HGET', key('STEADFS.chunks'), inoToString(ino));
    return Math.max(0, Math.ceil(length / CHUNK_SIZE) - 1, high === null ? 0 : asNumber(high));
  }

  /** Whole-chunk holes between two offsets, in repeatable steps; the chunks at the ends are the last script's. */
  async function coverSteps(op: Op | undefined, ino: Ino, from: number, to: number): Promise<void> {
    const first = Math.floor(from / CHUNK_SIZE) + 1;
    const last = Math.floor((to - 1) / CHUNK_SIZE) - 1;
    const indexes = await existing(ino, first, last, Number.MAX_SAFE_INTEGER);
    for (let i = 0; i < indexes.length; i += CHUNKS_PER_STEP) {
      const part = indexes.slice(i, i + CHUNKS_PER_STEP);
      await mutate(
        S.coverStep,
        op,
        { keys: [iKey(ino)], args: [ino8(ino), u32(...part)], unrecorded: true },
        () => undefined,
      );
    }
  }

  /** Runs a script that may first want chunks to be covered down to `size` (a truncation). `done` is handed to it then. */
  async function covering<T>(
    op: Op,
    ino: Ino | undefined,
    size: number,
    go: (done: Uint8Array) => Promise<T>,
  ): Promise<T> {
    let done: Uint8Array = EMPTY;
    for (;;) {
      try {
        return await go(done);
      } catch (e) {
        if (!(e instanceof Question) || e.kind !== 'S' || ino === undefined) throw e;
        const old = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
        await coverSteps(op, ino, size, old);
        done = e.value;
      }
    }
  }

  const methods: Pick<
    MetaEngine,
    | 'readChunk'
    | 'listChunks'
    | 'write'
    | 'fallocate'
    | 'copyFileRange'
    | 'compact'
    | 'deletedFiles'
    | 'deleteFileData'
    | 'deadSlices'
    | 'delayedSlices'
    | 'expireDelayedSlices'
    | 'slicesDeleted'
  > = {
    readChunk(ino, index) {
      return readTake(['LRANGE', key(`c${inoToString(ino)}_${index}`), '0', '-1'], r => {
        const list = asList(r);
        const records: Slice[] = [];
        for (const item of list) {
          const b = asBuffer(item);
          if (b.length !== 24) throw EIO.because(`chunk ${index} of inode ${ino}: a record of ${b.length} bytes`);
          records.push(decodeSlices(b)[0]!);
        }
        return records;
      }).then(async records => {
        if (records.length === 0) await getattr(ino);
        return records;
      });
    },
    async listChunks(ino, from, to, limit) {
      const attr = await getattr(ino);
      const last = Math.min(to, await lastChunk(ino, attr.length));
      return last < from ? [] : await existing(ino, from, last, limit);
    },
    async write(op, ino, index, records, end, mtime: TimeSet, ctime: TimeSet, killSuidgid): Promise<WriteResult> {
      if (end > MAX_LENGTH) throw EFBIG;
      if (records.length === 0 || records.some(r => r.pos + r.len > CHUNK_SIZE || r.len <= 0)) throw EINVAL;
      const keys = [iKey(ino), key(`c${inoToString(ino)}_${index}`)];
      const times = [packTime(mtime), killSuidgid ? '1' : '', packTime(ctime)];
      const args = [ino8(ino), index, encodeSlices(records), u64(end), ...times];
      return await mutate(S.write, op, { keys, args }, (main, isFresh) => {
        const { entry } = readEntry(main, 8);
        keepAttr(entry, isFresh, true);
        return { attr: entry.attr, records: main.readDoubleBE(0) };
      });
    },
    async fallocate(op, cred, ino, offset, length, mode) {
      checkFallocate(offset, length, mode);
      let done = '';
      for (;;) {
        try {
          const args = [ino8(ino), Buffer.concat([u64(offset), u64(offset + length), u32(mode)]), done];
          return await mutate(S.fallocate, op, { keys: [iKey(ino)], args, cred }, takeAttr);
        } catch (e) {
          if (!(e instanceof Question) || e.kind !== 'S') throw e;
          const size = e.value.readUInt32BE(0) * 0x100000000 + e.value.readUInt32BE(4);
          await coverSteps(op, ino, offset, Math.min(size, offset + length));
          done = 'done';
        }
      }
    },
    copyFileRange(op, cred, ino, offset, out, outOffset, length) {
      const want = Buffer.alloc(8);
      want.writeDoubleBE(Math.min(length, Number.MAX_SAFE_INTEGER));
      const args = [ino8(ino), u64(offset), ino8(out), u64(outOffset), want];
      return mutate(S.copyRange, op, { keys: [iKey(ino), iKey(out)], args, cred }, (main, isFresh) => {
        const { entry } = readEntry(main, 8);
        keepAttr(entry, isFresh, true);
        return { copied: main.readDoubleBE(0), attr: entry.attr };
      });
    },
    compact(op, ino, index, original, skipped, replacement) {
      const keys = [iKey(ino), key(`c${inoToString(ino)}_${index}`)];
      const args = [ino8(ino), index, encodeSlices(original), skipped, encodeSlices([replacement])];
      return mutate(S.compact, op, { keys, args }, main => main[0] === 0x31);
    },
    async deletedFiles(before, limit) {
      const r = asList(await ask('ZRANGEBYSCORE', key('delfiles'), '-inf', `(${before}`, 'LIMIT', '0', String(limit)));
      return r.flatMap(item => {
        const [ino, length] = asBuffer(item).toString().split(':');
        if (ino === undefined || !/^\d+$/.test(ino)) return [];
        return [{ ino: inoFromBigint(BigInt(ino)), length: length === undefined ? 2 ** 30 : Number(length) }];
      });
    },
    async deleteFileData(op, ino, length) {
      const d = inoToString(ino);
      const id = `${d}:${length}`;
      const last = await lastChunk(ino, length);
      const dead: DeadSlice[] = [];
      let indexes: number[] | undefined;
      if (last >= SCAN_FROM) indexes = await existing(ino, 0, last, Number.MAX_SAFE_INTEGER);
      let at = deleting.get(id) ?? 0;
      // Chunks are deleted in steps of their own: a step that is repeated finds less. The record comes with the last one.
      for (let steps = 0; steps < 20; steps++) {
        if (indexes !== undefined) {
          const next = indexes.find(i => i >= at);
          if (next === undefined) at = last;
          else at = next;
        }
        const to = indexes === undefined ? Math.min(last, at + CHUNKS_PER_STEP - 1) : at;
        const final = to >= last;
        const r = await mutate(
          S.deleteChunks,
          op,
          { keys: [], args: [d, u32(at, to), final ? '1' : '', length], unrecorded: true },
          main => ({ next: main.readUInt32BE(0), dead: decodeDead(main.subarray(4)) }),
        );
        dead.push(...r.dead);
        at = r.next;
        if (final && at > to) {
          deleting.delete(id);
          return { dead, done: true };
        }
        if (dead.length > 2000) break;
      }
      deleting.set(id, at);
      return { dead, done: false };
    },
    async deadSlices(limit) {
      const out: DeadSlice[] = [];
      for await (const [field, value] of hashFields('sliceRef')) {
        if (value[0] !== 0x2d) continue;
        const m = /^k(\d+)_(\d+)$/.exec(field.toString());
        if (m !== null) out.push({ id: Number(m[1]), size: Number(m[2]) });
        if (out.length >= limit) break;
      }
      return out;
    },
    async delayedSlices() {
      const out: DeadSlice[] = [];
      for await (const [, value] of hashFields('delSlices')) out.push(...decodeDead(value));
      return out;
    },
    async expireDelayedSlices(op, before, most) {
      const limit = Math.min(most, DELAYED_PER_CALL);
      const fields: Buffer[] = [];
      let more = false;
      for await (const [field] of hashFields('delSlices')) {
        const m = /^\d+_(\d+)$/.exec(field.toString());
        if (m === null || Number(m[1]) >= before) continue;
        if (fields.length === limit) {
          more = true;
          break;
        }
        fields.push(field);
      }
      const dead: DeadSlice[] = [];
      for (let i = 0; i < fields.length; i += 5) {
        const part = fields.slice(i, i + 5);
        dead.push(
          ...(await mutate(S.expireDelayed, op, { keys: [], args: [before, ...part], unrecorded: true }, main =>
            decodeDead(Buffer.from(main)),
          )),
        );
      }
      return { dead, more };
    },
    async slicesDeleted(slices) {
      for (let i = 0; i < slices.length; i += 500) {
        const fields = slices.slice(i, i + 500).map(s => `k${s.id}_${s.size}`);
        await mutate(S.forgetSlices, undefined, { keys: [], args: fields, unrecorded: true }, () => undefined);
      }
    },
  };
  return { methods, covering, existing };
}
