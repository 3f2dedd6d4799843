/** The doorkeeper: what was added is found, what was not hardly ever. */
import { randomBytes } from 'node:crypto';
import t from 'tap';
import { FALSE_POSITIVES, TagFilter } from '../../src/directory/filter.ts';
import { toWords } from '../../src/directory/tag-words.ts';
import { tagsOf } from './model.ts';

void t.test('no tag is lost, and false positives stay within their bound, at each size', (t) => {
  const others = toWords(randomBytes(400_000 * 16));
  const filter = new TagFilter();
  t.notOk(filter.has(others, 0), 'empty');
  const words = toWords(randomBytes(300_000 * 16));
  for (const size of [400, 3_000, 30_000, 300_000]) {
    for (let at = filter.added * 4; at < size * 4; at += 4) filter.add(words, at);
    let lost = 0;
    for (let at = 0; at < size * 4; at += 4) if (!filter.has(words, at)) lost++;
    t.equal(lost, 0);
    let wrong = 0;
    for (let at = 0; at < others.length; at += 4) if (filter.has(others, at)) wrong++;
    const rate = wrong / (others.length / 4);
    t.ok(
      rate <= FALSE_POSITIVES,
      `${size} tags: ${rate} ≤ ${FALSE_POSITIVES}, ${((filter.bytes * 8) / size).toFixed(1)} bits a tag`,
    );
  }
  t.end();
});

void t.test('tags that differ little are told apart, too', (t) => {
  const words = toWords(tagsOf(...Array.from({ length: 40_000 }, (_, i) => i)));
  const filter = new TagFilter();
  for (let at = 0; at < words.length / 2; at += 4) filter.add(words, at);
  let wrong = 0;
  for (let at = words.length / 2; at < words.length; at += 4) if (filter.has(words, at)) wrong++;
  t.ok(wrong / 20_000 <= FALSE_POSITIVES, `${wrong} of 20000`);
  t.end();
});
