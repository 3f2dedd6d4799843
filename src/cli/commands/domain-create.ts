import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide domain create NAME` */
export function addDomainCreate(domain: Command, context: () => Context): void {
  domain
    .command('create')
    .description('make a domain, with a secret that never leaves the hosts that it is granted to')
    .argument('<name>', 'what it is to be called', domainName)
    .addHelpText('after', '\nExample:\n  pagetide domain create shop')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.createDomain(name);
      cli.result(info, () => `${name} made; \`pagetide domain grant ${name} HOST\` gives it to other hosts`);
    });
}
