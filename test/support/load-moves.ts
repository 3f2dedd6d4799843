/** Moves guests with real loads by each mode, and says what of it did not hold. The test and the full matrix (bench/matrix.ts) share it. */
import type { MigrateRequest } from '../../src/agent/service.ts';
import type { MigrationInfo, MigrationReport, Mode, ModeWanted } from '../../src/migration/types.ts';
import type { TestAgent } from './cluster.ts';
import { damage, type Load } from './load-guest.ts';
import { guestFaults, migrate, reportFaults } from './migrate.ts';

/** All that can be asked for. */
export const MODES = ['post-copy', 'pre-copy', 'hybrid', 'auto'] as const satisfies readonly ModeWanted[];

/** How long a pre-copy may stand still, milliseconds: what is looked at is what arrives, not how soon, on a busy machine. */
export const PRE_COPY_DOWNTIME_MS = 5_000;

/** What is asked for besides the mode. Each comes to its end with any limit: a pre-copy that does not fit it pauses the guest. */
function settings(asked: ModeWanted, maxDowntimeMs: number): Partial<MigrateRequest> {
  return asked === 'pre-copy' ? { maxDowntimeMs, onNoConvergence: 'pause' } : {};
}

/** The mode that is taken between these agents: both have a userfaultfd, and can track what a QEMU guest without disks writes. */
const TAKEN: Record<ModeWanted, Mode> = {
  'post-copy': 'post-copy',
  'pre-copy': 'pre-copy',
  hybrid: 'hybrid',
  auto: 'hybrid',
};

/** How one move of a load went. */
export interface LoadMove {
  load: Load;
  asked: ModeWanted;
  /** Absent where it did not get to its end. */
  report?: MigrationReport;
  /** Operations of the load's clients: when it was asked to move, and when it worked again and had checked itself twice. */
  operations: { before: number; after: number };
  /** What did not hold; empty: all is well. */
  problems: string[];
}

/**
 * Moves a load's guest, and looks whether all is well: with the migration and its report, and with the load, which checks itself when
 * its last page has come, and again while it works on.
 * @param maxDowntimeMs of a pre-copy; a limit that it can't keep makes it copy in more rounds
 */
export async function moveLoad(
  load: Load,
  from: TestAgent,
  to: TestAgent,
  asked: ModeWanted,
  maxDowntimeMs = PRE_COPY_DOWNTIME_MS,
): Promise<LoadMove> {
  const operations = async (agent: TestAgent): Promise<number> =>
    (await agent.client.showGuest(load)).stats?.operations ?? 0;
  const before = await operations(from);
  const { last } = await migrate(from, to, load, { mode: asked, ...settings(asked, maxDowntimeMs) });
  const { report } = last;
  if (report === undefined) return { load, asked, operations: { before, after: before }, problems: [endOf(last)] };
  const problems = [...reportFaults(report), ...modeFaults(asked, report), ...(await guestFaults(to, load))];
  const after = await operations(to);
  if (after <= before) problems.push(`${after} operations, ${before} before it was moved`);
  return { load, asked, report, operations: { before, after }, problems };
}

function endOf({ progress, error }: MigrationInfo): string {
  return `it ended as ${progress.phase}: ${error?.code ?? 'no error'} ${error?.message ?? ''}`;
}

/** What a report says that a migration asked for like that can't have done. */
function modeFaults(asked: ModeWanted, report: MigrationReport): string[] {
  const { mode, driver, verified, why, rounds = [], frames, faults } = report;
  const copied = rounds.length > 0;
  const rules: [boolean, string][] = [
    [driver === 'qemu', `driver is ${driver}`],
    [verified === true, `verified is ${verified}`],
    [mode === TAKEN[asked], `${asked} took ${mode}: ${why ?? 'no reason given'}`],
    [(why !== undefined) === (asked === 'auto'), `the reason for ${asked} is ${why ?? 'not given'}`],
    [copied === (mode !== 'post-copy'), `${rounds.length} rounds of a ${mode}`],
    [!copied || rounds[0]!.changed === frames.total, `the first round told ${rounds[0]?.changed} of ${frames.total}`],
    [mode !== 'pre-copy' || faults.count === 0, `${faults.count} faults after a pre-copy`],
  ];
  return rules.flatMap(([holds, text]) => (holds ? [] : [text]));
}

/**
 * Damages a load's guest, and asks it to check itself: what is wrong when it doesn't notice. Empty: had anything been wrong
 * before, it would have been seen. The guest is of no use afterwards.
 */
export async function blindness(agent: TestAgent, load: Load): Promise<string[]> {
  if ((await damage(agent, load)) === 0) return ['nothing was found in its memory to damage'];
  const result = await agent.client.verifyGuest(load);
  return result?.ok === false ? [] : [`its memory was damaged, and its check says ${JSON.stringify(result)}`];
}
