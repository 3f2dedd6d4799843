/** Every command explains itself, and refuses what it doesn't know. In this process: no command is run. */
import type { Command } from 'commander';
import t, { type Test } from 'tap';
import { buildProgram, run } from '../../src/cli/program.ts';

/** All commands but the root, with their full names. */
function commands(of: Command, prefix = ''): [string, Command][] {
  return of.commands.flatMap((command) => {
    const name = `${prefix}${command.name()}`;
    return [[name, command] as [string, Command], ...commands(command, `${name} `)];
  });
}

void t.test('--help of every command has an example of it, and the global options', (t) => {
  const all = commands(buildProgram());
  t.same(all.map(([name]) => name).sort(), [
    'agent',
    'cache',
    'cache clear',
    'cache stats',
    'cache warm',
    'cancel',
    'cluster',
    'cluster add-host',
    'cluster init',
    'distribution',
    'distribution empty-directory',
    'distribution explain',
    'distribution pause',
    'distribution resume',
    'distribution set-budget',
    'distribution set-rate',
    'distribution status',
    'doctor',
    'domain',
    'domain create',
    'domain grant',
    'domain list',
    'domain remove',
    'domain revoke',
    'domain show',
    'evacuate',
    'guest',
    'guest attach',
    'guest list',
    'guest remove',
    'guest run',
    'guest show',
    'guest verify',
    'manifest',
    'migrate',
    'migrations',
    'pager',
    'plan',
    'plan affinity',
    'plan evacuate',
    'plan list',
    'plan withdraw',
    'plan withdraw affinity',
    'plan withdraw evacuate',
    'snapshot',
    'snapshot list',
    'snapshot share',
    'snapshot unshare',
  ]);
  for (const [name, command] of all) {
    let help = '';
    command.configureOutput({ writeOut: (text) => (help += text) }).outputHelp();
    t.match(help, new RegExp(`Examples?:\\n  pagetide ${name}`), name);
    t.match(help, '--json', name);
    t.ok(command.description(), name);
  }
  t.end();
});

/** Runs what must fail before anything is asked of an agent; gives exit code and standard error. */
async function failing(t: Test, args: string[]): Promise<{ code: number; stderr: string }> {
  const written = t.capture(process.stderr, 'write', () => true);
  const code = await run(args);
  const stderr = written()
    .map((call) => String(call.args[0]))
    .join('');
  written.restore();
  return { code, stderr };
}

void t.test('usage: exit code 2, one line', async (t) => {
  const cases: [string, RegExp][] = [
    ['nonsense', /unknown command 'nonsense'/],
    ['guest nonsense', /unknown command 'nonsense'/],
    ['guest list --colour', /unknown option '--colour'/],
    ['guest show', /missing required argument/],
    ['guest show Web_1', /"Web_1" cannot be a guest's name/],
    ['guest list too many', /too many arguments/],
    ['guest list -- x', /nothing may stand behind --/],
    ['guest run web1 --memory 1M', /--driver/],
    ['guest run web1 --driver xen', /Allowed choices are embedded, qemu/],
    ['guest run web1 --driver embedded', /--memory is missing/],
    ['guest run web1 --driver embedded --memory lots', /"lots" is no size/],
    ['guest run web1 --driver embedded --memory 1M --working-set 2', /no number from 0 to 1/],
    ['guest run web1 --driver embedded --memory 1M --threads 0', /no whole number/],
    ['guest run web1 --driver embedded --memory 1M -- qemu', /takes no command/],
    ['guest run web1 --driver qemu', /the command of the guest is missing/],
    ['guest run web1 --driver qemu --', /the command of the guest is missing/],
    ['guest run web1 --driver qemu --write-rate 5 -- qemu', /--write-rate is for embedded/],
    ['guest attach web1 --driver qemu', /--qmp/],
    ['domain create Shop', /"Shop" cannot be a domain's name/],
    ['domain grant shop', /missing required argument/],
    ['guest run web1 --driver embedded --memory 1M --domain ../shop', /cannot be a domain's name/],
    ['cache warm --domain shop', /--from/],
    ['cache warm --from web1', /--domain/],
    ['cache warm --from Web_1 --domain shop', /"Web_1" cannot be a guest's name/],
    ['migrate web1', /--to/],
    ['migrate web1 --to here', /no URL of an agent/],
    ['migrate web1 --to ftp://x', /no URL of an agent/],
    ['migrate web1 --to http://x --mode magic', /Allowed choices are auto, post-copy, pre-copy, hybrid/],
    ['migrate web1 --to http://x --bandwidth 12', /no rate/],
    ['migrate web1 --to http://x --max-downtime soon', /no whole number/],
    ['migrate web1 --to http://x --max-rounds 0', /no whole number/],
    ['migrate web1 --to http://x --on-no-convergence pray', /Allowed choices are post-copy, pause, abort/],
    ['evacuate', /--to is missing/],
    ['evacuate --to here', /no URL of an agent/],
    ['evacuate --to http://x --parallel 0', /no whole number from 1 to 64/],
    ['evacuate --to http://x --bandwidth 12', /no rate/],
    ['evacuate --follow --to http://x', /--follow watches what was begun/],
    ['evacuate unix:/a --to http://x --agent unix:/b', /give the host, or --agent/],
    ['evacuate ftp://x --to http://x', /no address of an agent/],
    ['pager --listen /x', /--memory, or --from/],
    ['pager --listen /x --from http://x', /--from needs a --manifest/],
    ['pager --listen /x --from nowhere --manifest m --domain-key k', /no URL of an agent/],
    ['pager --listen /x --memory /y --from http://x', /--memory, or --from/],
    ['pager --listen /x --memory /y --certificates /z', /--certificates is of use with --from/],
    ['snapshot share /x', /--domain/],
    ['snapshot unshare', /missing required argument/],
    ['pager --listen /x --memory /y --max-vms 0', /no whole number/],
    ['agent --listen 0.0.0.0:1', /PT_BAD_CONFIG.*loopback/],
    ['agent --config /nowhere/x.yaml', /PT_BAD_CONFIG.*cannot read/],
    ['guest list --agent ftp://x', /no address of an agent/],
  ];
  for (const [line, message] of cases) {
    const { code, stderr } = await failing(t, line.split(' '));
    t.equal(code, 2, line);
    t.match(stderr, message, line);
    t.match(stderr, /^error PT_[A-Z_]+: .+ \(.+\)\n$/, line);
  }
  const json = await failing(t, ['guest', 'show', '--json']);
  t.match(JSON.parse(json.stderr), { code: 'PT_BAD_ARGUMENT', message: /missing/ });
});
