import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide domain remove NAME` */
export function addDomainRemove(domain: Command, context: () => Context): void {
  domain
    .command('remove')
    .description('remove a domain and erase its pages, here and at the hosts that it was granted to')
    .argument('<name>', 'the domain', domainName)
    .addHelpText('after', '\nExample:\n  pagetide domain remove shop')
    .addHelpText(
      'after',
      '\nWhere the domain was made elsewhere, only this host forgets it, and the one that made it is told.',
    )
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const result = await client.removeDomain(name);
      cli.result(result, () => {
        const { waiting } = result;
        const rest = waiting.length === 0 ? '' : `; not reached yet: ${waiting.join(', ')}`;
        return `${name} removed, its pages erased${rest}`;
      });
    });
}
