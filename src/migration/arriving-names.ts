/**
 * The names of the pages of a guest that arrives: its manifest, in memory that all workers share and that outlives the agent.
 *
 *   prepare: chunk tags ──► wants ──► Tags … ManifestEnd (digest checked) ──► settle ──► served by name
 *
 * The tags lie in a file beside the page table: an agent that takes the guest up again goes on checking what comes, against the
 * digest that its journal has.
 */
import { hkdfSync } from 'node:crypto';
import { rmSync } from 'node:fs';
import { PagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';
import type { NamedPagesSpec } from '../memory/named-pages.ts';
import { linkDuplicates, noDuplicates, type Duplicates } from '../pages/duplicates.ts';
import { CHUNK_FRAMES, Manifest, MOST_FRAMES } from '../pages/manifest.ts';
import { decodeTagRuns, isZeroTag, tagRunsLimit } from '../pages/tag-runs.ts';
import { DOMAIN_KEY_BYTES, DomainKey, TAG_BYTES, TAG_PAGE, TAG_VERSION } from '../pages/tags.ts';
import type { ManifestOffer } from './types.ts';

/** Tags of a slot of the file. */
const SLOT_BYTES = 4096;

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
  readonly #path: string;
  readonly #duplicates: Duplicates;
  #closed = false;

  private constructor(path: string, frames: number, key: DomainKey) {
    this.#path = path;
    this.#key = key;
    this.#arena = native().createArena(path, SLOT_BYTES, Math.ceil((frames * TAG_BYTES) / SLOT_BYTES));
    this.manifest = new Manifest(
      frames,
      native()
        .arenaView(this.#arena)
        .subarray(0, frames * TAG_BYTES),
    );
    this.#duplicates = noDuplicates(frames);
  }

  /** All frames zero so far. Takes the key over, also when it fails. */
  static create(path: string, frames: number, key: DomainKey): ArrivingNames {
    try {
      rmSync(path, { force: true });
      return new ArrivingNames(path, frames, key);
    } catch (error) {
      key.close();
      throw error;
    }
  }

  /**
   * After a restart of the agent. Takes the key over, also when it fails.
   * @throws PagetideError `PT_MANIFEST_INVALID` when what lies there is not the manifest with this digest
   */
  static reopen(path: string, frames: number, key: DomainKey, digest: string): ArrivingNames {
    let names: ArrivingNames;
    try {
      names = new ArrivingNames(path, frames, key);
    } catch (error) {
      key.close();
      throw error;
    }
    if (names.manifest.digest().toString('hex') !== digest) {
      names.close();
      throw new PagetideError('PT_MANIFEST_INVALID', `${path} is not the manifest that the guest came with`);
    }
    names.settle();
    return names;
  }

  /** The manifest is final: from now on workers may use {@link spec}. */
  settle(): void {
    linkDuplicates(this.manifest.tags, this.#duplicates);
  }

  /** What travels to the workers; of use there once it is settled. */
  get spec(): NamedPagesSpec {
    const { next, first } = this.#duplicates;
    return { tags: this.#arena, next, first, key: this.#key.id, cache: 0 };
  }

  /** [first frame, count, …] of the frames of `pageSize` bytes that are zero. */
  zeroRuns(pageSize: number): number[] {
    const { tags, frames } = this.manifest;
    const parts = pageSize / TAG_PAGE;
    const runs: number[] = [];
    for (let frame = 0; frame < frames / parts; frame++) {
      let zero = true;
      for (let part = 0; part < parts && zero; part++) zero = isZeroTag(tags, frame * parts + part);
      if (!zero) continue;
      if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === frame) runs[runs.length - 1]!++;
      else runs.push(frame, 1);
    }
    return runs;
  }

  /** Lets go; the file stays for the next agent. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    native().destroyArena(this.#arena);
    this.#key.close();
  }

  /** Lets go, and removes the file. */
  remove(): void {
    this.close();
    rmSync(this.#path, { force: true });
  }
}

/** Chunks that this host lacks, [first, count, …]: chunks of zero pages need no tags. */
export function wantedChunks(chunkTags: Uint8Array): number[] {
  const runs: number[] = [];
  for (let chunk = 0; chunk < chunkTags.length / TAG_BYTES; chunk++) {
    if (isZeroTag(chunkTags, chunk)) continue;
    if (runs.length > 0 && runs.at(-2)! + runs.at(-1)! === chunk) runs[runs.length - 1]!++;
    else runs.push(chunk, 1);
  }
  return runs;
}
