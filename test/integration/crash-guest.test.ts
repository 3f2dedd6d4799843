/** What an agent owes that died while it started a guest, and what it refuses as it would make two of one. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { checkAll, soleOwner, untilSettled } from '../support/chaos-checks.ts';
import { cluster as makeCluster } from '../support/cluster.ts';
import { ends, guestsOf, MIB, NAME, pair, WAIT_MS } from '../support/crash-pair.ts';
import { untilEntry, untilRecord } from '../support/journal-watch.ts';
import { begin, until } from '../support/migrate.ts';

void t.test('while it starts a guest: the guest is ended, and its name is free', { timeout: 600_000 }, async (t) => {
  const cluster = makeCluster(t);
  const agent = await cluster.agent('a');
  const options = { memory: 512 * MIB };
  const run = agent.client.runGuest({ name: NAME, driver: 'embedded', options }).catch((error: unknown) => error);
  t.ok(await untilEntry(agent, 'guest-starting', WAIT_MS));
  await until('its process is there', () => guestsOf(agent).length > 0, WAIT_MS);
  await agent.kill();
  t.not(guestsOf(agent).length, 0, 'which outlives the agent');
  t.ok((await run) instanceof Error);
  await agent.restart();
  t.same(await agent.client.listGuests(), []);
  t.same(await cluster.leftovers(), []);
  await agent.client.runGuest({ name: NAME, driver: 'embedded', options: { memory: 4 * MIB } });
  await checkAll(cluster, NAME, 0);
});

void t.test('one process under two names is refused', { timeout: 600_000 }, async (t) => {
  const cluster = makeCluster(t);
  const agent = await cluster.agent('a');
  await agent.client.runGuest({ name: NAME, driver: 'embedded', options: { memory: 4 * MIB } });
  const control = join(agent.state, 'guests', NAME, 'control.sock');
  const twin = agent.client.attachGuest({ name: 'twin', driver: 'embedded', options: { control } });
  await t.rejects(twin, { code: 'PT_GUEST_EXISTS' });
  await checkAll(cluster, NAME, 0);
});

void t.test('a name that is arriving is not given away', { timeout: 600_000 }, async (t) => {
  const two = await pair(t);
  await begin(two.source, two.destination, NAME);
  await two.record('destination', 'incoming');
  const again = two.destination.client.runGuest({ name: NAME, driver: 'embedded', options: { memory: 4 * MIB } });
  await t.rejects(again, { code: /^PT_GUEST_(BUSY|EXISTS)$/ });
  await ends(t, two, two.destination);
});

void t.test(
  'two agents in one memory folder: ending what one started leaves the other its own',
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t);
    const shared = await two.cluster.agent('c', { memoryFolder: two.source.memoryFolder });
    await begin(two.source, shared, NAME);
    t.ok(await untilRecord(shared, 0, 'destination', 'incoming', WAIT_MS));
    await shared.kill();
    await shared.restart();
    await untilSettled(two.cluster.agents, 60_000);
    t.equal((await soleOwner(two.cluster.agents, NAME)).name, 'a');
    t.equal(readdirSync(two.source.memoryFolder).length, 1, 'the file of the guest, and nothing else');
    t.equal((await two.source.client.verifyGuest(NAME))?.ok, true);
  },
);
