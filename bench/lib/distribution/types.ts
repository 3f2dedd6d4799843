/** The shapes of the experiment: what is set, what one move was, what the result keeps. */
import type { CpuUse } from '../cpu-use.ts';
import type { ClusterAgent } from '../netns-cluster/agent.ts';
import type { NativeMethod, NativeMove } from '../qemu-native.ts';
import type { Load } from '../../../test/support/load-guest.ts';
import type { MigrationReport } from '../../../src/migration/types.ts';

/** `nothing`: caches are empty. `prepared`: distribution has run. `planned`: it has, and knew who would come. */
export const ARMS = ['nothing', 'prepared', 'planned'] as const;
export type Arm = (typeof ARMS)[number];
export const MODES = ['pre-copy', 'post-copy'] as const;
export type MovingMode = (typeof MODES)[number];

export interface Setup {
  /** Only `nothing` also runs where agents don't distribute. */
  arms: readonly Arm[];
  /** Embedded guests instead of QEMU's: small, for a test. */
  small: boolean;
  /** Of each guest that is like others, MiB. */
  mib: number;
  /** Pages that each like guest rewrites a second. */
  rate: number;
  /** Share of its memory that each like guest rewrites, percent: what it has for itself in the end. */
  own: number;
  /** Of each link, bits a second. */
  link: number;
  /** Of each cache, bytes. */
  cache: number;
  /** What distribution may take, bytes a second. */
  average: number;
  peak: number;
  /** It is waited for until it is idle, or for this long, milliseconds. */
  mostMs: number;
  /** All of it, milliseconds: moves and waits that would begin later are left out, and the result says so. */
  allMs: number;
  /** Of the sweep, shares of what was brought without a limit; empty: none. */
  budgets: readonly number[];
  /** Since the last pass, minutes; empty: none. */
  fades: readonly number[];
  /** Whether QEMU's own are measured. */
  native: boolean;
  /** Like guests that move; the others stay where they are. */
  movers: number;
  /** Segmentation is left to the links: see NetworkOptions. */
  offload: boolean;
}

/** `like`: others of the same template run, which check their memory. `like server`: another one runs the same real server. */
export const KINDS = ['like', 'like server', 'unlike'] as const;
export type Kind = (typeof KINDS)[number];

export interface FleetGuest {
  name: string;
  kind: Kind;
  /** The real load that it runs; none: it is a like guest. */
  load?: Load;
  /** Index of its host, and of the one that it moves to, where no guest like it runs. */
  home: number;
  to: number;
  /** It runs, and is a reason to bring pages, but is not moved itself. */
  stays?: boolean;
}

/** A host that the experiment runs on. */
export type Host = ClusterAgent;

/** Times are milliseconds of the clock of the recorder of links. */
export interface Measured {
  fromMs: number;
  toMs: number;
  /** What all hosts sent, headers included; known at the end of the experiment only. */
  linkBytes: number;
  cpu: CpuUse;
}

export interface OwnMove extends Measured {
  guest: string;
  kind: Kind;
  arm: Arm;
  round: number;
  report: MigrationReport;
}

export interface OtherMove extends Measured, NativeMove {
  method: NativeMethod;
  round: number;
  /** Whether the guest found its memory right afterwards. */
  sound: boolean;
}

/** A pass of distribution at all hosts. */
export interface Pass extends Measured {
  arm: Arm | 'sweep';
  /** All were idle at its end. */
  idle: boolean;
  heldBytes: number[];
  /** Most bytes in any 100 ms at each host's link, received and sent: frames of the streams that bring pages, by capture. */
  peakIn: number[];
  peakOut: number[];
  /** The same of all frames, reports and plans included. */
  allIn: number[];
  allOut: number[];
}

/** One point of a sweep. */
export interface Point {
  /** Share of the budget, or minutes. */
  at: number;
  round: number;
  heldBytes: number;
  move: OwnMove;
}

/** A phase of the experiment. */
export interface Mark extends Measured {
  name: string;
}

/** What went over all links in each 100 ms. */
export interface Windows {
  windowMs: number;
  /** Bytes at the busiest link, and at all of them, one way (what each host received). */
  busiest: number[];
  all: number[];
}

/** What distribution did, over all hosts and domains. */
export interface Score {
  spentBytes: number;
  savedBytes: number;
  /** Pages, each counted for each guest that it served. */
  servedPages: number;
  /** Pages that a plan found no more in the cache: here, those of caches that were emptied. */
  evictedPages: number;
  wrongPages: number;
}

export interface Experiment {
  setup: Setup;
  guests: FleetGuest[];
  own: OwnMove[];
  native: OtherMove[];
  passes: Pass[];
  budget: Point[];
  fade: Point[];
  marks: Mark[];
  windows: Windows;
  score: Score;
  /** Why parts are missing; null: none is. */
  incomplete: string | null;
}
