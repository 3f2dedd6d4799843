/** The source's agent dies at a known moment of a migration, told by its journal. */
import { readdirSync } from 'node:fs';
import t from 'tap';
import { checkAll, untilSettled } from '../support/chaos-checks.ts';
import { ends, guestsOf, MIB, NAME, pair } from '../support/crash-pair.ts';
import { begin, reportFaults, until } from '../support/migrate.ts';

for (const state of ['preparing', 'handing-over', 'gone']) {
  void t.test(`the source at '${state}'`, { timeout: 600_000 }, async (t) => {
    const two = await pair(t, { fill: { bandwidth: 8 * MIB } });
    void begin(two.source, two.destination, NAME).catch(() => undefined);
    await two.record('source', state);
    await two.source.kill();
    await two.source.restart();
    await untilSettled(two.cluster.agents, 60_000);
    const { owner } = await checkAll(two.cluster, NAME, 0);
    if (state === 'preparing') t.equal(owner.name, 'a');
    if (state === 'gone') t.equal(owner.name, 'b');
    if (owner.name !== 'b') return;
    // when the guest was stopped, the agent that died knew: no later one can ask
    const [info] = await two.source.client.listMigrations();
    t.strictSame(reportFaults(info?.report), []);
  });
}

void t.test(
  'the source dies and stays away before the guest left: the destination lets go',
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t, { timeouts: { prepareMs: 2_000 } });
    void begin(two.source, two.destination, NAME).catch(() => undefined);
    await two.record('destination', 'incoming');
    await two.source.kill();
    const { client, memoryFolder } = two.destination;
    await until('it is over', async () => (await client.listMigrations())[0]?.progress.phase === 'failed');
    t.same([guestsOf(two.destination), readdirSync(memoryFolder)], [[], []]);
    t.equal((await client.info()).faultWorkers.busy, 0);
    await two.source.restart();
    await ends(t, two, two.source);
  },
);

void t.test(
  "the source's VMM dies with its agent when the guest is gone: its memory serves on",
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t, { fill: { bandwidth: 8 * MIB } });
    await begin(two.source, two.destination, NAME);
    await two.record('source', 'gone');
    const [pid] = guestsOf(two.source);
    await two.source.kill();
    process.kill(pid!, 'SIGKILL');
    await until('it is dead', () => guestsOf(two.source).length === 0);
    await two.source.restart();
    await ends(t, two, two.destination);
  },
);
