/**
 * Notifications are written by a process of their own, a shell that is started with the first one.
 *
 * The kernel may make the writer of a notification wait, where no signal reaches it, for what somebody else holds until a request is answered: INVAL_INODE for
 * a page that a READ is to fill, INVAL_ENTRY for the directory in which a MKDIR is under way. A thread of the service that waits so keeps a service that was
 * killed from ending, its descriptors and locks from being freed and its keeper from noticing, while the answer could only come from the next service. Nobody
 * waits for the shell: it ends when its standard input does, or when the next service has answered.
 */
import { spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { allocate, unmap, writeAsync } from './sys.ts';

/** The message comes as a format of octal escapes, goes out in one write(2), and the answer says whether that worked. */
const SCRIPT = 'while read -r message; do printf "$message" >&3 && echo 1 || echo 0; done';
/** A shell's buffer is larger; what is longer (FUSE_NOTIFY_STORE) is written by a thread. */
const LONGEST = 2048;
const ENOENT = -2;

export interface NotificationWriter {
  /** One at a time. Answers the length, or -errno; -ENOENT stands for all errors that the shell meets. */
  write(message: Uint8Array): Promise<number>;
  /** Lets the shell end; the next message starts another. */
  end(): void;
}

export function notificationWriter(fd: number): NotificationWriter {
  interface Shell {
    stdin: Socket;
    answer: (text: string | undefined) => void;
  }
  let shell: Shell | undefined;

  function start(): Shell {
    const child = spawn('/bin/sh', ['-c', SCRIPT], {
      argv0: 'steadfs-notify',
      cwd: '/',
      detached: true,
      env: {},
      stdio: ['pipe', 'pipe', 'ignore', fd],
    });
    const [stdin, stdout] = [child.stdin as Socket, child.stdout as Socket];
    const started: Shell = { stdin, answer: () => {} };
    const gone = (): void => {
      if (shell === started) shell = undefined;
      started.answer(undefined);
    };
    child.on('error', gone).on('exit', gone);
    stdin.on('error', gone);
    stdout.on('error', gone).on('data', (text: Buffer) => started.answer(text.toString('latin1')));
    // It keeps nobody alive.
    for (const handle of [child, stdin, stdout]) handle.unref();
    shell = started;
    return started;
  }

  async function byThread(message: Uint8Array): Promise<number> {
    const memory = allocate(message.length);
    memory.bytes.set(message);
    try {
      return await writeAsync(fd, memory.address, message.length);
    } finally {
      unmap(memory);
    }
  }

  return {
    async write(message) {
      if (message.length > LONGEST) return byThread(message);
      let format = '';
      for (const byte of message) format += `\\${byte.toString(8).padStart(3, '0')}`;
      const to = shell ?? start();
      const text = await new Promise<string | undefined>(resolve => {
        to.answer = resolve;
        to.stdin.write(`${format}\n`);
      });
      // Without a shell (none there, killed) the thread is better than nothing.
      if (text === undefined) return byThread(message);
      return text.startsWith('1') ? message.length : ENOENT;
    },
    end() {
      shell?.stdin.end();
      shell = undefined;
    },
  };
}
