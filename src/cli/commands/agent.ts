import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

interface Options {
  listen?: string;
  advertise?: string;
  certificates?: string;
  state?: string;
  name?: string;
  config?: string;
}

/** `pagetide agent` */
export function addAgent(program: Command, context: () => Context): void {
  program
    .command('agent')
    .description('run the agent of this host, until SIGTERM or SIGINT; guests outlive it')
    .option('--listen <address>', 'address and port for other agents (default: 127.0.0.1:7411)')
    .option('--advertise <url>', 'URL under which other agents reach this one, where it is another')
    .option('--certificates <folder>', 'as `pagetide cluster add-host` made it; without, loopback only')
    .option('--state <folder>', 'journals, sockets and logs; one agent, one folder')
    .option('--name <name>', "the agent's name (default: the host's)")
    .option('--config <file>', 'YAML or JSON; docs/configuration.md lists every field. Options override it')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide agent --listen 127.0.0.1:7411 --state /var/lib/pagetide' +
        '\n  pagetide agent --listen 10.0.0.2:7411 --certificates /etc/pagetide',
    )
    .action(async (options: Options) => {
      const cli = context();
      refuseRest(cli);
      const [{ loadConfig }, { serve }] = await Promise.all([import('../../agent/config.ts'), import('../serve.ts')]);
      const { config: file, ...flags } = options;
      const config = loadConfig(file, flags);
      const { startAgent } = await import('../../agent/main.ts');
      await serve(
        () => startAgent(config),
        (agent) => {
          const ready = { name: config.name, url: agent.url, control: config.control, pid: process.pid };
          cli.result(ready, () => `agent ${config.name} ready: ${agent.url}, control socket ${config.control}`);
        },
      );
    });
}
