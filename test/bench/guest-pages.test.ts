/** A survey counts what is in memory files, against what surveys before it found. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { PageSurveyor } from '../../bench/lib/guest-pages.ts';
import type { MemoryFile } from '../../src/guests/driver.ts';

const PAGE = 4096;

/** A page as the test guest writes them. */
function dataPage(): Buffer {
  const word = randomBytes(8);
  word[0]! |= 1;
  return Buffer.concat([randomBytes(PAGE / 2), Buffer.alloc(PAGE / 2, word)]);
}

function setUp(t: Test): { surveyor: PageSurveyor; file: (pages: Buffer[]) => MemoryFile } {
  const folder = mkdtempSync(join(tmpdir(), 'ptt-'));
  const surveyor = new PageSurveyor();
  t.teardown(() => {
    surveyor.close();
    rmSync(folder, { recursive: true, force: true });
  });
  let files = 0;
  const file = (pages: Buffer[]): MemoryFile => {
    const path = join(folder, String(files++));
    writeFileSync(path, Buffer.concat(pages));
    return { id: 'ram', path, size: pages.length * PAGE, offset: 0 };
  };
  return { surveyor, file };
}

void t.test('zeros, repeats, data and others', (t) => {
  const { surveyor, file } = setUp(t);
  const zero = Buffer.alloc(PAGE);
  const [a, b] = [dataPage(), dataPage()];
  const random = randomBytes(PAGE);
  const constant = Buffer.alloc(PAGE, 'poison!!');
  const half = Buffer.concat([randomBytes(PAGE / 2), Buffer.alloc(PAGE / 2)]);
  const found = surveyor.survey([file([a, zero, random, a, constant]), file([half, b, random])]);
  const { packedData, packedOther, ...counts } = found;
  t.same(counts, { frames: 8, zero: 1, distinct: 5, missingData: 2, missingOther: 3 });
  t.ok(packedData > PAGE && packedData < 1.1 * PAGE, `two halves are random: ${packedData} bytes`);
  t.ok(packedOther > 1.5 * PAGE && packedOther < 1.6 * PAGE, `a page and a half is random: ${packedOther} bytes`);
  t.end();
});

void t.test('what one guest had is not missing for the next, until it is forgotten', (t) => {
  const { surveyor, file } = setUp(t);
  // more than a block of LZ4, and more than is read in one go
  const common = Array.from({ length: 600 }, dataPage);
  t.equal(surveyor.survey([file(common)]).missingData, 600);
  const next = surveyor.survey([file([...common.slice(100), dataPage()])]);
  t.same([next.distinct, next.missingData, next.missingOther], [501, 1, 0]);
  surveyor.forget();
  t.equal(surveyor.survey([file(common.slice(0, 10))]).missingData, 10);
  t.end();
});

void t.test('a file that is shorter than it should be', (t) => {
  const { surveyor, file } = setUp(t);
  const short = file([dataPage()]);
  t.throws(() => surveyor.survey([{ ...short, size: 2 * PAGE }]), { code: 'PT_MEMORY_FILE' });
  t.end();
});
