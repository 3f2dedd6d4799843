/** The manifest of a guest that leaves: made anew or taken over from a watch, and where a device writes behind the tracking. */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import t, { type Test } from 'tap';
import { GuestScan } from '../../src/migration/guest-scan.ts';
import { GuestTags } from '../../src/pages/guest-tags.ts';
import { GuestWatch } from '../../src/pages/guest-watch.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { checkManifestEnd, decodeTags } from '../../src/transport/wire-tags.ts';
import { FrameDecoder, FrameType } from '../../src/transport/wire.ts';
import { native } from '../../src/memory/native.ts';
import {
  openKey,
  openPool,
  silent,
  skipTracking as skip,
  startTagged,
  type TaggedGuest,
} from '../pages/guest-support.ts';

const MIB = 16;
const FRAMES = MIB * 256;

function makeTags(t: Test, guest: TaggedGuest): GuestTags {
  const tags = new GuestTags({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent });
  t.teardown(() => tags.close());
  return tags;
}

/** What the destination makes of the frames that it is sent; it checks each end as a destination does. Keeps `manifest` for the next round. */
function receive(sent: readonly Buffer[], manifest = new Manifest(FRAMES)): Manifest {
  const ends: number[] = [];
  const decoder = new FrameDecoder(
    'client-state',
    TAG_PAGE,
    (type, _flags, _stream, argument, buffer, offset, length) => {
      const payload = buffer.subarray(offset, offset + length);
      if (type === FrameType.Tags) {
        decodeTags(payload, argument, manifest);
      } else {
        checkManifestEnd(payload, argument, manifest);
        ends.push(argument);
      }
    },
  );
  for (const frame of sent) decoder.feed(frame, frame.length);
  if (ends.length !== 1) throw new Error(`the manifest has ${ends.length} ends`);
  return manifest;
}

/** mmap, then read(2) from a pipe into the mapping; the numbers of both calls are x86-64's. */
const MAPPED_WRITE = `
  my ($path, $offset, $byte) = @ARGV;
  open(my $file, '+<', $path) or die $!;
  my $at = syscall(9, 0, ${TAG_PAGE}, 3, 1, fileno($file), $offset + 0);
  $at == -1 and die $!;
  pipe(my $from, my $to) or die $!;
  syswrite($to, chr($byte) x ${TAG_PAGE}) == ${TAG_PAGE} or die $!;
  syscall(0, fileno($from), $at, ${TAG_PAGE}) == ${TAG_PAGE} or die $!;
`;

/** Writes a page as a device of another process does, through a mapping of the memory file: neither tracking nor the file tells. */
function writeBehind(guest: TaggedGuest, frame: number, byte: number): void {
  execFileSync('perl', ['-e', MAPPED_WRITE, guest.record.files[0]!.path, `${frame * TAG_PAGE}`, `${byte}`]);
}

const exact = { tracking: () => Promise.resolve('exact' as const) };

void t.test('a manifest made while the guest writes is that of its memory in the end', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 20_000);
  const scan = new GuestScan(makeTags(t, guest), exact);
  // it writes in each phase: while frames are tagged, told, caught up with, and right before it is paused
  const writes = async (phase: string, work: () => unknown): Promise<void> => {
    const { operations } = await guest.control.status();
    await work();
    while ((await guest.control.status()).operations < operations + 100);
    t.pass(`it has written in the phase '${phase}'`);
  };
  let told: Buffer[] = [];
  await writes('build', () => scan.build());
  await writes('tell', () => (told = scan.tell([0, scan.manifest.chunks])));
  for (let round = 0; round < 3; round++) await writes('catch up', () => scan.catchUp());
  await writes('before the pause', () => undefined);
  await guest.control.pause();
  const last = await scan.finish();
  const received = receive([...told, ...last]);
  t.ok(guest.tags().equals(received.tags));
  t.ok(last.length < told.length + FRAMES / 2, 'the end tells what has changed');
  scan.untrack();
  t.same(native().findUserfaults(guest.record.pid), [], 'tracking has ended');
});

void t.test('a destination that asks for what is not there is told nothing', { skip }, async (t) => {
  const guest = await startTagged(t, 1, 0);
  const scan = new GuestScan(makeTags(t, guest), exact);
  t.teardown(() => scan.close());
  await scan.build();
  scan.offer();
  t.equal(scan.manifest.chunks, 1);
  for (const wanted of [[1, 1], [0, 2], [0, 0], [0], [-1, 1], [0, 1, 0, 1], [0.5, 1], [2 ** 40, 1]])
    t.throws(() => scan.tell(wanted), { code: 'PT_PEER_FAILED' }, wanted.join());
  t.equal(scan.tell([]).length, 0, 'that all is known is an answer');
});

/** A guest, and what its watch knew of it when it was handed over. */
async function watched(t: Test): Promise<{ guest: TaggedGuest; tags: GuestTags }> {
  const guest = await startTagged(t, MIB, 200);
  const settings = { cpu: 1, intervalMs: 5 };
  const watch = new GuestWatch({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings });
  t.teardown(() => watch.close());
  await watch.fresh();
  const tags = await watch.handOver();
  if (tags === undefined) throw new Error('the watch hands nothing over');
  return { guest, tags };
}

void t.test('what a watch knows is not tagged again', { skip }, async (t) => {
  const { guest, tags } = await watched(t);
  t.ok(tags.tracked);
  const [before] = native().findUserfaults(guest.record.pid);
  // a tag that no page has: whoever tags the frame again mends it
  const frame = await untouched(guest, tags);
  tags.manifest.tags.fill(7, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
  const scan = new GuestScan(tags, { ...exact, constant: true });
  await scan.build();
  t.same(native().findUserfaults(guest.record.pid), [before], 'with the same tracker');
  t.equal(scan.manifest.tags[frame * TAG_BYTES], 7);
  await guest.control.pause();
  const right = guest.tags();
  scan.manifest.tags.set(right.subarray(frame * TAG_BYTES, (frame + 1) * TAG_BYTES), frame * TAG_BYTES);
  scan.manifest.touch(frame, 1);
  const told = scan.tell([0, scan.manifest.chunks]);
  t.ok(right.equals(receive([...told, ...(await scan.finish())]).tags));
});

void t.test('what was offered as a guess is told as it is', { skip }, async (t) => {
  const { guest, tags } = await watched(t);
  const frame = await untouched(guest, tags);
  tags.manifest.tags.fill(7, frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
  tags.manifest.touch(frame, 1);
  await guest.control.resume();
  const scan = new GuestScan(tags, exact);
  t.teardown(() => scan.close());
  await scan.begin();
  const offered = Uint8Array.from(scan.offer());
  t.equal(scan.manifest.tags[frame * TAG_BYTES], 7, 'a guess is offered');
  // the destination knows every chunk that it was offered, the wrong one as well
  const known = new Manifest(FRAMES);
  known.tags.set(scan.manifest.tags);
  known.touch(0, FRAMES);
  t.same(known.chunkTags(), offered);
  await scan.complete();
  t.not(scan.manifest.tags[frame * TAG_BYTES], 7);
  t.same(scan.offer() === scan.manifest.chunkTags(), true, 'offered again it is as it is now');
  const told = scan.tell([]);
  await guest.control.pause();
  const received = receive([...told, ...(await scan.finish())], known);
  t.ok(guest.tags().equals(received.tags));
});

void t.test('what is due when it was never completed is tagged at the end', { skip }, async (t) => {
  const guest = await startTagged(t, 1, 0);
  const tags = makeTags(t, guest);
  await tags.track();
  await tags.tagDue();
  tags.manifest.tags.fill(7, 0, TAG_BYTES);
  tags.manifest.touch(0, 1);
  const scan = new GuestScan(tags, exact);
  t.teardown(() => scan.close());
  await scan.begin();
  await guest.control.pause();
  await scan.finish();
  t.ok(guest.tags().equals(scan.manifest.tags));
});

/** A frame that the guest, which writes a part of its memory only, does not write while it is looked at. */
async function untouched(guest: TaggedGuest, tags: GuestTags): Promise<number> {
  await tags.tagDue();
  await guest.control.pause();
  const before = guest.tags();
  await guest.control.resume();
  const { operations } = await guest.control.status();
  while ((await guest.control.status()).operations < operations + 50);
  await guest.control.pause();
  const after = guest.tags();
  tags.scan();
  await tags.tagDue();
  for (let frame = FRAMES - 1; frame >= 0; frame--) {
    const at = frame * TAG_BYTES;
    if (before.compare(after, at, at + TAG_BYTES, at, at + TAG_BYTES) === 0 && after.readBigUInt64LE(at) !== 0n)
      return frame;
  }
  throw new Error('the guest writes all of its memory');
}

void t.test('what a watch left half done is done', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 2000);
  const settings = { cpu: 0.02, intervalMs: 0 };
  const watch = new GuestWatch({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings });
  t.teardown(() => watch.close());
  const tags = await watch.handOver();
  t.equal(tags?.isDue, true);
  const scan = new GuestScan(tags!, exact);
  t.teardown(() => scan.close());
  await scan.build();
  await guest.control.pause();
  const told = scan.tell([0, scan.manifest.chunks]);
  t.ok(guest.tags().equals(receive([...told, ...(await scan.finish())]).tags));
});

void t.test('what a watch knows is tagged again where devices come and go', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  const settings = { cpu: 1, intervalMs: 5 };
  const watch = new GuestWatch({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings });
  t.teardown(() => watch.close());
  await watch.fresh();
  // by a disk that is unplugged before the migration asks what there is
  writeBehind(guest, FRAMES - 1, 101);
  const finished = async (tags: GuestTags, constant: boolean): Promise<boolean> => {
    const scan = new GuestScan(tags, { ...exact, constant });
    await scan.build();
    const received = receive([...scan.tell([0, scan.manifest.chunks]), ...(await scan.finish())]);
    scan.close();
    return guest.tags().equals(received.tags);
  };
  const tags = (await watch.handOver())!;
  t.ok(tags.tracked);
  t.equal(await finished(tags, false), true);

  const again = new GuestWatch({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings });
  t.teardown(() => again.close());
  await again.fresh();
  writeBehind(guest, FRAMES - 1, 102);
  t.equal(await finished((await again.handOver())!, true), false, 'so this test can fail');
});

void t.test('a device that writes behind the tracking', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  const finished = async (options: ConstructorParameters<typeof GuestScan>[1]): Promise<boolean> => {
    const scan = new GuestScan(makeTags(t, guest), options);
    await scan.build();
    const told = scan.tell([0, scan.manifest.chunks]);
    writeBehind(guest, 5, 1 + Math.floor(performance.now() % 200));
    writeBehind(guest, FRAMES - 1, 1 + Math.floor(performance.now() % 200));
    const received = receive([...told, ...(await scan.finish())]);
    scan.close();
    return guest.tags().equals(received.tags);
  };
  t.equal(await finished(exact), false, 'is missed where tracking is held to be exact: so this test can fail');
  t.equal(await finished({ tracking: () => Promise.resolve('hints') }), true);
  t.equal(await finished({}), true, 'nothing known is hints');
});

void t.test(
  'drained scans: the guest is stopped for each, and what came before the first is tagged',
  { skip },
  async (t) => {
    const guest = await startTagged(t, MIB, 500);
    const settings = { cpu: 1, intervalMs: 5 };
    const watch = new GuestWatch({ record: guest.record, key: openKey(0), pool: openPool(t), log: silent, settings });
    t.teardown(() => watch.close());
    await watch.fresh();
    writeBehind(guest, FRAMES - 2, 99);
    let stops = 0;
    const scan = new GuestScan((await watch.handOver())!, {
      tracking: () => Promise.resolve('hints'),
      drained: async (work) => {
        stops++;
        await guest.control.pause();
        // I/O that was under way ends while the guest stops
        if (stops === 1) writeBehind(guest, FRAMES - 1, 98);
        work();
        await guest.control.resume();
      },
    });
    t.teardown(() => scan.close());
    await scan.build();
    t.equal(stops, 2);
    await scan.catchUp();
    t.equal(stops, 3);
    await guest.control.pause();
    const told = scan.tell([0, scan.manifest.chunks]);
    t.ok(guest.tags().equals(receive([...told, ...(await scan.finish())]).tags));
    t.equal(stops, 3, 'the last one has the guest stopped already');
  },
);

void t.test('rounds: each is a manifest of its own, and the last one that of the memory', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 20_000);
  const scan = new GuestScan(makeTags(t, guest), exact);
  const works = async (): Promise<void> => {
    const { operations } = await guest.control.status();
    while ((await guest.control.status()).operations < operations + 100);
  };
  await scan.build();
  t.equal(scan.readsAll, false);
  t.ok(scan.tagsAMs! > 0);
  const received = receive(scan.tellAll([0, scan.manifest.chunks]));
  t.ok(scan.manifest.digest().equals(received.digest()));
  for (let round = 2; round < 6; round++) {
    await works();
    const found = await scan.rescan();
    t.ok(found.changed > 0 && found.changed <= found.tagged, `${found.changed} changed of ${found.tagged} written`);
    t.ok(found.tagged < FRAMES / 2 && found.zero === 0 && found.sinceMs > 0 && found.tagMs > 0);
    receive(scan.tellChanged(), received);
  }
  await works();
  const untold = await scan.rescan();
  const more = await scan.rescan();
  t.ok(more.changed >= untold.changed, 'what was not told is still to be told');
  await works();
  await guest.control.pause();
  receive(await scan.finish(), received);
  t.ok(guest.tags().equals(received.tags));
  scan.untrack();
  t.same(native().findUserfaults(guest.record.pid), [], 'tracking has ended');
});

void t.test('rounds: a page that goes is told as zero in the next one', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  const scan = new GuestScan(makeTags(t, guest), exact);
  await scan.build();
  const received = receive(scan.tellAll([0, scan.manifest.chunks]));
  t.match(await scan.rescan(), { tagged: 0, changed: 0, zero: 0 }, 'nothing happens');
  t.equal(scan.tellChanged().length, 1, 'and nothing but the end is told');
  const punch = (frame: number): void => {
    const where = ['--offset', `${frame * TAG_PAGE}`, '--length', `${2 * TAG_PAGE}`];
    execFileSync('fallocate', ['--punch-hole', ...where, guest.record.files[0]!.path]);
  };
  punch(FRAMES - 2);
  t.match(await scan.rescan(), { tagged: FRAMES, unlocated: FRAMES, changed: 2, zero: 2 }, 'where it went is not told');
  t.match(await scan.rescan(), { tagged: 0, unlocated: 0, changed: 2, zero: 2 }, 'that it went is told once');
  receive(scan.tellChanged(), received);
  t.ok(guest.tags().equals(received.tags));
  await guest.control.pause();
  punch(FRAMES - 9);
  receive(await scan.finish(), received);
  t.ok(guest.tags().equals(received.tags), 'the last round too');
});

void t.test('rounds of drained scans', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 2_000);
  let stops = 0;
  const scan = new GuestScan(makeTags(t, guest), {
    tracking: () => Promise.resolve('hints'),
    drained: async (work) => {
      stops++;
      await guest.control.pause();
      // behind the tracking, of a page that was reported by the first scan: I/O that was under way ends while the guest stops
      if (stops === 1) writeBehind(guest, FRAMES - 1, 77);
      try {
        work();
      } finally {
        await guest.control.resume();
      }
    },
  });
  await scan.build();
  t.equal(stops, 2);
  t.equal(scan.readsAll, false, 'drained scans are exact');
  const received = receive(scan.tellAll([0, scan.manifest.chunks]));
  for (let round = 2; round < 5; round++) {
    await scan.rescan();
    t.equal(stops, round + 1, 'each round stops the guest once');
    receive(scan.tellChanged(), received);
  }
  await guest.control.pause();
  receive(await scan.finish(), received);
  t.ok(guest.tags().equals(received.tags));
});

void t.test('a disk that is plugged in while the guest is copied', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 2_000);
  let disk = false;
  let stops = 0;
  const scan = new GuestScan(makeTags(t, guest), {
    tracking: () => {
      // one that was there for this scan alone: all frames are due, and none was read yet
      if (!disk) writeBehind(guest, FRAMES - 1, 55);
      return Promise.resolve(disk ? 'hints' : 'exact');
    },
    drained: async (work) => {
      stops++;
      await guest.control.pause();
      work();
      await guest.control.resume();
    },
  });
  await scan.build();
  t.equal(stops, 0);
  const received = receive(scan.tellAll([0, scan.manifest.chunks]));
  const page = Buffer.alloc(TAG_PAGE, 55);
  const tag = Buffer.alloc(TAG_BYTES);
  const key = openKey(0);
  native().tagPages(key.id, page, 1, tag);
  key.close();
  t.ok(tag.equals(received.tags.subarray((FRAMES - 1) * TAG_BYTES)), 'frames are read after the question');
  disk = true;
  await scan.rescan();
  t.equal(stops, 1, 'the scan that found it is made again, drained');
  disk = false;
  await scan.rescan();
  t.equal(stops, 2, 'once hints, always hints');
  receive(scan.tellChanged(), received);
  await guest.control.pause();
  receive(await scan.finish(), received);
  t.ok(guest.tags().equals(received.tags));
});

void t.test('rounds where writes cannot be tracked', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 2_000);
  // a process that is none of the guest's: its memory is not found there
  const tags = new GuestTags({
    record: { ...guest.record, pid: process.pid },
    key: openKey(0),
    pool: openPool(t),
    log: silent,
  });
  t.teardown(() => tags.close());
  const scan = new GuestScan(tags, exact);
  await scan.build();
  t.equal(scan.readsAll, true);
  const received = receive(scan.tellAll([0, scan.manifest.chunks]));
  const { tagged, changed } = await scan.rescan();
  t.equal(tagged, FRAMES, 'every round reads everything');
  t.ok(changed < FRAMES / 2, 'and tells what has changed');
  receive(scan.tellChanged(), received);
  await guest.control.pause();
  receive(await scan.finish(), received);
  t.ok(guest.tags().equals(received.tags));
});

void t.test('closed meanwhile it ends, and leaves nothing in the guest', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 1000);
  const scan = new GuestScan(makeTags(t, guest), exact);
  const building = scan.build();
  scan.close();
  await t.rejects(building, { code: 'PT_CANCELLED' });
  t.same(native().findUserfaults(guest.record.pid), []);
});

void t.test('what is punched out of its memory, and only read then, is not told as it was', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 50_000);
  const scan = new GuestScan(makeTags(t, guest), exact);
  t.teardown(() => scan.close());
  const punch = async (round: number): Promise<void> => {
    // at every sixteenth of memory, also where the guest reads and does not write
    for (let part = 0; part < 16; part++) {
      const at = ((part * FRAMES) / 16 + round * 64) * TAG_PAGE;
      const range = ['--offset', `${at}`, '--length', `${64 * TAG_PAGE}`];
      execFileSync('fallocate', ['--punch-hole', ...range, guest.record.files[0]!.path]);
      const first = at / TAG_PAGE;
      // a read brings a page of zeros, and is no write
      await guest.control.touch(first, 64);
    }
  };
  await scan.build();
  const told = [...scan.tell([0, scan.manifest.chunks])];
  for (let round = 0; round < 3; round++) {
    await punch(round);
    await scan.catchUp();
  }
  await punch(3);
  await guest.control.pause();
  const received = receive([...told, ...(await scan.finish())]);
  t.ok(guest.tags().equals(received.tags));
});

void t.test('a write to the memory file by a call is not missed', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 0);
  const scan = new GuestScan(makeTags(t, guest), exact);
  t.teardown(() => scan.close());
  await scan.build();
  const told = scan.tell([0, scan.manifest.chunks]);
  const fd = openSync(guest.record.files[0]!.path, 'r+');
  t.teardown(() => closeSync(fd));
  for (const byte of [33, 34]) {
    writeSync(fd, Buffer.alloc(TAG_PAGE, byte), 0, TAG_PAGE, 7 * TAG_PAGE);
    if (byte === 33) t.equal((await scan.rescan()).changed, 1);
  }
  t.ok(guest.tags().equals(receive([...told, ...(await scan.finish())]).tags));
});

void t.test('memory that is mapped in several pieces is tracked like any other', { skip }, async (t) => {
  const guest = await startTagged(t, MIB, 20_000, '--regions', '3');
  const tags = makeTags(t, guest);
  const scan = new GuestScan(tags, exact);
  t.teardown(() => scan.close());
  await scan.build();
  t.ok(tags.tracked);
  const told = scan.tell([0, scan.manifest.chunks]);
  const { operations } = await guest.control.status();
  while ((await guest.control.status()).operations < operations + 100);
  t.ok((await scan.rescan()).tagged < FRAMES, 'it says what was written');
  await guest.control.pause();
  t.ok(guest.tags().equals(receive([...told, ...(await scan.finish())]).tags));
});
