/** One agent of a cluster: a process of its own, that nobody but the cluster ends; its log a file. */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AgentClient } from '../../../src/agent/api/client.ts';
import { controlSocket } from '../../../src/agent/names.ts';
import { PagetideError } from '../../../src/errors.ts';
import type { TestAgent } from '../../../test/support/cluster.ts';
import { projectRoot } from '../references.ts';
import { MARK } from './names.ts';
import { commandIn } from './network.ts';

const READY_MS = 60_000;

/** The command line's main file. */
export const cliPath = (): string => join(projectRoot(), 'dist/src/cli/main.js');

export interface AgentPlace {
  /** The cluster's folder. */
  cluster: string;
  /** The agent's name, and its folder's below that. */
  name: string;
  address: string;
  /** 0: the kernel chooses one, which stays the agent's. */
  port: number;
  /** Where it runs; none: where this process does. */
  namespace: string | undefined;
  /** Fields of its configuration file. */
  config: Record<string, unknown>;
}

/** A host of a cluster and its agent; the helpers of test/support take it, too. */
export class ClusterAgent implements TestAgent {
  readonly name: string;
  readonly address: string;
  readonly namespace: string | undefined;
  readonly state: string;
  readonly memoryFolder: string;
  readonly control: string;
  readonly client: AgentClient;
  /** Its log, JSON lines. */
  readonly logFile: string;
  url = '';
  readonly #place: AgentPlace;
  #port: number;
  #child: ChildProcess | undefined;

  constructor(place: AgentPlace) {
    const folder = join(place.cluster, place.name);
    this.name = place.name;
    this.address = place.address;
    this.namespace = place.namespace;
    this.state = join(folder, 's');
    this.memoryFolder = join(folder, 'm');
    this.control = controlSocket(this.state);
    this.logFile = join(folder, 'agent.log');
    this.client = new AgentClient(`unix:${this.control}`);
    this.#place = place;
    this.#port = place.port;
    mkdirSync(this.state, { recursive: true, mode: 0o700 });
    mkdirSync(this.memoryFolder, { recursive: true, mode: 0o700 });
  }

  get ownUrl(): string {
    return this.url;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  log(): string[] {
    return readFileSync(this.logFile, 'utf8').trimEnd().split('\n');
  }

  /** Resolves when it is ready. @throws PagetideError `PT_INTERNAL` with the end of its log */
  async start(): Promise<void> {
    const { cluster, name, namespace, address, config } = this.#place;
    const file = join(cluster, name, 'config.json');
    writeFileSync(file, JSON.stringify({ memoryFolder: this.memoryFolder, ...config }));
    const args = ['agent', '--listen', `${address}:${this.#port}`, '--state', this.state, '--name', name];
    const argv = [process.execPath, cliPath(), ...args, '--config', file, '--json'];
    const [program, ...rest] = namespace === undefined ? argv : commandIn(namespace, argv);
    const log = openSync(this.logFile, 'a', 0o600);
    let child;
    try {
      // in a session of its own: Ctrl-C is for the owner
      child = spawn(program!, rest, {
        stdio: ['ignore', 'pipe', log],
        detached: true,
        env: { ...process.env, [MARK]: cluster },
      });
    } finally {
      closeSync(log);
    }
    this.#child = child;
    const { url } = await this.#ready(child);
    this.url = url;
    this.#port = Number(new URL(url).port);
  }

  #ready(child: ChildProcess): Promise<{ url: string }> {
    return new Promise((resolve, reject) => {
      const fail = (why: string): void => {
        clearTimeout(late);
        const words = this.log().slice(-5).join('\n');
        reject(new PagetideError('PT_INTERNAL', `the agent of ${this.name} ${why}\n${words}`));
      };
      const exited = (code: number | null, signal: string | null): void =>
        fail(`ended with ${code ?? signal} before it was ready`);
      const late = setTimeout(() => fail(`is not ready after ${READY_MS} ms`), READY_MS);
      let out = '';
      child.stdout!.setEncoding('utf8').on('data', (text: string) => {
        out += text;
        if (!out.includes('\n')) return;
        clearTimeout(late);
        // it ends some time, also after its log is gone
        child.off('exit', exited);
        resolve(JSON.parse(out.slice(0, out.indexOf('\n'))) as { url: string });
      });
      child.once('error', (error) => fail(`did not start: ${error.message}`));
      child.once('exit', exited);
    });
  }

  async kill(): Promise<void> {
    await this.#end('SIGKILL');
  }

  stop(): Promise<number | null> {
    return this.#end('SIGTERM');
  }

  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  #end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null)
      return Promise.resolve(child?.exitCode ?? null);
    return new Promise((resolve) => {
      child.once('exit', (code) => resolve(code));
      child.kill(signal);
    });
  }
}
