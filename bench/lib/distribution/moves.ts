/** The moves of the experiment: there, measured, and home again. */
import { PagetideError } from '../../../src/errors.ts';
import { migrate, reportFaults } from '../../../test/support/migrate.ts';
import type { MigrationReport, Mode } from '../../../src/migration/types.ts';
import { NATIVE_METHODS, NativeGuest, type NativePlace } from '../qemu-native.ts';
import { commandIn } from '../netns-cluster/network.ts';
import { likeOptions, moversOf } from './fleet.ts';
import type { Stage } from './stage.ts';
import { MODES, type Arm, type FleetGuest, type Host, type OtherMove, type OwnMove } from './types.ts';

const MIB = 2 ** 20;

async function move(stage: Stage, name: string, from: Host, to: Host, mode: Mode): Promise<MigrationReport> {
  // a guest that dirties faster than pages move stands still for longer, and the report says so
  const more = mode === 'pre-copy' ? { onNoConvergence: 'pause' as const } : {};
  const { last } = await migrate(from, to, name, { mode, verify: stage.setup.small, ...more });
  stage.left(from);
  const faults = reportFaults(last.report);
  if (last.error !== undefined || faults.length > 0)
    throw new PagetideError('PT_PEER_FAILED', `${name} did not move well: ${last.error?.message ?? faults.join('; ')}`);
  return last.report!;
}

/** To its destination, measured; and back, not measured. */
export async function thereAndBack(
  stage: Stage,
  { name, kind, home, to }: FleetGuest,
  mode: Mode,
  arm: Arm,
  round: number,
): Promise<OwnMove> {
  stage.checkTime();
  const [from, there] = [stage.hosts[home]!, stage.hosts[to]!];
  const { result, measured } = await stage.measure(() => move(stage, name, from, there, mode));
  const made = stage.note({ ...measured, guest: name, kind, arm, round, report: result });
  await move(stage, name, there, from, 'post-copy');
  stage.progress(`  ${arm}: ${describeMove(made)}`);
  return made;
}

/** By each mode once, and home: nothing of it is kept. */
export async function warmUp(stage: Stage, guest: FleetGuest): Promise<void> {
  for (const mode of MODES) await thereAndBack(stage, guest, mode, 'nothing', -1);
}

/** Every guest by every mode, in this arm. Each begins in the same state, which `prepare` makes: a guest leaves pages on both of its hosts. */
export async function everyGuest(
  stage: Stage,
  arm: Arm,
  round: number,
  moves: OwnMove[],
  prepare: (guest: FleetGuest) => Promise<void>,
): Promise<void> {
  for (const mode of MODES) {
    for (const guest of moversOf(stage.setup)) {
      await prepare(guest);
      moves.push(await thereAndBack(stage, guest, mode, arm, round));
    }
  }
}

export function describeMove({ guest, report, linkBytes }: OwnMove): string {
  const { mode, ms, bytes, frames, longestGapMs } = report;
  const found = frames.cache + frames.resident;
  const link = linkBytes > 0 ? ` (link ${(linkBytes / MIB).toFixed(1)})` : '';
  return (
    `${guest}, ${mode}: wire ${(bytes.wire / MIB).toFixed(2)} MiB${link}, total ${ms.total.toFixed(0)} ms, downtime ${ms.downtime?.toFixed(1)} ms, ` +
    `longest gap ${longestGapMs?.toFixed(0) ?? '?'} ms; ${found} of ${frames.total - frames.zero} frames were there`
  );
}

/** A like guest that QEMU itself moves between the first and the last host, while the others run on. */
export class NativeArm {
  readonly #stage: Stage;
  readonly #places: [NativePlace, NativePlace];
  readonly #argv: readonly string[];
  #guest: NativeGuest | undefined;
  #at: 0 | 1 = 0;

  private constructor(stage: Stage, argv: readonly string[]) {
    const [first, last] = [stage.hosts[0]!, stage.hosts[2]!].map(({ namespace, address }) => {
      const [program, ...args] = commandIn(namespace!, []);
      return { prefix: [program, ...args], address, folder: stage.folder };
    });
    this.#stage = stage;
    this.#argv = argv;
    this.#places = [first!, last!];
  }

  /** It has booted, and stands still. */
  static async start(stage: Stage): Promise<NativeArm> {
    const arm = new NativeArm(stage, (await likeOptions(stage.setup, 99)).argv);
    arm.#guest = await NativeGuest.run(arm.#argv, arm.#places[0]);
    await arm.#guest.pause();
    return arm;
  }

  /** By each method once; it stands still before and afterwards. */
  async round(round: number, moves: OtherMove[]): Promise<void> {
    await this.#guest!.resume();
    for (const method of NATIVE_METHODS) {
      const to = this.#at === 0 ? 1 : 0;
      const { result, measured } = await this.#stage.measure(() => this.#guest!.move(method, this.#places[to]));
      this.#at = to;
      const sound = await this.#guest!.sound();
      moves.push(this.#stage.note({ ...measured, ...result, round, sound }));
      this.#stage.progress(
        `  QEMU, ${method}: ${(result.reported.bytes / MIB).toFixed(1)} MiB, total ${result.totalMs.toFixed(0)} ms, downtime ${result.downtimeMs.toFixed(1)} ms${sound ? '' : ', and the guest was damaged'}`,
      );
      if (!sound) await this.#again();
    }
    await this.#guest!.pause();
  }

  async #again(): Promise<void> {
    await this.close();
    this.#at = 0;
    this.#guest = await NativeGuest.run(this.#argv, this.#places[0]);
  }

  async close(): Promise<void> {
    await this.#guest?.close();
    this.#guest = undefined;
  }
}
