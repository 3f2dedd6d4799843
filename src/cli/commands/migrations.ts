import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide migrations` */
export function addMigrations(program: Command, context: () => Context): void {
  program
    .command('migrations')
    .description("list an agent's migrations, both ways")
    .addHelpText('after', '\nExample:\n  pagetide migrations --agent http://127.0.0.1:7411')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [migrations, { showMigrations }] = await Promise.all([client.listMigrations(), import('../show.ts')]);
      cli.result(migrations, () => showMigrations(migrations));
    });
}
