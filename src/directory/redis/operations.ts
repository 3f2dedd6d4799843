/** A report as operations by shard: what lua-apply.ts takes. */
import { TAG_BYTES } from '../../pages/tags.ts';
import type { Report } from '../directory.ts';
import { mix, shardOf, SHARDS } from './mix.ts';

const ADDED = 0x2b; // '+'
const REMOVED = 0x2d; // '-'
const HELD = 0x3d; // '='

/** Operations for one shard of one domain. */
export class Operations {
  readonly domain: string;
  readonly shard: number;
  count = 0;
  #bytes = Buffer.alloc(256);
  #length = 0;

  constructor(domain: string, shard: number) {
    this.domain = domain;
    this.shard = shard;
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  push(op: number, tags: Uint8Array, at: number, guests?: number): void {
    if (this.#length + TAG_BYTES + 3 > this.#bytes.length) {
      const larger = Buffer.alloc(this.#bytes.length * 2);
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes[this.#length] = op;
    this.#bytes.set(tags.subarray(at, at + TAG_BYTES), this.#length + 1);
    this.#length += TAG_BYTES + 1;
    if (guests !== undefined) this.#length = this.#bytes.writeUInt16BE(guests, this.#length);
    this.count++;
  }
}

/** In the order in which they are to be done. What is of no domain in `domains` is left out. */
export function operationsOf(report: Report, domains: { has(domain: string): boolean }): Operations[] {
  const all = new Map<string, (Operations | undefined)[]>();
  const each = (op: number, domain: string, tags: Uint8Array, guests?: Uint16Array): void => {
    const mixed = mix(tags);
    let shards = all.get(domain);
    if (shards === undefined) all.set(domain, (shards = new Array<undefined>(SHARDS)));
    for (let at = 0; at < mixed.length; at += TAG_BYTES) {
      const shard = shardOf(mixed, at);
      (shards[shard] ??= new Operations(domain, shard)).push(op, mixed, at, guests?.[at / TAG_BYTES]);
    }
  };
  for (const { domain, added, removed } of report.changes) {
    if (!domains.has(domain)) continue;
    each(REMOVED, domain, removed);
    each(ADDED, domain, added);
  }
  for (const { domain, tags, guests } of report.held ?? []) if (domains.has(domain)) each(HELD, domain, tags, guests);
  return [...all.values()].flatMap((shards) => shards.filter((operations) => operations !== undefined));
}
