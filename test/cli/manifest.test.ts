/** `pagetide manifest`: what it counts, what it writes, what it refuses. */
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync, chmodSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { startApi } from '../agent/api-harness.ts';
import { guestInfo, migrationInfo } from '../agent/fake-service.ts';
import { scratch } from '../guests/embedded-support.ts';
import { cluster } from '../support/cluster.ts';
import { guestFaults, startGuest } from '../support/migrate.ts';
import type { ManifestResult } from '../../src/cli/commands/manifest-show.ts';
import { runCli } from './harness.ts';

t.setTimeout(300_000);

const PAGE = 4096;

/** A memory file: number 0 is the zero page, each other number a page of random content, the same in every file. */
const contents = new Map<number, Buffer>();
function memoryOf(folder: string, name: string, pages: readonly number[]): string {
  const path = join(folder, name);
  const all = pages.map((page) => {
    if (page === 0) return Buffer.alloc(PAGE);
    if (!contents.has(page)) contents.set(page, randomBytes(PAGE));
    return contents.get(page)!;
  });
  writeFileSync(path, Buffer.concat(all));
  return path;
}

function keyFile(folder: string, name = 'key'): string {
  const path = join(folder, name);
  writeFileSync(path, randomBytes(32).toString('hex'), { mode: 0o600 });
  return path;
}

async function json(t: Test, args: string[], env?: Record<string, string>): Promise<ManifestResult> {
  const { code, stdout, stderr } = await runCli(t, ['manifest', '--json', ...args], env);
  t.equal(code, 0, stderr);
  return JSON.parse(stdout) as ManifestResult;
}

async function refused(t: Test, args: string[], pattern: RegExp, env?: Record<string, string>): Promise<void> {
  const { code, stdout, stderr } = await runCli(t, ['manifest', ...args], env);
  t.match(stderr, pattern);
  t.not(code, 0);
  t.equal(stdout, '');
}

void t.test('zero, different and repeated pages; what another has, by content and in place', async (t) => {
  const folder = scratch(t);
  const a = memoryOf(folder, 'a', [0, 1, 2, 2, 3, 0, 4, 4, 4]);
  const b = memoryOf(folder, 'b', [3, 1, 9, 2, 0, 0, 0]);
  const found = await json(t, [a, '--compare', b]);
  t.match(found, {
    subject: { kind: 'file', name: a, running: false },
    frames: { frames: 9, zero: 2, distinct: 4, repeated: 3 },
    lz4: { pages: 4, sampled: 4, rawBytes: 4 * PAGE, whole: true },
    comparison: {
      with: { kind: 'file', name: b, frames: 7 },
      shared: 4,
      inPlace: 2,
      sharedDistinct: 3,
      missing: 3,
      missingDistinct: 1,
      sharedChunks: 0,
      chunks: 1,
      lz4: { pages: 1, sampled: 1 },
    },
  });
  t.equal(found.lz4!.packedBytes, found.lz4!.rawBytes, 'random content does not shrink');

  const { stdout } = await runCli(t, ['manifest', a, '--compare', b]);
  t.match(stdout, /of +\S*\/a: memory file, 36 KiB\ncompared with +\S*\/b: memory file, 28 KiB\n/);
  t.match(
    stdout,
    /\nzero +2 +0\.0 +22\.2\ndifferent pages +4 +0\.0 +44\.4\nrepeats of them +3 +0\.0 +33\.3\nall +9 +0\.0 +100\.0\n/,
  );
  t.match(stdout, /\nthe other has +4 .*\n +in that frame +2 .*\nthe other lacks +3 .*\n +different ones +1 /);
  t.match(stdout, /different pages: shrink to 100\.0%, all 4 packed\n/);
});

void t.test('sizes that are no multiple of a chunk, and an all-zero memory', async (t) => {
  const folder = scratch(t);
  for (const frames of [1, 511, 512, 513, 1025]) {
    const path = memoryOf(
      folder,
      `f${frames}`,
      Array.from({ length: frames }, (_, n) => n + 1),
    );
    t.match(await json(t, [path, '--compare', path]), {
      frames: { frames, zero: 0, distinct: frames, repeated: 0 },
      comparison: {
        shared: frames,
        inPlace: frames,
        missing: 0,
        chunks: Math.ceil(frames / 512),
        sharedChunks: Math.ceil(frames / 512),
      },
    });
  }
  const zeros = join(folder, 'zeros');
  writeFileSync(zeros, '');
  truncateSync(zeros, 1000 * PAGE);
  t.match(await json(t, [zeros]), { frames: { frames: 1000, zero: 1000, distinct: 0 }, lz4: { pages: 0, sampled: 0 } });
  t.equal(statSync(zeros).blocks, 0, 'its holes are holes still');
  const { stdout } = await runCli(t, ['manifest', zeros]);
  t.match(stdout, /different pages: none\n/);
});

void t.test('a memory in which every page is alike', async (t) => {
  const folder = scratch(t);
  const alike = memoryOf(folder, 'alike', new Array<number>(1300).fill(1));
  const other = memoryOf(folder, 'other', [2, 1]);
  const { frames, lz4, comparison } = await json(t, [alike, '--compare', other]);
  t.match(frames, { frames: 1300, zero: 0, distinct: 1, repeated: 1299 });
  t.match(lz4, { pages: 1, sampled: 1 });
  t.match(comparison, { shared: 1300, sharedDistinct: 1, inPlace: 1, missing: 0 });
  const key = keyFile(folder);
  const out = join(folder, 'alike.manifest');
  await json(t, [alike, '--out', out, '--domain-key', key]);
  t.ok(statSync(out).size < 200, `${statSync(out).size} bytes of manifest`);
  t.match(await json(t, [out, '--domain-key', key]), { frames: { frames: 1300, distinct: 1 } });
});

void t.test('of many pages a sample is packed, and it says so', async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'big');
  const pages = Buffer.alloc(20_000 * PAGE);
  // half of each page is text that shrinks to next to nothing
  for (let n = 0; n < 20_000; n++) {
    randomBytes(PAGE / 2).copy(pages, n * PAGE);
    pages.fill('x', n * PAGE + PAGE / 2, (n + 1) * PAGE);
  }
  writeFileSync(path, pages);
  const { lz4 } = await json(t, [path]);
  t.match(lz4, { pages: 20_000, sampled: 64 * 256, rawBytes: 64 * 2 ** 20, whole: false });
  const ratio = lz4!.packedBytes / lz4!.rawBytes;
  t.ok(ratio > 0.5 && ratio < 0.53, String(ratio));
  t.match((await runCli(t, ['manifest', path])).stdout, /shrink to 5\d\.\d%, a sample of 16384 of 20000 packed/);
});

void t.test('a manifest that is written says the same later', async (t) => {
  const folder = scratch(t);
  const key = keyFile(folder);
  const a = memoryOf(folder, 'a', [0, 11, 12, 12, 13]);
  const b = memoryOf(folder, 'b', [13, 11, 19]);
  const out = join(folder, 'a.manifest');
  const direct = await json(t, [a, '--compare', b, '--out', out, '--domain-key', key]);
  t.equal(direct.out, out);
  t.equal(statSync(out).mode & 0o777, 0o600);
  t.notOk(readFileSync(out).includes(Buffer.from(readFileSync(key, 'latin1'), 'hex')), 'the secret is not in it');
  const later = await json(t, [out, '--compare', b, '--domain-key', key]);
  t.match(later, { subject: { kind: 'manifest', name: out }, frames: direct.frames, lz4: null });
  t.match(later.comparison, { shared: 2, inPlace: 1, missing: 2, missingDistinct: 1, lz4: null });
  const turned = await json(t, [b, '--compare', out, '--domain-key', key]);
  t.match(turned.comparison, { with: { kind: 'manifest' }, shared: 2, missing: 1, lz4: { pages: 1 } });
  t.match((await runCli(t, ['manifest', out, '--domain-key', key])).stdout, /unknown, a manifest holds no pages/);

  // written over by the next one, whole
  await json(t, [b, '--out', out, '--domain-key', key]);
  t.match(await json(t, [out, '--domain-key', key]), { frames: { frames: 3 } });
});

void t.test('what is refused, and nothing is written', async (t) => {
  const folder = scratch(t);
  const env = { PAGETIDE_AGENT: `unix:${join(folder, 'none.sock')}` };
  const key = keyFile(folder);
  const a = memoryOf(folder, 'a', [1, 2]);
  const out = join(folder, 'out');
  t.match(await runCli(t, ['manifest', a, '--out', out, '--domain-key', key]), { code: 0 });

  await refused(t, [join(folder, 'none')], /PT_MEMORY_FILE: cannot read/);
  await refused(t, ['web9'], /PT_PEER_UNREACHABLE: there is no file web9 here; as a guest: no agent at/, env);
  await refused(t, [folder], /PT_MEMORY_FILE: .*no regular file/);
  const ragged = join(folder, 'ragged');
  writeFileSync(ragged, Buffer.alloc(PAGE + 1, 1));
  await refused(t, [ragged], /PT_MEMORY_FILE: .*has 4097 bytes: no whole pages/);
  writeFileSync(ragged, '');
  await refused(t, [ragged], /PT_MEMORY_FILE: .*has 0 bytes/);
  await refused(t, [a, '--compare', ragged], /has 0 bytes/);

  await refused(t, [a, '--out', join(folder, 'x')], /PT_BAD_ARGUMENT: --out needs --domain-key/);
  await refused(t, [out], /a manifest can only be read with the --domain-key/);
  await refused(t, [a, '--compare', out], /a manifest can only be read with the --domain-key/);
  await refused(t, [out, '--domain-key', keyFile(folder, 'key2')], /PT_MANIFEST_INVALID: .*is not of the domain key:/);
  const before = readFileSync(a);
  await refused(t, [a, '--out', a, '--domain-key', key], /is there already, and is no manifest/);
  t.ok(before.equals(readFileSync(a)), 'the memory file is as it was');
  await refused(t, [a, '--out', join(folder, 'no/out'), '--domain-key', key], /PT_IO: there is no folder/);

  const bytes = readFileSync(out);
  for (const [at, pattern] of [
    [4, /has format/],
    [8, /has tags of version/],
    [16, /does not match its own digest/],
    [81, /wrong length|ends early/],
  ] as const) {
    const damaged = Buffer.from(bytes);
    damaged[at]! ^= 0x40;
    const path = join(folder, `damaged-${at}`);
    writeFileSync(path, damaged);
    await refused(t, [path, '--domain-key', key], pattern);
  }

  // keys
  await refused(t, [a, '--domain-key', join(folder, 'none')], /PT_BAD_ARGUMENT: cannot read the key file/);
  await refused(t, [a, '--domain-key', folder], /is no regular file/);
  await refused(t, [a, '--domain-key', a], /PT_NO_PERMISSION/);
  chmodSync(a, 0o600);
  await refused(t, [a, '--domain-key', a], /does not hold a key/);
  for (const mode of [0o644, 0o640, 0o602]) {
    chmodSync(key, mode);
    await refused(t, [a, '--domain-key', key], /PT_NO_PERMISSION: .*may be read by others/);
  }
});

void t.test('guests of an agent: only whole ones, and only here', async (t) => {
  const { service, socket } = await startApi(t);
  const folder = scratch(t);
  const env = { PAGETIDE_AGENT: `unix:${socket}` };
  const path = memoryOf(folder, 'ram', [0, 21, 21, 22]);
  const info = { ...guestInfo('web1'), memory: 4 * PAGE, files: [{ id: 'ram', path, size: 4 * PAGE, offset: 0 }] };
  service.showGuest = () => Promise.resolve(info);
  t.match(await json(t, ['web1'], env), {
    subject: { kind: 'guest', name: 'web1', running: true },
    frames: { frames: 4, zero: 1, distinct: 2, repeated: 1 },
  });
  // a path is never taken for a guest
  mkdirSync(join(folder, 'sub'));
  symlinkSync(memoryOf(folder, 'one', [31]), join(folder, 'sub', 'web1'));
  t.match(await json(t, [join(folder, 'sub', 'web1')], env), { subject: { kind: 'file' }, frames: { frames: 1 } });

  // in two files, frames counted through
  const second = memoryOf(folder, 'ram2', [22, 0]);
  const files = [...info.files, { id: 'high', path: second, size: 2 * PAGE, offset: 4 * PAGE }];
  service.showGuest = () => Promise.resolve({ ...info, files });
  t.match(await json(t, ['web1'], env), { frames: { frames: 6, zero: 2, distinct: 2, repeated: 2 } });

  const progress = migrationInfo('serving').progress;
  service.showGuest = () =>
    Promise.resolve({ ...info, migration: { id: '0123456789abcdef', direction: 'incoming', progress } });
  await refused(t, ['web1'], /PT_GUEST_BUSY: .*still arriving/, env);
  service.showGuest = () => Promise.resolve({ ...info, state: 'alarm' });
  await refused(t, ['web1'], /PT_GUEST_STATE: .*is alarm/, env);
  service.showGuest = () => Promise.resolve({ ...info, files: [{ ...info.files[0]!, path: join(folder, 'gone') }] });
  await refused(t, ['web1'], /PT_MEMORY_FILE: .*is not on this host/, env);
  service.showGuest = () => Promise.resolve({ ...info, files: [{ ...info.files[0]!, size: 8 * PAGE }] });
  await refused(t, ['web1'], /PT_MEMORY_FILE: .*is not on this host/, env);
  service.showGuest = () => Promise.reject(new PagetideError('PT_GUEST_UNKNOWN', 'there is no guest web1'));
  await refused(t, ['web1'], /PT_GUEST_UNKNOWN: there is no file web1 here; as a guest: there is no guest web1/, env);
  await refused(t, ['web1', '--agent', 'http://192.0.2.1:7411'], /PT_BAD_ARGUMENT: .*may be another host's/);
  // gone while it was read: what was read may have lacked pages already
  let asked = 0;
  service.showGuest = () => Promise.resolve(asked++ === 0 ? info : { ...info, state: 'gone' });
  await refused(t, ['web1'], /PT_GUEST_STATE: .*is gone/, env);
});

void t.test('real guests that run: read without disturbing them', async (t) => {
  const a = await cluster(t).agent('a');
  const env = { PAGETIDE_AGENT: `unix:${a.control}` };
  const alike = { seed: 5, writeRate: 50 };
  await startGuest(a, 'g1', alike);
  await startGuest(a, 'g2', alike);
  const folder = scratch(t);
  const out = join(folder, 'g1.manifest');
  const key = keyFile(folder);
  const found = await json(t, ['g1', '--compare', 'g2', '--out', out, '--domain-key', key], env);
  const { frames, comparison } = found;
  t.match(found, { subject: { kind: 'guest', running: true }, frames: { frames: 4096 } });
  t.equal(frames.zero + frames.distinct + frames.repeated, 4096);
  t.equal(comparison!.shared + comparison!.missing + frames.zero, 4096);
  t.ok(comparison!.shared > comparison!.missing, 'guests from the same files have most pages in common');
  t.strictSame(await guestFaults(a, 'g1'), []);
  t.strictSame(await guestFaults(a, 'g2'), []);
  const later = await json(t, ['g2', '--compare', out, '--domain-key', key], env);
  t.ok(later.comparison!.shared > later.comparison!.missing);
});
