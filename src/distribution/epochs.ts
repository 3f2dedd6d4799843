/**
 * Epochs: numbers of an agent's streams of reports, each greater than all before, also across restarts, and where the clock was set back. The last one
 * is in a file, on the disk before it is used.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { openFolder, writeWhole } from '../domains/files.ts';
import { asPagetideError } from '../errors.ts';

/** Beyond any clock, and far from where numbers are no longer exact. */
const MOST_EPOCH = 2 ** 52;

export class Epochs {
  readonly #path: string;
  #last: number;
  #writing: Promise<unknown> = Promise.resolve();

  private constructor(path: string, last: number) {
    this.#path = path;
    this.#last = last;
  }

  /**
   * @param folder is made where it isn't there; the file is `epoch`
   * @throws PagetideError `PT_IO`, `PT_NO_SPACE`
   */
  static async open(folder: string, log: Logger): Promise<Epochs> {
    await openFolder(folder);
    const path = join(folder, 'epoch');
    let last = 0;
    try {
      const text = await readFile(path, 'utf8');
      last = Number(text.trim());
      if (!/^\d{1,16}\n$/.test(text) || last > MOST_EPOCH) {
        last = 0;
        // the clock tells a later one, if nobody has set it back: else a reporter finds out
        log.warn({ path }, 'this file is damaged, the next epoch is taken from the clock');
      }
    } catch (error) {
      // at its first start an agent has none
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        throw asPagetideError(error, 'PT_IO', `cannot read ${path}`);
    }
    return new Epochs(path, last);
  }

  /**
   * The next one, about the wall clock's milliseconds. @param above it is greater than that
   * @throws PagetideError `PT_IO`, `PT_NO_SPACE`; that epoch is never given then
   */
  next(above = 0): Promise<number> {
    const epoch = Math.min(MOST_EPOCH, Math.max(this.#last, above) + 1);
    this.#last = Math.max(epoch, Math.min(Date.now(), MOST_EPOCH));
    const taken = this.#last;
    const writing = this.#writing.then(() => writeWhole(this.#path, `${taken}\n`));
    // one that could not be written keeps nobody from the next
    this.#writing = writing.catch(() => undefined);
    return writing.then(() => taken);
  }
}
