/** The registry's operations (lua-hosts.ts) with types. */
import { PagetideError } from '../../errors.ts';
import type { HostInfo } from '../directory.ts';
import { script, type Argument, type Connection } from './connection.ts';
import { HOSTS } from './lua-hosts.ts';
import { SHARDS } from './mix.ts';

const SCRIPT = script(HOSTS);

/**
 * Who was known at a moment, in an order of its own. An incarnation is what a host has told since it last began; it never comes back. One
 * that isn't here is dead, unless it is later than `latest`.
 */
export interface View {
  latest: string;
  names: string[];
  incarnations: string[];
}

/** A domain's shards are those of its generation: one that is removed and comes again has others. */
export interface Generation {
  domain: string;
  generation: string;
}

/** Consecutive shards, and the number of the last report that changed each; 0: none. */
export interface Check extends Generation {
  first: number;
  numbers: number[];
}

export interface Applied {
  state: 'applied';
  incarnation: string;
  view: View;
  /** "domain.generation:shard", and a version. */
  marks: [place: string, version: string][];
  checks: Check[];
}

export interface Opened {
  state: 'apply';
  incarnation: string;
  number: number;
  view: View;
  /** Domains that take part, each with the numbers of all its shards. */
  domains: Map<string, { generation: string; numbers: number[] }>;
}

export interface Commit {
  host: string;
  incarnation: string;
  sequence: number;
  worn: boolean;
  /** A flag a shard. */
  touched: (Generation & { shards: Uint8Array })[];
  guests: (Generation & { guest: string; gone: boolean })[];
  /** Incarnations, and where they are asked for something. */
  asked: [incarnation: string, place: string][];
}

/** Which checks to give: a counter, or all. */
export type From = number | 'all';

type Reply = (Buffer | Reply)[];

export class Registry {
  readonly #connection: Connection;
  /** What all of its keys begin with, and the hints'. */
  readonly key: string;
  readonly #leaseMs: number;
  readonly #clock: (() => number) | undefined;

  constructor(connection: Connection, prefix: string, leaseMs: number, clock: (() => number) | undefined) {
    this.#connection = connection;
    this.key = `${prefix}{${prefix}hosts}`;
    this.#leaseMs = leaseMs;
    this.#clock = clock;
  }

  /** @param changed domains that are changed, and whether anything is added @param answered domains that answers are for, besides */
  async open(
    report: { host: string; epoch: number; sequence: number; begins: boolean },
    from: From,
    nonce: string,
    changed: ReadonlyMap<string, boolean>,
    answered: readonly string[],
  ): Promise<Opened | Applied | 'anew'> {
    const { host, epoch, sequence, begins } = report;
    const domains = [...changed].flatMap(([domain, adds]) => [domain, adds ? 1 : 0]);
    const args = [host, epoch, sequence, begins ? 1 : 0, from, nonce, changed.size, ...domains];
    const reply = await this.#run('open', ...args, answered.length, ...answered);
    if (text(reply[0]) !== 'apply') return state(host, reply);
    return {
      state: 'apply',
      incarnation: text(reply[1]),
      number: Number(text(reply[2])),
      view: viewOf(reply[3] as Reply),
      domains: new Map(
        (reply.slice(4) as Reply[]).map(([domain, generation, numbers]) => [
          text(domain),
          { generation: text(generation), numbers: numbersOf(numbers as Buffer, SHARDS) },
        ]),
      ),
    };
  }

  async commit(
    { host, incarnation, sequence, worn, touched, guests, asked }: Commit,
    from: From,
  ): Promise<Applied | 'anew'> {
    const reply = await this.#run(
      'commit',
      host,
      incarnation,
      sequence,
      from,
      worn ? 1 : 0,
      touched.length,
      ...touched.flatMap(({ domain, generation, shards }) => [domain, generation, bits(shards)]),
      guests.length,
      ...guests.flatMap(({ domain, generation, guest, gone }) => [domain, generation, guest, gone ? 1 : 0]),
      asked.length,
      ...asked.flat(),
    );
    return state(host, reply);
  }

  async beat(host: string, epoch: number, sequence: number, from: From): Promise<Applied | 'anew'> {
    return state(host, await this.#run('beat', host, epoch, sequence, from));
  }

  /** Takes marks off that have not changed since. */
  async unmark(incarnation: string, marks: readonly [place: string, version: string][]): Promise<void> {
    if (marks.length > 0) await this.#run('unmark', incarnation, marks.length, ...marks.flat());
  }

  /** Something of this incarnation was lost: its host is to begin anew. */
  async spoil(host: string, incarnation: string): Promise<void> {
    await this.#run('spoil', host, incarnation);
  }

  async view(domain: string): Promise<{ view: View; generation: string | undefined }> {
    const [generation, view] = await this.#run('view', domain);
    return { view: viewOf(view as Reply), generation: text(generation) || undefined };
  }

  async hosts(): Promise<HostInfo[]> {
    const reply = (await this.#run('hosts')) as [Buffer, Buffer, Buffer, number][];
    return reply.map(([host, epoch, leaseMs, guests]) => ({
      host: text(host),
      epoch: Number(text(epoch)),
      leaseMs: Number(text(leaseMs)),
      guests,
    }));
  }

  async remove(what: 'removeHost' | 'removeDomain', name: string): Promise<void> {
    await this.#run(what, name);
  }

  async empty(): Promise<void> {
    await this.#run('empty');
  }

  /** Forgets who was here, and counters, once no host, domain or generation is known. Whether that is so. */
  async erase(): Promise<boolean> {
    return (await this.#run('erase')).length > 0;
  }

  /** What to sweep next; undefined: another agent did less than `pauseMs` ago. */
  async turn(
    pauseMs: number,
    most: number,
  ): Promise<{ view: View; places: string[]; removed: [place: string, isLast: boolean][] } | undefined> {
    const reply = await this.#run('turn', pauseMs, most);
    if (reply.length === 0) return undefined;
    const [view, places, removed] = reply as [Reply, Buffer[], [Buffer, number][]];
    return {
      view: viewOf(view),
      places: places.map(text),
      removed: removed.map(([place, isLast]) => [text(place), isLast === 1]),
    };
  }

  /** A removed generation needs no more looking after. */
  async buried(place: string): Promise<void> {
    await this.#run('buried', place);
  }

  async #run(op: string, ...args: Argument[]): Promise<Reply> {
    const now = this.#clock === undefined ? '' : this.#clock();
    return (await this.#connection.run(SCRIPT, this.key, [op, now, this.#leaseMs, ...args])) as Reply;
  }
}

function text(value: unknown): string {
  return (value as Buffer).toString();
}

function viewOf([latest, names, incarnations]: Reply): View {
  return {
    latest: text(latest),
    names: (names as Buffer[]).map(text),
    incarnations: (incarnations as Buffer[]).map(text),
  };
}

/** @throws PagetideError `PT_SUPERSEDED`, `PT_BAD_ARGUMENT` */
function state(host: string, reply: Reply): Applied | 'anew' {
  const word = text(reply[0]);
  if (word === 'anew') return 'anew';
  if (word === 'superseded')
    throw new PagetideError('PT_SUPERSEDED', `an agent '${host}' that started later (${text(reply[1])}) has reported`);
  if (word === 'full') throw new PagetideError('PT_BAD_ARGUMENT', `the directory knows too many ${text(reply[1])}`);
  const [, incarnation, view, flat, checks] = reply as [Buffer, Buffer, Reply, Buffer[], Reply[]];
  const marks: [string, string][] = [];
  for (let i = 0; i < flat.length; i += 2) marks.push([text(flat[i]), text(flat[i + 1])]);
  return {
    state: 'applied',
    incarnation: text(incarnation),
    view: viewOf(view),
    marks,
    checks: checks.map(([domain, generation, first, last, numbers]) => ({
      domain: text(domain),
      generation: text(generation),
      first: Number(first),
      numbers: numbersOf(numbers as Buffer, Number(last) - Number(first) + 1),
    })),
  };
}

/** Big-endian, 4 bytes each; those that are missing are 0. */
function numbersOf(packed: Buffer, count: number): number[] {
  return Array.from({ length: count }, (_, i) => (4 * i + 4 <= packed.length ? packed.readUInt32BE(4 * i) : 0));
}

function bits(flags: Uint8Array): Uint8Array {
  const packed = new Uint8Array(flags.length / 8);
  flags.forEach((flag, i) => (packed[i >> 3]! |= flag << (i & 7)));
  return packed;
}
