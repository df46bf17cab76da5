import { VERSION } from '../version.ts';
import type { Command } from './command.ts';

export const command: Command = {
  name: 'service',
  args: '',
  summary: 'print the version',
  flags: [],
  async run() {
    console.log(`steadfs version ${VERSION}`);
    return undefined;
  },
};
