/**
 * What agents tell each other about a domain. Every message may be repeated, and may come late: the epoch decides.
 *
 *   home                                                   host
 *   GET    /v1/domain-grants/{id}            ────────────►  who is there, and has it the domain?
 *   PUT    /v1/domain-grants/{id}            ────────────►  here it is, with its secret
 *   DELETE /v1/domain-grants/{id}?epoch=…    ────────────►  forget it, and its pages
 *   POST   /v1/domain-grants/{id}/check-in   ◄────────────  have I still got it, and who else has?
 *   POST   /v1/domain-grants/{id}/give-up    ◄────────────  I have removed what came with that epoch
 *
 * Over mutual TLS, where the name in the certificate says who asks; or over the other agent's control socket, which only its
 * own user and root can reach. Never over a plain port: there is no telling who listens there, or asks.
 */
import { PagetideError } from '../errors.ts';
import type { Member } from './records.ts';

/** Who sent a message: the name in its certificate; null: it came over the control socket. */
export type Sender = string | null;

/** A domain for a host. */
export interface DomainOffer {
  name: string;
  /** 64 hex digits. */
  secret: string;
  /** How its home is reached. */
  home: string;
  /** What the home calls this host. */
  as: string;
  epoch: number;
  /** Who else has it. */
  members: Member[];
}

export interface DomainAnswer {
  /** It was made there, by the agent that answers. */
  made: boolean;
  /** The agent that answers has it. */
  held: boolean;
  /** Under which other agents reach the one that answers. */
  url: string;
}

export interface DomainCheckIn {
  /** `unknown`: that agent never made such a domain, or has lost all memory of it. */
  state: 'granted' | 'revoked' | 'unknown';
  members: Member[];
}

/** @throws PagetideError `PT_PEER_FAILED` */
export function domainAnswer(json: unknown, origin: string): DomainAnswer {
  const { made, held, url } = fields<DomainAnswer>(json);
  if (typeof made === 'boolean' && typeof held === 'boolean' && typeof url === 'string') return { made, held, url };
  throw wrong(origin);
}

/** @throws PagetideError `PT_PEER_FAILED` */
export function domainCheckIn(json: unknown, origin: string): DomainCheckIn {
  const { state, members } = fields<DomainCheckIn>(json);
  if ((state === 'granted' || state === 'revoked' || state === 'unknown') && isMembers(members))
    return { state, members: members.map(({ host, url }) => ({ host, url })) };
  throw wrong(origin);
}

function isMembers(list: unknown): list is Member[] {
  return (
    Array.isArray(list) &&
    list.every((one) => {
      const { host, url } = fields<Member>(one);
      return isText(host) && isText(url);
    })
  );
}

function isText(text: unknown): boolean {
  return typeof text === 'string' && text !== '' && text.length <= 1024;
}

function fields<T>(json: unknown): Partial<Record<keyof T, unknown>> {
  return typeof json === 'object' && json !== null ? json : {};
}

function wrong(origin: string): PagetideError {
  return new PagetideError('PT_PEER_FAILED', `${origin} answered something else about a domain`, {
    hint: 'Both agents must be of versions that know domains.',
  });
}
