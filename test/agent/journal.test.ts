import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { Journal, type JournalRecord } from '../../src/agent/journal.ts';

function step(n: number, filler = ''): JournalRecord {
  const record = {
    side: 'source' as const,
    state: 'preparing' as const,
    migration: `m${n}`,
    epoch: n,
    guest: 'g',
    peer: 'http://b',
  };
  return { kind: 'migration', record, details: { filler, text: 'zwölf\n' } };
}

async function withJournal<T>(folder: string, use: (journal: Journal) => Promise<T> | T): Promise<T> {
  const journal = await Journal.open(folder);
  try {
    return await use(journal);
  } finally {
    await journal.close();
  }
}

/** The records found in a journal file of these bytes. */
function reopened(folder: string, bytes: Buffer): Promise<readonly JournalRecord[]> {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'journal'), bytes);
  return withJournal(folder, (journal) => [...journal.records()]);
}

void t.test('what was appended is there again, in order, with private modes', async (t) => {
  const folder = join(t.testdir(), 'deep', 'state');
  const guest: JournalRecord = {
    kind: 'guest',
    name: 'g',
    guest: {
      driver: 'embedded',
      pid: 7,
      startTime: 99,
      launched: true,
      files: [{ id: 'ram', path: '/dev/shm/x', size: 4096, offset: 0 }],
      pageSize: 4096,
      description: { driver: 'embedded', memory: { size: 4096, pageSize: 4096, files: [] }, config: { a: [1] } },
      local: { control: 'x.sock' },
    },
  };
  const all: JournalRecord[] = [guest, step(1), step(2), { kind: 'guest-gone', name: 'g' }];
  await withJournal(folder, async (journal) => {
    for (const record of all) await journal.append(record);
    t.same(journal.records(), all);
  });
  t.equal(statSync(folder).mode & 0o777, 0o700);
  t.equal(statSync(join(folder, 'journal')).mode & 0o777, 0o600);
  t.same(await withJournal(folder, (journal) => journal.records()), all);
  chmodSync(folder, 0o755);
  await withJournal(folder, () => t.equal(statSync(folder).mode & 0o777, 0o700, 'tightened again'));
  t.same(readdirSync(folder), ['journal'], 'no lock is left');
});

void t.test('appends that wait together are one batch', async (t) => {
  const folder = t.testdir();
  await withJournal(folder, async (journal) => {
    await Promise.all(Array.from({ length: 100 }, (_, n) => journal.append(step(n))));
    t.same(
      journal.records(),
      Array.from({ length: 100 }, (_, n) => step(n)),
    );
  });
  t.ok(readFileSync(join(folder, 'journal'), 'utf8').trim().split('\n').length < 10);
});

void t.test('a journal cut at any byte holds a prefix of what was appended, and goes on from there', async (t) => {
  const folder = t.testdir();
  const all = Array.from({ length: 6 }, (_, n) => step(n, 'x'.repeat(n * 7)));
  const ends = [0];
  await withJournal(folder, async (journal) => {
    for (const record of all) {
      await journal.append(record);
      ends.push(statSync(join(folder, 'journal')).size);
    }
  });
  const bytes = readFileSync(join(folder, 'journal'));
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length), fc.nat(200), async (cut, zeros) => {
      const kept = ends.filter((end) => end > 0 && end <= cut).length;
      const torn = Buffer.concat([bytes.subarray(0, cut), Buffer.alloc(zeros)]);
      t.same(await reopened(folder, torn), all.slice(0, kept));
      await withJournal(folder, (journal) => journal.append(step(99)));
      t.same(await withJournal(folder, (journal) => journal.records()), [...all.slice(0, kept), step(99)]);
    }),
    {
      numRuns: 60,
      examples: [
        [0, 0],
        [bytes.length - 1, 0],
        [ends[1]! + 3, 0],
        [bytes.length, 9],
      ],
    },
  );
});

void t.test('a byte that changed anywhere is damage, never a shorter journal', async (t) => {
  const folder = t.testdir();
  await withJournal(folder, async (journal) => {
    for (let n = 0; n < 3; n++) await journal.append(step(n));
  });
  const bytes = readFileSync(join(folder, 'journal'));
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 127 }), async (at, flip) => {
      const bad = Buffer.from(bytes);
      bad[at]! ^= flip;
      fc.pre(bad[at] !== 0);
      await t.rejects(reopened(folder, bad), { code: 'PT_IO', message: /damaged at byte/ });
      t.same(readFileSync(join(folder, 'journal')), bad, 'and nothing is changed');
    }),
    { numRuns: 80 },
  );
  const hole = Buffer.from(bytes);
  hole.fill(0, 20, 60);
  await t.rejects(reopened(folder, hole), { code: 'PT_IO' }, 'zeros with whole batches behind them are no torn tail');
});

void t.test('records of a newer version, or of no known shape, are refused', async (t) => {
  const folder = t.testdir();
  const write = (json: string): Promise<unknown> => {
    const hex = (value: number): string => value.toString(16).padStart(8, '0');
    const front = `${hex(Buffer.byteLength(json))} ${hex(crc32(json))} `;
    return reopened(folder, Buffer.from(`${front}${hex(crc32(front))} ${json}\n`));
  };
  t.same(await write('{"version":1,"records":[{"kind":"guest-gone","name":"g"}]}'), [
    { kind: 'guest-gone', name: 'g' },
  ]);
  await t.rejects(write('{"version":2,"records":[{"kind":"new"}]}'), {
    code: 'PT_STATE_VERSION',
    message: /newer version/,
  });
  await t.rejects(write('{"version":1,"records":[{"kind":"new"}]}'), { code: 'PT_IO' });
  await t.rejects(write('{"version":1,"records":[{"kind":"guest-gone","name":"g","more":1}]}'), { code: 'PT_IO' });
  await t.rejects(write('nonsense'), { code: 'PT_IO' });
  await withJournal(t.testdir(), async (journal) => {
    const bad = { kind: 'guest-gone', name: '' } as const;
    const good = journal.append(step(1));
    await t.rejects(journal.append(bad), { code: 'PT_BAD_ARGUMENT' });
    await good;
    t.same(journal.records(), [step(1)], 'a bad record takes no good one with it');
  });
});

void t.test('compaction keeps what it is told to, and appends go on', async (t) => {
  const folder = t.testdir();
  await withJournal(folder, async (journal) => {
    for (let n = 0; n < 20; n++) await journal.append(step(n));
    const before = statSync(join(folder, 'journal')).size;
    const during = journal.compact((records) => records.slice(-2));
    await Promise.all([during, journal.append(step(50))]);
    t.ok(statSync(join(folder, 'journal')).size < before / 4);
    await journal.append(step(51));
  });
  writeFileSync(join(folder, 'journal.new'), 'left by a crash');
  t.same(await withJournal(folder, (journal) => journal.records()), [step(18), step(19), step(50), step(51)]);
  t.same(readdirSync(folder), ['journal']);
  await withJournal(folder, (journal) => journal.compact(() => []));
  t.same(await withJournal(folder, (journal) => journal.records()), []);
});

void t.test('one folder, one agent', async (t) => {
  const folder = t.testdir();
  const journal = await Journal.open(folder);
  await t.rejects(Journal.open(folder), { code: 'PT_STATE_IN_USE' });
  await journal.close();
  await journal.close();
  await t.rejects(journal.append(step(1)), { code: 'PT_IO' });
  // more than once: one that withdraws resets connections of those that look at it, now and then
  for (let round = 0; round < 8; round++) {
    const tries = await Promise.allSettled(Array.from({ length: 6 }, () => Journal.open(folder)));
    const won = tries.filter((one) => one.status === 'fulfilled');
    t.equal(won.length, 1, 'of several at once exactly one gets it');
    for (const one of tries) if (one.status === 'rejected') t.match(one.reason, { code: 'PT_STATE_IN_USE' });
    await won[0]!.value.close();
  }
});

void t.test('the lock of a killed agent is no lock', async (t) => {
  const folder = t.testdir();
  const module = new URL('../../src/agent/journal.js', import.meta.url).href;
  const script = `const { Journal } = await import(${JSON.stringify(module)});
    await Journal.open(${JSON.stringify(folder)}); console.log('open'); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  await t.rejects(Journal.open(folder), { code: 'PT_STATE_IN_USE' });
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
  t.equal(readdirSync(folder).filter((name) => name.startsWith('lock-')).length, 1, 'it left its socket');
  await withJournal(folder, (journal) => journal.append(step(1)));
  t.same(readdirSync(folder), ['journal']);
});

void t.test('a full disk says so, and the journal goes on when there is room again', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pagetide-journal-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'pagetide-test', folder], { stdio: 'ignore' });
  } catch {
    t.comment('skipped: mounting a small tmpfs needs root');
    return;
  }
  try {
    const ballast = join(folder, 'ballast');
    await withJournal(folder, async (journal) => {
      await journal.append(step(1));
      let full: unknown;
      while (full === undefined) {
        try {
          appendFileSync(ballast, Buffer.alloc(4096, 1));
        } catch (error) {
          full = error;
        }
      }
      t.match(full, { code: 'ENOSPC' });
      await t.rejects(journal.append(step(2, 'x'.repeat(20_000))), { code: 'PT_NO_SPACE' });
      await t.rejects(
        journal.compact(() => [step(3, 'x'.repeat(20_000))]),
        { code: 'PT_NO_SPACE' },
      );
      t.same(journal.records(), [step(1)]);
      truncateSync(ballast, 0);
      await journal.append(step(4));
    });
    t.same(await withJournal(folder, (again) => again.records()), [step(1), step(4)]);
  } finally {
    execFileSync('umount', ['-l', folder]);
  }
});
