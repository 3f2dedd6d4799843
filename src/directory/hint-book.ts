/**
 * The hints of the domains of one directory, each until it expires.
 *
 * They are what operators said, not what agents know, and nobody tells them again: emptying a directory leaves them, and so does a host
 * that is taken out. They go with their domain.
 */
import { PagetideError } from '../errors.ts';
import { checkHint, checkSubject, HINTS_LIMIT, HINTS_TEXT_LIMIT, type Hint, type HintSubject } from './hint.ts';

/** Domains that have hints, at most. */
const MOST_DOMAINS = 1024;

interface Entry {
  hint: Hint;
  endMs: number;
  /** Characters of its names. */
  text: number;
}

interface Entries {
  /** By subject. */
  readonly byKey: Map<string, Entry>;
  /** Of all together. */
  text: number;
  /** None expires before. */
  nextMs: number;
}

export class HintBook {
  readonly #clock: () => number;
  #latestMs = -Infinity;
  readonly #domains = new Map<string, Entries>();

  /** @param clock milliseconds. One that goes back is taken to stand still, so nothing that expired comes back. */
  constructor(clock: () => number) {
    this.#clock = clock;
  }

  /** Those in force, the one set last at the end. */
  list(domain: string): Hint[] {
    const now = this.#expire(domain);
    const entries = this.#domains.get(domain)?.byKey.values() ?? [];
    return [...entries].map(({ hint, endMs }) => ({ ...hint, leftMs: endMs - now }));
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT`: what {@link checkHint} refuses, or too many; nothing has changed then */
  set(domain: string, hint: Hint): void {
    checkHint(hint);
    const endMs = this.#expire(domain) + hint.leftMs;
    const known = this.#domains.get(domain);
    if (known === undefined && this.#domains.size >= MOST_DOMAINS)
      throw new PagetideError('PT_BAD_ARGUMENT', `${MOST_DOMAINS} domains have hints already`);
    const entries = known ?? { byKey: new Map<string, Entry>(), text: 0, nextMs: Infinity };
    const key = keyOf(hint);
    const old = entries.byKey.get(key);
    const text = textOf(hint);
    const all = entries.text - (old?.text ?? 0) + text;
    if ((old === undefined && entries.byKey.size >= HINTS_LIMIT) || all > HINTS_TEXT_LIMIT)
      throw new PagetideError('PT_BAD_ARGUMENT', `there are ${entries.byKey.size} hints already; withdraw some`);
    entries.byKey.delete(key);
    const copy = hint.kind === 'affinity' ? { ...hint, hosts: [...hint.hosts] } : { ...hint };
    entries.byKey.set(key, { hint: copy, endMs, text });
    entries.text = all;
    entries.nextMs = Math.min(entries.nextMs, endMs);
    this.#domains.set(domain, entries);
  }

  /** Whether there was one in force. @throws PagetideError `PT_BAD_ARGUMENT` */
  withdraw(domain: string, subject: HintSubject): boolean {
    checkSubject(subject);
    this.#expire(domain);
    return this.#delete(domain, keyOf(subject));
  }

  /** In the place of those that there are: each with the time that it has left; those without any are left out. */
  restore(domain: string, hints: readonly Hint[]): void {
    this.#domains.delete(domain);
    for (const hint of hints) if (hint.leftMs > 0) this.set(domain, hint);
  }

  removeDomain(domain: string): void {
    this.#domains.delete(domain);
  }

  /** The time now. */
  #expire(domain: string): number {
    this.#latestMs = Math.max(this.#latestMs, this.#clock());
    const entries = this.#domains.get(domain);
    if (entries === undefined || entries.nextMs > this.#latestMs) return this.#latestMs;
    entries.nextMs = Infinity;
    for (const [key, { endMs }] of entries.byKey)
      if (endMs <= this.#latestMs) this.#delete(domain, key);
      else entries.nextMs = Math.min(entries.nextMs, endMs);
    return this.#latestMs;
  }

  #delete(domain: string, key: string): boolean {
    const entries = this.#domains.get(domain);
    const entry = entries?.byKey.get(key);
    if (entries === undefined || entry === undefined) return false;
    entries.byKey.delete(key);
    entries.text -= entry.text;
    if (entries.byKey.size === 0) this.#domains.delete(domain);
    return true;
  }
}

function keyOf(subject: HintSubject): string {
  return subject.kind === 'evacuate' ? `evacuate ${subject.host}` : `affinity ${subject.guest}`;
}

function textOf(hint: Hint): number {
  if (hint.kind === 'evacuate') return hint.host.length;
  return hint.guest.length + hint.hosts.reduce((sum, host) => sum + host.length, 0);
}
