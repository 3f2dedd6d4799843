/**
 * The embedded directory of one domain, and what of it outlives the agent:
 *
 *   <state>/directory/<domain id>/snapshot     what hosts have told, as of one moment
 *   <state>/directory/<domain id>/hints.json   what operators said, and when
 *
 *   snapshot   "PTDIRSN1" │ EmbeddedDirectory.save │ SHA-256 of all before
 *
 * A snapshot is written at the end, and now and then when something has changed. One that is older than what hosts have told, or
 * missing, or not whole costs that some or all hosts tell everything again, and nothing else (embedded.ts). So it is never repaired, and there is no log:
 * a log of reports would save hosts that, after a crash alone, and would have to be made durable with each.
 *
 * Nobody tells hints again. So they are on the disk before an operator hears that they are in force. While the agent runs they expire by a
 * monotonic clock. Between two runs there is only the wall clock: what it went on by is taken off; one that went back takes nothing off.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { z } from 'zod';
import { openFolder, removeFile, writeWhole } from '../domains/files.ts';
import { asPagetideError } from '../errors.ts';
import { ByteReader, ByteWriter, malformed } from './bytes.ts';
import type { Directory, Holders, HostInfo, LackingPage, Report, ReportAnswer } from './directory.ts';
import { EmbeddedDirectory, type EmbeddedOptions, type EmbeddedStats } from './embedded.ts';
import { HINTS_LIMIT, type Hint, type HintSubject } from './hint.ts';

const SNAPSHOT = 'snapshot';
const HINTS = 'hints.json';
const MAGIC = Buffer.from('PTDIRSN1', 'latin1');
const DIGEST_BYTES = 32;
/** Written and digested at once, so that the thread is not held up by a large one. */
const PIECE_BYTES = 4 << 20;
/** Larger ones are not written: hosts tell all again. Node reads no file of 2 GiB. */
const MOST_BYTES = 1 << 30;

const hint = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('evacuate'), host: z.string(), leftMs: z.number() }),
  z.strictObject({ kind: z.literal('affinity'), guest: z.string(), hosts: z.array(z.string()), leftMs: z.number() }),
]);
const savedHints = z.strictObject({
  version: z.literal(1),
  /** Wall clock, milliseconds, when they had that long left. */
  wallMs: z.number(),
  hints: z.array(hint).max(HINTS_LIMIT),
});

export interface PersistentOptions extends EmbeddedOptions {
  /** Of one domain; it is made. */
  folder: string;
  /** Its id. */
  domain: string;
  log: Logger;
  /** Milliseconds; default `Date.now`. Looked at when hints are written and read. */
  wall?: () => number;
}

export class PersistentDirectory implements Directory {
  readonly #inner: EmbeddedDirectory;
  readonly #options: PersistentOptions;
  /** Of `changes` that are on the disk. */
  #saved: number;
  /** Writing, one after the other. Never rejects. */
  #work: Promise<void> = Promise.resolve();
  #closed = false;
  #dropped = false;

  private constructor(inner: EmbeddedDirectory, options: PersistentOptions) {
    this.#inner = inner;
    this.#options = options;
    this.#saved = inner.changes;
  }

  /**
   * Goes on from what the last run left, as far as that is whole; else begins empty.
   * @throws PagetideError `PT_IO` where the folder can't be made or read, `PT_BAD_ARGUMENT`
   */
  static async open(options: PersistentOptions): Promise<PersistentDirectory> {
    const { folder, domain, log } = options;
    const names = await openFolder(folder);
    const drop = async (name: string, thrown: unknown): Promise<void> => {
      const { code, message } = asPagetideError(thrown, 'PT_IO');
      log.warn({ domain, code }, `what the directory kept in ${join(folder, name)} is dropped: ${message}`);
      await removeFile(join(folder, name));
    };
    let inner = new EmbeddedDirectory(options);
    if (names.includes(SNAPSHOT)) {
      try {
        inner = EmbeddedDirectory.load(new ByteReader(unseal(await readFile(join(folder, SNAPSHOT)))), options);
      } catch (thrown) {
        await drop(SNAPSHOT, thrown);
      }
    }
    if (names.includes(HINTS)) {
      try {
        const text = await readFile(join(folder, HINTS), 'utf8');
        inner.restoreHints(domain, leftNow(savedHints.parse(JSON.parse(text)), wallOf(options)));
      } catch (thrown) {
        await drop(HINTS, thrown);
      }
    }
    return new PersistentDirectory(inner, options);
  }

  report(report: Report): Promise<ReportAnswer> {
    return this.#inner.report(report);
  }

  heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer> {
    return this.#inner.heartbeat(host, epoch, sequence);
  }

  holders(domain: string, tags: Uint8Array): Promise<Holders> {
    return this.#inner.holders(domain, tags);
  }

  lacking(domain: string, host: string, options: { limit: number; cursor?: string }): Promise<LackingPage> {
    return this.#inner.lacking(domain, host, options);
  }

  hosts(): Promise<HostInfo[]> {
    return this.#inner.hosts();
  }

  hints(domain: string): Promise<Hint[]> {
    return this.#inner.hints(domain);
  }

  /** In force and on the disk, or neither. @throws PagetideError `PT_BAD_ARGUMENT`, `PT_NO_SPACE`, `PT_IO`; as the next one */
  hint(domain: string, hint: Hint): Promise<void> {
    return this.#changeHints(() => this.#inner.hint(domain, hint));
  }

  withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    return this.#changeHints(() => this.#inner.withdraw(domain, subject));
  }

  removeHost(host: string): Promise<void> {
    return this.#inner.removeHost(host);
  }

  async removeDomain(domain: string): Promise<void> {
    await this.#inner.removeDomain(domain);
    await this.#changeHints(() => Promise.resolve());
    await this.save();
  }

  /** Also on the disk. @throws PagetideError `PT_NO_SPACE`, `PT_IO`: it is empty all the same, until the agent restarts */
  async empty(): Promise<void> {
    await this.#inner.empty();
    await this.save();
  }

  stats(): EmbeddedStats {
    return this.#inner.stats();
  }

  /** Writes a snapshot where something has changed since the last. @throws PagetideError `PT_NO_SPACE`, `PT_IO` */
  save(): Promise<void> {
    return this.#next(async () => {
      const { changes } = this.#inner;
      if (changes === this.#saved || this.#dropped) return;
      // one moment's state: nothing is awaited until all of it is copied
      const to = new ByteWriter();
      to.raw(MAGIC);
      this.#inner.save(to);
      const pieces = to.pieces();
      const path = join(this.#options.folder, SNAPSHOT);
      if (pieces.reduce((sum, { length }) => sum + length, 0) > MOST_BYTES) {
        this.#options.log.warn(
          { domain: this.#options.domain },
          'the directory is too large to be kept for the next run',
        );
        await removeFile(path);
      } else await writeWhole(path, sealed(pieces));
      this.#saved = changes;
    });
  }

  /** Writes what has changed. Idempotent. Does not reject: what could not be written is told again. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const { log, domain } = this.#options;
    const failed = (thrown: unknown): void => {
      const { code, message } = asPagetideError(thrown);
      log.warn({ domain, code }, `the directory is not kept for the next run: ${message}`);
    };
    await this.save().catch(failed);
    // with the time that they have left now, should the wall clock be set back until the next run
    if ((await this.#inner.hints(domain)).length > 0) await this.#next(() => this.#writeHints()).catch(failed);
    await this.#work;
    await this.#inner.close();
  }

  /** Ends without writing anything more: its domain is gone. */
  async drop(): Promise<void> {
    this.#closed = this.#dropped = true;
    await this.#work;
    await this.#inner.close();
  }

  #changeHints<T>(change: () => Promise<T>): Promise<T> {
    const { domain } = this.#options;
    return this.#next(async () => {
      const before = await this.#inner.hints(domain);
      const result = await change();
      try {
        await this.#writeHints();
      } catch (error) {
        this.#inner.restoreHints(domain, before);
        throw error;
      }
      return result;
    });
  }

  async #writeHints(): Promise<void> {
    const { folder, domain } = this.#options;
    const hints = await this.#inner.hints(domain);
    const text = JSON.stringify({ version: 1, wallMs: wallOf(this.#options), hints });
    await writeWhole(join(folder, HINTS), `${text}\n`);
  }

  #next<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#work.then(work);
    this.#work = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }
}

function wallOf({ wall = Date.now }: PersistentOptions): number {
  return wall();
}

function leftNow({ wallMs, hints }: z.output<typeof savedHints>, now: number): Hint[] {
  const passed = Math.max(0, now - wallMs);
  return hints.map((hint) => ({ ...hint, leftMs: hint.leftMs - passed }));
}

function* sealed(pieces: readonly Uint8Array[]): Generator<Uint8Array> {
  const digest = createHash('sha256');
  for (const piece of pieces)
    for (let at = 0; at < piece.length; at += PIECE_BYTES) {
      const part = piece.subarray(at, at + PIECE_BYTES);
      digest.update(part);
      yield part;
    }
  yield digest.digest();
}

function unseal(file: Buffer): Uint8Array {
  const end = file.length - DIGEST_BYTES;
  if (end < MAGIC.length || !file.subarray(0, MAGIC.length).equals(MAGIC)) throw malformed('not a snapshot');
  const digest = createHash('sha256').update(file.subarray(0, end)).digest();
  if (!digest.equals(file.subarray(end))) throw malformed('a snapshot that is not whole');
  return file.subarray(MAGIC.length, end);
}
