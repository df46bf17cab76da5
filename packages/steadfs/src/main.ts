/** Entry: uses the compile cache beside the bundle, then runs a command, or the service of a mount. */
import module from 'node:module';
import { phase } from '@steadfs/fuse/phases';

// A folder of our own: the default below /tmp could be filled by another user.
module.enableCompileCache?.(
  (process.env.STEADFS_COMPILE_CACHE ?? import.meta.dirname.endsWith('/src'))
    ? `${import.meta.dirname}/../dist/.cache`
    : `${import.meta.dirname}/.cache`,
);
if (process.argv[2] === 'service') {
  phase('node');
  // Not by way of the command line's parser: after a crash every millisecond counts.
  const { serveMount } = await import('./commands/service.ts');
  await serveMount(process.argv.slice(3));
} else {
  const { main } = await import('./cli.ts');
  await main(process.argv.slice(2));
}
