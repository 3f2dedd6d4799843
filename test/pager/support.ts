/** Pagers as real processes, and embedded guests that hand their memory over to them. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { startCli, type Cli, type Finished } from '../cli/harness.ts';
import { spawnGuest, until, type Guest } from '../guests/embedded-support.ts';

export const PAGE = 4096;
export const HUGE = 2 * 1024 * 1024;

const MASK = (1n << 64n) - 1n;
const SALT = [0xa0761d6478bd642fn, 0xe7037ed1a0b428dbn, 0x8ebc6af09c88c6e3n, 0x589965cc75374cc3n] as const;

function fold(a: bigint, b: bigint): bigint {
  const product = a * b;
  return (product & MASK) ^ (product >> 64n);
}

/** What the embedded guest answers for a page with this content: `HashWords` of native/guest/hash.h, for whole 64 bytes. */
export function guestHash(page: Uint8Array): string {
  const words = new BigUint64Array(page.buffer.slice(page.byteOffset, page.byteOffset + page.length));
  const lanes: [bigint, bigint, bigint, bigint] = [SALT[0] ^ BigInt(page.length), SALT[1], SALT[2], SALT[3]];
  for (let at = 0; at < words.length; at += 8) {
    for (let lane = 0; lane < 4; lane++) {
      const old = lanes[lane]!;
      lanes[lane] = (fold(words[at + 2 * lane]! ^ old, words[at + 2 * lane + 1]! ^ SALT[lane]!) + old) & MASK;
    }
  }
  const [a, b, c, d] = lanes;
  const sum = fold(a ^ SALT[2], b ^ SALT[3]) ^ fold(c ^ SALT[0], d ^ SALT[1]);
  return (sum === 0n ? 1n : sum).toString(16).padStart(16, '0');
}

/** A memory file of random pages; every eighth is zero. */
export function memoryFile(folder: string, bytes: number, pageSize = PAGE): { path: string; content: Buffer } {
  const path = join(folder, 'memory');
  const content = randomBytes(bytes);
  for (let at = 7 * pageSize; at < bytes; at += 8 * pageSize) content.fill(0, at, at + pageSize);
  writeFileSync(path, content);
  return { path, content };
}

/** The hashes of all pages of `content`. */
export function hashes(content: Buffer, pageSize = PAGE): string[] {
  return Array.from({ length: content.length / pageSize }, (_, n) =>
    guestHash(content.subarray(n * pageSize, (n + 1) * pageSize)),
  );
}

export interface PagerProcess {
  cli: Cli;
  socket: string;
  /** Waits for a line of the log. */
  says: (pattern: RegExp) => Promise<void>;
  /** What it has said so far. */
  said: () => string;
  /** Ends it by SIGTERM, and gives what it said. */
  end: () => Promise<Finished>;
}

/** Starts `pagetide pager` over a memory file, or what `args` say, and waits for its socket: nothing else says that it is ready. */
export async function startPager(
  t: Test,
  folder: string,
  memory: string | undefined,
  args: string[] = [],
): Promise<PagerProcess> {
  const socket = join(folder, 'uffd.sock');
  const own = memory === undefined ? [] : ['--memory', memory];
  const cli = startCli(t, ['pager', '--listen', socket, ...own, ...args]);
  const early = cli.finished.then(({ stderr }) => {
    throw new Error(`the pager ended: ${stderr}`);
  });
  early.catch(() => undefined);
  await Promise.race([until('the socket', () => existsSync(socket), 60_000), early]);
  return {
    cli,
    socket,
    says: (pattern) => cli.says(pattern),
    said: () => cli.said(),
    end: () => {
      cli.kill('SIGTERM');
      return cli.finished;
    },
  };
}

let serial = 0;

/** Starts a guest that hands private memory over at `socket`, and waits until it answers. */
export async function startVm(
  t: Test,
  folder: string,
  socket: string,
  memorySize: number,
  args: string[] = ['--private'],
): Promise<Guest> {
  const path = join(folder, `vm-${serial++}`);
  const guest = spawnGuest(t, path, ['--memory-size', String(memorySize), '--incoming', '--handover', socket, ...args]);
  await until('the guest answers', async () => {
    if (guest.child.exitCode !== null) throw new Error(`the guest ended: ${guest.stderr()}`);
    return guest.control.status().then(
      () => true,
      () => false,
    );
  });
  return guest;
}

/** Touches `count` frames from `first` on, and gives their hashes. */
export async function touched(guest: Guest, first: number, count: number): Promise<string[]> {
  const out: string[] = [];
  for (let at = first; at < first + count; at += 128) {
    const pages = await guest.control.touch(at, Math.min(128, first + count - at), { timeoutMs: 60_000 });
    out.push(...pages.map((page) => page.hash));
  }
  return out;
}

/** Whether the guest's touch is still waiting after it was given every chance: two rounds of what serves the others. */
export async function stillWaits(touch: Promise<unknown>, other: () => Promise<unknown>): Promise<boolean> {
  let answered = false;
  void touch.then(
    () => (answered = true),
    () => (answered = true),
  );
  await other();
  await other();
  return !answered;
}

/** Kills the VMM. */
export async function endVm(guest: Guest): Promise<void> {
  const exit = once(guest.child, 'exit');
  guest.child.kill('SIGKILL');
  await exit;
}

/** Has `pages` huge pages for this test, where the machine gives them; else false, and the test says that it is skipped. */
export function reserveHuge(t: Test, pages: number): boolean {
  const knob = '/proc/sys/vm/nr_hugepages';
  const before = readFileSync(knob, 'utf8').trim();
  try {
    writeFileSync(knob, String(Number(before) + pages));
  } catch {
    // not ours to set: perhaps there are some
  }
  t.teardown(() => {
    if (readFileSync(knob, 'utf8').trim() !== before) writeFileSync(knob, before);
  });
  const free = Number(/HugePages_Free: +(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
  if (free >= pages) return true;
  t.comment(`skipped: ${free} free huge pages, ${pages} needed; as root: echo ${pages} > ${knob}`);
  return false;
}
