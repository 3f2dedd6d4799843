/**
 * What operators say about where guests of a domain will go, as a directory keeps it and every member of the domain sees it.
 *
 *   evacuate   all guests of the host leave it, and none comes to it
 *   affinity   a guest that moves goes to one of these hosts, or stays where it is one of them
 *
 * What follows from that is src/distribution/hints.ts.
 */
import { PagetideError } from '../errors.ts';
import { checkHost, checkName } from './names.ts';

/** The longest that a hint may last, in milliseconds: 30 days. */
export const HINT_LIMIT_MS = 30 * 24 * 3_600_000;
/** Hints that are kept at most, of both kinds together; in a directory: of a domain. */
export const HINTS_LIMIT = 10_000;
/** Hosts that an affinity may name at most. */
export const AFFINITY_HOSTS_LIMIT = 64;
/** Characters of all names in the hints of a domain, so that they fit into one answer. */
export const HINTS_TEXT_LIMIT = 4 << 20;

/** A hint in force; `leftMs`: milliseconds until it expires. */
export type Hint =
  | { kind: 'evacuate'; host: string; leftMs: number }
  | { kind: 'affinity'; guest: string; hosts: readonly string[]; leftMs: number };

/** What a hint is about: a later one about the same takes the place of the earlier. */
export type HintSubject = { kind: 'evacuate'; host: string } | { kind: 'affinity'; guest: string };

function refuse(message: string): never {
  throw new PagetideError('PT_BAD_ARGUMENT', message);
}

/** @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkHintTime(forMs: number): void {
  if (!(forMs > 0 && forMs <= HINT_LIMIT_MS))
    refuse(`a hint lasts more than 0 and at most ${HINT_LIMIT_MS} milliseconds, not ${forMs}`);
}

/** How many hosts an affinity names. @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkAffinityHosts(count: number): void {
  if (!(count >= 1 && count <= AFFINITY_HOSTS_LIMIT))
    refuse(`an affinity names a guest and 1 to ${AFFINITY_HOSTS_LIMIT} hosts, not ${count}`);
}

/** @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkSubject(subject: HintSubject): void {
  if (subject.kind === 'evacuate') checkHost(subject.host);
  else checkName(subject.guest, 'guest');
}

/** @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkHint(hint: Hint): void {
  checkSubject(hint);
  checkHintTime(hint.leftMs);
  if (hint.kind === 'evacuate') return;
  checkAffinityHosts(hint.hosts.length);
  for (const host of hint.hosts) checkHost(host);
}
