import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { guestName } from '../options.ts';

/** `pagetide guest show NAME` */
export function addGuestShow(guest: Command, context: () => Context): void {
  guest
    .command('show')
    .description('show one guest')
    .argument('<name>', 'the guest', guestName)
    .addHelpText('after', '\nExample:\n  pagetide guest show web1')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [info, { showGuest }] = await Promise.all([client.showGuest(name), import('../show.ts')]);
      cli.result(info, () => showGuest(info));
    });
}
