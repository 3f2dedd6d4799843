/**
 * Domains, as a migration sees them: sets of guests that may share pages, each with a secret that tags are made with. Both
 * sides of a migration need the same one; that they have it is proven before anything is started for the guest, as every
 * page would be found wrong otherwise, when it is too late to go back.
 */
import { PagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';
import { TAG_BYTES, TAG_PAGE, tagToHex, type DomainKey } from '../pages/tags.ts';

export interface Domain {
  name: string;
  /** Names the domain in the cache's file: the same in every run of this agent, and never another domain's. */
  id: number;
  /** Names its secret without giving it away (pages/key-file.ts), 32 hex digits: the same wherever somebody has that secret. */
  mark: string;
  /** A handle of the caller's own on its secret. The caller closes it. */
  openKey(): DomainKey;
}

/** Where this agent's domains are known. */
export interface Domains {
  /** Undefined: this host was not granted a domain of that name. */
  get(name: string): Domain | undefined;
  /** Other hosts that have the domain, and the URLs of their agents; as far as this one knows. */
  members(name: string): readonly { host: string; url: string }[];
  /** Calls back after a domain was removed, or this host lost it. */
  onRemoved(callback: (domain: { name: string; id: number }) => void): void;
}

/** Of an agent that has none. */
export const noDomains: Domains = {
  get: () => undefined,
  members: () => [],
  onRemoved: () => undefined,
};

/** With a preparation: which domain, and that the source has its secret. */
export interface DomainClaim {
  name: string;
  /** Hex; see {@link claimDomain}. */
  proof: string;
}

/**
 * A keyed digest that nobody makes without the secret, and of no use for another migration: the tag of a page that names the
 * migration. It starts with what no guest would put there, and being known would give away no more than that one tag.
 */
function proofOf(key: DomainKey, migration: string): string {
  const page = Buffer.alloc(TAG_PAGE);
  page.write(`pagetide domain claim 1\0${migration}`);
  const tag = new Uint8Array(TAG_BYTES);
  native().tagPages(key.id, page, 1, tag);
  return tagToHex(tag);
}

/** What the source says with its preparation. */
export function claimDomain(domain: Domain, key: DomainKey, migration: string): DomainClaim {
  return { name: domain.name, proof: proofOf(key, migration) };
}

/**
 * The domain that a source claims.
 * @throws PagetideError `PT_DOMAIN_UNKNOWN` where this host does not have it; `PT_DOMAIN_SECRET` where it has another secret
 */
export function checkClaim(domains: Domains, claim: DomainClaim, migration: string): Domain {
  const domain = domains.get(claim.name);
  if (domain === undefined)
    throw new PagetideError('PT_DOMAIN_UNKNOWN', `the guest's domain '${claim.name}' is not known on this host`);
  const key = domain.openKey();
  try {
    if (proofOf(key, migration) !== claim.proof)
      throw new PagetideError('PT_DOMAIN_SECRET', `source and destination have different secrets of '${claim.name}'`);
  } finally {
    key.close();
  }
  return domain;
}
