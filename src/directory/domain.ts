/**
 * One domain in the embedded directory: records, and each host's share.
 *
 *                     no filter has it                  a filter has it
 *   added ──► record? ─────────────────► own filter     ───────────────► record; the hosts of those filters are asked
 *               │ yes
 *               ╰──► counted
 *
 *   record, nobody asked any more, one guest or none ──► no record; in the filter of the host that holds it
 *
 * So there is a record exactly where two guests hold a tag, or somebody is still asked. Why nobody is lost:
 *
 *  (1) A host with a guest that holds a tag in the reported state has it counted in the record, has it in its filter, or both.
 *      It comes in by one of the two ways; a filter forgets nothing while its share is there; and a record goes only where one host at most is
 *      counted, which gets it into its filter, and nobody is asked.
 *  (2) A host that holds a tag uncounted when its record is made is asked: by (1) it is in that host's filter. That goes for the host that
 *      made the record, too, for the sake of its other guests. The question stays in the queue until it is answered, and the record with it.
 *  (3) An answer is absolute and belongs to the state right after its report; whatever the host adds and removes later is counted, as the
 *      record is there. So after it the host's count is exact. Before it, it counts what was added and removed since the record was made, and
 *      never below 0: no more than there are, as the uncounted guests can't be fewer than the removals that were not counted.
 *
 * What a false positive does: a tag that one guest holds gets a record, and one host is asked for it in vain. It answers 0, and the record
 * goes. It costs a record's bytes for a round trip, and 18 bytes of traffic. A tag that a host has withdrawn stays in its filter and does the same.
 * A filter worn out by withdrawals is begun anew, with its host: {@link Share.isWorn}.
 *
 * In each host's share the filter is a whole of its own, so a host whose lease runs out, or that begins anew, takes its filter
 * along and does not meet its own traces, which one filter for all would keep for good.
 */
import type { ByteReader, ByteWriter } from './bytes.ts';
import type { GuestChange, Held, Holders, LackingPage } from './directory.ts';
import { hashA, hashB, TagFilter } from './filter.ts';
import { HolderTable } from './table.ts';
import { TAG_WORDS, toWords } from './tag-words.ts';
import { WantedQueue } from './wanted-queue.ts';

/** A filter with this many times the tags that its host holds is begun anew; small ones are left alone. */
const WORN = 4;
const SMALL = 4096;
/** Homes that one page looks at. */
const MOST_HOMES = 2 ** 17;

/** What one host told of one domain. */
export class Share {
  readonly filter: TagFilter;
  readonly wanted: WantedQueue;
  readonly guests = new Set<string>();
  /** Tags in the reported state, counted a guest. */
  tags = 0;

  constructor(filter = new TagFilter(), wanted = new WantedQueue()) {
    this.filter = filter;
    this.wanted = wanted;
  }

  save(to: ByteWriter): void {
    this.filter.save(to);
    this.wanted.save(to);
    to.whole(this.tags);
    to.u32(this.guests.size);
    for (const guest of this.guests) to.text(guest);
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  static load(from: ByteReader): Share {
    const share = new Share(TagFilter.load(from), WantedQueue.load(from));
    share.tags = from.whole();
    for (let left = from.u32(); left > 0; left--) share.guests.add(from.text());
    return share;
  }

  get isWorn(): boolean {
    return this.filter.added > WORN * Math.max(this.tags, SMALL);
  }
}

export class DirectoryDomain {
  #table = new HolderTable();
  /** By the host's number. */
  readonly #shares: (Share | undefined)[] = [];
  #shareCount = 0;
  /** Scratch: hosts whose filters have a tag; slots of one home. */
  readonly #matched: number[] = [];
  #slots = new Uint32Array(64);

  save(to: ByteWriter): void {
    this.#table.save(to);
    to.u16(this.#shareCount);
    this.#shares.forEach((share, host) => {
      if (share === undefined) return;
      to.u16(host);
      share.save(to);
    });
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  static load(from: ByteReader): DirectoryDomain {
    const domain = new DirectoryDomain();
    domain.#table = HolderTable.load(from);
    domain.#shareCount = from.u16();
    for (let left = domain.#shareCount; left > 0; left--) {
      const host = from.u16();
      domain.#shares[host] = Share.load(from);
    }
    return domain;
  }

  get records(): number {
    return this.#table.size;
  }

  get isEmpty(): boolean {
    return this.#shareCount === 0;
  }

  /** Bytes of records, and of filters and queues. */
  bytes(): { records: number; filters: number } {
    const shares = this.#shares.filter((share) => share !== undefined);
    const filters = shares.reduce((sum, { filter, wanted }) => sum + filter.bytes + wanted.bytes, 0);
    return { records: this.#table.bytes, filters };
  }

  share(host: number): Share | undefined {
    return this.#shares[host];
  }

  /** Whether the host's filter is worn out: it is to begin anew. */
  change(host: number, { guest, added, removed, gone = false }: GuestChange): boolean {
    let share = this.#shares[host];
    if (share === undefined) {
      this.#shares[host] = share = new Share();
      this.#shareCount++;
    }
    // a tag that the guest has both lost and got is got
    const less = toWords(removed);
    for (let at = 0; at < less.length; at += TAG_WORDS) this.#remove(host, less, at);
    const more = toWords(added);
    for (let at = 0; at < more.length; at += TAG_WORDS) this.#add(host, share, more, at);
    share.tags = Math.max(0, share.tags + (more.length - less.length) / TAG_WORDS);
    if (gone) share.guests.delete(guest);
    else share.guests.add(guest);
    return share.isWorn;
  }

  /** Takes answers over. Those that nobody asked for count as well; they are as right as the others. */
  held(host: number, { tags, guests }: Held): void {
    const share = this.#shares[host];
    if (share === undefined) return;
    const words = toWords(tags);
    for (let i = 0; i < guests.length; i++) {
      const at = i * TAG_WORDS;
      // a record stays as long as somebody is asked for it
      const slot = this.#table.find(words, at);
      if (slot < 0) continue;
      this.#table.setGuests(slot, host, guests[i]!);
      if (share.wanted.shiftIf(words, at)) this.#table.answered(slot);
      this.#settle(slot);
    }
  }

  /** Takes a host out with all that it told. Looks at every record. */
  dropHost(host: number): void {
    const share = this.#shares[host];
    if (share === undefined) return;
    const asked = share.wanted.all();
    for (let at = 0; at < asked.length; at += TAG_WORDS) this.#table.answered(this.#table.find(asked, at));
    this.#shares[host] = undefined;
    this.#shareCount--;
    for (let slot = 0; slot < this.#table.slots;) {
      if (!this.#table.isUsed(slot)) slot++;
      else {
        this.#table.setGuests(slot, host, 0);
        // where the record goes another one may move here. What moves across the table's end was looked at already
        if (!this.#settle(slot)) slot++;
      }
    }
  }

  holders(tags: Uint8Array, names: readonly string[]): Holders {
    const words = toWords(tags);
    const slots = new Int32Array(words.length / TAG_WORDS);
    for (let i = 0; i < slots.length; i++) slots[i] = this.#table.find(words, i * TAG_WORDS);
    return this.#holdersOf(slots, names);
  }

  /** @param from a hash: the beginning of the page @param host -1: one that has told nothing */
  lacking(host: number, limit: number, from: number, names: readonly string[]): LackingPage {
    const table = this.#table;
    const found: number[] = [];
    let home = table.homeOf(from);
    const end = Math.min(table.slots, home + MOST_HOMES);
    for (; home < end; home++) {
      let count = table.atHome(home, this.#slots, 0);
      if (count > this.#slots.length) {
        this.#slots = new Uint32Array(2 * count);
        count = table.atHome(home, this.#slots, 0);
      }
      const before = found.length;
      for (let i = 0; i < count; i++) {
        const slot = this.#slots[i]!;
        if (table.firstCell(slot) !== 0 && (host < 0 || table.guestsOf(slot, host) === 0)) found.push(slot);
      }
      if (found.length <= limit) continue;
      // a home is given whole, as the cursor can only name homes; the first one also where it alone is too much
      if (before > 0) found.length = before;
      else home++;
      break;
    }
    const tags = new Uint32Array(found.length * TAG_WORDS);
    found.forEach((slot, i) => tags.set(table.words.subarray(slot * TAG_WORDS, (slot + 1) * TAG_WORDS), i * TAG_WORDS));
    const page = { tags: new Uint8Array(tags.buffer), ...this.#holdersOf(Int32Array.from(found), names) };
    return home < table.slots ? { ...page, cursor: table.hashOf(home).toString(16) } : page;
  }

  #add(host: number, share: Share, words: Uint32Array, at: number): void {
    const slot = this.#table.find(words, at);
    if (slot >= 0) {
      this.#table.setGuests(slot, host, this.#table.guestsOf(slot, host) + 1);
      return;
    }
    const a = hashA(words, at);
    const b = hashB(words, at);
    const matched = this.#matched;
    matched.length = 0;
    for (let other = 0; other < this.#shares.length; other++)
      if (this.#shares[other]?.filter.hasHash(a, b) === true) matched.push(other);
    if (matched.length === 0) {
      share.filter.add(words, at);
      return;
    }
    this.#table.setGuests(this.#table.insert(words, at, matched.length), host, 1);
    for (const other of matched) this.#shares[other]!.wanted.push(words, at);
  }

  #remove(host: number, words: Uint32Array, at: number): void {
    const slot = this.#table.find(words, at);
    if (slot < 0) return; // a filter forgets nothing
    this.#table.setGuests(slot, host, this.#table.guestsOf(slot, host) - 1);
    this.#settle(slot);
  }

  /** Takes a record out that isn't needed; whether it did. */
  #settle(slot: number): boolean {
    const table = this.#table;
    if (table.pending(slot) > 0 || table.guests(slot) > 1) return false;
    const cell = table.firstCell(slot);
    if (cell !== 0) this.#shares[table.hostOf(cell)]!.filter.add(table.words, slot * TAG_WORDS);
    table.remove(slot);
    return true;
  }

  /** @param slots -1: no record */
  #holdersOf(slots: Int32Array, names: readonly string[]): Holders {
    const table = this.#table;
    const guests = new Uint32Array(slots.length);
    const first = new Uint32Array(slots.length + 1);
    let all = 0;
    for (let i = 0; i < slots.length; i++) {
      if (slots[i]! >= 0) for (let cell = table.firstCell(slots[i]!); cell !== 0; cell = table.nextCell(cell)) all++;
      first[i + 1] = all;
    }
    const host = new Uint16Array(all);
    const held = new Uint16Array(all);
    let next = 0;
    for (let i = 0; i < slots.length; i++) {
      if (slots[i]! < 0) continue;
      for (let cell = table.firstCell(slots[i]!); cell !== 0; cell = table.nextCell(cell)) {
        host[next] = table.hostOf(cell);
        held[next] = table.countOf(cell);
        guests[i]! += held[next]!;
        next++;
      }
    }
    return { hosts: [...names], guests, first, host, held };
  }
}
