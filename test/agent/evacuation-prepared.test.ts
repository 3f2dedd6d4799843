/** An evacuation that is prepared: what it does when its preparation is over, stopped, cancelled, or the agent ends. */
import { once, EventEmitter } from 'node:events';
import { pino } from 'pino';
import t from 'tap';
import type { Evacuation } from '../../src/agent/evacuation.ts';
import { Preparation } from '../../src/agent/evacuation-preparation.ts';
import { PreparedEvacuation } from '../../src/agent/prepared-evacuation.ts';
import { PagetideError } from '../../src/errors.ts';
import { B, guest, idOf, World } from './evacuation-world.ts';
import { tagsExplained } from './fake-distribution.ts';

const log = pino({ level: 'silent' });

/** A preparation that goes on until `brought()`, of the evacuation of `world`, which is planned anew as `again`. */
async function prepared(world: World, again: () => Evacuation, keepPlan = false) {
  const events = new EventEmitter();
  let queued = 50;
  let held = 0;
  const asked: string[] = [];
  const preparer = {
    hold: () => {
      held++;
      return Promise.resolve(() => {
        held--;
        return Promise.resolve();
      });
    },
    explain: (name: string) => {
      asked.push(name);
      events.emit('change');
      const explanation = { ...tagsExplained.explanation, pages: 100, missing: 0, queued };
      const host = { host: 'host-b', url: B, likelihood: 1, present: null, explanation, planAgeMs: 0 };
      return Promise.resolve({
        ...{ guest: name, domain: 'shop', stable: true, pages: 100 },
        hosts: [{ ...host, state: 'bringing' as const }],
      });
    },
  };
  const preparation = new Preparation(preparer, ['a', 'b'], [B], 60_000, log, 1);
  await preparation.begin();
  const one = new PreparedEvacuation(
    world.evacuation,
    preparation,
    async () => Promise.resolve(again()),
    keepPlan,
    log,
  );
  one.onChange(() => events.emit('change'));
  one.begin();
  const until = async (holds: () => boolean): Promise<void> => {
    while (!holds()) await once(events, 'change');
  };
  await until(() => asked.includes('b'));
  return { one, until, held: () => held, brought: () => void (queued = 0) };
}

const both = { guests: [guest('a', [1]), guest('b', [2])] };

void t.test('brought: planned anew; the plan is withdrawn before it is told to have ended', async (t) => {
  const first = new World(both);
  const second = new World({ guests: [guest('b', [2])] });
  const { one, until, held, brought } = await prepared(first, () => second.evacuation);
  t.match(one.info(), { state: 'preparing', guests: [{ state: 'waiting' }, { state: 'waiting' }] });
  t.equal(one.info().preparation?.queuedBytes === 0, false);
  t.same([first.begun(), one.ended], [[], false]);
  brought();
  await until(() => second.begun().length === 1);
  t.same(first.begun(), [], 'what was planned at first is void');
  t.match(one.info(), { state: 'running', preparation: { ended: 'brought' } });
  t.equal(held(), 1, 'in force while guests move');
  second.to('b', 'done');
  await until(() => one.info().state === 'ended');
  t.same([held(), one.ended], [0, true]);
  t.match(one.counts(), { moved: 1 });
});

void t.test('it can’t be planned anew: the first plan counts; --keep-plan', async (t) => {
  const world = new World(both);
  const away = (): never => {
    throw new PagetideError('PT_PEER_UNREACHABLE', 'no answer');
  };
  const { one, until, held, brought } = await prepared(world, away, true);
  brought();
  await until(() => world.begun().length === 2);
  world.to('a', 'done');
  world.to('b', 'done');
  await until(() => one.ended);
  t.equal(held(), 1, 'it stays in force');
});

for (const cancel of [false, true])
  void t.test(`stopped meanwhile, cancelled: ${cancel}`, async (t) => {
    const world = new World({ ...both, leaving: [{ guest: guest('x', []), migration: idOf('x'), to: B }] });
    world.underWay('x');
    const { one, until, held } = await prepared(world, () => t.fail('is not planned again') as never);
    one.stop(false);
    if (cancel) one.stop(true);
    await until(() => one.info().state === 'stopping');
    const states = () => Object.fromEntries(one.info().guests.map(({ guest: name, state }) => [name, state]));
    t.same(states(), { x: 'moving', a: 'stays', b: 'stays' }, 'who left before is on its way all the same');
    t.equal(held(), 1);
    if (cancel) await until(() => world.cancelled.length > 0);
    t.same(world.cancelled, cancel ? ['x'] : []);
    world.to('x', cancel ? 'cancelled' : 'done');
    await until(() => one.info().state === 'ended');
    t.same(states(), { x: cancel ? 'stays' : 'moved', a: 'stays', b: 'stays' });
    t.same([world.begun(), held()], [[], 0]);
  });

void t.test('the agent ends: nobody moves, and the plan is withdrawn unless it is to be kept', async (t) => {
  for (const keepPlan of [false, true]) {
    const world = new World(both);
    const { one, held } = await prepared(world, () => t.fail('is not planned again') as never, keepPlan);
    await one.close();
    t.equal(held(), keepPlan ? 1 : 0);
    await one.close();
    t.same([one.ended, world.begun()], [true, []]);
  }
});

void t.test('the agent ends, and no directory answers: it does not wait for ever', async (t) => {
  const preparer = {
    hold: () => Promise.resolve(() => new Promise<void>(() => undefined)),
    explain: () => Promise.reject(new PagetideError('PT_GUEST_STATE', 'nothing is known')),
  };
  const preparation = new Preparation(preparer, [], [B], 60_000, log, 1);
  await preparation.begin();
  const world = new World(both);
  const one = new PreparedEvacuation(world.evacuation, preparation, () => Promise.reject(new Error('')), false, log);
  await t.resolves(one.close());
});
