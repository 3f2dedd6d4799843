/** Every order of messages, losses, repeats, crashes and failures, within the budgets below. */
import t from 'tap';
import type { DestinationAt, SourceAt } from '../../src/migration/ownership/index.ts';
import { explore } from '../support/explorer.ts';
import { NO_FAULTS, RULES, type Budget } from '../support/world.ts';

const SOURCE: SourceAt[] = [
  'opening',
  'preparing',
  'copying',
  'pausing',
  'loading',
  'committing',
  'undoing',
  'handing-over',
  'fencing',
  'leaving',
  'gone',
  'releasing',
  'closing',
  'released',
  'resuming',
  'settling',
  'rolled-back',
  'losing',
  'lost',
];
const DESTINATION: DestinationAt[] = [
  'accepting',
  'starting',
  'prepared',
  'loading',
  'arrived',
  'awaited',
  'loaded',
  'taking-over',
  'retracting',
  'resuming',
  'reattaching',
  'serving',
  'unregistering',
  'completing',
  'closing',
  'complete',
  'killing',
  'refusing',
  'refused',
  'orphan',
  'losing',
  'lost',
];

const WALKS: [string, Partial<Budget>][] = [
  ['nothing goes wrong', {}],
  ['two crashes of either agent at any point, two losses, a repeat', { crashes: 2, losses: 2, duplicates: 1 }],
  ['a crash, two repeats, cancelled at any time', { crashes: 1, duplicates: 2, cancels: 1 }],
  ['journal writes fail, durable or not', { crashes: 1, journalFailures: 2, losses: 1, cancels: 1 }],
  ['the VMM fails or dies on either side', { crashes: 1, vmmFailures: 1, vmmDeaths: 1, losses: 1, timeouts: 1 }],
  ['the destination loses patience', { crashes: 1, losses: 1, duplicates: 1, timeouts: 1, cancels: 1 }],
  ['the guest comes back, or is moved again after a roll-back', { crashes: 1, more: 1, cancels: 1 }],
  ['a stale repeat while the guest comes back', { duplicates: 2, more: 1, timeouts: 1 }],
  ["the destination's host is lost and fenced", { hostLosses: 1, crashes: 1, losses: 1, duplicates: 1 }],
  ["the destination's journal is lost", { journalLosses: 1, crashes: 1, losses: 1, timeouts: 1 }],
];

/** The same with memory that is copied in rounds before the switch. */
const COPYING: [string, Partial<Budget>][] = [
  ['nothing goes wrong', {}],
  ['a crash of either agent at any point, two losses, a repeat', { crashes: 1, losses: 2, duplicates: 1 }],
  ['a crash, a repeat, cancelled at any time', { crashes: 1, duplicates: 1, cancels: 1 }],
  ['the VMM fails or dies on either side', { crashes: 1, vmmFailures: 1, vmmDeaths: 1, losses: 1, timeouts: 1 }],
  ['the guest is moved again after a roll-back', { more: 1, cancels: 1 }],
  ["the destination's host is lost and fenced", { hostLosses: 1, crashes: 1, losses: 1 }],
];

// all of it took 40 to 70 s on a core shared with other work; the default limit is 30
t.setTimeout(240_000);

const visited = new Set<string>();

const all = [
  ...WALKS.map(([name, budget]) => ({ name, budget, copies: false })),
  ...COPYING.map(([name, budget]) => ({ name: `copying: ${name}`, budget, copies: true })),
];
for (const { name, budget, copies } of all) {
  void t.test(name, { timeout: 120_000 }, (t) => {
    const outcome = explore({ ...NO_FAULTS, ...budget }, { ...RULES, copies });
    t.comment(
      `${outcome.states} states, ${outcome.moves} moves, ${outcome.goodEnds} good ends, ${outcome.seconds.toFixed(1)} s`,
    );
    if (outcome.counterexample !== undefined) t.fail(`a counterexample:\n${outcome.counterexample}`);
    for (const state of outcome.visited) visited.add(state);
    t.ok(outcome.goodEnds > 0, 'good ends are reached');
    t.end();
  });
}

void t.test('every state of both machines was walked through', (t) => {
  for (const at of SOURCE) t.ok(visited.has(`source ${at}`), `source ${at}`);
  for (const at of DESTINATION) t.ok(visited.has(`destination ${at}`), `destination ${at}`);
  t.end();
});
