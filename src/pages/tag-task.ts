/** What a tag worker does: one batch of frames of a guest's memory file, from the file to the tags in shared memory. */
import { asPagetideError, type ErrorJson } from '../errors.ts';
import { native } from '../memory/native.ts';

/** Frames of a batch: 2 MiB, about 2 ms of digesting. Between two batches a call can be ended. */
export const TAG_BATCH_FRAMES = 512;

export interface TagTask {
  /** Of a domain key that stays open until the task has ended. */
  key: number;
  /** The memory file, open in this process until the task has ended. */
  fd: number;
  /** Byte of the file where the batch begins. */
  fileOffset: number;
  /** 1 to {@link TAG_BATCH_FRAMES}. */
  count: number;
  /** Over a SharedArrayBuffer: 16 bytes a frame. */
  tags: Uint8Array;
  /** Number of the first frame's tag in `tags`. */
  firstTag: number;
  /** Over a SharedArrayBuffer: 8 bytes for each frame of the batch, for the resident index. */
  hashes?: Uint8Array;
}

/** Errors travel as JSON: a thrown one would lose its code between threads. */
export type TagResult = { zero: number } | { error: ErrorJson };

/** One batch at a time in a thread. */
let scratch: Uint8Array | undefined;

/** Tags the batch. Never throws. */
export function tagBatch(task: TagTask): TagResult {
  try {
    scratch ??= new Uint8Array(256 * 1024);
    const { key, fd, fileOffset, count, tags, firstTag, hashes } = task;
    return { zero: native().tagFile(key, fd, fileOffset, count, tags, firstTag, scratch, hashes) };
  } catch (error) {
    return { error: asPagetideError(error).toJSON() };
  }
}
