/**
 * What of a directory crosses the network in lists, at both ends: they are cut into messages that a pace allows, each of which waits for its turn.
 *
 *   who asks    says how many tags at most, as few as fit into a message going by what the last ones took, and waits before it asks
 *   who answers makes the list, a shorter one where it is larger than a message, and waits before it sends it
 *
 * So a host asks for no more than it may receive, and a home that many ask sends no more than it may send, whatever the others think.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import type { Holders, LackingPage, Report, ReportAnswer, Wanted } from './directory.ts';

/** `TagPace` (src/distribution/tag-pace.ts), without what it is made of. */
export interface TagPacing {
  /** Tags that one message may have: of {@link TAG_BYTES} each. */
  readonly most: number;
  /** Resolves when a message of so many bytes may go. */
  pass(bytes: number, of?: { signal?: AbortSignal; report?: boolean }): Promise<void>;
}

/** Of a list, a tag on three hosts. */
const USUAL_BYTES = 40;
/** The smallest report that a home asks for, in tags: with its headers it is little more than a heartbeat. */
export const LEAST_REPORT = 64;

/** Bytes of a list on its way (./codec.ts): of the names of its hosts, and of its tags. */
export function listBytes(list: Holders & { tags?: Uint8Array }): { names: number; tags: number } {
  const { hosts, tags, guests, first, host, held } = list;
  return {
    names: hosts.reduce((sum, name) => sum + name.length + 2, 0),
    tags: (tags?.byteLength ?? 0) + guests.byteLength + first.byteLength + host.byteLength + held.byteLength,
  };
}

/** How many tags fit into a message. */
class ListSize {
  readonly #pace: TagPacing;
  #names = 0;
  #bytesPerTag = USUAL_BYTES;

  constructor(pace: TagPacing) {
    this.#pace = pace;
  }

  get messageBytes(): number {
    return this.#pace.most * TAG_BYTES;
  }

  fit(limit: number): { tags: number; bytes: number } {
    const most = Math.floor((this.messageBytes - this.#names) / this.#bytesPerTag);
    const tags = Math.min(limit, Math.max(1, most));
    return { tags, bytes: this.#names + Math.ceil(tags * this.#bytesPerTag) };
  }

  /** Returns the bytes of the list. */
  learn(list: Holders & { tags?: Uint8Array }): number {
    const { names, tags } = listBytes(list);
    if (list.guests.length > 0) {
      this.#names = names;
      this.#bytesPerTag = Math.max(TAG_BYTES, tags / list.guests.length);
    }
    return names + tags;
  }
}

/** At the end that asks. One a directory. */
export class AskedLists {
  readonly #pace: TagPacing;
  readonly #size: ListSize;

  constructor(pace: TagPacing) {
    this.#pace = pace;
    this.#size = new ListSize(pace);
  }

  /** As `Directory.lacking`, whose pages become smaller. */
  async lacking(limit: number, ask: (limit: number) => Promise<LackingPage>): Promise<LackingPage> {
    const { tags, bytes } = this.#size.fit(limit);
    await this.#pace.pass(bytes);
    const page = await ask(tags);
    this.#size.learn(page);
    return page;
  }

  /** As `Directory.holders`, asked for in pieces. */
  async holders(tags: Uint8Array, ask: (tags: Uint8Array) => Promise<Holders>): Promise<Holders> {
    const pieces: Holders[] = [];
    let from = 0;
    do {
      const some = this.#size.fit((tags.length - from) / TAG_BYTES);
      await this.#pace.pass(some.bytes);
      const piece = await ask(tags.subarray(from, from + some.tags * TAG_BYTES));
      this.#size.learn(piece);
      pieces.push(piece);
      from += some.tags * TAG_BYTES;
    } while (from < tags.length);
    return pieces.length === 1 ? pieces[0]! : joined(pieces);
  }
}

/** At a domain's home, which answers. For any number of hosts. */
export class AnsweredLists {
  readonly #pace: TagPacing;
  readonly #size: ListSize;

  constructor(pace: TagPacing) {
    this.#pace = pace;
    this.#size = new ListSize(pace);
  }

  async lacking(limit: number, make: (limit: number) => Promise<LackingPage>): Promise<LackingPage> {
    let { tags } = this.#size.fit(limit);
    for (;;) {
      const page = await make(tags);
      const bytes = this.#size.learn(page);
      if (bytes <= this.#size.messageBytes || tags <= 1) {
        await this.#pace.pass(bytes);
        return page;
      }
      tags = Math.max(1, Math.min(tags >> 1, this.#size.fit(tags).tags));
    }
  }

  async holders(tags: Uint8Array, make: (tags: Uint8Array) => Promise<Holders>): Promise<Holders> {
    const holders = await make(tags);
    const { names, tags: told } = listBytes(holders);
    await this.#pace.pass(Math.max(tags.length, names + told));
    return holders;
  }

  /**
   * The answer to a report or a heartbeat: with no more questions than half a message, and with how large the next report may be, so that those of
   * all hosts at once are one message, as long as there are fewer hosts than it has times {@link LEAST_REPORT} tags.
   *
   * It is answered when the pace has let the report and the answer pass. As a host waits for the answer before it reports again, all hosts together
   * report at the pace of their home, though none knows of the others.
   * @param hosts that may report
   */
  async answer(report: Report | undefined, answer: ReportAnswer, hosts: number): Promise<ReportAnswer> {
    const { most } = this.#pace;
    const wanted = shortened(answer.wanted, most >> 1);
    const asked = wanted.reduce((sum, { tags }) => sum + tags.length, 0);
    const told = tagBytes(report);
    if (asked + told > 0) await this.#pace.pass(Math.max(asked, told), { report: true });
    return { ...answer, wanted, most: Math.max(LEAST_REPORT, Math.floor(most / Math.max(1, hosts))) };
  }
}

/** The first of what is wanted; of the rest it asks with the next answer. */
export function shortened(wanted: readonly Wanted[], most: number): Wanted[] {
  const first: Wanted[] = [];
  let room = most * TAG_BYTES;
  for (const { domain, tags } of wanted) {
    if (room <= 0) break;
    first.push({ domain, tags: tags.subarray(0, room) });
    room -= tags.length;
  }
  return first;
}

function tagBytes(report: Report | undefined): number {
  let bytes = 0;
  for (const { added, removed } of report?.changes ?? []) bytes += added.length + removed.length;
  for (const { tags, guests } of report?.held ?? []) bytes += tags.length + guests.byteLength;
  return bytes;
}

/** Holders of tags that were asked for in pieces, one after the other. */
function joined(pieces: readonly Holders[]): Holders {
  const numbers = new Map<string, number>();
  const tags = pieces.reduce((sum, { guests }) => sum + guests.length, 0);
  const cells = pieces.reduce((sum, { host }) => sum + host.length, 0);
  const [guests, first] = [new Uint32Array(tags), new Uint32Array(tags + 1)];
  const [host, held] = [new Uint16Array(cells), new Uint16Array(cells)];
  let [tag, cell] = [0, 0];
  for (const piece of pieces) {
    const numbered = piece.hosts.map((name) => {
      if (!numbers.has(name)) numbers.set(name, numbers.size);
      return numbers.get(name)!;
    });
    guests.set(piece.guests, tag);
    for (let i = 0; i <= piece.guests.length; i++) first[tag + i] = cell + piece.first[i]!;
    for (let i = 0; i < piece.host.length; i++) host[cell + i] = numbered[piece.host[i]!]!;
    held.set(piece.held, cell);
    tag += piece.guests.length;
    cell += piece.host.length;
  }
  return { hosts: [...numbers.keys()], guests, first, host, held };
}
