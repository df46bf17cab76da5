/** The kernel's end of a connection, played over a SOCK_SEQPACKET pair: message boundaries, readv and -EAGAIN are those of /dev/fuse. */
import assert from 'node:assert/strict';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import koffi from 'koffi';
import { IN_HEADER, INIT, OP, put64, u64 } from '../src/abi.ts';
import { type CapsuleFds, createCapsule, openCapsule } from '../src/capsule.ts';
import { DEFAULT_FLAGS, DUTY_FLAGS } from '../src/init.ts';
import { type ServeOptions, type Session, serve } from '../src/session.ts';
import { allocate, close, read, setNonblock, write } from '../src/sys.ts';
import type { FileSystem } from '../src/types.ts';

const socketpair = koffi.load('libc.so.6').func('int socketpair(int, int, int, uintptr_t)');
const SOCK_CLOEXEC = 0o2000000;
const memory = allocate(2 << 20);

function seqpacketPair(): [number, number] {
  if (socketpair(1, 5 | SOCK_CLOEXEC, 0, memory.address) !== 0) throw new Error('socketpair');
  const pair: [number, number] = [memory.view.getInt32(0, true), memory.view.getInt32(4, true)];
  for (const fd of pair) setNonblock(fd);
  return pair;
}

/** Fields of a request body: numbers are u32, bigints u64, strings end with NUL, bytes are taken as they are. */
export type Field = number | bigint | string | Uint8Array;

export function pack(...fields: Field[]): Uint8Array {
  const parts = fields.map(field => {
    if (typeof field === 'string') return Buffer.from(`${field}\0`);
    if (field instanceof Uint8Array) return field;
    const bytes = new Uint8Array(typeof field === 'bigint' ? 8 : 4);
    const view = new DataView(bytes.buffer);
    if (typeof field === 'bigint') view.setBigUint64(0, BigInt.asUintN(64, field), true);
    else view.setUint32(0, field, true);
    return bytes;
  });
  return Buffer.concat(parts);
}

interface Answer {
  error: number;
  unique: bigint;
  body: Uint8Array;
  view: DataView;
}

/** Everything that a kernel of 7.45 offers in INIT. */
const OFFERED = Object.values(INIT).reduce((a, b) => a | b, 0n);
export const RESEND_BIT = 1n << 63n;

export class Kernel {
  readonly fd: number;
  readonly server: number;
  #unique = 2n;
  readonly #answers = new Map<bigint, Answer>();
  readonly #notifications: Answer[] = [];

  constructor() {
    [this.fd, this.server] = seqpacketPair();
  }

  /** Sends a request and answers its id. */
  send(opcode: number, nodeid: number, body: Uint8Array = new Uint8Array(0), unique = this.next()): bigint {
    const { view, bytes, address } = memory;
    bytes.fill(0, 0, IN_HEADER);
    view.setUint32(0, IN_HEADER + body.length, true);
    view.setUint32(4, opcode, true);
    view.setBigUint64(8, unique, true);
    put64(view, 16, nodeid);
    view.setUint32(24, 1000, true);
    view.setUint32(28, 1001, true);
    view.setUint32(32, process.pid, true);
    bytes.set(body, IN_HEADER);
    const n = write(this.fd, address, IN_HEADER + body.length);
    assert.equal(n, IN_HEADER + body.length, 'request is sent');
    return unique;
  }
  next(): bigint {
    this.#unique += 2n;
    return this.#unique;
  }

  #receive(): void {
    for (;;) {
      const n = read(this.fd, memory.address, memory.length);
      if (n <= 0) return;
      assert.equal(memory.view.getUint32(0, true), n, 'length in the reply header');
      const unique = memory.view.getBigUint64(8, true);
      const body = memory.bytes.slice(16, n);
      if (unique === 0n) {
        this.#notifications.push({
          error: 0 - memory.view.getInt32(4, true),
          unique,
          body,
          view: new DataView(body.buffer),
        });
        continue;
      }
      assert.ok(!this.#answers.has(unique), `request ${unique} is answered once`);
      this.#answers.set(unique, {
        error: 0 - memory.view.getInt32(4, true),
        unique,
        body,
        view: new DataView(body.buffer),
      });
    }
  }

  async notification(): Promise<Answer> {
    for (let i = 0; i < 30_000; i++) {
      this.#receive();
      const first = this.#notifications.shift();
      if (first) return first;
      await sleep(1);
    }
    throw new Error('no notification');
  }

  /** The answer so far. */
  peek(unique: bigint): Answer | undefined {
    this.#receive();
    return this.#answers.get(unique);
  }
  async answer(unique: bigint, timeout = 60_000): Promise<Answer> {
    const end = performance.now() + timeout;
    for (;;) {
      const answer = this.peek(unique);
      if (answer) return answer;
      if (performance.now() > end) throw new Error(`request ${unique} is not answered`);
      await sleep(1);
    }
  }
  call(opcode: number, nodeid: number, ...fields: Field[]): Promise<Answer> {
    return this.answer(this.send(opcode, nodeid, pack(...fields)));
  }
  init(minor: number, flags = OFFERED): Promise<Answer> {
    const low = Number(flags & 0xffffffffn);
    return this.call(OP.INIT, 0, 7, minor, 131072, low, Number(flags >> 32n), new Uint8Array(44));
  }
  close(): void {
    close(this.fd);
  }
}

interface Connected {
  kernel: Kernel;
  session: Session;
  fds: CapsuleFds;
  /** Ends the connection and waits for the server's end. */
  end(): Promise<void>;
}

export const logged: string[] = [];

/** So that a failed test does not keep the process. */
const sessions = new Set<Session>();
after(() => {
  for (const session of sessions) session.stopReading();
});

export function start(
  fileSystem: FileSystem,
  kernel: Kernel,
  fds: CapsuleFds,
  options: Partial<ServeOptions> = {},
): Session {
  const session = serve({
    fd: kernel.server,
    capsule: openCapsule(fds),
    fileSystem,
    init: { maxWrite: 131072, flags: DEFAULT_FLAGS | DUTY_FLAGS },
    log: (level, message, cause) => logged.push(`${level}: ${message}${cause ? ` (${cause})` : ''}`),
    ...options,
  });
  sessions.add(session);
  return session;
}

/** A served connection after INIT. */
export async function connect(
  fileSystem: FileSystem,
  minor = 45,
  options: Partial<ServeOptions> = {},
): Promise<Connected> {
  const kernel = new Kernel();
  const fds = createCapsule({ arenaSize: 8 << 20 });
  const session = start(fileSystem, kernel, fds, options);
  await session.start();
  const init = await kernel.init(minor);
  assert.equal(init.error, 0);
  return {
    kernel,
    session,
    fds,
    async end() {
      kernel.close();
      await session.done;
      close(kernel.server);
    },
  };
}

export { u64 };
