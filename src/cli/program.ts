/** The command line as a whole: global options, commands, and what a failure looks like. */
import { Command, CommanderError } from 'commander';
import { asPagetideError } from '../errors.ts';
import { packageVersion } from '../version.ts';
import { addAgent } from './commands/agent.ts';
import { addCache } from './commands/cache.ts';
import { addCancel } from './commands/cancel.ts';
import { addCluster } from './commands/cluster.ts';
import { addDistribution } from './commands/distribution.ts';
import { addDoctor } from './commands/doctor.ts';
import { addDomain } from './commands/domain.ts';
import { addEvacuate } from './commands/evacuate.ts';
import { addGuest } from './commands/guest.ts';
import { addManifest } from './commands/manifest.ts';
import { addMigrate } from './commands/migrate.ts';
import { addMigrations } from './commands/migrations.ts';
import { addPager } from './commands/pager.ts';
import { addPlan } from './commands/plan.ts';
import { addSnapshot } from './commands/snapshot.ts';
import { Context, type GlobalOptions } from './context.ts';
import { EXIT_OK, exitCode, formatFailure, usage } from './failure.ts';

/** The parser. `rest` is what stands behind `--`. */
export function buildProgram(rest?: readonly string[]): Command {
  const program = new Command('pagetide')
    .description("Moves a running VM's memory between hosts, sending as little as possible.")
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .option(
      '--agent <address>',
      "http://HOST:PORT or unix:PATH of the agent to talk to (default: PAGETIDE_AGENT, else this machine's)",
    )
    .option('--json', 'results and errors as JSON, for machines')
    .option('--verbose', 'errors with cause and stack')
    .exitOverride()
    // said by formatFailure instead, in one line
    .configureOutput({ outputError: () => undefined })
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', '\nExample:\n  pagetide migrate web1 --to http://127.0.0.1:7412');
  const context = () => new Context(program.opts<GlobalOptions>(), rest);
  addAgent(program, context);
  addGuest(program, context);
  addMigrate(program, context);
  addEvacuate(program, context);
  addCancel(program, context);
  addMigrations(program, context);
  addDomain(program, context);
  addDistribution(program, context);
  addPlan(program, context);
  addCache(program, context);
  addSnapshot(program, context);
  addManifest(program, context);
  addPager(program, context);
  addCluster(program, context);
  addDoctor(program, context);
  return program;
}

/** Runs the command line `args` (without node and script); resolves to the exit code. Never rejects. */
export async function run(args: readonly string[]): Promise<number> {
  // taken out beforehand: commander drops the `--` itself where a subcommand would need it
  const dashes = args.indexOf('--');
  const own = dashes === -1 ? args : args.slice(0, dashes);
  const rest = dashes === -1 ? undefined : args.slice(dashes + 1);
  try {
    await buildProgram(rest).parseAsync(own, { from: 'user' });
    return Number(process.exitCode ?? EXIT_OK);
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return EXIT_OK;
    const error = thrown instanceof CommanderError ? typedWrongly(thrown) : asPagetideError(thrown);
    // by hand, as the failure may be that the options could not be parsed
    const options = { json: own.includes('--json'), verbose: own.includes('--verbose') };
    process.stderr.write(`${formatFailure(error, options)}\n`);
    return exitCode(error);
  }
}

function typedWrongly(error: CommanderError) {
  if (error.code === 'commander.help') return usage('a command is missing', 'The help above lists them.');
  return usage(error.message.replace(/^error: /, ''), 'See --help of the command.');
}
