import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { EXIT_FAILURE } from '../failure.ts';

/** `pagetide doctor` */
export function addDoctor(program: Command, context: () => Context): void {
  program
    .command('doctor')
    .description('what this host can do, what is missing, and how to get it; with --agent, the host of that agent')
    .addHelpText('after', '\nExample:\n  pagetide doctor')
    .addHelpText('after', '\nExits with 1 only where something is missing without which nothing can be migrated.')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const { healthy, runDoctor } = await import('../../agent/doctor.ts');
      // without --agent no agent is needed: this is what one runs before there is any
      const checks = cli.agent === undefined ? await runDoctor() : await (await cli.client()).doctor();
      const { table } = await import('../table.ts');
      cli.result(checks, () => {
        const rows = checks.map(({ status, name, found }) => [status, name, found]);
        const fixes = checks
          .filter(({ status, fix, needed }) => status !== 'ok' && (fix ?? needed) !== undefined)
          .map(({ name, needed, fix }) => {
            return `${name}${needed === undefined ? '' : ` (needed for ${needed})`}${fix === undefined ? '' : `\n    ${fix}`}`;
          });
        return [table(['STATUS', 'WHAT', 'FOUND'], rows), ...(fixes.length === 0 ? [] : ['', ...fixes])].join('\n');
      });
      if (!healthy(checks)) process.exitCode = EXIT_FAILURE;
    });
}
