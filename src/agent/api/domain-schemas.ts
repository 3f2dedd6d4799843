/** The shapes of domains: those of src/domains/, said once more for the machine. See schemas.ts. */
import { z } from 'zod';
import type { DomainAnswer, DomainCheckIn, DomainOffer } from '../../domains/messages.ts';
import { MOST_GRANTS } from '../../domains/records.ts';
import type { DomainInfo, DomainRemoval } from '../../domains/service.ts';
import { domainName, errorJson } from './schemas.ts';

const address = z.string().min(1).max(1024);
export const domainId = z
  .string()
  .regex(/^[0-9a-f]{32}$/, '32 hexadecimal digits')
  .meta({ description: 'Names a domain on every host; tells nothing of its secret.' });
const epoch = z.int().min(0).meta({ description: 'Grows: a later message about a domain overrules an earlier one.' });
const member = z.object({ host: address, url: address });

export const domainInfo = z
  .object({
    name: domainName,
    id: domainId,
    home: z.string().nullable().meta({ description: 'The host that made it; null: this one.' }),
    usable: z.boolean().meta({ description: 'false: its secret is not here.' }),
    grants: z
      .array(
        z.object({
          host: z.string().meta({ description: 'The name in its certificate, or unix:PATH.' }),
          url: z.string(),
          state: z.enum(['granting', 'granted', 'revoking']),
          error: errorJson.exactOptional().meta({ description: 'Why it has not been told yet.' }),
        }),
      )
      .meta({ description: 'Where it was made here: hosts that have it, or may have.' }),
    members: z.array(member).meta({ description: 'Where it was not: who has it, as its home last said.' }),
    guests: z.array(z.string()).meta({ description: 'Guests of it on this host.' }),
  })
  .meta({ id: 'DomainInfo' });

export const domainRemoval = z
  .object({
    removed: domainName,
    told: z.array(z.string()).meta({
      description: 'Hosts that have forgotten it; of one that was made elsewhere: that host, which knows of it now.',
    }),
    waiting: z.array(z.string()).meta({ description: 'Hosts that were not reached; they are told when they are.' }),
  })
  .meta({ id: 'DomainRemoval' });

export const domainRequest = z.strictObject({ name: domainName });
export const grantRequest = z.strictObject({
  to: address.meta({ description: "A host's name, its agent's https:// URL, or unix:PATH of a control socket." }),
});
export const revokeRequest = z.strictObject({
  host: address.meta({ description: 'Its name, or the address that it was granted to.' }),
});

// between agents

export const domainOffer = z
  .strictObject({
    name: domainName,
    // the message says nothing of what was sent
    secret: z.string().regex(/^[0-9a-f]{64}$/, '64 hexadecimal digits'),
    home: address,
    as: address,
    epoch,
    members: z.array(z.strictObject({ host: address, url: address })).max(MOST_GRANTS + 1),
  })
  .meta({ id: 'DomainOffer' });

export const domainAnswer = z
  .object({
    made: z.boolean().meta({ description: 'The agent that answers has made it.' }),
    held: z.boolean().meta({ description: 'The agent that answers was granted it.' }),
    url: z.string().meta({ description: 'Under which other agents reach it.' }),
  })
  .meta({ id: 'DomainAnswer' });

export const withdrawQuery = z.object({ epoch: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER) });
export const checkInBody = z.strictObject({ as: address });
export const giveUpBody = z.strictObject({ as: address, epoch: z.int().min(0) });
export const domainCheckIn = z
  .object({ state: z.enum(['granted', 'revoked', 'unknown']), members: z.array(member) })
  .meta({ id: 'DomainCheckIn' });

// compile-time only, as in schemas.ts
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
type Gives<S extends z.ZodType, T> = Same<z.output<S>, T>;
type AllHold<T extends true[]> = T;
export type DomainSchemasAreInStep = AllHold<
  [
    Gives<typeof domainInfo, DomainInfo>,
    Gives<typeof domainRemoval, DomainRemoval>,
    Gives<typeof domainOffer, DomainOffer>,
    Gives<typeof domainAnswer, DomainAnswer>,
    Gives<typeof domainCheckIn, DomainCheckIn>,
  ]
>;
