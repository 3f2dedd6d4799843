/**
 * What bytes of a page stream cost on the wire, both directions together, at worst. The peak is a promise about the wire, so everything that
 * goes there because of a page counts:
 *
 *   frames ─► TLS records: 22 bytes each, of 16 KiB ─► TCP segments ─► Ethernet, VLAN, IPv6 and TCP headers with timestamps: 90 bytes each
 *                                                            └─► an acknowledgement of each the other way, 90 bytes
 *
 * Segments are taken to be as small as the smallest MTU of IPv6 makes them, and every write to begin one of its own. An Ethernet of 1500 bytes
 * that acknowledges every other segment needs 7% where this says 15%. What TCP sends a second time after a loss is not in here. Once bytes have
 * crossed, the kernel tells how many packets they were ({@link Carried}), and that counts instead.
 */
import { PagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';
import { bitmapBytes } from '../transport/wire-tag-pages.ts';
import { HEADER_SIZE } from '../transport/wire.ts';
import { TAG_BYTES, TAG_PAGE } from '../pages/tags.ts';
import { TokenBucket, type Rates } from './token-bucket.ts';

/** Bytes of the headers of a packet, and of a packet that only acknowledges. */
export const PACKET = 90;
/** Bytes of a full segment. */
const SEGMENT = 1220;
const RECORD = 16 << 10;
const RECORD_HEAD = 22;
/**
 * Bytes of a connection from its first packet to its last, without what is asked for: TCP's and the proofs, over TLS also two
 * certificates and the session tickets.
 */
const CONNECTION = 3_000;
const SECURE_CONNECTION = 12_000;
/**
 * The lowest peak, in bytes a second: in 100 ms a connection or a page and its request must have room. Anything lower would stand still for ever.
 */
export const LOWEST_PEAK = 200_000;
/** Pages that one request of a background stream may name: what a batch worker makes in well under a millisecond. */
export const BACKGROUND_PAGES = 64;

/** Bytes on the wire at most for `bytes` of frames that are written at once. */
export function wireCost(bytes: number, secure: boolean): number {
  const all = bytes + (secure ? (Math.ceil(bytes / RECORD) + 1) * RECORD_HEAD : 0);
  return all + (Math.ceil(all / SEGMENT) + 1) * 2 * PACKET;
}

/** For a request of so many pages, and for its answer with `bodyBytes` of pages; raw by default, which is the most that it can be. */
export function requestCost(pages: number, secure: boolean, bodyBytes = pages * TAG_PAGE): number {
  return (
    wireCost(HEADER_SIZE + pages * TAG_BYTES, secure) +
    wireCost(HEADER_SIZE + 4 + bitmapBytes(pages) + bodyBytes, secure)
  );
}

export function connectionCost(secure: boolean): number {
  return secure ? SECURE_CONNECTION : CONNECTION;
}

/**
 * How many pages one request names: an eighth of what 100 ms may take, and no more than a second of the average. While the room that is left
 * is less than a request it is lost, half a request on average.
 */
export function pagesAtOnce({ average, peak }: Rates, secure: boolean): number {
  const most = Math.min(peak / 80, average);
  let pages = Math.min(BACKGROUND_PAGES, Math.max(1, Math.floor(most / TAG_PAGE)));
  while (pages > 1 && requestCost(pages, secure) > most) pages--;
  return pages;
}

/** What a TCP connection has really carried, in bytes on the wire, both ways: what came, and what left and was acknowledged. */
export class Carried {
  #seen = 0;

  /** Since the last call; undefined: nobody knows. @param fd of the socket; negative: there is none */
  since(fd: number): number | undefined {
    const now = fd < 0 ? -1 : native().carried(fd, PACKET);
    if (now < 0) return undefined;
    const bytes = Math.max(0, now - this.#seen);
    this.#seen = Math.max(this.#seen, now);
    return bytes;
  }
}

/** @throws PagetideError `PT_BAD_ARGUMENT`: a peak below {@link LOWEST_PEAK}, or as {@link TokenBucket} */
export function checkRates(rates: Rates): Rates {
  new TokenBucket(rates, () => 0);
  if (rates.peak < LOWEST_PEAK)
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      `a peak of at least ${LOWEST_PEAK} bytes a second, not ${rates.peak}: a tenth of it must hold a page and its way`,
    );
  return rates;
}
