/**
 * Held pages and the score on the disk, so that both outlive the agent:
 *
 *   "PTHELD01" │ rows 4 │ bytes of the score 4 │ score, JSON │ rows × 48 │ SHA-256 of all before, 32
 *   row          tag 16 │ domain 4 │ age 8 │ arrivals 4 │ guests 4 │ likelihood 4 │ wire bytes 2 │ served 2 │ class 1 │ state 1 │ 0 2
 *
 * Little endian. Written beside the old one and renamed over it. One that is torn, altered or of another version is dropped: its pages stay
 * in the cache as ordinary ones, and the score begins anew. Times are ages, as a monotonic clock doesn't outlive the process: what passes
 * between two runs is not counted.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { writeWhole } from '../domains/files.ts';
import { asPagetideError } from '../errors.ts';
import { FREE, HELD, UNPAID, wordsOf, type HeldPages } from './held-pages.ts';
import { Turns } from './pieces.ts';
import { PAGE_CLASSES, type ScoreRecord } from './score.ts';

const MAGIC = Buffer.from('PTHELD01');
const HEAD = 16;
const ROW = 48;
const CHECK = 32;
/** Rows between two looks at the time. */
const SOME = 2048;

/**
 * Writes the file; resolves when it is on the disk. Rows that change meanwhile are written as they were or as they are.
 * @throws PagetideError `PT_NO_SPACE`, `PT_IO`
 */
export async function writeHeld(
  path: string,
  pages: HeldPages,
  score: readonly ScoreRecord[],
  nowMs: number,
): Promise<void> {
  const turns = new Turns();
  const json = Buffer.from(JSON.stringify(score));
  const pieces: Buffer[] = [];
  let rows = 0;
  for (let from = 0; from < pages.index.rows; from += SOME) {
    await turns.next();
    const piece = rowsFrom(pages, from, nowMs);
    rows += piece.length / ROW;
    pieces.push(piece);
  }
  const head = Buffer.alloc(HEAD);
  MAGIC.copy(head);
  head.writeUInt32LE(rows, 8);
  head.writeUInt32LE(json.length, 12);
  const hash = createHash('sha256');
  const whole = [head, json, ...pieces];
  for (const piece of whole) {
    await turns.next();
    hash.update(piece);
  }
  await writeWhole(path, Buffer.concat([...whole, hash.digest()]));
}

/**
 * Reads the file into `pages`, which are empty; resolves to the score. Undefined: there is none.
 * @throws PagetideError `PT_IO`: it can't be read, or is not what was written; nothing was taken over
 */
export async function readHeld(path: string, pages: HeldPages, nowMs: number): Promise<ScoreRecord[] | undefined> {
  let file: Buffer;
  try {
    file = await readFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw asPagetideError(error, 'PT_IO', `cannot read ${path}`);
  }
  const turns = new Turns();
  const damaged = (): Error =>
    asPagetideError(new Error('damaged, or cut off'), 'PT_IO', `${path} is not what was written`);
  if (file.length < HEAD + CHECK || !file.subarray(0, 8).equals(MAGIC)) throw damaged();
  const rows = file.readUInt32LE(8);
  const first = HEAD + file.readUInt32LE(12);
  if (file.length !== first + rows * ROW + CHECK) throw damaged();
  const hash = createHash('sha256');
  for (let at = 0; at < file.length - CHECK; at += SOME * ROW) {
    await turns.next();
    hash.update(file.subarray(at, Math.min(file.length - CHECK, at + SOME * ROW)));
  }
  if (!timingSafeEqual(hash.digest(), file.subarray(file.length - CHECK))) throw damaged();
  const score = JSON.parse(file.toString('utf8', HEAD, first)) as ScoreRecord[];
  for (let row = 0; row < rows; row++) {
    if (row % 256 === 0) await turns.next();
    restoreRow(pages, file, first + row * ROW, nowMs);
  }
  return score;
}

function rowsFrom(pages: HeldPages, from: number, nowMs: number): Buffer {
  const end = Math.min(pages.index.rows, from + SOME);
  const piece = Buffer.alloc((end - from) * ROW);
  let at = 0;
  for (let row = from; row < end; row++) {
    if (pages.state(row) === FREE) continue;
    const kept = pages.keptRow(row, nowMs);
    piece.set(pages.index.tagsOf([row]), at);
    piece.writeUInt32LE(kept.domain, at + 16);
    piece.writeDoubleLE(kept.ageMs, at + 20);
    piece.writeUInt32LE(Math.min(0xffff_ffff, Math.max(0, kept.arrivals)), at + 28);
    piece.writeUInt32LE(kept.guests, at + 32);
    piece.writeFloatLE(kept.likelihood, at + 36);
    piece.writeUInt16LE(kept.wireBytes, at + 40);
    piece.writeUInt16LE(kept.served, at + 42);
    piece[at + 44] = PAGE_CLASSES.indexOf(kept.class);
    piece[at + 45] = kept.state;
    at += ROW;
  }
  return piece.subarray(0, at);
}

function restoreRow(pages: HeldPages, file: Buffer, at: number, nowMs: number): void {
  const { words } = wordsOf(file.subarray(at, at + 16));
  const kept = {
    state: file[at + 45] === UNPAID ? (UNPAID as typeof UNPAID) : (HELD as typeof HELD),
    domain: file.readUInt32LE(at + 16),
    ageMs: file.readDoubleLE(at + 20),
    arrivals: file.readUInt32LE(at + 28) & 0x7fff_ffff,
    guests: file.readUInt32LE(at + 32),
    likelihood: file.readFloatLE(at + 36),
    wireBytes: file.readUInt16LE(at + 40),
    served: file.readUInt16LE(at + 42),
    class: PAGE_CLASSES[file[at + 44]!] ?? 'pair',
  };
  pages.restore(words, 0, kept, nowMs);
}
