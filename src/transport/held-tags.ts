/** Which pages another host of a domain has, by tag: one question on a connection of its own, for estimates. */
import { PagetideError } from '../errors.ts';
import { bit } from '../memory/filled-batch.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { connectTags, type TagAddress } from './tag-client.ts';
import { WireLimit } from './wire.ts';

/** Milliseconds for all answers. */
const ANSWER_MS = 10_000;

/**
 * @param tags 16 bytes each, any number
 * @returns a byte a tag, 1: its page seems to be there
 * @throws PagetideError as {@link connectTags}; `PT_PEER_UNREACHABLE` where no answer came
 */
export async function heldTags(address: TagAddress, tags: Uint8Array): Promise<Uint8Array> {
  const count = tags.length / TAG_BYTES;
  const held = new Uint8Array(count);
  const connection = await connectTags(address);
  // ends what is asked, with an error
  const late = setTimeout(() => connection.close(), ANSWER_MS);
  try {
    for (let first = 0; first < count; first += WireLimit.tagPages) {
      const some = tags.subarray(first * TAG_BYTES, (first + WireLimit.tagPages) * TAG_BYTES);
      const present = await new Promise<Uint8Array>((resolve, reject) => {
        const isAsked = connection.have(some, (answer, error) => {
          if (answer === undefined) reject(error ?? unanswered(address.url));
          else resolve(answer);
        });
        if (!isAsked) reject(unanswered(address.url));
      });
      for (let i = 0; i < some.length / TAG_BYTES; i++) held[first + i] = bit(present, i) ? 1 : 0;
    }
    return held;
  } finally {
    clearTimeout(late);
    connection.close();
  }
}

function unanswered(url: string): PagetideError {
  return new PagetideError('PT_PEER_UNREACHABLE', `${url} did not say which pages it has`);
}
