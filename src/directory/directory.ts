/**
 * The directory: which tags are held by how many guests of a domain, and on which hosts.
 *
 *   agent                                          directory
 *     report 1, begins ───────────────────────────►  all that the host told before is dropped, this is taken over
 *                      ◄─────────────────────────── applied, wanted: [tags that others hold, too]
 *     report 2: differences, and how many guests ─►  must be the next one
 *               hold what was wanted
 *     report 2 again (the answer was lost) ───────►  changes nothing; applied
 *     report 4 ───────────────────────────────────►  changes nothing; anew: 3 is missing, begin again
 *
 * What an agent tells is the *reported state* of its guests: sets of stable tags, a set a guest. A report changes it by differences: a
 * tag is told as added once a guest, however many frames have it, and as removed before it can be added again. A guest that leaves is
 * told by removing its tags and `gone`.
 *
 * A tag that one guest holds has no record, so the directory can't name its holder. When a second one reports it, the hosts that may be
 * the first are asked: `wanted` in the answers to their next reports, until they answer with `held`. The answer is the number of the
 * host's guests that hold the tag in the reported state *after* the report that carries it: absolute, so it is right whatever was
 * counted before.
 *
 * What it promises, as of the reports applied and the hosts whose lease runs:
 *
 *  - A tag that one guest holds, or none, counts 0 once no host is asked for it any more.
 *  - A tag that more hold counts exactly then.
 *  - Until then it counts no more than there are.
 *
 * It is a cache of what agents know. Losing it, or a part of it, costs that they tell all anew, and nothing else; no page is ever
 * installed because of what it says, but by its tag. All sizes are bounded, and a report that is refused changes nothing.
 */
import { PagetideError } from '../errors.ts';
import { isZeroTag } from '../pages/tag-runs.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type { Hint, HintSubject } from './hint.ts';
import { checkHost, checkName } from './names.ts';

/** Tags in one report: added, removed and answered together. */
export const MOST_REPORT_TAGS = 65_536;
/** Guests' differences in one report. */
export const MOST_CHANGES = 1024;
/** Tags wanted in one answer, all domains together. */
export const MOST_WANTED = 4096;
/** Tags in one query, and in one page of {@link Directory.lacking}. */
export const MOST_QUERY_TAGS = 65_536;

/** Differences of one guest in one domain. Tags are packed, 16 bytes each; never the zero tag. */
export interface GuestChange {
  domain: string;
  /** Unique within the host. */
  guest: string;
  added: Uint8Array;
  removed: Uint8Array;
  /** It is no longer there; `removed` has the last of its tags. */
  gone?: boolean;
}

/** Answers to {@link Wanted}, in its order; they may be a part of it, from its beginning. */
export interface Held {
  domain: string;
  /** Packed. */
  tags: Uint8Array;
  /** For each: how many guests of this host hold it in the reported state after this report. */
  guests: Uint16Array;
}

export interface Report {
  /** As the home of the domain calls it: 1 to 255 printable ASCII characters without spaces. */
  host: string;
  /**
   * The agent's start: an integer that grows with each. An agent has to keep it, and take a greater one than the last also where its
   * clock was set back.
   */
  epoch: number;
  /** 1, 2, 3… in an epoch; never used twice for different reports. */
  sequence: number;
  /** All that the host told before is void. It may have any sequence that is greater than those before. */
  begins?: boolean;
  changes: readonly GuestChange[];
  held?: readonly Held[];
}

/** Tags that the directory asks a host for. */
export interface Wanted {
  domain: string;
  /** Packed; at least one. */
  tags: Uint8Array;
}

export interface ReportAnswer {
  /** `anew`: the report changed nothing; the next one must begin, and all be told again. */
  state: 'applied' | 'anew';
  /** Given with each answer until it is answered. */
  wanted: Wanted[];
  /** Tags that the next report may have, so that those of all hosts together are not too many at once. None: no other bound. */
  most?: number;
}

/** Who holds tags; number `i` of the arrays is for tag `i`, and hosts of tag `i` are [first[i], first[i + 1]) of `host` and `held`. */
export interface Holders {
  hosts: string[];
  /** Guests on all hosts that hold it. */
  guests: Uint32Array;
  /** One more than tags. */
  first: Uint32Array;
  /** Index into `hosts`. */
  host: Uint16Array;
  /** Guests of that host that hold it. */
  held: Uint16Array;
}

export interface LackingPage extends Holders {
  /** Packed. May be empty, and there are more all the same. */
  tags: Uint8Array;
  /** For the next page; none: this was the last. */
  cursor?: string;
}

export interface HostInfo {
  host: string;
  epoch: number;
  /** Until its lease runs out, milliseconds. */
  leaseMs: number;
  /** Guests that it has told of, in all domains. */
  guests: number;
}

/**
 * Every method may reject with `PT_BAD_ARGUMENT` (sizes, names, numbers; nothing has changed) and, where the directory is elsewhere,
 * `PT_PEER_UNREACHABLE`: an agent goes on with what it knows then.
 */
export interface Directory {
  /**
   * Takes a report over, whole or not at all, and renews the host's lease. One that was applied before changes nothing and is answered
   * as applied; one behind a gap, of a host that isn't known (any more), or after something of the host was lost, changes nothing and
   * is answered with `anew`.
   * @throws PagetideError `PT_SUPERSEDED` where an agent of that name and a later epoch has reported; `PT_BAD_ARGUMENT` also where
   * there are too many hosts or domains
   */
  report(report: Report): Promise<ReportAnswer>;

  /**
   * Renews the lease where there is nothing to report. Answered as a repeated report is.
   * @param sequence of the last report that was answered as applied. A directory that has forgotten it (it went on from an older
   * snapshot) answers with `anew`. Without it, one that has gone on from a snapshot does so until the host has reported.
   * @throws PagetideError `PT_SUPERSEDED`
   */
  heartbeat(host: string, epoch: number, sequence?: number): Promise<ReportAnswer>;

  /** How many guests hold each of these tags, and on which hosts. A domain that isn't known holds nothing. */
  holders(domain: string, tags: Uint8Array): Promise<Holders>;

  /**
   * Tags with a record that guests of other hosts hold and no guest of this one does, in pages. The host may be one that has told nothing.
   *
   * A tag that is so from the first page of a walk to its last is given exactly once, whatever changes meanwhile; one that becomes so, or
   * ceases to be, once at most, unless it leaves and comes back. A page takes a bounded time: it may hold few tags, or none, and
   * have a cursor. What a host holds besides its guests (its cache) isn't known here.
   * @param options limit: tags in a page, 1 to 65,536; now and then a few more. cursor: of the page before; good across restarts
   */
  lacking(domain: string, host: string, options: { limit: number; cursor?: string }): Promise<LackingPage>;

  hosts(): Promise<HostInfo[]>;

  /** Takes a host out with all that it told. Its epoch is remembered. Does nothing where it isn't known. */
  removeHost(host: string): Promise<void>;

  /** Drops a domain, with its hints. Hosts that report anything added to it afterwards are told to begin anew. */
  removeDomain(domain: string): Promise<void>;

  /** The domain's hints in force, the one set last at the end. */
  hints(domain: string): Promise<Hint[]>;

  /**
   * Every member of the domain sees it until it expires, after `leftMs` from now. In the place of an earlier one about the same subject.
   * @throws PagetideError `PT_BAD_ARGUMENT` also where there are too many
   */
  hint(domain: string, hint: Hint): Promise<void>;

  /** Whether there was one in force. Repeated, as after a lost answer, there is none. */
  withdraw(domain: string, subject: HintSubject): Promise<boolean>;

  /** Drops everything but the hosts' epochs, and the hints: each host is told to begin anew. Hints nobody could tell again. */
  empty(): Promise<void>;

  /** Idempotent. */
  close(): Promise<void>;
}

function refuse(message: string): never {
  throw new PagetideError('PT_BAD_ARGUMENT', message);
}

/** Returns how many tags. @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkTags(tags: Uint8Array, most: number): number {
  if (!(tags instanceof Uint8Array)) refuse('tags are packed into a Uint8Array');
  const count = tags.length / TAG_BYTES;
  if (!Number.isInteger(count)) refuse(`${tags.length} bytes are no tags of ${TAG_BYTES}`);
  if (count > most) refuse(`${count} tags at once; ${most} at most`);
  return count;
}

/** @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkNumber(value: number, what: string): void {
  if (!Number.isSafeInteger(value) || value < 1) refuse(`${what} is a whole number from 1 on, not ${value}`);
}

/** Everything about a report that can be told without the directory's state. @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkReport({ host, epoch, sequence, changes, held = [] }: Report): void {
  checkHost(host);
  checkNumber(epoch, 'an epoch');
  checkNumber(sequence, 'a sequence');
  if (changes.length > MOST_CHANGES || held.length > MOST_CHANGES)
    refuse(`a report has ${MOST_CHANGES} changes at most, and as many answers`);
  let room = MOST_REPORT_TAGS;
  for (const { domain, guest, added, removed } of changes) {
    checkName(domain, 'domain');
    checkName(guest, 'guest');
    room -= checkTags(added, room);
    room -= checkTags(removed, room);
    for (let i = 0; i < added.length / TAG_BYTES; i++) if (isZeroTag(added, i)) refuse('the zero page is not reported');
  }
  for (const { domain, tags, guests } of held) {
    checkName(domain, 'domain');
    const count = checkTags(tags, room);
    room -= count;
    if (!(guests instanceof Uint16Array) || guests.length !== count) refuse(`${count} answers need as many numbers`);
  }
}
