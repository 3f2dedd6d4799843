/** The share of a CPU that all watches of an agent have: the arithmetic by a clock of the test's, and real guests. */
import t from 'tap';
import { CpuShare, type ShareClock } from '../../src/pages/cpu-share.ts';
import { GuestWatch } from '../../src/pages/guest-watch.ts';
import { openKey, openPool, silent, skipTracking as skip, startTagged } from './guest-support.ts';

/** Time passes when it is told to, and timers are called in order. */
class TestClock implements ShareClock {
  time = 1000;
  readonly #timers: { at: number; callback: () => void }[] = [];

  now(): number {
    return this.time;
  }

  after(ms: number, callback: () => void): void {
    this.#timers.push({ at: this.time + ms, callback });
  }

  /** To the next timer; false: there is none. */
  advance(): boolean {
    this.#timers.sort((a, b) => a.at - b.at);
    const next = this.#timers.shift();
    if (next === undefined) return false;
    this.time = Math.max(this.time, next.at);
    next.callback();
    return true;
  }
}

const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Guests that have work for ever, so many milliseconds a turn. Tells whose each turn was. */
function work(share: CpuShare, clock: TestClock, guests: { name: string; ms: number; first?: boolean }[]) {
  const stop = new AbortController();
  const turns: string[] = [];
  const done = guests.map(async ({ name, ms, first }) => {
    while (await share.take(stop.signal, first)) {
      turns.push(name);
      clock.time += ms;
      share.give(ms);
    }
  });
  const run = async (until: number): Promise<void> => {
    await settle();
    while (clock.time < until && clock.advance()) await settle();
  };
  return { turns, run, stop: () => (stop.abort(), Promise.all(done)) };
}

void t.test('however many guests: one share, and each has its turn', async (t) => {
  for (const count of [1, 2, 10]) {
    const clock = new TestClock();
    const share = new CpuShare(0.05, clock);
    const guests = Array.from({ length: count }, (_, i) => ({ name: `g${i}`, ms: 2 }));
    const { turns, run, stop } = work(share, clock, guests);
    await run(101_000);
    const busy = turns.length * 2;
    t.ok(busy <= 0.05 * 100_000 + 2 && busy > 0.049 * 100_000, `${count} guests: ${busy} ms of 100 s`);
    t.ok(Math.abs(share.load - 0.05) < 0.002, `the load is ${share.load}`);
    for (let i = count; i < turns.length; i++) if (turns[i] !== turns[i - count]) t.fail(`turn ${i}`);
    await stop();
  }
});

void t.test('a huge scan is followed by a long pause, and holds up nobody for ever', async (t) => {
  const clock = new TestClock();
  const share = new CpuShare(0.1, clock);
  const { turns, run, stop } = work(share, clock, [
    { name: 'huge', ms: 500 },
    { name: 'small', ms: 1 },
  ]);
  await run(61_000);
  const busy = turns.reduce((sum, name) => sum + (name === 'huge' ? 500 : 1), 0);
  t.ok(busy <= 0.1 * 60_000 + 500, `${busy} ms of 60 s`);
  t.ok(turns.filter((name) => name === 'small').length >= 11);
  await stop();
});

void t.test('those that are not tagged yet go first, three turns for one', async (t) => {
  const clock = new TestClock();
  const share = new CpuShare(0.5, clock);
  const { turns, run, stop } = work(share, clock, [
    { name: 'old', ms: 1 },
    { name: 'new', ms: 1, first: true },
    { name: 'newer', ms: 1, first: true },
  ]);
  await run(1400);
  t.equal(turns.slice(1, 9).join(' '), 'new newer new old newer new newer old');
  await stop();
});

void t.test('who is asked to end leaves at once, and a turn is not lost with it', async (t) => {
  const clock = new TestClock();
  const share = new CpuShare(0.01, clock);
  const never = new AbortController().signal;
  t.ok(await share.take(never), 'the first comes at once');
  const stop = new AbortController();
  const leaving = share.take(stop.signal);
  const staying = share.take(never);
  stop.abort();
  t.equal(await leaving, false, 'while another has the turn');
  t.equal(await share.take(stop.signal), false);
  clock.time += 10;
  share.give(10);
  t.ok(clock.advance());
  t.equal(clock.time, 1000 + 10 + 990);
  t.ok(await staying);
  for (const cpu of [0, -1, 1.1, NaN]) t.throws(() => new CpuShare(cpu), { code: 'PT_BAD_ARGUMENT' });
});

void t.test('several real guests that write keep to the share of one', { skip }, async (t) => {
  const cpu = 0.1;
  const guests = await Promise.all([1, 2, 3, 4].map(() => startTagged(t, 16, 2000)));
  const pool = openPool(t);
  const share = new CpuShare(cpu);
  const began = performance.now();
  const watches = guests.map(({ record }) => {
    const settings = { cpu, intervalMs: 0 };
    const watch = new GuestWatch({ record, key: openKey(0), pool, log: silent, share, settings });
    t.teardown(() => watch.close());
    return watch;
  });
  // all have tagged all, and looked at what was written after it
  await Promise.all(watches.map((watch) => watch.fresh().then(() => watch.fresh())));
  const took = performance.now() - began;
  const busy = watches.reduce((sum, { stats }) => sum + stats.busyMs, 0);
  for (const { stats } of watches) t.ok(stats.tagged > 16 * 256, `${stats.tagged} frames`);
  t.ok(
    busy < 1.5 * cpu * took,
    `${busy.toFixed(0)} ms of work in ${took.toFixed(0)} ms: ${(busy / took).toFixed(3)} of a CPU`,
  );
  t.ok(share.load < 1.5 * cpu && share.load > 0, `told: ${share.load.toFixed(3)}`);
  // while others wait for their turns, too
  const asked = performance.now();
  const tags = await watches[0]!.handOver();
  t.teardown(() => tags?.close());
  t.ok(tags !== undefined);
  t.comment(`handed over within ${(performance.now() - asked).toFixed(1)} ms`);
});
