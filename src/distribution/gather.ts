/**
 * Gathers the candidates of one domain: walks the directory, and asks for the tags of guests by name where a hint is about them. It is in
 * the agent's main thread, so it goes in turns.
 */
import { TAG_WORDS } from '../directory/tag-words.ts';
import { asPagetideError } from '../errors.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import type { DirectoryPlace, Member, Surroundings } from './bringing.ts';
import { DomainCandidates } from './candidates.ts';
import type { Hint } from '../directory/hint.ts';
import { Hints } from './hints.ts';
import { logMiss } from './importance.ts';
import type { Turns } from './pieces.ts';

/** Candidates of one plan, all domains together: 8 GiB of pages. */
export const MOST_CANDIDATES = 2 ** 21;
/** Guests of one domain whose tags are asked for by name. */
export const MOST_NAMED = 64;
const LISTED = 8192;
const ASKED = 16_384;

export interface Gathered {
  table: DomainCandidates;
  hints: readonly Hint[];
  /** False: there was no room for more. */
  complete: boolean;
}

export interface GatherTask {
  /** Its name. */
  domain: string;
  place: DirectoryPlace;
  around: Pick<Surroundings, 'members' | 'guestTags' | 'guestsOf'>;
  moves: number;
  /** Candidates that there is room for. */
  room: number;
  before: DomainCandidates | undefined;
  nowMs: () => number;
  turns: Turns;
  /** A guest's tags could not be had. */
  missed: (guest: string, host: string, error: Error) => void;
}

interface NamedGuest {
  guest: string;
  member: Member;
  tags: Uint8Array;
}

/** @throws PagetideError what the directory rejects with: `PT_PEER_UNREACHABLE` */
export async function gather(task: GatherTask): Promise<Gathered> {
  const { place, before, nowMs, turns, moves } = task;
  const members = task.around.members(task.domain);
  const hosts = [...new Set([place.self, ...members.map(({ host }) => host)])];
  const list = await place.directory.hints(place.domain);
  // one that expired on its way is none
  const hints = Hints.from(
    list.filter(({ leftMs }) => leftMs > 0),
    nowMs,
  );
  const likelihood = (guest: string, at: string): number =>
    hints.arrivals([{ guest, at }], place.self, hosts, moves)[0]!;
  const misses = new Map<string, number>();
  const missOf = (host: string): number => {
    let miss = misses.get(host);
    // a guest without a name of its own stands for each of a host's
    if (miss === undefined) misses.set(host, (miss = logMiss(likelihood('', host))));
    return miss;
  };
  const now = nowMs();
  const table = new DomainCandidates(Math.max(1024, Math.ceil((before?.size ?? 0) * 1.25)));
  let cursor: string | undefined;
  let complete = true;
  do {
    const page = await place.directory.lacking(place.domain, place.self, {
      limit: LISTED,
      ...(cursor === undefined ? {} : { cursor }),
    });
    if (table.size + page.tags.length / TAG_BYTES > task.room) {
      complete = false;
      break;
    }
    await turns.run(table.addListed(page.tags, page, missOf, now, before));
    cursor = page.cursor;
    await turns.next();
  } while (cursor !== undefined);
  for await (const { guest, member, tags } of namedGuests(task, list, members)) {
    const miss = logMiss(likelihood(guest, member.host));
    const alone = await turns.run(table.addGuest(tags, miss, missOf(member.host)));
    for (let from = 0; from < alone.length && complete; from += ASKED * TAG_WORDS) {
      const words = alone.slice(from, from + ASKED * TAG_WORDS);
      if (table.size + words.length / TAG_WORDS > task.room) complete = false;
      else await addAlone(task, table, words, member.host, miss, now);
    }
  }
  return { table, hints: list, complete };
}

/** Pages that no guest but this one has, as far as the directory knows: unless one here has them after all. */
async function addAlone(
  { place, before, turns }: GatherTask,
  table: DomainCandidates,
  words: Uint32Array<ArrayBuffer>,
  host: string,
  miss: number,
  nowMs: number,
): Promise<void> {
  const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
  const holders = await place.directory.holders(place.domain, bytes);
  const self = holders.hosts.indexOf(place.self);
  for (let i = 0; i < words.length / TAG_WORDS; i++) {
    if (i % 512 === 511) await turns.next();
    let here = false;
    for (let at = holders.first[i]!; at < holders.first[i + 1]!; at++)
      if (holders.host[at] === self && holders.held[at]! > 0) here = true;
    if (!here) table.addAlone(words, i * TAG_WORDS, host, miss, nowMs, before);
  }
}

/** Guests that a hint is about, with their tags: those of an affinity, and those of hosts that are evacuated. */
async function* namedGuests(
  { around, place, missed }: GatherTask,
  hints: readonly Hint[],
  members: readonly Member[],
): AsyncGenerator<NamedGuest> {
  const asked = new Set<string>();
  const ask = async (member: Member, guest: string): Promise<NamedGuest | undefined> => {
    if (member.host === place.self) return undefined;
    try {
      return { guest, member, tags: await around.guestTags(member, place.domain, guest) };
    } catch (error) {
      missed(guest, member.host, asPagetideError(error));
      return undefined;
    }
  };
  for (const hint of hints) {
    if (hint.kind !== 'evacuate' || hint.host === place.self) continue;
    const member = members.find(({ host }) => host === hint.host);
    if (member === undefined || around.guestsOf === undefined) continue;
    let guests: readonly string[] = [];
    try {
      guests = await around.guestsOf(member, place.domain);
    } catch (error) {
      missed('(all)', member.host, asPagetideError(error));
    }
    for (const guest of guests) {
      if (asked.size >= MOST_NAMED) return;
      asked.add(guest);
      const named = await ask(member, guest);
      if (named !== undefined) yield named;
    }
  }
  for (const hint of hints) {
    if (hint.kind !== 'affinity' || asked.has(hint.guest)) continue;
    if (asked.size >= MOST_NAMED) return;
    asked.add(hint.guest);
    // where a guest is nobody says but its host: all are asked at once, as there are few
    const answers = await Promise.all(members.map(async (member) => ask(member, hint.guest)));
    const named = answers.find((answer) => answer !== undefined);
    if (named !== undefined) yield named;
  }
}
