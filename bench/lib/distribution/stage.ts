/** The three hosts of the experiment while it runs: what is recorded of them, and how they are put back into the same state. */
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError } from '../../../src/errors.ts';
import { until } from '../../../test/support/migrate.ts';
import { processesBelow } from '../../../test/support/processes.ts';
import { startCpuUse } from '../cpu-use.ts';
import type { NetnsCluster } from '../netns-cluster/cluster.ts';
import { counterPeak, monotonicMs, startCounters, type Counters, type Recorder } from '../netns-cluster/recorder.ts';
import { controlOf } from './control.ts';
import type { Host, Mark, Measured, Pass, Score, Setup } from './types.ts';
import { bytesBetween } from './windows.ts';

const KEPT_MS = 120_000;
const POLL_MS = 250;
/** A cache that nobody adds to for so long: what guests left behind is in it. */
const SETTLED_MS = 1000;
/** Of hints: longer than an experiment. */
const HINT_MS = 6 * 3_600_000;

export class Stage {
  readonly hosts: readonly Host[];
  readonly setup: Setup;
  readonly progress: (text: string) => void;
  readonly marks: Mark[] = [];
  readonly passes: Pass[] = [];
  readonly #cluster: NetnsCluster;
  readonly #recorder: Recorder<Counters[]>;
  /** Everything whose bytes are counted when the recorder has stopped. */
  readonly #measured: Measured[] = [];
  readonly #left = new Map<Host, number>();

  private constructor(
    cluster: NetnsCluster,
    recorder: Recorder<Counters[]>,
    setup: Setup,
    progress: (text: string) => void,
  ) {
    this.#cluster = cluster;
    this.#recorder = recorder;
    this.hosts = cluster.hosts;
    this.setup = setup;
    this.progress = progress;
  }

  /** @throws PagetideError `PT_UNSUPPORTED_HOST` where the hosts have no links of their own */
  static async open(cluster: NetnsCluster, setup: Setup, progress: (text: string) => void): Promise<Stage> {
    const { network } = cluster;
    if (network === undefined) throw new PagetideError('PT_UNSUPPORTED_HOST', 'nothing is recorded on loopback');
    return new Stage(cluster, await startCounters(network), setup, progress);
  }

  get distributes(): boolean {
    return this.setup.arms.length > 1;
  }

  /** @throws PagetideError `PT_UNSUPPORTED_HOST` where agents should distribute and don't */
  async pause(): Promise<void> {
    if (!this.distributes) return;
    for (const { client } of this.hosts) await controlOf(client).pauseDistribution();
  }

  /** Notes what the links of `hosts` and the processors do meanwhile. */
  async measure<T>(hosts: readonly number[], work: () => Promise<T>): Promise<{ result: T; measured: Measured }> {
    const end = startCpuUse(() => this.#processes());
    const fromMs = monotonicMs();
    const result = await work();
    const measured: Measured = { fromMs, toMs: monotonicMs(), hosts: [...hosts], linkBytes: 0, cpu: end() };
    return { result, measured };
  }

  /** Has its bytes counted at the end. */
  note<M extends Measured>(measured: M): M {
    this.#measured.push(measured);
    return measured;
  }

  /** A part of the experiment, marked in the plot of the network's use. */
  async phase<T>(name: string, work: () => Promise<T>): Promise<T> {
    this.progress(name);
    const { result, measured } = await this.measure([...this.hosts.keys()], work);
    this.marks.push(this.note({ ...measured, name }));
    return result;
  }

  /** A guest has left this host: what it leaves behind goes into the cache, some time. */
  left(host: Host): void {
    this.#left.set(host, (this.#left.get(host) ?? 0) + 1);
  }

  /** Nothing is brought any more, and no cache has a page: what guests left behind on the way is gone, too. */
  async clean(): Promise<void> {
    await this.pause();
    for (const host of this.hosts) {
      await until(`${host.name} has kept what guests left behind`, () => this.#keptAll(host), KEPT_MS);
      let before = -1;
      for (;;) {
        const { insertions } = (await host.client.cacheInfo()).cache!;
        if (insertions === before) break;
        before = insertions;
        await delay(SETTLED_MS);
      }
      await host.client.clearCache();
      const { used } = (await host.client.cacheInfo()).cache!;
      if (used !== 0) throw new PagetideError('PT_INTERNAL', `${host.name}: ${used} pages are left in the cache`);
    }
  }

  #keptAll(host: Host): boolean {
    const kept = host.log().filter((line) => line.includes('kept what the guest left behind')).length;
    return kept >= (this.#left.get(host) ?? 0);
  }

  /** Tells the hosts where guests will move to. */
  async plan(guests: readonly { name: string; to: number }[]): Promise<void> {
    for (const { name, to } of guests)
      await controlOf(this.hosts[0]!.client).planAffinity(name, [this.hosts[to]!.name], HINT_MS);
  }

  async forgetPlans(guests: readonly { name: string }[]): Promise<void> {
    for (const { name } of guests)
      await controlOf(this.hosts[0]!.client).withdrawPlan({ kind: 'affinity', guest: name });
  }

  /** Lets distribution run until all hosts are idle after a plan of their own, or for `mostMs`; pauses it then. */
  async distribute(arm: Pass['arm'], only?: number): Promise<Pass> {
    const { average, peak, mostMs } = this.setup;
    const hosts = only === undefined ? this.hosts : [this.hosts[only]!];
    const began = Date.now();
    const { result, measured } = await this.measure([...this.hosts.keys()], async () => {
      for (const { client } of hosts) {
        await controlOf(client).setDistributionRates({ average, peak });
        await controlOf(client).resumeDistribution();
      }
      const deadline = performance.now() + mostMs;
      let idle = false;
      while (!idle && performance.now() < deadline) {
        await delay(POLL_MS);
        const states = await Promise.all(hosts.map(({ client }) => controlOf(client).distribution()));
        idle = states.every(
          ({ state, lastPlan, queuedPages }) => state === 'idle' && queuedPages === 0 && (lastPlan?.at ?? 0) > began,
        );
      }
      for (const { client } of hosts) await controlOf(client).pauseDistribution();
      return idle;
    });
    const held = await Promise.all(this.hosts.map(({ client }) => controlOf(client).distribution()));
    const pass: Pass = {
      ...measured,
      arm,
      idle: result,
      heldBytes: held.map(({ heldBytes }) => heldBytes),
      peakIn: [],
      peakOut: [],
    };
    this.passes.push(this.note(pass));
    this.progress(`  ${describePass(pass)}`);
    return pass;
  }

  async score(): Promise<Score> {
    const score = { spentBytes: 0, savedBytes: 0 };
    for (const { client } of this.hosts) {
      for (const { spentBytes, savedBytes } of (await controlOf(client).distribution()).domains) {
        score.spentBytes += spentBytes;
        score.savedBytes += savedBytes;
      }
    }
    return score;
  }

  /** Ends the recording and counts the bytes of all that was noted. Resolves with the counters, a host each. */
  async close(): Promise<Counters[]> {
    const links = await this.#recorder.stop();
    for (const measured of this.#measured) {
      const { fromMs, toMs } = measured;
      measured.linkBytes = measured.hosts.reduce(
        (sum, host) => sum + bytesBetween(links[host]!.atMs, links[host]!.bytesOut, fromMs, toMs),
        0,
      );
    }
    for (const pass of this.passes) {
      pass.peakIn = links.map(({ atMs, bytesIn }) => peakBetween(atMs, bytesIn, pass));
      pass.peakOut = links.map(({ atMs, bytesOut }) => peakBetween(atMs, bytesOut, pass));
    }
    return links;
  }

  #processes(): { name: string; pid: number }[] {
    const agents = this.hosts.map(({ name, pid }) => ({ name, pid }));
    const known = new Set(agents.map(({ pid }) => pid));
    const others = processesBelow(`${this.#cluster.folder}/`).filter((pid) => !known.has(pid));
    return [...agents, ...others.map((pid) => ({ name: 'guests', pid }))];
  }
}

function peakBetween(atMs: Float64Array, counter: Float64Array, { fromMs, toMs }: Measured): number {
  let from = atMs.findIndex((at) => at >= fromMs);
  if (from < 0) from = atMs.length;
  let to = atMs.findIndex((at) => at > toMs);
  if (to < 0) to = atMs.length;
  return counterPeak(atMs.subarray(from, to), counter.subarray(from, to)).bytes;
}

export function describePass({ arm, fromMs, toMs, idle, heldBytes }: Pass): string {
  const held = heldBytes.map((bytes) => (bytes / 2 ** 20).toFixed(1)).join(', ');
  return `${arm}: ${((toMs - fromMs) / 1000).toFixed(1)} s${idle ? '' : ', not idle at its end'}, held ${held} MiB`;
}
