/** Snapshots that a host shares: listed by tag, remembered, never wrong. */
import { mkdirSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pino from 'pino';
import t, { type Test } from 'tap';
import { Snapshots } from '../../src/agent/snapshots.ts';
import { native } from '../../src/memory/native.ts';
import type { Domain } from '../../src/migration/domains.ts';
import { keyMark, MARK_PREFIX } from '../../src/pages/key-file.ts';
import { writeManifest } from '../../src/pages/manifest-file.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { copyResident } from '../../src/pages/resident.ts';
import { TagPool } from '../../src/pages/tag-pool.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch } from '../guests/embedded-support.ts';
import { makePage } from '../pages/support.ts';

const FRAMES = 40;

function domainOf(name: string, id: number): Domain {
  const secret = Buffer.alloc(32, name);
  return { name, id, mark: keyMark(secret).slice(MARK_PREFIX.length), openKey: () => new DomainKey(secret) };
}

interface Bed {
  folder: string;
  shop: Domain;
  open: () => Snapshots;
  remove: (domain: Domain) => void;
}

function bed(t: Test): Bed {
  const folder = scratch(t);
  const known = new Map([domainOf('shop', 1), domainOf('bank', 2)].map((domain) => [domain.name, domain]));
  const told: ((domain: Domain) => void)[] = [];
  const tagPool = new TagPool(1);
  t.teardown(() => tagPool.close());
  return {
    folder,
    shop: known.get('shop')!,
    open() {
      const made = new Snapshots({
        folder: join(folder, 'snapshots'),
        shared: {
          domain: (name) => (name === undefined ? undefined : known.get(name)),
          onRemoved: (callback) => void told.push(callback),
        },
        tagPool,
        log: pino({ level: 'silent' }),
      });
      t.teardown(() => made.close());
      return made;
    },
    remove(domain) {
      known.delete(domain.name);
      for (const tell of told) tell(domain);
    },
  };
}

/** A memory file whose every fourth page is zero, and its tags. */
function memory(folder: string, domain: Domain, name = 'mem'): { file: string; pages: Buffer; tags: Uint8Array } {
  const file = join(folder, name);
  const pages = Buffer.alloc(FRAMES * TAG_PAGE);
  for (let frame = 0; frame < FRAMES; frame++) if (frame % 4 !== 3) pages.set(makePage(frame), frame * TAG_PAGE);
  writeFileSync(file, pages);
  const key = domain.openKey();
  const tags = new Uint8Array(FRAMES * TAG_BYTES);
  native().tagPages(key.id, pages, FRAMES, tags);
  key.close();
  return { file, pages, tags };
}

/** Frames whose page is given for their tag; throws where another page is. */
function given(snapshots: Snapshots, domain: number, tags: Uint8Array, pages: Buffer): number {
  const lookups = snapshots.lookups(domain);
  const into = new Uint8Array(TAG_PAGE);
  let found = 0;
  for (let frame = 0; frame < FRAMES; frame++) {
    if (!copyResident(lookups, tags, frame, into)) continue;
    if (!pages.subarray(frame * TAG_PAGE, (frame + 1) * TAG_PAGE).equals(into)) throw new Error(`frame ${frame}`);
    found++;
  }
  return found;
}

void t.test('a file is tagged, listed, remembered over a restart, and forgotten', async (t) => {
  const { folder, shop, open } = bed(t);
  const { file, pages, tags } = memory(folder, shop);
  const snapshots = open();
  t.same(await snapshots.share({ file, domain: 'shop' }), { file, domain: 'shop', frames: FRAMES, zero: FRAMES / 4 });
  t.equal(given(snapshots, 1, tags, pages), 30, 'all that is not zero');
  t.equal(given(snapshots, 2, tags, pages), 0, 'to its own domain');

  const again = open();
  t.same(again.list(), []);
  await again.recover();
  t.same(again.list(), snapshots.list());
  t.equal(given(again, 1, tags, pages), 30);

  await again.unshare(file);
  t.same(again.list(), []);
  t.equal(given(again, 1, tags, pages), 0);
  t.same(readdirSync(join(folder, 'snapshots')), ['snapshots.json'], 'its manifest is gone');
  await t.rejects(again.unshare(file), { code: 'PT_BAD_ARGUMENT' });
  const third = open();
  await third.recover();
  t.same(third.list(), []);
});

void t.test('one that changes gives fewer pages, never others; shared anew, all of them', async (t) => {
  const { folder, shop, open } = bed(t);
  const { file, pages, tags } = memory(folder, shop);
  const snapshots = open();
  await snapshots.share({ file, domain: 'shop' });
  const other = Buffer.from(pages);
  other.fill(7, 0, 8 * TAG_PAGE);
  writeFileSync(file, other);
  t.equal(given(snapshots, 1, tags, pages), 24);
  truncateSync(file, 20 * TAG_PAGE);
  t.equal(given(snapshots, 1, tags, pages), 9);
  writeFileSync(file, pages);
  await snapshots.share({ file, domain: 'shop' });
  t.equal(snapshots.list().length, 1);
  t.equal(given(snapshots, 1, tags, pages), 30);
  // while no agent runs: it is tagged anew where the manifest does not fit, and told where it is gone
  writeFileSync(file, pages.subarray(0, 20 * TAG_PAGE));
  const again = open();
  await again.recover();
  t.equal(again.list()[0]?.frames, 20);
  rmSync(file);
  const gone = open();
  await gone.recover();
  t.same(gone.list(), []);
  const also = open();
  await also.share({ file: memory(folder, shop, 'also').file, domain: 'shop' });
  writeFileSync(file, pages);
  const back = open();
  await back.recover();
  t.equal(given(back, 1, tags, pages), 30, 'it stayed written down');
});

void t.test('with its manifest it need not be tagged; one that does not fit is refused', async (t) => {
  const { folder, shop, open } = bed(t);
  const { file, pages, tags } = memory(folder, shop);
  const made = new Manifest(FRAMES);
  made.tags.set(tags);
  made.touch(0, FRAMES);
  const manifest = join(folder, 'manifest');
  writeManifest(manifest, made, MARK_PREFIX + shop.mark);
  const snapshots = open();
  await snapshots.share({ file, domain: 'shop', manifest });
  t.equal(given(snapshots, 1, tags, pages), 30);
  const before = snapshots.list();
  await t.rejects(snapshots.share({ file, domain: 'bank', manifest }), { code: 'PT_MANIFEST_INVALID' });
  writeFileSync(join(folder, 'longer'), Buffer.alloc((FRAMES + 1) * TAG_PAGE, 1));
  await t.rejects(snapshots.share({ file: join(folder, 'longer'), domain: 'shop', manifest }), {
    code: 'PT_MANIFEST_INVALID',
  });
  await t.rejects(snapshots.share({ file, domain: 'none' }), { code: 'PT_DOMAIN_UNKNOWN' });
  await t.rejects(snapshots.share({ file: join(folder, 'no'), domain: 'shop' }), { code: 'PT_MEMORY_FILE' });
  writeFileSync(join(folder, 'odd'), 'odd');
  await t.rejects(snapshots.share({ file: join(folder, 'odd'), domain: 'shop' }), { code: 'PT_MEMORY_FILE' });
  t.throws(() => snapshots.share({ file: 'here', domain: 'shop' }), { code: 'PT_BAD_ARGUMENT' });
  t.same(snapshots.list(), before, 'nothing has changed');
});

void t.test('a domain that is removed takes its snapshots along', async (t) => {
  const { folder, shop, open, remove } = bed(t);
  const { file, pages, tags } = memory(folder, shop);
  const snapshots = open();
  await snapshots.share({ file, domain: 'shop' });
  const other = memory(folder, domainOf('bank', 2), 'other');
  await snapshots.share({ file: other.file, domain: 'bank' });
  remove(shop);
  t.equal(given(snapshots, 1, tags, pages), 0, 'at once');
  // behind what the removal began
  await t.rejects(snapshots.unshare(file), { code: 'PT_BAD_ARGUMENT' });
  t.same(
    snapshots.list().map((one) => one.file),
    [other.file],
  );
});

void t.test('what is written down is not believed unseen', async (t) => {
  const { folder, open } = bed(t);
  mkdirSync(join(folder, 'snapshots'));
  writeFileSync(join(folder, 'snapshots', 'snapshots.json'), '[{"file": 3}]');
  const snapshots = open();
  await snapshots.recover();
  t.same(snapshots.list(), []);
});
