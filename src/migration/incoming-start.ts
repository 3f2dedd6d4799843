/** The destination gets ready: a VMM that waits, its memory, and connections to the source. */
import type { Vmm } from '../guests/driver.ts';
import { PagetideError } from '../errors.ts';
import { native } from '../memory/native.ts';
import type { PeerPagesSpec } from '../memory/worker-messages.ts';
import { Arrival, tagsOf, type AcquiredRecord } from './arrival.ts';
import { ArrivingNames, checkOffer } from './arriving-names.ts';
import { Copying } from './incoming-copying.ts';
import type { MigrationHost } from './host.ts';
import type { IncomingDetails } from './incoming-details.ts';
import { StateChannel } from './state-channel.ts';
import type { PrepareRequest } from './types.ts';
import { within } from './within.ts';

/** What is told as it comes into being, in this order, so that whoever ends the migration meanwhile can end it. May throw: it is not wanted any more. */
export interface StartHooks {
  vmm(vmm: Vmm): void;
  /** Resolves when durable: the userfaultfd can be found again. Undefined: the guest is copied whole, and needs none. */
  acquired(acquired: AcquiredRecord | undefined): Promise<void>;
  arrival(arrival: Arrival): void;
  channel(channel: StateChannel): void;
}

export interface Started {
  channel: StateChannel;
  /** Undefined: no rounds come. */
  copying: Copying | undefined;
  /** Chunks of the manifest that this host lacks, [first, count, …]. */
  wants: number[];
}

/** @throws PagetideError why the guest can't come; what was told is the caller's to end, the rest is gone */
export async function startArrival(
  host: MigrationHost,
  request: PrepareRequest,
  pages: PeerPagesSpec,
  hooks: StartHooks,
): Promise<Started> {
  const { guest, description, source, migration, domain, manifest: offered, copies, serves, bandwidth } = request;
  const { settings, shared } = host;
  if (!copies && !serves) throw new PagetideError('PT_PROTOCOL', 'the guest is neither to be copied nor to be served');
  if (serves && settings.userfaultfd === 'off') {
    throw new PagetideError('PT_MODE_UNSUPPORTED', 'this host serves no guests by userfaultfd: it is configured so', {
      hint: 'Choose pre-copy.',
    });
  }
  shared.check(request);
  await host.checkRoom(description);
  const chunkTags = checkOffer(offered, description.memory.size);
  const place = host.pools.take();
  let uffd: number | undefined;
  let names: ArrivingNames;
  let arrival: Arrival;
  try {
    const vmm = await host.prepareVmm(guest, description, { userfaultfd: serves });
    if (domain !== undefined) vmm.record.domain = domain.name;
    hooks.vmm(vmm);
    const acquired = serves ? await vmm.acquire() : undefined;
    uffd = acquired?.uffd;
    await hooks.acquired(acquired === undefined ? undefined : recordOf(acquired));
    await vmm.expectState?.();
    const at = host.place(guest);
    names = ArrivingNames.create(tagsOf(at, migration), offered.frames, shared.openKey(request), copies);
    uffd = undefined;
    arrival = Arrival.open(host, { place, at, vmm, acquired, pages, names, copies, bandwidth });
  } catch (error) {
    if (uffd !== undefined) native().close(uffd);
    place.free();
    throw error;
  }
  hooks.arrival(arrival);
  // before the source is told what is wanted, and so before it sends any tags
  const wants = names.learn(chunkTags, shared.chunks);
  const { pageSize, frames } = pages;
  const channel = new StateChannel({
    ...{ url: source.url, migration, token: source.token, pageSize, frames },
    manifest: names.told,
    ...(copies ? {} : { onTags: (first, count) => names.noteTold(first, count), onRestart: () => names.forgetTold() }),
  });
  hooks.channel(channel);
  if (!copies)
    void channel.told(1).then(
      () => arrival.begin(),
      () => undefined,
    ); // where it doesn't come, that is told

  // A source that has gone away for good must not leave this waiting for ever.
  const connected = Promise.all([arrival.ready(), channel.connected]);
  await within(connected, settings.prepareMs, 'the source did not answer on its page connections');
  const { copy, service } = arrival;
  const copying = copy === undefined ? undefined : new Copying({ copy, names, service, channel });
  return { channel, copying, wants };
}

/**
 * Takes a guest that runs here up again, by what the journal has of it.
 * @throws PagetideError `PT_MANIFEST_INVALID`, `PT_NO_WORKER`, and whatever keeps its userfaultfd from being taken
 */
export function reopenArrival(
  host: MigrationHost,
  request: PrepareRequest,
  pages: PeerPagesSpec,
  { acquired, digest }: IncomingDetails,
  vmm: Vmm,
): Arrival {
  if (acquired === undefined) throw new PagetideError('PT_INTERNAL', 'the journal lacks the userfaultfd');
  if (digest === undefined) throw new PagetideError('PT_INTERNAL', "the journal lacks the manifest's digest");
  const { guest, migration, manifest } = request;
  // none in the journal of an agent that knew no limit of a migration's own
  const { bandwidth = 0 } = request as Partial<PrepareRequest>;
  const place = host.pools.take();
  try {
    const at = host.place(guest);
    const key = host.shared.openKey(request);
    const names = ArrivingNames.reopen(tagsOf(at, migration), manifest.frames, key, digest);
    return Arrival.reopen(host, place, at, vmm, acquired, pages, names, bandwidth);
  } catch (error) {
    place.free();
    throw error;
  }
}

function recordOf({ remoteFd, origin, regions, pageSize, shared }: AcquiredRecord): AcquiredRecord {
  return { remoteFd, origin, regions, pageSize, shared };
}
