/**
 * The evacuation of this host: all of its guests move to other hosts.
 *
 *   survey ──► plan (migration/evacuation-plan.ts) ──► running ──► ended
 *                                                        │ stop    ▲
 *                                                        ╰─► stopping: nobody begins any more
 *
 *   a guest:  waiting ── a slot is free, nobody like it is on the way there ──► moving ──► moved
 *                ▲                                                                │
 *                ╰── its target could not take it: planned anew without that ─────┴──► stays
 *
 * It owns nothing that has to be durable: each guest is in a migration with a journal of its own, or is where it was. So an agent that is
 * restarted takes the migrations up and forgets the evacuation; and beginning another one goes on with the guests that are still here.
 *
 * One fetch of a page for all guests that need it: guests that have pages in common (areAlike) are never under way to one target at
 * once. The first one brings the pages; what it came with is listed in the target's resident index when it has arrived (and is in the
 * cache, where there is one), which the next one waits for, a while, by asking the target for them.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { asPagetideError, errorFromJson, PagetideError, type ErrorCode, type ErrorJson } from '../errors.ts';
import { areAlike, planEvacuation, type EvacuationGuest, type EvacuationTarget } from '../migration/evacuation-plan.ts';
import type { MigrationInfo, Phase } from '../migration/types.ts';
import type { Survey, SurveyedTarget } from './evacuation-survey.ts';
import { countsOf, totalsOf, type EvacuationCounts } from './evacuation-totals.ts';
import type { EvacuatedGuest, EvacuatedState, EvacuateRequest, EvacuationInfo, MigrateRequest } from './service.ts';
import { formatSize } from './units.ts';

/** How long a guest waits for the pages that one like it has brought to be found at the target, and between two looks. Milliseconds. */
const LISTED_MS = 5_000;
const LOOK_MS = 200;
/** So many of them are enough: what the first one has written since is another page now. */
const ENOUGH = 0.8;

/** Failures that another target doesn't mend. */
const OWN: ReadonlySet<ErrorCode> = new Set([
  'PT_BAD_ARGUMENT',
  'PT_CANCELLED',
  'PT_GUEST_BUSY',
  'PT_GUEST_STATE',
  'PT_GUEST_UNKNOWN',
  'PT_GUEST_UNSAFE',
  'PT_IN_DOUBT',
  'PT_NOT_CONVERGING',
  'PT_PAGE_DAMAGED',
  'PT_VMM_GONE',
]);

const ENDED: ReadonlySet<Phase> = new Set(['done', 'failed', 'cancelled']);

export interface EvacuationParts {
  /** Starts a migration; resolves once it is journaled. */
  migrate(request: MigrateRequest): Promise<MigrationInfo>;
  watch(migration: string, signal: AbortSignal): AsyncIterable<MigrationInfo>;
  cancel(guest: string): Promise<MigrationInfo>;
  /** Bytes of pages a second from now on, at most. Of a migration that is under way; of others, nothing. */
  limit(migration: string, bandwidth: number): void;
  log: Logger;
}

interface Entry {
  readonly guest: EvacuationGuest;
  state: EvacuatedState;
  to: string | undefined;
  expectedBytes: number | undefined;
  /** Targets that could not take it, and why. */
  readonly refused: Map<string, ErrorJson>;
  last: MigrationInfo | undefined;
  error: ErrorJson | undefined;
}

export class Evacuation {
  readonly #parts: EvacuationParts;
  readonly #request: EvacuateRequest;
  readonly #survey: Survey;
  /** In the order in which they go. */
  #entries: Entry[] = [];
  /** Targets that can't be reached any more. */
  readonly #down = new Map<string, ErrorJson>();
  readonly #startedAt = performance.now();
  readonly #closed = new AbortController();
  #state: EvacuationInfo['state'] = 'planned';
  #elapsedMs: number | undefined;
  /** Who is under way is to come back. */
  #isCancelled = false;
  #onChange: (() => void) | undefined;

  /** Plans; nothing is done before {@link begin}. */
  constructor(parts: EvacuationParts, request: EvacuateRequest, survey: Survey) {
    this.#parts = parts;
    this.#request = request;
    this.#survey = survey;
    const fresh = { expectedBytes: undefined, last: undefined, error: undefined };
    for (const { guest, to } of survey.leaving)
      this.#entries.push({ ...fresh, guest, state: 'waiting', to, refused: new Map() });
    for (const guest of survey.guests)
      this.#entries.push({ ...fresh, guest, state: 'waiting', to: undefined, refused: new Map() });
    this.#plan();
    for (const { guest: name, memory, error } of survey.stuck) {
      const guest = { name, memory, pages: new Uint32Array(), pageBytes: 0, unknownBytes: 0 };
      this.#entries.push({ ...fresh, guest, state: 'stays', to: undefined, refused: new Map(), error });
    }
  }

  /** Called at every change. */
  onChange(callback: () => void): void {
    this.#onChange = callback;
  }

  get ended(): boolean {
    return this.#state === 'ended';
  }

  /** @throws PagetideError `PT_NO_TARGET` where guests could go, and no target takes any of them: nothing has begun */
  check(): void {
    if (this.#survey.guests.length === 0 || this.#survey.leaving.length > 0) return;
    if (this.#entries.some(({ state }) => state === 'waiting')) return;
    const first = this.#entries.find(({ guest }) => guest.name === this.#survey.guests[0]!.name);
    const why = first?.error === undefined ? undefined : errorFromJson(first.error);
    throw new PagetideError('PT_NO_TARGET', `no target takes any guest: ${why?.message ?? ''}`, { cause: why });
  }

  begin(): void {
    this.#state = 'running';
    this.#followLeaving();
    this.#next();
  }

  /** Those on their way by an earlier command. */
  #followLeaving(): void {
    for (const { guest, migration } of this.#survey.leaving) {
      const entry = this.#entries.find((one) => one.guest === guest)!;
      entry.state = 'moving';
      void this.#follow(entry, migration).catch((thrown: unknown) => this.#failed(entry, asPagetideError(thrown)));
    }
  }

  /** See {@link AgentService.stopEvacuation}. Where nothing has begun, guests that are on their way all the same are followed. */
  stop(cancel: boolean): void {
    if (this.ended) return;
    if (this.#state === 'planned') this.#followLeaving();
    this.#state = 'stopping';
    for (const entry of this.#entries) if (entry.state === 'waiting') this.#stay(entry, notBegun());
    if (cancel) {
      this.#isCancelled = true;
      for (const entry of this.#entries)
        if (entry.state === 'moving' && entry.last !== undefined) this.#cancel(entry.guest.name);
    }
    this.#next();
  }

  #cancel(guest: string): void {
    this.#parts.cancel(guest).catch((thrown: unknown) => {
      const { code, message } = asPagetideError(thrown);
      this.#parts.log.info({ guest, code }, `a guest of the evacuation moves on: ${message}`);
    });
  }

  /** The agent ends: nothing is followed any more, and the migrations are left as they are. */
  close(): void {
    this.#state = 'ended';
    this.#closed.abort();
  }

  info(): EvacuationInfo {
    const { to, parallel, bandwidth } = this.#request;
    return {
      state: this.#state,
      to,
      parallel,
      ...(bandwidth === undefined ? {} : { bandwidth }),
      elapsedMs: this.#elapsedMs ?? performance.now() - this.#startedAt,
      guests: this.#entries.map(infoOf),
      totals: totalsOf(this.#entries),
    };
  }

  counts(): EvacuationCounts {
    return countsOf(this.#entries);
  }

  /** Begins whatever may begin now; ends it when nothing is left. */
  #next(): void {
    if (this.#state === 'running')
      for (let entry = this.#pick(); entry !== undefined; entry = this.#pick()) this.#move(entry);
    const isOver = this.#entries.every(({ state }) => state === 'moved' || state === 'stays');
    if (isOver && !this.ended) {
      this.#elapsedMs = performance.now() - this.#startedAt;
      this.#state = 'ended';
      const { moved, stay, bytes } = this.info().totals;
      this.#parts.log.info({ moved, stay, wire: bytes.wire }, 'the evacuation has ended');
    }
    this.#onChange?.();
  }

  /** The first that waits, whose target has a place, and to which nobody like it is on the way. */
  #pick(): Entry | undefined {
    // a guest of which nobody knows whose it is may be so for long: the others need not wait for that
    const moving = this.#entries.filter(({ state, last }) => state === 'moving' && last?.progress.phase !== 'in-doubt');
    if (moving.length >= this.#request.parallel) return undefined;
    return this.#entries.find(({ state, to, guest }) => {
      if (state !== 'waiting' || to === undefined) return false;
      const there = moving.filter((other) => sameOrigin(other.to, to));
      return (
        there.length < Math.max(1, this.#target(to)?.places ?? 1) &&
        !there.some((other) => areAlike(other.guest, guest))
      );
    });
  }

  #move(entry: Entry): void {
    entry.state = 'moving';
    void this.#start(entry).catch((thrown: unknown) => this.#failed(entry, asPagetideError(thrown)));
  }

  async #start(entry: Entry): Promise<void> {
    const { to, guest } = entry;
    await this.#siblingsListed(entry);
    if (this.#closed.signal.aborted) return;
    if (this.#state === 'stopping') {
      this.#stay(entry, notBegun());
      this.#next();
      return;
    }
    const { mode, maxDowntimeMs, maxRounds, onNoConvergence, verify } = this.#request;
    // the others are told first, so that they and this one keep to the limit
    const bandwidth = this.#divide();
    const { id } = await this.#parts.migrate({
      ...{ guest: guest.name, to: to!, mode, verify },
      ...(maxDowntimeMs === undefined ? {} : { maxDowntimeMs }),
      ...(maxRounds === undefined ? {} : { maxRounds }),
      ...(onNoConvergence === undefined ? {} : { onNoConvergence }),
      ...(bandwidth === undefined ? {} : { bandwidth }),
    });
    await this.#follow(entry, id);
  }

  async #follow(entry: Entry, migration: string): Promise<void> {
    const { signal } = this.#closed;
    for await (const info of this.#parts.watch(migration, signal)) {
      const before = entry.last?.progress.phase;
      entry.last = info;
      if (before === undefined) {
        this.#divide();
        // asked for while it began
        if (this.#isCancelled) this.#cancel(entry.guest.name);
      }
      // one in doubt gives its slot to another
      if (before !== info.progress.phase && info.progress.phase === 'in-doubt') this.#next();
      else this.#onChange?.();
    }
    const { last } = entry;
    if (signal.aborted || last === undefined || !ENDED.has(last.progress.phase)) return;
    if (last.progress.phase !== 'done') {
      const error = last.error ?? new PagetideError('PT_INTERNAL', 'it failed without telling why').toJSON();
      this.#failed(entry, errorFromJson(error));
      return;
    }
    entry.state = 'moved';
    entry.error = undefined;
    if (last.report?.verified === false) {
      // nobody else is to follow it before somebody has looked
      entry.error = new PagetideError('PT_VERIFY_FAILED', `'${entry.guest.name}' has bad frames`).toJSON();
      this.#parts.log.fatal({ guest: entry.guest.name, code: entry.error.code }, 'the evacuation is stopped');
      this.stop(false);
    }
    this.#divide();
    this.#next();
  }

  /** It is still here: to go elsewhere, where that may help. */
  #failed(entry: Entry, error: PagetideError): void {
    if (this.#closed.signal.aborted) return;
    const { to, guest } = entry;
    const { code } = error;
    this.#parts.log.warn(
      { guest: guest.name, target: to, code },
      `a guest could not be evacuated there: ${error.message}`,
    );
    if (to !== undefined) entry.refused.set(to, error.toJSON());
    if (code === 'PT_PEER_UNREACHABLE' && to !== undefined) this.#down.set(to, error.toJSON());
    if (this.#state === 'stopping' || OWN.has(code) || to === undefined || this.#target(to) === undefined) {
      this.#stay(entry, error.toJSON());
    } else {
      entry.state = 'waiting';
      this.#plan();
    }
    this.#divide();
    this.#next();
  }

  #stay(entry: Entry, error: ErrorJson): void {
    entry.state = 'stays';
    entry.error = error;
  }

  /** Plans for all that wait, with what the targets have, and have left, once all others are where they go. */
  #plan(): void {
    // before it begins these are under way already
    const isLeaving = (guest: EvacuationGuest): boolean =>
      this.#state === 'planned' && this.#survey.leaving.some((one) => one.guest === guest);
    const waiting = this.#entries.filter(({ state, guest }) => state === 'waiting' && !isLeaving(guest));
    const taken = this.#entries.filter(
      ({ state, guest }) => state === 'moving' || state === 'moved' || isLeaving(guest),
    );
    const targets = this.#survey.targets.map((target): EvacuationTarget => {
      const there = taken.filter(({ to }) => sameOrigin(to, target.url)).map(({ guest }) => guest);
      const refuses = new Map(target.refuses);
      for (const { guest, refused } of waiting) {
        const error = refused.get(target.url) ?? this.#down.get(target.url);
        if (error !== undefined) refuses.set(guest.name, error);
      }
      return {
        url: target.url,
        room: target.room - there.reduce((sum, { memory }) => sum + memory, 0),
        has: broughtTo(target, there),
        refuses,
      };
    });
    const { placements, left } = planEvacuation(
      waiting.map(({ guest }) => guest),
      targets,
    );
    const order = new Map(placements.map(({ guest }, at) => [guest, at]));
    for (const entry of waiting) {
      const at = order.get(entry.guest.name);
      entry.to = at === undefined ? undefined : placements[at]!.to;
      entry.expectedBytes = at === undefined ? undefined : placements[at]!.bytes;
    }
    for (const name of left) {
      const entry = waiting.find(({ guest }) => guest.name === name)!;
      const reason = [...entry.refused.values()].at(-1);
      this.#stay(entry, reason ?? noRoom(entry.guest, targets));
    }
    // those under way and those that stay keep their place before and behind
    const rank = ({ state, guest }: Entry): number => {
      if (state !== 'waiting') return state === 'stays' ? Infinity : -1;
      return order.get(guest.name) ?? -1;
    };
    this.#entries = [...this.#entries].sort((a, b) => compare(rank(a), rank(b)));
  }

  /**
   * Tells all under way their share of the whole bandwidth; those about to begin have theirs counted. Pages that faults wait for are not
   * held up by it.
   * @returns a share, bytes a second; undefined: there is no limit
   */
  #divide(): number | undefined {
    const { bandwidth } = this.#request;
    if (bandwidth === undefined) return undefined;
    const moving = this.#entries.filter(({ state }) => state === 'moving');
    const share = Math.max(1, Math.floor(bandwidth / Math.max(1, moving.length)));
    for (const { last } of moving) if (last !== undefined) this.#parts.limit(last.id, share);
    return share;
  }

  /** Resolves when the target has most of what guests like this one have brought there, or after a while. */
  async #siblingsListed({ guest, to }: Entry): Promise<void> {
    const { domain } = guest;
    const target = this.#target(to!);
    if (domain === undefined || target === undefined) return;
    const there = this.#entries
      .filter((one) => one.state === 'moved' && sameOrigin(one.to, to!))
      .map((one) => one.guest);
    const before = target.has.get(domain);
    const brought = broughtTo(target, there).get(domain);
    if (there.length === 0 || brought === undefined) return;
    const wanted = guest.pages.filter((page) => brought[page] === 1 && before?.[page] !== 1);
    const patience = performance.now() + LISTED_MS;
    while (wanted.length > 0 && this.#state === 'running' && performance.now() < patience) {
      const held = await this.#survey.ask(to!, domain, wanted);
      if (held === undefined || held.reduce((sum, one) => sum + one, 0) >= wanted.length * ENOUGH) return;
      await delay(LOOK_MS, undefined, { signal: this.#closed.signal }).catch(() => undefined); // the agent ends
    }
  }

  #target(to: string): SurveyedTarget | undefined {
    return this.#survey.targets.find(({ url }) => sameOrigin(url, to));
  }
}

/** What a target has of the sampled pages, with those of guests that are there, or on their way. */
function broughtTo(target: EvacuationTarget, there: readonly EvacuationGuest[]): Map<string, Uint8Array> {
  const has = new Map(target.has);
  for (const { domain, pages } of there) {
    if (domain === undefined || pages.length === 0) continue;
    const before = has.get(domain) ?? new Uint8Array();
    const after = new Uint8Array(pages.reduce((most, page) => Math.max(most, page + 1), before.length));
    after.set(before);
    for (const page of pages) after[page] = 1;
    has.set(domain, after);
  }
  return has;
}

function infoOf({ guest, state, to, expectedBytes, last, error }: Entry): EvacuatedGuest {
  return {
    guest: guest.name,
    state,
    memory: guest.memory,
    ...(to === undefined ? {} : { to }),
    ...(expectedBytes === undefined ? {} : { expectedBytes }),
    ...(last === undefined ? {} : { migration: last.id, mode: last.mode, progress: last.progress }),
    ...(last?.report === undefined ? {} : { report: last.report }),
    ...(error === undefined ? {} : { error }),
  };
}

function notBegun(): ErrorJson {
  const hint = 'Repeat the command: it goes on with what is still there.';
  return new PagetideError('PT_CANCELLED', 'the evacuation was stopped before it began', { hint }).toJSON();
}

function noRoom({ name, memory }: EvacuationGuest, targets: readonly EvacuationTarget[]): ErrorJson {
  const refused = targets.flatMap(({ refuses }) => refuses.get(name) ?? []);
  if (refused.length === targets.length && refused.length > 0) return refused[0]!;
  const rooms = targets.map(
    ({ url, room, refuses }) => `${url}: ${refuses.get(name)?.message ?? formatSize(Math.max(0, room))}`,
  );
  return new PagetideError('PT_NO_TARGET', `'${name}' needs ${formatSize(memory)}; left: ${rooms.join(', ')}`).toJSON();
}

function sameOrigin(a: string | undefined, b: string): boolean {
  return a !== undefined && URL.canParse(a) && URL.canParse(b) && new URL(a).origin === new URL(b).origin;
}

/** As infinities have no difference. */
function compare(a: number, b: number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
