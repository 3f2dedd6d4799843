/** Chunks by their tags: those that were used last, of the domain that asks. */
import t from 'tap';
import { ChunkStore } from '../../src/pages/chunk-store.ts';
import { CHUNK_FRAMES, Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';

const CHUNK_BYTES = CHUNK_FRAMES * TAG_BYTES;

/** A manifest whose chunk i is chunk number `numbers[i]`: no two alike, 0 of zero pages; the last one is short. */
function manifestOf(...numbers: number[]): Manifest {
  const manifest = new Manifest(numbers.length * CHUNK_FRAMES - 100);
  numbers.forEach((number, index) => {
    if (number === 0) return;
    const first = index * CHUNK_FRAMES;
    for (let frame = first; frame < first + manifest.framesOf(index); frame++) {
      manifest.tags.fill(number, frame * TAG_BYTES, frame * TAG_BYTES + 8);
      manifest.tags[frame * TAG_BYTES + 9] = (frame - first) % 251;
    }
  });
  manifest.touch(0, manifest.frames);
  return manifest;
}

/** Which chunks of the manifest are known. */
function known(store: ChunkStore, manifest: Manifest, domain = 1): number[] {
  const found: number[] = [];
  for (let index = 0; index < manifest.chunks; index++) {
    const tags = store.get(domain, manifest.chunkTags(), index);
    if (tags === undefined) continue;
    const first = index * CHUNK_BYTES;
    t.ok(Buffer.compare(tags, manifest.tags.subarray(first, first + tags.length)) === 0, 'the tags are its own');
    found.push(index);
  }
  return found;
}

void t.test('gives back what was added, copied; zero chunks are not kept', (t) => {
  const store = new ChunkStore(64 * CHUNK_BYTES);
  const manifest = manifestOf(1, 0, 2, 3);
  store.add(1, manifest);
  t.equal(store.size, 3);
  t.same(known(store, manifest), [0, 2, 3]);
  t.same(known(store, manifestOf(2, 1, 4, 5)), [0, 1], 'at any place of another manifest');
  const same = manifestOf(1, 0, 2, 3);
  manifest.tags.fill(9);
  t.same(known(store, same), [0, 2, 3], 'the guest that they came from has changed since');
  t.end();
});

void t.test('of another domain, and of one that was removed: not known', (t) => {
  const store = new ChunkStore(64 * CHUNK_BYTES);
  const manifest = manifestOf(1, 2, 3);
  store.add(1, manifest);
  store.add(2, manifestOf(7, 8, 9));
  t.same(known(store, manifest, 2), []);
  store.removeDomain(1);
  t.same(known(store, manifest), []);
  t.equal(store.size, 3, 'the other domain keeps its own');
  t.end();
});

void t.test('the chunks that were used longest ago go first', (t) => {
  const store = new ChunkStore(4 * CHUNK_BYTES + 5);
  const old = manifestOf(1, 2, 3, 4);
  store.add(1, old);
  t.same(known(store, manifestOf(1, 0)), [0], 'used again');
  store.add(1, manifestOf(5, 6));
  t.equal(store.size, 4);
  t.same(known(store, old), [0, 3]);
  t.end();
});
