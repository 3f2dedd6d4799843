/**
 * Real agents for integration tests: processes of their own, in folders of their own, on ports that the kernel chose.
 * Everything is cleaned up when the test ends, also when it fails: agents, guests, folders, memory files.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AgentClient } from '../../src/agent/api/client.ts';
import { leftovers } from './leftovers.ts';
import { listeningPort, processesBelow } from './processes.ts';

export { processesBelow };

const cli = resolve(fileURLToPath(new URL('../../src/cli/main.js', import.meta.url)));

export interface TestAgent {
  readonly name: string;
  readonly state: string;
  readonly memoryFolder: string;
  readonly control: string;
  /** What it advertises: of the port unless configured otherwise; the same after a restart. */
  readonly url: string;
  /** Of the port itself. */
  readonly ownUrl: string;
  readonly client: AgentClient;
  readonly pid: number;
  /** Lines of its log. */
  log(): string[];
  /** kill -9, and waits until it is dead. */
  kill(): Promise<void>;
  /** Asks it to end, and waits. Resolves to its exit code. */
  stop(): Promise<number | null>;
  /** Starts it again, same folder, same port; resolves when it is ready. */
  restart(): Promise<void>;
}

export interface Cluster {
  /** The folder below which everything but memory lies: it stands in the command line of each process of the cluster. */
  readonly root: string;
  readonly agents: readonly TestAgent[];
  agent(name: string, config?: Record<string, unknown>): Promise<TestAgent>;
  /**
   * What is there besides the agents and the guests that they list: processes, memory files, sockets, folders, page
   * tables, userfaultfds, registered memory. One line each; empty when all is well. See leftovers.ts.
   */
  leftovers(): Promise<string[]>;
  /** Ends everything; called by the test's teardown. */
  close(): Promise<void>;
}

export interface ClusterOptions {
  /** A command in front of each agent's, which it must become (exec): `ip netns exec NAME`. */
  prefix?: readonly string[];
  /** Where the agents keep their state, e.g. `/dev/shm`; the folder for temporary files otherwise. */
  folder?: string;
}

/** Makes a cluster that ends with the test. */
export function cluster(t: { teardown(fn: () => Promise<void>): unknown }, options: ClusterOptions = {}): Cluster {
  const root = mkdtempSync(join(options.folder ?? tmpdir(), 'ptt-'));
  const shm = mkdtempSync('/dev/shm/ptt-');
  const agents: Agent[] = [];
  const made: Cluster = {
    root,
    agents,
    leftovers: () => leftovers(root, agents),
    async agent(name, config = {}) {
      const agent = new Agent(name, join(root, name), join(shm, name), config, options.prefix ?? []);
      agents.push(agent);
      await agent.start();
      return agent;
    },
    async close() {
      await Promise.all(agents.map((agent) => agent.kill()));
      endGuests(root);
      rmSync(root, { recursive: true, force: true });
      rmSync(shm, { recursive: true, force: true });
    },
  };
  t.teardown(() => made.close());
  return made;
}

class Agent implements TestAgent {
  readonly name: string;
  readonly state: string;
  readonly memoryFolder: string;
  readonly control: string;
  readonly client: AgentClient;
  url = '';
  readonly #config: Record<string, unknown>;
  readonly #prefix: readonly string[];
  readonly #lines: string[] = [];
  #child: ChildProcess | undefined;
  #port = 0;

  constructor(
    name: string,
    state: string,
    memoryFolder: string,
    config: Record<string, unknown>,
    prefix: readonly string[],
  ) {
    this.name = name;
    this.state = state;
    this.memoryFolder = memoryFolder;
    this.control = join(state, 'control.sock');
    this.client = new AgentClient(`unix:${this.control}`);
    this.#config = config;
    this.#prefix = prefix;
    mkdirSync(state, { recursive: true });
    mkdirSync(memoryFolder, { recursive: true });
  }

  get ownUrl(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  log(): string[] {
    return this.#lines;
  }

  async start(): Promise<void> {
    const file = join(this.state, 'config.json');
    writeFileSync(file, JSON.stringify({ memoryFolder: this.memoryFolder, log: { level: 'info' }, ...this.#config }));
    const args = ['agent', '--listen', `127.0.0.1:${this.#port}`, '--state', this.state, '--name', this.name];
    const [program, ...first] = [...this.#prefix, process.execPath];
    const child = spawn(program, [...first, cli, ...args, '--config', file, '--json'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    let rest = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      this.#lines.push(...lines);
    });
    const ready = await new Promise<{ url: string }>((done, failed) => {
      let out = '';
      child.stdout.setEncoding('utf8').on('data', (text: string) => {
        out += text;
        if (out.includes('\n')) done(JSON.parse(out.slice(0, out.indexOf('\n'))) as { url: string });
      });
      child.once('exit', (code) =>
        failed(new Error(`agent ${this.name} ended with ${code}:\n${this.#lines.join('\n')}${rest}`)),
      );
    });
    this.url = ready.url;
    this.#port = listeningPort(this.pid);
  }

  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  async kill(): Promise<void> {
    await this.#end('SIGKILL');
  }

  stop(): Promise<number | null> {
    return this.#end('SIGTERM');
  }

  #end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined) return Promise.resolve(null);
    if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve(child.exitCode);
    return new Promise((done) => {
      child.once('exit', (code) => done(code));
      child.kill(signal);
    });
  }
}

function endGuests(root: string): void {
  for (const pid of processesBelow(`${root}/`)) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // gone meanwhile
    }
  }
}
