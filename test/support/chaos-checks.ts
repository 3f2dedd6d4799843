/** What has to hold between two agents when a migration is over, however it went and whoever died meanwhile. */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { GuestControl, type ControlStatus } from '../../src/guests/control.ts';
import type { Cluster, TestAgent } from './cluster.ts';
import { descriptors } from './processes.ts';

const OVER: ReadonlySet<string> = new Set(['done', 'failed', 'cancelled']);
const POLL_MS = 20;

/** One agent's view, for messages. */
async function view(agent: TestAgent): Promise<unknown> {
  try {
    return { guests: await agent.client.listGuests(), migrations: (await agent.client.listMigrations()).slice(-3) };
  } catch (error) {
    return String(error);
  }
}

async function isSettled(agent: TestAgent): Promise<boolean> {
  const [guests, migrations] = await Promise.all([agent.client.listGuests(), agent.client.listMigrations()]);
  return (
    guests.every(({ migration }) => migration === undefined) &&
    migrations.every(({ progress }) => OVER.has(progress.phase))
  );
}

/** Waits until nothing is under way at any of the agents. Rejects with what they say, after `timeoutMs`. */
export async function untilSettled(agents: readonly TestAgent[], timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const settled = await Promise.all(agents.map((agent) => isSettled(agent)));
    if (!settled.includes(false)) return;
    if (performance.now() > deadline) {
      const views = await Promise.all(agents.map(async (agent) => [agent.name, await view(agent)]));
      throw new Error(`not settled within ${timeoutMs} ms:\n${JSON.stringify(views, null, 1)}`);
    }
    await delay(POLL_MS);
  }
}

/** The agent where the guest is, alone and running. */
export async function soleOwner(agents: readonly TestAgent[], guest: string): Promise<TestAgent> {
  const lists = await Promise.all(agents.map((agent) => agent.client.listGuests()));
  const owners = agents.filter((_, i) => lists[i]!.some(({ name }) => name === guest));
  if (owners.length !== 1) throw new Error(`${owners.length} agents have the guest: ${JSON.stringify(lists)}`);
  const info = lists.flat().find(({ name }) => name === guest)!;
  if (info.state !== 'running' || info.error !== undefined)
    throw new Error(`the guest is not well: ${JSON.stringify(info)}`);
  return owners[0]!;
}

/** The embedded guest's own word, by its control socket. */
export async function statusOf(agent: TestAgent, guest: string): Promise<ControlStatus> {
  const control = new GuestControl(join(agent.state, 'guests', guest, 'control.sock'));
  try {
    return await control.status();
  } finally {
    control.close();
  }
}

/**
 * Everything at once: one owner, where the guest runs on from where it was, whole; and nothing else of it anywhere, no
 * process, socket, memory file, page table, descriptor, or taken place. Resolves to the owner and the guest's operations.
 */
export async function checkAll(
  cluster: Cluster,
  guest: string,
  operationsBefore: number,
): Promise<{ owner: TestAgent; operations: number }> {
  const { agents } = cluster;
  const owner = await soleOwner(agents, guest);
  const info = await owner.client.showGuest(guest);
  const result = await owner.client.verifyGuest(guest);
  if (result === null || !result.ok || result.checked !== info.memory / info.pageSize)
    throw new Error(`the guest found wrong pages: ${JSON.stringify(result)}`);
  const status = await statusOf(owner, guest);
  if (status.failureCount !== 0) throw new Error(`the guest met wrong pages: ${JSON.stringify(status.failures)}`);
  if (status.pid !== info.pid) throw new Error(`process ${status.pid} answers, not ${info.pid}`);
  if (status.operations < operationsBefore)
    throw new Error(`the guest went back in time: ${status.operations} operations, ${operationsBefore} before`);
  await untilMoves(owner, guest, status.operations);

  const left = await leftOver(cluster);
  if (left.length > 0) throw new Error(`left over: ${left.join('; ')}`);
  return { owner, operations: status.operations };
}

/** What is left over after a while: a guest that left is still looked at for what the cache can keep of it. */
async function leftOver(cluster: Cluster): Promise<string[]> {
  const deadline = performance.now() + 15_000;
  for (;;) {
    const left = [
      ...(await cluster.leftovers()),
      ...(await Promise.all(cluster.agents.map((agent) => kept(agent)))).flat(),
    ];
    if (left.length === 0 || performance.now() > deadline) return left;
    await delay(POLL_MS);
  }
}

/**
 * What an agent holds on to although nothing is under way: open memory files, places of fault workers. It may have its cache
 * open, and the memory of guests of a domain that run there, which are watched.
 */
async function kept(agent: TestAgent): Promise<string[]> {
  const guests = await agent.client.listGuests();
  const watched = guests.flatMap(({ domain, files }) => (domain === undefined ? [] : files.map(({ path }) => path)));
  const own = new Set([join(agent.memoryFolder, 'shared-pages'), ...watched]);
  const files = descriptors(agent.pid).filter((what) => what.startsWith(`${agent.memoryFolder}/`) && !own.has(what));
  const { busy } = (await agent.client.info()).faultWorkers;
  return [
    ...files.map((what) => `${what} open in ${agent.name}`),
    ...(busy > 0 ? [`${busy} places of ${agent.name}`] : []),
  ];
}

async function untilMoves(owner: TestAgent, guest: string, operations: number): Promise<void> {
  const deadline = performance.now() + 20_000;
  while ((await statusOf(owner, guest)).operations === operations) {
    if (performance.now() > deadline) throw new Error(`the guest stands still at operation ${operations}`);
    await delay(POLL_MS);
  }
}
