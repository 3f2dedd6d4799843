import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { whole } from '../options.ts';

interface Options {
  listen: string;
  memory: string;
  maxVms: number;
  fill: boolean;
}

/** `pagetide pager` */
export function addPager(program: Command, context: () => Context): void {
  program
    .command('pager')
    .description("serve a snapshot's memory file to the VMMs that connect (Firecracker's hand-over); no agent needed")
    .requiredOption('--listen <socket>', 'Unix socket that VMMs connect to; appears when it is ready')
    .requiredOption('--memory <file>', 'memory file of the snapshot; must not change meanwhile')
    .option('--max-vms <n>', 'VMMs served at the same time', whole(1, 64), 4)
    .option('--no-fill', 'only serve faults; do not bring the other pages in the background')
    .addHelpText('after', '\nExample:\n  pagetide pager --listen /run/uffd.sock --memory /srv/snapshot/mem')
    .action(async (options: Options) => {
      const cli = context();
      refuseRest(cli);
      const listen = resolve(options.listen);
      const memory = resolve(options.memory);
      const [{ startPager }, { serve }] = await Promise.all([import('../../pager/main.ts'), import('../serve.ts')]);
      await serve(
        () => startPager({ listen, memory, maxVms: options.maxVms, fill: options.fill }),
        () => cli.result({ listen, memory, pid: process.pid }, () => `pager ready on ${listen}, serving ${memory}`),
      );
    });
}
