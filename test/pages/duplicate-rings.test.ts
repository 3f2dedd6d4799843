/** Rings that are kept up with a manifest that changes. */
import fc from 'fast-check';
import t from 'tap';
import { DuplicateRings } from '../../src/pages/duplicates.ts';
import { isZeroTag, sameTag } from '../../src/pages/tag-runs.ts';
import { TAG_BYTES } from '../../src/pages/tags.ts';

function write(tags: Uint8Array, frame: number, id: number): void {
  tags.fill(0, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
  // some in one slot of the table, whatever their other bytes
  new DataView(tags.buffer).setUint32(frame * TAG_BYTES, id === 0 ? 0 : 1 + (id % 3), true);
  tags[frame * TAG_BYTES + 8] = id;
}

/** Throws unless the rings are rings, each of frames with one tag, under one name of its own. */
function check(tags: Uint8Array, { next, first }: DuplicateRings): void {
  const frames = next.length;
  const names = new Map<number, number>();
  for (let frame = 0; frame < frames; frame++) {
    const ring = [frame];
    for (let at = next[frame]!; at !== frame; at = next[at]!) {
      ring.push(at);
      if (ring.length > frames) throw new Error(`frame ${frame} is in no ring`);
    }
    if (isZeroTag(tags, frame) && ring.length > 1) throw new Error(`zero frame ${frame} is in a ring`);
    const name = first[frame]!;
    if (!ring.includes(name)) throw new Error(`the ring of frame ${frame} is named ${name}`);
    const least = Math.min(...ring);
    if ((names.get(name) ?? least) !== least) throw new Error(`two rings are named ${name}`);
    names.set(name, least);
    for (const other of ring) {
      if (!sameTag(tags, frame, tags, other)) throw new Error(`frames ${frame} and ${other} differ`);
      if (first[other] !== name) throw new Error(`frame ${other} has another name`);
    }
  }
}

void t.test('no ring ever holds two pages, and none is broken', (t) => {
  const frames = 48;
  const change = fc.tuple(fc.nat(frames - 1), fc.nat(9));
  fc.assert(
    fc.property(
      fc.array(fc.nat(9), { minLength: frames, maxLength: frames }),
      fc.array(fc.array(change, { maxLength: 20 }), { maxLength: 12 }),
      (initial, rounds) => {
        const tags = new Uint8Array(new SharedArrayBuffer(frames * TAG_BYTES));
        const rings = new DuplicateRings(tags);
        initial.forEach((id, frame) => write(tags, frame, id));
        rings.link();
        check(tags, rings);
        for (const round of rounds) {
          const changed = new Map(round);
          for (const [frame, id] of changed) write(tags, frame, id);
          rings.update([...changed.keys()].sort((a, b) => a - b).flatMap((frame) => [frame, 1]));
          check(tags, rings);
        }
      },
    ),
    { numRuns: 400 },
  );
  t.end();
});

void t.test('a frame that comes to have the page of others joins them', (t) => {
  const tags = new Uint8Array(new SharedArrayBuffer(8 * TAG_BYTES));
  const rings = new DuplicateRings(tags);
  [1, 1, 2, 3, 4, 5, 6, 7].forEach((id, frame) => write(tags, frame, id));
  rings.update([0, 8]); // before there are any: all are linked
  t.equal(rings.first[1], 0);
  write(tags, 5, 2);
  rings.update([5, 1]);
  t.equal(rings.next[5], 2);
  t.equal(rings.next[2], 5);
  // the one by which the ring of 1 was found leaves: the other is found all the same
  write(tags, 0, 9);
  write(tags, 7, 1);
  rings.update([0, 1, 7, 1]);
  t.equal(rings.next[7], 1);
  t.equal(rings.next[0], 0);
  t.end();
});
