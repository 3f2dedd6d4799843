/** The three hosts of the experiment while it runs: what is recorded of them, and how they are put back into the same state. */
import { setTimeout as delay } from 'node:timers/promises';
import { PagetideError } from '../../../src/errors.ts';
import { until } from '../../../test/support/migrate.ts';
import { processesBelow } from '../../../test/support/processes.ts';
import { startCpuUse } from '../cpu-use.ts';
import { DOMAIN, type NetnsCluster } from '../netns-cluster/cluster.ts';
import { monotonicMs, startCapture, startCounters, type Counters, type Recorder } from '../netns-cluster/recorder.ts';
import { reportedTags, statesOf } from './control.ts';
import { peaksOf } from './peaks.ts';
import type { Host, Mark, Measured, Pass, Setup } from './types.ts';
import { bytesBetween } from './windows.ts';

const KEPT_MS = 120_000;
const POLL_MS = 250;
/** What is new of guests is told at every report: nothing new for so long is the end of it. */
const STEADY_MS = 6000;
const KNOWN_MS = 120_000;
/** Longer than a report and the passes that make a page stable take. */
const KNOWN_STEADY_MS = 3500;
/** Share of tags that comes and goes with the guests' loads. */
const UNKNOWN = 0.05;
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
  readonly #beganMs = performance.now();
  #known: number[] | undefined;

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

  /** It goes with the cluster, and so do processes that have a file in it, also after Ctrl-C. */
  get folder(): string {
    return this.#cluster.folder;
  }

  /** @throws PagetideError `PT_UNSUPPORTED_HOST` where the hosts have no links of their own */
  static async open(cluster: NetnsCluster, setup: Setup, progress: (text: string) => void): Promise<Stage> {
    const { network } = cluster;
    if (network === undefined) throw new PagetideError('PT_UNSUPPORTED_HOST', 'nothing is recorded on loopback');
    return new Stage(cluster, await startCounters(network), setup, progress);
  }

  async pause(): Promise<void> {
    await Promise.all(this.hosts.map(({ client }) => client.pauseDistribution()));
  }

  /** @throws PagetideError `PT_CANCELLED`: what takes `ms` would end after the time that the experiment has */
  checkTime(ms = 0): void {
    if (performance.now() - this.#beganMs + ms > this.setup.allMs)
      throw new PagetideError('PT_CANCELLED', `its ${this.setup.allMs / 60_000} minutes are over`);
  }

  /** Notes what the links of all hosts and the processors do meanwhile. */
  async measure<T>(work: () => Promise<T>): Promise<{ result: T; measured: Measured }> {
    const end = startCpuUse(() => this.#processes());
    const fromMs = monotonicMs();
    const result = await work();
    const measured: Measured = { fromMs, toMs: monotonicMs(), linkBytes: 0, cpu: end() };
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
    const { result, measured } = await this.measure(work);
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
    await Promise.all(this.hosts.map((host) => this.#clean(host)));
  }

  async #clean(host: Host): Promise<void> {
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

  /**
   * Resolves when the directory knows the guests: the first time, when it is told no more that is new; later, when it was told about as much as then of
   * each host for a while. A guest that has just moved home is still told of from before it left, then not, then anew: one look proves nothing.
   * @throws PagetideError `PT_INTERNAL`: it doesn't come to know them, so a pass would measure something else
   */
  async known(): Promise<void> {
    const wanted = this.#known;
    const steadyMs = wanted === undefined ? STEADY_MS : KNOWN_STEADY_MS;
    const deadline = performance.now() + KNOWN_MS;
    let before = await reportedTags(this.hosts);
    let since = performance.now();
    while (performance.now() - since < steadyMs) {
      if (performance.now() > deadline)
        throw new PagetideError(
          'PT_INTERNAL',
          `the directory knows ${before.join(', ')} tags, not ${wanted?.join(', ') ?? 'all'}`,
        );
      await delay(POLL_MS);
      const now = await reportedTags(this.hosts);
      const steady =
        wanted === undefined
          ? now.some((count) => count > 0) && now.every((count, i) => count <= before[i]! * (1 + UNKNOWN / 5))
          : now.every((count, i) => count >= wanted[i]! * (1 - UNKNOWN));
      if (steady) continue;
      since = performance.now();
      before = now;
    }
    if (wanted !== undefined) return;
    this.#known = before;
    this.progress(`  the directory was told of ${before.join(', ')} tags`);
  }

  #keptAll(host: Host): boolean {
    const kept = host.log().filter((line) => line.includes('kept what the guest left behind')).length;
    return kept >= (this.#left.get(host) ?? 0);
  }

  /** Tells the hosts where guests will move to. */
  async plan(guests: readonly { name: string; to: number }[]): Promise<void> {
    for (const { name, to } of guests)
      await this.hosts[0]!.client.planAffinity(name, [this.hosts[to]!.name], HINT_MS, DOMAIN);
  }

  async forgetPlans(guests: readonly { name: string }[]): Promise<void> {
    for (const { name } of guests) await this.hosts[0]!.client.withdrawPlan({ kind: 'affinity', guest: name }, DOMAIN);
  }

  /** Lets distribution run until all hosts are idle after a plan of their own, or for `mostMs`; pauses it then. */
  async distribute(arm: Pass['arm'], only?: number): Promise<Pass> {
    await this.known();
    const hosts = only === undefined ? this.hosts : [this.hosts[only]!];
    const network = this.#cluster.network!;
    const captures = await Promise.all(network.hosts.map((host) => startCapture(network, host)));
    const { result: idle, measured } = await this.measure(() => this.#runUntilIdle(hosts));
    const captured = await Promise.all(captures.map((capture) => capture.stop()));
    const heldBytes = (await statesOf(this.hosts)).map((state) => state.heldBytes);
    const pass: Pass = { ...measured, arm, idle, heldBytes, ...peaksOf(captured) };
    this.passes.push(this.note(pass));
    this.progress(`  ${describePass(pass)}`);
    return pass;
  }

  async #runUntilIdle(hosts: readonly Host[]): Promise<boolean> {
    const { average, peak, mostMs } = this.setup;
    const began = Date.now();
    for (const { client } of hosts) {
      await client.setDistributionRates({ average, peak });
      await client.resumeDistribution();
    }
    const deadline = performance.now() + mostMs;
    let idle = false;
    while (!idle && performance.now() < deadline) {
      await delay(POLL_MS);
      idle = (await statesOf(hosts)).every(
        ({ state, lastPlan, queuedPages }) => state === 'idle' && queuedPages === 0 && (lastPlan?.at ?? 0) > began,
      );
    }
    await Promise.all(hosts.map(({ client }) => client.pauseDistribution()));
    return idle;
  }

  /** Ends the recording and counts the bytes of all that was noted. Resolves with the counters, a host each. */
  async close(): Promise<Counters[]> {
    const links = await this.#recorder.stop();
    for (const measured of this.#measured) {
      const { fromMs, toMs } = measured;
      measured.linkBytes = links.reduce(
        (sum, { atMs, bytesOut }) => sum + bytesBetween(atMs, bytesOut, fromMs, toMs),
        0,
      );
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

export function describePass({ arm, fromMs, toMs, idle, heldBytes }: Pass): string {
  const held = heldBytes.map((bytes) => (bytes / 2 ** 20).toFixed(1)).join(', ');
  return `${arm}: ${((toMs - fromMs) / 1000).toFixed(1)} s${idle ? '' : ', not idle at its end'}, held ${held} MiB`;
}
