import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide cache clear` */
export function addCacheClear(cache: Command, context: () => Context): void {
  cache
    .command('clear')
    .description('erase every page of the cache; migrations go on from the source')
    .addHelpText('after', '\nExample:\n  pagetide cache clear')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const result = await client.clearCache();
      cli.result(result, () => `${result.erased} pages erased`);
    });
}
