/** Tags ranges of guests' memory files on worker threads. */
import type { Piscina } from 'piscina';
import { batchWorkers } from '../batch-workers.ts';
import { PagetideError, asPagetideError, errorFromJson } from '../errors.ts';
import { TAG_BATCH_FRAMES, type TagResult, type TagTask } from './tag-task.ts';
import { HASH_BYTES, TAG_BYTES, TAG_PAGE, type DomainKey } from './tags.ts';

/** Batches of all calls together that may wait: a call has at most one a thread, so this is never met in practice. */
const MAX_WAITING = 4096;

export interface TagRange {
  /** Stays open until the call has settled. */
  key: DomainKey;
  /** The guest's memory file, open for reading; stays open until the call has settled. */
  fd: number;
  /** Byte of the file where frame 0 of the guest lies (0), a multiple of 4096. */
  fileOffset?: number;
  /** First frame to be tagged, in pages of 4096 bytes. */
  first: number;
  count: number;
  /** Where tags go, over a SharedArrayBuffer: frame `f` gets bytes [16·f, 16·f + 16). */
  tags: Uint8Array;
  /** Where page hashes go, for the resident index; over a SharedArrayBuffer: frame `first + i` gets bytes [8·i, 8·i + 8). */
  hashes?: Uint8Array;
  /** Ends the call between two batches. */
  signal?: AbortSignal;
}

export class TagPool {
  readonly #pool: Piscina<TagTask, TagResult>;
  readonly #threads: number;

  /** @param threads 1 to 64 */
  constructor(threads: number) {
    if (!Number.isInteger(threads) || threads < 1 || threads > 64)
      throw new PagetideError('PT_BAD_ARGUMENT', `1 to 64 tag workers, not ${threads}`);
    this.#threads = threads;
    this.#pool = batchWorkers<TagTask, TagResult>('tag-worker', threads, MAX_WAITING);
  }

  /**
   * Tags frames [first, first + count). Holes are zero pages; nothing is read through a mapping. A call has at most one batch a
   * thread on its way, so that it can be ended soon and calls for several guests take turns. When it settles, in whatever way, no
   * worker uses `fd`, `tags` or the key for it any more.
   * @returns how many of the frames are zero
   * @throws PT_BAD_ARGUMENT before anything is read; PT_CANCELLED when the signal ended it; PT_SYSCALL where the file ends
   * inside the range, and what else `tagFile` throws. The tags of the range are worth nothing then.
   */
  async tag(range: TagRange): Promise<number> {
    check(range);
    const { key, fd, fileOffset = 0, first, count, tags, hashes, signal } = range;
    const end = first + count;
    let next = first;
    let zero = 0;
    let failure: PagetideError | undefined;
    const lane = async (): Promise<void> => {
      while (next < end && failure === undefined) {
        if (signal?.aborted === true) {
          failure = new PagetideError('PT_CANCELLED', 'tagging was cancelled', { cause: signal.reason });
          return;
        }
        const firstTag = next;
        const frames = Math.min(TAG_BATCH_FRAMES, end - firstTag);
        next += frames;
        const at = fileOffset + firstTag * TAG_PAGE;
        try {
          const task: TagTask = { key: key.id, fd, fileOffset: at, count: frames, tags, firstTag };
          if (hashes !== undefined)
            task.hashes = hashes.subarray((firstTag - first) * HASH_BYTES, (firstTag - first + frames) * HASH_BYTES);
          const result = await this.#pool.run(task);
          if ('error' in result) failure ??= errorFromJson(result.error);
          else zero += result.zero;
        } catch (error) {
          // a worker that died, or the pool being closed
          failure ??= asPagetideError(error, 'PT_INTERNAL', 'a tag worker failed');
        }
      }
    };
    const lanes = Math.min(this.#threads, Math.ceil(count / TAG_BATCH_FRAMES));
    await Promise.all(Array.from({ length: lanes }, lane));
    if (failure !== undefined) throw failure;
    return zero;
  }

  /** Waits for the batches that run, refuses what comes, ends the threads. */
  async close(): Promise<void> {
    await this.#pool.close({ force: true });
  }
}

function check({ fd, fileOffset = 0, first, count, tags, hashes }: TagRange): void {
  const bad = (what: string): PagetideError => new PagetideError('PT_BAD_ARGUMENT', `tagging a range: ${what}`);
  if (!Number.isInteger(fd) || fd < 0) throw bad(`no descriptor ${fd}`);
  if (!Number.isSafeInteger(fileOffset) || fileOffset < 0 || fileOffset % TAG_PAGE !== 0)
    throw bad(`file offset ${fileOffset} is no multiple of ${TAG_PAGE}`);
  if (!Number.isSafeInteger(first) || first < 0 || !Number.isSafeInteger(count) || count < 0)
    throw bad(`no ${count} frames from ${first}`);
  if ((first + count) * TAG_BYTES > tags.length) throw bad(`no room for the tag of frame ${first + count - 1}`);
  if (!(tags.buffer instanceof SharedArrayBuffer)) throw bad('tags must lie in shared memory');
  if (hashes === undefined) return;
  if (count * HASH_BYTES > hashes.length) throw bad(`no room for ${count} page hashes`);
  if (!(hashes.buffer instanceof SharedArrayBuffer)) throw bad('page hashes must lie in shared memory');
}
