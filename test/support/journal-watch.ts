/** Looks into the journals of agents, while they write them: so a test knows to the record how far an agent has come. */
import { readFileSync, watch } from 'node:fs';
import { join } from 'node:path';
import type { TestAgent } from './cluster.ts';

export type Side = 'source' | 'destination';

interface Entry {
  kind: string;
  name?: string;
  record?: { side: Side; state: string };
  details?: { whole?: unknown; vmm?: unknown };
}

function journalOf(agent: TestAgent): string {
  try {
    return readFileSync(join(agent.state, 'journal'), 'utf8');
  } catch {
    return '';
  }
}

/** How long the journal is: what is written later stands behind. */
export function journalLength(agent: TestAgent): number {
  return journalOf(agent).length;
}

/** Entries behind `offset`. A restart may have rewritten the journal: then all of them. */
function entriesOf(agent: TestAgent, offset: number): Entry[] {
  const text = journalOf(agent);
  const fresh = text.length < offset ? text : text.slice(offset);
  return [...fresh.matchAll(/^(?:[0-9a-f]{8} ){3}(.*)$/gm)].flatMap(
    ([, payload]) => (JSON.parse(payload!) as { records: Entry[] }).records,
  );
}

/**
 * The states of one side of a migration that an agent's journal holds behind `offset`. A destination's `whole` (every
 * page is here) and `started` (its VMM is known) are no states of the machine, but stand with them.
 */
export function statesOf(agent: TestAgent, offset: number, side: Side): string[] {
  return entriesOf(agent, offset).flatMap(({ record, details }) => {
    if (record?.side !== side) return [];
    const also = side === 'destination' && details?.whole !== undefined ? ['whole'] : [];
    if (side === 'destination' && record.state === 'incoming' && details?.vmm !== undefined) also.push('started');
    return [record.state, ...also];
  });
}

/** Resolves to true as soon as the record is there, to false when it was not within `timeoutMs`. */
export function untilRecord(
  agent: TestAgent,
  offset: number,
  side: Side,
  state: string,
  timeoutMs: number,
): Promise<boolean> {
  return untilJournal(agent, () => statesOf(agent, offset, side).includes(state), timeoutMs);
}

/** The same for an entry of another kind, e.g. `guest-starting`. */
export function untilEntry(agent: TestAgent, kind: string, timeoutMs: number): Promise<boolean> {
  return untilJournal(agent, () => entriesOf(agent, 0).some((entry) => entry.kind === kind), timeoutMs);
}

function untilJournal(agent: TestAgent, there: () => boolean, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const look = (): void => {
      try {
        if (there()) done(true);
      } catch {
        // half a batch: its rest makes another event
      }
    };
    const watcher = watch(agent.state, look);
    const late = setTimeout(() => done(false), timeoutMs);
    const done = (came: boolean): void => {
      watcher.close();
      clearTimeout(late);
      resolve(came);
    };
    look();
  });
}
