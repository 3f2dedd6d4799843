/**
 * What an agent writes down about its domains, but for their secrets, which have files of their own; and how it is read
 * back: nothing on disk is believed unseen.
 *
 *   made here                                 granted from elsewhere
 *   ─────────                                 ──────────────────────
 *   home: null                                home: who made it, how it is reached, what it calls this host
 *   grants: the hosts that have, or may       members: who else has it, as its home last said
 *           have, the secret
 *
 * A grant is `granting` from before the secret is sent until it is known to have arrived, so that no host ever has it
 * unrecorded; `revoking` until the host has said that it forgot it. What was removed stays in mind, for hosts that were away.
 */
import { z } from 'zod';
import { PagetideError } from '../errors.ts';

/** Grows when the records change so that an older agent would misread them. */
export const RECORDS_VERSION = 2;
/** Most domains of an agent, hosts that one is granted to, and removed ones that are remembered. */
export const MOST_DOMAINS = 1000;
export const MOST_GRANTS = 1000;
const MOST_REMOVED = 1000;

const whole = z.int().min(0);
const host = z.string().min(1).max(1024);
const member = z.strictObject({ host, url: z.string().min(1).max(1024) });
const grant = z.strictObject({
  host,
  /** Where the host is told of the domain. */
  url: z.string().min(1).max(1024),
  /** Where its pages are, once it has answered. */
  pages: z.string().max(1024).exactOptional(),
  state: z.enum(['granting', 'granted', 'revoking']),
  /** Of the last message to the host about this domain: a later one overrules an earlier, whenever they arrive. */
  epoch: whole,
});
const domain = z.strictObject({
  name: z.string().min(1),
  /** Names the domain on every host; tells nothing of the secret. */
  id: z.string().regex(/^[0-9a-f]{32}$/),
  /** Names it in this host's cache file. */
  number: z.int().min(0).max(0xffff_ffff),
  /** Of the secret, without giving it away: that the file is the right one. */
  mark: z.string(),
  home: z
    .strictObject({
      /** The name in its certificate; null: it reached this agent over the control socket. */
      host: host.nullable(),
      url: z.string().min(1).max(1024),
      /** What it calls this host. */
      as: host,
      epoch: whole,
    })
    .nullable(),
  grants: z.array(grant),
  members: z.array(member),
});
const removed = z.strictObject({
  id: z.string(),
  name: z.string(),
  number: whole,
  /** Its pages are gone from this host. */
  erased: z.boolean(),
  /** Hosts that have yet to hear of it. */
  tell: z.array(
    z.strictObject({
      host,
      url: z.string().min(1).max(1024),
      epoch: whole,
      /**
       * It is the domain's home, and calls this host so: it is to hear that this one has given the domain up. `epoch` is that of the
       * grant then. Not in records of version 1.
       */
      as: host.exactOptional(),
    }),
  ),
});
const records = z.strictObject({
  /** Read in this version, too: nothing but what is optional was added since. */
  version: z.literal([1, RECORDS_VERSION]),
  /** Highest that was ever used. */
  epoch: whole,
  domains: z.array(domain),
  removed: z.array(removed),
});

export type Member = z.output<typeof member>;
export type GrantRecord = z.output<typeof grant>;
export type DomainRecord = z.output<typeof domain>;
export type RemovedRecord = z.output<typeof removed>;
export type DomainRecords = z.output<typeof records>;

export function noRecords(): DomainRecords {
  return { version: RECORDS_VERSION, epoch: 0, domains: [], removed: [] };
}

/** @throws PagetideError `PT_IO` where it is damaged, `PT_STATE_VERSION` where a newer version wrote it */
export function parseRecords(text: string, path: string): DomainRecords {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw damaged(path, cause);
  }
  const version = (json as { version?: unknown } | null)?.version;
  if (typeof version === 'number' && version > RECORDS_VERSION)
    throw new PagetideError(
      'PT_STATE_VERSION',
      `${path} is of version ${version}, this agent knows ${RECORDS_VERSION}`,
    );
  const result = records.safeParse(json);
  if (!result.success) throw damaged(path, result.error);
  // the agent died before it knew whether that host got the secret: it is to forget it, as nobody was told that it has it
  for (const { grants } of result.data.domains)
    for (const one of grants) if (one.state === 'granting') one.state = 'revoking';
  return result.data;
}

export function printRecords(of: DomainRecords): string {
  return `${JSON.stringify({ ...of, version: RECORDS_VERSION }, undefined, 1)}\n`;
}

/** Drops the oldest of what was removed, beyond what is remembered; never one that a host has yet to hear of. */
export function forgetOldest(of: DomainRecords): void {
  for (let at = 0; at < of.removed.length && of.removed.length > MOST_REMOVED;) {
    const { erased, tell } = of.removed[at]!;
    if (erased && tell.length === 0) of.removed.splice(at, 1);
    else at++;
  }
}

function damaged(path: string, cause: unknown): PagetideError {
  return new PagetideError('PT_IO', `${path} is damaged`, {
    cause,
    hint: 'Restore it; or move the folder away, and make and grant the domains anew.',
  });
}
