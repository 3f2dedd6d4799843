import type { Command } from 'commander';
import type { AgentClient } from '../../agent/api/client.ts';
import type { DistributionInfo } from '../../distribution/info.ts';
import { refuseRest, type Context } from '../context.ts';
import { usage } from '../failure.ts';
import { domainName, guestName, rate, size } from '../options.ts';

/** `pagetide distribution …` */
export function addDistribution(program: Command, context: () => Context): void {
  const distribution = program
    .command('distribution')
    .description('pages that are brought to a host before guests come')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide distribution status\n  pagetide distribution set-rate 20M --peak 80M',
    );
  const show = async (ask: (client: AgentClient) => Promise<DistributionInfo>): Promise<void> => {
    const cli = context();
    refuseRest(cli);
    const client = await cli.client();
    const [info, { showDistribution }] = await Promise.all([ask(client), import('../show-distribution.ts')]);
    cli.result(info, () => showDistribution(info));
  };
  distribution
    .command('status')
    .description('what is brought, at what rate, and what it was worth')
    .addHelpText('after', '\nExample:\n  pagetide distribution status --json')
    .action(() => show((client) => client.distribution()));
  distribution
    .command('pause')
    .description('bring nothing more, also after a restart of the agent')
    .addHelpText('after', '\nExample:\n  pagetide distribution pause')
    .action(() => show((client) => client.pauseDistribution()));
  distribution
    .command('resume')
    .description('bring pages again')
    .addHelpText('after', '\nExample:\n  pagetide distribution resume')
    .action(() => show((client) => client.resumeDistribution()));
  distribution
    .command('set-rate')
    .description('how fast pages are brought, bytes a second; outlives a restart of the agent')
    .argument('<average>', 'in the long run, e.g. 20M', rate)
    .option('--peak <rate>', 'in any tenth of a second (default: four times the average)', rate)
    .addHelpText('after', '\nExample:\n  pagetide distribution set-rate 20M --peak 40M')
    .action(async (average: number, { peak }: { peak?: number }) => {
      if (peak !== undefined && peak < average) throw usage('--peak is below the average');
      await show((client) => client.setDistributionRates({ average, ...(peak === undefined ? {} : { peak }) }));
    });
  distribution
    .command('set-budget')
    .description('how much of the cache brought pages may take; outlives a restart of the agent')
    .argument('<size>', 'e.g. 4G; 0: nothing is brought', (text: string) => (text === '0' ? 0 : size(text)))
    .addHelpText('after', '\nExample:\n  pagetide distribution set-budget 4G')
    .action((bytes: number) => show((client) => client.setDistributionBudget(bytes)));
  addExplain(distribution, context);
  addEmptyDirectory(distribution, context);
}

function addExplain(distribution: Command, context: () => Context): void {
  distribution
    .command('explain')
    .description('which pages of a guest other hosts have, which they will bring, and why not the others')
    .argument('<guest>', 'a guest of this agent', guestName)
    .addHelpText('after', '\nExample:\n  pagetide distribution explain web1')
    .action(async (guest: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [explained, { showExplained }] = await Promise.all([
        client.explainGuest(guest),
        import('../show-distribution.ts'),
      ]);
      cli.result(explained, () => showExplained(explained));
    });
}

function addEmptyDirectory(distribution: Command, context: () => Context): void {
  distribution
    .command('empty-directory')
    .description('forget which hosts of a domain have which pages: they tell it all anew. Plans stay')
    .argument('<domain>', 'a domain of this agent', domainName)
    .addHelpText('after', '\nExample:\n  pagetide distribution empty-directory shop')
    .action(async (domain: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      await client.emptyDirectory(domain);
      cli.result({ emptied: domain }, () => `the directory of ${domain} is empty; its hosts tell it all anew`);
    });
}
