/** A guest's own memory as a page source: over a real file, by names that are real. */
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FrameState, native, Origin, Outcome, type FaultSession } from '../../src/memory/native.ts';
import { openNamedPages, type NamedPages } from '../../src/memory/named-pages.ts';
import { Serving } from '../../src/memory/serving.ts';
import { DuplicateRings } from '../../src/pages/duplicates.ts';
import { DomainKey, TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { scratch } from '../guests/embedded-support.ts';

interface Bed {
  named: NamedPages;
  session: FaultSession;
  serving: Serving;
  /** In two files, one after the other. */
  read: () => Buffer;
  write: (frame: number, value: number) => void;
  outcome: Int32Array;
}

/** Frame n is to have a page full of `of[n]`; `there` have it already. */
function bed(t: Test, of: readonly number[], there: readonly number[]): Bed {
  const folder = scratch(t);
  const half = of.length / 2;
  const files = ['a', 'b'].map((name, i) => ({
    path: join(folder, name),
    size: half * TAG_PAGE,
    offset: i * half * TAG_PAGE,
  }));
  for (const { path, size } of files) writeFileSync(path, Buffer.alloc(size));
  const opened = files.map((file) => ({ ...file, fd: openSync(file.path, 'r+') }));
  const session = native().createFileSession(opened, TAG_PAGE);
  for (const { fd } of opened) closeSync(fd);
  const key = new DomainKey(Buffer.alloc(32, 7));
  const tags = new Uint8Array(new SharedArrayBuffer(of.length * TAG_BYTES));
  native().tagPages(key.id, Buffer.concat(of.map((value) => Buffer.alloc(TAG_PAGE, value))), of.length, tags);
  const rings = new DuplicateRings(tags);
  rings.link();
  const serving = new Serving();
  const { next, first } = rings;
  const named = openNamedPages(
    { tags, next, first, key: key.id, cache: 0, resident: 0, domain: 0, own: files },
    TAG_PAGE,
    serving,
    'fill',
  );
  t.teardown(() => {
    named.close?.();
    key.close();
    native().destroySession(session.id);
    session.close();
  });
  const outcome = new Int32Array(4);
  for (const frame of there) session.install(frame, 1, Buffer.alloc(TAG_PAGE, of[frame]), 0, outcome);
  return {
    named,
    session,
    serving,
    outcome,
    read: () => Buffer.concat(files.map(({ path }) => readFileSync(path))),
    write: (frame, value) => {
      const { path, offset } = files[frame < half ? 0 : 1]!;
      const fd = openSync(path, 'r+');
      writeSync(fd, Buffer.alloc(TAG_PAGE, value), 0, TAG_PAGE, frame * TAG_PAGE - offset);
      closeSync(fd);
    },
  };
}

void t.test('what another frame has comes from there, up to the first frame that nobody has', (t) => {
  const { named, session, serving, read, outcome } = bed(t, [1, 2, 1, 1, 3, 2, 1, 4], [0, 5]);
  t.equal(named.install(session, 1, 6, outcome), Outcome.Absent);
  t.same([...outcome.subarray(0, 3)], [3, 0, 4], 'frames 1, 2 and 3; of frame 4 there is none');
  t.equal(named.install(session, 5, 2, outcome), Outcome.Done);
  t.same([...outcome.subarray(0, 3)], [1, 1, 7]);
  t.equal(serving.repeated, 4);
  t.same(
    [0, 1, 2, 3, 5, 6].map((frame) => read()[frame * TAG_PAGE]),
    [1, 2, 1, 1, 2, 1],
  );
  t.equal(session.origins![6], Origin.Duplicate);
  t.equal(session.table[4], FrameState.Missing);
  t.end();
});

void t.test('a page that is not what its frame is said to have is not taken', (t) => {
  const { named, session, write, outcome } = bed(t, [1, 1, 1, 1], [2, 3]);
  write(2, 9); // as a guest that runs may
  t.equal(named.install(session, 0, 1, outcome), Outcome.Done, 'another has it');
  write(3, 9);
  write(0, 9);
  t.equal(named.install(session, 1, 1, outcome), Outcome.Absent);
  t.equal(session.table[1], FrameState.Missing);
  session.reset(2, 2, FrameState.Missing);
  session.reset(0, 1, FrameState.Missing);
  write(2, 1); // right, but nobody says so
  t.equal(named.install(session, 1, 1, outcome), Outcome.Absent);
  t.end();
});
