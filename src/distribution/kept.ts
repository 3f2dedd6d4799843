/**
 * What distribution keeps across a restart: pages held and the score (held-file.ts), and what an operator set (saved-settings.ts).
 *
 * What is held is written by a clock of its own, not between two errands: one may wait for as long as a migration runs, and the agent be killed
 * meanwhile.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Clock } from './clock.ts';
import { readHeld, writeHeld } from './held-file.ts';
import { HeldPages } from './held-pages.ts';
import { readSettings, writeSettings, type SavedSettings } from './saved-settings.ts';
import { Score } from './score.ts';

/** Between two writings of what is held, milliseconds. */
export const SAVE_MS = 60_000;

export interface KeptParts {
  /** `<state>/distribution`. */
  folder: string;
  log: Logger;
  clock: Clock;
  /** The clock's time, which never goes back. */
  nowMs: () => number;
}

export class Kept {
  readonly held = new HeldPages();
  score: Score;
  settings: SavedSettings = { paused: false };
  readonly #parts: KeptParts;
  readonly #closed = new AbortController();
  #loop: Promise<void> | undefined;
  #savedChanges = 0;
  /** One writing after the other. Never rejects. */
  #saving: Promise<void> = Promise.resolve();

  constructor(parts: KeptParts) {
    this.#parts = parts;
    this.score = new Score(parts.nowMs);
  }

  /** Takes up what an earlier run left; from then on what changes is written. What can't be read is said and dropped. */
  async start(): Promise<void> {
    const { folder, nowMs } = this.#parts;
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      this.settings = await readSettings(this.#path('settings.json'));
    } catch (error) {
      this.#warn('what distribution had kept is lost', error);
    }
    try {
      const score = await readHeld(this.#path('held'), this.held, nowMs());
      if (score !== undefined) this.score = Score.from(score, nowMs);
    } catch (error) {
      this.#warn('what distribution had kept is lost', error);
    }
    this.#savedChanges = this.held.changes;
    this.#loop = this.#run();
  }

  /** Writes what has changed since. Idempotent. */
  async close(): Promise<void> {
    this.#closed.abort();
    await this.#loop;
    if (this.#loop === undefined) await this.#saving;
    else await this.#save();
  }

  /** Resolves when the settings are on the disk. @throws PagetideError `PT_NO_SPACE`, `PT_IO` */
  async saveSettings(): Promise<void> {
    const saving = this.#saving.then(async () => writeSettings(this.#path('settings.json'), this.settings));
    this.#saving = saving.catch(() => undefined);
    await saving;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    for (;;) {
      await this.#parts.clock.wait(SAVE_MS, signal);
      if (signal.aborted) return;
      await this.#save();
    }
  }

  async #save(): Promise<void> {
    this.#saving = this.#saving.then(async () => this.#saveHeld());
    await this.#saving;
  }

  async #saveHeld(): Promise<void> {
    const { changes } = this.held;
    if (changes === this.#savedChanges) return;
    try {
      await writeHeld(this.#path('held'), this.held, this.score.toJSON(), this.#parts.nowMs());
      this.#savedChanges = changes;
    } catch (error) {
      this.#warn('what distribution holds is not kept', error);
    }
  }

  #warn(what: string, error: unknown): void {
    const { code, message } = asPagetideError(error);
    this.#parts.log.warn({ code }, `${what}: ${message}`);
  }

  #path(name: string): string {
    return join(this.#parts.folder, name);
  }
}
