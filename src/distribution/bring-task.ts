/**
 * The distribution worker: brings pages from other hosts into the cache, as the pace allows.
 *
 *   errands ─► which are here? ─► wanted, each once ─► pace ─► the least busy holder ─┬─ right ─► cacheInsert ─► told to all that want it
 *                                      ▲                                             ├─ wrong ─► counted, the holder rests ─┐
 *                                      └────────── another holder, or nobody ◄───────┴─ not there, cut, too slow ────────────┘
 *
 * A page enters the cache only through the cache's own insert, which compares its copy with the tag, under the key that the cache has of the
 * domain *then*. Whoever removes a domain takes that key away first (PageCache.removeDomain), so nothing of it gets in afterwards, whatever is on
 * its way here: the insert says that it could not be verified, and all errands of the domain end.
 *
 * Each holder is tried once for a page, with bounded waits (holder.ts), so every errand ends, but for the time that this host stands back.
 */
import { asPagetideError } from '../errors.ts';
import { Insertion, native } from '../memory/native.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { isSet, type TagPages } from '../transport/wire-tag-pages.ts';
import { BringControl } from './bring-control.ts';
import { BringRun, Wanted } from './bring-run.ts';
import { Outcome, type BringResult, type BringTask, type ErrandResult } from './errand.ts';
import { Holder } from './holder.ts';
import { Pace } from './pace.ts';
import { connectionCost, pagesAtOnce, requestCost } from './wire-cost.ts';

/** How often it looks at what the main thread says, milliseconds: an errand that is given up ends within two of these. */
const LOOK_MS = 20;
/** The same while there is none. */
const IDLE_LOOK_MS = 500;
const MOST_CONNECTING = 4;

let courier: Courier | undefined;

/** Brings what an errand asks for; several at once in one thread. Never throws. */
export function bringPages(task: BringTask): Promise<BringResult> | BringResult {
  try {
    courier ??= new Courier(new BringControl(task.control));
    return courier.bring(task);
  } catch (error) {
    return { error: asPagetideError(error).toJSON() };
  }
}

class Courier {
  readonly #control: BringControl;
  readonly #pace: Pace;
  /** By URL and mark. */
  readonly #holders = new Map<string, Holder>();
  readonly #wanted = new Map<string, Wanted>();
  #runs: BringRun[] = [];
  #version: number;
  #goOn: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(control: BringControl) {
    this.#control = control;
    let now = control.ratesSince(-1);
    while (now === undefined) now = control.ratesSince(-1);
    this.#version = now.version;
    this.#pace = new Pace(now.rates, () => performance.now());
  }

  bring(task: BringTask): Promise<ErrandResult> {
    const present = new Uint8Array(task.tags.length / TAG_BYTES);
    native().cacheHas(task.cache, task.tags, present);
    const holders = task.urls.map((url) => this.#holder(url, task));
    return new Promise((resolve) => {
      const run = new BringRun(task, holders, resolve);
      run.eachMissing(present, (index, tag, those) => {
        const name = `${task.mark} ${task.domain} ${Buffer.from(tag).toString('hex')}`;
        let wanted = this.#wanted.get(name);
        if (wanted === undefined) {
          wanted = new Wanted(name, tag, task);
          this.#wanted.set(name, wanted);
          run.open.push(wanted);
        }
        wanted.join(run, index, those);
      });
      this.#runs.push(run);
      this.#soon(0);
    });
  }

  #holder(url: string, { mark, limits }: BringTask): Holder {
    const name = `${mark} ${url}`;
    let holder = this.#holders.get(name);
    if (holder === undefined) this.#holders.set(name, (holder = new Holder(url, mark, limits, this.#control)));
    return holder;
  }

  #soon(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#guard(() => this.#turn());
    }, ms);
  }

  /** What fails here (the cache was closed, say) ends the errands that are under way, and no later one. */
  #guard(act: () => void): void {
    try {
      act();
    } catch {
      for (const run of this.#runs.splice(0)) run.end(Outcome.Stopped);
      this.#wanted.clear();
      for (const holder of this.#holders.values()) holder.close();
    }
  }

  #turn(): void {
    this.#listen();
    const now = performance.now();
    for (const run of [...this.#runs]) if (Atomics.load(run.task.stop, 0) !== 0) this.#stop(run);
    for (const holder of this.#holders.values())
      holder.look(
        now,
        this.#runs.some(({ holders }) => holders.includes(holder)),
      );
    let waitMs = LOOK_MS;
    for (;;) {
      const again = this.#round();
      if (again === 0) continue;
      waitMs = Math.max(1, Math.min(again, LOOK_MS));
      break;
    }
    for (const run of this.#runs.filter(({ isOver }) => isOver)) run.tell();
    this.#runs = this.#runs.filter(({ isOver }) => !isOver);
    this.#soon(this.#runs.length === 0 ? IDLE_LOOK_MS : waitMs);
    // a worker that has nothing to do may end
    if (this.#runs.length === 0) this.#timer?.unref();
  }

  #listen(): void {
    const changed = this.#control.ratesSince(this.#version);
    if (changed !== undefined) {
      this.#version = changed.version;
      this.#pace.setRates(changed.rates);
    }
    if (this.#control.standsBack) this.#goOn ??= this.#pace.standBack();
    else {
      this.#goOn?.();
      this.#goOn = undefined;
    }
  }

  /** One request, of the oldest errand that can ask: what is given later is less important. @returns 0: go on at once; else milliseconds until it is worth it */
  #round(): number {
    for (const run of [...this.#runs]) {
      const waitMs = this.#ask(run);
      if (waitMs !== undefined) return waitMs;
    }
    return LOOK_MS;
  }

  /** @returns 0: asked; undefined: nothing that could be asked now; else how long to wait, milliseconds */
  #ask(run: BringRun): number | undefined {
    run.open = run.open.filter(({ isAsked, isDone }) => !isAsked && !isDone);
    let best: Holder | undefined;
    for (const wanted of run.open) {
      let hope = false;
      for (const holder of wanted.holders) {
        const { state } = holder;
        if (wanted.tried.has(holder) || state === 'resting') continue;
        hope = true;
        if (state === 'idle') {
          const waitMs = this.#connect(holder, run);
          if (waitMs > 0) return waitMs;
        } else if (holder.canBeAsked && (best === undefined || holder.isLessBusyThan(best))) best = holder;
      }
      if (best !== undefined) break;
      if (!hope) this.#finish(wanted, Outcome.Absent);
    }
    return best === undefined ? undefined : this.#request(run, best);
  }

  /** @returns 0: it is being connected, or need not be now; else how long to wait, milliseconds */
  #connect(holder: Holder, run: BringRun): number {
    let connecting = 0;
    for (const { state } of this.#holders.values()) if (state === 'connecting') connecting++;
    if (connecting >= MOST_CONNECTING) return 0;
    const cost = connectionCost(holder.secure);
    const waitMs = this.#pace.ask(cost);
    if (waitMs > 0) return waitMs;
    holder.connect(run.task.key, (up) => {
      if (up) this.#pace.came(cost);
      else this.#pace.lost(cost);
      this.#soon(0);
    });
    return 0;
  }

  /** Asks `holder` for pages of the errand that it may have. */
  #request(run: BringRun, holder: Holder): number {
    const most = pagesAtOnce(this.#pace.rates, holder.secure);
    const batch: Wanted[] = [];
    for (const wanted of run.open) {
      if (batch.length === most) break;
      if (!wanted.isDone && wanted.mayHave(holder)) batch.push(wanted);
    }
    const cost = requestCost(batch.length, holder.secure);
    const waitMs = this.#pace.ask(cost);
    if (waitMs > 0) return waitMs;
    const tags = new Uint8Array(batch.length * TAG_BYTES);
    for (const [i, { tag }] of batch.entries()) tags.set(tag, i * TAG_BYTES);
    const asked = holder.ask(tags, batch.length, (pages, error) => {
      if (pages === undefined) {
        // an answer that is an error came all the same
        if (error !== undefined && holder.canBeAsked) this.#pace.came(cost, holder.carried());
        else this.#pace.lost(cost);
        for (const wanted of batch) this.#elsewhere(wanted, holder);
      } else {
        this.#pace.came(cost, holder.carried() ?? requestCost(batch.length, holder.secure, pages.bodyBytes));
        this.#guard(() => this.#take(batch, pages, holder));
      }
      this.#soon(0);
    });
    if (!asked) {
      // its end is just being told
      this.#pace.came(cost, 0);
      return LOOK_MS;
    }
    for (const wanted of batch) wanted.isAsked = true;
    return 0;
  }

  #take(batch: Wanted[], { present, pages, bodyBytes }: TagPages, holder: Holder): void {
    const each = Math.round((bodyBytes * TAG_PAGE) / Math.max(TAG_PAGE, pages.length));
    let offset = 0;
    let wrong = 0;
    let brought = 0;
    let full: number | undefined;
    for (const [i, wanted] of batch.entries()) {
      if (!isSet(present, i)) {
        this.#elsewhere(wanted, holder);
        continue;
      }
      const at = offset;
      offset += TAG_PAGE;
      const run = wanted.waiting[0]?.run;
      // nobody wants it any more
      if (run === undefined) {
        this.#finish(wanted, Outcome.Stopped);
        continue;
      }
      const { cache } = run.task;
      switch (native().cacheInsert(cache, wanted.domain, wanted.tag, 0, pages, at, wanted.value)) {
        case Insertion.Inserted:
          brought++;
          this.#finish(wanted, Outcome.Brought, each);
          break;
        case Insertion.Present:
          this.#finish(wanted, Outcome.Present, each);
          break;
        case Insertion.Rejected:
          wrong++;
          for (const { run: told } of wanted.waiting) told.sentWrong(holder.url);
          this.#elsewhere(wanted, holder);
          break;
        case Insertion.Unverified:
          this.#endDomain(wanted.domain);
          for (const rest of batch) this.#finish(rest, Outcome.Stopped);
          return;
        case Insertion.Full:
        case Insertion.Lost:
          full = wanted.domain;
          this.#finish(wanted, Outcome.Full, each);
          break;
      }
    }
    this.#control.countPages(brought, wrong);
    if (wrong > 0) holder.lied();
    // no slot for any of them: what would come next finds none either
    if (full !== undefined && brought === 0) this.#endFull(batch);
  }

  /** To be asked of another holder. */
  #elsewhere(wanted: Wanted, holder: Holder): void {
    wanted.tried.add(holder);
    wanted.isAsked = false;
    const run = wanted.waiting[0]?.run;
    if (run === undefined) this.#finish(wanted, Outcome.Stopped);
    else run.open.unshift(wanted);
  }

  #finish(wanted: Wanted, outcome: Outcome, wireBytes = 0): void {
    if (this.#wanted.get(wanted.name) === wanted) this.#wanted.delete(wanted.name);
    wanted.finish(outcome, wireBytes);
  }

  #endFull(batch: Wanted[]): void {
    for (const run of this.#runs)
      for (const wanted of run.open) if (!batch.includes(wanted)) this.#finish(wanted, Outcome.Full);
  }

  /** This host does not have the domain any more. */
  #endDomain(domain: number): void {
    for (const run of [...this.#runs]) if (run.task.domain === domain) this.#stop(run);
  }

  #stop(run: BringRun): void {
    this.#runs = this.#runs.filter((other) => other !== run);
    for (const wanted of [...this.#wanted.values()]) {
      const was = wanted.waiting;
      wanted.waiting = was.filter((waits) => waits.run !== run);
      if (wanted.waiting.length === was.length) continue;
      const [next] = wanted.waiting;
      // what was asked for stays known until its answer comes, so that nobody asks for it again meanwhile
      if (next === undefined && !wanted.isAsked) this.#finish(wanted, Outcome.Stopped);
      else if (next !== undefined && was[0]?.run === run && !wanted.isAsked) next.run.open.push(wanted);
    }
    for (const holder of run.holders) if (holder.connectingKey === run.task.key) holder.giveUp();
    run.end(Outcome.Stopped);
  }
}
