/** What the machines say to operators and do with requests out of turn; that they are safe is the explorer's to show. */
import t from 'tap';
import { PagetideError } from '../../src/errors.ts';
import {
  admission,
  compactOwnership,
  describe,
  nextEpoch,
  recover,
  recoverSource,
  startSource,
  stepSource,
  newDestination,
  stepDestination,
  type OwnershipRecord,
  type SourceEvent,
  type SourceState,
} from '../../src/migration/ownership/index.ts';

const GONE = new PagetideError('PT_VMM_GONE', 'its VMM is gone').toJSON();
const KEY = { migration: '0123456789abcdef', epoch: 3 };

function walk(state: SourceState, ...events: SourceEvent[]): SourceState {
  return events.reduce((at, event) => stepSource(at, event).state, state);
}

function handingOver(): SourceState {
  return walk(
    startSource({ ...KEY, guest: 'g', peer: 'http://b', copies: false }).state,
    { type: 'journaled', record: 'preparing' },
    { type: 'answer', ...KEY, state: 'prepared' },
    { type: 'paused' },
    { type: 'answer', ...KEY, state: 'loaded' },
    { type: 'journaled', record: 'handing-over' },
  );
}

void t.test('a source in doubt stays paused and says so, asks again, and turns a cancel down', (t) => {
  const { state, actions } = stepSource(handingOver(), { type: 'retry' });
  t.match(describe(state), { phase: 'in-doubt', owner: 'unsure', ended: false });
  t.match(actions, [
    { do: 'send', request: 'take-over', key: KEY },
    { do: 'report', what: 'in-doubt' },
  ]);
  t.match(stepSource(state, { type: 'retry' }).actions, [{ do: 'send' }], 'reported once');
  const cancel = stepSource(state, { type: 'cancel' });
  t.equal(cancel.state, state);
  t.match(cancel.actions, [{ do: 'turn-down', what: 'cancel', error: { code: 'PT_NOT_CANCELLABLE' } }]);
  t.match(describe(recoverSource({ side: 'source', state: 'handing-over', ...KEY, guest: 'g', peer: 'b' }).state), {
    phase: 'in-doubt',
  });
  t.end();
});

void t.test('memory is copied before the guest is paused, where that was agreed on', (t) => {
  const preparing = walk(startSource({ ...KEY, guest: 'g', peer: 'http://b', copies: true }).state, {
    type: 'journaled',
    record: 'preparing',
  });
  const { state, actions } = stepSource(preparing, { type: 'answer', ...KEY, state: 'prepared' });
  t.same(actions, [{ do: 'copy' }], 'nothing is paused');
  t.match(describe(state), { phase: 'copying', owner: 'yes', ended: false });
  t.same(stepSource(state, { type: 'answer', ...KEY, state: 'prepared' }), { state, actions: [] }, 'once is enough');
  t.match(stepSource(state, { type: 'copied' }), { state: { at: 'pausing' }, actions: [{ do: 'pause' }] });

  const backs: [SourceEvent, object][] = [
    [{ type: 'cancel' }, { at: 'resuming', cancelled: true, error: { code: 'PT_CANCELLED' } }],
    [
      { type: 'failed', error: GONE },
      { at: 'resuming', error: GONE },
    ],
    [
      { type: 'answer', ...KEY, state: 'refused' },
      { at: 'resuming', telling: false },
    ],
    [
      { type: 'answer', ...KEY, state: 'prepared', error: GONE },
      { at: 'resuming', telling: true },
    ],
    [{ type: 'vmm-died' }, { at: 'losing' }],
  ];
  for (const [event, expected] of backs) {
    const back = stepSource(state, event);
    t.match(back.state, expected, event.type);
    t.same(stepSource(back.state, { type: 'copied' }).actions, [], 'what comes of the rounds later means nothing');
  }
  t.end();
});

void t.test('messages of another migration or epoch do nothing', (t) => {
  const state = handingOver();
  t.same(stepSource(state, { type: 'answer', ...KEY, epoch: 2, state: 'refused' }), { state, actions: [] });
  t.same(stepSource(state, { type: 'complete', migration: 'ffffffffffffffff', epoch: 3 }), { state, actions: [] });
  const idle = newDestination(KEY);
  t.same(stepDestination(idle, { type: 'take-over', ...KEY, epoch: 4 }), { state: idle, actions: [] });
  t.end();
});

void t.test('a fence is for a guest in doubt only; it is durable before the guest runs', (t) => {
  const fence = stepSource(handingOver(), { type: 'fence' });
  t.match(fence.actions, [{ do: 'journal', record: { state: 'fenced' } }]);
  t.equal(fence.actions.length, 1);
  t.match(stepSource(fence.state, { type: 'journaled', record: 'fenced' }).actions, [
    { do: 'stop-pages' },
    { do: 'resume' },
    { do: 'send', request: 'abort' },
  ]);
  const gone = walk(handingOver(), { type: 'answer', ...KEY, state: 'owner' }, { type: 'journaled', record: 'gone' });
  t.match(stepSource(gone, { type: 'fence' }).actions, [{ do: 'turn-down', error: { code: 'PT_GUEST_STATE' } }]);
  t.match(stepSource(gone, { type: 'discard' }).actions, [{ do: 'turn-down', error: { code: 'PT_GUEST_STATE' } }]);
  const error = { code: 'PT_VMM_GONE' as const, message: 'm', hint: 'h' };
  const lost = walk(gone, { type: 'answer', ...KEY, state: 'owner', error });
  t.match(describe(lost).note, /lost the guest/);
  t.match(stepSource(lost, { type: 'discard' }).actions, [{ do: 'stop-pages' }, { do: 'release-vmm' }]);
  t.end();
});

void t.test('a word that the protocol rules out is reported, and nothing is done about it', (t) => {
  const gone = walk(handingOver(), { type: 'answer', ...KEY, state: 'owner' }, { type: 'journaled', record: 'gone' });
  const step = stepSource(gone, { type: 'answer', ...KEY, state: 'refused' });
  t.same(step, { state: gone, actions: [{ do: 'report', what: 'conflict' }] });
  t.end();
});

void t.test('epochs, admission and compaction', (t) => {
  const make = (epoch: number, state: 'running' | 'gone' | 'preparing', guest = 'g'): OwnershipRecord => {
    return { side: 'source', state, migration: `m${epoch}`, epoch, guest, peer: 'b' };
  };
  const records = [
    make(1, 'preparing'),
    make(1, 'running'),
    make(2, 'preparing'),
    make(2, 'gone'),
    make(9, 'running', 'h'),
  ];
  t.equal(nextEpoch(records, 'g'), 3);
  t.equal(nextEpoch(records, 'g', 7), 8);
  t.equal(nextEpoch([], 'g'), 1);
  t.same(
    recover(records).map(({ state }) => state.at),
    ['rolled-back', 'gone', 'rolled-back'],
  );
  t.same(compactOwnership(records, 0), [make(2, 'gone'), make(9, 'running', 'h')]);
  t.same(compactOwnership(records), [make(1, 'running'), make(2, 'gone'), make(9, 'running', 'h')]);
  const request = { guest: 'g', epoch: 3, highest: 2, present: false, busy: false };
  t.equal(admission(request), undefined);
  t.match(admission({ ...request, epoch: 2 }), { code: 'PT_GUEST_STATE' });
  t.match(admission({ ...request, present: true }), { code: 'PT_GUEST_EXISTS' });
  t.match(admission({ ...request, busy: true }), { code: 'PT_GUEST_BUSY' });
  t.end();
});
