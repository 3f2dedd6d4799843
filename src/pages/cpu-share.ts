/**
 * One share of one CPU for all watches of an agent. Work is done in turns, one at a time, and each is followed by a pause in proportion,
 * whoever comes next:
 *
 *    guest a ▓▓                        ▓▓            turn: take() … give(busy ms)
 *    guest b           ▓▓▓▓                          pause: busy × (1 / cpu − 1)
 *              ├ pause ┤    ├─ pause ──┤
 *
 * So in any T milliseconds all guests together are busy for at most cpu × T and one turn, however many they are. A turn is a piece of 2 MiB
 * or a scan. Its time counts from beginning to end, also what a tag worker does in it, and what it waits for one: rather too much than too little.
 *
 * Turns go round: who has had one goes to the end of the line. Guests whose first pass isn't done have a line of their own, and
 * {@link FIRST_IN_A_ROW} turns for each one of the others: so both lines move. A scan of a huge guest takes as long as it takes; the pause after it
 * is everybody's. Nobody waits for a turn to be ended: a watch that is asked to end leaves the line at once.
 */
import { PagetideError } from '../errors.ts';

/** Turns of guests in their first pass, while others wait. */
const FIRST_IN_A_ROW = 3;
/** The load is measured over so many seconds. */
export const LOAD_SECONDS = 60;

export interface ShareClock {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Calls back after that time. */
  after(ms: number, callback: () => void): void;
}

interface Waiting {
  go: (mine: boolean) => void;
}

export class CpuShare {
  /** Of one CPU: above 0 to 1. */
  readonly cpu: number;
  readonly #clock: ShareClock;
  readonly #begun: number;
  readonly #first: Waiting[] = [];
  readonly #others: Waiting[] = [];
  #firstInARow = 0;
  #all = 0;
  #taken = false;
  #timer = false;
  /** When the pause is over. */
  #freeAt = -Infinity;
  /** Busy milliseconds by second, and whose second it is. */
  readonly #busy = new Float64Array(LOAD_SECONDS);
  readonly #second = new Float64Array(LOAD_SECONDS).fill(-1);

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  constructor(cpu: number, clock: ShareClock = realClock) {
    if (!(cpu > 0 && cpu <= 1))
      throw new PagetideError('PT_BAD_ARGUMENT', `watches take above 0 to 1 of a CPU, not ${cpu}`);
    this.cpu = cpu;
    this.#clock = clock;
    this.#begun = clock.now();
  }

  /**
   * Waits for a turn; who gets it gives it back with {@link give}, always.
   * @param first its first pass isn't done
   * @returns false where the signal came before; it has no turn then
   */
  take(signal: AbortSignal, first = false): Promise<boolean> {
    if (signal.aborted) return Promise.resolve(false);
    return new Promise((resolve) => {
      const line = first ? this.#first : this.#others;
      const leave = (): void => {
        line.splice(line.indexOf(waiting), 1);
        resolve(false);
      };
      const waiting: Waiting = {
        go: (mine) => {
          signal.removeEventListener('abort', leave);
          resolve(mine);
        },
      };
      signal.addEventListener('abort', leave, { once: true });
      line.push(waiting);
      this.#next();
    });
  }

  /** Ends a turn. @param busyMs what it took */
  give(busyMs: number): void {
    const now = this.#clock.now();
    this.#all += busyMs;
    this.#note(now, busyMs);
    this.#taken = false;
    this.#freeAt = now + busyMs * (1 / this.cpu - 1);
    this.#next();
  }

  /** Milliseconds that turns have taken since it began. */
  get busyMs(): number {
    return this.#all;
  }

  /** Busy milliseconds a millisecond, over the last {@link LOAD_SECONDS}, or since it began. */
  get load(): number {
    const now = this.#clock.now();
    const second = Math.floor(now / 1000);
    let busy = 0;
    for (let i = 0; i < LOAD_SECONDS; i++) if (this.#second[i]! > second - LOAD_SECONDS) busy += this.#busy[i]!;
    // of the oldest second a part is over; the younger ones are whole
    const span = Math.min(now - this.#begun, 1000 * (LOAD_SECONDS - 1) + (now - 1000 * second));
    return busy / Math.max(1, span);
  }

  #next(): void {
    if (this.#taken || this.#timer || this.#first.length + this.#others.length === 0) return;
    const ms = this.#freeAt - this.#clock.now();
    if (ms > 0) {
      this.#timer = true;
      this.#clock.after(ms, () => {
        this.#timer = false;
        this.#next();
      });
      return;
    }
    const first = this.#first.length > 0 && (this.#others.length === 0 || this.#firstInARow < FIRST_IN_A_ROW);
    this.#firstInARow = first ? this.#firstInARow + 1 : 0;
    this.#taken = true;
    (first ? this.#first : this.#others).shift()!.go(true);
  }

  #note(now: number, busyMs: number): void {
    const second = Math.floor(now / 1000);
    const at = second % LOAD_SECONDS;
    if (this.#second[at] !== second) this.#busy[at] = 0;
    this.#second[at] = second;
    this.#busy[at]! += busyMs;
  }
}

const realClock: ShareClock = {
  now: () => performance.now(),
  // no process stays for it: whoever waits has reasons of its own
  after: (ms, callback) => void setTimeout(callback, Math.ceil(ms)),
};
