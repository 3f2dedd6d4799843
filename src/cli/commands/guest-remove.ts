import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { guestName } from '../options.ts';

/** `pagetide guest remove NAME` */
export function addGuestRemove(guest: Command, context: () => Context): void {
  guest
    .command('remove')
    .description('end a guest that was launched, let go of one that was attached')
    .argument('<name>', 'the guest', guestName)
    .addHelpText('after', '\nExample:\n  pagetide guest remove web1')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      await client.removeGuest(name);
      cli.result({ removed: name }, () => `${name} removed`);
    });
}
