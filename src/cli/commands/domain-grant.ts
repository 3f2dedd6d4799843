import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide domain grant NAME HOST` */
export function addDomainGrant(domain: Command, context: () => Context): void {
  domain
    .command('grant')
    .description('give a domain to another host; asked of the agent that made it')
    .argument('<name>', 'the domain', domainName)
    .argument(
      '<host>',
      "the host's name, its agent's https:// URL, or unix:PATH of another agent's control socket here",
    )
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide domain grant shop host-b\n  pagetide domain grant shop https://10.0.0.2:7411' +
        '\n  pagetide domain grant shop unix:/run/pagetide-2/control.sock',
    )
    .action(async (name: string, host: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.grantDomain(name, host);
      cli.result(info, () => {
        const hosts = info.grants.filter(({ state }) => state === 'granted').map((one) => one.host);
        return `${name} granted; it is at ${hosts.join(', ')}`;
      });
    });
}
