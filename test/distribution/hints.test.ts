/** What operators say, for how long it holds, and the likelihoods that follow. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { AFFINITY_HOSTS_LIMIT, HINT_LIMIT_MS, HINTS_LIMIT, type Hint } from '../../src/directory/hint.ts';
import { AFFINITY_TRUST, Hints } from '../../src/distribution/hints.ts';

const HOSTS = ['a', 'b', 'c', 'd'];

function near(t: Test, actual: Iterable<number>, expected: readonly number[], message?: string): void {
  const values = [...actual];
  const close = values.length === expected.length && values.every((value, i) => Math.abs(value - expected[i]!) < 1e-12);
  t.ok(close, message ?? 'likelihoods', { values, expected });
}

void t.test('uniform without hints', (t) => {
  const hints = new Hints(() => 0);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS), [0, 1 / 3, 1 / 3, 1 / 3]);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS, 0.3), [0, 0.1, 0.1, 0.1], 'one that moves seldom');
  near(t, hints.likelihoods({ guest: 'g', at: 'elsewhere' }, HOSTS), [0.25, 0.25, 0.25, 0.25]);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, ['a']), [0], 'nowhere to go');
  t.end();
});

void t.test('an evacuation', (t) => {
  let now = 0;
  const hints = new Hints(() => now);
  hints.evacuate('a', 1000);
  near(
    t,
    hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS, 0.3),
    [0, 1 / 3, 1 / 3, 1 / 3],
    'its guests leave for sure',
  );
  near(t, hints.likelihoods({ guest: 'h', at: 'b' }, HOSTS, 0.3), [0, 0, 0.15, 0.15], 'nobody comes to it');
  now = 999;
  t.same(hints.list(), [{ kind: 'evacuate', host: 'a', leftMs: 1 }]);
  now = 1000;
  t.same(hints.list(), [], 'it has expired');
  now = 0;
  t.same(hints.list(), [], 'and stays so when the clock goes back');
  hints.evacuate('a', 10);
  t.ok(hints.withdrawEvacuation('a'));
  t.notOk(hints.withdrawEvacuation('a'));
  for (const host of HOSTS) hints.evacuate(host, 10);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS), [0, 0, 0, 0], 'all hosts at once: nowhere');
  t.end();
});

void t.test('an affinity', (t) => {
  const hints = new Hints(() => 0);
  const rest = (1 - AFFINITY_TRUST) / 3;
  hints.affinity('g', ['b'], 1000);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS), [0, rest + AFFINITY_TRUST, rest, rest]);
  near(t, hints.likelihoods({ guest: 'h', at: 'a' }, HOSTS), [0, 1 / 3, 1 / 3, 1 / 3], 'of that guest only');
  hints.affinity('g', ['a', 'c'], 1000);
  near(
    t,
    hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS),
    [0, rest, rest + AFFINITY_TRUST / 2, rest],
    'half of it stays',
  );
  near(
    t,
    hints.likelihoods({ guest: 'g', at: 'a' }, ['b', 'c']),
    [(1 - AFFINITY_TRUST) / 2, 0.5],
    'wherever it is listed',
  );
  hints.evacuate('c', 1000);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS), [0, 0.05, 0, 0.05], 'not to one that is evacuated');
  hints.evacuate('a', 1000);
  near(t, hints.likelihoods({ guest: 'g', at: 'a' }, HOSTS), [0, 0.5, 0, 0.5], 'nor does it stay at one');
  hints.affinity('g', ['nowhere'], 1000);
  near(t, hints.likelihoods({ guest: 'g', at: 'b' }, HOSTS), [0, 0, 0, 1], 'a host that there is not says nothing');
  t.ok(hints.withdrawAffinity('g'));
  t.notOk(hints.withdrawAffinity('g'));
  t.end();
});

const host = fc.constantFrom(...HOSTS, 'elsewhere');
const guest = fc.constantFrom('g', 'h', 'i');
const hint = fc.oneof(
  fc.record({ kind: fc.constant('evacuate' as const), host, leftMs: fc.integer({ min: 1, max: 50 }) }),
  fc.record({
    ...{ kind: fc.constant('affinity' as const), guest, leftMs: fc.integer({ min: 1, max: 50 }) },
    hosts: fc.uniqueArray(host, { minLength: 1 }),
  }),
);

function add(hints: Hints, hint: Hint): void {
  if (hint.kind === 'evacuate') hints.evacuate(hint.host, hint.leftMs);
  else hints.affinity(hint.guest, hint.hosts, hint.leftMs);
}

void t.test('likelihoods of any hints', (t) => {
  const input = [
    fc.array(fc.tuple(fc.integer({ min: 0, max: 20 }), hint), { maxLength: 12 }),
    ...[guest, host, fc.uniqueArray(host), fc.double({ min: 0, max: 1, noNaN: true })],
  ] as const;
  fc.assert(
    fc.property(...input, (added, guest, at, hosts, moves) => {
      let now = 0;
      const hints = new Hints(() => now);
      /** The naive model: all that was ever said, with when it ends. */
      const said: { hint: Hint; end: number }[] = [];
      for (const [stepMs, hint] of added) {
        now += stepMs;
        add(hints, hint);
        said.push({ hint, end: now + hint.leftMs });
      }
      const isEvacuated = (host: string) => {
        const last = said.findLast(({ hint }) => hint.kind === 'evacuate' && hint.host === host);
        return last !== undefined && last.end > now;
      };
      const last = said.findLast(({ hint }) => hint.kind === 'affinity' && hint.guest === guest);
      const hosted = last?.hint.kind === 'affinity' && last.end > now ? last.hint.hosts : [];
      const named = hosted.filter((host) => !isEvacuated(host) && (hosts.includes(host) || host === at));
      const open = hosts.filter((host) => host !== at && !isEvacuated(host));
      const m = isEvacuated(at) ? 1 : moves;
      const trust = named.length === 0 ? 0 : AFFINITY_TRUST;
      const all = hints.likelihoods({ guest, at }, hosts, moves);
      for (const [i, host] of hosts.entries()) {
        const share = named.includes(host) ? trust / named.length : 0;
        const expected = open.includes(host) ? m * ((1 - trust) / open.length + share) : 0;
        if (Math.abs(all[i]! - expected) > 1e-12) return false;
        if (hints.arrivals([{ guest, at }], host, hosts, moves)[0] !== all[i]) return false;
      }
      const again = Hints.from(hints.list(), () => 7e9);
      if (again.likelihoods({ guest, at }, hosts, moves).some((value, i) => value !== all[i])) return false;
      return all.reduce((sum, value) => sum + value, 0) <= m + 1e-12;
    }),
    { numRuns: 1000 },
  );
  t.end();
});

void t.test('what is refused', (t) => {
  const hints = new Hints(() => 0);
  const code = { code: 'PT_BAD_ARGUMENT' };
  for (const forMs of [0, -1, NaN, Infinity, HINT_LIMIT_MS + 1]) {
    t.throws(() => hints.evacuate('a', forMs), code);
    t.throws(() => hints.affinity('g', ['a'], forMs), code);
  }
  t.throws(() => hints.evacuate('', 1), code);
  t.throws(() => hints.affinity('', ['a'], 1), code);
  t.throws(() => hints.affinity('g', [], 1), code);
  t.throws(() => hints.affinity('g', [''], 1), code);
  t.throws(() => hints.affinity('g', Array.from({ length: AFFINITY_HOSTS_LIMIT + 1 }, String), 1), code);
  t.same(hints.list(), [], 'and nothing is kept of it');
  const full = Hints.from(
    Array.from({ length: HINTS_LIMIT }, (_, i): Hint => ({ kind: 'evacuate', host: `h${i}`, leftMs: 5 })),
    () => 0,
  );
  t.throws(() => full.affinity('g', ['a'], 1), code, 'too many');
  full.evacuate('h3', 9);
  t.ok(full.withdrawEvacuation('h4'));
  full.affinity('g', ['a'], 1);
  t.equal(full.list().length, HINTS_LIMIT);
  t.end();
});
