/** The report of a migration: what its source noted when the guest left, and the figures that the destination sends. */
import type { GuestStats } from '../guests/driver.ts';
import type { CompletionFigures, MigrationReport, RoundReport } from './types.ts';

/** How the guest left. All of it is in the source's journal before the destination may run the guest. */
export interface Departure {
  /** Milliseconds since the epoch. */
  startedAt: number;
  /** When the guest was stopped, microseconds since the epoch. Absent: nobody knows any more. */
  pausedAt?: number;
  /** How long the guest stood still for the disk of this host's journal, milliseconds. Absent: not known any more. */
  journalMs?: number;
  /** What this host had heard of the guest by then; a moment later than the rest, and missing where it came too late. */
  heard?: Pick<GuestStats, 'longestGapMs' | 'heartbeats'>;
  /** Why it was this mode, where nobody asked for it. */
  why?: string;
  /** What did not go as asked for. */
  note?: string;
  /** In which memory was copied before. */
  rounds?: RoundReport[];
}

/**
 * @param departure of the guest from here
 * @param figures of its arrival there
 * @param wire bytes that went both ways for this migration
 * @param now milliseconds since the epoch
 */
export function makeReport(
  about: Pick<MigrationReport, 'guest' | 'mode' | 'driver'>,
  departure: Departure,
  figures: CompletionFigures,
  wire: number,
  now: number,
): MigrationReport {
  const { guest, mode, driver } = about;
  const { why, note, rounds } = departure;
  return {
    guest,
    mode,
    driver,
    verified: figures.verified,
    frames: figures.frames,
    bytes: { ...figures.bytes, wire },
    ms: {
      ...times(departure, figures),
      total: round(now - departure.startedAt - figures.verifyMs),
      journal: journalTime(departure, figures),
    },
    faults: figures.faults,
    longestGapMs: longestGap(departure, figures),
    ...(why === undefined ? {} : { why }),
    ...(note === undefined ? {} : { note }),
    ...(rounds === undefined ? {} : { rounds }),
  };
}

function times(
  { startedAt, pausedAt }: Departure,
  { resumedAt }: CompletionFigures,
): { prepare: number | null; downtime: number | null } {
  if (pausedAt === undefined) return { prepare: null, downtime: null };
  return {
    prepare: round(Math.max(0, pausedAt / 1000 - startedAt)),
    // Clocks of two hosts: by NTP's grace. Never below zero.
    downtime: resumedAt > 0 ? round(Math.max(0, (resumedAt - pausedAt) / 1000)) : null,
  };
}

function journalTime({ journalMs: here }: Departure, { journalMs: there }: CompletionFigures): number | null {
  return here === undefined || there === undefined ? null : round(here + there);
}

/** A guest that counts its own gaps carries them along; one whose heartbeats hosts hear has its longest between them. */
function longestGap({ heard }: Departure, figures: CompletionFigures): number | null {
  const { heartbeats, longestGapMs = null } = heard ?? {};
  const between =
    heartbeats === undefined || figures.firstBeatAt === undefined
      ? null
      : Math.max(0, (figures.firstBeatAt - heartbeats.lastUnixMicros) / 1000);
  const gaps = [figures.longestGapMs, longestGapMs, between].filter((gap) => gap !== null);
  return gaps.length === 0 ? null : Math.max(...gaps);
}

function round(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
