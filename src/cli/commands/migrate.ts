import { Option, type Command } from 'commander';
import { PagetideError } from '../../errors.ts';
import { refuseRest, type Context } from '../context.ts';
import type { MigrateRequest } from '../../agent/service.ts';
import { guestName, peerUrl, rate, whole } from '../options.ts';

interface Options {
  to: string;
  mode: MigrateRequest['mode'];
  maxDowntime?: number;
  maxRounds?: number;
  bandwidth?: number;
  onNoConvergence?: NonNullable<MigrateRequest['onNoConvergence']>;
  verify: boolean;
}

const MODES: readonly MigrateRequest['mode'][] = ['auto', 'post-copy', 'pre-copy', 'hybrid'];

/** `pagetide migrate NAME --to URL` */
export function addMigrate(program: Command, context: () => Context): void {
  program
    .command('migrate')
    .description('move a guest to the host of another agent, while it runs')
    .argument('<name>', 'the guest', guestName)
    .requiredOption('--to <url>', "the destination's agent", peerUrl)
    .addOption(new Option('--mode <mode>', 'how its memory moves').choices(MODES).default('auto'))
    .option(
      '--max-downtime <ms>',
      'how long the guest may stand still: pre-copy, hybrid (default: 300)',
      whole(0, 3_600_000),
    )
    .option('--max-rounds <n>', 'of copying, at most (default: 30, hybrid 5)', whole(1, 1000))
    .option('--bandwidth <rate>', 'bytes of pages that are fetched a second, at most, e.g. 100M', rate)
    .addOption(
      new Option('--on-no-convergence <what>', 'when a pre-copy does not get there (default: abort)').choices([
        'post-copy',
        'pause',
        'abort',
      ]),
    )
    .option('--no-verify', 'do not let the guest check its memory afterwards')
    .addHelpText('after', '\nExample:\n  pagetide migrate web1 --to http://127.0.0.1:7412')
    .addHelpText(
      'after',
      '\nauto is hybrid where both hosts can, pre-copy where the destination has no userfaultfd; it says which and why.',
    )
    .addHelpText(
      'after',
      '\nProgress goes to standard error, the report to standard output. Ctrl-C asks for the migration to be\n' +
        'cancelled, which is refused once the guest belongs to the destination; a second one only stops watching.',
    )
    .action(async (name: string, options: Options) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [{ followMigration }, { progressView }, { showReport }] = await Promise.all([
        import('../follow.ts'),
        import('../progress.ts'),
        import('../show.ts'),
      ]);
      const { to, mode, maxDowntime: maxDowntimeMs, maxRounds, bandwidth, onNoConvergence, verify } = options;
      const request: MigrateRequest = {
        ...{ guest: name, to, mode, verify },
        ...(maxDowntimeMs === undefined ? {} : { maxDowntimeMs }),
        ...(maxRounds === undefined ? {} : { maxRounds }),
        ...(bandwidth === undefined ? {} : { bandwidth }),
        ...(onNoConvergence === undefined ? {} : { onNoConvergence }),
      };
      const started = await client.migrate(request).catch((thrown: unknown) => {
        throw mayHaveBegun(thrown);
      });
      const view = await progressView(process.stderr, { bar: !cli.json });
      if (started.why !== undefined) view.say(started.why);
      const report = await followMigration(client, started, view);
      cli.result(report, () => showReport(report));
      if (report.verified === false) {
        throw new PagetideError('PT_VERIFY_FAILED', `${name} is at ${options.to} now, but has bad frames`);
      }
    });
}

/** An agent that went away between request and answer may have journaled the migration, and take it up later. */
function mayHaveBegun(thrown: unknown): unknown {
  if (!(thrown instanceof PagetideError) || thrown.code !== 'PT_PEER_UNREACHABLE') return thrown;
  if ((thrown.cause as NodeJS.ErrnoException | undefined)?.code !== 'ECONNRESET') return thrown;
  return new PagetideError(thrown.code, thrown.message, {
    cause: thrown.cause,
    hint: 'Whether the migration began is unknown: `pagetide migrations` shows it once the agent is back.',
  });
}
