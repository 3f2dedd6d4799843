/** What a page costs to be sighted, reported and counted: CPU, memory, bytes on the wire. */
import { randomBytes } from 'node:crypto';
import { MOST_REPORT_TAGS, type Report } from '../src/directory/directory.ts';
import { EmbeddedDirectory } from '../src/directory/embedded.ts';
import { reportBytes } from '../src/distribution/reporter.ts';
import { Sightings, STABLE_PASSES } from '../src/distribution/sightings.ts';
import { native } from '../src/memory/native.ts';
import { Manifest } from '../src/pages/manifest.ts';
import { DOMAIN_KEY_BYTES, DomainKey, TAG_BYTES, TAG_PAGE } from '../src/pages/tags.ts';
import { checkSettings, setting } from './lib/settings.ts';
import { judge, median, seededRandom } from './lib/statistics.ts';
import type { BenchModule, BenchOptions } from './lib/types.ts';

export const description = 'Sighting, reporting and counting pages: CPU, memory and wire bytes a page.';

const SIZES = [10_000, 100_000, 1_000_000];
const DIGESTED = 256;

function ns(work: () => void): number {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start);
}

/** Passes of one guest whose pages are all different. */
class Guest {
  readonly manifest: Manifest;
  readonly changed: Uint8Array;
  readonly sightings = new Sightings();
  readonly #pages: number;
  readonly #random = seededRandom(1);

  constructor(pages: number) {
    this.#pages = pages;
    this.manifest = new Manifest(pages);
    this.changed = new Uint8Array(pages);
    this.change(pages);
  }

  /** Other tags for so many frames, scattered. */
  change(count: number): void {
    const fresh = randomBytes(count * TAG_BYTES);
    for (let i = 0; i < count; i++) {
      const frame = count === this.#pages ? i : Math.floor(this.#random() * this.#pages);
      this.manifest.tags.set(fresh.subarray(i * TAG_BYTES, (i + 1) * TAG_BYTES), frame * TAG_BYTES);
      this.changed[frame] = 1;
    }
  }

  /** Nanoseconds of a pass, and of its longest piece. */
  pass(): { all: number; piece: number } {
    const work = this.sightings.pass('guest', 'domain', this.manifest, this.changed);
    let piece = 0;
    let done = false;
    const all = ns(() => {
      while (!done)
        piece = Math.max(
          piece,
          ns(() => void (done = work.next().done === true)),
        );
    });
    return { all, piece };
  }
}

/** Tells all of a guest to the directory; returns bytes and nanoseconds of either side. */
async function tellAll(directory: EmbeddedDirectory, host: string, sightings: Sightings) {
  const told = { bytes: 0, takeNs: 0, directoryNs: 0 };
  for (let sequence = 1; ; sequence++) {
    let changes: Report['changes'] = [];
    told.takeNs += ns(() => {
      changes = sightings
        .take('domain', MOST_REPORT_TAGS)
        .map((difference) => ({ domain: 'd'.repeat(32), ...difference }));
    });
    if (changes.length === 0 && sequence > 1) return told;
    const report: Report = { host, epoch: 1, sequence, changes };
    if (sequence === 1) report.begins = true;
    told.bytes += reportBytes(report);
    const start = process.hrtime.bigint();
    await directory.report(report);
    told.directoryNs += Number(process.hrtime.bigint() - start);
  }
}

async function answer(directory: EmbeddedDirectory, host: string, sightings: Sightings, sequence: number) {
  let bytes = 0;
  for (let { wanted } = await directory.heartbeat(host, 1); wanted.length > 0; sequence++) {
    const held = wanted.map(({ domain, tags }) => ({ domain, tags, guests: sightings.holding('domain', tags) }));
    const report = { host, epoch: 1, sequence, changes: [], held };
    // the question, and the answer
    bytes += reportBytes(report) + wanted.reduce((sum, { tags }) => sum + tags.length, 0);
    ({ wanted } = await directory.report(report));
  }
  return bytes;
}

async function measure(pages: number) {
  const guest = new Guest(pages);
  const first = guest.pass();
  for (let i = 1; i < STABLE_PASSES; i++) guest.pass();
  const becomes = guest.pass();
  const idle = median([1, 2, 3, 4, 5, 6, 7].map(() => guest.pass().all));
  const sighted = guest.sightings.stats();
  const directory = new EmbeddedDirectory({ leaseMs: 1e9 });
  const once = await tellAll(directory, 'h1', guest.sightings);
  const bytesOnce = directory.stats().filterBytes;
  // another host with the same pages
  const twin = new Sightings();
  for (let i = 0; i <= STABLE_PASSES; i++) {
    const work = twin.pass('guest', 'domain', guest.manifest, new Uint8Array(pages));
    while (work.next().done !== true);
  }
  const twice = await tellAll(directory, 'h2', twin);
  const asked = await answer(directory, 'h1', guest.sightings, Math.ceil(pages / MOST_REPORT_TAGS) + 1);
  const stats = directory.stats();
  // each pass changes 1%: what waits for its passes is in it, too
  const one: number[] = [];
  for (let i = 0; i < 8; i++) {
    guest.change(Math.ceil(pages / 100));
    one.push(guest.pass().all);
  }
  guest.change(pages);
  const all = guest.pass();
  await directory.close();
  return {
    pages,
    passNs: {
      nothing: idle / pages,
      onePercent: median(one.slice(STABLE_PASSES + 1)) / pages,
      first: first.all / pages,
      everything: all.all / pages,
      becomesStable: becomes.all / pages,
    },
    longestPieceMs: Math.max(first.piece, becomes.piece, all.piece) / 1e6,
    sightingBytes: sighted.bytes / pages,
    takeNs: once.takeNs / pages,
    wireBytes: once.bytes / pages,
    askedBytes: asked / pages,
    directoryNs: { once: once.directoryNs / pages, twice: twice.directoryNs / pages },
    directoryBytes: {
      once: bytesOnce / pages,
      record: stats.recordBytes / stats.records,
      filter: stats.filterBytes / pages,
    },
  };
}

/** Nanoseconds that the digest of a page takes. */
function digest(batches: number): number {
  const key = new DomainKey(randomBytes(DOMAIN_KEY_BYTES));
  try {
    const data = randomBytes(DIGESTED * TAG_PAGE);
    const tags = new Uint8Array(DIGESTED * TAG_BYTES);
    const took = ns(() => {
      for (let i = 0; i < batches; i++) native().tagPages(key.id, data, DIGESTED, tags);
    });
    return took / batches / DIGESTED;
  } finally {
    key.close();
  }
}

type Figures = Awaited<ReturnType<typeof measure>>;

export async function run(options: BenchOptions): ReturnType<BenchModule['run']> {
  checkSettings(options, ['most']);
  const most = setting(options, 'most', SIZES.at(-1)!);
  const rounds: { digestNs: number; sizes: Figures[] }[] = [];
  await measure(10_000); // warms up
  for (let round = 0; round < options.rounds; round++) {
    options.progress(`round ${round + 1}`);
    const sizes: Figures[] = [];
    for (const pages of SIZES.filter((size) => size <= most)) sizes.push(await measure(pages));
    rounds.push({ digestNs: digest(200), sizes });
  }
  const sizes = rounds[0]!.sizes.map(({ pages }) => pages);
  const of = (index: number, figure: (one: Figures) => number): number =>
    median(rounds.map((round) => figure(round.sizes[index]!)));
  const line = (index: number): string => {
    const n = (figure: (one: Figures) => number, digits = 1): string => of(index, figure).toFixed(digits);
    return [
      `${sizes[index]} pages: a pass, ns a page: nothing changed ${n((f) => f.passNs.nothing, 2)}, 1% ${n((f) => f.passNs.onePercent)}, all ${n((f) => f.passNs.everything)}, the first ${n((f) => f.passNs.first)}, all become stable ${n((f) => f.passNs.becomesStable)}`,
      `longest piece ${n((f) => f.longestPieceMs)} ms`,
      `sightings ${n((f) => f.sightingBytes)} bytes a page`,
      `report ${n((f) => f.wireBytes, 2)} bytes a page, ${n((f) => f.takeNs)} ns to make; to ask and answer for it ${n((f) => f.askedBytes)} bytes`,
      `directory ${n((f) => f.directoryBytes.once)} bytes a page seen once, ${n((f) => f.directoryBytes.record)} a record and ${n((f) => f.directoryBytes.filter)} of filters beside it; ${n((f) => f.directoryNs.once)} and ${n((f) => f.directoryNs.twice)} ns`,
    ].join('; ');
  };
  return {
    targets: sizes.map((pages, index) =>
      judge(
        `pass of ${pages} pages, 1% changed, against their digest`,
        'ns a page',
        rounds.map(({ digestNs, sizes }) => ({ value: sizes[index]!.passNs.onePercent, baseline: digestNs / 100 })),
        { target: null, direction: 'at-most' },
      ),
    ),
    raw: { rounds },
    notes: [
      `digest of a page: ${median(rounds.map(({ digestNs }) => digestNs)).toFixed(0)} ns, one core, ${native().digestEngine}`,
      ...sizes.map((_, index) => line(index)),
      'bytes of reports are calculated: 16 a tag and framing; memory is that of the typed arrays; all pages differ, and all are on both hosts',
    ],
  };
}
