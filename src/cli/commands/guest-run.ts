import { resolve } from 'node:path';
import { Option, type Command } from 'commander';
import type { Context } from '../context.ts';
import { usage } from '../failure.ts';
import { between, domainName, guestName, size, whole } from '../options.ts';

interface Options {
  driver: 'embedded' | 'qemu';
  memory?: number;
  writeRate?: number;
  workingSet?: number;
  zeroFraction?: number;
  threads?: number;
  fillFrom?: string;
  seed?: number;
  check?: string;
  domain?: string;
}

const EMBEDDED = ['memory', 'writeRate', 'workingSet', 'zeroFraction', 'threads', 'fillFrom', 'seed'] as const;

/** `pagetide guest run NAME --driver …` */
export function addGuestRun(guest: Command, context: () => Context): void {
  guest
    .command('run')
    .description('start a guest on the host of the agent, detached from it; its process outlives the agent')
    .usage('[options] <name> [-- COMMAND…]')
    .argument('<name>', 'what the guest is to be called', guestName)
    .addOption(new Option('--driver <driver>', 'kind of guest').choices(['embedded', 'qemu']).makeOptionMandatory())
    .option('--domain <name>', 'the guests that it may share pages with; none: nobody', domainName)
    .option('--memory <size>', 'embedded: memory, e.g. 256M', size)
    .option('--write-rate <n>', 'embedded: pages written a second', between(0, 1e7))
    .option('--working-set <fraction>', 'embedded: part of memory that the workload keeps to', between(0, 1))
    .option('--zero-fraction <fraction>', 'embedded: part of memory never touched at first', between(0, 1))
    .option('--threads <n>', 'embedded: threads of the workload', whole(1, 64))
    .option('--fill-from <folder>', "embedded: real content, from the files below a folder of the agent's host")
    .option('--seed <n>', 'embedded: makes the workload repeatable', whole(0, Number.MAX_SAFE_INTEGER))
    .option('--check <socket>', 'qemu: socket on which the guest answers when it is asked to check its memory')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide guest run web1 --driver embedded --memory 256M --write-rate 2000' +
        '\n  pagetide guest run web2 --driver qemu -- qemu-system-x86_64 -m 1G -kernel vmlinuz -initrd initrd.img' +
        '\n\nThe agent adds the RAM file and the QMP socket to the command of a QEMU guest.',
    )
    .action(async (name: string, options: Options) => {
      const cli = context();
      const driverOptions = options.driver === 'embedded' ? embedded(options, cli) : qemu(options, cli);
      const client = await cli.client();
      const info = await client.runGuest({
        name,
        driver: options.driver,
        ...(options.domain === undefined ? {} : { domain: options.domain }),
        options: driverOptions,
      });
      cli.result(info, () => `${name} runs: pid ${info.pid}`);
    });
}

function embedded(options: Options, cli: Context): Record<string, unknown> {
  if (cli.rest !== undefined) throw usage('an embedded guest takes no command', 'Leave out -- and what follows it.');
  if (options.check !== undefined)
    throw usage('--check is for QEMU guests', 'An embedded guest can always check itself.');
  if (options.memory === undefined) throw usage('--memory is missing', 'E.g. --memory 256M.');
  const given = EMBEDDED.filter((key) => options[key] !== undefined).map((key) => [key, options[key]]);
  const result = Object.fromEntries(given) as Record<string, unknown>;
  if (options.fillFrom !== undefined) result['fillFrom'] = resolve(options.fillFrom);
  return result;
}

function qemu(options: Options, cli: Context): Record<string, unknown> {
  const wrong = EMBEDDED.find((key) => options[key] !== undefined);
  if (wrong !== undefined) {
    const flag = wrong.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    throw usage(`--${flag} is for embedded guests`, "Put QEMU's own options behind --.");
  }
  if (cli.rest === undefined || cli.rest.length === 0) {
    throw usage('the command of the guest is missing', 'E.g. … --driver qemu -- qemu-system-x86_64 -m 1G.');
  }
  return { argv: [...cli.rest], ...(options.check === undefined ? {} : { checkSocket: resolve(options.check) }) };
}
