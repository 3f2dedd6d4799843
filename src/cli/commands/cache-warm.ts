import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { guestName } from '../options.ts';

interface Options {
  from: string;
  domain: string;
}

/** `pagetide cache warm --from GUEST|FILE --domain NAME` */
export function addCacheWarm(cache: Command, context: () => Context): void {
  cache
    .command('warm')
    .description('put the pages of a guest, or of a memory file, into the cache, before anything asks for them')
    .requiredOption('--from <guest|file>', "a guest of the agent; or a file of its host: what holds a '/' is one")
    .requiredOption('--domain <name>', 'for guests of which domain', guestName)
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide cache warm --from web1 --domain shop' +
        '\n  pagetide cache warm --from ./template/memory.bin --domain shop',
    )
    .action(async ({ from, domain }: Options) => {
      const cli = context();
      refuseRest(cli);
      const source = from.includes('/') ? { file: resolve(from) } : { guest: guestName(from) };
      const client = await cli.client();
      const kept = await client.warmCache({ domain, ...source });
      cli.result(kept, () => {
        const refused = kept.refused === 0 ? '' : `, ${kept.refused} changed meanwhile or found no room`;
        return `${kept.pages} pages: ${kept.inserted} inserted, ${kept.present} were there${refused}`;
      });
    });
}
