/** What the distributor asks of whoever brings pages, and of the agent around it: the edges of the parts. */
import type { Domain } from '../migration/domains.ts';
import type { Holders, LackingPage } from '../directory/directory.ts';
import type { Errand, ErrandResult } from './errand.ts';
import type { Hint } from '../directory/hint.ts';
import type { Rates } from './token-bucket.ts';

/** What of a bringer (bringer.ts) the distributor uses. */
export interface ErrandBringer {
  bring(errand: Errand, signal?: AbortSignal): Promise<ErrandResult>;
  setRates(rates: Rates): void;
  stats(): { standingBack: boolean };
}

/** A directory, as far as it is asked here. */
export interface AskedDirectory {
  holders(domain: string, tags: Uint8Array): Promise<Holders>;
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
