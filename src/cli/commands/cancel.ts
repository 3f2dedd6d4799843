import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { guestName } from '../options.ts';

/** `pagetide cancel NAME` */
export function addCancel(program: Command, context: () => Context): void {
  program
    .command('cancel')
    .description("cancel a guest's migration; refused once the guest belongs to the destination")
    .argument('<name>', 'the guest', guestName)
    .addHelpText('after', '\nExample:\n  pagetide cancel web1')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.cancel(name);
      cli.result(info, () => `migration ${info.id} of ${name}: ${info.progress.phase}`);
    });
}
