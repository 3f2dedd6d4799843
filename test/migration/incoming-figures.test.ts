/** The classes of a report add up, whatever was copied, served, or found there. */
import fc from 'fast-check';
import t from 'tap';
import type { ServiceFigures } from '../../src/memory/guest-service.ts';
import { classesOf, copiedClasses } from '../../src/migration/incoming-figures.ts';

const CLASSES = ['cache', 'resident', 'duplicate', 'peer', 'source'] as const;
type Classes = Record<(typeof CLASSES)[number], number>;
const classes = fc.record({
  cache: fc.nat(50),
  resident: fc.nat(50),
  duplicate: fc.nat(50),
  peer: fc.nat(50),
  source: fc.nat(50),
});
const sum = (of: Classes): number => CLASSES.reduce((total, name) => total + of[name], 0);

/** What a service has counted that has filled these, after `counted` in rounds. */
function figures(total: number, filled: Classes, counted: Classes, before: number): ServiceFigures {
  return {
    counts: { total, installed: before + sum(filled) },
    cached: counted.cache + filled.cache,
    resident: counted.resident + filled.resident,
    repeated: counted.duplicate + filled.duplicate,
    fromPeers: counted.peer + filled.peer,
    installed: counted.source + filled.source,
  } as unknown as ServiceFigures;
}

void t.test('of a guest that was copied in part, and served', (t) => {
  fc.assert(
    fc.property(classes, classes, classes, fc.nat(40), fc.nat(100), (copied, filled, counted, before, zero) => {
      const total = sum(copied) + sum(filled) + before + zero;
      const made = classesOf(figures(total, filled, counted, before), { before, counted }, copied);
      for (const name of CLASSES) if (made[name] !== copied[name] + filled[name]) throw new Error(name);
      if (made.total !== total || made.zero !== zero || made.present !== before) throw new Error(JSON.stringify(made));
    }),
  );
  t.end();
});

void t.test('of a guest that was served alone, and of one that was copied whole', (t) => {
  const filled = { cache: 1, resident: 2, duplicate: 3, peer: 4, source: 5 };
  const none = { cache: 0, resident: 0, duplicate: 0, peer: 0, source: 0 };
  const made = classesOf(figures(20, filled, none, 0), { before: 0, counted: none }, undefined);
  t.same(made, { total: 20, zero: 5, present: 0, ...filled });
  t.same(copiedClasses(20, filled), made);
  t.end();
});
