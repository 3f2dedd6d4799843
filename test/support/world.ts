/**
 * A model of two hosts, their journals, VMMs and the network between them, in which the real ownership machines run.
 *
 * What survives a crash of an agent: its journal as far as it was durable, and its VMM. Everything else is gone. The
 * network may hold any message for as long as it likes and deliver in any order. What the model checks at each step is
 * in {@link checkWorld}; it knows nothing of the machines' own idea of what is right.
 */
import {
  admission,
  destinationEnded,
  highestEpoch,
  isOver,
  machineName,
  newDestination,
  recoverDestination,
  recoverSource,
  startSource,
  stepDestination,
  stepSource,
  type DestinationAction,
  type DestinationEvent,
  type DestinationState,
  type DestinationStep,
  type MigrationKey,
  type OwnershipRecord,
  type SourceAction,
  type SourceEvent,
  type SourceState,
  type SourceStep,
} from '../../src/migration/ownership/index.ts';
import { PagetideError } from '../../src/errors.ts';

/** What is explored; tests replace parts of it to show that the explorer notices. */
export interface Rules {
  /** Whether memory is copied in rounds before the switch. */
  copies: boolean;
  startSource: typeof startSource;
  stepSource: typeof stepSource;
  recoverSource: typeof recoverSource;
  stepDestination: typeof stepDestination;
  recoverDestination: typeof recoverDestination;
  admission: typeof admission;
}
export const RULES: Rules = {
  copies: false,
  startSource,
  stepSource,
  recoverSource,
  stepDestination,
  recoverDestination,
  admission,
};

/** How often each thing may go wrong (or be asked for) on one path. */
export interface Budget {
  crashes: number;
  losses: number;
  duplicates: number;
  /** Journal writes that fail, durable or not. */
  journalFailures: number;
  /** start-vmm, load or pause fails. */
  vmmFailures: number;
  vmmDeaths: number;
  cancels: number;
  /** The destination loses patience although the source lives. */
  timeouts: number;
  /** The destination's host is lost for good; the operator may fence it. */
  hostLosses: number;
  /** A crash that takes the journal of the destination's host with it. */
  journalLosses: number;
  /** Migrations begun after the first, in whichever direction. */
  more: number;
}
export const NO_FAULTS: Budget = {
  crashes: 0,
  losses: 0,
  duplicates: 0,
  journalFailures: 0,
  vmmFailures: 0,
  vmmDeaths: 0,
  cancels: 0,
  timeouts: 0,
  hostLosses: 0,
  journalLosses: 0,
  more: 0,
};

export type HostId = 0 | 1;
type Machine = SourceState | DestinationState;
type VmmAction = Extract<
  SourceAction | DestinationAction,
  { do: 'pause' | 'resume' | 'release-vmm' | 'start-vmm' | 'load' | 'serve' | 'unregister' | 'kill-vmm' }
>;
interface Vmm {
  running: boolean;
  /** The machine that started it; `home` for the one that was there first. */
  label: string;
  /** Its state is the guest's latest: nobody has run since it was taken. */
  fresh: boolean;
  whole: boolean;
}
export interface Message {
  to: HostId;
  kind:
    'prepare' | 'copy' | 'copied' | 'load' | 'take-over' | 'abort' | 'status' | 'complete' | 'answer' | 'acknowledged';
  key: MigrationKey;
  state?: DestinationStateAnswer;
  error?: boolean;
  lost?: boolean;
  fresh?: boolean;
}
type DestinationStateAnswer = Extract<DestinationAction, { do: 'answer' }>['state'];
interface Pending<T> {
  machine: string;
  key: MigrationKey;
  item: T;
  fresh?: boolean;
  /** Of `load`: all that it needs is there, and that was told. */
  arrived?: boolean;
}
export interface Host {
  journal: Map<string, OwnershipRecord>;
  machines: Map<string, Machine>;
  /** Machines with an HTTP request that waits for its answer. */
  waiting: Set<string>;
  writes: Pending<OwnershipRecord>[];
  operations: Pending<VmmAction>[];
  vmm: Vmm | null;
  lost: boolean;
}
export interface World {
  hosts: [Host, Host];
  net: Map<string, Message>;
  budget: Budget;
  begun: number;
  /** Key → label of the VMM that was given away, once a take-over was sent. */
  handed: Map<string, { host: HostId; label: string }>;
  fenced: Set<string>;
  /** Keys whose refusal was durable at some time. */
  refused: Set<string>;
  /** Hosts that no other world shares. */
  owned: [boolean, boolean];
  /** The guest itself died by a fault that nothing could have helped. */
  excused: boolean;
  /** A journal was lost: how it ends is the operator's business; that nobody runs twice is still ours. */
  wiped: boolean;
}

export class Violation extends Error {}

const GUEST = 'g';
const FAULT = new PagetideError('PT_IO', 'injected').toJSON();
const GONE = new PagetideError('PT_VMM_GONE', 'injected').toJSON();

export function keyText({ migration, epoch }: MigrationKey): string {
  return `${migration}@${epoch}`;
}

function host(vmm: Vmm | null): Host {
  return { journal: new Map(), machines: new Map(), waiting: new Set(), writes: [], operations: [], vmm, lost: false };
}

/** Host 0 runs the guest and has just begun to move it to host 1. */
export function firstWorld(rules: Rules, budget: Budget): World {
  const world: World = {
    hosts: [host({ running: true, label: 'home', fresh: true, whole: true }), host(null)],
    net: new Map(),
    budget: { ...budget },
    begun: 0,
    handed: new Map(),
    fenced: new Set(),
    refused: new Set(),
    owned: [true, true],
    excused: false,
    wiped: false,
  };
  begin(world, rules, 0);
  return world;
}

/** A copy whose hosts are shared with the original until {@link own} is called for them. */
export function cloneWorld(world: World): World {
  return {
    ...world,
    hosts: [world.hosts[0], world.hosts[1]],
    net: new Map(world.net),
    budget: { ...world.budget },
    handed: new Map(world.handed),
    fenced: new Set(world.fenced),
    refused: new Set(world.refused),
    owned: [false, false],
  };
}

/** A host of this world, to be changed. */
export function own(world: World, at: HostId): Host {
  const h = world.hosts[at];
  if (world.owned[at]) return h;
  world.owned[at] = true;
  return (world.hosts[at] = {
    ...h,
    journal: new Map(h.journal),
    machines: new Map(h.machines),
    waiting: new Set(h.waiting),
    writes: [...h.writes],
    operations: [...h.operations],
    vmm: h.vmm === null ? null : { ...h.vmm },
  });
}

/** Begins a migration from `from` to the other host. */
export function begin(world: World, rules: Rules, from: HostId): void {
  world.begun++;
  const records = allRecords(world.hosts[from]);
  const key = { migration: `m${world.begun}`, epoch: highestEpoch(records, GUEST) + 1 };
  take(
    world,
    from,
    machineName('source', key),
    rules.startSource({ ...key, guest: GUEST, peer: `host ${1 - from}`, copies: rules.copies }),
    key,
  );
}

function allRecords(h: Host): OwnershipRecord[] {
  return [...h.journal.values(), ...h.writes.map((write) => write.item)];
}

/** Whether a machine of another key for the guest isn't over on this host. */
export function busy(h: Host, except: string): boolean {
  return [...h.machines].some(([name, machine]) => name !== except && !over(machine));
}

export function over(machine: Machine): boolean {
  if (machine.side === 'destination') return destinationEnded(machine);
  return machine.at === 'released' || machine.at === 'rolled-back' || machine.at === 'lost';
}

// --- what the driver does: carry out actions ----------------------------------------------------------------------

function take(world: World, at: HostId, name: string, step: SourceStep | DestinationStep, of: MigrationKey): void {
  const h = own(world, at);
  const key = { migration: of.migration, epoch: of.epoch };
  if (step.state.at === 'idle') h.machines.delete(name);
  else h.machines.set(name, step.state);
  const other: HostId = at === 0 ? 1 : 0;
  for (const action of step.actions) {
    switch (action.do) {
      case 'journal':
        h.writes.push({ machine: name, key, item: action.record });
        break;
      case 'send':
        if (action.request === 'take-over') handOver(world, at, key);
        post(world, {
          to: other,
          kind: action.request,
          key,
          ...(action.request === 'load' ? { fresh: snapshot(h) } : {}),
        });
        break;
      case 'copy':
        // all rounds in one: no state of either machine lies between two of them
        post(world, { to: other, kind: 'copy', key });
        break;
      case 'answer':
        if (!h.waiting.delete(name)) break;
        post(world, {
          to: other,
          kind: 'answer',
          key,
          state: action.state,
          ...(action.error === undefined ? {} : { error: true, lost: action.error.code === 'PT_VMM_GONE' }),
        });
        break;
      case 'acknowledge':
        if (h.waiting.delete(name)) post(world, { to: other, kind: 'acknowledged', key });
        break;
      case 'serve-pages':
      case 'stop-pages':
      case 'turn-down':
      case 'report':
        break;
      default:
        h.operations.push({ machine: name, key, item: action });
    }
  }
}

function handOver(world: World, at: HostId, key: MigrationKey): void {
  const label = world.hosts[at].vmm?.label ?? 'dead';
  if (!world.handed.has(keyText(key))) world.handed.set(keyText(key), { host: at, label });
}

function snapshot({ vmm }: Host): boolean {
  return vmm !== null && !vmm.running && vmm.fresh;
}

export function messageText(message: Message): string {
  const { kind, key, state, error, fresh } = message;
  return `${kind}${state === undefined ? '' : ` ${state}`}${error ? '!' : ''}${fresh === false ? ' (stale)' : ''} ${keyText(key)}`;
}

function post(world: World, message: Message): void {
  if (world.hosts[message.to].lost) return;
  world.net.set(`${message.to} ${messageText(message)}`, message);
}

/** Feeds an event to a machine. */
export function feed(
  world: World,
  rules: Rules,
  at: HostId,
  name: string,
  event: SourceEvent | DestinationEvent,
): void {
  const machine = world.hosts[at].machines.get(name);
  if (machine === undefined) return;
  const step =
    machine.side === 'source'
      ? rules.stepSource(machine, event as SourceEvent)
      : rules.stepDestination(machine, event as DestinationEvent);
  take(world, at, name, step, machine);
}

/** Delivers a message, which the caller has taken out of the network (or left there, to come again). */
export function deliver(world: World, rules: Rules, message: Message): void {
  const { to, kind, key } = message;
  const h = own(world, to);
  if (kind === 'answer') {
    const error = message.error ? { error: message.lost ? GONE : FAULT } : {};
    feed(world, rules, to, machineName('source', key), { type: 'answer', ...key, state: message.state!, ...error });
    return;
  }
  if (kind === 'copied') {
    feed(world, rules, to, machineName('source', key), { type: 'copied' });
    return;
  }
  if (kind === 'copy') {
    copy(world, to, key);
    return;
  }
  if (kind === 'acknowledged') {
    feed(world, rules, to, machineName('destination', key), { type: 'acknowledged', ...key });
    return;
  }
  const name = machineName(kind === 'complete' ? 'source' : 'destination', key);
  if (kind === 'complete') {
    if (h.machines.has(name)) {
      h.waiting.add(name);
      feed(world, rules, to, name, { type: 'complete', ...key });
    } else post(world, { to: to === 0 ? 1 : 0, kind: 'acknowledged', key }); // it holds nothing for it
    return;
  }
  h.waiting.add(name);
  if (!h.machines.has(name)) h.machines.set(name, newDestination(key));
  if (kind === 'prepare') {
    const highest = highestEpoch(allRecords(h), GUEST);
    const obstacle = rules.admission({
      guest: GUEST,
      epoch: key.epoch,
      highest,
      present: h.vmm !== null,
      busy: busy(h, name),
    });
    const peer = `host ${1 - to}`;
    const event = { type: 'prepare' as const, ...key, guest: GUEST, peer };
    feed(world, rules, to, name, obstacle === undefined ? event : { ...event, obstacle });
  } else {
    const before = h.operations.length;
    feed(world, rules, to, name, { type: kind, ...key });
    const added = h.operations.slice(before).find(({ item }) => item.do === 'load');
    if (added !== undefined) added.fresh = message.fresh ?? false;
  }
  if (!h.machines.has(name)) h.waiting.delete(name);
}

/** Copying is no business of the destination's machine: whoever drives it copies where it is prepared, and says no elsewhere. */
function copy(world: World, at: HostId, key: MigrationKey): void {
  const machine = world.hosts[at].machines.get(machineName('destination', key));
  const to: HostId = at === 0 ? 1 : 0;
  if (machine?.at === 'prepared') post(world, { to, kind: 'copied', key });
  else post(world, { to, kind: 'answer', key, state: machine?.at === 'refused' ? 'refused' : 'unknown', error: true });
}

// --- what the VMMs do ---------------------------------------------------------------------------------------------

/** Lets the first pending VMM operation take effect; the event that tells of it. */
export function operate(world: World, at: HostId): { name: string; event: SourceEvent | DestinationEvent } {
  const h = own(world, at);
  const { machine: name, key, item, fresh } = h.operations.shift()!;
  const died = { name, event: { type: 'vmm-died' as const } };
  switch (item.do) {
    case 'pause':
      if (h.vmm === null) return died;
      h.vmm.running = false;
      return { name, event: { type: 'paused' } };
    case 'resume':
      if (h.vmm === null || (name.startsWith('destination') && h.vmm.label !== name)) return died;
      run(world, at, key);
      return { name, event: { type: 'resumed' } };
    case 'release-vmm':
      if (h.vmm?.running) throw new Violation('a running guest was released');
      if (h.vmm !== null) checkRelease(world, at, key);
      h.vmm = null;
      return { name, event: { type: 'vmm-released' } };
    case 'start-vmm':
      if (h.vmm !== null) throw new Violation('a VMM was started beside another of the same guest');
      h.vmm = { running: false, label: name, fresh: false, whole: false };
      return { name, event: { type: 'vmm-started' } };
    case 'load':
      if (h.vmm?.label !== name) return died;
      h.vmm.fresh = fresh ?? false;
      return { name, event: { type: 'loaded' } };
    case 'serve':
      return h.vmm?.label === name ? { name, event: { type: 'served' } } : died;
    case 'unregister':
      if (h.vmm?.label !== name) return died;
      if (!h.vmm.whole) throw new Violation('unregistered while pages are missing');
      return { name, event: { type: 'unregistered' } };
    case 'kill-vmm':
      if (h.vmm?.label !== name) return { name, event: { type: 'vmm-dead' } };
      if (h.vmm.running) {
        if (item.unlessRunning) return { name, event: { type: 'vmm-running' } };
        throw new Violation('a running guest was killed');
      }
      h.vmm = null;
      return { name, event: { type: 'vmm-dead' } };
  }
}

function run(world: World, at: HostId, key: MigrationKey): void {
  const vmm = own(world, at).vmm!;
  if (vmm.running) return;
  if (!vmm.fresh && !world.fenced.has(keyText(key))) throw new Violation('the guest was resumed from an old state');
  vmm.running = true;
  vmm.fresh = true;
  const other = own(world, at === 0 ? 1 : 0);
  if (other.vmm !== null) other.vmm.fresh = false;
  for (const h of world.hosts) {
    h.operations = h.operations.map((operation) =>
      operation.fresh === true ? { ...operation, fresh: false } : operation,
    );
  }
  for (const [name, message] of [...world.net]) {
    if (message.fresh !== true) continue;
    world.net.delete(name);
    post(world, { ...message, fresh: false });
  }
}

function checkRelease(world: World, at: HostId, key: MigrationKey): void {
  const there = world.hosts[1 - at]!.vmm;
  if (world.excused) return;
  if (there === null || there.label !== machineName('destination', key) || !there.whole) {
    throw new Violation('the source was destroyed before the destination had every page');
  }
}

/** A record is durable. */
export function record(world: World, at: HostId, item: OwnershipRecord): void {
  own(world, at).journal.set(machineName(item.side, item), item);
  if (item.state === 'refused') world.refused.add(keyText(item));
}

// --- crashes ------------------------------------------------------------------------------------------------------

/** The agent dies after its first `written` writes and `operated` operations took effect, and starts again. */
export function crash(world: World, rules: Rules, at: HostId, written: number, operated: number, wipe: boolean): void {
  const h = own(world, at);
  for (const { item } of h.writes.slice(0, written)) record(world, at, item);
  for (let i = 0; i < operated; i++) operate(world, at);
  h.writes = [];
  h.operations = [];
  h.machines = new Map();
  h.waiting = new Set();
  if (wipe) h.journal = new Map();
  for (const [name, last] of h.journal) {
    const step = last.side === 'source' ? rules.recoverSource(last) : rules.recoverDestination(last);
    take(world, at, name, step, last);
  }
}

// --- what must hold -----------------------------------------------------------------------------------------------

/** The invariants. Throws {@link Violation}. */
export function checkWorld(world: World): void {
  const [a, b] = world.hosts;
  if (a.vmm?.running && b.vmm?.running) throw new Violation('the guest runs on both hosts');
  for (const h of world.hosts) {
    if (!h.vmm?.running || h.vmm.label === 'home') continue;
    const record = h.journal.get(h.vmm.label);
    if (record?.state !== 'owner' && record?.state !== 'complete' && !world.excused) {
      throw new Violation(`the guest runs at the destination, whose journal says ${record?.state ?? 'nothing'}`);
    }
  }
  for (const [key, { host: at, label }] of world.handed) {
    const vmm = world.hosts[at].vmm;
    if (!vmm?.running || vmm.label !== label || world.fenced.has(key)) continue;
    const there = world.hosts[1 - at]!;
    const name = `destination ${key}`;
    const durable = there.journal.get(name)?.state ?? 'nothing';
    if (!world.refused.has(key))
      throw new Violation(`handed over, yet it runs at the source; the destination's journal says ${durable}`);
    if (there.vmm?.label === name)
      throw new Violation('handed over, yet it runs at the source while the VMM at the destination lives');
  }
}

/** Everything has come to its end, and it is a good one. */
export function isGood(world: World): boolean {
  if (world.wiped) return true;
  if (world.net.size > 0) return false;
  let running = 0;
  let vmms = 0;
  let ended = true;
  for (const h of world.hosts) {
    if (h.lost) continue;
    if (h.writes.length > 0 || h.operations.length > 0) return false;
    if (h.vmm !== null) vmms++;
    if (h.vmm?.running) running++;
    for (const machine of h.machines.values()) {
      // a roll-back whose abort nobody will ever answer is an end as well
      if (!over(machine) && !(world.excused && machine.at === 'gone')) ended = false;
    }
    for (const record of h.journal.values()) {
      if (!isOver(record) && !(world.excused && record.state === 'gone')) ended = false;
    }
  }
  if (!ended) return false;
  return world.excused ? running <= 1 : running === 1 && vmms === 1;
}
