import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide domain revoke NAME HOST` */
export function addDomainRevoke(domain: Command, context: () => Context): void {
  domain
    .command('revoke')
    .description('have a host forget a domain and its pages; asked of the agent that made it')
    .argument('<name>', 'the domain', domainName)
    .argument('<host>', 'the host, as `domain show` names it, or the address that it was granted to')
    .addHelpText('after', '\nExample:\n  pagetide domain revoke shop host-b')
    .addHelpText(
      'after',
      '\nA host that was taken over by somebody else has the secret all the same: make a new domain then.',
    )
    .action(async (name: string, host: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.revokeDomain(name, host);
      cli.result(info, () => {
        const left = info.grants.find((one) => one.host === host || one.url === host);
        if (left === undefined) return `${host} has forgotten ${name}`;
        return `${host} has not forgotten ${name} yet: ${left.error?.message ?? 'not told yet'}; it is told again`;
      });
    });
}
