/** Plans in directories, and the preparation of an evacuation, over fakes. */
import { pino } from 'pino';
import t from 'tap';
import { Plans, type HintDirectory } from '../../src/agent/distribution-plans.ts';
import type { Hint } from '../../src/directory/hint.ts';
import type { ExplainedGuest, ExplainedHost } from '../../src/agent/distribution-service.ts';
import { Preparation } from '../../src/agent/evacuation-preparation.ts';
import { PagetideError } from '../../src/errors.ts';

const B = 'https://host-b:7411';
const HOUR = 3_600_000;

class FakeDirectory implements HintDirectory {
  kept: Hint[] = [];
  failure: PagetideError | undefined;
  #ask<T>(answer: () => T): Promise<T> {
    return this.failure === undefined ? Promise.resolve(answer()) : Promise.reject(this.failure);
  }
  hints = () => this.#ask(() => this.kept);
  hint = (_domain: string, hint: Hint) => this.#ask(() => void (this.kept = [...this.#others(hint), hint]));
  withdraw = (_domain: string, subject: Parameters<HintDirectory['withdraw']>[1]) =>
    this.#ask(() => {
      const before = this.kept.length;
      this.kept = this.#others(subject);
      return this.kept.length < before;
    });
  empty = () => this.#ask(() => undefined);
  #others(about: Parameters<HintDirectory['withdraw']>[1]): Hint[] {
    const key = (of: typeof about) => (of.kind === 'evacuate' ? `h ${of.host}` : `g ${of.guest}`);
    return this.kept.filter((one) => key(one) !== key(about));
  }
}

function world() {
  const shop = new FakeDirectory();
  const bank = new FakeDirectory();
  const places = new Map([
    ['shop', { directory: shop, domain: 'ab'.repeat(16), self: 'host-a' }],
    ['bank', { directory: bank, domain: 'cd'.repeat(16), self: 'host-a' }],
  ]);
  const plans = new Plans({
    directories: { get: (name) => places.get(name) },
    domains: {
      all: () => [...places.keys()].map((name) => ({ name })) as never,
      members: (name) => (name === 'shop' ? [{ host: 'host-b', url: B }] : []),
    },
    domainOf: (guest) => {
      if (guest === 'web1') return 'shop';
      throw new PagetideError('PT_GUEST_UNKNOWN', `there is no guest '${guest}'`);
    },
    names: ['blade-7'],
    url: 'https://host-a:7411',
  });
  return { shop, bank, plans };
}

void t.test('a plan is set wherever this agent and the host are; names, URLs, self', async (t) => {
  const { shop, bank, plans } = world();
  for (const host of ['host-b', B]) {
    t.match(await plans.evacuate(host, HOUR), {
      plans: [{ domain: 'shop', kind: 'evacuate', host: 'host-b' }],
      failed: [],
    });
    t.same(shop.kept, [{ kind: 'evacuate', host: 'host-b', leftMs: HOUR }]);
  }
  t.same(bank.kept, [], 'it is no host of that domain');
  for (const host of ['self', 'host-a', 'blade-7']) t.equal((await plans.evacuate(host, HOUR)).plans.length, 2);
  await plans.affinity('web1', [B, 'host-b', 'self'], HOUR);
  t.match(shop.kept.at(-1), { guest: 'web1', hosts: ['host-b', 'host-a'] }, 'each once');
  t.equal((await plans.list()).plans.length, 4);
  t.same((await plans.withdraw({ kind: 'evacuate', host: B })).withdrawn, ['shop']);
  await t.rejects(plans.withdraw({ kind: 'evacuate', host: B }), { code: 'PT_PLAN_UNKNOWN' });
});

void t.test('refused before anything is told; directories that are away', async (t) => {
  const { shop, bank, plans } = world();
  const wrong: [() => Promise<unknown>, string][] = [
    [() => plans.evacuate('host-z', HOUR), 'PT_BAD_ARGUMENT'],
    [() => plans.evacuate('host-b', HOUR, 'bank'), 'PT_BAD_ARGUMENT'],
    [() => plans.evacuate('host-b', HOUR, 'none'), 'PT_DOMAIN_UNKNOWN'],
    [() => plans.evacuate('host-b', 0), 'PT_BAD_ARGUMENT'],
    [() => plans.evacuate('host-b', 721 * HOUR), 'PT_BAD_ARGUMENT'],
    [() => plans.affinity('web1', [], HOUR), 'PT_BAD_ARGUMENT'],
    [() => plans.affinity('web1', ['host-b', 'host-z'], HOUR), 'PT_BAD_ARGUMENT'],
    [() => plans.affinity('web9', ['host-b'], HOUR), 'PT_GUEST_UNKNOWN'],
  ];
  for (const [work, code] of wrong) await t.rejects(work, { code });
  t.same([shop.kept, bank.kept], [[], []]);
  await t.resolves(plans.affinity('web9', ['host-b'], HOUR, 'shop'));
  bank.failure = new PagetideError('PT_PEER_UNREACHABLE', 'away');
  t.match(await plans.evacuate('self', HOUR), { plans: [{ domain: 'shop' }], failed: [{ domain: 'bank' }] });
  shop.failure = bank.failure;
  await t.rejects(plans.evacuate('self', HOUR), { code: 'PT_PEER_UNREACHABLE' });
});

void t.test('a held plan is put back to what it was', async (t) => {
  const { shop, bank, plans } = world();
  await plans.evacuate('self', 9 * HOUR, 'shop');
  await plans.evacuate('self', HOUR / 2, 'bank');
  const release = await plans.hold(HOUR);
  t.same([shop.kept[0]!.leftMs, bank.kept[0]!.leftMs], [9 * HOUR, HOUR], 'a longer one is let alone');
  await release();
  t.equal(shop.kept[0]!.leftMs, 9 * HOUR);
  t.ok(bank.kept[0]!.leftMs <= HOUR / 2);
  bank.kept = [];
  const again = await plans.hold(HOUR);
  await again();
  t.same(bank.kept, [], 'no residue');
});

function host(more: Partial<ExplainedHost> & { queued?: number }): ExplainedHost {
  const { queued = 0, ...rest } = more;
  const explanation = {
    pages: 100,
    guests: 20,
    cache: 30,
    brought: 30,
    queued,
    missing: 10,
    hints: null,
    decisions: [],
  };
  return {
    host: 'host-b',
    url: B,
    likelihood: 1,
    present: null,
    state: 'bringing',
    planAgeMs: 0,
    explanation,
    ...rest,
  };
}

void t.test('a preparation waits until each target has planned with it, and has brought it', async (t) => {
  const log = pino({ level: 'silent' });
  const looks: ExplainedHost[] = [
    host({ planAgeMs: 60_000 }), // an empty queue, of a plan from before
    host({ queued: 50 }),
    host({ state: 'standing-back', queued: 1 }),
    host({}),
  ];
  let asked = 0;
  let released = 0;
  const preparer = {
    hold: () =>
      Promise.resolve(() => {
        released++;
        return Promise.resolve();
      }),
    explain: (): Promise<ExplainedGuest> => {
      const hosts = [looks[Math.min(asked++, looks.length - 1)]!];
      // a plan of age 0 is younger than anything
      return Promise.resolve({ guest: 'web1', domain: 'shop', pages: 100, stable: true, hosts });
    },
  };
  const made = (most: number) => new Preparation(preparer, ['web1'], [B], most, log, 1);
  const whole = made(60_000);
  await whole.begin();
  t.equal(await whole.wait(), 'brought');
  t.ok(asked >= 4, `${asked} looks`);
  t.match(whole.info(), { pages: 100, there: 90, queuedBytes: 0, ended: 'brought' });
  await whole.release();
  await whole.release();
  t.equal(released, 1);

  looks.splice(0, 4, host({ queued: 50 }));
  const late = made(20);
  await late.begin();
  t.equal(await late.wait(), 'time');
  t.match(late.info(), { there: 40, queuedBytes: 50 * 4096 });
  const stopped = made(60_000);
  await stopped.begin();
  const over = stopped.wait();
  stopped.stop();
  t.equal(await over, 'stopped');

  for (const one of [host({ state: 'off', planAgeMs: null }), host({ explanation: null, state: null })]) {
    looks.splice(0, 1, one);
    const idle = made(60_000);
    await idle.begin();
    t.equal(await idle.wait(), 'brought', 'nobody waits for a host that brings nothing');
  }
});

void t.test('targets that take long to answer do not outlast its time, nor a stop', async (t) => {
  let asked: (() => void) | undefined;
  const preparer = {
    hold: () => Promise.resolve(() => Promise.resolve()),
    explain: (guest: string): Promise<ExplainedGuest> => {
      if (guest === 'web1')
        return Promise.resolve({ guest, domain: 'shop', pages: 100, stable: true, hosts: [host({})] });
      asked?.();
      return new Promise(() => undefined);
    },
  };
  const log = pino({ level: 'silent' });
  const made = (mostMs: number) => new Preparation(preparer, ['web1', 'web2'], [B], mostMs, log, 1);
  const late = made(20);
  await late.begin();
  t.equal(await late.wait(), 'time');
  t.match(late.info(), { pages: 0, ended: 'time' }, 'no sum of some guests only');
  const stopped = made(60_000);
  await stopped.begin();
  const asking = new Promise<void>((resolve) => (asked = resolve));
  const over = stopped.wait();
  await asking;
  stopped.stop();
  t.equal(await over, 'stopped');
});
