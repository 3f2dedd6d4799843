/** Moves guests between the agents of a test, and looks at how it went. */
import type { AgentClient } from '../../src/agent/api/client.ts';
import type { MigrateRequest } from '../../src/agent/service.ts';
import type { MigrationInfo, MigrationReport, Phase } from '../../src/migration/types.ts';
import type { TestAgent } from './cluster.ts';

/** Resolves when `condition` holds; what it looks at are other processes, so it is asked again and again. */
export async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  timeoutMs = 60_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export interface Followed {
  last: MigrationInfo;
  /** The phases that it went through, in order, each once. */
  phases: Phase[];
  /** Everything that was told, in order. */
  seen: MigrationInfo[];
}

/** Watches a migration to its end. */
export async function follow(client: AgentClient, id: string): Promise<Followed> {
  const seen: MigrationInfo[] = [];
  for await (const info of client.watchMigration(id)) seen.push(info);
  const last = seen.at(-1);
  if (last === undefined) throw new Error('nothing was told of the migration');
  return { last, phases: seen.map((info) => info.progress.phase).filter((p, at, all) => p !== all[at - 1]), seen };
}

/** Starts a migration; resolves to its id. */
export async function begin(
  from: TestAgent,
  to: TestAgent | string,
  guest: string,
  more: Partial<MigrateRequest> = {},
): Promise<string> {
  const url = typeof to === 'string' ? to : to.url;
  return (await from.client.migrate({ guest, to: url, mode: 'post-copy', verify: true, ...more })).id;
}

/** Moves a guest and waits for the end, whatever it is. */
export async function migrate(
  from: TestAgent,
  to: TestAgent | string,
  guest: string,
  more: Partial<MigrateRequest> = {},
): Promise<Followed> {
  return follow(from.client, await begin(from, to, guest, more));
}

/** Resolves when a migration has come to one of these phases. Throws when it ends in another. */
export async function reaches(client: AgentClient, id: string, ...phases: Phase[]): Promise<MigrationInfo> {
  for await (const info of client.watchMigration(id)) if (phases.includes(info.progress.phase)) return info;
  const { progress, error } = await client.showMigration(id);
  throw new Error(`the migration ended as ${progress.phase} (${error?.code ?? ''} ${error?.message ?? ''})`);
}

/** What is wrong with a report of a migration that went well; empty: nothing. */
export function reportFaults(report: MigrationReport | undefined): string[] {
  if (report === undefined) return ['there is no report'];
  const { total, ...classes } = report.frames;
  const sum = Object.values(classes).reduce((a, b) => a + b, 0);
  const { wire, manifest, pages, state, raw } = report.bytes;
  const { prepare, downtime, total: ms } = report.ms;
  const { count, p50Us, p99Us, maxUs } = report.faults;
  const rules: [boolean, string][] = [
    [sum === total, `classes add up to ${sum}, total is ${total}`],
    // a page that a fault and the fill asked for at once comes twice
    [raw >= report.frames.source * 4096, `${raw} raw bytes for ${report.frames.source} pages of the source`],
    [pages <= raw && (raw === 0 || pages > 0), `${pages} bytes of pages for ${raw} raw`],
    [wire >= pages + manifest + state, `${wire} bytes on the wire, but ${pages} + ${manifest} + ${state} carried`],
    [manifest > 0 && state > 0, `manifest of ${manifest} bytes, state of ${state}`],
    [prepare !== null && prepare >= 0 && prepare <= ms, `${prepare} ms of ${ms} ms to prepare`],
    [downtime !== null && downtime >= 0 && downtime <= ms, `${downtime} ms of ${ms} ms downtime`],
    [p50Us <= p99Us && p99Us <= maxUs, `stalls of ${p50Us}, ${p99Us}, ${maxUs} µs`],
    [count >= 0, `${count} faults`],
  ];
  return rules.flatMap(([holds, text]) => (holds ? [] : [text]));
}

/** Starts an embedded guest that is busy enough to fault; `options` are the driver's. */
export async function startGuest(
  agent: TestAgent,
  name: string,
  options: Record<string, unknown> = {},
  domain?: string,
): Promise<void> {
  const busy = { memory: '16M', writeRate: 5000, readRate: 5000 };
  const request = { name, driver: 'embedded' as const, options: { ...busy, ...options } };
  await agent.client.runGuest(domain === undefined ? request : { ...request, domain });
}

/** What is wrong with a guest that should run at `agent`, sound and busy; empty: nothing. */
export async function guestFaults(agent: TestAgent, name: string): Promise<string[]> {
  const { state, stats } = await agent.client.showGuest(name);
  if (state !== 'running') return [`guest ${name} is ${state}`];
  const result = await agent.client.verifyGuest(name);
  if (result?.ok !== true)
    return [`guest ${name} finds ${result?.bad.length ?? '?'} bad frames: ${result?.detail ?? ''}`];
  const before = stats?.operations ?? 0;
  try {
    await until('it works', async () => ((await agent.client.showGuest(name)).stats?.operations ?? 0) > before, 10_000);
  } catch {
    return [`guest ${name} stands still after ${before} operations`];
  }
  return [];
}

/** What is still left over after a while; empty: nothing. */
export async function stillLeft(cluster: { leftovers(): Promise<string[]> }): Promise<string[]> {
  let left: string[] = [];
  const look = async (): Promise<boolean> => (left = await cluster.leftovers()).length === 0;
  await until('nothing is left', look, 15_000).catch(() => undefined);
  return left;
}
