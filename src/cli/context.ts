/** What every command gets: the global options, where to print, and the agent to talk to. */
import { existsSync } from 'node:fs';
import type { AgentClient } from '../agent/api/client.ts';
import { defaultControlSockets } from '../agent/names.ts';
import { usage } from './failure.ts';

export interface GlobalOptions {
  agent?: string;
  json?: boolean;
  verbose?: boolean;
}

export class Context {
  readonly json: boolean;
  readonly verbose: boolean;
  /** `--agent`, as given; not from the environment. */
  readonly agent: string | undefined;
  /** What stands behind `--`; undefined where there is none. */
  readonly rest: readonly string[] | undefined;

  constructor(options: GlobalOptions, rest: readonly string[] | undefined) {
    this.json = options.json === true;
    this.verbose = options.verbose === true;
    this.agent = options.agent;
    this.rest = rest;
  }

  /** One line of standard output. */
  print(line: string): void {
    process.stdout.write(`${line}\n`);
  }

  /** The result of a command: one line of JSON with `--json`, else what `human` says. */
  result(value: unknown, human: () => string): void {
    this.print(this.json ? JSON.stringify(value) : human());
  }

  /** A client of the agent that is meant, `--agent` unless another one is given. Doesn't connect yet. */
  async client(agent = this.agent): Promise<AgentClient> {
    // loaded only by commands that need it
    const { AgentClient } = await import('../agent/api/client.ts');
    return new AgentClient(agent ?? defaultAgent());
  }
}

/** `PAGETIDE_AGENT`, or the control socket of this machine's agent: the first that is there, else the usual place. */
export function defaultAgent(env: NodeJS.ProcessEnv = process.env): string {
  const given = env['PAGETIDE_AGENT'];
  if (given !== undefined && given !== '') return given;
  const sockets = defaultControlSockets(env);
  return `unix:${sockets.find((path) => existsSync(path)) ?? sockets.at(-1)!}`;
}

/** Refuses what stands behind `--` for a command that takes nothing there. */
export function refuseRest(context: Context): void {
  if (context.rest !== undefined) throw usage('nothing may stand behind -- here');
}
