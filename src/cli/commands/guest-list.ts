import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide guest list` */
export function addGuestList(guest: Command, context: () => Context): void {
  guest
    .command('list')
    .description('list the guests of an agent')
    .addHelpText('after', '\nExample:\n  pagetide guest list --agent http://127.0.0.1:7411')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [guests, { showGuests }] = await Promise.all([client.listGuests(), import('../show.ts')]);
      cli.result(guests, () => showGuests(guests));
    });
}
