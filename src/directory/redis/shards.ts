/** The scripts of shards with types. A place is "domain.generation:shard", what a shard's keys are tagged with. */
import { TAG_BYTES } from '../../pages/tags.ts';
import type { Holders } from '../directory.ts';
import { script, type Argument, type Connection, type Script } from './connection.ts';
import { APPLY } from './lua-apply.ts';
import { BURY, HOLDERS, LACKING, SWEEP, WANTED } from './lua-read.ts';
import { unmix } from './mix.ts';
import type { Operations } from './operations.ts';
import type { View } from './registry.ts';

const SCRIPTS = {
  apply: script(APPLY),
  bury: script(BURY),
  holders: script(HOLDERS),
  lacking: script(LACKING),
  sweep: script(SWEEP),
  wanted: script(WANTED),
};
/** Buckets of some 32 records that one call looks at. */
const SWEPT = 64;
const BURIED = 1024;
const END = 2 ** 32;

export function placeOf(domain: string, generation: string, shard: number): string {
  return `${domain}.${generation}:${shard}`;
}

/** What the script found: cells of tags, index into the view and guests. */
export interface Cells {
  /** Of each tag: cells before it; one more than tags. */
  first: number[];
  host: number[];
  held: number[];
}

export class Shards {
  readonly #connection: Connection;
  readonly #prefix: string;

  constructor(connection: Connection, prefix: string) {
    this.#connection = connection;
    this.#prefix = prefix;
  }

  /** Undefined: lost. */
  async apply(
    place: string,
    view: View,
    incarnation: string,
    number: number,
    before: number,
    { bytes, count }: Operations,
  ): Promise<{ worn: boolean; asked: string[] } | undefined> {
    const reply = await this.#run(SCRIPTS.apply, place, view, incarnation, number, before, bytes, count);
    const [state, worn, asked] = reply as [Buffer, number, Buffer[]];
    return state.toString() === 'ok' ? { worn: worn === 1, asked: asked.map(String) } : undefined;
  }

  /** Tags that it is asked for, `most` of them; undefined: lost. */
  async wanted(
    place: string,
    view: View,
    incarnation: string,
    before: number,
    most: number,
  ): Promise<Uint8Array | undefined> {
    const reply = await this.#run(SCRIPTS.wanted, place, view, incarnation, before, most);
    const [state, tags] = reply as [Buffer, Buffer];
    return state.toString() === 'ok' ? unmix(tags) : undefined;
  }

  /** @param mixed tags */
  async holders(place: string, view: View, mixed: Uint8Array): Promise<Cells> {
    const reply = (await this.#run(SCRIPTS.holders, place, view, mixed)) as Buffer;
    const cells: Cells = { first: [0], host: [], held: [] };
    for (let at = 0; at < reply.length;) at = readCells(reply, at, cells);
    return cells;
  }

  /** @param at position @returns next: position, undefined where there are no more here */
  async lacking(
    place: string,
    view: View,
    incarnation: string,
    at: number,
    limit: number,
  ): Promise<{ next: number | undefined; tags: Uint8Array; cells: Cells }> {
    const reply = await this.#run(SCRIPTS.lacking, place, view, incarnation, at, limit);
    const [end, count, found] = reply as [Buffer, number, Buffer];
    const mixed = new Uint8Array(count * TAG_BYTES);
    const cells: Cells = { first: [0], host: [], held: [] };
    let offset = 0;
    for (let i = 0; i < count; i++) {
      mixed.set(found.subarray(offset, offset + TAG_BYTES), i * TAG_BYTES);
      offset = readCells(found, offset + TAG_BYTES, cells);
    }
    const next = Number(end.toString());
    return { next: next < END ? next : undefined, tags: unmix(mixed), cells };
  }

  /** Takes out what dead hosts told; a part of it. Whether there is more. */
  async sweep(place: string, view: View): Promise<boolean> {
    return (await this.#run(SCRIPTS.sweep, place, view, SWEPT)) === 1;
  }

  /** Deletes a part of it. Whether there is more. */
  async bury(place: string, view: View): Promise<boolean> {
    return (await this.#run(SCRIPTS.bury, place, view, BURIED)) === 1;
  }

  #run(which: Script, place: string, { latest, incarnations }: View, ...args: Argument[]): Promise<unknown> {
    return this.#connection.run(which, `${this.#prefix}{${place}}`, [latest, incarnations.join(' '), ...args]);
  }
}

/** How many (2 bytes), then host and guests, 2 bytes each. Returns where it ends. */
function readCells(from: Buffer, at: number, cells: Cells): number {
  const count = from.readUInt16BE(at);
  for (let i = 0; i < count; i++) {
    cells.host.push(from.readUInt16BE(at + 2 + 4 * i));
    cells.held.push(from.readUInt16BE(at + 4 + 4 * i));
  }
  cells.first.push(cells.host.length);
  return at + 2 + 4 * count;
}

/** Puts cells of several answers together. `order[i]`: which answer tag `i` is in, and where. */
export function assemble(names: readonly string[], order: readonly (readonly [Cells, number])[]): Holders {
  const all = order.reduce((sum, [{ first }, i]) => sum + first[i + 1]! - first[i]!, 0);
  const holders = {
    hosts: [...names],
    guests: new Uint32Array(order.length),
    first: new Uint32Array(order.length + 1),
    host: new Uint16Array(all),
    held: new Uint16Array(all),
  };
  let next = 0;
  order.forEach(([cells, at], i) => {
    for (let cell = cells.first[at]!; cell < cells.first[at + 1]!; cell++, next++) {
      holders.host[next] = cells.host[cell]!;
      holders.held[next] = cells.held[cell]!;
      holders.guests[i]! += cells.held[cell]!;
    }
    holders.first[i + 1] = next;
  });
  return holders;
}
