import type { Command } from 'commander';
import type { Context } from '../context.ts';
import { addCacheClear } from './cache-clear.ts';
import { addCacheStats } from './cache-stats.ts';
import { addCacheWarm } from './cache-warm.ts';

/** `pagetide cache …` */
export function addCache(program: Command, context: () => Context): void {
  const cache = program
    .command('cache')
    .description("an agent's shared-page cache")
    .addHelpText('after', '\nExample:\n  pagetide cache stats');
  addCacheStats(cache, context);
  addCacheWarm(cache, context);
  addCacheClear(cache, context);
}
