/** The destination's figures: how a guest's frames came, from which the source makes the report. */
import type { Logger } from 'pino';
import { asPagetideError } from '../errors.ts';
import type { Vmm } from '../guests/driver.ts';
import type { ServiceFigures } from '../memory/guest-service.ts';
import { NO_FRAMES, type Arrival, type CopiedFrames } from './arrival.ts';
import type { CompletionFigures, FrameClasses } from './types.ts';

/** Bytes that the switch took: map and device state, and the connection that carried them. */
export interface SwitchBytes {
  manifest: number;
  state: number;
  wire: number;
}

/** Of pages that came: at the sockets, as they were carried, and as they are. */
export type PageBytes = Pick<CompletionFigures['bytes'], 'wire' | 'pages' | 'raw' | 'deltas'>;

/**
 * The classes of the frames of a guest all of whose pages are here. They add up to `total`: what nobody counted otherwise is the
 * source's, and what was never installed is zero.
 * @param arrival `before`: installed behind the guest before this agent served it: where from was known to the one that died.
 *   `counted`: what the service had counted before it served
 * @param copied what was copied before the guest ran here, and was still right when it was stopped
 */
export function classesOf(
  figures: ServiceFigures,
  { before, counted: base }: Pick<Arrival, 'before' | 'counted'>,
  copied: CopiedFrames | undefined,
): FrameClasses {
  const { total, installed: ever } = figures.counts;
  const frames = copied ?? NO_FRAMES;
  const early = frames.cache + frames.resident + frames.duplicate + frames.peer + frames.source;
  const installed = Math.min(total - early, ever);
  const present = Math.min(installed, before);
  const [cache, resident] = [figures.cached - base.cache, figures.resident - base.resident];
  const [duplicate, peer] = [figures.repeated - base.duplicate, figures.fromPeers - base.peer];
  return {
    total,
    zero: total - early - installed,
    present,
    cache: frames.cache + cache,
    resident: frames.resident + resident,
    duplicate: frames.duplicate + duplicate,
    peer: frames.peer + peer,
    source: frames.source + installed - present - cache - resident - duplicate - peer,
  };
}

/** The same of a guest that was copied whole, and never served. */
export function copiedClasses(total: number, frames: CopiedFrames): FrameClasses {
  const zero = total - (frames.cache + frames.resident + frames.duplicate + frames.peer + frames.source);
  return { total, zero, present: 0, ...frames };
}

/** What has come by now. */
export function bytesOf({ service }: Pick<Arrival, 'service'>): PageBytes {
  const { wireBytes, pageBytes, rawBytes, deltas } = service.figures();
  return { wire: wireBytes, pages: pageBytes, raw: rawBytes, ...(deltas === undefined ? {} : { deltas }) };
}

/**
 * What the service and the switch have to tell; the guest itself tells the rest, see {@link askGuest}.
 * @param earlier what came in rounds, where that was another service's
 */
export function figuresOf(
  { service }: Pick<Arrival, 'service'>,
  frames: FrameClasses,
  switched: SwitchBytes | undefined,
  earlier: PageBytes = { wire: 0, pages: 0, raw: 0 },
): CompletionFigures {
  const figures = service.figures();
  const { counts, faults, pageBytes, rawBytes, wireBytes } = figures;
  // of rounds alone, which are of one service
  const deltas = figures.deltas ?? earlier.deltas;
  return {
    frames,
    bytes: {
      wire: wireBytes + earlier.wire + (switched?.wire ?? 0),
      manifest: switched?.manifest ?? 0,
      pages: pageBytes + earlier.pages,
      state: switched?.state ?? 0,
      raw: rawBytes + earlier.raw,
      ...(deltas === undefined ? {} : { deltas }),
    },
    faults: { ...faults, count: Math.max(faults.count, counts.faults) },
    longestGapMs: null,
    verified: null,
    resumedAt: 0,
    verifyMs: 0,
  };
}

/** Adds what the guest itself can tell of how it fared. A guest that can't be asked changes nothing. */
export async function askGuest(figures: CompletionFigures, vmm: Vmm): Promise<void> {
  const stats = await vmm.stats().catch(() => null);
  if (stats === null) return;
  const { stalls, longestGapMs, heartbeats } = stats;
  if (stalls !== null)
    figures.faults = { ...figures.faults, p50Us: stalls.p50Us, p99Us: stalls.p99Us, maxUs: stalls.maxUs };
  figures.longestGapMs = longestGapMs;
  if (heartbeats !== undefined) figures.firstBeatAt = heartbeats.firstUnixMicros;
}

/** Lets the guest check itself. A guest that can't be asked is not a wrong guest: null. */
export async function verified(vmm: Vmm, log: Logger, guest: string | null): Promise<boolean | null> {
  const result = await vmm.verify().catch((error: unknown) => {
    log.warn({ guest, error: asPagetideError(error).message }, 'the guest could not check itself');
    return null;
  });
  if (result?.ok === false) log.error({ guest, bad: result.bad }, 'the guest found wrong pages');
  return result === null ? null : result.ok;
}
