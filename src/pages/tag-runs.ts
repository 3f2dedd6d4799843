/**
 * Run-length coding of consecutive tags.
 *
 *    run    ┌ u16: kind (bits 15–14), count − 1 (bits 13–0) ┐ tags
 *    kind   0 ZERO  count zero tags          nothing follows
 *           1 TAGS  count tags               count × 16 bytes
 *           2 SAME  one tag count times      16 bytes
 *           3 LEFT  count tags stay as they are, where some were told before: nothing follows
 *
 * Little-endian. A guest's memory has long runs of zero pages, and now and then of one page repeated; what is neither
 * costs 16 bytes and its share of a header. Every sequence has exactly one coding that {@link encodeTagRuns} makes; the
 * decoder takes any that comes to the right number of tags, and nothing else.
 */
import { PagetideError } from '../errors.ts';
import { TAG_BYTES } from './tags.ts';

const Kind = { Zero: 0, Tags: 1, Same: 2, Left: 3 } as const;
const HEADER_BYTES = 2;
/** Tags that one run can hold. */
const RUN_TAGS = 1 << 14;
/** A run of one tag repeated pays from here on: a header and a tag instead of tags, and the header of what follows. */
const SAME_PAYS = 3;

/** Bytes that coding `count` tags can take at most. */
export function tagRunsLimit(count: number): number {
  // zero runs may alternate with tags, at worst a header of either kind for each two
  return count * (TAG_BYTES + HEADER_BYTES);
}

/** Whether the tag at index `at` is the zero page's. */
export function isZeroTag(tags: Uint8Array, at: number): boolean {
  const first = at * TAG_BYTES;
  for (let i = first; i < first + TAG_BYTES; i++) if (tags[i] !== 0) return false;
  return true;
}

/** Whether the tags at two indices, of one or two tables, are equal. */
export function sameTag(a: Uint8Array, atA: number, b: Uint8Array, atB: number): boolean {
  const left = atA * TAG_BYTES;
  const right = atB * TAG_BYTES;
  for (let i = 0; i < TAG_BYTES; i++) if (a[left + i] !== b[right + i]) return false;
  return true;
}

/** Codes `count` tags from index `first` of `tags` (16 bytes each). */
export function encodeTagRuns(tags: Uint8Array, first: number, count: number): Buffer {
  const out = Buffer.allocUnsafe(tagRunsLimit(count));
  return out.subarray(0, writeTagRuns(tags, first, count, out, 0));
}

/** The same into `out` from byte `offset`, which has {@link tagRunsLimit} bytes of room. Returns where it ends. */
export function writeTagRuns(tags: Uint8Array, first: number, count: number, out: Uint8Array, offset: number): number {
  const end = first + count;
  let literal = first;
  for (let at = first; at < end;) {
    const zero = isZeroTag(tags, at);
    let next = at + 1;
    while (next < end && next - at < RUN_TAGS && sameTag(tags, at, tags, next)) next++;
    if (zero || next - at >= SAME_PAYS) {
      offset = writeLiteral(tags, literal, at, out, offset);
      offset = zero
        ? writeRun(Kind.Zero, next - at, tags, at, 0, out, offset)
        : writeRun(Kind.Same, next - at, tags, at, 1, out, offset);
      literal = next;
    }
    at = next;
  }
  return writeLiteral(tags, literal, end, out, offset);
}

/**
 * Codes the tags from index `first` up to `end` of which `changed` has a byte that is 1; the others stay as they were told.
 * @param out room of {@link tagRunsLimit} bytes from `offset`
 * @returns where it ends
 */
export function writeChangedTags(
  tags: Uint8Array,
  changed: Uint8Array,
  first: number,
  end: number,
  out: Uint8Array,
  offset: number,
): number {
  for (let at = first; at < end;) {
    const isChanged = changed[at] === 1;
    const next = changed.indexOf(isChanged ? 0 : 1, at);
    const until = next < 0 ? end : Math.min(next, end);
    if (isChanged) offset = writeTagRuns(tags, at, until - at, out, offset);
    else
      for (let left = at; left < until; left += RUN_TAGS)
        offset = writeRun(Kind.Left, Math.min(RUN_TAGS, until - left), tags, left, 0, out, offset);
    at = until;
  }
  return offset;
}

function writeLiteral(tags: Uint8Array, from: number, until: number, out: Uint8Array, offset: number): number {
  while (from < until) {
    const some = Math.min(RUN_TAGS, until - from);
    offset = writeRun(Kind.Tags, some, tags, from, some, out, offset);
    from += some;
  }
  return offset;
}

/** A run of `count`, of which `tagCount` tags from index `from` follow. */
function writeRun(
  kind: number,
  count: number,
  tags: Uint8Array,
  from: number,
  tagCount: number,
  out: Uint8Array,
  offset: number,
): number {
  const header = (kind << 14) | (count - 1);
  out[offset] = header;
  out[offset + 1] = header >>> 8;
  const bytes = tagCount * TAG_BYTES;
  const at = offset + HEADER_BYTES;
  // most runs of a round are of one tag: a view would cost more than its bytes
  if (bytes > 4 * TAG_BYTES) out.set(tags.subarray(from * TAG_BYTES, from * TAG_BYTES + bytes), at);
  else for (let i = 0; i < bytes; i++) out[at + i] = tags[from * TAG_BYTES + i]!;
  return at + bytes;
}

/**
 * Decodes into `tags` from index `first`.
 * @param wrote told of each run that was written; without it none may be left as it is
 * @throws PagetideError `PT_PROTOCOL` when `coded` is not the coding of exactly `count` tags; `tags` may be written in part
 */
export function decodeTagRuns(
  coded: Uint8Array,
  tags: Uint8Array,
  first: number,
  count: number,
  wrote?: (first: number, count: number) => void,
): void {
  const end = first + count;
  let at = first;
  let offset = 0;
  while (offset < coded.length) {
    if (coded.length - offset < HEADER_BYTES) throw malformed('ends inside a header');
    const header = coded[offset]! | (coded[offset + 1]! << 8);
    offset += HEADER_BYTES;
    const kind = header >> 14;
    const runCount = (header & (RUN_TAGS - 1)) + 1;
    if (kind === Kind.Left && wrote === undefined) throw malformed('leaves out what was never told');
    if (runCount > end - at) throw malformed(`holds more than ${count} tags`);
    const tagBytes = kind === Kind.Tags ? runCount * TAG_BYTES : kind === Kind.Same ? TAG_BYTES : 0;
    if (coded.length - offset < tagBytes) throw malformed('ends inside a run');
    const source = coded.subarray(offset, offset + tagBytes);
    if (kind === Kind.Zero) tags.fill(0, at * TAG_BYTES, (at + runCount) * TAG_BYTES);
    else if (kind === Kind.Tags) tags.set(source, at * TAG_BYTES);
    else if (kind === Kind.Same) for (let i = 0; i < runCount; i++) tags.set(source, (at + i) * TAG_BYTES);
    if (kind !== Kind.Left) wrote?.(at, runCount);
    at += runCount;
    offset += tagBytes;
  }
  if (at !== end) throw malformed(`holds ${at - first} tags instead of ${count}`);
}

function malformed(what: string): PagetideError {
  return new PagetideError('PT_PROTOCOL', `a run of tags ${what}`);
}
