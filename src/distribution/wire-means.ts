/** What a page of a domain takes on the wire: a running mean of what pages took that were brought. */

/** Bytes, where nothing was measured yet: half a page, as LZ4 leaves it or so. */
export const WIRE_BYTES = 2000;
/** The last pages that the mean is over, as weights. */
const PAGES = 1024;

export class WireMeans {
  readonly #means = new Map<number, { bytes: number; pages: number }>();

  /** @param domain its number */
  of(domain: number): number {
    return this.#means.get(domain)?.bytes ?? WIRE_BYTES;
  }

  brought(domain: number, bytes: number): void {
    let mean = this.#means.get(domain);
    if (mean === undefined) this.#means.set(domain, (mean = { bytes, pages: 0 }));
    mean.pages = Math.min(PAGES, mean.pages + 1);
    mean.bytes += (bytes - mean.bytes) / mean.pages;
  }

  forget(domain: number): void {
    this.#means.delete(domain);
  }
}
