/** Open, read and write of `.accesslog`, `.control`, `.stats` and `.config`. */
import type { Context, OpenOut, WriteIn } from '@steadfs/fuse';
import { EACCES, EBADF, ENOENT, EPERM } from '@steadfs/fuse/errno';
import { ACCESSLOG_INO, CONFIG_INO, CONTROL_INO, type Ino, STATS_INO } from '../format/ino.ts';
import { FOPEN_DIRECT_IO, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM } from './abi.ts';
import { type Core, writes } from './core.ts';
import { type Handle, HandleKind } from './handles.ts';
import { type MaybePromise, then } from './maybe.ts';

/** Text of `.stats` and `.config` as it was when the handle was opened; after a restart that of now. */
const texts = new WeakMap<Handle, Buffer>();

export function openInternal(core: Core, ctx: Context, ino: Ino, flags: number): MaybePromise<OpenOut> {
  const attr = core.internals.attr(ino);
  if (attr === undefined) throw ENOENT;
  if (writes(flags) && ino !== CONTROL_INO) throw EACCES;
  const bits = ctx.uid === attr.uid ? attr.mode >> 6 : ctx.gid === attr.gid ? attr.mode >> 3 : attr.mode;
  if (ctx.uid !== 0 && (bits & 4) === 0) throw EACCES;
  const handle =
    core.handles.madeBy(ctx.op, ctx.replay) ??
    core.handles.open(HandleKind.internal, ino, flags, ctx.op, ctx.uid, ctx.gid);
  if (ino === ACCESSLOG_INO) core.accessLog.open(handle.fh);
  const out = { fh: handle.fh, flags: FOPEN_DIRECT_IO };
  if (ino === ACCESSLOG_INO || ino === CONTROL_INO) return out;
  return then(text(core, handle), () => out);
}

function text(core: Core, handle: Handle): MaybePromise<Buffer> {
  const known = texts.get(handle);
  if (known !== undefined) return known;
  const { statsText, configText } = core.texts;
  return then(handle.ino === STATS_INO ? statsText() : configText(), made => {
    const bytes = texts.get(handle) ?? Buffer.from(made);
    texts.set(handle, bytes);
    return bytes;
  });
}

export function readInternal(
  core: Core,
  ctx: Context,
  handle: Handle,
  offset: number,
  size: number,
): MaybePromise<Uint8Array> {
  switch (handle.ino) {
    case STATS_INO:
    case CONFIG_INO:
      return then(text(core, handle), bytes => bytes.subarray(offset, offset + size));
    case ACCESSLOG_INO:
      return core.accessLog.read(handle.fh, size, ctx);
    case CONTROL_INO:
      return core.control.read(handle.fh, offset, size);
    default:
      throw EBADF;
  }
}

export function writeInternal(core: Core, ctx: Context, handle: Handle, w: WriteIn): number {
  if (handle.ino !== CONTROL_INO) throw EPERM;
  return core.control.write(ctx, handle.fh, w.offset, w.data.bytes);
}

export function closeInternal(core: Core, handle: Handle): void {
  if (handle.ino === ACCESSLOG_INO) core.accessLog.close(handle.fh);
  else if (handle.ino === CONTROL_INO) core.control.close(handle.fh);
  core.handles.close(handle);
}

/** Everything is always ready, as for a regular file. */
export function pollInternal(_core: Core, _handle: Handle, events: number): number {
  return events & (POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM);
}
