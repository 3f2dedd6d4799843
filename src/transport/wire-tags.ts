/** Frames that carry a manifest: tags of consecutive frames, and its end. */
import { PagetideError } from '../errors.ts';
import { CHUNK_FRAMES, DIGEST_BYTES, type Manifest } from '../pages/manifest.ts';
import { decodeTagRuns, tagRunsLimit, writeChangedTags, writeTagRuns } from '../pages/tag-runs.ts';
import {
  FrameType,
  HEADER_SIZE,
  WireLimit,
  encodeFrame,
  protocolError,
  readU32,
  writeHeader,
  writeU32,
} from './wire.ts';

const COUNT_BYTES = 4;

/**
 * Tags of `count` frames from `first`, as frames of {@link WireLimit.tags} tags at most.
 * @param first of 4 KiB frames
 */
export function encodeTags(manifest: Manifest, first: number, count: number): Buffer[] {
  if (first < 0 || count < 1 || first + count > manifest.frames)
    throw new PagetideError('PT_BAD_ARGUMENT', `no frames ${first} … ${first + count} in this manifest`);
  const frames: Buffer[] = [];
  for (let at = first; at < first + count; at += WireLimit.tags) {
    const some = Math.min(WireLimit.tags, first + count - at);
    const frame = Buffer.allocUnsafe(HEADER_SIZE + COUNT_BYTES + tagRunsLimit(some));
    const end = writeTagRuns(manifest.tags, at, some, frame, HEADER_SIZE + COUNT_BYTES);
    writeHeader(frame, 0, end - HEADER_SIZE, FrameType.Tags, 0, 0, at);
    writeU32(frame, HEADER_SIZE, some);
    frames.push(frame.subarray(0, end));
  }
  return frames;
}

/** Tags of whole chunks, of those that are wanted: `runs` is [first chunk, count, …]. */
export function encodeChunks(manifest: Manifest, runs: ArrayLike<number>): Buffer[] {
  const frames: Buffer[] = [];
  for (let i = 0; i < runs.length; i += 2) {
    const first = runs[i]! * CHUNK_FRAMES;
    const end = Math.min(manifest.frames, (runs[i]! + runs[i + 1]!) * CHUNK_FRAMES);
    frames.push(...encodeTags(manifest, first, end - first));
  }
  return frames;
}

/**
 * Tags of the frames that have a 1 in `changed`: those between them go without saying, at two bytes a gap, so that a page which the
 * destination knows takes little more than its tag.
 */
export function encodeChangedTags(manifest: Manifest, changed: Uint8Array): Buffer[] {
  const frames: Buffer[] = [];
  for (let first = changed.indexOf(1); first >= 0;) {
    const limit = Math.min(manifest.frames, first + WireLimit.tags);
    const end = changed.lastIndexOf(1, limit - 1) + 1;
    const frame = Buffer.allocUnsafe(HEADER_SIZE + COUNT_BYTES + tagRunsLimit(end - first));
    const length = writeChangedTags(manifest.tags, changed, first, end, frame, HEADER_SIZE + COUNT_BYTES);
    writeHeader(frame, 0, length - HEADER_SIZE, FrameType.Tags, 0, 0, first);
    writeU32(frame, HEADER_SIZE, end - first);
    frames.push(frame.subarray(0, length));
    first = changed.indexOf(1, end);
  }
  return frames;
}

export function encodeManifestEnd(manifest: Manifest): Buffer {
  return encodeFrame(FrameType.ManifestEnd, 0, 0, manifest.frames, manifest.digest());
}

/**
 * Takes a Tags frame into `manifest`.
 * @param wrote told of the frames whose tags it has
 * @throws PagetideError `PT_PROTOCOL`
 */
export function decodeTags(
  payload: Uint8Array,
  first: number,
  manifest: Manifest,
  wrote?: (first: number, count: number) => void,
): void {
  const count = readU32(payload, 0);
  if (count < 1 || count > WireLimit.tags || first + count > manifest.frames)
    throw protocolError(`tags of frames ${first} … ${first + count}: the guest has ${manifest.frames}`);
  decodeTagRuns(payload.subarray(COUNT_BYTES), manifest.tags, first, count, (at, some) => {
    manifest.touch(at, some);
    wrote?.(at, some);
  });
}

/** @throws PagetideError `PT_PROTOCOL` when `manifest` is not the one that the source means */
export function checkManifestEnd(payload: Uint8Array, frames: number, manifest: Manifest): void {
  if (frames !== manifest.frames || payload.length !== DIGEST_BYTES)
    throw protocolError(`a manifest of ${frames} frames: the guest has ${manifest.frames}`);
  if (!manifest.digest().equals(payload))
    throw protocolError("the manifest's digest is not that of the source's: a tag was lost or damaged");
}
