/** An evacuation over migrations that do what the test says: who begins when, and what becomes of those that fail. */
import t from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { B, C, guest, idOf, MIB, target, World } from './evacuation-world.ts';
import { report } from './fake-service.ts';

const like = ['a', 'b', 'c'].map((name) => guest(name, [1, 2, 3]));

void t.test('guests that are alike go one after the other, others beside them', async (t) => {
  const world = new World({ guests: [...like, guest('x', [10, 11, 12, 13])] }, { parallel: 4 });
  t.same(world.states(), { a: 'waiting', b: 'waiting', c: 'waiting', x: 'waiting' });
  world.evacuation.begin();
  await world.until(() => world.begun().length === 2);
  t.same(world.begun().sort(), ['a', 'x']);
  world.to('a', 'done');
  await world.until(() => world.begun().length === 3);
  t.equal(world.begun()[2], 'b');
  t.equal(world.asked, 1, 'after the target was asked for what a has brought');
  world.to('x', 'done');
  world.to('b', 'done');
  await world.until(() => world.begun().length === 4);
  world.to('c', 'done');
  await world.until(() => world.evacuation.ended);
  const { totals, elapsedMs } = world.evacuation.info();
  t.match(totals, { moved: 4, stay: 0, bytes: { wire: 4 * report.bytes.wire }, longestDowntimeMs: report.ms.downtime });
  t.equal(world.evacuation.info().elapsedMs, elapsedMs, 'time stands still at the end');
});

void t.test('a guest waits until the pages of the one before are found, or a while', async (t) => {
  const world = new World({ guests: like.slice(0, 2) });
  world.listed = false;
  world.evacuation.begin();
  await world.until(() => world.begun().length === 1);
  world.to('a', 'done');
  await world.until(() => world.asked >= 2);
  t.same(world.begun(), ['a'], 'not found yet');
  world.listed = true;
  await world.until(() => world.begun().length === 2);
  world.to('b', 'done');
  await world.until(() => world.evacuation.ended);
});

void t.test('no more at once than asked for, nor than a target has places', async (t) => {
  const many = ['a', 'b', 'c', 'd'].map((name) => guest(name, [], undefined));
  const two = new World({ guests: many }, { parallel: 2 });
  two.evacuation.begin();
  await two.until(() => two.begun().length === 2);
  t.same(Object.values(two.states()).filter((state) => state === 'moving').length, 2);
  two.evacuation.close();
  const one = new World({ guests: many, targets: [target(B, { places: 1 })] }, { parallel: 4 });
  one.evacuation.begin();
  await one.until(() => one.begun().length === 1);
  t.same(Object.values(one.states()).filter((state) => state === 'moving').length, 1);
  one.to('a', 'in-doubt');
  await one.until(() => one.begun().length === 2);
  t.pass('one in doubt holds nobody up');
  one.evacuation.close();
});

void t.test('a target that can’t take a guest: another one; none is left: it stays', async (t) => {
  const world = new World({ guests: [guest('a', [1]), guest('b', [1])], targets: [target(B), target(C)] });
  world.evacuation.begin();
  await world.until(() => world.begun().length === 1);
  const first = world.requests[0]!.to;
  world.to('a', 'failed', new PagetideError('PT_VMM_REFUSED_STATE', 'another machine'));
  await world.until(() => world.begun().filter((name) => name === 'a').length === 2);
  const again = world.requests.findLast(({ guest: name }) => name === 'a')!;
  t.not(again.to, first);
  world.to('a', 'failed', new PagetideError('PT_VMM_REFUSED_STATE', 'that one too'));
  await world.until(() => world.states()['a'] === 'stays');
  t.equal(world.error('a'), 'PT_VMM_REFUSED_STATE');
  await world.until(() => world.begun().includes('b'));
  world.to('b', 'done');
  t.match(world.evacuation.counts(), { moving: 1, moved: 0, left: 0, failed: 1 });
  await world.until(() => world.evacuation.ended);
  t.match(world.evacuation.info().totals, { moved: 1, stay: 1 });
  t.match(world.evacuation.counts(), { waiting: 0, moving: 0, moved: 1, left: 0, failed: 1 });
});

void t.test('a target that is gone is nobody’s any more; a guest’s own failure is final', async (t) => {
  const gone = new World({ guests: like, targets: [target(B), target(C, { room: 10 * MIB })] }, { parallel: 1 });
  gone.evacuation.begin();
  await gone.until(() => gone.begun().length === 1);
  t.equal(gone.requests[0]!.to, B);
  gone.to('a', 'failed', new PagetideError('PT_PEER_UNREACHABLE', 'no answer'));
  await gone.until(() => gone.begun().length === 2);
  t.same(
    gone.evacuation.info().guests.map(({ to }) => to),
    [C, C, C],
  );
  gone.evacuation.close();

  const own = new World({ guests: [guest('a', [1])], targets: [target(B), target(C)] });
  own.evacuation.begin();
  await own.until(() => own.begun().length === 1);
  own.to('a', 'failed', new PagetideError('PT_NOT_CONVERGING', 'it writes too fast'));
  await own.until(() => own.evacuation.ended);
  t.same([own.states(), own.error('a'), own.begun()], [{ a: 'stays' }, 'PT_NOT_CONVERGING', ['a']]);

  const refused = new World({ guests: [guest('a', [1])] });
  refused.refusal = new PagetideError('PT_NO_MEMORY', 'full');
  refused.evacuation.begin();
  await refused.until(() => refused.evacuation.ended);
  t.same([refused.states(), refused.error('a')], [{ a: 'stays' }, 'PT_NO_MEMORY']);
});

void t.test('stopped: nobody begins any more; cancelled: those under way are asked to come back', async (t) => {
  const world = new World({ guests: like }, { parallel: 1 });
  world.evacuation.begin();
  await world.until(() => world.begun().length === 1 && world.evacuation.info().guests[0]!.migration !== undefined);
  world.evacuation.stop(false);
  t.same(world.states(), { a: 'moving', b: 'stays', c: 'stays' });
  t.equal(world.error('b'), 'PT_CANCELLED');
  t.same(world.cancelled, []);
  t.notOk(world.evacuation.ended);
  world.evacuation.stop(true);
  t.same(world.cancelled, ['a']);
  world.to('a', 'cancelled', new PagetideError('PT_CANCELLED', 'the migration was cancelled'));
  await world.until(() => world.evacuation.ended);
  t.match(world.evacuation.info().totals, { moved: 0, stay: 3 });
  t.match(world.evacuation.counts(), { moved: 0, left: 3, failed: 0 }, 'that is no failure');
  t.same(world.begun(), ['a'], 'it is not tried again');
});

void t.test('cancelled while it begins', async (t) => {
  const world = new World({ guests: like }, { parallel: 1 });
  world.evacuation.begin();
  await Promise.resolve();
  world.evacuation.stop(true);
  // it had not begun, or has and is asked to come back
  if (world.begun().length > 0) {
    await world.until(() => world.cancelled.length === 1);
    world.to('a', 'cancelled');
  }
  await world.until(() => world.evacuation.ended);
  t.match(world.evacuation.info().totals, { moved: 0, stay: 3 });
});

void t.test('a guest with bad frames: nobody follows it', async (t) => {
  const world = new World({ guests: like.slice(0, 2) }, { parallel: 1 });
  world.evacuation.begin();
  await world.until(() => world.begun().length === 1);
  world.to('a', 'done', undefined, { ...report, verified: false });
  await world.until(() => world.evacuation.ended);
  t.same([world.states(), world.error('a'), world.begun()], [{ a: 'moved', b: 'stays' }, 'PT_VERIFY_FAILED', ['a']]);
});

void t.test('what is under way from before is followed; what can’t go is told', async (t) => {
  const error = new PagetideError('PT_GUEST_STATE', 'it is paused').toJSON();
  const survey = {
    guests: [guest('a', [1])],
    leaving: [{ guest: guest('old', []), migration: idOf('old'), to: B }],
    stuck: [{ guest: 'stuck', memory: MIB, error }],
  };
  const world = new World(survey, { parallel: 1 });
  world.underWay('old');
  t.same(
    world.evacuation.info().guests.map(({ guest: name }) => name),
    ['old', 'a', 'stuck'],
  );
  world.evacuation.begin();
  t.same(world.states(), { old: 'moving', a: 'waiting', stuck: 'stays' });
  world.to('old', 'done');
  await world.until(() => world.begun().length === 1);
  t.same(world.begun(), ['a'], 'the other one had begun');
  world.to('a', 'done');
  await world.until(() => world.evacuation.ended);
  t.match(world.evacuation.info().totals, { moved: 2, stay: 1 });
  t.match(world.evacuation.counts(), { moved: 2, left: 1, failed: 0 });
});

void t.test('the bandwidth is divided anew with each that comes and goes', async (t) => {
  const guests = ['a', 'b', 'c'].map((name) => guest(name, [], undefined));
  const world = new World({ guests }, { parallel: 2, bandwidth: 9 * MIB });
  world.evacuation.begin();
  await world.until(() => world.begun().length === 2);
  t.ok(world.requests.every(({ bandwidth }) => bandwidth! <= 9 * MIB));
  await world.until(
    () => world.evacuation.info().guests.filter(({ migration }) => migration !== undefined).length === 2,
  );
  const last = (name: string): number | undefined => world.limits.findLast(([of]) => of === name)?.[1];
  t.same([last('a'), last('b')], [4.5 * MIB, 4.5 * MIB]);
  world.to('a', 'done');
  await world.until(
    () => world.evacuation.info().guests.filter(({ migration }) => migration !== undefined).length === 3,
  );
  t.same([last('b'), last('c')], [4.5 * MIB, 4.5 * MIB]);
  world.to('b', 'done');
  await world.until(() => last('c') === 9 * MIB);
  world.to('c', 'done');
  await world.until(() => world.evacuation.ended);
});

void t.test('nobody takes anybody: that is refused', (t) => {
  const full = new World({ guests: like, targets: [target(B, { room: 10 })] });
  t.throws(() => full.evacuation.check(), { code: 'PT_NO_TARGET', message: /needs 1 MiB; left: .*7412: 10/ });
  const refuses = new Map(like.map(({ name }) => [name, new PagetideError('PT_MODE_UNSUPPORTED', 'no way').toJSON()]));
  const unable = new World({ guests: like, targets: [target(B, { refuses })] });
  t.throws(() => unable.evacuation.check(), { code: 'PT_NO_TARGET', message: /no way/ });
  t.doesNotThrow(() => new World({}).evacuation.check(), 'an empty host is no failure');
  t.end();
});
