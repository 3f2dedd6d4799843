/**
 * The likelihoods that follow from what operators say about where guests will go (src/directory/hint.ts).
 *
 *   plan evacuate HOST          all guests of the host leave it, and none comes to it
 *   plan affinity GUEST HOST…   a guest that moves goes to one of these hosts, or stays where it is one of them
 *
 * For a guest at host a, with O the hosts other than a that are not evacuated, and N the named ones that are not evacuated (a may be among
 * them):
 *
 *   p(h) = m × ( (1 − t) / |O|  +  [h ∈ N] × t / |N| )     for h in O, else 0
 *
 *   m   1 if a is evacuated, else how likely a guest moves at all within the horizon
 *   t   how far an affinity is trusted; 0 where N is empty
 *
 * The likelihoods of a guest sum to m at most: the share of N that is a itself is a guest that stays. An affinity is trusted nearly, not
 * wholly, as a scheduler may find no room there.
 */
import { checkAffinityHosts, checkHintTime, HINTS_LIMIT, type Hint } from '../directory/hint.ts';
import { PagetideError } from '../errors.ts';

/** How far an affinity is trusted: in nine moves of ten. */
export const AFFINITY_TRUST = 0.9;
/** A guest, and the host that it is at. */
export interface GuestAt {
  guest: string;
  at: string;
}

interface Affinity {
  hosts: ReadonlySet<string>;
  endMs: number;
}

/** A guest's likelihoods: of any host it may go to, and what a named one has besides. */
interface Shares {
  any: number;
  named: number;
  names: ReadonlySet<string>;
}

/**
 * The hints that are in force. A later hint about the same host or guest takes the place of the earlier one.
 *
 * @param nowMs a monotonic clock in milliseconds. One that goes back is taken to stand still, so nothing that expired comes back.
 */
export class Hints {
  readonly #nowMs: () => number;
  #latestMs = -Infinity;
  /** By host: when it expires, on the clock. */
  readonly #evacuations = new Map<string, number>();
  readonly #affinities = new Map<string, Affinity>();

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /**
   * The guests of `host` leave it within `forMs` milliseconds.
   *
   * @throws {PagetideError} PT_BAD_ARGUMENT: no host, no such time, too many hints
   */
  evacuate(host: string, forMs: number): void {
    const endMs = this.#end(forMs);
    if (host === '') throw new PagetideError('PT_BAD_ARGUMENT', 'an evacuation plan names a host');
    if (!this.#evacuations.has(host)) this.#makeRoom();
    this.#evacuations.set(host, endMs);
  }

  /**
   * For `forMs` milliseconds: where `guest` goes if it moves.
   *
   * @throws {PagetideError} PT_BAD_ARGUMENT: no guest, no host or too many, no such time, too many hints
   */
  affinity(guest: string, hosts: readonly string[], forMs: number): void {
    const endMs = this.#end(forMs);
    checkAffinityHosts(hosts.length);
    if (guest === '' || hosts.includes(''))
      throw new PagetideError('PT_BAD_ARGUMENT', 'an affinity names a guest and its hosts');
    if (!this.#affinities.has(guest)) this.#makeRoom();
    this.#affinities.set(guest, { hosts: new Set(hosts), endMs });
  }

  /** Takes back what was said about evacuating `host`. Whether anything was. */
  withdrawEvacuation(host: string): boolean {
    this.#expire();
    return this.#evacuations.delete(host);
  }

  /** Takes back what was said about `guest`. Whether anything was. */
  withdrawAffinity(guest: string): boolean {
    this.#expire();
    return this.#affinities.delete(guest);
  }

  /**
   * How likely a guest comes to each of `hosts` within the horizon: an entry a host, each from 0 to 1, 0 for where it is and for hosts that
   * are evacuated. They sum to `moves` at most, or to 1 where its host is evacuated (but for rounding).
   *
   * @param hosts all hosts of the cluster that may take it, each once
   * @param moves how likely a guest moves at all within the horizon, 0 to 1
   */
  likelihoods({ guest, at }: GuestAt, hosts: readonly string[], moves = 1): Float64Array {
    this.#expire();
    const shares = this.#shares(guest, at, this.#open(hosts), hosts, moves);
    return Float64Array.from(hosts, (host) => this.#share(shares, at, host));
  }

  /** How likely each of `guests` comes to `here` within the horizon: an entry a guest, the same figures as {@link likelihoods} gives. */
  arrivals(guests: readonly GuestAt[], here: string, hosts: readonly string[], moves = 1): Float64Array {
    this.#expire();
    if (!hosts.includes(here)) return new Float64Array(guests.length);
    const open = this.#open(hosts);
    return Float64Array.from(guests, ({ guest, at }) =>
      this.#share(this.#shares(guest, at, open, hosts, moves), at, here),
    );
  }

  /** The hints in force, evacuations first, in the order in which they came. What {@link Hints.from} takes. */
  list(): Hint[] {
    const now = this.#expire();
    return [
      ...[...this.#evacuations].map(([host, end]): Hint => ({ kind: 'evacuate', host, leftMs: end - now })),
      ...[...this.#affinities].map(([guest, { hosts, endMs }]): Hint => ({
        kind: 'affinity',
        guest,
        hosts: [...hosts],
        leftMs: endMs - now,
      })),
    ];
  }

  /**
   * Hints as {@link list} gave them, with the time that they had left then: a monotonic clock doesn't outlive the process, so the time
   * between is not counted.
   *
   * @throws {PagetideError} PT_BAD_ARGUMENT, as when they are made
   */
  static from(hints: readonly Hint[], nowMs: () => number): Hints {
    const made = new Hints(nowMs);
    for (const hint of hints)
      if (hint.kind === 'evacuate') made.evacuate(hint.host, hint.leftMs);
      else made.affinity(hint.guest, hint.hosts, hint.leftMs);
    return made;
  }

  #open(hosts: readonly string[]): ReadonlySet<string> {
    return new Set(hosts.filter((host) => !this.#evacuations.has(host)));
  }

  #shares(guest: string, at: string, open: ReadonlySet<string>, hosts: readonly string[], moves: number): Shares {
    const others = open.size - (open.has(at) ? 1 : 0);
    const stays = !this.#evacuations.has(at);
    // an affinity may name where the guest is, which may not be among the hosts that take others
    const named = [...(this.#affinities.get(guest)?.hosts ?? [])].filter(
      (host) => open.has(host) || (host === at && stays && !hosts.includes(at)),
    );
    const moving = stays ? Math.min(1, Math.max(0, moves)) : 1;
    const trust = named.length === 0 ? 0 : AFFINITY_TRUST;
    return {
      any: others === 0 ? 0 : (moving * (1 - trust)) / others,
      named: named.length === 0 ? 0 : (moving * trust) / named.length,
      names: new Set(named),
    };
  }

  #share(shares: Shares, at: string, host: string): number {
    if (host === at || this.#evacuations.has(host)) return 0;
    return shares.any + (shares.names.has(host) ? shares.named : 0);
  }

  #end(forMs: number): number {
    checkHintTime(forMs);
    return this.#expire() + forMs;
  }

  #makeRoom(): void {
    if (this.#evacuations.size + this.#affinities.size >= HINTS_LIMIT)
      throw new PagetideError('PT_BAD_ARGUMENT', `there are ${HINTS_LIMIT} hints already; withdraw some`);
  }

  /** Drops what has expired; the time now. */
  #expire(): number {
    this.#latestMs = Math.max(this.#latestMs, this.#nowMs());
    for (const [host, end] of this.#evacuations) if (end <= this.#latestMs) this.#evacuations.delete(host);
    for (const [guest, { endMs }] of this.#affinities) if (endMs <= this.#latestMs) this.#affinities.delete(guest);
    return this.#latestMs;
  }
}
