/** What a destination keeps in its journal beside its ownership. */
import type { GuestRecord } from '../guests/driver.ts';
import type { AcquiredRecord, CopiedFrames } from './arrival.ts';
import type { PageBytes, SwitchBytes } from './incoming-figures.ts';
import type { CompletionFigures, PrepareRequest } from './types.ts';

/** Kept with every record of the journal: what a restarted agent needs. */
export interface IncomingDetails {
  request?: PrepareRequest;
  /** The name in the certificate of the source, where it showed one: nobody else has a say in this migration. */
  source?: string;
  vmm?: GuestRecord;
  acquired?: AcquiredRecord;
  resumedAt?: number;
  /** How long the guest stood still for the disk of this host's journal, milliseconds. Absent: not known any more. */
  journalMs?: number;
  startedAt: number;
  switchBytes?: SwitchBytes;
  /** Where pages follow the guest: what was copied before, and was still right when it was stopped. */
  copied?: CopiedFrames;
  /** And what that took until then: the service of an agent that takes the guest up counts from zero. */
  copiedBytes?: PageBytes;
  /** Of the final manifest, hex: by it the tags are known again after a restart. */
  digest?: string;
  /**
   * Every page is here: from now on the memory is parted from its userfaultfd, and the page table says nothing any more.
   * Durable before that begins, with the figures that go with the table. A guest that was copied whole has this with `owner`.
   */
  whole?: CompletionFigures;
}
