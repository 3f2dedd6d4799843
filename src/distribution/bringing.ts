/** What the distributor asks of whoever brings pages, and of the agent around it: the edges of the parts. */
import type { Domain } from '../migration/domains.ts';
import type { LackingPage } from '../directory/directory.ts';
import type { TagHolders } from './candidates.ts';
import type { Hint } from '../directory/hint.ts';
import type { Rates } from './token-bucket.ts';

/** Pages of one domain to be brought, the most important first. */
export interface Errand {
  domain: Domain;
  /** Agents that may have pages. */
  urls: readonly string[];
  /** Packed. */
  tags: Uint8Array;
  /** Holders of tag i: [first[i], first[i + 1]) of `holder`. */
  first: Uint32Array;
  /** Index into `urls`. */
  holder: Uint16Array;
  /** Cache value, 0 to 15. */
  value: number;
}

/** Of one tag. */
export const BROUGHT = 1;
export const PRESENT = 2;
/** No holder had it, or none was reached. */
export const ABSENT = 3;
/** The cache had no room. */
export const FULL = 4;
export const STOPPED = 5;

export interface ErrandResult {
  outcome: Uint8Array;
  /** Of brought pages: bytes on the wire. */
  wireBytes: Uint16Array;
  wrong: { url: string; pages: number }[];
  unreachable: string[];
}

export interface Bringer {
  bring(errand: Errand, signal?: AbortSignal): Promise<ErrandResult>;
  setRates(rates: Rates): void;
  stats(): { standingBack: boolean };
}

/** A directory, as far as it is asked here. */
export interface AskedDirectory {
  holders(domain: string, tags: Uint8Array): Promise<TagHolders>;
  lacking(domain: string, host: string, options: { limit: number; cursor?: string }): Promise<LackingPage>;
  hints(domain: string): Promise<readonly Hint[]>;
}

/** Which directory a domain has. */
export interface DirectoryPlace {
  directory: AskedDirectory;
  /** What the domain is called there. */
  domain: string;
  /** What this host is called there. */
  self: string;
  /** The host that keeps it; null or none: this one. */
  home?: string | null;
}

export interface Member {
  host: string;
  url: string;
}

/** The agent around distribution. */
export interface Surroundings {
  /** Undefined: the domain has none, as far as this host knows. */
  directory(name: string): DirectoryPlace | undefined;
  domains(): readonly Domain[];
  /** Other hosts of the domain. */
  members(name: string): readonly Member[];
  /** A guest's stable tags, packed. Rejects where it isn't there. `domain`: as the directory calls it. */
  guestTags(member: Member, domain: string, guest: string): Promise<Uint8Array>;
  /** The domain's guests at a member. Without it, guests of a host that is to be evacuated are known by their host alone. */
  guestsOf?(member: Member, domain: string): Promise<readonly string[]>;
}
