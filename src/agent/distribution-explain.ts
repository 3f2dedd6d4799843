/**
 * Where the pages of a guest of this host are, on each other host of its domain, and what those will do about the rest. Each host is
 * asked for itself: what it would send to others (by tag), and what its last plan says. One that does not answer is told as such.
 */
import type { DomainStore } from '../domains/store.ts';
import type { Member } from '../domains/records.ts';
import { Hints } from '../distribution/hints.ts';
import { addHostExplanations } from '../distribution/info.ts';
import type { TagsExplained } from '../distribution/explain-message.ts';
import { asPagetideError, PagetideError } from '../errors.ts';
import type { Manifest } from '../pages/manifest.ts';
import { linkDuplicates } from '../pages/duplicates.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { heldTags } from '../transport/held-tags.ts';
import type { DomainDirectory } from './distribution-plans.ts';
import { MOST_EXPLAINED, type ExplainedGuest, type ExplainedHost } from './distribution-service.ts';
import { withMember, type ConnectPeer } from '../transport/member-peer.ts';

/** For all answers of one host. Milliseconds. */
const HOST_MS = 15_000;
/** Hosts that are asked at once. */
const AT_ONCE = 8;

/** Tags of a guest: packed, each once, none of the zero page. */
export interface GuestTagSet {
  domain: string;
  tags: Uint8Array;
  /** False: all that are known of it. */
  stable: boolean;
}

export interface ExplainParts {
  /** Undefined: nothing is known of it yet, or it has no domain. @throws PagetideError `PT_GUEST_UNKNOWN` */
  tagsOf(guest: string): GuestTagSet | undefined;
  directories: { get(name: string): DomainDirectory | undefined };
  domains: Pick<DomainStore, 'get' | 'members' | 'record'>;
  connect: ConnectPeer;
  /** How likely a guest moves of which nothing is said. */
  moves: number;
  /** As of transport/held-tags.ts; tests give their own. */
  held?: typeof heldTags;
  hostMs?: number;
}

/** Different tags of a manifest but the zero page's, packed. */
export function differentTags({ tags, frames }: Manifest): Uint8Array {
  const { first } = linkDuplicates(tags);
  const packed = new Uint8Array(frames * TAG_BYTES);
  let count = 0;
  for (let frame = 0; frame < frames; frame++) {
    if (first[frame] !== frame || isZeroTag(tags, frame)) continue;
    packed.set(tags.subarray(frame * TAG_BYTES, (frame + 1) * TAG_BYTES), count++ * TAG_BYTES);
  }
  return packed.slice(0, count * TAG_BYTES);
}

/**
 * See {@link DistributionService.explain}.
 * @param only members of interest; all without. What they would send to others is not asked then
 */
export async function explainGuest(
  parts: ExplainParts,
  guest: string,
  only?: (member: Member) => boolean,
): Promise<ExplainedGuest> {
  const known = parts.tagsOf(guest);
  if (known === undefined)
    throw new PagetideError('PT_GUEST_STATE', `no page of guest '${guest}' is known yet`, {
      hint: 'A guest of a domain is known once it was watched for a while; see watch.cpu in docs/configuration.md.',
    });
  const { domain, tags, stable } = known;
  const members = parts.domains.members(domain);
  const likely = await likelihoods(parts, domain, guest, members);
  const left = members.filter(only ?? (() => true));
  const hosts = new Map<Member, ExplainedHost>();
  const worker = async (): Promise<void> => {
    for (let member = left.shift(); member !== undefined; member = left.shift())
      hosts.set(member, await explainHost(parts, known, member, likely?.get(member.host), only === undefined));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return {
    ...{ guest, domain, stable, pages: tags.length / TAG_BYTES },
    hosts: members.flatMap((member) => hosts.get(member) ?? []),
  };
}

/** By host; undefined: the directory is away. */
async function likelihoods(
  { directories, moves }: ExplainParts,
  name: string,
  guest: string,
  members: readonly Member[],
): Promise<Map<string, number> | undefined> {
  const found = directories.get(name);
  if (found === undefined) return undefined;
  try {
    const hints = Hints.from(await found.directory.hints(found.domain), () => 0);
    const hosts = [found.self, ...members.map(({ host }) => host)];
    const shares = hints.likelihoods({ guest, at: found.self }, hosts, moves);
    return new Map(hosts.map((host, at) => [host, Math.min(1, shares[at]!)]));
  } catch {
    return undefined; // said by null
  }
}

async function explainHost(
  parts: ExplainParts,
  { domain: name, tags }: GuestTagSet,
  member: Member,
  likelihood: number | undefined,
  asksPresent: boolean,
): Promise<ExplainedHost> {
  const { host, url } = member;
  const [present, answer] = await Promise.allSettled([
    asksPresent ? presentAt(parts, name, url, tags) : null,
    ask(parts, name, member, tags, likelihood),
  ]);
  const base = {
    host,
    url,
    likelihood: likelihood ?? null,
    present: present.status === 'fulfilled' ? present.value : null,
  };
  if (answer.status === 'fulfilled') return { ...base, ...answer.value };
  return { ...base, explanation: null, state: null, planAgeMs: null, error: asPagetideError(answer.reason).toJSON() };
}

async function presentAt(parts: ExplainParts, name: string, url: string, tags: Uint8Array): Promise<number> {
  const domain = parts.domains.get(name);
  if (domain === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `the secret of '${name}' is not here`);
  const key = domain.openKey();
  try {
    const held = await (parts.held ?? heldTags)({ url, domain: domain.mark, key: key.id }, tags);
    return held.reduce((sum, one) => sum + one, 0);
  } finally {
    key.close();
  }
}

/**
 * In pieces of {@link MOST_EXPLAINED}. The state is that of the last one. The age is the greatest of all: a plan may be made between two of
 * them, and what the first ones were told is then of the plan before.
 */
async function ask(
  { domains, connect, hostMs = HOST_MS }: ExplainParts,
  name: string,
  member: Member,
  tags: Uint8Array,
  likelihood: number | undefined,
): Promise<TagsExplained> {
  const id = domains.record(name)?.id;
  if (id === undefined) throw new PagetideError('PT_DOMAIN_UNKNOWN', `there is no domain '${name}' on this host`);
  const signal = AbortSignal.timeout(hostMs);
  return withMember(connect, member, async (peer) => {
    let sum: TagsExplained | undefined;
    // one question also where there is no tag: whether the host plans at all
    for (let first = 0; first === 0 || first < tags.length; first += MOST_EXPLAINED * TAG_BYTES) {
      const some = tags.subarray(first, first + MOST_EXPLAINED * TAG_BYTES);
      const answer = await peer.explainTags(id, some, likelihood, { signal });
      sum =
        sum === undefined
          ? answer
          : {
              ...answer,
              planAgeMs: olderOf(sum.planAgeMs, answer.planAgeMs),
              explanation: addHostExplanations(sum.explanation, answer.explanation),
            };
    }
    return sum!;
  });
}

/** Null: there was none yet. */
function olderOf(a: number | null, b: number | null): number | null {
  return a === null || b === null ? null : Math.max(a, b);
}
