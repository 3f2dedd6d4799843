/** Lists of a directory in messages of a pace: it answers as it does without, and no message is larger than the pace has it. */
import t from 'tap';
import type { Directory, LackingPage } from '../../src/directory/directory.ts';
import { EmbeddedDirectory } from '../../src/directory/embedded.ts';
import { MemberDirectory } from '../../src/directory/member.ts';
import { AnsweredLists, AskedLists, LEAST_REPORT, listBytes, shortened } from '../../src/directory/paced-lists.ts';
import { contract, LEASE_MS } from './contract.ts';
import { numbersOf, tagsOf } from './model.ts';

/** Bytes of a message, as a pace was asked for them. */
class Passed {
  most: number;
  readonly sizes: number[] = [];
  readonly reports: number[] = [];

  constructor(most: number) {
    this.most = most;
  }

  async pass(bytes: number, { report = false } = {}): Promise<void> {
    (report ? this.reports : this.sizes).push(bytes);
    return Promise.resolve();
  }
}

/** As it is for a member: asked for at one end, answered at the other. What a report may have is taken away, as the contract knows nothing of it. */
function throughBothEnds(inner: Directory, most: number): Directory {
  const asked = new AskedLists(new Passed(most));
  const answered = new AnsweredLists(new Passed(most));
  const paced: Partial<Directory> = {
    lacking: (domain, host, { limit, ...from }) =>
      asked.lacking(limit, async (few) =>
        answered.lacking(few, async (fewer) => inner.lacking(domain, host, { ...from, limit: fewer })),
      ),
    holders: (domain, tags) =>
      asked.holders(tags, async (few) => answered.holders(few, async (some) => inner.holders(domain, some))),
  };
  return new Proxy(inner, {
    get: (_, name) => {
      const value: unknown = Reflect.get(name in paced ? paced : inner, name);
      return typeof value === 'function' ? (value.bind(inner) as unknown) : value;
    },
  });
}

contract('in messages', (clock) => throughBothEnds(new EmbeddedDirectory({ leaseMs: LEASE_MS, clock }), 5), 200);

const PAGES = 1000;
const DOMAIN = 'shop';

/** Pages that guests of so many hosts have all. */
async function alike(hosts: number): Promise<EmbeddedDirectory> {
  const directory = new EmbeddedDirectory({ leaseMs: 1e6 });
  const tags = tagsOf(...Array.from({ length: PAGES }, (_, i) => i + 1));
  for (let i = 0; i < hosts; i++) {
    const changes = [{ domain: DOMAIN, guest: 'g', added: tags, removed: tagsOf() }];
    await directory.report({ host: `host-${i}`, epoch: 1, sequence: 1, begins: true, changes });
  }
  return directory;
}

async function walk(of: (cursor?: string) => Promise<LackingPage>): Promise<{ numbers: number[]; pages: number }> {
  const numbers: number[] = [];
  let pages = 0;
  for (let cursor: string | undefined, more = true; more; more = cursor !== undefined) {
    const page = await of(cursor);
    numbers.push(...numbersOf(page.tags));
    cursor = page.cursor;
    pages++;
  }
  return { numbers, pages };
}

void t.test('no list is larger than a message, however many hosts hold a page', async (t) => {
  for (const hosts of [2, 60]) {
    const directory = await alike(hosts);
    for (const most of [64, 300]) {
      const [there, here] = [new Passed(most), new Passed(most)];
      const [asked, answered] = [new AskedLists(here), new AnsweredLists(there)];
      const { numbers, pages } = await walk(async (cursor) =>
        asked.lacking(8192, async (few) =>
          answered.lacking(few, async (limit) =>
            directory.lacking(DOMAIN, 'nobody', { limit, ...(cursor === undefined ? {} : { cursor }) }),
          ),
        ),
      );
      t.equal(numbers.length, PAGES);
      t.equal(new Set(numbers).size, PAGES);
      t.equal(here.sizes.length, pages);
      t.equal(there.sizes.length, pages, 'one that was too large is not sent');
      const [names, tag] = [hosts * 10, 24 + hosts * 4];
      // where one is asked for, a few may come
      t.ok(Math.max(...there.sizes) <= most * 16 + 4 * tag, `${Math.max(...there.sizes)} of ${most * 16}`);
      t.ok(Math.max(...here.sizes) <= most * 16, 'asked for');
      t.ok(pages <= (2 * PAGES) / Math.max(1, (most * 16 - names) / tag) + 10, `${pages} pages`);

      const all = tagsOf(...Array.from({ length: PAGES }, (_, i) => i + 1));
      const from = here.sizes.length;
      const holders = await asked.holders(all, async (tags) => directory.holders(DOMAIN, tags));
      t.same(namesOf(holders), namesOf(await directory.holders(DOMAIN, all)));
      t.ok(here.sizes.length - from >= PAGES / most, 'in pieces');
    }
    await directory.close();
  }
});

function namesOf({ hosts, guests, first, host, held }: Awaited<ReturnType<Directory['holders']>>): string[] {
  return [...guests].map((count, i) => {
    const own = Array.from({ length: first[i + 1]! - first[i]! }, (_, k) => first[i]! + k);
    return `${count}: ${own
      .map((at) => `${hosts[host[at]!]} ${held[at]}`)
      .sort()
      .join()}`;
  });
}

void t.test('no tags at all are one question', async (t) => {
  const directory = await alike(2);
  const asked = new AskedLists(new Passed(64));
  const none = await asked.holders(tagsOf(), async (tags) => directory.holders(DOMAIN, tags));
  t.equal(none.guests.length, 0);
  t.equal(listBytes(none).tags, 4);
});

void t.test(
  'a report is answered when it may, with few questions, and with how large the next one may be',
  async (t) => {
    const pace = new Passed(640);
    const directory = new EmbeddedDirectory({ leaseMs: 1e6 });
    const members = (hosts: number) => (name: string) =>
      new MemberDirectory(directory, DOMAIN, name, {
        lists: new AnsweredLists(pace),
        hosts,
        check: () => undefined,
      });
    const tags = tagsOf(...Array.from({ length: PAGES }, (_, i) => i + 1));
    const changes = [{ domain: DOMAIN, guest: 'g', added: tags, removed: tagsOf() }];
    const of = members(5);
    const first = await of('a').report({ host: 'a', epoch: 1, sequence: 1, begins: true, changes });
    t.equal(first.most, 128);
    t.same(pace.reports, [PAGES * 16]);
    await of('b').report({ host: 'b', epoch: 1, sequence: 1, begins: true, changes });
    const asked = await of('a').heartbeat('a', 1, 1);
    t.equal(asked.wanted[0]!.tags.length, 320 * 16, 'half a message');
    t.equal(pace.reports.at(-1), 320 * 16, 'questions wait for their turn, too');
    const before = pace.reports.length;
    t.same(await members(50)('b').heartbeat('b', 1, 1), { state: 'applied', wanted: [], most: LEAST_REPORT });
    t.equal(pace.reports.length, before, 'a heartbeat does not wait');
    t.same(pace.sizes, []);
  },
);

void t.test('the first of what is wanted', (t) => {
  const wanted = [
    { domain: 'shop', tags: tagsOf(1, 2) },
    { domain: 'bank', tags: tagsOf(3, 4) },
    { domain: 'park', tags: tagsOf(5) },
  ];
  const numbers = (most: number): number[][] => shortened(wanted, most).map(({ tags }) => numbersOf(tags));
  t.same(numbers(9), [[1, 2], [3, 4], [5]]);
  t.same(numbers(3), [[1, 2], [3]]);
  t.same(numbers(2), [[1, 2]]);
  t.end();
});

void t.test('who is no member any more when its answer may go has none', async (t) => {
  const directory = await alike(2);
  const pace = new Passed(64);
  let isMember = true;
  const check = (): void => {
    if (!isMember) throw new Error('no member');
  };
  const member = new MemberDirectory(directory, DOMAIN, 'host-0', { lists: new AnsweredLists(pace), hosts: 2, check });
  await member.lacking(DOMAIN, 'host-0', { limit: 9 });
  pace.pass = async () => {
    isMember = false;
    return Promise.resolve();
  };
  await t.rejects(member.lacking(DOMAIN, 'nobody', { limit: 9 }), { message: 'no member' });
  isMember = true;
  await t.rejects(member.holders(DOMAIN, tagsOf(1)), { message: 'no member' });
  isMember = true;
  const changes = [{ domain: DOMAIN, guest: 'h', added: tagsOf(1), removed: tagsOf() }];
  await t.rejects(member.report({ host: 'host-0', epoch: 1, sequence: 2, changes }), { message: 'no member' });
});
