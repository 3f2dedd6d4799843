/**
 * Walks every state that the two ownership machines and everything around them can get into, breadth first, so that
 * the first counterexample found is a shortest one.
 *
 * A *fault* is what happens at most so often (its budget): losses, repeats, crashes, failures, and what the operator
 * does. All else happens by itself sooner or later. Two things are checked: the invariants of {@link checkWorld} in
 * each state, and that from each state, with no further fault, a good end can be reached.
 */
import type { MigrationKey, SourceEvent, DestinationEvent } from '../../src/migration/ownership/index.ts';
import { destinationEnded, isOver, machineName } from '../../src/migration/ownership/index.ts';
import {
  begin,
  busy,
  checkWorld,
  cloneWorld,
  crash,
  deliver,
  feed,
  firstWorld,
  isGood,
  keyText,
  messageText,
  operate,
  over,
  own,
  record,
  RULES,
  Violation,
  type Budget,
  type Host,
  type HostId,
  type Rules,
  type World,
} from './world.ts';
import { PagetideError } from '../../src/errors.ts';

interface Move {
  /** Unique among the moves of one world; what a trace shows. */
  label: string;
  fault: boolean;
  apply(world: World): void;
}

export interface Outcome {
  states: number;
  moves: number;
  seconds: number;
  goodEnds: number;
  /** `side at` of every state that a machine was in. */
  visited: Set<string>;
  /** A readable story of how the first violation comes about; undefined when there is none. */
  counterexample?: string;
}

const NAMES = ['A', 'B'] as const;
const FAULT = new PagetideError('PT_IO', 'injected').toJSON();

/** Explores everything within `budget`. */
export function explore(budget: Budget, rules: Rules = RULES, limit = 3_000_000): Outcome {
  const began = performance.now();
  const seen = new Map<number, number>();
  const parents: number[] = [-1];
  const labels: string[] = [''];
  const edgesFrom: number[] = [];
  const edgesTo: number[] = [];
  const good: number[] = [];
  const root = firstWorld(rules, budget);
  let frontier: [number, World][] = [[0, root]];
  seen.set(digest(worldKey(root)), 0);
  let moves = 0;
  const visited = new Set<string>();
  const done = (story?: string): Outcome => {
    const seconds = (performance.now() - began) / 1000;
    const outcome = { states: seen.size, moves, seconds, goodEnds: good.length, visited };
    return story === undefined ? outcome : { ...outcome, counterexample: story };
  };
  const path = (to: number): string[] => {
    const way: string[] = [];
    for (let at = to; at > 0; at = parents[at]!) way.push(labels[at]!);
    return way.reverse();
  };
  while (frontier.length > 0) {
    const next: typeof frontier = [];
    for (const [id, world] of frontier) {
      if (isGood(world)) good.push(id);
      for (const move of movesOf(world, rules)) {
        moves++;
        const after = cloneWorld(world);
        try {
          move.apply(after);
          checkWorld(after);
        } catch (thrown) {
          if (!(thrown instanceof Violation)) throw thrown;
          return done(story(rules, budget, [...path(id), move.label], thrown.message));
        }
        const key = digest(worldKey(after));
        let to = seen.get(key);
        if (to === undefined) {
          to = parents.length;
          if (to >= limit) throw new Error(`more than ${limit} states: lower the budget`);
          seen.set(key, to);
          parents.push(id);
          labels.push(move.label);
          next.push([to, after]);
          for (const h of after.hosts) for (const { side, at } of h.machines.values()) visited.add(`${side} ${at}`);
        }
        if (!move.fault && to !== id) {
          edgesFrom.push(id);
          edgesTo.push(to);
        }
      }
    }
    frontier = next;
  }
  const stuck = firstStuck(parents.length, edgesFrom, edgesTo, good);
  return done(stuck < 0 ? undefined : story(rules, budget, path(stuck), 'from here no good end can be reached'));
}

/** The first state from which no good end can be reached; -1 when there is none. */
function firstStuck(states: number, from: number[], to: number[], good: number[]): number {
  const start = new Int32Array(states + 1);
  for (const target of to) start[target + 1]!++;
  for (let i = 0; i < states; i++) start[i + 1]! += start[i]!;
  const fill = start.slice(0, states);
  const sources = new Int32Array(from.length);
  to.forEach((target, i) => (sources[fill[target]!++] = from[i]!));
  const reaches = new Uint8Array(states);
  const queue = [...good];
  for (const id of good) reaches[id] = 1;
  for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
    for (let i = start[id]!; i < start[id + 1]!; i++) {
      const source = sources[i]!;
      if (reaches[source]) continue;
      reaches[source] = 1;
      queue.push(source);
    }
  }
  return reaches.indexOf(0);
}

// --- what can happen next -----------------------------------------------------------------------------------------

function movesOf(world: World, rules: Rules): Move[] {
  const moves: Move[] = [];
  const { budget } = world;
  const free = (label: string, apply: (w: World) => void): void => void moves.push({ label, fault: false, apply });
  const costs = (what: keyof Budget, label: string, apply: (w: World) => void): void => {
    if (budget[what] <= 0) return;
    moves.push({
      label,
      fault: true,
      apply: (w) => {
        w.budget[what]--;
        apply(w);
      },
    });
  };

  for (const [id, message] of world.net) {
    const text = `${messageText(message)} → ${NAMES[message.to]}`;
    free(`deliver ${text}`, (w) => {
      w.net.delete(id);
      deliver(w, rules, message);
    });
    costs('duplicates', `deliver ${text}, which will come again`, (w) => deliver(w, rules, message));
    costs('losses', `lose ${text}`, (w) => void w.net.delete(id));
  }
  for (const at of [0, 1] as const) {
    const h = world.hosts[at];
    if (h.lost) continue;
    const name = NAMES[at];
    const write = h.writes[0];
    if (write !== undefined) {
      const { machine, item } = write;
      const what = `${name}: journal ${item.state} of ${machine}`;
      const settle = (durable: boolean, event: SourceEvent | DestinationEvent) => (w: World) => {
        own(w, at).writes.shift();
        if (durable) record(w, at, item);
        feed(w, rules, at, machine, event);
      };
      free(`${what} is durable`, settle(true, { type: 'journaled', record: item.state }));
      const failed = { type: 'journal-failed', record: item.state, error: FAULT } as SourceEvent;
      costs('journalFailures', `${what} fails, yet is durable`, settle(true, failed));
      costs('journalFailures', `${what} fails`, settle(false, failed));
    }
    operationMoves(world, rules, at, free, costs);
    crashMoves(world, rules, at, costs);
    for (const [machine, state] of h.machines) machineMoves(world, rules, at, machine, state, free, costs);
    if (h.vmm !== null) costs('vmmDeaths', `${name}: the VMM dies`, (w) => vmmDies(w, rules, at));
    if (h.vmm?.running && !world.hosts[1 - at]!.lost && !busy(h, '')) {
      costs('more', `${name}: begin a migration`, (w) => begin(w, rules, at));
    }
  }
  if (!world.hosts[1].lost) {
    costs('hostLosses', 'B: the host is lost for good', (w) => loseHost(w));
  }
  return moves;
}

type Free = (label: string, apply: (w: World) => void) => void;
type Costs = (what: keyof Budget, label: string, apply: (w: World) => void) => void;

function operationMoves(world: World, rules: Rules, at: HostId, free: Free, costs: Costs): void {
  const operation = world.hosts[at].operations[0];
  if (operation === undefined) return;
  const { machine, item } = operation;
  const what = `${NAMES[at]}: ${item.do} of ${machine}`;
  if (item.do === 'load' && operation.arrived !== true) {
    free(`${what} has all it needs`, (w) => {
      const { operations } = own(w, at);
      operations[0] = { ...operations[0]!, arrived: true };
      feed(w, rules, at, machine, { type: 'arrived' });
    });
  }
  free(`${what} done`, (w) => {
    const { name, event } = operate(w, at);
    feed(w, rules, at, name, event);
  });
  const failure = ({ pause: 'pause-failed', 'start-vmm': 'start-failed', load: 'load-failed' } as const)[
    item.do as 'pause' | 'start-vmm' | 'load'
  ] as SourceEvent['type'] | undefined;
  if (failure === undefined) return;
  costs('vmmFailures', `${what} fails`, (w) => {
    own(w, at).operations.shift();
    feed(w, rules, at, machine, { type: failure, error: FAULT } as SourceEvent);
  });
}

function crashMoves(world: World, rules: Rules, at: HostId, costs: Costs): void {
  const { writes, operations } = world.hosts[at];
  for (let written = 0; written <= writes.length; written++) {
    for (let operated = 0; operated <= operations.length; operated++) {
      const extent = `with ${written}/${writes.length} writes durable, ${operated}/${operations.length} VMM operations done`;
      costs('crashes', `${NAMES[at]}: the agent crashes ${extent}, and restarts`, (w) => {
        crash(w, rules, at, written, operated, false);
      });
      if (at === 0 || written > 0) continue;
      costs(
        'journalLosses',
        `${NAMES[at]}: the agent crashes, its journal is lost (${operated} VMM operations done)`,
        (w) => {
          w.excused = w.wiped = true;
          crash(w, rules, at, 0, operated, true);
        },
      );
    }
  }
}

function machineMoves(
  world: World,
  rules: Rules,
  at: HostId,
  machine: string,
  state: ReturnType<Host['machines']['get']> & object,
  free: Free,
  costs: Costs,
): void {
  const h = world.hosts[at];
  const other = world.hosts[1 - at]!;
  const who = `${NAMES[at]}: ${machine}`;
  const event = (type: SourceEvent | DestinationEvent) => (w: World) => feed(w, rules, at, machine, type);
  const quiet = isQuiet(world, state);
  if (quiet) {
    const step =
      state.side === 'source'
        ? rules.stepSource(state, { type: 'retry' })
        : rules.stepDestination(state, { type: 'retry' });
    if (step.actions.length > 0) free(`${who} tries again`, event({ type: 'retry' }));
  }
  if (state.side === 'source') {
    costs('cancels', `${who} is cancelled`, event({ type: 'cancel' }));
    if (other.lost && quiet) free(`${who} gives up`, event({ type: 'failed', error: FAULT }));
    if (other.lost && (state.at === 'handing-over' || state.telling)) {
      free(`${who}: the operator fences the destination`, (w) => {
        w.fenced.add(keyText(state));
        feed(w, rules, at, machine, { type: 'fence' });
        feed(w, rules, at, machine, { type: 'peer-gone' });
      });
    }
    return;
  }
  const source = other.machines.get(machineName('source', state));
  const unheard = quiet && (other.lost || source === undefined || over(source));
  if (!destinationEnded(state)) {
    if (unheard) free(`${who} loses patience`, event({ type: 'timeout' }));
    else costs('timeouts', `${who} loses patience`, event({ type: 'timeout' }));
  }
  if ((state.at === 'resuming' || state.at === 'serving') && !state.filled && !other.lost && h.vmm?.label === machine) {
    free(`${who} has every page`, (w) => {
      own(w, at).vmm!.whole = true;
      feed(w, rules, at, machine, { type: 'filled' });
    });
  }
}

/** Nothing about this key is under way anywhere: whoever still waits for something waits in vain. */
function isQuiet(world: World, key: MigrationKey): boolean {
  const text = keyText(key);
  for (const message of world.net.values()) if (keyText(message.key) === text) return false;
  return world.hosts.every((h) => [...h.writes, ...h.operations].every((pending) => keyText(pending.key) !== text));
}

function vmmDies(world: World, rules: Rules, at: HostId): void {
  const h = own(world, at);
  const { label, running } = h.vmm!;
  const owned = (record: { state: string }): boolean => record.state === 'owner' || record.state === 'complete';
  const mine = h.journal.get(label);
  const promised = h.writes.some(({ machine, item }) => machine === label && owned(item));
  // a destination's VMM that never owned the guest can die without harm; any other death is the guest's own
  if (running || label === 'home' || (mine !== undefined && owned(mine)) || promised) world.excused = true;
  h.vmm = null;
  for (const name of [...h.machines.keys()]) {
    if (name === label || name.startsWith('source')) feed(world, rules, at, name, { type: 'vmm-died' });
  }
}

function loseHost(world: World): void {
  const h = world.hosts[1];
  const mayRun = [...h.journal.values()].some(
    (record) => record.side === 'destination' && !isOver(record) && record.state === 'owner',
  );
  if (mayRun || h.vmm?.running) world.excused = true;
  world.hosts[1] = { ...h, machines: new Map(), waiting: new Set(), writes: [], operations: [], vmm: null, lost: true };
  for (const [id, message] of world.net) if (message.to === 1) world.net.delete(id);
}

// --- canonical form -----------------------------------------------------------------------------------------------

const texts = new WeakMap<object, string>();

/** Everything that decides what can happen next; errors only tell people why, and are left out. */
function machineKey(state: object): string {
  let text = texts.get(state);
  if (text === undefined) {
    text = JSON.stringify(state, (name, value: unknown) => (name === 'error' || name === 'peer' ? undefined : value));
    texts.set(state, text);
  }
  return text;
}

const hostIds = new Map<string, number>();
const hostKeys = new WeakMap<Host, number>();

/** A number for all that decides about a host; most moves leave one of the two as it was. */
function hostId(h: Host): number {
  let id = hostKeys.get(h);
  if (id === undefined) {
    const text = hostKey(h);
    id = hostIds.get(text);
    if (id === undefined) hostIds.set(text, (id = hostIds.size));
    hostKeys.set(h, id);
  }
  return id;
}

function hostKey(h: Host): string {
  const machines = [...h.machines.keys()].sort().map((name) => machineKey(h.machines.get(name)!));
  const journal = [...h.journal.keys()]
    .sort()
    .map((name) => `${name}:${h.journal.get(name)!.state}:${h.journal.get(name)!.guest}`);
  const writes = h.writes.map(({ machine, item }) => `${machine}:${item.state}`);
  const operations = h.operations.map(
    (p) => `${p.machine}:${p.item.do}:${p.fresh}:${'unlessRunning' in p.item && p.item.unlessRunning}`,
  );
  const vmm = h.vmm === null ? '-' : `${h.vmm.label}:${h.vmm.running}:${h.vmm.fresh}:${h.vmm.whole}`;
  return [machines, journal, [...h.waiting].sort(), writes, operations, vmm, h.lost].join('|');
}

function worldKey(world: World): string {
  const { hosts, net, budget, begun, handed, fenced, excused, wiped } = world;
  // a lost answer says more than its text does
  const messages = [...net].map(([id, message]) => `${id}${message.lost ? 'L' : ''}`).sort();
  const facts = [
    [...handed.keys()].sort(),
    [...fenced].sort(),
    [...world.refused].sort(),
    begun,
    excused,
    wiped,
    Object.values(budget),
  ];
  return `${hostId(hosts[0])}#${hostId(hosts[1])}#${messages.join()}#${facts.join('|')}`;
}

/** 53 bits (cyrb53): with a million states the odds that two share one are about 1 in 18,000. */
function digest(text: string): number {
  let a = 0xdeadbeef;
  let b = 0x41c6ce57;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    a = Math.imul(a ^ code, 2654435761);
    b = Math.imul(b ^ code, 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return 4294967296 * (2097151 & b) + (a >>> 0);
}

// --- counterexamples ----------------------------------------------------------------------------------------------

/** Plays the moves again and tells how both hosts stand after each. */
function story(rules: Rules, budget: Budget, labels: string[], end: string): string {
  let world = firstWorld(rules, budget);
  const lines = [summary(world)];
  labels.forEach((label, i) => {
    const move = movesOf(world, rules).find((candidate) => candidate.label === label);
    if (move === undefined) throw new Error(`the story can't be told: no move '${label}'`);
    world = cloneWorld(world);
    try {
      move.apply(world);
    } catch (thrown) {
      if (!(thrown instanceof Violation)) throw thrown;
    }
    lines.push(`${String(i + 1).padStart(3)}. ${label}`, summary(world));
  });
  return [...lines, `==> ${end}`].join('\n');
}

function summary(world: World): string {
  const sides = world.hosts.map((h, i) => {
    const machines = [...h.machines.values()].map((machine) => `${machine.side} ${keyText(machine)}: ${machine.at}`);
    const journal = [...h.journal.values()].map((record) => `${record.side} ${keyText(record)}: ${record.state}`);
    const vmm = h.vmm === null ? 'none' : `${h.vmm.running ? 'RUNNING' : 'paused'}${h.vmm.fresh ? '' : ' (old state)'}`;
    return `       ${NAMES[i]}  vmm ${vmm} · machines [${machines.join(', ')}] · durable [${journal.join(', ')}]`;
  });
  return sides.join('\n');
}
