/**
 * Pages that came in a round and were newer than their tags: the guest wrote them after they were told. They are not installed, but the
 * next round may well tell just these, or something that differs little from them (delta-pages.ts). A page that is written all the time
 * is always newer than its tag, and what stands in the file falls behind further and further.
 *
 * They are in memory of the worker's own, not in the guest's files: nothing that was not compared with a tag is written there.
 */

/** Pages that are kept: 8 MiB of pages of 4096 bytes. What comes beyond that is dropped. */
export const MOST_ASIDE = 2048;

export class AsidePages {
  readonly #pageSize: number;
  readonly #slots = new Map<number, number>();
  readonly #free: number[] = [];
  #memory: Buffer | undefined;
  #used = 0;

  /** @param pageSize bytes */
  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  get size(): number {
    return this.#slots.size;
  }

  /** Keeps `pages[offset …]` for this frame, in place of what was kept for it. */
  put(frame: number, pages: Uint8Array, offset: number): void {
    let slot = this.#slots.get(frame);
    if (slot === undefined) {
      slot = this.#free.pop() ?? (this.#used < MOST_ASIDE ? this.#used++ : undefined);
      if (slot === undefined) return;
      this.#slots.set(frame, slot);
    }
    this.#memory ??= Buffer.allocUnsafeSlow(MOST_ASIDE * this.#pageSize);
    this.#memory.set(pages.subarray(offset, offset + this.#pageSize), slot * this.#pageSize);
  }

  has(frame: number): boolean {
    return this.#slots.has(frame);
  }

  /** What is kept for this frame; a view, valid until the next {@link put} or {@link drop}. */
  get(frame: number): Uint8Array | undefined {
    const slot = this.#slots.get(frame);
    return slot === undefined ? undefined : this.#memory!.subarray(slot * this.#pageSize, (slot + 1) * this.#pageSize);
  }

  /** Copies what is kept for this frame to `into[offset …]`, if anything is. */
  copy(frame: number, into: Uint8Array, offset: number): void {
    const slot = this.#slots.get(frame);
    if (slot !== undefined) this.#memory!.copy(into, offset, slot * this.#pageSize, (slot + 1) * this.#pageSize);
  }

  drop(frame: number): void {
    const slot = this.#slots.get(frame);
    if (slot === undefined) return;
    this.#slots.delete(frame);
    this.#free.push(slot);
  }
}
