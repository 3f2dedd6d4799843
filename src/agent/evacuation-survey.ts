/**
 * What is found out before guests are evacuated: which of them can go, what targets can take, and which of the guests' pages are there
 * already. Changes nothing. Costs a look over the guests' tags and a few thousand of them a guest and target on the network.
 */
import { stat } from 'node:fs/promises';
import { asPagetideError, PagetideError, type ErrorJson } from '../errors.ts';
import type { Movable, Vmm } from '../guests/driver.ts';
import type { EvacuationGuest, EvacuationTarget } from '../migration/evacuation-plan.ts';
import type { MigrationHost } from '../migration/host.ts';
import { planMigration } from '../migration/modes.ts';
import { OutgoingMigration } from '../migration/outgoing.ts';
import { samplePages } from '../migration/page-sample.ts';
import type { Capabilities } from '../migration/types.ts';
import type { Manifest } from '../pages/manifest.ts';
import { TAG_BYTES } from '../pages/tags.ts';
import { heldTags } from '../transport/held-tags.ts';
import { writeTracking } from './capabilities.ts';
import { statusOf, type Guests } from './guests.ts';
import type { Migrations } from './migrations.ts';
import type { EvacuateRequest } from './service.ts';

/** Pages of one guest in the sample, at most; and of all guests together, as each may be compared with each. */
const MOST_SAMPLED = 4096;
const ALL_SAMPLED = 1 << 19;
const LEAST_SAMPLED = 256;

export interface SurveyParts {
  host: Pick<MigrationHost, 'connectPeer' | 'url' | 'shared' | 'manifestOf' | 'log'>;
  guests: Pick<Guests, 'all'>;
  migrations: Pick<Migrations, 'of'>;
}

export interface SurveyedTarget extends EvacuationTarget {
  /** Guests that may be arriving there at once. */
  places: number;
}

export interface Survey {
  /** Guests that may go. */
  guests: EvacuationGuest[];
  /** Guests on their way already, by an earlier command. */
  leaving: { guest: EvacuationGuest; migration: string; to: string }[];
  /** Guests that can't go, wherever to. */
  stuck: { guest: string; memory: number; error: ErrorJson }[];
  targets: SurveyedTarget[];
  /** Which of these pages of the sample a target has now, a byte a page; undefined: it can't be told. */
  ask(url: string, domain: string, pages: Uint32Array): Promise<Uint8Array | undefined>;
}

/** @throws PagetideError `PT_BAD_ARGUMENT`; why a target can't be asked what it can take */
export async function survey(parts: SurveyParts, request: EvacuateRequest): Promise<Survey> {
  const urls = checkTargets(request.to, parts.host.url);
  // what no guest can be asked for is refused as such
  planMigration(request, { pageSize: 4096, tracking: writeTracking() }, undefined);
  const targets = await Promise.all(urls.map(async (url) => ({ url, can: await ask(parts, url) })));
  const found: Pick<Survey, 'guests' | 'leaving' | 'stuck'> = { guests: [], leaving: [], stuck: [] };
  const refuses = targets.map(() => new Map<string, ErrorJson>());
  const known: { guest: EvacuationGuest; manifest: Manifest }[] = [];
  for (const { name, vmm } of parts.guests.all()) {
    const { description, domain } = vmm.record;
    const memory = description.memory.size;
    const none = { name, memory, domain, pages: new Uint32Array(), pageBytes: 0 };
    const machine = parts.migrations.of(name);
    if (machine instanceof OutgoingMigration) {
      const { migration, peer } = machine.state;
      found.leaving.push({ guest: { ...none, unknownBytes: memory }, migration, to: peer });
      continue;
    }
    let movable: Movable;
    try {
      if (machine !== undefined) throw busy(name);
      movable = await checkMovable(name, vmm);
    } catch (thrown) {
      found.stuck.push({ guest: name, memory, error: asPagetideError(thrown).toJSON() });
      continue;
    }
    const source = { pageSize: vmm.record.pageSize, tracking: writeTracking(), ...movable };
    for (const [at, { can }] of targets.entries()) {
      try {
        planMigration(request, source, can);
      } catch (thrown) {
        refuses[at]!.set(name, asPagetideError(thrown).toJSON());
      }
    }
    const manifest = domain === undefined ? undefined : parts.host.manifestOf(vmm);
    const guest = { ...none, unknownBytes: manifest === undefined ? await allocated(vmm) : 0 };
    found.guests.push(guest);
    if (manifest !== undefined) known.push({ guest, manifest });
  }
  const samples = await sample(known);
  const question: Survey['ask'] = async (url, domain, pages) => {
    const tags = samples.get(domain);
    if (tags === undefined) return undefined;
    const wanted = new Uint8Array(pages.length * TAG_BYTES);
    for (const [at, page] of pages.entries())
      wanted.set(tags.subarray(page * TAG_BYTES, (page + 1) * TAG_BYTES), at * TAG_BYTES);
    return held(parts, url, domain, wanted);
  };
  return {
    ...found,
    ask: question,
    targets: await Promise.all(
      targets.map(async ({ url, can }, at) => {
        const has = new Map<string, Uint8Array>();
        for (const [domain, tags] of samples) {
          const there = await held(parts, url, domain, tags);
          if (there !== undefined) has.set(domain, there);
        }
        return { url, room: can.room.bytes, places: can.room.guests, has, refuses: refuses[at]! };
      }),
    ),
  };
}

/** Each once, and none of them this host. */
function checkTargets(to: readonly string[], own: string): string[] {
  const origins = to.map((url) => new URL(url).origin);
  if (to.length === 0) throw new PagetideError('PT_BAD_ARGUMENT', 'guests have to go somewhere: a target is missing');
  for (const [at, origin] of origins.entries()) {
    if (origin === new URL(own).origin)
      throw new PagetideError('PT_BAD_ARGUMENT', `${to[at]!} is the host that is to be evacuated`, {
        hint: 'Give the URLs of other agents.',
      });
    if (origins.indexOf(origin) !== at) throw new PagetideError('PT_BAD_ARGUMENT', `${to[at]!} is given twice`);
  }
  return [...to];
}

async function ask({ host }: SurveyParts, url: string): Promise<Capabilities & Required<Pick<Capabilities, 'room'>>> {
  const peer = host.connectPeer(url);
  try {
    const { room, ...can } = await peer.capabilities();
    if (room === undefined)
      throw new PagetideError(
        'PT_PROTOCOL',
        `the agent at ${url} is of an older version: it does not say what room it has`,
      );
    return { ...can, room };
  } finally {
    await peer.close();
  }
}

function busy(name: string): PagetideError {
  return new PagetideError('PT_GUEST_BUSY', `guest '${name}' is still arriving here`, {
    hint: 'Repeat the command when it has arrived.',
  });
}

/** How this guest may go. @throws PagetideError why it can't go anywhere now */
async function checkMovable(name: string, vmm: Vmm): Promise<Movable> {
  const state = await statusOf(vmm);
  if (state !== 'running')
    throw new PagetideError('PT_GUEST_STATE', `guest '${name}' is ${state}: only a running guest is migrated`);
  return (await vmm.checkMovable?.()) ?? {};
}

/** Bytes of memory that exist: at most these are not zero. All of it where that can't be told. */
async function allocated({ record }: Vmm): Promise<number> {
  const { size } = record.description.memory;
  try {
    const files = await Promise.all(record.files.map(({ path }) => stat(path)));
    return Math.min(
      size,
      files.reduce((sum, { blocks }) => sum + blocks * 512, 0),
    );
  } catch {
    return size;
  }
}

/** Samples the guests of each domain and notes what each has. The tags of each domain's sample. */
async function sample(
  known: readonly { guest: EvacuationGuest; manifest: Manifest }[],
): Promise<Map<string, Uint8Array>> {
  const most = Math.max(LEAST_SAMPLED, Math.min(MOST_SAMPLED, Math.floor(ALL_SAMPLED / known.length)));
  const byDomain = new Map<string, typeof known>();
  for (const one of known) byDomain.set(one.guest.domain!, [...(byDomain.get(one.guest.domain!) ?? []), one]);
  const tags = new Map<string, Uint8Array>();
  for (const [domain, members] of byDomain) {
    const named = members.map(({ guest: { name }, manifest }) => ({ name, manifest }));
    const sampled = await samplePages(named, most);
    for (const [at, { guest }] of members.entries())
      Object.assign(guest, { pages: sampled.guests[at]!.pages, pageBytes: sampled.pageBytes });
    tags.set(domain, sampled.tags);
  }
  return tags;
}

/** Undefined where the target can't be asked: it may not share the domain with this host, and then nothing is known of it. */
async function held(
  { host }: SurveyParts,
  url: string,
  name: string,
  tags: Uint8Array,
): Promise<Uint8Array | undefined> {
  const domain = host.shared.domain(name);
  if (domain === undefined || tags.length === 0) return undefined;
  const key = domain.openKey();
  try {
    return await heldTags({ url, domain: domain.mark, key: key.id }, tags);
  } catch (thrown) {
    const { code, message } = asPagetideError(thrown);
    host.log.info({ target: url, domain: name, code }, `it is not known which pages the target has: ${message}`);
    return undefined;
  } finally {
    key.close();
  }
}
