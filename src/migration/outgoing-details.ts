/** What a migration begins with at its source, and what a restarted agent has of it. */
import type { GuestRecord } from '../guests/driver.ts';
import type { Plan } from './modes.ts';
import type { Departure } from './report.ts';
import type { Mode } from './types.ts';

/** Kept with every record of the journal: what a restarted agent needs. */
export interface OutgoingDetails extends Departure {
  token: string;
  mode: Mode;
  verify: boolean;
  /** The guest's memory files serve on when its VMM is gone. */
  vmm: GuestRecord;
  /** The name in the destination's certificate: pages go to it alone, and only its word counts. Absent: over plain HTTP, or not known yet. */
  destination?: string;
}

export interface OutgoingStart {
  guest: string;
  peer: string;
  epoch: number;
  plan: Plan;
  verify: boolean;
}
