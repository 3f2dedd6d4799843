import type { Command } from 'commander';
import type { AgentClient } from '../../agent/api/client.ts';
import type { GuestPlans, PlanSubject } from '../../agent/distribution-service.ts';
import { PagetideError } from '../../errors.ts';
import { refuseRest, type Context } from '../context.ts';
import { domainName, guestName, planTime } from '../options.ts';

interface Options {
  for: number;
  domain?: string;
}

const HOSTS = "hosts are called as `pagetide domain list` does, by their agents' URLs, or `self`";

/** `pagetide plan …` */
export function addPlan(program: Command, context: () => Context): void {
  const plan = program
    .command('plan')
    .description('what is said about where guests will go, so that their pages are there before them')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide plan evacuate host-a --for 2h\n  pagetide plan affinity web1 host-b',
    );
  const show = async (ask: (client: AgentClient) => Promise<GuestPlans>): Promise<void> => {
    const cli = context();
    refuseRest(cli);
    const client = await cli.client();
    const [plans, { showPlans }] = await Promise.all([ask(client), import('../show-distribution.ts')]);
    cli.result(plans, () => showPlans(plans));
    refuseFailed(plans.failed);
  };
  plan
    .command('list')
    .description('plans in force in the domains of this host')
    .addHelpText('after', '\nExample:\n  pagetide plan list')
    .action(() => show((client) => client.listPlans()));
  timed(plan.command('evacuate'))
    .description('the guests of a host will leave it, and none comes to it: other hosts bring their pages')
    .argument('<host>', HOSTS)
    .option('--domain <name>', 'in one domain (default: in all that this agent and the host have)', domainName)
    .addHelpText('after', '\nExample:\n  pagetide plan evacuate host-a --for 2h')
    .action((host: string, { for: forMs, domain }: Options) =>
      show((client) => client.planEvacuate(host, forMs, domain)),
    );
  timed(plan.command('affinity'))
    .description('a guest will go to one of these hosts, if it moves: they bring its pages')
    .argument('<guest>', 'its name', guestName)
    .argument('<hosts...>', HOSTS)
    .option('--domain <name>', "the guest's domain, where it is not at this host", domainName)
    .addHelpText('after', '\nExample:\n  pagetide plan affinity web1 host-b host-c --for 1d')
    .action((guest: string, hosts: string[], { for: forMs, domain }: Options) =>
      show((client) => client.planAffinity(guest, hosts, forMs, domain)),
    );
  addWithdraw(plan, context);
}

function timed(command: Command): Command {
  return command.option('--for <time>', 'how long it is in force, 30d at most', planTime, planTime('2h'));
}

function addWithdraw(plan: Command, context: () => Context): void {
  const withdraw = plan
    .command('withdraw')
    .description('take a plan back')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide plan withdraw evacuate host-a\n  pagetide plan withdraw affinity web1',
    );
  const add = (kind: PlanSubject['kind'], of: string, subject: (text: string) => PlanSubject): void => {
    withdraw
      .command(kind)
      .description(`that of ${of}`)
      .argument(`<${kind === 'evacuate' ? 'host' : 'guest'}>`, of)
      .option('--domain <name>', 'in one domain (default: in all)', domainName)
      .addHelpText('after', `\nExample:\n  pagetide plan withdraw ${kind} ${kind === 'evacuate' ? 'host-a' : 'web1'}`)
      .action(async (text: string, { domain }: Pick<Options, 'domain'>) => {
        const cli = context();
        refuseRest(cli);
        const about = subject(text);
        const client = await cli.client();
        const [done, { showWithdrawn }] = await Promise.all([
          client.withdrawPlan(about, domain),
          import('../show-distribution.ts'),
        ]);
        cli.result(done, () => showWithdrawn(done));
        refuseFailed(done.failed);
      });
  };
  add('evacuate', 'a host', (host) => ({ kind: 'evacuate', host }));
  add('affinity', 'a guest', (guest) => ({ kind: 'affinity', guest: guestName(guest) }));
}

/** @throws PagetideError `PT_PEER_UNREACHABLE` where not every directory was reached: what was printed is not all */
function refuseFailed(failed: GuestPlans['failed']): void {
  if (failed.length === 0) return;
  const names = failed.map(({ domain }) => domain).join(', ');
  throw new PagetideError('PT_PEER_UNREACHABLE', `the directory of ${names} was not reached`, {
    hint: 'Repeat the command when the host that keeps it is back.',
  });
}
