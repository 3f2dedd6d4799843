/** Nodes of the cluster that die in the middle of a report: afterwards all is counted right. */
import { randomBytes } from 'node:crypto';
import t from 'tap';
import type { Report, ReportAnswer } from '../../src/directory/directory.ts';
import { RedisDirectory } from '../../src/directory/redis/redis.ts';
import { killed, skipWithoutRedis, startCluster, until } from '../support/redis.ts';

const TAGS = 6000;
const NONE = new Uint8Array(0);

/** An agent with one guest a set of tags, which tells it again until it is taken, as the reporter does. */
class Teller {
  epoch = 1;
  sequence = 0;
  begins = true;
  anew = 0;
  /** Calls that failed. */
  failed = 0;
  wanted: ReportAnswer['wanted'] = [];
  readonly told: Uint8Array[] = [];

  readonly directory: RedisDirectory;
  readonly host: string;

  constructor(directory: RedisDirectory, host: string) {
    this.directory = directory;
    this.host = host;
  }

  /** Adds a guest, or only answers. */
  async tell(tags?: Uint8Array): Promise<void> {
    if (tags !== undefined) this.told.push(tags);
    const last = this.told.length - 1;
    let changes = tags === undefined ? [] : [this.#change(last, tags)];
    for (;;) {
      if (this.begins) changes = this.told.map((all, i) => this.#change(i, all));
      const held = this.begins
        ? []
        : this.wanted.map(({ domain, tags: asked }) => ({ domain, tags: asked, guests: this.#count(asked) }));
      const report: Report = {
        host: this.host,
        epoch: this.epoch,
        sequence: ++this.sequence,
        begins: this.begins,
        changes,
        held,
      };
      const { state, wanted } = await this.#send(report);
      this.wanted = wanted;
      this.begins = state === 'anew';
      if (state === 'applied') return;
      this.anew++;
    }
  }

  async #send(report: Report): Promise<ReportAnswer> {
    for (const end = Date.now() + 60_000; ;) {
      try {
        return await this.directory.report(report);
      } catch (error) {
        if ((error as { code: string }).code !== 'PT_PEER_UNREACHABLE' || Date.now() > end) throw error;
        this.failed++;
      }
    }
  }

  #change(i: number, added: Uint8Array): Report['changes'][number] {
    return { domain: 'shop', guest: `g${i}`, added, removed: NONE };
  }

  #count(asked: Uint8Array): Uint16Array {
    const has = this.told.map((tags) => new Set(split(tags)));
    return Uint16Array.from(split(asked), (tag) => has.filter((set) => set.has(tag)).length);
  }
}

function split(tags: Uint8Array): string[] {
  const text = Buffer.from(tags).toString('hex');
  return Array.from({ length: tags.length / 16 }, (_, i) => text.slice(32 * i, 32 * i + 32));
}

void t.test('a primary dies in the middle of a report', { skip: skipWithoutRedis }, async (t) => {
  const servers = await startCluster(t, 1);
  const directory = new RedisDirectory({
    urls: servers.map(({ url }) => url),
    leaseMs: 600_000,
    timeoutMs: 2000,
    sweepMs: 0,
  });
  t.teardown(() => directory.close());
  const [one, two] = [new Teller(directory, 'h1'), new Teller(directory, 'h2')];
  const shared = randomBytes(TAGS * 16);
  await one.tell(shared);
  await two.tell(randomBytes(100 * 16));
  t.same([one.anew, two.anew], [0, 0]);

  // the replica of the third node falls behind: what the primary is told from now on dies with it
  const [primary, replica] = [servers[2]!, servers[5]!];
  replica.process.kill('SIGSTOP');
  await primary.client.call('client', 'kill', 'type', 'replica');
  await one.tell(randomBytes(500 * 16));
  const before = await primary.client.call('info', 'commandstats');
  const underWay = two.tell(shared);
  await until('it has taken some of the report', async () => {
    const stats = String(await primary.client.call('info', 'commandstats'));
    return calls(stats) >= calls(String(before)) + 5;
  });
  await killed(primary.process);
  replica.process.kill('SIGCONT');
  await until('the replica has taken over', async () => String(await replica.client.call('role')).startsWith('master'));
  await underWay;

  // both look at all of their shards, as the connection was lost
  for (let round = 0, quiet = 0; quiet < 2; round++) {
    if (round > 50) throw new Error('it does not come to rest');
    await one.tell();
    await two.tell();
    quiet = one.wanted.length + two.wanted.length === 0 ? quiet + 1 : 0;
  }
  t.ok(one.anew > 0, 'a complete report that was lost in part was noticed');
  t.comment(`h1 began anew ${one.anew} times, h2 ${two.anew} times; ${two.failed} calls failed`);
  const { guests, first, held } = await directory.holders('shop', shared);
  t.same(new Set(guests), new Set([2]), 'each is held by two');
  t.ok(held.every((count) => count === 1) && first[TAGS] === 2 * TAGS);
  const lacking = await directory.lacking('shop', 'h2', { limit: 65_536 });
  t.equal(lacking.tags.length, 0);
});

/** Of scripts. */
function calls(stats: string): number {
  return Number(/cmdstat_evalsha:calls=(\d+)/.exec(stats)?.[1] ?? 0);
}
