/** The destination's agent dies when the guest is its own, told by its journal. */
import { closeSync, openSync, writeSync } from 'node:fs';
import t from 'tap';
import { native } from '../../src/memory/native.ts';
import { statusOf } from '../support/chaos-checks.ts';
import { ends, MIB, NAME, pair } from '../support/crash-pair.ts';
import type { TestAgent } from '../support/cluster.ts';
import { begin, until } from '../support/migrate.ts';

const PAGE = 4096;

for (const state of ['owner', 'whole']) {
  void t.test(`the destination at '${state}': the guest goes on there`, { timeout: 600_000 }, async (t) => {
    const two = await pair(t);
    const id = await begin(two.source, two.destination, NAME);
    await two.record('destination', state);
    await two.destination.kill();
    await two.destination.restart();
    await ends(t, two, two.destination);
    const { report } = await two.source.client.showMigration(id);
    t.equal(report?.verified, true, 'the report is the one that was made before');
    t.ok((report?.frames.zero ?? 0) > 0);
  });
}

void t.test(
  'both die while the guest arrives; the destination comes back alone and waits',
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t, { fill: { bandwidth: 4 * MIB } });
    await begin(two.source, two.destination, NAME);
    await two.record('destination', 'owner');
    await Promise.all([two.source.kill(), two.destination.kill()]);
    await two.destination.restart();
    const [info] = await two.destination.client.listMigrations();
    t.equal(info?.progress.phase, 'serving');
    await two.source.restart();
    await ends(t, two, two.destination);
  },
);

void t.test(
  'a guest whose memory somebody else wrote to is not resumed by a restart',
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t, { fill: { bandwidth: 4 * MIB } });
    await begin(two.source, two.destination, NAME);
    await two.record('destination', 'owner');
    await until('it is listed', async () => (await two.destination.client.listGuests()).length === 1);
    const path = (await two.destination.client.showGuest(NAME)).files[0]!.path;
    const origin = (await two.source.client.showGuest(NAME)).files[0]!.path;
    scribble(path, origin);
    const state = async (): Promise<string> => (await two.destination.client.showGuest(NAME)).state;
    await until('the alarm', async () => (await state()) === 'alarm');
    t.equal(await alarms(two.destination), 1);
    await two.destination.restart();
    t.equal(await alarms(two.destination), 1, 'the agent that takes it up counts it, too');
    t.equal(await alarms(two.source), 0);
    t.equal(await state(), 'alarm');
    t.equal((await statusOf(two.destination, NAME)).state, 'paused');
    const [info] = await two.destination.client.listMigrations();
    t.equal(info?.error?.code, 'PT_FOREIGN_PAGE');
    t.equal((await statusOf(two.source, NAME)).state, 'paused', 'and the source keeps what it has');
  },
);

/** Alarms for pages that nobody put there, as the agent tells Prometheus. */
async function alarms(agent: TestAgent): Promise<number> {
  const text = await (await fetch(`${agent.url}/metrics`)).text();
  return Number(/^pagetide_alarms_total\{kind="foreign-page"\} (\d+)$/m.exec(text)?.[1] ?? 0);
}

/** Writes to some pages that the destination lacks and the source has: one of them may come while this is done. */
function scribble(path: string, origin: string): void {
  const [there, here] = [openSync(origin, 'r'), openSync(path, 'r+')];
  try {
    const lacking = native()
      .dataExtents(there, 0, 32 * MIB)
      .map(({ offset, length }) => offset + length - PAGE)
      .filter((at) => native().dataExtents(here, at, PAGE).length === 0);
    if (lacking.length === 0) throw new Error('every page has come already');
    for (const at of lacking.slice(-32)) writeSync(here, Buffer.alloc(PAGE, 0x5a), 0, PAGE, at);
  } finally {
    closeSync(there);
    closeSync(here);
  }
}
