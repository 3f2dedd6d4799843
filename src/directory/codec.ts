/**
 * The binary forms of what agents and a directory tell each other: little-endian, `text` is a byte of length and ASCII.
 *
 *   every message   kind 1 │ version 1 │ …
 *   report          host text │ epoch 8 │ sequence 8 │ begins 1 │ changes 2 × change │ held 2 × held
 *     change        domain text │ guest text │ gone 1 │ added 4 │ removed 4 │ tags
 *     held          domain text │ count 4 │ tags │ guests 2 each
 *   answer          anew 1 │ wanted 2 × ( domain text │ count 4 │ tags )
 *   holders         hosts 2 × text │ tags 4 │ cells 4 │ guests 4 each tag │ first 4 each tag and one more │ host 2, then held 2 each cell
 *   lacking         count 4 │ tags │ cursor text, empty: none │ as holders
 *
 * A message is taken whole or refused whole (`PT_PROTOCOL`; `PT_BAD_ARGUMENT` where a report is well-formed and not to be taken): its
 * lengths are compared with what there is and with what is allowed before anything is allocated, and nothing may be left over. There
 * is no checksum: it comes over TLS or a Unix socket.
 */
import { TAG_BYTES } from '../pages/tags.ts';
import { ByteReader, ByteWriter, malformed } from './bytes.ts';
import {
  checkReport,
  MOST_CHANGES,
  MOST_QUERY_TAGS,
  MOST_REPORT_TAGS,
  MOST_WANTED,
  type GuestChange,
  type Held,
  type Holders,
  type LackingPage,
  type Report,
  type ReportAnswer,
  type Wanted,
} from './directory.ts';

const VERSION = 2;
const REPORT = 1;
const ANSWER = 2;
const HOLDERS = 3;
const LACKING = 4;
/** Bytes of a report, at most: tags, their answers' numbers, and names. */
export const MOST_REPORT_BYTES = 2 << 20;
/** Bytes of an answer, at most: holders of 65,536 tags on 64 hosts. */
export const MOST_ANSWER_BYTES = 24 << 20;
/** Tags in a page of `lacking`: a few more than were asked for may come. */
const MOST_PAGE_TAGS = 2 * MOST_QUERY_TAGS;

/** Of a report that {@link checkReport} takes. */
export function encodeReport({ host, epoch, sequence, begins = false, changes, held = [] }: Report): Buffer {
  const to = begin(REPORT);
  to.text(host);
  to.whole(epoch);
  to.whole(sequence);
  to.u8(begins ? 1 : 0);
  to.u16(changes.length);
  for (const { domain, guest, gone = false, added, removed } of changes) {
    to.text(domain);
    to.text(guest);
    to.u8(gone ? 1 : 0);
    to.u32(added.length / TAG_BYTES);
    to.u32(removed.length / TAG_BYTES);
    to.raw(added);
    to.raw(removed);
  }
  to.u16(held.length);
  for (const { domain, tags, guests } of held) {
    to.text(domain);
    to.u32(guests.length);
    to.raw(tags);
    to.items(guests);
  }
  return to.joined();
}

/** Tags are views of `bytes`. @throws PagetideError `PT_PROTOCOL`, `PT_BAD_ARGUMENT` */
export function decodeReport(bytes: Uint8Array): Report {
  const from = open(bytes, REPORT);
  const report = { host: from.text(), epoch: from.whole(), sequence: from.whole(), begins: from.flag() };
  let room = MOST_REPORT_TAGS;
  const tags = (count: number): Uint8Array => {
    if (count > room) throw malformed(`more than ${MOST_REPORT_TAGS} tags`);
    room -= count;
    return from.raw(count * TAG_BYTES);
  };
  const changes: GuestChange[] = [];
  for (let left = countOf(from.u16(), MOST_CHANGES); left > 0; left--) {
    const change = { domain: from.text(), guest: from.text(), gone: from.flag() };
    const added = from.u32();
    const removed = from.u32();
    changes.push({ ...change, added: tags(added), removed: tags(removed) });
  }
  const held: Held[] = [];
  for (let left = countOf(from.u16(), MOST_CHANGES); left > 0; left--) {
    const domain = from.text();
    const count = from.u32();
    held.push({ domain, tags: tags(count), guests: from.u16s(count) });
  }
  from.end();
  const whole = { ...report, changes, held };
  checkReport(whole);
  return whole;
}

export function encodeAnswer({ state, wanted, most = 0 }: ReportAnswer): Buffer {
  const to = begin(ANSWER);
  to.u8(state === 'anew' ? 1 : 0);
  to.u32(most);
  to.u16(wanted.length);
  for (const { domain, tags } of wanted) {
    to.text(domain);
    to.u32(tags.length / TAG_BYTES);
    to.raw(tags);
  }
  return to.joined();
}

/** @throws PagetideError `PT_PROTOCOL` */
export function decodeAnswer(bytes: Uint8Array): ReportAnswer {
  const from = open(bytes, ANSWER);
  const state = from.flag() ? 'anew' : 'applied';
  const most = from.u32();
  const wanted: Wanted[] = [];
  let room = MOST_WANTED;
  for (let left = from.u16(); left > 0; left--) {
    const domain = from.text();
    const count = countOf(from.u32(), room);
    if (count === 0) throw malformed('nothing is wanted of a domain');
    room -= count;
    wanted.push({ domain, tags: from.raw(count * TAG_BYTES) });
  }
  from.end();
  return { state, wanted, ...(most === 0 ? {} : { most }) };
}

export function encodeHolders(holders: Holders): Buffer {
  const to = begin(HOLDERS);
  putHolders(to, holders);
  return to.joined();
}

/** @throws PagetideError `PT_PROTOCOL` */
export function decodeHolders(bytes: Uint8Array): Holders {
  const from = open(bytes, HOLDERS);
  const holders = takeHolders(from, MOST_QUERY_TAGS);
  from.end();
  return holders;
}

export function encodeLacking({ tags, cursor = '', ...holders }: LackingPage): Buffer {
  const to = begin(LACKING);
  to.u32(tags.length / TAG_BYTES);
  to.raw(tags);
  to.text(cursor);
  putHolders(to, holders);
  return to.joined();
}

/** @throws PagetideError `PT_PROTOCOL` */
export function decodeLacking(bytes: Uint8Array): LackingPage {
  const from = open(bytes, LACKING);
  const tags = from.raw(countOf(from.u32(), MOST_PAGE_TAGS) * TAG_BYTES);
  const cursor = from.text();
  const holders = takeHolders(from, MOST_PAGE_TAGS);
  from.end();
  if (holders.guests.length * TAG_BYTES !== tags.length) throw malformed('not as many tags as holders are told of');
  return { tags, ...holders, ...(cursor === '' ? {} : { cursor }) };
}

function begin(kind: number): ByteWriter {
  const to = new ByteWriter();
  to.u8(kind);
  to.u8(VERSION);
  return to;
}

function open(bytes: Uint8Array, kind: number): ByteReader {
  const from = new ByteReader(bytes);
  const [is, version] = [from.u8(), from.u8()];
  if (is !== kind || version !== VERSION) throw malformed(`kind ${is}, version ${version}`);
  return from;
}

function countOf(count: number, most: number): number {
  if (count > most) throw malformed(`${count} at once; ${most} at most`);
  return count;
}

function putHolders(to: ByteWriter, { hosts, guests, first, host, held }: Holders): void {
  to.u16(hosts.length);
  for (const name of hosts) to.text(name);
  to.u32(guests.length);
  to.u32(host.length);
  to.items(guests);
  to.items(first);
  to.items(host);
  to.items(held);
}

function takeHolders(from: ByteReader, most: number): Holders {
  const hosts: string[] = [];
  for (let left = from.u16(); left > 0; left--) hosts.push(from.text());
  const tags = countOf(from.u32(), most);
  const cells = from.u32();
  const guests = from.u32s(tags);
  const first = from.u32s(tags + 1);
  const host = from.u16s(cells);
  const held = from.u16s(cells);
  // whoever walks by them must stay within
  for (let i = 0; i < tags; i++) if (first[i]! > first[i + 1]!) throw malformed('holders out of order');
  if (first[0] !== 0 || first[tags] !== cells) throw malformed('holders that belong to no tag');
  for (const index of host) if (index >= hosts.length) throw malformed('a holder without a name');
  return { hosts, guests, first, host, held };
}
