/**
 * Memory of a paused guest that changes at its source: the page never has its tag any more, so it never gets to the guest, and
 * both sides say so.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FrameState } from '../../src/memory/native.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { cluster, type Cluster, type TestAgent } from '../support/cluster.ts';
import { untilRecord } from '../support/journal-watch.ts';
import { begin, follow, guestFaults, reportFaults, startGuest, stillLeft, until } from '../support/migrate.ts';

t.setTimeout(900_000);

const PAGE = 4096;
const MIB = 2 ** 20;
const NAME = 'g1';
const HEADER = 4096;

/** A guest that has left `a`, with most of its pages still to come to `b`. */
interface Left {
  made: Cluster;
  a: TestAgent;
  b: TestAgent;
  id: string;
  /** Frame, and the byte in it that is altered, and back again. */
  frame: number;
  alter: () => void;
  mend: () => void;
  /** State of the frame at the destination. */
  state: () => number;
}

async function left(t: Test): Promise<Left> {
  const made = cluster(t);
  const a = await made.agent('a');
  const b = await made.agent('b', { fill: { bandwidth: MIB } });
  // it touches the first frames only
  await startGuest(a, NAME, { memory: '16M', workingSet: 0.05, writeRate: 50, readRate: 50 });
  const [file] = (await a.client.showGuest(NAME)).files;
  const memory = readFileSync(file!.path);
  const id = await begin(a, b, NAME);
  t.ok(await untilRecord(a, 0, 'source', 'gone', 60_000));

  const table = join(
    b.memoryFolder,
    readdirSync(b.memoryFolder).find((name) => name.endsWith(`.${id}.frames`))!,
  );
  const stateOf = (at: number): number => {
    const fd = openSync(table, 'r');
    const byte = Buffer.alloc(1);
    readSync(fd, byte, 0, 1, HEADER + at);
    closeSync(fd);
    return byte[0]!;
  };
  const frame = lonely(memory, stateOf);
  const write = (xor: number): void => {
    const fd = openSync(file!.path, 'r+');
    writeSync(fd, Buffer.of(memory[frame * PAGE + 100]! ^ xor), 0, 1, frame * PAGE + 100);
    closeSync(fd);
  };
  return {
    made,
    a,
    b,
    id,
    frame,
    alter: () => write(1),
    mend: () => write(0),
    state: () => stateOf(frame),
  };
}

/** A frame that has not come yet, and comes last: in the second half, with a page that no other frame has. */
function lonely(memory: Buffer, stateOf: (frame: number) => number): number {
  const pages = new Map<string, number>();
  const frames = memory.length / PAGE;
  const pageAt = (frame: number): string => memory.toString('latin1', frame * PAGE, (frame + 1) * PAGE);
  for (let frame = 0; frame < frames; frame++) pages.set(pageAt(frame), (pages.get(pageAt(frame)) ?? 0) + 1);
  for (let frame = Math.floor(frames * 0.9); frame > frames / 2; frame--)
    if (pages.get(pageAt(frame)) === 1 && stateOf(frame) === FrameState.Missing) return frame;
  throw new Error('the guest is there already');
}

const alarmsOf = async (agent: TestAgent): Promise<string | undefined> =>
  /pagetide_alarms_total\{kind="page-damaged"\} (\d+)/.exec(await (await fetch(`${agent.url}/metrics`)).text())?.[1];

void t.test('a byte that changes at the source: both sides raise the alarm, and no guest gets the page', async (t) => {
  const { made, a, b, id, frame, alter, mend, state } = await left(t);
  alter();
  for (const agent of [b, a]) {
    await until(`the alarm of ${agent.name}`, async () => {
      return (await agent.client.showMigration(id)).error?.code === 'PT_PAGE_DAMAGED';
    });
    const { progress, error } = await agent.client.showMigration(id);
    t.equal(progress.phase, 'serving', `${agent.name}: the guest runs on`);
    t.match(progress.note, new RegExp(`^frame ${frame} of the paused guest is not what it was`), agent.name);
    t.match(error, { message: new RegExp(`^frame ${frame} of`), hint: /failing memory/ }, agent.name);
    await until(`${agent.name} counts it`, async () => (await alarmsOf(agent)) === '1');
    t.match(agent.log().join('\n'), /"level":"?(60|fatal)"?.*PT_PAGE_DAMAGED/, `${agent.name}: in its log`);
  }
  t.equal((await b.client.showGuest(NAME)).state, 'running');
  t.not(state(), FrameState.Present);

  // everything else comes, as far as it isn't asked for together with that frame, and then nothing more
  await until('the rest has come', async () => {
    const { framesPresent, framesTotal } = (await b.client.showMigration(id)).progress;
    return framesTotal - framesPresent <= 256;
  });
  t.not(state(), FrameState.Present, 'never installed');
  t.equal((await a.client.showMigration(id)).progress.phase, 'serving', 'not complete');

  mend();
  const { last } = await follow(a.client, id);
  t.equal(last.progress.phase, 'done');
  t.strictSame([last.error, last.report?.verified], [undefined, true]);
  t.strictSame(reportFaults(last.report), []);
  t.strictSame(await guestFaults(b, NAME), []);
  t.equal((await b.client.showMigration(id)).error, undefined);
  t.strictSame([await alarmsOf(a), await alarmsOf(b)], ['1', '1'], 'one alarm, not one a second');
  t.strictSame(await stillLeft(made), []);
});

void t.test('a source that was restarted cannot tell', async (t) => {
  const { made, a, b, id, frame, alter, mend, state } = await left(t);
  await a.kill();
  alter();
  await a.restart();
  await until('it says so', async () => /cannot tell/.test((await b.client.showMigration(id)).progress.note ?? ''));
  t.match((await b.client.showMigration(id)).progress.note, new RegExp(`^frame ${frame} does not come as it was`));
  t.not(state(), FrameState.Present);
  t.strictSame([await alarmsOf(a), await alarmsOf(b)], [undefined, undefined], 'nobody knows that it is an alarm');
  mend();
  const { last } = await follow(a.client, id);
  t.strictSame([last.progress.phase, last.error, last.report?.verified], ['done', undefined, true]);
  t.strictSame(await stillLeft(made), []);
});

void t.test('what the source is not asked', async (t) => {
  const { a, b, id, mend } = await left(t);
  const epoch = Number(/"epoch":(\d+)/.exec(readFileSync(join(a.state, 'journal'), 'utf8'))![1]);
  const peer = new PeerClient(a.url);
  t.teardown(() => peer.close());
  t.strictSame(await peer.recheck(id, epoch, [0, 4095]), ['right', 'right']);
  await t.rejects(peer.recheck(id, epoch, [0]), { code: 'PT_TOO_SOON', hint: /after a second/ });
  await t.rejects(peer.recheck(id, epoch, [4096]), { code: 'PT_BAD_ARGUMENT', message: /no frame 4096/ });
  await t.rejects(
    peer.recheck(
      id,
      epoch,
      Array.from({ length: 33 }, () => 0),
    ),
    { code: 'PT_BAD_ARGUMENT' },
  );
  await t.rejects(peer.recheck(id, epoch + 1, [0]), { code: 'PT_MIGRATION_UNKNOWN' });
  await t.rejects(peer.recheck('0123456789abcdef', epoch, [0]), { code: 'PT_MIGRATION_UNKNOWN' });
  mend();
  await follow(a.client, id);
  await t.rejects(peer.recheck(id, epoch, [0]), { code: 'PT_MIGRATION_UNKNOWN' }, 'over');
  t.strictSame(await guestFaults(b, NAME), []);
});
