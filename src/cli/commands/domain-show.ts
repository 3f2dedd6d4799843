import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide domain show NAME` */
export function addDomainShow(domain: Command, context: () => Context): void {
  domain
    .command('show')
    .description('which hosts have a domain, and which guests here are of it')
    .argument('<name>', 'the domain', domainName)
    .addHelpText('after', '\nExample:\n  pagetide domain show shop')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [info, { showDomain }] = await Promise.all([client.showDomain(name), import('../show-domain.ts')]);
      cli.result(info, () => showDomain(info));
    });
}
