import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide domain list` */
export function addDomainList(domain: Command, context: () => Context): void {
  domain
    .command('list')
    .description('list the domains of an agent')
    .addHelpText('after', '\nExample:\n  pagetide domain list')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [domains, { showDomains }] = await Promise.all([client.listDomains(), import('../show-domain.ts')]);
      cli.result(domains, () => showDomains(domains));
    });
}
