/** What a cluster has left behind: everything that belongs to no agent and to no guest that an agent lists. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { GuestInfo } from '../../src/agent/service.ts';
import type { TestAgent } from './cluster.ts';
import { descriptors, processesBelow, registeredBytes } from './processes.ts';

/** An agent's own, where one is configured. */
const CACHE = 'shared-pages';

/** One line for each thing. A look at a moment: what ends by itself soon has to be looked at again. */
export async function leftovers(root: string, agents: readonly TestAgent[]): Promise<string[]> {
  const living = agents.filter(({ pid }) => pid !== 0);
  const guests = new Map<string, GuestInfo[]>();
  for (const agent of living) guests.set(agent.name, await agent.client.listGuests());
  const known = new Set([...living.map(({ pid }) => pid), ...[...guests.values()].flat().map(({ pid }) => pid)]);
  return [
    ...processesBelow(`${root}/`).flatMap((pid) => (known.has(pid) ? [] : [`process ${pid}`])),
    ...living.flatMap((agent) => [...ofAgent(agent, guests.get(agent.name)!)]),
  ];
}

function* ofAgent(agent: TestAgent, guests: GuestInfo[]): Generator<string> {
  const files = new Set(guests.flatMap((guest) => guest.files.map(({ path }) => path)));
  for (const file of list(agent.memoryFolder)) {
    const path = join(agent.memoryFolder, file);
    if (!files.has(path) && file !== CACHE) yield `file ${path}`;
  }
  const names = new Set(guests.map(({ name }) => name));
  const folder = join(agent.state, 'guests');
  for (const name of list(folder)) if (!names.has(name)) yield `folder ${join(folder, name)}`;
  for (const name of names) {
    // One socket takes orders; the one for the hand-over goes once it is done.
    if (existsSync(join(folder, name, 'handover.sock'))) yield `socket ${join(folder, name, 'handover.sock')}`;
  }
  for (const file of list(agent.state)) if (/\.(new|tmp)$|~$/.test(file)) yield `file ${join(agent.state, file)}`;
  // Guests of a domain are watched while they run: one userfaultfd each, which protects from writes and nothing else.
  const watched = guests.filter(({ domain }) => domain !== undefined).length;
  const userfaults = descriptors(agent.pid).filter((what) => what.includes('userfaultfd'));
  for (const what of userfaults.slice(watched)) yield `${what} of agent ${agent.name}`;
  for (const { name, pid, state, domain } of guests) {
    const bytes = state === 'running' ? registeredBytes(pid, domain === undefined ? 'um|uw' : 'um') : 0;
    if (bytes > 0) yield `${bytes} bytes of guest ${name} are registered with a userfaultfd`;
  }
}

function list(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : [];
}
