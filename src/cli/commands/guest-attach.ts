import { resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName, guestName } from '../options.ts';

interface Options {
  driver: 'qemu';
  qmp: string;
  check?: string;
  domain?: string;
}

/** `pagetide guest attach NAME --driver qemu --qmp SOCKET` */
export function addGuestAttach(guest: Command, context: () => Context): void {
  guest
    .command('attach')
    .description('take on a VMM that runs (source), or one that waits with -incoming defer -S (destination)')
    .argument('<name>', 'what the guest is to be called', guestName)
    .addOption(new Option('--driver <driver>', 'kind of guest').choices(['qemu']).makeOptionMandatory())
    .requiredOption('--qmp <socket>', "the VMM's QMP socket, for Pagetide alone")
    .option('--domain <name>', 'the guests that it may share pages with; none: nobody', domainName)
    .option('--check <socket>', 'socket on which the guest answers when it is asked to check its memory')
    .addHelpText('after', '\nExample:\n  pagetide guest attach web1 --driver qemu --qmp /run/web1.qmp')
    .action(async (name: string, options: Options) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.attachGuest({
        name,
        driver: options.driver,
        ...(options.domain === undefined ? {} : { domain: options.domain }),
        options: {
          // the agent's working folder is another
          qmp: resolve(options.qmp),
          ...(options.check === undefined ? {} : { checkSocket: resolve(options.check) }),
        },
      });
      cli.result(info, () => `${name} attached: ${info.state}, pid ${info.pid}`);
    });
}
