/** Entry of the command line: fills Node's compile cache beside the bundle, then runs the command. */
import module from 'node:module';

// A folder of our own: the default below /tmp could be filled by another user.
module.enableCompileCache?.(
  (process.env.STEADFS_COMPILE_CACHE ?? import.meta.dirname.endsWith('/src'))
    ? `${import.meta.dirname}/../dist/.cache`
    : `${import.meta.dirname}/.cache`,
);
const { main } = await import('./cli.ts');
await main(process.argv.slice(2));
