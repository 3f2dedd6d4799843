/** How far pages shrink under LZ4, packed in batches as the fill of a migration packs them. */
import { setImmediate as turn } from 'node:timers/promises';
import { compressSync } from 'lz4-napi';
import { PagetideError } from '../errors.ts';
import { readMemory, type Segment } from '../transport/memory-file.ts';
import { TAG_PAGE } from './tags.ts';

/** Pages a batch: 1 MiB, as the fill asks for. */
const BATCH = 256;
/** Batches that are packed at most; of more pages these are taken evenly from all of them. */
const MOST_BATCHES = 64;

export interface Compressibility {
  /** Pages that it is said of. */
  pages: number;
  /** Pages that were packed for it: all of them, or a sample. */
  sampled: number;
  rawBytes: number;
  packedBytes: number;
}

/**
 * Packs pages of an open memory file.
 * @param frames in ascending order
 * @throws PagetideError `PT_CANCELLED`, `PT_MEMORY_FILE`
 */
export async function measureCompressibility(
  segments: readonly Segment[],
  frames: Uint32Array,
  signal?: AbortSignal,
): Promise<Compressibility> {
  const batches = Math.ceil(frames.length / BATCH);
  const taken = Math.min(batches, MOST_BATCHES);
  const pages = Buffer.allocUnsafe(BATCH * TAG_PAGE);
  const result = { pages: frames.length, sampled: 0, rawBytes: 0, packedBytes: 0 };
  for (let i = 0; i < taken; i++) {
    if (signal?.aborted === true) throw new PagetideError('PT_CANCELLED', 'packing pages was cancelled');
    const first = Math.floor((i * batches) / taken) * BATCH;
    const batch = frames.subarray(first, first + BATCH);
    batch.forEach((frame, n) => readMemory(segments, frame * TAG_PAGE, TAG_PAGE, pages, n * TAG_PAGE));
    const raw = pages.subarray(0, batch.length * TAG_PAGE);
    result.sampled += batch.length;
    result.rawBytes += raw.length;
    // as on the wire: what does not shrink goes as it is
    result.packedBytes += Math.min(raw.length, compressSync(raw).length);
    await turn();
  }
  return result;
}
