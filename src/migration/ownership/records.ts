/** What the records of a journal come to: who is where, which epochs are used up, what may be forgotten. No I/O. */
import { PagetideError, type ErrorJson } from '../../errors.ts';
import { recoverDestination, type DestinationStep } from './destination.ts';
import { recoverSource, type SourceStep } from './source.ts';
import type { MigrationKey, OwnershipRecord } from './types.ts';

/** The name of a machine on a host: one a key and side. */
export function machineName(side: OwnershipRecord['side'], { migration, epoch }: MigrationKey): string {
  return `${side} ${migration}@${epoch}`;
}

/** The last record of each machine, in the order in which the machines were first journaled. */
export function lastRecords<R extends OwnershipRecord>(records: Iterable<R>): R[] {
  const last = new Map<string, R>();
  for (const record of records) last.set(machineName(record.side, record), record);
  return [...last.values()];
}

/** Nothing has to be done about a machine whose last record is this one. */
export function isOver({ state }: OwnershipRecord): boolean {
  return state === 'running' || state === 'released' || state === 'complete' || state === 'refused' || state === 'lost';
}

/** The highest epoch that this host has seen for a guest; 0 when none. */
export function highestEpoch(records: Iterable<OwnershipRecord>, guest: string): number {
  let highest = 0;
  for (const record of records) if (record.guest === guest) highest = Math.max(highest, record.epoch);
  return highest;
}

/** The epoch for the next try to move a guest. `floor`: what a destination that refused said it had seen. */
export function nextEpoch(records: Iterable<OwnershipRecord>, guest: string, floor = 0): number {
  return Math.max(highestEpoch(records, guest), floor) + 1;
}

/** Machines for everything that the journal leaves to be done, in the journal's order. */
export function recover(records: Iterable<OwnershipRecord>): (SourceStep | DestinationStep)[] {
  return lastRecords(records).map((last) => (last.side === 'source' ? recoverSource(last) : recoverDestination(last)));
}

export interface AdmissionRequest {
  guest: string;
  epoch: number;
  /** {@link highestEpoch} of this host for the guest, machines that still wait for their first record included. */
  highest: number;
  /** A VMM that goes by this name is on this host, in whatever state (other than one attached as incoming for it). */
  present: boolean;
  /** A machine of another key for this guest, of either side, isn't over on this host. */
  busy: boolean;
}

/** Why a prepare must be refused; undefined when nothing about ownership is against it. */
export function admission({ guest, epoch, highest, present, busy }: AdmissionRequest): ErrorJson | undefined {
  if (busy) {
    return new PagetideError(
      'PT_GUEST_BUSY',
      `another migration of guest '${guest}' is under way at the destination`,
    ).toJSON();
  }
  if (present) return new PagetideError('PT_GUEST_EXISTS', `the destination has a guest '${guest}' already`).toJSON();
  if (epoch <= highest) {
    const message = `epoch ${epoch} of guest '${guest}' is used up: the destination has seen ${highest}`;
    return new PagetideError('PT_GUEST_STATE', message, {
      hint: 'Start the migration again with a higher epoch.',
    }).toJSON();
  }
  return undefined;
}

/** How many records of machines that are over are kept, at most. About 200 bytes each. */
export const KEPT_OVER = 1024;

/**
 * What a compacted journal keeps: the last record of every machine that isn't over, each guest's highest epoch, and
 * the newest {@link KEPT_OVER} of the rest. Forgetting a refusal can't make anybody an owner: a take-over or abort
 * that comes later is for an unknown key and is refused durably again; a prepare that comes later is for a used-up epoch.
 */
export function compactOwnership<R extends OwnershipRecord>(records: Iterable<R>, keptOver = KEPT_OVER): R[] {
  const last = lastRecords(records);
  const keep = new Set<R>(last.filter((record) => !isOver(record)));
  const highest = new Map<string, R>();
  for (const record of last) {
    if (record.guest !== null && record.epoch >= (highest.get(record.guest)?.epoch ?? 0))
      highest.set(record.guest, record);
  }
  for (const record of highest.values()) keep.add(record);
  const over = last.filter((record) => isOver(record));
  for (const record of over.slice(Math.max(0, over.length - keptOver))) keep.add(record);
  return last.filter((record) => keep.has(record));
}
