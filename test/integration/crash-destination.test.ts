/** The destination's agent dies before the guest is its own, told by its journal. */
import t from 'tap';
import { statusOf } from '../support/chaos-checks.ts';
import { ends, NAME, pair } from '../support/crash-pair.ts';
import { begin, until } from '../support/migrate.ts';

for (const state of ['incoming', 'started']) {
  void t.test(`the destination at '${state}': the guest goes on at the source`, { timeout: 600_000 }, async (t) => {
    const two = await pair(t);
    await begin(two.source, two.destination, NAME);
    await two.record('destination', state);
    await two.destination.kill();
    await two.destination.restart();
    await ends(t, two, two.source);
  });
}

void t.test(
  'the destination dies and stays away: the guest runs on, and the end comes with it',
  { timeout: 600_000 },
  async (t) => {
    const two = await pair(t);
    await begin(two.source, two.destination, NAME);
    await two.record('destination', 'started');
    await two.destination.kill();
    await until(
      'it has failed',
      async () => (await two.source.client.listMigrations())[0]?.progress.phase === 'failed',
    );
    const { operations } = await statusOf(two.source, NAME);
    await until('the guest works', async () => (await statusOf(two.source, NAME)).operations > operations);
    await two.destination.restart();
    await ends(t, two, two.source);
  },
);
