/** Records: against a map, through growth, removal and reuse of cells; and the queue of what is wanted. */
import fc from 'fast-check';
import t from 'tap';
import { HolderTable, MOST_GUESTS } from '../../src/directory/table.ts';
import { toWords } from '../../src/directory/tag-words.ts';
import { WantedQueue } from '../../src/directory/wanted-queue.ts';
import { numbersOf, tagsOf } from './model.ts';

void t.test('a table does what a map does', (t) => {
  const all = toWords(tagsOf(...Array.from({ length: 300 }, (_, i) => i)));
  const op = fc.tuple(fc.nat(299), fc.nat(5), fc.nat(3));
  fc.assert(
    fc.property(fc.array(op, { minLength: 50, maxLength: 1500 }), (ops) => {
      const table = new HolderTable();
      const map = new Map<number, Map<number, number>>();
      for (const [tag, host, guests] of ops) {
        const slot = table.find(all, tag * 4);
        if (slot >= 0 !== map.has(tag)) throw new Error(`${tag}: slot ${slot}`);
        if (slot >= 0 && guests === 0 && host > 3) {
          table.remove(slot);
          map.delete(tag);
          continue;
        }
        const at = slot >= 0 ? slot : table.insert(all, tag * 4, host);
        if (slot < 0) map.set(tag, new Map());
        table.setGuests(at, host, guests);
        map.get(tag)!.delete(host);
        if (guests > 0) map.get(tag)!.set(host, guests);
      }
      if (table.size !== map.size) throw new Error(`${table.size} records of ${map.size}`);
      for (const [tag, hosts] of map) {
        const slot = table.find(all, tag * 4);
        const real = new Map<number, number>();
        for (let cell = table.firstCell(slot); cell !== 0; cell = table.nextCell(cell))
          real.set(table.hostOf(cell), table.countOf(cell));
        if (real.size !== hosts.size) throw new Error(`${tag}: ${real.size} hosts`);
        for (const [host, guests] of hosts) if (real.get(host) !== guests) throw new Error(`${tag} on ${host}`);
      }
      const slots = new Uint32Array(300);
      let walked = 0;
      for (let home = 0; home < table.slots; home++) walked += table.atHome(home, slots, walked);
      if (walked !== map.size || new Set(slots.subarray(0, walked)).size !== walked)
        throw new Error('a walk meets each once');
    }),
    { numRuns: 200 },
  );
  t.end();
});

void t.test('counts end at their most, and a record waits for those that were asked', (t) => {
  const table = new HolderTable();
  const slot = table.insert(toWords(tagsOf(1)), 0, 2);
  table.setGuests(slot, 65_535, MOST_GUESTS + 5);
  t.equal(table.guestsOf(slot, 65_535), MOST_GUESTS);
  for (const left of [1, 0, 0]) {
    table.answered(slot);
    t.equal(table.pending(slot), left);
  }
  t.end();
});

void t.test('a queue gives what was not answered, in order', (t) => {
  const queue = new WantedQueue();
  const words = toWords(tagsOf(...Array.from({ length: 500 }, (_, i) => i)));
  for (let i = 0; i < 300; i++) queue.push(words, i * 4);
  t.notOk(queue.shiftIf(words, 4), 'not the first');
  for (let i = 0; i < 250; i++) t.ok(queue.shiftIf(words, i * 4));
  for (let i = 300; i < 500; i++) queue.push(words, i * 4);
  t.equal(queue.length, 250);
  t.same(numbersOf(queue.first(2)), [250, 251]);
  for (let i = 250; i < 500; i++) t.ok(queue.shiftIf(words, i * 4));
  t.equal(queue.length + queue.bytes, 0);
  t.notOk(queue.shiftIf(words, 0));
  t.end();
});
