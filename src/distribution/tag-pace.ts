/**
 * The pace of tags without their pages: reports to directories, what is asked of them (src/directory/paced-lists.ts), and the tags of guests that
 * a plan names, those that are asked for and those that are sent. A guest of 4 GiB has 16 MiB of them, so they would be a spike of their own. They and
 * the pages share what 100 ms may take:
 *
 *   │◄──────────────────── peak / 10 bytes ────────────────────►│
 *   │ pages, about 4/5                      │ tags, 1/6 │ a message, 1/24 │
 *
 * One bucket a host paces all of its messages, whatever they are and wherever they go. A message is written at once when all of it was granted,
 * so those of the 100 ms before, and what was held back for one message, are all that can meet in any 100 ms. What others send unasked, reports to the
 * home of a domain, is paced there by when they are answered.
 *
 * Not paced, as they are as small as their headers: heartbeats, questions for hints and hosts, and what an operator asks.
 */
import { MOST_REPORT_TAGS } from '../directory/directory.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { systemClock, type Clock } from './clock.ts';
import { TokenBucket, type Rates } from './token-bucket.ts';
import { LOWEST_PEAK, wireCost } from './wire-cost.ts';

const TAGS_SHARE = 1 / 6;
/** Of what 100 ms may take, the tags of one message: with headers still less than 1/24. */
const MESSAGE_SHARE = 1 / 30;
/** So that a message is more than its headers, also where the peak is low: its share is greater there. */
const LEAST_TAGS = 64;
/** Headers of a request and its answer, bytes, generously. */
const HEADERS = 1000;

const NEVER = new AbortController().signal;

interface Message {
  /** On the wire. */
  bytes: number;
  signal: AbortSignal;
  done: () => void;
}

/**
 * What is left for pages. Where that would be below the lowest peak, as of one below 272 kB/s, pages have that, and tags come on top.
 * @param rates of distribution as a whole, bytes a second
 */
export function pageRates({ average, peak }: Rates): Rates {
  const left = Math.max(LOWEST_PEAK, Math.floor(peak * (1 - TAGS_SHARE)) - 10 * messageCost(mostOf(peak) * TAG_BYTES));
  return { average: Math.min(average, left), peak: left };
}

export class TagPace {
  readonly #clock: Clock;
  readonly #bucket: TokenBucket;
  #peak: number;
  /** In the order in which they came; reports first. */
  readonly #reports: Message[] = [];
  readonly #lists: Message[] = [];
  #isGoing = false;

  /** @param peak of distribution as a whole, bytes a second, at least {@link LOWEST_PEAK} */
  constructor(peak: number, clock: Clock = systemClock) {
    this.#clock = clock;
    this.#peak = peak;
    this.#bucket = new TokenBucket(ratesOf(peak), () => clock.nowMs());
  }

  setPeak(peak: number): void {
    this.#bucket.setRates(ratesOf(peak));
    this.#peak = peak;
  }

  /** Tags that one message may have. */
  get most(): number {
    return mostOf(this.#peak);
  }

  /**
   * Resolves when a message of so many bytes may go; it is to be written at once. Where the signal aborts, its turn is soon over, and it
   * costs no more.
   * @param of report: goes before all that is no report, however many ask for lists: a host that is not heard of for a lease is taken out
   */
  pass(
    bytes: number,
    { signal = NEVER, report = false }: { signal?: AbortSignal; report?: boolean } = {},
  ): Promise<void> {
    return new Promise((done) => {
      (report ? this.#reports : this.#lists).push({ bytes: messageCost(bytes), signal, done });
      if (!this.#isGoing) void this.#go();
    });
  }

  /** One message at a time: no more than one may be held back. */
  async #go(): Promise<void> {
    this.#isGoing = true;
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      for (let left = next.bytes; left > 0 && !next.signal.aborted;) {
        const { bytes: granted, againMs } = this.#bucket.take(left);
        left -= granted;
        if (left > 0) await this.#clock.wait(againMs, next.signal);
      }
      next.done();
    }
    this.#isGoing = false;
  }

  #next(): Message | undefined {
    return this.#reports.shift() ?? this.#lists.shift();
  }
}

function mostOf(peak: number): number {
  const tags = Math.floor(((peak / 10) * MESSAGE_SHARE) / TAG_BYTES);
  return Math.min(MOST_REPORT_TAGS, Math.max(LEAST_TAGS, tags));
}

/** Of a message with so many bytes of tags, with its request or answer. */
function messageCost(bytes: number): number {
  return wireCost(bytes + HEADERS, true);
}

function ratesOf(peak: number): Rates {
  const rate = peak * TAGS_SHARE;
  return { average: rate, peak: rate };
}
