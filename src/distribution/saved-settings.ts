/** What an operator set of distribution, in `settings.json`: it outlives a restart, and goes before the configuration. */
import { readFile } from 'node:fs/promises';
import { writeWhole } from '../domains/files.ts';
import { asPagetideError } from '../errors.ts';
import type { Rates } from './token-bucket.ts';

export interface SavedSettings {
  paused: boolean;
  rates?: Rates;
  budgetBytes?: number;
}

/** @throws PagetideError `PT_IO`: it can't be read, or says nothing of use */
export async function readSettings(path: string): Promise<SavedSettings> {
  try {
    const { paused, rates, budgetBytes } = JSON.parse(await readFile(path, 'utf8')) as Partial<SavedSettings>;
    return {
      paused: paused === true,
      ...(typeof rates?.average === 'number' && typeof rates.peak === 'number' ? { rates } : {}),
      ...(typeof budgetBytes === 'number' && budgetBytes >= 0 ? { budgetBytes } : {}),
    };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { paused: false };
    throw asPagetideError(error, 'PT_IO', `cannot read ${path}`);
  }
}

/** @throws PagetideError `PT_NO_SPACE`, `PT_IO` */
export async function writeSettings(path: string, settings: SavedSettings): Promise<void> {
  await writeWhole(path, `${JSON.stringify(settings)}\n`);
}
