import { Option, type Command } from 'commander';
import { PagetideError } from '../../errors.ts';
import type { EvacuateRequest, EvacuationInfo } from '../../agent/service.ts';
import { refuseRest, type Context } from '../context.ts';
import { usage } from '../failure.ts';
import { duration, peerUrl, rate, whole } from '../options.ts';

interface Options {
  to: string[];
  parallel: number;
  mode: EvacuateRequest['mode'];
  maxDowntime?: number;
  maxRounds?: number;
  bandwidth?: number;
  onNoConvergence?: NonNullable<EvacuateRequest['onNoConvergence']>;
  verify: boolean;
  dryRun?: boolean;
  prepare?: number | true;
  keepPlan?: boolean;
  follow?: boolean;
}

/** How long a preparation may take where nobody says, milliseconds. */
const PREPARE_MS = 30 * 60_000;
/** A day. */
const LONGEST_PREPARATION_MS = 24 * 3_600_000;

const MODES: readonly EvacuateRequest['mode'][] = ['auto', 'post-copy', 'pre-copy', 'hybrid'];

/** `pagetide evacuate [HOST] --to URL [--to URL]…` */
export function addEvacuate(program: Command, context: () => Context): void {
  program
    .command('evacuate')
    .description('move all guests of a host to others')
    .argument('[host]', 'address of the agent whose guests go; the same as --agent')
    .option('--to <url>', 'an agent that may take guests; once for each', add, [])
    .option('--parallel <n>', 'guests under way at once, at most', whole(1, 64), 2)
    .addOption(new Option('--mode <mode>', 'how their memory moves').choices(MODES).default('auto'))
    .option(
      '--max-downtime <ms>',
      'how long a guest may stand still: pre-copy, hybrid (default: 300)',
      whole(0, 3_600_000),
    )
    .option('--max-rounds <n>', 'of copying, at most (default: 30, hybrid 5)', whole(1, 1000))
    .option('--bandwidth <rate>', 'bytes of pages a second for all together, at most, e.g. 100M', rate)
    .addOption(
      new Option('--on-no-convergence <what>', 'when a pre-copy does not get there (default: abort)').choices([
        'post-copy',
        'pause',
        'abort',
      ]),
    )
    .option(
      '--prepare [time]',
      'let the targets bring pages of the guests first, as long as this at most (default: 30m)',
      duration(LONGEST_PREPARATION_MS),
    )
    .option('--keep-plan', 'the plan to evacuate the host, made by --prepare, stays in force afterwards')
    .option('--no-verify', 'do not let guests check their memory afterwards')
    .option('--dry-run', 'say who would go where, in which order, and what it would cost; nothing is done')
    .option('--follow', 'watch the one that is under way')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide evacuate --to http://127.0.0.1:7412 --to http://127.0.0.1:7413 --bandwidth 200M' +
        '\n  pagetide evacuate --to https://host-b:7411 --prepare=10m',
    )
    .addHelpText(
      'after',
      '\nThe agent does it, also when this command is ended. Ctrl-C asks it to begin with no further guest: those under way\n' +
        'arrive. A second one cancels those as far as they can be, a third one stops watching. Repeat the command to go on\n' +
        'with what is still there. Exit code 1: a guest stays.',
    )
    .action(async (host: string | undefined, options: Options) => {
      const cli = context();
      refuseRest(cli);
      const { to, parallel, mode, maxDowntime, maxRounds, bandwidth, onNoConvergence, verify } = options;
      if (host !== undefined && cli.agent !== undefined) throw usage('give the host, or --agent: they mean the same');
      if (options.follow === true ? to.length > 0 || options.dryRun === true : to.length === 0)
        throw usage(
          options.follow === true
            ? '--follow watches what was begun before: it takes neither --to nor --dry-run'
            : '--to is missing: guests have to go somewhere',
        );
      const { prepare, keepPlan } = options;
      if (keepPlan === true && prepare === undefined) throw usage('--keep-plan goes with --prepare');
      if (prepare !== undefined && options.follow === true) throw usage('--prepare is of no use with --follow');
      const client = await cli.client(host ?? cli.agent);
      const [{ followEvacuation }, { evacuationView }, { showEvacuation }] = await Promise.all([
        import('../follow-evacuation.ts'),
        import('../evacuation-progress.ts'),
        import('../show-evacuation.ts'),
      ]);
      const request: EvacuateRequest = {
        ...{ to, parallel, mode, verify },
        ...(maxDowntime === undefined ? {} : { maxDowntimeMs: maxDowntime }),
        ...(maxRounds === undefined ? {} : { maxRounds }),
        ...(bandwidth === undefined ? {} : { bandwidth }),
        ...(onNoConvergence === undefined ? {} : { onNoConvergence }),
        ...(prepare === undefined ? {} : { prepareMs: prepare === true ? PREPARE_MS : prepare }),
        ...(keepPlan === undefined ? {} : { keepPlan }),
      };
      if (options.dryRun === true) {
        const planned = await client.planEvacuation(request);
        cli.result(planned, () => showEvacuation(planned));
        return;
      }
      const started = options.follow === true ? await client.showEvacuation() : await client.evacuate(request);
      const view = await evacuationView(process.stderr, { bars: !cli.json });
      const last = await followEvacuation(client, started, view);
      cli.result(last, () => showEvacuation(last));
      refuseRemains(last);
    });
}

function add(url: string, before: string[]): string[] {
  return [...before, peerUrl(url)];
}

/** @throws PagetideError where a guest stays, or has moved and is not right */
function refuseRemains({ guests }: EvacuationInfo): void {
  const bad = guests.filter(({ report }) => report?.verified === false).map(({ guest }) => guest);
  if (bad.length > 0) throw new PagetideError('PT_VERIFY_FAILED', `${bad.join(', ')}: moved, but with bad frames`);
  const staying = guests.filter(({ state }) => state === 'stays');
  if (staying.length === 0) return;
  const reasons = staying.map(
    ({ guest, error }) => `${guest}: ${error?.code ?? 'PT_INTERNAL'}: ${error?.message ?? ''}`,
  );
  throw new PagetideError(
    'PT_EVACUATION_INCOMPLETE',
    `${staying.length} of ${guests.length} guests stay; ${reasons.join('; ')}`,
  );
}
