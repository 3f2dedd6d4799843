/** The pager with the shared-page cache: who gets a page from where, and what is never installed. */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { writeManifest } from '../../src/pages/manifest-file.ts';
import { readKeyFile, keyMark } from '../../src/pages/key-file.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { runCli } from '../cli/harness.ts';
import { scratch, type Guest } from '../guests/embedded-support.ts';
import { bytesOf } from '../pages/support.ts';
import {
  endVm,
  guestHash,
  hashes,
  HUGE,
  memoryFile,
  PAGE,
  reserveHuge,
  startPager,
  startVm,
  stillWaits,
  touched,
  type PagerProcess,
} from './support.ts';

const MIB = 1024 * 1024;
const FRAMES = 512;
t.setTimeout(900_000);

const ZERO = guestHash(new Uint8Array(PAGE));

interface Files {
  folder: string;
  key: string;
  cache: string;
}

function files(t: Test): Files {
  const folder = scratch(t);
  const key = join(folder, 'key');
  writeFileSync(key, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
  return { folder, key, cache: join(folder, 'cache') };
}

/** A snapshot in a folder of its own. Every eighth page is zero; every fifth of `other`'s is its own. */
function snapshot({ folder }: Files, name: string, other?: Buffer): { folder: string; path: string; content: Buffer } {
  const own = join(folder, name);
  mkdirSync(own);
  const content = randomBytes(FRAMES * PAGE);
  for (let frame = 0; frame < FRAMES; frame++) {
    const page = content.subarray(frame * PAGE, (frame + 1) * PAGE);
    if (frame % 8 === 7) page.fill(0);
    // elsewhere than in the other: shared by content, not by place
    else if (other !== undefined && frame % 5 !== 0) other.copy(page, 0, ((frame + 16) % FRAMES) * PAGE);
  }
  const path = join(own, 'memory');
  writeFileSync(path, content);
  return { folder: own, path, content };
}

const cacheArgs = ({ cache, key }: Files, slots = 4 * FRAMES): string[] => [
  ...['--cache', cache, '--cache-size', String(bytesOf(slots)), '--domain-key', key],
];

interface Told {
  cached: number;
  installed: number;
  mismatches: number;
}

/** Ends the VM, and gives what the pager tells of it. */
async function figures(pager: PagerProcess, guest: Guest, nth = 1): Promise<Told> {
  await endVm(guest);
  await pager.says(new RegExp(`(the VM is gone[^]*){${nth}}`));
  const lines = pager.said().split('\n');
  const line = lines.filter((text) => text.includes('the VM is gone'))[nth - 1]!;
  return JSON.parse(line) as Told;
}

/** Different pages of `content` that are not zero. */
const distinct = (content: Buffer): number => new Set(hashes(content).filter((hash) => hash !== ZERO)).size;

void t.test('the second VM of a snapshot has every page from the cache', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const want = hashes(content);
  const full = want.filter((hash) => hash !== ZERO).length;
  for (const fill of [[], ['--no-fill']]) {
    rmSync(made.cache, { force: true });
    const pager = await startPager(t, folder, path, [...cacheArgs(made), ...fill]);
    t.equal(statSync(made.cache).mode & 0o777, 0o600);
    const first = await startVm(t, folder, pager.socket, FRAMES * PAGE);
    if (fill.length === 0) await pager.says(/every page is there/);
    t.same(await touched(first, 0, FRAMES), want);
    t.match(await figures(pager, first), { cached: 0, installed: full, mismatches: 0 });
    const second = await startVm(t, folder, pager.socket, FRAMES * PAGE);
    if (fill.length === 0) await pager.says(/(every page is there[^]*){2}/);
    t.same(await touched(second, 0, FRAMES), want);
    t.match(await figures(pager, second, 2), { cached: full, installed: full, mismatches: 0 });
    const { code, stderr } = await pager.end();
    t.equal(code, 0, stderr);
    t.notMatch(stderr, /"level":"(warn|error|fatal)"/);
  }
});

void t.test('snapshots share by content, each on its socket; the cache outlives the pager', async (t) => {
  const made = files(t);
  const a = snapshot(made, 'a');
  const b = snapshot(made, 'b', a.content);
  const shared = new Set(hashes(a.content));
  const inBoth = hashes(b.content).filter((hash) => hash !== ZERO && shared.has(hash)).length;
  t.ok(inBoth > FRAMES / 2);
  const socketB = join(b.folder, 's');
  const both = ['--listen', socketB, '--memory', b.path, '--no-fill'];
  const pager = await startPager(t, a.folder, a.path, [...cacheArgs(made), ...both]);
  const vmA = await startVm(t, made.folder, pager.socket, FRAMES * PAGE);
  t.same(await touched(vmA, 0, FRAMES), hashes(a.content));
  const vmB = await startVm(t, made.folder, socketB, FRAMES * PAGE);
  t.same(await touched(vmB, 0, FRAMES), hashes(b.content));
  t.match(await figures(pager, vmB), { cached: inBoth });
  await endVm(vmA);
  const { code, stdout } = await pager.end();
  t.equal(code, 0);
  t.equal(stdout.split('\n').filter((line) => line.startsWith('pager ready on ')).length, 2);
  t.notOk(existsSync(socketB));

  const again = await startPager(t, b.folder, b.path, [...cacheArgs(made), '--no-fill']);
  const vm = await startVm(t, made.folder, again.socket, FRAMES * PAGE);
  t.same(await touched(vm, 0, FRAMES), hashes(b.content));
  const full = hashes(b.content).filter((hash) => hash !== ZERO).length;
  t.match(await figures(again, vm), { cached: full });
  await again.end();
});

void t.test('without a key file nothing is left of a run', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const args = ['--cache', made.cache, '--cache-size', String(bytesOf(FRAMES)), '--no-fill'];
  const pager = await startPager(t, folder, path, args);
  const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
  t.same(await touched(guest, 0, 64), hashes(content.subarray(0, 64 * PAGE)));
  const page = content.subarray(3 * PAGE, 4 * PAGE);
  t.ok(readFileSync(made.cache).includes(page), 'it is kept while the pager runs');
  const { code } = await pager.end();
  t.equal(code, 0);
  t.notOk(readFileSync(made.cache).includes(page), 'and erased with it');
});

void t.test(
  'a page that is not the snapshot’s is never installed; its frame waits until the file is put back',
  async (t) => {
    const made = files(t);
    const { folder, path, content } = snapshot(made, 'a');
    const want = hashes(content);
    const manifest = join(folder, 'manifest');
    t.match(await runCli(t, ['manifest', path, '--out', manifest, '--domain-key', made.key]), { code: 0 });
    const pages = [9, 10, 300];
    const changed = Buffer.from(content);
    for (const frame of pages) changed[frame * PAGE + 17]! ^= 1;
    changed.fill(1, 15 * PAGE, 16 * PAGE); // of zeros, by its tag: not looked at
    writeFileSync(path, changed, { flag: 'r+' });
    for (const fill of [['--no-fill'], []]) {
      const pager = await startPager(t, folder, path, [...cacheArgs(made), '--manifest', manifest, ...fill]);
      const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
      const touch = guest.control.touch(10, 1, { timeoutMs: 120_000 });
      t.ok(await stillWaits(touch, () => touched(guest, 20, 32)), 'it waits');
      await pager.says(/"level":"error".*PT_PAGE_MISMATCH.*frame \d+ of the memory file is not the page/);
      t.same(await touched(guest, 11, 289), want.slice(11, 300), 'everything else is served');
      if (fill.length === 0) {
        // the fill is not held up by what it cannot get
        t.same(await touched(guest, 301, FRAMES - 301), want.slice(301), 'everything else is served');
      }
      writeFileSync(path, content, { flag: 'r+' });
      t.equal((await touch)[0]?.hash, want[10]);
      t.same(await touched(guest, 0, FRAMES), want, 'all goes on when the file is back');
      const { mismatches } = await figures(pager, guest);
      t.ok(fill.length > 0 ? mismatches === 1 : mismatches >= 1, `${mismatches} counted`);
      const { code } = await pager.end();
      t.equal(code, 0);
      // for the next round: nothing of it in the cache, and the file changed again
      rmSync(made.cache);
      writeFileSync(path, changed, { flag: 'r+' });
    }

    // What is in the cache is the snapshot's, whatever the file holds by now.
    writeFileSync(path, content, { flag: 'r+' });
    const warm = await startPager(t, folder, path, [...cacheArgs(made), '--manifest', manifest]);
    const first = await startVm(t, folder, warm.socket, FRAMES * PAGE);
    await warm.says(/every page is there/);
    await endVm(first);
    writeFileSync(path, randomBytes(content.length), { flag: 'r+' });
    const second = await startVm(t, folder, warm.socket, FRAMES * PAGE);
    t.same(await touched(second, 0, FRAMES), want);
  },
);

void t.test('a cache that is too small, and one that is cut off while it is used: slower, never wrong', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const want = hashes(content);
  for (const fill of [[], ['--no-fill']]) {
    rmSync(made.cache, { force: true });
    const pager = await startPager(t, folder, path, [...cacheArgs(made, 64), ...fill]);
    for (let nth = 1; nth <= 2; nth++) {
      const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
      t.same(await touched(guest, 0, FRAMES), want);
      const { cached } = await figures(pager, guest, nth);
      t.ok(cached < FRAMES / 2, `${cached} from the cache`);
    }
    const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
    t.same(await touched(guest, 0, 16), want.slice(0, 16));
    truncateSync(made.cache, 2 * PAGE);
    t.same(await touched(guest, 0, FRAMES), want);
    await endVm(guest);
    const { code, stderr } = await pager.end();
    t.equal(code, 0, stderr);
    if (fill.length > 0) t.match(stderr, /"lost":true/);
  }
});

void t.test('the memory file shrinks: what is lost waits, all goes on when it is back', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const want = hashes(content);
  for (const fill of [['--no-fill'], []]) {
    rmSync(made.cache, { force: true });
    const pager = await startPager(t, folder, path, [...cacheArgs(made), ...fill]);
    const vm = await startVm(t, folder, pager.socket, FRAMES * PAGE);
    await pager.says(/serving a VM/);
    truncateSync(path, (FRAMES / 2) * PAGE + 100);
    const touch = vm.control.touch(FRAMES - 3, 1, { timeoutMs: 120_000 });
    const waits = await stillWaits(touch, () => touched(vm, 0, 32));
    if (fill.length > 0) {
      t.ok(waits, 'never zeros');
      await pager.says(/the memory file ends before frame/);
      truncateSync(path, content.length);
      await pager.says(/is not the page that its manifest names|the memory file ends/);
      t.ok(await stillWaits(touch, () => touched(vm, 32, 8)), 'holes are not taken for its pages');
    }
    writeFileSync(path, content, { flag: 'r+' });
    t.equal((await touch)[0]?.hash, want[FRAMES - 3]);
    t.same(await touched(vm, 0, FRAMES), want);
    await endVm(vm);
    t.match(await pager.end(), { code: 0 });
  }
});

void t.test('what is refused, before anybody can connect', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const other = snapshot(made, 'b');
  const manifest = join(folder, 'manifest');
  t.match(await runCli(t, ['manifest', path, '--out', manifest, '--domain-key', made.key]), { code: 0 });
  const listen = join(folder, 's');
  const refused = async (pattern: RegExp, args: string[], code = 1): Promise<void> => {
    const done = await runCli(t, ['pager', '--listen', listen, ...args]);
    t.match(done.stderr, pattern);
    t.equal(done.code, code, done.stderr);
    t.notOk(existsSync(listen));
  };
  const cached = ['--memory', path, ...cacheArgs(made)];

  const good = readFileSync(manifest);
  const bad = (name: string, change: (bytes: Buffer) => Buffer | undefined): string => {
    const bytes = Buffer.from(good);
    const file = join(folder, name);
    writeFileSync(file, change(bytes) ?? bytes);
    return file;
  };
  const edits: [RegExp, string][] = [
    [/has format 9/, bad('format', (bytes) => void bytes.writeUInt32LE(9, 4))],
    [/has tags of version 7/, bad('version', (bytes) => void bytes.writeUInt32LE(7, 8))],
    [/is no manifest/, bad('magic', (bytes) => void bytes.writeUInt32LE(9, 0))],
    [/does not match its own digest/, bad('digest', (bytes) => void (bytes[20]! ^= 1))],
    [
      /is damaged in chunk|does not match its own digest|has a wrong length/,
      bad('chunk', (bytes) => void (bytes[bytes.length - 40]! ^= 1)),
    ],
    [/has a wrong length of chunk 0/, bad('short', (bytes) => bytes.subarray(0, bytes.length - 1))],
    [/goes on after its last chunk/, bad('long', (bytes) => Buffer.concat([bytes, Buffer.alloc(1)]))],
    [/has a wrong length of chunk 0/, bad('lengths', (bytes) => void bytes.writeUInt32LE(0xffff_ffff, 80))],
    [/names 0 frames/, bad('frames', (bytes) => void bytes.writeUInt32LE(0, 12))],
  ];
  for (const [pattern, file] of edits) {
    await refused(new RegExp(`PT_MANIFEST_INVALID: \\S+ (${pattern.source})`), [...cached, '--manifest', file]);
  }

  // a memory file that is not the manifest's, by its length
  const longer = join(folder, 'longer');
  writeManifest(longer, new Manifest(FRAMES + 1), keyMark(readKeyFile(made.key)));
  await refused(/PT_MANIFEST_INVALID: .*longer is of a memory of \d+ bytes/, [...cached, '--manifest', longer]);
  const otherKey = join(folder, 'other-key');
  writeFileSync(otherKey, randomBytes(32).toString('hex'), { mode: 0o600 });
  const foreign = ['--memory', path, '--cache', made.cache, '--cache-size', String(bytesOf(4 * FRAMES))];
  await refused(/is not of the domain key:/, [...foreign, '--domain-key', otherKey, '--manifest', manifest]);

  // keys
  const open = join(folder, 'open-key');
  writeFileSync(open, randomBytes(32).toString('hex'), { mode: 0o644 });
  await refused(/PT_NO_PERMISSION: .*may be read by others/, [...foreign, '--domain-key', open]);
  const short = join(folder, 'short-key');
  writeFileSync(short, 'abcdef', { mode: 0o600 });
  await refused(/does not hold a key/, [...foreign, '--domain-key', short], 2);

  // memory files
  const ragged = join(folder, 'ragged');
  writeFileSync(ragged, Buffer.alloc(5000));
  await refused(/PT_MEMORY_FILE: .*no whole pages/, ['--memory', ragged, ...cacheArgs(made)]);

  // what does not go together
  const two = ['--memory', path, '--memory', other.path];
  await refused(/one --listen for each --memory/, two, 2);
  await refused(/go together/, ['--memory', path, '--cache', made.cache], 2);
  await refused(/of use with --cache, or with --from/, ['--memory', path, '--domain-key', made.key], 2);
  await refused(/needs the --domain-key/, [...foreign, '--manifest', manifest], 2);

  // cache files
  await refused(/PT_CACHE_FILE/, ['--memory', path, '--cache', path, '--cache-size', String(bytesOf(64))]);
  t.ok(readFileSync(path).equals(content), 'a memory file is never taken for a cache');
  const sized = ['--cache', made.cache, '--cache-size', String(bytesOf(64)), '--domain-key', made.key];
  await refused(/PT_CACHE_FILE/, ['--memory', path, ...sized]);
});

void t.test('two pagers on one cache: the second is refused, the first goes on', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  const pager = await startPager(t, folder, path, cacheArgs(made));
  const listen = join(folder, 'second');
  const second = await runCli(t, ['pager', '--listen', listen, '--memory', path, ...cacheArgs(made)]);
  t.match(second, { code: 1, stderr: /PT_CACHE_IN_USE/ });
  t.notOk(existsSync(listen));
  const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
  t.same(await touched(guest, 0, FRAMES), hashes(content));
});

void t.test('a cache for which there is no room', async (t) => {
  const made = files(t);
  const { folder, path } = snapshot(made, 'a');
  const small = mkdtempSync('/tmp/pt-small-');
  t.teardown(() => rmSync(small, { recursive: true, force: true }));
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=4M', 'tmpfs', small]).status !== 0) {
    t.comment('a tmpfs can not be mounted here');
    return;
  }
  t.teardown(() => spawnSync('umount', [small]));
  const cache = join(small, 'cache');
  const args = ['--memory', path, '--cache', cache, '--cache-size', String(8 * MIB)];
  const refused = await runCli(t, ['pager', '--listen', join(folder, 's'), ...args]);
  t.match(refused, { code: 1, stderr: /PT_NO_SPACE/ });
  t.notOk(existsSync(cache), 'nothing is left behind');
});

void t.test('what repeats in a snapshot is in the cache once', async (t) => {
  const made = files(t);
  const { folder, path, content } = snapshot(made, 'a');
  for (let frame = 64; frame < FRAMES; frame++)
    content.copyWithin(frame * PAGE, (frame % 64) * PAGE, (frame % 64) * PAGE + PAGE);
  writeFileSync(path, content);
  const pager = await startPager(t, folder, path, cacheArgs(made, 64));
  const guest = await startVm(t, folder, pager.socket, FRAMES * PAGE);
  await pager.says(/every page is there/);
  t.same(await touched(guest, 0, FRAMES), hashes(content));
  await endVm(guest);
  const { stderr } = await pager.end();
  const told = stderr.split('\n').find((line) => line.includes('the cache, so far'))!;
  t.match(JSON.parse(told), { used: distinct(content), insertions: distinct(content), evictions: 0 });
});

void t.test('huge pages come from the file, each part checked', async (t) => {
  const count = 3;
  if (!reserveHuge(t, count)) return;
  const made = files(t);
  const { path, content } = memoryFile(made.folder, count * HUGE, HUGE);
  content.fill(0, 2 * HUGE);
  writeFileSync(path, content);
  const want = hashes(content, HUGE);
  const manifest = join(made.folder, 'manifest');
  t.match(await runCli(t, ['manifest', path, '--out', manifest, '--domain-key', made.key]), { code: 0 });
  const changed = Buffer.from(content);
  changed[HUGE + 300 * PAGE + 5]! ^= 1;
  writeFileSync(path, changed, { flag: 'r+' });
  const pager = await startPager(t, made.folder, path, [...cacheArgs(made), '--manifest', manifest]);
  const guest = await startVm(t, made.folder, pager.socket, count * HUGE, ['--private', '--page-size', '2M']);
  await pager.says(/the cache cannot serve a VM with huge pages/);
  const touch = guest.control.touch(1, 1, { timeoutMs: 120_000 });
  t.ok(await stillWaits(touch, async () => t.same(await touched(guest, 2, 1), want.slice(2))));
  t.same(await touched(guest, 0, 1), want.slice(0, 1));
  await pager.says(/PT_PAGE_MISMATCH.*frame 1 of the memory file/);
  writeFileSync(path, content, { flag: 'r+' });
  t.equal((await touch)[0]?.hash, want[1]);
  t.match(await figures(pager, guest), { cached: 0 });
});
