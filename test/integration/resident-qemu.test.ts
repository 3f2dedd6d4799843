/** Real guests: one that arrives has pages from the memory of one like it that runs there, and is watched. */
import t from 'tap';
import { native } from '../../src/memory/native.ts';
import { skipTracking } from '../pages/guest-support.ts';
import { cluster } from '../support/cluster.ts';
import { share } from '../support/domains.ts';
import { migrate, reportFaults, stillLeft, until } from '../support/migrate.ts';
import { needsQemu, type GuestShape } from '../support/qemu-guest.ts';
import { bootAt } from '../support/qemu-pair.ts';

const qemu = needsQemu();
const skip = qemu.skip === false ? skipTracking : qemu.skip;
/** Alike: the same template, and a kernel that lies in the same place. Nearly idle, as each takes a core when it is not. */
const settings = 'pagetide.rate=20 pagetide.limit=48 pagetide.beat=200 nokaslr';

void t.test('a QEMU guest that arrives takes pages from one like it', { ...qemu, skip }, async (t) => {
  const made = cluster(t);
  const watch = { cpu: 1, intervalMs: 200 };
  const [a, b] = await Promise.all([made.agent('a', { watch }), made.agent('b', { watch })]);
  t.teardown(() => {
    if (!t.passing()) for (const agent of [a, b]) t.comment(agent.log().slice(-30).join('\n'));
  });
  await share('shop', a, b);
  const like = (seed: number): GuestShape => ({ memory: '128', settings: `${settings} pagetide.seed=${seed}` });
  await Promise.all([bootAt(b, 'sibling', like(1), 'shop'), bootAt(a, 'guest', like(2), 'shop')]);
  const tagged = (): boolean => b.log().some((line) => line.includes('are tagged') && line.includes('"sibling"'));
  await until('the sibling is tagged', tagged);
  const { pid } = await b.client.showGuest('sibling');
  t.equal(native().findUserfaults(pid).length, 1, 'its writes are tracked');

  const { last } = await migrate(a, b, 'guest');
  t.equal(last.progress.phase, 'done', JSON.stringify(last.error));
  t.same(reportFaults(last.report), []);
  t.equal(last.report?.verified, true, 'the guest found every page right');
  const { frames, bytes } = last.report!;
  const data = frames.total - frames.zero;
  t.comment(JSON.stringify({ frames, bytes }));
  t.equal(frames.cache, 0, 'there is no cache');
  // of the pages that are there to be had, its kernel's differ by what it did since it started
  t.ok(frames.resident > data / 3, `${frames.resident} of ${data} frames from the sibling`);
  t.ok(frames.resident > frames.source, `${frames.source} from the source`);

  // whoever was read from is as it was; and both are of use to the next one
  for (const name of ['sibling', 'guest']) t.equal((await b.client.verifyGuest(name))?.ok, true, name);
  const { resident } = await b.client.cacheInfo();
  t.ok(resident!.hits >= frames.resident, JSON.stringify(resident));
  for (const name of ['sibling', 'guest']) await b.client.removeGuest(name);
  t.match((await b.client.cacheInfo()).resident, { files: 0, listed: 0 }, 'nothing of them is listed any more');
  t.same(await stillLeft(made), []);
});
