/** Deltas at the destination: what is asked for and how, over real files; and pages that were set aside. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { AsidePages, MOST_ASIDE } from '../../src/memory/aside-pages.ts';
import { DeltaPages, type DeltaAsk } from '../../src/memory/delta-pages.ts';
import { native, OUTCOME_FIELDS, type FaultSession } from '../../src/memory/native.ts';
import { Serving } from '../../src/memory/serving.ts';
import type { Deltas } from '../../src/transport/page-client.ts';

const PAGE = 4096;
const FRAMES = 32;

interface Bed {
  session: FaultSession;
  serving: Serving;
  aside: AsidePages;
  deltas: DeltaPages;
  /** The guest's memory at the source. */
  source: Buffer;
  /** Of the destination: two files of 12 and 20 frames. */
  write: (frame: number, page: Uint8Array) => void;
  /** As the source answers. */
  answer: (ask: DeltaAsk, whole?: number) => Deltas;
}

/** All but the last eight frames were copied in an earlier round. */
function bed(t: Test, random = (): number => 0.99): Bed {
  const folder = mkdtempSync('/dev/shm/pt-deltas-');
  const source = randomBytes(FRAMES * PAGE);
  const files = [12, 20].map((frames, i) => {
    const path = join(folder, `ram-${i}`);
    writeFileSync(path, Buffer.alloc(frames * PAGE));
    return { path, size: frames * PAGE, offset: i * 12 * PAGE };
  });
  const fds = files.map(({ path }) => openSync(path, 'r+'));
  const session = native().createFileSession(
    files.map(({ size, offset }, i) => ({ fd: fds[i]!, size, offset })),
    PAGE,
  );
  session.install(0, FRAMES - 8, source, 0, new Int32Array(OUTCOME_FIELDS));
  const serving = new Serving();
  const aside = new AsidePages(PAGE);
  const deltas = new DeltaPages(files, session, aside, serving, random);
  t.teardown(() => {
    deltas.close();
    native().destroySession(session.id);
    session.close();
    for (const fd of fds) closeSync(fd);
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    session,
    serving,
    aside,
    deltas,
    source,
    write(frame, page) {
      const which = frame < 12 ? 0 : 1;
      writeSync(fds[which]!, page, 0, PAGE, (frame - which * 12) * PAGE);
    },
    answer({ request: { seed, runs, digests } }, whole = 0) {
      const pages = pagesOf(source, runs);
      const total = pages.length / PAGE;
      const into = Buffer.alloc(total * (PAGE + 4));
      const raw = native().encodeDeltas(seed, pages, total, digests, into);
      return { total, whole, deltas: into.subarray(0, raw), bodyBytes: raw };
    },
  };
}

function pagesOf(memory: Buffer, runs: Uint32Array): Buffer {
  const parts: Buffer[] = [];
  for (let i = 0; i < runs.length; i += 2)
    parts.push(memory.subarray(runs[i]! * PAGE, (runs[i]! + runs[i + 1]!) * PAGE));
  return Buffer.concat(parts);
}

void t.test('pages that changed a little come as a little, over the seam of two files', (t) => {
  const { deltas, source, answer, serving } = bed(t);
  deltas.begin('loose');
  const runs = Uint32Array.of(20, 2, 10, 4, 3, 1);
  source.writeUInt32LE(1, 11 * PAGE);
  source.writeUInt32LE(2, 12 * PAGE + 4092);
  source.fill(7, 3 * PAGE, 3 * PAGE + 300);
  const ask = deltas.ask(runs)!;
  t.equal(ask.measure, true, 'nothing is known yet');
  const came = answer(ask, 5000);
  t.equal(came.deltas.length, 7 * 4 + (1 + 1 + 3) * 128);
  t.equal(Buffer.compare(deltas.make(runs, came), pagesOf(source, runs)), 0);
  t.same(serving.deltas, { frames: 7, bytes: came.bodyBytes, digests: 7 * 64, whole: 5000 });
  t.equal(deltas.ask(runs)!.measure, false, 'one in some');
  t.end();
});

void t.test('making the next request leaves the pages of an answer alone', (t) => {
  const { deltas, source, answer } = bed(t);
  deltas.begin('loose');
  const [one, other] = [Uint32Array.of(0, 4), Uint32Array.of(8, 4)];
  source.fill(1, 0, 200);
  const made = deltas.make(one, answer(deltas.ask(one)!));
  deltas.ask(other);
  t.equal(Buffer.compare(made, pagesOf(source, one)), 0);
  t.end();
});

void t.test('what was never here is asked for whole', (t) => {
  const { deltas } = bed(t);
  deltas.begin('loose');
  t.equal(deltas.ask(Uint32Array.of(FRAMES - 8, 8)), undefined);
  t.equal(deltas.ask(Uint32Array.of(FRAMES - 11, 8)), undefined, 'most of it');
  t.ok(deltas.ask(Uint32Array.of(FRAMES - 12, 8)), 'half of it');
  t.end();
});

void t.test('what was set aside is the older version', (t) => {
  const { deltas, aside, source, answer } = bed(t);
  deltas.begin('loose');
  const frame = FRAMES - 1;
  const runs = Uint32Array.of(frame, 1);
  aside.put(frame, source, frame * PAGE);
  source.writeUInt32LE(9, frame * PAGE);
  const came = answer(deltas.ask(runs)!);
  t.equal(came.deltas.length, 4 + 128);
  t.equal(Buffer.compare(deltas.make(runs, came), pagesOf(source, runs)), 0);
  t.end();
});

void t.test('a file that changes between request and answer makes another page, which its tag tells', (t) => {
  const { deltas, source, answer, write } = bed(t);
  deltas.begin('loose');
  const runs = Uint32Array.of(5, 1);
  const came = answer(deltas.ask(runs)!);
  write(5, Buffer.alloc(PAGE));
  t.not(Buffer.compare(deltas.make(runs, came), pagesOf(source, runs)), 0);
  t.end();
});

void t.test('deltas that are none are refused', (t) => {
  const { deltas, answer } = bed(t);
  deltas.begin('loose');
  const runs = Uint32Array.of(5, 2);
  const came = answer(deltas.ask(runs)!);
  came.deltas[0]! ^= 1;
  t.throws(() => deltas.make(runs, came), { code: 'PT_PROTOCOL' });
  t.end();
});

void t.test('while whole pages would take less, one request a round tries', (t) => {
  const { deltas, answer } = bed(t);
  const runs = Uint32Array.of(0, 8);
  const tell = (whole: number): void => void deltas.make(runs, answer(deltas.ask(runs)!, whole));
  deltas.begin('loose');
  tell(100);
  t.equal(deltas.ask(runs), undefined, 'digests alone took more');
  deltas.begin('strict');
  t.equal(deltas.ask(runs), undefined, 'no trying while the guest stands still');
  deltas.begin('loose');
  t.equal(deltas.ask(runs)!.measure, true);
  t.equal(deltas.ask(runs), undefined);
  deltas.begin('loose');
  tell(9_000);
  t.ok(deltas.ask(runs), 'it pays again');
  deltas.begin('strict');
  t.equal(deltas.ask(runs)!.measure, false, 'nothing is measured then');
  t.end();
});

void t.test('what is set aside is bounded, and the newest of its frame', (t) => {
  const aside = new AsidePages(16);
  const page = (n: number): Buffer => Buffer.alloc(16, n);
  t.equal(aside.get(1), undefined);
  for (let frame = 0; frame < MOST_ASIDE + 10; frame++) aside.put(frame, page(frame), 0);
  t.equal(aside.size, MOST_ASIDE);
  t.equal(aside.has(MOST_ASIDE), false);
  aside.put(5, Buffer.concat([page(0), page(99)]), 16);
  t.same(aside.get(5), page(99));
  aside.drop(7);
  aside.drop(7);
  t.equal(aside.get(7), undefined);
  aside.put(MOST_ASIDE, page(1), 0);
  aside.put(MOST_ASIDE + 1, page(2), 0);
  t.same(aside.get(MOST_ASIDE), page(1), 'in the room that it left');
  t.equal(aside.has(MOST_ASIDE + 1), false);
  t.same(aside.get(6), page(6));
  const into = Buffer.alloc(48);
  aside.copy(6, into, 16);
  aside.copy(7, into, 0);
  t.same(into, Buffer.concat([page(0), page(6), page(0)]));
  t.end();
});
