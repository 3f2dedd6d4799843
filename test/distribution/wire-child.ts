/**
 * A host of wire.test.ts, in a network namespace: a page server with pages, or one that brings them. Its settings are the first argument; each line
 * that comes in is an order, each that goes out an event, both JSON.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { PageBringer } from '../../src/distribution/bringer.ts';
import type { Rates } from '../../src/distribution/token-bucket.ts';
import { native } from '../../src/memory/native.ts';
import { PageCache } from '../../src/pages/cache.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { PageServer } from '../../src/transport/page-server.ts';
import { setCredentials, type Credentials } from '../../src/trust/credentials.ts';

export interface WireHost {
  role: 'holder' | 'puller';
  /** For files. */
  folder: string;
  host: string;
  /** Names of those that may have its pages. */
  hosts: string[];
  credentials: Credentials;
  rates: Rates;
  /** The same pages on every host. */
  pages: number;
}

export type Order = { rates: Rates } | { bring: string[] } | { end: true };
export type Event = { ready: string } | { began: true } | { counters: { pages: number; sent: number } };

const MARK = 'd0'.repeat(16);
const NUMBER = 7;

const settings = JSON.parse(process.argv[2]!) as WireHost;
const { role, folder, host, hosts, credentials, rates, pages: count } = settings;
setCredentials(credentials);
const tell = (event: Event): void => void process.stdout.write(`${JSON.stringify(event)}\n`);
const cache = PageCache.open({ path: join(folder, `cache-${process.pid}`), bytes: (count + 64) * TAG_PAGE * 2 });
const key = new DomainKey(Buffer.alloc(32, 1));
cache.useKey(NUMBER, key);
// nothing that compresses
const pages = Buffer.concat(
  Array.from({ length: count }, (_, i) =>
    createHash('shake256', { outputLength: TAG_PAGE }).update(`page ${i}`).digest(),
  ),
);
const tags = new Uint8Array(count * TAG_BYTES);
native().tagPages(key.id, pages, count, tags);

let end: () => Promise<void>;
let setRates: (rates: Rates) => void;
let bring: (urls: string[]) => Promise<void> = () => Promise.resolve();
if (role === 'holder') {
  for (let i = 0; i < count; i++) cache.insert(NUMBER, tags, i * TAG_BYTES, pages, i * TAG_PAGE);
  const controlSocket = join(folder, `control-${process.pid}`);
  const server = await PageServer.start({ host, port: 0, controlSocket, credentials, background: rates });
  await server.share({ id: MARK, place: { key: key.id, cache: cache.id, resident: 0, files: 0 }, hosts });
  setRates = (next) => void server.setBackgroundRates(next);
  end = async () => {
    const { backgroundPages, bytesOut } = server.tagCounters();
    tell({ counters: { pages: backgroundPages, sent: bytesOut } });
    await server.close();
  };
  tell({ ready: server.address().url });
} else {
  const bringer = new PageBringer({ cache, rates });
  const domain = { name: 'd', id: NUMBER, mark: MARK, openKey: () => new DomainKey(Buffer.alloc(32, 1)) };
  setRates = (next) => bringer.setRates(next);
  bring = async (urls) => {
    const half = count / 2;
    const first = Uint32Array.from({ length: half + 1 }, (_, i) => i * urls.length);
    const holder = Uint16Array.from({ length: half * urls.length }, (_, i) => i % urls.length);
    const looks = setInterval(() => {
      if (bringer.stats().pages === 0) return;
      clearInterval(looks);
      tell({ began: true });
    }, 5);
    const halves = [0, half].map((from) => tags.subarray(from * TAG_BYTES, (from + half) * TAG_BYTES));
    await Promise.all(halves.map((tags) => bringer.bring({ domain, urls, tags, first, holder, value: 1 })));
  };
  end = async () => {
    const { pages, bytesReceived } = bringer.stats();
    tell({ counters: { pages, sent: bytesReceived } });
    await bringer.close();
  };
  tell({ ready: '' });
}
createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line) as Order;
  if ('rates' in order) setRates(order.rates);
  else if ('bring' in order) void bring(order.bring);
  else
    void end().then(() => {
      cache.close();
      key.close();
      process.exit(0);
    });
});
