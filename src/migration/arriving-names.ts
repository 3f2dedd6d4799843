/**
 * The names of the pages of a guest that arrives: its manifest, in memory that all workers share and that outlives the agent.
 *
 *   prepare: chunk tags ──► wants ──► Tags … ManifestEnd ─► begin ─► Tags … ManifestEnd ─► settle ─► served by name
 *                                     guest runs                     guest stands still: so as little as possible is left to do
 *
 * Where rounds come, what the source tells goes into a table of its own ({@link ArrivingNames.told}). It is taken over (takeTold) while
 * nothing is copied, by comparing the two: so the tags that pages are compared with change between rounds only, and whatever the source
 * tells again, on a new connection, from the start, changes nothing that has not changed.
 *
 * The tags lie in a file beside the page table: an agent that takes the guest up again goes on checking what comes, against the
 * digest that its journal has.
 */
import { hkdfSync } from 'node:crypto';
import { rmSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { FrameState, native, type FaultSession } from '../memory/native.ts';
import type { NamedPagesSpec } from '../memory/named-pages.ts';
import { PageCache, type Pins } from '../pages/cache.ts';
import type { ChunkStore } from '../pages/chunk-store.ts';
import { DuplicateRings } from '../pages/duplicates.ts';
import { CHUNK_FRAMES, Manifest, MOST_FRAMES } from '../pages/manifest.ts';
import { decodeTagRuns, isZeroTag, sameTag, tagRunsLimit } from '../pages/tag-runs.ts';
import { DOMAIN_KEY_BYTES, DomainKey, TAG_BYTES, TAG_PAGE, TAG_VERSION } from '../pages/tags.ts';
import type { ManifestOffer } from './types.ts';

/** Tags of a slot of the file. */
const SLOT_BYTES = 4096;
/** Tags that are looked up in the cache in one go: about 2 ms. */
const PIN_TAGS = 8192;

/** What a guest's tags are made with, and where its pages may be found and kept. */
export interface GuestKey {
  /** Of whoever takes this over. */
  key: DomainKey;
  /** Undefined: of no domain, its pages are of use to nobody else. `cache`, `resident` 0: there is none. */
  shared: { cache: number; resident: number; domain: number } | undefined;
}

/** What an offer says, checked. @throws PagetideError `PT_MANIFEST_INVALID` */
export function checkOffer(offer: ManifestOffer, memoryBytes: number): Uint8Array {
  const refuse = (why: string): PagetideError =>
    new PagetideError('PT_MANIFEST_INVALID', `the source's manifest ${why}`);
  if (offer.version !== TAG_VERSION) {
    throw new PagetideError(
      'PT_MANIFEST_INVALID',
      `the source's manifest has tags of version ${offer.version}; this Pagetide has ${TAG_VERSION}`,
      { hint: 'Run the same version of Pagetide on both hosts.' },
    );
  }
  if (offer.frames > MOST_FRAMES || offer.frames * TAG_PAGE !== memoryBytes)
    throw refuse(`names ${offer.frames} frames; the guest has ${memoryBytes} bytes`);
  const chunks = Math.ceil(offer.frames / CHUNK_FRAMES);
  const coded = Buffer.from(offer.chunks, 'base64');
  if (coded.length > tagRunsLimit(chunks)) throw refuse('is too long');
  const tags = new Uint8Array(chunks * TAG_BYTES);
  try {
    decodeTagRuns(coded, tags, 0, chunks);
  } catch (cause) {
    throw new PagetideError('PT_MANIFEST_INVALID', "the source's manifest cannot be read", { cause });
  }
  return tags;
}

/**
 * The key of a guest that belongs to no domain: of one migration alone, from the secret that both sides have anyway. Its tags
 * name nothing beyond it, and everything is checked all the same.
 */
export function migrationKey(token: string): DomainKey {
  const secret = Buffer.from(hkdfSync('sha256', token, '', 'pagetide page tags', DOMAIN_KEY_BYTES));
  try {
    return new DomainKey(secret);
  } finally {
    secret.fill(0);
  }
}

export class ArrivingNames {
  readonly manifest: Manifest;
  readonly #arena: number;
  readonly #key: DomainKey;
  readonly #shared: GuestKey['shared'];
  readonly #path: string;
  #pins: Pins | undefined;
  readonly #rings: DuplicateRings;
  readonly #told: Manifest | undefined;
  /** A byte a frame, 1: its tag was told after {@link begin}. Undefined: nothing was made of the tags yet. */
  #since: Uint8Array | undefined;
  #isSettled = false;
  #closed = false;

  private constructor(path: string, frames: number, { key, shared }: GuestKey, rounds: boolean) {
    this.#path = path;
    this.#key = key;
    this.#shared = shared;
    this.#arena = native().createArena(path, SLOT_BYTES, Math.ceil((frames * TAG_BYTES) / SLOT_BYTES));
    this.manifest = new Manifest(
      frames,
      native()
        .arenaView(this.#arena)
        .subarray(0, frames * TAG_BYTES),
    );
    this.#rings = new DuplicateRings(this.manifest.tags);
    if (rounds) this.#told = new Manifest(frames);
  }

  /** All frames zero so far. Takes the key over, also when it fails. @param rounds whether the manifest is told in rounds */
  static create(path: string, frames: number, key: GuestKey, rounds = false): ArrivingNames {
    try {
      rmSync(path, { force: true });
      return new ArrivingNames(path, frames, key, rounds);
    } catch (error) {
      key.key.close();
      throw error;
    }
  }

  /**
   * After a restart of the agent. Takes the key over, also when it fails.
   * @throws PagetideError `PT_MANIFEST_INVALID` when what lies there is not the manifest with this digest
   */
  static reopen(path: string, frames: number, key: GuestKey, digest: string): ArrivingNames {
    let names: ArrivingNames;
    try {
      names = new ArrivingNames(path, frames, key, false);
    } catch (error) {
      key.key.close();
      throw error;
    }
    if (names.manifest.digest().toString('hex') !== digest) {
      names.close();
      throw new PagetideError('PT_MANIFEST_INVALID', `${path} is not the manifest that the guest came with`);
    }
    names.settle();
    return names;
  }

  /**
   * Takes over the chunks that this host knows, which the source then need not send the tags of. Before anything is taken in
   * from the source. Returns the others: [first, count, …].
   */
  learn(chunkTags: Uint8Array, known: ChunkStore): number[] {
    const domain = this.#shared?.domain;
    return wantedChunks(chunkTags, (chunk) => {
      const tags = domain === undefined ? undefined : known.get(domain, chunkTags, chunk);
      // another length: that chunk tag does not belong at this place, whatever the source says
      if (tags?.length !== this.manifest.framesOf(chunk) * TAG_BYTES) return false;
      this.told.setChunk(chunk, tags, chunkTags.subarray(chunk * TAG_BYTES, (chunk + 1) * TAG_BYTES));
      return true;
    });
  }

  /**
   * The guest runs: its chunks are known from now on, and its pages that are in the cache stay there until {@link close}. Some at a
   * time, as other guests' migrations go through this thread too.
   */
  async hold(known: ChunkStore): Promise<void> {
    if (this.#shared === undefined || this.#pins !== undefined || this.#closed) return;
    const { cache, domain } = this.#shared;
    known.add(domain, this.manifest);
    if (cache === 0) return;
    const pins = PageCache.at(cache).pins();
    this.#pins = pins;
    const { tags } = this.manifest;
    for (let at = 0; at < tags.length; at += PIN_TAGS * TAG_BYTES) {
      pins.add(tags.subarray(at, at + PIN_TAGS * TAG_BYTES));
      await new Promise((resolve) => setImmediate(resolve));
      // let go meanwhile, and the table with it
      if (this.#closed as boolean) return;
    }
  }

  /** What the source tells: the manifest itself, or what {@link takeTold} takes over into it. */
  get told(): Manifest {
    return this.#told ?? this.manifest;
  }

  /** Whether all that was told was taken over. */
  get isAsTold(): boolean {
    return this.#told === undefined || Buffer.compare(this.#told.tags, this.manifest.tags) === 0;
  }

  /**
   * Takes over what is told, while nothing is copied: frames whose tag has changed are Missing, those that became zero are punched out
   * of the files and Zero. In `copy` every frame is as its tag says before and after: Zero where that is zero; and where it is Present
   * the file has the page with that tag. Where a punch fails part of it is taken over, and the rest the next time.
   * @returns frames that are to come, and that became zero
   * @throws PagetideError of {@link FaultSession.punch}
   */
  takeTold(copy: FaultSession): { missing: number; zero: number } {
    const { manifest, told } = this;
    const came = { missing: 0, zero: 0 };
    const changed: number[] = [];
    try {
      for (let chunk = 0; chunk < manifest.chunks; chunk++) {
        const first = chunk * CHUNK_FRAMES;
        const count = manifest.framesOf(chunk);
        const tags = told.tags.subarray(first * TAG_BYTES, (first + count) * TAG_BYTES);
        if (Buffer.compare(tags, manifest.tags.subarray(first * TAG_BYTES, (first + count) * TAG_BYTES)) === 0)
          continue;
        for (let frame = first; frame < first + count;) {
          if (sameTag(told.tags, frame, manifest.tags, frame)) {
            frame++;
            continue;
          }
          const isZero = isZeroTag(told.tags, frame);
          let end = frame + 1;
          while (
            end < first + count &&
            isZeroTag(told.tags, end) === isZero &&
            !sameTag(told.tags, end, manifest.tags, end)
          )
            end++;
          if (isZero) copy.punch(frame, end - frame, FrameState.Zero);
          else copy.reset(frame, end - frame, FrameState.Missing);
          // with the states: whatever becomes of the rest, a frame is as its tag says
          manifest.tags.set(told.tags.subarray(frame * TAG_BYTES, end * TAG_BYTES), frame * TAG_BYTES);
          manifest.touch(frame, end - frame);
          came[isZero ? 'zero' : 'missing'] += end - frame;
          changed.push(frame, end - frame);
          frame = end;
        }
      }
    } finally {
      this.#rings.update(changed);
    }
    return came;
  }

  /**
   * Of a manifest that is told as it is used, without rounds: makes of it what {@link settle} would have to, but for what is told later.
   * @returns false, and nothing is done, once it is settled: it is in use then
   */
  begin(): boolean {
    if (this.#isSettled || this.#closed) return false;
    this.#rings.link();
    this.#since = new Uint8Array(this.manifest.frames);
    return true;
  }

  /** Tags of these frames were told. */
  noteTold(first: number, count: number): void {
    this.#since?.fill(1, first, first + count);
  }

  /** All tags come again, from the start. */
  forgetTold(): void {
    this.#since = undefined;
  }

  /**
   * The manifest is final: from now on workers may use {@link spec}.
   * @returns frames, [first, count, …], of which tags were told since {@link begin}; undefined: of all
   */
  settle(): number[] | undefined {
    this.#isSettled = true;
    const since = this.#since;
    if (since === undefined) {
      this.#rings.link();
      return undefined;
    }
    const runs: number[] = [];
    for (let first = since.indexOf(1); first >= 0; first = since.indexOf(1, first)) {
      let end = since.indexOf(0, first);
      if (end < 0) end = since.length;
      runs.push(first, end - first);
      first = end;
    }
    this.#rings.update(runs);
    return runs;
  }

  /** The number of the guest's domain here; undefined: it is of none. */
  get domain(): number | undefined {
    return this.#shared?.domain;
  }

  /** What travels to the workers; of use there once it is settled. */
  get spec(): NamedPagesSpec {
    const { next, first } = this.#rings;
    const { cache, resident, domain } = this.#shared ?? { cache: 0, resident: 0, domain: 0 };
    return { tags: this.#arena, next, first, key: this.#key.id, cache, resident, domain };
  }

  /**
   * Calls `take` for the guest's frames that have one of these tags, in runs of such that are zero and such that are not.
   * @param runs of 4 KiB frames, [first, count, …] in order
   * @param pageSize of the guest's frames
   */
  eachZeroRun(
    runs: readonly number[],
    pageSize: number,
    take: (first: number, count: number, isZero: boolean) => void,
  ): void {
    const { tags } = this.manifest;
    const parts = pageSize / TAG_PAGE;
    const isZero = (frame: number): boolean => {
      for (let part = 0; part < parts; part++) if (!isZeroTag(tags, frame * parts + part)) return false;
      return true;
    };
    let done = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const end = Math.ceil((runs[i]! + runs[i + 1]!) / parts);
      for (let frame = Math.max(done, Math.floor(runs[i]! / parts)); frame < end;) {
        const first = frame;
        const zero = isZero(frame);
        do frame++;
        while (frame < end && isZero(frame) === zero);
        take(first, frame - first, zero);
      }
      done = Math.max(done, end);
    }
  }

  /** Lets go; the file stays for the next agent. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#pins?.release();
    native().destroyArena(this.#arena);
    this.#key.close();
  }

  /** Lets go, and removes the file. */
  remove(): void {
    this.close();
    rmSync(this.#path, { force: true });
  }
}

/** Chunks that this host lacks, [first, count, …]: chunks of zero pages need no tags, nor do those that are `known`. */
export function wantedChunks(chunkTags: Uint8Array, known: (chunk: number) => boolean = () => false): number[] {
  const runs: number[] = [];
  for (let chunk = 0; chunk < chunkTags.length / TAG_BYTES; chunk++) {
    if (isZeroTag(chunkTags, chunk) || known(chunk)) continue;
    if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === chunk) runs[runs.length - 1]!++;
    else runs.push(chunk, 1);
  }
  return runs;
}
