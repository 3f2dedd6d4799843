/**
 * Whom the fault worker asks for a page that is not here: the source, which is sure to have it; and while that is away, the
 * other hosts of the domain, one after the other, until one has it.
 *
 *   request ─► source ── not connected ─► a peer that was not asked yet ─┬─ has it, and it is right ─► the guest
 *                ▲                          ▲                            ├─ hasn't, is wrong, slow or gone ─┐
 *                └── is back ───────────────┴────────────────────────────┴──────────────────────────────────┤
 *                                                                              nobody is left ─► parked, asked again after a while
 *
 * Peers are not asked for a fault while the source is there: one that lacks the page would cost a round trip first.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import type { DemandPages } from './fault-service.ts';
import type { NamedPages } from './named-pages.ts';
import type { Peer } from './peer.ts';
import type { Peers } from './peers.ts';
import type { Serving } from './serving.ts';

export interface DemandRouterOptions {
  /** The demand connection. Undefined: there is no source, only peers. */
  source: { requestPage(frame: number): boolean; readonly directFd: number; readDirect(): boolean } | undefined;
  peers: Peers;
  named: NamedPages;
  /** 16 bytes a frame. */
  tags: Uint8Array;
  serving: Serving;
  /** The page of a frame that was asked for, found right; valid until this returns. */
  onPage(frame: number, page: Uint8Array, offset: number): void;
  /** Nobody can be asked for it now. */
  onNobody(frame: number): void;
}

/** What nobody had is asked for again this long after, milliseconds. */
const AGAIN_MS = 200;

export class DemandRouter implements DemandPages {
  readonly #options: DemandRouterOptions;
  /** When a frame that no peer had may be asked for again. */
  readonly #notBefore = new Map<number, number>();
  /** Frames that a peer is asked for. */
  readonly #asked = new Set<number>();
  #closed = false;

  constructor(options: DemandRouterOptions) {
    this.#options = options;
  }

  get directFd(): number {
    return this.#options.source?.directFd ?? -1;
  }

  readDirect(): boolean {
    return this.#options.source?.readDirect() ?? true;
  }

  request(frame: number): boolean {
    if (this.#options.source?.requestPage(frame) === true) return true;
    if (this.#asked.has(frame)) return true;
    const again = this.#notBefore.get(frame);
    if (again !== undefined && performance.now() < again) return false;
    return this.#ask(frame, new Set());
  }

  /** What peers answer from now on is dropped. */
  close(): void {
    this.#closed = true;
  }

  #ask(frame: number, tried: Set<Peer>): boolean {
    const { peers, tags } = this.#options;
    // whatever the distance: it is this, or nothing
    const left = peers.all.filter((peer) => peer.isUp && !tried.has(peer));
    left.sort((a, b) => a.outstanding - b.outstanding || a.roundTripMs - b.roundTripMs);
    const tag = tags.slice(frame * TAG_BYTES, (frame + 1) * TAG_BYTES);
    for (const peer of left) {
      tried.add(peer);
      const asked = peer.pages(tag, (answer) => {
        if (this.#closed || !this.#asked.delete(frame)) return;
        const found = answer !== undefined && answer.pages.length > 0;
        if (found && this.#isRight(peer, frame, answer.pages)) {
          this.#notBefore.delete(frame);
          this.#options.onPage(frame, answer.pages, 0);
        } else if (this.#options.source?.requestPage(frame) !== true && !this.#ask(frame, tried)) {
          this.#options.onNobody(frame);
        }
      });
      if (!asked) continue;
      this.#asked.add(frame);
      return true;
    }
    this.#notBefore.set(frame, performance.now() + AGAIN_MS);
    return false;
  }

  #isRight(peer: Peer, frame: number, page: Uint8Array): boolean {
    if (this.#options.named.verify(frame, page, 0)) return true;
    this.#options.serving.peerMismatched(1);
    peer.sentWrong(1);
    return false;
  }
}
