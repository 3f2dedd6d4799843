import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide cache stats` */
export function addCacheStats(cache: Command, context: () => Context): void {
  cache
    .command('stats')
    .description('what the cache and the guests here hold, and how often they had what was asked for')
    .addHelpText('after', '\nExample:\n  pagetide cache stats --json')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [info, { showCache }] = await Promise.all([client.cacheInfo(), import('../show-cache.ts')]);
      cli.result(info, () => showCache(info));
    });
}
