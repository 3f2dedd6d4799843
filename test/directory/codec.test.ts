/** The binary forms: what goes in comes out, and what was cut or altered is refused or is another whole message. */
import fc from 'fast-check';
import t from 'tap';
import * as codec from '../../src/directory/codec.ts';
import type { Holders, LackingPage, Report, ReportAnswer } from '../../src/directory/directory.ts';
import { tagsOf } from './model.ts';

const name = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,20}$/);
const host = fc.oneof(name, fc.constant('unix:/run/a b'.replace(' ', '/')), fc.constant('~'.repeat(255)));
const tags = fc.array(fc.nat(1000), { maxLength: 40 }).map((list) => tagsOf(...list));
const whole = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER });
const held = fc
  .record({ domain: name, tags })
  .chain(({ domain, tags }) =>
    fc
      .array(fc.nat(0xffff), { minLength: tags.length / 16, maxLength: tags.length / 16 })
      .map((guests) => ({ domain, tags, guests: Uint16Array.from(guests) })),
  );
const report: fc.Arbitrary<Report> = fc.record({
  host,
  epoch: whole,
  sequence: whole,
  begins: fc.boolean(),
  changes: fc.array(fc.record({ domain: name, guest: name, gone: fc.boolean(), added: tags, removed: tags }), {
    maxLength: 5,
  }),
  held: fc.array(held, { maxLength: 3 }),
});
const answer: fc.Arbitrary<ReportAnswer> = fc.record({
  state: fc.constantFrom('applied' as const, 'anew' as const),
  wanted: fc.array(fc.record({ domain: name, tags: tags.filter(({ length }) => length > 0) }), { maxLength: 4 }),
});
const cells = fc.array(fc.record({ host: fc.nat(2), held: fc.nat(0xffff) }), { maxLength: 3 });
const holders: fc.Arbitrary<Holders> = fc.array(cells, { maxLength: 20 }).map((each) => {
  const all = each.flat();
  let at = 0;
  return {
    hosts: ['a', '', 'c'],
    guests: Uint32Array.from(each, (list) => list.reduce((sum, { held }) => sum + held, 0)),
    first: Uint32Array.from([0, ...each.map(({ length }) => (at += length))]),
    host: Uint16Array.from(all, ({ host }) => host),
    held: Uint16Array.from(all, ({ held }) => held),
  };
});
const lacking: fc.Arbitrary<LackingPage> = fc
  .tuple(holders, fc.option(fc.stringMatching(/^[0-9a-f]{1,8}$/), { nil: undefined }))
  .map(([holders, cursor]) => ({
    tags: tagsOf(...holders.guests.keys()),
    ...holders,
    ...(cursor === undefined ? {} : { cursor }),
  }));

function check<T>(
  what: string,
  values: fc.Arbitrary<T>,
  encode: (value: T) => Buffer,
  decode: (bytes: Uint8Array) => T,
): void {
  const codes = ['PT_PROTOCOL', 'PT_BAD_ARGUMENT'];
  /** Undefined: refused as it should be. */
  const tried = (bytes: Uint8Array): T | undefined => {
    try {
      return decode(bytes);
    } catch (error) {
      if (!codes.includes((error as { code: string }).code)) throw error;
      return undefined;
    }
  };
  void t.test(what, (t) => {
    fc.assert(
      fc.property(values, fc.nat(), fc.nat(255), fc.nat(7), (value, where, byte, shift) => {
        const bytes = encode(value);
        // also where the message does not begin at a word
        const moved = Buffer.concat([Buffer.alloc(shift), bytes]).subarray(shift);
        if (!encode(decode(moved)).equals(bytes)) throw new Error('it comes out as another');
        const at = where % bytes.length;
        if (tried(bytes.subarray(0, at)) !== undefined) throw new Error(`${at} of ${bytes.length} bytes were taken`);
        if (tried(Buffer.concat([bytes, Buffer.of(byte)])) !== undefined) throw new Error('one byte more was taken');
        const altered = Buffer.from(bytes);
        altered[at] = byte;
        const other = tried(altered);
        // it may be a message, too: then it is that one
        if (other !== undefined && !encode(other).equals(altered)) throw new Error('half of it was taken');
      }),
      { numRuns: 400 },
    );
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void tried(bytes)));
    t.end();
  });
}

check('report', report, codec.encodeReport, codec.decodeReport);
check('answer', answer, codec.encodeAnswer, codec.decodeAnswer);
check('holders', holders, codec.encodeHolders, codec.decodeHolders);
check('lacking', lacking, codec.encodeLacking, codec.decodeLacking);

void t.test('a round trip keeps every field', (t) => {
  const value: Report = {
    ...{ host: 'unix:/run/a.sock', epoch: Number.MAX_SAFE_INTEGER, sequence: 2 ** 33, begins: true },
    changes: [{ domain: 'shop', guest: 'a', gone: true, added: tagsOf(1, 2), removed: tagsOf(3) }],
    held: [{ domain: 'shop', tags: tagsOf(4, 5), guests: Uint16Array.of(7, 0xffff) }],
  };
  t.same(codec.decodeReport(codec.encodeReport(value)), value);
  t.end();
});

void t.test('counts beyond what is allowed are refused before room is made', (t) => {
  const huge = Buffer.from(codec.encodeReport({ host: 'a', epoch: 1, sequence: 1, changes: [] }));
  huge.writeUInt16LE(1025, huge.length - 4);
  t.throws(() => codec.decodeReport(huge), { code: 'PT_PROTOCOL' });
  const holders = Buffer.from([3, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
  t.throws(() => codec.decodeHolders(holders), { code: 'PT_PROTOCOL' });
  holders.writeUInt32LE(65_536, 4);
  t.throws(() => codec.decodeHolders(holders), { code: 'PT_PROTOCOL' });
  t.end();
});
