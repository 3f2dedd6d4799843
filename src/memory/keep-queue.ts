/**
 * Pages on their way into the shared-page cache from the fault worker, which has no time for that while guests wait: they
 * are copied aside when their fault has been answered, and inserted one at a time in rounds without faults.
 *
 *   answer ─► install, guest goes on ─► push (a copy of 4 KiB) ─► … ─► keepOne, in an idle round
 *                                         └─ no room: keepOne first
 *
 * So a fault that comes meanwhile waits for one insertion at most, and an answer costs one at most, however many there are.
 * All memory is allocated at the beginning.
 */
import type { NamedPages } from './named-pages.ts';

/** Pages that can wait: a burst of faults, 256 KiB a fault worker. */
const ROOM = 64;

export class KeepQueue {
  private readonly named: NamedPages;
  private readonly pageSize: number;
  private readonly pages: Uint8Array;
  private readonly frames = new Uint32Array(ROOM);
  private first = 0;
  private count = 0;

  constructor(named: NamedPages, pageSize: number) {
    this.named = named;
    this.pageSize = pageSize;
    this.pages = new Uint8Array(ROOM * pageSize);
  }

  get size(): number {
    return this.count;
  }

  /** Takes a copy of the page of `frame`, at `page[offset …]`. */
  push(frame: number, page: Uint8Array, offset: number): void {
    if (this.count === ROOM) this.keepOne();
    const slot = (this.first + this.count) % ROOM;
    this.pages.set(page.subarray(offset, offset + this.pageSize), slot * this.pageSize);
    this.frames[slot] = frame;
    this.count++;
  }

  /** Inserts the oldest. */
  keepOne(): void {
    if (this.count === 0) return;
    const slot = this.first;
    this.first = (slot + 1) % ROOM;
    this.count--;
    this.named.keep(this.frames[slot]!, this.pages, slot * this.pageSize);
  }

  /** Inserts all that wait. */
  drain(): void {
    while (this.count > 0) this.keepOne();
  }
}
