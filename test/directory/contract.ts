/** What every directory promises, run against each implementation. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { MOST_REPORT_TAGS, type Directory, type GuestChange, type Report } from '../../src/directory/directory.ts';
import { AFFINITY_HOSTS_LIMIT, HINT_LIMIT_MS, type Hint } from '../../src/directory/hint.ts';
import { Agent, guestsHolding, Model, numbersOf, tagsOf, tell, type Fate } from './model.ts';

export const LEASE_MS = 1000;

/** Makes an empty directory with leases of {@link LEASE_MS}; it is closed by whoever asked. */
export type Factory = (clock: () => number) => Promise<Directory> | Directory;

const DOMAINS = ['shop', 'bank'];
const HOSTS = ['h1', 'h2', 'h3'];
const TAGS = 24;

function change(guest: string, added: number[], removed: number[] = [], domain = 'shop'): GuestChange {
  return { domain, guest, added: tagsOf(...added), removed: tagsOf(...removed) };
}

/** The guests of `shop` that hold each tag. */
async function count(directory: Directory, ...tags: number[]): Promise<number[]> {
  return [...(await directory.holders('shop', tagsOf(...tags))).guests];
}

/** @param runs of histories that are made up; of a slow implementation fewer */
export function contract(name: string, make: Factory, runs = 400): void {
  const test = (what: string, run: (t: Test, directory: Directory, clock: { now: number }) => Promise<void>): void =>
    void t.test(`${name}: ${what}`, async (t) => {
      const clock = { now: 5 };
      const directory = await make(() => clock.now);
      t.teardown(() => directory.close());
      await run(t, directory, clock);
    });
  const begin = (host: string, changes: GuestChange[], epoch = 1): Report => ({
    host,
    epoch,
    sequence: 1,
    begins: true,
    changes,
  });

  test('the first holder of a tag is asked for until it answers', async (t, directory) => {
    await directory.report(begin('h1', [change('a', [1, 2])]));
    t.same(await count(directory, 1, 2, 3), [0, 0, 0], 'a tag seen once has no record');
    const { wanted: none } = await directory.report(begin('h2', [change('b', [2, 3])]));
    t.same(none, [], 'h2 is not asked for what it has told alone');
    t.same(await count(directory, 1, 2, 3), [0, 1, 0], 'promoted');
    for (const why of ['asked', 'the answer was lost, so asked again']) {
      const { wanted } = await directory.heartbeat('h1', 1);
      t.same(
        wanted.map(({ domain, tags }) => [domain, numbersOf(tags)]),
        [['shop', [2]]],
        why,
      );
    }
    const held = [{ domain: 'shop', tags: tagsOf(2), guests: Uint16Array.of(1) }];
    const { wanted } = await directory.report({ host: 'h1', epoch: 1, sequence: 2, changes: [], held });
    t.same(wanted, [], 'and no more once it has answered');
    const holders = await directory.holders('shop', tagsOf(2, 9));
    t.same([...holders.guests], [2, 0]);
    t.same([...holders.first], [0, 2, 2]);
    t.same([...holders.host].map((host, i) => `${holders.hosts[host]!} ${holders.held[i]!}`).sort(), ['h1 1', 'h2 1']);
    t.same(await directory.holders('bank', tagsOf(2)).then(({ guests }) => [...guests]), [0], 'domains are apart');
  });

  test('a report that comes again changes nothing; a gap asks for all anew', async (t, directory) => {
    const first = begin('h1', [change('a', [1]), change('b', [1])]);
    const { wanted } = await directory.report(first);
    t.same(numbersOf(wanted[0]!.tags), [1], 'a host is asked for its own guests, too');
    const held = [{ domain: 'shop', tags: tagsOf(1), guests: Uint16Array.of(2) }];
    const second = { host: 'h1', epoch: 1, sequence: 2, changes: [change('c', [1])], held };
    held[0]!.guests[0] = 3;
    for (const report of [second, second, first, second]) {
      t.same(await directory.report(report), { state: 'applied', wanted: [] });
      t.same(await count(directory, 1), [3]);
    }
    const gap = { host: 'h1', epoch: 1, sequence: 4, changes: [change('c', [], [1])] };
    t.same(await directory.report(gap), { state: 'anew', wanted: [] });
    t.same(await count(directory, 1), [3]);
    t.same(await directory.report({ ...gap, host: 'h9' }), { state: 'anew', wanted: [] }, 'one that is not known');
    t.same(await directory.heartbeat('h9', 1), { state: 'anew', wanted: [] });
    t.equal((await directory.heartbeat('h1', 1, 2)).state, 'applied');
    t.equal((await directory.heartbeat('h1', 1, 1)).state, 'applied', 'the answer to 2 was lost');
    t.equal((await directory.heartbeat('h1', 1, 3)).state, 'anew', 'it does not know of 3');
  });

  test('of two agents with one name the one that started later is heard', async (t, directory) => {
    await directory.report(begin('h1', [change('a', [1]), change('b', [1])], 7));
    for (const again of [1, 2]) {
      await t.rejects(directory.report(begin('h1', [change('a', [1])], 6)), { code: 'PT_SUPERSEDED', status: 409 });
      await t.rejects(directory.heartbeat('h1', 6), { code: 'PT_SUPERSEDED' }, `try ${again}`);
      t.same(await count(directory, 1), [1]);
      await directory.removeHost('h1');
      t.same(await count(directory, 1), [0]);
      await directory.report({ ...begin('h1', [change('a', [1]), change('b', [1])], 7), sequence: again + 1 });
    }
    const next = { host: 'h1', epoch: 8, sequence: 1, changes: [change('a', [4])] };
    t.equal((await directory.report(next)).state, 'anew', 'a later start begins');
    await directory.report({ ...next, begins: true });
    t.same(await count(directory, 1), [0], 'and what the one before told is void');
    t.same(
      (await directory.hosts()).map(({ host, epoch, guests }) => [host, epoch, guests]),
      [['h1', 8, 1]],
    );
  });

  test('a host whose lease runs out is taken out with all that it told', async (t, directory, clock) => {
    await directory.report(begin('h1', [change('a', [1]), change('b', [1])]));
    await directory.report(begin('h2', [change('c', [1, 2])]));
    clock.now += LEASE_MS - 1;
    await directory.heartbeat('h2', 1);
    clock.now += 1;
    t.same(
      (await directory.hosts()).map(({ host, leaseMs }) => [host, leaseMs]),
      [['h2', LEASE_MS - 1]],
    );
    t.same(await count(directory, 1), [0], 'one guest is left, and nobody to ask: no record');
    t.equal((await directory.heartbeat('h1', 1)).state, 'anew');
    const late = { host: 'h1', epoch: 1, sequence: 1, begins: true, changes: [change('a', [2])] };
    t.equal((await directory.report(late)).state, 'anew', 'what comes again from before does not bring it back');
    await directory.report({ ...late, sequence: 2 });
    const { wanted } = await directory.heartbeat('h2', 1);
    t.same(numbersOf(wanted[0]!.tags), [2]);
  });

  test('a host that begins anew does not meet its own traces', async (t, directory) => {
    const mine = Array.from({ length: 500 }, (_, i) => i);
    await directory.report(begin('h1', [change('a', mine)]));
    const { wanted } = await directory.report({ ...begin('h1', [change('a', mine)]), sequence: 2 });
    t.same(wanted, []);
  });

  test('what guests elsewhere hold and a host lacks, in pages', async (t, directory) => {
    const all = Array.from({ length: 300 }, (_, i) => i);
    await directory.report(begin('h1', [change('a', all), change('b', all)]));
    await directory.report(begin('h2', [change('c', all.slice(0, 100))]));
    for (const [host, expected] of [
      ['h1', []],
      ['h2', all.slice(100)],
      ['stranger', all],
    ] as const) {
      const found: number[] = [];
      let pages = 0;
      for (let cursor: string | undefined = '0'; cursor !== undefined; pages++) {
        const page = await directory.lacking('shop', host, { limit: 64, cursor });
        found.push(...numbersOf(page.tags));
        t.ok(page.tags.length <= 80 * 16, 'pages are bounded');
        t.ok(
          page.guests.every((guests) => guests > 0),
          'each has a holder',
        );
        cursor = page.cursor;
        // records come between two pages, so many that tables grow
        if (host === 'stranger' && pages === 1) {
          const more = Array.from({ length: 2000 }, (_, i) => 1000 + i);
          await directory.report({
            host: 'h1',
            epoch: 1,
            sequence: 2,
            changes: [change('a', more), change('b', more)],
          });
        }
      }
      const old = found.filter((tag) => tag < 1000).sort((a, b) => a - b);
      t.same(old, expected, `${host}: each exactly once`);
      t.equal(new Set(found).size, found.length);
    }
    t.same((await directory.lacking('none', 'h1', { limit: 5 })).tags.length, 0);
    await t.rejects(directory.lacking('shop', 'h1', { limit: 5, cursor: 'x' }), { code: 'PT_BAD_ARGUMENT' });
  });

  test('a domain that was removed is told anew; emptied, all is', async (t, directory) => {
    const both = [change('a', [1]), change('b', [1]), change('a', [1], [], 'bank'), change('b', [1], [], 'bank')];
    await directory.report(begin('h1', both));
    await directory.removeDomain('shop');
    t.same(await count(directory, 1), [0]);
    t.same([...(await directory.holders('bank', tagsOf(1))).guests], [1], 'the other one stays');
    const gone = { ...change('a', [], [1]), gone: true };
    t.equal((await directory.report({ host: 'h1', epoch: 1, sequence: 2, changes: [gone] })).state, 'applied');
    const add = { host: 'h1', epoch: 1, sequence: 3, changes: [change('b', [2])] };
    t.equal((await directory.report(add)).state, 'anew', 'what else the guest holds there is not known');
    t.equal((await directory.report({ ...add, begins: true, changes: both })).state, 'applied');
    await directory.empty();
    t.same(await directory.hosts(), []);
    t.equal((await directory.report({ host: 'h1', epoch: 1, sequence: 4, changes: [] })).state, 'anew');
    await t.rejects(directory.report(begin('h1', [], 0)), { code: 'PT_BAD_ARGUMENT' });
  });

  test('hints are kept by domain until they expire, are replaced or withdrawn', async (t, directory, clock) => {
    const leaving: Hint = { kind: 'evacuate', host: 'unix:/run/h1.sock', leftMs: 300 };
    const placed: Hint = { kind: 'affinity', guest: 'a', hosts: ['h2', 'h3'], leftMs: 200 };
    t.same(await directory.hints('shop'), []);
    await directory.hint('shop', leaving);
    await directory.hint('shop', placed);
    await directory.hint('bank', { ...placed, hosts: ['h1'] });
    clock.now += 50;
    t.same(await directory.hints('shop'), [
      { ...leaving, leftMs: 250 },
      { ...placed, leftMs: 150 },
    ]);
    t.same(await directory.hints('bank'), [{ ...placed, hosts: ['h1'], leftMs: 150 }], 'domains are apart');
    await directory.hint('shop', { ...placed, hosts: ['h9'], leftMs: 500 });
    await directory.report(begin('h1', [change('a', [1])]));
    await directory.removeHost('h1');
    await directory.empty();
    clock.now += 200;
    t.same(await directory.hints('bank'), [], 'the first has expired');
    const left = [
      { ...leaving, leftMs: 50 },
      { ...placed, hosts: ['h9'], leftMs: 300 },
    ];
    t.same(await directory.hints('shop'), left, 'a later one took the place of the earlier; what agents know is gone');
    clock.now -= 150;
    t.same(await directory.hints('shop'), left, 'a clock that goes back stands still');
    clock.now += 200;
    t.same(await directory.hints('shop'), [{ ...placed, hosts: ['h9'], leftMs: 250 }]);
    t.equal(await directory.withdraw('shop', { kind: 'evacuate', host: 'unix:/run/h1.sock' }), false, 'expired');
    t.equal(await directory.withdraw('bank', { kind: 'affinity', guest: 'a' }), false);
    t.equal(await directory.withdraw('shop', { kind: 'affinity', guest: 'a' }), true);
    t.equal(await directory.withdraw('shop', { kind: 'affinity', guest: 'a' }), false);
    await directory.hint('shop', placed);
    await directory.removeDomain('shop');
    t.same(await directory.hints('shop'), [], 'they go with their domain');
  });

  test('hints that are refused change nothing', async (t, directory) => {
    const good: Hint = { kind: 'affinity', guest: 'a', hosts: ['h1'], leftMs: HINT_LIMIT_MS };
    await directory.hint('shop', good);
    const many = (count: number): string[] => Array.from({ length: count }, (_, i) => `h${i}`);
    const bad: [string, Hint][] = [
      ['no time', { ...good, leftMs: 0 }],
      ['too long', { ...good, leftMs: HINT_LIMIT_MS + 1 }],
      ['not a number', { ...good, leftMs: Number.NaN }],
      ['no hosts', { ...good, hosts: [] }],
      ['too many hosts', { ...good, hosts: many(AFFINITY_HOSTS_LIMIT + 1) }],
      ['a host with a space', { ...good, hosts: ['h 1'] }],
      ['a guest without a name', { ...good, guest: '' }],
      ['a host without a name', { kind: 'evacuate', host: '', leftMs: 1 }],
      ['a host with too long a name', { kind: 'evacuate', host: 'h'.repeat(256), leftMs: 1 }],
    ];
    for (const [what, hint] of bad) await t.rejects(directory.hint('shop', hint), { code: 'PT_BAD_ARGUMENT' }, what);
    await t.rejects(directory.withdraw('shop', { kind: 'affinity', guest: '' }), { code: 'PT_BAD_ARGUMENT' });
    t.same(await directory.hints('shop'), [good]);
    await directory.hint('shop', { ...good, guest: 'b', hosts: many(AFFINITY_HOSTS_LIMIT) });
    t.equal((await directory.hints('shop')).length, 2);
  });

  test('what is refused changes nothing', async (t, directory) => {
    await directory.report(begin('h1', [change('a', [1]), change('b', [1])]));
    const good: Report = { host: 'h1', epoch: 1, sequence: 2, changes: [change('c', [1])] };
    const odd = (part: Partial<GuestChange>): Report => ({
      ...good,
      changes: [change('c', [1]), { ...change('d', []), ...part }],
    });
    const bad: [string, Report][] = [
      ['half a tag', odd({ added: new Uint8Array(8) })],
      ['the zero page', odd({ added: new Uint8Array(16) })],
      ['too much', odd({ removed: new Uint8Array(16 * MOST_REPORT_TAGS) })],
      ['a domain without a name', odd({ domain: '' })],
      ['a name with a slash', odd({ guest: 'a/b' })],
      ['half a sequence', { ...good, sequence: 1.5 }],
      ['no epoch', { ...good, epoch: Number.NaN }],
      [
        'fewer answers than tags',
        { ...good, held: [{ domain: 'shop', tags: tagsOf(1, 2), guests: Uint16Array.of(1) }] },
      ],
    ];
    for (const [what, report] of bad) await t.rejects(directory.report(report), { code: 'PT_BAD_ARGUMENT' }, what);
    await t.rejects(directory.holders('shop', new Uint8Array(15)), { code: 'PT_BAD_ARGUMENT' });
    await t.rejects(directory.lacking('shop', 'h1', { limit: 0 }), { code: 'PT_BAD_ARGUMENT' });
    t.same(await count(directory, 1), [1]);
    await directory.report(good);
    t.same(await count(directory, 1), [2], 'and the sequence goes on');
  });

  void t.test(`${name}: agrees with maps of sets, whatever comes, is lost, comes again or goes`, async (t) => {
    const host = fc.integer({ min: 0, max: HOSTS.length - 1 });
    const tags = fc.array(fc.integer({ min: 0, max: TAGS - 1 }), { maxLength: 8 });
    const wish = fc.record({
      domain: fc.constantFrom(...DOMAINS),
      guest: fc.constantFrom('a', 'b', 'c'),
      add: tags,
      remove: tags,
      gone: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
    });
    const fate = fc.constantFrom<Fate>('arrives', 'arrives', 'arrives', 'request lost', 'answer lost', 'twice');
    const op = fc.oneof(
      { weight: 20, arbitrary: fc.record({ op: fc.constant('report' as const), host, wish, fate }) },
      { weight: 4, arbitrary: fc.record({ op: fc.constant('old' as const), which: fc.nat() }) },
      { weight: 3, arbitrary: fc.record({ op: fc.constant('wait' as const), ms: fc.integer({ min: 1, max: 600 }) }) },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('restart' as const), host }) },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('removeHost' as const), host }) },
      {
        weight: 1,
        arbitrary: fc.record({ op: fc.constant('removeDomain' as const), domain: fc.constantFrom(...DOMAINS) }),
      },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('empty' as const) }) },
    );
    const run = async (ops: (typeof op extends fc.Arbitrary<infer T> ? T : never)[]): Promise<void> => {
      const model = new Model(LEASE_MS);
      const directory = await make(() => model.now);
      const agents = HOSTS.map((name) => new Agent(name));
      const sent: Report[] = [];
      const send = async (report: Report): Promise<Awaited<ReturnType<typeof tell>>> => {
        const told = await tell(directory, model, report);
        if (told.real !== told.naive) throw new Error(`report: ${told.real}, the model says ${told.naive}`);
        return told;
      };
      const deliver = async (agent: Agent, report: Report, fate: Fate): Promise<void> => {
        sent.push(report);
        if (fate === 'request lost') return;
        if (fate === 'twice') await send(report);
        const { real, wanted } = await send(report);
        if (fate !== 'answer lost') agent.heard({ state: real as 'applied' | 'anew', wanted });
      };
      try {
        for (const step of ops) {
          if (step.op === 'report') await deliver(agents[step.host]!, agents[step.host]!.next(step.wish), step.fate);
          else if (step.op === 'old' && sent.length > 0) await send(sent[step.which % sent.length]!);
          else if (step.op === 'wait') model.now += step.ms;
          else if (step.op === 'restart') agents[step.host]!.restart();
          else if (step.op === 'removeHost') {
            model.removeHost(HOSTS[step.host]!);
            await directory.removeHost(HOSTS[step.host]!);
          } else if (step.op === 'removeDomain') {
            model.removeDomain(step.domain);
            await directory.removeDomain(step.domain);
          } else if (step.op === 'empty') {
            model.empty();
            await directory.empty();
          }
          await compare(directory, model, false);
        }
        // what one agent tells may be a question to one that was quiet already: two quiet rounds in a row
        for (let round = 0, quiet = 0; quiet < 2; round++) {
          if (round > 20) throw new Error('it does not come to rest');
          quiet = agents.every((agent) => agent.isSettled) ? quiet + 1 : 0;
          for (const agent of agents) await deliver(agent, agent.next(), 'arrives');
          if (agents.some((agent) => !agent.isSettled)) quiet = 0;
        }
        await compare(directory, model, true);
        for (const agent of agents)
          for (const domain of DOMAINS)
            for (let tag = 0; tag < TAGS; tag++) {
              // a domain that was removed isn't told again by an agent that has nothing to add to it
              const lost = model.hosts.get(agent.host)!.lost.has(domain);
              if (!lost && model.held(agent.host, domain, tag) !== guestsHolding(agent.told, domain, tag))
                throw new Error(`${agent.host} told what the model does not know`);
            }
      } finally {
        await directory.close();
      }
    };
    // a question about a domain that was removed is asked no more
    const wanted = { domain: 'bank', guest: 'a' as const, add: [0], remove: [], gone: false };
    const examples: Parameters<typeof run>[] = [
      [
        [
          { op: 'report', host: 0, wish: wanted, fate: 'arrives' },
          { op: 'report', host: 1, wish: wanted, fate: 'arrives' },
          { op: 'removeDomain', domain: 'bank' },
        ],
      ],
    ];
    await fc.assert(fc.asyncProperty(fc.array(op, { maxLength: 60 }), run), { numRuns: runs, examples });
    t.pass();
  });
}

/** @param exact everybody has answered: counts are what they are; else no more than that */
async function compare(directory: Directory, model: Model, exact: boolean): Promise<void> {
  model.expire();
  const tags = Array.from({ length: TAGS }, (_, i) => i);
  for (const domain of DOMAINS) {
    const { hosts, first, host, held, guests } = await directory.holders(domain, tagsOf(...tags));
    const lacking = new Map<string, number[]>(['stranger', ...HOSTS].map((name) => [name, []]));
    for (const tag of tags) {
      const real = new Map<string, number>();
      for (let i = first[tag]!; i < first[tag + 1]!; i++) real.set(hosts[host[i]!]!, held[i]!);
      const truth = new Map(HOSTS.map((name) => [name, model.held(name, domain, tag)]));
      const total = [...truth.values()].reduce((a, b) => a + b);
      for (const [name, expected] of truth) {
        const got = real.get(name) ?? 0;
        if (exact ? got !== (total > 1 ? expected : 0) : got > expected)
          throw new Error(`${domain} ${tag} on ${name}: ${got}, there are ${expected} of ${total}`);
      }
      if (guests[tag] !== [...real.values()].reduce((a, b) => a + b, 0)) throw new Error('the sum is another');
      for (const [name, list] of lacking) if (total > 1 && (truth.get(name) ?? 0) === 0) list.push(tag);
    }
    if (!exact) continue;
    for (const [name, expected] of lacking) {
      const found: number[] = [];
      for (let cursor: string | undefined = '0'; cursor !== undefined;) {
        const page = await directory.lacking(domain, name, { limit: 3, cursor });
        found.push(...numbersOf(page.tags));
        cursor = page.cursor;
      }
      found.sort((a, b) => a - b);
      if (found.join() !== expected.join()) throw new Error(`${name} lacks ${expected.join()}, not ${found.join()}`);
    }
  }
}
